//! Consumer groups: how long it takes until another member delivers, what recovery costs, and what the views cost.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postbox_tests::{Cluster, Run, wait_until};
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::measure::Samples;
use crate::report::{Report, data};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// The views that people and monitors look at.
const VIEWS: [&str; 7] = [
    "consumer_groups",
    "consumer_status",
    "active_leases",
    "consumer_lag",
    "retention_status",
    "maintenance_status",
    "dead_letters",
];

/// Groups that are there while the views are looked at.
const GROUPS: usize = 8;

/// Measures all three.
pub(crate) fn run(arguments: &Arguments) -> Outcome<Report> {
    let events = arguments.scaled(1_000_000);
    let (kills, dead_letters) = (arguments.scaled(40), arguments.scaled(5_000));
    let mut report = Report::new(
        format!("Groups: {kills} members killed; {events} stored events, {GROUPS} groups, {dead_letters} dead letters"),
        &["what", "median", "p99 or worst", "unit"],
    );
    let cluster = server().start();
    cluster.psql_result(DATABASE, SCHEMA)?;

    let takeovers = Samples::new(takeovers(&cluster, kills));
    row(&mut report, "from SIGKILL to the first event of the next member", "ms", &takeovers);
    report.target("takeover p99, ms", takeovers.max(), 1_000.0);

    cluster.psql(DATABASE, &format!("CALL with_many_events({}, 1000)", events.div_ceil(1000)));
    let members = populate(&cluster, dead_letters);
    for view in VIEWS {
        // One session, as a monitor has; the first time, it reads the catalogs.
        let sql = format!("EXPLAIN (ANALYZE) SELECT * FROM postbox.{view};").repeat(21);
        let explained = cluster.psql(DATABASE, &sql);
        let (planning, execution) = (millis(&explained, "Planning"), millis(&explained, "Execution"));
        let whole: Vec<f64> =
            planning.iter().zip(&execution).map(|(planning, execution)| planning + execution).collect();
        let (first, others) = whole.split_first().ok_or("no plan")?;
        let (planning, execution) = (Samples::new(planning[1..].to_vec()), Samples::new(execution[1..].to_vec()));
        let whole = Samples::new(others.to_vec());
        row(&mut report, &format!("SELECT * FROM {view}, planned"), "ms", &planning);
        row(&mut report, &format!("SELECT * FROM {view}, executed"), "ms", &execution);
        report.target(format!("{view}, planned and executed, median ms"), whole.median(), 5.0);
        report.note(format!("{view} for the first time in a session: {first:.1} ms"));
    }
    drop(members);
    drop_groups(&cluster);

    let mut seconds = Vec::new();
    for _ in 0..arguments.rounds.min(3) {
        seconds.push(recovery(&cluster, events)?.as_secs_f64());
    }
    let seconds = Samples::new(seconds);
    row(&mut report, &format!("recover, until {events} events are delivered"), "s", &seconds);
    report.note(format!("Recovery: {:.0} events/s from the table to a file.", events as f64 / seconds.median()));
    Ok(report)
}

fn row(report: &mut Report, what: &str, unit: &str, samples: &Samples) {
    report.row(
        vec![what.to_owned(), format!("{:.2}", samples.median()), format!("{:.2}", samples.max()), unit.to_owned()],
        json!({ "what": what, "unit": unit, "samples": data(samples) }),
    );
}

/// Kills the active member beside a standby, each time with an event published right after it.
fn takeovers(cluster: &Cluster, kills: u64) -> Vec<f64> {
    cluster.psql(DATABASE, "SELECT postbox.create_consumer_group('takeover', '{events}')");
    let member = || Run::start(&cluster.conninfo(DATABASE), &["--group", "takeover", "--no-maintenance"]);
    let mut active = member();
    active.wait_for_log("active member of group", 1, PATIENCE);
    let mut millis = Vec::new();
    for _ in 0..kills {
        let mut standby = member();
        standby.wait_for_log("standing by", 1, PATIENCE);
        active.kill();
        let begin = Instant::now();
        let id = cluster.psql(DATABASE, "SELECT postbox.publish('events', 't', '{}')");
        standby.wait_until("the event", PATIENCE, |lines| lines.iter().any(|line| line.event_id.to_string() == id));
        millis.push(begin.elapsed().as_secs_f64() * 1000.0);
        active = standby;
    }
    drop(active);
    drop_groups(cluster);
    millis
}

