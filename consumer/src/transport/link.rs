//! Messages over a socket: framing, buffers that follow what arrives, and the reports of the server.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::refusal::{About, Report};
use super::socket::Socket;
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a message: PostgreSQL cannot build a larger one.
const MAX_MESSAGE: usize = 1 << 30;

/// Most bytes of a message before the login is done, when nobody has proved to be the server; libpq's limit.
const MAX_STARTUP_MESSAGE: usize = 30_000;

/// Bytes that are read at a time: some hundred small messages, or two frames of the plugin.
const READ: usize = 128 << 10;

/// A message above this gets a buffer of its own, which leaves with it; the shared buffer never grows beyond.
const LARGE: usize = 2 * READ;

/// The first buffer of a large message. Later ones double what has arrived, so that a length alone allocates nothing.
const FIRST: usize = 1 << 20;

/// A message of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Its type.
    pub(super) tag: u8,
    /// What follows the length, as a slice of the buffer it was read into.
    pub(super) body: Bytes,
}

/// The stream of messages to and from one server process.
#[derive(Debug)]
pub(super) struct Link<S = Socket> {
    socket: S,
    inbox: BytesMut,
    large: Option<Large>,
    outbox: BytesMut,
    limit: usize,
    about: About,
}

/// A large message of which a part has arrived.
#[derive(Debug)]
struct Large {
    tag: u8,
    len: usize,
    body: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// A link on which nobody has logged in yet.
    pub(super) fn new(socket: S, about: About) -> Self {
        Self { socket, inbox: BytesMut::new(), large: None, outbox: BytesMut::new(), limit: MAX_STARTUP_MESSAGE, about }
    }

    /// Allows messages of any size that PostgreSQL can send, once the login is done.
    pub(super) fn trust_sizes(&mut self) {
        self.limit = MAX_MESSAGE;
    }

    /// What errors are about; they name it and their remedies contain it.
    pub(super) fn about(&mut self) -> &mut About {
        &mut self.about
    }

    /// The socket, and what has been read from it beyond the last message.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.socket, self.inbox.freeze())
    }

    /// The next message. An error that the server reports is returned as such, a notice is logged.
    ///
    /// Cancel-safe: what has arrived stays in the buffer.
    pub(super) async fn recv(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// The next message if all of it has been read already.
    pub(super) fn try_recv(&mut self) -> Result<Option<Message>> {
        while let Some(message) = self.take_buffered()? {
            match message.tag {
                b'E' => return Err(Report::parse(&message.body)?.into_error(&self.about)),
                b'N' => Report::parse(&message.body)?.log(),
                // NOTIFY: nothing here listens.
                b'A' => {}
                _ => return Ok(Some(message)),
            }
        }
        Ok(None)
    }

    /// The buffer of what is to be sent; [`flush`](Self::flush) sends it.
    pub(super) fn outbox(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    /// Sends the outbox.
    ///
    /// Cancel-safe: what has not been sent goes out with the next call.
    pub(super) async fn flush(&mut self) -> Result<()> {
        while self.outbox.has_remaining() {
            if self.socket.write_buf(&mut self.outbox).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::WriteZero.into()));
            }
        }
        self.socket.flush().await.map_err(lost)
    }

    /// Takes leave, so that the server does not have to find out and to log it. Errors no longer matter.
    pub(super) async fn close(mut self) {
        // Terminate.
        self.outbox.put_slice(&[b'X', 0, 0, 0, 4]);
        if self.flush().await.is_ok() {
            let _ = self.socket.shutdown().await;
        }
    }

    /// Waits for bytes.
    async fn read(&mut self) -> Result<()> {
        let read = match &mut self.large {
            Some(large) => {
                large.grow()?;
                let missing = large.len - large.body.len();
                self.socket.read_buf(&mut (&mut large.body).limit(missing)).await
            }
            None => {
                // Small reads into the rest of a buffer cost more than what the rest is worth.
                if self.inbox.capacity() - self.inbox.len() < READ / 4 {
                    self.inbox.reserve(READ);
                }
                self.socket.read_buf(&mut self.inbox).await
            }
        };
        match read.map_err(lost)? {
            0 => Err(lost(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    /// Cuts a whole message off the buffer, if one has arrived.
    fn take_buffered(&mut self) -> Result<Option<Message>> {
        if let Some(large) = self.large.take_if(|large| large.body.len() == large.len) {
            return Ok(Some(Message { tag: large.tag, body: large.body.into() }));
        }
        if self.large.is_some() {
            return Ok(None);
        }
        let Some(&[tag, a, b, c, d]) = self.inbox.first_chunk() else { return Ok(None) };
        // The length counts itself and not the tag.
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=self.limit).contains(&len) {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "the server sent a message of type 0x{tag:02x} with length {len}, allowed is 4 to {}",
                    self.limit
                ),
            )
            .with_hint("Is it a PostgreSQL server that listens there?"));
        }
        if self.inbox.len() > len {
            let mut body = self.inbox.split_to(len + 1).freeze();
            body.advance(5);
            return Ok(Some(Message { tag, body }));
        }
        if len > LARGE {
            self.inbox.advance(5);
            let mut large = Large { tag, len: len - 4, body: Vec::new() };
            large.grow()?;
            large.body.extend_from_slice(&self.inbox);
            self.inbox.clear();
            self.large = Some(large);
        } else {
            self.inbox.reserve(len + 1 - self.inbox.len());
        }
        Ok(None)
    }
}

