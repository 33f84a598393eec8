//! Stored events: what a group gets from the table before the slot, handed out a chunk at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use postbox_wire::{Claims, ErrorCode, Lsn};
use tokio_postgres::Client;
use tracing::{info, warn};

use super::shared::{Batch, Part};
use super::{Feed, Reader, TOGETHER_BYTES, room};
use crate::backfill::{Backfill, Chunk, FIRST_ROWS};
use crate::claim::ClaimReader;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ClaimChunk, Event, EventError};
use crate::transport::connect_own;

impl Feed {
    /// Delivers what is to come from the table, once in a term.
    pub(super) async fn backfill(&mut self) -> Result<()> {
        let Reader::Group(membership, Some(place)) = &self.reader else { return Ok(()) };
        if self.shared.is_backfilled() {
            return Ok(());
        }
        self.forget_link();
        for backfill in place.backfills.iter().filter(|backfill| !backfill.finished) {
            let client = connect_own(&self.info).await?;
            let mut claims = None;
            let (mut delivered, mut rows) = (0, FIRST_ROWS);
            let mut chunk = backfill.read(&client, &membership.group, None, rows).await?;
            while !chunk.events.is_empty() {
                delivered += chunk.events.len();
                rows = Backfill::next_rows(&chunk);
                let position = chunk.position;
                // While this one is delivered the next one is read.
                let next = backfill.read(&client, &membership.group, Some(position), rows);
                let (settled, next) = tokio::join!(self.deliver_stored(chunk, &mut claims), next);
                settled?;
                place.backfilled(backfill.outbox, position, false).await?;
                chunk = next?;
            }
            place.backfilled(backfill.outbox, chunk.position, true).await?;
            info!("delivered {delivered} stored events");
        }
        self.shared.backfilled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Hands stored events out and waits until they are acknowledged. Each counts as a transaction without a position.
    async fn deliver_stored(&self, chunk: Chunk, claims: &mut Option<Arc<Client>>) -> Result<()> {
        let mut events = chunk.events.into_iter().peekable();
        while let Some(first) = events.peek_mut() {
            if first.claim.is_some() && self.builder.options.claims == Claims::Stream {
                self.deliver_claim(first, claims).await?;
            }
            let mut bytes = 0;
            let mut parts = Vec::new();
            while let Some(event) =
                events.next_if(|event| bytes < TOGETHER_BYTES && (parts.is_empty() || event.claim.is_none()))
            {
                bytes += size_of::<Event>() + event.size();
                parts.push(self.stored(event));
            }
            self.hand_over(parts, bytes).await?;
        }
        loop {
            let settled = self.shared.settled.notified();
            if self.shared.progress().is_idle() {
                return Ok(());
            }
            tokio::select! {
                () = settled => {}
                error = self.lost() => return Err(error),
            }
        }
    }

    /// Hands out the data of a stored event's claim, before it, by the connection for claims. Where it is damaged or gone, the event
    /// says so.
    async fn deliver_claim(&self, event: &mut Event, claims: &mut Option<Arc<Client>>) -> Result<()> {
        let client = match claims {
            Some(client) => Arc::clone(client),
            None => Arc::clone(claims.insert(Arc::new(connect_own(&self.info).await?))),
        };
        let mut reader = match ClaimReader::new(client, event) {
            Ok(reader) => reader,
            Err(error) => return unreadable(event, error),
        };
        let Some(seq) = event.seq else { return Ok(()) };
        for number in 0.. {
            let data = match reader.chunk().await {
                Ok(Some(data)) => data,
                Ok(None) => break,
                Err(error) => return unreadable(event, error),
            };
            let rows = reader.rows_of_chunk();
            let bytes = size_of::<Event>() + data.len();
            let chunk = Event {
                id: None,
                event_type: Default::default(),
                key: None,
                headers: None,
                payload: Some(data),
                claim: None,
                chunk: Some(ClaimChunk { seq, number, rows }),
                ..event.clone()
            };
            self.hand_over(vec![self.stored(chunk)], bytes).await?;
        }
        Ok(())
    }

    /// Each counts as a transaction without a position.
    fn stored(&self, event: Event) -> Part {
        let mut progress = self.shared.progress();
        let transaction = progress.begin(Lsn::default());
        progress.frame(1, true);
        Part { transaction, end: Some(Lsn::default()), events: vec![event] }
    }

    async fn hand_over(&self, parts: Vec<Part>, bytes: usize) -> Result<()> {
        let connection = self.shared.connection.load(Ordering::Relaxed);
        let room = tokio::select! {
            room = room(Arc::clone(&self.room), bytes, self.queue_bytes) => room,
            error = self.lost() => return Err(error),
        };
        if let Some(batches) = &self.batches {
            // A closed channel means that the consumer is closing.
            let _ = batches.send(Ok(Batch { connection, parts, room }));
        }
        Ok(())
    }
}

/// What is wrong with the claim itself becomes part of the event. Anything else (the link, a missing right) ends the stream, and the event
/// comes again.
fn unreadable(event: &mut Event, error: Error) -> Result<()> {
    if !matches!(error.kind(), ErrorKind::Decode | ErrorKind::Usage) {
        return Err(error);
    }
    warn!("{}", error.chain());
    let error = EventError { code: ErrorCode::Malformed, detail: error.chain().into(), raw: Vec::new() };
    event.error = Some(Arc::new(error));
    Ok(())
}
