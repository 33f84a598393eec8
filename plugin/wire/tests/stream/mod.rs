//! Streams for tests: events that own their bytes, and the documented ways to drive the encoder and the decoder.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::HashMap;
use std::sync::Arc;

use postbox_wire::{
    Chunk, DecodeError, Decoder, Encoder, Entry, ErrorCode, Event, EventError, EventId, NameSlot, Names, Outbox,
    PayloadType, RawColumn, Transaction, json,
};

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) ordinal: u64,
    pub(crate) id: Option<Id>,
    pub(crate) seq: Option<i64>,
    pub(crate) event_type: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) headers: Option<String>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) claim: Option<String>,
    pub(crate) fault: Option<Fault>,
    /// It is a chunk of a claim instead: its number and rows. The seq is the claim's, the payload the data.
    pub(crate) chunk: Option<(u32, u32)>,
}

/// An event's id that owns its text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Id {
    Uuid([u8; 16]),
    Text(String),
    Int(i64),
}

/// An event's error that owns its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) code: ErrorCode,
    pub(crate) detail: String,
    pub(crate) raw: Vec<(String, Vec<u8>)>,
}

impl Row {
    /// A row with its id and type only.
    pub(crate) fn new(outbox: &Arc<Outbox>, ordinal: u64, id: Id, event_type: &str) -> Self {
        Self {
            outbox: Arc::clone(outbox),
            ordinal,
            id: Some(id),
            seq: None,
            event_type: Some(event_type.into()),
            key: None,
            headers: None,
            payload: None,
            claim: None,
            fault: None,
            chunk: None,
        }
    }

    /// A chunk of a claim.
    pub(crate) fn of_chunk(
        outbox: &Arc<Outbox>,
        ordinal: u64,
        seq: i64,
        (number, rows): (u32, u32),
        data: &[u8],
    ) -> Self {
        Self {
            id: None,
            event_type: None,
            seq: Some(seq),
            payload: Some(data.to_vec()),
            chunk: Some((number, rows)),
            ..Self::new(outbox, ordinal, Id::Int(0), "")
        }
    }

    /// Adds it to the frame.
    pub(crate) fn encode(&self, transaction: &Transaction, encoder: &mut Encoder, slot: &mut NameSlot) {
        match self.as_chunk() {
            Some(chunk) => encoder.chunk(transaction, &chunk, slot),
            None => encoder.event(transaction, &self.event(), slot),
        }
    }

    /// Writes its native JSON.
    pub(crate) fn write_json(&self, transaction: &Transaction, line: &mut Vec<u8>) {
        match self.as_chunk() {
            Some(chunk) => json::write_chunk(line, transaction, &chunk),
            None => json::write(line, transaction, &self.event()),
        }
    }

    fn as_chunk(&self) -> Option<Chunk<'_>> {
        let (number, rows) = self.chunk?;
        Some(Chunk {
            outbox: Arc::clone(&self.outbox),
            ordinal: self.ordinal,
            seq: self.seq.unwrap_or_default(),
            number,
            rows,
            data: self.payload.as_deref().unwrap_or_default(),
        })
    }

    pub(crate) fn event(&self) -> Event<'_> {
        Event {
            outbox: Arc::clone(&self.outbox),
            ordinal: self.ordinal,
            id: self.id.as_ref().map(|id| match id {
                Id::Uuid(bytes) => EventId::Uuid(*bytes),
                Id::Text(text) => EventId::Text(text),
                Id::Int(number) => EventId::Int(*number),
            }),
            seq: self.seq,
            event_type: self.event_type.as_deref(),
            key: self.key.as_deref(),
            headers: self.headers.as_deref(),
            payload: self.payload.as_deref(),
            claim: self.claim.as_deref(),
            error: self.fault.as_ref().map(|fault| EventError {
                code: fault.code,
                detail: &fault.detail,
                raw: fault.raw.iter().map(|(column, bytes)| RawColumn { column, bytes }).collect(),
            }),
        }
    }
}

