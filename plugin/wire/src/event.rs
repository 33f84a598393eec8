//! One event of a frame.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::MAX_RAW_COLUMNS;
use crate::codec::{Reader, bytes_len, put_bytes, put_u8, put_varint, put_zigzag, varint_len, zigzag};
use crate::decode_error::{DecodeError, Problem};
use crate::outbox::{Definitions, Dictionary, NameSlot, Outbox};

/// An event: one row of an outbox. Slices borrow from the frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Event<'a> {
    /// The outbox that the row was inserted into.
    pub outbox: Arc<Outbox>,
    /// Outbox rows that the transaction inserted before this one, into any outbox, selected or not: with the commit's
    /// position the event's place in the order of the whole log.
    pub ordinal: u64,
    /// The row's id. Absent only in error events.
    pub id: Option<EventId<'a>>,
    /// The row's number in its outbox, where the outbox has one. Not in commit order.
    pub seq: Option<i64>,
    /// What happened. Absent only in error events.
    pub event_type: Option<&'a str>,
    /// Events of one key are delivered in commit order.
    pub key: Option<&'a str>,
    /// JSON text.
    pub headers: Option<&'a str>,
    /// To be read by the outbox's [`PayloadType`](crate::PayloadType); absent where the column is NULL.
    pub payload: Option<&'a [u8]>,
    /// Set if the event's data lies in the claims of the outbox: JSON that says what there is. Only in a stream that was asked for
    /// [`Claims`](crate::Claims).
    pub claim: Option<&'a str>,
    /// Set if the row could not be turned into an event as it stands.
    pub error: Option<EventError<'a>>,
}

/// A part of the data of a claim, which comes before the event of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk<'a> {
    /// The outbox of the claim.
    pub outbox: Arc<Outbox>,
    /// That of the transaction's next event, whose claim need not be this one.
    pub ordinal: u64,
    /// The seq of the event whose data this is.
    pub seq: i64,
    /// Chunks of a claim are counted from 0.
    pub number: u32,
    /// Rows that end in the data.
    pub rows: u32,
    /// The data.
    pub data: &'a [u8],
}

/// What stands in a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<'a> {
    /// An event.
    Event(Event<'a>),
    /// A part of the data of one that follows in the transaction.
    Chunk(Chunk<'a>),
}

/// The id of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventId<'a> {
    /// A UUID, in network byte order.
    Uuid([u8; 16]),
    /// Any text.
    Text(&'a str),
    /// A number.
    Int(i64),
}

/// Why a row is an error event, and what could not be represented.
#[derive(Clone, Debug, PartialEq)]
pub struct EventError<'a> {
    /// The kind of fault.
    pub code: ErrorCode,
    /// The fault in words.
    pub detail: &'a str,
    /// The columns that stand as raw bytes here because they could not be fields of the event.
    pub raw: Vec<RawColumn<'a>>,
}

/// Most bytes of what is said of one fault: it may quote what anybody has written.
const FAULT_BYTES: usize = 8 << 10;

/// What is said of a fault, cut off where it becomes too long, which is said instead.
pub fn shortened(mut detail: String) -> String {
    if detail.len() > FAULT_BYTES {
        let end = detail.floor_char_boundary(FAULT_BYTES);
        let rest = detail.len() - end;
        detail.truncate(end);
        detail.push_str(&format!("… ({rest} bytes more)"));
    }
    detail
}

/// A column's bytes as PostgreSQL stores them (decompressed, without the length header); in an event that is too large, as
/// the field would have held them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawColumn<'a> {
    /// The column's name.
    pub column: &'a str,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// The kinds of fault that make a row an error event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Text cannot be represented in UTF-8.
    Encoding = 1,
    /// The event is larger than the limit.
    TooLarge = 2,
    /// A stored value cannot be read.
    Malformed = 3,
    /// A column that every event needs is NULL.
    Null = 4,
    /// The marker's column mapping does not fit the table.
    Mapping = 5,
}

impl ErrorCode {
    const ALL: [Self; 5] = [Self::Encoding, Self::TooLarge, Self::Malformed, Self::Null, Self::Mapping];

