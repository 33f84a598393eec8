//! A stream that has been logged in, for a client that wants to log in itself.
//!
//! tokio-postgres has no way to take over a connection, and its own login would send a clear-text password over any
//! link and know nothing of our TLS. So its startup message is swallowed, and it reads the end of the login that has
//! taken place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// AuthenticationOk.
const AUTHENTICATION_OK: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 0];

/// A stream whose login is repeated from memory.
#[derive(Debug)]
pub(super) struct Replay<S> {
    socket: S,
    /// What is read before the socket is.
    pending: Bytes,
    startup: Startup,
}

/// How much of the startup message has been swallowed.
#[derive(Debug)]
enum Startup {
    /// These many bytes of its length.
    Length([u8; 4], usize),
    /// All but these many bytes of the rest.
    Rest(usize),
}

impl<S> Replay<S> {
    /// A stream that gives AuthenticationOk and `greeting`, and then what `socket` gives.
    pub(super) fn new(socket: S, greeting: &[u8]) -> Self {
        let mut pending = BytesMut::from(AUTHENTICATION_OK);
        pending.extend_from_slice(greeting);
        Self { socket, pending: pending.freeze(), startup: Startup::Length([0; 4], 0) }
    }
}

impl Startup {
    /// Takes what belongs to the startup message from the front of `bytes`; returns how much that is.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Length(length, have) => {
                let taken = bytes.len().min(4 - *have);
                length[*have..*have + taken].copy_from_slice(&bytes[..taken]);
                *have += taken;
                if *have == 4 {
                    *self = Self::Rest((u32::from_be_bytes(*length) as usize).saturating_sub(4));
                }
                taken
            }
            Self::Rest(left) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                taken
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        let taken = self.pending.len().min(buf.remaining());
        buf.put_slice(&self.pending[..taken]);
        self.pending.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.startup.swallow(bytes) {
            0 => Pin::new(&mut self.socket).poll_write(cx, bytes),
            swallowed => Poll::Ready(Ok(swallowed)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn the_startup_message_is_swallowed_however_it_is_cut() {
        let startup = [0, 0, 0, 9, b's', b't', b'a', b'r', b't'];
        for cut in 1..=startup.len() {
            let (socket, mut server) = duplex(64);
            let mut replay = Replay::new(socket, b"greeting");
            for piece in startup.chunks(cut) {
                replay.write_all(piece).await.expect("swallowed");
            }
            replay.write_all(b"query").await.expect("sent");
            server.write_all(b"answer").await.expect("sent");
            let mut got = [0; 9 + 8 + 6];
            replay.read_exact(&mut got).await.expect("read");
            assert_eq!(got, *b"R\0\0\0\x08\0\0\0\0greetinganswer");
            let mut query = [0; 5];
            server.read_exact(&mut query).await.expect("read");
            assert_eq!(query, *b"query");
        }
    }
}
