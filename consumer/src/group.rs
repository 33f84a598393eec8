//! Consumer groups and outboxes, as the schema `postbox` has them.

use std::time::Duration;

use postbox_wire::Lsn;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::consumer::OutputPlugin;
use crate::error::{Error, ErrorKind, Result};
use crate::slot;

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

/// There is no group of that name.
pub(crate) fn missing(name: &str, dbname: &str) -> Error {
    Error::new(ErrorKind::GroupMissing, format!("there is no consumer group \"{name}\" in database \"{dbname}\""))
        .with_hint(format!("postbox group list shows the groups; postbox group create {name} --outbox … makes one."))
}

/// A group to be made.
#[derive(Clone, Debug)]
pub struct NewGroup<'a> {
    /// 1 to 40 characters of `a-z`, `0-9` and `_`.
    pub name: &'a str,
    /// Outboxes, as `orders` or `public.orders`.
    pub outboxes: &'a [String],
    /// Start at the earliest event that is stored, not at what commits from now on.
    pub earliest: bool,
    /// Have the server keep the slot on its standbys (PostgreSQL 17).
    pub failover: bool,
    /// Bytes of WAL that the group may hold back.
    pub wal_budget: Option<i64>,
    /// Beyond the budget the slot is dropped.
    pub drop_over_budget: bool,
    /// How long to wait for transactions that are writing.
    pub timeout: Duration,
    /// The output plugin of its slot; that of the installation if none is named.
    pub source: Option<OutputPlugin>,
}

/// Makes a group; the result is the name of its slot. Waits for the transactions that are writing now.
///
/// # Errors
/// The name is taken or cannot be used, an outbox does not exist, transactions do not end in time, or the server is not set up
/// for logical decoding.
pub async fn create(client: &Client, new: &NewGroup<'_>) -> Result<String> {
    let NewGroup { name, outboxes, earliest, failover, wal_budget, drop_over_budget, timeout, source } = new;
    let start = if *earliest { "earliest" } else { "latest" };
    let over = if *drop_over_budget { "drop" } else { "alert" };
    let timeout = interval(*timeout);
    let sql = "SELECT postbox.create_consumer_group($1, $2, $3, $4, $5, $6, $7::text::interval, $8)::text";
    let source = source.map(OutputPlugin::name);
    let rows = match query(client, sql, &[name, outboxes, &start, failover, wal_budget, &over, &timeout, &source]).await
    {
        Ok(rows) => rows,
        Err(error) => return Err(slot::explain(client, name, error).await),
    };
    rows.first().map_or_else(|| Ok(String::new()), |row| Ok(row.try_get(0)?))
}

/// Makes the members of a group stop delivering and leave its slot; false if it is paused already.
///
/// # Errors
/// There is no such group.
pub async fn pause(client: &Client, name: &str) -> Result<bool> {
    one(query(client, "SELECT postbox.pause_consumer_group($1)", &[&name]).await?)
}

/// Lets a paused group go on; false if it is not paused.
///
/// # Errors
/// There is no such group.
pub async fn resume(client: &Client, name: &str) -> Result<bool> {
    one(query(client, "SELECT postbox.resume_consumer_group($1)", &[&name]).await?)
}

/// Gives a group a slot of another output plugin, at its position; false if it has that already.
///
/// # Errors
/// A member is active, the group has lost its slot, or its outboxes were not published yet where it stands.
pub async fn set_source(client: &Client, name: &str, source: OutputPlugin) -> Result<bool> {
    match query(client, "SELECT postbox.set_source($1, $2)", &[&name, &source.name()]).await {
        Ok(rows) => one(rows),
        Err(error) => Err(slot::explain(client, name, error).await),
    }
}

/// Where a group is moved.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Seek {
    /// `forward` or `backward`.
    pub direction: String,
    /// Where its slot stands.
    pub from: Lsn,
    /// Where the target lies, as far as that is known.
    pub to: Option<Lsn>,
    /// How many stored events would be delivered, when only asked.
    pub stored_events: Option<i64>,
}

