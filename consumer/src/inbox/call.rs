//! A function of the database for each message.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::{Failure, InboxHandler, InboxMessage};
use crate::error::{Error, ErrorKind, Result};
use crate::group::query;

/// `SELECT FUNCTION(message)` in the transaction that completes the message.
pub(crate) struct Call {
    sql: String,
    inbox: String,
}

impl Call {
    pub(crate) async fn new(client: &Client, function: &str, inbox: &str) -> Result<Self> {
        let sql = "SELECT pg_catalog.format('%I.%I', n.nspname, p.proname) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                   WHERE p.oid = pg_catalog.to_regprocedure($1::text || '(jsonb)')::oid AND p.prokind = 'f'";
        let rows = query(client, sql, &[&function]).await?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Usage, format!("there is no function {function}(jsonb)"))
                .with_hint("Name one that takes the message as jsonb, as it is given to --exec."));
        };
        let name: String = row.try_get(0)?;
        Ok(Self { sql: format!("SELECT {name}($1::text::jsonb)"), inbox: inbox.to_owned() })
    }
}

impl InboxHandler for Call {
    async fn handle(&self, message: &InboxMessage, transaction: &Transaction<'_>) -> Result<(), Failure> {
        transaction.query_typed(&self.sql, &[(&message.to_json(&self.inbox), Type::TEXT)]).await?;
        Ok(())
    }
}
