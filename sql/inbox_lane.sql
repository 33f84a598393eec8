-- Ordered inboxes: a lane for each aggregate, which says which message is next. That one, its head, is put into a batch and handed out from
-- there like any message; when it is done the lane goes on to the one behind. So what is handed out costs one row for many lanes.
--
-- A message that arrives is noted like any other, in a tier below 0; sorting takes those notes and tells the lanes. Only one session
-- sorts an inbox at a time, and it waits for nobody: arrivals of lanes that somebody holds stay noted. So a receiver never touches a lane.

create or replace function postbox._sort_lock(inbox int) returns bigint
    language sql immutable strict parallel safe
    return hashtextextended('postbox.inbox_sort ' || inbox, 0);
comment on function postbox._sort_lock(int) is 'Private: the key of the advisory lock of the session that sorts arrivals';

create or replace function postbox._arrivals(box postbox.inbox, ids text[])
    returns table (id text, key text, seq bigint, type text, tier smallint, due timestamptz)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Looked up one by one, however many messages there are.
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    -- What a policy hides would be taken for deleted.
    set row_security = off
as $function$
begin
    return query execute box.arrivals_sql using ids;
end
$function$;
comment on function postbox._arrivals(postbox.inbox, text[]) is 'Private: what the table says of these messages';

-- Notes of messages, in batches of 50, those of a tier together.
create or replace function postbox._note_arrivals(box postbox.inbox, ids text[], tiers smallint[], ready_at timestamptz) returns void
    language sql volatile
    begin atomic
        insert into postbox.inbox_batch (inbox, tier, ready_at, event_ids)
            select (box).id, -1 - a.tier, _note_arrivals.ready_at, array_agg(a.id order by a.n)
            from (
                select u.id, u.tier, u.n, (row_number() over (partition by u.tier order by u.n) - 1) / 50 as batch
                from unnest(ids, tiers) with ordinality as u(id, tier, n)
            ) a
            group by a.tier, a.batch;
    end;
comment on function postbox._note_arrivals(postbox.inbox, text[], smallint[], timestamptz) is 'Private: messages that are to be sorted into lanes';

-- Of the tiers from the first one to `through`: who serves no other tier does not work for it either. `everywhere`: also what lies below the floors.
create or replace function postbox._sort_arrivals(box postbox.inbox, most int, through smallint default null, everywhere boolean default false) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    enough constant int := least(greatest(4 * most, 100), 2000);
    now constant timestamptz := clock_timestamp();
    -- Whoever sorts begins with the first tier, so that a flood of others does not hold it up.
    queues smallint[];
    floors timestamptz[];
    queue record;
    note record;
    places tid[] := '{}';
    ids text[] := '{}';
    keys text[];
    seqs bigint[];
    types text[];
    tiers smallint[];
    dues timestamptz[];
