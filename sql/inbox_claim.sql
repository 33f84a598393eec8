-- Handing out messages. A claim locks what it takes with SKIP LOCKED, so that workers do not wait for one another, and marks it with a
-- token of its own.

create or replace function postbox._inbox(inbox text) returns postbox.inbox
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
begin
    select * into box from postbox.inbox i where i.name = _inbox.inbox;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('inbox %s does not exist', coalesce('"' || inbox || '"', 'NULL')),
            hint = 'postbox.inbox_status() lists the inboxes; postbox.create_inbox makes one.';
    end if;
    if box.armed_as <> box.relation::text then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('the table of inbox "%s" is not %s any more', box.name, box.armed_as),
            hint = case when exists (select from pg_class c where c.oid = box.relation)
                then format('It was renamed: call postbox.repair_inbox(%L).', box.name)
                else format('It was dropped: call postbox.drop_inbox(%L).', box.name) end;
    end if;
    return box;
end
$function$;
comment on function postbox._inbox(text) is 'Private: an inbox by its name';

-- Whoever works with an inbox shares this lock until the commit; who changes its shape has it alone (_lock_inbox).
create or replace function postbox._inbox_lock(inbox text) returns bigint
    language sql immutable parallel safe
    return hashtextextended('postbox.inbox ' || coalesce(inbox, ''), 0);
comment on function postbox._inbox_lock(text) is 'Private: the key of the advisory lock of an inbox';

create or replace function postbox._use_inbox(inbox text) returns postbox.inbox
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- An expression, where PERFORM would be a statement.
    locked constant boolean := pg_advisory_xact_lock_shared(postbox._inbox_lock(inbox)) is not null;
    box postbox.inbox;
begin
    select * into box from postbox.inbox i where i.name = _use_inbox.inbox and i.armed_as = i.relation::text;
    if found then
        return box;
    end if;
    -- It says what is wrong.
    return postbox._inbox(inbox);
end
$function$;
comment on function postbox._use_inbox(text) is 'Private: an inbox by its name, which keeps its shape until the commit';

-- The wait before attempt n + 1: random up to initial * 2^(n-1), at most the maximum. In seconds, as an interval may be too short for the power.
create or replace function postbox._inbox_backoff(initial interval, most interval, attempts int) returns interval
    language sql volatile strict
    return random() * interval '1 second' * least(extract(epoch from most), extract(epoch from initial) * power(2, least(greatest(attempts, 1) - 1, 30)));
comment on function postbox._inbox_backoff(interval, interval, int) is 'Private: exponential, capped, with full jitter';

