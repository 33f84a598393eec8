//! Servers that cannot load the plugin: PostgreSQL's own plugin as the source, and the schema without the extension.

mod claims;
mod conformance;
mod differences;
mod install;
mod plain;
mod session;
mod switch;

use std::process::{Command, Output};

use postbox_tests::tap::deliver;
use postbox_tests::{Cluster, postbox_binary};
use serde_json::Value;

/// A cluster with the extension and the publication.
fn start() -> Cluster {
    let cluster = Cluster::with_postbox();
    cluster.psql("postgres", "SELECT postbox.enable_pgoutput()");
    cluster
}

/// Makes two groups that read the same from the same moment on, one of each source.
fn make_groups(cluster: &Cluster, database: &str, outboxes: &str) {
    for source in SOURCES {
        let sql =
            format!("SELECT postbox.create_consumer_group('by_{source}', '{{{outboxes}}}', source => '{source}')");
        cluster.psql(database, &sql);
    }
}

fn drop_groups(cluster: &Cluster, database: &str) {
    for source in SOURCES {
        cluster.psql(database, &format!("SELECT postbox.drop_consumer_group('by_{source}')"));
    }
}

const SOURCES: [&str; 2] = ["postbox", "pgoutput"];

/// What each of the two groups delivers until nothing is left.
fn deliver_both(cluster: &Cluster, database: &str) -> [Vec<Value>; 2] {
    SOURCES.map(|source| deliver(cluster, database, &["--group", &format!("by_{source}"), "--source", source]))
}

/// What both groups deliver, which must be the same to the last member.
fn deliver_same(cluster: &Cluster, database: &str) -> Vec<Value> {
    let [plugin, pgoutput] = deliver_both(cluster, database);
    for (ours, theirs) in plugin.iter().zip(&pgoutput) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(plugin.len(), pgoutput.len(), "{plugin:#?} {pgoutput:#?}");
    plugin
}

/// Runs the binary against a database.
fn postbox(conninfo: &str, arguments: &[&str]) -> Output {
    Command::new(postbox_binary()).args(arguments).args(["-d", conninfo]).output().expect("postbox runs")
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap_or("null")).collect()
}
