-- What maintenance looks at: groups, their slots, slots that nobody knows, and the size of outboxes.

-- The member that holds a group's lock. Its lock is seen by everybody; what its session does, by roles that may.
create or replace view postbox._active_member as
    select g.name as group_name, k.pid as pid
    from postbox.consumer_group g
    join pg_locks k
        on k.locktype = 'advisory' and k.granted and k.objsubid = 1
        and (k.classid::bigint << 32 | k.objid::bigint) = postbox._member_lock(g.name)
    where k.database = (select d.oid from pg_database d where d.datname = current_database());
comment on view postbox._active_member is 'Private: the sessions that hold the lock of a group';

-- Why the slot of a group may be lost, or the disk be filled for it.
create or replace view postbox._slot_risk as
    select g.name as group_name, g.slot_name as slot_name, s.active_pid as active_pid, held.bytes as held_bytes, g.wal_budget as wal_budget,
           g.over_budget as over_budget, held.bytes > g.wal_budget as is_over,
           array_remove(array[
               case when s.slot_name is null then 'missing' end,
               case when s.wal_status in ('unreserved', 'lost') then s.wal_status end,
               -- What may still be written before the slot is lost: a tenth of what max_slot_wal_keep_size grants.
               case when s.safe_wal_size < (pg_size_bytes(current_setting('max_slot_wal_keep_size')) / 10) then 'safe_wal_size' end,
               case when held.bytes > g.wal_budget then 'wal_budget' end
           ], null) as reasons
    from postbox.consumer_group g
    left join pg_replication_slots s on s.slot_name = g.slot_name and s.database = current_database()
    cross join lateral (
        select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end - s.restart_lsn)::bigint as bytes
    ) held;
comment on view postbox._slot_risk is 'Private: slots of groups and what endangers them';

create or replace function postbox._watch_groups() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    seen record;
    newest pg_lsn := (select s.lsn from postbox.sample s order by s.taken_at desc limit 1);
begin
    for seen in
        select g.name, g.paused_at is not null as paused, g.member, g.epoch, s.confirmed_flush_lsn as position,
               coalesce(s.active, false) or exists (select from postbox._active_member a where a.group_name = g.name) as is_read,
               r.reasons, r.held_bytes, r.wal_budget,
               (select string_agg(format('%s %s', b.outbox::oid, b.position), ', ' order by b.outbox::oid)
                from postbox.backfill b where b.group_name = g.name and not b.finished) as given
        from postbox.consumer_group g
        join postbox._slot_risk r on r.group_name = g.name
        left join pg_replication_slots s on s.slot_name = g.slot_name and s.database = current_database()
        order by g.name
    loop
        subject := seen.name;
        outcome := postbox._watch('consumer_unhealthy', seen.name, not seen.is_read and not seen.paused, '1 minute',
            jsonb_build_object('last_member', seen.member, 'epoch', seen.epoch));
        if outcome is not null then
            detail := 'consumer_unhealthy';
            return next;
        end if;
        -- A sample is taken when somebody has written; what lies beyond the newest may be our own doing. Rows of the table come before what the
        -- slot has, and it is noted how far they have come after thousands of them.
        outcome := postbox._watch('group_stalled', seen.name, seen.is_read and not seen.paused and (seen.given is not null or seen.position < newest),
            case when seen.given is null then interval '5 minutes' else '30 minutes' end,
            jsonb_build_object('position', seen.position, 'held_bytes', seen.held_bytes), same => concat_ws(', ', seen.position, seen.given));
        if outcome is not null then
            detail := 'group_stalled';
            return next;
        end if;
        outcome := postbox._watch('slot_at_risk', seen.name, seen.reasons <> '{}', '0',
            jsonb_build_object('reasons', seen.reasons, 'held_bytes', seen.held_bytes, 'wal_budget', seen.wal_budget),
            -- Told once more when it is too late.
            same => case when seen.reasons && array['missing', 'lost'] then 'gone' else 'at risk' end);
        if outcome is not null then
            detail := 'slot_at_risk: ' || array_to_string(seen.reasons, ', ');
            return next;
        end if;
    end loop;
    for seen in
        select a.kind, a.subject from postbox.alert a
        where a.kind in ('consumer_unhealthy', 'group_stalled', 'slot_at_risk')
          and not exists (select from postbox.consumer_group g where g.name = a.subject)
    loop
        subject := seen.subject;
        outcome := postbox._watch(seen.kind, seen.subject, false, '0', null);
        if outcome is not null then
            detail := seen.kind || ': the group is gone';
            return next;
        end if;
    end loop;
