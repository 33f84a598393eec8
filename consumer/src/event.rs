//! Events as the application gets them: cheap to clone, slices of the frame they came in.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use postbox_wire::{Chunk, Encoder, ErrorCode, Lsn, NameSlot, Names, Outbox, PgMicros, RawColumn, Transaction, json};

/// A committed event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// The outbox that it was published to: schema, table and payload type as of its transaction.
    pub outbox: Arc<Outbox>,
    /// The id to deduplicate by. Absent only if [`error`](Self::error) is set.
    pub id: Option<EventId>,
    /// The row's number in its outbox, where it has one. Rises with insertion, not with commit.
    pub seq: Option<i64>,
    /// What happened. Empty only if [`error`](Self::error) is set.
    pub event_type: ByteString,
    /// Events of one key are delivered in commit order.
    pub key: Option<ByteString>,
    /// A JSON document.
    pub headers: Option<ByteString>,
    /// To be read by `outbox.payload_type`; absent where it is NULL.
    pub payload: Option<Bytes>,
    /// Set if the event's data lies in the claims of the outbox: the JSON that says what there is. [`ClaimReader`](crate::ClaimReader) gets the data.
    pub claim: Option<ByteString>,
    /// Set if this is no event but a part of the data of one that follows in its transaction, where
    /// [`Builder::claims`](crate::Builder::claims) asks for such: the data is the [`payload`](Self::payload), and there is no id.
    pub chunk: Option<ClaimChunk>,
    /// The position of the transaction's commit; 0/0 where it is not known, as the event was read from the table. With [`ordinal`](Self::ordinal) it is the event's place in the log, but no
    /// identity: after a failover another event may stand there.
    pub commit_lsn: Lsn,
    /// Events that the transaction published before this one, to any outbox.
    pub ordinal: u64,
    /// When the transaction committed, by the server's clock. Of an event that was read from the table: when the row was made,
    /// [`PgMicros::UNKNOWN`] if it does not say.
    pub commit_time: PgMicros,
    /// The transaction's id (`xid8`); 0 if the event was read from a table that does not keep it.
    pub xid: u64,
    /// Why the row is not a whole event: what could not be represented, and its bytes.
    pub error: Option<Arc<EventError>>,
    pub(crate) end_lsn: Lsn,
}

/// A part of the data of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimChunk {
    /// That of the event whose data it is.
    pub seq: i64,
    /// Chunks of a claim are counted from 0.
    pub number: u32,
    /// Rows that end in it.
    pub rows: u32,
}

/// The id of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventId {
    /// A UUID.
    Uuid([u8; 16]),
    /// Any text.
    Text(ByteString),
    /// A number.
    Int(i64),
}

/// Why a row is not a whole event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EventError {
    /// The kind of fault.
    pub code: ErrorCode,
    /// The fault in words.
    pub detail: ByteString,
    /// Columns that could not be represented, with their stored bytes.
    pub raw: Vec<(ByteString, Bytes)>,
}

impl Event {
    /// Writes the event in the native JSON form, without a newline: to a `Vec<u8>`, or piece by piece to any [`JsonOutput`](crate::JsonOutput).
    pub fn write_json(&self, out: &mut impl json::Output) {
        let Some(chunk) = &self.chunk else {
            return self.as_wire(|transaction, event| json::write(out, transaction, event));
        };
        let ClaimChunk { seq, number, rows } = *chunk;
        let data = self.payload.as_deref().unwrap_or_default();
        let outbox = Arc::clone(&self.outbox);
        let chunk = Chunk { outbox, ordinal: self.ordinal, seq, number, rows, data };
        json::write_chunk(out, &self.transaction(), &chunk);
    }

    /// The event as a frame of the plugin that stands alone.
    pub(crate) fn to_frame(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Names::Frame);
        encoder.begin();
        self.as_wire(|transaction, event| encoder.event(transaction, event, &mut NameSlot::default()));
        let mut bytes = Vec::new();
        encoder.take(true, |frame| bytes = frame.to_vec());
        bytes
    }

    /// Bytes that the event holds on to.
    pub(crate) fn size(&self) -> usize {
        let raw = self.error.as_ref().map_or(0, |error| {
            error.detail.len() + error.raw.iter().map(|(column, bytes)| column.len() + bytes.len()).sum::<usize>()
        });
        self.event_type.len()
            + self.key.as_ref().map_or(0, |key| key.len())
            + self.headers.as_ref().map_or(0, |headers| headers.len())
            + self.payload.as_ref().map_or(0, |payload| payload.len())
            + self.claim.as_ref().map_or(0, |claim| claim.len())
            + raw
    }

    /// Copies the fields of the event out of the frame that it came in, which they would keep in memory as long as themselves.
    pub(crate) fn detach(&mut self) {
        let text = |text: &mut ByteString| *text = ByteString::from(&**text);
        text(&mut self.event_type);
        self.key.as_mut().map(text);
        self.headers.as_mut().map(text);
        self.claim.as_mut().map(text);
        if let Some(payload) = &mut self.payload {
            *payload = Bytes::copy_from_slice(payload);
        }
        if let Some(EventId::Text(id)) = &mut self.id {
            text(id);
        }
    }

    fn as_wire<R>(&self, take: impl FnOnce(&Transaction, &postbox_wire::Event<'_>) -> R) -> R {
        let raw = |error: &EventError| {
            error.raw.iter().map(|(column, bytes)| (column.clone(), bytes.clone())).collect::<Vec<_>>()
        };
        let raw = self.error.as_deref().map(raw).unwrap_or_default();
        let error = self.error.as_deref().map(|error| postbox_wire::EventError {
            code: error.code,
            detail: &error.detail,
            raw: raw.iter().map(|(column, bytes)| RawColumn { column, bytes }).collect(),
        });
        let event = postbox_wire::Event {
            outbox: Arc::clone(&self.outbox),
            ordinal: self.ordinal,
            id: self.id.as_ref().map(EventId::as_wire),
            seq: self.seq,
            event_type: (self.error.is_none() || !self.event_type.is_empty()).then_some(&*self.event_type),
            key: self.key.as_deref(),
            headers: self.headers.as_deref(),
            payload: self.payload.as_deref(),
            claim: self.claim.as_deref(),
            error,
        };
        take(&self.transaction(), &event)
    }

    fn transaction(&self) -> Transaction {
        let Self { commit_lsn, end_lsn, commit_time, xid, .. } = *self;
        Transaction { commit_lsn, end_lsn, commit_time, xid }
    }
}

impl EventId {
    fn as_wire(&self) -> postbox_wire::EventId<'_> {
        match self {
            Self::Uuid(bytes) => postbox_wire::EventId::Uuid(*bytes),
            Self::Text(text) => postbox_wire::EventId::Text(text),
            Self::Int(number) => postbox_wire::EventId::Int(*number),
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_wire().fmt(f)
    }
}
