//! Who may do what, and what nobody can smuggle in.

use postbox_tests::wait_until_async;

use super::{error, row, rows, run, start};
use crate::shop::PATIENCE;

#[tokio::test]
async fn a_role_with_nothing_but_insert_can_publish_and_nothing_else() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('secret')").await;
    run(
        &client,
        "SELECT postbox.create_consumer_group('g', '{orders}'); CREATE ROLE app; GRANT INSERT ON orders TO app",
    )
    .await;
    run(&client, "SET ROLE app; SELECT postbox.publish('orders', 'by function', '{}', 'k')").await;
    run(&client, "INSERT INTO orders (type, payload) VALUES ('by insert', '{}')").await;
    run(&client, "SELECT * FROM postbox.outbox_status(); SELECT * FROM postbox.consumer_groups").await;
    assert_eq!(row(&client, "SELECT last_seq FROM postbox.outbox_status('orders')").await, "");
    let denied = [
        "SELECT postbox.publish('secret', 't', '{}')",
        "SELECT * FROM orders",
        "UPDATE orders SET type = 'x'",
        "DELETE FROM orders",
        "TRUNCATE orders",
        "SELECT postbox.create_outbox('mine')",
        "SELECT postbox.adopt_outbox('orders')",
        "SELECT postbox.drop_outbox('orders')",
        "SELECT postbox.create_consumer_group('h', '{orders}')",
        "SELECT postbox._create_consumer_group('h', '{orders}', '{orders}', 'latest', false, NULL, 'alert', NULL, NULL)",
        "SELECT postbox.drop_consumer_group('g')",
        "INSERT INTO postbox.consumer_group VALUES ('h', 'h')",
        "DELETE FROM postbox.consumer_group",
        "UPDATE postbox.consumer_group_outbox SET group_name = 'h'",
        "CREATE TABLE postbox.mine ()",
    ];
    for sql in denied {
        assert_eq!(error(&client, sql).await.code().code(), "42501", "{sql}");
    }
    run(&client, "RESET ROLE").await;
    assert_eq!(rows(&client, "SELECT type FROM orders ORDER BY seq").await, ["by function", "by insert"]);

    // A plan made by one role gives nothing to another.
    run(&client, "SELECT postbox.publish('secret', 't', '{}'); CREATE ROLE nobody; SET ROLE nobody").await;
    assert_eq!(error(&client, "SELECT postbox.publish('orders', 't', '{}')").await.code().code(), "42501");
    assert_eq!(error(&client, "SELECT postbox.publish('secret', 't', '{}')").await.code().code(), "42501");
}

#[tokio::test]
async fn row_security_holds_for_publish() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); CREATE ROLE app; GRANT INSERT ON orders TO app;
         ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON orders FOR INSERT TO app WITH CHECK (key = 'app')",
    )
    .await;
    run(&client, "SELECT postbox.publish('orders', 't', '{}', 'any'); SET ROLE app").await;
    run(&client, "SELECT postbox.publish('orders', 't', '{}', 'app')").await;
    let denied = error(&client, "SELECT postbox.publish('orders', 't', '{}', 'other')").await;
    assert_eq!(denied.code().code(), "42501", "{denied:?}");
}

#[tokio::test]
async fn public_may_execute_and_read_what_is_listed_and_no_more() {
    let (_cluster, client) = start().await;
    let functions = "SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.pronamespace = 'postbox'::regnamespace AND has_function_privilege('public', p.oid, 'execute')
        ORDER BY p.oid::regprocedure::text";
    let allowed = [
        "postbox._append_claim(regclass,bigint,bytea,boolean,integer,integer,bigint,bytea)",
        "postbox._claim_chunks(regclass,text,bigint,integer,integer,xid8)",
        "postbox._decode_lines(bytea)",
        "postbox._fetch(refcursor,integer,text)",
        "postbox._is_replayable(oid,text[])",
        "postbox._marker_arguments(bytea)",
        "postbox._marker_column(text[],text)",
        "postbox._publish_array(regclass,text,text,jsonb[],text,jsonb,uuid)",
        "postbox._publish_claim(regclass,bigint,text,bigint,integer,bigint,bytea,text,text,jsonb,uuid)",
        "postbox._publish_large(regclass,text,text,bytea,text,text,jsonb,uuid)",
        "postbox._publish_query(regclass,text,text,text,text,jsonb,uuid,text)",
        "postbox._publish_rows(regclass,text,refcursor,text,jsonb,uuid,text)",
        "postbox._require_outbox(regclass,text,text)",
        "postbox._shown(text)",
        "postbox.claim_chunks(text,bigint,integer,integer,xid8)",
        "postbox.decode(bytea)",
        "postbox.emit(text,text,bytea,text,jsonb,uuid)",
        "postbox.emit(text,text,json,text,jsonb,uuid)",
        "postbox.emit(text,text,jsonb,text,jsonb,uuid)",
        "postbox.emit(text,text,text,text,jsonb,uuid)",
        "postbox.outbox_status(text,text)",
        "postbox.publish(text,text,bytea,text,jsonb,uuid)",
        "postbox.publish(text,text,json,text,jsonb,uuid)",
        "postbox.publish(text,text,jsonb,text,jsonb,uuid)",
        "postbox.publish(text,text,text,text,jsonb,uuid)",
        "postbox.publish_batch(text,text,jsonb[],text,jsonb,uuid)",
        "postbox.publish_batch(text,text,text,text,jsonb,uuid)",
        "postbox.publish_large(text,text,bytea,text,jsonb,uuid)",
        "postbox.publish_large(text,text,text,text,jsonb,uuid)",
    ];
    assert_eq!(rows(&client, functions).await, allowed);
    let relations = "SELECT c.oid::regclass, privilege_type FROM pg_class c, aclexplode(c.relacl)
        WHERE c.relnamespace = 'postbox'::regnamespace AND grantee = 0 ORDER BY c.relname, 2";
    let allowed = [
        "_claim_check",
        "_marker",
        "_server",
        "backfill",
        "captures",
        "checkpoint",
        "consumer_group",
        "consumer_group_outbox",
        "consumer_groups",
        "outboxes",
    ];
    assert_eq!(rows(&client, relations).await, allowed.map(|name| format!("postbox.{name}|SELECT")));
    let schema = "SELECT has_schema_privilege('public', 'postbox', 'usage'),
        has_schema_privilege('public', 'postbox', 'create')";
    assert_eq!(row(&client, schema).await, "t|f");
}

