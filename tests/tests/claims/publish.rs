//! What is inline, what is a claim, and what is refused.

use postbox_tests::wait_until_async;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{claim, data, numbers, publish, with_claims};
use crate::shop::PATIENCE;
use crate::sql::{refused, row, rows, run, start};

/// The payload and the claim of the newest event, and how many chunks there are in all.
async fn newest(client: &Client) -> (Value, Value, String) {
    let sql = "SELECT coalesce(payload, 'null'), coalesce(claim, 'null') FROM orders ORDER BY seq DESC LIMIT 1";
    let line = row(client, sql).await;
    let (payload, claim) = line.split_once('|').expect("two columns");
    let chunks = row(client, "SELECT count(*) FROM orders_claims").await;
    (serde_json::from_str(payload).expect("JSON"), serde_json::from_str(claim).expect("JSON"), chunks)
}

#[tokio::test]
async fn a_batch_is_inline_up_to_the_threshold_of_rows_and_a_claim_above() {
    let (_cluster, client) = with_claims().await;
    for count in [0, 1, 9, 10] {
        publish(&client, &numbers(count)).await;
        let rows: Vec<_> = (1..=count).map(|n| json!({ "n": n })).collect();
        assert_eq!(newest(&client).await, (json!(rows), Value::Null, "0".to_owned()), "{count}");
    }
    publish(&client, &numbers(11)).await;
    let (payload, claim, _) = newest(&client).await;
    assert_eq!((payload, &claim["rows"], &claim["format"]), (Value::Null, &json!(11), &json!("rows")));
    let lines: String = (1..=11).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    assert_eq!(data(&client, &claim["seq"]).await, lines);
    assert_eq!(claim["bytes"], json!(lines.len()));
    assert_eq!(row(&client, "SELECT seq FROM orders ORDER BY seq DESC LIMIT 1").await, claim["seq"].to_string());
    assert_eq!(row(&client, "SELECT sum(rows), count(*) FROM orders_claims").await, format!("11|{}", claim["chunks"]));
}

#[tokio::test]
async fn a_batch_is_inline_up_to_the_threshold_of_bytes_and_a_claim_above() {
    let (_cluster, client) = with_claims().await;
    // {"t":"…"} and a line break.
    for (length, inline) in [(999, true), (1000, true), (1001, false)] {
        publish(&client, &format!("SELECT repeat('x', {} - 9) AS t", length)).await;
        let (payload, claim, _) = newest(&client).await;
        assert_eq!((payload.is_null(), claim.is_null()), (!inline, inline), "{length}: {payload} {claim}");
    }
    let (_, claim, _) = newest(&client).await;
    assert_eq!((&claim["rows"], &claim["bytes"]), (&json!(1), &json!(1001)));
}

#[tokio::test]
async fn a_value_is_inline_up_to_the_threshold_and_a_claim_above() {
    let (_cluster, client) = with_claims().await;
    run(&client, "SELECT postbox.create_outbox('files', payload_type => 'bytea'); SELECT postbox.enable_claim_check('files', 10, 1000)").await;
    for (length, inline) in [(999, "t"), (1000, "t"), (1001, "f")] {
        run(
            &client,
            &format!("SELECT postbox.publish_large('files', 'file', convert_to(repeat('x', {length}), 'UTF8'))"),
        )
        .await;
        let sql = "SELECT octet_length(payload) = 999 OR octet_length(payload) = 1000, claim IS NULL FROM files ORDER BY seq DESC LIMIT 1";
        let expected = if inline == "t" { "t|t" } else { "|f" };
        assert_eq!(row(&client, sql).await, expected, "{length}");
        run(
            &client,
            &format!("SELECT postbox.publish_large('orders', 'text', to_json(repeat('x', {length} - 2))::text)"),
        )
        .await;
        assert_eq!(
            row(&client, "SELECT claim IS NULL FROM orders ORDER BY seq DESC LIMIT 1").await,
            inline,
            "{length}"
        );
    }
    assert_eq!(claim(&client).await["format"], "json");
    assert_eq!(row(&client, "SELECT claim ->> 'format' FROM files WHERE claim IS NOT NULL").await, "bytes");
    // Bytes have no place in JSON, however few they are.
    run(&client, "SELECT postbox.publish_large('orders', 'bytes', '\\x00'::bytea)").await;
    let claim = claim(&client).await;
    assert_eq!((&claim["format"], &claim["bytes"], &claim["rows"]), (&json!("bytes"), &json!(1), &Value::Null));
    // What it may be does not hang on its size.
    for length in [1, 2000] {
        let sql = format!("SELECT postbox.publish_large('orders', 't', repeat('x', {length}))");
        assert_eq!(crate::sql::error(&client, &sql).await.code().code(), "22P02");
    }
    run(&client, "SELECT postbox.publish_large('files', 'text', 'ä')").await;
    assert_eq!(row(&client, "SELECT payload FROM files ORDER BY seq DESC LIMIT 1").await, "\\xc3a4");
}

