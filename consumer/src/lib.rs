//! Consumer of Postbox: committed events of PostgreSQL outboxes, in commit order, at least once.
//!
//! ```text
//! slot ──► transport ──► decode ──► Consumer::next ──► you ──► Delivery::ack
//!   ▲      (frames)      (events)    bounded queue                  │
//!   └── confirm ◄──────────────────── progress ◄────────────────────┘
//! ```
//!
//! The slot's position is the group's offset, and nothing else is: what is acknowledged is confirmed to the server, and
//! what is not comes again, to this process or the next.
//!
//! ```no_run
//! # #[tokio::main]
//! # async fn main() -> Result<(), postbox::Error> {
//! let conninfo = "postgres://billing@localhost/shop?sslmode=verify-full";
//! let mut events = postbox::Consumer::builder(conninfo).group("billing").connect().await?;
//! while let Some(delivery) = events.next().await {
//!     let delivery = delivery?;
//!     println!("{} {:?} {:?}", delivery.event_type, delivery.key, delivery.payload);
//!     delivery.ack();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//!
//! * Events come in commit order; events of one transaction in the order of their insertion.
//! * An event is delivered at least once. After a crash of either side, what had not been confirmed comes again: recognise it
//!   by [`Event::id`].
//! * Acknowledgements may come in any order. The slot is confirmed up to the last transaction before which
//!   everything is acknowledged.
//! * A broken link, a restart or a crash of the server is waited out. What waiting does not mend is an [`Error`] with a
//!   [hint](Error::hint).
//! * The events that wait to be taken are bounded in bytes, whatever the size of a transaction.

#![forbid(unsafe_code)]

mod backfill;
mod backoff;
mod claim;
mod cli;
mod command;
mod consumer;
mod dead_letter;
mod decode;
mod dispatch;
mod error;
mod event;
mod failpoint;
mod feed;
mod format;
pub mod group;
mod inbox;
mod install;
mod lease;
pub mod maintain;
mod member;
mod pgoutput;
mod progress;
mod run;
mod signal;
mod sink;
mod slot;
mod snapshot;
pub mod testing;
pub mod transport;

/// The README's example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

// The public interface is:
pub use claim::{ClaimFormat, ClaimPosition, ClaimReader, ClaimSummary};
#[doc(hidden)]
pub use cli::Cli;
pub use consumer::{Builder, Consumer, Delivery, OutputPlugin};
pub use error::{Error, ErrorKind, Result};
pub use event::{ClaimChunk, Event, EventError, EventId};
pub use inbox::{Failure, InboxHandler, InboxMessage, InboxWorker};
pub use postbox_wire::json::Output as JsonOutput;
pub use postbox_wire::{Claims, Compression, ErrorCode, Lsn, Origin, Outbox, OutboxSelector, PayloadType, PgMicros};
pub use progress::Positions;
pub use sink::InboxTarget;
pub use slot::{SlotState, explain_in_use, inspect};
