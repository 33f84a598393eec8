//! What is fuzzed: each function takes any bytes, and panics where a promise does not hold.

use std::sync::Arc;

use postbox::transport::hostile;
use postbox_wire::emitted::Emitted;
use postbox_wire::headers::Given;
use postbox_wire::{
    Decoder, Entry, Event, EventId, Lsn, MAX_COMPRESSED_BYTES, MAX_NAME_BYTES, Options, Outbox, PayloadType, PgMicros,
    Transaction, expand, json, parse_selectors,
};
use serde_json::value::RawValue;

/// Pieces, each behind its length in two bytes.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (piece, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
        rest = after;
        Some(piece)
    })
}

/// One line of JSON, unless what it passes on as it is was none.
fn is_line(line: &[u8], foreign: bool) {
    assert!(!line.contains(&b'\n') && std::str::from_utf8(line).is_ok());
    assert!(foreign || is_json(line));
}

/// As deep as it likes, and with numbers that are too large for a machine.
fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(text).is_ok()
}

/// A stream of frames: the decoder reads them or says what is wrong, and what it has read is printed as one line of JSON.
pub fn frames(bytes: &[u8]) {
    let mut decoder = Decoder::new();
    for frame in pieces(bytes) {
        match expand(frame) {
            Ok(None) => read(&mut decoder, frame),
            Ok(Some(expanded)) => {
                assert!(expanded.len() <= frame.len() + MAX_COMPRESSED_BYTES);
                read(&mut decoder, &expanded);
            }
            Err(error) => assert!(error.at <= frame.len(), "{error}"),
        }
    }
}

fn read(decoder: &mut Decoder, bytes: &[u8]) {
    let mut frame = match decoder.frame(bytes) {
        Ok(frame) => frame,
        Err(error) => return assert!(error.at <= bytes.len(), "{error}"),
    };
    let transaction = frame.transaction;
    loop {
        let mut line = Vec::new();
        let foreign = match frame.next_entry() {
            Ok(Some(Entry::Event(event))) => {
                json::write(&mut line, &transaction, &event);
                // What is JSON in the frame is passed on as it is, and may be none.
                event.headers.is_some()
                    || event.claim.is_some()
                    || matches!(event.outbox.payload_type, PayloadType::Json | PayloadType::Jsonb)
                        && event.payload.is_some()
            }
            Ok(Some(Entry::Chunk(chunk))) => {
                json::write_chunk(&mut line, &transaction, &chunk);
                false
            }
            Ok(None) => return,
            Err(error) => return assert!(error.at <= bytes.len(), "{error}"),
        };
        is_line(&line, foreign);
    }
}

/// The arguments of a marker, and messages of pgoutput: whatever a row holds becomes an event, which is printed as one line of JSON and
/// comes back from a dead letter.
pub fn pgoutput(bytes: &[u8]) {
    /// Some events of the corpus are larger.
    const LIMIT: usize = 256;
    let mut pieces = pieces(bytes);
    let Some(marker) = pieces.next() else { return };
    for event in hostile::events_of(marker, pieces, LIMIT) {
        assert!(event.error.is_some() || event.id.is_some());
        let mut line = Vec::new();
        event.write_json(&mut line);
        let json = matches!(event.outbox.payload_type, PayloadType::Json | PayloadType::Jsonb);
        is_line(&line, event.headers.is_some() || event.claim.is_some() || json && event.payload.is_some());
        // No server has such names.
        if event.outbox.schema.len().max(event.outbox.table.len()) <= MAX_NAME_BYTES {
            let mut again = Vec::new();
            hostile::as_dead_letter(&event).expect("a frame").write_json(&mut again);
            assert_eq!(line, again);
        }
    }
}

/// A message of `postbox.emit`, or of who says to be that, read for each type of payload: as it is JSON, so are its headers, to which
/// others can be added, and its line.
pub fn emitted(bytes: &[u8]) {
    let Some(message) = Emitted::read(bytes) else { return };
    let transaction = Transaction { commit_lsn: Lsn(16), end_lsn: Lsn(32), commit_time: PgMicros(5), xid: 752 };
    for payload_type in [PayloadType::Text, PayloadType::Json, PayloadType::Jsonb, PayloadType::Bytea] {
        let Ok(fields) = message.fields(payload_type) else { continue };
        if let Ok(given) = Given::read(fields.headers) {
            let object = [given.start(), b"}"].concat();
            assert!(matches!(given, Given::Nothing) || is_json(&object));
        }
        let event = Event {
            outbox: Arc::new(Outbox { schema: "public".to_owned(), table: "orders".to_owned(), payload_type }),
            ordinal: 0,
            id: Some(EventId::Uuid(fields.id)),
            seq: None,
            event_type: Some(&fields.event_type),
            key: fields.key.as_deref(),
            headers: fields.headers,
            payload: fields.payload.as_deref(),
            claim: None,
            error: None,
        };
        let mut line = Vec::new();
        json::write(&mut line, &transaction, &event);
        is_line(&line, false);
    }
}

/// Options of the plugin, one on a line, as `name=value` or `name`: what is accepted is rendered and accepted again.
pub fn options(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let given = text.lines().map(|line| line.split_once('=').map_or((line, None), |(name, value)| (name, Some(value))));
    if let Ok(options) = Options::parse(given) {
        let rendered = options.render();
        let again = Options::parse(rendered.iter().map(|(name, value)| (*name, Some(value.as_str()))));
        assert_eq!(again, Ok(options));
    }
    let _ = parse_selectors(text);
}

/// A connection string, and behind a zero byte what the service file holds that it may name.
pub fn conninfo(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        hostile::connection_string(text);
    }
}

/// All that a server sends before it lets a client in, and its greeting.
pub fn login(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(hostile::login_bytes(bytes));
}

/// All that a server sends in a replication stream.
pub fn messages(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(hostile::server_bytes(bytes));
}

/// The stored form of a jsonb value.
pub fn jsonb(bytes: &[u8]) {
    const LIMIT: usize = 1 << 16;
    let mut text = b"before".to_vec();
    match postbox_jsonb::print(bytes, &mut text, LIMIT) {
        Ok(()) => assert!(text.len() <= 6 + LIMIT),
        Err(_) => assert_eq!(text, b"before"),
    }
}
