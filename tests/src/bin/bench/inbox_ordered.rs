//! An ordered inbox: messages that arrive shuffled, and what eight workers make of them.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::inbox::{prepare, server};
use crate::report::Report;

const AGGREGATES: u64 = 10_000;
const WORKERS: usize = 8;

/// Receives all, then works all off; each effect in the transaction of its completion.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let messages = arguments.scaled(1_000_000).max(AGGREGATES);
    let cluster = server().start();
    prepare(&cluster)?;
    let each = messages / AGGREGATES;
    let messages = each * AGGREGATES;
    cluster.psql(
        DATABASE,
        &format!(
            "SELECT postbox.enable_inbox_ordering('payments');
             CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY, aggregate text, number bigint);
             SELECT setseed(0.42);
             CREATE TABLE shuffled AS
                 SELECT (row_number() OVER (ORDER BY random()) - 1) % {WORKERS} AS sender, 'a' || a AS aggregate, s AS number
                 FROM generate_series(1, {AGGREGATES}) a, generate_series(1, {each}) s;
             CREATE INDEX ON shuffled (sender); ANALYZE shuffled"
        ),
    );
    eprintln!("inbox-ordered: receiving");
    let begin = Instant::now();
    let mut senders = JoinSet::new();
    for sender in 0..WORKERS {
        let client = cluster.client(DATABASE).await;
        senders.spawn(async move {
            let sql = format!(
                "DO $$ DECLARE part record; BEGIN
                     FOR part IN SELECT array_agg(aggregate) AS aggregates, array_agg(number) AS numbers
                         FROM (SELECT *, row_number() OVER () / 50 AS batch FROM shuffled WHERE sender = {sender}) s GROUP BY batch
                     LOOP
                         INSERT INTO payments (event_id, event_type, aggregate_id, sequence_num, payload)
                             SELECT a || '-' || s, 'purchase.confirmed', a, s, '{{\"cents\": 1250}}' FROM unnest(part.aggregates, part.numbers) AS u (a, s);
                         COMMIT;
                     END LOOP;
                 END $$"
            );
            Outcome::Ok(client.batch_execute(&sql).await?)
        });
    }
    senders.join_all().await.into_iter().collect::<Outcome<Vec<()>>>()?;
    let received = messages as f64 / begin.elapsed().as_secs_f64();

    eprintln!("inbox-ordered: processing");
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(cluster.client(DATABASE).await));
    }
    let done = workers.join_all().await.into_iter().collect::<Outcome<Vec<_>>>()?;
    let processed = messages as f64 / begin.elapsed().as_secs_f64();
    let effects: u64 = done.iter().sum();

    let wrong = |sql: &str| -> f64 { cluster.psql(DATABASE, sql).parse().unwrap_or(f64::NAN) };
    let violations = wrong(
        "SELECT count(*) FROM (SELECT number, lag(number, 1, 0::bigint) OVER (PARTITION BY aggregate ORDER BY n) AS before FROM effect) e WHERE number <> before + 1",
    );
    let duplicates = wrong("SELECT count(*) - count(DISTINCT (aggregate, number)) FROM effect");
    let missing = messages as f64 - wrong("SELECT count(DISTINCT (aggregate, number)) FROM effect");
    let mut report = Report::new(
        format!(
            "An ordered inbox: {messages} messages shuffled over {AGGREGATES} aggregates, {WORKERS} workers, fsync on"
        ),
        &["", "messages/s"],
    );
    for (what, rate) in [("received, 50 a transaction", received), ("claimed, worked on and completed", processed)] {
        report.row(vec![what.to_owned(), format!("{rate:.0}")], json!({ "what": what, "messages_per_second": rate }));
    }
    report.target("microseconds per message, processing", 1e6 / processed, 100.0);
    report.target("order violations", violations, 0.0);
    report.target("duplicate effects", duplicates, 0.0);
    report.target("messages without an effect", missing, 0.0);
    report.note(format!("{effects} effects were written"));
    Ok(report)
}

async fn work(client: tokio_postgres::Client) -> Outcome<u64> {
    let claim = client
        .prepare("SELECT event_id, token, aggregate_id, sequence_num FROM postbox.inbox_claim('payments', 'bench', 50)")
        .await?;
    let effect =
        client.prepare("INSERT INTO effect (aggregate, number) SELECT * FROM unnest($1::text[], $2::bigint[])").await?;
    let complete = client.prepare("SELECT postbox.inbox_complete('payments', $1, $2)").await?;
    let left = client
        .prepare("SELECT EXISTS (SELECT FROM postbox.inbox_batch) OR EXISTS (SELECT FROM postbox.inbox_lane WHERE arrived <> '{}')")
        .await?;
    let mut done = 0;
    loop {
        let rows = client.query(&claim, &[]).await?;
        if rows.is_empty() {
            if !client.query_one(&left, &[]).await?.get::<_, bool>(0) {
                return Ok(done);
            }
            // As a worker does that finds nothing.
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        let (ids, tokens): (Vec<&str>, Vec<i64>) =
            rows.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, i64>(1))).unzip();
        let (aggregates, numbers): (Vec<&str>, Vec<i64>) =
            rows.iter().map(|row| (row.get::<_, &str>(2), row.get::<_, i64>(3))).unzip();
        client.batch_execute("BEGIN").await?;
        client.query(&effect, &[&aggregates, &numbers]).await?;
        client.query(&complete, &[&ids, &tokens]).await?;
        client.batch_execute("COMMIT").await?;
        done += rows.len() as u64;
    }
}
