-- Handing out messages. A claim locks what it takes with SKIP LOCKED, so that workers never wait for one another, and marks it with a
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
begin
    perform pg_advisory_xact_lock_shared(postbox._inbox_lock(inbox));
    return postbox._inbox(inbox);
end
$function$;
comment on function postbox._use_inbox(text) is 'Private: an inbox by its name, which keeps its shape until the commit';

-- The wait before attempt n + 1: random up to initial * 2^(n-1), at most the maximum.
create or replace function postbox._inbox_backoff(initial interval, most interval, attempts int) returns interval
    language sql volatile strict
    return random() * least(most, initial * power(2, least(greatest(attempts, 1) - 1, 30)));
comment on function postbox._inbox_backoff(interval, interval, int) is 'Private: exponential, capped, with full jitter';

-- Up to `most` messages of the batches that are ready in a tier, the earliest first; what is left of the last batch stays. The result is the number of messages.
create or replace function postbox._claim_batches(inbox int, tier smallint, lease bigint, worker text, lease_until timestamptz, most int) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    places tid[];
    sizes int[];
    whole int;
    taken int := 0;
    batches int := 1;
    parted postbox.inbox_batch;
    now constant timestamptz := clock_timestamp();
begin
    while taken < most loop
        -- How many batches make so many messages shows only when they are locked: begin with one, go on with what its size suggests.
        select array_agg(p.place order by p.ready_at), array_agg(p.size order by p.ready_at) into places, sizes
        from (
            select b.ctid as place, cardinality(b.event_ids) as size, b.ready_at
            from postbox.inbox_batch b
            where b.inbox = _claim_batches.inbox and b.tier = _claim_batches.tier and b.token is null and b.crashes < 2
              and b.ready_at <= now
            order by b.ready_at
            limit batches
            for update skip locked
        ) p;
        exit when places is null;
        -- Batches are taken whole, so that they do not crumble; only one that is larger than the claim is parted.
        whole := 0;
        for n in 1 .. cardinality(sizes) loop
            exit when taken + sizes[n] > most;
            taken := taken + sizes[n];
            whole := n;
        end loop;
        if whole > 0 then
            update postbox.inbox_batch b
                set token = lease, lease_until = _claim_batches.lease_until, leased_at = now, worker = _claim_batches.worker, attempts = b.attempts + 1
                where b.ctid = any (places[1:whole]);
        elsif taken = 0 then
            select b.* into parted from postbox.inbox_batch b where b.ctid = places[1];
            update postbox.inbox_batch b set event_ids = parted.event_ids[most + 1:] where b.ctid = places[1];
            insert into postbox.inbox_batch (inbox, tier, ready_at, token, lease_until, leased_at, worker, attempts, crashes, event_type, error,
                    first_failed_at, last_failed_at, event_ids)
                values (parted.inbox, parted.tier, parted.ready_at, lease, _claim_batches.lease_until, now, _claim_batches.worker,
                    parted.attempts + 1, parted.crashes, parted.event_type, parted.error, parted.first_failed_at, parted.last_failed_at,
                    parted.event_ids[1:most]);
            return most;
        end if;
        exit when whole < cardinality(sizes);
        exit when cardinality(sizes) < batches;
        batches := least(batches * 8, greatest(1, (most - taken) / greatest(sizes[cardinality(sizes)], 1)));
    end loop;
    return taken;
end
$function$;
comment on function postbox._claim_batches(int, smallint, bigint, text, timestamptz, int) is 'Private: leases messages that are in no lane';

-- One message that leases ran out on, twice at least: alone, so that if its worker dies of it that shows.
create or replace function postbox._claim_suspect(inbox int, tier smallint, lease bigint, worker text, lease_until timestamptz) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    now constant timestamptz := clock_timestamp();
begin
    update postbox.inbox_batch b
        set token = lease, lease_until = _claim_suspect.lease_until, leased_at = clock_timestamp(), worker = _claim_suspect.worker, attempts = b.attempts + 1
        where b.ctid = (
            select s.ctid from postbox.inbox_batch s
            where s.inbox = _claim_suspect.inbox and s.tier = _claim_suspect.tier and s.token is null and s.crashes >= 2 and s.ready_at <= now
            order by s.ready_at limit 1
            for update skip locked);
    if found then
        return true;
    end if;
    update postbox.inbox_lane l
        set token = lease, lease_until = _claim_suspect.lease_until, leased_at = clock_timestamp(), worker = _claim_suspect.worker, attempts = l.attempts + 1
        where l.ctid = (
            select s.ctid from postbox.inbox_lane s
            where s.inbox = _claim_suspect.inbox and s.tier = _claim_suspect.tier and s.token is null and s.ready_at is not null and s.crashes >= 2
              and s.ready_at <= now
            order by s.ready_at limit 1
            for update skip locked);
    return found;
end
$function$;
comment on function postbox._claim_suspect(int, smallint, bigint, text, timestamptz) is 'Private: leases a message that may have killed its workers';

