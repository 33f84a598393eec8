//! A backlog through the consumer, against `pg_recvlogical` writing the same frames to a file.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{Backlog, Cost, Workload};
use crate::measure::Samples;
use crate::postbox;
use crate::report::{Report, data, range};

/// Measures both clients on both kinds of backlog.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let mut report = Report::new(
        format!(
            "Drain of a backlog: events as lines of JSON, against frames as they come; {} rounds",
            arguments.rounds
        ),
        &["backlog", "client", "median ms", "min–max", "events/s", "server CPU ms", "client CPU ms", "file MB"],
    );
    for (name, workload, amount) in [("small", Workload::Small, 200_000), ("bulk", Workload::Bulk, 500)] {
        let backlog = Backlog::produce(workload, arguments.scaled(amount), &["postbox"]).await?;
        let mut receiver = Vec::new();
        let mut consumer = Vec::new();
        let mut bytes = [0, 0];
        receive(&backlog).await?;
        backlog.take_file()?;
        for round in 0..arguments.rounds {
            eprintln!("drain, {name}: round {} of {}", round + 1, arguments.rounds);
            for turn in 0..2 {
                let which = (round + turn) % 2;
                if which == 0 {
                    receiver.push(receive(&backlog).await?);
                } else {
                    consumer.push(consume(&backlog).await?);
                }
                bytes[which] = backlog.take_file()?;
            }
        }
        let mut medians = [0.0, 0.0];
        for (which, client, costs) in [(0, "pg_recvlogical", receiver), (1, "postbox run", consumer)] {
            let milliseconds = Samples::new(costs.iter().map(|cost| cost.time.as_secs_f64() * 1e3).collect());
            let processor = Samples::new(costs.iter().map(|cost| cost.processor.as_secs_f64() * 1e3).collect());
            let own: Vec<f64> = costs.iter().map(|cost| cost.client_processor.as_secs_f64() * 1e3).collect();
            let own = Samples::new(own);
            medians[which] = milliseconds.median();
            report.row(
                vec![
                    name.to_owned(),
                    client.to_owned(),
                    format!("{:.0}", milliseconds.median()),
                    range(&milliseconds),
                    format!("{:.0}", backlog.events as f64 / milliseconds.median() * 1e3),
                    format!("{:.0}", processor.median()),
                    format!("{:.0}", own.median()),
                    format!("{:.1}", bytes[which] as f64 / 1e6),
                ],
                json!({
                    "backlog": name, "client": client, "events": backlog.events, "bytes": bytes[which],
                    "milliseconds": data(&milliseconds), "server_processor_milliseconds": data(&processor),
                    "client_processor_milliseconds": data(&own),
                }),
            );
        }
        report.target(format!("{name}: time of postbox run, × pg_recvlogical"), medians[1] / medians[0], 1.0);
    }
    Ok(report)
}

async fn receive(backlog: &Backlog) -> Outcome<Cost> {
    backlog.run("postbox", |slot| backlog.receiver(slot, &["names=stream"])).await
}

/// Runs `postbox run` to the end of the backlog, and makes sure that it wrote each event.
pub(crate) async fn consume(backlog: &Backlog) -> Outcome<Cost> {
    let file = File::create(backlog.file())?;
    let command = |slot: &str| {
        let mut command = postbox::run(&backlog.cluster, slot);
        command.args(["--until-lsn", &backlog.end]).stdout(file);
        command
    };
    let cost = backlog.run("postbox", command).await?;
    let mut lines = 0;
    for line in BufReader::with_capacity(1 << 20, File::open(backlog.file())?).split(b'\n') {
        line?;
        lines += 1;
    }
    // A client that loses events would be fast.
    if lines != backlog.events {
        return Err(format!("postbox run wrote {lines} lines for {} events", backlog.events).into());
    }
    Ok(cost)
}
