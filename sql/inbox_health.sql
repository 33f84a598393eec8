-- Whether an inbox does its work, from what can be read at its edges: the message that has waited longest, and what the log says of the last
-- minute. Neither grows with the history, nor with what is pending.

-- When the message that has waited longest could have been claimed, delayed ones and those of paused tiers apart; NULL: none waits.
create or replace function postbox._oldest_claimable(box postbox.inbox) returns timestamptz
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
as $function$
declare
    tiers smallint[];
    queues smallint[];
    queue smallint;
    -- Arrivals that are not sorted yet are below 0. When they are due the table says, to those who may read it.
    has_due constant boolean := coalesce(has_table_privilege(box.relation, 'select'), false) and postbox._noted_due_sql(box, 0, 0, 0) is not null;
    arrival record;
    -- Of each queue.
    most int;
    looked_at int;
    oldest timestamptz;
    now constant timestamptz := clock_timestamp();
begin
    if box.style = 'update' then
        execute format('select p.ready_at from %s p where p.ready_at <= $1 order by p.ready_at limit 1', postbox._inbox_view(box, 'pending_' || box.name))
            into oldest using now;
        return oldest;
    end if;
    if box.paused_at is not null then
        return null;
    end if;
    tiers := array(select t.tier from postbox.inbox_tier t where t.inbox = box.id and t.paused_at is null);
    if not exists (select from postbox.inbox_tier t where t.inbox = box.id) then
        tiers := '{0}';
    end if;
    queues := array(select (-1 - t)::smallint from unnest(tiers) as t);
    select min(f.ready_at) into oldest
        from unnest(tiers || case when not has_due then queues end) as t(tier)
        cross join lateral (
            (select b.ready_at from postbox.inbox_batch b
             where b.inbox = box.id and b.tier = t.tier and b.token is null and b.crashes < 2 and b.ready_at <= now order by b.ready_at limit 1)
            union all
            (select b.ready_at from postbox.inbox_batch b
             where b.inbox = box.id and b.tier = t.tier and b.token is null and b.crashes >= 2 and b.ready_at <= now order by b.ready_at limit 1)
        ) f;
    if not has_due then
        return oldest;
    end if;
    most := greatest(500 / greatest(cardinality(queues), 1), 10);
    foreach queue in array queues loop
        looked_at := 0;
        for arrival in execute postbox._noted_due_sql(box, queue, queue, most + 1) loop
            exit when arrival.ready_at > now or arrival.ready_at >= oldest;
            looked_at := looked_at + 1;
            -- Behind that many that are all delayed, one that is not looked at is taken for due.
            if looked_at > most or arrival.due is null or arrival.due <= now then
                oldest := least(oldest, greatest(arrival.ready_at, case when looked_at <= most then arrival.due end));
            end if;
        end loop;
    end loop;
    return oldest;
end
$function$;
comment on function postbox._oldest_claimable(postbox.inbox) is 'Private: since when the message waits that has waited longest';

