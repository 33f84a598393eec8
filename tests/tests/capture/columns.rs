//! Which columns are in the events, and what becomes of them when the table is altered.

use serde_json::json;

use postbox_tests::{major, skip};

use super::{ORDERS, events, order, told};
use crate::sql::{error, refused, row, run, start};

#[tokio::test]
async fn all_columns_are_those_that_the_table_has_now() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); INSERT INTO orders VALUES (1, 'ada', 5)").await;
    // Within one session, whose plans are made already.
    run(&client, "ALTER TABLE orders RENAME cents TO pennies; ALTER TABLE orders ADD note text DEFAULT 'n'").await;
    run(&client, "UPDATE orders SET pennies = 6").await;
    run(&client, "ALTER TABLE orders DROP customer; ALTER TABLE orders ALTER pennies TYPE numeric(9, 2)").await;
    run(&client, "ALTER TABLE orders RENAME TO sales; DELETE FROM sales").await;
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events),
        [
            ("orders.inserted", json!({"inserted": [order(1, "ada", 5)], "deleted": []})),
            (
                "orders.updated",
                json!({"inserted": [{"id": 1, "customer": "ada", "pennies": 6, "note": "n"}],
                "deleted": [{"id": 1, "customer": "ada", "pennies": 5, "note": "n"}]})
            ),
            // The name is that under which the capture was enabled.
            ("orders.deleted", json!({"inserted": [], "deleted": [{"id": 1, "pennies": 6.0, "note": "n"}]})),
        ]
    );
}

#[tokio::test]
async fn a_row_is_told_the_same_whatever_the_session_prints_like() {
    let (_cluster, client) = start().await;
    let columns = "at timestamptz, day date, during tstzrange, span interval, bytes bytea, x float8, y float4";
    run(
        &client,
        &format!(
            "CREATE TABLE whole (id int PRIMARY KEY, {columns}); CREATE TABLE keyed (LIKE whole INCLUDING ALL); CREATE TABLE single (LIKE whole INCLUDING ALL);
             CREATE MATERIALIZED VIEW view AS SELECT *, current_setting('timezone') AS zone FROM whole;
             SELECT postbox.create_outbox('box'), postbox.enable_outbox('whole', 'box'), postbox.enable_outbox('keyed', 'box', key => '{{id}}'),
                 postbox.enable_outbox('single', 'box', granularity => 'row')"
        ),
    )
    .await;
    let mut expected = None;
    for settings in [
        "SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; SET bytea_output = 'escape'; SET extra_float_digits = -5",
        "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 3",
    ] {
        run(&client, settings).await;
        for table in ["whole", "keyed", "single"] {
            run(
                &client,
                &format!(
                    "DELETE FROM {table}; INSERT INTO {table} SELECT 1, timestamptz '2026-01-31 12:00:00+00', date '2026-01-31',
                         tstzrange('2026-01-31 12:00:00+00', NULL), make_interval(days => 1, secs => 1.5), '\\x00ff', 1::float8 / 3, 1::float4 / 3"
                ),
            )
            .await;
        }
        run(&client, "DELETE FROM box; UPDATE whole SET id = 2; UPDATE keyed SET id = 2; UPDATE single SET id = 2")
            .await;
        run(&client, "SELECT postbox.refresh_materialized_view('view', 'box')").await;
        let events = events(&client, "box").await;
        // What a view computes goes by the session that refreshes it.
        let zone = row(&client, "SHOW timezone").await;
        let refreshed = events.last().expect("an event");
        assert_eq!(refreshed["payload"]["inserted"][0]["zone"], zone, "{refreshed}");
        let told = json!(
            events
                .iter()
                .map(|event| {
                    let payload = &event["payload"];
                    let row =
                        [&payload["inserted"][0], &payload["after"]].into_iter().find(|row| row.is_object()).cloned();
                    row.map(|mut row| {
                        row.as_object_mut().unwrap().retain(|name, _| name != "zone");
                        row
                    })
                })
                .collect::<Vec<_>>()
        );
        assert_eq!(&told, expected.get_or_insert(told.clone()), "{settings}");
    }
    assert_eq!(
        expected.unwrap()[0],
        json!({"id": 2, "at": "2026-01-31T12:00:00+00:00", "day": "2026-01-31", "during": "[\"2026-01-31 12:00:00+00\",)",
            "span": "P1DT1.5S", "bytes": "\\x00ff", "x": 0.3333333333333333, "y": 0.33333334})
    );
}

/// What docs/sql.md says to do about it.
#[tokio::test]
async fn the_type_of_a_chosen_column_changes_in_one_transaction_with_the_capture() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders', key => '{id}'); INSERT INTO orders VALUES (1, 'ada', 5)")
        .await;
    let alter = "ALTER TABLE orders ALTER id TYPE bigint";
    assert_eq!(error(&client, alter).await.code().code(), "0A000");
    run(
        &client,
        &format!("BEGIN; SELECT postbox.disable_outbox('orders'); {alter}; SELECT postbox.enable_outbox('orders', key => '{{id}}'); COMMIT"),
    )
    .await;
    run(&client, "UPDATE orders SET cents = 6").await;
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events)[1],
        ("orders.updated", json!({"inserted": [order(1, "ada", 6)], "deleted": [order(1, "ada", 5)]}))
    );
}

