-- Capture is four statement triggers, one that begins statements, and up to three that hold columns and rows. They are made in one transaction, behind a
-- lock that waits for whoever is writing to the table.

-- Columns by name, in the order given.
create or replace function postbox._captured_columns(target regclass, name text, what text, given text[]) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    wrong text;
begin
    if given is null then
        return;
    end if;
    if cardinality(given) = 0 or array_position(given, null) is not null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('the %s of the events of table "%s" %s', what, name, case when cardinality(given) = 0 then 'is an empty list' else 'has a NULL' end),
            hint = format('Name columns of the table: %s => ''{id}'', or leave it out.', what);
    end if;
    select u.col into wrong from unnest(given) as u(col)
        where not exists (select from pg_attribute a where a.attrelid = target and a.attname = u.col and a.attnum > 0 and not a.attisdropped) limit 1;
    if found then
        raise exception using errcode = 'undefined_column',
            message = format('table "%s" has no column "%s" for the %s of its events', name, wrong, what),
            hint = 'Give the bare names of columns, unquoted, in the case they have in the table.';
    end if;
    select u.col into wrong from unnest(given) as u(col) group by u.col having count(*) > 1 limit 1;
    if found then
        raise exception using errcode = 'duplicate_column',
            message = format('column "%s" is named twice in the %s of the events of table "%s"', wrong, what, name),
            hint = 'Name it once.';
    end if;
end
$function$;
comment on function postbox._captured_columns(regclass, text, text, text[]) is 'Private: refuses columns that are not there';

