-- Receiving by a call: an INSERT by the caller, with the answer what became of it.

-- json takes texts that jsonb does not: \u0000, lone surrogates, numbers without end. They are handed out as strings.
create or replace function postbox._as_jsonb(value json) returns jsonb
    language plpgsql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return value::jsonb;
exception when others then
    return to_jsonb(value::text);
end
$function$;
comment on function postbox._as_jsonb(json) is 'Private: JSON that jsonb may not take';

-- SQL for a jsonb value as the type of a column: what _inbox_json makes of the column, backwards.
create or replace function postbox._from_jsonb(type text, value text) returns text
    language sql immutable strict parallel safe
    return case
        when type in ('jsonb', 'json') then format('%s::%s', value, type)
        when type = 'bytea' then format('case jsonb_typeof(%1$s) when ''string'' then decode(%1$s #>> ''{}'', ''base64'') else convert_to(%1$s::text, ''UTF8'') end', value)
        else format('(%s #>> ''{}'')::%s', value, type) end;
comment on function postbox._from_jsonb(text, text) is 'Private: SQL for JSON as a column has it';

-- The INSERT of inbox_receive, and whether what is there is another message.
create or replace function postbox._receive_sql(box postbox.inbox, out receive_sql text, out differs_sql text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        with given as (
            select g.role, g.n, t.type, (box).columns ->> g.role as col,
                case when g.role in ('payload', 'headers') then postbox._from_jsonb(t.type, '$' || g.n) else format('$%s::%s', g.n, t.type) end as value
            from (values ('event_id', 1), ('payload', 2), ('event_type', 3), ('source', 4), ('aggregate_id', 5), ('sequence_num', 6),
                ('priority', 7), ('headers', 8), ('visible_at', 9), ('trace_id', 10)) as g(role, n)
            cross join lateral (select postbox._inbox_type(box, g.role) as type) t
            where (box).columns ? g.role
        )
        select
            format('insert into %s (%s) values (%s) on conflict (%I) do nothing', (box).relation,
                string_agg(format('%I', g.col), ', ' order by g.n), string_agg(g.value, ', ' order by g.n), (box).columns ->> 'event_id'),
            format('select %s from %s r where r.%I = $1::%s',
                coalesce(max(case g.type when 'json' then format('postbox._as_jsonb(r.%I) is distinct from $2', g.col)
                    else format('r.%I is distinct from %s', g.col, g.value) end) filter (where g.role = 'payload'), 'false'),
                (box).relation, (box).columns ->> 'event_id', max(g.type) filter (where g.role = 'event_id'))
        from given g;
    end;
comment on function postbox._receive_sql(postbox.inbox) is 'Private: the statements of inbox_receive';

create or replace function postbox.inbox_receive(
    inbox        text,
    event_id     text,
    payload      jsonb       default null,
    event_type   text        default null,
    source       text        default null,
    aggregate_id text        default null,
    sequence_num bigint      default null,
    priority     int         default null,
    headers      jsonb       default null,
    visible_at   timestamptz default null,
    trace_id     text        default null
) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._inbox(inbox);
    -- The trigger sets it when it notes a duplicate, which it does not where the first one was not committed yet.
    before constant text := set_config('postbox.noted', '', true);
    rows int;
    differs boolean;
begin
    -- Twice: the message that was in the way may be removed just then.
    for attempt in 1 .. 2 loop
        execute box.receive_sql using event_id, payload, event_type, source, aggregate_id, sequence_num, priority, headers, visible_at, trace_id;
        get diagnostics rows = row_count;
        if rows > 0 then
            return 'received';
        end if;
        -- A transaction that was inserting the same id has ended by now: this snapshot sees it.
        execute box.differs_sql into differs using event_id, payload;
        get diagnostics rows = row_count;
        if rows > 0 or exists (
            select from postbox.inbox_seen s
            where s.inbox = box.id and s.event_id = any (postbox._printed_ids(box, array[inbox_receive.event_id])) and s.until > clock_timestamp())
        then
            if current_setting('postbox.noted') <> box.id::text then
                insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
                    values (box.id, clock_timestamp(), case when differs then 'conflict' else 'duplicate' end, inbox_receive.event_type, 1,
                        case when differs then array[inbox_receive.event_id] end);
            end if;
            return case when differs then 'conflict' else 'duplicate' end;
        end if;
    end loop;
    return null;
end
$function$;
comment on function postbox.inbox_receive(text, text, jsonb, text, text, text, bigint, int, jsonb, timestamptz, text) is
    'Inserts a message as the caller: received; duplicate, if the id is there; conflict, if it is there with another payload; NULL if a trigger of yours kept it out';

-- Many messages: a function for each inbox, whose plans are kept. A setting tells the trigger that would look each row up that it is done here, for
-- this inbox and no other; a role that makes inboxes may not attach it to the function. In this order, as retention relies on it: ids that must not
-- come in again, the table, what was in the way.
create or replace function postbox._arm_receive(box postbox.inbox, function text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    id constant text := format('g.event_id::%s', postbox._inbox_type(box, 'event_id'));
    given record;
begin
    select string_agg(format('%I', r.col), ', ' order by r.n) as columns, string_agg(r.value, ', ' order by r.n) as "values",
        coalesce(max(format(case r.type when 'json' then 'postbox._as_jsonb(r.%I) is distinct from g.payload' else 'r.%I is distinct from %s' end, r.col, r.value))
            filter (where r.role = 'payload'), 'false') as differs
        into given
        from (
            select g.role, g.n, t.type, box.columns ->> g.role as col,
                case when g.role in ('payload', 'headers') then postbox._from_jsonb(t.type, 'g.' || g.role) else format('g.%I::%s', g.role, t.type) end as value
            from unnest('{event_id,payload,event_type,source,aggregate_id,sequence_num,priority,headers,visible_at,trace_id}'::text[]) with ordinality as g(role, n)
            cross join lateral (select postbox._inbox_type(box, g.role) as type) t
            where box.columns ? g.role
        ) r;
    execute format('create or replace function %s(event_ids text[], payloads jsonb[], event_types text[], sources text[], aggregate_ids text[],
            sequence_nums bigint[], priorities int[], headers jsonb[], visible_at timestamptz[], trace_ids text[]) returns text[]
            language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as %L', function, format($body$
        declare
            before constant text := coalesce(current_setting('postbox.receiving', true), '');
            fresh %2$s[];
            answers text[];
        begin
            perform set_config('postbox.receiving', %1$L, true);
            with came as (
                insert into %3$s as r (%4$s)
                    select %5$s
                    from unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) with ordinality
                        as g(event_id, payload, event_type, source, aggregate_id, sequence_num, priority, headers, visible_at, trace_id, n)
                    %6$s
                    -- Whoever inserts the same ids does so in the same order, and nobody waits in a circle.
                    order by (%10$s)::text collate "C", g.n
                    on conflict (%7$I) do nothing
                    returning r.%7$I as id
            )
            select array_agg(c.id) into fresh from came c;
            perform set_config('postbox.receiving', before, true);
            if cardinality(fresh) = cardinality(event_ids) then
                return array_fill('received'::text, array[cardinality(fresh)]);
            end if;
            -- Whoever was inserting the same ids has ended by now: this snapshot sees them.
            with told as (
                select g.n, g.event_type, g.event_id, case
                    when g.nth = 1 and f.id is not null then 'received'
                    when r.%7$I is not null then case when %8$s then 'conflict' else 'duplicate' end
                    when exists (select from postbox.inbox_seen s where s.inbox = %9$s and s.event_id = (%10$s)::text and s.until > clock_timestamp()) then 'duplicate'
                    end as answer
                from (
                    select g.*, row_number() over (partition by %10$s order by g.n) as nth
                    from unnest($1, $2, $3) with ordinality as g(event_id, payload, event_type, n)
                ) g
                left join unnest(fresh) as f(id) on f.id = %10$s
                left join %3$s r on r.%7$I = %10$s
            ), logged as (
                insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
                    select %9$s, clock_timestamp(), t.answer, t.event_type, count(*), case t.answer when 'conflict' then array_agg(t.event_id) end
                    from told t where t.answer in ('duplicate', 'conflict') group by t.answer, t.event_type
            )
            select array_agg(t.answer order by t.n) into answers from told t;
            return answers;
        end $body$,
        box.id, postbox._inbox_type(box, 'event_id'), box.relation, given.columns, given."values",
        case when box.dedup_window > box.retention then format('where not exists (select from postbox.inbox_seen s
                        where s.inbox = %s and s.event_id = (%s)::text and s.until > clock_timestamp() offset 0)', box.id, id) end,
        box.columns ->> 'event_id', given.differs, box.id, id));
    execute format('comment on function %s(text[], jsonb[], text[], text[], text[], bigint[], int[], jsonb[], timestamptz[], text[]) is %L', function,
        format('What inbox_receive_batch does in inbox %s, made by Postbox', box.name));
