//! The command line.

mod claim;
mod dead_letter;
mod delivery;
mod group;
mod inbox;
mod inbox_target;
mod outbox;
mod serve;

use std::io::{self, Write};
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use futures_util::FutureExt;
use postbox_wire::{Claims, Compression, Lsn, Origin};

use crate::consumer::{Builder, OutputPlugin, Source};
use crate::dispatch::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CloudEvents, Format};
use crate::install;
use crate::maintain;
use crate::run::{Sink, terms};
use crate::signal;
use crate::sink::Stdout;
use crate::transport::{ConnInfo, connect_own, connect_sql, take_leave};

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
  4  group, slot or inbox missing, taken over, in use, of another plugin or database, or invalidated
  5  server not set up: wal_level, output_plugin_libraries, plugin library, REPLICATION attribute, extension, versions
  6  the sink failed, did not come back within --max-processing, or (with --slot) an event failed for good
130  stopped by a second signal, before everything was confirmed

Logs go to the standard error; RUST_LOG=debug shows more.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Deliver events to a sink until stopped; SIGTERM, SIGINT and SIGHUP deliver and confirm what is under way
    Run(Box<Run>),
    /// Deliver for several groups in one process, as a file says
    Serve(serve::Serve),
    /// Consumer groups: each has its own position in the stream, kept by a replication slot
    #[command(subcommand)]
    Group(group::Group),
    /// Events that could not be delivered to a group, and those that wait behind them
    #[command(subcommand)]
    DeadLetter(dead_letter::DeadLetter),
    /// Outboxes: see and remove what they store
    #[command(subcommand)]
    Outbox(outbox::Outbox),
    /// Claims: the data of events that are too large to carry it
    #[command(subcommand)]
    Claim(claim::Claim),
    /// Inboxes: work on their messages, see what they hold, deal with what failed
    #[command(subcommand)]
    Inbox(inbox::Inbox),
    /// Make the schema postbox without CREATE EXTENSION, where the server cannot have the extension's files
    Install {
        /// Only print what would be run
        #[arg(long)]
        dry_run: bool,
    },
    /// Maintain outboxes and groups until stopped: retention, alerts, WAL budgets, slots that were left behind
    Maintain {
        /// Run once, for cron, and print what was done
        #[arg(long)]
        once: bool,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("stream").required(true))]