#[tokio::test]
async fn nothing_of_a_large_batch_is_lost_and_its_chunks_are_bounded() {
    let (_cluster, client) = with_claims().await;
    // Short rows, long ones, one that is longer than many chunks, and characters of several bytes where chunks end.
    publish(
        &client,
        "SELECT n, CASE WHEN n % 1000 = 0 THEN repeat('lang – ü', 2000) WHEN n = 4321 THEN repeat('€', 200000) ELSE 'kurz' END AS t,
             E'{\"a\":\n1}'::json AS j FROM generate_series(1, 12345) n",
    )
    .await;
    let claim = claim(&client).await;
    assert_eq!(claim["rows"], 12345);
    let checked = format!(
        "SELECT count(*) = {}, sum(rows), sum(octet_length(data)) = {}, max(octet_length(data)) <= 65536, max(chunk) + 1 = count(*), bool_and(convert_from(data, 'UTF8') IS NOT NULL)
         FROM orders_claims WHERE seq = {}",
        claim["chunks"], claim["bytes"], claim["seq"]
    );
    assert_eq!(row(&client, &checked).await, "t|12345|t|t|t|t");
    let lines = data(&client, &claim["seq"]).await;
    let read: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(read.len(), 12345);
    for (row, n) in read.iter().zip(1..) {
        assert_eq!((&row["n"], &row["j"]), (&json!(n), &json!({ "a": 1 })));
    }
    assert_eq!(read[4320]["t"].as_str().map(|text| text.chars().filter(|c| *c == '€').count()), Some(200_000));
    let chained = format!(
        "WITH RECURSIVE chain AS (
             SELECT -1 AS chunk, ''::bytea AS hash
             UNION ALL
             SELECT c.chunk, sha256(chain.hash || c.data) FROM chain JOIN orders_claims c ON c.seq = {} AND c.chunk = chain.chunk + 1)
         SELECT encode(hash, 'hex') FROM chain ORDER BY chunk DESC LIMIT 1",
        claim["seq"]
    );
    assert_eq!(row(&client, &chained).await, claim["sha256"].as_str().expect("a text"));
}

