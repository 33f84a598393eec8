//! Text of the database as UTF-8.

use core::ffi::{CStr, c_char, c_int};
use std::borrow::Cow;

use pgrx::pg_sys;

use crate::pg::report;

/// The database's encoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Encoding(i32);

impl Encoding {
    /// That of the database that is being decoded.
    pub(crate) fn of_database() -> Self {
        // SAFETY: reads a variable that is set when a backend connects.
        Self(unsafe { pg_sys::GetDatabaseEncoding() })
    }

    /// The text as UTF-8: as it stands where it already is, else converted into `scratch`. The error says what is wrong.
    pub(crate) fn to_utf8<'a>(self, text: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<&'a str, String> {
        if self.is_utf8_already(text) {
            return as_utf8(text);
        }
        *scratch = convert(text, pg_sys::pg_server_to_any)?;
        as_utf8(scratch)
    }

    /// As [`to_utf8`](Self::to_utf8), for text that is in a buffer.
    pub(crate) fn in_place(self, text: &mut Vec<u8>) -> Result<&str, String> {
        if !self.is_utf8_already(text) {
            *text = convert(text, pg_sys::pg_server_to_any)?;
        }
        as_utf8(text)
    }

    /// The text as the database has it. The error says which character its encoding lacks.
    pub(crate) fn encode(self, text: &str) -> Result<Cow<'_, [u8]>, String> {
        if self.is_utf8_already(text.as_bytes()) {
            return Ok(text.as_bytes().into());
        }
        convert(text.as_bytes(), pg_sys::pg_any_to_server).map(Cow::Owned)
    }

    /// The text; where no text of the database can be it, U+0000 and all beyond ASCII are as JSON escapes them, with this for
    /// a backslash.
    pub(crate) fn escape<'a>(self, text: &'a str, backslash: &str) -> Cow<'a, str> {
        if !text.contains('\0') && self.encode(text).is_ok() {
            return text.into();
        }
        let mut escaped = String::with_capacity(text.len());
        for c in text.chars() {
            if c.is_ascii() && c != '\0' {
                escaped.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped += &format!("{backslash}u{unit:04x}");
            }
        }
        escaped.into()
    }

    /// Text for people, in UTF-8; a byte that cannot be converted is shown as U+FFFD.
    pub(crate) fn show(self, text: &[u8]) -> String {
        let mut scratch = Vec::new();
        let converted = self.to_utf8(text, &mut scratch).map(str::to_owned);
        converted.unwrap_or_else(|_| String::from_utf8_lossy(text).into_owned())
    }

    /// A message, which the server takes to be in the database's encoding: characters that have other bytes there are shown
    /// as `\u{…}`.
    pub(crate) fn message(self, text: String) -> String {
        if self.is_utf8_already(text.as_bytes()) {
            return text;
        }
        let escaped = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
        text.chars().map(escaped).collect()
    }

    /// True if nothing has to be converted: the text is UTF-8, or else not to be represented.
    fn is_utf8_already(self, text: &[u8]) -> bool {
        const UTF8: i32 = pg_sys::pg_enc::PG_UTF8 as i32;
        const SQL_ASCII: i32 = pg_sys::pg_enc::PG_SQL_ASCII as i32;
        matches!(self.0, UTF8 | SQL_ASCII) || text.is_ascii()
    }
}

fn as_utf8(text: &[u8]) -> Result<&str, String> {
    core::str::from_utf8(text).map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to()))
}

/// A function of the server that converts between the database's encoding and the one that it is given.
type Convert = unsafe fn(*const c_char, c_int, c_int) -> *mut c_char;

/// The server converts, from or to UTF-8.
fn convert(text: &[u8], convert: Convert) -> Result<Vec<u8>, String> {
    let Ok(length) = i32::try_from(text.len()) else { return Err("the text is too long to convert".to_owned()) };
    let pointer = text.as_ptr() as usize;
    // The result is copied at once: it lies in the row's memory context.
    report::about_value(move || {
        // SAFETY: the bytes are valid for the call, which does not write to them; the result is a C string.
        unsafe {
            let result = convert(pointer as *const c_char, length, pg_sys::pg_enc::PG_UTF8 as i32);
            CStr::from_ptr(result).to_bytes().to_vec()
        }
    })
}
