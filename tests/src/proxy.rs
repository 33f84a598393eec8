//! A TCP proxy in front of a server, for links that break, stall, or swallow everything.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Listens on a port of its own and passes bytes on to the server; dropping it closes every link.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Links up to this number are dead: nothing passes, and nobody is told.
    dead: usize,
    /// New links are born dead.
    black_hole: bool,
    /// Nothing passes for now.
    stalled: bool,
    /// Behind a piece that ends so, this comes in the same one.
    behind: Option<(&'static [u8], Vec<u8>)>,
    closed: bool,
    /// Both ends of every link there has been, which keeps those of a dead link open.
    links: Vec<(TcpStream, TcpStream)>,
}

impl Proxy {
    /// Listens in front of the server on this port of 127.0.0.1.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port for the proxy");
        let port = listener.local_addr().expect("the port of the proxy").port();
        let shared = Arc::new(Shared { server, state: Mutex::default(), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { port, shared }
    }

    /// The port to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many links have been opened so far, dead ones included.
    pub fn links(&self) -> usize {
        self.shared.state().links.len()
    }

    /// Closes every link at both ends; new ones are taken.
    pub fn cut(&self) {
        self.shared.state().cut();
    }

    /// Lets nothing pass until [`resume`](Self::resume); what is sent meanwhile arrives late.
    pub fn stall(&self) {
        self.shared.state().stalled = true;
    }

    /// Ends a [`stall`](Self::stall).
    pub fn resume(&self) {
        self.shared.state().stalled = false;
        self.shared.changed.notify_all();
    }

    /// Has `more` come together with whatever ends with `end`.
    pub fn add_behind(&self, end: &'static [u8], more: Vec<u8>) {
        self.shared.state().behind = Some((end, more));
    }

    /// Kills every link without telling either end, and every new one too, until [`reopen`](Self::reopen).
    pub fn swallow(&self) {
        let mut state = self.shared.state();
        state.black_hole = true;
        state.dead = state.links.len();
    }

    /// Lets links that are opened from now on pass; dead ones stay dead.
    pub fn reopen(&self) {
        self.shared.state().black_hole = false;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.state().closed {
                return;
            }
            // Where the server is down, dropping the client's end tells it so.
            if let Ok(client) = client {
                let _ = self.open(client);
            }
        }
    }

    fn open(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", self.server))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let ends = [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)];
        let mut state = self.state();
        state.links.push((client, server));
        let number = state.links.len();
        if state.black_hole {
            state.dead = number;
        }
        drop(state);
        for (from, to) in ends {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(number, from, to));
        }
        Ok(())
    }

    /// Passes bytes in one direction until the link ends.
    fn pump(&self, link: usize, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if !self.may_pass(link) {
                return;
            }
            let read = from.read(&mut buffer).unwrap_or(0);
            if !self.may_pass(link) {
                return;
            }
            let mut piece = buffer[..read].to_vec();
            if let Some((end, more)) = &self.state().behind
                && piece.ends_with(end)
            {
                piece.extend_from_slice(more);
            }
            if read == 0 || to.write_all(&piece).is_err() {
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                return;
            }
        }
    }

    /// Waits while the proxy is stalled; false if the link is dead.
    fn may_pass(&self, link: usize) -> bool {
        let waiting = |state: &mut State| state.stalled && !state.closed;
        let state = self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner);
        link > state.dead
    }
}

impl State {
    fn cut(&mut self) {
        for (client, server) in &self.links {
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
    }
}
