//! The text under construction: appended to the caller's buffer, bounded, with strings escaped.

use alloc::vec::Vec;

use crate::Error;

/// The caller's buffer, and how far its text may go.
///
/// The place where the text goes on is handed in and out of every method rather than kept here, so that it stays in a
/// register: from one append to the next through memory would be most of the time that a short value takes.
pub(crate) struct Text<'a> {
    /// Longer than the text so far; what lies behind it is room.
    out: &'a mut Vec<u8>,
    /// Where the text must end at the latest.
    end: usize,
}

/// How many bytes are looked at and written at once. Most strings and numbers are shorter than two of these, and a call
/// to copy a handful of bytes costs more than to write a whole word, of which the next one overwrites what was too much.
const WORD: usize = size_of::<u64>();

impl<'a> Text<'a> {
    /// Starts a text of at most `limit` bytes for a value stored in `stored` bytes.
    pub(crate) fn new(out: &'a mut Vec<u8>, limit: usize, stored: usize) -> Self {
        let before = out.len();
        // Text is seldom longer than the stored form, whose entries and padding outweigh quotes and separators.
        out.resize(before + stored.min(limit).saturating_add(WORD), 0);
        Self { out, end: before.saturating_add(limit) }
    }

    /// Fails if `more` bytes at `at` would not be within the limit.
    pub(crate) fn claim(&self, at: usize, more: usize) -> Result<(), Error> {
        if at.saturating_add(more) > self.end { Err(Error::TooLong) } else { Ok(()) }
    }

    /// Writes bytes that need no escaping.
    #[inline(always)]
    pub(crate) fn plain<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> usize {
        if self.out.len() - at < N {
            self.grow();
        }
        self.out[at..at + N].copy_from_slice(bytes);
        at + N
    }

    /// Writes the lowest `length` bytes of a word, the lowest first.
    #[inline(always)]
    pub(crate) fn word(&mut self, at: usize, word: u64, length: usize) -> usize {
        self.plain(at, &word.to_le_bytes());
        at + length
    }

    /// Writes in quotes the string that lies from `start` to `end` of `value`, escaped as the server's `escape_json` does it.
    #[inline(always)]
    pub(crate) fn string(&mut self, mut at: usize, value: &[u8], start: usize, end: usize) -> Result<usize, Error> {
        self.claim(at, end - start)?;
        at = self.plain(at, b"\"");
        let mut from = start;
        while from < end {
            let (word, length) = read(value, from, end);
            match first_escaped(word) {
                None => {
                    at = self.word(at, word, length);
                    from += length;
                }
                Some(clean) => {
                    at = self.word(at, word, clean);
                    at = self.escape(at, value[from + clean])?;
                    from += clean + 1;
                }
            }
        }
        Ok(self.plain(at, b"\""))
    }

    /// Writes the escape sequence of one character.
    #[cold]
    fn escape(&mut self, at: usize, byte: u8) -> Result<usize, Error> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        // A long string of nothing but these would grow to six times the limit.
        self.claim(at, 2)?;
        Ok(match byte {
            b'"' | b'\\' => self.plain(at, &[b'\\', byte]),
            0x08 => self.plain(at, b"\\b"),
            0x09 => self.plain(at, b"\\t"),
            0x0a => self.plain(at, b"\\n"),
            0x0c => self.plain(at, b"\\f"),
            0x0d => self.plain(at, b"\\r"),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                self.plain(at, &[b'\\', b'u', b'0', b'0', high, low])
            }
        })
    }

    /// Makes more room than anything takes that is written at once.
    #[cold]
    fn grow(&mut self) {
        let room = self.out.len().max(8 * WORD);
        self.out.resize(self.out.len() + room, 0);
    }
}

