-- Ordered inboxes: a lane for each aggregate, which hands out one message at a time, that of its next sequence number.
--
-- A message that arrives is noted like any other, in a tier below 0; sorting takes those notes and tells the lanes. Only one session
-- sorts an inbox at a time, and it waits for nobody: arrivals of lanes that somebody holds stay noted. So a receiver never touches a lane.

-- What makes a message the head of its lane: its id, type, tier and when it may be handed out.
create or replace function postbox._lane_heads(box postbox.inbox, keys text[], nexts bigint[])
    returns table (key text, event_id text, event_type text, tier smallint, visible_at timestamptz)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return query execute box.heads_sql using box.id, keys, nexts;
end
$function$;
comment on function postbox._lane_heads(postbox.inbox, text[], bigint[]) is 'Private: the messages with these sequence numbers';

create or replace function postbox._sort_lock(inbox int) returns bigint
    language sql immutable strict parallel safe
    return hashtextextended('postbox.inbox_sort ' || inbox, 0);
comment on function postbox._sort_lock(int) is 'Private: the key of the advisory lock of the session that sorts arrivals';

create or replace function postbox._arrivals(box postbox.inbox, ids text[])
    returns table (id text, key text, seq bigint, type text, tier smallint, due timestamptz)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
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

-- Of the tiers from the first one to `through`: who serves no other tier does not work for it either.
create or replace function postbox._sort_arrivals(box postbox.inbox, most int, through smallint default null) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    enough constant int := least(greatest(4 * most, 100), 2000);
    last constant int := coalesce(-1 - through, -32768);
    now constant timestamptz := clock_timestamp();
    slot int;
    note record;
    places tid[] := '{}';
    ids text[] := '{}';
    keys text[];
    seqs bigint[];
    types text[];
    tiers smallint[];
    dues timestamptz[];
begin
    if not exists (select from postbox.inbox_batch b where b.inbox = box.id and b.tier between last and -1 and b.token is null and b.crashes < 2 and b.ready_at <= now) then
        return 0;
    end if;
    -- Two that sort would wait for one another where both make the lane of a new aggregate.
    if not pg_try_advisory_xact_lock(postbox._sort_lock(box.id)) then
        return 0;
    end if;
    -- Whoever sorts begins with the first tier, so that a flood of others does not hold it up. Nobody else takes notes away.
    for slot in select t.tier from postbox.inbox_tier t where t.inbox = box.id and -1 - t.tier >= last union select 0 order by 1 loop
        for note in
            select b.ctid as place, b.event_ids from postbox.inbox_batch b
            where b.inbox = box.id and b.tier = -1 - slot and b.token is null and b.crashes < 2 and b.ready_at <= now
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
comment on function postbox._sort_arrivals(postbox.inbox, int, smallint) is 'Private: tells lanes what has arrived; 0: there was nothing, or somebody else is at it';

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
    start_keys text[];
    starts bigint[];
    free text[];
    held record;
    wrong record;