    /// The name in the native JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encoding => "encoding",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Null => "null",
            Self::Mapping => "mapping",
        }
    }
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => f.write_str(core::str::from_utf8(&uuid_text(bytes)).unwrap_or_default()),
            Self::Text(text) => f.write_str(text),
            Self::Int(number) => write!(f, "{number}"),
        }
    }
}

/// A UUID in its usual form: 8-4-4-4-12 hexadecimal digits.
pub(crate) fn uuid_text(bytes: &[u8; 16]) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (index, byte) in bytes.iter().enumerate() {
        // Dashes stand before bytes 4, 6, 8 and 10.
        place += usize::from(matches!(index, 4 | 6 | 8 | 10));
        if let Some([high, low]) = text.get_mut(place..place + 2) {
            *high = HEX[usize::from(byte >> 4)];
            *low = HEX[usize::from(byte & 15)];
        }
        place += 2;
    }
    text
}

/// The kind stands in the low two bits of the head byte: 2 is kept for messages.
const KIND: u8 = 0b11;
const KIND_EVENT: u8 = 0;
const KIND_CLAIM: u8 = 1;
const KIND_CHUNK: u8 = 3;
const HAS_ERROR: u8 = 1 << 2;
const HAS_KEY: u8 = 1 << 3;
const HAS_HEADERS: u8 = 1 << 4;
const HAS_PAYLOAD: u8 = 1 << 5;
const HAS_SEQ: u8 = 1 << 6;
const HAS_TYPE: u8 = 1 << 7;

const ID_NONE: u8 = 0;
const ID_UUID: u8 = 1;
const ID_TEXT: u8 = 2;
const ID_INT: u8 = 3;

impl<'a> Event<'a> {
    /// Bytes of the fields that the limit counts.
    pub fn size(&self) -> usize {
        let id = if let Some(EventId::Text(text)) = self.id { text.len() } else { 16 };
        let text = |field: Option<&str>| field.map_or(0, str::len);
        let raw = self.error.iter().flat_map(|error| &error.raw).map(|raw| raw.bytes.len()).sum::<usize>();
        let payload = self.payload.map_or(0, <[u8]>::len) + text(self.claim);
        id + text(self.event_type) + text(self.key) + text(self.headers) + payload + raw
    }

    /// Appends the event. `expected` is the ordinal that would follow the frame's previous event.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, names: &mut Dictionary, slot: &mut NameSlot, expected: u64) {
        let Self { outbox, ordinal, id, seq, event_type, key, headers, payload, claim, error } = self;
        debug_assert!(*ordinal >= expected, "ordinals rise");
        let flag = |present: bool, bit: u8| if present { bit } else { 0 };
        let head = if claim.is_some() { KIND_CLAIM } else { KIND_EVENT }
            | flag(error.is_some(), HAS_ERROR)
            | flag(key.is_some(), HAS_KEY)
            | flag(headers.is_some(), HAS_HEADERS)
            | flag(payload.is_some(), HAS_PAYLOAD)
            | flag(seq.is_some(), HAS_SEQ)
            | flag(event_type.is_some(), HAS_TYPE);
        let skipped = ordinal.wrapping_sub(expected);
        let reference = names.refer(slot);

        let text_len = |field: &Option<&str>| field.map_or(0, |text| bytes_len(text.as_bytes()));
        let length = 1
            + varint_len(skipped)
            + reference.map_or_else(|| 1 + outbox.encoded_len(), varint_len)
            + match id {
                None => 1,
                Some(EventId::Uuid(_)) => 17,
                Some(EventId::Text(text)) => 1 + bytes_len(text.as_bytes()),
                Some(EventId::Int(number)) => 1 + varint_len(zigzag(*number)),
            }
            + seq.map_or(0, |seq| varint_len(zigzag(seq)))
            + text_len(event_type)
            + text_len(key)
            + text_len(headers)
            + payload.map_or(0, bytes_len)
            + text_len(claim)
            + error.as_ref().map_or(0, EventError::encoded_len);
        put_varint(out, length as u64);
        let start = out.len();

