//! What an application does with a message.

use std::error::Error as StdError;
use std::iter::successors;
use std::time::Duration;

use tokio_postgres::Transaction;

use super::InboxMessage;
use super::verb::is_passing;

/// Handles the messages of an inbox.
///
/// What it writes in `transaction` is committed together with the completion of the message, or not at all: such an effect
/// happens exactly once. What it does elsewhere may happen more than once. It must not end the transaction, and may be
/// dropped at any await when the message is another worker's by now, takes too long, or the worker stops.
///
/// ```no_run
/// use postbox::{Failure, InboxHandler, InboxMessage, InboxWorker};
/// use tokio_postgres::Transaction;
///
/// struct Payments;
///
/// impl InboxHandler for Payments {
///     async fn handle(&self, message: &InboxMessage, transaction: &Transaction<'_>) -> Result<(), Failure> {
///         transaction.execute("INSERT INTO paid VALUES ($1)", &[&&*message.event_id]).await?;
///         Ok(())
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), postbox::Error> {
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// let worker = InboxWorker::new("postgres://billing@localhost/shop", "payments").concurrency(4);
/// println!("{} messages processed", worker.run(Payments, stop).await?);
/// # Ok(())
/// # }
/// ```
pub trait InboxHandler: Send + Sync + 'static {
    /// Handles one message. After an error it is tried again later, or is a dead letter; after one that passes (a deadlock, a
    /// serialization failure, a broken connection, see [`Failure`]) it is begun again in a moment, up to five times.
    fn handle(
        &self,
        message: &InboxMessage,
        transaction: &Transaction<'_>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Why a message could not be handled this time. Any error becomes one with `?`; it passes if it is an error of PostgreSQL, or was caused by
/// one, that is not the message's doing: the next transaction may succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub(crate) error: String,
    pub(crate) retry_after: Option<Duration>,
    /// Nothing is wrong with the message, as far as is known.
    pub(crate) passing: bool,
}

/// So much of an error is kept.
const ERROR_BYTES: usize = 8 << 10;

impl Failure {
    /// A failure for this reason.
    pub fn new(error: impl Into<String>) -> Self {
        // No text of PostgreSQL holds a NUL.
        let mut error = error.into().replace('\0', "\u{fffd}");
        error.truncate(error.floor_char_boundary(ERROR_BYTES));
        Self { error, retry_after: None, passing: false }
    }

    /// The same failure, to be tried again after this time and not after the inbox's own backoff.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        // Who says so knows better.
        self.passing = false;
        self
    }
}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let causes = || successors(Some(&*error as &(dyn StdError + 'static)), |&error| error.source());
        let text = causes().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let passing = causes().filter_map(|error| error.downcast_ref()).any(is_passing);
        Self { passing, ..Self::new(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_causes_and_have_a_limit() {
        let cause = crate::Error::new(crate::ErrorKind::Other, "what").with_source(std::io::Error::other("why"));
        assert_eq!(Failure::from(cause).error, "what: why");
        assert_eq!(Failure::from("a\0b").error, "a\u{fffd}b");
        assert_eq!(Failure::new("é".repeat(ERROR_BYTES)).error.len(), ERROR_BYTES);
    }
}
