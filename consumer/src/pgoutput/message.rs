//! The messages of pgoutput's protocol version 1, as far as they concern rows that were inserted.
//!
//! "Logical Replication Message Formats" in PostgreSQL's documentation has the layouts. No length and no count is believed
//! before the bytes are there.

use bytes::{Buf, Bytes};
use postbox_wire::{Lsn, PgMicros};

use crate::error::{Error, ErrorKind, Result};

/// What the server says next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Begin {
        commit_lsn: Lsn,
        commit_time: PgMicros,
        /// Without its epoch.
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
    },
    /// The transaction came by replication from another server.
    Origin,
    Relation(Relation),
    Insert {
        relation: u32,
        row: Row,
    },
    /// `pg_logical_emit_message`
    Logical {
        transactional: bool,
        /// Where it stands in the log.
        lsn: Lsn,
        prefix: Bytes,
        content: Bytes,
    },
    /// UPDATE, DELETE and TRUNCATE are housekeeping; the names of types say nothing.
    Other,
}

/// A table, as its rows that follow have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) schema: Bytes,
    pub(super) table: Bytes,
    /// Names and types.
    pub(super) columns: Vec<(Bytes, u32)>,
}

/// The values of a row as their types print them; none for NULL.
pub(crate) type Row = Vec<Option<Bytes>>;

impl Message {
    /// Reads one message.
    ///
    /// # Errors
    /// Bytes that are no message of this version.
    pub(super) fn read(mut bytes: Bytes) -> Result<Self> {
        let kind = bytes.first().copied().unwrap_or_default();
        Self::parse(&mut bytes).filter(|_| bytes.is_empty()).ok_or_else(|| {
            Error::new(ErrorKind::Decode, format!("a message of type 0x{kind:02x} of pgoutput cannot be read"))
                .with_hint("This program reads protocol version 1 of pgoutput, from PostgreSQL 14 to 18.")
        })
    }

    fn parse(bytes: &mut Bytes) -> Option<Self> {
        Some(match u8(bytes)? {
            b'B' => Self::Begin {
                commit_lsn: Lsn(u64(bytes)?),
                commit_time: PgMicros(u64(bytes)?.cast_signed()),
                xid: u32(bytes)?,
            },
            b'C' => {
                let _flags = u8(bytes)?;
                let (commit_lsn, end_lsn) = (Lsn(u64(bytes)?), Lsn(u64(bytes)?));
                let _commit_time = u64(bytes)?;
                Self::Commit { commit_lsn, end_lsn }
            }
            b'O' => {
                bytes.advance(bytes.len());
                Self::Origin
            }
            b'R' => Self::Relation(relation(bytes)?),
            b'I' => {
                let relation = u32(bytes)?;
                (u8(bytes)? == b'N').then_some(())?;
                Self::Insert { relation, row: row(bytes)? }
            }
            b'M' => {
                let transactional = u8(bytes)? & 1 != 0;
                let lsn = Lsn(u64(bytes)?);
                let prefix = text(bytes)?;
                let length = u32(bytes)?;
                Self::Logical { transactional, lsn, prefix, content: take(bytes, length)? }
            }
            b'U' | b'D' | b'T' | b'Y' => {
                bytes.advance(bytes.len());
                Self::Other
            }
            _ => return None,
        })
    }
}

fn relation(bytes: &mut Bytes) -> Option<Relation> {
    let (oid, schema, table) = (u32(bytes)?, text(bytes)?, text(bytes)?);
    let _replica_identity = u8(bytes)?;
    let count = u16(bytes)?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let _is_key = u8(bytes)?;
        let (name, type_oid) = (text(bytes)?, u32(bytes)?);
        let _modifier = u32(bytes)?;
        columns.push((name, type_oid));
    }
    // Of a table without a name of its schema it is pg_catalog's.
    let schema = if schema.is_empty() { Bytes::from_static(b"pg_catalog") } else { schema };
    Some(Relation { oid, schema, table, columns })
}

