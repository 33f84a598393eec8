//! Rows that a group is given from the table, before its slot goes on: after earliest, seek and recover.
//!
//! The seam is a snapshot. What is visible in it comes from the table, everything else from the slot; so the stream leaves
//! out what is visible in it, up to the position from which on nothing is.

use bytes::Bytes;
use postbox_wire::Lsn;
use tokio_postgres::Client;

use crate::decode;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::group;
use crate::pgoutput::{self, Table};
use crate::snapshot::Snapshot;

/// What is to be given of one outbox.
#[derive(Clone, Debug)]
pub(crate) struct Backfill {
    pub(crate) outbox: u32,
    /// Schema and table; none if it is no outbox any more.
    name: Option<(String, String)>,
    upto: Snapshot,
    upto_lsn: Lsn,
    pub(crate) finished: bool,
    /// The group has one for each of its outboxes, all of which are there.
    whole: bool,
}

/// Stored events, in the order of their seq.
pub(crate) struct Chunk {
    pub(crate) events: Vec<Event>,
    pub(crate) bytes: usize,
    /// The seq of the last.
    pub(crate) position: i64,
}

/// About so many bytes are asked for at once, and at most so many rows.
const CHUNK_BYTES: usize = 8 << 20;
const CHUNK_ROWS: usize = 10_000;

impl Backfill {
    /// Those of a group, finished or not.
    pub(crate) async fn list(client: &Client, group: &str) -> Result<Vec<Self>> {
        let sql = "SELECT outbox, schema, name, upto, upto_lsn, finished, whole FROM postbox._backfills($1)";
        let rows = group::query(client, sql, &[&group]).await?;
        rows.iter()
            .map(|row| {
                let (schema, table) = (row.try_get::<_, Option<String>>(1)?, row.try_get::<_, Option<String>>(2)?);
                let upto = row.try_get::<_, String>(3)?.parse().map_err(|()| {
                    Error::new(ErrorKind::Protocol, "the server's snapshot of a backfill cannot be read")
                })?;
                Ok(Self {
                    outbox: row.try_get(0)?,
                    name: schema.zip(table),
                    upto,
                    upto_lsn: Lsn(row.try_get::<_, tokio_postgres::types::PgLsn>(4)?.into()),
                    finished: row.try_get(5)?,
                    whole: row.try_get(6)?,
                })
            })
            .collect()
    }

    /// Whether an event of the stream is given from the table instead, which one of these says of its outbox. An event bears the name that its
    /// outbox had then: if none has it now, it is of any of them, and left out if it comes from the table whichever it is.
    pub(crate) fn cover(all: &[Self], event: &Event) -> bool {
        match all.iter().find(|backfill| backfill.is_of(event)) {
            Some(backfill) => backfill.sees(event),
            None => all.iter().all(|backfill| backfill.whole && backfill.sees(event)) && !all.is_empty(),
        }
    }

    fn is_of(&self, event: &Event) -> bool {
        let outbox = &event.outbox;
        self.name.as_ref().is_some_and(|(schema, table)| outbox.schema == *schema && outbox.table == *table)
    }

    fn sees(&self, event: &Event) -> bool {
        event.commit_lsn < self.upto_lsn && event.seq.is_some() && self.upto.sees(event.xid)
    }

    /// The next stored events, `rows` at most. Empty at the end.
    pub(crate) async fn read(&self, client: &Client, group: &str, after: Option<i64>, rows: usize) -> Result<Chunk> {
        let sql = "SELECT seq, frame FROM postbox._stored_events($1, $2, $3, $4)";
        let rows = i32::try_from(rows).unwrap_or(i32::MAX);
        let rows = group::query(client, sql, &[&group, &self.outbox, &after, &rows]).await?;
        let mut table = None;
        let mut chunk = Chunk { events: Vec::with_capacity(rows.len()), bytes: 0, position: after.unwrap_or(i64::MIN) };
        for row in rows {
            chunk.position = row.try_get(0)?;
            let frame = Bytes::from(row.try_get::<_, Vec<u8>>(1)?);
            chunk.bytes += frame.len() + size_of::<Event>();
            chunk.events.push(if pgoutput::is_stored_row(&frame) {
                if table.is_none() {
                    table = Table::of_oid(client, self.outbox, None).await?;
                }
                // Dropped meanwhile: the rows were read before.
                let Some(table) = &table else { break };
                pgoutput::stored_event(frame, table)?
            } else {
                decode::stored(&frame)?
            });
        }
        Ok(chunk)
    }

    /// How many rows to ask for after this chunk.
    pub(crate) fn next_rows(chunk: &Chunk) -> usize {
        let each = chunk.bytes / chunk.events.len().max(1);
        (CHUNK_BYTES / each.max(1)).clamp(1, CHUNK_ROWS)
    }
}

/// Rows of the first chunk, when nothing is known of their size.
pub(crate) const FIRST_ROWS: usize = 256;
