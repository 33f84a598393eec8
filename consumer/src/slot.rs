//! A slot before its stream starts: what it is, whether it can be read, and who reads it now.

use std::time::Duration;

use postbox_wire::Lsn;
use tokio_postgres::{Client, Row};

use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput;
use crate::transport::refusal::{self, About, PLUGIN};

/// A logical slot as the server sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotState {
    /// The slot's name.
    pub name: String,
    /// The output plugin it was made for; none for a physical slot.
    pub plugin: Option<String>,
    /// The database it belongs to; none for a physical slot.
    pub database: Option<String>,
    /// The server process that reads it now.
    pub active_pid: Option<i32>,
    /// Everything that committed below this is confirmed.
    pub confirmed_flush: Lsn,
    /// The oldest WAL that the slot needs; zero when that has been removed.
    pub restart_lsn: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that may still be written before the slot is lost; none without such a limit.
    pub safe_wal_size: Option<i64>,
    /// Why the slot can no longer be read, in the server's word; none while it can.
    pub invalidation: Option<String>,
}

impl SlotState {
    /// Whether the slot's consumer has little time left before the server removes WAL that it needs.
    pub fn is_endangered(&self) -> bool {
        self.wal_status.as_deref() == Some("unreserved")
    }

    /// Whether events come by PostgreSQL's own plugin rather than by Postbox's.
    pub(crate) fn is_of_pgoutput(&self) -> bool {
        self.plugin.as_deref() == Some(pgoutput::PLUGIN)
    }

    /// Refuses a slot that can never be read by this consumer over a connection to `dbname`.
    fn check(&self, dbname: &str) -> Result<()> {
        let name = &self.name;
        let (Some(plugin), Some(database)) = (&self.plugin, &self.database) else {
            return Err(Error::new(
                ErrorKind::SlotPlugin,
                format!("replication slot \"{name}\" is physical, not logical"),
            )
            .with_hint(refusal::other_slot(Some(name))));
        };
        if plugin != PLUGIN && plugin != pgoutput::PLUGIN {
            return Err(Error::new(
                ErrorKind::SlotPlugin,
                format!(
                    "replication slot \"{name}\" is of output plugin \"{plugin}\", not of \"{PLUGIN}\" or \"pgoutput\""
                ),
            )
            .with_hint(refusal::other_slot(Some(name))));
        }
        if database != dbname {
            return Err(Error::new(
                ErrorKind::SlotDatabase,
                format!("replication slot \"{name}\" belongs to database \"{database}\", and this connection to \"{dbname}\""),
            )
            .with_hint(format!("Connect to the slot's database: dbname={database} or PGDATABASE={database}.")));
        }
        if let Some(reason) = &self.invalidation {
            return Err(Error::new(
                ErrorKind::SlotInvalidated,
                format!("replication slot \"{name}\" has been invalidated ({reason})"),
            )
            .with_hint(refusal::replace_slot(Some(name))));
        }
        Ok(())
    }
}

/// Reads the slot, and refuses one that cannot be read: it is missing, of another plugin, of another database, or
/// invalidated. That somebody reads it now is no error here; see [`explain_in_use`].
///
/// # Errors
/// [`ErrorKind::SlotMissing`], [`ErrorKind::SlotPlugin`], [`ErrorKind::SlotDatabase`] or
/// [`ErrorKind::SlotInvalidated`], each with its remedy; or the query fails.
pub async fn inspect(client: &Client, slot: &str) -> Result<SlotState> {
    let dbname: String = client.query_one("SELECT pg_catalog.current_database()::text", &[]).await?.try_get(0)?;
    let Some(row) = client.query_opt(STATE, &[&slot]).await? else {
        return Err(missing(client, slot, dbname).await);
    };
    let state = state(slot, &row)?;
    state.check(&dbname)?;
    Ok(state)
}

/// Says who reads the slot, as an error to give up or to wait with.
pub async fn explain_in_use(client: &Client, slot: &str) -> Error {
    let error = match client.query_opt(HOLDER, &[&slot]).await.map_err(Error::from).and_then(|row| holder(row.as_ref()))
    {
        Ok(Some(holder)) => {
            Error::new(ErrorKind::SlotInUse, format!("replication slot \"{slot}\" is in use by {holder}"))
        }
        // Between the attempt and this question it has become free.
        Ok(None) => Error::new(ErrorKind::SlotInUse, format!("replication slot \"{slot}\" was in use a moment ago")),
        Err(error) => {
            Error::new(ErrorKind::SlotInUse, format!("replication slot \"{slot}\" is in use")).with_source(error)
        }
    };
    error.with_hint(format!(
        "One consumer reads a slot at a time. Stop the other one, or end its connection: SELECT \
         pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'; A consumer whose machine died \
         holds the slot until wal_sender_timeout.",
        slot.replace('\'', "''")
    ))
}