/// Reads a row. The values are slices of the message.
pub(crate) fn row(bytes: &mut Bytes) -> Option<Row> {
    let count = u16(bytes)?;
    // A value takes a byte at least.
    let mut row = Vec::with_capacity(usize::from(count).min(bytes.len()));
    for _ in 0..count {
        row.push(match u8(bytes)? {
            b'n' => None,
            b't' => {
                let length = u32(bytes)?;
                Some(take(bytes, length)?)
            }
            // Unchanged values come with updates only, binary ones if asked for.
            _ => return None,
        });
    }
    Some(row)
}

fn u8(bytes: &mut Bytes) -> Option<u8> {
    bytes.try_get_u8().ok()
}

fn u16(bytes: &mut Bytes) -> Option<u16> {
    bytes.try_get_u16().ok()
}

pub(crate) fn u32(bytes: &mut Bytes) -> Option<u32> {
    bytes.try_get_u32().ok()
}

pub(crate) fn u64(bytes: &mut Bytes) -> Option<u64> {
    bytes.try_get_u64().ok()
}

/// A string that ends with a zero byte.
fn text(bytes: &mut Bytes) -> Option<Bytes> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = bytes.split_to(end);
    bytes.advance(1);
    Some(text)
}

fn take(bytes: &mut Bytes, length: u32) -> Option<Bytes> {
    let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len())?;
    Some(bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RELATION: &[u8] =
        b"R\0\0\x40\x01public\0orders\0d\0\x02\0seq\0\0\0\0\x14\xff\xff\xff\xff\x01key\0\0\0\0\x19\xff\xff\xff\xff";
    const INSERT: &[u8] = b"I\0\0\x40\x01N\0\x02t\0\0\0\x0217n";
    const BEGIN: &[u8] = b"B\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x05\0\0\x02\xf0";
    const COMMIT: &[u8] = b"C\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\x05";
    const LOGICAL: &[u8] = b"M\x01\0\0\0\0\0\0\0\x08postbox\0\0\0\0\x02{}";

    fn read(bytes: &'static [u8]) -> Message {
        Message::read(Bytes::from_static(bytes)).unwrap()
    }

    #[test]
    fn messages_are_read_as_documented() {
        assert_eq!(read(BEGIN), Message::Begin { commit_lsn: Lsn(16), commit_time: PgMicros(5), xid: 752 });
        assert_eq!(read(COMMIT), Message::Commit { commit_lsn: Lsn(16), end_lsn: Lsn(32) });
        let text = Bytes::from_static;
        let columns = vec![(text(b"seq"), 20), (text(b"key"), 25)];
        let relation = Relation { oid: 16385, schema: text(b"public"), table: text(b"orders"), columns };
        assert_eq!(read(RELATION), Message::Relation(relation));
        assert_eq!(read(INSERT), Message::Insert { relation: 16385, row: vec![Some(text(b"17")), None] });
        let logical =
            Message::Logical { transactional: true, lsn: Lsn(8), prefix: text(b"postbox"), content: text(b"{}") };
        assert_eq!(read(LOGICAL), logical);
        assert_eq!(read(b"O\0\0\0\0\0\0\0\0upstream\0"), Message::Origin);
        assert_eq!(read(b"T\0\0\0\x01\0\0\0\x40\x01"), Message::Other);
    }

    #[test]
    fn cut_and_unknown_messages_are_refused() {
        for whole in [BEGIN, COMMIT, RELATION, INSERT, LOGICAL] {
            for end in 0..whole.len() {
                let error = Message::read(Bytes::from_static(&whole[..end])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Decode, "{end} of {whole:?}");
            }
            let more = [whole, b"\0"].concat();
            assert!(Message::read(more.into()).is_err(), "{whole:?}");
        }
        // In progress, two-phase, binary values.
        for bytes in [&b"S\0\0\0\x01\x01"[..], b"b", b"I\0\0\x40\x01N\0\x01b\0\0\0\x01a", b"I\0\0\x40\x01K\0\0", b""] {
            assert!(Message::read(Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_messages_do_no_harm(
            kind in prop::sample::select(b"BCORIMUDTYS".as_slice()),
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'N'), Just(b't')], 0..64),
        ) {
            let _ = Message::read([&[kind][..], &bytes].concat().into());
        }
    }
}
