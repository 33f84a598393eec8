-- What ordered inboxes hand out next, and what they wait for. Lanes say it, and the arrivals that are not sorted into them yet: of each tier the first
-- 2000, so that a backlog is no business of who looks. Neither grows with what has been processed.

-- Arrivals that wait to be sorted, those that are sorted first, as a query: key, seq, id, type, tier, due.
create or replace function postbox._noted_sql(box postbox.inbox) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'select r.key, r.seq, e.id, r.type, q.tier, r.due
             from (select t.tier from postbox.inbox_tier t where t.inbox = %8$s union select 0::smallint) q
             cross join lateral (
                 select u.id
                 from (
                     select b.event_ids from postbox.inbox_batch b
                     where b.inbox = %8$s and b.tier = -1 - q.tier and b.token is null and b.crashes < 2
                     order by b.ready_at limit 1000
                 ) b
                 cross join lateral unnest(b.event_ids) as u(id)
                 limit 2000
             ) e
             cross join lateral (
                 select r.%1$I::text as key, r.%2$I::bigint as seq, %3$s as type, %4$s as due from %5$s r where r.%6$I = e.id::%7$s offset 0
             ) r
             where r.key is not null and r.seq is not null',
            (box).columns ->> 'aggregate_id', (box).columns ->> 'sequence_num', postbox._inbox_column((box).columns, 'event_type', 'r', 'text'),
            postbox._inbox_column((box).columns, 'visible_at', 'r', 'timestamptz'), (box).relation, (box).columns ->> 'event_id',
            postbox._inbox_type(box, 'event_id'), (box).id);
    end;
comment on function postbox._noted_sql(postbox.inbox) is 'Private: a query for the first arrivals that are in no lane yet';

-- When the first arrivals of these queues are due, as a query: event_type, ready_at, due. Sorting does not ask for it, so no queue says it; NULL where there
-- is nothing to ask for.
create or replace function postbox._noted_due_sql(box postbox.inbox, first int, last int, most int) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select case when (box).ordered_at is not null and (box).columns ? 'visible_at' then format(
            'select n.event_type, n.ready_at, r.due
             from (
                 select b.event_type, b.ready_at, u.id
                 from (
                     select b.event_type, b.ready_at, b.event_ids from postbox.inbox_batch b
                     where b.inbox = %s and b.tier between %s and %s and b.token is null and b.crashes < 2
                     order by b.tier, b.ready_at limit %s
                 ) b
                 cross join lateral unnest(b.event_ids) as u(id)
                 limit %4$s
             ) n
             left join lateral (select r.%I as due from %s r where r.%I = n.id::%s offset 0) r on true',
            (box).id, first, last, most, (box).columns ->> 'visible_at', (box).relation, (box).columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) end;
    end;
comment on function postbox._noted_due_sql(postbox.inbox, int, int, int) is 'Private: a query for when arrivals are due that are in no lane yet';

create or replace function postbox._next_sql(box postbox.inbox) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'select h.event_id, h.event_type, h.aggregate_id, h.sequence_num, t.name as tier, h.ready_at, h.attempts
             from (
                 select u.id as event_id, b.event_type, l.key as aggregate_id, l.next as sequence_num, b.tier, b.ready_at, b.attempts
                 from postbox._pending_batch b
                 cross join lateral unnest(b.event_ids, b.lanes) as u(id, lane)
                 join postbox.inbox_lane l on l.inbox = %1$s and l.key = u.lane
                 where b.inbox = %1$s and b.tier >= 0 and b.token is null and b.ready_at <= clock_timestamp()
                 union all
                 select f.* from (
                     select distinct on (n.key) n.id, n.type, n.key, n.seq, n.tier, coalesce(n.due, clock_timestamp()), 0
                     from (%2$s) n
                     left join postbox.inbox_lane l on l.inbox = %1$s and l.key = n.key
                     where %3$s and not coalesce(l.arrived @> n.seq, false)
                     order by n.key, n.seq
                 ) f(event_id, event_type, aggregate_id, sequence_num, tier, ready_at, attempts)
                 where f.ready_at <= clock_timestamp()
             ) h
             join postbox.inbox i on i.id = %1$s and i.paused_at is null
             left join postbox.inbox_tier t on t.inbox = %1$s and t.tier = h.tier
             where t.paused_at is null',
            (box).id, postbox._noted_sql(box),
            -- A lane that begins with whatever arrives first.
            case when (box).sequence_start is null then '(l.key is null or n.seq = l.next)' else format('n.seq = coalesce(l.next, %s)', (box).sequence_start) end);
    end;