begin
    if box.sequence_start is null then
        -- What has come and is not sorted yet counts too.
        execute format('select array_agg(k.key), array_agg((select min(r.%I) from %s r where r.%I = k.key::%s)::bigint) from unnest($1) as k(key)',
            box.columns ->> 'sequence_num', box.relation, box.columns ->> 'aggregate_id', postbox._inbox_type(box, 'aggregate_id'))
            into start_keys, starts using wanted;
    end if;
    -- An insertion that finds a lane waits for whoever is changing it, even if it does nothing then. There is a conflict for old snapshots only.
    insert into postbox.inbox_lane (inbox, key, next)
        select box.id, a.key, coalesce(box.sequence_start, s.start)
        from unnest(wanted) as a(key)
        left join unnest(start_keys, starts) as s(key, start) on s.key = a.key
        left join (select l.key from postbox.inbox_lane l where l.inbox = box.id and l.key = any (wanted)) k on k.key = a.key
        where k.key is null
        on conflict on constraint inbox_lane_pkey do nothing;
    -- Locked from here on. Arrivals of those that somebody holds are noted again, for a moment later.
    free := array(select l.key from postbox.inbox_lane l where l.inbox = box.id and l.key = any (wanted) for update skip locked);
    if cardinality(free) < cardinality(wanted) then
        select array_agg(u.id order by u.n) as ids, array_agg(u.tier order by u.n) as tiers into held
            from unnest(ids, keys, tiers) with ordinality as u(id, key, tier, n) where u.key <> all (free);
        perform postbox._note_arrivals(box, held.ids, held.tiers, clock_timestamp() + interval '20 milliseconds');
    end if;
    -- A place in the order that is passed, given up, or taken by another message.
    for wrong in
        select w.* from (
            select a.*, l.next, l.arrived, l.skipped, row_number() over (partition by a.key, a.seq order by a.n) as nth
            from unnest(ids, keys, seqs, types, tiers) with ordinality as a(id, key, seq, type, tier, n)
            join (select f.* from postbox.inbox_lane f where f.inbox = box.id and f.key = any (free)) l on l.key = a.key
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
    update postbox.inbox_lane l
        set arrived = l.arrived + n.arrived,
            ready_at = case when n.is_head then greatest(clock_timestamp(), n.due) else l.ready_at end,
            event_id = case when n.is_head then n.id else l.event_id end,
            event_type = case when n.is_head then n.type else l.event_type end,
            tier = case when n.is_head then n.tier else l.tier end
        from (
            -- A lane that has no head gets it from here, if at all.
            select a.key, range_agg(int8range(a.seq, a.seq + 1)) as arrived,
                   bool_or(h.next = a.seq) as is_head,
                   min(a.id) filter (where h.next = a.seq) as id,
                   min(a.type) filter (where h.next = a.seq) as type,
                   min(a.tier) filter (where h.next = a.seq) as tier,
                   min(a.due) filter (where h.next = a.seq) as due
            from (
                select u.*, row_number() over (partition by u.key, u.seq order by u.n) as nth
                from unnest(ids, keys, seqs, types, tiers, dues) with ordinality as u(id, key, seq, type, tier, due, n)
            ) a
            join (select f.* from postbox.inbox_lane f where f.inbox = box.id and f.key = any (free)) h on h.key = a.key
            where a.nth = 1 and a.seq >= h.next and not h.arrived @> a.seq and not h.skipped @> a.seq
            group by a.key
        ) n
        where l.inbox = box.id and l.key = any (free) and l.key = n.key;
end
$function$;
comment on function postbox._tell_lanes(postbox.inbox, text[], text[], bigint[], text[], smallint[], timestamptz[]) is
    'Private: what has arrived, where its lane is free; the rest is noted again';

create or replace function postbox._next_number(skipped int8multirange, after bigint) returns bigint
    language sql immutable parallel safe
    return coalesce((select upper(s.numbers) from unnest(skipped) as s(numbers) where s.numbers @> after + 1), after + 1);
comment on function postbox._next_number(int8multirange, bigint) is 'Private: the next sequence number that is waited for';

-- Lets lanes, which the caller has locked, go on after their head is done with.
create or replace function postbox._advance_lanes(box postbox.inbox, lane_keys text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    keys text[];
    nexts bigint[];
begin
    select array_agg(n.key), array_agg(n.next) into keys, nexts
        from (
            select l.key, l.arrived, case when l.skipped = '{}' then l.next + 1 else postbox._next_number(l.skipped, l.next) end as next
            from postbox.inbox_lane l
            where l.inbox = box.id and l.key = any (lane_keys)
            -- So that it is called once for each.
            offset 0
        ) n
        where n.arrived @> n.next;
    -- A message that its owner has deleted leaves a gap.
    update postbox.inbox_lane l
        set next = n.next, arrived = n.arrived, skipped = l.skipped * int8multirange(int8range(n.next, null)),
            displaced = case when n.arrived <> '{}' then l.displaced end,
            token = null, lease_until = null, leased_at = null, worker = null, alone = null, attempts = 0, crashes = 0, blocked = null,
            error = null, first_failed_at = null, last_failed_at = null,
            event_id = n.event_id, event_type = n.event_type, tier = coalesce(n.tier, l.tier),
            ready_at = case when n.event_id is not null then greatest(clock_timestamp(), n.visible_at) end
        from (
            select p.key, p.next, h.event_id, h.event_type, h.tier, h.visible_at,
                   p.arrived * int8multirange(int8range(p.next + (h.event_id is null)::int, null)) as arrived
            from (
                select o.key, o.arrived, case when o.skipped = '{}' then o.next + 1 else postbox._next_number(o.skipped, o.next) end as next
                from postbox.inbox_lane o
                where o.inbox = box.id and o.key = any (lane_keys)
                offset 0
            ) p
            left join postbox._lane_heads(box, keys, nexts) h on h.key = p.key
        ) n
        where l.inbox = box.id and l.key = any (lane_keys) and l.key = n.key;
end
$function$;
comment on function postbox._advance_lanes(postbox.inbox, text[]) is 'Private: the next sequence number is due';

create or replace function postbox._complete_lanes(box postbox.inbox, event_ids text[], tokens bigint[]) returns text[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    keys text[];
    done text[];
begin
    -- The rows are locked first; what is then read of them, and of the messages behind, is as new as any arrival that was sorted.
    select array_agg(h.key), array_agg(h.event_id) into keys, done
        from (
            select l.key, l.event_id
            from postbox.inbox_lane l
            join unnest(event_ids, tokens) as u(id, token) on l.token = u.token and l.event_id = u.id
            where l.inbox = box.id and l.token = any (tokens)
            order by l.key
            for update of l
        ) h;
    if keys is null then
        return '{}';
    end if;
    insert into postbox.inbox_log (inbox, at, what, event_type, messages, seconds, event_ids)
        select box.id, clock_timestamp(), 'processed', l.event_type, count(*), sum(extract(epoch from clock_timestamp() - l.leased_at)), array_agg(l.event_id)
        from postbox.inbox_lane l
        where l.inbox = box.id and l.key = any (keys)
        group by l.event_type;
    perform postbox._advance_lanes(box, keys);
    return done;
end
$function$;
comment on function postbox._complete_lanes(postbox.inbox, text[], bigint[]) is 'Private: those of the messages that were handed out by lanes';

-- What becomes of a lane whose head has just become a dead letter.
create or replace function postbox._block_lane(box postbox.inbox, lane_key text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if box.failure_policy = 'skip' then
        perform postbox._advance_lanes(box, array[lane_key]);
    else
        update postbox.inbox_lane l
            set blocked = case box.failure_policy when 'pause' then 'paused' else 'parked' end, ready_at = null,
                token = null, lease_until = null, leased_at = null, worker = null, alone = null
            where l.inbox = box.id and l.key = lane_key;
    end if;
end
$function$;
comment on function postbox._block_lane(postbox.inbox, text) is 'Private: applies the failure policy';

create or replace function postbox._fail_lane(box postbox.inbox, event_id text, token bigint, error text, retry_after interval) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    failed postbox.inbox_lane;
begin
    select l.* into failed from postbox.inbox_lane l
        where l.inbox = box.id and l.token = _fail_lane.token and l.event_id = _fail_lane.event_id
        for update;
    if not found then
        return null;
    end if;
    if failed.attempts > box.max_retries then
        perform postbox._bury(box, event_id, failed.event_type, failed.tier, 'failed', error, failed.attempts, failed.first_failed_at, clock_timestamp(), failed.key, failed.next);
        perform postbox._block_lane(box, failed.key);
        return 'dead';
    end if;
    insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
        values (box.id, clock_timestamp(), 'failed', failed.event_type, 1, array[failed.event_id]);
    -- The whole lane waits, or a later message would overtake.
    update postbox.inbox_lane l
        set token = null, lease_until = null, leased_at = null, worker = null, alone = null, crashes = 0, error = _fail_lane.error,
            first_failed_at = coalesce(l.first_failed_at, clock_timestamp()), last_failed_at = clock_timestamp(),
            ready_at = clock_timestamp() + coalesce(retry_after, postbox._inbox_backoff(box.backoff_initial, box.backoff_max, failed.attempts))
        where l.inbox = box.id and l.key = failed.key;
    return 'retry';
end
$function$;
comment on function postbox._fail_lane(postbox.inbox, text, bigint, text, interval) is 'Private: inbox_fail for a message that a lane handed out; NULL if none did';

create or replace function postbox._release_lanes(box postbox.inbox, event_ids text[], tokens bigint[]) returns text[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    released text[];
begin
    with given_back as (
        update postbox.inbox_lane l
            set token = null, lease_until = null, leased_at = null, worker = null, alone = null, attempts = l.attempts - 1
            from unnest(event_ids, tokens) as u(id, token)
            where l.inbox = box.id and l.token = any (tokens) and l.token = u.token and l.event_id = u.id
            returning l.event_id, postbox._lower_floor(l.inbox, 'lane', l.tier, l.ready_at)
    )
    select array_agg(g.event_id) into released from given_back g;
    return coalesce(released, '{}');
end
$function$;
comment on function postbox._release_lanes(postbox.inbox, text[], bigint[]) is 'Private: inbox_release for messages that lanes handed out';

create or replace function postbox._expire_lanes(box postbox.inbox, most int, floor bigint) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    lost postbox.inbox_lane;
    expired int := 0;
    reason text;
begin
    for lost in
        select l.* from postbox.inbox_lane l
        where l.inbox = box.id and l.token >= floor and l.lease_until < clock_timestamp()
        limit most
        for update skip locked
    loop
        expired := expired + 1;
        reason := format('worker %s was handed it at %s and never came back', lost.worker, lost.leased_at);
        if lost.alone and lost.attempts > box.max_retries then
            perform postbox._bury(box, lost.event_id, lost.event_type, lost.tier, 'crashed', reason, lost.attempts, lost.first_failed_at, clock_timestamp(), lost.key, lost.next);
            perform postbox._block_lane(box, lost.key);
            continue;
        end if;
        insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
            values (box.id, clock_timestamp(), 'failed', lost.event_type, 1, array[lost.event_id]);
        update postbox.inbox_lane l
            set token = null, lease_until = null, leased_at = null, worker = null, alone = null, ready_at = clock_timestamp(),
                crashes = case when lost.attempts > box.max_retries then 2 else lost.crashes + 1 end, error = reason,
                first_failed_at = coalesce(l.first_failed_at, clock_timestamp()), last_failed_at = clock_timestamp()
            where l.inbox = box.id and l.key = lost.key;
    end loop;
    return expired;
end
$function$;
comment on function postbox._expire_lanes(postbox.inbox, int, bigint) is 'Private: takes lanes back whose workers did not come back in time';
