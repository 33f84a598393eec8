//! Table capture: what statements do to a table becomes events of an outbox.

mod claims;
mod columns;
mod lifecycle;
mod model;
mod partitions;
mod refusals;
mod rights;
mod views;

use serde_json::{Value, json};
use tokio_postgres::Client;

use postbox_tests::tap::{make_slot, peek_events};
use postbox_tests::{major, skip};

use crate::sql::{row, rows, run, start};

const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer text, cents int)";

/// The events that an outbox has got since the last call, in order.
async fn events(client: &Client, outbox: &str) -> Vec<Value> {
    let sql = format!(
        "WITH taken AS (DELETE FROM {outbox} RETURNING *) SELECT jsonb_build_object('type', type, 'key', key,
            'headers', headers, 'payload', payload) FROM taken ORDER BY seq"
    );
    rows(client, &sql).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Type and payload of each event.
fn told(events: &[Value]) -> Vec<(&str, Value)> {
    events.iter().map(|event| (event["type"].as_str().unwrap(), event["payload"].clone())).collect()
}

/// Which of the events are of one statement: for each the index of the first one that shares its id.
fn statements(events: &[Value]) -> Vec<usize> {
    let ids: Vec<&str> = events.iter().map(|event| event["headers"]["statement"].as_str().expect("an id")).collect();
    ids.iter().map(|id| ids.iter().position(|other| other == id).unwrap()).collect()
}

fn order(id: i32, customer: &str, cents: i32) -> Value {
    json!({"id": id, "customer": customer, "cents": cents})
}

#[tokio::test]
async fn each_statement_is_one_event_with_the_rows_that_it_changed() {
    let (cluster, client) = start().await;
    run(&client, ORDERS).await;
    assert_eq!(row(&client, "SELECT postbox.enable_outbox('orders')").await, "orders_outbox");
    make_slot(&cluster, "postgres", "s");
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5), (2, 'bob', 6)").await;
    run(&client, "UPDATE orders SET cents = cents + 10").await;
    run(&client, "DELETE FROM orders WHERE id = 1").await;
    run(&client, "TRUNCATE orders").await;
    let (ada, bob) = (order(1, "ada", 5), order(2, "bob", 6));
    let expected = [
        ("orders.inserted", json!({"inserted": [ada, bob], "deleted": []})),
        // The rows stand at the same place on both sides.
        ("orders.updated", json!({"inserted": [order(1, "ada", 15), order(2, "bob", 16)], "deleted": [ada, bob]})),
        ("orders.deleted", json!({"inserted": [], "deleted": [order(1, "ada", 15)]})),
        ("orders.truncated", json!({"inserted": [], "deleted": [], "full_refresh": true})),
    ];
    // What consumers get, and what is stored.
    let peeked = peek_events(&cluster, "s");
    assert_eq!(told(&peeked), expected);
    let stored = events(&client, "orders_outbox").await;
    assert_eq!(told(&stored), expected);
    assert_eq!(statements(&stored), [0, 1, 2, 3]);
    for (event, op) in stored.iter().zip(["insert", "update", "delete", "truncate"]) {
        assert_eq!((&event["headers"]["op"], &event["headers"]["table"]), (&json!(op), &json!("public.orders")));
        // Deltas of a table are only right in their order, which a key keeps.
        assert_eq!(event["key"], "public.orders");
    }
    let id = stored[0]["headers"]["statement"].as_str().unwrap();
    assert_eq!(id, format!("{}.1", peeked[0]["xid"]));
}

