-- Events that are written to the log and to no table, and given once. The message is a JSON object in UTF-8,
-- read by plugin/wire/src/emitted.rs.

-- As for publish, an untyped payload resolves to the text overload. Implemented in plugin/src/emit.rs.

create or replace function postbox.emit(
    outbox text, type text, payload text, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_emit_text';
comment on function postbox.emit(text, text, text, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';

create or replace function postbox.emit(
    outbox text, type text, payload jsonb, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_emit_jsonb';
comment on function postbox.emit(text, text, jsonb, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';

create or replace function postbox.emit(
    outbox text, type text, payload json, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_emit_json';
comment on function postbox.emit(text, text, json, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';

create or replace function postbox.emit(
    outbox text, type text, payload bytea, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_emit_bytea';
comment on function postbox.emit(text, text, bytea, text, jsonb, uuid) is
    'Publishes an event that is in the log only and stored nowhere: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox, which must take such events (set_emit)';
