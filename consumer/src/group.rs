//! Consumer groups and outboxes, as the schema `postbox` has them.

use postbox_wire::{Lsn, OutboxSelector, parse_selectors};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::error::{Error, ErrorKind, Result};
use crate::slot;
use crate::transport::{ConnInfo, connect_sql};

/// A group, to be read from.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) slot_name: String,
    /// OID and quoted name of each outbox.
    outboxes: Vec<(u32, String)>,
}

/// A group, as `postbox group list` shows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// The outboxes that it reads, as `schema.table`.
    pub outboxes: Vec<String>,
    /// Its replication slot.
    pub slot_name: String,
    /// The server process that streams to a consumer of the group now.
    pub active_pid: Option<i32>,
    /// Everything that committed below this is done.
    pub confirmed: Option<Lsn>,
    /// Bytes of WAL since then, of events and of everything else.
    pub lag_bytes: Option<i64>,
    /// As in `pg_replication_slots`, or `missing`.
    pub wal_status: Option<String>,
}

/// An outbox, as `postbox outbox list` shows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// The table's name.
    pub name: String,
    /// Its schema.
    pub schema: String,
    /// SQL type of the payload.
    pub payload_type: Option<String>,
    /// Rows stored, estimated.
    pub rows_estimate: Option<i64>,
    /// Bytes on disk.
    pub bytes: Option<i64>,
    /// Groups that read it.
    pub groups: Vec<String>,
}

impl Group {
    /// Selects the group's outboxes by OID, so that a renamed one is followed, and by name, so that one made anew is too.
    pub(crate) fn selectors(&self) -> Vec<OutboxSelector> {
        let by_name = |name: &str| parse_selectors(name).unwrap_or_default();
        self.outboxes.iter().flat_map(|(oid, name)| [vec![OutboxSelector::Oid(*oid)], by_name(name)].concat()).collect()
    }
}

/// Looks a group up.
///
/// # Errors
/// There is none of that name, or the extension is not installed.
pub(crate) async fn find(info: &ConnInfo, name: &str) -> Result<Group> {
    let client = connect_sql(info).await?;
    let rows = query(
        &client,
        "SELECT g.slot_name::text, o.outbox::oid, o.outbox_name FROM postbox.consumer_group g \
         JOIN postbox.consumer_group_outbox o ON o.group_name = g.name WHERE g.name = $1",
        &[&name],
    )
    .await?;
    let Some(first) = rows.first() else {
        return Err(Error::new(
            ErrorKind::GroupMissing,
            format!("there is no consumer group \"{name}\" in database \"{}\"", info.dbname()),
        )
        .with_hint(format!("postbox group list shows the groups; postbox group create {name} --outbox … makes one.")));
    };
    let outboxes = rows.iter().map(|row| Ok((row.try_get(1)?, row.try_get(2)?))).collect::<Result<_>>()?;
    Ok(Group { slot_name: first.try_get(0)?, outboxes })
}

/// Makes a group that reads these outboxes from now on; the result is the name of its slot. Waits for the transactions
/// that are writing now.
///
/// # Errors
/// The name is taken or cannot be used, an outbox does not exist, or the server is not set up for logical decoding.
pub async fn create(client: &Client, name: &str, outboxes: &[String]) -> Result<String> {
    let sql = "SELECT postbox.create_consumer_group($1, $2)::text";
    let rows = match query(client, sql, &[&name, &outboxes]).await {
        Ok(rows) => rows,
        Err(error) => return Err(slot::explain(client, name, error).await),
    };
    rows.first().map_or_else(|| Ok(String::new()), |row| Ok(row.try_get(0)?))
}

/// Drops a group and its slot: what it has not confirmed is never delivered to it.
///
/// # Errors
/// There is no such group, or a consumer is reading for it.
pub async fn drop(client: &Client, name: &str) -> Result<()> {
    query(client, "SELECT postbox.drop_consumer_group($1)", &[&name]).await.map(|_| ())
}

/// The groups of the database, by name.
///
/// # Errors
/// The extension is not installed.
pub async fn list(client: &Client) -> Result<Vec<GroupStatus>> {
    let sql = "SELECT name, outboxes, slot_name::text, active_pid, confirmed_flush_lsn, lag_bytes, wal_status \
               FROM postbox.consumer_groups ORDER BY name";
    let status = |row: &Row| -> Result<GroupStatus> {
        let confirmed = row.try_get::<_, Option<tokio_postgres::types::PgLsn>>(4)?;
        Ok(GroupStatus {
            name: row.try_get(0)?,
            outboxes: row.try_get(1)?,
            slot_name: row.try_get(2)?,
            active_pid: row.try_get(3)?,
            confirmed: confirmed.map(|lsn| Lsn(lsn.into())),
            lag_bytes: row.try_get(5)?,
            wal_status: row.try_get(6)?,
        })
    };
    query(client, sql, &[]).await?.iter().map(status).collect()
}

/// The outboxes of the database, by schema and name.
///
/// # Errors
/// The extension is not installed.
pub async fn outboxes(client: &Client) -> Result<Vec<OutboxStatus>> {
    let sql = "SELECT name, schema, payload_type, rows_estimate, bytes, groups FROM postbox.outbox_status()";
    let status = |row: &Row| -> Result<OutboxStatus> {
        Ok(OutboxStatus {
            name: row.try_get(0)?,
            schema: row.try_get(1)?,
            payload_type: row.try_get(2)?,
            rows_estimate: row.try_get(3)?,
            bytes: row.try_get(4)?,
            groups: row.try_get(5)?,
        })
    };
    query(client, sql, &[]).await?.iter().map(status).collect()
}

pub(crate) async fn query(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
    client.query(sql, parameters).await.map_err(|error| {
        let Some(db) = error.as_db_error() else { return Error::from(error) };
        let lacks = ["schema \"postbox\"", "relation \"postbox.", "function postbox."];
        if lacks.iter().any(|object| db.message().starts_with(object)) && db.code().code().starts_with(['3', '4']) {
            return Error::new(ErrorKind::Setup, "the extension postbox is not installed in this database")
                .with_hint("Run CREATE EXTENSION postbox; as a superuser, in the database that has the outboxes.")
                .with_source(error);
        }
        // What the functions of sql/ raise about their arguments.
        let kind = match *db.code() {
            SqlState::INVALID_NAME
            | SqlState::INVALID_PARAMETER_VALUE
            | SqlState::UNDEFINED_TABLE
            | SqlState::WRONG_OBJECT_TYPE
            | SqlState::DUPLICATE_OBJECT => ErrorKind::Usage,
            SqlState::UNDEFINED_OBJECT => ErrorKind::GroupMissing,
            SqlState::OBJECT_IN_USE => ErrorKind::SlotInUse,
            _ => return Error::from(error),
        };
        Error::from(error).with_kind(kind)
    })
}
