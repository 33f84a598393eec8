//! skeleton
use bytes::Bytes;
use postbox_wire::Lsn;
use crate::error::Result;

/// A running replication stream.
#[derive(Debug)]
pub struct CopyBoth {}

/// What came from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// One message of the plugin.
    Data(Bytes),
    /// A sign of life.
    Keepalive {
        /// The position up to which the server has decoded and sent everything.
        wal_end: Lsn,
        /// Whether the server wants a status at once.
        reply_requested: bool,
    },
}

/// What the consumer tells the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Received up to here.
    pub received: Lsn,
    /// Durable up to here: the slot's next confirmed_flush_lsn.
    pub flushed: Lsn,
    /// Whether the server is asked for a keepalive at once.
    pub reply_requested: bool,
}

#[allow(clippy::unused_async)]
impl CopyBoth {
    /// The next message. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Received> { unimplemented!() }
    /// Reports progress.
    pub async fn send_status(&mut self, _status: Status) -> Result<()> { unimplemented!() }
    /// Ends the stream in order.
    pub async fn finish(self) -> Result<()> { unimplemented!() }
}