begin
    select array_agg(q.tier order by q.tier desc), array_agg(case when everywhere then '-infinity' else coalesce((
            select f.ready_at from postbox.inbox_floor f
            where f.inbox = box.id and f.kind = 'batch' and f.tier = q.tier
            order by f.at desc limit 1), '-infinity') end order by q.tier desc)
        into queues, floors
        from (select (-1 - t.tier)::smallint as tier from postbox.inbox_tier t where t.inbox = box.id and (through is null or t.tier <= through) union select -1::smallint) q;
    if not exists (
        select from unnest(queues, floors) as q(tier, floor)
        cross join lateral (
            select from postbox.inbox_batch b
            where b.inbox = box.id and b.tier = q.tier and b.token is null and b.crashes < 2 and b.ready_at >= q.floor and b.ready_at <= now
            limit 1
        ) n)
    then
        return 0;
    end if;
    -- Two that sort would wait for one another where both make the lane of a new aggregate.
    if not pg_try_advisory_xact_lock(postbox._sort_lock(box.id)) then
        return 0;
    end if;
    -- Nobody else takes notes away.
    for queue in select q.tier, q.floor from unnest(queues, floors) with ordinality as q(tier, floor, n) order by q.n loop
        for note in
            select b.ctid as place, b.event_ids from postbox.inbox_batch b
            where b.inbox = box.id and b.tier = queue.tier and b.token is null and b.crashes < 2 and b.ready_at >= queue.floor and b.ready_at <= now
            order by b.ready_at
        loop
            exit when cardinality(ids) >= enough;
            places := places || note.place;
            ids := ids || note.event_ids;
        end loop;
    end loop;
    delete from postbox.inbox_batch b where b.ctid = any (places);
    select array_agg(a.id), array_agg(a.key), array_agg(a.seq), array_agg(a.type), array_agg(a.tier), array_agg(a.due)
        into ids, keys, seqs, types, tiers, dues
        from postbox._arrivals(box, ids) a;
    -- What was waiting when order was asked for may have no place in it.
    if array_position(keys, null) is not null or array_position(seqs, null) is not null then
        insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
            select box.id, u.tier, greatest(now, u.due), u.type, array[u.id]
            from unnest(ids, keys, seqs, types, tiers, dues) with ordinality as u(id, key, seq, type, tier, due, n)
            where u.key is null or u.seq is null order by u.n;
        select array_agg(u.id order by u.n), array_agg(u.key order by u.n), array_agg(u.seq order by u.n), array_agg(u.type order by u.n),
                array_agg(u.tier order by u.n), array_agg(u.due order by u.n)
            into ids, keys, seqs, types, tiers, dues
            from unnest(ids, keys, seqs, types, tiers, dues) with ordinality as u(id, key, seq, type, tier, due, n)
            where u.key is not null and u.seq is not null;
    end if;
    if ids is null then
        return cardinality(places);
    end if;
    perform postbox._tell_lanes(box, ids, keys, seqs, types, tiers, dues);
    return cardinality(places);
end
$function$;
comment on function postbox._sort_arrivals(postbox.inbox, int, smallint, boolean) is 'Private: tells lanes what has arrived; 0: there was nothing, or somebody else is at it';

