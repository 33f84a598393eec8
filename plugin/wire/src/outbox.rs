//! What the stream says about an outbox, once per dictionary of names.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::codec::{Reader, bytes_len, put_bytes, put_u8};
use crate::decode_error::{DecodeError, Problem};
use crate::{MAX_NAME_BYTES, MAX_NAMES};

/// An outbox as it was when the event was written: names as of that transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outbox {
    /// Schema of the table (of the partitioned table, where rows lie in leaves).
    pub schema: String,
    /// Name of the table.
    pub table: String,
    /// How to read the payload's bytes.
    pub payload_type: PayloadType,
}

/// The type of an outbox's payload column, which says what the payload's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PayloadType {
    /// JSON text as PostgreSQL prints jsonb.
    Jsonb = 1,
    /// JSON text as it was stored.
    Json = 2,
    /// UTF-8 text.
    Text = 3,
    /// Any bytes.
    Bytea = 4,
}

impl Outbox {
    pub(crate) fn encoded_len(&self) -> usize {
        bytes_len(self.schema.as_bytes()) + bytes_len(self.table.as_bytes()) + 1
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { schema, table, payload_type } = self;
        put_bytes(out, schema.as_bytes());
        put_bytes(out, table.as_bytes());
        put_u8(out, *payload_type as u8);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let schema = name(reader, "schema name", "length of schema name")?;
        let table = name(reader, "table name", "length of table name")?;
        let start = reader.clone();
        let payload_type = match reader.u8("payload type")? {
            1 => PayloadType::Jsonb,
            2 => PayloadType::Json,
            3 => PayloadType::Text,
            4 => PayloadType::Bytea,
            other => return Err(start.error("payload type", Problem::Unknown(other.into()))),
        };
        Ok(Self { schema, table, payload_type })
    }
}

/// `schema.table`, as events show it; not quoted.
impl fmt::Display for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

fn name(reader: &mut Reader<'_>, field: &'static str, length: &'static str) -> Result<String, DecodeError> {
    let start = reader.clone();
    let text = reader.text(field)?;
    if text.len() > MAX_NAME_BYTES {
        let problem = Problem::TooLarge { found: text.len() as u64, limit: MAX_NAME_BYTES as u64 };
        return Err(start.error(length, problem));
    }
    Ok(text.into())
}

/// The encoder's side of the dictionary: counts definitions since the dictionary was last emptied.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    generation: u64,
    defined: usize,
}

/// Where an outbox stands in the encoder's dictionary; the caller keeps one for each outbox and each encoder.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameSlot {
    generation: u64,
    reference: u64,
}

impl Dictionary {
    /// Forgets every definition. Slots made before are of an older generation and count as undefined.
    pub(crate) fn reset(&mut self) {
        self.generation += 1;
        self.defined = 0;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.defined >= MAX_NAMES / 2
    }

    /// The reference of a defined outbox; or `None`, and the slot now holds the reference that its definition gets.
    pub(crate) fn refer(&mut self, slot: &mut NameSlot) -> Option<u64> {
        if slot.generation == self.generation && slot.reference != 0 {
            return Some(slot.reference);
        }
        self.defined += 1;
        *slot = NameSlot { generation: self.generation, reference: self.defined as u64 };
        None
    }
}

/// The decoder's side of the dictionary: the outboxes defined since it was last emptied.
#[derive(Debug, Default)]
pub(crate) struct Definitions {
    outboxes: Vec<Arc<Outbox>>,
    /// False from the start, or from a frame that was not read to its end, to the next emptying: a definition may have
    /// been missed, so that nobody knows which numbers the others have.
    complete: bool,
}

impl Definitions {
    /// Forgets every definition.
    pub(crate) fn reset(&mut self) {
        self.outboxes.clear();
        self.complete = true;
    }

    /// Notes that a definition may have been missed.
    pub(crate) fn lose(&mut self) {
        self.outboxes.clear();
        self.complete = false;
    }

    /// Reads a reference; or a definition, which it numbers.
    pub(crate) fn decode(&mut self, reader: &mut Reader<'_>) -> Result<Arc<Outbox>, DecodeError> {
        let start = reader.clone();
        let reference = reader.varint("outbox reference")?;
        if reference > 0 {
            let index = usize::try_from(reference - 1).unwrap_or(usize::MAX);
            let found = self.outboxes.get(index).map(Arc::clone);
            return found.ok_or_else(|| start.error("outbox reference", Problem::Undefined(reference)));
        }
        if self.outboxes.len() >= MAX_NAMES {
            let problem = Problem::TooLarge { found: self.outboxes.len() as u64 + 1, limit: MAX_NAMES as u64 };
            return Err(start.error("number of names", problem));
        }
        let outbox = Arc::new(Outbox::decode(reader)?);
        if self.complete {
            self.outboxes.push(Arc::clone(&outbox));
        }
        Ok(outbox)
    }
}
