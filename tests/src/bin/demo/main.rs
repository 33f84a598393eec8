//! `make demo`: the main job of Postbox, shown on real transactions and checked.
//!
//! Concurrent producers publish in transactions that commit, roll back, or roll back in part; `postbox run` streams to
//! its standard output; it is killed midway and started again. At the end every event is accounted for. The exit code
//! is 1 if one is not.

mod consumer;
mod ledger;
mod producer;

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use postbox_tests::{Cluster, postbox_binary};
use tokio_postgres::Client;

use consumer::{Delivery, Run};
use ledger::Ledger;
use producer::{PRODUCERS, Plan};

/// The part of the events after which the consumer is killed.
const KILL_AFTER: f64 = 0.4;

/// How long nothing may arrive before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let keep = env::var("KEEP").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let cluster = Cluster::builder().setting("fsync", "on").start();
    let ok = match show(&cluster).await {
        Ok(ok) => ok,
        Err(error) => {
            complain(error.as_ref());
            false
        }
    };
    let log = consumer::log(&cluster);
    if !ok && !log.is_empty() {
        eprintln!("What the consumer logged:\n{log}");
    }
    if keep {
        say_how_to_go_on(cluster);
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The whole story; true if every number is as promised.
async fn show(cluster: &Cluster) -> Result<bool> {
    let client = prepare(cluster).await?;
    consumer::create_group(cluster)?;
    let plan = Plan::random();
    let ledger = Ledger::default();
    println!(
        "\n{PRODUCERS} producers, {} transactions: {} events to commit, {} to roll back.",
        plan.transactions(),
        // The last one closes the demo.
        plan.committed_events() + 1,
        plan.rolled_back_events()
    );

    let begin = Instant::now();
    let (first, mut lines) = Run::start(cluster, 1)?;
    let producers = producer::start(cluster, &plan, &ledger).await?;

    let kill_at = (plan.committed_events() as f64 * KILL_AFTER) as usize;
    let mut deliveries = Vec::new();
    while deliveries.len() < kill_at {
        deliveries.push(next(&mut lines).await?);
    }
    let killed = Instant::now();
    first.kill()?;
    while let Some(delivery) = lines.recv().await {
        deliveries.push(delivery?);
    }
    println!("The consumer got SIGKILL after {} events; starting it again.", deliveries.len());
    let (second, mut lines) = Run::start(cluster, 2)?;

    for producer in producers {
        producer.await??;
    }
    // The stream is in commit order: once the last commit of all arrives, everything before it has or never will.
    let last = producer::commit_last(&client, &ledger).await?;
    let produced = begin.elapsed();
    while deliveries.last().is_none_or(|delivery| delivery.event_id != last) {
        deliveries.push(next(&mut lines).await?);
    }
    let exit = second.terminate()?;
    while let Some(delivery) = lines.recv().await {
        deliveries.push(delivery?);
    }

    let stored = producer::stored(&client).await?;
    let report = ledger.check(&deliveries, &stored, killed);
    println!("\n{report}\n{} transactions took {:.1} s.", plan.transactions(), produced.as_secs_f64());
    if !exit.success() {
        eprintln!("The consumer did not end well after SIGTERM: {exit}");
    }
    Ok(report.is_as_promised() && exit.success())
}

async fn prepare(cluster: &Cluster) -> Result<Client> {
    cluster.client("postgres").await.batch_execute("CREATE DATABASE demo").await?;
    let client = cluster.client("demo").await;
    let version: String = client.query_one("SHOW server_version", &[]).await?.get(0);
    println!("A private server, PostgreSQL {version}, listens on port {}:", cluster.port());
    for sql in [
        "CREATE EXTENSION postbox",
        "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item text NOT NULL, amount int NOT NULL)",
        "SELECT postbox.create_outbox('order_events')",
    ] {
        println!("  demo=# {sql};");
        client.batch_execute(sql).await?;
    }
    Ok(client)
}

async fn next(lines: &mut consumer::Lines) -> Result<Delivery> {
    match tokio::time::timeout(PATIENCE, lines.recv()).await {
        Ok(Some(delivery)) => delivery,
        Ok(None) => Err("the consumer ended before everything had arrived".into()),
        Err(_) => Err(format!("nothing arrived for {PATIENCE:?}").into()),
    }
}

/// An error and its causes: that of the database driver says nothing by itself.
fn complain(error: &dyn Error) {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    eprintln!("The demo failed: {}", texts.join(": "));
}

fn say_how_to_go_on(cluster: Cluster) {
    let (url, pid, psql) = (consumer::url(&cluster), cluster.pid(), cluster.bin("psql"));
    let binary = postbox_binary();
    let dir = cluster.keep();
    // The directory above it belongs to this process alone.
    let dir = dir.parent().unwrap_or(Path::new("/nonexistent"));
    println!("\nThe server keeps running. Go on with");
    println!("  {} {url}", psql.display());
    println!("      SELECT postbox.publish('order_events', 'order.created', '{{\"item\": \"cup\"}}');");
    println!("  DATABASE_URL={url} {} run --group demo", binary.display());
    println!("and stop it with");
    println!("  kill -INT {pid} && tail --pid={pid} -f /dev/null && rm -r {}", dir.display());
}
