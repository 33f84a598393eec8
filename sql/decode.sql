-- Frames as rows, for people.

create or replace function postbox.decode(frame bytea)
    returns table (
        outbox      text,
        event_id    text,
        type        text,
        key         text,
        headers     jsonb,
        payload     text,
        commit_lsn  pg_lsn,
        ordinal     bigint,
        commit_time timestamptz,
        xid         xid8,
        error       jsonb,
        claim       jsonb
    )
    language sql stable strict parallel safe
    begin atomic
        select event ->> 'outbox',
               event ->> 'event_id',
               event ->> 'type',
               event ->> 'key',
               nullif((event -> 'headers')::jsonb, 'null'),
               event ->> 'payload',
               (event ->> 'commit_lsn')::pg_lsn,
               (event ->> 'ordinal')::bigint,
               (event ->> 'commit_time')::timestamptz,
               (event ->> 'xid')::xid8,
               (event -> 'error')::jsonb,
               (event -> 'claim')::jsonb
        from unnest(postbox._decode_lines(frame)) with ordinality as listed(line, n)
        cross join lateral cast(convert_from(line, 'UTF8') as json) as event
        order by n;
    end;
comment on function postbox.decode(bytea) is 'The events of a frame of the output plugin, as pg_logical_slot_peek_binary_changes returns it; the position of a stored row is NULL, and a chunk of a claim has neither id nor type';
