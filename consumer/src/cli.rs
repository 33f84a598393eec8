//! The command line.

use std::io::{self, Write};
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use postbox_wire::{Compression, Lsn, Origin};

use crate::consumer::{Builder, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CloudEvents, Format};
use crate::run::{Limits, run};
use crate::sink::Stdout;
use crate::transport::{ConnInfo, connect_sql};
use crate::{group, maintain, signal};

/// Delivers the events of PostgreSQL outboxes, in commit order, at least once.
#[derive(Debug, Parser)]
#[command(name = "postbox", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Server and database: a URI or a key=value string, as psql takes them [default: $DATABASE_URL, then PGHOST and so on]
    #[arg(short, long, global = true, value_name = "CONNINFO")]
    database: Option<String>,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  unexpected error
  2  wrong usage
  3  cannot connect or log in
  4  group or slot missing, in use, of another plugin or database, or invalidated
  5  server not set up: wal_level, output_plugin_libraries, plugin library, REPLICATION attribute, extension, versions
  6  the sink failed
130  stopped by a second signal, before everything was confirmed

Logs go to the standard error; RUST_LOG=debug shows more.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Deliver events to a sink until stopped; SIGTERM and SIGINT deliver and confirm what is under way
    Run(Run),
    /// Consumer groups: each has its own position in the stream, kept by a replication slot
    #[command(subcommand)]
    Group(Group),
    /// Outboxes
    #[command(subcommand)]
    Outbox(Outbox),
    /// Maintain outboxes and groups until stopped: retention, alerts, WAL budgets, slots that were left behind
    Maintain {
        /// Run once, for cron, and print what was done
        #[arg(long)]
        once: bool,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true))]
