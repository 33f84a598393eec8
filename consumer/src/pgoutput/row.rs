//! A row as an event. No committed row may stop the stream: what cannot be a field of the event goes along as raw bytes,
//! with the reason, as the plugin does it.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use postbox_wire::emitted::{self, Emitted};
use postbox_wire::headers::Given;
use postbox_wire::marker::{Mapping, is_int};
use postbox_wire::type_oid::{BYTEA, JSONB, UUID};
use postbox_wire::{ErrorCode, MAX_FRAME_BYTES, Transaction, shortened};

use super::message::Row;
use super::table::{Column, Table, show};
use crate::event::{Event, EventError, EventId};

/// Raw bytes that an error event can carry: what a frame of the plugin holds, less generous room for everything else in it. A dead
/// letter is stored as such a frame.
const RAW_BYTES: usize = MAX_FRAME_BYTES - (1 << 20);

/// The event of a row.
pub(super) fn event(row: &Row, table: &Table, transaction: &Transaction, ordinal: u64, limit: usize) -> Event {
    let event = empty(table, transaction, ordinal);
    match &table.mapping {
        Ok(mapping) => map(row, mapping, limit, event),
        Err(detail) => {
            let mut faults = Faults::default();
            faults.say(ErrorCode::Mapping, detail.clone());
            for column in &table.columns {
                if let Some(value) = value(row, column) {
                    faults.raw.push((show(&column.name).into(), value.clone()));
                }
            }
            faults.report(event)
        }
    }
}

/// The event of a message.
pub(super) fn message_event(
    emitted: &Emitted<'_>,
    message: &Bytes,
    table: &Table,
    transaction: &Transaction,
    ordinal: u64,
    limit: usize,
) -> Event {
    let mut event = empty(table, transaction, ordinal);
    let mut faults = Faults::default();
    let fault = match (&table.mapping, emitted.fields(table.outbox.payload_type)) {
        (Ok(mapping), Ok(fields)) => {
            event.id = Some(EventId::Uuid(fields.id));
            event.event_type = fields.event_type.into_owned().into();
            event.key = fields.key.map(|key| key.into_owned().into());
            event.headers = fields.headers.map(ByteString::from);
            event.payload = fields.payload.map(|payload| payload.into_owned().into());
            if size(&event) > limit {
                faults.too_large(&mut event, mapping, limit);
            }
            None
        }
        (Err(detail), _) => Some((ErrorCode::Mapping, detail.clone())),
        (_, Err(detail)) => Some((ErrorCode::Malformed, format!("the message is no event: {detail}"))),
    };
    if let Some((code, detail)) = fault {
        faults.say(code, detail);
        faults.raw.push(("message".into(), message.clone()));
    }
    faults.report(event)
}

pub(super) fn empty(table: &Table, transaction: &Transaction, ordinal: u64) -> Event {
    let Transaction { commit_lsn, end_lsn, commit_time, xid } = *transaction;
    Event {
        outbox: Arc::clone(&table.outbox),
        id: None,
        seq: None,
        event_type: ByteString::new(),
        key: None,
        headers: None,
        payload: None,
        claim: None,
        chunk: None,
        commit_lsn,
        ordinal,
        commit_time,
        xid,
        error: None,
        end_lsn,
    }
}

