-- Table capture: what statements do to a table becomes events of an outbox. Statement triggers with transition tables call functions that are made for
-- the table. These use nothing but pg_catalog, so they go on without the extension and are dumped with the table. They belong to the table's owner and
-- run with his rights, so who writes to the table needs no right on the outbox.
--
-- What is done for every statement decides what capture costs: an INSERT whose plan is kept, and no look into a catalog. The names of columns are
-- asked for by a function that is declared IMMUTABLE, which the planner calls once: whatever is done to the table makes PostgreSQL plan anew.

-- What types print goes by the session's settings: a row is the same whoever writes it, but for money, which goes by lc_monetary.
create or replace function postbox._captured_settings() returns text
    language sql immutable
    return 'set timezone = ''UTC'' set datestyle = iso set intervalstyle = iso_8601 set bytea_output = hex set extra_float_digits = 1';
comment on function postbox._captured_settings() is 'Private: SQL for the settings of a function that makes rows events';

-- The rows that a statement changed, as (before, after) in JSON, by what the trigger gives: `of` is 'statement' or 'row'.
-- `virtual` goes behind each row: the columns that PostgreSQL computes on reading, which no trigger is given.
create or replace function postbox._captured_rows(op text, of text, virtual text) returns text
    language sql immutable
    return case
        when of = 'row' and virtual = '' then format('(select %s, %s)',
            case op when 'insert' then 'null::jsonb' else 'to_jsonb(old)' end, case op when 'delete' then 'null::jsonb' else 'to_jsonb(new)' end)
        when of = 'row' then format('(select %s, %s)',
            case op when 'insert' then 'null::jsonb' else format('(select to_jsonb(o.*)%s from (select ($2).*) o)', virtual) end,
            case op when 'delete' then 'null::jsonb' else format('(select to_jsonb(n.*)%s from (select ($3).*) n)', virtual) end)
        when op = 'insert' then format('(select null::jsonb, to_jsonb(n.*)%s from new_rows n)', virtual)
        when op = 'delete' then format('(select to_jsonb(o.*)%s, null::jsonb from old_rows o)', virtual)
        -- Both hold the rows in the order in which they were updated.
        else format('unnest((select array_agg(to_jsonb(o.*)%1$s) from old_rows o), (select array_agg(to_jsonb(n.*)%1$s) from new_rows n))', virtual) end
        || ' as x(before, after)';
comment on function postbox._captured_rows(text, text, text) is 'Private: SQL for the rows before and after';

-- All rows that an UPDATE changed, before and after.
create or replace function postbox._captured_whole(of text, virtual text) returns text
    language sql immutable
    return case
        when of = 'row' and virtual = '' then 'jsonb_build_array(to_jsonb(old)), jsonb_build_array(to_jsonb(new))'
        when of = 'row' then format('(select jsonb_build_array(to_jsonb(o.*)%1$s) from (select ($2).*) o), (select jsonb_build_array(to_jsonb(n.*)%1$s) from (select ($3).*) n)', virtual)
        else format('(select jsonb_agg(to_jsonb(o.*)%1$s) from old_rows o), (select jsonb_agg(to_jsonb(n.*)%1$s) from new_rows n)', virtual) end;
comment on function postbox._captured_whole(text, text) is 'Private: SQL for the rows of an UPDATE before and after, each side as one array';

-- The value of the key: of one column as text, of several as a JSON array. `names` is SQL for the array of the columns' names.
create or replace function postbox._captured_key(keys int, names text, of_row text) returns text
    language sql immutable
    return case keys when 1 then format('(%s ->> (%s)[1])', of_row, names)
        else (select format('jsonb_build_array(%s)::text', string_agg(format('%s -> (%s)[%s]', of_row, names, n), ', ' order by n))
              from generate_series(1, keys) as n) end;
comment on function postbox._captured_key(int, text, text) is 'Private: SQL for the key of a row';