        put_u8(out, head);
        put_varint(out, skipped);
        match reference {
            Some(reference) => put_varint(out, reference),
            None => {
                put_varint(out, 0);
                outbox.encode(out);
            }
        }
        match id {
            None => put_u8(out, ID_NONE),
            Some(EventId::Uuid(bytes)) => {
                put_u8(out, ID_UUID);
                out.extend_from_slice(bytes);
            }
            Some(EventId::Text(text)) => {
                put_u8(out, ID_TEXT);
                put_bytes(out, text.as_bytes());
            }
            Some(EventId::Int(number)) => {
                put_u8(out, ID_INT);
                put_zigzag(out, *number);
            }
        }
        if let Some(seq) = seq {
            put_zigzag(out, *seq);
        }
        for text in [event_type, key, headers].into_iter().flatten() {
            put_bytes(out, text.as_bytes());
        }
        if let Some(payload) = payload {
            put_bytes(out, payload);
        }
        if let Some(claim) = claim {
            put_bytes(out, claim.as_bytes());
        }
        if let Some(error) = error {
            error.encode(out);
        }
        debug_assert_eq!(out.len() - start, length, "the length was counted right");
    }

    /// Reads the fields of an event; `start` stands before its head.
    fn decode(
        mut reader: Reader<'a>,
        start: &Reader<'a>,
        head: u8,
        names: &mut Definitions,
        expected: u64,
    ) -> Result<Self, DecodeError> {
        let has = |bit| head & bit != 0;
        // Without an error there is nobody to explain why a field that every event has should be missing.
        if !has(HAS_TYPE) && !has(HAS_ERROR) {
            return Err(start.error("type", Problem::Absent));
        }
        let start = reader.clone();
        let ordinal = expected.checked_add(reader.varint("ordinal")?);
        let ordinal = ordinal.ok_or_else(|| start.error("ordinal", Problem::Varint))?;
        let outbox = names.decode(&mut reader)?;
        let start = reader.clone();
        let id = match reader.u8("id tag")? {
            ID_NONE if has(HAS_ERROR) => None,
            ID_NONE => return Err(start.error("event id", Problem::Absent)),
            ID_UUID => {
                let mut bytes = [0; 16];
                bytes.copy_from_slice(reader.take(16, "event id")?);
                Some(EventId::Uuid(bytes))
            }
            ID_TEXT => Some(EventId::Text(reader.text("event id")?)),
            ID_INT => Some(EventId::Int(reader.zigzag("event id")?)),
            other => return Err(start.error("id tag", Problem::Unknown(other.into()))),
        };
        let seq = has(HAS_SEQ).then(|| reader.zigzag("seq")).transpose()?;
        let event_type = has(HAS_TYPE).then(|| reader.text("type")).transpose()?;
        let key = has(HAS_KEY).then(|| reader.text("key")).transpose()?;
        let headers = has(HAS_HEADERS).then(|| reader.text("headers")).transpose()?;
        let payload = has(HAS_PAYLOAD).then(|| reader.bytes("payload")).transpose()?;
        let claim = (head & KIND == KIND_CLAIM).then(|| reader.text("claim")).transpose()?;
        let error = has(HAS_ERROR).then(|| EventError::decode(&mut reader)).transpose()?;
        reader.end("event")?;
        Ok(Self { outbox, ordinal, id, seq, event_type, key, headers, payload, claim, error })
    }
}