/// Moves a group to `earliest`, `latest`, a time, a position of the log or the id of an event; or only says what would happen.
///
/// # Errors
/// A member is active, the target is not retained any more or lies in the future, the group has lost its slot, or transactions that write do
/// not end in time.
pub async fn seek(client: &Client, name: &str, target: &str, dry_run: bool, timeout: Duration) -> Result<Seek> {
    let sql = "SELECT direction, from_lsn, to_lsn, stored_events \
               FROM postbox.seek_consumer_group($1, $2, $3, $4::text::pg_catalog.interval)";
    let rows = query(client, sql, &[&name, &target, &dry_run, &interval(timeout)]).await?;
    let Some(row) = rows.first() else { return Err(Error::new(ErrorKind::Protocol, "the server answered nothing")) };
    let lsn = |lsn: tokio_postgres::types::PgLsn| Lsn(lsn.into());
    Ok(Seek {
        direction: row.try_get(0)?,
        from: lsn(row.try_get(1)?),
        to: row.try_get::<_, Option<_>>(2)?.map(lsn),
        stored_events: row.try_get(3)?,
    })
}

/// Everything about a group, to be read by people.
///
/// # Errors
/// There is no such group.
pub async fn describe(client: &Client, name: &str) -> Result<String> {
    one(query(client, "SELECT postbox.describe_consumer_group($1)", &[&name]).await?)
}

fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(rows: Vec<Row>) -> Result<T> {
    match rows.first() {
        Some(row) => Ok(row.try_get(0)?),
        None => Err(Error::new(ErrorKind::Protocol, "the server answered nothing")),
    }
}

/// Drops a group and its slot: what it has not confirmed is never delivered to it.
///
/// # Errors
/// There is no such group, a consumer is reading for it, or it has dead letters and `force` does not say that they may go.
pub async fn drop(client: &Client, name: &str, force: bool) -> Result<()> {
    query(client, "SELECT postbox.drop_consumer_group($1, $2)", &[&name, &force]).await.map(|_| ())
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

/// Makes the slot of a group anew; the result is its name.
///
/// # Errors
/// A member is active, an outbox cannot be delivered again, or transactions that write do not end in time.
pub async fn recover(client: &Client, name: &str, timeout: Duration) -> Result<String> {
    let sql = "SELECT postbox.recover_consumer_group($1, $2::text::pg_catalog.interval)::text";
    let rows = query(client, sql, &[&name, &interval(timeout)]).await?;
    rows.first().map_or_else(|| Ok(String::new()), |row| Ok(row.try_get(0)?))
}

/// How long the verbs of a group wait for transactions that write, unless told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);

fn interval(time: Duration) -> String {
    format!("{} milliseconds", time.as_millis())
}

/// Runs a statement of the schema `postbox`.
pub(crate) async fn query(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
    client.query(sql, parameters).await.map_err(|error| {
        let Some(db) = error.as_db_error() else { return Error::from(error) };
        let lacks = ["schema \"postbox\"", "relation \"postbox.", "function postbox."];
        if lacks.iter().any(|object| db.message().starts_with(object)) && db.code().code().starts_with(['3', '4']) {
            return Error::new(ErrorKind::Setup, "the extension postbox is not installed in this database")
                .with_hint(
                    "Run CREATE EXTENSION postbox; as a superuser, in the database that has the outboxes; where the server cannot have \
                     the extension: postbox install.",
                )
                .with_source(error);
        }
        // What the functions of sql/ raise about their arguments.
        let kind = match *db.code() {
            SqlState::INVALID_NAME
            | SqlState::INVALID_PARAMETER_VALUE
            | SqlState::UNDEFINED_TABLE
            | SqlState::WRONG_OBJECT_TYPE
            | SqlState::DUPLICATE_OBJECT
            | SqlState::NO_DATA_FOUND
            | SqlState::DEPENDENT_OBJECTS_STILL_EXIST => ErrorKind::Usage,
            SqlState::UNDEFINED_OBJECT => ErrorKind::GroupMissing,
            SqlState::OBJECT_IN_USE => ErrorKind::SlotInUse,
            ref code if code.code() == MOVED => ErrorKind::Moved,
            _ => return Error::from(error),
        };
        Error::from(error).with_kind(kind)
    })
}

/// The SQLSTATE of a group whose position belongs to another server: see sql/member.sql.
const MOVED: &str = "PB001";
