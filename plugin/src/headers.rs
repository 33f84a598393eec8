//! Columns of a table that stand among an event's headers, next to what the headers column holds.

use core::fmt;
use std::collections::HashSet;

use pgrx::pg_sys;
use postbox_wire::PgMicros;
use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::pg::datum::Value;
use crate::pg::relation::{Column, base_type};

/// A column that is a header.
pub(crate) struct Header {
    /// The header's name, in UTF-8.
    pub(crate) name: String,
    pub(crate) column: Column,
    form: Form,
}

/// What a value looks like in JSON.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Number,
    Boolean,
    Json,
    Date,
    Timestamp,
    TimestampTz,
}

impl Header {
    /// A domain is printed as the type it is over.
    pub(crate) fn new(name: String, mut column: Column) -> Self {
        column.type_oid = base_type(column.type_oid);
        let form = match column.type_oid {
            pg_sys::INT2OID
            | pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::NUMERICOID
            | pg_sys::FLOAT4OID
            | pg_sys::FLOAT8OID => Form::Number,
            pg_sys::BOOLOID => Form::Boolean,
            pg_sys::JSONOID | pg_sys::JSONBOID => Form::Json,
            pg_sys::DATEOID => Form::Date,
            pg_sys::TIMESTAMPOID => Form::Timestamp,
            pg_sys::TIMESTAMPTZOID => Form::TimestampTz,
            _ => Form::Text,
        };
        Self { name, column, form }
    }

    /// The value of a point in time: ISO 8601, whatever the session's DateStyle and TimeZone are. `None` for other
    /// types, and for a day that is beyond what a timestamp can say.
    pub(crate) fn time(&self, value: Value) -> Option<String> {
        let micros = match self.form {
            Form::Date => match value.int(pg_sys::INT4OID) {
                day if day == i64::from(i32::MIN) => i64::MIN,
                day if day == i64::from(i32::MAX) => i64::MAX,
                day => day.checked_mul(86_400_000_000)?,
            },
            Form::Timestamp | Form::TimestampTz => value.int(pg_sys::INT8OID),
            _ => return None,
        };
        if micros == i64::MIN || micros == i64::MAX {
            return Some(if micros < 0 { "-infinity" } else { "infinity" }.to_owned());
        }
        let mut text = PgMicros(micros).to_string();
        match self.form {
            // Midnight of the day: the time of day says nothing.
            Form::Date => text.truncate(text.find('T')?),
            // It has no zone, so it says none.
            Form::Timestamp => text.truncate(text.len() - 1),
            _ => {}
        }
        Some(text)
    }

    /// Appends the member of the headers object, with the value as its type prints it.
    pub(crate) fn write(&self, object: &mut Vec<u8>, printed: &str) {
        if object.is_empty() {
            object.push(b'{');
        } else if object.last() != Some(&b'{') {
            object.extend_from_slice(b", ");
        }
        string(object, &self.name);
        object.extend_from_slice(b": ");
        match self.form {
            Form::Json => object.extend_from_slice(printed.as_bytes()),
            // NaN and infinity are no numbers in JSON.
            Form::Number if printed.ends_with(|end: char| end.is_ascii_digit()) => {
                object.extend_from_slice(printed.as_bytes());
            }
            Form::Boolean => object.extend_from_slice(if printed == "t" { b"true" } else { b"false" }),
            _ => string(object, printed),
        }
    }
}

/// What the headers column of a row holds, as far as columns can be added to it.
pub(crate) enum Given<'row> {
    /// Nothing: NULL, or JSON's null.
    Nothing,
    /// The names, and the text without the closing brace.
    Object { names: HashSet<String>, open: &'row str },
}

impl<'row> Given<'row> {
    /// The error says why nothing can be added.
    pub(crate) fn read(text: Option<&'row str>) -> Result<Self, String> {
        let Some(text) = text.map(str::trim).filter(|text| *text != "null") else { return Ok(Self::Nothing) };
        let Some(open) = text.strip_prefix('{').and(text.strip_suffix('}')) else {
            return Err("it holds no JSON object, so that columns cannot be headers beside it".to_owned());
        };
        let names = serde_json::Deserializer::from_str(text).deserialize_map(Names);
        let names = names.map_err(|error| format!("its names cannot be read: {error}"))?;
        Ok(Self::Object { names, open: open.trim_end() })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        matches!(self, Self::Object { names, .. } if names.contains(name))
    }

    /// What members are appended to.
    pub(crate) fn start(&self) -> &[u8] {
        match self {
            Self::Nothing => b"",
            Self::Object { open, .. } => open.as_bytes(),
        }
    }
}

/// Collects the names of an object, and passes over the values without recursion.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = HashSet<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut names = HashSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry()? {
            names.insert(name);
        }
        Ok(names)
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}
