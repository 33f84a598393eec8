//! Frames compressed: the header as it is, then the length of the events, then the events as one LZ4 block.
//!
//! The block format is that of <https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>.

use alloc::vec::Vec;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::codec::{Reader, put_varint};
use crate::decode_error::{DecodeError, Problem};
use crate::frame::{COMPRESSED, FLAGS_AT, Transaction};
use crate::{COMPRESS_BYTES, MAX_COMPRESSED_BYTES};

/// No byte of an LZ4 block stands for more bytes than this.
const MOST_FOR_ONE: usize = 255;

/// Compresses frames, with memory that is used again and again.
#[derive(Default)]
pub struct Compressor {
    table: CompressTable,
    frame: Vec<u8>,
}

impl core::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// The frame compressed, or as it is if that is no longer, or if it has fewer than [`COMPRESS_BYTES`] or more than
    /// [`MAX_COMPRESSED_BYTES`].
    pub fn compress<'a>(&'a mut self, frame: &'a [u8]) -> &'a [u8] {
        if !(COMPRESS_BYTES..=MAX_COMPRESSED_BYTES).contains(&frame.len()) {
            return frame;
        }
        let mut reader = Reader::new(frame);
        if Transaction::decode(&mut reader).is_err() {
            return frame;
        }
        let (header, events) = frame.split_at(reader.position());
        self.frame.clear();
        self.frame.extend_from_slice(header);
        put_varint(&mut self.frame, events.len() as u64);
        let start = self.frame.len();
        self.frame.resize(start + get_maximum_output_size(events.len()), 0);
        // There is room for the worst case, so this does not fail.
        let Ok(length) = compress_into_with_table(events, &mut self.frame[start..], &mut self.table) else {
            return frame;
        };
        if start + length >= frame.len() {
            return frame;
        }
        self.frame[FLAGS_AT] |= COMPRESSED;
        &self.frame[..start + length]
    }
}

/// The frame that was compressed; `None` if this one is not.
///
/// # Errors
/// A compressed frame of another version, or one whose events cannot be expanded.
pub fn expand(frame: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    // Most frames end here; whether they are frames is for the decoder to see.
    if frame.get(FLAGS_AT).is_none_or(|flags| flags & COMPRESSED == 0) {
        return Ok(None);
    }
    let mut reader = Reader::new(frame);
    Transaction::decode(&mut reader)?;
    let header = reader.position();
    let start = reader.clone();
    let length = reader.varint("length of the events")?;
    let block = &frame[reader.position()..];
    let limit = MAX_COMPRESSED_BYTES.min(block.len().saturating_mul(MOST_FOR_ONE)) as u64;
    if length > limit {
        return Err(start.error("length of the events", Problem::TooLarge { found: length, limit }));
    }
    let mut expanded = Vec::with_capacity(header + length as usize);
    expanded.extend_from_slice(&frame[..header]);
    expanded.resize(header + length as usize, 0);
    if decompress_into(block, &mut expanded[header..]).ok() != Some(length as usize) {
        return Err(reader.error("events", Problem::Damaged));
    }
    expanded[FLAGS_AT] &= !COMPRESSED;
    Ok(Some(expanded))
}
