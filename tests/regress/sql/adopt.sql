-- Existing tables as outboxes.
\set SHOW_CONTEXT never
CREATE TABLE outbox (
    id            uuid PRIMARY KEY,
    aggregatetype varchar(255) NOT NULL,
    aggregateid   varchar(255) NOT NULL,
    type          varchar(255) NOT NULL,
    payload       jsonb,
    tenant_id     int
);
SELECT postbox.adopt_outbox('outbox');
SELECT postbox.adopt_outbox('outbox', layout => 'debezum');
SELECT postbox.adopt_outbox('outbox', layout => 'debezium', key => 'tenant');
SELECT postbox.adopt_outbox('outbox', layout => 'debezium', payload => 'tenant_id');
SELECT postbox.adopt_outbox('outbox', layout => 'debezium', header_columns => '{tenant_id,tenant}');
SELECT postbox.adopt_outbox('outbox', layout => 'debezium', header_columns => '{tenant_id,aggregatetype=tenant_id}');
SELECT postbox.adopt_outbox('outbox', layout => 'debezium', seq => 'tenant_id');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'outbox'::regclass;
SELECT postbox.adopt_outbox('outbox', layout => 'debezium', header_columns => '{aggregatetype=ce_type,tenant_id}');
\d outbox
SELECT postbox.adopt_outbox('outbox', layout => 'debezium');
SELECT 'slot' FROM pg_create_logical_replication_slot('regress', 'postbox');
INSERT INTO outbox VALUES ('00000000-0000-4000-8000-000000000001', 'order', '7', 'placed', '{"total": 1}', 42);
INSERT INTO outbox VALUES ('00000000-0000-4000-8000-000000000002', 'order', '7', 'deleted', NULL, NULL);
SELECT postbox.publish('outbox', 'placed', '{}', '7', event_id => '00000000-0000-4000-8000-000000000009');
SELECT postbox.publish('outbox', 'placed', '{}', '7', '{"h": 1}');
ALTER TABLE outbox RENAME tenant_id TO tenant;
INSERT INTO outbox VALUES ('00000000-0000-4000-8000-000000000003', 'order', '7', 'renamed', '{}', 42);
SELECT postbox.publish('outbox', 'placed', '{}', '7', event_id => '00000000-0000-4000-8000-000000000009');
SELECT d.event_id, d.type, d.key, d.headers, d.payload, d.error ->> 'detail' AS error
    FROM pg_logical_slot_get_binary_changes('regress', NULL, NULL) s, postbox.decode(s.data) d;
SELECT name, payload_type, adopted, replayable FROM postbox.outboxes;
SELECT postbox._require_replayable('outbox', 'seek_offset');
SELECT postbox.drop_outbox('outbox');
SELECT count(*) FROM outbox;
SELECT pg_drop_replication_slot('regress');
CREATE VIEW outbox_view AS SELECT * FROM outbox;
SELECT postbox.adopt_outbox('outbox_view');
SELECT postbox.adopt_outbox('consumer_group', 'postbox');
CREATE UNLOGGED TABLE unlogged_outbox (event_id uuid, type text, payload jsonb);
SELECT postbox.adopt_outbox('unlogged_outbox');
CREATE TABLE parts (event_id uuid, type text, payload jsonb) PARTITION BY RANGE (lower(type), event_id);
SELECT postbox.adopt_outbox('parts');
DROP TABLE parts;
