//! Where events go.
//!
//! An event may come more than once to any sink: its id tells.

mod exec;
mod inbox;
mod stdout;

pub(crate) use exec::Exec;
pub use inbox::InboxTarget;
pub(crate) use inbox::{Inbox, StreamSource, Target};
pub(crate) use stdout::Stdout;

use crate::dispatch::Task;
use crate::error::Result;
use crate::event::Event;
use crate::lease::Lease;

/// Takes batches, all or nothing.
///
/// Batches come one after the other and in commit order. When `deliver` returns, every event of the batch is where
/// the sink promises it to be, and the caller acknowledges them; after an error none of them counts as delivered, and
/// all may come again. It may block.
pub(crate) trait BatchSink: Send + 'static {
    /// Delivers a batch. What it does in steps it does only while the lease is valid, and not at all once it is revoked.
    ///
    /// # Errors
    /// The sink cannot take events any more.
    fn deliver(&mut self, batch: &[Task], lease: &Lease) -> Result<()>;
}

/// Takes events one by one, and several at once.
pub(crate) trait EventSink: Send + Sync + 'static {
    /// Delivers an event; an error says why it could not be delivered this time. Attempts are counted from 1. Whoever drops the future
    /// ends the attempt.
    fn deliver(&self, event: Event, attempt: u32) -> impl Future<Output = Result<(), String>> + Send + 'static;
}
