-- Messages that were not processed: failed, given back, given more time, or whose worker never came back.

-- The message will not be handed out again. What waits behind it in its lane is the policy's business.
create or replace function postbox._bury(
    box postbox.inbox, event_id text, event_type text, tier smallint, why text, error text, attempts int,
    first_failed_at timestamptz, last_failed_at timestamptz, aggregate_id text default null, sequence_num bigint default null
) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    insert into postbox.inbox_dead as d (inbox, event_id, event_type, aggregate_id, sequence_num, tier, why, error, attempts, first_failed_at, last_failed_at)
        values (box.id, _bury.event_id, _bury.event_type, _bury.aggregate_id, _bury.sequence_num, _bury.tier, _bury.why, _bury.error, _bury.attempts,
            coalesce(_bury.first_failed_at, clock_timestamp()), coalesce(_bury.last_failed_at, clock_timestamp()))
        on conflict on constraint inbox_dead_pkey do update set
            why = excluded.why, error = excluded.error, attempts = excluded.attempts, last_failed_at = excluded.last_failed_at, died_at = excluded.died_at, told_at = null;
    insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
        values (box.id, clock_timestamp(), 'dead', _bury.event_type, 1, array[_bury.event_id]);
end
$function$;
comment on function postbox._bury(postbox.inbox, text, text, smallint, text, text, int, timestamptz, timestamptz, text, bigint) is 'Private: makes a message a dead letter';

create or replace function postbox.inbox_fail(inbox text, event_id text, token bigint, error text, retry_after interval default null) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
as $function$
declare
    box constant postbox.inbox := postbox._use_inbox(inbox);
    failed postbox.inbox_batch;
begin
    perform postbox._check_tokens(box, array[event_id], array[token]);
    if retry_after < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('retry_after is %s, must be 0 or more', retry_after),
            hint = 'Leave it out for the inbox''s own backoff.';
    end if;
    select * into failed from postbox._take_from_batches(box, array[event_id], array[token]);
    if not found then
        perform postbox._stale_token(box, event_id, token);
    end if;
    if failed.attempts > box.max_retries then
        if failed.lanes is null then
            perform postbox._bury(box, event_id, failed.event_type, failed.tier, 'failed', error, failed.attempts, failed.first_failed_at, clock_timestamp());
        else
            perform postbox._bury_head(box, failed.lanes[1], event_id, failed.event_type, failed.tier, 'failed', error, failed.attempts, failed.first_failed_at);
        end if;
        return 'dead';
    end if;
    insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
        values (box.id, clock_timestamp(), 'failed', failed.event_type, 1, array[inbox_fail.event_id]);
    insert into postbox.inbox_batch (inbox, tier, ready_at, attempts, event_type, error, first_failed_at, last_failed_at, event_ids, lanes)
        values (box.id, failed.tier,
            clock_timestamp() + coalesce(retry_after, postbox._inbox_backoff(box.backoff_initial, box.backoff_max, failed.attempts)),
            failed.attempts, failed.event_type, inbox_fail.error, coalesce(failed.first_failed_at, clock_timestamp()), clock_timestamp(), failed.event_ids, failed.lanes);
    return 'retry';
end
$function$;
comment on function postbox.inbox_fail(text, text, bigint, text, interval) is
    'The message was not processed: it is tried again later (retry), or was tried often enough (dead). PB002 if the token is stale';

