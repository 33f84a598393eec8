//! `postbox outbox`.

use clap::Subcommand;

use super::{say, table};
use crate::error::Result;
use crate::group;
use crate::transport::{ConnInfo, connect_sql};

#[derive(Debug, Subcommand)]
pub(super) enum Outbox {
    /// List the outboxes
    List,
    /// Show stored events, the oldest first, and take none
    Peek {
        /// Outbox, as orders or public.orders
        outbox: String,
        /// Only what this group has not confirmed as of its last checkpoint
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
        /// Most to show
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        limit: i32,
    },
    /// Remove stored events now that every group is past, whatever the retention
    Purge {
        /// Outbox, as orders or public.orders
        outbox: String,
        /// Remove all of them, whoever needs them: earliest, seek and recover cannot go back behind this
        #[arg(long)]
        force: bool,
    },
}

impl Outbox {
    pub(super) async fn execute(self, info: &ConnInfo) -> Result<()> {
        let client = connect_sql(info).await?;
        match self {
            Self::List => {
                let rows = group::outboxes(&client).await?.into_iter().map(|outbox| {
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
            Self::Peek { outbox, group, limit } => {
                let sql = "SELECT seq::text, event_id, created_at::text, coalesce(key, '-'), type, coalesce(payload, 'claim ' || claim::text, '-') \
                           FROM postbox.peek_outbox($1, $2, $3)";
                let rows = group::query(&client, sql, &[&outbox, &limit, &group]).await?;
                let rows = rows.iter().map(texts).collect::<Result<Vec<[String; 6]>>>()?;
                table(["SEQ", "EVENT ID", "CREATED AT", "KEY", "TYPE", "PAYLOAD"], rows.into_iter())
            }
            Self::Purge { outbox, force } => {
                let sql = "SELECT leaf, outcome, coalesce(rows::text, '-'), coalesce(detail, '-') FROM postbox.purge_outbox($1, $2)";
                let rows = group::query(&client, sql, &[&outbox, &force]).await?;
                if rows.is_empty() {
                    return say(&format!("outbox {outbox} stores nothing\n"));
                }
                let rows = rows.iter().map(texts).collect::<Result<Vec<[String; 4]>>>()?;
                table(["LEAF", "OUTCOME", "ROWS", "DETAIL"], rows.into_iter())
            }
        }
    }
}

/// The columns of a row, all of them text.
fn texts<const N: usize>(row: &tokio_postgres::Row) -> Result<[String; N]> {
    let mut columns = [const { String::new() }; N];
    for (index, column) in columns.iter_mut().enumerate() {
        *column = row.try_get(index)?;
    }
    Ok(columns)
}
