//! `postbox inbox work`.

use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::error::{Error, ErrorKind, Result};
use crate::inbox::{Call, Exec, Http, InboxWorker, Outside};
use crate::signal;
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("handler").required(true))]
pub(in crate::cli) struct Work {
    /// The inbox
    name: String,
    /// A command for each message, run as sh -c CMD, with the message as a line of JSON on its standard input and POSTBOX_EVENT_ID,
    /// POSTBOX_TYPE, POSTBOX_KEY, POSTBOX_INBOX and POSTBOX_ATTEMPT in its environment. Exit code 0 means processed; else the end of
    /// its standard error is the reason
    #[arg(long, group = "handler", value_name = "CMD")]
    exec: Option<String>,
    /// A POST of each message as JSON. An answer of 2xx means processed; 429 and 503 may say when to try again (Retry-After)
    #[arg(long, group = "handler", value_name = "URL")]
    http: Option<String>,
    /// A function of the database that takes a message as jsonb, called in the transaction that completes it: what it writes is written
    /// exactly once
    #[arg(long, group = "handler", value_name = "FUNCTION")]
    call: Option<String>,
    /// With --http: a further header; @FILE means the lines of a file
    #[arg(long, requires = "http", value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// How many messages to work on at once [default: 1; with tiers, for each of them what it says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    concurrency: Option<u16>,
    /// Most messages to claim at once; those of one claim are worked on one after the other
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    batch_size: i32,
    /// After so long without a word of this process its messages are handed to others [1s to 12h]
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    visibility: Duration,
    /// Work on this tier only; may be given several times
    #[arg(long, value_name = "NAME")]
    tier: Vec<String>,
    /// Longest wait between two looks at an inbox that has nothing, 10ms or more; tiers have a pace of their own
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    poll_interval: Duration,
    /// Longest time that one message may take; then its command is killed, its request or transaction ended, and it has failed
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = humantime::parse_duration)]
    max_processing: Duration,
    /// After a signal, how long messages that are being worked on may take; then they are given back
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Stop when for so long nothing could be claimed
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    exit_when_idle: Option<Duration>,
    /// How this worker is called where the inbox says who has its messages [default: machine and process]
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,
    /// Leave maintenance to others: by default a worker also calls postbox.maintain() now and then
    #[arg(long)]
    no_maintenance: bool,
}

impl Work {
    pub(in crate::cli) async fn execute(self, database: Option<String>, info: &ConnInfo) -> Result<()> {
        let stop = signal::stop()?;
        let mut worker = InboxWorker::resolve(database, self.name.clone())
            .batch_size(self.batch_size)
            .visibility(self.visibility)
            .poll_interval(self.poll_interval)
            .max_processing(self.max_processing)
            .grace(self.grace)
            .maintenance(!self.no_maintenance);
        if let Some(hands) = self.concurrency {
            worker = worker.concurrency(hands.into());
        }
        if let Some(idle) = self.exit_when_idle {
            worker = worker.exit_when_idle(idle);
        }
        if let Some(name) = self.worker {
            worker = worker.name(name);
        }
        for tier in self.tier {
            worker = worker.tier(tier);
        }
        match (self.exec, self.http, self.call) {
            (Some(command), ..) if command.trim().is_empty() => Err(Error::new(ErrorKind::Usage, "--exec is empty")
                .with_hint("An empty command would process every message by doing nothing.")),
            (Some(command), ..) => worker.work(Outside(Exec(command)), stop).await,
            (_, Some(url), _) => worker.work(Outside(Http::new(&url, &headers(self.header)?)?), stop).await,
            (_, _, function) => {
                let function = function.unwrap_or_default();
                let call = Call::new(&connect_sql(info).await?, &function, &self.name).await?;
                worker.run(call, stop).await
            }
        }
        .map(drop)
    }
}

/// Headers as they were given, and those in files: what is in an argument, every user of the machine can see.
fn headers(given: Vec<String>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for header in given {
        let Some(file) = header.strip_prefix('@') else {
            all.push(header);
            continue;
        };
        let text = std::fs::read_to_string(file).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("--header @{file} cannot be read")).with_source(error)
        })?;
        all.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    Ok(all)
}
