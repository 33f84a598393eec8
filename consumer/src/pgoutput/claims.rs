//! Chunks of claims: rows of a table beside the outbox, which come before their event in its transaction.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use postbox_wire::marker::ChunkMapping;
use postbox_wire::{ErrorCode, OutboxSelector, Transaction};
use tokio_postgres::Client;

use super::CLAIMS_PUBLICATION;
use super::message::{Relation, Row};
use super::row::{bytea, empty};
use super::table::{Column, Table};
use crate::claim::ClaimSummary;
use crate::error::Result;
use crate::event::{ClaimChunk, Event, EventError};
use crate::group;

/// A table of claims.
pub(super) struct Claims {
    /// The outbox that they are of, as it is now; none if it was dropped.
    outbox: Option<Table>,
    mapping: Result<ChunkMapping<Column>, String>,
}

/// The chunks of the current transaction whose event has not come yet.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// By seq: how many have come, one after the other from 0 on.
    came: HashMap<i64, u32>,
    /// Why some could not be read.
    broken: Option<String>,
    /// By outbox: what [`unpublished`](Self::unpublished) has found out.
    unpublished: HashMap<u32, bool>,
}

impl Claims {
    /// That of a relation in the stream; none if it is no table of claims.
    pub(super) async fn of_relation(
        client: &Client,
        relation: &Relation,
        selectors: Option<&[OutboxSelector]>,
    ) -> Result<Option<Self>> {
        let sql = "SELECT outbox::oid FROM postbox._claim_check WHERE claims = $1";
        let rows = group::query(client, sql, &[&relation.oid]).await?;
        let columns = Column::of_relation(relation, &[]);
        let mapping = ChunkMapping::read(&columns);
        let outbox = match rows.first() {
            Some(row) => Table::of_oid(client, row.try_get(0)?, selectors).await?,
            // Of an outbox that was dropped only what is in the log is left; no outbox has columns of these names alone.
            None if mapping.is_ok() && columns.len() == 4 => None,
            None => return Ok(None),
        };
        Ok(Some(Self { outbox, mapping }))
    }

    /// The chunk of a row; none where nobody wants it, or it cannot be read, which its event says then.
    pub(super) fn chunk(
        &self,
        row: &Row,
        transaction: &Transaction,
        ordinal: u64,
        chunks: &mut Chunks,
    ) -> Option<Event> {
        let Some(table) = &self.outbox else {
            chunks.broken.get_or_insert_with(|| "the table of its chunks was dropped".to_owned());
            return None;
        };
        if !table.selected {
            return None;
        }
        let mapping = match &self.mapping {
            Ok(mapping) => mapping,
            Err(detail) => {
                chunks.broken.get_or_insert_with(|| detail.clone());
                return None;
            }
        };
        let value = |column: &Column| row.get(column.index)?.as_deref();
        let (seq, number) = (int(value(&mapping.seq))?, int(value(&mapping.number))?);
        let rows = int(value(&mapping.rows))?;
        let data = value(&mapping.data).and_then(bytea)?;
        let came = chunks.came.entry(seq).or_default();
        if *came == number {
            *came += 1;
        }
        Some(Event {
            seq: Some(seq),
            payload: Some(Bytes::from(data)),
            chunk: Some(ClaimChunk { seq, number, rows }),
            ..empty(table, transaction, ordinal)
        })
    }
}

impl Chunks {
    /// Whether all of an event's data has come before it: else it becomes an error event, as somebody would wait for the rest. The result is the
    /// number of a claim of which nothing has come at all: its data may be there, and not in the stream.
    pub(super) fn complete(&mut self, event: &mut Event) -> Option<i64> {
        let claim = event.claim.as_ref()?;
        let summary = claim.parse::<ClaimSummary>().ok()?;
        let came = self.came.remove(&summary.seq).unwrap_or_default();
        if came == summary.chunks {
            return None;
        }
        let nothing = (came == 0 && self.broken.is_none()).then_some(summary.seq);
        let detail = self
            .broken
            .clone()
            .unwrap_or_else(|| format!("{came} of the {} chunks of claim {} have come", summary.chunks, summary.seq));
        let raw = vec![("claim".into(), claim.clone().into_bytes())];
        event.error = Some(Arc::new(EventError { code: ErrorCode::Malformed, detail: detail.into(), raw }));
        event.claim = None;
        nothing
    }

    /// Whether claims of an outbox were not published yet when a transaction began. Anybody may write an event that says it is a claim: in a later
    /// transaction the data of one that is true has come.
    pub(super) async fn unpublished(&mut self, client: &Client, outbox: u32, xid: u64) -> Result<bool> {
        if let Some(known) = self.unpublished.get(&outbox) {
            return Ok(*known);
        }
        let sql = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
                   WHERE r.prrelid = k.claims AND p.pubname = $3 AND postbox._was_there(r.xmin, $2::text::pg_catalog.pg_snapshot)) \
                   FROM postbox._claim_check k WHERE k.outbox = $1";
        let rows = group::query(client, sql, &[&outbox, &format!("{xid}:{xid}:"), &CLAIMS_PUBLICATION]).await?;
        let unpublished = rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(false);
        self.unpublished.insert(outbox, unpublished);
        Ok(unpublished)
    }
}

fn int<N: std::str::FromStr>(printed: Option<&[u8]>) -> Option<N> {
    std::str::from_utf8(printed?).ok()?.parse().ok()
}
