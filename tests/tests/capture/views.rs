//! Materialized views: what a refresh changes.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::claims::lines;
use super::{events, statements, told};
use crate::sql::{refused, row, rows, run, start};

const VIEW: &str = "CREATE TABLE sales (customer text, cents int);
    CREATE MATERIALIZED VIEW totals AS SELECT customer, sum(cents)::int AS x FROM sales GROUP BY customer WITH NO DATA;
    CREATE UNIQUE INDEX ON totals (customer)";

fn total(customer: &str, x: i32) -> Value {
    json!({"customer": customer, "x": x})
}

#[tokio::test]
async fn a_refresh_is_one_event_with_the_rows_that_differ() {
    let (_cluster, client) = start().await;
    run(&client, VIEW).await;
    let refresh = "SELECT postbox.refresh_materialized_view('totals')";
    run(&client, "INSERT INTO sales VALUES ('ada', 1), ('bob', 2), ('eve', 3)").await;
    assert_eq!(row(&client, refresh).await, "3");
    assert_eq!(row(&client, refresh).await, "0");
    run(&client, "INSERT INTO sales VALUES ('ada', 1), ('dan', 4); DELETE FROM sales WHERE customer = 'eve'").await;
    // What is rolled back is told by the next one.
    run(&client, &format!("BEGIN; {refresh}; ROLLBACK")).await;
    let concurrently = "SELECT postbox.refresh_materialized_view('totals', concurrently => true)";
    assert_eq!(row(&client, concurrently).await, "4");
    let events = events(&client, "totals_outbox").await;
    let mut payloads: Vec<_> = told(&events).into_iter().map(|(name, payload)| (name.to_owned(), payload)).collect();
    for (_, payload) in &mut payloads {
        for side in ["inserted", "deleted"] {
            payload[side].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
    }
    let name = || "totals.refreshed".to_owned();
    assert_eq!(
        payloads,
        [
            (
                name(),
                json!({"full_refresh": true, "inserted": [total("ada", 1), total("bob", 2), total("eve", 3)], "deleted": []})
            ),
            (
                name(),
                json!({"inserted": [total("ada", 2), total("dan", 4)], "deleted": [total("ada", 1), total("eve", 3)]})
            ),
        ]
    );
    assert_eq!((&events[0]["key"], &events[0]["headers"]["op"]), (&json!("public.totals"), &json!("refresh")));
    assert_eq!(row(&client, "SELECT count(*) FROM totals").await, "3");
}

#[tokio::test]
async fn a_key_shares_out_the_rows_of_a_refresh() {
    let (_cluster, client) = start().await;
    run(&client, VIEW).await;
    run(&client, "SELECT postbox.create_outbox('shop'); INSERT INTO sales VALUES ('ada', 1), ('bob', 2)").await;
    let refresh = "SELECT postbox.refresh_materialized_view('totals', 'shop', key => '{customer}')";
    assert_eq!(row(&client, refresh).await, "2");
    // Two of them in one transaction.
    run(&client, &format!("BEGIN; {refresh}; UPDATE sales SET cents = 5 WHERE customer = 'bob'; {refresh}; COMMIT"))
        .await;
    let events = events(&client, "shop").await;
    // That everything is new is said once, before anything else.
    assert_eq!(told(&events)[0].1, json!({"full_refresh": true, "inserted": [], "deleted": []}));
    let mut first: Vec<_> = events[1..3].iter().map(|event| (event["key"].clone(), event["payload"].clone())).collect();
    first.sort_by_key(|event| event.0.to_string());
    let of = |inserted: &[Value], deleted: &[Value]| json!({"inserted": inserted, "deleted": deleted});
    assert_eq!(first, [(json!("ada"), of(&[total("ada", 1)], &[])), (json!("bob"), of(&[total("bob", 2)], &[]))]);
    assert_eq!(events.len(), 4, "{events:#?}");
    assert_eq!(
        (&events[3]["key"], &events[3]["payload"]),
        (&json!("bob"), &of(&[total("bob", 5)], &[total("bob", 2)]))
    );
    assert_eq!(statements(&events), [0, 0, 0, 3]);
}

#[tokio::test]
async fn what_cannot_be_refreshed_is_refused() {
    let (_cluster, client) = start().await;
    run(&client, VIEW).await;
    run(&client, "SELECT postbox.create_outbox('bytes', payload_type => 'bytea')").await;
    let cases = [
        ("'none'", "42P01", "\"none\" does not exist", "search_path"),
        ("'sales'", "42809", "\"public.sales\" is not a materialized view", "postbox.enable_outbox"),
        ("'totals', 'sales'", "42809", "\"sales\" is not an outbox", "outbox_status"),
        ("'totals', 'bytes'", "0A000", "\"public.bytes\" cannot take", "create_outbox"),
        ("'totals', key => '{gone}'", "42703", "no column \"gone\" for the key", "bare names"),
    ];
    for (arguments, code, message, hint) in cases {
        let sql = format!("SELECT postbox.refresh_materialized_view({arguments})");
        refused(&client, &sql, code, message, hint).await;
    }
    let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postbox.refresh_materialized_view('totals')";
    refused(&client, sql, "25001", "repeatable read", "READ COMMITTED").await;
    run(&client, "ROLLBACK").await;
    assert_eq!(row(&client, "SELECT relispopulated FROM pg_class WHERE relname = 'totals'").await, "f");

    let long = "v".repeat(63);
    run(&client, &format!("ALTER MATERIALIZED VIEW totals RENAME TO {long}")).await;
    let sql = format!("SELECT postbox.refresh_materialized_view('{long}'");
    refused(&client, &format!("{sql})"), "42602", "which has 70 bytes", "outbox => '...'").await;
    run(&client, &format!("{sql}, 'box')")).await;
}

#[tokio::test]
async fn what_is_too_large_for_an_event_is_refused_and_the_refresh_undone() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE docs (id int, body text); CREATE MATERIALIZED VIEW copies AS SELECT *, 1 AS same FROM docs",
    )
    .await;
    // jsonb itself can hold no more than 256 MiB; as text it is longer, where each of these has six bytes.
    for rows in
        ["repeat('x', 250000) FROM generate_series(1, 1100) n", "repeat(chr(1), 40000) FROM generate_series(1, 1200) n"]
    {
        run(&client, &format!("TRUNCATE docs; INSERT INTO docs SELECT n, {rows}")).await;
        for (key, hint) in [("NULL", "enable_claim_check('public.copies_outbox')"), ("'{same}'", "fewer rows share")] {
            let sql = format!("SELECT postbox.refresh_materialized_view('copies', key => {key})");
            refused(&client, &sql, "54000", "in materialized view \"public.copies\" is too large", hint).await;
            assert_eq!(row(&client, "SELECT count(*) FROM copies").await, "0", "{rows}");
        }
    }
    let sql = "SELECT postbox.refresh_materialized_view('copies', key => '{id}')";
    assert_eq!(row(&client, sql).await, "1200");
}