#[tokio::test]
async fn roles_name_functions_that_there_are() {
    let (_cluster, client) = start().await;
    let unknown = "SELECT DISTINCT r.object FROM unnest('{publisher,consumer,receiver,worker,operator,monitor,maintainer}'::text[]) AS role,
            postbox._role_rights(role) r
        WHERE r.object ~ '^function ' AND to_regprocedure(substr(r.object, 10)) IS NULL";
    assert_eq!(rows(&client, unknown).await, [""; 0]);
}

#[tokio::test]
async fn functions_run_as_their_caller_pin_their_search_path_and_are_described() {
    let (_cluster, client) = start().await;
    let definers = "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'postbox'::regnamespace AND prosecdef";
    assert_eq!(rows(&client, definers).await, [""; 0]);
    // Of a SQL function the parsed body is kept; what is kept as text is looked up when it runs.
    let unpinned = "SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'postbox'::regnamespace AND l.lanname <> 'c' AND p.prosqlbody IS NULL
            AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)";
    assert_eq!(rows(&client, unpinned).await, [""; 0]);
    let pinned =
        "SELECT count(*) > 4 FROM pg_proc WHERE pronamespace = 'postbox'::regnamespace AND proconfig IS NOT NULL";
    assert_eq!(row(&client, pinned).await, "t");
    let nameless = "SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
        WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
            AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'postbox')
            AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass)
            AND obj_description(objid, classid::regclass::name) IS NULL";
    assert_eq!(rows(&client, nameless).await, [""; 0]);
}

