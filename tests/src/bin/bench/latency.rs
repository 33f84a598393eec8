//! From commit to standard output, at a steady rate of transactions on a server that waits for the disk.

use std::collections::HashMap;
use std::io::Read;
use std::process::{ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postbox_tests::{Cluster, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA};
use crate::measure::Samples;
use crate::postbox;
use crate::report::Report;

/// Transactions a second, over all connections.
const RATE: u64 = 1000;

/// As many connections share the work as an application's pool would have.
const CONNECTIONS: u64 = 8;

const PATIENCE: Duration = Duration::from_secs(30);

/// When a transaction was committed.
struct Committed {
    number: u64,
    /// Right before COMMIT was sent.
    asked: Instant,
    /// When the answer to COMMIT was there.
    answered: Instant,
}

/// Runs transactions for twenty seconds and reads the events.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let transactions = arguments.scaled(20 * RATE);
    let cluster = Cluster::builder().setting("fsync", "on").setting("synchronous_commit", "on").start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    cluster.psql(DATABASE, "SELECT pg_create_logical_replication_slot('latency', 'postbox')");
    let mut consumer = postbox::run(&cluster, "latency").stdout(Stdio::piped()).spawn()?;
    let lines = Arc::new(AtomicU64::new(0));
    let output = consumer.stdout.take().ok_or("the consumer's output is no pipe")?;
    let reader = thread::spawn({
        let lines = Arc::clone(&lines);
        move || read(output, &lines)
    });

    // The stream runs once the first event, which is not measured, has come through.
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(cluster.client(DATABASE).await);
    }
    transaction(&connections[0], &Statements::prepare(&connections[0]).await?, 0).await?;
    wait_until("the first event is read", PATIENCE, || (lines.load(Ordering::Relaxed) > 0).then_some(()));

    let begin = tokio::time::Instant::now() + Duration::from_millis(100);
    let tasks = connections.into_iter().zip(0..).map(|(client, first)| {
        let share = (first..transactions).step_by(CONNECTIONS as usize);
        tokio::spawn(commit_at_rate(client, begin, share))
    });
    let mut committed = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        committed.extend(task.await??);
    }
    let took = begin.elapsed();
    wait_until("all events are read", PATIENCE, || (lines.load(Ordering::Relaxed) > transactions).then_some(()));
    kill_process(Pid::from_child(&consumer), Signal::TERM)?;
    let status = consumer.wait()?;
    if !status.success() {
        return Err(format!("postbox run ended with {status}").into());
    }
    let read = reader.join().map_err(|_| "the reader failed")??;
    report(&committed, &read, took)
}

/// Commits the given transactions, each at its time.
async fn commit_at_rate(
    client: Client,
    begin: tokio::time::Instant,
    numbers: impl Iterator<Item = u64>,
) -> Outcome<Vec<Committed>> {
    let statements = Statements::prepare(&client).await?;
    let mut committed = Vec::new();
    for number in numbers {
        tokio::time::sleep_until(begin + Duration::from_micros(number * 1_000_000 / RATE)).await;
        committed.push(transaction(&client, &statements, number + 1).await?);
    }
    Ok(committed)
}

/// The statements of a transaction.
struct Statements {
    business: tokio_postgres::Statement,
    event: tokio_postgres::Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Outcome<Self> {
        let business = "INSERT INTO purchase (customer, total) VALUES ($1, 19.90)";
        let event = "INSERT INTO events (key, type, payload) VALUES ($1::bigint, 'purchase.confirmed', payload($1))";
        Ok(Self { business: client.prepare(business).await?, event: client.prepare(event).await? })
    }
}

async fn transaction(client: &Client, statements: &Statements, number: u64) -> Outcome<Committed> {
    let key = i64::try_from(number)?;
    client.batch_execute("BEGIN").await?;
    client.execute(&statements.business, &[&key]).await?;
    client.execute(&statements.event, &[&key]).await?;
    let asked = Instant::now();
    client.batch_execute("COMMIT").await?;
    Ok(Committed { number, asked, answered: Instant::now() })
}

/// Reads to the end: pieces of the output, and when they came.
fn read(mut output: ChildStdout, lines: &AtomicU64) -> std::io::Result<Vec<(Instant, Vec<u8>)>> {
    let mut pieces = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = output.read(&mut buffer)?;
        let now = Instant::now();
        if length == 0 {
            return Ok(pieces);
        }
        let piece = buffer[..length].to_vec();
        lines.fetch_add(piece.iter().filter(|&&byte| byte == b'\n').count() as u64, Ordering::Relaxed);
        pieces.push((now, piece));
    }
}

fn report(committed: &[Committed], read: &[(Instant, Vec<u8>)], took: Duration) -> Outcome<Report> {
    let arrived = arrivals(read)?;
    let mut since_asked = Vec::new();
    let mut since_answered = Vec::new();
    for Committed { number, asked, answered } in committed {
        let line = arrived.get(number).ok_or_else(|| format!("event {number} was never read"))?;
        since_asked.push(milliseconds(*asked, *line));
        since_answered.push(milliseconds(*answered, *line));
    }
    let rate = committed.len() as f64 / took.as_secs_f64();
    let mut report = Report::new(
        format!("Latency: {} transactions, {rate:.0} a second, fsync and synchronous_commit on", committed.len()),
        &["from", "p50 ms", "p90 ms", "p99 ms", "max ms"],
    );
    for (name, samples) in
        [("COMMIT sent", Samples::new(since_asked)), ("COMMIT answered", Samples::new(since_answered))]
    {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| samples.quantile(share));
        report.row(
            [name.to_owned()].into_iter().chain([p50, p90, p99, samples.max()].map(|ms| format!("{ms:.2}"))).collect(),
            json!({ "from": name, "p50": p50, "p90": p90, "p99": p99, "max": samples.max(), "rate": rate }),
        );
        report.target(format!("{name}: p50 ms"), p50, 2.0);
        report.target(format!("{name}: p99 ms"), p99, 10.0);
    }
    report.note("an event can be read before its COMMIT is answered: then the time from the answer is negative");
    Ok(report)
}

/// When the line of each event was complete, by its key.
fn arrivals(read: &[(Instant, Vec<u8>)]) -> Outcome<HashMap<u64, Instant>> {
    let mut arrived = HashMap::new();
    let mut line = Vec::new();
    for (time, piece) in read {
        for &byte in piece {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let event: Value = serde_json::from_slice(&line)?;
            line.clear();
            let key = event["key"].as_str().and_then(|key| key.parse().ok());
            arrived.insert(key.ok_or_else(|| format!("an event without its number: {event}"))?, *time);
        }
    }
    Ok(arrived)
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    if to >= from { (to - from).as_secs_f64() * 1e3 } else { (from - to).as_secs_f64() * -1e3 }
}
