//! Workers of an inbox: each message goes to a handler, together with the transaction that completes it.
//!
//! ```text
//! inbox_claim ──► hand ──► BEGIN, handler, inbox_complete, COMMIT
//!                  │                  └── failed: ROLLBACK, inbox_fail
//!                 held ◄── keeper: inbox_extend while the handler works, LISTEN, tiers
//! ```
//!
//! A worker has several hands. Each has a connection of its own, claims a batch, and works on its messages one after the
//! other.

mod call;
mod exec;
mod hand;
mod handler;
mod held;
mod http;
mod keeper;
mod message;
mod turn;
mod verb;
mod work;
mod worker;

pub(crate) use call::Call;
pub(crate) use exec::Exec;
pub use handler::{Failure, InboxHandler};
pub(crate) use http::Http;
pub use message::InboxMessage;
pub(crate) use work::Outside;
pub use worker::InboxWorker;
