//! What publishing adds to a small transaction, measured with `pgbench` on one connection.

use std::fs;
use std::process::Command;

use postbox_tests::Cluster;
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::measure::{Meter, Samples};
use crate::report::{Report, data, range};

/// What is done inside of a transaction behind its business INSERT.
const VARIANTS: [(&str, &str); 4] = [
    ("nothing more", ""),
    (
        "INSERT into an ordinary table",
        "INSERT INTO ordinary (key, type, payload) VALUES (:id::text, 'purchase.confirmed', :payload::jsonb);",
    ),
    (
        "INSERT into the outbox",
        "INSERT INTO events (key, type, payload) VALUES (:id::text, 'purchase.confirmed', :payload::jsonb);",
    ),
    ("postbox.publish()", PUBLISH_ONE),
];
/// One event more.
pub(crate) const PUBLISH_ONE: &str =
    "SELECT postbox.publish('events', 'purchase.confirmed', :payload::jsonb, :id::text);";
const BASE: usize = 0;
const ORDINARY: usize = 1;
const OUTBOX: usize = 2;
const PUBLISH: usize = 3;

/// Measures the four transactions.
pub(crate) fn run(arguments: &Arguments) -> Outcome<Report> {
    let cluster = server().start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    // All columns, defaults and indexes of the outbox, but not its partitions.
    cluster.psql(DATABASE, "CREATE TABLE ordinary (LIKE events INCLUDING ALL)");
    let payload = cluster.psql(DATABASE, "SELECT payload(4711)");
    let transactions = arguments.scaled(20_000);

    let mut costs: [(Vec<f64>, Vec<f64>); VARIANTS.len()] = Default::default();
    for round in 0..=arguments.rounds {
        eprintln!("publish: round {round} of {}", arguments.rounds);
        for turn in 0..VARIANTS.len() {
            let which = (round + turn) % VARIANTS.len();
            let (time, processor) = pgbench(&cluster, VARIANTS[which].1, &payload, transactions)?;
            // The first round finds cold caches; it does not count.
            if round > 0 {
                costs[which].0.push(time);
                costs[which].1.push(processor);
            }
        }
    }
    let costs = costs.map(|(times, processor)| (Samples::new(times), Samples::new(processor)));
    Ok(report(&costs, transactions, arguments.rounds))
}

/// Microseconds a transaction that does this behind its business INSERT.
pub(crate) fn pgbench(cluster: &Cluster, statement: &str, payload: &str, transactions: u64) -> Outcome<(f64, f64)> {
    let business = "INSERT INTO purchase (customer, total) VALUES (:id, 19.90);";
    let script = format!("\\set id random(1, 1000000)\nBEGIN;\n{business}\n{statement}\nEND;\n");
    pgbench_script(cluster, &script, &["--define", &format!("payload={payload}")], transactions)
}

/// Microseconds a run of the script: as the client sees it, and of the server's process. Readers of slots are no part of that.
pub(crate) fn pgbench_script(
    cluster: &Cluster,
    script: &str,
    options: &[&str],
    transactions: u64,
) -> Outcome<(f64, f64)> {
    let file = cluster.socket_dir().join("transaction.sql");
    fs::write(&file, script)?;
    let meter = Meter::start(cluster.pid())?;
    let output = Command::new(cluster.bin("pgbench"))
        .env_clear()
        .args(["--no-vacuum", "--protocol=prepared", "--client=1", "--transactions", &transactions.to_string()])
        .args(options)
        .arg("--file")
        .arg(&file)
        .arg(cluster.conninfo(DATABASE))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    let (true, Some(tps)) = (output.status.success(), tps) else {
        return Err(format!(
            "pgbench failed with {}:\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    };
    let processor = meter.stop()?;
    Ok((1e6 / tps, processor.as_secs_f64() * 1e6 / transactions as f64))
}

fn report(costs: &[(Samples, Samples)], transactions: u64, rounds: usize) -> Report {
    let time = |which: usize| costs[which].0.median();
    let processor = |which: usize| costs[which].1.median();
    let added = |of: &dyn Fn(usize) -> f64, which: usize| of(which) - of(BASE);
    let mut report = Report::new(
        format!("Publishing: a business INSERT and one thing more; {transactions} transactions, {rounds} rounds"),
        &[
            "one thing more",
            "median µs",
            "min–max",
            "× ordinary",
            "adds",
            "× ordinary",
            "server CPU µs",
            "adds",
            "× ordinary",
        ],
    );
    for (which, (name, statement)) in VARIANTS.iter().enumerate() {
        let mut cells = vec![(*name).to_owned(), format!("{:.1}", time(which)), range(&costs[which].0)];
        cells.push(format!("{:.2}", time(which) / time(ORDINARY)));
        for (of, before) in [(&time as &dyn Fn(usize) -> f64, None), (&processor, Some(processor(which)))] {
            cells.extend(before.map(|whole| format!("{whole:.1}")));
            cells.push(format!("{:.1}", added(of, which)));
            cells.push(format!("{:.2}", added(of, which) / added(of, ORDINARY)));
        }
        report.row(
            cells,
            json!({
                "transaction_with": name, "statement": statement, "transactions": transactions,
                "microseconds": data(&costs[which].0), "server_processor_microseconds": data(&costs[which].1),
            }),
        );
    }
    for (which, most) in [(OUTBOX, 1.25), (PUBLISH, 1.4)] {
        let name = VARIANTS[which].0;
        // A difference that came out as nothing or less says that the machine was busy with something else.
        let ordinary = added(&time, ORDINARY);
        let ratio = if ordinary > 0.0 { added(&time, which) / ordinary } else { f64::NAN };
        report.target(format!("{name}: what it adds, × ordinary"), ratio, most);
        report.target(format!("{name}: whole transaction, × ordinary"), time(which) / time(ORDINARY), most);
    }
    report
}