-- The INSERT of the events. `given` is what enable_outbox was asked for; keys and left_out are SQL for names of columns, and most_bytes for the size
-- above which the event of a whole statement is not written.
create or replace function postbox._captured_events(
    given jsonb, op text, rows text, whole text, condition text, keys text, left_out text, statement text, most_bytes text default null
) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    key_columns constant int := (given ->> 'keys')::int;
    chosen constant boolean := (given ->> 'chosen')::boolean;
    before constant text := case when chosen then format('(x.before - %s)', left_out) else 'x.before' end;
    after constant text := case when chosen then format('(x.after - %s)', left_out) else 'x.after' end;
    headers constant text := format('jsonb_build_object(''op'', %L, ''table'', %L%s)', op, given ->> 'table',
        case when statement is not null then format(', ''statement'', %s', statement) else '' end);
    source constant text := rows || ' where ' || condition || case op when 'update' then format(' and %s is distinct from %s', before, after) else '' end;
    fits constant text := case when most_bytes is not null then format(' where pg_column_size(p.payload) <= %s', most_bytes) else '' end;
    target constant text := format('insert into %s (type, key, headers, payload)', given ->> 'outbox');
    type constant text := (given ->> 'type') || '.' || ('{"insert": "inserted", "update": "updated", "delete": "deleted"}'::jsonb ->> op);
    keyed constant text := format('select row_number() over () as n, %s as before, %s as after, %s as old_key, %s as new_key from %s',
        before, after, postbox._captured_key(key_columns, keys, 'x.before'), postbox._captured_key(key_columns, keys, 'x.after'), source);