#[tokio::test]
async fn what_changes_nothing_is_no_event_and_takes_no_number() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5); SELECT postbox.enable_outbox('orders')").await;
    run(&client, "INSERT INTO orders SELECT 2, 'bob', 6 WHERE false").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5) ON CONFLICT DO NOTHING").await;
    run(&client, "UPDATE orders SET cents = 7 WHERE false; DELETE FROM orders WHERE false").await;
    run(&client, "UPDATE orders SET cents = cents").await;
    run(&client, "BEGIN; INSERT INTO orders VALUES (3, 'eve', 7); ROLLBACK").await;
    assert_eq!(events(&client, "orders_outbox").await, [Value::Null; 0]);
    assert_eq!(row(&client, "SELECT last_seq FROM postbox.outbox_status('orders_outbox')").await, "1");
}

#[tokio::test]
async fn a_rollback_to_a_savepoint_takes_its_events_with_it() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders')").await;
    run(
        &client,
        "BEGIN; INSERT INTO orders VALUES (1, 'ada', 5); SAVEPOINT s; DELETE FROM orders; ROLLBACK TO s;
         UPDATE orders SET cents = 6; COMMIT",
    )
    .await;
    let events = events(&client, "orders_outbox").await;
    let types: Vec<_> = told(&events).into_iter().map(|(name, _)| name).collect();
    assert_eq!((types, statements(&events)), (vec!["orders.inserted", "orders.updated"], vec![0, 1]));
}

#[tokio::test]
async fn on_conflict_is_two_events_of_one_statement() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5); SELECT postbox.enable_outbox('orders')").await;
    let upsert =
        "INSERT INTO orders VALUES (1, 'ada', 6), (2, 'bob', 7) ON CONFLICT (id) DO UPDATE SET cents = excluded.cents";
    run(&client, upsert).await;
    // All in one message of the protocol: still each statement is one.
    run(&client, "INSERT INTO orders VALUES (3, 'eve', 8); UPDATE orders SET cents = 9 WHERE id = 3").await;
    run(&client, "DO $$ BEGIN DELETE FROM orders WHERE id = 2; DELETE FROM orders WHERE id = 3; END $$").await;
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events)[..2],
        [
            ("orders.updated", json!({"inserted": [order(1, "ada", 6)], "deleted": [order(1, "ada", 5)]})),
            ("orders.inserted", json!({"inserted": [order(2, "bob", 7)], "deleted": []})),
        ]
    );
    assert_eq!(statements(&events), [0, 0, 2, 3, 4, 5]);
}

#[tokio::test]
async fn merge_is_up_to_three_events_of_one_statement() {
    if major() < 15 {
        skip("MERGE came with PostgreSQL 15");
        return;
    }
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5), (2, 'bob', 6); SELECT postbox.enable_outbox('orders')")
        .await;
    let merge = "MERGE INTO orders USING (VALUES (1), (2), (3)) AS s (id) ON orders.id = s.id
        WHEN MATCHED AND s.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET cents = 9
        WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'eve', 1)";
    run(&client, merge).await;
    run(&client, &merge.replace("(VALUES (1), (2), (3))", "(VALUES (4))")).await;
    let events = events(&client, "orders_outbox").await;
    assert_eq!(
        told(&events),
        [
            ("orders.deleted", json!({"inserted": [], "deleted": [order(1, "ada", 5)]})),
            ("orders.updated", json!({"inserted": [order(2, "bob", 9)], "deleted": [order(2, "bob", 6)]})),
            ("orders.inserted", json!({"inserted": [order(3, "eve", 1)], "deleted": []})),
            ("orders.inserted", json!({"inserted": [order(4, "eve", 1)], "deleted": []})),
        ]
    );
    assert_eq!(statements(&events), [0, 0, 0, 3]);
}

