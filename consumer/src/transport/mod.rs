//! Connections to the server: finding it, encrypting, logging in, and copy-both streaming.

mod conninfo;
mod connect;
mod copy;
mod replication;

pub use conninfo::ConnInfo;
pub use connect::connect_sql;
pub use copy::{CopyBoth, Received, Status};
pub use replication::{Replication, SystemId};
