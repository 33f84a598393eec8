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

/// Prints the numeric stored at the start of `bytes`, which lie at `at` of the whole value.
pub(crate) fn print(bytes: &[u8], at: usize, text: &mut Text<'_>) -> Result<(), Error> {
    Numeric::read(bytes, at)?.print(text)
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

    fn print(&self, text: &mut Text<'_>) -> Result<(), Error> {
        let first = decimals(self.digit(0));
        let skipped = leading_zeros(first);
        let whole = usize::try_from(self.weight).map_or(1, |weight| weight * DECIMALS + DECIMALS - skipped);
        // The whole text is claimed before the first byte: eight stored bytes can stand for 147,000 characters.
        text.claim(usize::from(self.negative) + whole + if self.places > 0 { 1 + self.places } else { 0 })?;
        if self.negative {
            text.piece(b"-");
        }
        if self.weight < 0 {
            text.piece(b"0");
        } else {
            text.piece(&first[skipped..]);
            for index in 1..=self.weight {
                text.piece(&decimals(self.digit(index)));
            }
        }
        if self.places > 0 {
            text.piece(b".");
            let mut left = self.places;
            let mut index = self.weight + 1;
            while left > 0 {
                let shown = left.min(DECIMALS);
                text.piece(&decimals(self.digit(index))[..shown]);
                left -= shown;
                index += 1;
            }
        }
        Ok(())
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

/// The four decimal digits of one digit in base 10,000.
fn decimals(digit: u16) -> [u8; DECIMALS] {
    let (high, low) = (digit / 100, digit % 100);
    [high / 10, high % 10, low / 10, low % 10].map(|decimal| b'0' + (decimal as u8))
}

/// How many zeros the first digit does not show; the last decimal of it is always shown.
fn leading_zeros(first: [u8; DECIMALS]) -> usize {
    first[..DECIMALS - 1].iter().take_while(|&&decimal| decimal == b'0').count()
}
