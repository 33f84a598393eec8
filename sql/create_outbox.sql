-- What this makes belongs to the user: no part of it is a member of the extension or depends on it, so it is dumped
-- like any table and outlives DROP EXTENSION. Hence defaults and the marker use functions of pg_catalog only.

create or replace function postbox.create_outbox(
    name            text,
    schema          text   default 'public',
    payload_type    text   default 'jsonb',
    generation_rows bigint default 1048576
) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- The leaves are named <name>_g0 to <name>_g3 and must fit an identifier too.
    max_name_bytes constant int := current_setting('max_identifier_length')::int - 3;
    generation_bits int;
    taken text;
begin
    if name is null or schema is null or payload_type is null or generation_rows is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'an outbox needs a name, a schema, a payload type and a number of rows per generation, none of them NULL',
            hint = 'Leave out what is to have its default: postbox.create_outbox(''orders'') needs no more than the name.';
    end if;
    if name = '' or octet_length(name) > max_name_bytes then
        raise exception using errcode = 'invalid_name',
            message = format('outbox name "%s" has %s bytes, must have 1 to %s', name, octet_length(name), max_name_bytes),
            detail = 'Its four leaves are named after it with a suffix of 3 bytes.',
            hint = 'Choose a shorter name, for instance orders.';
    end if;
    if name ~ '[."]' then
        raise exception using errcode = 'invalid_name',
            message = format('outbox name "%s" contains a dot or a double quote', name),
            hint = 'Give the bare name, unquoted, and the schema as the second argument: postbox.create_outbox(''orders'', ''public'').';
    end if;
    perform postbox._require_shown(schema, name);
    if schema ~ '^pg_' or schema in ('information_schema', 'postbox') then
        raise exception using errcode = 'reserved_name',
            message = format('schema "%s" is reserved and cannot hold an outbox', schema),
            hint = 'An outbox is a table of yours: choose a schema of yours.';
    end if;
    if to_regnamespace(quote_ident(schema)) is null then
        raise exception using errcode = 'invalid_schema_name',
            message = format('schema "%s" does not exist', schema),
            hint = format('Create it first: CREATE SCHEMA %I.', schema);
    end if;
    if payload_type not in ('jsonb', 'json', 'text', 'bytea') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('payload type "%s" is not one of jsonb, json, text, bytea', payload_type),
            hint = 'Use jsonb unless the payload is not JSON.';
    end if;
    select bits into generation_bits from generate_series(10, 32) as bits where 1::bigint << bits = generation_rows;
    if not found then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('generation_rows is %s, must be a power of two from 1024 to 4294967296', generation_rows),
            hint = 'The default, 1048576, suits most outboxes.';
    end if;
    if exists (select from postbox._marker m where m.name = create_outbox.name and m.schema = create_outbox.schema) then
        raise exception using errcode = 'duplicate_table',
            message = format('outbox "%s.%s" already exists', schema, name),
            hint = 'It is ready to be published to; postbox.outbox_status() shows it.';
    end if;
    select c.relname into taken
        from pg_class c
        where c.relnamespace = to_regnamespace(quote_ident(schema))
          and c.relname in (name, name || '_g0', name || '_g1', name || '_g2', name || '_g3')
        order by c.relname
        limit 1;
    if found then
        raise exception using errcode = 'duplicate_table',
            message = format('relation "%s.%s" already exists', schema, taken),
            detail = format('An outbox of this name consists of the tables %s and %s_g0 to %s_g3.', name, name, name),
            hint = case when taken = name
                then 'Choose another name, or call postbox.adopt_outbox if this table is to be the outbox.'
                else 'Choose another name, or rename that table: leaves keep their names when an outbox is renamed.' end;
    end if;

    begin
        execute format(
        'create table %1$I.%2$I (
            seq        pg_catalog.int8 generated always as identity,
            xid        pg_catalog.xid8 not null default pg_catalog.pg_current_xact_id(),
            event_id   pg_catalog.uuid not null default pg_catalog.gen_random_uuid(),
            created_at pg_catalog.timestamptz not null default pg_catalog.now(),
            key        pg_catalog.text,
            type       pg_catalog.text not null,
            headers    pg_catalog.jsonb,
            payload    pg_catalog.%3$I
        ) partition by list (((seq >> %4$s) & 3))',
        schema, name, payload_type, generation_bits);
    exception when unique_violation or duplicate_table then
        -- Two calls at once: this one waited for the other to commit.
        raise exception using errcode = 'duplicate_table',
            message = format('relation "%s.%s" was made by another session just now', schema, name),
            hint = 'postbox.outbox_status() shows it if it is an outbox.';
    end;
    for generation in 0 .. 3 loop
        execute format('create table %I.%I partition of %I.%I for values in (%s)',
            schema, name || '_g' || generation, schema, name, generation);
    end loop;
    execute format('comment on table %I.%I is %L', schema, name,
        'Outbox of Postbox: a row inserted here becomes an event when its transaction commits. '
        'The trigger postbox_outbox never fires; it marks the table as an outbox.');
    execute format(
        'create trigger postbox_outbox before update on %I.%I for each row when (false)
         execute function pg_catalog.suppress_redundant_updates_trigger()',
        schema, name);
    perform postbox._join_publication(format('%I.%I', schema, name)::regclass);
    return format('%I.%I', schema, name)::regclass;
end
$function$;
comment on function postbox.create_outbox(text, text, text, bigint) is
    'Makes table schema.name as an outbox: a ring of four generations, each of generation_rows rows. The table is yours';
