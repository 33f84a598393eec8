//! Inboxes: what comes in once, in which order it is handed out, and that nothing is lost.

mod adopted;
mod circle;
mod claim;
mod dead;
mod keeping;
mod killed;
mod lifecycle;
mod model;
mod oracle;
mod order;
mod racing;
mod receiving;
mod seeing;
mod settings;
mod storm;
pub(crate) mod stream;
mod tiers;
mod worker;

use std::time::Duration;

use tokio_postgres::{Client, Error};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a claim has handed out, in its order: ids with their tokens.
async fn claim(client: &Client, arguments: &str) -> Vec<(String, i64)> {
    let sql = format!("SELECT event_id, token FROM postbox.inbox_claim({arguments})");
    let rows = client.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// As [`claim`], the ids alone, sorted.
async fn claimed(client: &Client, arguments: &str) -> Vec<String> {
    let mut ids: Vec<String> = claim(client, arguments).await.into_iter().map(|(id, _)| id).collect();
    ids.sort();
    ids
}

async fn try_complete(client: &Client, messages: &[(String, i64)]) -> Result<(), Error> {
    let (ids, tokens): (Vec<&str>, Vec<i64>) = messages.iter().map(|(id, token)| (id.as_str(), *token)).unzip();
    client.execute("SELECT postbox.inbox_complete('payments', $1, $2)", &[&ids, &tokens]).await.map(|_| ())
}

async fn complete(client: &Client, messages: &[(String, i64)]) {
    try_complete(client, messages).await.unwrap_or_else(|error| panic!("{messages:?}: {:?}", error.as_db_error()));
}

/// Claims one message after another and completes it, until there is none; the ids in their order.
async fn drain(client: &Client) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let messages = claim(client, "'payments', 'drain', 1").await;
        let [(id, _)] = &messages[..] else { return ids };
        complete(client, &messages).await;
        ids.push(id.clone());
    }
}
