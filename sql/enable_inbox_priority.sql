-- Tiers: each with its own place in the queue, so that what is in one costs nothing in another.

create or replace function postbox._parse_tiers(tiers jsonb) returns setof postbox.inbox_tier
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    example constant text := '[{"name": "critical", "lowest": 100}, {"name": "background", "highest": 99, "pace": "30 seconds"}]';
    given record;
    unknown text;
    made postbox.inbox_tier;
    range int8range;
    covered int8multirange := '{}';
    names text[] := '{}';
    hole int8range;
begin
    if tiers is null or jsonb_typeof(tiers) <> 'array' or jsonb_array_length(tiers) not between 1 and 100 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('tiers are %s, must be an array of 1 to 100 objects', coalesce(left(tiers::text, 200), 'NULL')),
            hint = 'For instance: ' || example;
    end if;
    for given in select t.value as tier, t.ordinality - 1 as place from jsonb_array_elements(tiers) with ordinality as t loop
        if jsonb_typeof(given.tier) <> 'object' then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier %s is no object', given.tier), hint = 'For instance: ' || example;
        end if;
        select k into unknown from jsonb_object_keys(given.tier) as k where k not in ('name', 'lowest', 'highest', 'pace', 'concurrency') limit 1;
        if found then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier %s has an unknown "%s"', given.tier, unknown), hint = 'A tier has name, lowest, highest, pace and concurrency.';
        end if;
        begin
            made.tier := given.place;
            made.name := given.tier ->> 'name';
            made.lowest := (given.tier ->> 'lowest')::int;
            made.highest := (given.tier ->> 'highest')::int;
            made.pace := coalesce((given.tier ->> 'pace')::interval, interval '1 second');
            made.concurrency := coalesce((given.tier ->> 'concurrency')::int, 1);
        exception when data_exception then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier %s: %s', given.tier, sqlerrm),
                hint = 'lowest, highest and concurrency are integers, pace is an interval.';
        end;
        if coalesce(made.name, '') = '' or made.name ~ '[."]' or made.name = any (names) then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier %s has no name, one with a dot or double quote, or that of another tier', given.tier),
                hint = 'Workers ask for tiers by name, and views are called after them: give each its own.';
        end if;
        if made.pace <= interval '0' or made.concurrency not between 1 and 1000 then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier "%s" has pace %s and concurrency %s', made.name, made.pace, made.concurrency),
                hint = 'The pace is more than 0, the concurrency 1 to 1000.';
        end if;
        if made.lowest > made.highest then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier "%s" goes from %s to %s', made.name, made.lowest, made.highest),
                hint = 'Both ends belong to the tier: lowest must not be above highest. Left out: no bound.';
        end if;
        range := int8range(made.lowest, made.highest, '[]');
        if covered && range then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('tier "%s" overlaps another one at priority %s', made.name,
                    (select coalesce(lower(r), upper(r) - 1, 0) from unnest(covered * int8multirange(range)) as r limit 1)),
                hint = 'Each priority belongs to one tier. Both ends, lowest and highest, belong to a tier.';
        end if;
        covered := covered + int8multirange(range);
        names := names || made.name;
        return next made;
    end loop;
    select r into hole from unnest(int8multirange(int8range(null, null)) - covered) as r limit 1;
    if found then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('no tier has priority %s', coalesce(lower(hole), upper(hole) - 1, 0)),
            hint = 'Every priority needs a tier: leave out the bound of the lowest and of the highest one. A message without priority has 0.';
    end if;
end
$function$;
comment on function postbox._parse_tiers(jsonb) is 'Private: tiers as they are written, unless they overlap or leave a hole';

