//! Why bytes are not a frame.

use core::fmt;

/// The bytes are not a frame of this version: what was wrong, and at which byte of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was wrong.
    pub problem: Problem,
    /// The field that was being read.
    pub field: &'static str,
    /// Offset of the field in the frame, in bytes.
    pub at: usize,
}

/// What can be wrong with a field of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The field needs more bytes than there are.
    Missing {
        /// Bytes that the field needs; `u64::MAX` when even its length is cut off.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// A field that only an error event may lack is not there.
    Absent,
    /// A variable-length integer is longer than ten bytes, does not fit, or is not in its shortest form.
    Varint,
    /// Text is not UTF-8.
    NotUtf8,
    /// A value that this version does not assign.
    Unknown(u64),
    /// A number is beyond its limit.
    TooLarge {
        /// The number found.
        found: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// The event is shorter than its length says: bytes are left over.
    Trailing(usize),
    /// A reference to an outbox that no earlier event has defined: frames before this one are needed
    /// (the stream was made with `names=stream`).
    Undefined(u64),
    /// The frame is compressed, and is to be expanded first.
    Compressed,
    /// What is compressed cannot be expanded to as many bytes as it says.
    Damaged,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { problem, field, at } = self;
        match problem {
            Problem::Missing { needed: u64::MAX, .. } => write!(f, "{field} is cut off"),
            Problem::Missing { needed, left } => write!(f, "{field} is cut off: {left} of {needed} bytes are there"),
            Problem::Absent => write!(f, "{field} is absent in an event without an error"),
            Problem::Varint => write!(f, "{field} is not a well-formed variable-length integer"),
            Problem::NotUtf8 => write!(f, "{field} is not UTF-8"),
            Problem::Unknown(value) => {
                write!(f, "{field} has the value {value}, which this version of postbox does not know")
            }
            Problem::TooLarge { found, limit } => write!(f, "{field} is {found}, the limit is {limit}"),
            Problem::Trailing(count) => write!(f, "{count} bytes are left over after {field}"),
            Problem::Undefined(reference) => {
                write!(
                    f,
                    "{field} refers to name {reference}, which an earlier frame of the stream (names=stream) defines"
                )
            }
            Problem::Compressed => write!(f, "{field} are compressed and have not been expanded"),
            Problem::Damaged => write!(f, "{field} cannot be expanded to the length that they should have"),
        }?;
        write!(f, " (byte {at} of the frame)")
    }
}

impl core::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    /// The numbers that the text has to give for a problem; without a wildcard, so that a new problem is looked at here.
    fn numbers(problem: Problem) -> &'static [&'static str] {
        match problem {
            Problem::Missing { needed: u64::MAX, .. } | Problem::Absent | Problem::Varint | Problem::NotUtf8 => &[],
            Problem::Compressed | Problem::Damaged => &[],
            Problem::Missing { .. } => &["4711", "815"],
            Problem::Unknown(_) | Problem::Trailing(_) | Problem::Undefined(_) => &["4711"],
            Problem::TooLarge { .. } => &["4711", "815"],
        }
    }

    #[test]
    fn every_problem_names_field_and_byte() {
        for problem in [
            Problem::Missing { needed: u64::MAX, left: 815 },
            Problem::Missing { needed: 4711, left: 815 },
            Problem::Absent,
            Problem::Varint,
            Problem::NotUtf8,
            Problem::Unknown(4711),
            Problem::TooLarge { found: 4711, limit: 815 },
            Problem::Trailing(4711),
            Problem::Undefined(4711),
            Problem::Compressed,
            Problem::Damaged,
        ] {
            let text = DecodeError { problem, field: "the colour", at: 99 }.to_string();
            assert!(text.contains("the colour"), "{text}");
            assert!(text.ends_with("(byte 99 of the frame)"), "{text}");
            for number in numbers(problem) {
                assert!(text.contains(number), "{text} should give {number}");
            }
        }
    }
}