/// Makes groups with a member each. The output of every second one is not read, so that it falls behind 10,000 events, and the last
/// group has dead letters.
fn populate(cluster: &Cluster, dead_letters: u64) -> Vec<Run> {
    let names: Vec<String> = (0..GROUPS).map(|number| format!("group_{number}")).collect();
    for name in &names {
        cluster.psql(DATABASE, &format!("SELECT postbox.create_consumer_group('{name}', '{{events}}')"));
    }
    cluster.psql(DATABASE, "SELECT postbox.maintain(true)");
    let start = |(number, name): (usize, &String)| {
        let run = if number % 2 == 0 { Run::start } else { Run::start_held };
        run(&cluster.conninfo(DATABASE), &["--group", name, "--no-maintenance"])
    };
    let mut members: Vec<Run> = names.iter().enumerate().map(start).collect();
    for member in &mut members {
        member.wait_for_log("active member of group", 1, PATIENCE);
    }
    cluster.psql(DATABASE, "CALL with_many_events(10, 1000)");
    // A checkpoint of its own follows what a member has delivered; until then it has that of its making.
    wait_until("checkpoints of members that deliver", PATIENCE, || {
        let sql = format!(
            "SELECT count(*) >= {} FROM postbox.checkpoint WHERE taken_at > (SELECT max(taken_at) FROM postbox.sample)",
            GROUPS / 2
        );
        (cluster.psql(DATABASE, &sql) == "t").then_some(())
    });
    let sql = format!(
        "INSERT INTO postbox.dead_letter (group_name, why, outbox, event_id, event_hash, seq, key, type, xid, commit_lsn, ordinal,
             commit_time, frame, attempts, error, first_failed_at, last_failed_at, epoch)
         SELECT 'group_{}', 'failed', 'public.events', event_id, sha256(convert_to(event_id::text, 'UTF8')), seq, key, type, '1', '0/1', 0,
             created_at, postbox._frame('events', events), 8, 'timeout', created_at, now(), 1
         FROM events ORDER BY seq DESC LIMIT {dead_letters};
         ANALYZE postbox.dead_letter; SELECT postbox.maintain(true)",
        GROUPS - 1
    );
    cluster.psql(DATABASE, &sql);
    members
}

/// As soon as their members are gone.
fn drop_groups(cluster: &Cluster) {
    wait_until("the slots are free", PATIENCE, || {
        let sql = "SELECT postbox.drop_consumer_group(name, force => true) FROM postbox.consumer_group";
        cluster.psql_result(DATABASE, sql).is_ok().then_some(())
    });
}

/// A group without a position that is given everything that is stored.
fn recovery(cluster: &Cluster, events: u64) -> Outcome<Duration> {
    cluster.psql(DATABASE, "SELECT postbox.create_consumer_group('recovery', '{events}', start => 'earliest')");
    cluster.psql(DATABASE, "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_group");
    let begin = Instant::now();
    let mut process: Child = Command::new(postbox_tests::postbox_binary())
        .args(["run", "--group", "recovery", "--recover", "--no-maintenance", "--max-events", &events.to_string()])
        .args(["--database", &cluster.conninfo(DATABASE)])
        .stdout(Stdio::from(tempfile::tempfile()?))
        .stderr(Stdio::null())
        .spawn()?;
    let ended = process.wait()?;
    let took = begin.elapsed();
    if !ended.success() {
        return Err(format!("postbox run --recover: {ended}").into());
    }
    cluster.psql(DATABASE, "SELECT postbox.drop_consumer_group('recovery')");
    Ok(took)
}

/// The times of this phase of each of the plans.
fn millis(explained: &str, phase: &str) -> Vec<f64> {
    let line = format!("{phase} Time: ");
    explained.lines().filter_map(|text| text.strip_prefix(&line)?.strip_suffix(" ms")?.parse().ok()).collect()
}