-- All that waits, is handed out or has been given up, to the tiers that are now. Rows are written anew, so that whoever comes with an older
-- snapshot fails; but for notes of lanes that are to go on, which belong to no tier.
create or replace function postbox._retier_inbox(box postbox.inbox) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    tier constant text := postbox._inbox_tier_of(box, 'r');
begin
    perform postbox._forget_floors(box.id);
    execute format(
        'with taken as (
             delete from postbox.inbox_batch b where b.inbox = $1 and b.tier > -32768 returning b.*
         ), numbered as (
             select t.*, row_number() over () as n from taken t
         )
         insert into postbox.inbox_batch (inbox, tier, ready_at, token, lease_until, leased_at, worker, alone, attempts, crashes, event_type, error,
                 first_failed_at, last_failed_at, event_ids, lanes)
             select n.inbox, case when n.tier < 0 then -1 - m.tier else m.tier end, n.ready_at, n.token, n.lease_until, n.leased_at, n.worker, n.alone,
                 n.attempts, n.crashes, n.event_type, n.error, n.first_failed_at, n.last_failed_at, m.event_ids,
                 case when n.lanes is not null then m.lanes end
             from numbered n
             cross join lateral (
                 select %1$s as tier, array_agg(e.id order by e.place) as event_ids, array_agg(e.lane order by e.place) as lanes
                 from unnest(n.event_ids, n.lanes) with ordinality as e(id, lane, place)
                 left join %2$s r on r.%3$I = e.id::%4$s
                 group by 1
             ) m
             order by n.n', tier, box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) using box.id;
    execute format(
        'update postbox.inbox_lane l set tier = o.tier
         from (
             select p.key, %1$s as tier from postbox.inbox_lane p left join %2$s r on r.%3$I = p.head::%4$s
             where p.inbox = $1 and p.head is not null
         ) o
         where l.inbox = $1 and l.key = o.key', tier, box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) using box.id;
    execute format(
        'update postbox.inbox_dead d set tier = o.tier
         from (
             select p.event_id, %1$s as tier from postbox.inbox_dead p left join %2$s r on r.%3$I = p.event_id::%4$s where p.inbox = $1
         ) o
         where d.inbox = $1 and d.event_id = o.event_id', tier, box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) using box.id;
end
$function$;
comment on function postbox._retier_inbox(postbox.inbox) is 'Private: finds the tier of each message anew';

-- What waits in a tier, handed out or not: batches, arrivals that are not sorted yet, and what waits in lanes behind a message of the tier.
create or replace function postbox._tier_sql(box postbox.inbox, tier smallint) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'select r.%1$I::text as event_id, %2$s as event_type, %3$s as aggregate_id, %4$s as sequence_num, %5$s as priority, %6$s as received_at, greatest(w.ready_at, case when w.is_noted then %10$s end) as ready_at, w.attempts
             from (
                 select e.id, b.tier < 0 as is_noted, b.ready_at, b.attempts from postbox.inbox_batch b cross join lateral unnest(b.event_ids) as e(id)
                 where b.inbox = %7$s and b.tier in (%8$s, %9$s)', (box).columns ->> 'event_id',
            postbox._inbox_column((box).columns, 'event_type', 'r', 'text'), postbox._inbox_column((box).columns, 'aggregate_id', 'r', 'text'),
            postbox._inbox_column((box).columns, 'sequence_num', 'r', 'bigint'), postbox._inbox_column((box).columns, 'priority', 'r', 'bigint'),
            postbox._inbox_column((box).columns, 'received_at', 'r', 'timestamptz'), (box).id, tier, -1 - tier, postbox._inbox_column((box).columns, 'visible_at', 'r', 'timestamptz'))
        || case when (box).ordered_at is null then '' else format(
            ' union all
                 select m.%1$I::text, false, null, 0
                 from postbox.inbox_lane l
                 cross join lateral unnest(l.arrived) as a(numbers)
                 join %3$s m on m.%4$I = l.key::%5$s and m.%2$I >= lower(a.numbers) and m.%2$I < upper(a.numbers)
                 where l.inbox = %6$s and l.tier = %7$s and m.%2$I > l.next and not coalesce(m.%1$I::text = any (l.displaced), false)', (box).columns ->> 'event_id', (box).columns ->> 'sequence_num', (box).relation,
            (box).columns ->> 'aggregate_id', postbox._inbox_type(box, 'aggregate_id'), (box).id, tier) end
        || format(') w join %s r on r.%I = w.id::%s', (box).relation, (box).columns ->> 'event_id', postbox._inbox_type(box, 'event_id'));
    end;
comment on function postbox._tier_sql(postbox.inbox, smallint) is 'Private: a query for the messages of a tier';

-- They say something of lanes only while there are any, so a change of the order makes them anew.
create or replace function postbox._make_tier_views(box postbox.inbox, old postbox.inbox_tier[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    one record;
begin
    for one in select o.name from unnest(old) o loop
        perform postbox._drop_inbox_view(box, 'pending_' || box.name || '_' || one.name);
    end loop;
    for one in select t.tier, t.name from postbox.inbox_tier t where t.inbox = box.id order by t.tier loop
        perform postbox._make_inbox_view(box, 'pending_' || box.name || '_' || one.name, postbox._tier_sql(box, one.tier));
    end loop;
end
$function$;
comment on function postbox._make_tier_views(postbox.inbox, postbox.inbox_tier[]) is 'Private: makes the views of the tiers of an inbox anew';

create or replace function postbox._inbox_tiers(box postbox.inbox) returns postbox.inbox_tier[]
    language sql volatile
    return array(select t from postbox.inbox_tier t where t.inbox = (box).id order by t.tier);
comment on function postbox._inbox_tiers(postbox.inbox) is 'Private: the tiers of an inbox';

create or replace function postbox.enable_inbox_priority(inbox text, priority_col text default 'priority', tiers jsonb default null) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox := postbox._lock_inbox(inbox);
    old constant postbox.inbox_tier[] := postbox._inbox_tiers(box);
    priority_column constant text := postbox._inbox_role_column(box, 'priority', priority_col, '{smallint,integer,bigint}');
    new constant postbox.inbox_tier[] := array(select t from postbox._parse_tiers(tiers) as t);
begin
    delete from postbox.inbox_tier t where t.inbox = box.id;
    -- One that keeps its name stays paused.
    insert into postbox.inbox_tier (inbox, tier, name, lowest, highest, pace, concurrency, paused_at)
        select box.id, n.tier, n.name, n.lowest, n.highest, n.pace, n.concurrency, o.paused_at
        from unnest(new) n left join unnest(old) o on o.name = n.name;
    update postbox.inbox i set columns = i.columns || jsonb_build_object('priority', priority_column) where i.id = box.id returning * into box;
    perform postbox._arm_inbox(box.name);
    perform postbox._retier_inbox(box);
    perform postbox._make_tier_views(box, old);
end
$function$;
comment on function postbox.enable_inbox_priority(text, text, jsonb) is
    'Gives an inbox tiers, the first served first: name, lowest and highest priority, pace, concurrency. Called again, others; what waits is moved';

create or replace function postbox.disable_inbox_priority(inbox text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._lock_inbox(inbox);
    old constant postbox.inbox_tier[] := postbox._inbox_tiers(box);
begin
    if old = '{}' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" has no tiers', box.name),
            hint = 'postbox.enable_inbox_priority gives an inbox tiers.';
    end if;
    delete from postbox.inbox_tier t where t.inbox = box.id;
    perform postbox._arm_inbox(box.name);
    perform postbox._retier_inbox(box);
    perform postbox._make_tier_views(box, old);
end
$function$;
comment on function postbox.disable_inbox_priority(text) is 'Takes the tiers of an inbox away: all that waits is in one queue again';