end
$function$;
comment on function postbox._watch_groups() is 'Private: alerts about groups';

-- Drops a slot that nobody reads, once whoever read it has left.
create or replace function postbox._drop_slot_of(slot name, reader int) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    give_up_at constant timestamptz := clock_timestamp() + interval '1 second';
begin
    if reader is not null then
        perform pg_terminate_backend(reader);
    end if;
    loop
        begin
            perform pg_drop_replication_slot(slot);
            return;
        exception when object_in_use then
            -- Before it comes back.
            if reader is null or clock_timestamp() > give_up_at then
                raise;
            end if;
        end;
        perform pg_sleep(0.01);
    end loop;
end
$function$;
comment on function postbox._drop_slot_of(name, int) is 'Private: cuts the reader of a slot off and drops the slot';

-- The deliberate loss of a slot: the group goes on from its checkpoint, by recovery.
create or replace function postbox._enforce_wal_budgets() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    excess record;
begin
    for excess in
        select r.*, postbox._unrepeatable(array(select o.outbox from postbox.consumer_group_outbox o where o.group_name = r.group_name)) as unrepeatable
        from postbox._slot_risk r
        join postbox.consumer_group g on g.name = r.group_name
        join postbox._server server on server.system_identifier = g.system_identifier
        where r.is_over and r.over_budget = 'drop'
        order by r.group_name
    loop
        subject := excess.group_name;
        if excess.unrepeatable is not null then
            outcome := 'skipped';
            detail := format('slot %s holds back %s bytes of WAL, budget %s, and is not dropped: %s cannot be delivered again',
                excess.slot_name, excess.held_bytes, excess.wal_budget, excess.unrepeatable);
            return next;
            continue;
        end if;
        begin
            perform postbox._durable();
            insert into postbox.audit (action, subject, detail)
                values ('slot_dropped', excess.group_name, jsonb_build_object('slot', excess.slot_name, 'held_bytes', excess.held_bytes, 'wal_budget', excess.wal_budget));
            perform postbox._drop_slot_of(excess.slot_name, excess.active_pid);
            outcome := 'dropped';
            detail := format('slot %s held back %s bytes of WAL, budget %s: recover the group', excess.slot_name, excess.held_bytes, excess.wal_budget);
        exception when others then
            outcome := 'skipped';
            detail := sqlerrm;
        end;
        return next;
    end loop;
end
$function$;
comment on function postbox._enforce_wal_budgets() is 'Private: drops the slots of groups that are over a budget and told to';

-- A slot in our way of naming that no group has is the rest of a creation that failed half way, and would hold back the WAL for ever.
-- One that was there before this installation is of an earlier one, whose events nobody else has: that is for a person to decide, so it is
-- only told. It is known by its name: its position moves when somebody reads it.
create or replace function postbox._reap_slots() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    database_oid constant oid := (select d.oid from pg_database d where d.datname = current_database());
    orphan record;
    orphaned boolean;
