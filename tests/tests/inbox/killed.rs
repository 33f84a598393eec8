//! Workers whose connections are cut at any moment: what they did counts once for each message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use postbox_tests::Cluster;
use rand::RngExt;
use tokio_postgres::{Client, Error, NoTls};

use crate::sql::{row, run, start};

const WORKERS: usize = 10;

/// Ends when nothing is left, or with the connection.
async fn work(client: &Client, worker: &str) -> Result<(), Error> {
    loop {
        let size: i32 = rand::rng().random_range(1..60);
        // A short time, so that what a dead worker had comes again soon.
        let claim = "SELECT event_id, token FROM postbox.inbox_claim('payments', $1, $2, 1)";
        let rows = client.query(claim, &[&worker, &size]).await?;
        if rows.is_empty() {
            let left = client.query_one("SELECT EXISTS (SELECT FROM postbox.inbox_batch)", &[]).await?;
            if !left.get::<_, bool>(0) {
                return Ok(());
            }
            continue;
        }
        let (mut ids, mut tokens): (Vec<String>, Vec<i64>) =
            rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1))).unzip();
        // Some are failed, some given back, most are processed. No effect of a message that somebody else has been handed stays.
        let outcome = async {
            if rand::rng().random_bool(0.1) {
                let (id, token) = (ids.pop().unwrap(), tokens.pop().unwrap());
                client.execute("SELECT postbox.inbox_fail('payments', $1, $2, 'e', '0')", &[&id, &token]).await?;
            }
            if rand::rng().random_bool(0.1) {
                client.execute("SELECT postbox.inbox_release('payments', $1, $2)", &[&ids, &tokens]).await?;
                ids.clear();
                tokens.clear();
            }
            client.batch_execute("BEGIN").await?;
            client.execute("INSERT INTO effect SELECT unnest($1::text[])", &[&ids]).await?;
            client.execute("SELECT postbox.inbox_complete('payments', $1, $2)", &[&ids, &tokens]).await?;
            client.batch_execute("COMMIT").await
        };
        match outcome.await {
            Err(error) if error.code().is_some_and(|code| code.code() == "PB002") => {
                client.batch_execute("ROLLBACK").await?
            }
            other => other?,
        }
    }
}

/// 10 workers and 100,000 messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_has_its_effect_once_whoever_is_killed() {
    let messages = 100_000;
    let (cluster, client) = start().await;
    let cluster: Arc<Cluster> = Arc::new(cluster);
    run(
        &client,
        &format!(
            "SELECT postbox.create_inbox('payments', max_retries => 1000); CREATE TABLE effect (event_id text);
             INSERT INTO payments (event_id) SELECT 'm' || n FROM generate_series(1, {messages}) n"
        ),
    )
    .await;
    let (finished, died) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<_> = (0..WORKERS)
        .map(|n| {
            let (conninfo, died) =
                (format!("{} application_name=worker", cluster.conninfo("postgres")), Arc::clone(&died));
            tokio::spawn(async move {
                let name = format!("worker-{n}");
                loop {
                    let Ok((client, connection)) = tokio_postgres::connect(&conninfo, NoTls).await else { continue };
                    tokio::spawn(connection);
                    match work(&client, &name).await {
                        Ok(()) => return,
                        Err(error) if error.is_closed() || error.code().is_some_and(|code| code.code() == "57P01") => {
                            died.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        })
        .collect();
    let killing = tokio::spawn({
        let (client, finished) = (cluster.client("postgres").await, Arc::clone(&finished));
        async move {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'worker' ORDER BY random() LIMIT 1";
            // Out of step with whatever the workers do.
            let mut moments = tokio::time::interval(Duration::from_millis(29));
            while !finished.load(Ordering::Relaxed) {
                moments.tick().await;
                client.batch_execute(kill).await.unwrap();
            }
        }
    });
    for worker in workers {
        worker.await.unwrap();
    }
    finished.store(true, Ordering::Relaxed);
    killing.await.unwrap();
    let effects = "SELECT count(*), count(DISTINCT event_id) FROM effect";
    assert_eq!(row(&client, effects).await, format!("{messages}|{messages}"));
    let log = "SELECT sum(messages) FROM postbox.inbox_log WHERE what = 'processed'";
    assert_eq!(row(&client, log).await, messages.to_string());
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_dead").await, "0");
    assert!(died.load(Ordering::Relaxed) > 3, "only {died:?} were killed");
}
