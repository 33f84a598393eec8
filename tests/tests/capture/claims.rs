//! Deltas above the thresholds of the outbox's claim check.

use postbox_tests::{major, skip};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{ORDERS, order};
use crate::sql::{refused, row, rows, run, start};

/// The lines of a claim.
pub(super) async fn lines(client: &Client, outbox: &str, seq: i64) -> Vec<Value> {
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

#[tokio::test]
async fn few_rows_of_many_bytes_are_a_claim_too() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE docs (id int PRIMARY KEY, body text); SELECT postbox.enable_outbox('docs')").await;
    run(&client, "SELECT postbox.enable_claim_check('docs_outbox', inline_threshold_bytes => 100000)").await;
    let events = "SELECT type, claim ->> 'rows' FROM docs_outbox ORDER BY seq DESC LIMIT 1";
    run(&client, "INSERT INTO docs SELECT n, repeat(chr(64 + n), 40000) FROM generate_series(1, 2) n").await;
    assert_eq!(row(&client, events).await, "docs.inserted|");
    run(&client, "INSERT INTO docs SELECT n, repeat(chr(64 + n), 40000) FROM generate_series(3, 5) n").await;
    assert_eq!(row(&client, events).await, "docs.inserted|3");
    run(&client, "UPDATE docs SET body = body || 'x' WHERE id = 1").await;
    assert_eq!(row(&client, events).await, "docs.updated|");
    run(&client, "UPDATE docs SET body = body || 'x' WHERE id <= 2").await;
    assert_eq!(row(&client, events).await, "docs.updated|4");
    run(&client, "DELETE FROM docs").await;
    assert_eq!(row(&client, events).await, "docs.deleted|5");
    assert_eq!(lines(&client, "docs_outbox", 5).await.len(), 5);
    // A line is {"inserted": {"id": n, "body": "..."}} and a line break: 36 bytes more than the text.
    for (length, claimed) in [(99_963, ""), (99_964, ""), (99_965, "1")] {
        run(&client, &format!("TRUNCATE docs; INSERT INTO docs VALUES (1, repeat('x', {length}))")).await;
        assert_eq!(row(&client, events).await, format!("docs.inserted|{claimed}"), "{length}");
    }
}

#[tokio::test]
async fn an_update_that_leaves_everything_as_it_was_is_no_claim() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE docs (id int PRIMARY KEY, body text, views int DEFAULT 0)").await;
    run(&client, "SELECT postbox.enable_outbox('docs', columns => '{id,body}')").await;
    run(&client, "SELECT postbox.enable_claim_check('docs_outbox', 100, 100000)").await;
    run(&client, "INSERT INTO docs SELECT n, 'x' FROM generate_series(1, 200) n; INSERT INTO docs VALUES (0, repeat('x', 90000))").await;
    let events = "SELECT seq, type, claim ->> 'rows' FROM docs_outbox ORDER BY seq";
    let inserted = ["1|docs.inserted|200", "2|docs.inserted|"];
    assert_eq!(rows(&client, events).await, inserted);
    // Of many rows, and of one with many bytes; of the columns, and of those that were not chosen.
    for set in ["body = body", "views = views + 1"] {
        run(&client, &format!("UPDATE docs SET {set}; UPDATE docs SET {set} WHERE id = 0")).await;
        assert_eq!(rows(&client, events).await, inserted, "{set}");
    }
    run(&client, "UPDATE docs SET body = body || CASE id WHEN 200 THEN 'y' ELSE '' END").await;
    assert_eq!(rows(&client, events).await, [inserted[0], inserted[1], "3|docs.updated|402"]);
}

#[tokio::test]
async fn a_claim_has_the_chosen_columns_beside_virtual_ones_too() {
    if major() < 18 {
        skip("virtual columns came with PostgreSQL 18");
        return;
    }
    let (_cluster, client) = start().await;
    let table =
        "CREATE TABLE orders (id int PRIMARY KEY, cents int, twice int GENERATED ALWAYS AS (cents * 2) VIRTUAL)";
    run(&client, table).await;
    run(&client, "SELECT postbox.enable_outbox('orders', columns => '{id,twice}')").await;
    run(&client, "SELECT postbox.enable_claim_check('orders_outbox', 100)").await;
    run(&client, "INSERT INTO orders SELECT n, n FROM generate_series(1, 101) n").await;
    assert_eq!(lines(&client, "orders_outbox", 1).await[100], json!({"inserted": {"id": 101, "twice": 202}}));
    run(&client, "UPDATE orders SET cents = cents").await;
    assert_eq!(row(&client, "SELECT count(*) FROM orders_outbox").await, "1");
}

#[tokio::test]
async fn new_thresholds_hold_in_sessions_that_have_their_plans() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.enable_outbox('orders'); SELECT postbox.enable_claim_check('orders_outbox', 100)")
        .await;
    let claims = "SELECT count(claim) FROM orders_outbox";
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(1, 6) n").await;
    assert_eq!(row(&client, claims).await, "0");
    run(&client, "SELECT postbox.enable_claim_check('orders_outbox', 5); DELETE FROM orders WHERE id > 100").await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(11, 16) n").await;
    assert_eq!(row(&client, claims).await, "1");
    run(
        &client,
        "TRUNCATE orders_outbox_claims; DELETE FROM orders_outbox; SELECT postbox.disable_claim_check('orders_outbox')",
    )
    .await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(21, 26) n").await;
    assert_eq!(row(&client, claims).await, "0");
}

#[tokio::test]
async fn the_owner_of_the_table_must_be_able_to_write_claims() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE ROLE shop; GRANT CREATE ON SCHEMA public TO shop; SELECT postbox.create_outbox('box')").await;
    run(
        &client,
        "SELECT postbox.enable_claim_check('box', 1); SELECT postbox.grant_role('publisher', 'shop', '{box}')",
    )
    .await;
    run(&client, "SET ROLE shop").await;
    run(&client, ORDERS).await;
    run(&client, "RESET ROLE").await;
    for (lost, given) in [
        ("REVOKE INSERT ON box_claims FROM shop", "GRANT INSERT ON box_claims TO shop"),
        ("REVOKE USAGE ON SEQUENCE box_seq_seq FROM shop", "GRANT USAGE ON SEQUENCE box_seq_seq TO shop"),
    ] {
        run(&client, lost).await;
        let denied = "may not publish to outbox \"public.box\"";
        refused(
            &client,
            "SELECT postbox.enable_outbox('orders', 'box')",
            "42501",
            denied,
            "grant_role('publisher', 'shop'",
        )
        .await;
        run(&client, given).await;
    }
    run(&client, "SELECT postbox.enable_outbox('orders', 'box')").await;
    run(&client, "INSERT INTO orders SELECT n, 'c', 0 FROM generate_series(1, 6) n").await;
    assert_eq!(row(&client, "SELECT claim ->> 'rows' FROM box").await, "6");
}
