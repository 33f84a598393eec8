-- `emit` where the extension's library cannot be loaded. The message is a JSON object in UTF-8, read by plugin/wire/src/emitted.rs.

create or replace function postbox._emit(
    outbox regclass, path text, name text, type text, given regtype, payload text, bytes bytea, key text, headers jsonb, event_id uuid
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target record;
    field record;
    body text;
    message text;
begin
    target := postbox._publish_target(outbox, name);
    if has_table_privilege(outbox, 'insert') then
        -- Held to the end, as an INSERT would: whoever ends that the outbox takes events waits for this one.
        execute format('lock table only %s in row exclusive mode', target.relation);
        -- This function sees what is committed by now, whatever the transaction's snapshot; a marker that is written anew is another one.
        if pg_get_triggerdef(target.marker) is null then
            target := postbox._publish_target(outbox, name);
            if pg_get_triggerdef(target.marker) is null then
                raise exception using errcode = 'serialization_failure',
                    message = format('outbox "%s" was changed after this transaction began to read', name),
                    hint = 'Try the transaction again.';
            end if;
        end if;
    end if;
    if type is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the type of an event cannot be NULL',
            hint = 'postbox.publish needs an outbox and a type; payload, key and headers may be NULL.';
    end if;
    if not 'emit=on' = any (target.arguments) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('outbox "%s" does not take events that are in the log only', name),
            hint = format('Use postbox.publish, or let it take them: SELECT postbox.set_emit(%L, true).', name);
    end if;
    select * into field from postbox._publish_column(outbox, name, target.arguments, 'payload');
    if not has_table_privilege(outbox, 'insert') then
        raise exception using errcode = 'insufficient_privilege',
            message = format('permission denied for outbox "%s"', name),
            hint = 'Whoever emits events needs the right to INSERT into the outbox, as for postbox.publish.';
    end if;
    if field.type_oid in ('jsonb'::regtype, 'json'::regtype) and given <> 'bytea'::regtype then
        begin
            -- It goes out as it was written.
            perform payload::json;
        exception when invalid_text_representation then
            raise exception using errcode = 'invalid_text_representation',
                message = format('the payload is not JSON: %s', sqlerrm),
                hint = 'The outbox takes JSON, for instance ''{"customer": "ada"}''.';
        end;
        body := payload;
    elsif field.type_oid in ('text'::regtype, 'varchar'::regtype) and given <> 'bytea'::regtype then
        body := to_json(payload)::text;
    elsif field.type_oid = 'bytea'::regtype and given = 'bytea'::regtype then
        body := to_json(translate(encode(bytes, 'base64'), e'\n', ''))::text;
    else
        raise exception using errcode = 'datatype_mismatch',
            message = format('payload of type %s does not fit column "%s" of outbox "%s", which has type %s', given, field.column_name, name,
                format_type(field.type_oid, null)),
            hint = case when given = 'bytea'::regtype
                then 'This outbox takes text: pass convert_from(payload, ''UTF8''), or make an outbox with payload_type bytea.'
                else 'This outbox takes bytes: pass convert_to(payload::text, ''UTF8''), or a bytea.' end;
    end if;
    event_id := coalesce(event_id, gen_random_uuid());
    message := format('{"outbox":%s,"id":"%s","type":%s', outbox::oid, event_id, to_json(type))
        || coalesce(',"key":' || to_json(key)::text, '') || coalesce(',"headers":' || headers::text, '')
        || coalesce(',"payload":' || body, '') || '}';
    if octet_length(message) > 268435456 then
        raise exception using errcode = 'program_limit_exceeded',
            message = format('the event for outbox "%s" has %s bytes, must have 268435456 at most', name, octet_length(message)),
            hint = 'Store what is large in a table of yours, and emit where it is.';
    end if;
    perform pg_logical_emit_message(true, 'postbox', message);
    return event_id;
end
$function$;
comment on function postbox._emit(regclass, text, text, text, regtype, text, bytea, text, jsonb, uuid) is 'Private: emit with the outbox looked up';

create or replace function postbox.emit(
    outbox text, type text, payload text, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._emit(to_regclass(outbox), current_setting('search_path'), outbox, type, 'text'::regtype, payload, null::bytea, key, headers, event_id);
    end;
comment on function postbox.emit(text, text, text, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';

create or replace function postbox.emit(
    outbox text, type text, payload jsonb, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._emit(to_regclass(outbox), current_setting('search_path'), outbox, type, 'jsonb'::regtype, payload::text, null::bytea, key, headers, event_id);
    end;
comment on function postbox.emit(text, text, jsonb, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';

create or replace function postbox.emit(
    outbox text, type text, payload json, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._emit(to_regclass(outbox), current_setting('search_path'), outbox, type, 'json'::regtype, payload::text, null::bytea, key, headers, event_id);
    end;
comment on function postbox.emit(text, text, json, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';

create or replace function postbox.emit(
    outbox text, type text, payload bytea, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._emit(to_regclass(outbox), current_setting('search_path'), outbox, type, 'bytea'::regtype, null::text, payload, key, headers, event_id);
    end;
comment on function postbox.emit(text, text, bytea, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';
