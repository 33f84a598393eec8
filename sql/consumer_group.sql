-- Stateful: the consumer groups of this database. A group's offset is its replication slot; these rows say which
-- slot that is and which outboxes it reads. Decoding never looks here. The row of a group is written when something happens
-- to the group, never while events merely flow.

create table postbox.consumer_group (
    name       text        not null,
    slot_name  name        not null,
    created_at timestamptz not null default now(),

    -- The server that the slot is on. A restored copy of this table is elsewhere, and a promoted standby goes on otherwise.
    system_identifier bigint not null,
    timeline          int    not null,
    -- How often the slot was made anew; part of its name, so that one that no transaction vouches for is never read.
    slot_generation   int     not null default 0,
    -- The output plugin of the slot.
    source            text    not null default 'postbox',
    -- Whether the slot is to be kept on standbys as well (PostgreSQL 17).
    failover          boolean not null default false,

    paused_at   timestamptz,
    -- Bytes of WAL that the slot may hold back, and what happens beyond.
    wal_budget  bigint,
    over_budget text not null default 'alert',

    -- The member that is or was active. Every write of a member names its epoch, and one of an earlier epoch is refused.
    epoch           bigint not null default 0,
    member          text,
    active_since    timestamptz,
    released_at     timestamptz,
    session_timeout interval,
    max_processing  interval,

    constraint consumer_group_pkey primary key (name),
    constraint consumer_group_slot_name_key unique (slot_name),
    -- The name is part of the slot's name: postbox_<oid of the database>_<name> must fit 63 bytes, and
    -- postbox<generation>_ instead of postbox_ as well.
    constraint consumer_group_name_check check (name ~ '^[a-z0-9_]{1,40}$'),
    constraint consumer_group_wal_budget_check check (wal_budget > 0),
    constraint consumer_group_source_check check (source in ('postbox', 'pgoutput')),
    constraint consumer_group_over_budget_check check (over_budget in ('alert', 'drop'))
) with (fillfactor = 50);
comment on table postbox.consumer_group is 'Consumer groups; the offset of a group is the replication slot slot_name';
comment on column postbox.consumer_group.source is 'postbox, or pgoutput: the output plugin of the slot, and of those that are made after it';
comment on column postbox.consumer_group.over_budget is 'alert, or drop: the slot is dropped rather than the disk filled, and the group must be recovered';
comment on column postbox.consumer_group.member is 'The member that took the group last, as it names itself';
comment on column postbox.consumer_group.released_at is 'When that member left in order; NULL while it is active, and when it died';
comment on column postbox.consumer_group.session_timeout is 'Of that member: after so long without contact it is given up';
comment on column postbox.consumer_group.max_processing is 'Of that member: it gives up by itself when its sink takes longer';
select pg_extension_config_dump('postbox.consumer_group', '');

-- The outbox is kept by OID so that a rename is followed, and by name so that it can still be told after a drop:
-- a slot that lags behind the drop still owes the events published before it, so the row stays.
create table postbox.consumer_group_outbox (
    group_name  text     not null,
    outbox      regclass not null,
    outbox_name text     not null,
    marker      bytea,
    constraint consumer_group_outbox_pkey primary key (group_name, outbox),
    constraint consumer_group_outbox_group_name_fkey foreign key (group_name)
        references postbox.consumer_group (name) on delete cascade
);
comment on table postbox.consumer_group_outbox is 'Outboxes that a consumer group reads';
comment on column postbox.consumer_group_outbox.outbox_name is 'schema.table, quoted as in SQL, when the group was made; stays when the outbox is dropped';
comment on column postbox.consumer_group_outbox.marker is
    'Arguments of its marker when last noted: what pgoutput still sends of a dropped outbox is read by them';
select pg_extension_config_dump('postbox.consumer_group_outbox', '');
