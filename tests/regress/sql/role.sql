-- Who may do what: every object of the schema, for each role, as far as PUBLIC may not.
\set SHOW_CONTEXT never
SELECT postbox.create_outbox('open_one');
SELECT postbox.create_outbox('closed_one');
CREATE TABLE adopted_one (id bigserial, type text, payload jsonb);
SELECT postbox.adopt_outbox('adopted_one', event_id => 'id');
SELECT postbox.create_inbox('inbox_one');
SELECT postbox.create_inbox('inbox_two', style => 'update');
CREATE ROLE a_nobody;
CREATE ROLE a_publisher;
CREATE ROLE a_consumer REPLICATION;
CREATE ROLE an_operator;
CREATE ROLE a_monitor;
CREATE ROLE a_maintainer REPLICATION;
CREATE ROLE a_receiver;
CREATE ROLE a_worker;
-- With nothing for PUBLIC each role stands by its own grants.
BEGIN;
REVOKE ALL ON SCHEMA postbox FROM public;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA postbox FROM public;
REVOKE ALL ON ALL TABLES IN SCHEMA postbox FROM public;
SELECT postbox.grant_role('publisher', 'a_publisher', '{open_one,adopted_one}');
SELECT postbox.grant_role('consumer', 'a_consumer');
SELECT postbox.grant_role('operator', 'an_operator');
SELECT postbox.grant_role('monitor', 'a_monitor');
SELECT postbox.grant_role('maintainer', 'a_maintainer', '{open_one,adopted_one}');
SELECT postbox.grant_role('receiver', 'a_receiver', '{inbox_one,inbox_two}');
SELECT postbox.grant_role('worker', 'a_worker', '{inbox_one,inbox_two}');
-- A right on some columns only is shown with these.
CREATE FUNCTION pg_temp.rights(object text, who text) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(concat(right_name, columns), ',' ORDER BY n), '-')
    FROM unnest('{select,insert,update,delete,truncate,references,trigger}'::text[]) WITH ORDINALITY AS r(right_name, n)
    LEFT JOIN LATERAL (
        SELECT format('(%s)', string_agg(a.attname, ',' ORDER BY a.attnum)) AS columns
        FROM pg_attribute a WHERE a.attrelid = object::regclass AND a.attnum > 0 AND NOT a.attisdropped
            AND CASE WHEN right_name IN ('select', 'insert', 'update', 'references') AND NOT has_table_privilege(who, object, right_name)
                THEN has_column_privilege(who, object, a.attnum, right_name) END
        HAVING count(*) > 0
    ) AS partly ON true
    WHERE has_table_privilege(who, object, right_name) OR columns IS NOT NULL
$$;
CREATE FUNCTION pg_temp.sequence_rights(object text, who text) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(right_name, ',' ORDER BY n), '-')
    FROM unnest('{usage,select,update}'::text[]) WITH ORDINALITY AS r(right_name, n) WHERE has_sequence_privilege(who, object, right_name)
$$;
SELECT c.oid::regclass AS relation, pg_temp.rights(c.oid::regclass::text, 'a_nobody') AS nobody,
    pg_temp.rights(c.oid::regclass::text, 'a_publisher') AS publisher, pg_temp.rights(c.oid::regclass::text, 'a_consumer') AS consumer,
    pg_temp.rights(c.oid::regclass::text, 'an_operator') AS operator, pg_temp.rights(c.oid::regclass::text, 'a_monitor') AS monitor,
    pg_temp.rights(c.oid::regclass::text, 'a_maintainer') AS maintainer,
    pg_temp.rights(c.oid::regclass::text, 'a_receiver') AS receiver, pg_temp.rights(c.oid::regclass::text, 'a_worker') AS worker
    FROM pg_class c
    WHERE (c.relnamespace = 'postbox'::regnamespace OR c.relname IN ('open_one', 'closed_one', 'adopted_one', 'inbox_one', 'inbox_two')) AND c.relkind IN ('r', 'p', 'v')
    ORDER BY c.relnamespace, c.relname COLLATE "C";
SELECT c.oid::regclass AS sequence, pg_temp.sequence_rights(c.oid::regclass::text, 'a_nobody') AS nobody,
    pg_temp.sequence_rights(c.oid::regclass::text, 'a_publisher') AS publisher, pg_temp.sequence_rights(c.oid::regclass::text, 'a_consumer') AS consumer,
    pg_temp.sequence_rights(c.oid::regclass::text, 'an_operator') AS operator, pg_temp.sequence_rights(c.oid::regclass::text, 'a_monitor') AS monitor,
    pg_temp.sequence_rights(c.oid::regclass::text, 'a_maintainer') AS maintainer,
    pg_temp.sequence_rights(c.oid::regclass::text, 'a_receiver') AS receiver, pg_temp.sequence_rights(c.oid::regclass::text, 'a_worker') AS worker
    FROM pg_class c WHERE c.relkind = 'S' AND c.relnamespace IN ('postbox'::regnamespace, 'public'::regnamespace)
    ORDER BY c.relnamespace, c.relname COLLATE "C";