struct Run {
    /// Read for this consumer group
    #[arg(long, group = "source", value_name = "NAME")]
    group: Option<String>,
    /// Read this replication slot, made with the plugin postbox: every outbox of its database
    #[arg(long, group = "source", value_name = "SLOT")]
    slot: Option<String>,
    /// Where events go
    #[arg(long, value_enum, default_value_t = SinkName::Stdout)]
    sink: SinkName,
    /// How an event is written
    #[arg(long, value_enum, default_value_t = FormatName::Native)]
    format: FormatName,
    /// With --format cloudevents: what the attribute source begins with, before /schema/table [default: /postbox/DATABASE]
    #[arg(long, value_name = "URI")]
    cloudevents_source: Option<String>,
    /// Have the server compress what it sends: fewer bytes on the network, at some of its CPU
    #[arg(long, value_enum, default_value_t = CompressionName::None)]
    compression: CompressionName,
    /// Which events to take: any, or those with no origin, which were not brought by logical replication
    #[arg(long, value_enum, default_value_t = OriginName::Any)]
    origin: OriginName,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    max_events: Option<u64>,
    /// Stop after the transactions that committed below this position of the log, as 16/B374D848
    #[arg(long, value_name = "LSN")]
    until_lsn: Option<Lsn>,
    /// Stop when no event has come for so long (as 500ms, 10s, 2min) and nothing is left to deliver
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    exit_when_idle: Option<Duration>,
    /// How long to wait at the start for a slot that another connection holds
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    slot_wait: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SinkName {
    /// One JSON object per line on the standard output
    Stdout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    /// Postbox's own: outbox, event_id, type, key, headers, payload, commit_lsn, ordinal, commit_time, xid
    Native,
    /// CloudEvents 1.0 in JSON
    #[value(name = "cloudevents")]
    CloudEvents,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CompressionName {
    None,
    Lz4,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OriginName {
    Any,
    None,
}

#[derive(Debug, Subcommand)]
enum Group {
    /// Make a group that reads from now on; waits for the transactions that are writing
    Create {
        /// Name: 1 to 40 characters of a-z, 0-9 and _
        name: String,
        /// An outbox to read, as orders or public.orders; may be given several times
        #[arg(long = "outbox", required = true, value_name = "OUTBOX")]
        outboxes: Vec<String>,
    },
    /// List the groups and where they stand
    List,
    /// Drop a group and its slot; what it has not confirmed is never delivered to it
    Drop {
        /// Name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum Outbox {
    /// List the outboxes
    List,
}

impl Cli {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// Any failure; [`Error::exit_code`] is the process's.
    pub async fn execute(self) -> Result<()> {
        let info = ConnInfo::resolve(self.database.as_deref())?;
        match self.command {
            Command::Run(arguments) => stream(arguments, self.database, &info).await,
            Command::Group(Group::Create { name, outboxes }) => {
                let slot = group::create(&connect_sql(&info).await?, &name, &outboxes).await?;
                say(&format!("created consumer group {name} with replication slot {slot}\n"))
            }
            Command::Group(Group::Drop { name }) => {
                group::drop(&connect_sql(&info).await?, &name).await?;
                say(&format!("dropped consumer group {name}\n"))
            }
            Command::Group(Group::List) => {
                let rows = group::list(&connect_sql(&info).await?).await?.into_iter().map(|group| {
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
            Command::Maintain { once: false } => maintain::run(&info, signal::stop()?).await,
            Command::Maintain { once: true } => {
                let steps = maintain::maintain_once(&connect_sql(&info).await?).await?.into_iter().map(|step| {
                    [step.step, step.subject.unwrap_or("-".into()), step.outcome, step.detail.unwrap_or("-".into())]
                });
                table(["STEP", "SUBJECT", "OUTCOME", "DETAIL"], steps)
            }
            Command::Outbox(Outbox::List) => {
                let rows = group::outboxes(&connect_sql(&info).await?).await?.into_iter().map(|outbox| {
                    [
                        format!("{}.{}", outbox.schema, outbox.name),
                        outbox.payload_type.unwrap_or("-".into()),
                        outbox.rows_estimate.map_or("-".into(), |rows| rows.to_string()),
                        outbox.bytes.map_or("-".into(), |bytes| bytes.to_string()),
                        if outbox.groups.is_empty() { "-".into() } else { outbox.groups.join(",") },
                    ]
                });
                table(["OUTBOX", "PAYLOAD", "ROWS (ESTIMATE)", "BYTES", "GROUPS"], rows)
            }
        }
    }
}

async fn stream(arguments: Run, database: Option<String>, info: &ConnInfo) -> Result<()> {
    let mut stop = std::pin::pin!(signal::stop()?);
    let format = arguments.format(info)?;
    let limits = Limits { max_events: arguments.max_events, exit_when_idle: arguments.exit_when_idle };
    let mut builder = Builder::new(database).slot_wait(arguments.slot_wait);
    builder.source = arguments.group.map(Source::Group).or(arguments.slot.map(Source::Slot));
    builder.until = arguments.until_lsn;
    builder.options.compression = match arguments.compression {
        CompressionName::None => Compression::None,
        CompressionName::Lz4 => Compression::Lz4,
    };
    builder.options.origin = match arguments.origin {
        OriginName::Any => Origin::Any,
        OriginName::None => Origin::None,
    };
    let consumer = tokio::select! {
        consumer = builder.connect() => consumer?,
        // It may wait for the slot for long.
        () = &mut stop => return Ok(()),
    };
    match arguments.sink {
        SinkName::Stdout => run(consumer, &mut Stdout::new(format), limits, info, stop).await,
    }
    .map(|_| ())
}

impl Run {
    fn format(&self, info: &ConnInfo) -> Result<Format> {
        match (self.format, &self.cloudevents_source) {
            (FormatName::Native, None) => Ok(Format::Native),
            (FormatName::Native, Some(_)) => {
                Err(Error::new(ErrorKind::Usage, "--cloudevents-source needs --format cloudevents")
                    .with_hint("Add the one or leave out the other."))
            }
            (FormatName::CloudEvents, Some(source)) if !is_uri_reference(source) => {
                let message = format!("--cloudevents-source \"{}\" is not a URI reference", source.escape_debug());
                Err(Error::new(ErrorKind::Usage, message)
                    .with_hint("For instance https://shop.example/events or /shop."))
            }
            (FormatName::CloudEvents, source) => {
                Ok(Format::CloudEvents(CloudEvents::new(source.clone(), info.database())))
            }
        }
    }
}

/// True if there is nothing but what RFC 3986 lets stand in a URI, and something.
fn is_uri_reference(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Error::new(ErrorKind::Other, format!("cannot write to the standard output: {error}")))
}

/// Prints columns, each as wide as its widest cell.
fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Result<()> {
    let rows = std::iter::once(heads.map(str::to_owned)).chain(rows).collect::<Vec<_>>();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    say(&text)
}
