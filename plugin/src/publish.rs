//! `postbox.publish`: an INSERT by the caller, through a plan that is kept.
//!
//! Every call looks the outbox's name up and locks the table. What was found out about the table, and the plan of its
//! INSERT, is then good for as long as PostgreSQL keeps the plan valid: whatever is done to the table, its marker or
//! its schema ends that.

use core::cell::RefCell;
use std::ffi::CString;

use pgrx::PgSqlErrorCode::{self, *};
use pgrx::pg_sys::{self, Oid};

use crate::pg::call::{Arguments, Field, type_name, with_table};
use crate::pg::encoding::Encoding;
use crate::pg::relation::{Column, Mapping, TRIGGER};
use crate::pg::report;
use crate::pg::spi::{Plan, Plans};

/// Makes the arguments ready to be inserted, and returns the plan to insert them with.
pub(crate) fn plan(arguments: &mut Arguments<'_>) -> Plan {
    let Some(table) = arguments.find_table() else { raise(&Refusal::no_outbox(arguments)) };
    if arguments.is_null(Field::Type) {
        raise(&Refusal::null("type"));
    }
    let payload_type = arguments.payload_type();
    let kept = PLANS.with_borrow_mut(|plans| plans.get(table, payload_type));
    let (plan, has) = kept.unwrap_or_else(|| {
        let (plan, has) = prepare(table, arguments).unwrap_or_else(|refusal| raise(&refusal));
        PLANS.with_borrow_mut(|plans| plans.keep(table, plan, has));
        (plan, has)
    });
    if !has.key && !arguments.is_null(Field::Key) {
        raise(&Refusal::no_column(arguments, "key"));
    }
    if !has.headers && !arguments.is_null(Field::Headers) {
        raise(&Refusal::no_column(arguments, "headers"));
    }
    if arguments.is_null(Field::EventId) {
        arguments.make_event_id();
    }
    plan
}

/// The columns that an adopted table may lack.
#[derive(Clone, Copy)]
struct Has {
    key: bool,
    headers: bool,
}

thread_local! {
    static PLANS: RefCell<Plans<Has>> = const { RefCell::new(Plans::new()) };
}

fn prepare(table: Oid, arguments: &Arguments<'_>) -> Result<(Plan, Has), Refusal> {
    let (name, mapping) = with_table(table, |relation| {
        let Some(marker) = relation.trigger(TRIGGER) else { return Err(Refusal::not_an_outbox(arguments)) };
        if let Some(root) = relation.topmost_ancestor(|parent| parent.trigger(TRIGGER).map(|_| parent.name())) {
            return Err(Refusal::leaf(arguments, &root));
        }
        let mapping =
            Mapping::read(&marker, &relation.descriptor().columns(), |name| Encoding::of_database().show(name));
        Ok((relation.name(), mapping.map_err(|detail| Refusal::bad_marker(arguments, &detail))?))
    })?;
    let statement = statement(&name, &mapping, arguments)?;
    let has = Has { key: mapping.key.is_some(), headers: mapping.headers.is_some() };
    Ok((Plan::prepare(&statement, arguments.payload_type()), has))
}

/// The INSERT, with every name quoted and qualified, so that nothing in it depends on search_path.
fn statement(
    (schema, table): &(Vec<u8>, Vec<u8>),
    mapping: &Mapping,
    arguments: &Arguments<'_>,
) -> Result<CString, Refusal> {
    let fields = [
        (Some(&mapping.event_id), Field::EventId, "event_id", pg_sys::UUIDOID),
        (Some(&mapping.event_type), Field::Type, "type", pg_sys::TEXTOID),
        (mapping.key.as_ref(), Field::Key, "key", pg_sys::TEXTOID),
        (mapping.headers.as_ref(), Field::Headers, "headers", pg_sys::JSONBOID),
        (Some(&mapping.payload), Field::Payload, "payload", arguments.payload_type()),
    ];
    let mut columns = Vec::new();
    let mut values = String::new();
    for (column, field, role, given) in fields {
        let Some(column) = column else { continue };
        let Some(cast) = cast(given, column.type_oid) else {
            return Err(Refusal::type_mismatch(arguments, role, given, column));
        };
        let separator = if columns.is_empty() { "" } else { ", " };
        columns.extend_from_slice(separator.as_bytes());
        quote(&mut columns, &column.name);
        values += &format!("{separator}${}{cast}", field as usize + 1);
    }
    let mut statement = b"INSERT INTO ".to_vec();
    quote(&mut statement, schema);
    statement.push(b'.');
    quote(&mut statement, table);
    statement.extend_from_slice(b" (");
    statement.extend_from_slice(&columns);
    statement.extend_from_slice(format!(") VALUES ({values})").as_bytes());
    CString::new(statement).map_err(|_| Refusal::not_an_outbox(arguments))
}

/// An identifier in double quotes. No byte of a multibyte character of a server encoding is an ASCII quote.
fn quote(statement: &mut Vec<u8>, identifier: &[u8]) {
    statement.push(b'"');
    for byte in identifier {
        if *byte == b'"' {
            statement.push(b'"');
        }
        statement.push(*byte);
    }
    statement.push(b'"');
}

