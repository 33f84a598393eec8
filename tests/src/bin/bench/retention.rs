//! A long run: one publisher, a group that keeps up, and old events that go. Beside it a plain table whose old rows are
//! deleted, and both with a transaction held open on another table.

use std::time::{Duration, Instant};

use postbox_tests::Cluster;
use serde_json::json;
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::report::Report;

/// How the old events go.
#[derive(Clone, Copy, PartialEq)]
enum Storage {
    Ring,
    Plain,
}

/// The run is cut into so many pieces; what is flat is alike in all of them.
const SLICES: u32 = 5;
/// How often the group confirms and old events go.
const PERIOD: Duration = Duration::from_millis(500);

const CONFIRM: &str =
    "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM postbox.consumer_group";
/// Of the schema `postbox`: what groups and maintenance update or delete as time goes by.
const OWN_TABLES: &str = "checkpoint, sample, alert, maintenance";

const CHECKPOINT: &str = "UPDATE postbox.checkpoint SET snapshot = pg_current_snapshot(), lsn = pg_current_wal_insert_lsn(), \
    taken_at = clock_timestamp()";

/// Measures the four runs.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let slice = Duration::from_millis(arguments.scaled(3_000));
    let mut report = Report::new(
        format!("Retention of 2 s, {SLICES} slices of {slice:?} each"),
        &["storage", "slice", "events/s", "INSERT µs", "table MB", "dead rows", "of Postbox", "WAL bytes/event"],
    );
    for storage in [Storage::Ring, Storage::Plain] {
        for held_open in [false, true] {
            let name = match storage {
                Storage::Ring => "ring, TRUNCATE",
                Storage::Plain => "plain table, DELETE",
            };
            let name = if held_open { format!("{name}, a transaction open") } else { name.to_owned() };
            eprintln!("retention: {name}");
            let slices = measure(storage, held_open, slice).await?;
            for (number, found) in slices.iter().enumerate() {
                report.row(
                    vec![
                        name.clone(),
                        format!("{}", number + 1),
                        format!("{:.0}", found.rate),
                        format!("{:.1}", found.insert_micros),
                        format!("{:.1}", found.bytes / 1e6),
                        format!("{:.0}", found.dead_rows),
                        format!("{:.0}", found.own_dead_rows),
                        format!("{:.0}", found.wal_per_event),
                    ],
                    json!({
                        "storage": name, "slice": number + 1, "events_per_second": found.rate, "insert_microseconds": found.insert_micros,
                        "table_bytes": found.bytes, "dead_rows": found.dead_rows, "own_dead_rows": found.own_dead_rows,
                        "wal_bytes_per_event": found.wal_per_event,
                    }),
                );
            }
            if storage == Storage::Ring {
                let (second, last) = (&slices[1], &slices[slices.len() - 1]);
                report.target(format!("{name}: table size, last slice × second"), last.bytes / second.bytes, 1.5);
                report.target(
                    format!("{name}: INSERT, last slice × second"),
                    last.insert_micros / second.insert_micros,
                    1.2,
                );
                report.target(
                    format!("{name}: WAL per event, last slice × second"),
                    last.wal_per_event / second.wal_per_event,
                    1.2,
                );
                // Of the outbox nothing is deleted or updated row by row, so there are none at all.
                report.target(format!("{name}: dead rows, last slice"), last.dead_rows, 0.0);
            }
        }
    }
    report.note(format!("Of Postbox: dead rows of its own tables ({OWN_TABLES}), which autovacuum takes care of."));
    report.note("WAL counts everything: the group's confirmations, samples and maintenance as well.");
    Ok(report)
}

struct Slice {
    rate: f64,
    insert_micros: f64,
    bytes: f64,
    dead_rows: f64,
    own_dead_rows: f64,
    wal_per_event: f64,
}

