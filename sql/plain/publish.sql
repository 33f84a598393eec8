-- `publish` where the extension's library cannot be loaded: the same INSERT with the caller's rights and no others, and the same
-- refusals, from SQL alone.

-- What an outbox is for the one who publishes to it: its table, and its columns by their roles.
create or replace function postbox._publish_target(outbox regclass, name text, out relation text, out arguments text[], out marker oid)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    parts text[];
    root text;
begin
    if name is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the outbox of an event cannot be NULL',
            hint = 'postbox.publish needs an outbox and a type; payload, key and headers may be NULL.';
    end if;
    if outbox is null then
        begin
            parts := parse_ident(name);
        exception when invalid_parameter_value then
            raise exception using errcode = 'invalid_name',
                message = 'invalid name syntax',
                hint = format('"%s" is no name of a table; write it as in SQL, for instance orders or "My schema".orders.', name);
        end;
        if cardinality(parts) > 3 then
            raise exception using errcode = 'syntax_error',
                message = format('improper qualified name (too many dotted names): %s', name),
                hint = 'An outbox is named as orders or as public.orders.';
        end if;
        raise exception using errcode = 'undefined_table',
            message = format('outbox "%s" does not exist', name),
            hint = 'Make it with postbox.create_outbox, or qualify the name if its schema is not in search_path; postbox.outbox_status() lists the outboxes.';
    end if;
    -- What the view postbox._marker says, for the one table.
    select format('%I.%I', n.nspname, c.relname), case t.tgargs when '' then '{}' else postbox._marker_arguments(t.tgargs) end, t.oid
        into relation, arguments, marker
        from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
        where t.tgrelid = outbox and t.tgname = 'postbox_outbox' and t.tgparentid = 0;
    if not found then
        select format('%s.%s', m.schema, m.name) into root
            from pg_partition_ancestors(outbox) a join postbox._marker m on m.outbox = a.relid limit 1;
        if found then
            raise exception using errcode = 'wrong_object_type',
                message = format('"%s" is a partition of an outbox', name),
                hint = format('Publish to the outbox itself, %s.', root);
        end if;
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s" is not an outbox', name),
            hint = 'postbox.outbox_status() lists the outboxes; postbox.adopt_outbox makes an existing table one.';
    end if;
end
$function$;
comment on function postbox._publish_target(regclass, text) is 'Private: the outbox that is published to';

-- `given` is the type of the payload, which comes as `bytes` if that is bytea, else as text.
create or replace function postbox._publish(
    outbox regclass, path text, name text, type text, given regtype, payload text, bytes bytea, key text, headers jsonb, event_id uuid
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target record;
    part record;
    field record;
    payload_type text;
    columns text[] := '{}';
    vals text[] := '{}';
    statement text;
    inserted bigint;
begin
    target := postbox._publish_target(outbox, name);
    if type is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the type of an event cannot be NULL',
            hint = 'postbox.publish needs an outbox and a type; payload, key and headers may be NULL.';
    end if;
    -- An outbox as create_outbox makes it needs no looking at its columns one by one.
    if target.arguments <@ '{emit=on}' then
        select 'pg_catalog.' || max(y.typname) filter (where a.attname = 'payload' and (
                y.oid = given or (given = 'text'::regtype and y.oid in ('jsonb'::regtype, 'json'::regtype, 'bytea'::regtype))
                or (given in ('jsonb'::regtype, 'json'::regtype) and y.oid in ('jsonb'::regtype, 'json'::regtype, 'text'::regtype))))
            into payload_type
            from pg_attribute a join pg_type y on y.oid = a.atttypid
            where a.attrelid = outbox and a.attname in ('event_id', 'type', 'key', 'headers', 'payload') and not a.attisdropped and a.attgenerated = ''
              and (a.attname = 'payload' or a.atttypid = case a.attname when 'event_id' then 'uuid'::regtype when 'headers' then 'jsonb'::regtype else 'text'::regtype end)
            having count(*) = 5;
    end if;
    if payload_type is not null then
        columns := '{event_id,type,key,headers,payload}';
        vals := array['$1', '$2', '$3', '$4', case given when 'bytea'::regtype then '$6' else '$5' end || '::' || payload_type];
    end if;
    for part in
        select p.role, p.given, p.parameter, p.is_null
        from (values
            ('event_id', 'uuid'::regtype, '$1', false),
            ('type', 'text'::regtype, '$2', false),
            ('key', 'text'::regtype, '$3', key is null),
            ('headers', 'jsonb'::regtype, '$4', headers is null),
            ('payload', _publish.given, case when _publish.given = 'bytea'::regtype then '$6' else '$5' end, false)
        ) as p(role, given, parameter, is_null)
        where payload_type is null
    loop
        select * into field from postbox._fitting_column(outbox, name, target.arguments, part.role, part.given, part.is_null);
        continue when field.column_name is null;
        columns := columns || format('%I', field.column_name);
        -- All of these are types of PostgreSQL's own.
        vals := vals || format('%s::pg_catalog.%I', part.parameter, (select t.typname from pg_type t where t.oid = field.type_oid));
    end loop;
    event_id := coalesce(event_id, gen_random_uuid());
    statement := format('insert into %s (%s) values (%s)', target.relation, array_to_string(columns, ', '), array_to_string(vals, ', '));
    -- What triggers of the table look up, they find where the caller does; so nothing is looked up from here on but in the INSERT, where
    -- every name is qualified.
    perform set_config('search_path', path, true);
    execute statement using event_id, type, key, headers, payload, bytes;
    get diagnostics inserted = row_count;
    if inserted operator(pg_catalog.>) 0 then
        return event_id;
    end if;
    return null;
end
$function$;
comment on function postbox._publish(regclass, text, text, text, regtype, text, bytea, text, jsonb, uuid) is 'Private: publish with the outbox looked up';

create or replace function postbox.publish(
    outbox text, type text, payload text, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish(to_regclass(outbox), current_setting('search_path'), outbox, type, 'text'::regtype, payload, null::bytea, key, headers, event_id);
    end;
comment on function postbox.publish(text, text, text, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';

create or replace function postbox.publish(
    outbox text, type text, payload jsonb, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish(to_regclass(outbox), current_setting('search_path'), outbox, type, 'jsonb'::regtype, payload::text, null::bytea, key, headers, event_id);
    end;
comment on function postbox.publish(text, text, jsonb, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';

create or replace function postbox.publish(
    outbox text, type text, payload json, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish(to_regclass(outbox), current_setting('search_path'), outbox, type, 'json'::regtype, payload::text, null::bytea, key, headers, event_id);
    end;
comment on function postbox.publish(text, text, json, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';

create or replace function postbox.publish(
    outbox text, type text, payload bytea, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish(to_regclass(outbox), current_setting('search_path'), outbox, type, 'bytea'::regtype, null::text, payload, key, headers, event_id);
    end;
comment on function postbox.publish(text, text, bytea, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';
