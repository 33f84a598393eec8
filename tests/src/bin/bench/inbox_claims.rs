//! What a claim costs when little or much waits, and when little or much was processed.

use std::time::Instant;

use postbox_tests::{Builder, Cluster};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::measure::Samples;
use crate::report::Report;

const CLAIMS: usize = 300;
const CLAIM: &str = "SELECT event_id, token FROM postbox.inbox_claim('payments', 'bench', 50)";
const COMPLETE: &str = "SELECT postbox.inbox_complete('payments', $1, $2)";

/// Measures a plain inbox and an ordered one.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let (few, many, processed) = (1_000, arguments.scaled(1_000_000), arguments.scaled(5_000_000));
    let mut report = Report::new(
        "Claims of 50".to_owned(),
        &["inbox", "pending", "processed before", "buffers, median", "p50 ms", "p99 ms"],
    );
    for ordered in [false, true] {
        let cluster = server().start();
        cluster.psql(DATABASE, "CREATE EXTENSION postbox; SELECT postbox.create_inbox('payments')");
        if ordered {
            cluster.psql(DATABASE, "SELECT postbox.enable_inbox_ordering('payments')");
        }
        let client = cluster.client(DATABASE).await;
        // How many have been received and processed.
        let (mut from, mut gone) = (0, 0);
        let mut sizes = Vec::new();
        for (pending, done) in [(few, 0), (many, 0), (few, processed)] {
            eprintln!("inbox-claims: ordered {ordered}, {pending} pending, {done} processed");
            let missing = (gone.max(done) + pending).saturating_sub(from);
            receive(&client, ordered, &mut from, missing).await?;
            drain(&cluster, from - pending - gone).await?;
            let before = from - pending;
            let (buffers, times) = claims(&client, ordered, &mut from).await?;
            gone = from - pending;
            report.row(
                vec![
                    if ordered { "ordered" } else { "plain" }.to_owned(),
                    pending.to_string(),
                    before.to_string(),
                    format!("{:.0}", buffers.median()),
                    format!("{:.2}", times.median()),
                    format!("{:.2}", times.quantile(0.99)),
                ],
                json!({ "ordered": ordered, "pending": pending, "processed": before, "buffers": buffers.median(),
                    "p50_milliseconds": times.median(), "p99_milliseconds": times.quantile(0.99) }),
            );
            report.target(
                format!("p99 ms, ordered {ordered}, {pending} pending, {done} processed"),
                times.quantile(0.99),
                5.0,
            );
            sizes.push(buffers.median());
        }
        report.target(format!("buffers, ordered {ordered}, {many} pending × {few}"), sizes[1] / sizes[0], 1.2);
        report.target(format!("buffers, ordered {ordered}, {processed} processed × 0"), sizes[2] / sizes[0], 1.2);
    }
    report.note("what is claimed is completed, and as much is received before the next claim; fsync and synchronous_commit are off");
    report.note("buffers of every eighth claim include looking for leases that ran out and raising the floor; the index of a million ids is a level deeper");
    Ok(report)
}

/// For what is done in a session, not for what reaches the disk.
pub(crate) fn server() -> Builder {
    Cluster::builder()
        .setting("checkpoint_timeout", "1h")
        .setting("max_wal_size", "32GB")
        .setting("shared_buffers", "2GB")
        .setting("synchronous_commit", "off")
        .setting("wal_level", "replica")
}

/// Messages in statements of up to 100,000, those of an ordered inbox for 1,000 aggregates.
pub(crate) async fn receive(client: &Client, ordered: bool, from: &mut u64, messages: u64) -> Outcome<()> {
    arrive(client, ordered, from, messages).await?;
    Ok(client.batch_execute("ANALYZE").await?)
}

async fn arrive(client: &Client, ordered: bool, from: &mut u64, messages: u64) -> Outcome<()> {
    let place = if ordered { "'a' || n % 1000, n / 1000 + 1" } else { "NULL, NULL" };
    let last = *from + messages;
    while *from < last {
        let to = (*from + 100_000).min(last);
        let sql = format!(
            "INSERT INTO payments (event_id, event_type, aggregate_id, sequence_num, payload)
             SELECT md5(n::text), 'purchase.confirmed', {place}, '{{\"cents\": 1250}}' FROM generate_series({}, {}) n ON CONFLICT DO NOTHING",
            *from,
            to - 1
        );
        client.batch_execute(&sql).await?;
        *from = to;
    }
    // What a claim sorts into lanes is bounded, and is part of what inbox-ordered measures.
    let sort = "SELECT postbox._sort_arrivals(i, 2000) FROM postbox.inbox i";
    while ordered && client.query_one(sort, &[]).await?.get::<_, i32>(0) > 0 {}
    Ok(())
}

/// Processes so many, by eight workers.
pub(crate) async fn drain(cluster: &Cluster, messages: u64) -> Outcome<()> {
    let mut messages = i64::try_from(messages)?;
    let each = messages / 8;
    let mut workers = JoinSet::new();
    while messages > 0 {
        let client = cluster.client(DATABASE).await;
        let mut left = each.min(messages).max(1);
        messages -= left;
        workers.spawn(async move {
            let claim =
                client.prepare("SELECT event_id, token FROM postbox.inbox_claim('payments', 'drain', $1)").await?;
            let complete = client.prepare(COMPLETE).await?;
            while left > 0 {
                let rows = client.query(&claim, &[&(left.min(500) as i32)]).await?;
                let (ids, tokens): (Vec<&str>, Vec<i64>) =
                    rows.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, i64>(1))).unzip();
                if !ids.is_empty() {
                    client.query(&complete, &[&ids, &tokens]).await?;
                }
                left -= rows.len() as i64;
            }
            Outcome::Ok(())
        });
    }
    workers.join_all().await.into_iter().collect()
}

/// Claims and completes, with as much pending before each claim; the pages of the claims, and how long others of them took.
async fn claims(client: &Client, ordered: bool, from: &mut u64) -> Outcome<(Samples, Samples)> {
    let claim = client.prepare(CLAIM).await?;
    let complete = client.prepare(COMPLETE).await?;
    let mut buffers = Vec::new();
    let mut times = Vec::new();
    let mut claimed = 0;
    for number in 0..CLAIMS {
        if number % 10 == 9 {
            let sql = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {CLAIM}");
            client.batch_execute("BEGIN").await?;
            let plan: String = client
                .simple_query(&sql)
                .await?
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                })
                .collect();
            // Nobody has them: they are handed out again.
            client.batch_execute("ROLLBACK").await?;
            let plan: Value = serde_json::from_str(&plan)?;
            let of = |name: &str| plan[0]["Plan"][name].as_f64().unwrap_or_default();
            buffers.push(of("Shared Hit Blocks") + of("Shared Read Blocks"));
            continue;
        }
        let begin = Instant::now();
        let rows = client.query(&claim, &[]).await?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        let (ids, tokens): (Vec<&str>, Vec<i64>) =
            rows.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, i64>(1))).unzip();
        client.query(&complete, &[&ids, &tokens]).await?;
        claimed += ids.len() as u64;
        arrive(client, ordered, from, ids.len() as u64).await?;
    }
    eprintln!("inbox-claims: {:.1} messages a claim", claimed as f64 / times.len() as f64);
    Ok((Samples::new(buffers), Samples::new(times)))
}
