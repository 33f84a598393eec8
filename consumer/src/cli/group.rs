//! `postbox group`: consumer groups.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::{SourceName, say, table};
use crate::consumer::OutputPlugin;
use crate::error::Result;
use crate::group::{self, NewGroup};
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Subcommand)]
pub(super) enum Group {
    /// Make a group; waits for the transactions that are writing
    Create {
        /// Name: 1 to 40 characters of a-z, 0-9 and _
        name: String,
        /// An outbox to read, as orders or public.orders; may be given several times
        #[arg(long = "outbox", required = true, value_name = "OUTBOX")]
        outboxes: Vec<String>,
        /// Where to start: at what commits from now on, or at the earliest event that is stored
        #[arg(long, value_enum, default_value_t = Start::Latest)]
        from: Start,
        /// Have the server keep the slot on its standbys too (PostgreSQL 17 and later)
        #[arg(long)]
        failover: bool,
        /// Bytes of WAL that the group may hold back, as 10GB; beyond it there is an alert
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        wal_budget: Option<i64>,
        /// Beyond the WAL budget drop the slot rather than fill the disk; the group is recovered from the outboxes then
        #[arg(long, requires = "wal_budget")]
        drop_over_budget: bool,
        /// The output plugin of its slot [default: postbox, or pgoutput where postbox install made the schema]
        #[arg(long, value_enum, value_name = "PLUGIN")]
        source: Option<SourceName>,
        /// How long to wait for transactions that are writing
        #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// List the groups and where they stand
    List,
    /// Show everything about a group: position, members, lag, what holds it up
    Describe {
        /// Name
        name: String,
    },
    /// Make the members of a group stop delivering and leave its slot
    Pause {
        /// Name
        name: String,
    },
    /// Let a paused group go on
    Resume {
        /// Name
        name: String,
    },
    /// Move a group, which must be paused or without members
    Seek {
        /// Name
        name: String,
        /// earliest, latest, a time as 2026-01-31T12:00:00Z, a position of the log as 16/B374D848, or the id of an event
        #[arg(long, value_name = "TARGET")]
        to: String,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
        /// How long to wait for transactions that are writing
        #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Give a group, which must be paused or without members, a slot of another output plugin, at its position
    SetSource {
        /// Name
        name: String,
        /// Output plugin
        #[arg(value_enum)]
        source: SourceName,
    },
    /// Make the slot of a group anew and deliver from the outboxes what the group had not confirmed
    Recover {
        /// Name
        name: String,
        /// How long to wait for transactions that are writing
        #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Drop a group and its slot; what it has not confirmed is never delivered to it
    Drop {
        /// Name
        name: String,
        /// Also if it has dead letters, which go with it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Start {
    Latest,
    Earliest,
}

impl Group {
    pub(super) async fn execute(self, info: &ConnInfo) -> Result<()> {
        let client = connect_sql(info).await?;
        match self {
            Self::Create { name, outboxes, from, failover, wal_budget, drop_over_budget, source, timeout } => {
                let new = NewGroup {
                    name: &name,
                    outboxes: &outboxes,
                    earliest: matches!(from, Start::Earliest),
                    failover,
                    wal_budget,
                    drop_over_budget,
                    timeout,
                    source: source.map(OutputPlugin::from),
                };
                let slot = group::create(&client, &new).await?;
                say(&format!("created consumer group {name} with replication slot {slot}\n"))
            }
            Self::List => {
                let rows = group::list(&client).await?.into_iter().map(|group| {
                    [
                        group.name,
                        group.outboxes.join(","),
                        group.slot_name,
                        group.active_pid.map_or("-".into(), |pid| pid.to_string()),
                        group.confirmed.map_or("-".into(), |lsn| lsn.to_string()),
                        group.lag_bytes.map_or("-".into(), |bytes| bytes.to_string()),
                        group.wal_status.unwrap_or("-".into()),
                    ]
                });
                table(["GROUP", "OUTBOXES", "SLOT", "ACTIVE PID", "CONFIRMED", "LAG BYTES", "WAL"], rows)
            }
            Self::Describe { name } => say(&group::describe(&client, &name).await?),
            Self::Pause { name } => {
                let changed = group::pause(&client, &name).await?;
                say(&format!("consumer group {name} is paused{}\n", if changed { "" } else { " already" }))
            }
            Self::Resume { name } => {
                let changed = group::resume(&client, &name).await?;
                say(&format!("consumer group {name} {}\n", if changed { "goes on" } else { "is not paused" }))
            }
            Self::Seek { name, to, dry_run, timeout } => {
                let seek = group::seek(&client, &name, &to, dry_run, timeout).await?;
                let verb = if dry_run { "would move" } else { "moves" };
                let mut text = format!("consumer group {name} {verb} {} from {}", seek.direction, seek.from);
                if let Some(to) = seek.to {
                    text.push_str(&format!(" to {to}"));
                }
                if let Some(stored) = seek.stored_events {
                    text.push_str(&format!("; {stored} stored events would be delivered"));
                }
                say(&(text + "\n"))
            }
            Self::SetSource { name, source } => {
                let source = OutputPlugin::from(source);
                let changed = group::set_source(&client, &name, source).await?;
                let source = source.name();
                say(&if changed {
                    format!("consumer group {name} has the source {source} from now on\n")
                } else {
                    format!("consumer group {name} has the source {source} already\n")
                })
            }
            Self::Recover { name, timeout } => {
                let slot = group::recover(&client, &name, timeout).await?;
                say(&format!("recovered consumer group {name} with replication slot {slot}\n"))
            }
            Self::Drop { name, force } => {
                group::drop(&client, &name, force).await?;
                say(&format!("dropped consumer group {name}\n"))
            }
        }
    }
}

/// A size in bytes, or with the units of PostgreSQL: kB, MB, GB, TB are powers of 1024.
fn bytes(text: &str) -> Result<i64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "kB" | "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        other => return Err(format!("unit \"{other}\" is not one of B, kB, MB, GB, TB")),
    };
    let number = number.parse::<i64>().map_err(|_| "not a size, as 10GB".to_owned())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(|| "must be from 1 byte to 8 EB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_the_server_writes_them() {
        for (text, size) in [("1", 1), ("10 kB", 10 << 10), ("3MB", 3 << 20), ("10GB", 10 << 30), ("2TB", 2 << 40)] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for wrong in ["", "GB", "0", "-1", "1XB", "9999999999TB", "99999999999999999999"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
