//! Where a group starts, how it is moved, and how it gets over the loss of its slot or its server: nothing is lost.
//!
//! The type of each event is its name, `key:number`, so that what came is held against what is in the table by name, and
//! the order of a key by number.

mod earliest;
mod elsewhere;
mod failover;
mod random;
mod recover;
mod seek;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postbox_tests::{Builder, Cluster, Line, Run, postbox_binary, wait_until_async};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::shop::PATIENCE;

/// A cluster with the outbox `orders`; its group is `g`.
struct Office {
    cluster: Cluster,
}

impl Office {
    fn open() -> Self {
        Self::open_with(Cluster::builder())
    }

    fn open_with(builder: Builder) -> Self {
        let cluster = builder.with_postbox().start();
        cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
        Self { cluster }
    }

    fn psql(&self, sql: &str) -> String {
        self.cluster.psql("postgres", sql)
    }

    async fn client(&self) -> Client {
        self.cluster.client("postgres").await
    }

    fn create(&self, start: &str) {
        self.psql(&format!("SELECT postbox.create_consumer_group('g', '{{orders}}', '{start}')"));
    }

    /// Publishes `key:from` to `key:to`, each in a transaction of its own.
    fn publish(&self, key: &str, from: usize, to: usize) {
        let statements: String = (from..=to).map(|n| insert(&format!("{key}:{n}"), 1)).collect();
        self.psql(&statements);
    }

    fn run(&self, arguments: &[&str]) -> Run {
        run(&self.cluster, arguments)
    }

    /// Delivers what there is.
    fn deliver(&self) -> Vec<Line> {
        self.deliver_with(&[])
    }

    fn deliver_with(&self, arguments: &[&str]) -> Vec<Line> {
        let ended = self.run(&[&["--exit-when-idle", "200ms"], arguments].concat()).end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        ended.lines
    }

    /// Why nothing is delivered.
    fn refuses(&self, texts: &[&str]) {
        let ended = self.run(&["--exit-when-idle", "200ms"]).end(PATIENCE);
        assert_eq!((ended.code, ended.lines.len()), (Some(4), 0), "{}", ended.log);
        for text in texts {
            assert!(ended.log.contains(text), "{text}: {}", ended.log);
        }
    }

    /// Runs `postbox group`: the exit code, and what it said.
    fn group(&self, arguments: &[&str]) -> (i32, String) {
        group(&self.cluster, arguments)
    }

    fn stored(&self) -> BTreeSet<String> {
        self.psql("SELECT type FROM orders").lines().map(str::to_owned).collect()
    }

    /// Waits until the process that runs this statement has come to this wait event.
    async fn waits(&self, client: &Client, statement: &str, event: &str) {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE query LIKE $1 AND wait_event = $2 AND state = 'active' AND pid <> pg_backend_pid()";
        wait_until_async(&format!("{statement} waits at {event}"), PATIENCE, async || {
            client.query_opt(sql, &[&format!("{statement}%"), &event]).await.expect("an answer").map(drop)
        })
        .await;
    }
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Run {
    Run::start(&cluster.conninfo("postgres"), &[&["--group", "g"], arguments].concat())
}

fn group(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(postbox_binary());
    let output = command.arg("group").args(arguments).args(["--database", &cluster.conninfo("postgres")]).output();
    let output = output.expect("postbox runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().expect("an exit code"), String::from_utf8_lossy(&said).into_owned())
}

fn insert(name: &str, bytes: usize) -> String {
    let key = name.split(':').next().unwrap_or_default();
    format!(
        "INSERT INTO orders (type, key, payload) VALUES ('{name}', '{key}', jsonb_build_object('filler', repeat('x', {bytes})));"
    )
}

async fn execute(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
}

/// All of these came and nothing else; keys in order. Returns how many came again.
fn assert_came(lines: &[Line], expected: &BTreeSet<String>) -> usize {
    let mut seen = BTreeSet::new();
    let mut latest = BTreeMap::new();
    for line in lines {
        if !seen.insert(line.event_type.clone()) {
            continue;
        }
        if let Some((key, number)) = line.event_type.split_once(':') {
            let number: i64 = number.parse().expect("a number");
            let before = latest.insert(key, number);
            assert!(before < Some(number), "{key}: {before:?} before {number}");
        }
    }
    let lost: Vec<_> = expected.difference(&seen).collect();
    let foreign: Vec<_> = seen.difference(expected).collect();
    assert!(
        lost.is_empty() && foreign.is_empty(),
        "{} lost: {lost:?}, {} foreign: {foreign:?}",
        lost.len(),
        foreign.len()
    );
    lines.len() - seen.len()
}

fn names(lines: &[Line]) -> BTreeSet<String> {
    lines.iter().map(|line| line.event_type.clone()).collect()
}

fn numbered(key: &str, from: usize, to: usize) -> BTreeSet<String> {
    (from..=to).map(|n| format!("{key}:{n}")).collect()
}

/// Those who publish all the while, each with a key of its own.
struct Publishers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<usize>>,
}

impl Publishers {
    async fn start(cluster: &Cluster, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for key in 0..count {
            let client = cluster.client("postgres").await;
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                let mut number = 0;
                // An error is that of a server that is killed.
                while !stop.load(Ordering::Relaxed)
                    && client.batch_execute(&insert(&format!("p{key}:{}", number + 1), 10)).await.is_ok()
                {
                    number += 1;
                }
                number
            }));
        }
        Self { stop, tasks }
    }

    /// Returns how many were committed.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        for task in self.tasks {
            all += task.await.expect("a publisher");
        }
        all
    }
}

/// Longer than the interval of checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(30);