-- The last minute of the log, or the last 1000 entries if those are younger.
create or replace function postbox._inbox_recent(inbox int, out seconds float8, out processed bigint, out failed bigint, out died bigint, out duplicates bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_sort = off
as $function$
begin
    select case when count(*) < 1000 then 60 else greatest(extract(epoch from clock_timestamp() - min(g.at)), 0.001) end,
           coalesce(sum(g.messages) filter (where g.what = 'processed'), 0), coalesce(sum(g.messages) filter (where g.what = 'failed'), 0),
           coalesce(sum(g.messages) filter (where g.what = 'dead'), 0), coalesce(sum(g.messages) filter (where g.what in ('duplicate', 'conflict')), 0)
        into seconds, processed, failed, died, duplicates
        from (select l.at, l.what, l.messages from postbox.inbox_log l where l.inbox = _inbox_recent.inbox order by l.id desc limit 1000) g
        where g.at > clock_timestamp() - interval '1 minute';
end
$function$;
comment on function postbox._inbox_recent(int) is 'Private: what an inbox did lately';

create or replace function postbox.inbox_health(name text default null)
    returns table (
        inbox_name text, status text, reasons text[], pending bigint, dead bigint, oldest_claimable_age interval, messages_per_second float8,
        duplicate_rate float8, is_exact boolean, as_of timestamptz
    )
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    recent record;
    overdue timestamptz := (select m.overdue_since from postbox.maintenance_status m);
    age interval;
    blocked bigint;
    sorter int;
    critical text[];
    degraded text[];
begin
    if name is not null and not exists (select from postbox.inbox i where i.name = inbox_health.name) then
        raise exception using errcode = 'undefined_object',
            message = format('inbox "%s" does not exist', name),
            hint = 'postbox.inbox_status() lists the inboxes; postbox.create_inbox makes one.';
    end if;
    for box in select i.* from postbox.inbox i where inbox_health.name is null or i.name = inbox_health.name order by i.name loop
        select coalesce(sum(c.pending), 0), coalesce(sum(c.dead), 0), coalesce(bool_and(c.is_exact), true),
               case when count(*) filter (where not c.is_exact) = 0 then clock_timestamp() else min(c.as_of) end
            into pending, dead, is_exact, as_of
            from postbox._inbox_counts(box.id) c;
        recent := postbox._inbox_recent(box.id);
        age := clock_timestamp() - postbox._oldest_claimable(box);
        critical := array_remove(array[
            case when box.armed_as <> box.relation::text then format('its table is not %s any more: call postbox.%s', box.armed_as,
                case when exists (select from pg_class c where c.oid = box.relation) then 'repair_inbox' else 'drop_inbox' end) end,
            case when age > interval '10 minutes' then format('a message has waited for %s', date_trunc('second', age)) end,
            case when recent.died >= 10 and recent.died > recent.processed then format('%s messages became dead letters lately, %s were processed', recent.died, recent.processed) end
        ], null);
        blocked := (select count(*) from (select from postbox.inbox_lane l where l.inbox = box.id and l.blocked is not null limit 1000) b);
        -- Arrivals are sorted by whoever claims; who claims and stays in that transaction keeps all others from it.
        sorter := null;
        if box.ordered_at is not null and exists (
            select from postbox.inbox_batch b where b.inbox = box.id and b.tier between -32767 and -1 and b.token is null and b.crashes < 2
                and b.ready_at < clock_timestamp() - interval '5 seconds') then
            select k.pid into sorter from pg_locks k
                where k.locktype = 'advisory' and k.granted and k.objsubid = 1 and k.mode = 'ExclusiveLock'
                  and (k.classid::bigint << 32 | k.objid::bigint) = postbox._sort_lock(box.id)
                  and k.database = (select d.oid from pg_database d where d.datname = current_database())
                limit 1;
        end if;
        degraded := array_remove(array[
            case when age between interval '1 minute' and interval '10 minutes' then format('a message has waited for %s', date_trunc('second', age)) end,
            case when dead > 0 then format('%s dead letters', dead) end,
            case when blocked > 0 then format('%s aggregates wait behind a dead letter', case when blocked = 1000 then '1000 or more' else blocked::text end) end,
            -- As old as the inbox allows, which maintenance looks at.
            (select format('messages wait behind %s gaps, first behind number %s of aggregate "%s"', a.detail ->> 'gaps', a.detail ->> 'missing', a.detail ->> 'aggregate_id')
                from postbox.alert a where a.kind = 'inbox_ordering_gap' and a.subject = box.name and a.alerted_at is not null),
            case when sorter is not null then format('arrivals wait for the transaction of pid %s', sorter) end,
            case when box.paused_at is not null then format('paused since %s', box.paused_at) end,
            case when overdue is not null then format('maintenance is overdue since %s', overdue) end,
            (select format('retention fails: %s', k.failure) from postbox.inbox_keeping k where k.inbox = box.id and k.failure is not null)
        ], null);
        degraded := degraded || array(
            select format('tier %s paused since %s', t.name, t.paused_at) from postbox.inbox_tier t where t.inbox = box.id and t.paused_at is not null order by t.tier);
        inbox_name := box.name;
        status := case when critical <> '{}' then 'critical' when degraded <> '{}' then 'degraded' else 'healthy' end;
        reasons := critical || degraded;
        oldest_claimable_age := age;
        messages_per_second := recent.processed / recent.seconds;
        duplicate_rate := recent.duplicates::float8 / nullif(recent.duplicates + recent.processed, 0);
        return next;
    end loop;
end
$function$;
comment on function postbox.inbox_health(text) is
    'Whether inboxes do their work: healthy, degraded or critical, with the reasons. duplicate_rate: duplicates among what came in again or was processed in the last minute';
