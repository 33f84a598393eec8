-- What a worker says of the messages that it was handed. Each verb needs the token; one that holds no more raises PB002, so that what
-- the worker did in the same transaction is undone. A lease that has run out holds until the message is handed out again.

create or replace function postbox._stale_token(box postbox.inbox, event_id text, token bigint) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    raise exception using errcode = 'PB002',
        message = format('token %s of message %s of inbox "%s" is stale', coalesce(token::text, 'NULL'), coalesce('"' || event_id || '"', 'NULL'), box.name),
        detail = 'The message was completed, released or failed already, or its time was over and it was handed out again.',
        hint = 'Roll back what was done for it. Give handlers more time with visibility_seconds, or extend the lease in time.';
end
$function$;
comment on function postbox._stale_token(postbox.inbox, text, bigint) is 'Private: raises PB002';

create or replace function postbox._require_held(box postbox.inbox, event_ids text[], tokens bigint[], held text[]) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    missing record;
begin
    for missing in select u.id, u.token from unnest(event_ids, tokens) as u(id, token) where u.id <> all (held) limit 1 loop
        perform postbox._stale_token(box, missing.id, missing.token);
    end loop;
end
$function$;
comment on function postbox._require_held(postbox.inbox, text[], bigint[], text[]) is 'Private: raises PB002 unless the tokens held all of these messages';

create or replace function postbox._check_tokens(box postbox.inbox, event_ids text[], tokens bigint[]) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if event_ids is null or tokens is null or cardinality(event_ids) <> cardinality(tokens) then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s messages of inbox "%s" are given with %s tokens', coalesce(cardinality(event_ids)::text, 'NULL'), box.name,
                coalesce(cardinality(tokens)::text, 'NULL')),
            hint = 'Give the token that inbox_claim returned with each message, in the same order.';
    end if;
    if array_position(event_ids, null) is not null or array_position(tokens, null) is not null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('a message of inbox "%s", or its token, is NULL', box.name),
            hint = 'Give event_id and token as inbox_claim returned them.';
    end if;
    -- Nobody has a lease in an inbox that hands out nothing.
    if box.style <> 'claim' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" is of style "%s": its messages have no tokens', box.name, box.style),
            hint = 'Workers of this inbox lock rows of its table and set processed_at.';
    end if;
end
$function$;
comment on function postbox._check_tokens(postbox.inbox, text[], bigint[]) is 'Private: refuses what cannot be messages with their tokens';

-- Takes messages out of their batches: rows that remain as they were when they were claimed, one for each type and time of the claim. Locks the
-- batches. What is to become of lanes is the caller's business.
create or replace function postbox._take_from_batches(box postbox.inbox, event_ids text[], tokens bigint[])
    returns setof postbox.inbox_batch
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    lease bigint;
    wanted text[];
    held postbox.inbox_batch;
    place tid;
    hit record;
begin
    for lease in select distinct t from unnest(tokens) as t order by t loop
        wanted := array(select u.id from unnest(event_ids, tokens) as u(id, token) where u.token = lease);
        -- Most of the time these are whole batches.
        for held in
            delete from postbox.inbox_batch b where b.inbox = box.id and b.token = lease and b.event_ids <@ wanted returning b.*
        loop
            wanted := array(select w from unnest(wanted) as w where w <> all (held.event_ids));
            return next held;
        end loop;
        while wanted <> '{}' loop
            -- Both rows are locked and checked again: a lease that ran out may just have been taken away.
            select b.ctid into place from postbox.inbox_batch b
                where b.inbox = box.id and b.token = lease and b.event_ids && wanted
                limit 1
                for update;
            exit when not found;
            select b.* into held from postbox.inbox_batch b where b.ctid = place;
            select array_agg(u.id order by u.n) as event_ids, case when held.lanes is not null then array_agg(u.lane order by u.n) end as lanes into hit
                from unnest(held.event_ids, held.lanes) with ordinality as u(id, lane, n) where u.id = any (wanted);
            if cardinality(hit.event_ids) = cardinality(held.event_ids) then
                delete from postbox.inbox_batch b where b.ctid = place;
            else
                update postbox.inbox_batch b
                    set (event_ids, lanes) = (
                        select array_agg(u.id order by u.n), case when held.lanes is not null then array_agg(u.lane order by u.n) end
                        from unnest(held.event_ids, held.lanes) with ordinality as u(id, lane, n) where u.id <> all (wanted))
                    where b.ctid = place;
            end if;
            wanted := array(select w from unnest(wanted) as w where w <> all (hit.event_ids));
            held.event_ids := hit.event_ids;
            held.lanes := hit.lanes;
            return next held;
        end loop;
    end loop;
end
$function$;
comment on function postbox._take_from_batches(postbox.inbox, text[], bigint[]) is 'Private: takes messages out of the batches that these tokens hold';

create or replace function postbox.inbox_complete(inbox text, event_ids text[], tokens bigint[]) returns void
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
    taken record;
begin
    -- Mostly it is what was claimed, as it was claimed.
    if cardinality(event_ids) = cardinality(tokens) and tokens = array_fill(tokens[1], array[coalesce(cardinality(tokens), 0)]) then
        delete from postbox.inbox_batch b
            where b.inbox = box.id and b.token = tokens[1] and b.event_ids = inbox_complete.event_ids
            returning b.event_type, b.leased_at, b.lanes into taken;
        if found then
            insert into postbox.inbox_log (inbox, at, what, event_type, messages, seconds, event_ids)
                values (box.id, clock_timestamp(), 'processed', taken.event_type, cardinality(event_ids),
                    cardinality(event_ids) * extract(epoch from clock_timestamp() - taken.leased_at), event_ids);
            if taken.lanes is not null then
                perform postbox._advance_lanes(box, taken.lanes);
            end if;
            return;
        end if;
    end if;
    perform postbox._check_tokens(box, event_ids, tokens);
    with taken as (
        select t.* from postbox._take_from_batches(box, event_ids, tokens) t
    ), logged as (
        insert into postbox.inbox_log (inbox, at, what, event_type, messages, seconds, event_ids)
            select box.id, clock_timestamp(), 'processed', t.event_type, count(*),
                sum(extract(epoch from clock_timestamp() - t.leased_at)), array_agg(e.id)
            from taken t
            cross join lateral unnest(t.event_ids) as e(id)
            group by t.event_type
    )
    select array_agg(e.id) as event_ids, array_agg(e.lane) filter (where e.lane is not null) as lanes into taken
        from taken t cross join lateral unnest(t.event_ids, t.lanes) as e(id, lane);
    if coalesce(cardinality(taken.event_ids), 0) < cardinality(event_ids) then
        perform postbox._require_held(box, event_ids, tokens, coalesce(taken.event_ids, '{}'));
    end if;
    if taken.lanes is not null then
        perform postbox._advance_lanes(box, taken.lanes);
    end if;
end
$function$;
comment on function postbox.inbox_complete(text, text[], bigint[]) is
    'The messages are processed. As the last statement of the handler''s own transaction: its effects count exactly once. PB002 if a token is stale';
