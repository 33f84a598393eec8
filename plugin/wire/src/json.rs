//! The native JSON form of an event: one object, on one line, the same on the consumer's standard output and in
//! `postbox.decode`.

use alloc::vec::Vec;
use core::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::event::uuid_text;
use crate::time::Civil;
use crate::{Chunk, Event, EventError, EventId, Lsn, PayloadType, PgMicros, RawColumn, Transaction};

/// Takes the text of an event piece by piece, so that a large field need not be held twice.
pub trait Output {
    /// Appends bytes. A field that needs no change comes as one piece.
    fn put(&mut self, bytes: &[u8]);
}

impl Output for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Writes the event as one JSON object with the members outbox, event_id, type, key, headers, payload, claim where there is one,
/// commit_lsn, ordinal, commit_time, xid, and error where the event is an error event. No newline is written.
///
/// A JSON payload stands in the object as it is (line breaks between its tokens become spaces), text as a string, bytea as
/// a string in base64; a field that is NULL is `null`, and so are position and time where they are not known.
pub fn write(out: &mut impl Output, transaction: &Transaction, event: &Event<'_>) {
    let Event { outbox, ordinal, id, seq: _, event_type, key, headers, payload, claim, error } = event;
    out.put(b"{\"outbox\":\"");
    escape(out, &outbox.schema);
    out.put(b".");
    escape(out, &outbox.table);
    out.put(b"\",\"event_id\":");
    match id {
        Some(EventId::Text(text)) => string(out, text),
        Some(EventId::Uuid(bytes)) => {
            out.put(b"\"");
            out.put(&uuid_text(bytes));
            out.put(b"\"");
        }
        Some(id @ EventId::Int(_)) => print(out, format_args!("\"{id}\"")),
        None => out.put(b"null"),
    }
    for (name, value) in [("type", event_type), ("key", key)] {
        member(out, name);
        match value {
            Some(text) => string(out, text),
            None => out.put(b"null"),
        }
    }
    member(out, "headers");
    document(out, headers.unwrap_or("null"));
    member(out, "payload");
    match (payload, outbox.payload_type) {
        (None, _) => out.put(b"null"),
        (Some(bytes), PayloadType::Bytea) => base64(out, bytes),
        (Some(bytes), payload_type) => match core::str::from_utf8(bytes) {
            Ok(text) if payload_type == PayloadType::Text => string(out, text),
            Ok(json) => document(out, json),
            // The plugin sends these in UTF-8 only; what another peer sends is shown, not dropped.
            Err(_) => base64(out, bytes),
        },
    }
    if let Some(claim) = claim {
        member(out, "claim");
        document(out, claim);
    }
    place(out, transaction, *ordinal);
    if let Some(EventError { code, detail, raw }) = error {
        print(out, format_args!(",\"error\":{{\"code\":\"{}\",\"detail\":", code.name()));
        string(out, detail);
        out.put(b",\"raw\":{");
        for (index, RawColumn { column, bytes }) in raw.iter().enumerate() {
            if index > 0 {
                out.put(b",");
            }
            string(out, column);
            out.put(b":");
            base64(out, bytes);
        }
        out.put(b"}}");
    }
    out.put(b"}");
}

/// Writes a chunk of a claim as one JSON object with the members outbox, chunk, seq, rows, and text or (where the data is not UTF-8)
/// base64, commit_lsn, ordinal, commit_time, xid. No newline is written.
pub fn write_chunk(out: &mut impl Output, transaction: &Transaction, chunk: &Chunk<'_>) {
    let Chunk { outbox, ordinal, seq, number, rows, data } = chunk;
    out.put(b"{\"outbox\":\"");
    escape(out, &outbox.schema);
    out.put(b".");
    escape(out, &outbox.table);
    print(out, format_args!("\",\"chunk\":{number},\"seq\":{seq},\"rows\":{rows}"));
    match core::str::from_utf8(data) {
        Ok(text) => {
            member(out, "text");
            string(out, text);
        }
        Err(_) => {
            member(out, "base64");
            base64(out, data);
        }
    }
    place(out, transaction, *ordinal);
    out.put(b"}");
}

/// Where in the log, when, and by which transaction.
fn place(out: &mut impl Output, transaction: &Transaction, ordinal: u64) {
    let Transaction { commit_lsn, end_lsn: _, commit_time, xid } = transaction;
    // A stored row does not know its place in the log.
    if *commit_lsn == Lsn::ZERO {
        out.put(b",\"commit_lsn\":null,\"ordinal\":");
    } else {
        out.put(b",\"commit_lsn\":\"");
        lsn(out, *commit_lsn);
        out.put(b"\",\"ordinal\":");
    }
    decimal(out, ordinal, 1);
    if *commit_time == PgMicros::UNKNOWN {
        out.put(b",\"commit_time\":null,\"xid\":");
    } else {
        out.put(b",\"commit_time\":\"");
        time(out, *commit_time);
        out.put(b"\",\"xid\":");
    }
    decimal(out, *xid, 1);
}

