//! `publish` and `emit` from SQL alone: what the extension's do, they do.

// The same tests, with another `start` around them.
#[allow(clippy::duplicate_mod)]
#[path = "../sql/publish.rs"]
mod publish;

use postbox_tests::Cluster;
use postbox_tests::tap::deliver;
use serde_json::json;
use tokio_postgres::Client;

use super::postbox;
use crate::sql::{error, refused, row, rows, run};

/// A cluster with the schema in its database `postgres`, and a connection to it.
async fn start() -> (Cluster, Client) {
    let cluster = Cluster::start();
    let output = postbox(&cluster.conninfo("postgres"), &["install"]);
    assert!(output.status.success(), "{output:?}");
    let client = cluster.client("postgres").await;
    (cluster, client)
}

#[tokio::test]
async fn publishing_needs_nothing_but_insert_and_finds_what_triggers_use_where_the_caller_does() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); CREATE ROLE app; GRANT INSERT ON orders TO app; CREATE SCHEMA mine;
         CREATE TABLE mine.notes (t text); GRANT USAGE ON SCHEMA mine TO app; GRANT INSERT ON mine.notes TO app;
         CREATE FUNCTION mine.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO notes VALUES (new.type); RETURN new; END $$;
         CREATE TRIGGER note BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION mine.note()",
    )
    .await;
    run(&client, "SET ROLE app; SET search_path = mine, public; SELECT postbox.publish('orders', 'noted', '{}')").await;
    assert_eq!(row(&client, "SHOW search_path").await, "mine, public");
    for sql in [
        "SELECT postbox.create_outbox('other')",
        "SELECT * FROM public.orders",
        "SELECT postbox._frame('public.orders', row(1))",
    ] {
        assert_eq!(error(&client, sql).await.code().code(), "42501", "{sql}");
    }
    run(&client, "RESET ROLE").await;
    assert_eq!(rows(&client, "SELECT t FROM mine.notes").await, ["noted"]);
    run(&client, "REVOKE INSERT ON public.orders FROM app; SET ROLE app").await;
    assert_eq!(error(&client, "SELECT postbox.publish('public.orders', 't', '{}')").await.code().code(), "42501");
}

#[tokio::test]
async fn nothing_of_the_caller_is_run_but_what_the_table_runs() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); CREATE TABLE old (id uuid, type varchar, payload jsonb); SELECT postbox.adopt_outbox('old', event_id => 'id');
         CREATE SCHEMA evil; CREATE TABLE evil.log (what text);
         CREATE FUNCTION evil.spring(what text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO evil.log VALUES (what); RETURN what; END $$;
         CREATE FUNCTION evil.format(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('format') $$;
         CREATE FUNCTION evil.more(bigint, int) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.spring('>') IS NULL $$;
         CREATE OPERATOR evil.> (FUNCTION = evil.more, LEFTARG = bigint, RIGHTARG = int);
         CREATE FUNCTION evil.gen_random_uuid() RETURNS uuid LANGUAGE sql AS $$ SELECT evil.spring('uuid')::uuid $$;
         CREATE TYPE evil.jsonb AS (trap text); CREATE TYPE evil.uuid AS (trap text); CREATE TYPE evil.\"varchar\" AS (trap text);
         SET search_path = evil, public, pg_catalog",
    )
    .await;
    run(
        &client,
        "SELECT postbox.publish('orders', 't', '{}'::text, 'k', '{}'), postbox.publish('old', 't', '{}'::text)",
    )
    .await;
    assert_eq!(rows(&client, "SELECT what FROM evil.log").await, [""; 0]);
    assert_eq!(
        row(&client, "SELECT (SELECT count(*) FROM public.orders), (SELECT count(*) FROM public.old)").await,
        "1|1"
    );
    let unpinned = "SELECT p.oid::pg_catalog.regprocedure FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'postbox'::pg_catalog.regnamespace AND p.prosqlbody IS NULL
            AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)";
    assert_eq!(rows(&client, unpinned).await, [""; 0]);
    let nameless = "SELECT p.oid::pg_catalog.regprocedure FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'postbox'::pg_catalog.regnamespace
        AND (pg_catalog.obj_description(p.oid, 'pg_proc') IS NULL OR p.prosecdef OR p.prolang = (SELECT oid FROM pg_catalog.pg_language WHERE lanname = 'c'))";
    assert_eq!(rows(&client, nameless).await, [""; 0]);
}

#[tokio::test]
async fn an_adopted_table_takes_what_fits_its_columns() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE bare (id int, type text, payload text); SELECT postbox.adopt_outbox('bare', event_id => 'id');
         CREATE TABLE keyed (event_id text, type text, key uuid, headers json, payload jsonb); SELECT postbox.adopt_outbox('keyed')",
    )
    .await;
    refused(
        &client,
        "SELECT postbox.publish('bare', 't', 'p')",
        "42804",
        "event_id of type uuid does not fit column \"id\"",
        "INSERT into the table",
    )
    .await;
    run(&client, "SELECT postbox.publish('keyed', 't', '[]', '00000000-0000-4000-8000-0000000000ab', '{\"h\": 1}')")
        .await;
    assert_eq!(
        row(&client, "SELECT key, headers, payload, length(event_id) FROM keyed").await,
        "00000000-0000-4000-8000-0000000000ab|{\"h\": 1}|[]|36"
    );
    run(&client, "CREATE TABLE less (event_id uuid, type text, payload jsonb); SELECT postbox.adopt_outbox('less')")
        .await;
    refused(
        &client,
        "SELECT postbox.publish('less', 't', '1', 'k')",
        "42703",
        "outbox \"less\" has no column for key",
        "Leave key out",
    )
    .await;
    refused(
        &client,
        "SELECT postbox.publish('less', 't', '1', NULL, '{}')",
        "42703",
        "no column for headers",
        "Leave headers out",
    )
    .await;
    run(&client, "ALTER TABLE less RENAME COLUMN payload TO body").await;
    refused(
        &client,
        "SELECT postbox.publish('less', 't', '1')",
        "42809",
        "the column \"payload\" for payload does not exist",
        "Adopt the table anew",
    )
    .await;
}

