//! What a flooded tier does to another one: how long critical messages take from their commit to their completion.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::inbox_claims::server;
use crate::measure::Samples;
use crate::report::{Report, data};

const TIERS: &str =
    r#"[{"name": "critical", "lowest": 10, "pace": "1s"}, {"name": "background", "highest": 9, "pace": "30s"}]"#;
const MESSAGES: usize = 500;
/// Who works on the background meanwhile: as many as there are processors on a small machine.
const WORKERS: usize = 2;

/// Measures the critical tier alone, with a flood that waits, with one that is worked on, and with one in front of it: without tiers.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let flood = arguments.scaled(1_000_000);
    let cluster = server().start();
    cluster.psql(
        DATABASE,
        &format!(
            "CREATE EXTENSION postbox; SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_priority('payments', tiers => '{TIERS}')"
        ),
    );
    let client = cluster.client(DATABASE).await;
    let mut report = Report::new(
        format!("{MESSAGES} critical messages one after the other, beside a background of {flood}"),
        &["background", "median ms", "p99 ms", "worst ms"],
    );
    eprintln!("inbox-tiers: alone");
    let mut number = 0;
    let alone = critical(&client, &mut number).await?;
    row(&mut report, "none", &alone);
    eprintln!("inbox-tiers: {flood} messages of the background");
    cluster.psql(
        DATABASE,
        &format!(
            "DO $$ BEGIN FOR part IN 0..{} LOOP
                INSERT INTO payments (event_id, priority, payload) SELECT 'b' || part || '-' || n, 1, '{{\"cents\": 1250}}' FROM generate_series(1, 10000) n;
                COMMIT; END LOOP; END $$",
            flood.div_ceil(10_000).saturating_sub(1)
        ),
    );
    let waiting = critical(&client, &mut number).await?;
    row(&mut report, "waits", &waiting);
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (worker, stop) = (cluster.client(DATABASE).await, Arc::clone(&stop));
        workers.spawn(async move {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                done += work(&worker, 50, "background").await?;
            }
            Outcome::Ok(done)
        });
    }
    let busy = critical(&client, &mut number).await?;
    stop.store(true, Ordering::Relaxed);
    let done = workers.join_all().await.into_iter().sum::<Outcome<usize>>()?;
    row(&mut report, &format!("worked on by {WORKERS}"), &busy);
    report.target("p99 with a flood that waits, × alone", waiting.quantile(0.99) / alone.quantile(0.99), 1.5);
    report.target("p99 with a flood that is worked on, ms", busy.quantile(0.99), 50.0);
    report.note(format!("{done} messages of the background were processed meanwhile; without tiers a critical one would wait for all {flood}"));
    Ok(report)
}

/// From the commit of each to that of its completion.
async fn critical(client: &Client, number: &mut u64) -> Outcome<Samples> {
    let receive = "INSERT INTO payments (event_id, priority, payload) VALUES ($1, 100, '{\"cents\": 1250}')";
    let receive = client.prepare(receive).await?;
    let mut times = Vec::new();
    for _ in 0..MESSAGES {
        *number += 1;
        client.execute(&receive, &[&format!("c{number}")]).await?;
        let begin = Instant::now();
        while work(client, 1, "critical").await? == 0 {}
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Samples::new(times))
}

/// Claims and completes; how many there were.
async fn work(client: &Client, most: i32, tier: &str) -> Outcome<usize> {
    let claim =
        client.prepare("SELECT event_id, token FROM postbox.inbox_claim('payments', 'bench', $1, tier => $2)").await?;
    let rows = client.query(&claim, &[&most, &tier]).await?;
    let (ids, tokens): (Vec<&str>, Vec<i64>) =
        rows.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, i64>(1))).unzip();
    if !ids.is_empty() {
        client.query("SELECT postbox.inbox_complete('payments', $1, $2)", &[&ids, &tokens]).await?;
    }
    Ok(ids.len())
}

fn row(report: &mut Report, background: &str, times: &Samples) {
    report.row(
        vec![
            background.to_owned(),
            format!("{:.2}", times.median()),
            format!("{:.2}", times.quantile(0.99)),
            format!("{:.2}", times.max()),
        ],
        json!({ "background": background, "milliseconds": data(times) }),
    );
}
