//! What publishing adds to a small transaction, measured with `pgbench` on one connection.

use std::fs;
use std::process::Command;

use postbox_tests::Cluster;
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::inbox::load_pgmq;
use crate::measure::{Meter, Samples};
use crate::report::{Report, data, range};

/// What is done inside of a transaction behind its business INSERT.
const VARIANTS: [(&str, &str); 6] = [
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
    ("postbox.emit()", "SELECT postbox.emit('flashes', 'purchase.confirmed', :payload::jsonb, :id::text);"),
    // Where its SQL is there.
    ("pgmq.send()", "SELECT pgmq.send('events', :payload::jsonb);"),
];
/// One event more.
pub(crate) const PUBLISH_ONE: &str =
    "SELECT postbox.publish('events', 'purchase.confirmed', :payload::jsonb, :id::text);";
const BASE: usize = 0;
const ORDINARY: usize = 1;
const OUTBOX: usize = 2;
const PUBLISH: usize = 3;
const EMIT: usize = 4;
const PGMQ: usize = 5;

/// What a transaction costs: microseconds as the client sees it and of the server's process, and bytes of WAL.
#[derive(Default)]
struct Costs<S> {
    time: S,
    processor: S,
    wal: S,
}

/// Measures the transactions.
pub(crate) fn run(arguments: &Arguments) -> Outcome<Report> {
    let cluster = server().start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    // All columns, defaults and indexes of the outbox, but not its partitions.
    cluster.psql(DATABASE, "CREATE TABLE ordinary (LIKE events INCLUDING ALL)");
    cluster.psql(DATABASE, "SELECT postbox.create_outbox('flashes'), postbox.set_emit('flashes', true)");
    let variants = if load_pgmq(&cluster)? {
        cluster.psql(DATABASE, "SELECT pgmq.create('events')");
        &VARIANTS[..]
    } else {
        &VARIANTS[..VARIANTS.len() - 1]
    };
    let payload = cluster.psql(DATABASE, "SELECT payload(4711)");
    let transactions = arguments.scaled(20_000);

    let mut costs: [Costs<Vec<f64>>; VARIANTS.len()] = Default::default();
    for round in 0..=arguments.rounds {
        eprintln!("publish: round {round} of {}", arguments.rounds);
        for turn in 0..variants.len() {
            let which = (round + turn) % variants.len();
            let before = wal(&cluster)?;
            let (time, processor) = pgbench(&cluster, variants[which].1, &payload, transactions)?;
            let written = wal(&cluster)? - before;
            // The first round finds cold caches; it does not count.
            if round > 0 {
                costs[which].time.push(time);
                costs[which].processor.push(processor);
                costs[which].wal.push(written / transactions as f64);
            }
        }
    }
    let costs = costs.into_iter().take(variants.len()).map(|costs| Costs {
        time: Samples::new(costs.time),
        processor: Samples::new(costs.processor),
        wal: Samples::new(costs.wal),
    });
    Ok(report(&costs.collect::<Vec<_>>(), transactions, arguments.rounds))
}

/// Bytes of WAL so far.
fn wal(cluster: &Cluster) -> Outcome<f64> {
    Ok(cluster.psql(DATABASE, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").parse()?)
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

fn report(costs: &[Costs<Samples>], transactions: u64, rounds: usize) -> Report {
    let time = |which: usize| costs[which].time.median();
    let processor = |which: usize| costs[which].processor.median();
    let wal = |which: usize| costs[which].wal.median();
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
            "WAL bytes",
            "adds",
        ],
    );
    for (which, (name, statement)) in VARIANTS.iter().enumerate().take(costs.len()) {
        let mut cells = vec![(*name).to_owned(), format!("{:.1}", time(which)), range(&costs[which].time)];
        cells.push(format!("{:.2}", time(which) / time(ORDINARY)));
        for (of, before) in [(&time as &dyn Fn(usize) -> f64, None), (&processor, Some(processor(which)))] {
            cells.extend(before.map(|whole| format!("{whole:.1}")));
            cells.push(format!("{:.1}", added(of, which)));
            cells.push(format!("{:.2}", added(of, which) / added(of, ORDINARY)));
        }
        cells.extend([format!("{:.0}", wal(which)), format!("{:.0}", wal(which) - wal(BASE))]);
        report.row(
            cells,
            json!({
                "transaction_with": name, "statement": statement, "transactions": transactions,
                "microseconds": data(&costs[which].time), "server_processor_microseconds": data(&costs[which].processor),
                "wal_bytes": data(&costs[which].wal),
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
    // What is stored nowhere is to cost no more than what is, in a table or in a queue.
    for other in [ORDINARY, PGMQ].into_iter().filter(|other| *other < costs.len()) {
        let (emit, other, name) = (added(&time, EMIT), added(&time, other), VARIANTS[other].0);
        let ratio = if other > 0.0 { emit / other } else { f64::NAN };
        report.target(format!("{}: what it adds, × {name}", VARIANTS[EMIT].0), ratio, 1.0);
    }
    report
}
