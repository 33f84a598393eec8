//! `postbox inbox`.

mod dlq;
mod work;

use clap::{Args, Subcommand};
use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::{columns, say};
use crate::error::Result;
use crate::group::query;
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Subcommand)]
pub(super) enum Inbox {
    /// Hand the messages of an inbox to a command, a URL or a function of the database, until stopped; SIGTERM and SIGINT let what is under way end
    Work(Box<work::Work>),
    /// Messages that were given up
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// What inboxes hold
    Status {
        /// Only this one
        name: Option<String>,
    },
    /// How inboxes do, and why
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
        /// Which numbers, as 7 or 7-9
        #[arg(long, value_name = "NUMBERS", value_parser = numbers)]
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
            Self::Status { name } => show(info, "postbox.inbox_status($1)", &[&name]).await,
            Self::Health { name } => show(info, "postbox.inbox_health($1)", &[&name]).await,
            Self::Gaps { name } => show(info, "postbox.inbox_ordering_gaps($1)", &[&name]).await,
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

/// Prints what a function returns, whatever its columns are.
async fn show(info: &ConnInfo, function: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<()> {
    let client = connect_sql(info).await?;
    let rows =
        query(&client, &format!("SELECT row_to_json(r)::text, r.* FROM {function} r LIMIT 0"), parameters).await?;
    drop(rows);
    let heads = client.prepare(&format!("SELECT * FROM {function}")).await?;
    let heads = heads.columns().iter().map(|column| column.name().to_owned()).collect::<Vec<_>>();
    let mut cells = Vec::new();
    for row in query(&client, &format!("SELECT row_to_json(r)::text FROM {function} r"), parameters).await? {
        let row: Value = serde_json::from_str(row.try_get(0)?).unwrap_or_default();
        let cell = |head: &String| match row.get(head) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        cells.push(heads.iter().map(cell).collect());
    }
    columns(heads.iter().map(|head| head.replace('_', " ").to_uppercase()).collect(), cells)
}

/// `7` or `7-9`, as a range of PostgreSQL.
fn numbers(text: &str) -> Result<String, String> {
    let wrong = || "must be a number or two, as 7 or 7-9".to_owned();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse::<u32>().map(i64::from), last.parse::<u32>().map(i64::from));
    match (first, last) {
        (Ok(first), Ok(last)) if first <= last => Ok(format!("[{first},{last}]")),
        _ => Err(wrong()),
    }
}