struct Run {
    /// Read for this consumer group
    #[arg(long, group = "stream", value_name = "NAME")]
    group: Option<String>,
    /// Read this replication slot, made with the plugin postbox or pgoutput: every outbox of its database
    #[arg(long, group = "stream", value_name = "SLOT")]
    slot: Option<String>,
    /// The output plugin that the slot must be of [default: the one it was made with]
    #[arg(long, value_enum, value_name = "PLUGIN")]
    source: Option<SourceName>,
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
    /// Which events to take: any, or those with no origin, which were not brought by logical replication (from a slot only: a
    /// table does not tell)
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
    /// How long to wait for a slot that a connection holds which is no member of the group
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    slot_wait: Duration,
    /// After how long without contact to the server another member takes over [1s to 1h; default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = session_timeout)]
    session_timeout: Option<Duration>,
    /// How this member of the group is called in the server's views [default: machine and process]
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// If the group's slot is lost, or the server was promoted or restored: make the slot anew and deliver from the outboxes
    /// what the group had not confirmed
    #[arg(long)]
    recover: bool,
    /// Leave maintenance to others: by default it calls postbox.maintain() now and then, as every process does; one at a time gets to work
    #[arg(long)]
    no_maintenance: bool,
    /// What comes of events whose data lies in the claims of their outbox [default: stream with --sink stdout and --format
    /// native, otherwise reference]
    #[arg(long, value_enum)]
    claims: Option<ClaimsName>,
    #[command(flatten)]
    target: inbox_target::Target,
    #[command(flatten)]
    delivery: delivery::Delivery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceName {
    /// Postbox's own output plugin
    Postbox,
    /// PostgreSQL's, for servers that cannot load another
    Pgoutput,
}

impl From<SourceName> for OutputPlugin {
    fn from(name: SourceName) -> Self {
        match name {
            SourceName::Postbox => Self::Postbox,
            SourceName::Pgoutput => Self::Pgoutput,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SinkName {
    /// One JSON object per line on the standard output
    Stdout,
    /// A command for each event: see --exec
    Exec,
    /// An inbox of another database: see --inbox
    Inbox,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClaimsName {
    /// The event alone; postbox claim fetch gets the data
    Reference,
    /// The data in lines of 64 KiB at most, and then the event
    Stream,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OriginName {
    Any,
    None,
}

impl Cli {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// Any failure; [`Error::exit_code`] is the process's.
    pub async fn execute(self) -> Result<()> {
        let outcome = self.execute_command().await;
        take_leave().await;
        outcome
    }

    async fn execute_command(self) -> Result<()> {
        let info = ConnInfo::resolve(self.database.as_deref())?;
        match self.command {
            Command::Run(arguments) => stream(*arguments, self.database, &info).await,
            Command::Serve(serve) => serve.execute(self.database, &info).await,
            Command::Group(command) => command.execute(&info).await,
            Command::DeadLetter(command) => command.execute(&info).await,
            Command::Inbox(command) => command.execute(self.database, &info).await,
            Command::Claim(command) => command.execute(&info).await,
            Command::Install { dry_run: true } => say(&install::script()),
            Command::Install { dry_run: false } => {
                let outcome = install::install(&connect_sql(&info).await?).await?;
                let (database, version) = (info.dbname(), install::version());
                say(&match outcome {
                    install::Outcome::Installed => format!("Postbox {version} is in database {database}\n"),
                    install::Outcome::AlreadyThere => {
                        format!("Postbox {version} is in database {database} already: nothing to do\n")
                    }
                })
            }
            Command::Maintain { once: false } => maintain::run(&info, signal::stop()?).await,
            Command::Maintain { once: true } => {
                let steps = maintain::maintain_once(&connect_own(&info).await?).await?.into_iter().map(|step| {
                    [step.step, step.subject.unwrap_or("-".into()), step.outcome, step.detail.unwrap_or("-".into())]
                });
                table(["STEP", "SUBJECT", "OUTCOME", "DETAIL"], steps)
            }
            Command::Outbox(command) => command.execute(&info).await,
        }
    }
}

async fn stream(arguments: Run, database: Option<String>, info: &ConnInfo) -> Result<()> {
    let stop = signal::stop()?.boxed().shared();
    let limits = Limits { max_events: arguments.max_events, exit_when_idle: arguments.exit_when_idle };
    let settings = arguments.delivery.settings(arguments.sink, arguments.group.is_some())?;
    let sink = arguments.sink(info)?;
    arguments.check_group()?;
    let claims = arguments.claims()?;
    let mut builder = Builder::new(database).slot_wait(arguments.slot_wait).recover(arguments.recover);
    if let Some(timeout) = arguments.session_timeout {
        builder = builder.session_timeout(timeout);
    }
    builder.member = arguments.member;
    builder.source = arguments.group.map(Source::Group).or(arguments.slot.map(Source::Slot));
    builder.plugin = arguments.source.map(OutputPlugin::from);
    builder.until = arguments.until_lsn;
    builder.options.compression = match arguments.compression {
        CompressionName::None => Compression::None,
        CompressionName::Lz4 => Compression::Lz4,
    };
    builder.options.origin = match arguments.origin {
        OriginName::Any => Origin::Any,
        OriginName::None => Origin::None,
    };
    builder.options.claims = claims;
    // Over all terms.
    builder.maintenance = false;
    let _maintenance = (!arguments.no_maintenance).then(|| maintain::Beside::start(info.clone()));
    terms(builder, info, &sink, &settings, limits, stop).await.map(drop)
}

impl Run {
    /// What only the members of a group have. Clap would let it pass with --slot, which stands in for --group.
    fn check_group(&self) -> Result<()> {
        let given = [
            ("--session-timeout", self.session_timeout.is_some()),
            ("--member", self.member.is_some()),
            ("--recover", self.recover),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) if self.group.is_none() => {
                Err(Error::new(ErrorKind::Usage, format!("{name} needs --group"))
                    .with_hint("Leave it out, or name a group."))
            }
            _ => Ok(()),
        }
    }

    /// Lines can carry the data of claims; what takes an event at a time gets the reference.
    fn claims(&self) -> Result<Claims> {
        let streams = self.sink == SinkName::Stdout && self.format == FormatName::Native;
        match self.claims {
            None if streams => Ok(Claims::Stream),
            Some(ClaimsName::Stream) if streams => Ok(Claims::Stream),
            Some(ClaimsName::Stream) => {
                Err(Error::new(ErrorKind::Usage, "--claims stream needs --sink stdout and --format native")
                    .with_hint("Other sinks get the reference; postbox claim fetch gets the data."))
            }
            None | Some(ClaimsName::Reference) => Ok(Claims::Reference),
        }
    }

    fn sink(&self, info: &ConnInfo) -> Result<Sink> {
        if let Some(source) = self.cloudevents_source.as_deref().filter(|source| !is_uri_reference(source)) {
            let message = format!("--cloudevents-source \"{}\" is not a URI reference", source.escape_debug());
            return Err(
                Error::new(ErrorKind::Usage, message).with_hint("For instance https://shop.example/events or /shop.")
            );
        }
        let command = self.delivery.command(self.sink)?;
        if let Some(target) = self.target.read(self)? {
            return Ok(Sink::Inbox(target));
        }
        let format = match (self.format, &self.cloudevents_source) {
            (FormatName::Native, None) => Format::Native,
            (FormatName::Native, Some(_)) => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "--cloudevents-source needs --format cloudevents or --sink inbox",
                )
                .with_hint("Add the one or leave out the other."));
            }
            (FormatName::CloudEvents, source) => Format::CloudEvents(CloudEvents::new(source.clone(), info.database())),
        };
        if let Some(command) = command {
            return Ok(Sink::Exec { command, format });
        }
        Stdout::check()?;
        Ok(Sink::Stdout(format))
    }
}

fn session_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&timeout) {
        return Ok(timeout);
    }
    Err("must be from 1s to 1h".to_owned())
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