begin
    if given ->> 'granularity' = 'row' then
        -- A row whose key changes leaves its old key and comes to its new one, which another row may have left: first all that leave.
        return format($sql$%s
            select %L || case when e.before is null then 'inserted' when e.after is null then 'deleted' else 'updated' end,
                e.key, %s, jsonb_build_object('before', e.before, 'after', e.after)
            from (%s) r
            cross join lateral (
                select r.old_key, r.before, case when r.new_key is not distinct from r.old_key then r.after end, 1 where r.before is not null
                union all
                select r.new_key, null, r.after, 2 where r.after is not null and (r.before is null or r.new_key is distinct from r.old_key)
            ) e(key, before, after, part)
            order by e.part, r.n$sql$,
            target, (given ->> 'type') || '.', headers, keyed);
    end if;
    if key_columns > 0 then
        return format($sql$%s
            select %L, e.key, %s, jsonb_build_object(
                'inserted', coalesce(jsonb_agg(e.after order by r.n) filter (where e.after is not null), '[]'),
                'deleted', coalesce(jsonb_agg(e.before order by r.n) filter (where e.before is not null), '[]'))
            from (%s) r
            cross join lateral (values (r.old_key, r.before, null::jsonb), (r.new_key, null, r.after)) e(key, before, after)
            where e.before is not null or e.after is not null
            group by e.key
            order by min(r.n)$sql$,
            target, type, headers, keyed);
    end if;
    if op = 'update' and not chosen then
        -- The rows stand in the same order on both sides. OFFSET 0 keeps the planner from reading them once for each use.
        return format($sql$%s
            select %L, %L, %s, p.payload
            from (
                select jsonb_build_object('inserted', x.after, 'deleted', x.before) as payload
                from (select %s offset 0) as x(before, after)
                where %s and x.before is distinct from x.after
                offset 0) p%s$sql$,
            target, type, given ->> 'table', headers, whole, condition, fits);
    end if;
    return format($sql$%s
            select %L, %L, %s, p.payload
            from (
                select jsonb_build_object('inserted', %s, 'deleted', %s) as payload
                from %s
                having count(*) > 0
                offset 0) p%s$sql$,
        target, type, given ->> 'table', headers,
        case op when 'delete' then '''[]''::jsonb' else format('jsonb_agg(%s)', after) end,
        case op when 'insert' then '''[]''::jsonb' else format('jsonb_agg(%s)', before) end, source, fits);
end
$function$;
comment on function postbox._captured_events(jsonb, text, text, text, text, text, text, text, text) is 'Private: the INSERT of events for the rows that a statement changed';

-- What of the changed rows events tell, before (`old_rows`) or after (`new_rows`), in the order in which they were changed.
create or replace function postbox._captured_side(given jsonb, side text) returns text
    language sql immutable
    return format('select (to_jsonb(x.*)/* virtual */)%s from %s x',
        case when (given ->> 'chosen')::boolean then format(' - %s(''left_out'')', given ->> 'columns_function') else '' end, side);
comment on function postbox._captured_side(jsonb, text) is 'Private: SQL for the rows before or after';

-- The same as lines for a claim: first what went, then what came. No row is looked at twice, and no two have to be held together.
create or replace function postbox._captured_lines(given jsonb, op text) returns text
    language sql immutable
    begin atomic
        select case when given ->> 'granularity' = 'statement' and (given ->> 'keys')::int = 0 then
        concat_ws(' union all ',
            case when op <> 'insert' then format('select jsonb_build_object(''deleted'', s.line)::text from (%s) s(line)', postbox._captured_side(given, 'old_rows')) end,
            case when op <> 'delete' then format('select jsonb_build_object(''inserted'', s.line)::text from (%s) s(line)', postbox._captured_side(given, 'new_rows')) end)
        end;
    end;
comment on function postbox._captured_lines(jsonb, text) is 'Private: SQL for the changed rows as lines of JSON; NULL if an event holds only some of them';

-- An operation in the trigger function: first as most statements are, a few rows of stored columns. If that finds nothing to do, all the rest is done
-- for every statement that has changed rows.
create or replace function postbox._captured_op(given jsonb, op text) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    columns constant text := given ->> 'columns_function';
    changed constant text := case op when 'delete' then 'old_rows' else 'new_rows' end;
    few constant text := format('not exists (select from %s offset (%s(''few''))[1]::int)', changed, columns);
    stored constant text := columns || '(''virtual'') is null';
    this_statement constant text := postbox._captured_statement();
    slow_keys constant text := columns || '(''key'')';
    slow_left_out constant text := columns || '(''left_out'')';
begin
    return format($body$
    elsif tg_op = %1$L and tg_level = 'STATEMENT' then
        %2$s;
        if found then
            return null;
        end if;
        if not exists (select from %3$s) then
            return null;
        end if;
        events := %4$L;
        lines := %7$L;
    elsif tg_op = %1$L then
        %5$s;
        if found or virtual is null then
            return null;
        end if;
        events := %6$L;$body$,
        upper(op),
        postbox._captured_events(given, op, postbox._captured_rows(op, 'statement', ''), postbox._captured_whole('statement', ''), format('%s and %s', few, stored),
            slow_keys, slow_left_out, this_statement, format('(%s(''few''))[2]::int', columns)),
        changed,
        postbox._captured_written(postbox._captured_events(given, op, postbox._captured_rows(op, 'statement', '/* virtual */'), postbox._captured_whole('statement', '/* virtual */'),
            'true', slow_keys, slow_left_out, '$1')),
        postbox._captured_events(given, op, postbox._captured_rows(op, 'row', ''), postbox._captured_whole('row', ''), 'capture.virtual is null', 'capture.keys', 'capture.left_out', null),
        postbox._captured_written(postbox._captured_events(given, op, postbox._captured_rows(op, 'row', '/* virtual */'), postbox._captured_whole('row', '/* virtual */'),
            'true', slow_keys, slow_left_out, null)),
        postbox._captured_lines(given, op));
end
$function$;
comment on function postbox._captured_op(jsonb, text) is 'Private: what the trigger of a captured table does for an operation';

-- Not a variable: a plan without parameters is made once, and not anew for the first five statements of a session.
create or replace function postbox._captured_statement() returns text
    language sql immutable
    return $sql$(pg_current_xact_id()::text || '.' || coalesce(current_setting('postbox.statement', true), ''))$sql$;
comment on function postbox._captured_statement() is 'Private: SQL for the id of the statement';

-- The events of a statement of any size, and how many bytes the longest has as text; it is looked at only if it may be too long.
create or replace function postbox._captured_written(events text) returns text
    language sql immutable
    return format('with written as (%s returning case when pg_column_size(payload) > 8388608 then octet_length(payload::text) else 0 end as bytes)
            select max(w.bytes) from written w', events);
comment on function postbox._captured_written(text) is 'Private: SQL that writes events and returns their size';

-- The same with the names of stored columns only, whose plan is kept.
create or replace function postbox._captured_stored(given jsonb, op text) returns text
    language sql immutable
    begin atomic
        select regexp_replace(
            postbox._captured_written(postbox._captured_events(given, op, postbox._captured_rows(op, 'statement', ''), postbox._captured_whole('statement', ''), 'true',
                format('%s(''key'')', given ->> 'columns_function'), format('%s(''left_out'')', given ->> 'columns_function'), postbox._captured_statement())),
            'from written w$', 'into bytes from written w');
    end;
comment on function postbox._captured_stored(jsonb, text) is 'Private: what the trigger of a captured table does with many rows';

create or replace function postbox._captured_function(given jsonb) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return format($body$
<<capture>>
declare
    statement text;
    marks text;
    what text;
    keys text[];
    left_out text[];
    virtual text;
    events text;
    lines text;
    rows refcursor;
    went refcursor;
    came refcursor;
    old_line jsonb;
    new_line jsonb;
    most_rows bigint;
    most_bytes bigint;
    is_claim boolean;
    bytes bigint;
begin
    if tg_level = 'ROW' then
        -- No transition table is in these plans to tell of changes of the table: what is asked for must be no constant to them.
        what := 'key';
        keys := %1$s(what);
        what := 'left_out';
        left_out := %1$s(what);
        what := 'virtual';
        virtual := (%1$s(what))[1];
    end if;%2$s

    if tg_op = 'TRUNCATE' then
        statement := pg_current_xact_id()::text || '.' || coalesce(current_setting('postbox.statement', true), '');
        insert into %3$s (type, key, headers, payload)
            values (%4$L, %5$L, jsonb_build_object('op', 'truncate', 'table', %5$L, 'statement', capture.statement), %6$L);
        return null;%7$s%8$s%9$s
    end if;

    -- Not a constant here either: an expression without a table would keep it for the session.
    what := 'virtual';
    virtual := (%1$s(what))[1];
    statement := pg_current_xact_id()::text || '.' || coalesce(current_setting('postbox.statement', true), '');
    if lines is not null then
        lines := replace(lines, '/* virtual */', coalesce(virtual, ''));
        -- Whether the outbox has a claim check, and there is the function of the extension that was there.
        select substring(a.arguments from 'rows=(\d+)')::bigint, substring(a.arguments from 'bytes=(\d+)')::bigint into most_rows, most_bytes
            from pg_trigger c cross join lateral (select encode(c.tgargs, 'escape')) a(arguments)
            where c.tgname = 'postbox_claims' and c.tgparentid = 0 and c.tgconstrrelid = %12$L::regclass
              and exists (select from pg_proc p where p.oid = to_regprocedure(%13$L) and p.proowner = (select r.oid from pg_roles r where r.rolname = %14$L));
        if found then
            execute format('select count(*) > $1 from (%%s) l(line)', lines) into is_claim using most_rows;
            if not is_claim then
                execute format('select sum(octet_length(l.line) + 1) > $1 from (%%s) l(line)', lines) into is_claim using most_bytes;
            end if;
            if is_claim and tg_op = 'UPDATE' then
                -- If nothing has changed there is no event. Mostly the first row has, and no more are read.
                open went for execute replace(%19$L, '/* virtual */', coalesce(virtual, ''));
                open came for execute replace(%20$L, '/* virtual */', coalesce(virtual, ''));
                loop
                    fetch went into old_line;
                    fetch came into new_line;
                    exit when old_line is null or old_line is distinct from new_line;
                end loop;
                close went;
                close came;
                if old_line is null then
                    return null;
                end if;
            end if;
            if is_claim then
                open rows for execute lines;
                perform postbox._publish_rows(%12$L::regclass, %15$L || case tg_op when 'INSERT' then 'inserted' when 'UPDATE' then 'updated' else 'deleted' end, rows,
                    %5$L, jsonb_build_object('op', lower(tg_op), 'table', %5$L, 'statement', statement), null, 'pg_catalog, pg_temp');
                close rows;
                return null;
            end if;
        end if;
    end if;
    begin
        if virtual is not null then
            execute replace(events, '/* virtual */', virtual) into bytes using statement, old, new;
        elsif tg_op = 'INSERT' then
            %16$s;
        elsif tg_op = 'UPDATE' then
            %17$s;
        else
            %18$s;
        end if;
    exception when program_limit_exceeded or out_of_memory then
        bytes := 1::bigint << 62;
    end;
    if bytes > 268369920 then
        raise exception using errcode = 'program_limit_exceeded',
            message = %10$L,
            detail = 'An event has at most 256 MiB.',
            hint = %11$L;
    end if;
    return null;
end
$body$,
        given ->> 'columns_function',
        case when (given ->> 'partitioned')::boolean then format($sql$
    if tg_level = 'STATEMENT' and tg_op <> 'TRUNCATE' then
        -- The marks that this statement has made, and no others. A foreign key makes its own one deeper than where they end.
        marks := case tg_op when 'UPDATE' then ',%%1$su,,%%1$sI,,%%1$sU,,%%1$sD,' when 'INSERT' then ',%%1$si,,%%1$sI,' else ',%%1$sd,,%%1$sD,' end;
        perform set_config(%1$L, regexp_replace(s.setting, '^(.*)' || case when position(s.deeper in s.setting) > 0 then s.deeper else s.own end, '\1'), true)
            from (select current_setting(%1$L, true), format(marks, pg_trigger_depth()), format(marks, pg_trigger_depth() - 1)) s(setting, deeper, own);
    end if;$sql$, given ->> 'covering') else '' end,
        given ->> 'outbox', (given ->> 'type') || '.truncated', given ->> 'table',
        case given ->> 'granularity' when 'row' then '{"full_refresh": true, "before": null, "after": null}'
            else '{"full_refresh": true, "inserted": [], "deleted": []}' end,
        postbox._captured_op(given, 'insert'), postbox._captured_op(given, 'update'), postbox._captured_op(given, 'delete'),
        format('the changes of one statement to the captured table "%s" are too large for an event', given ->> 'table'),
        format('Change fewer rows with one statement, let the outbox have a claim check: SELECT postbox.enable_claim_check(%L), or capture rows one by one: '
            'postbox.enable_outbox(..., granularity => ''row'').', given ->> 'outbox'),
        given ->> 'outbox', 'postbox._publish_rows(regclass,text,refcursor,text,jsonb,uuid,text)',
        (select r.rolname from pg_proc p join pg_roles r on r.oid = p.proowner
         where p.oid = to_regprocedure('postbox._publish_rows(regclass,text,refcursor,text,jsonb,uuid,text)')),
        (given ->> 'type') || '.',
        postbox._captured_stored(given, 'insert'), postbox._captured_stored(given, 'update'), postbox._captured_stored(given, 'delete'),
        postbox._captured_side(given, 'old_rows'), postbox._captured_side(given, 'new_rows'));
end
$function$;
comment on function postbox._captured_function(jsonb) is 'Private: the body of the trigger function of a captured table';

-- Before a statement: it gets a number. Both triggers of INSERT ... ON CONFLICT, and the three of MERGE, are called before any row is changed, so that
-- what they count to is the same for all that comes after.
create or replace function postbox._beginning_function(given jsonb) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return format($body$
declare
    number constant pg_catalog.text := pg_catalog.set_config('postbox.statement',
        (('0' operator(pg_catalog.||) coalesce(pg_catalog.current_setting('postbox.statement', true), ''))::pg_catalog.int4 operator(pg_catalog.+) 1)::pg_catalog.text, true);
begin%s
    return null;
end
$body$,
        case when (given ->> 'partitioned')::boolean then format($sql$
    -- What this statement does to the rows of partitions is covered: no trigger of theirs has to tell. An UPDATE moves rows between them by DELETE and INSERT.
    -- Marks are stacked, as a statement may be within another one: the small letter says whose they are.
    perform pg_catalog.set_config(%1$L, pg_catalog.concat(pg_catalog.current_setting(%1$L, true), d.marks), true)
        from (select pg_catalog.format(case when tg_op operator(pg_catalog.=) 'UPDATE' then ',%%1$su,,%%1$sI,,%%1$sU,,%%1$sD,'
                when tg_op operator(pg_catalog.=) 'INSERT' then ',%%1$si,,%%1$sI,' when tg_op operator(pg_catalog.=) 'DELETE' then ',%%1$sd,,%%1$sD,' else '' end,
            pg_catalog.pg_trigger_depth() operator(pg_catalog.-) 1) as marks) d;$sql$,
            given ->> 'covering') else '' end);
end
$function$;
comment on function postbox._beginning_function(jsonb) is 'Private: the body of the function that is called before each statement on a captured table';

-- Which columns, as they are called now. The triggers that hold them are found by the function of the others.
create or replace function postbox._columns_function(given jsonb) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return format($body$
declare
    captured constant oid := (select t.tgrelid from pg_trigger t where t.tgname = 'postbox_capture_insert' and t.tgfoid = %1$L::regprocedure);
    held int2[];
    thresholds text;
begin
    if what = 'virtual' then
        return (
            select array[string_agg(format(' || jsonb_build_object(%%L, %%s)', a.attname, pg_get_expr(d.adbin, d.adrelid)), '' order by a.attnum)]
            from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attrelid = captured and a.attgenerated = 'v'
            having count(*) > 0);
    end if;
    if what = 'few' then
        -- So many rows are never a claim, as those of an UPDATE count twice, and neither are so many bytes, which may be more as text.
        select encode(t.tgargs, 'escape') into thresholds
            from pg_trigger t where t.tgname = 'postbox_claims' and t.tgparentid = 0 and t.tgconstrrelid = %5$L::regclass;
        return array[least(100, substring(thresholds from 'rows=(\d+)')::bigint / 2),
            least(8388608, substring(thresholds from 'bytes=(\d+)')::bigint / 8)]::text[];
    end if;
    if what = any (%2$L::text[]) then
        select t.tgattr into held from pg_trigger t where t.tgrelid = captured and t.tgname = case what when 'key' then 'postbox_capture_key' else 'postbox_capture_columns' end;
        if not found then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = %3$L,
                detail = 'The trigger that holds them is gone, as after DROP COLUMN ... CASCADE.',
                hint = %4$L;
        end if;
        if what = 'key' then
            return array(select a.attname::text from unnest(held) with ordinality as u(attnum, n) join pg_attribute a on a.attrelid = captured and a.attnum = u.attnum order by u.n);
        end if;
        return array(select a.attname::text from pg_attribute a where a.attrelid = captured and a.attnum > 0 and not a.attisdropped and a.attnum <> all (held));
    end if;
    return null;
end
$body$,
        (given ->> 'function') || '()',
        array_remove(array[case when (given ->> 'keys')::int > 0 then 'key' end, case when (given ->> 'chosen')::boolean then 'left_out' end], null),
        format('the capture of table "%s" has lost which columns its events have', given ->> 'table'),
        format('Do it anew: postbox.disable_outbox(%1$L), then postbox.enable_outbox(%1$L, ...).', given ->> 'table'),
        given ->> 'outbox');
end
$function$;
comment on function postbox._columns_function(jsonb) is 'Private: the body of the function that names columns of a captured table';
