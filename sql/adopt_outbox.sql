-- Adoption puts the marker on a table that exists and changes nothing else about it.

-- A layout names the column of each role; a column that is `optional` may be absent.
create or replace function postbox._layout(layout text)
    returns table (role text, column_name text, optional boolean)
    language sql immutable strict parallel safe
    begin atomic
        select l.role, l.column_name, l.optional
        from (values
            ('postbox',  'event_id', 'event_id',      false),
            ('postbox',  'type',     'type',          false),
            ('postbox',  'key',      'key',           true),
            ('postbox',  'headers',  'headers',       true),
            ('postbox',  'payload',  'payload',       false),
            ('debezium', 'event_id', 'id',            false),
            ('debezium', 'type',     'type',          false),
            ('debezium', 'key',      'aggregateid',   false),
            ('debezium', 'payload',  'payload',       false),
            ('debezium', 'header',   'aggregatetype', false)
        ) as l(layout, role, column_name, optional)
        where l.layout = _layout.layout;
    end;
comment on function postbox._layout(text) is 'Private: the columns of a layout that adopt_outbox knows by one word';

create or replace function postbox.adopt_outbox(
    name           text,
    schema         text   default 'public',
    event_id       text   default null,
    type           text   default null,
    key            text   default null,
    headers        text   default null,
    payload        text   default null,
    layout         text   default 'postbox',
    header_columns text[] default null,
    seq            text   default null,
    xid            text   default null
) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target regclass;
    kind "char";
    is_partition boolean;
    unlogged text;
    spec record;
    wanted text;
    candidates text[];
    found_type oid;
    found_type_name text;
    header text;
    header_names text[] := '{}';
    -- role=column; no role and no header has an equals sign in its name.
    arguments text[] := '{}';
