-- Members select outboxes by name as well, so one that has taken the name of another is read, whether that was dropped or renamed; retention,
-- recovery and the slot of a group know outboxes by OID. Both mean the same ones once _follow_outboxes has run, which maintenance sees to before it
-- removes anything.
create or replace view postbox._followed_outbox as
    select o.group_name, o.outbox, o.outbox_name
    from postbox.consumer_group_outbox o
    union
    select o.group_name, m.outbox::regclass, o.outbox_name
    from postbox._marker m
    join postbox.consumer_group_outbox o on o.outbox_name = format('%I.%I', m.schema, m.name)
    where not exists (select from postbox.consumer_group_outbox k where k.group_name = o.group_name and k.outbox = m.outbox);
comment on view postbox._followed_outbox is 'Private: the outboxes of groups, with those that have taken the names of their own';

-- NULL: of every group.
create or replace function postbox._follow_outboxes(group_name text default null) returns void
    language sql volatile
    begin atomic
        insert into postbox.consumer_group_outbox (group_name, outbox, outbox_name)
            select f.group_name, f.outbox, f.outbox_name
            from postbox._followed_outbox f
            where _follow_outboxes.group_name is null or f.group_name = _follow_outboxes.group_name
        on conflict on constraint consumer_group_outbox_pkey do nothing;
    end;
comment on function postbox._follow_outboxes(text) is 'Private: a group reads the outboxes that have taken the names of its own';

create or replace view postbox.consumer_groups as
    select g.name                                                       as name,
           members.outboxes                                             as outboxes,
           g.slot_name                                                  as slot_name,
           coalesce(s.active, false)                                    as active,
           s.active_pid                                                 as active_pid,
           s.confirmed_flush_lsn                                        as confirmed_flush_lsn,
           (select greatest(pg_wal_lsn_diff(wal.position, s.confirmed_flush_lsn), 0)::bigint
            where s.confirmed_flush_lsn is not null)                    as lag_bytes,
           case when s.slot_name is null then 'missing' else s.wal_status end as wal_status,
           g.created_at                                                 as created_at,
           members.missing_outboxes                                     as missing_outboxes,
           g.source                                                     as source
    from postbox.consumer_group g
    -- A copy of this database carries the same rows; the slot they name is the original's.
    left join pg_replication_slots s on s.slot_name = g.slot_name and s.database = current_database()
    cross join (
        select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end as position
    ) wal
    cross join lateral (
        select coalesce(array_agg(listed.name order by listed.name), '{}') as outboxes,
               coalesce(array_agg(listed.name order by listed.name) filter (where listed.missing), '{}') as missing_outboxes
        -- One that was made anew has the name of the one before.
        from (
            select known.name, bool_and(known.missing) as missing
            from (
                select case when m.outbox is null then o.outbox_name else postbox._shown(format('%I.%I', m.schema, m.name)) end as name,
                       m.outbox is null or (g.source = 'pgoutput' and not exists (select from postbox._published p where p.outbox = o.outbox and p.is_sound)) as missing
                from postbox.consumer_group_outbox o
                left join postbox._marker m on m.outbox = o.outbox
                where o.group_name = g.name
            ) known
            group by known.name
        ) listed
    ) members;
comment on view postbox.consumer_groups is 'The consumer groups of this database and where they stand';
comment on column postbox.consumer_groups.outboxes is 'Outboxes as schema.table, quoted as in SQL, under their present names';
comment on column postbox.consumer_groups.lag_bytes is 'WAL written since the last confirmed position, of events and of everything else';
comment on column postbox.consumer_groups.wal_status is
    'As in pg_replication_slots; lost: the slot was invalidated; missing: there is no slot of that name in this database';
comment on column postbox.consumer_groups.missing_outboxes is
    'Those of the outboxes that were dropped, are outboxes no more, or are not in the publication that the source pgoutput reads, or not with all of their rows';
comment on column postbox.consumer_groups.source is 'The output plugin of the slot: postbox or pgoutput';
