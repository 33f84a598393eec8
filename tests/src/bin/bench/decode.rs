//! The decoding of one backlog by different plugins, with `pg_recvlogical` as the client of each.

use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{Backlog, Workload};
use crate::measure::Samples;
use crate::report::{Report, data, range};

/// A plugin and its options.
struct Variant {
    name: &'static str,
    plugin: &'static str,
    options: &'static [&'static str],
}

/// The floors come first: nothing sent, and one byte sent for each transaction.
const VARIANTS: [Variant; 6] = [
    Variant { name: "nothing sent", plugin: "postbox_floor", options: &[] },
    Variant { name: "one byte a transaction", plugin: "postbox_floor", options: &["emit=byte"] },
    Variant { name: "pgoutput, text", plugin: "pgoutput", options: &["proto_version=1", "publication_names=events"] },
    Variant {
        name: "pgoutput, binary",
        plugin: "pgoutput",
        options: &["proto_version=1", "publication_names=events", "binary=true"],
    },
    Variant { name: "postbox, names=frame", plugin: "postbox", options: &["names=frame"] },
    Variant { name: "postbox, names=stream", plugin: "postbox", options: &["names=stream"] },
];
const NOTHING: usize = 0;
const BYTE: usize = 1;
const TEXT: usize = 2;
const BINARY: usize = 3;
const POSTBOX: [usize; 2] = [4, 5];

/// What the rounds of one variant took.
struct Measured {
    milliseconds: Samples,
    processor: Samples,
    bytes: u64,
}

/// Measures all variants on one workload.
pub(crate) async fn run(workload: Workload, arguments: &Arguments) -> Outcome<Report> {
    let (title, amount) = match workload {
        Workload::Small => ("Decoding: a business INSERT and UPDATE and one event a transaction", 200_000),
        Workload::Bulk => ("Decoding: 1,000 events a transaction", 500),
        Workload::None => ("Decoding: a business INSERT and UPDATE a transaction, no events", 200_000),
        Workload::Single => ("Decoding: one transaction", 1_000_000),
    };
    let amount = arguments.scaled(amount);
    let backlog = Backlog::produce(workload, amount, &["postbox_floor", "pgoutput", "postbox"]).await?;
    let measured = rounds(&backlog, arguments.rounds).await?;

    let per = if backlog.events > 0 { "B/event" } else { "bytes" };
    let mut report = Report::new(
        format!("{title}; {} transactions, {} rounds", backlog.transactions, arguments.rounds),
        &["plugin", "median ms", "min–max", "× nothing", "× byte", "server CPU ms", "× nothing", "× byte", per],
    );
    for (variant, measured_here) in VARIANTS.iter().zip(&measured) {
        let Measured { milliseconds, processor, bytes } = measured_here;
        let ratio = |of: fn(&Measured) -> f64, to: usize| of(measured_here) / of(&measured[to]);
        let each = *bytes as f64 / backlog.events.max(1) as f64;
        report.row(
            vec![
                variant.name.to_owned(),
                format!("{:.0}", milliseconds.median()),
                range(milliseconds),
                format!("{:.2}", ratio(time, NOTHING)),
                format!("{:.2}", ratio(time, BYTE)),
                format!("{:.0}", processor.median()),
                format!("{:.2}", ratio(processor_time, NOTHING)),
                format!("{:.2}", ratio(processor_time, BYTE)),
                format!("{each:.1}"),
            ],
            json!({
                "variant": variant.name, "plugin": variant.plugin, "options": variant.options,
                "transactions": backlog.transactions, "events": backlog.events, "bytes": bytes,
                "milliseconds": data(milliseconds), "server_processor_milliseconds": data(processor),
            }),
        );
    }
    judge(workload, &measured, &mut report);
    report.note("bytes are those of pg_recvlogical's file, with the line feed it adds to each message");
    Ok(report)
}

async fn rounds(backlog: &Backlog, rounds: usize) -> Outcome<Vec<Measured>> {
    let mut times: [(Vec<f64>, Vec<f64>, u64); VARIANTS.len()] = Default::default();
    // The first of all finds cold caches; it does not count.
    receive(backlog, &VARIANTS[NOTHING]).await?;
    for round in 0..rounds {
        eprintln!("decode: round {} of {rounds}", round + 1);
        // Each round begins with another variant, so that none always follows the same one.
        for turn in 0..VARIANTS.len() {
            let which = (round + turn) % VARIANTS.len();
            let (milliseconds, processor, bytes) = receive(backlog, &VARIANTS[which]).await?;
            times[which].0.push(milliseconds);
            times[which].1.push(processor);
            times[which].2 = bytes;
        }
    }
    let measured = |(milliseconds, processor, bytes)| Measured {
        milliseconds: Samples::new(milliseconds),
        processor: Samples::new(processor),
        bytes,
    };
    Ok(times.into_iter().map(measured).collect())
}

async fn receive(backlog: &Backlog, variant: &Variant) -> Outcome<(f64, f64, u64)> {
    let cost = backlog.run(variant.plugin, |slot| backlog.receiver(slot, variant.options)).await?;
    Ok((cost.time.as_secs_f64() * 1e3, cost.processor.as_secs_f64() * 1e3, backlog.take_file()?))
}

fn judge(workload: Workload, measured: &[Measured], report: &mut Report) {
    let pgoutput = time(&measured[TEXT]).min(time(&measured[BINARY]));
    for which in POSTBOX {
        let name = VARIANTS[which].name;
        let postbox = &measured[which];
        match workload {
            Workload::Small => {
                report.target(
                    format!("{name}: time, × one byte a transaction"),
                    time(postbox) / time(&measured[BYTE]),
                    1.2,
                );
                report.target(format!("{name}: time, × the faster pgoutput"), time(postbox) / pgoutput, 0.8);
                let bytes = postbox.bytes as f64 / measured[BINARY].bytes as f64;
                report.target(format!("{name}: bytes, × pgoutput, binary"), bytes, 0.8);
            }
            Workload::Bulk | Workload::Single => {
                report.target(format!("{name}: time, × nothing sent"), time(postbox) / time(&measured[NOTHING]), 2.0);
                report.target(format!("{name}: time, × the faster pgoutput"), time(postbox) / pgoutput, 0.5);
            }
            Workload::None => {
                report.target(format!("{name}: bytes"), postbox.bytes as f64, 0.0);
                // Two plugins that do the same differ by as much from one run to the next.
                report.target(format!("{name}: time, × nothing sent"), time(postbox) / time(&measured[NOTHING]), 1.05);
            }
        }
    }
}

fn time(measured: &Measured) -> f64 {
    measured.milliseconds.median()
}

fn processor_time(measured: &Measured) -> f64 {
    measured.processor.median()
}
