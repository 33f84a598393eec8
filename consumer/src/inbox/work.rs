//! How a message is worked on: in the transaction that completes it, or outside of any.

use std::panic::AssertUnwindSafe;
use std::slice;

use futures_util::FutureExt;
use tokio_postgres::Client;

use super::verb::{Verb, is_passing, is_stale};
use super::{Failure, InboxHandler, InboxMessage};

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is completed.
    Done,
    /// It is another worker's.
    Lost,
    /// Its transaction has failed for a reason that passes.
    Passing(Failure),
    /// This is to be told to the server.
    Tell(Verb),
}

/// Works on messages.
pub(crate) trait Work: Send + Sync + 'static {
    /// Works on one message, unless `interrupted` says something earlier. From `settle` on it is not interrupted.
    fn perform(
        &self,
        client: &mut Client,
        inbox: &str,
        message: &InboxMessage,
        interrupted: impl Future<Output = Verdict> + Send,
        settle: impl FnOnce() + Send,
    ) -> impl Future<Output = Verdict> + Send;
}

/// In one transaction with its completion.
pub(super) struct Within<H>(pub(super) H);

impl<H: InboxHandler> Work for Within<H> {
    async fn perform(
        &self,
        client: &mut Client,
        inbox: &str,
        message: &InboxMessage,
        interrupted: impl Future<Output = Verdict> + Send,
        settle: impl FnOnce() + Send,
    ) -> Verdict {
        // Whatever ends this function early rolls back. What has not begun was not tried.
        let Ok(transaction) = client.transaction().await else { return Verdict::Tell(Verb::Release) };
        let handled = tokio::select! {
            handled = AssertUnwindSafe(self.0.handle(message, &transaction)).catch_unwind() => handled,
            verdict = interrupted => return verdict,
        };
        settle();
        match handled {
            Ok(Ok(())) => {}
            Ok(Err(failure)) if failure.passing => return Verdict::Passing(failure),
            Ok(Err(failure)) => return Verdict::Tell(Verb::Fail(failure)),
            Err(panic) => {
                return Verdict::Tell(Verb::Fail(Failure::new(format!("the handler panicked: {}", words(&*panic)))));
            }
        }
        let completed = match Verb::Complete.say(&transaction, inbox, slice::from_ref(message)).await {
            Ok(()) => transaction.commit().await,
            Err(error) => Err(error),
        };
        match completed {
            Ok(()) => Verdict::Done,
            Err(error) if is_stale(&error) => Verdict::Lost,
            // Whether it was committed is not known: if so, the token is stale.
            Err(error) if error.as_db_error().is_none() => Verdict::Tell(Verb::Release),
            Err(error) if is_passing(&error) => Verdict::Passing(error.into()),
            // What a deferred constraint says, for instance.
            Err(error) => Verdict::Tell(Verb::Fail(error.into())),
        }
    }
}

/// Takes messages to somewhere else. Whoever drops the future ends the attempt.
pub(crate) trait Outlet: Send + Sync + 'static {
    fn deliver(&self, inbox: &str, message: &InboxMessage) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Outside of any transaction; then it is completed.
pub(crate) struct Outside<O>(pub(crate) O);

impl<O: Outlet> Work for Outside<O> {
    async fn perform(
        &self,
        _client: &mut Client,
        inbox: &str,
        message: &InboxMessage,
        interrupted: impl Future<Output = Verdict> + Send,
        settle: impl FnOnce() + Send,
    ) -> Verdict {
        let delivered = tokio::select! {
            delivered = self.0.deliver(inbox, message) => delivered,
            verdict = interrupted => return verdict,
        };
        settle();
        Verdict::Tell(delivered.map_or_else(Verb::Fail, |()| Verb::Complete))
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("with no words")
}