/// Makes an error that the server gave on an SQL connection as exact as a further look at the server allows: who
/// holds the slot, and which line lets the role use the plugin. Others come back as they are.
pub(crate) async fn explain(client: &Client, slot: &str, error: Error) -> Error {
    if error.kind() == ErrorKind::SlotInUse {
        return explain_in_use(client, slot).await;
    }
    if !refusal::refuses_plugin(&error) {
        return error;
    }
    let text = |row: Row| row.try_get::<_, Option<String>>(0).ok().flatten();
    let first = |result: Result<Option<Row>, tokio_postgres::Error>| result.ok().flatten().and_then(text);
    let role = first(client.query_opt("SELECT current_user::text", &[]).await);
    let list = match first(client.query_opt("SHOW output_plugin_libraries", &[]).await) {
        Some(list) => Some(list),
        None => first(client.query_opt(refusal::PLUGIN_LIST_OF_ROLE, &[]).await),
    };
    error.with_hint(refusal::allow_plugin(role.as_deref(), list.as_deref()))
}

/// Columns that came with later majors are read by name from the row as a whole.
const STATE: &str = "SELECT s.plugin::text, s.database::text, s.active_pid, s.confirmed_flush_lsn::text, \
     s.restart_lsn::text, s.wal_status, s.safe_wal_size, pg_catalog.to_jsonb(s) ->> 'invalidation_reason'::text, \
     (pg_catalog.to_jsonb(s) ->> 'conflicting'::text)::boolean \
     FROM pg_catalog.pg_replication_slots s WHERE s.slot_name::text = $1";

/// What a role may not see of other roles' sessions is null.
const HOLDER: &str = "SELECT s.active_pid, a.application_name, a.usename::text, a.client_addr::text, \
     a.client_port, extract(epoch FROM pg_catalog.clock_timestamp() - a.backend_start)::bigint \
     FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
     WHERE s.slot_name::text = $1 AND s.active_pid IS NOT NULL";

fn state(slot: &str, row: &Row) -> Result<SlotState> {
    let lsn = |column: usize| -> Result<Lsn> {
        let text: Option<String> = row.try_get(column)?;
        let parsed = text.map(|text| text.parse()).transpose();
        parsed.map(Option::unwrap_or_default).map_err(|error| {
            Error::new(ErrorKind::Protocol, "the server's view of slots holds no log position").with_source(error)
        })
    };
    let wal_status: Option<String> = row.try_get(5)?;
    let reason: Option<String> = row.try_get(7)?;
    let conflicting: Option<bool> = row.try_get(8)?;
    // The reason is known since PostgreSQL 17, the conflict since 16; before that the status is all there is.
    let invalidation = reason
        .or_else(|| (conflicting == Some(true)).then(|| "conflicting".to_owned()))
        .or_else(|| (wal_status.as_deref() == Some("lost")).then(|| "wal_removed".to_owned()));
    Ok(SlotState {
        name: slot.to_owned(),
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        active_pid: row.try_get(2)?,
        confirmed_flush: lsn(3)?,
        restart_lsn: lsn(4)?,
        wal_status,
        safe_wal_size: row.try_get(6)?,
        invalidation,
    })
}

/// Names the slots that could have been meant.
async fn missing(client: &Client, slot: &str, dbname: String) -> Error {
    let others = client
        .query(
            "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE plugin = $1 \
             AND database = pg_catalog.current_database() ORDER BY 1 LIMIT 10",
            &[&PLUGIN],
        )
        .await
        .unwrap_or_default();
    let names = others.iter().filter_map(|row| row.try_get::<_, String>(0).ok()).collect::<Vec<_>>();
    let about = About { dbname: Some(dbname), slot: Some(slot.to_owned()), role: None };
    let create = refusal::create_slot(&about);
    let hint = match names.as_slice() {
        [] => create,
        names => format!("Slots of {PLUGIN} in this database: {}. {create}", names.join(", ")),
    };
    Error::new(ErrorKind::SlotMissing, format!("replication slot \"{slot}\" does not exist")).with_hint(hint)
}

/// The session that reads a slot, in words.
fn holder(row: Option<&Row>) -> Result<Option<String>> {
    let Some(row) = row else { return Ok(None) };
    let pid: i32 = row.try_get(0)?;
    let application: Option<String> = row.try_get(1)?;
    let role: Option<String> = row.try_get(2)?;
    let address: Option<String> = row.try_get(3)?;
    let port: Option<i32> = row.try_get(4)?;
    let seconds: Option<i64> = row.try_get(5)?;

    let mut words = format!("process {pid}");
    if let Some(application) = application.filter(|name| !name.is_empty()) {
        words.push_str(&format!(", application \"{application}\""));
    }
    if let Some(role) = role {
        words.push_str(&format!(", role \"{role}\""));
    }
    match (address, port) {
        (Some(address), _) => {
            words.push_str(&format!(", from {}", address.trim_end_matches("/32").trim_end_matches("/128")))
        }
        // -1 stands for a Unix socket, null for what this role may not see.
        (None, Some(-1)) => words.push_str(", from the server's own machine"),
        (None, _) => {}
    }
    if let Some(seconds) = seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
        words.push_str(&format!(", connected for {}", humantime::format_duration(Duration::from_secs(seconds))));
    }
    Ok(Some(words))
}
