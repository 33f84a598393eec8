//! Deltas above the thresholds of the outbox's claim check.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{ORDERS, order};
use crate::sql::{row, rows, run, start};

/// The lines of a claim.
async fn lines(client: &Client, outbox: &str, seq: i64) -> Vec<Value> {
    let sql = format!(
        "SELECT line FROM regexp_split_to_table((SELECT string_agg(convert_from(data, 'UTF8'), '' ORDER BY chunk)
            FROM {outbox}_claims WHERE seq = {seq}), E'\\n') line WHERE line <> ''"
    );
    rows(client, &sql).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn what_is_above_the_threshold_is_a_claim_of_lines() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE ROLE shop; CREATE ROLE app; GRANT CREATE ON SCHEMA public TO shop; SET ROLE shop").await;
    run(&client, ORDERS).await;
    run(&client, "GRANT ALL ON orders TO app; RESET ROLE; SELECT postbox.enable_outbox('orders')").await;
    // In sessions that have their plans as well, and for writers without any right on outbox and claims.
    run(&client, "SET ROLE app; INSERT INTO orders VALUES (0, 'c', 0); RESET ROLE").await;
    run(&client, "SELECT postbox.enable_claim_check('orders_outbox', inline_threshold_rows => 100); SET ROLE app")
        .await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(1, 100) n").await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(101, 201) n").await;
    run(&client, "UPDATE orders SET cents = 1 WHERE id BETWEEN 1 AND 50; UPDATE orders SET cents = 2 WHERE id <= 50")
        .await;
    run(&client, "DELETE FROM orders; RESET ROLE").await;
    let events =
        "SELECT seq, type, headers ->> 'op', claim ->> 'rows', payload IS NULL FROM orders_outbox ORDER BY seq";
    assert_eq!(
        rows(&client, events).await,
        [
            "1|orders.inserted|insert||f",
            "2|orders.inserted|insert||f",
            "3|orders.inserted|insert|101|t",
            "4|orders.updated|update||f",
            "5|orders.updated|update|102|t",
            "6|orders.deleted|delete|202|t",
        ]
    );
    let inserted = lines(&client, "orders_outbox", 3).await;
    assert_eq!((inserted.len(), &inserted[0]), (101, &json!({"inserted": order(101, "c", 0)})));
    // What went, then what came, in the same order.
    let updated = lines(&client, "orders_outbox", 5).await;
    assert_eq!(updated.len(), 102);
    for (gone, come) in updated[..51].iter().zip(&updated[51..]) {
        assert_eq!(gone["deleted"]["id"], come["inserted"]["id"]);
        assert_eq!(come["inserted"]["cents"], 2);
    }
}

#[tokio::test]
async fn a_claim_has_the_chosen_columns_and_a_key_makes_none() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders', columns => '{id}')").await;
    run(&client, "SELECT postbox.enable_claim_check('orders_outbox', 10000, inline_threshold_bytes => 20000)").await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(1, 1100) n").await;
    let all = lines(&client, "orders_outbox", 1).await;
    assert_eq!((all.len(), &all[1099]), (1100, &json!({"inserted": {"id": 1100}})));
    run(
        &client,
        "SELECT postbox.disable_outbox('orders'); SELECT postbox.enable_outbox('orders', key => '{customer}')",
    )
    .await;
    run(&client, "DELETE FROM orders").await;
    let event = "SELECT key, claim, jsonb_array_length(payload -> 'deleted') FROM orders_outbox WHERE seq = 2";
    assert_eq!(row(&client, event).await, "c||1100");
}

#[tokio::test]
async fn without_the_extension_nobodys_function_of_its_name_is_called() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); SELECT postbox.enable_claim_check('orders_outbox', 100)")
        .await;
    run(&client, "DROP EXTENSION postbox; CREATE ROLE mallory; CREATE SCHEMA postbox AUTHORIZATION mallory; GRANT USAGE ON SCHEMA postbox TO public; SET ROLE mallory").await;
    run(
        &client,
        "CREATE FUNCTION postbox._publish_rows(regclass, text, refcursor, text, jsonb, uuid, text) RETURNS uuid LANGUAGE plpgsql
            AS $$ BEGIN RAISE 'sprung'; END $$; RESET ROLE",
    )
    .await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(1, 1100) n").await;
    assert_eq!(row(&client, "SELECT jsonb_array_length(payload -> 'inserted') FROM orders_outbox").await, "1100");
}
