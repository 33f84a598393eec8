//! One JSON object per line on the standard output.

use std::io::{self, StdoutLock, Write};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{fstat, stat};
use postbox_wire::json::Output;

use super::BatchSink;
use crate::dispatch::Task;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Format;
use crate::lease::Lease;

/// The standard output. Delivered means: given to the operating system in whole lines.
#[derive(Debug)]
pub(crate) struct Stdout {
    format: Format,
    lines: Vec<u8>,
}

/// Most bytes that are written without another look at the lease, unless a single line is longer; a piece of an event that is
/// larger goes out by itself, without being copied.
const CHUNK_BYTES: usize = 64 << 10;

impl Stdout {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, lines: Vec::with_capacity(CHUNK_BYTES) }
    }

    /// Refuses a standard output that was closed when the process began: what is written to it is lost without an error. By then
    /// /dev/null stands in for it, open for reading and writing; who throws events away on purpose opens that for writing only.
    pub(crate) fn check() -> Result<()> {
        let out = io::stdout();
        let flags = fcntl(&out, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
        let for_both = flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDWR);
        let device = |file: nix::Result<nix::sys::stat::FileStat>| file.ok().map(|file| file.st_rdev);
        let null = device(stat("/dev/null"));
        if for_both && null.is_some() && device(fstat(&out)) == null {
            return Err(Error::new(
                ErrorKind::Usage,
                "the standard output is closed, or /dev/null for reading and writing",
            )
            .with_hint("Say where events go. To confirm them all and keep none: postbox run ... > /dev/null"));
        }
        Ok(())
    }
}

impl BatchSink for Stdout {
    fn deliver(&mut self, batch: &[Task], lease: &Lease) -> Result<()> {
        self.lines.clear();
        let out = io::stdout().lock();
        let mut out = Lines { pending: &mut self.lines, whole: 0, torn: false, out, lease, outcome: Ok(()) };
        for task in batch {
            self.format.write(&task.event, &mut out);
            out.end_line();
        }
        out.finish()
    }
}

/// Lines on their way out.
struct Lines<'a, W: Write = StdoutLock<'static>> {
    pending: &'a mut Vec<u8>,
    /// So many of the pending bytes are whole lines, or the rest of one that has been begun.
    whole: usize,
    /// A line has been begun that is not finished: the lease is not asked before it is.
    torn: bool,
    out: W,
    lease: &'a Lease,
    /// After a failure nothing more is written.
    outcome: Result<()>,
}

impl<W: Write> Output for Lines<'_, W> {
    fn put(&mut self, bytes: &[u8]) {
        if self.pending.len() + bytes.len() <= CHUNK_BYTES {
            return self.pending.extend_from_slice(bytes);
        }
        self.write_whole();
        if self.pending.len() + bytes.len() <= CHUNK_BYTES {
            return self.pending.extend_from_slice(bytes);
        }
        // One line that is larger than a chunk.
        self.begin();
        self.torn = true;
        let pending = std::mem::take(self.pending);
        self.write(&pending);
        *self.pending = pending;
        self.pending.clear();
        if bytes.len() <= CHUNK_BYTES {
            self.pending.extend_from_slice(bytes);
        } else {
            self.write(bytes);
        }
    }
}

impl<W: Write> Lines<'_, W> {
    fn end_line(&mut self) {
        self.put(b"\n");
        self.whole = self.pending.len();
        if self.torn {
            self.write_whole();
        }
    }

    /// Writes the whole lines among what is pending.
    fn write_whole(&mut self) {
        if self.whole == 0 {
            return;
        }
        self.begin();
        let pending = std::mem::take(self.pending);
        self.write(&pending[..self.whole]);
        *self.pending = pending;
        self.pending.drain(..self.whole);
        (self.whole, self.torn) = (0, false);
    }

    /// Asks the lease before a line is begun.
    fn begin(&mut self) {
        if self.outcome.is_ok() && !self.torn && !self.lease.wait_to_finish() {
            self.outcome = Err(Error::place_lost());
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.outcome.is_ok() {
            self.outcome = self.out.write_all(bytes).map_err(failed);
        }
    }

    fn finish(mut self) -> Result<()> {
        self.write_whole();
        self.outcome?;
        self.out.flush().map_err(failed)
    }
}

fn failed(error: io::Error) -> Error {
    let error = Error::new(ErrorKind::Sink, format!("cannot write to the standard output: {error}"));
    error.with_hint("What was not written comes again at the next start.")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes, and revokes the lease after so many writes.
    struct Revoking<'a> {
        writes: Vec<Vec<u8>>,
        lease: &'a Lease,
        after: usize,
    }

    impl Write for &mut Revoking<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes.push(bytes.to_vec());
            if self.writes.len() == self.after {
                self.lease.revoke();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(lines: &[Vec<u8>], after: usize) -> (Vec<Vec<u8>>, Result<()>) {
        let lease = Lease::unlimited();
        let mut out = Revoking { writes: Vec::new(), lease: &lease, after };
        let mut pending = Vec::new();
        let mut writer =
            Lines { pending: &mut pending, whole: 0, torn: false, out: &mut out, lease: &lease, outcome: Ok(()) };
        for line in lines {
            // An event comes in pieces.
            line.chunks(10_000).for_each(|piece| writer.put(piece));
            writer.end_line();
        }
        let outcome = writer.finish();
        (out.writes, outcome)
    }

    fn joined(lines: &[Vec<u8>]) -> Vec<u8> {
        lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect()
    }

    #[test]
    fn chunks_end_with_a_line_and_nothing_follows_the_revocation() {
        let lines: Vec<_> = (0..50).map(|n| vec![b'a' + n % 26; 7_000 + usize::from(n)]).collect();
        let (writes, outcome) = write(&lines, usize::MAX);
        outcome.expect("written");
        assert_eq!(writes.concat(), joined(&lines));
        assert!(writes.len() > 4 && writes.iter().all(|chunk| chunk.len() <= CHUNK_BYTES && chunk.ends_with(b"\n")));
        for after in 1..writes.len() {
            let (some, outcome) = write(&lines, after);
            assert_eq!(some, writes[..after]);
            assert_eq!(outcome.expect_err("revoked").kind(), ErrorKind::PlaceLost);
        }
    }

    #[test]
    fn a_line_that_is_longer_than_a_chunk_is_finished() {
        let lines = [vec![b'a'; 10], vec![b'b'; 3 * CHUNK_BYTES], vec![b'c'; 10]];
        let (writes, outcome) = write(&lines, usize::MAX);
        outcome.expect("written");
        assert_eq!(writes.concat(), joined(&lines));
        assert_eq!(write(&lines, 1).0.concat(), joined(&lines[..1]));
        for after in 2..writes.len() {
            let (some, outcome) = write(&lines, after);
            assert_eq!(some.concat(), joined(&lines[..2]), "revoked after write {after}");
            outcome.expect_err("revoked");
        }
    }
}
