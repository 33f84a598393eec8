//! The binary stream of the Postbox output plugin: one crate that both ends link.
//!
//! The plugin builds [`Frame`]s with an [`Encoder`], the consumer and the SQL function `postbox.decode`
//! read them with a [`Decoder`]. The specification, from which a decoder in another language can be written, follows
//! below.
//!
//! ```text
//! outbox row ──► Encoder::event ──► Compressor ──► slot ──► expand ──► Decoder::frame ──► Event ──► json::write
//! ```
//!
//! What a table says of itself as an outbox is read here too, for the plugin and for the consumer that reads pgoutput: its
//! [marker](marker::Mapping), columns that are [headers](headers::Header), and [messages](emitted::Emitted) of the log.
//!
//! Nothing here does input or output, and nothing panics on hostile bytes: a [`DecodeError`] says what was
//! wrong and at which byte.
//!
#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod codec;
mod compression;
mod decode_error;
pub mod emitted;
mod event;
mod frame;
pub mod headers;
pub mod json;
mod lsn;
pub mod marker;
mod options;
mod outbox;
mod time;
pub mod type_oid;

// The public interface is:
pub use compression::{Compressor, expand};
pub use decode_error::{DecodeError, Problem};
pub use event::{Chunk, Entry, ErrorCode, Event, EventError, EventId, RawColumn, shortened};
pub use frame::{Decoder, Encoder, Frame, Transaction};
pub use lsn::{Lsn, ParseLsnError};
pub use options::{
    Claims, Compression, Names, OptionError, Options, Origin, OutboxSelector, PROTO_VERSION_MAX, PROTO_VERSION_MIN,
    parse_selectors,
};
pub use outbox::{NameSlot, Outbox, PayloadType};
pub use time::PgMicros;

/// Most bytes that the fields of one event may have together, unless the option `max_event_bytes` says less: 256 MiB.
///
/// A jsonb value cannot be larger on disk, and a frame has to fit PostgreSQL's 1 GiB allocation limit together with
/// the raw columns of an error event.
pub const MAX_EVENT_BYTES: usize = 256 << 20;

/// Most bytes of a frame: what PostgreSQL can hold in one allocation (`MaxAllocSize`, 1 GiB − 1).
pub const MAX_FRAME_BYTES: usize = 0x3fff_ffff;

/// A frame is closed before the next event once it has reached this size: 64 KiB. An event is never cut, so a larger
/// one makes a frame of its own.
pub const FRAME_BYTES: usize = 64 << 10;

/// Frames of fewer bytes are not compressed: 1 KiB. That saves next to nothing, and costs the more the smaller they are.
pub const COMPRESS_BYTES: usize = 1 << 10;

/// Frames of more bytes are not compressed: 4 MiB. They hold one large event, and who expands a frame holds it twice.
pub const MAX_COMPRESSED_BYTES: usize = 4 << 20;

/// Most outboxes that a decoder keeps in its dictionary of names. The encoder empties the dictionary at the first frame that
/// starts with half as many; one frame cannot define the other half.
pub const MAX_NAMES: usize = 16384;

/// Most columns that an error event carries raw: a table of PostgreSQL has no more (`MaxHeapAttributeNumber`).
pub const MAX_RAW_COLUMNS: usize = 1600;

/// Most bytes of a schema or table name, in UTF-8. PostgreSQL's are 63 bytes in the database's encoding; the rest is room
/// for conversion to UTF-8 and for servers built with longer names.
pub const MAX_NAME_BYTES: usize = 1024;
