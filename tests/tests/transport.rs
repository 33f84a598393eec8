//! The consumer's connections against real servers.

mod certificate;
mod hosts;
mod login;
mod passfile;
mod pki;
mod refusals;
mod service;
mod streaming;
mod tls;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postbox::transport::{ConnInfo, Replication, connect_sql};
use postbox::{Error, Lsn};
use postbox_tests::{Cluster, postbox_binary};

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
    Replication::connect(&info(string), "postbox-test", None).await
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

/// Runs `postbox` with nothing but this environment: its exit code, and what it said on standard error.
fn postbox(environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(postbox_binary());
    let output = command.env_clear().envs(environment.iter().copied()).args(arguments).output().expect("postbox runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What libpq makes of a connection string: the value that the query gives, or psql's message.
fn libpq(cluster: &Cluster, environment: &[(&str, &str)], string: &str, query: &str) -> Result<String, String> {
    let mut psql = Command::new(cluster.bin("psql"));
    psql.env_clear().envs(environment.iter().copied()).args(["-XAtqw", "-c", query, "-d", string]);
    let output = psql.output().expect("psql runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Writes a file with these permissions into the cluster's directory.
fn write(cluster: &Cluster, name: &str, contents: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    let file = cluster.socket_dir().join(name);
    fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
    fs::write(&file, contents).expect("written");
    fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("permissions set");
    file
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

fn home(cluster: &Cluster) -> String {
    path(&cluster.socket_dir().join("home")).to_owned()
}