impl Large {
    /// Makes room for as much again as has arrived, and for no more than the message has.
    fn grow(&mut self) -> Result<()> {
        let have = self.body.len();
        if have < self.body.capacity() {
            return Ok(());
        }
        let room = have.max(FIRST).min(self.len - have);
        self.body.try_reserve_exact(room).map_err(|error| {
            Error::new(ErrorKind::Other, format!("no memory for a message of {} bytes", self.len))
                .with_hint("Give the process more memory, or lower max_event_bytes.")
                .with_source(error)
        })
    }
}

/// The link is gone; why is in the source.
fn lost(error: io::Error) -> Error {
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => "the server closed the connection",
        _ => "the connection to the server broke",
    };
    Error::new(ErrorKind::Connect, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use tokio::io::{DuplexStream, duplex};

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend(u32::try_from(body.len() + 4).expect("a length").to_be_bytes());
        out.extend(body);
        out
    }

    fn link(socket: DuplexStream) -> Link<DuplexStream> {
        let mut link = Link::new(socket, About::default());
        link.trust_sizes();
        link
    }

    #[tokio::test]
    async fn messages_of_every_size_arrive_whole() {
        let sizes = [
            0,
            1,
            100,
            READ - 5,
            READ,
            READ + 1,
            LARGE - 4,
            LARGE - 3,
            LARGE,
            FIRST - 1,
            FIRST,
            FIRST + 1,
            5 * FIRST + 7,
            3,
        ];
        let (ours, mut theirs) = duplex(50_000);
        let sender = tokio::spawn(async move {
            for (index, size) in sizes.iter().enumerate() {
                theirs.write_all(&message(b'd', &vec![index as u8; *size])).await.expect("sent");
            }
        });
        let mut link = link(ours);
        for (index, size) in sizes.iter().enumerate() {
            let got = link.recv().await.expect("a message");
            assert_eq!((got.tag, got.body.len()), (b'd', *size));
            assert!(got.body.iter().all(|byte| *byte == index as u8), "message {index}");
        }
        sender.await.expect("sender");
        assert_eq!(link.recv().await.expect_err("end").kind(), ErrorKind::Connect);
    }

    #[tokio::test]
    async fn a_large_message_takes_its_memory_away_with_it() {
        let (ours, mut theirs) = duplex(1 << 20);
        let body = vec![7; 20 * FIRST];
        let whole = message(b'd', &body);
        let sender = tokio::spawn(async move {
            theirs.write_all(&whole).await.expect("sent");
            theirs
        });
        let mut link = link(ours);
        let got = link.recv().await.expect("a message");
        assert_eq!(got.body, body);
        assert!(link.inbox.capacity() <= LARGE + READ, "{} bytes stay", link.inbox.capacity());
        assert!(link.large.is_none());
        drop(sender);
    }

    #[tokio::test]
    async fn a_length_alone_allocates_little() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut link = link(ours);
        theirs.write_all(&[b'd', 0x3f, 0xff, 0xff, 0xff, 1, 2, 3]).await.expect("sent");
        {
            let mut recv = pin!(link.recv());
            assert!(matches!(recv.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        }
        let large = link.large.as_ref().expect("begun");
        assert_eq!(large.body, [1, 2, 3]);
        assert!(large.body.capacity() <= FIRST, "{} bytes for 3", large.body.capacity());
    }

    #[tokio::test]
    async fn cancelling_loses_nothing() {
        let bytes = [message(b'd', b"first"), message(b'k', &[9; LARGE * 2]), message(b'c', b"")].concat();
        let (ours, mut theirs) = duplex(1 << 20);
        let mut link = link(ours);
        let mut got = Vec::new();
        // Every call is given up as soon as it has to wait.
        for piece in bytes.chunks(777) {
            theirs.write_all(piece).await.expect("sent");
            while let Poll::Ready(one) = pin!(link.recv()).poll(&mut Context::from_waker(Waker::noop())) {
                got.push(one.expect("a message"));
            }
        }
        let got = got.iter().map(|one| (one.tag, one.body.len())).collect::<Vec<_>>();
        assert_eq!(got, [(b'd', 5), (b'k', LARGE * 2), (b'c', 0)]);
    }

    #[tokio::test]
    async fn impossible_lengths_are_refused() {
        for (header, trusted) in [
            ([b'd', 0, 0, 0, 3], true),
            ([b'd', 0xff, 0xff, 0xff, 0xff], true),
            ([b'd', 0x40, 0, 0, 1], true),
            ([b'R', 0, 0, 0x80, 0], false),
        ] {
            let (ours, mut theirs) = duplex(64);
            let mut link = Link::new(ours, About::default());
            if trusted {
                link.trust_sizes();
            }
            theirs.write_all(&header).await.expect("sent");
            let error = link.recv().await.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'E'), Just(b'N')], 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let (ours, mut theirs) = duplex(1 << 10);
                theirs.write_all(&bytes).await.expect("sent");
                drop(theirs);
                let mut link = link(ours);
                while link.recv().await.is_ok() {}
                assert!(link.inbox.capacity() <= LARGE + READ);
            });
        }
    }
}
