//! The native JSON form of an event: one object, on one line, the same on the consumer's standard output and in
//! `postbox.decode`.

use alloc::vec::Vec;
use core::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::event::uuid_text;
use crate::time::Civil;
use crate::{Event, EventError, EventId, Lsn, PayloadType, PgMicros, RawColumn, Transaction};

/// Appends the event as one JSON object with the members outbox, event_id, type, key, headers, payload, commit_lsn,
/// ordinal, commit_time, xid, and error where the event is an error event. No newline is written.
///
/// A JSON payload stands in the object as it is (line breaks between its tokens become spaces), text as a string, bytea as
/// a string in base64; a field that is NULL is `null`.
pub fn write(out: &mut Vec<u8>, transaction: &Transaction, event: &Event<'_>) {
    let Event { outbox, ordinal, id, seq: _, event_type, key, headers, payload, error } = event;
    out.extend_from_slice(b"{\"outbox\":\"");
    escape(out, &outbox.schema);
    out.push(b'.');
    escape(out, &outbox.table);
    out.extend_from_slice(b"\",\"event_id\":");
    match id {
        Some(EventId::Text(text)) => string(out, text),
        Some(EventId::Uuid(bytes)) => {
            out.push(b'"');
            out.extend_from_slice(&uuid_text(bytes));
            out.push(b'"');
        }
        Some(id @ EventId::Int(_)) => print(out, format_args!("\"{id}\"")),
        None => out.extend_from_slice(b"null"),
    }
    for (name, value) in [("type", event_type), ("key", key)] {
        member(out, name);
        match value {
            Some(text) => string(out, text),
            None => out.extend_from_slice(b"null"),
        }
    }
    member(out, "headers");
    document(out, headers.unwrap_or("null"));
    member(out, "payload");
    match (payload, outbox.payload_type) {
        (None, _) => out.extend_from_slice(b"null"),
        (Some(bytes), PayloadType::Bytea) => binary(out, bytes),
        (Some(bytes), payload_type) => match core::str::from_utf8(bytes) {
            Ok(text) if payload_type == PayloadType::Text => string(out, text),
            Ok(json) => document(out, json),
            // The plugin sends these in UTF-8 only; what another peer sends is shown, not dropped.
            Err(_) => binary(out, bytes),
        },
    }
    let Transaction { commit_lsn, end_lsn: _, commit_time, xid } = transaction;
    out.extend_from_slice(b",\"commit_lsn\":\"");
    lsn(out, *commit_lsn);
    out.extend_from_slice(b"\",\"ordinal\":");
    decimal(out, *ordinal, 1);
    out.extend_from_slice(b",\"commit_time\":\"");
    time(out, *commit_time);
    out.extend_from_slice(b"\",\"xid\":");
    decimal(out, *xid, 1);
    if let Some(EventError { code, detail, raw }) = error {
        print(out, format_args!(",\"error\":{{\"code\":\"{}\",\"detail\":", code.name()));
        string(out, detail);
        out.extend_from_slice(b",\"raw\":{");
        for (index, RawColumn { column, bytes }) in raw.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            string(out, column);
            out.push(b':');
            binary(out, bytes);
        }
        out.extend_from_slice(b"}}");
    }
    out.push(b'}');
}

fn member(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// JSON text as it is. A line break in valid JSON stands between tokens only, where a space means the same.
fn document(out: &mut Vec<u8>, json: &str) {
    let start = out.len();
    out.extend_from_slice(json.as_bytes());
    for byte in &mut out[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

/// Text within quotes: RFC 8259 asks for quotes, backslashes and control characters to be escaped.
fn escape(out: &mut Vec<u8>, text: &str) {
    let mut clean = 0;
    let bytes = text.as_bytes();
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[clean..index]);
        clean = index + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => print(out, format_args!("\\u{byte:04x}")),
        }
    }
    out.extend_from_slice(&bytes[clean..]);
}

fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    let length = base64::encoded_len(bytes.len(), true).unwrap_or_default();
    out.resize(start + length, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or_default();
    out.truncate(start + written);
    out.push(b'"');
}

/// At least `width` decimal digits. This and the two below do what `Display` does, at a fraction of its cost: they run for
/// every event.
fn decimal(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while value > 0 {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&digits[start.min(digits.len() - width)..]);
}

fn lsn(out: &mut Vec<u8>, Lsn(position): Lsn) {
    for (half, end) in [(position >> 32, &b"/"[..]), (position & 0xffff_ffff, &[])] {
        let places = (u64::BITS - (half | 1).leading_zeros()).div_ceil(4);
        let digit = |place: u32| b"0123456789ABCDEF"[(half >> (4 * place) & 15) as usize];
        out.extend((0..places).rev().map(digit));
        out.extend_from_slice(end);
    }
}

fn time(out: &mut Vec<u8>, time: PgMicros) {
    let Civil { year, month, day, hour, minute, second, micros } = time.civil();
    let Ok(year) = u64::try_from(year) else { return print(out, format_args!("{time}")) };
    decimal(out, year, 4);
    for (mark, value, width) in
        [(b'-', month, 2), (b'-', day, 2), (b'T', hour, 2), (b':', minute, 2), (b':', second, 2), (b'.', micros, 6)]
    {
        out.push(mark);
        decimal(out, value.unsigned_abs(), width);
    }
    out.push(b'Z');
}

fn print(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    struct Bytes<'a>(&'a mut Vec<u8>);
    impl fmt::Write for Bytes<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    // Appending to a vector does not fail.
    let _ = Bytes(out).write_fmt(text);
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