fn member(out: &mut impl Output, name: &str) {
    out.put(b",\"");
    out.put(name.as_bytes());
    out.put(b"\":");
}

/// JSON text as it is. A line break in valid JSON stands between tokens only, where a space means the same.
pub fn document(out: &mut impl Output, json: &str) {
    let json = json.as_bytes();
    let mut clean = 0;
    for at in memchr::memchr2_iter(b'\n', b'\r', json) {
        out.put(&json[clean..at]);
        out.put(b" ");
        clean = at + 1;
    }
    out.put(&json[clean..]);
}

/// Text as a JSON string.
pub fn string(out: &mut impl Output, text: &str) {
    out.put(b"\"");
    escape(out, text);
    out.put(b"\"");
}

/// Text within quotes: RFC 8259 asks for quotes, backslashes and control characters to be escaped.
fn escape(out: &mut impl Output, text: &str) {
    let mut clean = 0;
    let bytes = text.as_bytes();
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.put(&bytes[clean..index]);
        clean = index + 1;
        match byte {
            b'"' => out.put(b"\\\""),
            b'\\' => out.put(b"\\\\"),
            b'\n' => out.put(b"\\n"),
            b'\r' => out.put(b"\\r"),
            b'\t' => out.put(b"\\t"),
            _ => print(out, format_args!("\\u{byte:04x}")),
        }
    }
    out.put(&bytes[clean..]);
}

/// Bytes as a JSON string, in base64 with padding.
pub fn base64(out: &mut impl Output, bytes: &[u8]) {
    // Whole groups of three bytes, so that only the last piece is padded.
    const PIECE: usize = 3 << 8;
    let mut text = [0; PIECE / 3 * 4];
    out.put(b"\"");
    for piece in bytes.chunks(PIECE) {
        let written = STANDARD.encode_slice(piece, &mut text).unwrap_or_default();
        out.put(&text[..written]);
    }
    out.put(b"\"");
}

/// At least `width` decimal digits. This and the two below do what `Display` does, at a fraction of its cost: they run for
/// every event.
fn decimal(out: &mut impl Output, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while value > 0 {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.put(&digits[start.min(digits.len() - width)..]);
}

fn lsn(out: &mut impl Output, Lsn(position): Lsn) {
    for (half, end) in [(position >> 32, &b"/"[..]), (position & 0xffff_ffff, &[])] {
        let places = (u64::BITS - (half | 1).leading_zeros()).div_ceil(4);
        let digit = |place: u32| b"0123456789ABCDEF"[(half >> (4 * place) & 15) as usize];
        let mut digits = [0; 16];
        for (index, place) in (0..places).rev().enumerate() {
            digits[index] = digit(place);
        }
        out.put(&digits[..places as usize]);
        out.put(end);
    }
}

fn time(out: &mut impl Output, time: PgMicros) {
    let Civil { year, month, day, hour, minute, second, micros } = time.civil();
    let Ok(year) = u64::try_from(year) else { return print(out, format_args!("{time}")) };
    decimal(out, year, 4);
    for (mark, value, width) in
        [(b'-', month, 2), (b'-', day, 2), (b'T', hour, 2), (b':', minute, 2), (b':', second, 2), (b'.', micros, 6)]
    {
        out.put(&[mark]);
        decimal(out, value.unsigned_abs(), width);
    }
    out.put(b"Z");
}

fn print(out: &mut impl Output, text: fmt::Arguments<'_>) {
    struct Text<'a, O>(&'a mut O);
    impl<O: Output> fmt::Write for Text<'_, O> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.put(text.as_bytes());
            Ok(())
        }
    }
    // An output does not fail.
    let _ = Text(out).write_fmt(text);
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_for_speed_is_what_display_writes(number: u64, shift in 0..64_u32, micros: i64) {
            let mut out = Vec::new();
            decimal(&mut out, number >> shift, 1);
            lsn(&mut out, Lsn(number >> shift));
            time(&mut out, PgMicros(micros));
            time(&mut out, PgMicros(micros >> 10));
            let number = number >> shift;
            let expected = format!("{number}{}{}{}", Lsn(number), PgMicros(micros), PgMicros(micros >> 10));
            prop_assert_eq!(out, expected.into_bytes());
        }
    }
}
