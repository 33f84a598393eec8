//! How events are delivered: arguments of `postbox run`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::SinkName;
use crate::dispatch::settings::{Keyless, Policy, Settings};
use crate::error::{Error, ErrorKind, Result};

/// Longer times mean for ever, and clocks can count them.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

#[derive(Debug, Args)]
pub(super) struct Delivery {
    /// With --sink exec: the command, run as sh -c CMD, with the event as a line of JSON on its standard input and
    /// POSTBOX_EVENT_ID, POSTBOX_TYPE, POSTBOX_KEY, POSTBOX_OUTBOX and POSTBOX_ATTEMPT in its environment. Exit code 0 means
    /// delivered
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Most calls of the sink at once, for events of different keys [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: Option<u16>,
    /// How events without a key are delivered [default: any]
    #[arg(long, value_enum)]
    keyless: Option<KeylessName>,
    /// After a failure wait up to so long, then up to twice as long, and so on [default: 100ms]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retry_initial: Option<Duration>,
    /// Longest wait between two attempts [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retry_max: Option<Duration>,
    /// An event that has failed so often goes to the dead letters [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// So does one that still fails so long after its first failure [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_retry_time: Option<Duration>,
    /// What becomes of the key of an event that goes to the dead letters [default: skip]
    #[arg(long, value_enum)]
    on_failure: Option<PolicyName>,
    /// Longest time that one call of the sink may take: a command is killed and has failed, and with a sink that cannot be cut
    /// off the process gives up (exit code 6)
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = humantime::parse_duration)]
    max_processing: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeylessName {
    /// In any order, at once
    Any,
    /// One after the other, in commit order
    OneLane,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyName {
    /// It goes on with its next event
    Skip,
    /// Its later events are stored behind, in order, until the event is redriven or discarded
    Park,
    /// As park, and the event is tried again from there for ever, at growing intervals
    Pause,
}

impl Delivery {
    /// The command of a sink that needs one.
    pub(super) fn command(&self, sink: SinkName) -> Result<Option<String>> {
        match (sink, &self.exec) {
            (SinkName::Exec, None) => Err(Error::new(ErrorKind::Usage, "--sink exec needs --exec CMD")
                .with_hint("For instance --exec 'curl -fsS --data-binary @- https://shop.example/events'.")),
            (SinkName::Exec, Some(command)) if command.trim().is_empty() => {
                Err(Error::new(ErrorKind::Usage, "--exec is empty")
                    .with_hint("An empty command would deliver nothing."))
            }
            (SinkName::Stdout | SinkName::Inbox, Some(_)) => {
                Err(Error::new(ErrorKind::Usage, "--exec needs --sink exec")
                    .with_hint("Add the one or leave out the other."))
            }
            (_, command) => Ok(command.clone()),
        }
    }

    pub(super) fn settings(&self, sink: SinkName, has_group: bool) -> Result<Settings> {
        let given = [
            ("--concurrency", self.concurrency.is_some()),
            ("--keyless", self.keyless.is_some()),
            ("--max-attempts", self.max_attempts.is_some()),
            ("--max-retry-time", self.max_retry_time.is_some()),
            ("--on-failure", self.on_failure.is_some()),
        ];
        let retry = [("--retry-initial", self.retry_initial.is_some()), ("--retry-max", self.retry_max.is_some())];
        // An inbox that cannot be reached is tried again; what it refuses, it refuses always.
        let meaningless = match sink {
            SinkName::Exec => None,
            SinkName::Inbox => Some(("inbox", &given[..], &[][..])),
            SinkName::Stdout => Some(("stdout", &given[..], &retry[..])),
        };
        if let Some((sink, given, retry)) = meaningless
            && let Some((name, _)) = given.iter().chain(retry).find(|(_, given)| *given)
        {
            let message = format!("{name} means nothing to --sink {sink}, which takes all events in commit order");
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Leave it out, or use --sink exec."));
        }
        if self.max_processing.is_zero() {
            return Err(Error::new(ErrorKind::Usage, "--max-processing is 0: nothing could be delivered")
                .with_hint("For instance 5min."));
        }
        let on_failure = match self.on_failure {
            None | Some(PolicyName::Skip) => Policy::Skip,
            Some(PolicyName::Park) => Policy::Park,
            Some(PolicyName::Pause) => Policy::Pause,
        };
        if !has_group && self.on_failure.is_some() {
            return Err(Error::new(ErrorKind::Usage, "--on-failure needs --group: dead letters belong to a group")
                .with_hint("With --slot an event that fails for good ends the process."));
        }
        let defaults = Settings::default();
        let (retry_initial, retry_max) =
            (self.retry_initial.unwrap_or(defaults.retry_initial), self.retry_max.unwrap_or(defaults.retry_max));
        if retry_initial > retry_max {
            let message = format!("--retry-initial {retry_initial:?} is longer than --retry-max {retry_max:?}");
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Waits grow from the one to the other."));
        }
        Ok(Settings {
            concurrency: self.concurrency.map_or(defaults.concurrency, usize::from),
            keyless: match self.keyless {
                None | Some(KeylessName::Any) => Keyless::Any,
                Some(KeylessName::OneLane) => Keyless::OneLane,
            },
            retry_initial: retry_initial.min(FOR_EVER),
            retry_max: retry_max.min(FOR_EVER),
            max_attempts: self.max_attempts.unwrap_or(defaults.max_attempts),
            max_retry_time: self.max_retry_time.unwrap_or(defaults.max_retry_time).min(FOR_EVER),
            on_failure,
            max_processing: self.max_processing.min(FOR_EVER),
        })
    }
}
