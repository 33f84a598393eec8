//! Numbers: the stored form of `numeric`, printed as `numeric_out` prints it.

use crate::Error;
use crate::text::Text;

/// Bits of the first word: which of the forms follows (`NUMERIC_SIGN_MASK` and its values in numeric.c).
const FORM: u16 = 0xC000;
const NEGATIVE: u16 = 0x4000;
const SHORT: u16 = 0x8000;
const SPECIAL: u16 = 0xC000;

/// The number of decimal places in the long form.
const PLACES: u16 = 0x3FFF;

/// The short form packs sign, places and weight into the first word.
const SHORT_NEGATIVE: u16 = 0x2000;
const SHORT_PLACES: u16 = 0x1F80;
const SHORT_PLACES_SHIFT: u16 = 7;
const SHORT_WEIGHT_NEGATIVE: u16 = 0x0040;
const SHORT_WEIGHT: u16 = 0x003F;

/// A digit holds four decimal ones.
const DECIMALS: usize = 4;
const BASE: u16 = 10_000;

/// Prints the numeric stored at the start of `bytes`, which lie at `start` of the whole value, from `at` of the text on.
/// Returns where the text goes on.
#[inline(always)]
pub(crate) fn print(bytes: &[u8], start: usize, text: &mut Text<'_>, at: usize) -> Result<usize, Error> {
    Numeric::read(bytes, start)?.print(text, at)
}

/// A number in base 10,000: its digits are `digits`, of which the first counts 10,000 to the power of `weight`.
struct Numeric<'a> {
    negative: bool,
    /// How many decimal places are shown, be there digits for them or not.
    places: usize,
    weight: i32,
    /// Two bytes a digit.
    digits: &'a [u8],
}

impl<'a> Numeric<'a> {
    fn read(bytes: &'a [u8], at: usize) -> Result<Self, Error> {
        let malformed = |what| Error::Malformed { what, at };
        let data = varlena(bytes).ok_or(malformed("number with an impossible length"))?;
        let (header, rest) = word(data).ok_or(malformed("number without a header"))?;
        match header & FORM {
            // NaN and the infinities are numerics, but no JSON numbers: the server never stores them in a jsonb.
            SPECIAL => Err(malformed("number that is not finite")),
            SHORT => {
                let low = i32::from(header & SHORT_WEIGHT);
                Ok(Self {
                    negative: header & SHORT_NEGATIVE != 0,
                    places: usize::from((header & SHORT_PLACES) >> SHORT_PLACES_SHIFT),
                    weight: if header & SHORT_WEIGHT_NEGATIVE != 0 { low - i32::from(SHORT_WEIGHT) - 1 } else { low },
                    digits: rest,
                })
            }
            sign => {
                let (weight, digits) = word(rest).ok_or(malformed("number without a weight"))?;
                Ok(Self {
                    negative: sign == NEGATIVE,
                    places: usize::from(header & PLACES),
                    weight: i32::from(weight.cast_signed()),
                    digits,
                })
            }
        }
        .and_then(|numeric: Self| {
            let valid = numeric.digits.chunks_exact(2).all(|digit| u16::from_ne_bytes([digit[0], digit[1]]) < BASE);
            if valid { Ok(numeric) } else { Err(malformed("number with an impossible digit")) }
        })
    }

    #[inline(always)]
    fn print(&self, text: &mut Text<'_>, mut at: usize) -> Result<usize, Error> {
        let first = decimals(self.digit(0));
        let skipped = leading_zeros(first);
        let whole = usize::try_from(self.weight).map_or(1, |weight| weight * DECIMALS + DECIMALS - skipped);
        // The whole text is claimed before the first byte: eight stored bytes can stand for 147,000 characters.
        text.claim(at, usize::from(self.negative) + whole + if self.places > 0 { 1 + self.places } else { 0 })?;
        if self.negative {
            at = text.plain(at, b"-");
        }
        if self.weight < 0 {
            at = text.plain(at, b"0");
        } else {
            at = text.word(at, first >> (8 * skipped), DECIMALS - skipped);
            for index in 1..=self.weight {
                at = text.word(at, decimals(self.digit(index)), DECIMALS);
            }
        }
        if self.places > 0 {
            at = text.plain(at, b".");
            let mut left = self.places;
            let mut index = self.weight + 1;
            while left > 0 {
                let shown = left.min(DECIMALS);
                at = text.word(at, decimals(self.digit(index)), shown);
                left -= shown;
                index += 1;
            }
        }
        Ok(at)
    }

    /// The digit at `index`; those that are not stored, on either side, are zeros.
    fn digit(&self, index: i32) -> u16 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.digits.get(2 * index..2 * index + 2))
            .map_or(0, |digit| u16::from_ne_bytes([digit[0], digit[1]]))
    }
}

/// The data of the varlena at the start of `bytes`: plain, with a header of four bytes or of one (`varatt.h`).
fn varlena(bytes: &[u8]) -> Option<&[u8]> {
    let &[first, ..] = bytes else { return None };
    let (short, short_length) =
        if cfg!(target_endian = "little") { (first & 1 == 1, first >> 1) } else { (first & 0x80 != 0, first & 0x7F) };
    if short {
        return bytes.get(1..usize::from(short_length));
    }
    let header = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let (compressed, length) = if cfg!(target_endian = "little") {
        (header & 3 != 0, header >> 2)
    } else {
        (header & 0xC000_0000 != 0, header & 0x3FFF_FFFF)
    };
    if compressed { None } else { bytes.get(4..length as usize) }
}

/// The first 16-bit word and what follows it.
fn word(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u16::from_ne_bytes(*word), rest))
}

/// The four decimal digits of one digit in base 10,000, the first as the lowest byte.
fn decimals(digit: u16) -> u64 {
    let (high, low) = (u64::from(digit / 100), u64::from(digit % 100));
    let pairs = high | low << 16;
    // A tenth of numbers below 100, in both halves at once: 103 / 1024 is as near as it takes.
    let tens = ((pairs * 103) >> 10) & 0x000f_000f;
    let ones = pairs - tens * 10;
    (tens | ones << 8) + 0x3030_3030
}

/// How many zeros the first digit does not show; the last decimal of it is always shown.
fn leading_zeros(first: u64) -> usize {
    let shown = first & 0x000f_0f0f | 1 << 24;
    shown.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests {
    use super::{BASE, decimals, leading_zeros};

    #[test]
    fn every_digit_is_printed_with_four_decimals() {
        for digit in 0..BASE {
            let text = alloc::format!("{digit:04}");
            assert_eq!(decimals(digit).to_le_bytes()[..4], *text.as_bytes());
            assert_eq!(decimals(digit) >> 32, 0);
            let shown = alloc::format!("{digit}");
            assert_eq!(leading_zeros(decimals(digit)), 4 - shown.len(), "{digit}");
        }
    }
}
