//! What an application does with a message.

use std::error::Error as StdError;
use std::time::Duration;

use tokio_postgres::Transaction;

use super::InboxMessage;

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
    /// Handles one message. After an error it is tried again later, or is a dead letter.
    fn handle(
        &self,
        message: &InboxMessage,
        transaction: &Transaction<'_>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Why a message could not be handled this time. Any error becomes one with `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub(crate) error: String,
    pub(crate) retry_after: Option<Duration>,
}

/// So much of an error is kept.
const ERROR_BYTES: usize = 8 << 10;

impl Failure {
    /// A failure for this reason.
    pub fn new(error: impl Into<String>) -> Self {
        // No text of PostgreSQL holds a NUL.
        let mut error = error.into().replace('\0', "\u{fffd}");
        error.truncate(error.floor_char_boundary(ERROR_BYTES));
        Self { error, retry_after: None }
    }

    /// The same failure, to be tried again after this time and not after the inbox's own backoff.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(text)
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
