-- `postbox run --sink inbox`: a member of a group in one database writes what it reads into an inbox of another one. Messages and position
-- are one transaction, and the row of the position is its lock: whoever opens the stream waits until what is under way is committed or not.

-- In the database of the group: what tells its stream from all others, and where the log ends.
create or replace function postbox._stream_source(
    group_name text,
    out system_identifier bigint, out timeline int, out database_oid oid, out database_name text, out group_created_at timestamptz, out log_end pg_lsn
)
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select s.system_identifier, s.timeline, d.oid, d.datname::text, g.created_at, pg_current_wal_insert_lsn()
        from postbox.consumer_group g
        cross join postbox._server s
        join pg_database d on d.datname = current_database()
        where g.name = _stream_source.group_name;
    end;
comment on function postbox._stream_source(text) is 'Private: the identity of the stream of a group';

-- An event's parts are parameters: ids, types, sources, keys and headers as text, payloads as bytes with their type.
create or replace function postbox._inbox_insert_sql(box postbox.inbox, sequence_header text, priority_header text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    payload_type constant text := postbox._inbox_type(box, 'payload');
    header constant text := '(u.headers::jsonb ->> %L)';
begin
    return (
        select format(
            'insert into %s (%s) select %s
             from unnest($1, $2, $3, $4, $5, $6, $7) as u(event_id, event_type, source, key, headers, payload, payload_type)
             on conflict (%I) do nothing',
            box.relation, string_agg(format('%I', box.columns ->> c.role), ', '),
            string_agg(format('%s::%s', c.value, postbox._inbox_type(box, c.role)), ', '), box.columns ->> 'event_id')
        from (values
            ('event_id', 'u.event_id'),
            ('event_type', 'u.event_type'),
            ('source', 'u.source'),
            ('aggregate_id', 'u.key'),
            ('headers', 'u.headers'),
            ('trace_id', format('substring(' || header || ' from ''^[0-9a-f]{2}-([0-9a-f]{32})-'')', 'traceparent')),
            ('sequence_num', format(header, sequence_header)),
            ('priority', format(header, priority_header)),
            ('payload', case when payload_type = 'bytea' then 'u.payload'
                when payload_type in ('json', 'jsonb') then
                    'case u.payload_type when ''text'' then to_json(convert_from(u.payload, ''UTF8''))
                        when ''bytea'' then to_json(translate(encode(u.payload, ''base64''), e''\n'', ''''))
                        else convert_from(u.payload, ''UTF8'')::json end'
                else 'case u.payload_type when ''bytea'' then translate(encode(u.payload, ''base64''), e''\n'', '''')
                        else convert_from(u.payload, ''UTF8'') end' end)
        ) as c(role, value)
        where box.columns ? c.role
          and (c.role <> 'sequence_num' or sequence_header is not null)
          and (c.role <> 'priority' or priority_header is not null));
end
$function$;
comment on function postbox._inbox_insert_sql(postbox.inbox, text, text) is 'Private: the INSERT of many messages';

create or replace function postbox._open_inbox_stream(
    inbox text, system_identifier bigint, timeline int, database_oid oid, database_name text, group_name text, group_created_at timestamptz,
    log_end pg_lsn, epoch bigint, member text, sequence_header text, priority_header text,
    out stream bigint, out token bigint, out commit_lsn pg_lsn, out ordinal bigint
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    box constant postbox.inbox := postbox._inbox(inbox);
    known postbox.inbox_stream;
begin
    perform postbox._durable();
    -- Whoever is left on the old server of a group that was failed over.
    delete from postbox.inbox_stream s
        where s.inbox = box.id and s.system_identifier = _open_inbox_stream.system_identifier and s.timeline < _open_inbox_stream.timeline
          and s.database_oid = _open_inbox_stream.database_oid and s.group_name = _open_inbox_stream.group_name;
    insert into postbox.inbox_stream as s (
        inbox, system_identifier, timeline, database_oid, group_name, database_name, group_created_at, epoch, member, token, insert_sql
    ) values (
        box.id, _open_inbox_stream.system_identifier, _open_inbox_stream.timeline, _open_inbox_stream.database_oid, _open_inbox_stream.group_name,
        _open_inbox_stream.database_name, _open_inbox_stream.group_created_at, _open_inbox_stream.epoch, _open_inbox_stream.member, 1,
        postbox._inbox_insert_sql(box, sequence_header, priority_header)
    )
    on conflict on constraint inbox_stream_source_key do update set
        database_name = excluded.database_name, group_created_at = excluded.group_created_at, epoch = excluded.epoch, member = excluded.member,
        token = s.token + 1, insert_sql = excluded.insert_sql,
        -- A position that the log has not reached is of another history: a copy of the server from before.
        commit_lsn = case when s.commit_lsn <= log_end then s.commit_lsn end,
        ordinal = case when s.commit_lsn <= log_end then s.ordinal end
        where (s.group_created_at, s.epoch) <= (excluded.group_created_at, excluded.epoch)
    returning s.id, s.token, s.commit_lsn, s.ordinal into stream, token, commit_lsn, ordinal;
    if not found then
        select * into known from postbox.inbox_stream s
            where s.inbox = box.id and s.system_identifier = _open_inbox_stream.system_identifier and s.timeline = _open_inbox_stream.timeline
              and s.database_oid = _open_inbox_stream.database_oid and s.group_name = _open_inbox_stream.group_name;
        raise exception using errcode = 'invalid_cursor_state',
            message = format('member of epoch %s of consumer group "%s" has been replaced: inbox "%s" has been written to in epoch %s',
                epoch, group_name, box.name, known.epoch),
            detail = format('By member %s of the group that was made at %s; this one was made at %s.', known.member, known.group_created_at,
                group_created_at),
            hint = format('If the group''s database was set back to an earlier state: DELETE FROM postbox.inbox_stream WHERE id = %s. Messages that come again are known by their ids.', known.id);
    end if;
end
$function$;
comment on function postbox._open_inbox_stream(text, bigint, int, oid, text, text, timestamptz, pg_lsn, bigint, text, text, text) is
    'Private: makes the caller the one who writes, and says how far the stream has come; refuses members of earlier epochs';

create or replace function postbox._stream_into_inbox(
    stream bigint, token bigint, commit_lsn pg_lsn, ordinal bigint,
    event_ids text[], event_types text[], sources text[], keys text[], headers text[], payloads bytea[], payload_types text[]
) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    statement text;
    messages bigint;
begin
    perform postbox._durable();
    update postbox.inbox_stream s set
        commit_lsn = coalesce(_stream_into_inbox.commit_lsn, s.commit_lsn),
        ordinal = case when _stream_into_inbox.commit_lsn is null then s.ordinal else _stream_into_inbox.ordinal end,
        updated_at = clock_timestamp()
        where s.id = stream and s.token = _stream_into_inbox.token
        returning s.insert_sql into statement;
    if not found then
        raise exception using errcode = 'invalid_cursor_state',
            message = format('stream %s is not the caller''s any more: token %s is stale', stream, token),
            hint = 'Another member has taken over, or the inbox was dropped.';
    end if;
    execute statement using event_ids, event_types, sources, keys, headers, payloads, payload_types;
    get diagnostics messages = row_count;
    return messages;
end
$function$;
comment on function postbox._stream_into_inbox(bigint, bigint, pg_lsn, bigint, text[], text[], text[], text[], text[], bytea[], text[]) is
    'Private: messages into an inbox, those that it has already left out, and the position behind them; returns how many were new';
