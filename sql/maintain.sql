-- Everything that has to be done now and then. Every process of Postbox calls it, and whatever else can run SQL may.

create or replace function postbox.maintain(force boolean default false)
    returns table (step text, subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Nobody is to wait behind us for long.
    set lock_timeout = '50ms'
as $function$
declare
    last_run timestamptz;
    outbox record;
    one record;
    emptied boolean := false;
    overdue timestamptz;
    followed boolean := false;
begin
    perform postbox._require_read_committed('postbox.maintain()');
    if pg_current_xact_id_if_assigned() is not null then
        raise exception using errcode = 'active_sql_transaction',
            message = 'postbox.maintain() in a transaction that has written',
            hint = 'Call it in a transaction of its own: what it locks is locked until the commit.';
    end if;
    step := 'maintain';
    if pg_is_in_recovery() then
        outcome := 'skipped';
        detail := 'this server is a standby: maintenance runs on the primary';
        return next;
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('postbox.maintain', 0)) then
        outcome := 'running';
        detail := 'another session is at it';
        return next;
        return;
    end if;
    select m.last_run into last_run from postbox.maintenance m;
    if not coalesce(force, false) and clock_timestamp() between last_run and last_run + interval '10 seconds' then
        outcome := 'recent';
        detail := format('the last run was at %s', last_run);
        return next;
        return;
    end if;

    select m.overdue_since into overdue from postbox.maintenance_status m;

    -- First, while nothing is written. Not in a subtransaction, which would have an id of its own.
    step := 'sample';
    if postbox._take_sample() then
        outcome := 'taken';
        detail := null;
        return next;
    end if;

    if overdue is not null then
        perform postbox._alert('maintenance_overdue', 'maintain', jsonb_build_object('overdue_since', overdue, 'last_run', last_run));
    end if;

    step := 'cleanup';
    begin
        delete from postbox.outbox_setting s where not exists (select from postbox._marker m where m.outbox = s.outbox);
        delete from postbox.removed r where not exists (select from postbox._marker m where m.outbox = r.outbox);
        delete from postbox.leaf l where not exists (select from pg_class c where c.oid = l.leaf);
        delete from postbox.ring_move m where not exists (select from postbox._marker k where k.outbox = m.outbox);
        -- Whatever has such a name later is none of an earlier installation.
        update postbox.maintenance m
            set earlier_slots = array(select s.slot_name from pg_replication_slots s where s.slot_name = any (m.earlier_slots))
            where exists (select from unnest(m.earlier_slots) as u(slot_name) where u.slot_name not in (select s.slot_name from pg_replication_slots s));
    exception when others then
        subject := null;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;

    step := 'groups';
    begin
        perform postbox._follow_outboxes();
        followed := true;
    exception when others then
        subject := null;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;
    begin
        for one in select * from postbox._watch_groups() loop
            subject := one.subject;
            outcome := one.outcome;
            detail := one.detail;
            return next;
        end loop;
    exception when others then
        subject := null;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;

    step := 'storage';
    begin
        for one in select * from postbox._watch_storage() loop
            subject := one.subject;
            outcome := one.outcome;
            detail := one.detail;
            return next;
        end loop;
    exception when others then
        subject := null;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;

    for part in 1 .. 5 loop
        step := case when part <= 3 then 'inboxes' else 'events' end;
        begin
            for one in
                select * from postbox._keep_inboxes() where part = 1
                union all select * from postbox._watch_inbox_gaps() where part = 2
                union all select * from postbox._watch_inbox_health() where part = 3
                union all select * from postbox._publish_all_due() where part = 4
                union all select * from postbox._forget_published() where part = 5
            loop
                subject := one.subject;
                outcome := one.outcome;
                detail := one.detail;
                return next;
            end loop;
        exception when others then
            subject := null;
            outcome := 'skipped';
            detail := sqlerrm;
            return next;
        end;
    end loop;

    step := 'ring';
    for outbox in select r.outbox as oid, r.outbox_name as name from postbox._ring r where r.generation_bits is not null order by 2 loop
        subject := outbox.name;
        begin
            one := postbox._advance(outbox.oid);
            outcome := one.outcome;
            detail := one.detail;
        exception when others then
            outcome := 'skipped';
            detail := sqlerrm;
        end;
        if outcome <> 'nothing' then
            return next;
        end if;
    end loop;

    step := 'slots';
    begin
        for one in select * from postbox._enforce_wal_budgets() union all select * from postbox._reap_slots() loop
            subject := one.subject;
            outcome := one.outcome;
            detail := one.detail;
            return next;
        end loop;
    exception when others then
        subject := null;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;

    -- Late, as a leaf is locked from here to the commit; one of all outboxes. Who waited longest comes first.
    step := 'retention';
    for outbox in
        select r.outbox as oid, r.outbox_name as name
        from postbox._ring r
        left join postbox.removed d on d.outbox = r.outbox
        where r.generation_bits is not null and followed
        order by d.at nulls first, 2
    loop
        subject := outbox.name;
        if emptied then
            -- Not looked at yet.
            if exists (select from postbox._leaf l where l.outbox = outbox.oid and l.distance > 0 and l.heap_bytes > 0) then
                outcome := 'more';
                detail := 'call again';
                return next;
                exit;
            end if;
            continue;
        end if;
        begin
            one := postbox._retain(outbox.oid);
            outcome := one.outcome;
            detail := one.detail;
        exception when others then
            outcome := 'skipped';
            detail := sqlerrm;
        end;
        if outcome <> 'nothing' then
            return next;
        end if;
        if outcome = 'emptied' then
            emptied := true;
            if exists (select from postbox._leaf l where l.outbox = outbox.oid and l.distance > 0 and l.heap_bytes > 0) then
                outcome := 'more';
                detail := 'call again';
                return next;
                exit;
            end if;
        end if;
    end loop;

    step := 'inbox_rings';
    begin
        for one in
            select 'inbox_log' as subject, t.outcome, t.detail from postbox._turn_inbox_log() t
            union all select 'inbox_log', t.outcome, t.detail from postbox._empty_inbox_log() t
            union all select 'inbox_seen', t.outcome, t.detail from postbox._turn_seen() t
        loop
            if one.outcome <> 'nothing' then
                subject := one.subject;
                outcome := one.outcome;
                detail := one.detail;
                return next;
            end if;
        end loop;
    exception when others then
        subject := null;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;

    -- Who finds nothing to do writes nothing, or a server would never come to rest.
    if pg_current_xact_id_if_assigned() is not null then
        update postbox.maintenance m set last_run = clock_timestamp(), role = session_user, application = current_setting('application_name');
    end if;
end
$function$;
comment on function postbox.maintain(boolean) is
    'Maintains outboxes, groups and inboxes: delayed events, samples, retention, alerts, WAL budgets, slots and leases that were left behind. Nothing if it was done in the last 10 seconds, unless forced';
