-- Consumer groups. Slots are named after the database's OID, which differs.
\set SHOW_CONTEXT never
SELECT postbox.create_outbox('grouped');
SELECT postbox.create_consumer_group('Billing', '{grouped}');
SELECT postbox.create_consumer_group('billing', '{}');
SELECT postbox.create_consumer_group('billing', '{nothing}');
SELECT postbox.create_consumer_group('billing', '{pg_class}');
BEGIN;
CREATE TABLE written ();
SELECT postbox.create_consumer_group('billing', '{grouped}');
ROLLBACK;
SELECT postbox.create_consumer_group('billing', '{grouped}') LIKE 'postbox_%_billing' AS made;
SELECT postbox.create_consumer_group('billing', '{grouped}');
SELECT name, outboxes, active, wal_status, missing_outboxes FROM postbox.consumer_groups;
SELECT name, groups FROM postbox.outbox_status('grouped');
SELECT postbox.drop_outbox('grouped');
SELECT postbox.publish('grouped', 'seen', '{}') IS NOT NULL AS published;
ALTER TABLE grouped RENAME TO renamed;
SELECT name, outboxes FROM postbox.consumer_groups;
SELECT d.outbox, d.type FROM postbox.consumer_group g,
    pg_logical_slot_peek_binary_changes(g.slot_name, NULL, NULL) s, postbox.decode(s.data) d;
SELECT postbox.drop_outbox('renamed', force => true);
SELECT name, outboxes, missing_outboxes FROM postbox.consumer_groups;
SELECT postbox.drop_consumer_group('nobody');
SELECT postbox.drop_consumer_group('billing');
SELECT count(*) AS groups FROM postbox.consumer_groups;
SELECT count(*) AS slots FROM pg_replication_slots;