-- A trigger that never fires: it names the columns for us, wherever they are renamed, and keeps them from being dropped.
create or replace function postbox._hold_columns(target regclass, trigger text, columns text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if columns is not null then
        execute format('create trigger %I after update of %s on %s for each statement when (false)
            execute function pg_catalog.suppress_redundant_updates_trigger()',
            trigger, (select string_agg(format('%I', u.col), ', ' order by u.n) from unnest(columns) with ordinality as u(col, n)), target);
    end if;
end
$function$;
comment on function postbox._hold_columns(regclass, text, text[]) is 'Private: makes the trigger that stands for columns';

create or replace function postbox._check_captured(target regclass, given text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    class pg_class;
    schema name;
    wrong text;
    remedy text;
begin
    select c.* into class from pg_class c where c.oid = target;
    if not found then
        raise exception using errcode = 'undefined_table',
            message = format('table %s does not exist', coalesce('"' || given || '"', 'NULL')),
            hint = 'Qualify a name whose schema is not in search_path.';
    end if;
    select n.nspname into schema from pg_namespace n where n.oid = class.relnamespace;
    if schema in ('pg_catalog', 'information_schema', 'postbox') or schema ~ '^pg_toast' then
        raise exception using errcode = 'reserved_name',
            message = format('"%s.%s" is in a reserved schema and cannot be captured', schema, class.relname),
            hint = 'Capture tables of yours.';
    end if;
    if exists (select from pg_trigger t where t.tgrelid = target and t.tgname = 'postbox_outbox') then
        wrong := 'an outbox';
        remedy := 'Its rows are events already.';
    elsif class.relkind = 'm' then
        wrong := 'a materialized view';
        remedy := format('Make an outbox with postbox.create_outbox, and refresh with postbox.refresh_materialized_view(%L).', given);
    elsif class.relkind not in ('r', 'p') then
        wrong := 'not a table';
        remedy := 'Capture the tables that it reads.';
    elsif class.relpersistence = 't' then
        wrong := 'temporary';
        remedy := 'Capture a table that stays.';
    elsif class.relispartition then
        wrong := 'a partition';
        remedy := 'Capture the partitioned table: changes of partitions are among its own.';
    elsif class.relkind = 'r' and exists (select from pg_inherits i where target in (i.inhparent, i.inhrelid)) then
        wrong := 'part of an inheritance';
        remedy := 'Make it a partitioned table: only there PostgreSQL has one trigger for all of them.';
    elsif class.relkind = 'p' and exists (
        -- What it does would be told row by row, and with the statement that caused it.
        select from pg_constraint k
        where k.conrelid = target and k.confrelid = target and k.contype = 'f' and (k.confdeltype in ('c', 'n', 'd') or k.confupdtype in ('c', 'n', 'd')))
    then
        wrong := 'a partitioned table that references itself with an action (CASCADE, SET NULL or SET DEFAULT)';
        remedy := 'Make it a foreign key with NO ACTION.';
    elsif exists (select from pg_partition_tree(target) p join pg_class c on c.oid = p.relid where c.relkind = 'f') then
        wrong := 'a table with foreign partitions';
        remedy := 'Detach them: their rows are changed elsewhere.';
    end if;
    if wrong is not null then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" is %s and cannot be captured', schema, class.relname, wrong),
            hint = remedy;
    end if;
end
$function$;
comment on function postbox._check_captured(regclass, text) is 'Private: refuses relations that cannot be captured';

-- Whether rows of tables can be events of an outbox.
create or replace function postbox._require_taking(found_outbox regclass, outbox text, out schema name, out name name)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker record;
begin
    select m.schema, m.name, m.adopted, a.atttypid into marker
        from postbox._marker m left join pg_attribute a on a.attrelid = m.outbox and a.attname = 'payload' and not a.attisdropped where m.outbox = found_outbox;
    if not found then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s" is not an outbox', outbox),
            hint = 'Choose another name: postbox.enable_outbox(..., outbox => ''...''). postbox.outbox_status() lists the outboxes.';
    end if;
    if marker.adopted or marker.atttypid not in ('jsonb'::regtype, 'json'::regtype, 'text'::regtype) then
        raise exception using errcode = 'feature_not_supported',
            message = format('outbox "%s.%s" cannot take the changes of tables', marker.schema, marker.name),
            detail = case when marker.adopted then 'It is a table of other columns, adopted as an outbox.' else 'Its payloads are bytea.' end,
            hint = 'Leave it out: an outbox is made for the table. Or make one with postbox.create_outbox.';
    end if;
    schema := marker.schema;
    name := marker.name;
end
$function$;
comment on function postbox._require_taking(regclass, text) is 'Private: refuses an outbox that cannot take the changes of tables';

-- An outbox that has the name by chance, or by design: whose it is would read the rows, and have his triggers called by the owner of the table.
create or replace function postbox._require_same_owner(target regclass, outbox text, found_outbox regclass) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    owners name[] := (
        select array[pg_get_userbyid(o.relowner), pg_get_userbyid(c.relowner)] from pg_class o, pg_class c where o.oid = found_outbox and c.oid = target);
begin
    if outbox is null and owners[1] <> owners[2] then
        raise exception using errcode = 'insufficient_privilege',
            message = format('outbox "%s" belongs to "%s", table "%s" to "%s"', found_outbox, owners[1], target, owners[2]),
            hint = format('If its events are to go there, name it: outbox => %L.', found_outbox);
    end if;
end
$function$;
comment on function postbox._require_same_owner(regclass, text, regclass) is 'Private: refuses an outbox of somebody else that was not named';

-- The outbox that is named, or that of the table; made, for the owner of the table, if it is not there.
create or replace function postbox._outbox_for(target regclass, outbox text, found_outbox regclass) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- As create_outbox has it.
    max_name_bytes constant int := current_setting('max_identifier_length')::int - 3;
    table_schema name;
    table_name name;
    owner name;
    marker record;
    claims record;
    wanted text[];
    made regclass;
    part record;
begin
    select n.nspname, c.relname, r.rolname into table_schema, table_name, owner
        from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_roles r on r.oid = c.relowner where c.oid = target;
    if found_outbox is null then
        if outbox is null and octet_length(table_name || '_outbox') > max_name_bytes then
            raise exception using errcode = 'invalid_name',
                message = format('the outbox of "%s.%s" would be called "%s_outbox", which has %s bytes and must have %s at most', table_schema, table_name,
                    table_name, octet_length(table_name || '_outbox'), max_name_bytes),
                hint = 'Give it a shorter name: outbox => ''...''.';
        end if;
        if outbox is null and table_name ~ '[."]' then
            raise exception using errcode = 'invalid_name',
                message = format('the outbox of "%s.%s" would be called "%s_outbox", with a dot or a double quote', table_schema, table_name, table_name),
                hint = 'Give it another name: outbox => ''...''.';
        end if;
        wanted := parse_ident(coalesce(outbox, format('%I', table_name || '_outbox')));
        made := postbox.create_outbox(wanted[cardinality(wanted)], case cardinality(wanted) when 2 then wanted[1] else table_schema end);
        if owner <> current_user then
            for part in select p.relid::regclass as relation from pg_partition_tree(made) p loop
                execute format('alter table %s owner to %I', part.relation, owner);
            end loop;
        end if;
        return made;
    end if;
    marker := postbox._require_taking(found_outbox, coalesce(outbox, found_outbox::text));
    perform postbox._require_same_owner(target, outbox, found_outbox);
    select k.claims, k.sequence into claims from postbox._claim_check k where k.outbox = found_outbox;
    if not has_table_privilege(owner, found_outbox, 'insert') or not has_schema_privilege(owner, marker.schema, 'usage')
        or (claims.claims is not null and not (has_table_privilege(owner, claims.claims, 'insert') and has_sequence_privilege(owner, claims.sequence, 'usage')))
    then
        raise exception using errcode = 'insufficient_privilege',
            message = format('role "%s", the owner of table "%s", may not publish to outbox "%s.%s"', owner, target, marker.schema, marker.name),
            hint = format('SELECT postbox.grant_role(''publisher'', %L, ''{"%s"}''): events are written with the rights of the owner of the table.', owner, found_outbox);
    end if;
    return found_outbox;
end
$function$;
comment on function postbox._outbox_for(regclass, text, regclass) is 'Private: the outbox of a table that is to be captured, made if it is not there';

create or replace function postbox._capture_functions(schema regnamespace, suffix text) returns setof regprocedure
    language sql stable
    begin atomic
        select p.oid::regprocedure from pg_proc p
            where p.pronamespace = schema and p.proname in ('postbox_capture_' || suffix, 'postbox_begin_' || suffix, 'postbox_columns_' || suffix);
    end;
comment on function postbox._capture_functions(regnamespace, text) is 'Private: functions that have the names of those of a captured table';

-- DROP TABLE leaves them. Those of a table that is there are in use; so they are if only one is.
create or replace function postbox._drop_left_functions(schema regnamespace, suffix text, owner name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    left_over regprocedure;
begin
    if exists (select from pg_trigger t where t.tgfoid in (select f::oid from postbox._capture_functions(schema, suffix) f)) then
        return;
    end if;
    for left_over in
        select p.oid from pg_proc p
            where p.oid in (select f::oid from postbox._capture_functions(schema, suffix) f) and pg_get_userbyid(p.proowner) = owner
              and obj_description(p.oid, 'pg_proc') ~ '^For the capture of table .*, made by postbox.enable_outbox$'
    loop
        execute format('drop function %s', left_over);
    end loop;
end
$function$;
comment on function postbox._drop_left_functions(regnamespace, text, name) is 'Private: drops the functions that a captured table of this name has left';

create or replace function postbox._enable_outbox(
    target regclass, table_name text, outbox text, found_outbox regclass, key text[], columns text[], granularity text, replicated boolean
) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    schema name;
    name name;
    owner name;
    is_partitioned boolean;
    qualified text;
    suffix text;
    capture text;
    beginning text;
    columns_of text;
    one text;
    taken text;
    events regclass;
    given jsonb;
    -- Which triggers wait for a partition's rows to be covered by a statement on the whole; a name of its own for each capture.
    covering constant text := 'postbox.covering_' || replace(gen_random_uuid()::text, '-', '');
    is_outbox text;
    event text;
begin
    if granularity is null or granularity not in ('statement', 'row') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('granularity is %s, must be statement or row', coalesce('"' || granularity || '"', 'NULL')),
            hint = 'statement: one event for what a statement changed, or one for each key in it. row: one event for each row.';
    end if;
    perform postbox._check_captured(target, table_name);
    execute format('lock table %s in share row exclusive mode', target);
    -- As it is now that nobody else can change it.
    perform postbox._check_captured(target, table_name);
    select n.nspname, c.relname, r.rolname, c.relkind = 'p' into schema, name, owner, is_partitioned
        from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_roles r on r.oid = c.relowner where c.oid = target;
    qualified := schema || '.' || name;
    select c.outbox into taken from postbox.captures c where c.relation = target;
    if found or exists (select from pg_trigger t where t.tgrelid = target and t.tgname ~ '^postbox_capture_') then
        raise exception using errcode = 'duplicate_object',
            message = format('table "%s" is captured already%s', qualified, coalesce(format(', into outbox "%s"', taken), '')),
            hint = format('To do it otherwise: postbox.disable_outbox(%L) first, in the same transaction.', qualified);
    end if;
    perform postbox._captured_columns(target, qualified, 'key', key);
    perform postbox._captured_columns(target, qualified, 'columns', columns);
    if granularity = 'row' and key is null then
        select array_agg(a.attname::text order by u.n) into key
            from pg_index i
            cross join unnest(i.indkey::int2[]) with ordinality as u(attnum, n)
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum
            where i.indrelid = target and i.indisprimary and u.n <= i.indnkeyatts;
        if key is null then
            raise exception using errcode = 'invalid_table_definition',
                message = format('table "%s" has no primary key to be the key of events of single rows', qualified),
                hint = format('Name columns: postbox.enable_outbox(%L, granularity => ''row'', key => ''{...}'').', qualified);
        end if;
    end if;
    if columns is not null then
        -- What the key is made of is in the event.
        columns := columns || array(select k.col from unnest(key) with ordinality as k(col, n) where k.col <> all (columns) order by k.n);
    end if;
    events := postbox._outbox_for(target, outbox, found_outbox);
    is_outbox := format('%L::regclass', events::text);

    -- A name that goes with the table's, unless functions have it: of a table that was called so, or of somebody who lies in wait.
    suffix := case when octet_length(name) <= current_setting('max_identifier_length')::int - 16 then name else md5(name) end;
    perform postbox._drop_left_functions(to_regnamespace(quote_ident(schema)), suffix, owner);
    if exists (select from postbox._capture_functions(to_regnamespace(quote_ident(schema)), suffix)) then
        suffix := md5(gen_random_uuid()::text);
    end if;
    capture := format('%I.%I', schema, 'postbox_capture_' || suffix);
    beginning := format('%I.%I', schema, 'postbox_begin_' || suffix);
    columns_of := format('%I.%I', schema, 'postbox_columns_' || suffix);
    given := jsonb_build_object('outbox', events::text, 'table', qualified, 'type', name, 'granularity', granularity, 'keys', coalesce(cardinality(key), 0),
        'chosen', columns is not null, 'partitioned', is_partitioned, 'covering', covering, 'function', capture, 'columns_function', columns_of);
    -- A row is written the same way in every session.
    execute format('create function %s() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp %s as %L',
        capture, postbox._captured_settings(), postbox._captured_function(given));
    execute format('create function %s(what text) returns text[] language plpgsql immutable set search_path = pg_catalog, pg_temp as %L',
        columns_of, postbox._columns_function(given));
    execute format('create function %s() returns trigger language plpgsql as %L', beginning, postbox._beginning_function(given));
    foreach one in array array[capture || '()', columns_of || '(text)', beginning || '()'] loop
        execute format('comment on function %s is %L', one, format('For the capture of table "%s", made by postbox.enable_outbox', qualified));
        execute format('revoke all on function %s from public', one);
    end loop;

    -- One of them names the outbox as a constant that PostgreSQL tracks: by it postbox.captures finds the outbox, which cannot be dropped under the table.
    -- The one that is called least, as a condition costs time.
    execute format('create trigger postbox_capture_begin before insert or update or delete or truncate on %s for each statement execute function %s()',
        target, beginning);
    foreach event in array '{insert,update,delete,truncate}'::text[] loop
        execute format('create trigger postbox_capture_%1$s after %1$s on %2$s%3$s%4$s for each statement%5$s execute function %6$s(%7$L)',
            event, target,
            case when event in ('insert', 'update') then ' referencing new table as new_rows' when event = 'delete' then ' referencing' else '' end,
            case when event in ('update', 'delete') then ' old table as old_rows' else '' end,
            case when event = 'truncate' then format(' when (%s is not null)', is_outbox) else '' end, capture, 'granularity=' || granularity);
    end loop;
    if is_partitioned then
        -- Never called. MERGE hands the transition table of its UPDATE a row that it has inserted before, unless partitions have such a trigger.
        execute format('create trigger postbox_capture_before before insert on %s for each row when (false)
            execute function pg_catalog.suppress_redundant_updates_trigger()', target);
    end if;
    if is_partitioned or replicated then
        foreach event in array '{insert,update,delete}'::text[] loop
            execute format('create trigger postbox_capture_row_%1$s after %1$s on %2$s for each row%3$s execute function %4$s(%5$L)',
                event, target,
                case when is_partitioned then format(' when (position(format('',%%s%s,'', pg_trigger_depth()) in coalesce(current_setting(%L, true), '''')) = 0)',
                    upper(left(event, 1)), covering) else '' end,
                capture, 'granularity=' || granularity);
            if replicated then
                -- Logical replication applies rows one by one, and a TRUNCATE as a statement.
                execute format('alter table %1$s enable always trigger postbox_capture_truncate, enable %2$s trigger postbox_capture_row_%3$s',
                    target, case when is_partitioned then 'always' else 'replica' end, event);
            end if;
        end loop;
    end if;
    perform postbox._hold_columns(target, 'postbox_capture_key', key);
    perform postbox._hold_columns(target, 'postbox_capture_columns', columns);
    if owner <> current_user then
        foreach one in array array[capture || '()', columns_of || '(text)', beginning || '()'] loop
            execute format('alter function %s owner to %I', one, owner);
        end loop;
    end if;
    return (select m.name from postbox._marker m where m.outbox = events);
end
$function$;
comment on function postbox._enable_outbox(regclass, text, text, regclass, text[], text[], text, boolean) is 'Private: enable_outbox with the names looked up';

create or replace function postbox.enable_outbox(
    table_name  text,
    outbox      text    default null,
    key         text[]  default null,
    columns     text[]  default null,
    granularity text    default 'statement',
    replicated  boolean default false
) returns text
    language sql volatile
    begin atomic
        select postbox._enable_outbox(to_regclass(table_name), table_name, outbox,
            -- Not by to_regclass, which would cut off what is too long, and find the table itself.
            case when outbox is not null then to_regclass(outbox) else (
                select o.oid::regclass from pg_class c join pg_class o on o.relnamespace = c.relnamespace and o.relname = c.relname || '_outbox'
                where c.oid = to_regclass(table_name)) end,
            key, columns, granularity, coalesce(replicated, false));
    end;
comment on function postbox.enable_outbox(text, text, text[], text[], text, boolean) is
    'Captures a table: what statements change in it becomes events of an outbox, in the same transaction. Returns the name of the outbox, which is made if it is not there';