create or replace function postbox._claim_lanes(inbox int, tier smallint, lease bigint, worker text, lease_until timestamptz, most int) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    taken int;
    now constant timestamptz := clock_timestamp();
begin
    update postbox.inbox_lane l
        set token = lease, lease_until = _claim_lanes.lease_until, leased_at = now, worker = _claim_lanes.worker, attempts = l.attempts + 1
        where l.ctid = any (array(
            select r.ctid from postbox.inbox_lane r
            where r.inbox = _claim_lanes.inbox and r.tier = _claim_lanes.tier and r.token is null and r.ready_at is not null and r.crashes < 2
              and r.ready_at <= now
            order by r.ready_at limit most
            for update skip locked));
    get diagnostics taken = row_count;
    return taken;
end
$function$;
comment on function postbox._claim_lanes(int, smallint, bigint, text, timestamptz, int) is 'Private: leases the next messages of aggregates';

create or replace function postbox._claim_tier(box postbox.inbox, tier smallint, lease bigint, worker text, lease_until timestamptz, most int) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    taken int := 0;
begin
    if box.ordered_at is not null then
        taken := postbox._claim_lanes(box.id, tier, lease, worker, lease_until, most);
    end if;
    if taken < most then
        taken := taken + postbox._claim_batches(box.id, tier, lease, worker, lease_until, most - taken);
    end if;
    return taken;
end
$function$;
comment on function postbox._claim_tier(postbox.inbox, smallint, bigint, text, timestamptz, int) is 'Private: leases messages of a tier';

-- The messages of a lease, as the table has them.
create or replace function postbox._leased_messages(box postbox.inbox, lease bigint)
    returns table (event_id text, token bigint, event_type text, aggregate_id text, sequence_num bigint, payload jsonb, headers jsonb, attempts int)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return query execute box.leased_sql using box.id, lease;
end
$function$;
comment on function postbox._leased_messages(postbox.inbox, bigint) is 'Private: what a claim returns';

create or replace function postbox.inbox_claim(
    inbox text, worker text, batch_size int default 50, visibility_seconds int default 30, tier text default null
) returns table (event_id text, token bigint, event_type text, aggregate_id text, sequence_num bigint, payload jsonb, headers jsonb, attempts int)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Plans are made when a queue is short and used when it is long: only those along an index will do.
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
as $function$
declare
    box constant postbox.inbox := postbox._use_inbox(inbox);
    lease bigint;
    lease_until timestamptz;
    tiers smallint[];
    matching bigint;
    taken int := 0;
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
    select array_agg(t.tier order by t.tier) filter (where t.paused_at is null), count(*) into tiers, matching
        from postbox.inbox_tier t where t.inbox = box.id and (inbox_claim.tier is null or t.name = inbox_claim.tier);
    if matching = 0 then
        if tier is not null then
            raise exception using errcode = 'undefined_object',
                message = format('inbox "%s" has no tier "%s"', box.name, tier),
                hint = 'postbox.enable_inbox_priority gives an inbox tiers.';
        end if;
        tiers := '{0}';
    end if;
    if box.paused_at is not null then
        return;
    end if;
    lease := nextval('postbox.inbox_token');
    lease_until := clock_timestamp() + visibility_seconds * interval '1 second';

    if box.ordered_at is not null then
        perform postbox._sort_arrivals(box, batch_size, tiers[cardinality(tiers)]);
    end if;
    for t in 1 .. coalesce(cardinality(tiers), 0) loop
        if taken = 0 and postbox._claim_suspect(box.id, tiers[t], lease, worker, lease_until) then
            taken := 1;
            exit;
        end if;
        taken := taken + postbox._claim_tier(box, tiers[t], lease, worker, lease_until, batch_size - taken);
        exit when taken = batch_size;
    end loop;
    -- Who finds nothing has time to look for those that never came back; where everybody is busy, one in twenty looks.
    if (taken = 0 or random() < 0.05) and postbox._expire_leases(box, 100) > 0 and taken = 0 then
        for t in 1 .. coalesce(cardinality(tiers), 0) loop
            if postbox._claim_suspect(box.id, tiers[t], lease, worker, lease_until) then
                taken := 1;
                exit;
            end if;
            taken := taken + postbox._claim_tier(box, tiers[t], lease, worker, lease_until, batch_size - taken);
            exit when taken = batch_size;
        end loop;
    end if;
    if taken = 1 then
        update postbox.inbox_batch b set alone = true where b.inbox = box.id and b.token = lease;
        if not found then
            update postbox.inbox_lane l set alone = true where l.inbox = box.id and l.token = lease;
        end if;
    end if;
    if taken > 0 then
        return query select * from postbox._leased_messages(box, lease);
    end if;
end
$function$;
comment on function postbox.inbox_claim(text, text, int, int, text) is
    'Hands out messages that nobody else has: to be completed, failed, extended or released with their token until visibility_seconds are over. Commit it before working on them';
