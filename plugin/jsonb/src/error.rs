//! Why a value could not be printed.

use core::fmt;

/// Why a jsonb value could not be printed. Nothing has been appended when one of these is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The bytes are not a jsonb value as PostgreSQL stores it.
    Malformed {
        /// What is wrong, as a noun phrase.
        what: &'static str,
        /// Where: an offset into the container bytes.
        at: usize,
    },
    /// The text is longer than the caller's limit.
    TooLong,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { what, at } => write!(f, "malformed jsonb: {what} at byte {at} of the value"),
            Self::TooLong => f.write_str("the text of the jsonb value is longer than the limit"),
        }
    }
}

impl core::error::Error for Error {}