/// Fills in the event of a row whose columns are mapped.
fn map(row: &Row, mapping: &Mapping<Column>, limit: usize, mut event: Event) -> Event {
    let mut faults = Faults::default();
    event.id = need(row, &mapping.event_id, "event_id", &mut faults).and_then(|value| {
        let column = &mapping.event_id;
        let text = field(value, column, limit, &mut faults)?;
        let id = match column.type_oid {
            UUID => emitted::uuid(&text).map(EventId::Uuid),
            type_oid if is_int(type_oid) => text.parse().ok().map(EventId::Int),
            _ => return Some(EventId::Text(text)),
        };
        id.or_else(|| faults.add(ErrorCode::Malformed, column, format!("\"{text}\" is no id"), value))
    });
    let event_type = need(row, &mapping.event_type, "type", &mut faults)
        .and_then(|value| field(value, &mapping.event_type, limit, &mut faults));
    event.event_type = event_type.unwrap_or_default();
    let mut optional = |column: &Option<Column>| {
        let column = column.as_ref()?;
        field(value(row, column)?, column, limit, &mut faults)
    };
    event.key = optional(&mapping.key);
    event.headers = optional(&mapping.headers);
    if !mapping.header_columns.is_empty() {
        event.headers = add_headers(event.headers, row, mapping, limit, &mut faults);
    }
    event.seq = mapping.seq.as_ref().and_then(|column| std::str::from_utf8(value(row, column)?).ok()?.parse().ok());
    event.payload = value(row, &mapping.payload).and_then(|value| {
        let column = &mapping.payload;
        if column.type_oid == BYTEA {
            let bytes = bytea(value).map(Bytes::from);
            bytes.or_else(|| faults.add(ErrorCode::Malformed, column, "it is not in hexadecimal".to_owned(), value))
        } else {
            field(value, column, limit, &mut faults).map(ByteString::into_bytes)
        }
    });
    event.claim = mapping.claim.as_ref().and_then(|column| field(value(row, column)?, column, limit, &mut faults));
    if size(&event) > limit {
        faults.too_large(&mut event, mapping, limit);
    }
    faults.report(event)
}

fn value<'row>(row: &'row Row, column: &Column) -> Option<&'row Bytes> {
    row.get(column.index)?.as_ref()
}

/// The value of a column that every event needs.
fn need<'row>(row: &'row Row, column: &Column, role: &str, faults: &mut Faults) -> Option<&'row Bytes> {
    let value = value(row, column);
    if value.is_none() {
        faults.say(ErrorCode::Null, format!("{role} is NULL"));
    }
    value
}

/// The value as UTF-8: a slice of the message.
fn field(value: &Bytes, column: &Column, limit: usize, faults: &mut Faults) -> Option<ByteString> {
    if column.type_oid == JSONB && value.len() > limit {
        return faults.add(ErrorCode::TooLarge, column, format!("its text has more than {limit} bytes"), value);
    }
    match std::str::from_utf8(value) {
        Ok(_) => ByteString::try_from(value.clone()).ok(),
        Err(error) => {
            let detail = format!("byte {} is not UTF-8", error.valid_up_to());
            faults.add(ErrorCode::Encoding, column, detail, value)
        }
    }
}

/// The headers with the columns that are headers added to them. A column that is NULL is no header. Where they do not go together,
/// the headers stay as they are, and the columns' bytes go along.
fn add_headers(
    headers: Option<ByteString>,
    row: &Row,
    mapping: &Mapping<Column>,
    limit: usize,
    faults: &mut Faults,
) -> Option<ByteString> {
    let given = Given::read(headers.as_deref());
    let mut object = given.as_ref().map_or(Vec::new(), |given| given.start().to_vec());
    let mut added = false;
    for header in &mapping.header_columns {
        let Some(value) = value(row, &header.column) else { continue };
        match &given {
            Ok(given) if given.has(&header.name) => {
                let detail = format!("the row's headers have a \"{}\" of their own", header.name);
                faults.add::<()>(ErrorCode::Mapping, &header.column, detail, value);
            }
            Ok(_) => {
                let Some(printed) = field(value, &header.column, limit, faults) else { continue };
                match header.printed_time(&printed) {
                    Some(time) => header.write(&mut object, &time),
                    None => header.write(&mut object, &printed),
                }
                added = true;
            }
            Err(detail) => {
                let column = mapping.headers.as_ref().unwrap_or(&header.column);
                let detail = format!("header \"{}\" beside \"{}\": {detail}", header.name, show(&column.name));
                faults.add::<()>(ErrorCode::Mapping, &header.column, detail, value);
            }
        }
    }
    if !added {
        return headers;
    }
    object.push(b'}');
    // Every piece came as UTF-8.
    ByteString::try_from(object).ok()
}

