-- Stateful: what is known of inboxes. The messages themselves lie in the tables of their owners and are never changed by us; what
-- becomes of them is kept here, in narrow rows of several messages each. See docs/decisions/2026-11-24-inbox.md.

create table postbox.inbox (
    id                int         not null generated always as identity,
    name              text        not null,
    relation          regclass    not null,
    -- Made by create_inbox, or an existing table that enable_inbox_tracking took.
    managed           boolean     not null,
    style             text        not null,
    -- What the table's columns are: {"event_id": "event_id", ...}. A role without a column is left out.
    columns           jsonb       not null,
    max_retries       int         not null,
    backoff_initial   interval    not null,
    backoff_max       interval    not null,
    retention         interval    not null,
    dedup_window      interval    not null,
    dead_retention    interval,
    failure_policy    text        not null,
    -- NULL: messages of an aggregate in any order.
    ordered_at        timestamptz,
    sequence_start    bigint,
    gap_alert_after   interval    not null default interval '5 minutes',
    -- Whether it has rows in inbox_tier.
    tiered            boolean     not null default false,
    paused_at         timestamptz,
    created_at        timestamptz not null default clock_timestamp(),
    -- Queries on the table, made by _arm_inbox: the messages of a claim, the heads of lanes, what is to be sorted into lanes.
    claimed_sql       text,
    heads_sql         text,
    arrivals_sql      text,
    -- Those of inbox_receive.
    receive_sql       text,
    differs_sql       text,
    receive_many_sql  text,
    -- What the table was called when they were made.
    armed_as          text,
    constraint inbox_pkey primary key (id),
    constraint inbox_name_key unique (name),
    constraint inbox_relation_key unique (relation),
    constraint inbox_style_check check (style in ('claim', 'update')),
    constraint inbox_failure_policy_check check (failure_policy in ('skip', 'pause', 'park')),
    constraint inbox_max_retries_check check (max_retries >= 0)
);
comment on table postbox.inbox is 'Inboxes: which table, which settings';
comment on column postbox.inbox.style is 'claim: workers call inbox_claim and inbox_complete; update: they lock rows of the table and set processed_at';
comment on sequence postbox.inbox_id_seq is 'Of inbox.id';
select pg_extension_config_dump('postbox.inbox', '');
select pg_extension_config_dump('postbox.inbox_id_seq', '');

create table postbox.inbox_tier (
    inbox       int      not null,
    -- 0 is served first.
    tier        smallint not null,
    name        text     not null,
    -- The priorities that belong to it, both included; NULL: no bound.
    lowest      int,
    highest     int,
    -- How often workers look here, and how many messages of it one of them works on at once.
    pace        interval not null,
    concurrency int      not null,
    paused_at   timestamptz,
    constraint inbox_tier_pkey primary key (inbox, tier),
    constraint inbox_tier_name_key unique (inbox, name),
    constraint inbox_tier_inbox_fkey foreign key (inbox) references postbox.inbox (id) on delete cascade
);
comment on table postbox.inbox_tier is 'Tiers of inboxes; an inbox without priorities has none here and everything in tier 0';
select pg_extension_config_dump('postbox.inbox_tier', '');

-- Fencing tokens. Each claim takes one; a token that is found nowhere is stale.
create sequence postbox.inbox_token;
comment on sequence postbox.inbox_token is 'Of the leases of inboxes';
select pg_extension_config_dump('postbox.inbox_token', '');

