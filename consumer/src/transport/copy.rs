//! The stream of a slot: what the server sends, and how far we are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use postbox_wire::{Lsn, PgMicros};
use tokio::time::timeout;

use super::link::{Link, Message};
use crate::error::{Error, ErrorKind, Result};

/// A stream that runs. Dropping it cuts the link, and the server frees the slot when it notices.
#[derive(Debug)]
pub struct CopyBoth {
    link: Link,
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// What the plugin wrote, in one piece. It shares the buffer it was read into.
    Data(Bytes),
    /// A sign of life.
    Keepalive {
        /// Everything that commits below this position has been sent.
        wal_end: Lsn,
        /// Whether the server wants a status now; it gives the link up if none comes.
        reply_requested: bool,
    },
}

/// What the client reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Received up to here; of no consequence but in the server's views.
    pub received: Lsn,
    /// Durable up to here: this confirms, and nothing below it is ever sent again.
    pub flushed: Lsn,
    /// Whether the server is asked for a keepalive now.
    pub reply_requested: bool,
}

/// How long the server may take to end the stream. It may be writing a large transaction that it cannot leave.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes before the plugin's: type, start and end of the WAL, and the server's clock.
const XLOG_DATA_HEADER: usize = 25;

impl CopyBoth {
    /// A stream that the server has just begun.
    pub(super) fn new(link: Link) -> Self {
        Self { link }
    }

    /// Waits for what comes next.
    ///
    /// Cancel-safe: what has arrived of a message is kept for the next call.
    ///
    /// # Errors
    /// The link breaks, the server ends the stream, or its plugin fails. The stream is of no use afterwards.
    pub async fn recv(&mut self) -> Result<Received> {
        loop {
            if let Some(received) = of_stream(self.link.recv().await?)? {
                return Ok(received);
            }
        }
    }

