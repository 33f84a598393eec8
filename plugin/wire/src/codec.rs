//! Integers and byte strings: each `put_…` next to the `Reader` method that takes it back.

use alloc::vec::Vec;

use crate::decode_error::{DecodeError, Problem};

/// Bytes being read, with the offset for error messages.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    /// Offset of `bytes` in the frame.
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Offset in the frame.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn error(&self, field: &'static str, problem: Problem) -> DecodeError {
        DecodeError { problem, field, at: self.at }
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: u64, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let split = usize::try_from(count).ok().and_then(|count| self.bytes.split_at_checked(count));
        let Some((taken, rest)) = split else {
            return Err(self.error(field, Problem::Missing { needed: count, left: self.bytes.len() }));
        };
        self.bytes = rest;
        self.at += taken.len();
        Ok(taken)
    }

    /// A reader over the next `count` bytes only.
    pub(crate) fn sub(&mut self, count: u64, field: &'static str) -> Result<Self, DecodeError> {
        let at = self.at;
        Ok(Self { bytes: self.take(count, field)?, at })
    }

    /// Fails if bytes are left over after `field`, the last one.
    pub(crate) fn end(&self, field: &'static str) -> Result<(), DecodeError> {
        match self.bytes.len() {
            0 => Ok(()),
            count => Err(self.error(field, Problem::Trailing(count))),
        }
    }
}

/// One byte.
pub(crate) fn put_u8(out: &mut Vec<u8>, value: u8) {
    out.push(value);
}

impl Reader<'_> {
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        match self.bytes.split_first() {
            Some((&value, rest)) => {
                self.bytes = rest;
                self.at += 1;
                Ok(value)
            }
            None => Err(self.error(field, Problem::Missing { needed: 1, left: 0 })),
        }
    }
}

/// Unsigned LEB128: seven bits a byte, lowest first, the top bit says that more follow.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that [`put_varint`] writes for `value`.
pub(crate) fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

impl Reader<'_> {
    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for (index, &byte) in self.bytes.iter().take(10).enumerate() {
            // The tenth byte has room for one bit only, and a zero last byte would be a longer form of the same number.
            if (index == 9 && byte > 1) || (index > 0 && byte == 0) {
                return Err(self.error(field, Problem::Varint));
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.bytes = self.bytes.get(index + 1..).unwrap_or_default();
                self.at += index + 1;
                return Ok(value);
            }
        }
        let problem = match self.bytes.len() {
            left @ 0..10 => Problem::Missing { needed: u64::MAX, left },
            _ => Problem::Varint,
        };
        Err(self.error(field, problem))
    }
}

/// Signed integers as zigzag: 0, −1, 1, −2 … become 0, 1, 2, 3 …
pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, zigzag(value));
}

pub(crate) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

impl Reader<'_> {
    pub(crate) fn zigzag(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let value = self.varint(field)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

/// A byte string: its length, then its bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes that [`put_bytes`] writes.
pub(crate) fn bytes_len(bytes: &[u8]) -> usize {
    varint_len(bytes.len() as u64) + bytes.len()
}

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.varint(field)?;
        self.take(length, field)
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let start = self.clone();
        let bytes = self.bytes(field)?;
        core::str::from_utf8(bytes).map_err(|_| start.error(field, Problem::NotUtf8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_come_back(value: u64, signed: i64) {
            for value in [value, value >> 32, value >> 57] {
                let mut out = vec![];
                put_varint(&mut out, value);
                prop_assert_eq!(out.len(), varint_len(value));
                let mut reader = Reader::new(&out);
                prop_assert_eq!(reader.varint("x"), Ok(value));
                prop_assert!(reader.is_empty());
            }
            let mut out = vec![];
            put_zigzag(&mut out, signed);
            prop_assert_eq!(Reader::new(&out).zigzag("x"), Ok(signed));
        }
    }

    #[test]
    fn one_form_only() {
        for bytes in [&[0x80, 0x00][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], &[0xff; 11]] {
            assert_eq!(Reader::new(bytes).varint("x").map_err(|e| e.problem), Err(Problem::Varint), "{bytes:x?}");
        }
        let cut = Reader::new(&[0x80]).varint("x").map_err(|e| e.problem);
        assert_eq!(cut, Err(Problem::Missing { needed: u64::MAX, left: 1 }));
    }
}
