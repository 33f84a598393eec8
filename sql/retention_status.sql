-- What outboxes hold, and what keeps it there. Read from the catalogs and from what maintenance has noted: no leaf is scanned.

create or replace view postbox.maintenance_status as
    select m.last_run                                                       as last_run,
           m.role                                                           as role,
           m.application                                                    as application,
           newest.taken_at                                                  as last_sample,
           case when coalesce(m.last_run, m.installed_at) < clock_timestamp() - interval '10 minutes'
                 and (m.last_run is null or postbox._has_moved(newest.snapshot, newest.lsn, false))
                then coalesce(m.last_run, m.installed_at) + interval '10 minutes' end as overdue_since
    from postbox.maintenance m
    left join lateral (select s.* from postbox.sample s order by s.taken_at desc limit 1) newest on true;
comment on view postbox.maintenance_status is 'When maintenance ran last; a run that finds nothing to do is not noted';
comment on column postbox.maintenance_status.overdue_since is
    'Nobody has run it for 10 minutes although there is something to do: run postbox maintain, or have pg_cron call postbox.maintain()';

create or replace view postbox.retention_status as
    with moment as materialized (
        select r.outbox, r.generation_bits, r.last_seq, kept.retention, kept.critical_bytes, (postbox._moment_before(kept.retention)).snapshot as snapshot
        from postbox._ring r
        cross join lateral postbox._retention(r.outbox) kept
    ),
    leaf as materialized (
        select m.outbox, l.leaf, l.leaf_name, l.number, l.distance, l.claims_leaf, pg_total_relation_size(l.leaf) + coalesce(pg_total_relation_size(l.claims_leaf), 0) as bytes, l.heap_bytes,
               case when pg_stat_get_live_tuples(l.leaf) > 0 then pg_stat_get_live_tuples(l.leaf) else greatest(c.reltuples, 0)::bigint end as rows_estimate
        from moment m
        cross join lateral postbox._leaves(m.outbox, m.generation_bits, m.last_seq) l
        join pg_class c on c.oid = l.leaf
    ),
    pin as materialized (
        select l.outbox, n.reason, n.waits_for, l.leaf, l.claims_leaf, n.noted_at
        from leaf l
        left join postbox.leaf n on n.leaf = l.leaf
        where l.distance > 0 and l.heap_bytes > 0
    ),
    pinned as (
        -- The row that stood against it the last time, held against what groups need now.
        select p.outbox, format('consumer group %s, which had dealt with everything until %s', n.group_name,
            coalesce(c.taken_at::text, 'nothing yet')) as words
        from pin p
        join postbox._need n on n.outbox = p.outbox
        left join postbox.checkpoint c on c.group_name = n.group_name
        where n.snapshot is null or not pg_visible_in_snapshot(p.waits_for, n.snapshot)
        union
        select p.outbox, format('retention of %s', m.retention)
        from pin p
        join moment m on m.outbox = p.outbox
        where m.snapshot is null or not pg_visible_in_snapshot(p.waits_for, m.snapshot)
        union
        select p.outbox, case
                when x.gid is not null then format('prepared transaction %L, which has used it', x.gid)
                else format('process %s (%s), which has used it', k.pid, coalesce(nullif(a.application_name, ''), 'unnamed')) end
        from pin p
        join pg_locks k on k.locktype = 'relation' and k.relation in (p.leaf, p.claims_leaf) and k.granted and k.pid is distinct from pg_backend_pid()
            and k.database = (select d.oid from pg_database d where d.datname = current_database())
        left join pg_stat_activity a on a.pid = k.pid
        -- A prepared transaction keeps the virtual id of the session that prepared it.
        left join pg_locks id on k.pid is null and id.pid is null and id.locktype = 'transactionid' and id.virtualtransaction = k.virtualtransaction
        left join pg_prepared_xacts x on x.transaction = id.transactionid
        union
        select p.outbox, p.reason from pin p where p.reason is not null
        union
        select p.outbox, 'maintenance has not looked at it yet' from pin p where p.noted_at is null
        union
        select p.outbox, format('maintenance is overdue since %s', s.overdue_since)
        from pin p, postbox.maintenance_status s
        where s.overdue_since is not null
    )
    select c.relname::text                                                   as name,
           n.nspname::text                                                   as schema,
           case when m.generation_bits is not null then m.retention end as retention,
           storage.bytes                                                     as bytes,
           m.critical_bytes                                                  as critical_bytes,
           storage.bytes >= m.critical_bytes                                 as is_critical,
           leaves.leaves                                                     as leaves,
           leaves.full_leaves                                                as full_leaves,
           case when m.generation_bits is null then array['an adopted table, whose rows are its owner''s to remove']
                else array(select p.words from pinned p where p.outbox = m.outbox order by 1) end as pinned_by,
           coalesce(leaves.full_leaves = 3, false)                           as is_ring_full,
           d.at                                                              as last_removed_at,
           coalesce(d.rows, case when m.generation_bits is not null then 0 end) as removed_rows,
           d.snapshot                                                        as removed_snapshot
    from moment m
    join pg_class c on c.oid = m.outbox
    join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (
        -- Of a table without partitions there is no tree.
        select case when m.generation_bits is not null then (select coalesce(sum(l.bytes), 0) from leaf l where l.outbox = m.outbox)
            else coalesce((select sum(pg_total_relation_size(t.relid)) from pg_partition_tree(m.outbox) t), pg_total_relation_size(m.outbox)) end::bigint as bytes
    ) storage
    left join postbox.removed d on d.outbox = m.outbox
    cross join lateral (
        select jsonb_agg(jsonb_build_object('leaf', l.leaf_name, 'bytes', l.bytes, 'rows_estimate', l.rows_estimate, 'takes_rows', l.distance = 0) order by l.number) as leaves,
               count(*) filter (where l.distance > 0 and l.heap_bytes > 0) as full_leaves
        from leaf l
        where l.outbox = m.outbox
    ) leaves;
comment on view postbox.retention_status is 'What outboxes hold, and what keeps it';
comment on column postbox.retention_status.leaves is 'leaf, bytes, rows_estimate and takes_rows (the one that new rows go to) of each';
comment on column postbox.retention_status.full_leaves is 'Leaves that take no rows now and hold some';
comment on column postbox.retention_status.pinned_by is 'Who or what keeps full leaves from being emptied';
comment on column postbox.retention_status.is_ring_full is 'No leaf is empty: the present one takes rows for longer than it should, and grows';
comment on column postbox.retention_status.removed_snapshot is 'Rows that are not visible in it are all there still';