#[tokio::test]
async fn objects_in_the_callers_search_path_are_never_run() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE SCHEMA evil; CREATE TABLE evil.log (what text);
         CREATE FUNCTION evil.spring(what text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO evil.log VALUES (what); RETURN what; END $$;
         CREATE FUNCTION evil.format(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('format') $$;
         CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('format') $$;
         CREATE FUNCTION evil.quote_ident(text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('quote_ident') $$;
         CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS $$ SELECT evil.spring('length')::int $$;
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT evil.spring('now')::timestamptz $$;
         CREATE FUNCTION evil.gen_random_uuid() RETURNS uuid LANGUAGE sql AS $$ SELECT evil.spring('uuid')::uuid $$;
         CREATE FUNCTION evil.current_database() RETURNS name LANGUAGE sql AS $$ SELECT evil.spring('db')::name $$;
         CREATE FUNCTION evil.suppress_redundant_updates_trigger() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM evil.spring('trigger'); RETURN new; END $$;
         CREATE FUNCTION evil.glue(text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('||') $$;
         CREATE OPERATOR evil.|| (FUNCTION = evil.glue, LEFTARG = text, RIGHTARG = text);
         CREATE FUNCTION evil.same(name, text) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.spring('=') IS NULL $$;
         CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = name, RIGHTARG = text);
         CREATE FUNCTION evil.equal(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.spring('=') IS NULL $$;
         CREATE OPERATOR evil.= (FUNCTION = evil.equal, LEFTARG = text, RIGHTARG = text);
         CREATE TYPE evil.jsonb AS (trap text); CREATE TYPE evil.uuid AS (trap text);
         CREATE VIEW evil.pg_class AS SELECT 1 AS trap;
         CREATE TABLE old (id pg_catalog.uuid, type text, payload pg_catalog.jsonb);
         SET search_path = evil, public, pg_catalog",
    )
    .await;
    assert_eq!(row(&client, "SELECT format('%s', 'x'), 'a'::text || 'b'::text").await, "format|||");
    run(&client, "TRUNCATE evil.log").await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); SELECT postbox.adopt_outbox('old', event_id => 'id');
         SELECT * FROM postbox.outbox_status('orders')",
    )
    .await;
    run(&client, "SELECT postbox.enable_pgoutput()").await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders,old}')").await;
    run(
        &client,
        "SELECT * FROM postbox.consumer_groups;
         SELECT postbox.publish('orders', 't', '{}'::text, 'k', '{}'); SELECT postbox.publish('old', 't', '{}'::text);
         INSERT INTO orders (type) VALUES ('t'); UPDATE orders SET type = 'u';
         SELECT d.* FROM postbox.consumer_group g, pg_logical_slot_peek_binary_changes(g.slot_name, NULL, NULL),
            postbox.decode(data) d;
         SELECT postbox.drop_consumer_group('g'); SELECT postbox.drop_outbox('old')",
    )
    .await;
    assert_eq!(rows(&client, "SELECT what FROM evil.log").await, [""; 0]);
    run(&client, "SET search_path = pg_catalog").await;
    let column =
        "SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = 'public.orders'::regclass AND attname = 'payload'";
    assert_eq!(row(&client, column).await, "jsonb");
    let foreign =
        "SELECT count(*) FROM pg_depend d JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
        WHERE p.pronamespace = 'evil'::regnamespace AND d.classid IN ('pg_attrdef'::regclass, 'pg_trigger'::regclass)";
    assert_eq!(row(&client, foreign).await, "0");
    run(&client, "SET search_path = evil, public, pg_catalog; SELECT postbox.drop_outbox('orders')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM evil.log").await, "0");
}

/// Everything of `pg_catalog` that can be shadowed, in schema `evil`: each function with its own arguments, each operator, each
/// relation, each type. Whoever meets one of them springs the trap.
const SHADOWS: &str = r#"
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.sprung(pg_catalog.text) RETURNS pg_catalog.text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''the trap was sprung: %'', $1; END';
    DO LANGUAGE plpgsql $do$
    DECLARE
        shadow record;
        made int := 0;
    BEGIN
        FOR shadow IN
            SELECT DISTINCT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, p.proargtypes
            FROM pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
                AND NOT EXISTS (SELECT FROM unnest(p.proargtypes) AS a JOIN pg_type t ON t.oid = a WHERE t.typtype = 'p' AND t.typname !~ '^any')
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS text LANGUAGE plpgsql AS %L', shadow.proname,
                    (SELECT string_agg(format_type(a, NULL), ', ' ORDER BY n) FROM unnest(shadow.proargtypes) WITH ORDINALITY AS u(a, n)),
                    format('BEGIN PERFORM evil.sprung(%L); RETURN NULL; END', shadow.proname));
                made := made + 1;
            EXCEPTION WHEN duplicate_function OR invalid_function_definition OR feature_not_supported OR datatype_mismatch THEN NULL;
            END;
        END LOOP;
        FOR shadow IN SELECT o.oprname, o.oprleft, o.oprright, o.oprresult FROM pg_operator o
            WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft <> 0 AND o.oprright <> 0
        LOOP
            EXECUTE format('CREATE FUNCTION evil.op_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', made,
                format_type(shadow.oprleft, NULL), format_type(shadow.oprright, NULL), format_type(shadow.oprresult, NULL),
                format('BEGIN PERFORM evil.sprung(%L); RETURN NULL; END', shadow.oprname));
            EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.op_%s, LEFTARG = %s, RIGHTARG = %s)', shadow.oprname, made,
                format_type(shadow.oprleft, NULL), format_type(shadow.oprright, NULL));
            made := made + 1;
        END LOOP;
        FOR shadow IN SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') LOOP
            EXECUTE format('CREATE VIEW evil.%I AS SELECT evil.sprung(%L)', shadow.relname, shadow.relname);
            EXECUTE format('CREATE TEMP VIEW %I AS SELECT evil.sprung(%L)', shadow.relname, shadow.relname);
        END LOOP;
        FOR shadow IN SELECT typname FROM pg_catalog.pg_type WHERE typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND typtype = 'b' AND typname !~ '^_' LOOP
            EXECUTE format('CREATE TYPE evil.%I AS (trap pg_catalog.int4)', shadow.typname);
            BEGIN
                EXECUTE format('CREATE TYPE pg_temp.%I AS (trap pg_catalog.int4)', shadow.typname);
            EXCEPTION WHEN duplicate_object THEN NULL;
            END;
        END LOOP;
        IF made < 2500 THEN
            RAISE EXCEPTION 'only % traps were laid', made;
        END IF;
    END
    $do$"#;

