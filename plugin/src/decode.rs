//! `postbox.decode`: frames as people read them.

use std::borrow::Cow;
use std::sync::Arc;

use pgrx::{PgSqlErrorCode, pg_extern};
use postbox_wire::{Chunk, DecodeError, Decoder, Entry, PayloadType, Problem, expand, json};

use crate::pg::datum::is_jsonb;
use crate::pg::encoding::Encoding;
use crate::pg::report;

/// The events of one frame, each as one line of native JSON in UTF-8 of characters that the database has, but for the payload,
/// which is a string always. A frame that is no frame is an ERROR.
#[pg_extern(immutable, strict, parallel_safe)]
fn decode_lines(frame: &[u8]) -> Vec<Vec<u8>> {
    lines(frame).unwrap_or_else(|error| {
        let hint = match error.problem {
            Problem::Undefined(_) => "Read the slot without the option names=stream, so that each frame stands alone.",
            _ => "The argument is one row's data of pg_logical_slot_peek_binary_changes on a slot with the plugin postbox.",
        };
        let message = format!("cannot decode the frame: {error}");
        report::raise(PgSqlErrorCode::ERRCODE_INVALID_BINARY_REPRESENTATION, message, hint.to_owned())
    })
}

fn lines(bytes: &[u8]) -> Result<Vec<Vec<u8>>, DecodeError> {
    let encoding = Encoding::of_database();
    let expanded = expand(bytes)?;
    let mut decoder = Decoder::new();
    let mut frame = decoder.frame(expanded.as_deref().unwrap_or(bytes))?;
    let transaction = frame.transaction;
    let mut lines = Vec::new();
    while let Some(entry) = frame.next_entry()? {
        let mut line = Vec::new();
        match entry {
            Entry::Event(mut event) => {
                let [headers, claim] =
                    [event.headers, event.claim].map(|json| json.map(|json| as_jsonb(json, encoding)));
                (event.headers, event.claim) = (headers.as_deref(), claim.as_deref());
                if event.outbox.payload_type != PayloadType::Bytea {
                    // A string, whatever it is: so it comes out as it was published.
                    Arc::make_mut(&mut event.outbox).payload_type = PayloadType::Text;
                }
                json::write(&mut line, &transaction, &event);
            }
            // Its data is no column.
            Entry::Chunk(chunk) => json::write_chunk(&mut line, &transaction, &Chunk { data: b"", ..chunk }),
        }
        lines.push(shown(&String::from_utf8_lossy(&line), encoding));
    }
    Ok(lines)
}

/// The document, or a string of its text where jsonb cannot hold it.
fn as_jsonb(document: &str, encoding: Encoding) -> Cow<'_, str> {
    if encoding.encode(document).is_ok_and(|document| is_jsonb(&document)) {
        return document.into();
    }
    let mut string = Vec::new();
    json::string(&mut string, &encoding.escape(document, "\\"));
    String::from_utf8_lossy(&string).into_owned().into()
}

/// The line, with what no text of the database can have as text that shows its escape.
fn shown(line: &str, encoding: Encoding) -> Vec<u8> {
    let line = encoding.escape(line, "\\\\");
    let mut shown = String::with_capacity(line.len());
    let mut rest = &*line;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        let is_nul = escape.starts_with("\\u0000");
        shown += before;
        shown += if is_nul { "\\\\u0000" } else { &escape[..2] };
        rest = &escape[if is_nul { 6 } else { 2 }..];
    }
    shown += rest;
    shown.into_bytes()
}
