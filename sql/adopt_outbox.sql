-- Adoption puts the marker on a table that exists and changes nothing else about it.

create or replace function postbox.adopt_outbox(
    name     text,
    schema   text default 'public',
    event_id text default 'event_id',
    type     text default 'type',
    key      text default 'key',
    headers  text default 'headers',
    payload  text default 'payload'
) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target regclass;
    kind "char";
    persistence "char";
    is_partition boolean;
    spec record;
    found_type oid;
    found_type_name text;
    arguments text := '';
begin
    if name is null or schema is null or event_id is null or type is null or payload is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'an outbox needs a name, a schema and columns for event_id, type and payload, none of them NULL',
            hint = 'Only key and headers may be NULL: the table has no such column.';
    end if;
    if to_regclass(format('%I.%I', schema, name)) is null then
        raise exception using errcode = 'undefined_table',
            message = format('relation "%s.%s" does not exist', schema, name),
            hint = 'Give the bare name, unquoted, and the schema as the second argument. postbox.create_outbox makes a new outbox.';
    end if;
    select c.relkind, c.relpersistence, c.relispartition into kind, persistence, is_partition
        from pg_class c where c.oid = to_regclass(format('%I.%I', schema, name));
    if kind not in ('r', 'p') or is_partition then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" is %s and cannot be an outbox', schema, name,
                case when is_partition then 'a partition' else 'not a table' end),
            hint = case when is_partition then 'Adopt the partitioned table it belongs to.'
                else 'Adopt an ordinary or a partitioned table.' end;
    end if;
    if persistence <> 'p' then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" is temporary or unlogged and cannot be an outbox', schema, name),
            detail = 'Its rows are not written to the WAL, where events are read.',
            hint = 'ALTER TABLE ... SET LOGGED makes an unlogged table an ordinary one.';
    end if;

    -- From here to the end of the transaction nobody writes, renames or drops the table.
    execute format('lock table %I.%I in share row exclusive mode', schema, name);
    target := format('%I.%I', schema, name)::regclass;
    if exists (select from postbox._marker m where m.outbox = target) then
        raise exception using errcode = 'duplicate_object',
            message = format('"%s.%s" is an outbox already', schema, name),
            hint = 'To change its columns, call postbox.drop_outbox first: it takes the mark off an adopted table and leaves the table.';
    end if;

    for spec in
        select *
        from (values
            ('event_id', adopt_outbox.event_id, true,  '{uuid,text,varchar,int8,int4}'::regtype[]),
            ('type',     adopt_outbox.type,     true,  '{text,varchar}'),
            ('key',      adopt_outbox.key,      false, '{text,varchar,uuid,int8,int4}'),
            ('headers',  adopt_outbox.headers,  false, '{jsonb,json}'),
            ('payload',  adopt_outbox.payload,  true,  '{jsonb,json,text,varchar,bytea}')
        ) as roles(role, column_name, required, types)
    loop
        select a.atttypid, format_type(a.atttypid, null) into found_type, found_type_name
            from pg_attribute a
            where a.attrelid = target and a.attname = spec.column_name and a.attnum > 0 and not a.attisdropped;
        if found and found_type <> all (spec.types) then
            raise exception using errcode = 'datatype_mismatch',
                message = format('column "%s" of "%s.%s" has type %s and cannot be the %s of an event',
                    spec.column_name, schema, name, found_type_name, spec.role),
                detail = format('The type must be one of %s.', array_to_string(spec.types, ', ')),
                hint = format('Name another column: postbox.adopt_outbox(%L, %L, %s => ''...'').', name, schema, spec.role);
        end if;
        -- A key or headers column that nobody asked for by another name may be absent.
        if not found and (spec.required or spec.column_name <> spec.role) then
            raise exception using errcode = 'undefined_column',
                message = format('"%s.%s" has no column "%s" to be the %s of an event', schema, name, spec.column_name, spec.role),
                hint = format('Name the column: postbox.adopt_outbox(%L, %L, %s => ''...'').', name, schema, spec.role);
        end if;
        -- Every role is written down, so that a column that is added later does not change what events say.
        arguments := arguments || format('%L, ', spec.role || '=' || case when found then spec.column_name else '' end);
    end loop;

    execute format(
        'create trigger postbox_outbox before update on %I.%I for each row when (false)
         execute function pg_catalog.suppress_redundant_updates_trigger(%s)',
        schema, name, arguments || quote_literal('origin=adopted'));
    return target;
end
$function$;
comment on function postbox.adopt_outbox(text, text, text, text, text, text, text) is
    'Makes an existing table an outbox by naming the columns of its events; NULL for key or headers: it has none';