/// The bytes of a bytea that is printed in hexadecimal.
pub(super) fn bytea(printed: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let digits = printed.strip_prefix(b"\\x")?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then_some(())?;
    let mut bytes = Vec::with_capacity(pairs.len());
    for [high, low] in pairs {
        bytes.push(nibble(*high)? << 4 | nibble(*low)?);
    }
    Some(bytes)
}

/// Bytes of the fields that the limit counts.
fn size(event: &Event) -> usize {
    let id = if let Some(EventId::Text(text)) = &event.id { text.len() } else { 16 };
    let text = |field: &Option<ByteString>| field.as_ref().map_or(0, |text| text.len());
    id + event.event_type.len() + text(&event.key) + text(&event.headers) + event.payload.as_ref().map_or(0, Bytes::len)
}

/// Columns that could not become fields.
#[derive(Default)]
struct Faults {
    first: Option<ErrorCode>,
    details: Vec<String>,
    raw: Vec<(ByteString, Bytes)>,
}

impl Faults {
    fn say(&mut self, code: ErrorCode, detail: String) {
        self.first.get_or_insert(code);
        self.details.push(shortened(detail));
    }

    /// A column that could not become a field: its bytes go along.
    fn add<T>(&mut self, code: ErrorCode, column: &Column, detail: String, value: &Bytes) -> Option<T> {
        let name = show(&column.name);
        self.say(code, format!("column \"{name}\": {detail}"));
        self.raw.push((name.into(), value.clone()));
        None
    }

    /// Takes the fields out of an event that is too large, the payload first, until the rest is within the limit.
    fn too_large(&mut self, event: &mut Event, mapping: &Mapping<Column>, limit: usize) {
        self.say(ErrorCode::TooLarge, format!("the event has {} bytes, the limit is {limit}", size(event)));
        let mut set_aside = |column: Option<&Column>, field: Option<Bytes>| {
            if let (Some(column), Some(bytes)) = (column, field) {
                self.raw.push((show(&column.name).into(), bytes));
            }
        };
        set_aside(Some(&mapping.payload), event.payload.take());
        if size(event) > limit {
            // With columns among them they are no column's; the first of these lends its name where there is no other.
            let column = mapping.headers.as_ref().or(mapping.header_columns.first().map(|header| &header.column));
            set_aside(column, event.headers.take().map(ByteString::into_bytes));
        }
        if size(event) > limit {
            set_aside(mapping.key.as_ref(), event.key.take().map(ByteString::into_bytes));
        }
        if size(event) > limit {
            set_aside(Some(&mapping.event_type), Some(std::mem::take(&mut event.event_type).into_bytes()));
        }
        if let (true, Some(EventId::Text(text))) = (size(event) > limit, &event.id) {
            set_aside(Some(&mapping.event_id), Some(text.clone().into_bytes()));
            event.id = None;
        }
    }

    /// The event, as an error event if there is anything to say.
    fn report(mut self, mut event: Event) -> Event {
        let Some(code) = self.first else { return event };
        let Self { details, raw, .. } = &mut self;
        let mut room = RAW_BYTES.saturating_sub(size(&event) + details.iter().map(String::len).sum::<usize>());
        raw.retain(|(column, bytes)| {
            let fits = bytes.len() <= room;
            if fits {
                room -= bytes.len();
            } else {
                let size = bytes.len();
                details
                    .push(format!("the {size} bytes of \"{column}\" do not fit a frame: they are in the table only"));
            }
            fits
        });
        event.error = Some(Arc::new(EventError { code, detail: self.details.join("; ").into(), raw: self.raw }));
        event
    }
}
