//! What slots cost the application: every one of them decodes the whole log, on the same machine.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postbox_tests::{Cluster, wait_until};
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::measure::Samples;
use crate::publish::{PUBLISH_ONE, pgbench};
use crate::report::{Report, data, range};

const PATIENCE: Duration = Duration::from_secs(30);

const SLOTS: [usize; 5] = [0, 1, 2, 4, 8];

/// Measures transactions that publish while so many slots are read.
pub(crate) fn run(arguments: &Arguments) -> Outcome<Report> {
    let cluster = server().start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    let payload = cluster.psql(DATABASE, "SELECT payload(4711)");
    let transactions = arguments.scaled(10_000);
    let mut times = vec![Vec::new(); SLOTS.len()];
    for round in 0..=arguments.rounds {
        eprintln!("slots: round {round} of {}", arguments.rounds);
        for turn in 0..SLOTS.len() {
            let which = (round + turn) % SLOTS.len();
            let readers =
                (0..SLOTS[which]).map(|number| Reader::start(&cluster, number)).collect::<Outcome<Vec<_>>>()?;
            let (time, _) = pgbench(&cluster, PUBLISH_ONE, &payload, transactions)?;
            drop(readers);
            // The first round finds cold caches; it does not count.
            if round > 0 {
                times[which].push(time);
            }
        }
    }
    let mut report = Report::new(
        format!(
            "Slots that are read while one connection publishes; {transactions} transactions, {} rounds",
            arguments.rounds
        ),
        &["slots", "median µs", "min–max", "transactions/s", "× without"],
    );
    let times: Vec<_> = times.into_iter().map(Samples::new).collect();
    for (slots, samples) in SLOTS.iter().zip(&times) {
        report.row(
            vec![
                slots.to_string(),
                format!("{:.0}", samples.median()),
                range(samples),
                format!("{:.0}", 1e6 / samples.median()),
                format!("{:.2}", samples.median() / times[0].median()),
            ],
            json!({ "slots": slots, "transactions": transactions, "microseconds": data(samples) }),
        );
    }
    report.note("the readers run on the same machine, and share its processors with the application");
    Ok(report)
}

/// A slot and a process that reads it.
struct Reader<'a> {
    cluster: &'a Cluster,
    slot: String,
    process: Child,
}

impl<'a> Reader<'a> {
    fn start(cluster: &'a Cluster, number: usize) -> Outcome<Self> {
        let slot = format!("reader_{number}");
        cluster.psql(DATABASE, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'postbox')"));
        let mut command = Command::new(cluster.bin("pg_recvlogical"));
        command.env_clear().args(["--start", "--no-loop", "--fsync-interval=0", "--file=/dev/null", "--slot", &slot]);
        command.arg("--dbname").arg(cluster.conninfo(DATABASE)).args(["--option", "names=stream"]);
        let process = command.stderr(Stdio::null()).spawn()?;
        let reader = Self { cluster, slot, process };
        reader.wait_until("read", "active");
        Ok(reader)
    }

    fn wait_until(&self, what: &str, state: &str) {
        let Self { cluster, slot, .. } = self;
        wait_until(&format!("the slot is {what}"), PATIENCE, || {
            let found = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND {state}");
            (cluster.psql(DATABASE, &found) == "1").then_some(())
        });
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.wait_until("free", "NOT active");
        let Self { cluster, slot, .. } = self;
        cluster.psql(DATABASE, &format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
}