#[tokio::test]
async fn what_is_above_the_threshold_is_a_claim_of_lines() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE numbers (n int, body text); CREATE MATERIALIZED VIEW mirror AS SELECT * FROM numbers")
        .await;
    run(&client, "SELECT postbox.create_outbox('mirror_outbox'); SELECT postbox.enable_claim_check('mirror_outbox', inline_threshold_rows => 100)").await;
    let event = "SELECT type, key, headers ->> 'op', headers ->> 'table', claim ->> 'format', claim ->> 'rows', payload IS NULL, jsonb_array_length(payload -> 'inserted')
        FROM mirror_outbox ORDER BY seq DESC LIMIT 1";
    let refresh = "SELECT postbox.refresh_materialized_view('mirror')";
    // Rows that go count as those that come do.
    for (gone, come) in [(0, 99), (0, 100), (0, 101), (49, 50), (50, 50), (51, 50), (101, 0)] {
        run(&client, &format!("REFRESH MATERIALIZED VIEW mirror; DELETE FROM numbers WHERE n IN (SELECT n FROM numbers ORDER BY n LIMIT {gone});
            INSERT INTO numbers SELECT (SELECT coalesce(max(n), 0) FROM numbers) + n FROM generate_series(1, {come}) n")).await;
        assert_eq!(row(&client, refresh).await, (gone + come).to_string());
        let (rows, inline) =
            if gone + come > 100 { (format!("rows|{}|t|", gone + come), false) } else { (format!("||f|{come}"), true) };
        assert_eq!(row(&client, event).await, format!("mirror.refreshed|public.mirror|refresh|public.mirror|{rows}"));
        if inline {
            continue;
        }
        // What went, then what came, and nothing else.
        let seq = row(&client, "SELECT max(seq) FROM mirror_outbox").await.parse().unwrap();
        let lines = lines(&client, "mirror_outbox", seq).await;
        assert_eq!(lines.len(), gone + come);
        let numbers = |side: &str, lines: &[Value]| -> Vec<i64> {
            let mut numbers: Vec<_> = lines.iter().map(|line| line[side]["n"].as_i64().expect(side)).collect();
            numbers.sort_unstable();
            numbers
        };
        let there = rows_of(&client, "SELECT n FROM mirror ORDER BY n").await;
        assert_eq!(numbers("inserted", &lines[gone..]), there[there.len() - come..]);
        let (first, last) = (there.first().copied().unwrap_or(0), gone as i64);
        assert_eq!(numbers("deleted", &lines[..gone]), (first - last..first).collect::<Vec<_>>());
    }
    // In the transaction of the refresh.
    let stored = "SELECT (SELECT count(*) FROM mirror_outbox), (SELECT count(DISTINCT seq) FROM mirror_outbox_claims)";
    let before = row(&client, stored).await;
    run(&client, "INSERT INTO numbers SELECT n FROM generate_series(1, 200) n").await;
    run(&client, &format!("BEGIN; {refresh}")).await;
    assert_ne!(row(&client, stored).await, before);
    run(&client, "ROLLBACK").await;
    assert_eq!(row(&client, stored).await, before);
    assert_eq!(row(&client, refresh).await, "200");
    assert_ne!(row(&client, stored).await, before);
}

#[tokio::test]
async fn bytes_make_a_claim_of_a_refresh_too_and_a_key_none() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE docs (id int, body text); CREATE MATERIALIZED VIEW mirror AS SELECT * FROM docs").await;
    run(&client, "SELECT postbox.create_outbox('box'); SELECT postbox.enable_claim_check('box', inline_threshold_bytes => 100000)").await;
    // A line is {"inserted": {"id": n, "body": "..."}} and a line break: 36 bytes more than the text.
    for (length, claimed) in [(99_963, ""), (99_964, ""), (99_965, "1")] {
        run(
            &client,
            &format!(
                "DELETE FROM docs; REFRESH MATERIALIZED VIEW mirror; INSERT INTO docs VALUES (1, repeat('x', {length}))"
            ),
        )
        .await;
        assert_eq!(row(&client, "SELECT postbox.refresh_materialized_view('mirror', 'box')").await, "1");
        let event = "SELECT claim ->> 'rows', payload #>> '{inserted,0,id}' FROM box ORDER BY seq DESC LIMIT 1";
        let inline = if claimed.is_empty() { "1" } else { "" };
        assert_eq!(row(&client, event).await, format!("{claimed}|{inline}"), "{length}");
    }
    run(&client, "INSERT INTO docs VALUES (2, repeat('y', 200000))").await;
    assert_eq!(row(&client, "SELECT postbox.refresh_materialized_view('mirror', 'box', key => '{id}')").await, "1");
    let event = "SELECT key, claim, payload #>> '{inserted,0,id}' FROM box ORDER BY seq DESC LIMIT 1";
    assert_eq!(row(&client, event).await, "2||2");
}

