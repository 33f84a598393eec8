//! Enabled, renamed, dropped, dumped: what stays captured, and how it ends.

use std::process::Command;

use serde_json::json;

use super::{ORDERS, events, order, told};
use crate::sql::{refused, row, rows, run, start};

#[tokio::test]
async fn status_says_what_is_captured_into_what() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "CREATE SCHEMA \"My shop\"; CREATE TABLE \"My shop\".\"Odd \"\"name\" (id int PRIMARY KEY, a int, b int)",
    )
    .await;
    assert_eq!(row(&client, "SELECT postbox.enable_outbox('orders', 'shop')").await, "shop");
    let odd = "SELECT postbox.enable_outbox('\"My shop\".\"Odd \"\"name\"', outbox => '\"My shop\".\"The events\"', key => '{b,a}', granularity => 'row')";
    assert_eq!(row(&client, odd).await, "The events");
    run(&client, "INSERT INTO \"My shop\".\"Odd \"\"name\" VALUES (1, 2, 3)").await;
    assert_eq!(row(&client, "SELECT type, key FROM \"My shop\".\"The events\"").await, "Odd \"name.inserted|[3, 2]");
    let captures =
        "SELECT schema, name, outbox, granularity, key, columns, replicated, enabled FROM postbox.captures ORDER BY 1";
    assert_eq!(
        rows(&client, captures).await,
        ["My shop|Odd \"name|My shop.The events|row|{b,a}||f|t", "public|orders|public.shop|statement|||f|t"]
    );
    let status = "SELECT name, captures FROM postbox.outbox_status()";
    assert_eq!(rows(&client, status).await, ["The events|{\"My shop.Odd \\\"name\"}", "shop|{public.orders}"]);
    run(&client, "ALTER TABLE orders DISABLE TRIGGER ALL; ALTER TABLE orders RENAME TO sales").await;
    assert_eq!(rows(&client, captures).await[1], "public|sales|public.shop|statement|||f|f");
}

#[tokio::test]
async fn disable_leaves_the_outbox_with_its_events_and_nothing_else() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    let before = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'postbox_outbox' UNION ALL
        SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace";
    let objects = rows(&client, before).await;
    run(&client, "SELECT postbox.enable_outbox('orders', key => '{id}', columns => '{cents}', replicated => true)")
        .await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5)").await;
    assert_eq!(row(&client, "SELECT postbox.disable_outbox('orders')").await, "t");
    run(&client, "DELETE FROM orders").await;
    assert_eq!(rows(&client, before).await, objects);
    assert_eq!(row(&client, "SELECT type FROM orders_outbox").await, "orders.inserted");
    // Again, into the same outbox.
    assert_eq!(row(&client, "SELECT postbox.enable_outbox('orders')").await, "orders_outbox");
    run(&client, "INSERT INTO orders VALUES (2, 'bob', 6)").await;
    run(&client, "SELECT postbox.disable_outbox('orders', with_outbox => true)").await;
    assert_eq!(row(&client, "SELECT to_regclass('orders_outbox') IS NULL").await, "t");
}

#[tokio::test]
async fn a_table_is_dropped_like_any_other_and_another_takes_its_place() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders', key => '{id}', columns => '{cents}'); INSERT INTO orders VALUES (1, 'ada', 5)").await;
    run(&client, "DROP TABLE orders").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.captures").await, "0");
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); INSERT INTO orders VALUES (2, 'bob', 6)").await;
    // While one of the old name is captured still.
    run(&client, "ALTER TABLE orders RENAME TO orders_old").await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); INSERT INTO orders VALUES (3, 'eve', 7); INSERT INTO orders_old VALUES (4, 'dan', 8)").await;
    let events = events(&client, "orders_outbox").await;
    let inserted: Vec<_> = told(&events).into_iter().map(|(_, payload)| payload["inserted"][0].clone()).collect();
    assert_eq!(inserted, [json!({"id": 1, "cents": 5}), order(2, "bob", 6), order(3, "eve", 7), order(4, "dan", 8)]);
    run(&client, "SELECT postbox.disable_outbox('orders'); INSERT INTO orders_old VALUES (5, 'dan', 8); SELECT postbox.disable_outbox('orders_old')").await;
    assert_eq!(
        row(&client, "SELECT count(*) FROM pg_proc WHERE proname ~ '^postbox_(capture|begin|columns)_'").await,
        "0"
    );
}

