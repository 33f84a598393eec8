//! `postbox.decode`: frames as people read them.

use pgrx::{PgSqlErrorCode, pg_extern};
use postbox_wire::{DecodeError, Decoder, Entry, Problem, expand, json};

use crate::pg::report;

/// The events of one frame, each as one line of native JSON in UTF-8, whatever the database's encoding is. A frame that is no
/// frame is an ERROR.
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
    let expanded = expand(bytes)?;
    let mut decoder = Decoder::new();
    let mut frame = decoder.frame(expanded.as_deref().unwrap_or(bytes))?;
    let transaction = frame.transaction;
    let mut lines = Vec::new();
    while let Some(entry) = frame.next_entry()? {
        let mut line = Vec::new();
        match entry {
            Entry::Event(event) => json::write(&mut line, &transaction, &event),
            Entry::Chunk(chunk) => json::write_chunk(&mut line, &transaction, &chunk),
        }
        lines.push(line);
    }
    Ok(lines)
}