begin
    for orphan in
        select s.slot_name, substring(s.slot_name from format('^postbox[0-9]*_%s_(.+)$', database_oid)) as group_name, s.confirmed_flush_lsn,
               exists (select from postbox.maintenance m where s.slot_name = any (m.earlier_slots)) as is_older
        from pg_replication_slots s
        where s.plugin in ('postbox', 'pgoutput') and s.database = current_database() and not s.active and not s.temporary
          and s.slot_name ~ format('^postbox[0-9]*_%s_.', database_oid)
          and not exists (select from postbox.consumer_group g where g.slot_name = s.slot_name)
        order by s.slot_name
    loop
        subject := orphan.slot_name;
        -- Whoever is just making the group holds this lock until its row can be seen.
        orphaned := pg_try_advisory_xact_lock(hashtextextended('postbox.consumer_group ' || orphan.group_name, 0));
        if orphaned then
            orphaned := not exists (select from postbox.consumer_group g where g.slot_name = orphan.slot_name);
        end if;
        continue when not orphaned;
        if orphan.is_older then
            outcome := 'kept';
            detail := format('it is of an earlier installation and holds back WAL: read it with postbox run --slot %1$s, or SELECT pg_drop_replication_slot(%1$L)', orphan.slot_name);
            return next;
            continue;
        end if;
        begin
            insert into postbox.alert (kind, subject, since, detail) values ('orphaned_slot', orphan.slot_name, clock_timestamp(), '{}')
                on conflict on constraint alert_pkey do nothing;
            if found then
                outcome := 'noted';
                detail := 'no group has it: it is dropped in a minute';
            elsif exists (select from postbox.alert a where a.kind = 'orphaned_slot' and a.subject = orphan.slot_name and a.since <= clock_timestamp() - interval '1 minute') then
                insert into postbox.audit (action, subject, detail)
                    values ('slot_reaped', orphan.slot_name, jsonb_build_object('confirmed_flush_lsn', orphan.confirmed_flush_lsn));
                delete from postbox.alert a where a.kind = 'orphaned_slot' and a.subject = orphan.slot_name;
                perform postbox._alert('consumer_reaped', orphan.group_name, jsonb_build_object('slot', orphan.slot_name, 'position', orphan.confirmed_flush_lsn));
                perform postbox._drop_slot_of(orphan.slot_name, null);
                outcome := 'reaped';
                detail := format('it stood at %s, and no group has it', orphan.confirmed_flush_lsn);
            else
                continue;
            end if;
        exception when others then
            outcome := 'skipped';
            detail := sqlerrm;
        end;
        return next;
    end loop;
    -- One that is read, or that a group has by now, begins anew.
    delete from postbox.alert a
        where a.kind = 'orphaned_slot'
          and not exists (
            select from pg_replication_slots s
            where s.slot_name = a.subject and not s.active and not exists (select from postbox.consumer_group g where g.slot_name = s.slot_name));
end
$function$;
comment on function postbox._reap_slots() is 'Private: drops slots that no group has, a minute after they were first seen';

create or replace function postbox._watch_storage() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    seen record;
begin
    for seen in
        select format('%I.%I', o.schema, o.name) as name, o.bytes, r.critical_bytes,
               -- SET UNLOGGED and ATTACH PARTITION ask nobody.
               (select jsonb_agg(postbox._shown(format('%I.%I', n.nspname, c.relname)) order by n.nspname, c.relname)
                from pg_class c join pg_namespace n on n.oid = c.relnamespace
                where c.relkind in ('r', 'f') and (c.relpersistence <> 'p' or c.relkind = 'f')
                  and coalesce(pg_partition_root(c.oid), c.oid) in (m.outbox, (select k.claims from postbox._claim_check k where k.outbox = m.outbox))) as not_logged
        from postbox.outboxes o
        join postbox._marker m on postbox._shown(m.name) = o.name and postbox._shown(m.schema) = o.schema
        cross join lateral postbox._retention(m.outbox) r
        order by 1
    loop
        subject := seen.name;
        outcome := postbox._watch('outbox_storage_critical', seen.name, seen.bytes >= seen.critical_bytes, '0',
            jsonb_build_object('bytes', seen.bytes, 'critical_bytes', seen.critical_bytes));
        if outcome is not null then
            detail := 'outbox_storage_critical';
            return next;
        end if;
        outcome := postbox._watch('outbox_not_logged', seen.name, seen.not_logged is not null, '0', jsonb_build_object('tables', seen.not_logged),
            same => seen.not_logged::text);
        if outcome is not null then
            detail := 'outbox_not_logged';
            return next;
        end if;
    end loop;
    for seen in
        select a.kind, a.subject as name from postbox.alert a
        where a.kind in ('outbox_storage_critical', 'outbox_not_logged') and not exists (select from postbox._ring r where r.outbox_name = a.subject)
    loop
        subject := seen.name;
        outcome := postbox._watch(seen.kind, seen.name, false, '0', null);
        if outcome is not null then
            detail := seen.kind || ': the outbox is gone';
            return next;
        end if;
    end loop;
end
$function$;
comment on function postbox._watch_storage() is 'Private: alerts about outboxes that have grown too large, or whose rows are not in the log';