comment on function postbox._next_sql(postbox.inbox) is 'Private: a query for the messages that can be handed out';

-- A number that nobody waits for any more is no gap, nor one that has arrived and is still to be sorted, however much is.
create or replace function postbox._gaps_sql(box postbox.inbox) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'with noted as materialized (
                 select n.key, range_agg(int8range(n.seq, n.seq + 1)) as arrived from (%2$s) n group by n.key
             )
             select g.key as aggregate_id, m.missing, h.since, clock_timestamp() - h.since as age
             from (
                 select l.key, l.next, l.arrived, l.skipped
                 from postbox.inbox_lane l
                 where l.inbox = %1$s and l.has_gap and not exists (select from noted n where n.key = l.key)
                 union all
                 -- One whose number is given up goes nowhere.
                 select n.key, coalesce(l.next, %3$s), coalesce(l.arrived, ''{}'') + (n.arrived - coalesce(l.skipped, ''{}'')), coalesce(l.skipped, ''{}'')
                 from noted n left join lateral (select w.next, w.arrived, w.skipped from postbox.inbox_lane w where w.inbox = %1$s and w.key = n.key offset 0) l on true
             ) g
             cross join lateral unnest(int8multirange(int8range(g.next, greatest(g.next, upper(g.arrived)))) - g.arrived - g.skipped) as s(span)
             cross join lateral unnest(int8multirange(s.span) - coalesce((
                 select range_agg(int8range(r.%8$I, r.%8$I + 1::bigint)) from %5$s r
                 where r.%6$I = g.key::%7$s and r.%8$I >= lower(s.span) and r.%8$I < upper(s.span)), ''{}'')) as m(missing)
             left join lateral (
                 select %4$s as since from %5$s r where r.%6$I = g.key::%7$s and r.%8$I = upper(m.missing) limit 1
             ) h on true',
            (box).id, postbox._noted_sql(box), coalesce((box).sequence_start::text, 'lower(n.arrived)'),
            postbox._inbox_column((box).columns, 'received_at', 'r', 'timestamptz'), (box).relation, (box).columns ->> 'aggregate_id',
            postbox._inbox_type(box, 'aggregate_id'), (box).columns ->> 'sequence_num');
    end;
comment on function postbox._gaps_sql(postbox.inbox) is 'Private: a query for the sequence numbers that are waited for';

create or replace function postbox.inbox_ordering_gaps(inbox text default null)
    returns table (inbox_name text, aggregate_id text, missing int8range, since timestamptz, age interval)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
begin
    if inbox is not null then
        perform postbox._ordered_inbox(postbox._inbox(inbox));
    end if;
    for box in
        select i.* from postbox.inbox i
        where i.ordered_at is not null and (inbox_ordering_gaps.inbox is null or i.name = inbox_ordering_gaps.inbox) order by i.name
    loop
        return query execute format('select %L::text, g.* from (%s) g order by 4, 2, 3', box.name, postbox._gaps_sql(box));
    end loop;
end
$function$;
comment on function postbox.inbox_ordering_gaps(text) is
    'The sequence numbers that ordered inboxes wait for: a row for each missing range, with the time when the message behind it was received';

create or replace function postbox._ordered_inbox(box postbox.inbox) returns postbox.inbox
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if box.ordered_at is null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" has no order', box.name),
            hint = format('postbox.enable_inbox_ordering(%L) gives it one.', box.name);
    end if;
    return box;
end
$function$;
comment on function postbox._ordered_inbox(postbox.inbox) is 'Private: an inbox that must be ordered';