create or replace function postbox.inbox_release(inbox text, event_ids text[], tokens bigint[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
as $function$
declare
    box constant postbox.inbox := postbox._use_inbox(inbox);
    released text[];
begin
    perform postbox._check_tokens(box, event_ids, tokens);
    -- Back to where they were, before what came later; this attempt does not count.
    with taken as (
        select t.* from postbox._take_from_batches(box, event_ids, tokens) t
    ), put as (
        insert into postbox.inbox_batch (inbox, tier, ready_at, attempts, crashes, event_type, error, first_failed_at, last_failed_at, event_ids, lanes)
            select t.inbox, t.tier, t.ready_at, t.attempts - 1, t.crashes, t.event_type, t.error, t.first_failed_at, t.last_failed_at, t.event_ids, t.lanes
            from taken t
            returning inbox_batch.tier, inbox_batch.ready_at, inbox_batch.event_ids
    ), lowered as materialized (
        select p.event_ids, postbox._lower_floor(box.id, 'batch', p.tier, p.ready_at) from put p
    )
    select array_agg(e.id) into released from lowered l cross join lateral unnest(l.event_ids) as e(id);
    perform postbox._require_held(box, event_ids, tokens, coalesce(released, '{}'));
end
$function$;
comment on function postbox.inbox_release(text, text[], bigint[]) is
    'Gives messages back that were not tried: they are handed out again at once, and the attempt does not count. PB002 if a token is stale';

create or replace function postbox.inbox_extend(inbox text, event_ids text[], tokens bigint[], visibility_seconds int default 30) returns timestamptz
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
as $function$
declare
    box constant postbox.inbox := postbox._use_inbox(inbox);
    until constant timestamptz := clock_timestamp() + visibility_seconds * interval '1 second';
    held text[];
begin
    perform postbox._check_tokens(box, event_ids, tokens);
    if visibility_seconds is null or visibility_seconds not between 1 and 43200 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('visibility_seconds is %s, must be 1 to 43200', coalesce(visibility_seconds::text, 'NULL')),
            hint = 'Counted from now on; extend again in time for more.';
    end if;
    with extended as (
        update postbox.inbox_batch b set lease_until = until
            from (select u.token, array_agg(u.id) as ids from unnest(event_ids, tokens) as u(id, token) group by u.token) w
            where b.inbox = box.id and b.token = w.token and b.event_ids && w.ids
            returning b.event_ids, b.token
    )
    select array_agg(u.id) into held
        from unnest(event_ids, tokens) as u(id, token) where exists (select from extended e where e.token = u.token and u.id = any (e.event_ids));
    perform postbox._require_held(box, event_ids, tokens, coalesce(held, '{}'));
    return until;
end
$function$;
comment on function postbox.inbox_extend(text, text[], bigint[], int) is
    'Gives the worker more time, counted from now, for these messages and those it was handed in the same row of the queue; returns the end. PB002 if a token is stale';

-- Which of the messages of a lease that ran out are in the table no more, as their owner has deleted them: nobody can do anything with those. Whoever
-- may not see every row cannot tell. In its lane such a message is missing; where somebody holds the lane just now, it goes the way of the others.
create or replace function postbox._let_go(box postbox.inbox, lost postbox.inbox_batch) returns text[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    gone text[];
begin
    if not has_table_privilege(box.relation, 'select') or row_security_active(box.relation) then
        return '{}';
    end if;
    execute format('select coalesce(array_agg(u.id), ''{}'') from unnest($1) as u(id) where not exists (select from %s r where r.%I = u.id::%s)',
        box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) into gone using lost.event_ids;
    if gone = '{}' or lost.lanes is null then
        return gone;
    end if;
    with free as materialized (
        select l.ctid as place, l.head from postbox.inbox_lane l
        where l.inbox = box.id and l.key = any (lost.lanes) and l.head = any (gone)
        for update skip locked
    ), missing as (
        update postbox.inbox_lane l
            set arrived = l.arrived - int8multirange(int8range(l.next, l.next, '[]')), head = null
            from free f where l.ctid = f.place
            returning f.head
    )
    select coalesce(array_agg(m.head), '{}') into gone from missing m;
    return gone;
end
$function$;
comment on function postbox._let_go(postbox.inbox, postbox.inbox_batch) is 'Private: what of a lease that ran out was deleted by its owner';

-- Leases that have run out. The result is how many there were. Whoever extends or completes one at this moment holds its row, which is skipped.
create or replace function postbox._expire_leases(box postbox.inbox, most int, everywhere boolean default false) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    lost postbox.inbox_batch;
    gone text[];
    place tid;
    expired int := 0;
    reason text;
    floor bigint;
    newest bigint;
    moved_at timestamptz;
begin
    if not everywhere then
        select f.token, f.newest, f.at into floor, newest, moved_at
            from postbox.inbox_floor f
            where f.inbox = box.id and f.kind = 'lease' and f.tier = 0
            order by f.at desc limit 1;
    end if;
    floor := coalesce(floor, 0);
    for place in
        select b.ctid from postbox.inbox_batch b
        where b.inbox = box.id and b.token >= floor and b.lease_until < clock_timestamp()
        limit most
        for update skip locked
    loop
        expired := expired + 1;
        delete from postbox.inbox_batch b where b.ctid = place returning b.* into lost;
        gone := postbox._let_go(box, lost);
        continue when lost.event_ids <@ gone;
        reason := format('worker %s was handed it at %s and never came back', lost.worker, lost.leased_at);
        if lost.alone and lost.attempts > box.max_retries then
            if lost.lanes is null then
                perform postbox._bury(box, lost.event_ids[1], lost.event_type, lost.tier, 'crashed', reason, lost.attempts, lost.first_failed_at, clock_timestamp());
            else
                perform postbox._bury_head(box, lost.lanes[1], lost.event_ids[1], lost.event_type, lost.tier, 'crashed', reason, lost.attempts, lost.first_failed_at);
            end if;
            continue;
        end if;
        -- One by one from now on. Who has had all attempts in company gets one alone.
        insert into postbox.inbox_batch (inbox, tier, ready_at, attempts, crashes, event_type, error, first_failed_at, last_failed_at, event_ids, lanes)
            select lost.inbox, lost.tier, clock_timestamp(), lost.attempts, case when lost.attempts > box.max_retries then 2 else lost.crashes + 1 end,
                lost.event_type, reason, coalesce(lost.first_failed_at, clock_timestamp()), clock_timestamp(), array[e.id],
                case when lost.lanes is not null then array[e.lane] end
            from unnest(lost.event_ids, lost.lanes) as e(id, lane) where e.id <> all (gone);
        insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
            select box.id, clock_timestamp(), 'failed', lost.event_type, count(*), array_agg(e.id) from unnest(lost.event_ids) as e(id) where e.id <> all (gone);
    end loop;
    if not everywhere and (moved_at is null or moved_at < clock_timestamp() - interval '0.5 seconds') then
        insert into postbox.inbox_floor (inbox, kind, tier, at, token, newest)
            select box.id, 'lease', 0, clock_timestamp(),
                greatest(floor, least(
                    -- The first time nothing is known of claims that are not committed yet.
                    coalesce(newest, 0),
                    (select b.token from postbox.inbox_batch b where b.inbox = box.id and b.token >= floor order by b.token limit 1))),
                pg_sequence_last_value('postbox.inbox_token');
    end if;
    return expired;
end
$function$;
comment on function postbox._expire_leases(postbox.inbox, int, boolean) is 'Private: takes messages back whose workers did not come back in time';