begin
    if name is null or schema is null or layout is null or '' in (event_id, type, payload) then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'an outbox needs a name, a schema, a layout, and columns for event_id, type and payload',
            hint = 'Only key, headers, seq and xid may be empty: the table has no such column.';
    end if;
    if not exists (select from postbox._layout(layout)) then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('layout "%s" is not one of postbox, debezium', layout),
            hint = 'Name the columns one by one instead: postbox.adopt_outbox(..., event_id => ''...'', type => ''...'', payload => ''...'').';
    end if;
    if schema in ('pg_catalog', 'information_schema', 'postbox') or schema ~ '^pg_(toast|temp)' then
        raise exception using errcode = 'reserved_name',
            message = format('"%s.%s" is in a reserved schema and cannot be an outbox', schema, name),
            hint = 'An outbox is a table of yours, in a schema of yours.';
    end if;
    perform postbox._require_shown(schema, name);
    if to_regclass(format('%I.%I', schema, name)) is null then
        raise exception using errcode = 'undefined_table',
            message = format('relation "%s.%s" does not exist', schema, name),
            hint = 'Give the bare name, unquoted, and the schema as the second argument. postbox.create_outbox makes a new outbox.';
    end if;
    select c.relkind, c.relispartition into kind, is_partition
        from pg_class c where c.oid = to_regclass(format('%I.%I', schema, name));
    if kind not in ('r', 'p') or is_partition then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" is %s and cannot be an outbox', schema, name,
                case when is_partition then 'a partition' else 'not a table' end),
            hint = case when is_partition then 'Adopt the partitioned table it belongs to.'
                else 'Adopt an ordinary or a partitioned table.' end;
    end if;

    -- From here to the end of the transaction nobody writes, renames or drops the table.
    execute format('lock table %I.%I in share row exclusive mode', schema, name);
    target := format('%I.%I', schema, name)::regclass;
    if exists (select from postbox._marker m where m.outbox = target) then
        raise exception using errcode = 'duplicate_object',
            message = format('"%s.%s" is an outbox already', schema, name),
            hint = 'To change its columns, call postbox.drop_outbox first: it takes the mark off an adopted table and leaves the table.';
    end if;
    select format('%I.%I', n.nspname, c.relname) into unlogged
        from (select target as oid union select t.relid from pg_partition_tree(target) t) part
        join pg_class c on c.oid = part.oid
        join pg_namespace n on n.oid = c.relnamespace
        where c.relpersistence <> 'p' or c.relkind = 'f'
        order by 1 limit 1;
    if found then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" cannot be an outbox: %s is temporary, unlogged or foreign', schema, name, unlogged),
            detail = 'Its rows are not written to the WAL of this server, where events are read.',
            hint = 'ALTER TABLE ... SET LOGGED makes an unlogged table an ordinary one; a foreign partition can be detached.';
    end if;

    for spec in
        select r.role, r.types, given.column_name as given, l.column_name as usual, coalesce(l.optional, true) as optional
        from (values
            ('event_id', '{uuid,text,varchar,int8,int4}'::regtype[], 1),
            ('type',     '{text,varchar}',                           2),
            ('key',      '{text,varchar,uuid,int8,int4}',            3),
            ('headers',  '{jsonb,json}',                             4),
            ('payload',  '{jsonb,json,text,varchar,bytea}',          5),
            ('seq',      '{int8}',                                   6),
            ('xid',      '{xid8}',                                   7)
        ) as r(role, types, n)
        join (values
            ('event_id', adopt_outbox.event_id), ('type', adopt_outbox.type), ('key', adopt_outbox.key),
            ('headers', adopt_outbox.headers), ('payload', adopt_outbox.payload), ('seq', adopt_outbox.seq),
            ('xid', adopt_outbox.xid)
        ) as given(role, column_name) on given.role = r.role
        left join postbox._layout(layout) l on l.role = r.role
        order by r.n
    loop
        wanted := spec.given;
        if wanted is null and spec.usual is not null then
            -- The case is as the table has it.
            select array_agg(a.attname::text order by a.attnum) into candidates
                from pg_attribute a
                where a.attrelid = target and lower(a.attname) = spec.usual and a.attnum > 0 and not a.attisdropped;
            if spec.usual = any (candidates) or layout = 'postbox' then
                wanted := spec.usual;
            elsif cardinality(candidates) > 1 then
                raise exception using errcode = 'ambiguous_column',
                    message = format('"%s.%s" has several columns that could be the %s of an event: %s', schema, name, spec.role,
                        array_to_string(candidates, ', ')),
                    hint = format('Name the column: postbox.adopt_outbox(%L, %L, %s => ''...'').', name, schema, spec.role);
            else
                wanted := coalesce(candidates[1], spec.usual);
            end if;
        end if;
        select a.atttypid, format_type(a.atttypid, null) into found_type, found_type_name
            from pg_attribute a
            where a.attrelid = target and a.attname = wanted and a.attnum > 0 and not a.attisdropped;
        if found and found_type <> all (spec.types) then
            raise exception using errcode = 'datatype_mismatch',
                message = format('column "%s" of "%s.%s" has type %s and cannot be the %s of an event',
                    wanted, schema, name, found_type_name, spec.role),
                detail = format('The type must be one of %s.', array_to_string(spec.types, ', ')),
                hint = format('Name another column: postbox.adopt_outbox(%L, %L, %s => ''...'').', name, schema, spec.role)
                    || case when spec.optional then format(' With %s => '''' the events have none.', spec.role) else '' end;
        end if;
        if not found and wanted <> '' and not (spec.optional and spec.given is null) then
            raise exception using errcode = 'undefined_column',
                message = format('"%s.%s" has no column "%s" to be the %s of an event', schema, name, wanted, spec.role),
                hint = format('Name the column: postbox.adopt_outbox(%L, %L, %s => ''...'').', name, schema, spec.role)
                    || case when spec.role in ('key', 'headers') then format(' With %s => '''' the events have none.', spec.role) else '' end;
        end if;
        -- Every role is written down, so that a column that is added later does not change what events say.
        arguments := arguments || (spec.role || '=' || case when found then wanted else '' end);
    end loop;

    if coalesce(seq, '') <> '' or coalesce(xid, '') <> '' then
        if not postbox._is_replayable(target, array['seq=' || coalesce(seq, ''), 'xid=' || coalesce(xid, '')]) then
            raise exception using errcode = 'invalid_table_definition',
                message = format('columns "%s" and "%s" of "%s.%s" cannot be the seq and xid of events', seq, xid, schema, name),
                detail = 'seq must be bigint, NOT NULL, and an identity column or filled from a sequence; '
                    'xid must be xid8, NOT NULL, DEFAULT pg_current_xact_id(). Both are needed.',
                hint = 'Leave seq and xid out: events are delivered all the same, but cannot be read again.';
        end if;
    end if;

    for spec in
        select given.element, given.from_layout
        from (
            select h.element, false as from_layout, h.n from unnest(header_columns) with ordinality as h(element, n)
            union all
            select l.column_name, true, 1 from postbox._layout(layout) l where l.role = 'header' and header_columns is null
        ) given
        order by given.n
    loop
        if spec.element is null then
            raise exception using errcode = 'null_value_not_allowed',
                message = 'header_columns has a NULL',
                hint = 'Each element is a column, or column=header: ''{tenant_id,aggregatetype=ce_type}''.';
        end if;
        -- A column whose name has an equals sign is still a column.
        header := spec.element;
        wanted := spec.element;
        if not exists (select from pg_attribute a where a.attrelid = target and a.attname = wanted and a.attnum > 0 and not a.attisdropped) then
            if spec.from_layout then
                select a.attname, spec.element into wanted, header
                    from pg_attribute a
                    where a.attrelid = target and lower(a.attname) = spec.element and a.attnum > 0 and not a.attisdropped
                    order by a.attnum limit 1;
                wanted := coalesce(wanted, spec.element);
            elsif spec.element ~ '=' then
                wanted := substring(spec.element from '^(.*)=[^=]*$');
                header := substring(spec.element from '[^=]*$');
            end if;
        end if;
        if not exists (select from pg_attribute a where a.attrelid = target and a.attname = wanted and a.attnum > 0 and not a.attisdropped) then
            raise exception using errcode = 'undefined_column',
                message = format('"%s.%s" has no column "%s" to be a header', schema, name, wanted),
                hint = case when spec.from_layout
                    then 'Say which columns are headers: header_columns => ''{...}''; with ''{}'' none is.'
                    else 'Each element of header_columns is a column, or column=header.' end;
        end if;
        if header = '' or header ~ '=' then
            raise exception using errcode = 'invalid_name',
                message = format('"%s" cannot be the name of a header: it is empty or has an equals sign', header),
                hint = format('Give the header another name: header_columns => ''{"%s=..."}''.', wanted);
        end if;
        if header = any (header_names) then
            raise exception using errcode = 'duplicate_object',
                message = format('header_columns names the header "%s" twice', header),
                hint = format('Give one of them another name: header_columns => ''{"%s=..."}''.', wanted);
        end if;
        header_names := header_names || header;
        arguments := arguments || ('header:' || header || '=' || wanted);
    end loop;

    select a.attname into wanted
        from pg_attribute a
        where a.attrelid = target and a.attnum > 0 and not a.attisdropped and a.attgenerated = 'v'
          and a.attname in (select substring(argument from '=(.*)') from unnest(arguments) as argument)
        order by a.attnum limit 1;
    if found then
        raise exception using errcode = 'feature_not_supported',
            message = format('column "%s" of "%s.%s" is virtual and cannot be part of an event', wanted, schema, name),
            detail = 'It is computed when it is read; no row in the WAL holds its value.',
            hint = 'Make it a stored generated column.';
    end if;

    execute format(
        'create trigger postbox_outbox before update on %I.%I for each row when (false)
         execute function pg_catalog.suppress_redundant_updates_trigger(%s)',
        schema, name,
        (select string_agg(quote_literal(argument), ', ' order by n)
         from unnest(arguments || 'origin=adopted'::text) with ordinality as a(argument, n)));
    perform postbox._join_publication(target);
    if kind = 'p' then
        raise warning using
            message = format('an UPDATE that moves a row of "%s.%s" to another partition delivers its event again', schema, name),
            detail = 'To the log it is a DELETE and an INSERT like any other.',
            hint = format('Do not update the columns of its partition key, %s; or have consumers go by the event_id.', pg_get_partkeydef(target));
    end if;
    return target;
end
$function$;
comment on function postbox.adopt_outbox(text, text, text, text, text, text, text, text, text[], text, text) is
    'Makes an existing table an outbox by naming the columns of its events, one by one or by a layout; an empty name: it has none';