#[tokio::test]
async fn chosen_columns_follow_a_renaming_and_cannot_be_dropped() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE orders (id int PRIMARY KEY, \"The \"\"customer\" text, cents int, secret text)").await;
    run(&client, "SELECT postbox.enable_outbox('orders', key => '{\"The \\\"customer\"}', columns => '{cents}')").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5, 's'), (2, 'ada', 6, 't')").await;
    // What is not chosen does not count: neither does a row in which only that has changed.
    run(&client, "UPDATE orders SET secret = 'u'; UPDATE orders SET cents = id + 5, secret = 'v'").await;
    run(
        &client,
        "ALTER TABLE orders ADD another text DEFAULT 'a'; ALTER TABLE orders RENAME \"The \"\"customer\" TO customer",
    )
    .await;
    run(&client, "DELETE FROM orders WHERE id = 1").await;
    let named = |name: &str, cents: i32| json!({name: "ada", "cents": cents});
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events),
        [
            (
                "orders.inserted",
                json!({"inserted": [named("The \"customer", 5), named("The \"customer", 6)], "deleted": []})
            ),
            (
                "orders.updated",
                json!({"inserted": [named("The \"customer", 6), named("The \"customer", 7)],
                "deleted": [named("The \"customer", 5), named("The \"customer", 6)]})
            ),
            ("orders.deleted", json!({"inserted": [], "deleted": [named("customer", 6)]})),
        ]
    );
    assert!(events.iter().all(|event| event["key"] == "ada"), "{events:#?}");
    let captures = "SELECT key, columns FROM postbox.captures";
    assert_eq!(row(&client, captures).await, "{customer}|{cents,customer}");

    refused(&client, "ALTER TABLE orders DROP cents", "2BP01", "cannot drop column cents", "CASCADE").await;
    refused(&client, "ALTER TABLE orders DROP customer", "2BP01", "cannot drop column customer", "CASCADE").await;
    run(&client, "ALTER TABLE orders DROP secret; ALTER TABLE orders DROP another").await;
    // Who insists is told by the next statement.
    run(&client, "ALTER TABLE orders DROP cents CASCADE").await;
    let lost = "capture of table \"public.orders\" has lost which columns";
    refused(&client, "DELETE FROM orders", "55000", lost, "postbox.disable_outbox('public.orders')").await;
    run(&client, "SELECT postbox.disable_outbox('orders'); DELETE FROM orders").await;
}

#[tokio::test]
async fn rows_of_an_update_in_which_nothing_chosen_changed_are_left_out() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders', columns => '{id,cents}'); INSERT INTO orders VALUES (1, 'a', 5), (2, 'b', 6)").await;
    run(&client, "UPDATE orders SET customer = 'c'; UPDATE orders SET cents = 6").await;
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events)[1..],
        [("orders.updated", json!({"inserted": [{"id": 1, "cents": 6}], "deleted": [{"id": 1, "cents": 5}]}))]
    );
}

#[tokio::test]
async fn generated_columns_have_their_values() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE orders (id int PRIMARY KEY, cents int, twice int GENERATED ALWAYS AS (cents * 2) STORED)",
    )
    .await;
    run(
        &client,
        "SELECT postbox.enable_outbox('orders'); INSERT INTO orders VALUES (1, 5); UPDATE orders SET cents = 6",
    )
    .await;
    let events = events(&client, "orders_outbox").await;
    assert_eq!(told(&events)[0].1, json!({"inserted": [{"id": 1, "cents": 5, "twice": 10}], "deleted": []}));
    assert_eq!(told(&events)[1].1["inserted"], json!([{"id": 1, "cents": 6, "twice": 12}]));
}

