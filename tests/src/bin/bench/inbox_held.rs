//! The inbox and pgmq over time, while somebody holds a transaction open: a reader with its snapshot, and a writer.

use std::time::Duration;

use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::inbox::{Queue, prepare, server, slice, workers};
use crate::report::Report;

const SLICES: usize = 4;

/// Measures each queue with and without the open transactions, each on a server of its own.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let length = Duration::from_millis(arguments.scaled(10_000));
    let mut report = Report::new(
        format!("Receive, claim and complete over time, {SLICES} slices of {length:?} each"),
        &["", "messages/s, first slice", "last slice", "last × first", "claim p99 ms, last slice"],
    );
    for queue in [Queue::Postbox, Queue::Ordered, Queue::Pgmq] {
        let mut lasts = Vec::new();
        for held in [false, true] {
            let name = format!("{}{}", queue.name(), if held { ", transactions held open" } else { "" });
            eprintln!("inbox-held: {name}");
            let cluster = server().start();
            if !prepare(&cluster)? && queue == Queue::Pgmq {
                continue;
            }
            if queue == Queue::Ordered {
                cluster.psql_result(DATABASE, "SELECT postbox.enable_inbox_ordering('payments')")?;
            }
            let (watcher, reader, writer) =
                (cluster.client(DATABASE).await, cluster.client(DATABASE).await, cluster.client(DATABASE).await);
            if held {
                reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT").await?;
                writer.batch_execute("CREATE TABLE elsewhere (n int); BEGIN; INSERT INTO elsewhere VALUES (1)").await?;
            }
            let mut slices = Vec::new();
            for _ in 0..SLICES {
                slices.push(slice(&watcher, workers(&cluster, queue).await?, length).await?);
            }
            let (first, last) = (&slices[0], &slices[SLICES - 1]);
            report.row(
                vec![
                    name.clone(),
                    format!("{:.0}", first.rate),
                    format!("{:.0}", last.rate),
                    format!("{:.2}", last.rate / first.rate),
                    format!("{:.2}", last.claims.quantile(0.99)),
                ],
                json!({
                    "queue": queue.name(), "held_open": held,
                    "messages_per_second": slices.iter().map(|slice| slice.rate).collect::<Vec<_>>(),
                    "claim_p99_milliseconds": slices.iter().map(|slice| slice.claims.quantile(0.99)).collect::<Vec<_>>(),
                }),
            );
            lasts.push(last.rate);
        }
        if let ([free, held], Queue::Postbox | Queue::Ordered) = (&lasts[..], queue) {
            let target = format!("{}: time per message in the last slice, held open × not", queue.name());
            report.target(target, free / held, 1.25);
        }
    }
    report.note("20 % fewer messages in the same time are 1.25 times the time per message");
    Ok(report)
}
