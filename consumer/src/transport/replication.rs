//! skeleton
use postbox_wire::Lsn;
use crate::error::Result;
use super::{ConnInfo, CopyBoth};

/// What `IDENTIFY_SYSTEM` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemId {
    /// The cluster's identifier, the same on its physical standbys.
    pub system_id: u64,
    /// The timeline; it changes with every promotion.
    pub timeline: u32,
    /// The position up to which WAL is flushed.
    pub xlogpos: Lsn,
    /// The database of the connection.
    pub dbname: Option<String>,
}

/// A replication connection that streams nothing yet.
#[derive(Debug)]
pub struct Replication {}

#[allow(clippy::unused_async)]
impl Replication {
    /// Connects.
    pub async fn connect(_info: &ConnInfo, _application_name: &str) -> Result<Self> { unimplemented!() }
    /// IDENTIFY_SYSTEM.
    pub async fn identify(&mut self) -> Result<SystemId> { unimplemented!() }
    /// SHOW.
    pub async fn show(&mut self, _name: &str) -> Result<String> { unimplemented!() }
    /// START_REPLICATION.
    pub async fn start(self, _slot: &str, _options: &[(&str, String)]) -> Result<CopyBoth> { unimplemented!() }
}