/// What a superuser does with outboxes and groups; each line in a transaction of its own. `=` and `||` are trapped as well,
/// so the statements themselves use none.
const WORK: &str = r"
SELECT postbox.create_outbox('orders', generation_rows => 1024); SELECT postbox.adopt_outbox('old', header_columns => '{tenant=t}'); SELECT postbox.adopt_outbox('serial', seq => 'n', xid => 'x')
SELECT postbox.enable_pgoutput()
SELECT postbox._require_replayable('orders', 'x'); SELECT postbox.set_retention('orders', '0', 1000000)
SELECT postbox.create_consumer_group('g', '{orders,old}')
SELECT postbox.publish('orders', 't', '{}'::pg_catalog.text); SELECT postbox.publish('orders', 't', '{}'::pg_catalog.jsonb); SELECT postbox.publish('orders', 't', '{}'::pg_catalog.json)
SELECT postbox.publish('old', 't', '{}'::pg_catalog.text, headers => NULL); INSERT INTO serial (type) VALUES ('t')
SELECT postbox.enable_claim_check('orders', 2, 1000); SELECT postbox.disable_claim_check('orders'); SELECT postbox.enable_claim_check('orders', 1, 1000)
SELECT postbox.publish_batch('orders', 't', 'SELECT g.n FROM pg_catalog.generate_series(1, 3) AS g(n)'); SELECT postbox.publish_batch('orders', 't', ARRAY['1', '2']::pg_catalog.jsonb[])
SELECT postbox.publish_batch('orders', 't', 'SELECT 1'); SELECT postbox.publish_large('orders', 't', '\x00'::pg_catalog.bytea); SELECT postbox.publish_large('orders', 't', '1'::pg_catalog.text)
SELECT c.* FROM orders o, postbox.claim_chunks('orders', o.seq, 0, 1, o.xid) c WHERE o.claim IS NOT NULL; SELECT * FROM postbox.outbox_rows_consumed('orders'); SELECT * FROM postbox.claim_checks
SELECT d.* FROM postbox.consumer_group g, pg_catalog.pg_logical_slot_peek_binary_changes(g.slot_name, NULL, NULL), postbox.decode(data) d
SELECT postbox.grant_role('publisher', 'mallory', '{orders,old}'); SELECT postbox.grant_role('maintainer', 'mallory', '{orders,old}')
SELECT postbox.grant_role('consumer', 'mallory'); SELECT postbox.grant_role('operator', 'mallory'); SELECT postbox.grant_role('monitor', 'mallory')
SELECT postbox.revoke_role('publisher', 'mallory', '{orders,old}'); SELECT postbox.revoke_role('maintainer', 'mallory', '{orders,old}')
SELECT postbox.revoke_role('consumer', 'mallory'); SELECT postbox.revoke_role('operator', 'mallory'); SELECT postbox.revoke_role('monitor', 'mallory')
SELECT postbox.enable_outbox('captured', key => '{part}', columns => '{id}'); SELECT postbox.enable_outbox('whole', 'orders', replicated => true)
INSERT INTO captured VALUES (1, 2); UPDATE captured SET id = 3; DELETE FROM captured; TRUNCATE captured; INSERT INTO whole VALUES (1); INSERT INTO leaf VALUES (2); TRUNCATE whole
INSERT INTO captured SELECT n, n FROM pg_catalog.generate_series(1, 1100) n; SELECT * FROM postbox.captures
SELECT postbox.refresh_materialized_view('view', 'orders', key => '{n}'); SELECT postbox.refresh_materialized_view('view', 'orders', concurrently => true)
SELECT postbox.disable_outbox('captured', with_outbox => true); SELECT postbox.disable_outbox('whole'); TRUNCATE captured
SELECT postbox.set_source('g', 'pgoutput')
SELECT * FROM postbox._outbox_shape('orders'::pg_catalog.regclass); SELECT postbox._base_types('{20}')
SELECT postbox.drop_consumer_group('g')
SELECT postbox.create_consumer_group('g', '{orders,serial}', 'earliest', wal_budget => 1000000)
SELECT postbox.set_wal_budget('g', 1, 'drop'); SELECT postbox.set_wal_budget('g', NULL)
SELECT postbox.pause_consumer_group('g'); SELECT postbox.resume_consumer_group('g')
SELECT postbox.maintain(true)
SELECT postbox.seek_consumer_group('g', 'earliest', dry_run => true)
SELECT postbox.seek_consumer_group('g', '2020-01-01T00:00:00Z', dry_run => true)
SELECT postbox.seek_consumer_group('g', c.lsn::pg_catalog.text, dry_run => true) FROM postbox.checkpoint c
SELECT postbox.seek_consumer_group('g', o.event_id::pg_catalog.text) FROM orders o LIMIT 1
SELECT postbox.seek_consumer_group('g', 'latest')
SELECT postbox.seek_consumer_group('g', 'earliest')
SELECT pg_catalog.pg_drop_replication_slot(g.slot_name) FROM postbox.consumer_group g
SELECT postbox.recover_consumer_group('g')
SELECT postbox._try_membership('g'); SELECT postbox._activate('g', 'me', '10 s', '1 min')
SELECT s.frame FROM postbox._backfills('g') b, LATERAL postbox._stored_events('g', b.outbox, NULL, 10) s
SELECT postbox._backfilled('g', g.epoch, b.outbox, 100, true) FROM postbox.consumer_group g, postbox._backfills('g') b
SELECT postbox._checkpoint('g', g.epoch, b.snapshot, b.lsn) FROM postbox.consumer_group g, postbox._beat('g') b
SELECT postbox._store_dead_letters('g', g.epoch, false, '{o,o}', '{1,2}', '{1,2}', '{1,2}', '{k,k}', '{t,t}', '{1,2}', '{0/1,0/2}', '{0,0}', '{now,now}', '{f,f}', '{failed,follower}', '{1,0}', '{\xff00,NULL}', '{now,NULL}', '{NULL,NULL}') FROM postbox.consumer_group g
SELECT postbox._store_dead_letters('g', g.epoch, true, '{o}', '{3}', '{3}', '{3}', '{k}', '{t}', '{3}', '{0/3}', '{0}', '{now}', '{f}', '{follower}', '{0}', '{NULL}', '{NULL}', '{NULL}') FROM postbox.consumer_group g
SELECT postbox.redrive_dead_letters('g', key => 'k', type => 't', error => 'x', older_than => '0', dry_run => true); SELECT postbox.redrive_dead_letters('g', every => true)
SELECT postbox._call_up_dead_letters('g', g.epoch) FROM postbox.consumer_group g; SELECT postbox._dead_letter_keys('g')
SELECT postbox._fail_dead_letter('g', g.epoch, d.id, 'again', 10) FROM postbox.consumer_group g, postbox._due_dead_letters('g', true, true, '{7}', 10, 1000000) d
SELECT postbox._delivered_dead_letter('g', g.epoch, min(d.id)) FROM postbox.consumer_group g, postbox.dead_letters d GROUP BY g.epoch
SELECT postbox.discard_dead_letters('g', every => true)
SELECT postbox._release('g', g.epoch, '0/0') FROM postbox.consumer_group g; SELECT pg_catalog.pg_advisory_unlock_all()
SELECT * FROM postbox.consumer_groups; SELECT * FROM postbox.consumer_status; SELECT * FROM postbox.active_leases; SELECT * FROM postbox.consumer_lag
SELECT * FROM postbox.outboxes; SELECT * FROM postbox.outbox_status('orders'); SELECT * FROM postbox.retention_status; SELECT * FROM postbox.maintenance_status
SELECT * FROM postbox.dead_letters; SELECT * FROM postbox._slot_risk; SELECT * FROM postbox._need; SELECT * FROM postbox._leaf; SELECT postbox.describe_consumer_group('g')
SELECT postbox.set_wal_budget('g', 1, 'drop')
SELECT postbox.publish('orders', 't', pg_catalog.to_jsonb(pg_catalog.repeat('x', 1000)::pg_catalog.text)) FROM pg_catalog.generate_series(1, 10)
SELECT postbox.maintain(true)
SELECT postbox.drop_consumer_group('g')
SELECT pg_catalog.setval('orders_seq_seq', 1024); SELECT postbox.publish('orders', 't', '{}'::pg_catalog.text)
SELECT postbox.maintain(true)
SELECT postbox.enable_delayed_events('orders'); SELECT postbox.publish_later('orders', 't', '{}'::pg_catalog.text, '2100-01-01'); SELECT postbox.publish_later('orders', 't', '{}'::pg_catalog.jsonb, '2000-01-01'); UPDATE orders_later SET due_at = pg_catalog.now()
SELECT postbox.enable_unique_events('orders'); SELECT postbox.publish_once('orders', pg_catalog.gen_random_uuid(), 't', '{}'::pg_catalog.text); SELECT postbox.publish_once('orders', pg_catalog.gen_random_uuid(), 't', '{}'::pg_catalog.jsonb); UPDATE orders_once SET published_at = '2000-01-01'
SELECT postbox.maintain(true)
SELECT postbox.publish('orders', 't', '{}'::pg_catalog.text); SELECT postbox.published_here('orders'); SELECT postbox.peek_outbox('orders'); SELECT postbox.purge_outbox('orders'); SELECT postbox.purge_outbox('orders', force => true)
SELECT postbox.set_emit('orders', true); SELECT postbox.emit('orders', 't', '{}'::pg_catalog.text); SELECT postbox.emit('orders', 't', '{}'::pg_catalog.jsonb); SELECT postbox.emit('orders', 't', '{}'::pg_catalog.json); SELECT postbox.set_emit('orders', false)
SELECT postbox.drop_outbox('old'); SELECT postbox.drop_outbox('serial'); SELECT postbox.drop_outbox('orders')";

