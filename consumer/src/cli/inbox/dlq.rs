//! `postbox inbox dlq`.

use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::cli::{say, table};
use crate::error::{Error, ErrorKind, Result};
use crate::group::query;
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Dlq {
    /// List the dead letters of an inbox, oldest first, and what waits behind them (policy park)
    List {
        /// The inbox
        name: String,
        /// Only these
        event_ids: Vec<String>,
        #[command(flatten)]
        filter: Filter,
        /// Most to show
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
    },
    /// Print dead letters with their messages, one line of JSON each
    Show {
        /// The inbox
        name: String,
        /// Which
        #[arg(required = true)]
        event_ids: Vec<String>,
    },
    /// Hand messages out again, with all their attempts before them
    Replay {
        #[command(flatten)]
        choice: Choice,
        /// At most so many in a second
        #[arg(long, value_name = "N")]
        rate: Option<f64>,
    },
    /// Remove dead letters; their messages are never handed out again
    Discard(Choice),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Choice {
    /// The inbox
    name: String,
    /// Only these
    event_ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All of the inbox
    #[arg(long)]
    all: bool,
    /// Say how many, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Filter {
    /// Messages of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Messages whose error contains this text, in any case
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Messages given up longer ago than this, as 2h or 7d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
}

impl Dlq {
    pub(in crate::cli) async fn execute(self, info: &ConnInfo) -> Result<()> {
        match self {
            Self::List { name, event_ids, filter, limit } => list(info, &name, event_ids, filter, limit).await,
            Self::Show { name, event_ids } => show(info, &name, event_ids).await,
            Self::Replay { choice, rate } => {
                let sql = "SELECT postbox.replay_inbox_dead_letters($1, $2, $3, $4, $5::text::interval, $6, $7, $8)";
                choice.apply(info, sql, &[&rate], "replayed").await
            }
            Self::Discard(choice) => {
                let sql = "SELECT postbox.discard_inbox_dead_letters($1, $2, $3, $4, $5::text::interval, $6, $7)";
                choice.apply(info, sql, &[], "discarded").await
            }
        }
    }
}

impl Choice {
    async fn apply(self, info: &ConnInfo, sql: &str, more: &[&(dyn ToSql + Sync)], done: &str) -> Result<()> {
        let Self { name, event_ids, filter, all, dry_run } = self;
        let given = filter.event_type.is_some() || filter.error.is_some() || filter.older_than.is_some();
        if all && (!event_ids.is_empty() || given) {
            return Err(Error::new(ErrorKind::Usage, "--all together with ids or a filter")
                .with_hint("Leave out the one or the other."));
        }
        if !all && event_ids.is_empty() && !given {
            return Err(Error::new(ErrorKind::Usage, "neither ids nor a filter say which dead letters are meant")
                .with_hint("--all means all of the inbox; --dry-run says how many these are."));
        }
        let event_ids = Some(event_ids).filter(|ids| !ids.is_empty());
        let older_than = filter.older_than();
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&name, &event_ids, &filter.event_type, &filter.error, &older_than, &all, &dry_run];
        let rows = query(&connect_sql(info).await?, sql, &[&parameters, more].concat()).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        let letters = if count == 1 { "dead letter" } else { "dead letters" };
        let would = if dry_run { "would be " } else { "" };
        say(&format!("{count} {letters} of {name} {would}{done}\n"))
    }
}

impl Filter {
    /// As an interval of PostgreSQL.
    fn older_than(&self) -> Option<String> {
        self.older_than.map(|time| format!("{} seconds", time.as_secs_f64()))
    }
}

/// The view of an inbox that shows its dead letters, and what waits behind them.
struct View {
    inbox: i32,
    /// Quoted, with its schema.
    name: String,
    is_readable: bool,
}

