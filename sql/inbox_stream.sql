-- Stateful: how far the streams of other databases have come into inboxes of this one. A position is written in the transaction of the
-- messages that it stands for, so after a crash of anybody what is here and what is not is known exactly.

create table postbox.inbox_stream (
    id                bigint      not null generated always as identity,
    inbox             int         not null,
    -- The consumer group, and the server and database that it is of. A position means nothing on another timeline.
    system_identifier bigint      not null,
    timeline          int         not null,
    database_oid      oid         not null,
    group_name        text        not null,
    database_name     text        not null,
    -- Which member may write: the one that opened the stream last. A group made anew counts its epochs from the start again.
    group_created_at  timestamptz not null,
    epoch             bigint      not null,
    member            text        not null,
    token             bigint      not null,
    -- The last event that was taken over, or is a dead letter of the group. NULL: none that came by the stream.
    commit_lsn        pg_lsn,
    ordinal           bigint,
    updated_at        timestamptz not null default clock_timestamp(),
    -- The INSERT into the inbox's table.
    insert_sql        text        not null,
    constraint inbox_stream_pkey primary key (id),
    constraint inbox_stream_source_key unique (inbox, system_identifier, timeline, database_oid, group_name),
    constraint inbox_stream_inbox_fkey foreign key (inbox) references postbox.inbox (id) on delete cascade
) with (fillfactor = 50);
comment on table postbox.inbox_stream is 'Consumer groups of other databases whose events go into an inbox, and how far each is';
comment on column postbox.inbox_stream.token is 'Changes whenever a member opens the stream: what another one still writes is refused';
comment on sequence postbox.inbox_stream_id_seq is 'Of inbox_stream.id';
select pg_extension_config_dump('postbox.inbox_stream', '');
select pg_extension_config_dump('postbox.inbox_stream_id_seq', '');
