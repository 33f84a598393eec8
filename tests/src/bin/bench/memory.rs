//! The consumer's memory while it reads one transaction that is larger than all of it.

use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{Backlog, Workload};
use crate::drain::consume;
use crate::measure::Samples;
use crate::report::{Report, data};

/// Measures the greatest resident set of `postbox run`.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let events = arguments.scaled(1_000_000);
    let backlog = Backlog::produce(Workload::Single, events, &["postbox"]).await?;
    let mut peaks = Vec::new();
    let mut seconds = Vec::new();
    for _ in 0..arguments.rounds.min(3) {
        let cost = consume(&backlog).await?;
        peaks.push(cost.peak as f64 / (1024.0 * 1024.0));
        seconds.push(cost.time.as_secs_f64());
    }
    let (peaks, seconds) = (Samples::new(peaks), Samples::new(seconds));

    let mut report = Report::new(
        format!("Memory of postbox run in one transaction of {events} events"),
        &["output", "peak MiB", "seconds", "events/s"],
    );
    report.row(
        vec![
            "file".to_owned(),
            format!("{:.1}", peaks.max()),
            format!("{:.1}", seconds.median()),
            format!("{:.0}", events as f64 / seconds.median()),
        ],
        json!({ "output": "file", "events": events, "peak_mebibytes": data(&peaks), "seconds": data(&seconds) }),
    );
    report.target("peak resident set, MiB", peaks.max(), 64.0);
    Ok(report)
}
