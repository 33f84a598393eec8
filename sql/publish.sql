-- Publishing is an INSERT by the caller, with the caller's rights and no others: that is why everybody may execute it.
-- A payload that is an untyped literal, a parameter without a type or NULL resolves to the text overload; the text is
-- cast to the type of the outbox's payload. Implemented in plugin/src/publish.rs.

create or replace function postbox.publish(
    outbox text, type text, payload text, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_publish_text';
comment on function postbox.publish(text, text, text, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';

create or replace function postbox.publish(
    outbox text, type text, payload jsonb, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_publish_jsonb';
comment on function postbox.publish(text, text, jsonb, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';

create or replace function postbox.publish(
    outbox text, type text, payload json, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_publish_json';
comment on function postbox.publish(text, text, json, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';

create or replace function postbox.publish(
    outbox text, type text, payload bytea, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid language c volatile as 'MODULE_PATHNAME', 'postbox_publish_bytea';
comment on function postbox.publish(text, text, bytea, text, jsonb, uuid) is
    'Publishes an event to an outbox: it leaves when the transaction commits. Returns the event id; needs INSERT on the outbox';
