//! Frames to events: checks the stream's order and copies nothing.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use postbox_wire::{DecodeError, Decoder, Entry, Lsn, Transaction, expand};

use crate::error::{Error, ErrorKind, Result};
use crate::event::{ClaimChunk, Event, EventError, EventId};

/// Reads the frames of one connection, in order.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    decoder: Decoder,
    /// Commit position of the transaction that is being received.
    unfinished: Option<Lsn>,
    last_commit: Lsn,
}

/// A frame that has been read.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) transaction: Transaction,
    /// False if the transaction has begun with an earlier frame.
    pub(crate) first: bool,
    /// True if the transaction ends with this frame.
    pub(crate) last: bool,
    pub(crate) events: Vec<Event>,
    /// Bytes that the events refer to.
    pub(crate) bytes: usize,
}

impl FrameReader {
    /// The events of a frame.
    ///
    /// # Errors
    /// Bytes that are no frame of a version that is spoken here, and frames out of order.
    pub(crate) fn read(&mut self, bytes: &Bytes) -> Result<Received> {
        let expanded = expand(bytes).map_err(not_a_frame)?.map(Bytes::from);
        let bytes = expanded.as_ref().unwrap_or(bytes);
        let mut frame = self.decoder.frame(bytes).map_err(not_a_frame)?;
        let transaction = frame.transaction;
        let (first, last) = (!frame.continues(), frame.is_last());
        let in_order = match self.unfinished {
            Some(commit) => !first && commit == transaction.commit_lsn,
            None => first && transaction.commit_lsn > self.last_commit,
        };
        if !in_order {
            return Err(Error::new(
                ErrorKind::Decode,
                format!(
                    "the frame of the transaction that committed at {} does not follow the one at {}",
                    transaction.commit_lsn, self.last_commit
                ),
            ));
        }
        let mut events = Vec::new();
        while let Some(entry) = frame.next_entry().map_err(not_a_frame)? {
            events.push(match entry {
                Entry::Event(event) => own(bytes, &transaction, event),
                Entry::Chunk(chunk) => own_chunk(bytes, &transaction, chunk),
            });
        }
        self.last_commit = transaction.commit_lsn;
        self.unfinished = (!last).then_some(transaction.commit_lsn);
        Ok(Received { transaction, first, last, events, bytes: bytes.len() })
    }
}

/// The event of a frame that stands alone: `postbox._frame` made it of a stored row, or [`Event::to_frame`] of a dead letter.
///
/// # Errors
/// Bytes that are no frame of a version that is spoken here, or a frame of anything but one event.
pub(crate) fn stored(bytes: &Bytes) -> Result<Event> {
    let mut decoder = Decoder::new();
    let mut frame = decoder.frame(bytes).map_err(not_a_frame)?;
    let transaction = frame.transaction;
    let event = frame.next_event().map_err(not_a_frame)?;
    match (event, frame.next_event().map_err(not_a_frame)?) {
        (Some(event), None) => Ok(own(bytes, &transaction, event)),
        _ => Err(Error::new(ErrorKind::Decode, "the frame of a stored row does not hold one event")
            .with_hint("The server's extension postbox and this program must be of the same release.")),
    }
}

fn not_a_frame(error: DecodeError) -> Error {
    Error::new(ErrorKind::Decode, format!("cannot decode what the plugin sent: {error}")).with_hint(
        "Plugin and consumer must be of the same release; the slot must have been made with the plugin postbox.",
    )
}

/// The event with its own reference to the frame's bytes.
fn own(frame: &Bytes, transaction: &Transaction, event: postbox_wire::Event<'_>) -> Event {
    let text = |text: &str| text_of(frame, text);
    let postbox_wire::Event { outbox, ordinal, id, seq, event_type, key, headers, payload, claim, error } = event;
    let Transaction { commit_lsn, end_lsn, commit_time, xid } = *transaction;
    Event {
        outbox,
        id: id.map(|id| match id {
            postbox_wire::EventId::Uuid(bytes) => EventId::Uuid(bytes),
            postbox_wire::EventId::Text(id) => EventId::Text(text(id)),
            postbox_wire::EventId::Int(number) => EventId::Int(number),
        }),
        seq,
        event_type: event_type.map(text).unwrap_or_default(),
        key: key.map(text),
        headers: headers.map(text),
        payload: payload.map(|payload| frame.slice_ref(payload)),
        claim: claim.map(text),
        chunk: None,
        commit_lsn,
        ordinal,
        commit_time,
        xid,
        error: error.map(|error| {
            Arc::new(EventError {
                code: error.code,
                detail: text(error.detail),
                raw: error.raw.iter().map(|raw| (text(raw.column), frame.slice_ref(raw.bytes))).collect(),
            })
        }),
        end_lsn,
    }
}