#[tokio::test]
async fn a_batch_is_published_as_the_caller_sees_things() {
    let (_cluster, client) = with_claims().await;
    run(
        &client,
        "CREATE SCHEMA app; CREATE TABLE app.prices AS SELECT n AS id, n * 1.5 AS price FROM generate_series(1, 20) n;
         CREATE FUNCTION app.shout(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN upper($1) || (SELECT count(*) FROM prices); END $$;
         SET search_path = app, public",
    )
    .await;
    let query = "SELECT id, shout('a') AS s FROM prices ORDER BY id -- all of them";
    let sql = format!(
        "SELECT postbox.publish_batch('orders', 'prices', $q${query}$q$, key => 'k', headers => '{{\"a\": 1}}', event_id => '5f0dc0de-0000-4000-8000-000000000001')"
    );
    assert_eq!(row(&client, &sql).await, "5f0dc0de-0000-4000-8000-000000000001");
    assert_eq!(row(&client, "SHOW search_path").await, "app, public");
    assert_eq!(row(&client, "SELECT type, key, headers, claim ->> 'rows' FROM orders").await, "prices|k|{\"a\": 1}|20");
    assert_eq!(
        row(&client, "SELECT convert_from(data, 'UTF8') LIKE E'{\"id\":1,\"s\":\"A20\"}\\n%' FROM orders_claims").await,
        "t"
    );
    run(&client, "SELECT postbox.publish_batch('orders', 'docs', ARRAY['1', NULL, '{\"a\": \"x\"}']::jsonb[])").await;
    assert_eq!(row(&client, "SELECT payload FROM orders ORDER BY seq DESC LIMIT 1").await, r#"[1, null, {"a": "x"}]"#);
}

#[tokio::test]
async fn whoever_may_insert_may_publish_claims_and_nobody_else() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE app; CREATE ROLE late; CREATE ROLE other; SELECT postbox.create_outbox('orders'); GRANT INSERT ON orders TO app;
         SELECT postbox.enable_claim_check('orders', 0, 0); SELECT postbox.grant_role('publisher', 'late', '{orders}')",
    )
    .await;
    for role in ["app", "late"] {
        run(&client, &format!("SET ROLE {role}; SELECT postbox.publish_batch('orders', 't', 'SELECT 1'); RESET ROLE"))
            .await;
        run(&client, &format!("SET ROLE {role}; SELECT postbox.publish_large('orders', 't', '1'::text); RESET ROLE"))
            .await;
        for sql in [
            "SELECT * FROM orders_claims",
            "SELECT * FROM postbox.claim_chunks('orders', 1)",
            "DELETE FROM orders_claims",
            "SELECT postbox.enable_claim_check('orders')",
        ] {
            let denied = crate::sql::error(&client, &format!("SET ROLE {role}; {sql}")).await;
            assert_eq!(denied.code().code(), "42501", "{sql}");
            run(&client, "RESET ROLE").await;
        }
    }
    let denied =
        crate::sql::error(&client, "SET ROLE other; SELECT postbox.publish_batch('orders', 't', 'SELECT 1')").await;
    assert_eq!(denied.code().code(), "42501");
    run(&client, "RESET ROLE").await;
    assert_eq!(row(&client, "SELECT count(*), count(claim) FROM orders").await, "4|4");
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing_behind() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE old (event_id uuid, type text, payload jsonb); SELECT postbox.adopt_outbox('old'); CREATE TABLE plain (n int); SELECT postbox.create_outbox('orders')").await;
    let long = "o".repeat(54);
    run(&client, &format!("SELECT postbox.create_outbox('{long}'); SELECT postbox.create_outbox('taken'); CREATE TABLE taken_claims_g2 ()")).await;
    run(&client, "SELECT postbox.create_outbox('mine'); ALTER TABLE mine ADD COLUMN claim text").await;
    let refusals = [
        ("SELECT postbox.enable_claim_check('nothing')", "42P01", "\"nothing\" does not exist", "outbox_status"),
        ("SELECT postbox.enable_claim_check('plain')", "42809", "\"plain\" is not an outbox", "outbox_status"),
        ("SELECT postbox.enable_claim_check('old')", "42809", "adopted", "create_outbox"),
        ("SELECT postbox.enable_claim_check('orders', -1)", "22023", "is -1", "10000"),
        ("SELECT postbox.enable_claim_check('orders', NULL)", "22023", "is NULL", "10000"),
        (
            "SELECT postbox.enable_claim_check('orders', 1, 67108865)",
            "22023",
            "67108865, must be 0 to 67108864",
            "1 MiB",
        ),
        (&format!("SELECT postbox.enable_claim_check('{long}')"), "42602", "54 bytes, must have 53", "Rename"),
        ("SELECT postbox.enable_claim_check('taken')", "42P07", "taken_claims", "Rename"),
        ("SELECT postbox.enable_claim_check('mine')", "42701", "claim of type text", "Rename"),
        ("SELECT postbox.publish_batch('nothing', 't', 'SELECT 1')", "42P01", "does not exist", "outbox_status"),
        ("SELECT postbox.publish_batch(NULL, 't', 'SELECT 1')", "22004", "NULL", "outbox_status"),
        ("SELECT postbox.publish_batch('plain', 't', 'SELECT 1')", "42809", "not an outbox", "outbox_status"),
        ("SELECT postbox.publish_batch('orders', NULL, 'SELECT 1')", "22004", "type", "what happened"),
        ("SELECT postbox.publish_batch('orders', 't', NULL::text)", "22004", "query", "SELECT"),
        ("SELECT postbox.publish_batch('orders', 't', NULL::jsonb[])", "22004", "rows", "empty array"),
        (
            "SELECT postbox.publish_batch('orders', 't', 'SELECT generate_series(1, 10001)')",
            "55000",
            "more than 10000 rows",
            "enable_claim_check",
        ),
        (
            "SELECT postbox.publish_large('orders', 't', to_json(repeat('x', 1048576))::text)",
            "55000",
            "1048578 bytes",
            "enable_claim_check",
        ),
        (
            "SELECT postbox.publish_large('orders', 't', '\\x00'::bytea)",
            "55000",
            "payloads are jsonb",
            "enable_claim_check",
        ),
        ("SELECT postbox.publish_large('orders', 't', NULL::text)", "22004", "NULL", "postbox.publish"),
        ("SELECT * FROM postbox.claim_chunks('orders', 1)", "42809", "not an outbox with claims", "claim_checks"),
        ("SELECT * FROM postbox.outbox_rows_consumed('orders')", "42809", "not an outbox with claims", "claim_checks"),
        ("SELECT * FROM postbox.outbox_rows_consumed('nothing')", "42P01", "does not exist", "claim_checks"),
    ];
    for (sql, code, message, hint) in refusals {
        refused(&client, sql, code, message, hint).await;
    }
    run(&client, "SELECT postbox.enable_claim_check('orders')").await;
    for sql in [
        "SELECT * FROM postbox.claim_chunks('orders', 1, -1)",
        "SELECT * FROM postbox.claim_chunks('orders', 1, 0, 0)",
        "SELECT * FROM postbox.claim_chunks('orders', NULL)",
    ] {
        refused(&client, sql, "22023", "chunks of claim", "counted from 0").await;
    }
    // A query that fails half way takes all of it along.
    let failing =
        "SELECT postbox.publish_batch('orders', 't', 'SELECT 1 / (15000 - n) FROM generate_series(1, 20000) n')";
    assert_eq!(crate::sql::error(&client, failing).await.code().code(), "22012");
    assert_eq!(row(&client, "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM orders_claims)").await, "0|0");
    assert_eq!(
        rows(&client, "SELECT relname FROM pg_class WHERE relname ~ '^(taken|mine|old|o+)_claims$'").await,
        [""; 0]
    );
}

