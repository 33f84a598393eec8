//! The consumer's connections against real servers.

mod login;
mod refusals;
mod streaming;
mod tls;

use std::time::Duration;

use postbox::transport::{ConnInfo, Replication, connect_sql};
use postbox::{Error, Lsn};
use postbox_tests::Cluster;

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(30);

fn info(string: &str) -> ConnInfo {
    ConnInfo::parse(string).unwrap_or_else(|error| panic!("{string}: {error}"))
}

/// Connects for SQL and asks for one value; an error of either is returned.
async fn ask(string: &str, query: &str) -> Result<String, Error> {
    let client = connect_sql(&info(string)).await?;
    let row = client.query_one(query, &[]).await?;
    Ok(row.try_get(0)?)
}

async fn replication(string: &str) -> Result<Replication, Error> {
    Replication::connect(&info(string), "postbox-test").await
}

/// The error of a connection that must not come about, by both ways.
async fn refused(string: &str) -> Error {
    let sql = connect_sql(&info(string)).await.map(drop).expect_err(string);
    let replication = replication(string).await.map(drop).expect_err(string);
    assert_eq!((sql.kind(), sql.to_string()), (replication.kind(), replication.to_string()), "{string}");
    sql
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A slot of test_decoding, which prints text.
fn create_slot(cluster: &Cluster, slot: &str) {
    cluster.psql("postgres", &format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
}