#[tokio::test]
async fn without_its_outbox_the_table_refuses_to_be_written_to() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); DROP TABLE orders_outbox CASCADE").await;
    // Better than to lose what is written.
    refused(&client, "INSERT INTO orders VALUES (1, 'ada', 5)", "42P01", "orders_outbox", "").await;
    run(&client, "SELECT postbox.disable_outbox('orders'); INSERT INTO orders VALUES (1, 'ada', 5)").await;
}

#[tokio::test]
async fn capture_goes_on_without_the_extension_and_is_known_to_the_next_one() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders', key => '{customer}', columns => '{cents}')").await;
    let captures = "SELECT name, outbox, key, columns FROM postbox.captures";
    let known = row(&client, captures).await;
    run(&client, "DROP EXTENSION postbox").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5); INSERT INTO orders SELECT n, 'bob', 6 FROM generate_series(2, 2000) n").await;
    run(&client, "CREATE EXTENSION postbox").await;
    assert_eq!(row(&client, captures).await, known);
    run(&client, "DELETE FROM orders WHERE id > 1; SELECT postbox.disable_outbox('orders')").await;
    let events = events(&client, "orders_outbox").await;
    let kinds: Vec<_> = told(&events).into_iter().map(|(name, _)| name).collect();
    assert_eq!(kinds, ["orders.inserted", "orders.inserted", "orders.deleted"]);
}

#[tokio::test]
async fn a_restored_database_captures_as_the_dumped_one_did() {
    let (cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "SELECT postbox.enable_outbox('orders', key => '{customer}', columns => '{cents}'); INSERT INTO orders VALUES (1, 'ada', 5);
         CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT;
         SELECT postbox.enable_outbox('parts', granularity => 'row', replicated => true); INSERT INTO part VALUES (1)",
    )
    .await;
    run(&client, "CREATE DATABASE restored").await;
    let dump = Command::new(cluster.bin("pg_dump")).args(["-d", &cluster.conninfo("postgres")]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    cluster.psql("restored", &String::from_utf8(dump.stdout).unwrap());
    let restored = cluster.client("restored").await;
    for question in [
        "SELECT schema, name, outbox, granularity, key, columns, replicated, enabled FROM postbox.captures ORDER BY 2",
        "SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger WHERE tgname ~ '^postbox' ORDER BY tgrelid::regclass::text, 2",
        "SELECT type, key, payload FROM orders_outbox UNION ALL SELECT type, key, payload FROM parts_outbox",
    ] {
        assert_eq!(rows(&restored, question).await, rows(&client, question).await, "{question}");
    }
    run(&restored, "DELETE FROM orders; INSERT INTO part VALUES (2); DELETE FROM parts").await;
    let types = "SELECT type FROM (SELECT 1, seq, type FROM orders_outbox UNION ALL SELECT 2, seq, type FROM parts_outbox ORDER BY 1, 2) e";
    let expected =
        ["orders.inserted", "orders.deleted", "parts.inserted", "parts.inserted", "parts.deleted", "parts.deleted"];
    assert_eq!(rows(&restored, types).await, expected);
    run(&restored, "SELECT postbox.disable_outbox('orders'); SELECT postbox.disable_outbox('parts')").await;
}

#[tokio::test]
async fn what_a_dropped_table_left_goes_when_its_name_is_captured_again() {
    let (_cluster, client) = start().await;
    for _ in 0..3 {
        run(&client, ORDERS).await;
        run(&client, "SELECT postbox.enable_outbox('orders'); DROP TABLE orders").await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM pg_proc WHERE proname ~ '^postbox_'").await, "3");
    // One that is called so is left alone, and so are those of a table that was.
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); ALTER TABLE orders RENAME TO old").await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); INSERT INTO old VALUES (1, 'ada', 5); INSERT INTO orders VALUES (1, 'ada', 5)").await;
    assert_eq!(row(&client, "SELECT count(*) FROM pg_proc WHERE proname ~ '^postbox_'").await, "6");
    assert_eq!(events(&client, "orders_outbox").await.len(), 2);
}
