//! What slots cost the application: every one of them decodes the whole log, on the same machine, also that of a group that has
//! nothing to deliver.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postbox_tests::{Cluster, Run, wait_until};
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::measure::Samples;
use crate::publish::{PUBLISH_ONE, pgbench};
use crate::report::{Report, data, range};

const PATIENCE: Duration = Duration::from_secs(30);

/// Who reads, and how many of them. The first one is what the others are held against.
const VARIANTS: [(Kind, usize); 9] = [
    (Kind::Slot, 0),
    (Kind::Slot, 1),
    (Kind::Slot, 2),
    (Kind::Slot, 4),
    (Kind::Slot, 8),
    (Kind::IdleGroup, 1),
    (Kind::IdleGroup, 2),
    (Kind::IdleGroup, 4),
    (Kind::IdleGroup, 8),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A slot whose reader is sent every event.
    Slot,
    /// A group with a member, on an outbox that nothing is published to.
    IdleGroup,
}

/// Measures transactions that publish while so many slots are read, or groups stand idle.
pub(crate) fn run(arguments: &Arguments) -> Outcome<Report> {
    let cluster = server().start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    let payload = cluster.psql(DATABASE, "SELECT payload(4711)");
    let transactions = arguments.scaled(10_000);
    cluster.psql(DATABASE, "SELECT postbox.create_outbox('quiet')");
    let mut times = vec![Vec::new(); VARIANTS.len()];
    for round in 0..=arguments.rounds {
        eprintln!("slots: round {round} of {}", arguments.rounds);
        for turn in 0..VARIANTS.len() {
            let which = (round + turn) % VARIANTS.len();
            let (kind, count) = VARIANTS[which];
            let (slots, groups) = if kind == Kind::Slot { (count, 0) } else { (0, count) };
            let readers = (0..slots).map(|number| Reader::start(&cluster, number)).collect::<Outcome<Vec<_>>>()?;
            let members = (0..groups).map(|number| Idle::start(&cluster, number)).collect::<Vec<_>>();
            let (time, _) = pgbench(&cluster, PUBLISH_ONE, &payload, transactions)?;
            drop(readers);
            drop(members);
            // The first round finds cold caches; it does not count.
            if round > 0 {
                times[which].push(time);
            }
        }
    }
    let mut report = Report::new(
        format!(
            "Slots that are read, and groups that have nothing to deliver, while one connection publishes; {transactions} transactions, {} rounds",
            arguments.rounds
        ),
        &["readers", "median µs", "min–max", "transactions/s", "× without"],
    );
    let times: Vec<_> = times.into_iter().map(Samples::new).collect();
    for ((kind, count), samples) in VARIANTS.iter().zip(&times) {
        let name = match kind {
            Kind::Slot => format!("{count} slots with every event"),
            Kind::IdleGroup => format!("{count} idle groups"),
        };
        report.row(
            vec![
                name.clone(),
                format!("{:.0}", samples.median()),
                range(samples),
                format!("{:.0}", 1e6 / samples.median()),
                format!("{:.2}", samples.median() / times[0].median()),
            ],
            json!({ "readers": name, "count": count, "transactions": transactions, "microseconds": data(samples) }),
        );
    }
    report.note("the readers run on the same machine, and share its processors with the application");
    Ok(report)
}

/// A group and its member, to whom nothing comes.
struct Idle<'a> {
    cluster: &'a Cluster,
    group: String,
    member: Option<Run>,
}

impl<'a> Idle<'a> {
    fn start(cluster: &'a Cluster, number: usize) -> Self {
        let group = format!("idle_{number}");
        cluster.psql(DATABASE, &format!("SELECT postbox.create_consumer_group('{group}', '{{quiet}}')"));
        let member = Run::start(&cluster.conninfo(DATABASE), &["--group", &group, "--no-maintenance"]);
        let sql = format!("SELECT active FROM postbox.consumer_groups WHERE name = '{group}'");
        wait_until("the group is read", PATIENCE, || (cluster.psql(DATABASE, &sql) == "t").then_some(()));
        Self { cluster, group, member: Some(member) }
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        drop(self.member.take());
        let sql = format!("SELECT postbox.drop_consumer_group('{}')", self.group);
        wait_until("the group is dropped", PATIENCE, || self.cluster.psql_result(DATABASE, &sql).ok());
    }
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
