//! `postbox inbox`.

mod dlq;
mod work;

use clap::{Args, Subcommand};

use super::{say, table};
use crate::error::Result;
use crate::group::query;
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Subcommand)]
pub(super) enum Inbox {
    /// Hand the messages of an inbox to a command, a URL or a function of the database, until stopped; SIGTERM, SIGINT and SIGHUP let what is under way end
    Work(Box<work::Work>),
    /// Messages that were given up
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// What inboxes hold; ~: as of that moment, -: nobody has counted it yet
    Status {
        /// Everything about this one
        name: Option<String>,
    },
    /// How inboxes do, and why; ~: as of that moment, -: nobody has counted it yet
    Health {
        /// Only this one
        name: Option<String>,
    },
    /// Hand out nothing more; what is handed out may be completed
    Pause(Part),
    /// Hand out messages again
    Resume(Part),
    /// Sequence numbers that are missing, with their age
    Gaps {
        /// Only those of this inbox
        name: Option<String>,
    },
    /// Give up missing sequence numbers of an aggregate, so that it goes on behind them
    SkipGap {
        /// The inbox
        name: String,
        /// The aggregate
        #[arg(long, value_name = "ID")]
        aggregate: String,
        /// Which numbers, both ends included: 7, 7-9 or 7..9; negative ones as -9..-7
        #[arg(long, value_name = "NUMBERS", value_parser = numbers, allow_hyphen_values = true)]
        range: String,
        /// Why, for those who ask later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Part {
    /// The inbox
    name: String,
    /// Only this tier
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,
}

impl Part {
    fn words(&self) -> String {
        match &self.tier {
            Some(tier) => format!("tier {tier} of inbox {}", self.name),
            None => format!("inbox {}", self.name),
        }
    }
}

impl Inbox {
    pub(super) async fn execute(self, database: Option<String>, info: &ConnInfo) -> Result<()> {
        match self {
            Self::Work(work) => work.execute(database, info).await,
            Self::Dlq(command) => command.execute(info).await,
            Self::Status { name: Some(name) } => describe(info, &name).await,
            Self::Status { name: None } => {
                let columns = [
                    "inbox_name",
                    "pending",
                    "leased",
                    "delayed",
                    "dead",
                    "processed",
                    "duplicates",
                    "as_of",
                    "paused_at",
                ];
                show(info, columns, "postbox.inbox_status($1)", &None).await
            }
            Self::Health { name } => {
                let columns = [
                    "inbox_name",
                    "status",
                    "reasons",
                    "pending",
                    "dead",
                    "oldest_claimable_age",
                    "messages_per_second",
                    "duplicate_rate",
                    "as_of",
                ];
                show(info, columns, "postbox.inbox_health($1)", &name).await
            }
            Self::Gaps { name } => {
                let columns = ["inbox_name", "aggregate_id", "missing", "since", "age"];
                show(info, columns, "postbox.inbox_ordering_gaps($1)", &name).await
            }
            Self::Pause(part) => {
                query(&connect_sql(info).await?, "SELECT postbox.pause_inbox($1, $2)", &[&part.name, &part.tier])
                    .await?;
                say(&format!("{} is paused\n", part.words()))
            }
            Self::Resume(part) => {
                query(&connect_sql(info).await?, "SELECT postbox.resume_inbox($1, $2)", &[&part.name, &part.tier])
                    .await?;
                say(&format!("{} goes on\n", part.words()))
            }
            Self::SkipGap { name, aggregate, range, reason } => {
                let sql = "SELECT postbox.inbox_gap_skip($1, $2, $3::text::int8range, $4)";
                query(&connect_sql(info).await?, sql, &[&name, &aggregate, &range, &reason]).await?;
                say(&format!("aggregate {aggregate} of inbox {name} does not wait for {range} any more\n"))
            }
        }
    }
}

/// What may be too much to count at every look.
const COUNTS: [&str; 9] =
    ["pending", "leased", "delayed", "dead", "processed", "failed_attempts", "duplicates", "conflicts", "discarded"];

/// SQL for a count as it is shown. What was not counted yet is 0, and not the answer.
fn count(value: &str) -> String {
    format!(
        "CASE WHEN s.is_exact THEN {value}::text WHEN s.as_of IS NOT NULL OR {value}::text <> '0' THEN '~' || {value}::text ELSE '-' END"
    )
}

/// SQL for a column as it is shown.
fn shown(column: &str) -> String {
    match column {
        "as_of" => {
            "CASE WHEN s.is_exact THEN 'now' ELSE coalesce(pg_catalog.to_char(s.as_of, 'YYYY-MM-DD HH24:MI:SS'), '-') END".into()
        }
        _ if COUNTS.contains(&column) => count(&format!("s.{column}")),
        _ => format!("coalesce(s.{column}::text, '-')"),
    }
}

/// Prints these columns of what a function says of an inbox, or of all.
async fn show<const N: usize>(
    info: &ConnInfo,
    columns: [&str; N],
    function: &str,
    name: &Option<String>,
) -> Result<()> {
    let list = columns.map(shown).join(", ");
    let rows = query(&connect_sql(info).await?, &format!("SELECT {list} FROM {function} s"), &[name]).await?;
    let mut cells = Vec::new();
    for row in &rows {
        let mut line = [const { String::new() }; N];
        for (index, cell) in line.iter_mut().enumerate() {
            *cell = row.try_get(index)?;
        }
        cells.push(line);
    }
    let heads = columns.map(|column| column.replace('_', " ").to_uppercase());
    table(std::array::from_fn(|column| heads[column].as_str()), cells.into_iter())
}

/// Prints everything about one inbox.
async fn describe(info: &ConnInfo, name: &str) -> Result<()> {
    let sql = format!(
        "SELECT v.key, CASE WHEN v.key = ANY ($2) THEN {} ELSE coalesce(v.value, '-') END \
         FROM postbox.inbox_status($1) s CROSS JOIN LATERAL pg_catalog.json_each_text(pg_catalog.row_to_json(s)) v",
        count("v.value")
    );
    let rows = query(&connect_sql(info).await?, &sql, &[&name, &COUNTS.as_slice()]).await?;
    let pairs = rows.iter().map(|row| Ok([row.try_get(0)?, row.try_get(1)?])).collect::<Result<Vec<_>>>()?;
    table(["SETTING OR COUNT", "VALUE"], pairs.into_iter())
}

/// `7`, `7-9` or `-9..-7`, as a range of PostgreSQL.
fn numbers(text: &str) -> Result<String, String> {
    // What inboxes with an order take.
    const ABOVE: i64 = 9_223_372_036_854_775_000;
    let parse = |text: &str| text.parse::<i64>().ok();
    // A dash before a number is its sign, so that between two of them it says nothing about negative ones.
    let pair = match text.split_once("..") {
        Some((first, last)) => parse(first).zip(parse(last)),
        None => parse(text).map(|number| (number, number)).or_else(|| {
            let (first, last) = text.split_once('-')?;
            parse(first).zip(parse(last))
        }),
    };
    match pair {
        Some((first, last)) if first <= last && last < ABOVE => Ok(format!("[{first},{last}]")),
        Some((first, last)) if first <= last => Err(format!("sequence numbers are below {ABOVE}")),
        _ => Err("must be a number or two, as 7, 7-9 or -9..-7, the smaller one first".to_owned()),
    }
}
