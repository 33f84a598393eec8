//! Arrays and objects: walked level by level, without recursion.

use alloc::vec::Vec;

use crate::Error;
use crate::numeric;
use crate::text::Text;

/// The header of a container (`JB_CMASK` and the flags next to it in jsonb.h).
const COUNT: u32 = 0x0FFF_FFFF;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;
const ARRAY: u32 = 0x4000_0000;

/// An entry (`JEntry`): the type of one element, and its length or the offset of its end.
const EXTENT: u32 = 0x0FFF_FFFF;
const TYPE: u32 = 0x7000_0000;
const IS_OFFSET: u32 = 0x8000_0000;

/// The types.
const STRING: u32 = 0x0000_0000;
const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;

/// Headers, entries, and the alignment of numbers and containers.
const WORD: u32 = 4;

/// No varlena is longer, so positions fit in 32 bits and sums of an extent and a position do not overflow.
const LONGEST: usize = 0x3FFF_FFFF;

/// Prints the value whose root container is `bytes`, from `at` on. Returns where the text ends.
pub(crate) fn print(bytes: &[u8], text: &mut Text<'_>, mut at: usize) -> Result<usize, Error> {
    let end = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= LONGEST)
        .ok_or(Error::Malformed { what: "value longer than a row can hold", at: 0 })?;
    let mut level = Level::open(bytes, 0, end, true)?;
    if level.kind == Kind::Scalar {
        return match level.print_to_container(bytes, text, at)? {
            (at, None) => Ok(at),
            (_, Some((start, _))) => malformed("container in the place of a scalar", start),
        };
    }
    let mut outer: Vec<Level> = Vec::new();
    at = text.plain(at, level.kind.opening());
    loop {
        let (reached, container) = level.print_to_container(bytes, text, at)?;
        if let Some((start, end)) = container {
            let inner = Level::open(bytes, start, end, false)?;
            at = text.plain(reached, inner.kind.opening());
            outer.push(level);
            level = inner;
        } else {
            at = text.plain(reached, level.kind.closing());
            match outer.pop() {
                Some(back) => level = back,
                None => return Ok(at),
            }
        }
    }
}

/// What a container is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Array,
    Object,
    /// A root that is no container: stored as an array of one element.
    Scalar,
}

impl Kind {
    fn opening(self) -> &'static [u8; 1] {
        if self == Self::Object { b"{" } else { b"[" }
    }

    fn closing(self) -> &'static [u8; 1] {
        if self == Self::Object { b"}" } else { b"]" }
    }
}

/// A container that is being printed. Positions count from the start of the value.
struct Level {
    kind: Kind,
    /// Whether an element has been printed, so that a separator goes before the next.
    begun: bool,
    /// The next entry of a key; arrays have none.
    next_key: u32,
    /// The next entry of a value.
    next_value: u32,
    /// Where the data of the elements begins, which is where the entries end.
    data: u32,
    /// Where the container ends.
    end: u32,
    /// Where the data of the next key begins.
    key: u32,
    /// Where the data of the next value begins.
    value: u32,
}

const _: () = assert!(size_of::<Level>() == 28);

impl Level {
    /// Reads the header of the container that lies from `start` to `end`.
    fn open(bytes: &[u8], start: u32, end: u32, root: bool) -> Result<Self, Error> {
        if end - start < WORD {
            return malformed("container without a header", start);
        }
        let header = word(bytes, start)?;
        let kind = match header & (SCALAR | OBJECT | ARRAY) {
            ARRAY => Kind::Array,
            OBJECT => Kind::Object,
            flags if flags == SCALAR | ARRAY && root && header & COUNT == 1 => Kind::Scalar,
            _ => return malformed("container with impossible flags", start),
        };
        let entries = start + WORD;
        let count = header & COUNT;
        if count > (end - entries) / (if kind == Kind::Object { 2 * WORD } else { WORD }) {
            return malformed("container with more elements than fit in it", start);
        }
        let next_value = if kind == Kind::Object { entries + count * WORD } else { entries };
        let data = next_value + count * WORD;
        let mut level = Self { kind, begun: false, next_key: entries, next_value, data, end, key: data, value: data };
        if kind == Kind::Object {
            // All keys come first: the values begin where the last key ends.
            for position in (entries..next_value).step_by(WORD as usize) {
                level.value = level.extent(bytes, position, level.value)?.1;
            }
        }
        Ok(level)
    }

    /// Prints elements until one is a container, or until there are no more. Returns where the text goes on, and the start
    /// and the end of the container.
    #[inline(always)]
    fn print_to_container(
        &mut self,
        bytes: &[u8],
        text: &mut Text<'_>,
        mut at: usize,
    ) -> Result<(usize, Option<(u32, u32)>), Error> {
        while self.next_value < self.data {
            if self.begun {
                at = text.plain(at, b", ");
                text.claim(at, 0)?;
            }
            self.begun = true;
            if self.kind == Kind::Object {
                let (entry, end) = self.extent(bytes, self.next_key, self.key)?;
                if entry & TYPE != STRING {
                    return malformed("key that is not a string", self.next_key);
                }
                at = text.string(at, bytes, self.key as usize, end as usize)?;
                at = text.plain(at, b": ");
                self.key = end;
                self.next_key += WORD;
            }
            let start = self.value;
            let (entry, end) = self.extent(bytes, self.next_value, start)?;
            let position = self.next_value;
            self.value = end;
            self.next_value += WORD;
            at = match entry & TYPE {
                STRING => text.string(at, bytes, start as usize, end as usize)?,
                NUMERIC => {
                    let start = aligned(start, end)?;
                    numeric::print(slice(bytes, start, end)?, start as usize, text, at)?
                }
                FALSE => text.plain(at, b"false"),
                TRUE => text.plain(at, b"true"),
                NULL => text.plain(at, b"null"),
                CONTAINER => return Ok((at, Some((aligned(start, end)?, end)))),
                _ => return malformed("element of an unknown type", position),
            }
        }
        Ok((at, None))
    }

    /// The entry at `position` and where its data ends, if it begins at `start`.
    fn extent(&self, bytes: &[u8], position: u32, start: u32) -> Result<(u32, u32), Error> {
        let entry = word(bytes, position)?;
        // Most entries hold a length; every 32nd holds an offset, so that elements can be found without adding them up.
        let end = if entry & IS_OFFSET != 0 { self.data } else { start } + (entry & EXTENT);
        // Elements follow one another, so none is printed twice and the work stays linear.
        if end < start || end > self.end {
            return malformed("element that ends outside of its container", position);
        }
        Ok((entry, end))
    }
}

/// Where a number or container begins whose data, padding included, lies from `start` to `end`.
fn aligned(start: u32, end: u32) -> Result<u32, Error> {
    let aligned = start.next_multiple_of(WORD);
    if aligned > end { malformed("element that is shorter than its padding", start) } else { Ok(aligned) }
}

/// The 32-bit word at `position`.
fn word(bytes: &[u8], position: u32) -> Result<u32, Error> {
    match bytes.get(position as usize..).and_then(<[u8]>::first_chunk) {
        Some(word) => Ok(u32::from_ne_bytes(*word)),
        None => malformed("value that is cut off", position),
    }
}

/// The bytes from `start` to `end`.
fn slice(bytes: &[u8], start: u32, end: u32) -> Result<&[u8], Error> {
    match bytes.get(start as usize..end as usize) {
        Some(slice) => Ok(slice),
        None => malformed("value that is cut off", start),
    }
}

fn malformed<T>(what: &'static str, at: u32) -> Result<T, Error> {
    Err(Error::Malformed { what, at: at as usize })
}