/// The bytes from `at` on, the first as the lowest, and how many of them lie before `end`; the others are spaces.
fn read(value: &[u8], at: usize, end: usize) -> (u64, usize) {
    const SPACES: u64 = u64::from_le_bytes([b' '; WORD]);
    let length = end - at;
    match value[at..].first_chunk::<WORD>() {
        Some(word) if length >= WORD => (u64::from_le_bytes(*word), WORD),
        Some(word) => {
            let beyond = u64::MAX << (8 * length);
            (u64::from_le_bytes(*word) & !beyond | SPACES & beyond, length)
        }
        // The value ends here.
        None => {
            let mut word = [b' '; WORD];
            word[..length].copy_from_slice(&value[at..end]);
            (u64::from_le_bytes(word), length)
        }
    }
}

/// The place of the first of eight bytes that is a control character, a quote or a backslash.
///
/// The well-known test for a byte below a bound: subtracting borrows into the top bit of a byte that was smaller, and
/// bytes with the top bit set to begin with are masked out. A borrow can also mark a byte above a marked one, but the
/// lowest mark is always true.
fn first_escaped(word: u64) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & TOPS;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let marks = below(word, 0x20) | below(quote, 1) | below(backslash, 1);
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{Text, WORD, first_escaped, read};
    use crate::Error;

    #[test]
    fn every_byte_at_every_place_of_a_word_is_judged_as_the_server_judges_it() {
        for byte in 0..=255_u8 {
            let escaped = byte < 0x20 || byte == b'"' || byte == b'\\';
            for place in 0..WORD {
                for filler in [b'a', 0x21, 0x5b, 0x5d, 0x7f, 0x80, 0xff, b' '] {
                    let mut word = [filler; WORD];
                    word[place] = byte;
                    assert_eq!(
                        first_escaped(u64::from_le_bytes(word)),
                        escaped.then_some(place),
                        "{byte:#x} at {place} in {filler:#x}"
                    );
                    // What follows the first does not matter.
                    word[place + 1..].fill(b'"');
                    let next = (place + 1 < WORD).then_some(place + 1);
                    assert_eq!(first_escaped(u64::from_le_bytes(word)), if escaped { Some(place) } else { next });
                }
            }
        }
    }

    #[test]
    fn a_word_holds_nothing_from_behind_the_string() {
        let value = b"0123456789\"\"\"\"\"\"\"\"";
        for total in 10..=value.len() {
            for start in 0..=10 {
                let (word, length) = read(&value[..total], start, 10);
                let word = word.to_le_bytes();
                assert_eq!(length, (10 - start).min(WORD));
                assert_eq!(word[..length], value[start..start + length]);
                assert!(word[length..].iter().all(|&byte| byte == b' '), "{word:?}");
            }
        }
    }

    fn escaped(string: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut text = Text::new(&mut out, limit, 0);
        let at = text.string(0, string, 0, string.len())?;
        text.claim(at, 0)?;
        out.truncate(at);
        Ok(out)
    }

    #[test]
    fn strings_are_escaped_as_the_server_escapes_them() {
        let string = "a\"b\\c/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é".as_bytes();
        let expected = "\"a\\\"b\\\\c/\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}é\"".as_bytes();
        assert_eq!(escaped(string, 1000).as_deref(), Ok(expected));
    }

    #[test]
    fn the_limit_counts_escapes_and_quotes() {
        for (string, length) in [("abc", 5), ("a\nb", 6), ("\u{1}", 8), ("", 2), ("twenty-one characters", 23)] {
            assert_eq!(escaped(string.as_bytes(), length).map(|text| text.len()), Ok(length));
            assert_eq!(escaped(string.as_bytes(), length - 1), Err(Error::TooLong));
        }
    }

    #[test]
    fn escapes_do_not_overshoot_the_limit_by_much() {
        let mut out = Vec::new();
        let string = [1; 100_000];
        assert_eq!(Text::new(&mut out, string.len(), 0).string(0, &string, 0, string.len()), Err(Error::TooLong));
        assert!(out.len() <= 2 * string.len());
    }
}