-- Heads of lanes become ready, those of a tier and type in batches of 50.
create or replace function postbox._queue_heads(inbox int, ids text[], lanes text[], types text[], tiers smallint[], dues timestamptz[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    now constant timestamptz := clock_timestamp();
begin
    insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids, lanes)
        select _queue_heads.inbox, h.tier, h.ready_at, h.type, array_agg(h.id order by h.n), array_agg(h.lane order by h.n)
        from (
            select r.*, (row_number() over (partition by r.tier, r.ready_at, r.type order by r.n) - 1) / 50 as batch
            from (
                select u.id, u.lane, u.type, u.tier, greatest(now, u.due) as ready_at, u.n
                from unnest(ids, lanes, types, tiers, dues) with ordinality as u(id, lane, type, tier, due, n)
            ) r
        ) h
        group by h.tier, h.ready_at, h.type, h.batch
        order by min(h.n);
end
$function$;
comment on function postbox._queue_heads(int, text[], text[], text[], smallint[], timestamptz[]) is 'Private: lets the heads of lanes be handed out when they are due';

-- Lanes of aggregates that have none. An insertion that finds one waits for whoever is changing it, even if it does nothing then: those that are
-- there are left out, and there is a conflict for old snapshots only.
create or replace function postbox._make_lanes(box postbox.inbox, wanted text[], out places tid[], out keys text[], out nexts bigint[])
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    start_keys text[];
    starts bigint[];
begin
    if box.sequence_start is null then
        -- What has come and is not sorted yet counts too.
        execute format('select array_agg(k.key), array_agg((select min(r.%I) from %s r where r.%I = k.key::%s)::bigint) from unnest($1) as k(key)',
            box.columns ->> 'sequence_num', box.relation, box.columns ->> 'aggregate_id', postbox._inbox_type(box, 'aggregate_id'))
            into start_keys, starts using wanted;
    end if;
    with made as (
        insert into postbox.inbox_lane (inbox, key, next)
            select box.id, a.key, coalesce(box.sequence_start, s.start)
            from unnest(wanted) as a(key)
            left join unnest(start_keys, starts) as s(key, start) on s.key = a.key
            left join (select l.key from postbox.inbox_lane l where l.inbox = box.id and l.key = any (wanted)) k on k.key = a.key
            where k.key is null
            on conflict on constraint inbox_lane_pkey do nothing
            returning inbox_lane.ctid, inbox_lane.key, inbox_lane.next
    )
    select array_agg(m.ctid), array_agg(m.key), array_agg(m.next) into places, keys, nexts from made m;
end
$function$;
comment on function postbox._make_lanes(postbox.inbox, text[]) is 'Private: makes the lanes of new aggregates, which nobody else has then';

create or replace function postbox._tell_lanes(
    box postbox.inbox, ids text[], keys text[], seqs bigint[], types text[], tiers smallint[], dues timestamptz[]
) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Lanes are looked up by their keys and then joined with what arrived: never all of them, however few the planner takes them for.
    set enable_nestloop = off
    set enable_hashjoin = on
    set enable_sort = on
as $function$
declare
    wanted constant text[] := array(select distinct k from unnest(keys) as k);
    -- The lanes that are free, locked from here on, as they were found.
    places tid[];
    free text[];
    nexts bigint[];
    arrived int8multirange[];
    skipped int8multirange[];
    have_displaced boolean;
    made record;
    held record;
    wrong record;
    heads record;
begin
    select array_agg(f.ctid), array_agg(f.key), array_agg(f.next), array_agg(f.arrived), array_agg(f.skipped), bool_or(f.displaced is not null)
        into places, free, nexts, arrived, skipped, have_displaced
        from (select l.ctid, l.key, l.next, l.arrived, l.skipped, l.displaced from postbox.inbox_lane l where l.inbox = box.id and l.key = any (wanted) for update skip locked) f;
    if free is null or cardinality(free) < cardinality(wanted) then
        made := postbox._make_lanes(box, wanted);
        if made.keys is not null then
            places := places || made.places;
            free := free || made.keys;
            nexts := nexts || made.nexts;
            arrived := arrived || array_fill('{}'::int8multirange, array[cardinality(made.keys)]);
            skipped := skipped || array_fill('{}'::int8multirange, array[cardinality(made.keys)]);
        end if;
    end if;
    -- Arrivals of those that somebody holds are noted again, for a moment later.
    if free is null or cardinality(free) < cardinality(wanted) then
        select array_agg(u.id order by u.n) as ids, array_agg(u.tier order by u.n) as tiers into held
            from unnest(ids, keys, tiers) with ordinality as u(id, key, tier, n) where u.key <> all (coalesce(free, '{}'));
        perform postbox._note_arrivals(box, held.ids, held.tiers, clock_timestamp() + interval '20 milliseconds');
    end if;
    -- Rows stay where they were found until they are written: the others are looked at afterwards.
    with told as (
        update postbox.inbox_lane l
            set arrived = n.arrived, head = coalesce(n.id, l.head), tier = coalesce(n.tier, l.tier)
            from (
                -- A lane that has no head gets it from here, if at all. Sorted by bytes, which is faster.
                select h.place, h.arrived + range_agg(int8range(a.seq, a.seq + 1)) as arrived,
                       min(a.id) filter (where h.next = a.seq) as id,
                       min(a.type) filter (where h.next = a.seq) as type,
                       min(a.tier) filter (where h.next = a.seq) as tier,
                       min(a.due) filter (where h.next = a.seq) as due,
                       min(a.n) as n
                from (
                    select u.*, row_number() over (partition by u.key collate "C", u.seq order by u.n) as nth
                    from unnest(ids, keys, seqs, types, tiers, dues) with ordinality as u(id, key, seq, type, tier, due, n)
                ) a
                join unnest(places, free, nexts, arrived, skipped) as h(place, key, next, arrived, skipped) on h.key = a.key
                where a.nth = 1 and a.seq >= h.next and not h.arrived @> a.seq and not h.skipped @> a.seq
                group by h.place, h.arrived
            ) n
            where l.ctid = any (places) and l.ctid = n.place
            returning n.id, l.key, n.type, n.tier, n.due, n.n
    )
    select array_agg(t.id order by t.n) as ids, array_agg(t.key order by t.n) as keys, array_agg(t.type order by t.n) as types,
            array_agg(t.tier order by t.n) as tiers, array_agg(t.due order by t.n) as dues
        into heads from told t where t.id is not null;
    -- A message that was displaced once, removed by retention and sent again has a place of its own.
    if have_displaced then
        update postbox.inbox_lane l set displaced = (select array_agg(d) from unnest(l.displaced) as d where d <> all (ids))
            where l.inbox = box.id and l.key = any (free) and l.displaced && ids;
    end if;
    -- A place in the order that is passed, given up, or taken by another message.
    for wrong in
        select w.* from (
            select a.*, l.place, l.next, l.arrived, l.skipped, row_number() over (partition by a.key collate "C", a.seq order by a.n) as nth
            from unnest(ids, keys, seqs, types, tiers) with ordinality as a(id, key, seq, type, tier, n)
            join unnest(places, free, nexts, arrived, skipped) as l(place, key, next, arrived, skipped) on l.key = a.key
        ) w
        where w.seq < w.next or w.arrived @> w.seq or w.skipped @> w.seq or w.nth > 1
    loop
        if wrong.seq >= wrong.next and not wrong.skipped @> wrong.seq then
            update postbox.inbox_lane l set displaced = l.displaced || wrong.id where l.inbox = box.id and l.key = wrong.key;
        end if;
        perform postbox._bury(box, wrong.id, wrong.type, wrong.tier, 'sequence',
            case when wrong.seq < wrong.next then format('sequence number %s of aggregate %s is below the next expected one, %s', wrong.seq, wrong.key, wrong.next)
                when wrong.skipped @> wrong.seq then format('sequence number %s of aggregate %s is not waited for any more', wrong.seq, wrong.key)
                else format('sequence number %s of aggregate %s has arrived with another event_id', wrong.seq, wrong.key) end,
            0, null, null, wrong.key, wrong.seq);
    end loop;
    if heads.ids is not null then
        perform postbox._queue_heads(box.id, heads.ids, heads.keys, heads.types, heads.tiers, heads.dues);
    end if;
end
$function$;
comment on function postbox._tell_lanes(postbox.inbox, text[], text[], bigint[], text[], smallint[], timestamptz[]) is
    'Private: what has arrived, where its lane is free; the rest is noted again';

create or replace function postbox._next_number(skipped int8multirange, after bigint) returns bigint
    language sql immutable parallel safe
    return coalesce((select upper(s.numbers) from unnest(skipped) as s(numbers) where s.numbers @> after + 1), after + 1);
comment on function postbox._next_number(int8multirange, bigint) is 'Private: the next sequence number that is waited for';

-- Lets lanes go on after their heads are done with. They are locked first: what is then read of the messages behind is as new as any arrival that was
-- sorted. Those that somebody holds are not waited for but noted, in a queue of their own, and whoever claims lets them go on (_finish_lanes). Until
-- then such a lane stands where it did, with a head that is done with; nobody else puts another one into a batch.
create or replace function postbox._advance_lanes(box postbox.inbox, lane_keys text[], later interval default '0') returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- As for arrivals.
    set row_security = off
as $function$
declare
    lanes record;
    heads record;
begin
    select array_agg(n.place) as places, array_agg(n.key) as keys, array_agg(n.next) as nexts, array_agg(n.arrived @> n.next) as are_there,
            array_agg(n.arrived * int8multirange(int8range(n.next, null))) as arrived, array_agg(n.displaced::text) as displaced
        into lanes
        from (
            select l.ctid as place, l.key, l.arrived, l.displaced,
                case when l.skipped = '{}' then l.next + 1 else postbox._next_number(l.skipped, l.next) end as next
            from postbox.inbox_lane l
            where l.inbox = box.id and l.key = any (lane_keys)
            for update of l skip locked
        ) n;
    if coalesce(cardinality(lanes.keys), 0) < cardinality(lane_keys) then
        insert into postbox.inbox_batch (inbox, tier, ready_at, event_ids, lanes)
            select box.id, -32768, clock_timestamp() + later, '{}', array_agg(k)
            from unnest(lane_keys) as k where k <> all (coalesce(lanes.keys, '{}')) having count(*) > 0;
        if lanes.keys is null then
            return;
        end if;
    end if;
    execute box.heads_sql into heads using lanes.keys, lanes.nexts, lanes.are_there, lanes.displaced;
    -- A message that its owner has deleted leaves a gap.
    update postbox.inbox_lane l
        set next = n.next, arrived = n.arrived, skipped = case when l.skipped = '{}' then l.skipped else l.skipped * int8multirange(int8range(n.next, null)) end,
            displaced = case when n.arrived <> '{}' then l.displaced end,
            head = n.head, tier = coalesce(n.tier, l.tier), blocked = null
        from (
            select u.place, u.next, u.head, u.tier, case when u.head is null then u.arrived - int8multirange(int8range(u.next, u.next, '[]')) else u.arrived end as arrived
            from unnest(lanes.places, lanes.nexts, lanes.arrived, heads.ids, heads.tiers) as u(place, next, arrived, head, tier)
        ) n
        where l.ctid = n.place;
    if array_remove(heads.ids, null) <> '{}' then
        perform postbox._queue_heads(box.id, array_agg(u.id order by u.n), array_agg(u.key order by u.n), array_agg(u.type order by u.n),
                array_agg(u.tier order by u.n), array_agg(u.due order by u.n))
            from unnest(heads.ids, lanes.keys, heads.types, heads.tiers, heads.dues) with ordinality as u(id, key, type, tier, due, n)
            where u.id is not null;
    end if;
end
$function$;
comment on function postbox._advance_lanes(postbox.inbox, text[], interval) is 'Private: the next sequence number is due';

-- Lets lanes go on that somebody held when their heads were done with, those of up to `most` notes. Whoever holds one still is passed by again. A note
-- goes in the commit in which its lane goes on.
create or replace function postbox._finish_lanes(box postbox.inbox, most int, everywhere boolean default false) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    keys text[];
begin
    with note as materialized (
        select b.ctid as place from postbox.inbox_batch b
        where b.inbox = box.id and b.tier = -32768 and b.token is null and b.crashes < 2 and b.ready_at <= clock_timestamp()
          and b.ready_at >= case when everywhere then '-infinity' else coalesce((
              select f.ready_at from postbox.inbox_floor f
              where f.inbox = box.id and f.kind = 'batch' and f.tier = -32768
              order by f.at desc limit 1), '-infinity') end
        order by b.ready_at
        limit most
        for update skip locked
    ), gone as (
        delete from postbox.inbox_batch b using note n where b.ctid = n.place returning b.lanes
    )
    select array_agg(l.key) into keys from gone g cross join lateral unnest(g.lanes) as l(key);
    if keys is not null then
        perform postbox._advance_lanes(box, keys, interval '5 milliseconds');
    end if;
end
$function$;
comment on function postbox._finish_lanes(postbox.inbox, int, boolean) is 'Private: lets lanes go on that were held when their heads were done with';

-- The head of a lane will not be handed out again: it becomes a dead letter, and the failure policy says what becomes of the lane.
create or replace function postbox._bury_head(
    box postbox.inbox, lane_key text, event_id text, event_type text, tier smallint, why text, error text, attempts int, first_failed_at timestamptz
) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    place bigint;
begin
    -- Of a lane whose head is out nobody changes that.
    select l.next into place from postbox.inbox_lane l where l.inbox = box.id and l.key = lane_key;
    perform postbox._bury(box, event_id, event_type, tier, why, error, attempts, first_failed_at, clock_timestamp(), lane_key, place);
    if box.failure_policy = 'skip' then
        perform postbox._advance_lanes(box, array[lane_key]);
    else
        update postbox.inbox_lane l
            set blocked = case box.failure_policy when 'pause' then 'paused' else 'parked' end
            where l.inbox = box.id and l.key = lane_key;
    end if;
end
$function$;
comment on function postbox._bury_head(postbox.inbox, text, text, text, smallint, text, text, int, timestamptz) is 'Private: makes the head of a lane a dead letter';
