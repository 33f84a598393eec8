-- What maintenance does for inboxes, one after the other; what is not allowed on one of them does not stop the others.

create or replace function postbox._watch_inbox_health() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    seen record;
begin
    for seen in select * from postbox.inbox_health() loop
        subject := seen.inbox_name;
        outcome := postbox._watch('inbox_health', seen.inbox_name, seen.status <> 'healthy', '0',
            jsonb_build_object('status', seen.status, 'reasons', seen.reasons, 'pending', seen.pending, 'dead', seen.dead), same => seen.status);
        if outcome is not null then
            detail := format('inbox_health: %s', seen.status);
            return next;
        end if;
    end loop;
    for seen in select a.subject as name from postbox.alert a where a.kind = 'inbox_health' and not exists (select from postbox.inbox i where i.name = a.subject) loop
        subject := seen.name;
        outcome := postbox._watch('inbox_health', seen.name, false, '0', null);
        if outcome is not null then
            detail := 'inbox_health: the inbox is gone';
            return next;
        end if;
    end loop;
end
$function$;
comment on function postbox._watch_inbox_health() is 'Private: alerts when the health of an inbox changes';

-- What retention does, one step: how much that was, and whether there is more of it.
create or replace function postbox._keep_step(box postbox.inbox, step text, out done bigint, out has_more boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- What one run does at most.
    most_messages constant int := 5000;
    most_dead constant int := 1000;
begin
    if step = 'removed' then
        select r.removed, r.has_more into done, has_more from postbox._remove_processed(box, most_messages) r;
    elsif step = 'expired' then
        done := postbox._expire_dead(box, most_dead);
        has_more := done >= most_dead;
    elsif box.dedup_window > box.retention then
        select n.noted, n.has_more into done, has_more from postbox._note_seen(box, most_messages) n;
    end if;
end
$function$;
comment on function postbox._keep_step(postbox.inbox, text) is 'Private: one of the steps of retention: removed, noted or expired';

create or replace function postbox._keep_inbox(inbox text, settled_id bigint) returns table (outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- What one run does at most.
    most_entries constant int := 50000;
    most_leases constant int := 1000;
    most_dead constant int := 10000;
    box postbox.inbox;
    done int := 0;
    step record;
    has_more boolean;
    refusal text;
    is_busy boolean := false;
begin
    -- Whoever gives the inbox an order or tiers, or takes them away, would pass by what is moved meanwhile.
    if not pg_try_advisory_xact_lock_shared(postbox._inbox_lock(inbox)) then
        outcome := 'skipped';
        detail := 'its shape is being changed';
        return next;
        return;
    end if;
    box := postbox._inbox(inbox);
    begin
        if box.style = 'claim' then
            -- Also those that claims no longer look at.
            done := postbox._sweep_inbox(box, most_leases);
        end if;
        -- Lanes that are to go on where nobody claims. Elsewhere claims do it: they commit sooner than this transaction.
        if box.ordered_at is not null and exists (
            select from postbox.inbox_batch b
            where b.inbox = box.id and b.tier = -32768 and b.token is null and b.crashes < 2 and b.ready_at < clock_timestamp() - interval '10 seconds')
        then
            perform postbox._finish_lanes(box, 1000, true);
        end if;
    exception when insufficient_privilege then
        -- A policy hides rows from whoever maintains; workers that see them do it.
        done := 0;
        outcome := 'skipped';
        detail := sqlerrm;
        return next;
    end;
    if done > 0 then
        outcome := 'taken back';
        detail := format('%s leases that ran out', done);
        return next;
    end if;
    has_more := postbox._alert_dead(box, most_dead) >= most_dead or done >= most_leases;
    done := postbox._fold_inbox_log(box, settled_id, most_entries);
    has_more := has_more or done >= most_entries;
    perform postbox._sample_inbox(box);
    -- Whoever replays or discards is waited for by the next run.
    if not pg_try_advisory_xact_lock(postbox._keeping_lock(box.id)) then
        outcome := 'skipped';
        detail := 'somebody is replaying or discarding messages of it';
        return next;
        return;
    end if;
    foreach outcome in array '{removed,noted,expired}'::text[] loop
        -- What a trigger or a foreign key of the owner's refuses undoes no other step.
        begin
            step := postbox._keep_step(box, outcome);
            has_more := has_more or coalesce(step.has_more, false);
            if step.done > 0 then
                detail := step.done || case outcome when 'removed' then ' messages' when 'noted' then ' ids that must not come again' else ' dead letters' end;
                return next;
            end if;
        exception when lock_not_available or deadlock_detected then
            -- Of the next run's concern. Whether it has failed before is not known any better by now.
            outcome := 'busy';
            detail := sqlerrm;
            is_busy := true;
            return next;
        when others then
            outcome := 'skipped';
            detail := sqlerrm;
            refusal := coalesce(refusal, detail);
            return next;
        end;
    end loop;
    update postbox.inbox_keeping k set failure = refusal
        where k.inbox = box.id and k.failure is distinct from refusal and (refusal is not null or not is_busy);
    if has_more then
        outcome := 'more';
        detail := 'call again';
        return next;
    end if;
end
$function$;
comment on function postbox._keep_inbox(text, bigint) is 'Private: leases, totals and retention of an inbox';

create or replace function postbox._keep_inboxes() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box record;
    one record;
    settled_id bigint;
begin
    if not exists (select from postbox.inbox) then
        return;
    end if;
    perform postbox._settle_seen();
    settled_id := postbox._settled_log_id();
    for box in select i.name from postbox.inbox i order by i.name loop
        subject := box.name;
        begin
            for one in select * from postbox._keep_inbox(box.name, settled_id) loop
                outcome := one.outcome;
                detail := one.detail;
                return next;
            end loop;
        exception when others then
            outcome := 'skipped';
            detail := sqlerrm;
            return next;
        end;
    end loop;
end
$function$;
comment on function postbox._keep_inboxes() is 'Private: what maintenance does for each inbox';
