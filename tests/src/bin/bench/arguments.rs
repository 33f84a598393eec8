//! What the benchmark is asked for.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Shown by `--help` and after a wrong argument.
pub(crate) const HELP: &str = "\
Usage: bench [--only PART,PART,…] [--rounds N] [--scale X] [--pg MAJOR]

  --only    parts to measure: small, bulk, none, latency, drain, publish, capture, memory, types, frames, slots, retention, groups, inbox,
            inbox-claims, inbox-held, inbox-ordered, inbox-views, inbox-tiers, claims (default: all)
  --rounds  rounds of which the median counts (default: 5)
  --scale   multiplies the amount of work of each round (default: 1)
  --pg      major version of the server in target/pg (default: 18)
";

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Decoding of transactions with one event.
    Small,
    /// Decoding of transactions with a thousand events.
    Bulk,
    /// Decoding of transactions without events.
    None,
    /// From commit to standard output.
    Latency,
    /// A backlog, through the consumer.
    Drain,
    /// What publishing adds to a transaction.
    Publish,
    /// What table capture adds to a statement.
    Capture,
    /// The consumer's memory in a large transaction.
    Memory,
    /// Decoding by the type of the payload.
    Types,
    /// Decoding by the number of events a transaction.
    Frames,
    /// What slots cost the application.
    Slots,
    /// A long run in which old events go.
    Retention,
    /// Takeover, recovery, views.
    Groups,
    /// Receiving, claiming and completing.
    Inbox,
    /// What a claim costs when much waits or was processed.
    InboxClaims,
    /// Inboxes while a transaction is held open.
    InboxHeld,
    /// An ordered inbox.
    InboxOrdered,
    /// Looking at inboxes of millions of messages.
    InboxViews,
    /// A critical tier beside a flooded one.
    InboxTiers,
    /// One event of many rows.
    Claims,
}

impl Part {
    const ALL: [Self; 20] = [
        Self::Small,
        Self::Bulk,
        Self::None,
        Self::Latency,
        Self::Drain,
        Self::Publish,
        Self::Capture,
        Self::Memory,
        Self::Types,
        Self::Frames,
        Self::Slots,
        Self::Retention,
        Self::Groups,
        Self::Inbox,
        Self::InboxClaims,
        Self::InboxHeld,
        Self::InboxOrdered,
        Self::InboxViews,
        Self::InboxTiers,
        Self::Claims,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "small",
            Self::Bulk => "bulk",
            Self::None => "none",
            Self::Latency => "latency",
            Self::Drain => "drain",
            Self::Publish => "publish",
            Self::Capture => "capture",
            Self::Memory => "memory",
            Self::Types => "types",
            Self::Frames => "frames",
            Self::Slots => "slots",
            Self::Retention => "retention",
            Self::Groups => "groups",
            Self::Inbox => "inbox",
            Self::InboxClaims => "inbox-claims",
            Self::InboxHeld => "inbox-held",
            Self::InboxOrdered => "inbox-ordered",
            Self::InboxViews => "inbox-views",
            Self::InboxTiers => "inbox-tiers",
            Self::Claims => "claims",
        })
    }
}

/// The arguments of the command line.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// In the order in which they are measured.
    pub(crate) parts: Vec<Part>,
    /// How often each variant runs.
    pub(crate) rounds: usize,
    scale: f64,
    major: Option<u32>,
}

impl Arguments {
    /// Reads the arguments; `None` when help was asked for.
    pub(crate) fn parse(mut given: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut arguments = Self { parts: Part::ALL.to_vec(), rounds: 5, scale: 1.0, major: None };
        while let Some(name) = given.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(None);
            }
            let mut value = || given.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--only" => arguments.parts = parts(&value()?)?,
                "--rounds" => arguments.rounds = number(&name, &value()?, |&rounds| rounds > 0)?,
                "--scale" => arguments.scale = number(&name, &value()?, |&scale| scale > 0.0)?,
                "--pg" => arguments.major = Some(number(&name, &value()?, |_| true)?),
                _ => return Err(format!("there is no argument {name}")),
            }
        }
        Ok(Some(arguments))
    }

    /// An amount of work, multiplied by the scale that was asked for.
    pub(crate) fn scaled(&self, amount: u64) -> u64 {
        ((amount as f64 * self.scale) as u64).max(1)
    }

    /// Replaces this process by one whose environment names the major version, when another one was asked for: the
    /// harness reads it from there. Returns only if that is not needed or fails.
    pub(crate) fn run_again_for_major(&self) -> Option<io::Error> {
        let major = self.major.filter(|&major| major != postbox_tests::major())?;
        let again = std::env::current_exe();
        Some(match again {
            Ok(path) => {
                Command::new(path).args(std::env::args_os().skip(1)).env("POSTBOX_PG", major.to_string()).exec()
            }
            Err(error) => error,
        })
    }
}

fn parts(list: &str) -> Result<Vec<Part>, String> {
    let part = |name: &str| {
        Part::ALL.into_iter().find(|part| part.to_string() == name).ok_or_else(|| format!("there is no part {name:?}"))
    };
    list.split(',').map(part).collect()
}

fn number<T: std::str::FromStr>(name: &str, value: &str, valid: impl Fn(&T) -> bool) -> Result<T, String> {
    value.parse().ok().filter(valid).ok_or_else(|| format!("{name} cannot be {value:?}"))
}
