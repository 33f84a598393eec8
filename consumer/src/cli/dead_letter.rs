//! `postbox dead-letter`.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::{say, table};
use crate::decode;
use crate::error::{Error, ErrorKind, Result};
use crate::group::query;
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetter {
    /// List the dead letters of a group, oldest first
    List {
        /// The group
        group: String,
        /// Only these
        ids: Vec<i64>,
        #[command(flatten)]
        filter: Filter,
        /// Most to show
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
    },
    /// Print the events of dead letters, one line of JSON each
    Show {
        /// The group
        group: String,
        /// Which
        #[arg(required = true)]
        ids: Vec<i64>,
    },
    /// Have the group's member try dead letters again, each once
    Redrive(Choice),
    /// Remove dead letters; they are never delivered to the group
    Discard(Choice),
}

#[derive(Debug, Args)]
pub(super) struct Choice {
    /// The group
    group: String,
    /// Only these
    ids: Vec<i64>,
    #[command(flatten)]
    filter: Filter,
    /// All of the group
    #[arg(long)]
    all: bool,
    /// Say how many, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Events of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Events of this key
    #[arg(long)]
    key: Option<String>,
    /// Events whose error contains this text, in any case
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Events stored longer ago than this, as 2h or 7d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
}

impl DeadLetter {
    pub(super) async fn execute(self, info: &ConnInfo) -> Result<()> {
        match self {
            Self::List { group, ids, filter, limit } => list(info, &group, ids, filter, limit).await,
            Self::Show { group, ids } => show(info, &group, ids).await,
            Self::Redrive(choice) => {
                choice
                    .apply(
                        info,
                        "SELECT postbox.redrive_dead_letters($1, $2, $3, $4, $5, $6::text::interval, $7, $8)",
                        "redriven",
                    )
                    .await
            }
            Self::Discard(choice) => {
                choice
                    .apply(
                        info,
                        "SELECT postbox.discard_dead_letters($1, $2, $3, $4, $5, $6::text::interval, $7, $8)",
                        "discarded",
                    )
                    .await
            }
        }
    }
}

impl Choice {
    async fn apply(self, info: &ConnInfo, sql: &str, done: &str) -> Result<()> {
        let Self { group, ids, filter, all, dry_run } = self;
        if all && (!ids.is_empty() || filter.is_given()) {
            return Err(Error::new(ErrorKind::Usage, "--all together with ids or a filter")
                .with_hint("Leave out the one or the other."));
        }
        if !all && ids.is_empty() && !filter.is_given() {
            return Err(Error::new(ErrorKind::Usage, "neither ids nor a filter say which dead letters are meant")
                .with_hint("--all means all of the group; --dry-run says how many these are."));
        }
        let ids = Some(ids).filter(|ids| !ids.is_empty());
        let older_than = filter.older_than();
        let parameters: [&(dyn ToSql + Sync); 8] =
            [&group, &ids, &filter.event_type, &filter.key, &filter.error, &older_than, &all, &dry_run];
        let rows = query(&connect_sql(info).await?, sql, &parameters).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        let letters = if count == 1 { "dead letter" } else { "dead letters" };
        say(&match dry_run {
            true => format!("{count} {letters} of {group} would be {done}\n"),
            false => format!("{count} {letters} of {group} {done}\n"),
        })
    }
}

impl Filter {
    fn is_given(&self) -> bool {
        self.event_type.is_some() || self.key.is_some() || self.error.is_some() || self.older_than.is_some()
    }

    /// As an interval of PostgreSQL.
    fn older_than(&self) -> Option<String> {
        self.older_than.map(|time| format!("{} seconds", time.as_secs_f64()))
    }
}

/// Connects, and finds the group.
async fn connect(info: &ConnInfo, group: &str) -> Result<Client> {
    let client = connect_sql(info).await?;
    let known = query(&client, "SELECT FROM postbox.consumer_group WHERE name = $1", &[&group]).await?;
    if known.is_empty() {
        return Err(Error::new(ErrorKind::GroupMissing, format!("consumer group \"{group}\" does not exist"))
            .with_hint("postbox group list shows the groups."));
    }
    Ok(client)
}

async fn list(info: &ConnInfo, group: &str, ids: Vec<i64>, filter: Filter, limit: i64) -> Result<()> {
    let client = connect(info, group).await?;
    let sql = "SELECT id, why, outbox, coalesce(event_id, '-'), coalesce(type, '-'), coalesce(key, '-'), attempts, \
               pg_catalog.to_char(stored_at, 'YYYY-MM-DD HH24:MI:SS'), \
               CASE WHEN due_at <= pg_catalog.now() THEN 'now' ELSE coalesce(pg_catalog.to_char(due_at, 'YYYY-MM-DD HH24:MI:SS'), '-') END, \
               coalesce(error, '-') FROM postbox.dead_letters \
               WHERE group_name = $1 AND ($2::bigint[] IS NULL OR id = ANY ($2)) AND ($3::text IS NULL OR type = $3) \
               AND ($4::text IS NULL OR key = $4) AND ($5::text IS NULL OR pg_catalog.strpos(pg_catalog.lower(error), pg_catalog.lower($5)) > 0) \
               AND ($6::text IS NULL OR stored_at < pg_catalog.now() - $6::interval) ORDER BY id LIMIT $7";
    let ids = Some(ids).filter(|ids| !ids.is_empty());
    let older_than = filter.older_than();
    // One more tells whether there are more.
    let parameters: [&(dyn ToSql + Sync); 7] =
        [&group, &ids, &filter.event_type, &filter.key, &filter.error, &older_than, &limit.saturating_add(1)];
    let rows = query(&client, sql, &parameters).await?;
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut cells = Vec::new();
    for row in rows.iter().take(most) {
        let text = |index| row.try_get::<_, String>(index);
        let (id, attempts): (i64, i32) = (row.try_get(0)?, row.try_get(6)?);
        // An error may have several lines.
        let error = text(9)?.split_whitespace().collect::<Vec<_>>().join(" ");
        let error = error.chars().take(80).collect();
        cells.push([
            id.to_string(),
            text(1)?,
            text(2)?,
            text(3)?,
            text(4)?,
            text(5)?,
            attempts.to_string(),
            text(7)?,
            text(8)?,
            error,
        ]);
    }
    table(["ID", "WHY", "OUTBOX", "EVENT", "TYPE", "KEY", "ATTEMPTS", "STORED", "DUE", "ERROR"], cells.into_iter())?;
    if rows.len() > most {
        eprintln!("There are more than {limit}: --limit shows more.");
    }
    Ok(())
}

async fn show(info: &ConnInfo, group: &str, ids: Vec<i64>) -> Result<()> {
    let client = connect(info, group).await?;
    let sql = "SELECT frame FROM postbox.dead_letter WHERE group_name = $1 AND id = $2";
    for id in ids {
        let rows = query(&client, sql, &[&group, &id]).await?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Usage, format!("consumer group \"{group}\" has no dead letter {id}"))
                .with_hint(format!("postbox dead-letter list {group} shows them.")));
        };
        let event = decode::stored(&Bytes::copy_from_slice(row.try_get(0)?))?;
        let mut line = Vec::new();
        event.write_json(&mut line);
        line.push(b'\n');
        say(&String::from_utf8_lossy(&line))?;
    }
    Ok(())
}