SELECT p.oid::regprocedure AS function, has_function_privilege('a_nobody', p.oid, 'execute') AS nobody,
    has_function_privilege('a_publisher', p.oid, 'execute') AS publisher, has_function_privilege('a_consumer', p.oid, 'execute') AS consumer,
    has_function_privilege('an_operator', p.oid, 'execute') AS operator, has_function_privilege('a_monitor', p.oid, 'execute') AS monitor,
    has_function_privilege('a_maintainer', p.oid, 'execute') AS maintainer,
    has_function_privilege('a_receiver', p.oid, 'execute') AS receiver, has_function_privilege('a_worker', p.oid, 'execute') AS worker
    FROM pg_proc p WHERE p.pronamespace = 'postbox'::regnamespace ORDER BY p.oid::regprocedure::text COLLATE "C";
-- The rights are enough.
SET LOCAL ROLE a_publisher;
SELECT postbox.publish('open_one', 't', '{}') IS NOT NULL AS published;
INSERT INTO adopted_one (type) VALUES ('t');
SET LOCAL ROLE a_monitor;
SELECT name, last_seq, replayable FROM postbox.outbox_status();
SELECT name FROM postbox.consumer_groups;
SET LOCAL ROLE a_receiver;
INSERT INTO inbox_one (event_id) VALUES ('a'), ('b') ON CONFLICT DO NOTHING;
SELECT postbox.inbox_receive('inbox_one', 'a', '{}'), postbox.inbox_receive('inbox_two', 'a', '{}');
SET LOCAL ROLE a_worker;
SELECT c.event_id, postbox.inbox_complete('inbox_one', ARRAY[c.event_id], ARRAY[c.token]) FROM postbox.inbox_claim('inbox_one', 'w') c;
UPDATE inbox_two SET processed_at = now() WHERE event_id = (SELECT event_id FROM inbox_two WHERE processed_at IS NULL FOR UPDATE SKIP LOCKED);
RESET ROLE;
GRANT CREATE ON SCHEMA public TO an_operator;
SET LOCAL ROLE an_operator;
SELECT postbox.create_outbox('operated');
CREATE TABLE operated_on (event_id uuid, type text, payload jsonb);
SELECT postbox.adopt_outbox('operated_on');
SELECT postbox.drop_outbox('operated_on');
SELECT postbox.drop_outbox('operated');
SELECT postbox.create_inbox('operated');
CREATE TABLE operated_on_too (event_id text PRIMARY KEY, payload json, processed_at timestamptz);
SELECT postbox.enable_inbox_tracking('operated_on_too', style => 'update');
SELECT postbox.repair_inbox('operated_on_too');
SELECT postbox.drop_inbox('operated'), postbox.drop_inbox('operated_on_too');
RESET ROLE;
SELECT postbox.revoke_role('receiver', 'a_receiver', '{inbox_one,inbox_two}');
SELECT postbox.revoke_role('worker', 'a_worker', '{inbox_one,inbox_two}');
SELECT postbox.revoke_role('publisher', 'a_publisher', '{open_one,adopted_one}');
SELECT postbox.revoke_role('consumer', 'a_consumer');
SELECT postbox.revoke_role('operator', 'an_operator');
SELECT postbox.revoke_role('monitor', 'a_monitor');
SELECT postbox.revoke_role('maintainer', 'a_maintainer', '{open_one,adopted_one}');
SELECT count(*) AS left_over FROM pg_proc p, aclexplode(p.proacl) a
    WHERE p.pronamespace = 'postbox'::regnamespace AND a.grantee IN ('an_operator'::regrole, 'a_monitor'::regrole, 'a_consumer'::regrole);
SELECT has_table_privilege('a_publisher', 'open_one', 'insert') AS still, has_table_privilege('a_maintainer', 'open_one', 'truncate') AS still_truncates,
    has_table_privilege('a_receiver', 'inbox_one', 'insert') AS receiving, has_any_column_privilege('a_worker', 'inbox_two', 'select, update') AS working;
ROLLBACK;

SELECT postbox.grant_role('owner', 'a_monitor');
SELECT postbox.grant_role('publisher', 'a_publisher');
SELECT postbox.grant_role('publisher', 'a_publisher', '{pg_class}');
SELECT postbox.grant_role('publisher', 'a_publisher', '{NULL}');
SELECT postbox.grant_role('monitor', 'a_monitor', '{open_one}');
SELECT postbox.grant_role('receiver', 'a_receiver');
SELECT postbox.grant_role('receiver', 'a_receiver', '{open_one}');
SELECT postbox.grant_role('monitor', NULL);
SELECT postbox.grant_role('monitor', 'nobody_at_all');
SELECT postbox.grant_role('operator', 'an_operator');
SELECT postbox.grant_role('publisher', 'a_publisher', '{open_one}');
SET ROLE a_publisher;
SELECT postbox.publish('closed_one', 't', '{}');
SELECT postbox.drop_outbox('open_one');
SELECT postbox.grant_role('operator', 'a_publisher');
RESET ROLE;
SET ROLE an_operator;
SELECT postbox.drop_outbox('open_one');
SELECT postbox.grant_role('publisher', 'an_operator', '{open_one}');
SELECT postbox.drop_inbox('inbox_one');
RESET ROLE;
DROP OWNED BY a_publisher, an_operator, a_consumer, a_monitor, a_maintainer, a_receiver, a_worker;
DROP ROLE a_nobody, a_publisher, an_operator, a_consumer, a_monitor, a_maintainer, a_receiver, a_worker;
SELECT postbox.drop_inbox('inbox_one'), postbox.drop_inbox('inbox_two');
SELECT postbox.drop_outbox('open_one'), postbox.drop_outbox('closed_one'), postbox.drop_outbox('adopted_one');
