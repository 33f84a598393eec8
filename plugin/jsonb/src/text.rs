//! The text under construction: appended to the caller's buffer, bounded, with strings escaped.

use alloc::vec::Vec;

use crate::Error;

/// Appends to the caller's buffer until the limit is reached.
pub(crate) struct Text<'a> {
    out: &'a mut Vec<u8>,
    /// The length `out` must not exceed.
    end: usize,
}

impl<'a> Text<'a> {
    /// Starts a text of at most `limit` bytes for a value stored in `stored` bytes.
    pub(crate) fn new(out: &'a mut Vec<u8>, limit: usize, stored: usize) -> Self {
        // Text is seldom longer than the stored form, whose entries and padding outweigh quotes and separators.
        out.reserve(stored.min(limit));
        let end = out.len().saturating_add(limit);
        Self { out, end }
    }

    /// Makes sure that `more` bytes fit; the caller then appends no more than those through [`Text::piece`].
    pub(crate) fn claim(&mut self, more: usize) -> Result<(), Error> {
        if more > self.end - self.out.len() {
            return Err(Error::TooLong);
        }
        self.out.reserve(more);
        Ok(())
    }

    /// Appends bytes that were claimed.
    pub(crate) fn piece(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Appends bytes that need no escaping.
    pub(crate) fn plain(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > self.end - self.out.len() {
            return Err(Error::TooLong);
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends one byte that needs no escaping.
    pub(crate) fn byte(&mut self, byte: u8) -> Result<(), Error> {
        if self.out.len() >= self.end {
            return Err(Error::TooLong);
        }
        self.out.push(byte);
        Ok(())
    }

    /// Appends a string in quotes, escaped as the server's `escape_json` does it.
    pub(crate) fn string(&mut self, string: &[u8]) -> Result<(), Error> {
        self.claim(string.len().saturating_add(2))?;
        self.out.push(b'"');
        let mut rest = string;
        loop {
            let run = unescaped(rest);
            if run == rest.len() {
                break;
            }
            self.plain(&rest[..run])?;
            self.escape(rest[run])?;
            rest = &rest[run + 1..];
        }
        self.plain(rest)?;
        self.byte(b'"')
    }

    /// Appends the escape sequence of one character.
    fn escape(&mut self, byte: u8) -> Result<(), Error> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        match byte {
            b'"' | b'\\' => self.plain(&[b'\\', byte]),
            0x08 => self.plain(b"\\b"),
            0x09 => self.plain(b"\\t"),
            0x0a => self.plain(b"\\n"),
            0x0c => self.plain(b"\\f"),
            0x0d => self.plain(b"\\r"),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                self.plain(&[b'\\', b'u', b'0', b'0', high, low])
            }
        }
    }
}

/// How many bytes at the start need no escaping.
fn unescaped(bytes: &[u8]) -> usize {
    let mut run = 0;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        if needs_escape(u64::from_le_bytes(eight)) {
            break;
        }
        run += 8;
    }
    run + bytes[run..].iter().take_while(|&&byte| !ESCAPED[usize::from(byte)]).count()
}

/// Whether one of eight bytes is a control character, a quote or a backslash.
///
/// The well-known test for a byte below a bound: subtracting borrows into the top bit of a byte that was smaller, and
/// bytes with the top bit set to begin with are masked out. A borrow can also mark a byte above a marked one, which
/// does no harm here: the word then holds such a byte anyway.
fn needs_escape(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & TOPS;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    (below(word, 0x20) | below(quote, 1) | below(backslash, 1)) != 0
}

/// The characters that `escape_json` does not print as they are.
const ESCAPED: [bool; 256] = {
    let mut escaped = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escaped[byte] = true;
        byte += 1;
    }
    escaped[b'"' as usize] = true;
    escaped[b'\\' as usize] = true;
    escaped
};

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{ESCAPED, Text, needs_escape, unescaped};
    use crate::Error;

    #[test]
    fn every_byte_at_every_place_of_a_word_is_judged_as_by_the_table() {
        for byte in 0..=255_u8 {
            for place in 0..8 {
                for filler in [b'a', 0x21, 0x5b, 0x5d, 0x7f, 0x80, 0xff, b' '] {
                    let mut word = [filler; 8];
                    word[place] = byte;
                    assert_eq!(
                        needs_escape(u64::from_le_bytes(word)),
                        ESCAPED[usize::from(byte)],
                        "{byte:#x} at {place} in {filler:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_run_ends_before_the_first_character_to_escape() {
        for length in 0..40 {
            let clean = alloc::vec![b'x'; length];
            assert_eq!(unescaped(&clean), length);
            for place in 0..length {
                let mut text = clean.clone();
                text[place] = b'\n';
                assert_eq!(unescaped(&text), place);
            }
        }
    }

    #[test]
    fn strings_are_escaped_as_the_server_escapes_them() {
        let mut out = Vec::new();
        let mut text = Text::new(&mut out, 1000, 0);
        assert_eq!(text.string("a\"b\\c/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é".as_bytes()), Ok(()));
        assert_eq!(out, "\"a\\\"b\\\\c/\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}é\"".as_bytes());
    }

    #[test]
    fn the_limit_counts_escapes_and_quotes() {
        for (string, length) in [("abc", 5), ("a\nb", 6), ("\u{1}", 8), ("", 2)] {
            let mut out = Vec::new();
            assert_eq!(Text::new(&mut out, length, 0).string(string.as_bytes()), Ok(()));
            assert_eq!(out.len(), length);
            let mut out = Vec::new();
            assert_eq!(Text::new(&mut out, length - 1, 0).string(string.as_bytes()), Err(Error::TooLong));
        }
    }
}