async fn measure(storage: Storage, held_open: bool, length: Duration) -> Outcome<Vec<Slice>> {
    // As it would look after the plain table and after Postbox's own ones, but without waiting a minute.
    let cluster = server().setting("autovacuum", "on").setting("autovacuum_naptime", "5s").start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    cluster.psql(
        DATABASE,
        "SELECT postbox.create_outbox('ring', generation_rows => 1048576); SELECT postbox.set_retention('ring', '2 seconds');
         CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id uuid NOT NULL DEFAULT gen_random_uuid(),
             created_at timestamptz NOT NULL DEFAULT now(), key text, type text NOT NULL, headers jsonb, payload jsonb);
         CREATE TABLE elsewhere (n int)",
    );
    cluster.psql(DATABASE, "SELECT postbox.create_consumer_group('g', '{ring}')");
    let publisher = cluster.client(DATABASE).await;
    let keeper = cluster.client(DATABASE).await;
    let open = cluster.client(DATABASE).await;
    if held_open {
        open.batch_execute("BEGIN; INSERT INTO elsewhere VALUES (1)").await?;
    }
    let table = if storage == Storage::Ring { "ring" } else { "plain" };
    let payload = cluster.psql(DATABASE, "SELECT payload(4711)");
    let insert = publisher
        .prepare(&format!("INSERT INTO {table} (key, type, payload) VALUES ('k', 'purchase.confirmed', '{payload}')"))
        .await?;
    let mut slices = Vec::new();
    for _ in 0..SLICES {
        let begin = Instant::now();
        let wal = wal_position(&keeper).await?;
        let publishing = async {
            let mut events = 0_u32;
            while begin.elapsed() < length {
                publisher.execute(&insert, &[]).await?;
                events += 1;
            }
            Ok::<_, tokio_postgres::Error>((events, begin.elapsed()))
        };
        let keeping = async {
            while begin.elapsed() < length {
                keeper.batch_execute(CONFIRM).await?;
                keeper.batch_execute(CHECKPOINT).await?;
                keeper
                    .batch_execute(match storage {
                        Storage::Ring => "SELECT postbox.maintain(true)",
                        Storage::Plain => "DELETE FROM plain WHERE created_at < now() - interval '2 seconds'",
                    })
                    .await?;
                tokio::time::sleep(PERIOD).await;
            }
            Ok::<_, tokio_postgres::Error>(())
        };
        let (published, kept) = tokio::join!(publishing, keeping);
        let (events, took) = published?;
        kept?;
        let wal = wal_position(&keeper).await? - wal;
        let (bytes, dead_rows) = size(&cluster, table);
        slices.push(Slice {
            rate: f64::from(events) / took.as_secs_f64(),
            insert_micros: took.as_secs_f64() * 1e6 / f64::from(events),
            bytes,
            dead_rows,
            own_dead_rows: own_dead_rows(&cluster),
            wal_per_event: wal / f64::from(events),
        });
    }
    drop(open);
    Ok(slices)
}

async fn wal_position(client: &Client) -> Outcome<f64> {
    let row = client.query_one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8", &[]).await?;
    Ok(row.get(0))
}

/// Bytes of the table with all that belongs to it, and its dead rows.
fn size(cluster: &Cluster, table: &str) -> (f64, f64) {
    let sql = format!(
        "SELECT sum(pg_total_relation_size(relid)), sum(pg_stat_get_dead_tuples(relid))
         FROM (SELECT relid FROM pg_partition_tree('{table}') UNION SELECT '{table}'::regclass) part"
    );
    let line = cluster.psql(DATABASE, &sql);
    let (bytes, dead) = line.lines().last().and_then(|line| line.split_once('|')).unwrap_or(("0", "0"));
    (bytes.parse().unwrap_or(0.0), dead.parse().unwrap_or(0.0))
}

fn own_dead_rows(cluster: &Cluster) -> f64 {
    let sql = format!(
        "SELECT sum(pg_stat_get_dead_tuples(to_regclass('postbox.' || name))) FROM regexp_split_to_table('{OWN_TABLES}', ', ') name"
    );
    cluster.psql(DATABASE, &sql).parse().unwrap_or(0.0)
}
