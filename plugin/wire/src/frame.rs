//! A frame: a transaction's header and some or all of its events. One output write of the plugin is one frame.

use alloc::vec::Vec;

use crate::codec::{Reader, put_varint, put_zigzag};
use crate::decode_error::{DecodeError, Problem};
use crate::event::{Chunk, Entry, Event};
use crate::options::{Names, PROTO_VERSION_MAX};
use crate::outbox::{Definitions, Dictionary, NameSlot};
use crate::{FRAME_BYTES, Lsn, MAX_FRAME_BYTES, PgMicros};

/// What a frame says about its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Position of the commit record: transactions stand in the stream by this.
    pub commit_lsn: Lsn,
    /// End of the commit record: the position to confirm once the transaction is dealt with.
    pub end_lsn: Lsn,
    /// When it was committed, by the server's clock. Not monotone over transactions.
    pub commit_time: PgMicros,
    /// The top-level transaction id with its epoch (`xid8`).
    pub xid: u64,
}

const VERSION: u8 = PROTO_VERSION_MAX as u8;
/// The flags are the second byte, so that an encoder can set [`LAST`] in a frame that is already built.
pub(crate) const FLAGS_AT: usize = 1;
const CONTINUES: u8 = 1 << 0;
const LAST: u8 = 1 << 1;
const NAMES_RESET: u8 = 1 << 2;
/// The events are compressed, see `compression.rs`.
pub(crate) const COMPRESSED: u8 = 1 << 3;
const KNOWN_FLAGS: u8 = CONTINUES | LAST | NAMES_RESET | COMPRESSED;

impl Transaction {
    fn encode(&self, out: &mut Vec<u8>, flags: u8) {
        let Self { commit_lsn, end_lsn, commit_time, xid } = self;
        debug_assert!(end_lsn >= commit_lsn, "a commit record has a length");
        out.extend_from_slice(&[VERSION, flags]);
        put_varint(out, commit_lsn.0);
        put_varint(out, end_lsn.0.wrapping_sub(commit_lsn.0));
        put_zigzag(out, commit_time.0);
        put_varint(out, *xid);
    }

    /// The header and its flags.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<(Self, u8), DecodeError> {
        let start = reader.clone();
        let version = reader.u8("frame version")?;
        if version != VERSION {
            return Err(start.error("frame version", Problem::Unknown(version.into())));
        }
        let start = reader.clone();
        let flags = reader.u8("frame flags")?;
        let unknown = flags & !KNOWN_FLAGS;
        if unknown != 0 {
            return Err(start.error("frame flag", Problem::Unknown(unknown.into())));
        }
        let commit_lsn = reader.varint("commit position")?;
        let start = reader.clone();
        let end_lsn = commit_lsn.checked_add(reader.varint("end of commit")?);
        let end_lsn = end_lsn.ok_or_else(|| start.error("end of commit", Problem::Varint))?;
        let commit_time = PgMicros(reader.zigzag("commit time")?);
        let xid = reader.varint("transaction id")?;
        Ok((Self { commit_lsn: Lsn(commit_lsn), end_lsn: Lsn(end_lsn), commit_time, xid }, flags))
    }
}

/// Builds frames in one buffer that is used again and again.
///
/// For each transaction: [`begin`](Self::begin), [`event`](Self::event) for each, [`take`](Self::take) whenever
/// [`is_due`](Self::is_due) before the next event, and `take(true)` at commit if it [has events](Self::has_events). Never
/// `take` without an event to come or at the end: the last frame has to hold an event.
#[derive(Debug)]
pub struct Encoder {
    frame: Vec<u8>,
    names: Names,
    dictionary: Dictionary,
    /// The next frame has to tell the decoder to forget its names.
    reset_due: bool,
    continues: bool,
    next_ordinal: u64,
}

impl Encoder {
    /// An encoder at the start of a stream.
    pub fn new(names: Names) -> Self {
        let mut dictionary = Dictionary::default();
        dictionary.reset();
        Self { frame: Vec::new(), names, dictionary, reset_due: true, continues: false, next_ordinal: 0 }
    }

    /// Starts a transaction; what was left of another is dropped.
    pub fn begin(&mut self) {
        // The decoder will never see the definitions that the dropped frame holds.
        self.reset_due |= !self.frame.is_empty();
        self.frame.clear();
        self.continues = false;
    }

    /// True if the frame that is being built holds no event.
    pub fn is_empty(&self) -> bool {
        self.frame.is_empty()
    }

    /// True if the transaction has had an event, written out or not.
    pub fn has_events(&self) -> bool {
        self.continues || !self.frame.is_empty()
    }

    /// True if the frame should be written before the next event is added.
    pub fn is_due(&self) -> bool {
        self.frame.len() >= FRAME_BYTES
    }

    /// True if `more` further bytes of fields could make the frame larger than a frame may be. The caller writes the frame
    /// out first; an event whose fields alone are too large it must not add.
    pub fn would_overflow(&self, more: usize) -> bool {
        // Headers, names and lengths of an event are far below this margin.
        more.saturating_add(self.frame.len()).saturating_add(FRAME_BYTES) > MAX_FRAME_BYTES
    }

    /// Adds an event of the transaction. `slot` is the caller's note of where the event's outbox stands in the
    /// dictionary: one per outbox, `NameSlot::default()` at first.
    pub fn event(&mut self, transaction: &Transaction, event: &Event<'_>, slot: &mut NameSlot) {
        self.open(transaction);
        event.encode(&mut self.frame, &mut self.dictionary, slot, self.next_ordinal);
        self.next_ordinal = event.ordinal + 1;
    }