#[tokio::test]
async fn thresholds_change_and_everything_goes_with_the_outbox() {
    let (cluster, client) = with_claims().await;
    let thresholds = "SELECT outbox, claims, inline_threshold_rows, inline_threshold_bytes FROM postbox.claim_checks";
    assert_eq!(row(&client, thresholds).await, "orders|public.orders_claims|10|1000");
    publish(&client, &numbers(11)).await;
    assert_eq!(row(&client, "SELECT postbox.enable_claim_check('orders', 11)").await, "orders_claims");
    publish(&client, &numbers(11)).await;
    assert_eq!(rows(&client, "SELECT claim IS NULL FROM orders ORDER BY seq").await, ["f", "t"]);
    // Both tables may be called otherwise, and be dumped and restored.
    run(&client, "CREATE SCHEMA app; ALTER TABLE orders RENAME TO sales; ALTER TABLE orders_claims RENAME TO large; ALTER TABLE large SET SCHEMA app").await;
    assert_eq!(row(&client, thresholds).await, "sales|app.large|11|1048576");
    let dump = std::process::Command::new(cluster.bin("pg_dump"))
        .args(["-d", &cluster.conninfo("postgres")])
        .output()
        .expect("pg_dump runs");
    assert!(dump.status.success(), "{dump:?}");
    cluster.psql("postgres", "CREATE DATABASE copy");
    cluster.psql("copy", &String::from_utf8(dump.stdout).expect("UTF-8"));
    let copy = cluster.client("copy").await;
    assert_eq!(row(&copy, thresholds).await, "sales|app.large|11|1048576");
    assert_eq!(row(&copy, "SELECT sum(rows) FROM postbox.claim_chunks('sales', 1)").await, "11");
    run(&copy, "SELECT postbox.publish_batch('sales', 't', 'SELECT generate_series(1, 12)'); DROP EXTENSION postbox CASCADE; CREATE EXTENSION postbox").await;
    assert_eq!(row(&copy, thresholds).await, "sales|app.large|11|1048576");

    assert_eq!(
        row(&client, "SELECT bytes >= pg_total_relation_size('orders_claims_g0') FROM postbox.outboxes").await,
        "t"
    );
    run(&client, "SELECT postbox.drop_outbox('sales')").await;
    assert_eq!(
        row(&client, "SELECT to_regclass('app.large') IS NULL, to_regclass('orders_claims_g0') IS NULL").await,
        "t|t"
    );
}