/// A chunk of a claim, which is delivered as events are.
fn own_chunk(frame: &Bytes, transaction: &Transaction, chunk: postbox_wire::Chunk<'_>) -> Event {
    let postbox_wire::Chunk { outbox, ordinal, seq, number, rows, data } = chunk;
    let Transaction { commit_lsn, end_lsn, commit_time, xid } = *transaction;
    Event {
        outbox,
        id: None,
        seq: Some(seq),
        event_type: ByteString::new(),
        key: None,
        headers: None,
        payload: Some(frame.slice_ref(data)),
        claim: None,
        chunk: Some(ClaimChunk { seq, number, rows }),
        commit_lsn,
        ordinal,
        commit_time,
        xid,
        error: None,
        end_lsn,
    }
}

/// The same text, as a slice of the frame. It has been checked to be UTF-8.
fn text_of(frame: &Bytes, text: &str) -> ByteString {
    ByteString::try_from(frame.slice_ref(text.as_bytes())).unwrap_or_else(|_| ByteString::from(text))
}

#[cfg(test)]
mod tests {
    use postbox_wire::{Encoder, NameSlot, Names, Outbox, PayloadType, PgMicros};

    use super::*;

    /// A frame of as many events, committed at this position.
    fn frame(events: u64, commit_lsn: Lsn) -> Bytes {
        let outbox =
            Arc::new(Outbox { schema: "public".into(), table: "orders".into(), payload_type: PayloadType::Text });
        let transaction = Transaction { commit_lsn, end_lsn: commit_lsn, commit_time: PgMicros::UNKNOWN, xid: 7 };
        let mut encoder = Encoder::new(Names::Frame);
        let mut slot = NameSlot::default();
        for ordinal in 0..events {
            let event = postbox_wire::Event {
                outbox: Arc::clone(&outbox),
                ordinal,
                id: Some(postbox_wire::EventId::Int(1)),
                seq: Some(5),
                event_type: Some("t"),
                key: Some("k"),
                headers: None,
                payload: Some(b"words"),
                claim: None,
                error: None,
            };
            encoder.event(&transaction, &event, &mut slot);
        }
        let mut frame = Bytes::new();
        encoder.take(true, |bytes| frame = Bytes::copy_from_slice(bytes));
        frame
    }

    #[test]
    fn the_frame_of_a_stored_row_is_one_event_without_a_place() {
        let event = stored(&frame(1, Lsn::ZERO)).unwrap();
        assert_eq!((event.seq, event.xid, &*event.event_type), (Some(5), 7, "t"));
        assert_eq!((event.key.as_deref(), event.payload.as_deref()), (Some("k"), Some(&b"words"[..])));
        let mut json = Vec::new();
        event.write_json(&mut json);
        let json = String::from_utf8(json).unwrap();
        assert!(json.ends_with(r#""commit_lsn":null,"ordinal":0,"commit_time":null,"xid":7}"#), "{json}");
    }

    #[test]
    fn what_is_not_one_event_is_refused() {
        for (bytes, message) in [
            (frame(2, Lsn::ZERO), "does not hold one event"),
            (Bytes::new(), "cannot decode"),
            (Bytes::from_static(&[1, 6, 0, 0, 0, 0]), "cannot decode"),
        ] {
            let error = stored(&bytes).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn a_stream_has_no_stored_rows_in_it() {
        let error = FrameReader::default().read(&frame(1, Lsn::ZERO)).unwrap_err();
        assert!(error.to_string().contains("does not follow"), "{error}");
    }
}
