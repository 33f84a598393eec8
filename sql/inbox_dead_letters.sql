-- What people do with messages that were given up, or processed: hand them out again, or let them go. Whoever does that holds the inbox's
-- keeping lock, as retention does from before it looks until it commits: what is handed out again is in the table, and once.

create or replace function postbox._keeping_lock(inbox int) returns bigint
    language sql immutable strict parallel safe
    return hashtextextended('postbox.inbox keeping ' || inbox, 0);
comment on function postbox._keeping_lock(int) is 'Private: the key of the advisory lock of those who hand messages out again or remove them';

-- Every statement has to see what was committed before the locks were had. First that of the shape, as maintenance has it: who is to wait for somebody
-- who replays has none yet that anybody waits for.
create or replace function postbox._inbox_to_keep(inbox text) returns postbox.inbox
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._use_inbox(inbox);
begin
    perform postbox._require_read_committed(format('messages of inbox "%s" are to be replayed or discarded', inbox));
    perform pg_advisory_xact_lock(postbox._keeping_lock(box.id));
    return box;
end
$function$;
comment on function postbox._inbox_to_keep(text) is 'Private: an inbox of which nobody else replays, discards or removes messages until the commit';

-- What the column prints, which is what everything but the table knows a message by: 7 for '007' of a bigint, a uuid in lower case.
create or replace function postbox._printed_ids(box postbox.inbox, ids text[]) returns text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    printed text[];
begin
    execute format('select array_agg(u.id::%s::text order by u.n) from unnest($1) with ordinality as u(id, n)', postbox._inbox_type(box, 'event_id'))
        into printed using ids;
    return coalesce(printed, ids);
end
$function$;
comment on function postbox._printed_ids(postbox.inbox, text[]) is 'Private: ids as the inbox knows them, however they are written';

create or replace function postbox._check_rate(rate float8) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    -- About one a day. More slowly, the last of many would be ready at a time that timestamptz does not have.
    if rate < 0.00001 or rate = 'nan' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('rate is %s, must be 0.00001 or more', rate),
            hint = 'Messages a second that become ready; NULL: all at once.';
    end if;
end
$function$;
comment on function postbox._check_rate(float8) is 'Private: refuses a rate that nothing would come of';

-- Hands dead letters out again, in this order. The head of a lane that waits for it is tried where it is, and its followers come after it; others
-- are handed out on their own.
create or replace function postbox._replay_dead(box postbox.inbox, ids text[], rate float8) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    now constant timestamptz := clock_timestamp();
begin
    if box.style = 'update' then
        perform postbox._reset_rows(box, ids);
        return;
    end if;
    with gone as (
        delete from postbox.inbox_dead d where d.inbox = box.id and d.event_id = any (ids) returning d.*
    ),
    due as (
        select g.*, now + floor((row_number() over (order by u.n) - 1) / rate) * interval '1 second' as ready_at, u.n
        from gone g join unnest(ids) with ordinality as u(id, n) on u.id = g.event_id
    ),
    heads as (
        update postbox.inbox_lane l
            set blocked = null
            from due d
            where l.inbox = box.id and l.key = d.aggregate_id and l.head = d.event_id and l.blocked is not null
            returning l.head, l.key
    ),
    put as (
        insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids, lanes)
            select box.id, r.tier, coalesce(r.ready_at, now), r.event_type, array_agg(r.event_id order by r.n),
                case when r.is_head then array_agg(r.lane order by r.n) end
            from (
                select d.*, h.key as lane, h.key is not null as is_head,
                    (row_number() over (partition by d.tier, d.ready_at, d.event_type, h.key is not null order by d.n) - 1) / 50 as batch
                from due d left join heads h on h.head = d.event_id
            ) r
            group by r.tier, r.ready_at, r.event_type, r.is_head, r.batch
            order by min(r.n)
    )
    insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
        select box.id, now, 'replayed', d.event_type, count(*), array_agg(d.event_id) from due d group by d.event_type;