#[tokio::test]
async fn a_cursor_on_a_transition_table_can_be_published() {
    let (_cluster, client) = with_claims().await;
    run(
        &client,
        "CREATE TABLE stock (n int);
         CREATE FUNCTION capture() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE c refcursor;
         BEGIN
             OPEN c NO SCROLL FOR SELECT row_to_json(new_rows)::text FROM new_rows;
             PERFORM postbox._publish_rows('orders', 'stock', c, NULL, NULL, NULL, current_setting('search_path'));
             CLOSE c;
             RETURN NULL;
         END $$;
         CREATE TRIGGER capture AFTER INSERT ON stock REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION capture();
         INSERT INTO stock SELECT generate_series(1, 500); INSERT INTO stock VALUES (7)",
    )
    .await;
    assert_eq!(
        rows(&client, "SELECT payload, claim ->> 'rows' FROM orders ORDER BY seq").await,
        ["|500", "[{\"n\": 7}]|"]
    );
}

#[tokio::test]
async fn a_claim_check_goes_when_no_claim_is_left_and_comes_again() {
    let (_cluster, client) = with_claims().await;
    publish(&client, &numbers(11)).await;
    let disable = "SELECT postbox.disable_claim_check('orders')";
    refused(&client, disable, "55006", "still has claims", "enable_claim_check('orders', 2147483647, 67108864)").await;
    run(&client, "SELECT postbox.enable_claim_check('orders', 2147483647, 67108864)").await;
    publish(&client, &numbers(11)).await;
    assert_eq!(row(&client, "SELECT count(*), count(claim) FROM orders").await, "2|1");
    // Rows that it does not see are none to it, unless PostgreSQL says so.
    run(&client, "CREATE ROLE shop; GRANT CREATE ON SCHEMA public TO shop; GRANT USAGE ON SCHEMA postbox TO shop")
        .await;
    run(&client, "SELECT postbox.grant_role('operator', 'shop'); ALTER TABLE orders OWNER TO shop; ALTER TABLE orders_claims OWNER TO shop").await;
    run(&client, "ALTER TABLE orders_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; SET ROLE shop").await;
    assert_eq!(crate::sql::error(&client, disable).await.code().code(), "42501");
    run(&client, "RESET ROLE").await;
    run(&client, "TRUNCATE orders, orders_claims").await;
    assert_eq!(row(&client, disable).await, "t");
    assert_eq!(row(&client, disable).await, "f");
    assert_eq!(
        row(&client, "SELECT to_regclass('orders_claims') IS NULL, count(*) FROM postbox.claim_checks").await,
        "t|0"
    );
    publish(&client, &numbers(10000)).await;
    refused(
        &client,
        "SELECT postbox.publish_batch('orders', 't', 'SELECT generate_series(1, 10001)')",
        "55000",
        "more than 10000 rows",
        "enable_claim_check",
    )
    .await;
    run(&client, "SELECT postbox.enable_claim_check('orders', 10)").await;
    publish(&client, &numbers(11)).await;
    assert_eq!(row(&client, "SELECT count(*), count(claim) FROM orders").await, "2|1");
    for (sql, code, message) in [
        ("SELECT postbox.disable_claim_check('nothing')", "42P01", "\"nothing\" does not exist"),
        ("SELECT postbox.disable_claim_check(NULL)", "42P01", "NULL does not exist"),
        ("SELECT postbox.disable_claim_check('pg_class')", "42809", "is not an outbox"),
    ] {
        refused(&client, sql, code, message, "outbox_status").await;
    }
}

