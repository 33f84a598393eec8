-- Stateful: what maintenance remembers. All of it is small, and written only when something has changed: a server on which
-- nothing happens is left in peace.

create table postbox.outbox_setting (
    outbox         regclass not null,
    retention      interval not null,
    critical_bytes bigint   not null,
    constraint outbox_setting_pkey primary key (outbox),
    constraint outbox_setting_retention_check check (retention >= interval '0'),
    constraint outbox_setting_critical_bytes_check check (critical_bytes > 0)
);
comment on table postbox.outbox_setting is 'How long outboxes keep their events, and from which size on there is an alert; written by set_retention';
select pg_extension_config_dump('postbox.outbox_setting', '');

-- Who wants to start somewhere asks here whether everything from there on is still stored: if the start includes
-- (_includes) the snapshot. Whoever asks holds the outbox's lock (_lock_key) from before the question until its commit, as
-- does the one who removes.
create table postbox.removed (
    outbox   regclass    not null,
    snapshot pg_snapshot not null,
    lsn      pg_lsn      not null,
    at       timestamptz not null,
    rows     bigint      not null,
    leaves   bigint      not null,
    constraint removed_pkey primary key (outbox)
);
comment on table postbox.removed is 'What outboxes may lack by now: every row that retention removed is visible in the snapshot';
comment on column postbox.removed.lsn is 'What was removed had been committed below';
comment on column postbox.removed.rows is 'Rows removed so far';
comment on column postbox.removed.leaves is 'How often a leaf was emptied';
select pg_extension_config_dump('postbox.removed', '');

create table postbox.leaf (
    leaf      oid         not null,
    outbox    oid         not null,
    -- Why it could not be emptied: a row of this transaction is needed still, or else for that reason.
    waits_for xid8,
    reason    text,
    noted_at  timestamptz not null,
    constraint leaf_pkey primary key (leaf)
) with (fillfactor = 50);
comment on table postbox.leaf is 'Why leaves of outboxes could not be emptied when maintenance last tried';

create table postbox.ring_move (
    outbox   oid         not null,
    moved_at timestamptz not null,
    from_seq bigint      not null,
    to_seq   bigint      not null
);
comment on table postbox.ring_move is 'Values of seq that were left out so that another leaf, or the same one for longer, takes the rows';

create table postbox.alert (
    kind       text        not null,
    subject    text        not null,
    since      timestamptz not null,
    alerted_at timestamptz,
    detail     jsonb       not null,
    constraint alert_pkey primary key (kind, subject)
) with (fillfactor = 50);
comment on table postbox.alert is 'Conditions that hold, each alerted once it has held for long enough';
comment on column postbox.alert.alerted_at is 'When listeners of postbox_alert were told; NULL: it has not lasted long enough';

create table postbox.maintenance (
    only_row     boolean     not null default true,
    installed_at timestamptz not null default now(),
    earlier_slots name[]     not null,
    last_run     timestamptz,
    role         text,
    application  text,
    constraint maintenance_pkey primary key (only_row),
    constraint maintenance_only_row_check check (only_row)
) with (fillfactor = 10);
comment on column postbox.maintenance.earlier_slots is 'Slots that were there already, of an earlier installation';
comment on table postbox.maintenance is 'When postbox.maintain() last ran to its end and found something to do, and for whom';
insert into postbox.maintenance (earlier_slots)
    select array(select s.slot_name from pg_replication_slots s where s.database = current_database());