#[tokio::test]
async fn emitted_events_come_as_the_extensions_do() {
    let (cluster, client) = start().await;
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        run(&client, &format!("SELECT postbox.create_outbox('of_{payload_type}', payload_type => '{payload_type}'), postbox.set_emit('of_{payload_type}', true)")).await;
    }
    run(&client, "SELECT postbox.create_outbox('closed'); CREATE ROLE app").await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{of_jsonb,of_json,of_text,of_bytea,closed}')").await;
    run(
        &client,
        r#"BEGIN; SELECT postbox.emit('of_jsonb', 'a', '{"n": 1.50}', key => 'k "1"', headers => '{"h": [1]}', event_id => '00000000-0000-4000-8000-0000000000ab');
           SAVEPOINT s; SELECT postbox.emit('of_jsonb', 'undone', '{}'); ROLLBACK TO s; SELECT postbox.emit('of_json', 'b', '[ 1 ]'::json); COMMIT;
           SELECT postbox.emit('of_text', E'ä\n', E'"\\😀'), postbox.emit('of_bytea', 'd', '\x00ff'::bytea), postbox.emit('of_jsonb', 'e', NULL::jsonb), postbox.emit('of_text', 'f', '{"a":1}'::jsonb)"#,
    )
    .await;
    let events = deliver(&cluster, "postgres", &["--group", "g"]);
    let parts = events
        .iter()
        .map(|e| json!([e["type"], e["key"], e["headers"], e["payload"], e["ordinal"]]))
        .collect::<Vec<_>>();
    let expected = [
        json!(["a", "k \"1\"", {"h": [1]}, {"n": 1.5}, 0]),
        json!(["b", null, null, [1], 1]),
        json!(["ä\n", null, null, "\"\\😀", 0]),
        json!(["d", null, null, "AP8=", 1]),
        json!(["e", null, null, null, 2]),
        json!(["f", null, null, "{\"a\": 1}", 3]),
    ];
    assert_eq!(parts, expected);
    assert_eq!(events[0]["event_id"], "00000000-0000-4000-8000-0000000000ab");
    for (call, code, message, hint) in [
        ("'closed', 't', '{}'", "55000", "does not take events", "set_emit('closed', true)"),
        ("'none', 't', '{}'", "42P01", "outbox \"none\" does not exist", "create_outbox"),
        ("'of_jsonb', NULL, '{}'", "22004", "type of an event cannot be NULL", "outbox and a type"),
        ("NULL, 't', '{}'", "22004", "outbox of an event cannot be NULL", "outbox and a type"),
        ("'of_jsonb', 't', 'no json'", "22P02", "the payload is not JSON", "The outbox takes JSON"),
        ("'of_bytea', 't', 'text'", "42804", "does not fit column \"payload\"", "convert_to"),
        ("'of_json', 't', 'a'::bytea", "42804", "does not fit column \"payload\"", "convert_from"),
    ] {
        refused(&client, &format!("SELECT postbox.emit({call})"), code, message, hint).await;
    }
    run(&client, "SET ROLE app").await;
    refused(&client, "SELECT postbox.emit('of_jsonb', 't', '{}')", "42501", "permission denied for outbox", "INSERT")
        .await;
}

#[tokio::test]
async fn an_outbox_does_not_cease_to_take_events_while_one_is_under_way() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'), postbox.set_emit('orders', true)").await;
    run(&client, "CREATE ROLE app; GRANT USAGE ON SCHEMA postbox TO app; GRANT INSERT ON orders TO app").await;
    let other = cluster.client("postgres").await;
    other.batch_execute("SET ROLE app; BEGIN; SELECT postbox.emit('orders', 't', '{}')").await.expect("emitted");
    run(&client, "SET lock_timeout = '10ms'").await;
    assert_eq!(error(&client, "SELECT postbox.set_emit('orders', false)").await.code().code(), "55P03");
    other.batch_execute("COMMIT").await.expect("committed");
    run(&client, "RESET lock_timeout; SELECT postbox.set_emit('orders', false)").await;
}

/// SQL reads catalogs by the transaction's snapshot, and the log is read by what is committed.
#[tokio::test]
async fn what_an_outbox_has_ceased_to_take_is_not_written_from_an_old_snapshot() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'), postbox.set_emit('orders', true)").await;
    let other = cluster.client("postgres").await;
    let emit = "SELECT postbox.emit('orders', 't', '{}')";
    run(&other, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class").await;
    run(&client, "SELECT postbox.set_emit('orders', false)").await;
    refused(&other, emit, "40001", "was changed after this transaction", "again").await;
    run(&other, "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class").await;
    run(&client, "SELECT postbox.set_emit('orders', true)").await;
    refused(&other, emit, "40001", "was changed after this transaction", "again").await;
    run(&other, &format!("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; {emit}; COMMIT")).await;
}

#[tokio::test]
async fn frames_are_not_decoded_there_and_the_refusal_says_where() {
    let (_cluster, client) = start().await;
    refused(
        &client,
        "SELECT * FROM postbox.decode('\\x01')",
        "0A000",
        "frames cannot be decoded",
        "postbox dead-letter",
    )
    .await;
}
