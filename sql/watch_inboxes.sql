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
        detail := 'inbox_health: the inbox is gone';
        return next;
    end loop;
end
$function$;
comment on function postbox._watch_inbox_health() is 'Private: alerts when the health of an inbox changes';

create or replace function postbox._keep_inbox(inbox text, settled_id bigint) returns table (outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- What one run does at most.
    most_messages constant int := 5000;
    most_entries constant int := 50000;
    -- That of _sweep_inbox.
    most_leases constant int := 1000;
    most_dead constant int := 1000;
    box constant postbox.inbox := postbox._inbox(inbox);
    done int := 0;
    step record;
    has_more boolean;
begin
    if box.style = 'claim' then
        done := postbox._sweep_inbox(box);
        if done > 0 then
            outcome := 'taken back';
            detail := format('%s leases that ran out', done);
            return next;
        end if;
    end if;
    has_more := done >= most_leases;
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
    step := postbox._remove_processed(box, most_messages);
    if step.removed > 0 then
        outcome := 'removed';
        detail := format('%s messages', step.removed);
        return next;
    end if;
    has_more := has_more or step.has_more;
    if box.dedup_window > box.retention then
        step := postbox._note_seen(box, most_messages);
        if step.noted > 0 then
            outcome := 'noted';
            detail := format('%s ids that must not come again', step.noted);
            return next;
        end if;
        has_more := has_more or step.has_more;
    end if;
    done := postbox._expire_dead(box, most_dead);
    if done > 0 then
        outcome := 'expired';
        detail := format('%s dead letters', done);
        return next;
    end if;
    if has_more or done >= most_dead then
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
