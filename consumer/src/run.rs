//! `postbox run`: from the slot to a sink, until told to stop.

use std::time::Duration;

use tokio::time::timeout;
use tracing::info;

use crate::consumer::{Consumer, Delivery};
use crate::error::Result;
use crate::sink::Sink;
use crate::transport::{ConnInfo, connect_sql};

/// When to stop by oneself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// After so many events.
    pub(crate) max_events: Option<u64>,
    /// When no event has come for so long, and all that had been committed by then is delivered.
    pub(crate) exit_when_idle: Option<Duration>,
}

/// Most events, and about the most bytes, that the sink gets at once.
const BATCH_EVENTS: usize = 1024;
const BATCH_BYTES: usize = 256 << 10;

/// Delivers until a limit is reached, `stop` says so, or an error. What the sink has taken is confirmed at the end in any case.
/// The result is the number of events delivered.
pub(crate) async fn run(
    mut consumer: Consumer,
    sink: &mut impl Sink,
    limits: Limits,
    info: &ConnInfo,
    stop: impl Future<Output = ()>,
) -> Result<u64> {
    let mut delivered = 0;
    let outcome = tokio::select! {
        outcome = deliver(&mut consumer, sink, limits, info, &mut delivered) => outcome,
        () = stop => Ok(()),
    };
    let closed = consumer.close().await;
    info!(delivered, "stopped");
    outcome.and(closed).map(|()| delivered)
}

/// Can be dropped at any await: what the sink has taken is acknowledged before the next one.
async fn deliver(
    consumer: &mut Consumer,
    sink: &mut impl Sink,
    limits: Limits,
    info: &ConnInfo,
    delivered: &mut u64,
) -> Result<()> {
    let mut batch = Vec::new();
    loop {
        let left = limits.max_events.map_or(u64::MAX, |most| most.saturating_sub(*delivered));
        if left == 0 {
            return Ok(());
        }
        let next = match limits.exit_when_idle {
            None => consumer.next().await,
            Some(idle) => match timeout(idle, consumer.next()).await {
                Ok(next) => next,
                Err(_) if is_drained(consumer, info).await? => return Ok(()),
                Err(_) => continue,
            },
        };
        let Some(first) = next else { return Ok(()) };
        let first = first?;
        let mut bytes = size(&first);
        batch.push(first);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(BATCH_EVENTS);
        // An error waits until what came before it is delivered.
        let mut failed = None;
        while batch.len() < most && bytes < BATCH_BYTES {
            match consumer.try_next() {
                Some(Ok(delivery)) => {
                    bytes += size(&delivery);
                    batch.push(delivery);
                }
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        sink.deliver(&batch)?;
        *delivered += batch.len() as u64;
        for delivery in batch.drain(..) {
            delivery.ack();
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
}

fn size(delivery: &Delivery) -> usize {
    delivery.payload.as_ref().map_or(0, |payload| payload.len()) + delivery.headers.as_ref().map_or(0, |headers| headers.len())
}

/// True if everything that is in the log now has been delivered.
async fn is_drained(consumer: &mut Consumer, info: &ConnInfo) -> Result<bool> {
    let client = connect_sql(info).await?;
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await?;
    let flushed = row.try_get::<_, tokio_postgres::types::PgLsn>(0)?;
    Ok(consumer.caught_up(postbox_wire::Lsn(flushed.into())).await)
}