    /// What comes next, if it has been read from the socket already.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<Received>> {
        while let Some(message) = self.link.try_recv()? {
            if let Some(received) = of_stream(message)? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// Reports how far we are.
    ///
    /// Cancel-safe: what has not been sent goes out with the next report, in order.
    ///
    /// # Errors
    /// The link breaks.
    pub async fn send_status(&mut self, status: Status) -> Result<()> {
        let Status { received, flushed, reply_requested } = status;
        let out = self.link.outbox();
        out.put_u8(b'd');
        out.put_u32(4 + 1 + 4 * 8 + 1);
        out.put_u8(b'r');
        out.put_u64(received.0);
        out.put_u64(flushed.0);
        // Applied is the same as flushed: what is durable here needs no replay to become visible.
        out.put_u64(flushed.0);
        out.put_i64(now().0);
        out.put_u8(reply_requested.into());
        self.link.flush().await
    }

    /// Ends the stream in order. When this succeeds, the server has taken in every status that was sent, and the slot
    /// is free. What it still had to send is dropped; it comes again with the next start.
    ///
    /// # Errors
    /// The link breaks, or the server does not answer within ten seconds.
    pub async fn finish(mut self) -> Result<()> {
        match timeout(FINISH_TIMEOUT, self.end()).await {
            Ok(Ok(())) => {
                self.link.close().await;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(
                ErrorKind::Server,
                format!("the server did not end the stream within {} s", FINISH_TIMEOUT.as_secs()),
            )
            .with_hint("What was confirmed last may come again.")),
        }
    }

    async fn end(&mut self) -> Result<()> {
        // CopyDone.
        self.link.outbox().put_slice(&[b'c', 0, 0, 0, 4]);
        self.link.flush().await?;
        loop {
            match self.link.recv().await?.tag {
                b'd' | b'S' | b'c' | b'C' => {}
                b'Z' => return Ok(()),
                tag => return Err(unexpected(tag)),
            }
        }
    }
}

/// What a message means in a stream that runs; nothing for one that is of no interest.
pub(super) fn of_stream(message: Message) -> Result<Option<Received>> {
    match message.tag {
        b'd' => parse(message.body).map(Some),
        // ParameterStatus: a reload has changed a setting.
        b'S' => Ok(None),
        // CopyDone or CommandComplete, unasked: the server shuts down.
        b'c' | b'C' => Err(Error::new(ErrorKind::Server, "the server ended the stream")),
        tag => Err(unexpected(tag)),
    }
}

/// Reads what a CopyData message carries.
fn parse(mut body: Bytes) -> Result<Received> {
    match body.first() {
        Some(b'w') if body.len() >= XLOG_DATA_HEADER => {
            body.advance(XLOG_DATA_HEADER);
            Ok(Received::Data(body))
        }
        Some(b'k') if body.len() == 18 => {
            body.advance(1);
            let wal_end = Lsn(body.get_u64());
            body.advance(8);
            Ok(Received::Keepalive { wal_end, reply_requested: body.get_u8() != 0 })
        }
        Some(kind) => Err(Error::new(
            ErrorKind::Protocol,
            format!("a replication message of type 0x{kind:02x} with {} bytes is not known", body.len()),
        )),
        None => Err(Error::new(ErrorKind::Protocol, "an empty replication message")),
    }
}

fn unexpected(tag: u8) -> Error {
    Error::new(ErrorKind::Protocol, format!("unexpected message of type 0x{tag:02x} in the stream"))
}

fn now() -> PgMicros {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).ok().and_then(PgMicros::from_unix_micros).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::refusal::About;
    use super::super::socket::Socket;
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn stream() -> (CopyBoth, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (CopyBoth::new(Link::new(Socket::Unix(ours), About::default())), theirs)
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn data_and_keepalives_are_told_apart() {
        let (mut stream, mut server) = stream();
        let data = [b"w".as_slice(), &[0; 24], b"frame"].concat();
        let keepalive = [b"k".as_slice(), &0x16_0000_0001_u64.to_be_bytes(), &[0; 8], &[1]].concat();
        for body in [&data, &keepalive] {
            server.write_all(&message(b'd', body)).await.expect("sent");
        }
        assert_eq!(stream.recv().await.expect("data"), Received::Data(Bytes::from_static(b"frame")));
        let expected = Received::Keepalive { wal_end: Lsn(0x16_0000_0001), reply_requested: true };
        assert_eq!(stream.recv().await.expect("keepalive"), expected);
    }

    #[tokio::test]
    async fn a_status_has_the_bytes_that_the_server_expects() {
        let (mut stream, mut server) = stream();
        let status = Status { received: Lsn(3), flushed: Lsn(2), reply_requested: true };
        stream.send_status(status).await.expect("sent");
        let mut got = [0; 39];
        server.read_exact(&mut got).await.expect("read");
        assert_eq!(got[..6], [b'd', 0, 0, 0, 38, b'r']);
        let lsn = |at: usize| u64::from_be_bytes(got[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!((lsn(6), lsn(14), lsn(22), got[38]), (3, 2, 2, 1));
        // Later than 2025, in microseconds since 2000.
        assert!(lsn(30) > 25 * 365 * 86_400 * 1_000_000);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_transient_unless_asked_for() {
        for tag in [b'c', b'C'] {
            let (mut stream, mut server) = stream();
            server.write_all(&message(tag, b"COPY 0\0")).await.expect("sent");
            assert!(stream.recv().await.expect_err("ended").is_transient());
        }
        let (stream, mut server) = stream();
        let parts = [message(b'd', &[b'w'; 30]), message(b'c', b""), message(b'C', b"COPY 0\0"), message(b'Z', b"I")];
        server.write_all(&parts.concat()).await.expect("sent");
        stream.finish().await.expect("finished");
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.expect("read");
        assert_eq!(sent, [b'c', 0, 0, 0, 4, b'X', 0, 0, 0, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_end_the_stream_is_left() {
        let (stream, _server) = stream();
        assert_eq!(stream.finish().await.expect_err("given up").kind(), ErrorKind::Server);
    }

    proptest! {
        #[test]
        fn hostile_messages_do_no_harm(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'w'), Just(b'k')], 0..40)) {
            match parse(bytes.clone().into()) {
                Ok(Received::Data(data)) => prop_assert_eq!(data.len(), bytes.len() - XLOG_DATA_HEADER),
                Ok(Received::Keepalive { .. }) => prop_assert_eq!(bytes.len(), 18),
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Protocol),
            }
        }
    }
}
