//! A row as an event. No committed row may stop the stream: what cannot be a field of the event goes along as raw bytes,
//! with the reason.

use pgrx::pg_sys;
use postbox_wire::emitted::Emitted;
use postbox_wire::headers::Given;
use postbox_wire::marker::is_int;
use postbox_wire::{
    Chunk, ErrorCode, Event, EventError, EventId, MAX_EVENT_BYTES, MAX_FRAME_BYTES, RawColumn, shortened,
};

use crate::pg::change::Tuple;
use crate::pg::datum::{Value, Values};
use crate::pg::encoding::Encoding;
use crate::pg::memory::RowMemory;
use crate::pg::relation::{Column, Descriptor, Mapping};
use crate::route::{Claims, Table};

/// Reads rows, with buffers that are used again and again.
pub(crate) struct RowReader {
    encoding: Encoding,
    memory: RowMemory,
    max_event_bytes: usize,
    /// The client knows claims.
    claims: bool,
    /// What is wrong with the chunks that the transaction has written so far.
    broken_claim: Option<String>,
    values: Values,
    text: Buffers,
}

/// Where fields are printed or converted that cannot be taken from the row as they are.
#[derive(Default)]
struct Buffers {
    id: Vec<u8>,
    event_type: Vec<u8>,
    key: Vec<u8>,
    headers: Vec<u8>,
    payload: Vec<u8>,
    claim: Vec<u8>,
    /// Headers with columns among them, and one of these columns.
    object: Vec<u8>,
    member: Vec<u8>,
}

/// A buffer that has grown beyond this is freed after the row.
const KEEP_BYTES: usize = 1 << 20;

/// Raw bytes that an error event can carry: what a frame holds, less generous room for everything else in it.
const RAW_BYTES: usize = MAX_FRAME_BYTES - (1 << 20);

/// Columns that could not become fields.
struct Faults {
    encoding: Encoding,
    first: Option<ErrorCode>,
    details: Vec<String>,
    raw: Vec<(String, Vec<u8>)>,
}

impl RowReader {
    pub(crate) fn new(memory: RowMemory, max_event_bytes: usize, claims: bool) -> Self {
        Self {
            encoding: Encoding::of_database(),
            memory,
            max_event_bytes,
            claims,
            broken_claim: None,
            values: Values::default(),
            text: Buffers::default(),
        }
    }

    /// A transaction begins.
    pub(crate) fn begin(&mut self) {
        self.broken_claim = None;
    }