end
$function$;
comment on function postbox._arm_receive(postbox.inbox, text) is 'Private: makes the function that receives many messages';

create or replace function postbox.inbox_receive_batch(
    inbox         text,
    event_ids     text[],
    payloads      jsonb[]       default null,
    event_types   text[]        default null,
    sources       text[]        default null,
    aggregate_ids text[]        default null,
    sequence_nums bigint[]      default null,
    priorities    int[]         default null,
    headers       jsonb[]       default null,
    visible_at    timestamptz[] default null,
    trace_ids     text[]        default null
) returns text[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._inbox(inbox);
    wrong record;
    answers text[];
begin
    select l.what, l.size into wrong
        from (values ('payloads', cardinality(payloads)), ('event_types', cardinality(event_types)), ('sources', cardinality(sources)),
            ('aggregate_ids', cardinality(aggregate_ids)), ('sequence_nums', cardinality(sequence_nums)), ('priorities', cardinality(priorities)),
            ('headers', cardinality(headers)), ('visible_at', cardinality(visible_at)), ('trace_ids', cardinality(trace_ids))) as l(what, size)
        where l.size <> cardinality(event_ids)
        limit 1;
    if found or event_ids is null or array_ndims(event_ids) > 1 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s event_ids of messages for inbox "%s" are given with %s %s', coalesce(cardinality(event_ids)::text, 'NULL'), box.name,
                coalesce(wrong.size::text, 'no'), coalesce(wrong.what, 'others')),
            hint = 'Give arrays of the same length, one element for each message, or leave an array out.';
    end if;
    execute box.receive_many_sql into answers
        using event_ids, payloads, event_types, sources, aggregate_ids, sequence_nums, priorities, headers, visible_at, trace_ids;
    -- What was in the way may have been removed just then.
    for place in 1 .. coalesce(cardinality(answers), 0) loop
        continue when answers[place] is not null;
        answers[place] := postbox.inbox_receive(inbox, event_ids[place], payloads[place], event_types[place], sources[place], aggregate_ids[place],
            sequence_nums[place], priorities[place], headers[place], visible_at[place], trace_ids[place]);
    end loop;
    return coalesce(answers, '{}');
end
$function$;
comment on function postbox.inbox_receive_batch(text, text[], jsonb[], text[], text[], text[], bigint[], int[], jsonb[], timestamptz[], text[]) is
    'Inserts messages as the caller, as inbox_receive does one: what became of each of them, in their order';
