//! The plans that `publish` keeps: nothing done to a table sends an event elsewhere or breaks the session.

use super::{refused, row, rows, run, start};

#[tokio::test]
async fn renamed_and_swapped_tables_get_the_events_of_their_present_names() {
    let (_cluster, client) = start().await;
    let publish = "SELECT postbox.publish('orders', 'to orders', '{}')";
    run(&client, &format!("SELECT postbox.create_outbox('orders'); {publish}")).await;
    run(&client, "ALTER TABLE orders RENAME TO former").await;
    refused(&client, publish, "42P01", "\"orders\" does not exist", "").await;
    run(&client, "SELECT postbox.publish('former', 'to former', '{}')").await;
    run(&client, &format!("SELECT postbox.drop_outbox('former'); SELECT postbox.create_outbox('orders'); {publish}"))
        .await;
    assert_eq!(row(&client, "SELECT count(*) FROM orders").await, "1");

    // Two outboxes change names in one transaction.
    run(&client, "SELECT postbox.create_outbox('bills'); SELECT postbox.publish('bills', 'to bills', '{}')").await;
    run(
        &client,
        "BEGIN; ALTER TABLE orders RENAME TO x; ALTER TABLE bills RENAME TO orders;
         ALTER TABLE x RENAME TO bills; COMMIT",
    )
    .await;
    run(&client, &format!("{publish}; SELECT postbox.publish('bills', 'to bills', '{{}}')")).await;
    assert_eq!(rows(&client, "SELECT type FROM orders ORDER BY seq").await, ["to bills", "to orders"]);
    assert_eq!(rows(&client, "SELECT type FROM bills ORDER BY seq").await, ["to orders", "to bills"]);
}

#[tokio::test]
async fn swapped_schemas_get_the_events_of_their_present_names() {
    let (cluster, client) = start().await;
    run(&client, "CREATE SCHEMA a; CREATE SCHEMA b").await;
    run(&client, "SELECT postbox.create_outbox('orders', 'a'); SELECT postbox.create_outbox('orders', 'b')").await;
    let publish = "SELECT postbox.publish('a.orders', 'to a', '{}'); SELECT postbox.publish('b.orders', 'to b', '{}')";
    run(&client, publish).await;
    // By another session, so that the news comes as an invalidation.
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; ALTER SCHEMA a RENAME TO x; ALTER SCHEMA b RENAME TO a; ALTER SCHEMA x RENAME TO b; COMMIT")
        .await;
    run(&client, publish).await;
    assert_eq!(rows(&client, "SELECT type FROM a.orders ORDER BY seq").await, ["to b", "to a"]);
    assert_eq!(rows(&client, "SELECT type FROM b.orders ORDER BY seq").await, ["to a", "to b"]);
}

#[tokio::test]
async fn changes_of_the_table_are_seen_by_the_next_call() {
    let (cluster, client) = start().await;
    let other = cluster.client("postgres").await;
    let publish = "SELECT postbox.publish('orders', 't', '{}')";
    run(&client, &format!("SELECT postbox.create_outbox('orders'); {publish}; {publish}")).await;

    run(&other, "ALTER TABLE orders ADD tenant text DEFAULT 'none', DROP COLUMN created_at").await;
    run(&client, publish).await;
    assert_eq!(row(&client, "SELECT tenant FROM orders WHERE seq = 3").await, "none");
    run(&other, "ALTER TABLE orders ALTER payload TYPE text USING payload::text").await;
    run(&client, "SELECT postbox.publish('orders', 't', 'no json at all')").await;
    run(&other, "ALTER TABLE orders ALTER payload TYPE bytea USING payload::bytea").await;
    refused(&client, "SELECT postbox.publish('orders', 't', '{}'::jsonb)", "42804", "which has type bytea", "").await;
    run(&client, publish).await;
    run(&other, "DROP TRIGGER postbox_outbox ON orders").await;
    refused(&client, publish, "42809", "\"orders\" is not an outbox", "").await;
    run(&other, "SELECT postbox.adopt_outbox('orders')").await;
    run(&client, publish).await;
    run(&other, "TRUNCATE orders; DROP TABLE orders; SELECT postbox.create_outbox('orders')").await;
    run(&client, publish).await;
    assert_eq!(row(&client, "SELECT seq, payload FROM orders").await, "1|{}");
    run(&other, "DROP TABLE orders").await;
    refused(&client, publish, "42P01", "\"orders\" does not exist", "").await;
    // The same in one transaction of one's own.
    run(
        &client,
        &format!(
            "BEGIN; SELECT postbox.create_outbox('orders'); {publish}; SAVEPOINT s; DROP TABLE orders;
             SELECT postbox.create_outbox('orders', payload_type => 'bytea'); {publish};
             ROLLBACK TO s; {publish}; COMMIT"
        ),
    )
    .await;
    assert_eq!(rows(&client, "SELECT payload FROM orders").await, ["{}", "{}"]);
}

#[tokio::test]
async fn a_trigger_may_publish_too_and_change_the_outbox_it_fires_on() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('audit');
         CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             -- Makes the plan invalid that is running.
             GRANT SELECT ON orders TO PUBLIC;
             IF new.key::int > 0 THEN
                 PERFORM postbox.publish('orders', 'nested', '{}', (new.key::int - 1)::text);
             END IF;
             PERFORM postbox.publish('audit', 'seen', to_jsonb(new));
             RETURN new;
         END $$;
         CREATE TRIGGER follow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION follow()",
    )
    .await;
    for _ in 0..50 {
        run(&client, "SELECT postbox.publish('orders', 'first', '{}', '3')").await;
    }
    let counts = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM audit)";
    assert_eq!(row(&client, counts).await, "200|200");
}

#[tokio::test]
async fn a_session_may_publish_to_more_outboxes_than_it_keeps_plans_for() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('o' || n) FROM generate_series(1, 70) n").await;
    for _ in 0..3 {
        run(&client, "SELECT postbox.publish('o' || n, 't', to_jsonb(n)) FROM generate_series(1, 70) n").await;
    }
    let union: Vec<String> =
        (1..=70).map(|n| format!("SELECT count(*) FILTER (WHERE payload = to_jsonb({n})) AS n FROM o{n}")).collect();
    let counts = format!("SELECT min(n), max(n) FROM ({}) c", union.join(" UNION ALL "));
    assert_eq!(row(&client, &counts).await, "3|3");
}

#[tokio::test]
async fn plans_that_became_invalid_are_freed() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let turn = "GRANT SELECT ON orders TO PUBLIC; SELECT postbox.publish('orders', 't', '{}');
        REVOKE SELECT ON orders FROM PUBLIC";
    let plans =
        "SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident LIKE 'INSERT INTO%'";
    for _ in 0..200 {
        run(&client, turn).await;
    }
    let kept: u32 = row(&client, plans).await.parse().unwrap();
    // One is in use, and those of the last transaction wait for the next.
    assert!((1..=3).contains(&kept), "{kept} plans kept");
    // An outbox that is gone leaves its plan behind only until the next one is made.
    for n in 0..20 {
        run(&client, &format!("SELECT postbox.create_outbox('o{n}'); SELECT postbox.publish('o{n}', 't', '{{}}')"))
            .await;
        run(&client, &format!("SELECT postbox.drop_outbox('o{n}')")).await;
    }
    let kept: u32 = row(&client, plans).await.parse().unwrap();
    assert!((1..=4).contains(&kept), "{kept} plans kept");
}
