//! What a worker says of its messages.

use std::error::Error as StdError;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error as SqlError, GenericClient};

use super::{Failure, InboxMessage};
use crate::error::{Error, ErrorKind};

/// The SQLSTATE of a token that holds no more: see sql/inbox_complete.sql.
pub(super) const STALE: &str = "PB002";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Complete,
    Fail(Failure),
    Release,
    /// For so many seconds more.
    Extend(i32),
}

impl Verb {
    pub(super) async fn say(
        &self,
        client: &impl GenericClient,
        inbox: &str,
        messages: &[InboxMessage],
    ) -> Result<(), SqlError> {
        let ids = messages.iter().map(|message| &*message.event_id).collect::<Vec<_>>();
        let tokens = messages.iter().map(|message| message.token).collect::<Vec<_>>();
        let all: [(&(dyn ToSql + Sync), Type); 3] =
            [(&inbox, Type::TEXT), (&ids, Type::TEXT_ARRAY), (&tokens, Type::INT8_ARRAY)];
        match self {
            Self::Complete => {
                // In a transaction only COMMIT is to follow: a worker that stands still before it does not keep the message.
                let sql = "SELECT postbox.inbox_complete($1, $2, $3), pg_catalog.set_config('idle_in_transaction_session_timeout', '5s', true)";
                client.query_typed(sql, &all).await.map(drop)
            }
            Self::Release => client.query_typed("SELECT postbox.inbox_release($1, $2, $3)", &all).await.map(drop),
            Self::Extend(seconds) => extend(client, inbox, &ids, &tokens, *seconds).await,
            Self::Fail(Failure { error, retry_after, .. }) => {
                // The database may have no such characters.
                let sql = "SELECT postbox.inbox_fail($1, $2, $3, postbox._readable($4), pg_catalog.make_interval(secs => $5))";
                let wait = retry_after.as_ref().map(Duration::as_secs_f64);
                for message in messages {
                    client.query(sql, &[&inbox, &&*message.event_id, &message.token, &error.as_bytes(), &wait]).await?;
                }
                Ok(())
            }
        }
    }
}

/// Gives more time: to all of them, or to none if one of the tokens holds no more.
pub(super) async fn extend(
    client: &impl GenericClient,
    inbox: &str,
    ids: &(dyn ToSql + Sync),
    tokens: &[i64],
    seconds: i32,
) -> Result<(), SqlError> {
    let all: [(&(dyn ToSql + Sync), Type); 4] =
        [(&inbox, Type::TEXT), (ids, Type::TEXT_ARRAY), (&tokens, Type::INT8_ARRAY), (&seconds, Type::INT4)];
    client.query_typed("SELECT postbox.inbox_extend($1, $2, $3, $4)", &all).await.map(drop)
}

pub(super) fn is_stale(error: &SqlError) -> bool {
    error.code().is_some_and(|code| code.code() == STALE)
}

/// Whether a transaction was ended for the sake of others, for want of resources, because nothing came for too long, as the server shuts
/// down, or with its connection: the next one may succeed. One that went beyond a limit that is set for it will do so again.
pub(super) fn is_passing(error: &SqlError) -> bool {
    // A statement that cannot be sent at all (a NUL in it) is invalid input.
    let io = || {
        StdError::source(error)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .is_some_and(|error| error.kind() != std::io::ErrorKind::InvalidInput)
    };
    error.code().map_or_else(
        || error.is_closed() || io(),
        |code| {
            *code != SqlState::CONFIGURATION_LIMIT_EXCEEDED
                && ["40", "53", "57P", "25P03"].iter().any(|class| code.code().starts_with(class))
        },
    )
}

/// Whether the same statement may succeed later: the link broke, or the server ended the statement for the sake of others.
pub(super) fn passes(error: &Error) -> bool {
    let ended = |code: &str| {
        [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED].iter().any(|state| state.code() == code)
            || code.starts_with("40")
    };
    error.is_transient() || error.kind() == ErrorKind::Other && error.sqlstate().is_some_and(ended)
}
