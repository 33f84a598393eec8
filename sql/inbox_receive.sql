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
        if rows > 0 then
            return case when differs then 'conflict' else 'duplicate' end;
        end if;
        if exists (select from postbox.inbox_seen s where s.inbox = box.id and s.event_id = inbox_receive.event_id and s.until > clock_timestamp()) then
            return 'duplicate';
        end if;
    end loop;
    return null;
end
$function$;
comment on function postbox.inbox_receive(text, text, jsonb, text, text, text, bigint, int, jsonb, timestamptz, text) is
    'Inserts a message as the caller: received; duplicate, if the id is there; conflict, if it is there with another payload; NULL if a trigger of yours kept it out';
