//! Columns of a table that stand among an event's headers, next to what the headers column holds.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::PgMicros;
use crate::json::string;
use crate::marker::Column;
use crate::type_oid::{BOOL, DATE, FLOAT4, FLOAT8, INT2, INT4, INT8, JSON, JSONB, NUMERIC, TIMESTAMP, TIMESTAMPTZ};

/// A column that is a header.
#[derive(Clone, Debug)]
pub struct Header<C> {
    /// The header's name, in UTF-8.
    pub name: String,
    /// The column; for a domain, as one of the type that it is over.
    pub column: C,
    form: Form,
}

/// What a value looks like in JSON.
#[derive(Clone, Copy, Debug)]
enum Form {
    Text,
    Number,
    Boolean,
    Json,
    Date,
    Timestamp,
    TimestampTz,
}

impl<C: Column> Header<C> {
    /// A domain is printed as the type it is over.
    pub(crate) fn new(name: String, column: C) -> Self {
        let column = column.of_base_type();
        let form = match column.type_oid() {
            INT2 | INT4 | INT8 | NUMERIC | FLOAT4 | FLOAT8 => Form::Number,
            BOOL => Form::Boolean,
            JSON | JSONB => Form::Json,
            DATE => Form::Date,
            TIMESTAMP => Form::Timestamp,
            TIMESTAMPTZ => Form::TimestampTz,
            _ => Form::Text,
        };
        Self { name, column, form }
    }

    /// The value of a point in time: ISO 8601, whatever the session's DateStyle and TimeZone are. `None` for other
    /// types, and for a day that is beyond what a timestamp can say. `int` gives the stored value as an integer of that type.
    pub fn time(&self, int: impl FnOnce(u32) -> i64) -> Option<String> {
        let micros = match self.form {
            Form::Date => match int(INT4) {
                day if day == i64::from(i32::MIN) => i64::MIN,
                day if day == i64::from(i32::MAX) => i64::MAX,
                day => day.checked_mul(86_400_000_000)?,
            },
            Form::Timestamp | Form::TimestampTz => int(INT8),
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

    /// The same from what the type prints with `DateStyle = ISO` and `TimeZone = UTC`; `None` for other types.
    pub fn printed_time(&self, printed: &str) -> Option<String> {
        if !matches!(self.form, Form::Date | Form::Timestamp | Form::TimestampTz) {
            return None;
        }
        if printed.ends_with("infinity") {
            return Some(printed.to_owned());
        }
        let (printed, before_christ) = printed.strip_suffix(" BC").map_or((printed, false), |rest| (rest, true));
        let (date, time) = printed.split_once(' ').map_or((printed, None), |(date, time)| (date, Some(time)));
        let date = if before_christ {
            // There is a year 0 in ISO 8601: it is the first before Christ.
            let (year, rest) = date.split_once('-')?;
            format!("{:04}-{rest}", 1 - year.parse::<i64>().ok()?)
        } else {
            date.to_owned()
        };
        let Some(time) = time else { return Some(date) };
        let clock = time.split_once('+').map_or(time, |(clock, _)| clock);
        let (clock, micros) = clock.split_once('.').unwrap_or((clock, ""));
        let zone = if matches!(self.form, Form::TimestampTz) { "Z" } else { "" };
        Some(format!("{date}T{clock}.{micros:0<6}{zone}"))
    }

    /// Appends the member of the headers object, with the value as its type prints it.
    pub fn write(&self, object: &mut Vec<u8>, printed: &str) {
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
#[derive(Debug)]
pub enum Given<'row> {
    /// Nothing: NULL, or JSON's null.
    Nothing,
    /// An object.
    Object {
        /// The names.
        names: BTreeSet<String>,
        /// The text without the closing brace.
        open: &'row str,
    },
}

impl<'row> Given<'row> {
    /// Reads the text of the headers column.
    ///
    /// # Errors
    /// Why nothing can be added, in words.
    pub fn read(text: Option<&'row str>) -> Result<Self, String> {
        let Some(text) = text.map(str::trim).filter(|text| *text != "null") else { return Ok(Self::Nothing) };
        let Some(open) = text.strip_prefix('{').and(text.strip_suffix('}')) else {
            return Err("it holds no JSON object, so that columns cannot be headers beside it".to_owned());
        };
        let names = serde_json::Deserializer::from_str(text).deserialize_map(Names);
        let names = names.map_err(|error| format!("its names cannot be read: {error}"))?;
        Ok(Self::Object { names, open: open.trim_end() })
    }

    /// Whether there is a member of this name.
    pub fn has(&self, name: &str) -> bool {
        matches!(self, Self::Object { names, .. } if names.contains(name))
    }

    /// What members are appended to.
    pub fn start(&self) -> &[u8] {
        match self {
            Self::Nothing => b"",
            Self::Object { open, .. } => open.as_bytes(),
        }
    }
}

/// Collects the names of an object, and passes over the values without recursion.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = BTreeSet<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry()? {
            names.insert(name);
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Of(u32);

    impl Column for Of {
        fn name(&self) -> &[u8] {
            b"c"
        }

        fn type_oid(&self) -> u32 {
            self.0
        }

        fn is_virtual(&self) -> bool {
            false
        }

        fn of_base_type(self) -> Self {
            self
        }
    }

    #[test]
    fn a_printed_time_is_the_same_as_a_stored_one() {
        const DAY: i64 = 86_400_000_000;
        for (type_oid, printed, stored) in [
            (DATE, "2026-01-02", 9498),
            (DATE, "0001-12-31 BC", -730_120),
            (DATE, "0044-03-15 BC", -746_117),
            (DATE, "infinity", i32::MAX.into()),
            (DATE, "-infinity", i32::MIN.into()),
            (TIMESTAMP, "2026-01-02 03:04:05.5", 9498 * DAY + 11_045_500_000),
            (TIMESTAMP, "12026-01-02 03:04:05", (9498 + 3_652_425) * DAY + 11_045_000_000),
            (TIMESTAMPTZ, "2026-01-02 03:04:05+00", 9498 * DAY + 11_045_000_000),
            (TIMESTAMPTZ, "0001-12-31 23:59:59.999999+00 BC", -730_119 * DAY - 1),
            (TIMESTAMPTZ, "-infinity", i64::MIN),
        ] {
            let header = Header::new("h".to_owned(), Of(type_oid));
            assert_eq!(header.printed_time(printed), header.time(|_| stored), "{printed}");
        }
        assert_eq!(Header::new("h".to_owned(), Of(crate::type_oid::TEXT)).printed_time("2026-01-02"), None);
    }
}