-- Messages that wait for a worker or are with one: up to 50 that arrived in one statement, in their order. A row is written once when
-- they arrive, once when they are claimed, and is deleted when they are done. No index has a column that an extension of the lease
-- changes. The rows of arrivals are those of the receiving transaction: they can be seen when it has committed, in whatever order.
create table postbox.inbox_batch (
    inbox           int         not null,
    -- Below 0: arrivals of an ordered inbox that wait to be sorted into lanes, those of tier 0 in -1, of tier 1 in -2. -32768: no messages but lanes
    -- that somebody held when their heads were done with, and which are to go on.
    tier            smallint    not null,
    -- Handed out from then on, the earliest first.
    ready_at        timestamptz not null,
    token           bigint,
    lease_until     timestamptz,
    leased_at       timestamptz,
    worker          text,
    -- Whether the lease was on one message and no other: only then it is known which one its worker died of.
    alone           boolean,
    attempts        int         not null default 0,
    -- Leases that ran out. From 2 on a message is handed out alone.
    crashes         int         not null default 0,
    event_type      text,
    error           text,
    first_failed_at timestamptz,
    last_failed_at  timestamptz,
    event_ids       text[]      not null,
    -- The lanes that these messages are the heads of, in the same order; NULL: messages of no lane.
    lanes           text[]
) with (fillfactor = 50, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
-- Batches that came in one statement are due at one moment. Entries that share a key and lie in one list are only known to be dead when all of
-- them are, and until then each claim would look at those before it.
create index inbox_batch_ready on postbox.inbox_batch (inbox, tier, ready_at) with (deduplicate_items = off) where token is null and crashes < 2;
create index inbox_batch_suspect on postbox.inbox_batch (inbox, tier, ready_at) where token is null and crashes >= 2;
create index inbox_batch_leased on postbox.inbox_batch (inbox, token) where token is not null;
comment on table postbox.inbox_batch is 'Messages of inboxes that wait for a worker or are with one';
select pg_extension_config_dump('postbox.inbox_batch', '');

-- One row for each aggregate of an ordered inbox: which message is next, and which ones are there. The next one, when it has come, lies in
-- inbox_batch like any other; here nothing changes when it is handed out. No index has a column that changes with every message, so that most
-- versions of a row are in no index.
create table postbox.inbox_lane (
    inbox     int            not null,
    key       text           not null,
    -- The tier of the message that was next last.
    tier      smallint       not null default 0,
    -- The sequence number that is handed out next, or is handed out.
    next      bigint         not null,
    -- What has arrived and is not done, next included.
    arrived   int8multirange not null default '{}',
    -- Numbers beyond next that are not waited for: given up, or done before order was asked for.
    skipped   int8multirange not null default '{}',
    -- Messages with a number in arrived that another message has: dead letters, however long those are kept.
    displaced text[],
    -- The message whose number is next, or is done with if the lane is noted to go on; NULL: it is not there yet.
    head      text,
    -- The head is a dead letter: paused, or parked with all behind it.
    blocked   text,
    -- Something has arrived behind a number that has not.
    has_gap   boolean        not null generated always as (arrived <> '{}' and not (arrived + skipped) @> int8range(next, upper(arrived))) stored,
    constraint inbox_lane_pkey primary key (inbox, key),
    constraint inbox_lane_blocked_check check (blocked in ('paused', 'parked'))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
create index inbox_lane_gap on postbox.inbox_lane (inbox) where has_gap;
create index inbox_lane_blocked on postbox.inbox_lane (inbox) where blocked is not null;
comment on table postbox.inbox_lane is 'Aggregates of ordered inboxes: the next message, and what has arrived';
select pg_extension_config_dump('postbox.inbox_lane', '');

-- Where claims begin to look: what is below is gone, or came late. Dead index entries stay at the head of the queues as long as a
-- transaction anywhere is open, and would have to be passed by each claim. Rows are only added, at most a few a second, and the newest one
-- counts; maintenance removes the others. A hint that may be lost, so it is not dumped.
create table postbox.inbox_floor (
    inbox    int         not null,
    -- batch: of the messages of a tier that wait; lease: of those that were handed out; look: when to look below next.
    kind     text        not null,
    tier     smallint    not null,
    at       timestamptz not null,
    ready_at timestamptz,
    token    bigint,
    -- A lease's: the newest token at that time.
    newest   bigint,
    constraint inbox_floor_kind_check check (kind in ('batch', 'lease', 'look'))
);
create index inbox_floor_newest on postbox.inbox_floor (inbox, kind, tier, at);
comment on table postbox.inbox_floor is 'Where claims of an inbox begin to look';

create table postbox.inbox_dead (
    inbox           int         not null,
    event_id        text        not null,
    event_type      text,
    aggregate_id    text,
    sequence_num    bigint,
    tier            smallint    not null,
    -- failed; crashed: its worker never came back; sequence: its place in the order was taken or passed.
    why             text        not null,
    error           text,
    attempts        int         not null,
    first_failed_at timestamptz,
    last_failed_at  timestamptz,
    died_at         timestamptz not null default clock_timestamp(),
    -- When listeners of postbox_alert were told.
    told_at         timestamptz,
    constraint inbox_dead_pkey primary key (inbox, event_id),
    constraint inbox_dead_why_check check (why in ('failed', 'crashed', 'sequence'))
);
create index inbox_dead_died on postbox.inbox_dead (inbox, died_at);
create index inbox_dead_untold on postbox.inbox_dead (inbox, died_at) where told_at is null;
comment on table postbox.inbox_dead is 'Messages that were given up';
select pg_extension_config_dump('postbox.inbox_dead', '');

-- What happened, appended by whoever made it happen, several messages a row. Statistics are sums over it; retention goes along it.
-- A ring like that of an outbox: TRUNCATE takes a leaf when no inbox needs it.
create table postbox.inbox_log (
    id         bigint      not null generated always as identity,
    inbox      int         not null,
    at         timestamptz not null,
    -- processed, failed (an attempt), dead, duplicate, conflict (a duplicate with another payload), skipped (a gap given up)
    what       text        not null,
    event_type text,
    messages   int         not null,
    -- From the claim to the completion, summed up over the messages.
    seconds    float8      not null default 0,
    event_ids  text[]
) partition by list (((id >> 20) & 3));
create table postbox.inbox_log_g0 partition of postbox.inbox_log for values in (0) with (toast_tuple_target = 8160);
create table postbox.inbox_log_g1 partition of postbox.inbox_log for values in (1) with (toast_tuple_target = 8160);
create table postbox.inbox_log_g2 partition of postbox.inbox_log for values in (2) with (toast_tuple_target = 8160);
create table postbox.inbox_log_g3 partition of postbox.inbox_log for values in (3) with (toast_tuple_target = 8160);
create index inbox_log_inbox on postbox.inbox_log (inbox, id);
comment on table postbox.inbox_log is 'What became of messages, in rows of several';
comment on table postbox.inbox_log_g0 is 'A leaf of inbox_log';
comment on table postbox.inbox_log_g1 is 'A leaf of inbox_log';
comment on table postbox.inbox_log_g2 is 'A leaf of inbox_log';
comment on table postbox.inbox_log_g3 is 'A leaf of inbox_log';
comment on sequence postbox.inbox_log_id_seq is 'Of inbox_log.id';
select pg_extension_config_dump('postbox.inbox_log_g0', '');
select pg_extension_config_dump('postbox.inbox_log_g1', '');
select pg_extension_config_dump('postbox.inbox_log_g2', '');
select pg_extension_config_dump('postbox.inbox_log_g3', '');
select pg_extension_config_dump('postbox.inbox_log_id_seq', '');

-- Ids whose messages retention has removed, and which must not come in again yet. Receivers look into all leaves.
create table postbox.inbox_seen (
    generation int         not null,
    inbox      int         not null,
    event_id   text        not null,
    until      timestamptz not null,
    constraint inbox_seen_pkey primary key (inbox, event_id, generation)
) partition by list (generation);
create table postbox.inbox_seen_g0 partition of postbox.inbox_seen for values in (0);
create table postbox.inbox_seen_g1 partition of postbox.inbox_seen for values in (1);
create table postbox.inbox_seen_g2 partition of postbox.inbox_seen for values in (2);
comment on table postbox.inbox_seen is 'Ids of messages that retention has removed, until their dedup window is over';
comment on table postbox.inbox_seen_g0 is 'A leaf of inbox_seen';
comment on table postbox.inbox_seen_g1 is 'A leaf of inbox_seen';
comment on table postbox.inbox_seen_g2 is 'A leaf of inbox_seen';
select pg_extension_config_dump('postbox.inbox_seen_g0', '');
select pg_extension_config_dump('postbox.inbox_seen_g1', '');
select pg_extension_config_dump('postbox.inbox_seen_g2', '');
