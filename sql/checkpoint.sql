-- Stateful: what outlives a group's slot. A slot is not written to the WAL, and rows do not know where they were committed;
-- so positions are remembered as snapshots as well: what is visible in one was committed before it was taken.

-- A snapshot is taken first, then the end of the log is read: what is visible in the snapshot was committed below that position.
-- The row is written once the group has dealt with everything below it. So a group has dealt with every row that is
-- visible in its checkpoint; of the others, some.
create table postbox.checkpoint (
    group_name        text        not null,
    snapshot          pg_snapshot not null,
    lsn               pg_lsn      not null,
    system_identifier bigint      not null,
    timeline          int         not null,
    taken_at          timestamptz not null,
    constraint checkpoint_pkey primary key (group_name),
    constraint checkpoint_group_name_fkey foreign key (group_name) references postbox.consumer_group (name) on delete cascade
) with (fillfactor = 10);
comment on table postbox.checkpoint is 'How far each group has come for certain, as a snapshot: recovery starts from it';
select pg_extension_config_dump('postbox.checkpoint', '');

-- What a group has still to be given from the table, after which its slot goes on. Rows that are visible in `upto` come from
-- the table, all others from the slot; those that are visible in every snapshot of `done` the group has already.
create table postbox.backfill (
    group_name text          not null,
    outbox     regclass      not null,
    done       pg_snapshot[] not null,
    upto       pg_snapshot   not null,
    upto_lsn   pg_lsn        not null,
    position   bigint        not null default -9223372036854775808,
    restored_upto bigint,
    finished   boolean       not null default false,
    reason     text          not null,
    started_at timestamptz   not null default now(),
    constraint backfill_pkey primary key (group_name, outbox),
    constraint backfill_group_name_fkey foreign key (group_name) references postbox.consumer_group (name) on delete cascade
) with (fillfactor = 10);
comment on table postbox.backfill is 'Rows that a group is given from the table before its slot goes on: after earliest, seek or recover';
comment on column postbox.backfill.done is 'The group has every row that is visible in all of these; empty: it has none';
comment on column postbox.backfill.upto_lsn is 'From this position on the slot gives all there is; before it, what is not visible in upto';
comment on column postbox.backfill.restored_upto is
    'Rows up to this seq may come from a dump, with transaction ids that mean nothing here: they were there when upto was taken';
comment on column postbox.backfill.position is 'Rows up to this seq are delivered';
select pg_extension_config_dump('postbox.backfill', '');

-- A log of moments, for all groups: what had been committed when, and where the log and the outboxes stood.
create table postbox.sample (
    taken_at          timestamptz not null,
    snapshot          pg_snapshot not null,
    lsn               pg_lsn      not null,
    system_identifier bigint      not null,
    timeline          int         not null,
    outboxes          oid[]       not null,
    last_seqs         bigint[]    not null,
    constraint sample_pkey primary key (taken_at)
);
comment on table postbox.sample is 'Moments: what had been committed when; finer for the last hour than for the last month';
comment on column postbox.sample.lsn is 'Read after the snapshot: what is visible in it was committed below';
comment on column postbox.sample.last_seqs is 'Highest seq handed out in each of the outboxes';
select pg_extension_config_dump('postbox.sample', '');
