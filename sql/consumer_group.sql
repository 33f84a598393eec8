-- Stateful: the consumer groups of this database. A group's offset is its replication slot; these rows say which
-- slot that is and which outboxes it reads. Decoding never looks here.

create table postbox.consumer_group (
    name       text        not null,
    slot_name  name        not null,
    created_at timestamptz not null default now(),
    constraint consumer_group_pkey primary key (name),
    constraint consumer_group_slot_name_key unique (slot_name),
    -- The name is part of the slot's name: postbox_<oid of the database>_<name> must fit 63 bytes.
    constraint consumer_group_name_check check (name ~ '^[a-z0-9_]{1,40}$')
);
comment on table postbox.consumer_group is 'Consumer groups; the offset of a group is the replication slot slot_name';
select pg_extension_config_dump('postbox.consumer_group', '');

-- The outbox is kept by OID so that a rename is followed, and by name so that it can still be told after a drop:
-- a slot that lags behind the drop still owes the events published before it, so the row stays.
create table postbox.consumer_group_outbox (
    group_name  text     not null,
    outbox      regclass not null,
    outbox_name text     not null,
    constraint consumer_group_outbox_pkey primary key (group_name, outbox),
    constraint consumer_group_outbox_group_name_fkey foreign key (group_name)
        references postbox.consumer_group (name) on delete cascade
);
comment on table postbox.consumer_group_outbox is 'Outboxes that a consumer group reads';
comment on column postbox.consumer_group_outbox.outbox_name is 'schema.table, quoted as in SQL, when the group was made; stays when the outbox is dropped';
select pg_extension_config_dump('postbox.consumer_group_outbox', '');