impl From<&Event<'_>> for Row {
    fn from(event: &Event<'_>) -> Self {
        Self {
            outbox: Arc::clone(&event.outbox),
            ordinal: event.ordinal,
            id: event.id.map(|id| match id {
                EventId::Uuid(bytes) => Id::Uuid(bytes),
                EventId::Text(text) => Id::Text(text.into()),
                EventId::Int(number) => Id::Int(number),
            }),
            seq: event.seq,
            event_type: event.event_type.map(Into::into),
            key: event.key.map(Into::into),
            headers: event.headers.map(Into::into),
            payload: event.payload.map(Into::into),
            claim: event.claim.map(Into::into),
            chunk: None,
            fault: event.error.as_ref().map(|error| Fault {
                code: error.code,
                detail: error.detail.into(),
                raw: error.raw.iter().map(|raw| (raw.column.into(), raw.bytes.into())).collect(),
            }),
        }
    }
}

pub(crate) fn outbox(schema: &str, table: &str, payload_type: PayloadType) -> Arc<Outbox> {
    Arc::new(Outbox { schema: schema.into(), table: table.into(), payload_type })
}

/// One frame's content.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) transaction: Transaction,
    pub(crate) continues: bool,
    pub(crate) last: bool,
    pub(crate) rows: Vec<Row>,
}

/// The caller's notes of where its outboxes stand in the dictionary.
#[derive(Default)]
pub(crate) struct Slots(HashMap<Arc<Outbox>, NameSlot>);

impl Slots {
    pub(crate) fn of(&mut self, outbox: &Arc<Outbox>) -> &mut NameSlot {
        self.0.entry(Arc::clone(outbox)).or_default()
    }
}

/// The frames of whole transactions, cut where the encoder says so.
pub(crate) fn encode(names: Names, transactions: &[(Transaction, Vec<Row>)]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut encoder = Encoder::new(names);
    let mut slots = Slots::default();
    for (transaction, rows) in transactions {
        encoder.begin();
        for row in rows {
            if encoder.is_due() {
                encoder.take(false, |frame| frames.push(frame.to_vec()));
            }
            row.encode(transaction, &mut encoder, slots.of(&row.outbox));
        }
        if encoder.has_events() {
            encoder.take(true, |frame| frames.push(frame.to_vec()));
        }
    }
    frames
}

/// The frames of a stream that is cut already.
pub(crate) fn encode_parts(names: Names, parts: &[Part]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut encoder = Encoder::new(names);
    let mut slots = Slots::default();
    for part in parts {
        if !part.continues {
            encoder.begin();
        }
        for row in &part.rows {
            row.encode(&part.transaction, &mut encoder, slots.of(&row.outbox));
        }
        encoder.take(part.last, |frame| frames.push(frame.to_vec()));
    }
    frames
}

/// Reads one frame to its end.
pub(crate) fn decode_part(decoder: &mut Decoder, bytes: &[u8]) -> Result<Part, DecodeError> {
    let mut frame = decoder.frame(bytes)?;
    let mut rows = Vec::new();
    while let Some(entry) = frame.next_entry()? {
        rows.push(match entry {
            Entry::Event(event) => Row::from(&event),
            Entry::Chunk(chunk) => {
                let numbers = (chunk.number, chunk.rows);
                Row::of_chunk(&chunk.outbox, chunk.ordinal, chunk.seq, numbers, chunk.data)
            }
        });
    }
    Ok(Part { transaction: frame.transaction, continues: frame.continues(), last: frame.is_last(), rows })
}

/// Reads the frames of one stream.
pub(crate) fn decode<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Result<Vec<Part>, DecodeError> {
    let mut decoder = Decoder::new();
    frames.into_iter().map(|frame| decode_part(&mut decoder, frame)).collect()
}

/// Seven bits a byte, lowest first; the top bit says that more follow. Written without the crate's encoder.
pub(crate) fn varint(value: usize) -> Vec<u8> {
    match value {
        0..0x80 => vec![value as u8],
        _ => [vec![value as u8 | 0x80], varint(value >> 7)].concat(),
    }
}

/// Where the header of a well-formed frame ends, then where each of its events ends: read without the crate's decoder.
pub(crate) fn ends(frame: &[u8]) -> Vec<usize> {
    let varint = |at: &mut usize| {
        let (mut value, mut shift) = (0_usize, 0);
        loop {
            let byte = frame[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let mut at = 2;
    for _field in ["commit position", "end of commit", "commit time", "transaction id"] {
        varint(&mut at);
    }
    let mut ends = vec![at];
    while at < frame.len() {
        let length = varint(&mut at);
        at += length;
        ends.push(at);
    }
    ends
}