#[tokio::test]
async fn long_rows_behind_short_ones_are_not_put_together() {
    let (_cluster, client) = with_claims().await;
    // More than a value of PostgreSQL holds: 1 GB.
    publish(
        &client,
        "SELECT CASE WHEN n > 300 THEN repeat('x', 5000000) ELSE 'short' END AS t FROM generate_series(1, 520) n",
    )
    .await;
    let claim = claim(&client).await;
    assert_eq!((&claim["rows"], &claim["bytes"]), (&json!(520), &json!(220 * 5_000_009_u64 + 300 * 14)));
    assert_eq!(row(&client, "SELECT sum(rows), max(octet_length(data)) <= 65536 FROM orders_claims").await, "520|t");
}

/// Whether the outbox takes emitted events, and whether its events may be claims.
const MARKED: &str =
    "SELECT 'emit=on' = any (arguments), 'claim=claim' = any (arguments) FROM postbox._marker WHERE name = 'orders'";

/// Returns when a session waits for a lock.
async fn one_waits(client: &Client) {
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    wait_until_async("a session waits", PATIENCE, async || (row(client, waits).await == "1").then_some(())).await;
}

#[tokio::test]
async fn what_is_said_of_an_outbox_at_the_same_time_all_holds() {
    const ENABLE: &str = "SELECT postbox.enable_claim_check('orders', 10)";
    for (before, first, second, marked) in [
        ("false", ENABLE, "SELECT postbox.set_emit('orders', true)", "t|t"),
        ("true", ENABLE, "SELECT postbox.set_emit('orders', false)", "f|t"),
        ("false", "SELECT postbox.set_emit('orders', true)", ENABLE, "t|t"),
        ("true", "SELECT postbox.set_emit('orders', false)", ENABLE, "f|t"),
    ] {
        let (cluster, client) = start().await;
        run(&client, "SELECT postbox.create_outbox('orders')").await;
        run(&client, &format!("SELECT postbox.set_emit('orders', {before})")).await;
        run(&client, &format!("BEGIN; {first}")).await;
        let other = cluster.client("postgres").await;
        let waiting = tokio::spawn(async move { run(&other, second).await });
        one_waits(&client).await;
        run(&client, "COMMIT").await;
        waiting.await.expect("done");
        assert_eq!(row(&client, MARKED).await, marked, "{first}; {second}");
    }
}

#[tokio::test]
async fn a_claim_check_that_the_mark_has_forgotten_comes_back() {
    let (_cluster, client) = with_claims().await;
    run(
        &client,
        "DROP TRIGGER postbox_outbox ON orders;
         CREATE TRIGGER postbox_outbox BEFORE UPDATE ON orders FOR EACH ROW WHEN (false) EXECUTE FUNCTION suppress_redundant_updates_trigger('emit=on');
         SELECT postbox.enable_claim_check('orders', 10)",
    )
    .await;
    assert_eq!(row(&client, MARKED).await, "t|t");
}