/// How a parameter of one type is written into a column of another; `None` if that would not be what the caller means.
fn cast(given: Oid, column: Oid) -> Option<&'static str> {
    use pg_sys::{BYTEAOID, INT2OID, INT4OID, INT8OID, JSONBOID, JSONOID, TEXTOID, UUIDOID, VARCHAROID};
    Some(match (given, column) {
        (given, column) if given == column => "",
        (JSONBOID | JSONOID | UUIDOID, TEXTOID | VARCHAROID) => "::pg_catalog.text",
        (TEXTOID, VARCHAROID) => "",
        (TEXTOID | JSONOID, JSONBOID) => "::pg_catalog.jsonb",
        (TEXTOID | JSONBOID, JSONOID) => "::pg_catalog.json",
        (TEXTOID, BYTEAOID) => "::pg_catalog.bytea",
        (TEXTOID, UUIDOID) => "::pg_catalog.uuid",
        (TEXTOID, INT2OID) => "::pg_catalog.int2",
        (TEXTOID, INT4OID) => "::pg_catalog.int4",
        (TEXTOID, INT8OID) => "::pg_catalog.int8",
        _ => return None,
    })
}

/// Why nothing was published.
pub(crate) struct Refusal {
    pub(crate) code: PgSqlErrorCode,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Refusal {
    pub(crate) fn null(argument: &str) -> Self {
        Self {
            code: ERRCODE_NULL_VALUE_NOT_ALLOWED,
            message: format!("the {argument} of an event cannot be NULL"),
            hint: "postbox.publish needs an outbox and a type; payload, key and headers may be NULL.".to_owned(),
        }
    }

    pub(crate) fn no_outbox(arguments: &Arguments<'_>) -> Self {
        let Some(name) = arguments.outbox() else { return Self::null("outbox") };
        Self {
            code: ERRCODE_UNDEFINED_TABLE,
            message: format!("outbox \"{}\" does not exist", shown(&name)),
            hint: "Make it with postbox.create_outbox, or qualify the name if its schema is not in search_path; \
                   postbox.outbox_status() lists the outboxes."
                .to_owned(),
        }
    }

    pub(crate) fn not_an_outbox(arguments: &Arguments<'_>) -> Self {
        Self {
            code: ERRCODE_WRONG_OBJECT_TYPE,
            message: format!("\"{}\" is not an outbox", outbox(arguments)),
            hint: "postbox.outbox_status() lists the outboxes; postbox.adopt_outbox makes an existing table one."
                .to_owned(),
        }
    }

    pub(crate) fn leaf(arguments: &Arguments<'_>, (schema, root): &(Vec<u8>, Vec<u8>)) -> Self {
        Self {
            code: ERRCODE_WRONG_OBJECT_TYPE,
            message: format!("\"{}\" is a partition of an outbox", outbox(arguments)),
            hint: format!("Publish to the outbox itself, {}.{}.", shown(schema), shown(root)),
        }
    }

    pub(crate) fn bad_marker(arguments: &Arguments<'_>, detail: &str) -> Self {
        Self {
            code: ERRCODE_WRONG_OBJECT_TYPE,
            message: format!("the columns of outbox \"{}\" cannot be told: {detail}", outbox(arguments)),
            hint: "Adopt the table anew: postbox.drop_outbox takes the mark off it, then postbox.adopt_outbox."
                .to_owned(),
        }
    }

    fn no_column(arguments: &Arguments<'_>, role: &str) -> Self {
        Self {
            code: ERRCODE_UNDEFINED_COLUMN,
            message: format!("outbox \"{}\" has no column for {role}", outbox(arguments)),
            hint: format!("Leave {role} out, or add the column and adopt the table anew with postbox.adopt_outbox."),
        }
    }

    pub(crate) fn type_mismatch(arguments: &Arguments<'_>, role: &str, given: Oid, column: &Column) -> Self {
        let hint = match (role, given, column.type_oid) {
            ("payload", pg_sys::BYTEAOID, _) => {
                "This outbox takes text: pass convert_from(payload, 'UTF8'), or make an outbox with payload_type bytea."
            }
            ("payload", _, pg_sys::BYTEAOID) => {
                "This outbox takes bytes: pass convert_to(payload::text, 'UTF8'), or a bytea."
            }
            _ => "postbox.publish cannot write this column; INSERT into the table instead.",
        };
        Self {
            code: ERRCODE_DATATYPE_MISMATCH,
            message: format!(
                "{role} of type {} does not fit column \"{}\" of outbox \"{}\", which has type {}",
                type_name(given),
                shown(&column.name),
                outbox(arguments),
                type_name(column.type_oid)
            ),
            hint: hint.to_owned(),
        }
    }
}

pub(crate) fn raise(refusal: &Refusal) -> ! {
    report::raise(refusal.code, refusal.message.clone(), refusal.hint.clone())
}

pub(crate) fn outbox(arguments: &Arguments<'_>) -> String {
    shown(&arguments.outbox().unwrap_or_default())
}

fn shown(name: &[u8]) -> String {
    Encoding::of_database().show(name)
}
