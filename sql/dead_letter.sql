-- Stateful: events that could not be delivered to a group, and the events of their keys that wait behind them. A member writes them
-- before the slot passes the event, so what waits here holds back no WAL.

create table postbox.dead_letter (
    id              bigint      not null generated always as identity,
    group_name      text        not null,
    why             text        not null,
    outbox          text        not null,
    event_id        text,
    -- SHA-256 of event_id, which may be too long for an index.
    event_hash      bytea,
    seq             bigint,
    key             text,
    type            text,
    xid             xid8        not null,
    commit_lsn      pg_lsn      not null,
    ordinal         bigint      not null,
    commit_time     timestamptz,
    -- The event as the plugin sends it: postbox.decode(frame).
    frame           bytea       not null,
    attempts        int         not null,
    error           text,
    first_failed_at timestamptz,
    last_failed_at  timestamptz,
    stored_at       timestamptz not null default clock_timestamp(),
    due_at          timestamptz,
    epoch           bigint      not null,
    constraint dead_letter_pkey primary key (id),
    constraint dead_letter_group_name_fkey foreign key (group_name) references postbox.consumer_group (name) on delete cascade,
    -- Where the event stands in its transaction. What comes from the table has no ordinal, and a seq.
    place           bigint      not null generated always as (coalesce(seq, ordinal)) stored,
    constraint dead_letter_why_check check (why in ('failed', 'follower', 'unreadable')),
    -- An event that comes again after a crash is stored once. Another one with its id is another event: ids of adopted tables may begin anew, or
    -- be no keys at all. Events without an id are told apart by nothing.
    constraint dead_letter_event_key unique (group_name, outbox, event_hash, xid, place)
);
-- Keys may be too long for an index as well.
create index dead_letter_lane on postbox.dead_letter (group_name, hashtextextended(key, 0), id);
create index dead_letter_due on postbox.dead_letter (group_name, due_at) where due_at is not null;
comment on table postbox.dead_letter is 'Events that could not be delivered to a group, and those of their keys that wait behind them';
comment on column postbox.dead_letter.why is 'failed; follower: it waits behind others of its key; unreadable: the row cannot be an event';
comment on column postbox.dead_letter.due_at is 'From then on the member tries again; NULL: it waits for a person, or for its turn';
comment on column postbox.dead_letter.epoch is 'Of the member that wrote it';
comment on sequence postbox.dead_letter_id_seq is 'Of dead_letter.id';
select pg_extension_config_dump('postbox.dead_letter', '');
select pg_extension_config_dump('postbox.dead_letter_id_seq', '');
