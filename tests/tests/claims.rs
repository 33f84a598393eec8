//! The claim check: events whose data lies beside the outbox.

mod killed;
mod publish;
mod reading;
mod retention;
mod streaming;

use postbox_tests::Cluster;
use serde_json::Value;
use tokio_postgres::Client;

use crate::sql::{row, run, start};

/// A cluster with the outbox `orders`, whose events of more than ten rows or a thousand bytes are claims, and a slot.
async fn with_claims() -> (Cluster, Client) {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'); SELECT postbox.enable_claim_check('orders', 10, 1000)").await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    (cluster, client)
}

/// A query of this many short rows.
fn numbers(count: u32) -> String {
    format!("SELECT n FROM generate_series(1, {count}) n")
}

async fn publish(client: &Client, query: &str) {
    run(client, &format!("SELECT postbox.publish_batch('orders', 'numbers', $q${query}$q$)")).await;
}

/// The newest claim.
async fn claim(client: &Client) -> Value {
    serde_json::from_str(
        &row(client, "SELECT claim FROM orders WHERE claim IS NOT NULL ORDER BY seq DESC LIMIT 1").await,
    )
    .expect("JSON")
}

/// The data of the claim with this seq, as text.
async fn data(client: &Client, seq: &Value) -> String {
    let sql = format!(
        "SELECT coalesce(string_agg(convert_from(data, 'UTF8'), '' ORDER BY chunk), '') FROM orders_claims WHERE seq = {seq}"
    );
    row(client, &sql).await
}
