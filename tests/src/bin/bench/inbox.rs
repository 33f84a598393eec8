//! The inbox beside pgmq: receiving, claiming and completing against send, read and archive, in one server.
//!
//! The SQL of pgmq comes from `tests/fetch --peers`, or from the file that `POSTBOX_PGMQ_SQL` names. Where there is
//! none, Postbox is measured alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postbox_tests::{Builder, Cluster};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::measure::Samples;
use crate::report::{Report, data, range};

/// Messages in a call.
pub(crate) const BATCH: usize = 50;
const WORKERS: usize = 8;

/// A message of about 250 bytes, as a business would send it.
const PAYLOAD: &str = r#"{"purchase": 4711, "customer": 37409, "status": "confirmed", "currency": "EUR", "total": 1743.07,
    "express": false, "coupon": null, "lines": [{"article": 711, "quantity": 2, "price": 47.11}, {"article": 723,
    "quantity": 1, "price": 4.99}], "note": "Ring twice"}"#;

const CLAIM: &str =
    "SELECT event_id, token, payload, headers, attempts FROM postbox.inbox_claim('payments', 'bench', $1)";
const COMPLETE: &str = "SELECT postbox.inbox_complete('payments', $1, $2)";

/// Durable, with the log that a server without logical decoding writes.
pub(crate) fn server() -> Builder {
    Cluster::builder()
        .setting("checkpoint_timeout", "1h")
        .setting("fsync", "on")
        .setting("max_wal_size", "32GB")
        .setting("shared_buffers", "1GB")
        .setting("wal_level", "replica")
}

/// A database with an inbox and, where its SQL is there, a queue of pgmq; whether it is.
pub(crate) fn prepare(cluster: &Cluster) -> Outcome<bool> {
    cluster.psql_result(DATABASE, "CREATE EXTENSION postbox; SELECT postbox.create_inbox('payments')")?;
    let with_pgmq = load_pgmq(cluster)?;
    if with_pgmq {
        cluster.psql_result(DATABASE, "SELECT pgmq.create('payments')")?;
    }
    Ok(with_pgmq)
}

/// Makes the functions of pgmq where their SQL is there; whether it is.
pub(crate) fn load_pgmq(cluster: &Cluster) -> Outcome<bool> {
    let path = std::env::var_os("POSTBOX_PGMQ_SQL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pgmq/pgmq.sql"), PathBuf::from);
    let Ok(pgmq) = fs::read_to_string(&path) else {
        eprintln!("there is no {}: pgmq is not measured", path.display());
        return Ok(false);
    };
    cluster.psql_result(DATABASE, &pgmq)?;
    Ok(true)
}

/// Who passes the messages on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// `inbox_receive_batch`, `inbox_claim`, `inbox_complete`.
    Postbox,
    /// The same, in an inbox with an order, each message of an aggregate of its own.
    Ordered,
    /// `send_batch`, `read`, `archive`.
    Pgmq,
}

impl Queue {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postbox => "Postbox",
            Self::Ordered => "Postbox, ordered",
            Self::Pgmq => "pgmq",
        }
    }

    pub(crate) fn all(with_pgmq: bool) -> &'static [Self] {
        if with_pgmq { &[Self::Pgmq, Self::Postbox] } else { &[Self::Postbox] }
    }
}

/// A connection that sends and works.
pub(crate) struct Worker {
    client: Client,
    queue: Queue,
    receive: Statement,
    claim: Statement,
    complete: Statement,
}

impl Worker {
    pub(crate) async fn start(cluster: &Cluster, queue: Queue) -> Outcome<Self> {
        let client = cluster.client(DATABASE).await;
        let [receive, claim, complete] = match queue {
            Queue::Postbox => [
                "SELECT cardinality(postbox.inbox_receive_batch('payments', $1, $2::text[]::jsonb[], array_fill('purchase.confirmed'::text, ARRAY[cardinality($1::text[])])))",
                CLAIM,
                COMPLETE,
            ],
            Queue::Ordered => [
                "SELECT cardinality(postbox.inbox_receive_batch('payments', $1, $2::text[]::jsonb[], array_fill('purchase.confirmed'::text, ARRAY[cardinality($1::text[])]),
                     aggregate_ids => $1, sequence_nums => array_fill(1::bigint, ARRAY[cardinality($1::text[])])))",
                CLAIM,
                COMPLETE,
            ],
            Queue::Pgmq => [
                "SELECT count(*) FROM pgmq.send_batch('payments', $1::text[]::jsonb[])",
                "SELECT msg_id, message, headers, read_ct FROM pgmq.read('payments', 30, $1)",
                "SELECT count(*) FROM pgmq.archive('payments', $1::bigint[])",
            ],
        };
        let (receive, claim, complete) =
            (client.prepare(receive).await?, client.prepare(claim).await?, client.prepare(complete).await?);
        Ok(Self { client, queue, receive, claim, complete })
    }

    pub(crate) async fn receive(&self) -> Outcome<()> {
        let payloads = [PAYLOAD; BATCH];
        let ids: Vec<String> = (0..BATCH).map(|_| Uuid::new_v4().to_string()).collect();
        let both: [&(dyn ToSql + Sync); 2] = [&ids, &&payloads[..]];
        match self.queue {
            Queue::Pgmq => self.client.query(&self.receive, &both[1..]).await?,
            Queue::Postbox | Queue::Ordered => self.client.query(&self.receive, &both).await?,
        };
        Ok(())
    }

    /// Claims and completes, each in a transaction of its own; how many messages, and how long the claim took.
    pub(crate) async fn work(&self) -> Outcome<(usize, Duration)> {
        let begin = Instant::now();
        let rows = self.client.query(&self.claim, &[&(BATCH as i32)]).await?;
        let took = begin.elapsed();
        if rows.is_empty() {
            return Ok((0, took));
        }
        match self.queue {
            Queue::Pgmq => {
                let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
                self.client.query(&self.complete, &[&ids]).await?;
            }
            Queue::Postbox | Queue::Ordered => {
                let (ids, tokens): (Vec<&str>, Vec<i64>) =
                    rows.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, i64>(1))).unzip();
                self.client.query(&self.complete, &[&ids, &tokens]).await?;
            }
        }
        Ok((rows.len(), took))
    }
}

