//! skeleton
use crate::error::Result;
use super::ConnInfo;

/// Opens a connection for SQL.
#[allow(clippy::unused_async)]
pub async fn connect_sql(_info: &ConnInfo) -> Result<tokio_postgres::Client> { unimplemented!() }
