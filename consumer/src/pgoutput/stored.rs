//! A stored row, as `postbox._stored_events` gives it where there is no plugin (sql/plain/frame.sql).

use std::ops::Range;

use bytes::{Buf, Bytes};
use postbox_wire::{Lsn, MAX_EVENT_BYTES, PgMicros, Transaction};

use super::message::{row, u32, u64};
use super::row::event;
use super::table::Table;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;

/// Begins a stored row; a frame of the plugin begins with its version.
const STORED: u8 = b'S';

/// The years 1 to 9999 in microseconds of PostgreSQL: what RFC 3339 can write. The infinities lie outside.
const MOMENTS: Range<i64> = -730_119 * 86_400_000_000..2_921_940 * 86_400_000_000;

/// Whether these bytes are a row rather than a frame.
pub(crate) fn is_stored_row(bytes: &Bytes) -> bool {
    bytes.first() == Some(&STORED)
}

/// The event of a stored row. Its place in the log is not known.
///
/// # Errors
/// Bytes that are no stored row.
pub(crate) fn stored_event(mut bytes: Bytes, table: &Table) -> Result<Event> {
    let read = (|| {
        bytes.advance(1);
        let _outbox = u32(&mut bytes)?;
        let xid = u64(&mut bytes)?;
        let created_at = u64(&mut bytes)?.cast_signed();
        let row = row(&mut bytes)?;
        bytes.is_empty().then_some((xid, created_at, row))
    })();
    let Some((xid, created_at, row)) = read else {
        return Err(Error::new(ErrorKind::Decode, "a stored row cannot be read")
            .with_hint("The SQL of schema postbox and this program must be of the same release."));
    };
    let transaction = Transaction {
        commit_lsn: Lsn::ZERO,
        end_lsn: Lsn::ZERO,
        commit_time: if MOMENTS.contains(&created_at) { PgMicros(created_at) } else { PgMicros::UNKNOWN },
        xid,
    };
    Ok(event(&row, table, &transaction, 0, MAX_EVENT_BYTES))
}