impl View {
    async fn of(client: &Client, inbox: &str) -> Result<Self> {
        let sql = "SELECT i.id, pg_catalog.format('%I.%I', n.nspname, v.relname), \
                   pg_catalog.has_schema_privilege(n.oid, 'usage') AND pg_catalog.has_table_privilege(v.oid, 'select') \
                   FROM postbox._inbox($1) i JOIN pg_catalog.pg_class c ON c.oid = i.relation::oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   JOIN pg_catalog.pg_class v ON v.relnamespace = n.oid AND v.relname = 'dlq_' || i.name";
        let rows = query(client, sql, &[&inbox]).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Usage, format!("the view dlq_{inbox} is gone")))?;
        Ok(Self { inbox: row.try_get(0)?, name: row.try_get(1)?, is_readable: row.try_get(2)? })
    }
}

async fn list(info: &ConnInfo, name: &str, event_ids: Vec<String>, filter: Filter, limit: i64) -> Result<()> {
    let client = connect_sql(info).await?;
    let view = View::of(&client, name).await?;
    // The view needs the right to read the messages: without it, there are the letters, and not what waits behind them.
    let from = if view.is_readable {
        view.name.clone()
    } else {
        format!("(SELECT * FROM postbox.inbox_dead WHERE inbox = {})", view.inbox)
    };
    let sql = format!(
        "SELECT d.event_id, d.why, coalesce(d.event_type, '-'), coalesce(d.aggregate_id, '-'), d.attempts::text, \
         coalesce(pg_catalog.to_char(d.first_failed_at, 'YYYY-MM-DD HH24:MI:SS'), '-'), coalesce(pg_catalog.to_char(d.died_at, 'YYYY-MM-DD HH24:MI:SS'), '-'), \
         coalesce(d.error, '-') FROM {from} d \
         WHERE ($1::text[] IS NULL OR d.event_id = ANY ($1)) AND ($2::text IS NULL OR d.event_type = $2) \
         AND ($3::text IS NULL OR pg_catalog.strpos(pg_catalog.lower(d.error), pg_catalog.lower($3)) > 0) \
         AND ($4::text IS NULL OR d.died_at < pg_catalog.now() - $4::interval) \
         ORDER BY d.died_at NULLS LAST, d.aggregate_id, d.sequence_num, d.event_id LIMIT $5"
    );
    let event_ids = Some(event_ids).filter(|ids| !ids.is_empty());
    let older_than = filter.older_than();
    // One more tells whether there are more.
    let parameters: [&(dyn ToSql + Sync); 5] =
        [&event_ids, &filter.event_type, &filter.error, &older_than, &limit.saturating_add(1)];
    let rows = query(&client, &sql, &parameters).await?;
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut cells = Vec::new();
    for row in rows.iter().take(most) {
        let text = |index| row.try_get::<_, String>(index);
        // An error may have several lines.
        let error = text(7)?.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(80).collect();
        cells.push([text(0)?, text(1)?, text(2)?, text(3)?, text(4)?, text(5)?, text(6)?, error]);
    }
    table(["EVENT", "WHY", "TYPE", "AGGREGATE", "ATTEMPTS", "FIRST FAILED", "GIVEN UP", "ERROR"], cells.into_iter())?;
    if rows.len() > most {
        eprintln!("There are more than {limit}: --limit shows more.");
    }
    if !view.is_readable {
        eprintln!("What waits behind them is shown to those who have SELECT on {}.", view.name);
    }
    Ok(())
}

async fn show(info: &ConnInfo, name: &str, event_ids: Vec<String>) -> Result<()> {
    let client = connect_sql(info).await?;
    let sql = format!(
        "SELECT pg_catalog.to_json(d)::text FROM {} d WHERE d.event_id = $1",
        View::of(&client, name).await?.name
    );
    for id in event_ids {
        let rows = query(&client, &sql, &[&id]).await?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Usage, format!("inbox \"{name}\" has no dead letter \"{id}\""))
                .with_hint(format!("postbox inbox dlq list {name} shows them.")));
        };
        say(&format!("{}\n", row.try_get::<_, &str>(0)?))?;
    }
    Ok(())
}
