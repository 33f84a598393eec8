//! `postbox.emit`: an event as a message of the transaction, in the log and in no table. [`postbox_wire::emitted`] says what the
//! message looks like, and reads it.
//!
//! What was found out about an outbox holds until a table or schema changes.

use core::cell::RefCell;
use core::ffi::CStr;

use pgrx::PgSqlErrorCode::*;
use pgrx::pg_sys::{self, Oid};
use postbox_wire::MAX_EVENT_BYTES;
use postbox_wire::marker::ACCEPTS_MESSAGES;
use rustc_hash::FxHashMap;
use serde::de::IgnoredAny;

use crate::pg::call::{Arguments, Field, may_insert, with_table};
use crate::pg::datum::Value;
use crate::pg::encoding::Encoding;
use crate::pg::invalidation;
use crate::pg::relation::{Column, Mapping, TRIGGER};
use crate::publish::{Refusal, outbox, raise};

/// The prefix of messages that are events.
pub(crate) const PREFIX: &CStr = c"postbox";

/// The columns of the outboxes that this session emitted to, and how many changes of tables had been seen then.
struct Known {
    payloads: FxHashMap<Oid, Column>,
    changes: u64,
}

thread_local! {
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// The message for an event; what it cannot be is an ERROR. Gives the event an id if it has none.
pub(crate) fn message(arguments: &mut Arguments<'_>) -> Vec<u8> {
    let Some(table) = arguments.find_table() else { raise(&Refusal::no_outbox(arguments)) };
    if arguments.is_null(Field::Type) {
        raise(&Refusal::null("type"));
    }
    let payload = payload_column(table, arguments).unwrap_or_else(|refusal| raise(&refusal));
    if !may_insert(table) {
        raise(&Refusal {
            code: ERRCODE_INSUFFICIENT_PRIVILEGE,
            message: format!("permission denied for outbox \"{}\"", outbox(arguments)),
            hint: "Whoever emits events needs the right to INSERT into the outbox, as for postbox.publish.".to_owned(),
        });
    }
    if arguments.is_null(Field::EventId) {
        arguments.make_event_id();
    }
    let message = write(table, &payload, arguments).unwrap_or_else(|refusal| raise(&refusal));
    if message.len() > MAX_EVENT_BYTES {
        raise(&Refusal {
            code: ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            message: format!(
                "the event for outbox \"{}\" has {} bytes, must have {MAX_EVENT_BYTES} at most",
                outbox(arguments),
                message.len()
            ),
            hint: "Store what is large in a table of yours, and emit where it is.".to_owned(),
        });
    }
    message
}

fn payload_column(table: Oid, arguments: &Arguments<'_>) -> Result<Column, Refusal> {
    // Before anything is looked at: what changes meanwhile counts as a change.
    let changes = invalidation::changes();
    let known = KNOWN.with_borrow_mut(|known| {
        let known = known.get_or_insert_with(|| Known { payloads: FxHashMap::default(), changes });
        if known.changes != changes {
            *known = Known { payloads: FxHashMap::default(), changes };
        }
        known.payloads.get(&table).cloned()
    });
    if let Some(column) = known {
        return Ok(column);
    }
    let column = with_table(table, |relation| {
        let Some(marker) = relation.trigger(TRIGGER) else { return Err(Refusal::not_an_outbox(arguments)) };
        if let Some(root) = relation.topmost_ancestor(|parent| parent.trigger(TRIGGER).map(|_| parent.name())) {
            return Err(Refusal::leaf(arguments, &root));
        }
        if !marker.iter().any(|argument| argument == ACCEPTS_MESSAGES) {
            let name = outbox(arguments);
            return Err(Refusal {
                code: ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                message: format!("outbox \"{name}\" does not take events that are in the log only"),
                hint: format!("Use postbox.publish, or let it take them: SELECT postbox.set_emit('{name}', true)."),
            });
        }
        let mapping =
            Mapping::read(&marker, &relation.descriptor().columns(), |name| Encoding::of_database().show(name));
        Ok(mapping.map_err(|detail| Refusal::bad_marker(arguments, &detail))?.payload)
    })?;
    KNOWN.with_borrow_mut(|known| {
        if let Some(known) = known {
            known.payloads.insert(table, column.clone());
        }
    });
    Ok(column)
}

fn write(table: Oid, column: &Column, arguments: &Arguments<'_>) -> Result<Vec<u8>, Refusal> {
    let mut message = format!("{{\"outbox\":{}", table.to_u32()).into_bytes();
    if let Some(id) = arguments.value(Field::EventId) {
        message.extend_from_slice(b",\"id\":\"");
        for byte in id.uuid() {
            message.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        message.push(b'"');
    }
    for (field, name) in [(Field::Type, "type"), (Field::Key, "key")] {
        if let Some(value) = arguments.value(field) {
            member(&mut message, name);
            string(&mut message, text(value, name)?.as_bytes(), name)?;
        }
    }
    if let Some(headers) = arguments.value(Field::Headers) {
        member(&mut message, "headers");
        message.extend_from_slice(json(headers, "headers")?.as_bytes());
    }
    let Some(payload) = arguments.value(Field::Payload) else {
        message.push(b'}');
        return Ok(message);
    };
    member(&mut message, "payload");
    let given = arguments.payload_type();
    match (column.type_oid, given) {
        (pg_sys::JSONBOID | pg_sys::JSONOID, pg_sys::JSONBOID) => {
            message.extend_from_slice(json(payload, "payload")?.as_bytes());
        }
        (pg_sys::JSONBOID | pg_sys::JSONOID, pg_sys::TEXTOID | pg_sys::JSONOID) => {
            let text = text(payload, "payload")?;
            serde_json::from_str::<IgnoredAny>(&text).map_err(|error| Refusal {
                code: ERRCODE_INVALID_TEXT_REPRESENTATION,
                message: format!("the payload is not JSON: {error}"),
                hint: "The outbox takes JSON, for instance '{\"customer\": \"ada\"}'.".to_owned(),
            })?;
            message.extend_from_slice(text.as_bytes());
        }
        (pg_sys::TEXTOID | pg_sys::VARCHAROID, pg_sys::TEXTOID | pg_sys::JSONOID) => {
            string(&mut message, text(payload, "payload")?.as_bytes(), "payload")?;
        }
        (pg_sys::TEXTOID | pg_sys::VARCHAROID, pg_sys::JSONBOID) => {
            string(&mut message, json(payload, "payload")?.as_bytes(), "payload")?;
        }
        (pg_sys::BYTEAOID, pg_sys::BYTEAOID) => {
            message.push(b'"');
            base64(&mut message, payload.bytes().map_err(|detail| unreadable("payload", &detail))?);
            message.push(b'"');
        }
        _ => return Err(Refusal::type_mismatch(arguments, "payload", given, column)),
    }
    message.push(b'}');
    Ok(message)
}

fn member(message: &mut Vec<u8>, name: &str) {
    message.extend_from_slice(format!(",\"{name}\":").as_bytes());
}

fn string(message: &mut Vec<u8>, text: &[u8], name: &str) -> Result<(), Refusal> {
    let text = core::str::from_utf8(text).map_err(|error| unreadable(name, &error.to_string()))?;
    serde_json::to_writer(message, text).map_err(|error| unreadable(name, &error.to_string()))
}

fn text(value: Value, name: &str) -> Result<String, Refusal> {
    let bytes = value.bytes().map_err(|detail| unreadable(name, &detail))?;
    let mut scratch = Vec::new();
    let text = Encoding::of_database().to_utf8(bytes, &mut scratch).map_err(|detail| unreadable(name, &detail))?;
    Ok(text.to_owned())
}

fn json(value: Value, name: &str) -> Result<String, Refusal> {
    let container = value.bytes().map_err(|detail| unreadable(name, &detail))?;
    let mut text = Vec::new();
    postbox_jsonb::print(container, &mut text, MAX_EVENT_BYTES)
        .map_err(|error| unreadable(name, &error.to_string()))?;
    let text = Encoding::of_database().in_place(&mut text).map_err(|detail| unreadable(name, &detail))?;
    Ok(text.to_owned())
}

fn unreadable(name: &str, detail: &str) -> Refusal {
    Refusal {
        code: ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
        message: format!("the {name} of the event cannot be sent: {detail}"),
        hint: "Events are UTF-8 and hold 256 MiB at most.".to_owned(),
    }
}

fn base64(message: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let mut bits = 0;
        for index in 0..3 {
            bits = bits << 8 | usize::from(chunk.get(index).copied().unwrap_or(0));
        }
        for digit in 0..4 {
            message.push(if digit <= chunk.len() { DIGITS[bits >> (18 - 6 * digit) & 63] } else { b'=' });
        }
    }
}
