//! skeleton
use postbox_wire::Lsn;
use tokio_postgres::Client;
use crate::error::{Error, Result};

/// A logical slot as the server sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotState {
    /// The slot's name.
    pub name: String,
    /// The output plugin it was made for.
    pub plugin: String,
    /// The database it belongs to.
    pub database: String,
    /// The server process that reads it now.
    pub active_pid: Option<i32>,
    /// Everything that committed below this is confirmed.
    pub confirmed_flush: Lsn,
    /// The oldest WAL the slot needs.
    pub restart_lsn: Lsn,
    /// `reserved`, `extended` or `unreserved`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that may still be written before the slot is lost; none without such a limit.
    pub safe_wal_size: Option<i64>,
}

/// Reads the slot and refuses one that cannot be used.
#[allow(clippy::unused_async)]
pub async fn inspect(_client: &Client, _slot: &str) -> Result<SlotState> { unimplemented!() }

/// Says who reads the slot.
#[allow(clippy::unused_async)]
pub async fn explain_in_use(_client: &Client, _slot: &str) -> Error { unimplemented!() }