/// And with inboxes.
const INBOX_WORK: &str = r#"
SELECT postbox.create_inbox('payments', max_retries => 0, retention => '0', dedup_window => '1 hour'); SELECT postbox.create_inbox('columned', style => 'update', retention => '0', dedup_window => '0', max_retries => 1)
SELECT postbox.enable_inbox_tracking('taken', event_id => 'id', payload => 'body', processed_at => 'done')
INSERT INTO payments (event_id, payload, aggregate_id, sequence_num, priority) SELECT n::pg_catalog.text, '{}', 'a', n, n FROM pg_catalog.generate_series(1, 60) n; INSERT INTO payments (event_id, payload) VALUES ('1', '[]'), ('2', '{}') ON CONFLICT DO NOTHING
SELECT postbox.inbox_receive('payments', 'r', '{}', aggregate_id => 'a', sequence_num => 61); SELECT postbox.inbox_receive('payments', 'r', '[]'); SELECT postbox.inbox_receive('taken', '3', '{}'), postbox.inbox_receive('taken', '3', '[]'); SELECT postbox.inbox_receive_batch('payments', '{r,r}', ARRAY['{}', '[]']::pg_catalog.jsonb[]), postbox.inbox_receive_batch('taken', '{3,3}', ARRAY['{}', '[]']::pg_catalog.jsonb[]); SELECT postbox.inbox_claim('taken', 'w', 500) FROM pg_catalog.generate_series(1, 3)
SELECT postbox.inbox_complete('payments', pg_catalog.array_agg(c.event_id), pg_catalog.array_agg(c.token)) FROM postbox.inbox_claim('payments', 'w', 1) c
SELECT postbox.inbox_release('payments', pg_catalog.array_agg(c.event_id), pg_catalog.array_agg(c.token)) FROM postbox.inbox_claim('payments', 'w', 2) c
SELECT postbox.inbox_extend('payments', pg_catalog.array_agg(c.event_id), pg_catalog.array_agg(c.token)), postbox.inbox_fail('payments', pg_catalog.min(c.event_id), pg_catalog.min(c.token), 'e') FROM postbox.inbox_claim('payments', 'w', 3) c
SELECT postbox.inbox_claim('payments', 'w', 2, 1); UPDATE postbox.inbox_batch SET lease_until = '2000-01-01' WHERE token IS NOT NULL; SELECT postbox.inbox_claim('payments', 'w', 1) FROM pg_catalog.generate_series(1, 9)
UPDATE postbox.inbox_batch SET lease_until = '2000-01-01', alone = true WHERE token IS NOT NULL
SELECT postbox.maintain(true)
SELECT postbox.replay_inbox_dead_letters('payments', every => true, rate => 1000000); SELECT postbox.inbox_complete('payments', pg_catalog.array_agg(c.event_id), pg_catalog.array_agg(c.token)) FROM postbox.inbox_claim('payments', 'w', 500) c
SELECT postbox.enable_inbox_priority('payments', tiers => '[{"name": "one", "lowest": 30}, {"name": "two", "highest": 29}]'); SELECT postbox.pause_inbox('payments', 'one'); SELECT postbox.resume_inbox('payments', 'one'); SELECT postbox.set_inbox('payments', dedup_window => '0'), postbox.set_inbox('payments', dedup_window => '1 hour')
INSERT INTO payments (event_id, payload, aggregate_id, sequence_num) SELECT pg_catalog.concat('o', n), '{}', 'o', n FROM pg_catalog.generate_series(1, 3) n; INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('p3', 'p', 3), ('p4', 'p', 3), ('q1', 'q', 1), ('q2', 'q', 2)
UPDATE postbox.inbox SET failure_policy = 'park' WHERE name OPERATOR(pg_catalog.=) 'payments'; DELETE FROM postbox.inbox_batch WHERE token IS NOT NULL; SELECT postbox.enable_inbox_ordering('payments')
SELECT postbox.inbox_gap_skip('payments', 'p', '[1,2]', 'never sent'); SELECT * FROM postbox.inbox_ordering_gaps(); SELECT * FROM gaps_payments; SELECT * FROM next_payments
SELECT postbox.inbox_fail('payments', 'q1', c.token, 'e') FROM postbox.inbox_claim('payments', 'w', 500) c WHERE c.event_id OPERATOR(pg_catalog.=) 'q1'
SELECT * FROM pending_payments; SELECT * FROM dlq_payments; SELECT * FROM messages_payments; SELECT * FROM stats_payments; SELECT * FROM pending_payments_one
SELECT * FROM postbox.inbox_status(); SELECT * FROM postbox.inbox_health(); SELECT postbox.inbox_is_my_partition('k', 0, 2)
SELECT postbox.discard_inbox_dead_letters('payments', '{q1}'); SELECT postbox.replay_inbox_messages('payments', pg_catalog.array_agg(b.event_id)) FROM payments b JOIN postbox.inbox i ON i.name OPERATOR(pg_catalog.=) 'payments' JOIN postbox.inbox_log g ON g.inbox OPERATOR(pg_catalog.=) i.id AND b.event_id OPERATOR(pg_catalog.=) ANY (g.event_ids) WHERE g.what OPERATOR(pg_catalog.=) 'processed' AND b.event_id OPERATOR(pg_catalog.~) '^5'
UPDATE columned SET retry_count = 1; INSERT INTO columned (event_id) VALUES ('u1'), ('u2'), ('u3'); UPDATE columned SET processed_at = pg_catalog.now() WHERE event_id OPERATOR(pg_catalog.=) 'u1'; UPDATE columned SET retry_count = 2 WHERE event_id OPERATOR(pg_catalog.=) 'u2'; UPDATE columned SET retry_count = 1 WHERE event_id OPERATOR(pg_catalog.=) 'u3'
SELECT * FROM pending_columned; SELECT * FROM dlq_columned; SELECT postbox.replay_inbox_dead_letters('columned', '{u2}')
SELECT postbox._stream_into_inbox(o.stream, o.token, '0/2', 0, '{s1}', '{t}', '{s}', '{k}', '{NULL}', '{x}', '{text}') FROM postbox._stream_source('none') s, postbox._open_inbox_stream('columned', 1, 1, 1, 'd', 'g', pg_catalog.now(), '0/9', 1, 'm', NULL, NULL) o; SELECT postbox._stream_into_inbox(o.stream, o.token, '0/2', 0, '{s1}', '{t}', '{s}', '{k}', '{NULL}', '{x}', '{text}') FROM postbox._open_inbox_stream('columned', 1, 1, 1, 'd', 'g', pg_catalog.now(), '0/9', 1, 'm', NULL, NULL) o
SELECT postbox.grant_role('worker', 'mallory', '{payments,columned}'); SELECT postbox.grant_role('receiver', 'mallory', '{payments,columned}'); SELECT postbox.revoke_role('worker', 'mallory', '{payments,columned}'); SELECT postbox.revoke_role('receiver', 'mallory', '{payments,columned}')
UPDATE postbox.inbox SET dead_retention = '0'; SELECT pg_catalog.setval('postbox.inbox_log_id_seq', pg_catalog.nextval('postbox.inbox_log_id_seq') OPERATOR(pg_catalog.+) 1048576)
SELECT postbox.inbox_receive('payments', 'last', '{}'), postbox.inbox_receive('payments', 'last', '{}')
SELECT postbox.maintain(true)
SELECT postbox.maintain(true)
SELECT postbox.maintain(true)
ALTER TABLE payments RENAME TO crate; SELECT postbox.repair_inbox('payments'); ALTER TABLE crate RENAME TO payments; SELECT postbox.repair_inbox('payments')
SELECT postbox.disable_inbox_ordering('payments'); SELECT postbox.disable_inbox_priority('payments')
SELECT postbox.drop_inbox('payments', cascade => true); SELECT postbox.drop_inbox('columned', cascade => true); SELECT postbox.drop_inbox('taken')"#;

