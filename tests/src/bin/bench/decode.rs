//! The decoding of one backlog by different plugins, with `pg_recvlogical` as the client of each.

use postbox_tests::peers;
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{Backlog, Workload};
use crate::measure::Samples;
use crate::report::{Report, data, range};

/// A plugin and its options.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) plugin: &'static str,
    pub(crate) options: &'static [&'static str],
}

/// The floors come first: nothing sent, and one byte sent for each transaction. Those that are judged come next.
const OURS: [Variant; 7] = [
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
    Variant { name: "postbox, and compression=lz4", plugin: "postbox", options: &["names=stream", "compression=lz4"] },
];
const NOTHING: usize = 0;
const BYTE: usize = 1;
const TEXT: usize = 2;
const BINARY: usize = 3;
const POSTBOX: [usize; 2] = [4, 5];

/// Other plugins: test_decoding comes with the server, the rest is measured where it could be fetched.
const PEERS: [Variant; 4] = [
    Variant { name: "test_decoding", plugin: "test_decoding", options: &["skip-empty-xacts=on"] },
    Variant { name: "wal2json, version 1", plugin: "wal2json", options: &["format-version=1", ONLY_EVENTS] },
    Variant { name: "wal2json, version 2", plugin: "wal2json", options: &["format-version=2", ONLY_EVENTS] },
    Variant { name: "decoderbufs", plugin: "decoderbufs", options: &[] },
];
/// wal2json does not call leaves by their root.
const ONLY_EVENTS: &str = "add-tables=public.events_g0,public.events_g1,public.events_g2,public.events_g3";

fn variants() -> impl Iterator<Item = &'static Variant> {
    let there = |plugin: &str| plugin == "test_decoding" || peers().join(format!("{plugin}.so")).exists();
    OURS.iter().chain(PEERS.iter().filter(move |peer| there(peer.plugin)))
}

/// What the rounds of one variant took.
pub(crate) struct Measured {
    pub(crate) milliseconds: Samples,
    pub(crate) processor: Samples,
    pub(crate) bytes: u64,
}

/// Measures all variants on one workload.
pub(crate) async fn run(workload: Workload, arguments: &Arguments) -> Outcome<Report> {
    let (title, amount) = match workload {
        Workload::Small => ("Decoding: a business INSERT and UPDATE and one event a transaction", 200_000),
        Workload::Bulk => ("Decoding: 1,000 events a transaction", 500),
        Workload::None => ("Decoding: a business INSERT and UPDATE a transaction, no events", 200_000),
        other => return Err(format!("{other:?} is not held against targets").into()),
    };
    let amount = arguments.scaled(amount);
    let mut plugins: Vec<_> = variants().map(|variant| variant.plugin).collect();
    plugins.dedup();
    let backlog = Backlog::produce(workload, amount, &plugins).await?;
    let variants: Vec<_> = variants().collect();
    let measured = rounds(&backlog, &variants, arguments.rounds).await?;

    let per = if backlog.events > 0 { "B/event" } else { "bytes" };
    let mut report = Report::new(
        format!("{title}; {} transactions, {} rounds", backlog.transactions, arguments.rounds),
        &["plugin", "median ms", "min–max", "× nothing", "× byte", "server CPU ms", "× nothing", "× byte", per],
    );
    for (variant, measured_here) in variants.iter().zip(&measured) {
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

/// Measures each of the variants on a backlog whose slots are there.
pub(crate) async fn rounds(backlog: &Backlog, variants: &[&Variant], rounds: usize) -> Outcome<Vec<Measured>> {
    let mut times = vec![(Vec::new(), Vec::new(), 0); variants.len()];
    // The first of all finds cold caches; it does not count.
    receive(backlog, variants[NOTHING]).await?;
    for round in 0..rounds {
        eprintln!("decode: round {} of {rounds}", round + 1);
        // Each round begins with another variant, so that none always follows the same one.
        for turn in 0..variants.len() {
            let which = (round + turn) % variants.len();
            let (milliseconds, processor, bytes) = receive(backlog, variants[which]).await?;
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
        let name = OURS[which].name;
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
            Workload::Bulk => {
                report.target(format!("{name}: time, × nothing sent"), time(postbox) / time(&measured[NOTHING]), 2.0);
                report.target(format!("{name}: time, × the faster pgoutput"), time(postbox) / pgoutput, 0.5);
            }
            Workload::None => {
                report.target(format!("{name}: bytes"), postbox.bytes as f64, 0.0);
                // Two plugins that do the same differ by as much from one run to the next.
                report.target(format!("{name}: time, × nothing sent"), time(postbox) / time(&measured[NOTHING]), 1.05);
            }
            _ => {}
        }
    }
}

fn time(measured: &Measured) -> f64 {
    measured.milliseconds.median()
}

fn processor_time(measured: &Measured) -> f64 {
    measured.processor.median()
}
