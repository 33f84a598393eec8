-- Stateful: how far maintenance is with inboxes. All of it is small, and written only when something has changed.

-- Positions in inbox_log, each the last id that was dealt with.
create table postbox.inbox_keeping (
    inbox      int         not null,
    -- Summed up in inbox_total. Rows up to here are all there: nobody can add one any more.
    folded_id  bigint      not null default 0,
    folded_at  timestamptz,
    -- The messages of the entries up to here are in inbox_seen; marked_id: how far they were when the transactions were noted that may not
    -- have seen that (inbox_horizon); safe_id: all of these are over.
    seen_id    bigint      not null default 0,
    marked_id  bigint      not null default 0,
    safe_id    bigint      not null default 0,
    -- The messages of the entries up to here are gone from the table, unless they were replayed since.
    removed_id bigint      not null default 0,
    -- Why the last run could not remove what it was to; NULL: it could.
    failure    text,
    constraint inbox_keeping_pkey primary key (inbox),
    constraint inbox_keeping_inbox_fkey foreign key (inbox) references postbox.inbox (id) on delete cascade
) with (fillfactor = 10);
comment on table postbox.inbox_keeping is 'How far maintenance is in the log of each inbox';
select pg_extension_config_dump('postbox.inbox_keeping', '');

create table postbox.inbox_total (
    inbox      int    not null,
    event_type text,
    what       text   not null,
    messages   bigint not null,
    seconds    float8 not null,
    constraint inbox_total_inbox_fkey foreign key (inbox) references postbox.inbox (id) on delete cascade
) with (fillfactor = 50);
create index inbox_total_inbox on postbox.inbox_total (inbox);
comment on table postbox.inbox_total is 'inbox_log summed up, as far as inbox_keeping.folded_id';
select pg_extension_config_dump('postbox.inbox_total', '');

-- Where there is too much to count at every look.
create table postbox.inbox_sample (
    inbox      int         not null,
    event_type text,
    pending    bigint      not null,
    leased     bigint      not null,
    delayed    bigint      not null,
    dead       bigint      not null,
    taken_at   timestamptz not null,
    -- How long it took: the next one waits for many times that.
    took       interval    not null,
    constraint inbox_sample_inbox_fkey foreign key (inbox) references postbox.inbox (id) on delete cascade
);
create index inbox_sample_inbox on postbox.inbox_sample (inbox);
comment on table postbox.inbox_sample is 'What large inboxes held when maintenance counted it';

-- Transactions that have to end before maintenance may go on. log: those that may still write an entry with an id up to log_id. seen: those
-- that may have looked into inbox_seen before what is marked there was committed.
create table postbox.inbox_horizon (
    kind       text        not null,
    noted_at   timestamptz not null,
    log_id     bigint,
    waits_for  text[]      not null,
    -- Up to there nothing is waited for.
    settled_id bigint      not null default 0,
    constraint inbox_horizon_pkey primary key (kind),
    constraint inbox_horizon_kind_check check (kind in ('log', 'seen'))
) with (fillfactor = 10);
comment on table postbox.inbox_horizon is 'Transactions that maintenance of inboxes waits for';

-- Processed messages that were handed out again: entries of the log up to log_id do not count for them any more.
create table postbox.inbox_replay (
    inbox    int    not null,
    event_id text   not null,
    log_id   bigint not null,
    constraint inbox_replay_pkey primary key (inbox, event_id)
);
create index inbox_replay_log on postbox.inbox_replay (inbox, log_id);
comment on table postbox.inbox_replay is 'Messages that were replayed after they had been processed, for as long as retention may meet what the log says of before';
select pg_extension_config_dump('postbox.inbox_replay', '');

create table postbox.inbox_seen_leaf (
    generation int     not null,
    takes_rows boolean not null,
    since      timestamptz,
    -- Of all rows of it the latest.
    until      timestamptz,
    constraint inbox_seen_leaf_pkey primary key (generation)
) with (fillfactor = 10);
comment on table postbox.inbox_seen_leaf is 'Leaves of inbox_seen: which one takes rows, and from when on nobody needs it';
insert into postbox.inbox_seen_leaf (generation, takes_rows) values (0, true), (1, false), (2, false);
