-- Outboxes: made, published to, shown, dropped; and what is refused.
\set SHOW_CONTEXT never
SELECT postbox.create_outbox('orders');
SELECT postbox.create_outbox('orders');
SELECT postbox.create_outbox('public.orders');
SELECT postbox.create_outbox('other', 'nowhere');
SELECT postbox.create_outbox('other', 'postbox');
SELECT postbox.create_outbox('other', payload_type => 'xml');
SELECT postbox.create_outbox('other', generation_rows => 1000);
SELECT postbox.create_outbox(NULL);
SELECT postbox.create_outbox(repeat('n', 61));
CREATE TABLE taken_g3 ();
SELECT postbox.create_outbox('taken');
\d orders

SELECT 'slot' FROM pg_create_logical_replication_slot('regress', 'postbox');
SELECT postbox.publish('orders', 'order.placed', '{"total": 12.50}', 'ada', '{"trace": "t1"}',
    '00000000-0000-4000-8000-000000000001');
BEGIN;
SELECT postbox.publish('orders', 'rolled back', '{}') IS NOT NULL AS published;
ROLLBACK;
BEGIN;
INSERT INTO orders (event_id, type, key) VALUES ('00000000-0000-4000-8000-000000000002', 'order.dropped', 'ada');
SELECT postbox.publish('orders', 'order.placed', '[1, 2]'::json, 'bob', event_id => '00000000-0000-4000-8000-000000000003');
COMMIT;
SELECT d.outbox, d.event_id, d.type, d.key, d.headers, d.payload, d.ordinal, d.error
    FROM pg_logical_slot_peek_binary_changes('regress', NULL, NULL) s, postbox.decode(s.data) d;
SELECT seq, xid IS NOT NULL AS has_xid, type, key, headers, payload FROM orders ORDER BY seq;

SELECT postbox.publish('nothing', 't', '{}');
SELECT postbox.publish('pg_class', 't', '{}');
SELECT postbox.publish('orders_g0', 't', '{}');
SELECT postbox.publish('orders', NULL, '{}');
SELECT postbox.publish('orders', 't', '\x00'::bytea);
SELECT postbox.publish('orders', 't', 'not json');
SELECT postbox.decode('\x00');

SELECT name, schema, payload_type, generation, last_seq, adopted, groups, replayable FROM postbox.outboxes;
SELECT name FROM postbox.outbox_status('nothing');
SELECT postbox.drop_outbox('nothing');
SELECT postbox.drop_outbox('taken_g3');
SELECT postbox.drop_outbox('orders');
SELECT name FROM postbox.outbox_status();
-- What was published before the drop is still delivered.
SELECT count(*) FROM pg_logical_slot_get_binary_changes('regress', NULL, NULL) s, postbox.decode(s.data) d;
SELECT pg_drop_replication_slot('regress');
