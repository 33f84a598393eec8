//! Connections to the server: finding it, encrypting the link, logging in, and streaming from a slot.
//!
//! ```text
//! ConnInfo ──► connect: dial ─► tls ─► auth ──► replay ──► tokio_postgres::Client        (connect_sql)
//!                                          └──► Replication ── START_REPLICATION ──► CopyBoth
//! ```
//!
//! Both kinds of connection take the same way in, so that a connection string that serves one serves the other.
//! tokio-postgres has no replication protocol; the little that is needed of it is here.

mod auth;
mod certificate;
mod connect;
mod conninfo;
mod copy;
#[doc(hidden)]
pub mod hostile;
mod identity;
mod link;
pub(crate) mod refusal;
mod replay;
mod replication;
mod revocation;
mod socket;
mod tls;

// The public interface is:
pub use connect::connect_sql;
pub(crate) use connect::{connect_listening, connect_own, take_leave};
pub use conninfo::ConnInfo;
pub use copy::{CopyBoth, Received, Status};
pub(crate) use refusal::quote;
pub use replication::{Replication, SystemId};
pub(crate) use tls::trusted_by_system;
