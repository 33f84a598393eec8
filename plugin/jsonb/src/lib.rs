//! Prints the stored form of PostgreSQL's `jsonb` as text.
//!
//! [`print`] turns the bytes of a jsonb value, as they lie in a table row, into exactly the text that the server's own
//! output function gives for it. The server goes through an allocated, growing C string, which is then copied; this
//! crate writes straight into the caller's buffer, and that is its reason to be: in a logical-decoding plugin the
//! output function of `jsonb` is the largest single cost.
//!
//! The formats are those of `src/include/utils/jsonb.h` and `src/backend/utils/adt/numeric.c`, unchanged on disk since
//! PostgreSQL 9.4; both use the byte order of the machine that wrote them.
//!
//! The bytes are not trusted. Whatever they are, [`print`] ends in time linear in the input and the output, reads inside
//! the slice only, keeps what waits for its end in a stack on the heap (28 bytes a level, and a level takes at least 8
//! bytes of input and one of output), and says what is wrong and where.
//!
//! ```
//! // `true`, as stored on a little-endian machine: an array of one element, marked as scalar, and its entry.
//! # #[cfg(target_endian = "little")]
//! # {
//! let container = [0x01, 0x00, 0x00, 0x50, 0x00, 0x00, 0x00, 0x30];
//! let mut text = Vec::new();
//! postbox_jsonb::print(&container, &mut text, 1 << 20)?;
//! assert_eq!(text, b"true");
//! # }
//! # Ok::<(), postbox_jsonb::Error>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod container;
mod error;
mod numeric;
mod text;

use alloc::vec::Vec;

pub use error::Error;

/// Appends to `out` the text of the jsonb value stored as `container`, byte for byte as `jsonb_out` prints it.
///
/// `container` is the data of the varlena: without its header, detoasted and decompressed. At most `limit` bytes are
/// appended.
///
/// Strings are copied as they are, in the encoding of their database: whether they are UTF-8 is for the caller to see. (Every
/// encoding that a server can have keeps ASCII characters as single bytes, which no other character contains.)
///
/// # Errors
///
/// [`Error::Malformed`] if the bytes are no jsonb value, [`Error::TooLong`] if the text is longer than `limit`. `out` is then
/// as long as it was before, with the same content.
pub fn print(container: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), Error> {
    let before = out.len();
    let mut text = text::Text::new(out, limit, container.len());
    let result = container::print(container, &mut text, before).and_then(|end| text.claim(end, 0).map(|()| end));
    out.truncate(*result.as_ref().unwrap_or(&before));
    result.map(|_| ())
}