#[tokio::test]
async fn no_shadow_of_anything_in_pg_catalog_is_met_by_a_superuser() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE mallory; CREATE TABLE old (event_id uuid, type text, payload jsonb, tenant text);
         CREATE TABLE serial (event_id bigserial, type text, payload jsonb, n bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
             x xid8 NOT NULL DEFAULT pg_current_xact_id()); CREATE TABLE captured (id int, part int);
         CREATE TABLE whole (id int) PARTITION BY LIST (id); CREATE TABLE leaf PARTITION OF whole DEFAULT; SET track_functions = 'all';
         CREATE MATERIALIZED VIEW view AS SELECT 1 AS n WITH NO DATA; CREATE UNIQUE INDEX ON view (n);
         CREATE TABLE taken (id bigint PRIMARY KEY, body json, done timestamptz); INSERT INTO taken VALUES (1), (2)",
    )
    .await;
    // Left behind, for maintenance to find.
    run(&client, "SELECT pg_create_logical_replication_slot(postbox._slot_name('gone', 1), 'postbox')").await;
    run(&client, SHADOWS).await;
    run(&client, "CREATE FUNCTION evil.last() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'").await;
    // pg_temp first too: that is where relations and types are looked up by default.
    for path in ["evil, public, pg_catalog", "pg_temp, evil, public, pg_catalog", "evil, public"] {
        run(&client, &format!("SET search_path = {path}")).await;
        if path.ends_with("pg_catalog") {
            let sprung = error(&client, "SELECT upper('the trap works'::pg_catalog.text)").await;
            assert!(sprung.message().contains("sprung"), "{sprung:?}");
        }
        for transaction in WORK.lines().chain(INBOX_WORK.lines()) {
            run(&client, transaction).await;
        }
    }
    // Refusals are made by the same rules.
    for sql in [
        "SELECT postbox.create_outbox('a.b')",
        "SELECT postbox.adopt_outbox('none')",
        "SELECT postbox.adopt_outbox('old', layout => 'debezium')",
        "SELECT postbox.drop_outbox('none')",
        "SELECT postbox.enable_outbox('none')",
        "SELECT postbox.enable_outbox('captured', columns => '{none}')",
        "SELECT postbox.disable_outbox('captured')",
        "SELECT postbox.drop_consumer_group('none')",
        "SELECT postbox.create_consumer_group('G', '{old}')",
        "SELECT postbox.publish('none', 't', '{}'::pg_catalog.text)",
        "SELECT postbox.grant_role('owner', 'mallory')",
        "SELECT postbox.set_retention('none', '1 day')",
        "SELECT postbox.set_wal_budget('none', 1)",
        "SELECT postbox.pause_consumer_group('none')",
        "SELECT postbox.seek_consumer_group('none', 'latest')",
        "SELECT postbox.recover_consumer_group('none')",
        "SELECT postbox.describe_consumer_group('none')",
        "SELECT postbox.redrive_dead_letters('none')",
        "SELECT postbox.discard_dead_letters('none', '{1}')",
        "SELECT postbox._activate('none', 'me', '10 s', '1 min')",
        "SELECT postbox._require_epoch('none', 1)",
        "SELECT postbox.create_inbox('a.b')",
        "SELECT postbox.create_inbox('b', retention => NULL)",
        "SELECT postbox.inbox_claim('none', 'w')",
        "SELECT postbox.create_inbox('refusing'); INSERT INTO refusing (event_id, error) VALUES ('a', 'e')",
        "SELECT postbox.create_inbox('refusing'); INSERT INTO refusing (event_id) VALUES ('')",
        "SELECT postbox.create_inbox('refusing'); SELECT postbox.inbox_complete('refusing', '{a}', '{1}')",
        "SELECT postbox.create_inbox('refusing'); SELECT postbox.enable_inbox_priority('refusing', tiers => '{}')",
        "SELECT postbox.drop_inbox('none')",
        "SELECT postbox.enable_inbox_tracking('pg_class')",
        "SELECT postbox.set_emit('none', true)",
        "SELECT postbox.purge_outbox('none')",
        "SELECT postbox.enable_unique_events('none')",
    ] {
        let refusal = error(&client, sql).await;
        assert!(refusal.hint().is_some() || refusal.detail().is_some(), "{sql}: {refusal:?}");
        assert!(!refusal.message().contains("sprung"), "{sql}: {refusal:?}");
    }
    // Before PostgreSQL 15 counts are sent as datagrams, which may be lost.
    if postbox_tests::major() < 15 {
        return;
    }
    // Nothing was left out: every function whose body is looked up when it runs has run. Counts are told together.
    run(&client, "SET search_path = pg_catalog, pg_temp; SELECT evil.last()").await;
    wait_until_async("calls are counted", PATIENCE, async || {
        let counted = "SELECT count(*) FROM pg_stat_user_functions WHERE funcname = 'last'";
        (row(&client, counted).await == "1").then_some(())
    })
    .await;
    let idle = "SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        LEFT JOIN pg_stat_user_functions f ON f.funcid = p.oid
        WHERE p.pronamespace = 'postbox'::regnamespace AND l.lanname = 'plpgsql' AND f.calls IS NULL";
    assert_eq!(rows(&client, idle).await, [""; 0]);
}

#[tokio::test]
async fn roles_are_dumped_and_restored() {
    let (cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); CREATE ROLE app; CREATE ROLE ops REPLICATION;
         SELECT postbox.grant_role('publisher', 'app', '{orders}'); SELECT postbox.grant_role('operator', 'ops')",
    )
    .await;
    run(&client, "CREATE DATABASE restored").await;
    let dump = std::process::Command::new(cluster.bin("pg_dump"))
        .args(["-d", &cluster.conninfo("postgres")])
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    cluster.psql("restored", &String::from_utf8(dump.stdout).unwrap());
    let rights = "SELECT has_table_privilege('app', 'orders', 'insert'), has_function_privilege('ops', p.oid, 'execute'),
        has_function_privilege('app', p.oid, 'execute'), has_table_privilege('ops', 'postbox.consumer_group', 'insert, delete')
        FROM pg_proc p WHERE p.pronamespace = 'postbox'::regnamespace AND p.proname = 'create_outbox'";
    assert_eq!(cluster.psql("restored", rights), "t|t|f|t");
}