#[tokio::test]
async fn copy_and_data_modifying_queries_are_captured() {
    let (cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "CREATE TABLE old (LIKE orders); SELECT postbox.enable_outbox('orders'); SELECT postbox.enable_outbox('old')",
    )
    .await;
    cluster.psql("postgres", "COPY orders FROM STDIN;\n1\tada\t5\n2\tbob\t6\n\\.\n");
    run(&client, "WITH gone AS (DELETE FROM orders WHERE id = 1 RETURNING *) INSERT INTO old SELECT * FROM gone").await;
    let of_orders = events(&client, "orders_outbox").await;
    let of_old = events(&client, "old_outbox").await;
    assert_eq!(
        told(&of_orders)[0],
        ("orders.inserted", json!({"inserted": [order(1, "ada", 5), order(2, "bob", 6)], "deleted": []}))
    );
    assert_eq!(told(&of_orders)[1].0, "orders.deleted");
    assert_eq!(told(&of_old), [("old.inserted", json!({"inserted": [order(1, "ada", 5)], "deleted": []}))]);
    // One statement, two tables.
    assert_eq!(statements(&[of_orders[1].clone(), of_old[0].clone()]), [0, 0]);
}

#[tokio::test]
async fn a_table_that_is_emptied_and_filled_again_is_a_full_refresh_and_then_the_new_rows() {
    let (cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5); SELECT postbox.enable_outbox('orders')").await;
    make_slot(&cluster, "postgres", "s");
    cluster.psql("postgres", "BEGIN;\nTRUNCATE orders;\nCOPY orders FROM STDIN;\n2\tbob\t6\n\\.\nINSERT INTO orders VALUES (3, 'eve', 7);\nCOMMIT;\n");
    let expected = [
        ("orders.truncated", json!({"inserted": [], "deleted": [], "full_refresh": true})),
        ("orders.inserted", json!({"inserted": [order(2, "bob", 6)], "deleted": []})),
        ("orders.inserted", json!({"inserted": [order(3, "eve", 7)], "deleted": []})),
    ];
    let delivered = peek_events(&cluster, "s");
    assert_eq!(told(&delivered), expected);
    assert!(delivered.iter().all(|event| event["commit_lsn"] == delivered[0]["commit_lsn"]), "{delivered:#?}");
    assert_eq!(told(&events(&client, "orders_outbox").await), expected);
}

#[tokio::test]
async fn cascades_are_statements_on_the_table_that_they_reach() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE);
         INSERT INTO orders VALUES (1, 'ada', 5), (2, 'bob', 6); INSERT INTO lines VALUES (10, 1), (11, 1), (20, 2);
         SELECT postbox.create_outbox('shop'); SELECT postbox.enable_outbox('orders', 'shop');
         SELECT postbox.enable_outbox('lines', 'shop')",
    )
    .await;
    run(&client, "UPDATE orders SET id = 3 WHERE id = 1").await;
    run(&client, "DELETE FROM orders").await;
    let events = events(&client, "shop").await;
    let line = |id: i32, order: i32| json!({"id": id, "order_id": order});
    // What foreign keys do row by row is one event, behind that of the statement that caused it.
    assert_eq!(
        told(&events),
        [
            ("orders.updated", json!({"inserted": [order(3, "ada", 5)], "deleted": [order(1, "ada", 5)]})),
            ("lines.updated", json!({"inserted": [line(10, 3), line(11, 3)], "deleted": [line(10, 1), line(11, 1)]})),
            ("orders.deleted", json!({"inserted": [], "deleted": [order(2, "bob", 6), order(3, "ada", 5)]})),
            ("lines.deleted", json!({"inserted": [], "deleted": [line(20, 2), line(10, 3), line(11, 3)]})),
        ]
    );
    assert_eq!(statements(&events), [0, 0, 2, 2]);
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5); INSERT INTO lines VALUES (10, 1); TRUNCATE orders CASCADE")
        .await;
    let events = self::events(&client, "shop").await;
    let types: Vec<_> = told(&events[2..]).into_iter().map(|(name, _)| name).collect();
    assert_eq!((types, statements(&events[2..])), (vec!["orders.truncated", "lines.truncated"], vec![0, 0]));
}