#[tokio::test]
async fn virtual_columns_are_computed() {
    if major() < 18 {
        skip("virtual columns came with PostgreSQL 18");
        return;
    }
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE orders (id int PRIMARY KEY, cents int)").await;
    run(
        &client,
        "SELECT postbox.enable_outbox('orders'); INSERT INTO orders VALUES (1, 5); DELETE FROM orders WHERE false",
    )
    .await;
    // Added when the session has its plans, and in need of names that are quoted.
    run(&client, "ALTER TABLE orders RENAME cents TO \"The cents\"").await;
    run(&client, "ALTER TABLE orders ADD \"it's twice\" int GENERATED ALWAYS AS (\"The cents\" * 2) VIRTUAL").await;
    run(&client, "UPDATE orders SET \"The cents\" = 6; DELETE FROM orders; DELETE FROM orders").await;
    let row = |cents: i32| json!({"id": 1, "The cents": cents, "it's twice": cents * 2});
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events)[1..],
        [
            ("orders.updated", json!({"inserted": [row(6)], "deleted": [row(5)]})),
            ("orders.deleted", json!({"inserted": [], "deleted": [row(6)]})),
        ]
    );
    // By rows and keys too, through a partition.
    run(
        &client,
        "CREATE TABLE parts (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL) PARTITION BY LIST (id);
         CREATE TABLE part PARTITION OF parts DEFAULT; SELECT postbox.enable_outbox('parts', granularity => 'row', columns => '{twice}');
         INSERT INTO parts VALUES (1); INSERT INTO part VALUES (2); UPDATE part SET id = 3 WHERE id = 2; DELETE FROM part WHERE id = 3",
    )
    .await;
    let events = super::events(&client, "parts_outbox").await;
    let part = |id: i32| json!({"id": id, "twice": id * 2});
    let expected = [
        (json!(null), part(1)),
        (json!(null), part(2)),
        (part(2), json!(null)),
        (json!(null), part(3)),
        (part(3), json!(null)),
    ];
    let payloads: Vec<_> =
        events.iter().map(|event| (event["payload"]["before"].clone(), event["payload"]["after"].clone())).collect();
    assert_eq!(payloads, expected);
}

#[tokio::test]
async fn values_are_those_of_to_jsonb_for_every_type() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN small AS int CHECK (value < 10);
         CREATE TABLE kinds (a int[], b jsonb, c json, d bytea, e mood, f pair, g small, h numeric, i float8, j interval, k tsrange, l inet, m xml, n bit(3));
         SELECT postbox.enable_outbox('kinds');
         INSERT INTO kinds VALUES ('{1,NULL}', '{\"x\": [1]}', '{\"y\":  2}', '\\x00ff', 'sad', (1, 'b'), 3, 1.50, 'NaN', '1 day', '[2026-01-01,)', '::1', '<a/>', '101');
         INSERT INTO kinds SELECT FROM generate_series(1, 2)",
    )
    .await;
    // As captured rows are printed in any session.
    run(&client, "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'").await;
    let same = "SELECT payload -> 'inserted' = (SELECT jsonb_agg(to_jsonb(x)) FROM kinds x WHERE a IS NOT NULL) FROM kinds_outbox ORDER BY seq LIMIT 1";
    assert_eq!(row(&client, same).await, "t");
    assert_eq!(
        row(&client, "SELECT jsonb_array_length(payload -> 'inserted') FROM kinds_outbox ORDER BY seq DESC LIMIT 1")
            .await,
        "2"
    );
}

#[tokio::test]
async fn any_name_is_a_name() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE \"a$events$b'%s\" (id int PRIMARY KEY)").await;
    run(&client, "SELECT postbox.enable_outbox('\"a$events$b''%s\"', 'box'); INSERT INTO \"a$events$b'%s\" SELECT generate_series(1, 200)").await;
    run(&client, "DELETE FROM \"a$events$b'%s\" WHERE id > 1; TRUNCATE \"a$events$b'%s\"").await;
    let types: Vec<_> = events(&client, "box").await.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["a$events$b'%s.inserted", "a$events$b'%s.deleted", "a$events$b'%s.truncated"]);
}

#[tokio::test]
async fn a_name_as_long_as_can_be_is_a_name() {
    let (_cluster, client) = start().await;
    let outbox_of = "SELECT outbox FROM postbox.captures";
    // Names of functions begin with 16 bytes of ours, names of leaves end with 3.
    for bytes in [47, 48, 53, 54, 57, 63] {
        let table = "ä".repeat(bytes / 2) + &"x".repeat(bytes % 2);
        run(&client, &format!("CREATE TABLE \"{table}\" (id int PRIMARY KEY)")).await;
        let enable = format!("SELECT postbox.enable_outbox('\"{table}\"'");
        if bytes <= 53 {
            run(&client, &format!("{enable})")).await;
            assert_eq!(row(&client, outbox_of).await, format!("public.{table}_outbox"));
            run(&client, &format!("SELECT postbox.disable_outbox('\"{table}\"'); {enable})")).await;
        } else {
            let refusal = format!("\"{table}_outbox\", which has {} bytes and must have 60", bytes + 7);
            refused(&client, &format!("{enable})"), "42602", &refusal, "outbox => '...'").await;
            run(&client, &format!("{enable}, outbox => 'box')")).await;
        }
        let outbox = if bytes <= 53 { format!("\"{table}_outbox\"") } else { "box".to_owned() };
        run(
            &client,
            &format!("INSERT INTO \"{table}\" VALUES (1); UPDATE \"{table}\" SET id = 2; TRUNCATE \"{table}\""),
        )
        .await;
        let types: Vec<_> = events(&client, &outbox).await.iter().map(|event| event["type"].clone()).collect();
        assert_eq!(types, ["inserted", "updated", "truncated"].map(|what| format!("{table}.{what}")));
        run(&client, &format!("SELECT postbox.disable_outbox('\"{table}\"')")).await;
        assert_eq!(row(&client, "SELECT count(*) FROM pg_proc WHERE proname ~ '^postbox_'").await, "0");
    }
}
