//! One JSON object per line on the standard output.

use std::io::{self, Write};

use super::Sink;
use crate::consumer::Delivery;
use crate::error::{Error, ErrorKind, Result};

/// The standard output. Delivered means: given to the operating system in whole lines.
#[derive(Debug, Default)]
pub(crate) struct Stdout {
    lines: Vec<u8>,
}

/// One large event must not keep its memory.
const KEEP_BYTES: usize = 1 << 20;

impl Sink for Stdout {
    fn deliver(&mut self, batch: &[Delivery]) -> Result<()> {
        self.lines.clear();
        for delivery in batch {
            delivery.event().write_json(&mut self.lines);
            self.lines.push(b'\n');
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(&self.lines).and_then(|()| out.flush());
        if self.lines.capacity() > KEEP_BYTES {
            self.lines = Vec::new();
        }
        written.map_err(|error| {
            let error = Error::new(ErrorKind::Sink, format!("cannot write to the standard output: {error}"));
            error.with_hint("What was not written comes again at the next start.")
        })
    }
}