create or replace function postbox.inbox_gap_skip(inbox text, aggregate text, range int8range, reason text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._ordered_inbox(postbox._use_inbox(inbox));
    lane postbox.inbox_lane;
    missing int8multirange;
    received text;
    sorted int;
    numbers bigint;
begin
    perform postbox._require_read_committed(format('numbers of inbox "%s" are to be given up', box.name));
    if aggregate is null or range is null or isempty(range) or lower_inf(range) or upper_inf(range) then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('range %s of aggregate %s cannot be skipped', coalesce(range::text, 'NULL'), coalesce('"' || aggregate || '"', 'NULL')),
            hint = 'Give an aggregate and a range with both ends, for instance ''[5,8)'' for 5, 6 and 7; postbox.inbox_ordering_gaps lists what is missing.';
    end if;
    if reason is null or btrim(reason) = '' then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('no reason is given why %s of aggregate "%s" will not come', range, aggregate),
            hint = 'It is kept in postbox.audit: say how you know that these messages do not exist.';
    end if;
    -- First the lane, which whoever sorts or completes there is waited for; then what is to be sorted into it, which waits for nobody. From there on
    -- nothing is sorted into the lane by others.
    perform from postbox.inbox_lane l where l.inbox = box.id and l.key = aggregate for update;
    -- What makes a lane lies among the first arrivals if it is listed.
    for attempt in 1 .. 30 loop
        sorted := postbox._sort_arrivals(box, 500, everywhere => true);
        select l.* into lane from postbox.inbox_lane l where l.inbox = box.id and l.key = aggregate for update;
        exit when found or sorted = 0;
    end loop;
    if lane.key is null then
        raise exception using errcode = 'undefined_object',
            message = format('inbox "%s" waits for nothing of aggregate "%s"', box.name, aggregate),
            hint = 'postbox.inbox_ordering_gaps lists what is missing; what it listed just now may have come.';
    end if;
    missing := int8multirange(int8range(lane.next, greatest(lane.next, upper(lane.arrived)))) - lane.arrived - lane.skipped;
    if not missing @> range then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s of aggregate "%s" of inbox "%s" is not missing: %s is', range, aggregate, box.name, case when missing = '{}' then 'nothing' else missing::text end),
            hint = 'Skip what is missing and no more; postbox.inbox_ordering_gaps lists it.';
    end if;
    execute format('select r.%I::text from %s r where r.%I = $1::%s and r.%5$I >= lower($2) and r.%5$I < upper($2) limit 1', box.columns ->> 'event_id', box.relation,
        box.columns ->> 'aggregate_id', postbox._inbox_type(box, 'aggregate_id'), box.columns ->> 'sequence_num')
        into received using aggregate, range;
    if received is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('of %s of aggregate "%s" of inbox "%s" message "%s" has come', range, aggregate, box.name, received),
            hint = 'It will be in its place with the next claim.';
    end if;

    numbers := upper(range) - lower(range);
    insert into postbox.audit (action, subject, detail)
        values ('inbox_gap_skipped', box.name, jsonb_build_object('aggregate_id', aggregate, 'range', range, 'reason', reason, 'next', lane.next));
    insert into postbox.inbox_log (inbox, at, what, messages) values (box.id, clock_timestamp(), 'skipped', least(numbers, 2147483647));
    -- A lane that waits for the range begins again from before it.
    update postbox.inbox_lane l set skipped = l.skipped + int8multirange(range), next = l.next - (range @> l.next)::int
        where l.inbox = box.id and l.key = aggregate;
    if range @> lane.next then
        perform postbox._advance_lanes(box, array[aggregate]);
    end if;
    return numbers;
end
$function$;
comment on function postbox.inbox_gap_skip(text, text, int8range, text) is
    'Gives up sequence numbers that will never come, for a reason that postbox.audit keeps; one that comes all the same becomes a dead letter. The number of them';

-- Called by maintenance.
create or replace function postbox._watch_inbox_gaps() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    overdue record;
    known record;
begin
    for box in select i.* from postbox.inbox i where i.ordered_at is not null order by i.name loop
        -- Where the table does not say when a message was received, a gap is as old as it is known here.
        execute format(
            'select count(*) as gaps, (array_agg(g.aggregate_id order by g.since, g.aggregate_id, g.missing))[1] as aggregate_id,
                    (array_agg(g.missing order by g.since, g.aggregate_id, g.missing))[1] as missing, min(g.since) as since
             from (%s) g where g.since is null or g.age >= $1', postbox._gaps_sql(box))
            into overdue using box.gap_alert_after;
        subject := box.name;
        outcome := postbox._watch('inbox_ordering_gap', box.name, overdue.gaps > 0, case when overdue.since is null then box.gap_alert_after else '0' end,
            jsonb_build_object('gaps', overdue.gaps, 'aggregate_id', overdue.aggregate_id, 'missing', overdue.missing, 'received_behind', overdue.since),
            same => overdue.aggregate_id || ' ' || overdue.missing::text);
        if outcome is not null then
            detail := 'inbox_ordering_gap';
            return next;
        end if;
    end loop;
    for known in
        select a.subject as name from postbox.alert a
        where a.kind = 'inbox_ordering_gap' and not exists (select from postbox.inbox i where i.name = a.subject and i.ordered_at is not null)
    loop
        subject := known.name;
        outcome := postbox._watch('inbox_ordering_gap', known.name, false, '0', null);
        if outcome is not null then
            detail := 'inbox_ordering_gap: the order is gone';
            return next;
        end if;
    end loop;
end
$function$;
comment on function postbox._watch_inbox_gaps() is 'Private: alerts about messages that ordered inboxes wait for too long';
