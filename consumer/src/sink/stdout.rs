//! One JSON object per line on the standard output.

use std::io::{self, StdoutLock, Write};

use postbox_wire::json::Output;

use super::Sink;
use crate::consumer::Delivery;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Format;

/// The standard output. Delivered means: given to the operating system in whole lines.
#[derive(Debug)]
pub(crate) struct Stdout {
    format: Format,
    lines: Vec<u8>,
}

/// So many bytes are written at once; a piece of an event that is larger goes out by itself, without being copied.
const WRITE_BYTES: usize = 256 << 10;

impl Stdout {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, lines: Vec::new() }
    }
}

impl Sink for Stdout {
    fn deliver(&mut self, batch: &[Delivery]) -> Result<()> {
        let mut out = Lines { pending: &mut self.lines, out: io::stdout().lock(), outcome: Ok(()) };
        for delivery in batch {
            self.format.write(delivery.event(), &mut out);
            out.put(b"\n");
        }
        out.finish().map_err(|error| {
            let error = Error::new(ErrorKind::Sink, format!("cannot write to the standard output: {error}"));
            error.with_hint("What was not written comes again at the next start.")
        })
    }
}

/// Lines on their way out.
struct Lines<'a> {
    pending: &'a mut Vec<u8>,
    out: StdoutLock<'static>,
    /// After a failure nothing more is written.
    outcome: io::Result<()>,
}

impl Output for Lines<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if self.pending.len() + bytes.len() <= WRITE_BYTES {
            return self.pending.extend_from_slice(bytes);
        }
        self.write_pending();
        if bytes.len() <= WRITE_BYTES {
            self.pending.extend_from_slice(bytes);
        } else if self.outcome.is_ok() {
            self.outcome = self.out.write_all(bytes);
        }
    }
}

impl Lines<'_> {
    fn write_pending(&mut self) {
        if self.outcome.is_ok() {
            self.outcome = self.out.write_all(self.pending);
        }
        self.pending.clear();
    }

    fn finish(mut self) -> io::Result<()> {
        self.write_pending();
        self.outcome.and_then(|()| self.out.flush())
    }
}