    /// Adds a chunk of a claim whose event follows; otherwise as [`event`](Self::event).
    pub fn chunk(&mut self, transaction: &Transaction, chunk: &Chunk<'_>, slot: &mut NameSlot) {
        self.open(transaction);
        chunk.encode(&mut self.frame, &mut self.dictionary, slot, self.next_ordinal);
        self.next_ordinal = chunk.ordinal;
    }

    /// Begins the frame, if it has nothing in it yet.
    fn open(&mut self, transaction: &Transaction) {
        if self.frame.is_empty() {
            if self.names == Names::Frame || self.dictionary.is_full() {
                self.reset_due = true;
            }
            let mut flags = if self.continues { CONTINUES } else { 0 };
            if self.reset_due {
                self.dictionary.reset();
                self.reset_due = false;
                flags |= NAMES_RESET;
            }
            transaction.encode(&mut self.frame, flags);
            self.next_ordinal = 0;
        }
    }

    /// Finishes the frame and hands it over; `last` if the transaction ends with it. The next event starts a new frame.
    pub fn take(&mut self, last: bool, write: impl FnOnce(&[u8])) {
        if let Some(flags) = self.frame.get_mut(FLAGS_AT) {
            *flags |= if last { LAST } else { 0 };
        }
        self.continues = !last;
        write(&self.frame);
        // One huge event must not keep its memory for the rest of the stream.
        if self.frame.capacity() > 16 * FRAME_BYTES {
            self.frame = Vec::new();
        }
        self.frame.clear();
    }
}

/// Reads frames of one stream in order; keeps the names that earlier frames have defined.
#[derive(Debug, Default)]
pub struct Decoder {
    names: Definitions,
    /// The latest frame has not been read to its end.
    unread: bool,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a frame's header; the frame then gives its events. A stream that was asked to be compressed has frames that
    /// [`expand`](crate::expand) has to see first.
    ///
    /// # Errors
    /// Bytes that are not a frame of this version, or a compressed one.
    ///
    /// After an error, after a frame whose events were not all read, and in the middle of a stream, references to names are
    /// refused until a frame empties the dictionary: the stream has to be read from its start again.
    pub fn frame<'d, 'a>(&'d mut self, bytes: &'a [u8]) -> Result<Frame<'d, 'a>, DecodeError> {
        if core::mem::replace(&mut self.unread, true) {
            self.names.lose();
        }
        let mut reader = Reader::new(bytes);
        if bytes.len() > MAX_FRAME_BYTES {
            let problem = Problem::TooLarge { found: bytes.len() as u64, limit: MAX_FRAME_BYTES as u64 };
            return Err(reader.error("frame length", problem));
        }
        let (transaction, flags) = Transaction::decode(&mut reader)?;
        if flags & COMPRESSED != 0 {
            return Err(reader.error("events", Problem::Compressed));
        }
        if flags & NAMES_RESET != 0 {
            self.names.reset();
        }
        if reader.is_empty() {
            return Err(reader.error("first event", Problem::Missing { needed: 1, left: 0 }));
        }
        Ok(Frame { transaction, flags, reader, next_ordinal: 0, decoder: self })
    }
}

/// A frame being read.
#[derive(Debug)]
pub struct Frame<'d, 'a> {
    /// The transaction that the frame belongs to.
    pub transaction: Transaction,
    flags: u8,
    reader: Reader<'a>,
    next_ordinal: u64,
    decoder: &'d mut Decoder,
}

impl<'a> Frame<'_, 'a> {
    /// True unless this is the first frame of its transaction.
    pub fn continues(&self) -> bool {
        self.flags & CONTINUES != 0
    }

    /// True if the transaction ends with this frame.
    pub fn is_last(&self) -> bool {
        self.flags & LAST != 0
    }

    /// The next event, or `None` at the end of the frame. For streams that were not asked for chunks of claims, which are an
    /// error here.
    ///
    /// # Errors
    /// Bytes that are not an event of this version; the rest of the frame cannot be read then.
    pub fn next_event(&mut self) -> Result<Option<Event<'a>>, DecodeError> {
        let start = self.reader.clone();
        match self.next_entry()? {
            Some(Entry::Event(event)) => Ok(Some(event)),
            Some(Entry::Chunk(_)) => {
                self.decoder.names.lose();
                Err(start.error("event kind", Problem::Unknown(3)))
            }
            None => Ok(None),
        }
    }

    /// The next event or chunk of a claim, or `None` at the end of the frame.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event).
    pub fn next_entry(&mut self) -> Result<Option<Entry<'a>>, DecodeError> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let entry = self.decode_entry();
        match entry {
            Err(_) => self.decoder.names.lose(),
            Ok(_) => self.decoder.unread = !self.reader.is_empty(),
        }
        entry.map(Some)
    }

    fn decode_entry(&mut self) -> Result<Entry<'a>, DecodeError> {
        let start = self.reader.clone();
        let entry = Entry::decode(&mut self.reader, &mut self.decoder.names, self.next_ordinal)?;
        let next = match &entry {
            Entry::Event(event) => event.ordinal.checked_add(1),
            Entry::Chunk(chunk) => Some(chunk.ordinal),
        };
        self.next_ordinal = next.ok_or_else(|| start.error("ordinal", Problem::Varint))?;
        Ok(entry)
    }
}