    /// Hands the chunk of a row of claims to `emit`. One that cannot be read makes the transaction's claims error events.
    pub(crate) fn read_chunk(
        &mut self,
        tuple: Tuple<'_>,
        rows: Descriptor<'_>,
        claims: &Claims,
        ordinal: u64,
        emit: impl FnOnce(&Chunk<'_>),
    ) {
        let Self { memory, values, broken_claim, .. } = self;
        let mapping = match &claims.mapping {
            Ok(mapping) => mapping,
            Err(detail) => {
                broken_claim.get_or_insert_with(|| detail.clone());
                return;
            }
        };
        memory.scoped(|| {
            values.take_apart(tuple, rows);
            let int = |column: &Column| values.get(column.index).map_or(0, |value| value.int(column.type_oid));
            let number = |column: &Column| u32::try_from(int(column)).unwrap_or(0);
            let (seq, chunk) = (int(&mapping.seq), number(&mapping.number));
            match values.get(mapping.data.index).map(Value::bytes) {
                Some(Ok(data)) => {
                    let outbox = claims.target.outbox.clone();
                    emit(&Chunk { outbox, ordinal, seq, number: chunk, rows: number(&mapping.rows), data });
                }
                Some(Err(detail)) => {
                    broken_claim.get_or_insert_with(|| format!("chunk {chunk} of claim {seq}: {detail}"));
                }
                None => {
                    broken_claim.get_or_insert_with(|| format!("chunk {chunk} of claim {seq} has no data"));
                }
            }
        });
    }

    /// Hands the row's event to `emit`, and the values that it was made of. `rows` describes the row; the table's columns
    /// were found by it.
    pub(crate) fn read(
        &mut self,
        tuple: Tuple<'_>,
        rows: Descriptor<'_>,
        table: &Table,
        ordinal: u64,
        emit: impl FnOnce(&Event<'_>, &Values),
    ) {
        self.memory.scoped(|| {
            self.values.take_apart(tuple, rows);
            match &table.mapping {
                Ok(mapping) => self.map(mapping, table, ordinal, emit),
                Err(detail) => self.explain(detail, table, ordinal, emit),
            }
        });
        let Buffers { id, event_type, key, headers, payload, claim, object, member } = &mut self.text;
        for buffer in [id, event_type, key, headers, payload, claim, object, member] {
            if buffer.capacity() > KEEP_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    /// Hands the event of a message to `emit`.
    pub(crate) fn read_message(
        &self,
        emitted: &Emitted<'_>,
        message: &[u8],
        table: &Table,
        ordinal: u64,
        emit: impl FnOnce(&Event<'_>),
    ) {
        let Self { encoding, memory, max_event_bytes, .. } = self;
        let mut faults = Faults::new(*encoding);
        let outbox = table.target.outbox.clone();
        let nothing = |outbox| Event {
            outbox,
            ordinal,
            id: None,
            seq: None,
            event_type: None,
            key: None,
            headers: None,
            payload: None,
            claim: None,
            error: None,
        };
        let fields = emitted.fields(outbox.payload_type).and_then(|fields| {
            // With a dead letter they are stored as text.
            for (name, text) in [("type", Some(&fields.event_type)), ("key", fields.key.as_ref())] {
                let held = memory.scoped(|| text.map_or(Ok(()), |text| encoding.encode(text).map(drop)));
                held.map_err(|detail| format!("its {name} is no text of the database: {detail}"))?;
            }
            Ok(fields)
        });
        match (&table.mapping, fields) {
            (Ok(mapping), Ok(fields)) => {
                let mut event = Event {
                    id: Some(EventId::Uuid(fields.id)),
                    event_type: Some(&fields.event_type),
                    key: fields.key.as_deref(),
                    headers: fields.headers,
                    payload: fields.payload.as_deref(),
                    ..nothing(outbox)
                };
                if event.size() > *max_event_bytes {
                    faults.too_large(&mut event, mapping, *max_event_bytes);
                }
                faults.report(event, emit);
            }
            (Err(detail), _) => {
                faults.say(ErrorCode::Mapping, detail.clone());
                faults.raw.push(("message".to_owned(), message.to_vec()));
                faults.report(nothing(outbox), emit);
            }
            (_, Err(detail)) => {
                faults.say(ErrorCode::Malformed, format!("the message is no event: {detail}"));
                faults.raw.push(("message".to_owned(), message.to_vec()));
                faults.report(nothing(outbox), emit);
            }
        }
    }

    /// The event of a row whose columns are mapped.
    fn map(&mut self, mapping: &Mapping, table: &Table, ordinal: u64, emit: impl FnOnce(&Event<'_>, &Values)) {
        let Self { encoding, max_event_bytes, claims, broken_claim, values, text, .. } = self;
        let read = Reader { encoding: *encoding, limit: *max_event_bytes };
        let mut faults = Faults::new(*encoding);

        let id = need(values, &mapping.event_id, "event_id", &mut faults).and_then(|value| {
            match mapping.event_id.type_oid {
                pg_sys::UUIDOID => Some(EventId::Uuid(value.uuid())),
                oid if is_int(oid.to_u32()) => Some(EventId::Int(value.int(oid))),
                _ => read.field(value, &mapping.event_id, &mut text.id, &mut faults).map(EventId::Text),
            }
        });
        let event_type = need(values, &mapping.event_type, "type", &mut faults)
            .and_then(|value| read.field(value, &mapping.event_type, &mut text.event_type, &mut faults));
        let mut optional = |column: &Option<Column>, buffer| {
            let column = column.as_ref()?;
            read.field(values.get(column.index)?, column, buffer, &mut faults)
        };
        let key = optional(&mapping.key, &mut text.key);
        let mut headers = optional(&mapping.headers, &mut text.headers);
        if !mapping.header_columns.is_empty() {
            headers = read.add_headers(headers, mapping, values, &mut text.object, &mut text.member, &mut faults);
        }
        let seq = mapping.seq.as_ref().and_then(|column| Some(values.get(column.index)?.int(column.type_oid)));
        let payload = values.get(mapping.payload.index).and_then(|value| {
            if mapping.payload.type_oid == pg_sys::BYTEAOID {
                value.bytes().map_err(|detail| faults.add(ErrorCode::Malformed, &mapping.payload, detail, value)).ok()
            } else {
                read.field(value, &mapping.payload, &mut text.payload, &mut faults).map(str::as_bytes)
            }
        });

        let mut claim = None;
        if let Some(column) = &mapping.claim
            && let Some(value) = values.get(column.index)
        {
            claim = read.field(value, column, &mut text.claim, &mut faults);
            let broken = broken_claim.clone().map(|detail| (ErrorCode::Malformed, detail));
            let unknown = (!*claims).then(|| {
                let detail = "the event's data lies in the claims of the outbox, and the client has not asked for such events (option claims)";
                (ErrorCode::TooLarge, detail.to_owned())
            });
            if let (Some(text), Some((code, detail))) = (claim, broken.or(unknown)) {
                // What stands there is text already, and said with the reason.
                faults.say(code, format!("{detail}: {text}"));
                claim = None;
            }
        }

        let outbox = table.target.outbox.clone();
        let mut event = Event { outbox, ordinal, id, seq, event_type, key, headers, payload, claim, error: None };
        if event.size() > *max_event_bytes {
            faults.too_large(&mut event, mapping, *max_event_bytes);
        }
        faults.report(event, |event| emit(event, values));
    }

    /// The error event of a row whose columns cannot be mapped: it carries all of them, as their types print them.
    fn explain(&mut self, detail: &str, table: &Table, ordinal: u64, emit: impl FnOnce(&Event<'_>, &Values)) {
        let mut faults = Faults::new(self.encoding);
        faults.say(ErrorCode::Mapping, detail.to_owned());
        // A row that SQL passes has the values of virtual columns, one of the log has not.
        for column in table.columns.iter().filter(|column| !column.is_virtual) {
            let Some(value) = self.values.get(column.index) else { continue };
            match value.print(column.type_oid) {
                Ok(printed) => faults.raw.push((self.encoding.show(&column.name), printed)),
                Err(error) => faults.details.push(error),
            }
        }
        let event = Event {
            outbox: table.target.outbox.clone(),
            ordinal,
            id: None,
            seq: None,
            event_type: None,
            key: None,
            headers: None,
            payload: None,
            claim: None,
            error: None,
        };
        faults.report(event, |event| emit(event, &self.values));
    }
}

/// How text is read.
#[derive(Clone, Copy)]
struct Reader {
    encoding: Encoding,
    limit: usize,
}

impl Reader {
    /// The value as UTF-8: from the row itself where it can be, else through `buffer`.
    fn field<'row>(
        self,
        value: Value,
        column: &Column,
        buffer: &'row mut Vec<u8>,
        faults: &mut Faults,
    ) -> Option<&'row str> {
        let malformed = |detail| (ErrorCode::Malformed, detail);
        let not_utf8 = |detail| (ErrorCode::Encoding, detail);
        let result = match column.type_oid {
            pg_sys::JSONBOID => value.bytes().map_err(malformed).and_then(|container| {
                buffer.clear();
                postbox_jsonb::print(container, buffer, self.limit).map_err(|error| match error {
                    postbox_jsonb::Error::TooLong => {
                        (ErrorCode::TooLarge, format!("its text has more than {} bytes", self.limit))
                    }
                    postbox_jsonb::Error::Malformed { .. } => (ErrorCode::Malformed, error.to_string()),
                })?;
                self.encoding.in_place(buffer).map_err(not_utf8)
            }),
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID => value
                .bytes()
                .map_err(malformed)
                .and_then(|bytes| self.encoding.to_utf8(bytes, buffer).map_err(not_utf8)),
            type_oid => value.print(type_oid).map_err(malformed).and_then(|printed| {
                *buffer = printed;
                self.encoding.in_place(buffer).map_err(not_utf8)
            }),
        };
        result.map_err(|(code, detail)| faults.add(code, column, detail, value)).ok()
    }

    /// The headers with the columns that are headers added to them, in `object`. A column that is NULL is no header. Where
    /// they do not go together, the headers stay as they are, and the columns' bytes go along.
    fn add_headers<'row>(
        self,
        headers: Option<&'row str>,
        mapping: &Mapping,
        values: &Values,
        object: &'row mut Vec<u8>,
        member: &mut Vec<u8>,
        faults: &mut Faults,
    ) -> Option<&'row str> {
        let given = Given::read(headers);
        let start = given.as_ref().map_or(&b""[..], Given::start);
        object.clear();
        object.extend_from_slice(start);
        let mut added = false;
        for header in &mapping.header_columns {
            let Some(value) = values.get(header.column.index) else { continue };
            match &given {
                Ok(given) if given.has(&header.name) => {
                    let detail = format!("the row's headers have a \"{}\" of their own", header.name);
                    faults.add(ErrorCode::Mapping, &header.column, detail, value);
                }
                Ok(_) => {
                    if let Some(time) = header.time(|type_oid| value.int(pg_sys::Oid::from(type_oid))) {
                        header.write(object, &time);
                    } else {
                        let Some(printed) = self.field(value, &header.column, member, faults) else { continue };
                        header.write(object, printed);
                    }
                    added = true;
                }
                Err(detail) => {
                    let column = mapping.headers.as_ref().unwrap_or(&header.column);
                    let detail =
                        format!("header \"{}\" beside \"{}\": {detail}", header.name, self.encoding.show(&column.name));
                    faults.add(ErrorCode::Mapping, &header.column, detail, value);
                }
            }
        }
        if !added {
            return headers;
        }
        object.push(b'}');
        // Every piece came as UTF-8.
        core::str::from_utf8(object).ok()
    }
}

/// What stands for a value in an error event: its stored bytes; for jsonb that is merely too large its text, unless even that
/// has more than [`MAX_EVENT_BYTES`].
fn raw(code: ErrorCode, type_oid: pg_sys::Oid, value: Value) -> Vec<u8> {
    // Only a value of variable length has bytes to be asked for.
    if code == ErrorCode::TooLarge
        && type_oid == pg_sys::JSONBOID
        && let Ok(container) = value.bytes()
    {
        let mut text = Vec::new();
        if postbox_jsonb::print(container, &mut text, MAX_EVENT_BYTES).is_ok() {
            return text;
        }
    }
    value.stored(type_oid)
}

/// The value of a column that every event needs.
fn need(values: &Values, column: &Column, role: &str, faults: &mut Faults) -> Option<Value> {
    let value = values.get(column.index);
    if value.is_none() {
        faults.say(ErrorCode::Null, format!("{role} is NULL"));
    }
    value
}

impl Faults {
    fn new(encoding: Encoding) -> Self {
        Self { encoding, first: None, details: Vec::new(), raw: Vec::new() }
    }

    fn say(&mut self, code: ErrorCode, detail: String) {
        self.first.get_or_insert(code);
        self.details.push(shortened(detail));
    }

    /// A column that could not become a field: its bytes go along.
    fn add(&mut self, code: ErrorCode, column: &Column, detail: String, value: Value) {
        let name = self.encoding.show(&column.name);
        self.say(code, format!("column \"{name}\": {detail}"));
        self.raw.push((name, raw(code, column.type_oid, value)));
    }

    /// Takes the fields out of an event that is too large, the payload first, until the rest is within the limit.
    fn too_large(&mut self, event: &mut Event<'_>, mapping: &Mapping, limit: usize) {
        self.say(ErrorCode::TooLarge, format!("the event has {} bytes, the limit is {limit}", event.size()));
        let mut set_aside = |column: Option<&Column>, field: Option<&[u8]>| {
            if let (Some(column), Some(bytes)) = (column, field) {
                self.raw.push((self.encoding.show(&column.name), bytes.to_vec()));
            }
        };
        set_aside(Some(&mapping.payload), event.payload.take());
        if event.size() > limit {
            let headers = event.headers.take().map(str::as_bytes);
            // With columns among them they are no column's; the first of these lends its name where there is no other.
            let column = mapping.headers.as_ref().or(mapping.header_columns.first().map(|header| &header.column));
            set_aside(column, headers);
        }
        if event.size() > limit {
            set_aside(mapping.key.as_ref(), event.key.take().map(str::as_bytes));
        }
        if event.size() > limit {
            set_aside(Some(&mapping.event_type), event.event_type.take().map(str::as_bytes));
        }
        if let (true, Some(EventId::Text(text))) = (event.size() > limit, event.id) {
            event.id = None;
            set_aside(Some(&mapping.event_id), Some(text.as_bytes()));
        }
    }

    /// Hands the event on, as an error event if there is anything to say.
    fn report(mut self, event: Event<'_>, emit: impl FnOnce(&Event<'_>)) {
        let Some(code) = self.first else { return emit(&event) };
        let Self { details, raw, .. } = &mut self;
        let mut room = RAW_BYTES.saturating_sub(event.size() + details.iter().map(String::len).sum::<usize>());
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
        let detail = self.details.join("; ");
        let raw = self.raw.iter().map(|(column, bytes)| RawColumn { column, bytes }).collect();
        let mut event: Event<'_> = event;
        event.error = Some(EventError { code, detail: &detail, raw });
        emit(&event);
    }
}
