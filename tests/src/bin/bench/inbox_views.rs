//! What looking at an inbox costs when millions of messages wait, and when millions were processed.

use std::time::Instant;

use postbox_tests::Cluster;
use serde_json::json;
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::inbox_claims::{drain, receive, server};
use crate::measure::Samples;
use crate::report::{Report, data};

/// What people and monitors look at; the last two in ordered inboxes.
const VIEWS: [&str; 5] = [
    "stats_payments",
    "postbox.inbox_health('payments')",
    "postbox.inbox_status('payments')",
    "gaps_payments",
    "postbox.inbox_ordering_gaps('payments')",
];
const LOOKS: usize = 20;

/// Measures a plain inbox with much pending and then with much processed, and an ordered one with gaps.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let many = arguments.scaled(5_000_000);
    let mut report = Report::new(
        format!("Looking at an inbox of {many} messages"),
        &["inbox", "messages", "what", "median ms", "worst ms", "first ms"],
    );
    for ordered in [false, true] {
        let cluster = server().start();
        cluster.psql(DATABASE, "CREATE EXTENSION postbox; SELECT postbox.create_inbox('payments')");
        let client = cluster.client(DATABASE).await;
        eprintln!("inbox-views: ordered {ordered}, {many} pending");
        if ordered {
            cluster.psql(DATABASE, "SELECT postbox.enable_inbox_ordering('payments')");
            // A hundred aggregates lack their second message.
            cluster.psql(
                DATABASE,
                "INSERT INTO payments (event_id, aggregate_id, sequence_num) SELECT 'gap' || n || '-' || s, 'gap' || n, s FROM generate_series(1, 100) n, unnest('{1,3}'::int[]) s",
            );
        }
        receive(&client, ordered, &mut 0, many).await?;
        look(&cluster, ordered, "pending", &mut report).await?;
        if !ordered {
            eprintln!("inbox-views: {many} processed");
            drain(&cluster, many).await?;
            look(&cluster, ordered, "processed", &mut report).await?;
        }
    }
    report.note("after maintenance; one session, as a monitor has: the first time, it reads the catalogs");
    Ok(report)
}

async fn look(cluster: &Cluster, ordered: bool, state: &str, report: &mut Report) -> Outcome<()> {
    let client: Client = cluster.client(DATABASE).await;
    // Maintenance sums up a part of the log at a time.
    let folded =
        "SELECT coalesce(max(l.id) <= max(k.folded_id), true) FROM postbox.inbox_log l, postbox.inbox_keeping k";
    loop {
        client.batch_execute("SELECT postbox.maintain(true)").await?;
        if client.query_one(folded, &[]).await?.get(0) {
            break;
        }
    }
    for view in &VIEWS[..if ordered { 5 } else { 3 }] {
        let sql = format!("SELECT * FROM {view}");
        let mut times = Vec::new();
        for _ in 0..=LOOKS {
            let begin = Instant::now();
            client.simple_query(&sql).await?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let first = times.remove(0);
        let times = Samples::new(times);
        let inbox = if ordered { "ordered" } else { "plain" };
        report.row(
            vec![
                inbox.to_owned(),
                state.to_owned(),
                (*view).to_owned(),
                format!("{:.2}", times.median()),
                format!("{:.2}", times.max()),
                format!("{first:.1}"),
            ],
            json!({ "inbox": inbox, "messages": state, "view": view, "milliseconds": data(&times), "first": first }),
        );
        report.target(format!("{inbox}, {state}: {view}, median ms"), times.median(), 5.0);
    }
    Ok(())
}
