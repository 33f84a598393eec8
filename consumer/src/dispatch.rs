//! From events to a sink: what is handed out when, tried how often, and acknowledged to whom.
//!
//! ```text
//! Source ──► window ──► lanes, one for each key ──► sink ──► done: acknowledged towards its origin
//!            (bounded)    │  ▲ again, after a wait     │
//!                         │  └─────────────────────────┤ failed
//!                         └──► dead letters ◄──────────┘ for good
//!                                    └──► lanes, once redriven
//! ```
//!
//! A sink that takes batches gets them one after the other, in commit order ([`batches`]). A sink that takes events one by one gets
//! those of different keys at once ([`events`]). An inbox gets them in commit order and many at once ([`transfer`]).

pub(crate) mod batches;
pub(crate) mod events;
mod lane;
pub(crate) mod settings;
pub(crate) mod transfer;

use std::time::Duration;

#[cfg(test)]
use tokio::sync::mpsc;

use crate::consumer::{Delivery, Receipt};
use crate::error::Result;
use crate::event::Event;

/// An event to deliver, and where it came from.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) event: Event,
    pub(crate) origin: Origin,
}

/// Who wants to know that an event is done.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The slot.
    Stream(Receipt),
    /// A test, which wants to know the order.
    #[cfg(test)]
    Test(Token),
    /// The dead letter with this id.
    Letter { id: i64, attempts: u32 },
}

/// Tells its number when the event is done.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) number: u64,
    pub(crate) done: mpsc::UnboundedSender<u64>,
}

/// Where tasks come from, in the order in which they are to be delivered.
pub(crate) trait Source: Send + 'static {
    /// The next task; none when no more will come. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Result<Task>>> + Send;

    /// The next task if it is there already.
    fn try_next(&mut self) -> Option<Result<Task>>;

    /// True if the task handed out last has others of its transaction behind it, which will come.
    fn is_within_transaction(&self) -> bool;

    /// True if everything that had been committed by now has been handed out and is done. Asked when all tasks are done.
    fn is_drained(&mut self) -> impl Future<Output = Result<bool>> + Send;
}

/// When to stop by oneself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// After so many events.
    pub(crate) max_events: Option<u64>,
    /// When no event has come for so long, and all that had been committed by then is delivered.
    pub(crate) exit_when_idle: Option<Duration>,
}

/// How often the dead letters are asked for those that are due.
const POLL: Duration = Duration::from_secs(1);

/// How long the rest of a transaction may stay away when it is all that is waited for.
const REST_PATIENCE: Duration = Duration::from_secs(10);

impl Task {
    /// Tells the origin that the event is done. Letters are settled in their table.
    fn complete(self) {
        match self.origin {
            Origin::Stream(receipt) => receipt.ack(),
            #[cfg(test)]
            Origin::Test(Token { number, done }) => drop(done.send(number)),
            Origin::Letter { .. } => {}
        }
    }

    /// The same for many, all from one source.
    fn complete_all(tasks: Vec<Self>) {
        let mut receipts = Vec::with_capacity(tasks.len());
        for task in tasks {
            match task.origin {
                Origin::Stream(receipt) => receipts.push(receipt),
                _ => task.complete(),
            }
        }
        Receipt::ack_all(&receipts);
    }

    /// True if the event comes again by itself, as its connection is gone.
    fn is_stale(&self) -> bool {
        matches!(&self.origin, Origin::Stream(receipt) if receipt.is_stale())
    }

    /// The number of its transaction, if it came from the slot. Later ones have higher numbers.
    fn transaction(&self) -> Option<u64> {
        match &self.origin {
            Origin::Stream(receipt) => Some(receipt.transaction()),
            _ => None,
        }
    }
}

impl From<Delivery> for Task {
    fn from(delivery: Delivery) -> Self {
        let (event, receipt) = delivery.split();
        Self { event, origin: Origin::Stream(receipt) }
    }
}

/// An event, for people.
pub(crate) fn name(event: &Event) -> String {
    match &event.id {
        Some(id) => format!("event {id} of {}", event.outbox),
        None => format!("an event of {} without an id, at {}", event.outbox, event.commit_lsn),
    }
}
