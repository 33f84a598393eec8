//! The SQL surface: what each function makes, refuses and leaves alone.

mod adopt;
mod decode;
mod durable;
mod frame;
mod group;
mod habits;
mod lifecycle;
mod maintain;
mod outbox;
mod plans;
mod privileges;
mod publish;
mod reference;
pub(crate) mod retention;
mod status;

use postbox_tests::Cluster;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

/// A cluster with the extension in its database `postgres`, and a connection to it.
pub(crate) async fn start() -> (Cluster, Client) {
    let cluster = Cluster::with_postbox();
    let client = cluster.client("postgres").await;
    (cluster, client)
}

pub(crate) async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
}

/// The rows of the last statement, columns separated by `|`, NULL empty, as psql prints them.
pub(crate) async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            SimpleQueryMessage::Row(row) => {
                let fields: Vec<&str> = (0..row.len()).map(|index| row.get(index).unwrap_or("")).collect();
                rows.push(fields.join("|"));
            }
            _ => {}
        }
    }
    rows
}

/// The only row of the last statement.
pub(crate) async fn row(client: &Client, sql: &str) -> String {
    let mut rows = rows(client, sql).await;
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.remove(0)
}

/// The error that the SQL must raise.
pub(crate) async fn error(client: &Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone()
}

/// Asserts that the SQL is refused with this SQLSTATE, and that message and hint contain these texts.
pub(crate) async fn refused(client: &Client, sql: &str, code: &str, message: &str, hint: &str) {
    let error = error(client, sql).await;
    assert_eq!(error.code().code(), code, "{sql}: {error:?}");
    assert!(error.message().contains(message), "{sql}: {error:?}");
    assert!(error.hint().unwrap_or_default().contains(hint), "{sql}: {error:?}");
}
