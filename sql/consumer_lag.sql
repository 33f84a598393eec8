-- How far groups are behind: bytes from the log itself, seconds and events through samples.

create or replace view postbox.consumer_lag as
    with log as materialized (
        select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end as position
    ),
    -- The oldest transaction with an id, anywhere on the server: decoding cannot begin behind its first change.
    holder as materialized (
        select format('%s, open for %s', case
                   when p.gid is not null then format('prepared transaction %L', p.gid)
                   else format('process %s (%s)', x.pid, coalesce(nullif(a.application_name, ''), 'unnamed')) end,
                   coalesce(date_trunc('second', clock_timestamp() - coalesce(p.prepared, a.xact_start))::text, 'unknown')) as words
        from pg_locks x
        left join pg_stat_activity a on a.pid = x.pid
        left join pg_prepared_xacts p on p.transaction = x.transactionid
        where x.locktype = 'transactionid' and x.granted and x.mode = 'ExclusiveLock'
        order by age(x.transactionid) desc
        limit 1
    ),
    slot as materialized (
        select g.name, s.confirmed_flush_lsn as position, s.restart_lsn
        from postbox.consumer_group g
        left join pg_replication_slots s on s.slot_name = g.slot_name and s.database = current_database()
    ),
    newest as materialized (
        select s.* from postbox.sample s order by s.taken_at desc limit 1
    )
    select slot.name                                                                        as group_name,
           greatest(log.position - slot.position, 0)::bigint                                as bytes,
           case when filling.rows then null
                when slot.position >= log.position or nothing.waits then 0
                else extract(epoch from clock_timestamp() - reached.taken_at)::float8 end   as seconds,
           case when filling.rows then null
                when slot.position >= log.position then 0 when nothing.waits and waiting.events is not null then 0 else waiting.events end as events,
           case when slot.position is null or filling.rows then null
                when slot.position >= log.position then 'exact' else 'approximate' end      as precision,
           greatest(log.position - slot.restart_lsn, 0)::bigint                             as restart_lag_bytes,
           case when slot.restart_lsn is not null then (select h.words from holder h) end    as restart_holder
    from slot
    cross join log
    left join newest on true
    -- The last moment that the group has certainly reached.
    left join lateral (
        select s.taken_at, s.lsn, s.outboxes, s.last_seqs
        from postbox.sample s
        where s.lsn <= slot.position and s.system_identifier = newest.system_identifier
        order by s.taken_at desc
        limit 1
    ) reached on true
    -- Rows of the table come before what the slot has.
    cross join lateral (
        select exists (select from postbox.backfill b where b.group_name = slot.name and not b.finished) as rows
    ) filling
    cross join lateral (
        select sum(greatest(r.last_seq - was.last_seq - coalesce(skipped.seqs, 0), 0))::bigint as events
        from postbox.consumer_group_outbox o
        join postbox._ring r on r.outbox = o.outbox
        cross join lateral (
            select coalesce((select reached.last_seqs[n] from generate_subscripts(reached.outboxes, 1) as n where reached.outboxes[n] = r.outbox), 0) as last_seq
            where reached.taken_at is not null
        ) was
        cross join lateral (
            select sum(m.to_seq - m.from_seq) as seqs from postbox.ring_move m where m.outbox = r.outbox and m.from_seq >= was.last_seq
        ) skipped
        where o.group_name = slot.name
    ) waiting
    -- It is past the newest sample, and nobody has written since. Small transactions count where an outbox tells what it has given away.
    cross join lateral (
        select coalesce(slot.position >= newest.lsn and not postbox._has_moved(newest.snapshot, newest.lsn, coalesce(waiting.events > 0, false)), false) as waits
    ) nothing;
comment on view postbox.consumer_lag is 'How far each consumer group is behind';
comment on column postbox.consumer_lag.bytes is 'WAL written since the confirmed position, of events and of everything else';
comment on column postbox.consumer_lag.seconds is
    'At most: time since the last sample that the group has reached; NULL: it has reached none, or is still given rows from the table';
comment on column postbox.consumer_lag.events is
    'Values of seq handed out since that sample, those of transactions that were rolled back included; NULL as for seconds, and for roles that may not read the sequences';
comment on column postbox.consumer_lag.precision is 'Of seconds and events: exact, or approximate';
comment on column postbox.consumer_lag.restart_lag_bytes is 'WAL that a member has to decode again before it delivers, when it takes over now';
comment on column postbox.consumer_lag.restart_holder is 'The oldest transaction with an id on the whole server: that position does not pass its beginning';