/// What docs/sql.md says of statements within statements.
#[tokio::test]
async fn what_a_trigger_writes_is_a_statement_of_its_own() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "CREATE TABLE notes (id int); SELECT postbox.enable_outbox('orders', 'notes_outbox') FROM postbox.create_outbox('notes_outbox');
         SELECT postbox.enable_outbox('notes');
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO notes VALUES (1); RETURN NULL; END $$;
         CREATE TRIGGER z_note AFTER INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION note()",
    )
    .await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5)").await;
    run(&client, "CREATE TRIGGER a_note AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note()").await;
    run(&client, "INSERT INTO orders VALUES (2, 'ada', 5)").await;
    let events = events(&client, "notes_outbox").await;
    let types: Vec<&str> = told(&events).into_iter().map(|event| event.0).collect();
    assert_eq!(types, ["orders.inserted", "notes.inserted", "notes.inserted", "orders.inserted", "notes.inserted"]);
    assert_eq!(statements(&events), [0, 1, 2, 2, 4]);
}

#[tokio::test]
async fn a_key_shares_out_the_rows_of_a_statement() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders', key => '{customer}')").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5), (2, 'bob', 6), (3, 'ada', 7), (4, NULL, 8)").await;
    run(&client, "UPDATE orders SET customer = 'bob' WHERE id = 1").await;
    let events = events(&client, "orders_outbox").await;
    let keys: Vec<_> = events.iter().map(|event| event["key"].clone()).collect();
    assert_eq!(keys, [json!("ada"), json!("bob"), Value::Null, json!("ada"), json!("bob")]);
    assert_eq!(
        told(&events),
        [
            ("orders.inserted", json!({"inserted": [order(1, "ada", 5), order(3, "ada", 7)], "deleted": []})),
            ("orders.inserted", json!({"inserted": [order(2, "bob", 6)], "deleted": []})),
            ("orders.inserted", json!({"inserted": [{"id": 4, "customer": null, "cents": 8}], "deleted": []})),
            // It leaves one key and comes to the other.
            ("orders.updated", json!({"inserted": [], "deleted": [order(1, "ada", 5)]})),
            ("orders.updated", json!({"inserted": [order(1, "bob", 5)], "deleted": []})),
        ]
    );
    assert_eq!(statements(&events), [0, 0, 0, 3, 3]);
}

/// Whoever applies the events by key must end with both rows.
#[tokio::test]
async fn rows_that_exchange_their_keys_leave_before_they_come() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE seats (id int PRIMARY KEY DEFERRABLE, who text)").await;
    run(&client, "SELECT postbox.enable_outbox('seats', granularity => 'row')").await;
    run(&client, "INSERT INTO seats VALUES (1, 'ada'), (2, 'bob'), (3, 'eve')").await;
    events(&client, "seats_outbox").await;
    run(&client, "UPDATE seats SET id = 3 - id WHERE id < 3").await;
    let told = events(&client, "seats_outbox").await;
    let told: Vec<_> =
        told.iter().map(|event| (event["type"].as_str().unwrap(), event["key"].as_str().unwrap())).collect();
    assert_eq!(
        told,
        [("seats.deleted", "1"), ("seats.deleted", "2"), ("seats.inserted", "2"), ("seats.inserted", "1")]
    );
}

