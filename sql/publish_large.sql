-- A large value as one event. Within the threshold it is the payload, above it a claim. What it may be does not hang on its size:
-- text for an outbox of JSON must be JSON in either case. Bytes have no place in a payload that is not bytea, and are always a claim
-- there.

create or replace function postbox._publish_large(
    outbox regclass, outbox_name text, type text, data bytea, payload text, key text, headers jsonb, event_id uuid
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    claim postbox._claim_check;
    payload_type oid;
    is_text constant boolean := payload is not null;
    seq bigint;
    stored record;
begin
    perform postbox._require_outbox(outbox, outbox_name, type);
    if data is null and payload is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('the payload of a large event for outbox "%s" is NULL', outbox_name),
            hint = 'postbox.publish takes events without a payload.';
    end if;
    select k.* into claim from postbox._claim_check k where k.outbox = _publish_large.outbox;
    select a.atttypid into payload_type
        from postbox._marker m
        join pg_attribute a on a.attrelid = m.outbox and a.attname = postbox._marker_column(m.arguments, 'payload') and not a.attisdropped
        where m.outbox = _publish_large.outbox;
    if is_text then
        if payload_type in ('json'::regtype, 'jsonb'::regtype) then
            perform payload::json;
        end if;
        data := convert_to(payload, 'UTF8');
    else
        -- In one piece: one that is stored compressed would be expanded again for every chunk.
        data := substr(data, 1);
    end if;
    if octet_length(data) <= coalesce(claim.inline_threshold_bytes, 1048576) and (is_text or payload_type = 'bytea'::regtype) then
        if payload_type = 'bytea'::regtype then
            return postbox.publish(outbox::text, type, data, key, headers, event_id);
        end if;
        return postbox.publish(outbox::text, type, payload, key, headers, event_id);
    end if;
    if claim.claims is null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = case when is_text or payload_type = 'bytea'::regtype
                then format('the payload of %s bytes for outbox "%s" is larger than 1048576', octet_length(data), outbox_name)
                else format('bytes for outbox "%s", whose payloads are %s', outbox_name, format_type(payload_type, null)) end,
            detail = 'The outbox has no claim check, which would keep such a payload beside the outbox.',
            hint = format('Let it have one: SELECT postbox.enable_claim_check(%L).', outbox_name);
    end if;
    seq := nextval(claim.sequence);
    select 0 as chunk, 0::bigint as bytes, ''::bytea as sha256 into stored;
    stored := postbox._append_claim(claim.claims, seq, data, is_text, 0, stored.chunk, stored.bytes, stored.sha256);
    return postbox._publish_claim(outbox, seq,
        case when not is_text then 'bytes' when payload_type in ('json'::regtype, 'jsonb'::regtype) then 'json' else 'text' end,
        null, stored.chunk, stored.bytes, stored.sha256, type, key, headers, event_id);
end
$function$;
comment on function postbox._publish_large(regclass, text, text, bytea, text, text, jsonb, uuid) is 'Private: publish_large with the outbox looked up';

create or replace function postbox.publish_large(
    outbox text, type text, payload text, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish_large(to_regclass(outbox), outbox, type, null, payload, key, headers, event_id);
    end;
comment on function postbox.publish_large(text, text, text, text, jsonb, uuid) is
    'Publishes a text of any size as one event: as its payload or, above the threshold of enable_claim_check, as a claim. Returns the event id; needs INSERT on the outbox and on its claims';

create or replace function postbox.publish_large(
    outbox text, type text, payload bytea, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish_large(to_regclass(outbox), outbox, type, payload, null, key, headers, event_id);
    end;
comment on function postbox.publish_large(text, text, bytea, text, jsonb, uuid) is
    'Publishes bytes of any size as one event: as its payload, where that is bytea, or as a claim. Returns the event id; needs INSERT on the outbox and on its claims';