impl<'a> Chunk<'a> {
    /// Appends the chunk. `expected` is the ordinal that would follow the frame's previous event.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, names: &mut Dictionary, slot: &mut NameSlot, expected: u64) {
        let Self { outbox, ordinal, seq, number, rows, data } = self;
        debug_assert!(*ordinal >= expected, "ordinals rise");
        let skipped = ordinal.wrapping_sub(expected);
        let reference = names.refer(slot);
        let length = 1
            + varint_len(skipped)
            + reference.map_or_else(|| 1 + outbox.encoded_len(), varint_len)
            + varint_len(zigzag(*seq))
            + varint_len((*number).into())
            + varint_len((*rows).into())
            + bytes_len(data);
        put_varint(out, length as u64);
        let start = out.len();
        put_u8(out, KIND_CHUNK);
        put_varint(out, skipped);
        match reference {
            Some(reference) => put_varint(out, reference),
            None => {
                put_varint(out, 0);
                outbox.encode(out);
            }
        }
        put_zigzag(out, *seq);
        put_varint(out, (*number).into());
        put_varint(out, (*rows).into());
        put_bytes(out, data);
        debug_assert_eq!(out.len() - start, length, "the length was counted right");
    }

    /// Reads the fields of a chunk; `start` stands before its head.
    fn decode(
        mut reader: Reader<'a>,
        start: &Reader<'a>,
        head: u8,
        names: &mut Definitions,
        expected: u64,
    ) -> Result<Self, DecodeError> {
        if head != KIND_CHUNK {
            return Err(start.error("chunk head", Problem::Unknown(head.into())));
        }
        let start = reader.clone();
        let ordinal = expected.checked_add(reader.varint("ordinal")?);
        let ordinal = ordinal.ok_or_else(|| start.error("ordinal", Problem::Varint))?;
        let outbox = names.decode(&mut reader)?;
        let seq = reader.zigzag("seq")?;
        let mut number = |field| {
            let start = reader.clone();
            let number = reader.varint(field)?;
            let problem = Problem::TooLarge { found: number, limit: u32::MAX.into() };
            u32::try_from(number).map_err(|_| start.error(field, problem))
        };
        let (number, rows) = (number("number of chunk")?, number("rows of chunk")?);
        let data = reader.bytes("data of chunk")?;
        reader.end("chunk")?;
        Ok(Self { outbox, ordinal, seq, number, rows, data })
    }
}

impl<'a> Entry<'a> {
    /// Reads the next entry. `names` are the outboxes defined so far; a definition is added to them.
    pub(crate) fn decode(frame: &mut Reader<'a>, names: &mut Definitions, expected: u64) -> Result<Self, DecodeError> {
        let length = frame.varint("event length")?;
        let mut reader = frame.sub(length, "event")?;
        let start = reader.clone();
        let head = reader.u8("event head")?;
        match head & KIND {
            KIND_EVENT | KIND_CLAIM => Event::decode(reader, &start, head, names, expected).map(Self::Event),
            KIND_CHUNK => Chunk::decode(reader, &start, head, names, expected).map(Self::Chunk),
            kind => Err(start.error("event kind", Problem::Unknown(kind.into()))),
        }
    }
}

impl<'a> EventError<'a> {
    fn encoded_len(&self) -> usize {
        let raw = self.raw.iter().map(|raw| bytes_len(raw.column.as_bytes()) + bytes_len(raw.bytes)).sum::<usize>();
        1 + bytes_len(self.detail.as_bytes()) + varint_len(self.raw.len() as u64) + raw
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let Self { code, detail, raw } = self;
        put_u8(out, *code as u8);
        put_bytes(out, detail.as_bytes());
        put_varint(out, raw.len() as u64);
        for RawColumn { column, bytes } in raw {
            put_bytes(out, column.as_bytes());
            put_bytes(out, bytes);
        }
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = reader.clone();
        let number = reader.u8("error code")?;
        let code = ErrorCode::ALL.into_iter().find(|code| *code as u8 == number);
        let code = code.ok_or_else(|| start.error("error code", Problem::Unknown(number.into())))?;
        let detail = reader.text("error detail")?;
        let start = reader.clone();
        let count = reader.varint("number of raw columns")?;
        if count > MAX_RAW_COLUMNS as u64 {
            let problem = Problem::TooLarge { found: count, limit: MAX_RAW_COLUMNS as u64 };
            return Err(start.error("number of raw columns", problem));
        }
        // Grown as columns arrive, never reserved by a number that a hostile peer may have written.
        let mut raw = Vec::new();
        for _ in 0..count {
            raw.push(RawColumn { column: reader.text("raw column name")?, bytes: reader.bytes("raw column")? });
        }
        Ok(Self { code, detail, raw })
    }
}