#[tokio::test]
async fn rows_one_by_one_are_before_and_after_with_the_primary_key() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE orders (id int, line int, at timestamptz, cents int, PRIMARY KEY (id, at, line))").await;
    run(&client, "SELECT postbox.enable_outbox('orders', granularity => 'row', columns => '{cents}')").await;
    // Whatever the session prints times like.
    run(&client, "SET timezone = 'Asia/Tokyo'; INSERT INTO orders VALUES (1, 1, '2026-01-01 09:00', 5), (2, 1, '2026-01-01 09:00', 6)").await;
    run(&client, "UPDATE orders SET cents = 7 WHERE id = 1; RESET timezone").await;
    run(
        &client,
        "UPDATE orders SET line = 3 WHERE id = 1; UPDATE orders SET cents = 6; DELETE FROM orders WHERE id = 2",
    )
    .await;
    run(&client, "TRUNCATE orders").await;
    let events = events(&client, "orders_outbox").await;
    let key = |id: i32, line: i32| json!(format!("[{id}, \"2026-01-01T00:00:00+00:00\", {line}]"));
    let shape = |id: i32, line: i32, cents: i32| json!({"id": id, "at": "2026-01-01T00:00:00+00:00", "line": line, "cents": cents});
    let expected = [
        (key(1, 1), "orders.inserted", Value::Null, shape(1, 1, 5)),
        (key(2, 1), "orders.inserted", Value::Null, shape(2, 1, 6)),
        (key(1, 1), "orders.updated", shape(1, 1, 5), shape(1, 1, 7)),
        (key(1, 1), "orders.deleted", shape(1, 1, 7), Value::Null),
        (key(1, 3), "orders.inserted", Value::Null, shape(1, 3, 7)),
        // The other row was updated too, to what it was.
        (key(1, 3), "orders.updated", shape(1, 3, 7), shape(1, 3, 6)),
        (key(2, 1), "orders.deleted", shape(2, 1, 6), Value::Null),
    ];
    assert_eq!(events.len(), expected.len() + 1, "{events:#?}");
    for (event, (key, name, before, after)) in events.iter().zip(expected) {
        assert_eq!((&event["key"], event["type"].as_str()), (&key, Some(name)));
        assert_eq!(event["payload"], json!({"before": before, "after": after}));
    }
    let last = events.last().unwrap();
    assert_eq!(last["payload"], json!({"full_refresh": true, "before": null, "after": null}));
    assert_eq!(statements(&events), [0, 0, 2, 3, 3, 5, 6, 7]);
}

#[tokio::test]
async fn many_rows_are_one_event_too() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders')").await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(1, 5000) n").await;
    run(&client, "UPDATE orders SET cents = id; DELETE FROM orders WHERE id > 1500").await;
    run(&client, "UPDATE orders SET cents = cents").await;
    let sizes = "SELECT type, jsonb_array_length(payload -> 'inserted'), jsonb_array_length(payload -> 'deleted'),
        payload #>> '{inserted,4999,cents}', payload #>> '{deleted,-1,id}' FROM orders_outbox ORDER BY seq";
    assert_eq!(
        rows(&client, sizes).await,
        ["orders.inserted|5000|0|0|", "orders.updated|5000|5000|5000|5000", "orders.deleted|0|3500||5000"]
    );
}

#[tokio::test]
async fn triggers_that_write_to_the_table_themselves_lose_nothing() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "SELECT postbox.enable_outbox('orders');
         CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF new.id < 100 THEN INSERT INTO orders VALUES (new.id + 100, 'by trigger', 0); END IF; RETURN new; END $$;
         CREATE TRIGGER before BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION again();
         CREATE TRIGGER after AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION again();
         CREATE FUNCTION add(id int) RETURNS int LANGUAGE sql AS $$ INSERT INTO orders VALUES (id, 'by function', 0) RETURNING id $$",
    )
    .await;
    run(&client, "INSERT INTO orders SELECT add(200) + 100, 'outer', 1").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5)").await;
    run(&client, "UPDATE orders SET id = 2 WHERE id = 1; DELETE FROM orders WHERE id = 102").await;
    let sum = "WITH r AS (
            SELECT i.value AS row, 1 AS n FROM orders_outbox, jsonb_array_elements(payload -> 'inserted') i
            UNION ALL SELECT d.value, -1 FROM orders_outbox, jsonb_array_elements(payload -> 'deleted') d)
        SELECT row ->> 'id' FROM r GROUP BY row HAVING sum(n) <> 0 OR min(n) < -1 ORDER BY (row ->> 'id')::int";
    // What was inserted and not deleted is what there is.
    assert_eq!(rows(&client, sum).await, rows(&client, "SELECT id FROM orders ORDER BY id").await);
}
