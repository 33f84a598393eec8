//! What decoding costs by the shape of the events: the type of their payload, and how many a transaction has.

use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{Backlog, Workload};
use crate::decode::{Measured, Variant, rounds};
use crate::report::{Report, data, range};

/// The floor comes first.
const VARIANTS: [Variant; 4] = [
    Variant { name: "nothing sent", plugin: "postbox_floor", options: &[] },
    Variant { name: "pgoutput", plugin: "pgoutput", options: &["proto_version=1", "publication_names=events"] },
    Variant { name: "postbox", plugin: "postbox", options: &["names=stream"] },
    Variant { name: "postbox, lz4", plugin: "postbox", options: &["names=stream", "compression=lz4"] },
];

/// Measures payloads of each type, in transactions of 1,000 events.
pub(crate) async fn types(arguments: &Arguments) -> Outcome<Report> {
    let mut report = report("Decoding by the type of the payload", arguments);
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        add(&mut report, payload_type, Workload::Typed(payload_type), arguments.scaled(200), arguments.rounds).await?;
    }
    Ok(report)
}

/// Measures transactions with more and more events: up to 64 KiB of them share a frame.
pub(crate) async fn frames(arguments: &Arguments) -> Outcome<Report> {
    let mut report = report("Decoding by the number of events a transaction", arguments);
    for (name, events) in [("1", 1), ("3", 3), ("10", 10), ("100", 100), ("1,000", 1000)] {
        add(&mut report, name, Workload::Each(events), arguments.scaled(200_000), arguments.rounds).await?;
    }
    Ok(report)
}

fn report(title: &str, arguments: &Arguments) -> Report {
    Report::new(
        format!("{title}; {} rounds", arguments.rounds),
        &["events", "plugin", "median ms", "min–max", "× nothing", "server CPU ms", "µs/event", "B/event"],
    )
}

async fn add(report: &mut Report, shape: &str, workload: Workload, amount: u64, times: usize) -> Outcome<()> {
    let backlog = Backlog::produce(workload, amount, &["postbox_floor", "pgoutput", "postbox"]).await?;
    let variants: Vec<_> = VARIANTS.iter().collect();
    let measured = rounds(&backlog, &variants, times).await?;
    let floor = measured[0].milliseconds.median();
    for (variant, Measured { milliseconds, processor, bytes }) in VARIANTS.iter().zip(&measured) {
        let events = backlog.events as f64;
        report.row(
            vec![
                shape.to_owned(),
                variant.name.to_owned(),
                format!("{:.0}", milliseconds.median()),
                range(milliseconds),
                format!("{:.2}", milliseconds.median() / floor),
                format!("{:.0}", processor.median()),
                format!("{:.2}", processor.median() * 1e3 / events),
                format!("{:.1}", *bytes as f64 / events),
            ],
            json!({
                "shape": shape, "variant": variant.name, "options": variant.options, "events": backlog.events, "bytes": bytes,
                "milliseconds": data(milliseconds), "server_processor_milliseconds": data(processor),
            }),
        );
    }
    Ok(())
}