/// What workers did in a while.
pub(crate) struct Slice {
    pub(crate) rate: f64,
    pub(crate) wal_per_message: f64,
    pub(crate) claims: Samples,
}

/// Lets each worker receive, claim and complete for so long.
pub(crate) async fn slice(watcher: &Client, workers: Vec<Worker>, length: Duration) -> Outcome<Slice> {
    let wal = wal_position(watcher).await?;
    let begin = Instant::now();
    let mut turns = JoinSet::new();
    for worker in workers {
        turns.spawn(async move {
            let mut messages = 0;
            let mut claims = Vec::new();
            while begin.elapsed() < length {
                worker.receive().await?;
                let (count, took) = worker.work().await?;
                messages += count;
                claims.push(took.as_secs_f64() * 1e3);
            }
            Outcome::Ok((messages, claims))
        });
    }
    let done = turns.join_all().await.into_iter().collect::<Outcome<Vec<_>>>()?;
    let took = begin.elapsed().as_secs_f64();
    let wal = wal_position(watcher).await? - wal;
    let messages = done.iter().map(|(messages, _)| messages).sum::<usize>() as f64;
    let claims = done.into_iter().flat_map(|(_, claims)| claims).collect();
    Ok(Slice { rate: messages / took, wal_per_message: wal / messages, claims: Samples::new(claims) })
}

async fn wal_position(client: &Client) -> Outcome<f64> {
    let row = client.query_one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8", &[]).await?;
    Ok(row.get(0))
}

pub(crate) async fn workers(cluster: &Cluster, queue: Queue) -> Outcome<Vec<Worker>> {
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(Worker::start(cluster, queue).await?);
    }
    Ok(workers)
}

/// Measures what eight workers pass on.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let cluster = server().start();
    let queues = Queue::all(prepare(&cluster)?);
    let watcher = cluster.client(DATABASE).await;
    let length = Duration::from_millis(arguments.scaled(6_000));
    let mut rates = vec![Vec::new(); queues.len()];
    let mut wal = vec![Vec::new(); queues.len()];
    for round in 0..=arguments.rounds {
        eprintln!("inbox: round {round} of {}", arguments.rounds);
        for turn in 0..queues.len() {
            let which = (round + turn) % queues.len();
            let found = slice(&watcher, workers(&cluster, queues[which]).await?, length).await?;
            // The first round finds cold caches; it does not count.
            if round > 0 {
                rates[which].push(found.rate);
                wal[which].push(found.wal_per_message);
            }
        }
    }
    let mut report = Report::new(
        format!(
            "Receive, claim and complete, {WORKERS} workers, batches of {BATCH}, fsync on; {length:?} a round, {} rounds",
            arguments.rounds
        ),
        &["", "messages/s", "min–max", "WAL bytes/message", "× pgmq, messages/s", "× pgmq, WAL"],
    );
    let rates: Vec<_> = rates.into_iter().map(Samples::new).collect();
    let wal: Vec<_> = wal.into_iter().map(Samples::new).collect();
    let pgmq = queues.iter().position(|&queue| queue == Queue::Pgmq);
    for (which, queue) in queues.iter().enumerate() {
        let beside = |samples: &[Samples], digits: usize| {
            pgmq.map_or_else(String::new, |pgmq| {
                format!("{:.digits$}", samples[which].median() / samples[pgmq].median())
            })
        };
        report.row(
            vec![
                queue.name().to_owned(),
                format!("{:.0}", rates[which].median()),
                range(&rates[which]),
                format!("{:.0}", wal[which].median()),
                beside(&rates, 2),
                beside(&wal, 2),
            ],
            json!({ "queue": queue.name(), "messages_per_second": data(&rates[which]), "wal_bytes_per_message": data(&wal[which]) }),
        );
        if let Some(pgmq) = pgmq.filter(|&pgmq| pgmq != which) {
            let time = rates[pgmq].median() / rates[which].median();
            report.target(format!("{}: time per message, × pgmq", queue.name()), time, 0.5);
            report.target(
                format!("{}: WAL per message, × pgmq", queue.name()),
                wal[which].median() / wal[pgmq].median(),
                0.5,
            );
        }
    }
    report.note("ids are random UUIDs; pgmq numbers its messages itself and notices no duplicates");
    Ok(report)
}
