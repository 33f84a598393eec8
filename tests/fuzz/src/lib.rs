//! What is fuzzed: each function takes any bytes, and panics where a promise does not hold.

use postbox::transport::hostile;
use postbox_wire::{Decoder, MAX_COMPRESSED_BYTES, Options, PayloadType, expand, json, parse_selectors};

/// A stream of frames, each behind its length in two bytes: the decoder reads them or says what is wrong, and what it has read
/// is printed as one line of JSON.
pub fn frames(bytes: &[u8]) {
    let mut decoder = Decoder::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
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
        let event = match frame.next_event() {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => return assert!(error.at <= bytes.len(), "{error}"),
        };
        let mut line = Vec::new();
        json::write(&mut line, &transaction, &event);
        assert!(!line.contains(&b'\n') && std::str::from_utf8(&line).is_ok());
        // What is JSON in the frame is passed on as it is, and may be none.
        let foreign = event.headers.is_some()
            || event.claim.is_some()
            || matches!(event.outbox.payload_type, PayloadType::Json | PayloadType::Jsonb) && event.payload.is_some();
        assert!(foreign || serde_json::from_slice::<serde_json::Value>(&line).is_ok());
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
