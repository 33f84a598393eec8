//! Materialized views: what a refresh changes.

use serde_json::{Value, json};

use super::{events, statements, told};
use crate::sql::{refused, row, run, start};

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