#[tokio::test]
async fn a_claim_of_a_view_that_held_nothing_comes_behind_an_event_that_says_so() {
    let (_cluster, client) = start().await;
    run(&client, VIEW).await;
    run(&client, "CREATE ROLE clerk; GRANT CREATE ON SCHEMA public TO clerk; ALTER TABLE sales OWNER TO clerk; ALTER MATERIALIZED VIEW totals OWNER TO clerk").await;
    run(&client, "SELECT postbox.create_outbox('box'); SELECT postbox.enable_claim_check('box', inline_threshold_rows => 2); INSERT INTO box (type, payload) VALUES ('first', '{}')").await;
    run(&client, "INSERT INTO sales VALUES ('ada', 1), ('bob', 2), ('eve', 3); SELECT postbox.grant_role('operator', 'clerk'); GRANT INSERT ON box TO clerk; GRANT USAGE ON SEQUENCE box_seq_seq TO clerk").await;
    let refresh = "SELECT postbox.refresh_materialized_view('totals', 'box')";
    // The right to publish to the outbox is that to its claims as well.
    let denied = format!("SET ROLE clerk; {refresh}");
    refused(&client, &denied, "42501", "permission denied for table box_claims", "").await;
    run(&client, "RESET ROLE; SELECT postbox.grant_role('publisher', 'clerk', '{box}'); SET ROLE clerk").await;
    assert_eq!(row(&client, refresh).await, "3");
    run(&client, "RESET ROLE").await;
    assert_eq!(
        rows(&client, "SELECT type, payload, claim ->> 'rows' FROM box ORDER BY seq").await,
        [
            "first|{}|",
            r#"totals.refreshed|{"deleted": [], "inserted": [], "full_refresh": true}|"#,
            "totals.refreshed||3"
        ]
    );
    assert_eq!(row(&client, "SELECT count(DISTINCT headers -> 'statement') FROM box WHERE type <> 'first'").await, "1");
    let mut lines = lines(&client, "box", row(&client, "SELECT max(seq) FROM box").await.parse().unwrap()).await;
    lines.sort_by_key(ToString::to_string);
    let came = [total("ada", 1), total("bob", 2), total("eve", 3)].map(|row| json!({"inserted": row}));
    assert_eq!(lines, came);
}

/// What a query says, as numbers.
async fn rows_of(client: &Client, sql: &str) -> Vec<i64> {
    rows(client, sql).await.iter().map(|n| n.parse().expect("a number")).collect()
}