#[tokio::test]
async fn nobody_changes_an_outbox_whose_present_state_he_does_not_see() {
    let (cluster, client) = with_claims().await;
    let other = cluster.client("postgres").await;
    for sql in [
        "SELECT postbox.set_emit('orders', true)",
        "SELECT postbox.enable_claim_check('orders', 20)",
        "SELECT postbox.disable_claim_check('orders')",
    ] {
        run(&client, "TRUNCATE orders, orders_claims").await;
        run(&client, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT").await;
        publish(&other, &numbers(11)).await;
        refused(
            &client,
            sql,
            "25001",
            "\"orders\" cannot be changed in a transaction that is repeatable",
            "READ COMMITTED",
        )
        .await;
        run(&client, "ROLLBACK").await;
        assert_eq!(row(&client, "SELECT sum(rows) FROM orders_claims").await, "11");
    }
}

#[tokio::test]
async fn a_query_of_a_batch_may_publish_batches() {
    let (_cluster, client) = with_claims().await;
    run(
        &client,
        "CREATE FUNCTION tell(n int) RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN PERFORM postbox.publish_batch('orders', 'inner', 'SELECT n FROM generate_series(1, 11) n'); RETURN n; END $$",
    )
    .await;
    publish(&client, "SELECT tell(n) FROM generate_series(1, 3) n").await;
    assert_eq!(row(&client, "SELECT count(*), count(claim) FROM orders").await, "4|3");
}

#[tokio::test]
async fn a_batch_whose_claim_check_ends_meanwhile_says_so() {
    let (cluster, client) = with_claims().await;
    run(
        &client,
        "CREATE TABLE gate (n int);
         CREATE FUNCTION pass(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN n + (SELECT count(*) FROM gate); END $$",
    )
    .await;
    let holder = cluster.client("postgres").await;
    run(&holder, "BEGIN; LOCK TABLE gate").await;
    let publisher = cluster.client("postgres").await;
    let publishing = tokio::spawn(async move {
        let sql = "SELECT postbox.publish_batch('orders', 't', 'SELECT pass(n) FROM generate_series(1, 11) n')";
        refused(&publisher, sql, "55000", "was dropped just now", "Publish it again").await;
    });
    one_waits(&client).await;
    run(&client, "SELECT postbox.disable_claim_check('orders')").await;
    run(&holder, "ROLLBACK").await;
    publishing.await.expect("refused");
}

#[tokio::test]
async fn whoever_drops_an_outbox_waits_for_who_has_written_a_claim() {
    let (cluster, client) = with_claims().await;
    let publisher = cluster.client("postgres").await;
    run(&publisher, "BEGIN; INSERT INTO orders_claims (seq, chunk, rows, data) VALUES (1, 0, 1, '')").await;
    let dropping = tokio::spawn(async move { run(&client, "SELECT postbox.drop_outbox('orders')").await });
    one_waits(&publisher).await;
    run(&publisher, "INSERT INTO orders (type) VALUES ('t'); COMMIT").await;
    dropping.await.expect("dropped");
}

#[tokio::test]
async fn who_may_do_something_with_the_outbox_may_do_that_with_its_claims_and_no_more() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'); CREATE ROLE writer; CREATE ROLE reader; CREATE ROLE cleaner")
        .await;
    run(
        &client,
        "GRANT INSERT ON orders TO writer; GRANT SELECT ON orders TO reader; GRANT TRUNCATE ON orders TO cleaner",
    )
    .await;
    run(&client, "SELECT postbox.enable_claim_check('orders')").await;
    for table in ["orders_claims", "orders_claims_g0"] {
        let held = format!(
            "SELECT string_agg(r || ' ' || p, ', ' ORDER BY r, p) FROM unnest('{{writer,reader,cleaner}}'::text[]) r,
             unnest('{{insert,select,truncate}}'::text[]) p WHERE has_table_privilege(r, '{table}', p)"
        );
        let writer = if table == "orders_claims" { ", writer insert" } else { "" };
        assert_eq!(row(&client, &held).await, format!("cleaner truncate, reader select{writer}"), "{table}");
    }
}