end
$function$;
comment on function postbox._replay_dead(postbox.inbox, text[], float8) is 'Private: hands dead letters out again';

-- Retention is told that what it finds of these messages in the log of before is void.
create or replace function postbox._note_void(box postbox.inbox, ids text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    entry bigint;
begin
    insert into postbox.inbox_log (inbox, at, what, messages, event_ids) values (box.id, clock_timestamp(), 'replayed', cardinality(ids), ids)
        returning inbox_log.id into entry;
    insert into postbox.inbox_replay as r (inbox, event_id, log_id) select box.id, u.id, entry from unnest(ids) as u(id)
        on conflict on constraint inbox_replay_pkey do update set log_id = excluded.log_id;
end
$function$;
comment on function postbox._note_void(postbox.inbox, text[]) is 'Private: notes that messages that were done with are handed out again';

-- Style update: what is processed, or has failed too often, is so by the columns of the table.
create or replace function postbox._reset_rows(box postbox.inbox, ids text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    execute format('update %s r set %s where r.%I = any ($1::%s[])', box.relation,
        concat_ws(', ', format('%I = null', box.columns ->> 'processed_at'),
            case when box.columns ? 'retry_count' then format('%I = 0', box.columns ->> 'retry_count') end,
            case when box.columns ? 'error' then format('%I = null', box.columns ->> 'error') end),
        box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id'))
        using ids;
    perform postbox._note_void(box, ids);
end
$function$;
comment on function postbox._reset_rows(postbox.inbox, text[]) is 'Private: makes messages of an inbox of style update wait again';

-- Lets dead letters go; what waits behind one goes on. Their rows stay until retention comes to this entry of the log.
create or replace function postbox._discard_dead(box postbox.inbox, ids text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    keys text[];
begin
    if box.ordered_at is not null then
        keys := array(
            select l.key from postbox.inbox_lane l
            join postbox.inbox_dead d on d.inbox = l.inbox and d.event_id = l.head
            where l.inbox = box.id and l.blocked is not null and d.event_id = any (ids)
            order by l.key
            for update of l);
    end if;
    with gone as (
        delete from postbox.inbox_dead d where d.inbox = box.id and d.event_id = any (ids) returning d.event_id, d.event_type
    )
    insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
        select box.id, clock_timestamp(), 'discarded', g.event_type, count(*), array_agg(g.event_id) from gone g group by g.event_type;
    if keys <> '{}' then
        perform postbox._advance_lanes(box, keys);
    end if;
end
$function$;
comment on function postbox._discard_dead(postbox.inbox, text[]) is 'Private: removes dead letters for good';

create or replace function postbox.replay_inbox_messages(inbox text, event_ids text[]) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._inbox_to_keep(inbox);
    ids constant text[] := array(
        select u.id from unnest(postbox._printed_ids(box, event_ids)) with ordinality as u(id, n) group by u.id order by min(u.n));
    dead text[];
    done text[];
    wrong text;
    is_parked boolean;
begin
    if event_ids is null or array_position(event_ids, null) is not null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('the messages of inbox "%s" to replay are NULL, or one of them is', box.name),
            hint = 'Give their ids, for instance ''{a,b}''.';
    end if;
    execute format('select u.id from unnest($1) as u(id) where not exists (select from %s r where r.%I = u.id::%s) limit 1',
        box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id'))
        into wrong using ids;
    if wrong is not null then
        raise exception using errcode = 'no_data_found',
            message = format('inbox "%s" has no message "%s"', box.name, wrong),
            hint = 'It never came, or retention has removed it.';
    end if;
    if box.style = 'update' then
        execute format('select r.%1$I::text from %2$s r where r.%1$I = any ($1::%3$s[]) and r.%4$I is null and coalesce(%5$s, 0) <= $2 limit 1',
            box.columns ->> 'event_id', box.relation, postbox._inbox_type(box, 'event_id'), box.columns ->> 'processed_at',
            postbox._inbox_column(box.columns, 'retry_count', 'r', 'int'))
            into wrong using ids, box.max_retries;
    else
        if box.ordered_at is not null then
            -- What is done with and stands in its lane still.
            perform postbox._finish_lanes(box, null, true);
        end if;
        -- A message is in a batch, behind another one in its lane, dead, or done: who is in none of the first three is done.
        select e.id into wrong from postbox._pending_batch b cross join lateral unnest(b.event_ids) as e(id)
            where b.inbox = box.id and b.event_ids && ids and e.id = any (ids) limit 1;
        if wrong is null and box.ordered_at is not null then
            execute format(
                'select u.id, l.blocked is not distinct from ''parked'' from unnest($1) as u(id) join %1$s r on r.%2$I = u.id::%3$s
                 join postbox.inbox_lane l on l.inbox = $2 and l.key = r.%4$I::text and l.arrived @> r.%5$I::bigint
                 where not exists (select from postbox.inbox_dead d where d.inbox = $2 and d.event_id = u.id) and not coalesce(u.id = any (l.displaced), false)
                 limit 1',
                box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id'), box.columns ->> 'aggregate_id', box.columns ->> 'sequence_num')
                into wrong, is_parked using ids, box.id;
        end if;
    end if;
    if wrong is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('message "%s" of inbox "%s" is not processed yet', wrong, box.name),
            hint = case when is_parked then format('It waits behind a dead letter of its aggregate, in %I: replay that one, or discard it, and this one comes after it.', 'dlq_' || box.name)
                else format('Replay is for dead letters and processed messages; %I shows where it waits.', 'pending_' || box.name) end;
    end if;
    if box.style = 'update' then
        perform postbox._reset_rows(box, ids);
    else
        dead := array(select u.id from unnest(ids) with ordinality as u(id, n) join postbox.inbox_dead d on d.inbox = box.id and d.event_id = u.id order by u.n);
        done := array(select u.id from unnest(ids) with ordinality as u(id, n) where u.id <> all (dead) order by u.n);
        perform postbox._replay_dead(box, dead, null);
        if done <> '{}' then
            perform postbox._note_void(box, done);
            execute format(
                'insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
                 select $1, m.tier, clock_timestamp(), m.event_type, array_agg(m.id order by m.n)
                 from (
                     select r.*, (row_number() over (partition by r.tier, r.event_type order by r.n) - 1) / 50 as batch
                     from (select u.id, u.n, %1$s as tier, %2$s as event_type from unnest($2) with ordinality as u(id, n) join %3$s r on r.%4$I = u.id::%5$s) r
                 ) m
                 group by m.tier, m.event_type, m.batch
                 order by min(m.n)',
                postbox._inbox_tier_of(box, 'r'), postbox._inbox_column(box.columns, 'event_type', 'r', 'text'), box.relation, box.columns ->> 'event_id',
                postbox._inbox_type(box, 'event_id'))
                using box.id, done;
        end if;
    end if;
    perform postbox._note_replay(box, 'inbox_replay', ids, jsonb_build_object('ids', to_jsonb(ids[1:100])));
    return cardinality(ids);
end
$function$;
comment on function postbox.replay_inbox_messages(text, text[]) is
    'Has messages handed out again that are dead letters, or processed and not removed yet; their number. A dead letter that an aggregate waits for is tried in its place';

-- Who did it, for the audit and for those who listen.
create or replace function postbox._note_replay(box postbox.inbox, action text, ids text[], detail jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    said constant jsonb := jsonb_strip_nulls(jsonb_build_object('count', cardinality(ids), 'first', ids[1], 'last', ids[cardinality(ids)]) || detail);
begin
    if ids = '{}' then
        return;
    end if;
    insert into postbox.audit (action, subject, detail) values (_note_replay.action, box.name, said);
    if action = 'inbox_replay' then
        perform postbox._alert('inbox_replay', box.name, said || jsonb_build_object('role', session_user));
    end if;
end
$function$;
comment on function postbox._note_replay(postbox.inbox, text, text[], jsonb) is 'Private: who replayed or discarded what';

-- What a call of replay or discard is about. The caller holds the keeping lock.
create or replace function postbox._select_inbox_dead(
    box postbox.inbox, event_ids text[], type text, error text, older_than interval, every boolean
) returns text[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    missing text;
    chosen text[];
begin
    event_ids := postbox._printed_ids(box, event_ids);
    if event_ids is null and type is null and error is null and older_than is null and every is not true then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'neither event_ids nor a filter say which dead letters are meant',
            hint = 'every => true means all of the inbox.';
    end if;
    if older_than < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('older_than %s is negative', older_than),
            hint = 'For instance interval ''1 day''.';
    end if;
    chosen := array(
        select d.event_id from postbox.inbox_dead d
        where d.inbox = box.id
          and (event_ids is null or d.event_id = any (event_ids))
          and (_select_inbox_dead.type is null or d.event_type = _select_inbox_dead.type)
          and (_select_inbox_dead.error is null or strpos(lower(d.error), lower(_select_inbox_dead.error)) > 0)
          and (older_than is null or d.died_at < clock_timestamp() - older_than)
        order by d.died_at, d.event_id);
    select u.id into missing from unnest(event_ids) as u(id)
        where u.id is null or not exists (select from postbox.inbox_dead d where d.inbox = box.id and d.event_id = u.id)
        limit 1;
    if found then
        raise exception using errcode = 'no_data_found',
            message = format('inbox "%s" has no dead letter %s', box.name, coalesce('"' || missing || '"', 'NULL')),
            hint = format('The view %I shows them. What waits behind one (follower) goes when that one goes.', 'dlq_' || box.name);
    end if;
    return chosen;
end
$function$;
comment on function postbox._select_inbox_dead(postbox.inbox, text[], text, text, interval, boolean) is 'Private: the dead letters that are meant, those that died first in front';

create or replace function postbox.replay_inbox_dead_letters(
    inbox text, event_ids text[] default null, type text default null, error text default null, older_than interval default null,
    every boolean default false, dry_run boolean default false, rate float8 default null
) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._inbox_to_keep(inbox);
    chosen text[];
begin
    perform postbox._check_rate(rate);
    if box.style = 'update' and rate is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" is of style "update": its messages wait in the table and have no rate', box.name),
            hint = 'Replay some of them at a time.';
    end if;
    perform postbox._check_dry_run(dry_run);
    chosen := postbox._select_inbox_dead(box, event_ids, type, error, older_than, every);
    if not dry_run and chosen <> '{}' then
        perform postbox._replay_dead(box, chosen, rate);
        perform postbox._note_replay(box, 'inbox_replay', chosen, jsonb_build_object(
            'type', type, 'error', error, 'older_than', older_than, 'rate', rate));
    end if;
    return cardinality(chosen);
end
$function$;
comment on function postbox.replay_inbox_dead_letters(text, text[], text, text, interval, boolean, boolean, float8) is
    'Has dead letters handed out again, with all their attempts before them, at most `rate` of them a second; the number of those chosen';

create or replace function postbox.discard_inbox_dead_letters(
    inbox text, event_ids text[] default null, type text default null, error text default null, older_than interval default null,
    every boolean default false, dry_run boolean default false
) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._inbox_to_keep(inbox);
    chosen text[];
begin
    perform postbox._check_dry_run(dry_run);
    chosen := postbox._select_inbox_dead(box, event_ids, type, error, older_than, every);
    if not dry_run and chosen <> '{}' then
        perform postbox._discard_dead(box, chosen);
        perform postbox._note_replay(box, 'inbox_discard', chosen, jsonb_build_object('type', type, 'error', error, 'older_than', older_than));
    end if;
    return cardinality(chosen);
end
$function$;
comment on function postbox.discard_inbox_dead_letters(text, text[], text, text, interval, boolean, boolean) is
    'Lets dead letters go, which are then never processed; an aggregate that waits for one goes on. The number of those chosen';