-- Up to `most` messages of the batches that are ready in a tier, the earliest first. Batches are taken whole, so that they do not crumble;
-- only one that is larger than the claim is parted.
create or replace function postbox._claim_batches(
    inbox int, tier smallint, lease bigint, worker text, lease_until timestamptz, most int, everywhere boolean, out ids text[], out tries int[]
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    now constant timestamptz := clock_timestamp();
    place tid;
    attempts int;
    size int;
    wanted int;
    locked int;
    more text[];
    more_tries int[];
begin
    -- Arrivals that are as large as the claim are met at once.
    update postbox.inbox_batch b
        set token = lease, lease_until = _claim_batches.lease_until, leased_at = now, worker = _claim_batches.worker, attempts = b.attempts + 1
        where b.ctid = (
            select r.ctid from postbox.inbox_batch r
            where r.inbox = _claim_batches.inbox and r.tier = _claim_batches.tier and r.token is null and r.crashes < 2 and r.ready_at <= now
              and r.ready_at >= case when everywhere then '-infinity' else coalesce((
                  select f.ready_at from postbox.inbox_floor f
                  where f.inbox = _claim_batches.inbox and f.kind = 'batch' and f.tier = _claim_batches.tier
                  order by f.at desc limit 1), '-infinity') end
            order by r.ready_at
            limit 1
            for update skip locked)
        returning b.ctid, b.event_ids, b.attempts into place, ids, attempts;
    if not found then
        return;
    end if;
    size := cardinality(ids);
    if size > most then
        insert into postbox.inbox_batch (inbox, tier, ready_at, attempts, crashes, event_type, error, first_failed_at, last_failed_at, event_ids, lanes)
            select b.inbox, b.tier, b.ready_at, b.attempts - 1, b.crashes, b.event_type, b.error, b.first_failed_at, b.last_failed_at, b.event_ids[most + 1:],
                b.lanes[most + 1:]
            from postbox.inbox_batch b where b.ctid = place;
        ids := ids[:most];
        update postbox.inbox_batch b set event_ids = ids, lanes = b.lanes[:most] where b.ctid = place;
        size := most;
    end if;
    tries := array_fill(attempts, array[size]);
    while cardinality(ids) < most loop
        -- As many as are wanted if they are like the ones before.
        wanted := greatest((most - cardinality(ids)) / size, 1);
        with ready as materialized (
            select r.ctid as place, r.ready_at, cardinality(r.event_ids) as size
            from postbox.inbox_batch r
            where r.inbox = _claim_batches.inbox and r.tier = _claim_batches.tier and r.token is null and r.crashes < 2 and r.ready_at <= now
              and r.ready_at >= case when everywhere then '-infinity' else coalesce((
                  select f.ready_at from postbox.inbox_floor f
                  where f.inbox = _claim_batches.inbox and f.kind = 'batch' and f.tier = _claim_batches.tier
                  order by f.at desc limit 1), '-infinity') end
            order by r.ready_at
            limit wanted
            for update skip locked
        ), summed as (
            select r.place, sum(r.size) over (order by r.ready_at, r.place) as upto from ready r
        ), taken as (
            update postbox.inbox_batch b
                set token = lease, lease_until = _claim_batches.lease_until, leased_at = now, worker = _claim_batches.worker, attempts = b.attempts + 1
                from summed s
                where b.ctid = s.place and s.upto <= most - cardinality(ids)
                returning b.event_ids, b.attempts, s.upto
        )
        select array_agg(e.id order by t.upto, e.n), array_agg(t.attempts order by t.upto, e.n), (select count(*) from ready)
            into more, more_tries, locked
            from taken t cross join lateral unnest(t.event_ids) with ordinality as e(id, n);
        exit when more is null;
        ids := ids || more;
        tries := tries || more_tries;
        exit when locked < wanted;
        size := greatest(cardinality(more) / locked, 1);
    end loop;
end
$function$;
comment on function postbox._claim_batches(int, smallint, bigint, text, timestamptz, int, boolean) is 'Private: leases messages of one tier';

-- One message that leases ran out on, twice at least: alone, so that if its worker dies of it that shows.
create or replace function postbox._claim_suspect(
    inbox int, tiers smallint[], lease bigint, worker text, lease_until timestamptz, out ids text[], out tries int[]
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    now constant timestamptz := clock_timestamp();
    slot smallint;
begin
    foreach slot in array tiers loop
        update postbox.inbox_batch b
            set token = lease, lease_until = _claim_suspect.lease_until, leased_at = now, worker = _claim_suspect.worker, attempts = b.attempts + 1
            where b.ctid = (
                select s.ctid from postbox.inbox_batch s
                where s.inbox = _claim_suspect.inbox and s.tier = slot and s.token is null and s.crashes >= 2 and s.ready_at <= now
                order by s.ready_at limit 1
                for update skip locked)
            returning b.event_ids, array[b.attempts] into ids, tries;
        exit when found;
    end loop;
end
$function$;
comment on function postbox._claim_suspect(int, smallint[], bigint, text, timestamptz) is 'Private: leases a message that may have killed its workers';

create or replace function postbox._claim_tiers(
    inbox int, tiers smallint[], lease bigint, worker text, lease_until timestamptz, most int, everywhere boolean, out ids text[], out tries int[]
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    slot smallint;
    got record;
begin
    foreach slot in array tiers loop
        got := postbox._claim_batches(inbox, slot, lease, worker, lease_until, most - coalesce(cardinality(ids), 0), everywhere);
        ids := ids || got.ids;
        tries := tries || got.tries;
        exit when cardinality(ids) = most;
    end loop;
end
$function$;
comment on function postbox._claim_tiers(int, smallint[], bigint, text, timestamptz, int, boolean) is 'Private: leases messages, of one tier after another';

-- Leases messages and says which: a worker reads them once this is committed, as a claim whose answer nobody takes, because its worker
-- stands still, would keep its locks.
create or replace function postbox._claim(
    inbox text, worker text, batch_size int, visibility_seconds int, tier text, out ids text[], out tries int[], out lease bigint
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Plans are made when a queue is short and used when it is long: only those along an index will do.
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
as $function$
declare
    box constant postbox.inbox := postbox._use_inbox(inbox);
    lease_until timestamptz;
    tiers smallint[] := '{0}';
    matching bigint;
    tidying boolean;
    everywhere boolean;
    sorted int := 0;
    began timestamptz;
    got record;
begin
    if box.style <> 'claim' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" is of style "%s": nothing is handed out by inbox_claim', box.name, box.style),
            hint = 'Workers of this inbox lock rows of its table and set processed_at.';
    end if;
    if worker is null or worker = '' then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the worker that claims has no name',
            hint = 'Give any name that tells a person who it is, for instance the host and process id.';
    end if;
    if batch_size is null or batch_size not between 1 and 10000 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('batch_size is %s, must be 1 to 10000', coalesce(batch_size::text, 'NULL')),
            hint = 'How many messages to take at most; 50 suits short handlers.';
    end if;
    if visibility_seconds is null or visibility_seconds not between 1 and 43200 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('visibility_seconds is %s, must be 1 to 43200', coalesce(visibility_seconds::text, 'NULL')),
            hint = 'After so long without a word the messages are handed out again; inbox_extend gives more time.';
    end if;
    if box.tiered or tier is not null then
        select array_agg(t.tier order by t.tier) filter (where t.paused_at is null), count(*) into tiers, matching
            from postbox.inbox_tier t where t.inbox = box.id and (_claim.tier is null or t.name = _claim.tier);
        if matching = 0 then
            raise exception using errcode = 'undefined_object',
                message = format('inbox "%s" has no tier "%s"', box.name, tier),
                hint = 'postbox.enable_inbox_priority gives an inbox tiers.';
        end if;
    end if;
    if box.paused_at is not null or tiers is null then
        return;
    end if;
    lease := nextval('postbox.inbox_token');
    -- Where everybody is busy, one in eight also does what those do that find nothing.
    tidying := lease % 8 = 0;
    lease_until := clock_timestamp() + visibility_seconds * interval '1 second';

    if box.ordered_at is not null then
        perform postbox._finish_lanes(box, greatest(batch_size, 100));
        sorted := postbox._sort_arrivals(box, batch_size, tiers[cardinality(tiers)]);
    end if;
    if tidying then
        perform postbox._expire_leases(box, 100);
        got := postbox._claim_suspect(box.id, tiers, lease, worker, lease_until);
        ids := got.ids;
        tries := got.tries;
    end if;
    if ids is null then
        if box.tiered then
            got := postbox._claim_tiers(box.id, tiers, lease, worker, lease_until, batch_size, false);
        else
            got := postbox._claim_batches(box.id, 0::smallint, lease, worker, lease_until, batch_size, false);
        end if;
        ids := got.ids;
        tries := got.tries;
        -- Most of what was sorted waits for others: more of it, before everybody goes away with little.
        if sorted > 0 and coalesce(cardinality(ids), 0) < batch_size and postbox._sort_arrivals(box, 500, tiers[cardinality(tiers)]) > 0 then
            got := postbox._claim_tiers(box.id, tiers, lease, worker, lease_until, batch_size - coalesce(cardinality(ids), 0), false);
            ids := ids || got.ids;
            tries := tries || got.tries;
        end if;
    end if;
    if tidying then
        -- With order, also those of what is to be sorted, and of lanes that are to go on.
        perform postbox._raise_floors(box.id, tiers || case when box.ordered_at is not null then array(select (-1 - t)::smallint from unnest(tiers) as t) || (-32768)::smallint end);
    elsif ids is null then
        -- Who finds nothing has time for what never came back, what is not handed out in company, and what came late.
        perform postbox._expire_leases(box, 100);
        got := postbox._claim_suspect(box.id, tiers, lease, worker, lease_until);
        ids := got.ids;
        tries := got.tries;
    end if;
    if ids is null then
        everywhere := postbox._may_look(box.id);
        began := clock_timestamp();
        if everywhere and box.ordered_at is not null then
            perform postbox._finish_lanes(box, greatest(batch_size, 100), true);
            perform postbox._sort_arrivals(box, batch_size, tiers[cardinality(tiers)], true);
        end if;
        got := postbox._claim_tiers(box.id, tiers, lease, worker, lease_until, batch_size, everywhere);
        ids := got.ids;
        tries := got.tries;
        if everywhere and ids is null then
            perform postbox._note_look(box.id, clock_timestamp() - began);
        end if;
    end if;
    if cardinality(ids) = 1 then
        update postbox.inbox_batch b set alone = true where b.inbox = box.id and b.token = lease;
    end if;
end
$function$;
comment on function postbox._claim(text, text, int, int, text) is 'Private: leases messages; no ids if there are none';

create or replace function postbox._claimed(inbox text, ids text[], tries int[], lease bigint)
    returns table (event_id text, token bigint, event_type text, aggregate_id text, sequence_num bigint, payload jsonb, headers jsonb, attempts int)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
as $function$
begin
    return query execute (postbox._inbox(inbox)).claimed_sql using ids, tries, lease;
end
$function$;
comment on function postbox._claimed(text, text[], int[], bigint) is 'Private: messages that were leased';

create or replace function postbox.inbox_claim(
    inbox text, worker text, batch_size int default 50, visibility_seconds int default 30, tier text default null
) returns table (event_id text, token bigint, event_type text, aggregate_id text, sequence_num bigint, payload jsonb, headers jsonb, attempts int)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    got constant record := postbox._claim(inbox, worker, batch_size, visibility_seconds, tier);
begin
    if got.ids is not null then
        return query select * from postbox._claimed(inbox, got.ids, got.tries, got.lease);
    end if;
end
$function$;
comment on function postbox.inbox_claim(text, text, int, int, text) is
    'Hands out messages that nobody else has: to be completed, failed, extended or released with their token until visibility_seconds are over. Commit it before working on them';
