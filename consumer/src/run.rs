//! `postbox run`: from the slot to a sink, until told to stop.

use std::pin::pin;
use std::time::Duration;

use postbox_wire::Lsn;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::consumer::{Consumer, Delivery};
use crate::error::{Error, ErrorKind, Result};
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
const BATCH_EVENTS: u64 = 1024;
const BATCH_BYTES: usize = 256 << 10;

/// How long the rest of a transaction may stay away when it is all that is waited for.
const REST_PATIENCE: Duration = Duration::from_secs(10);

/// How long the server may take to say where its log ends.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Delivers until a limit is reached, `stop` says so, or an error. What the sink has taken is confirmed at the end in any case.
/// The result is the number of events delivered.
pub(crate) async fn run(
    mut consumer: Consumer,
    sink: &mut impl Sink,
    limits: Limits,
    info: &ConnInfo,
    stop: impl Future<Output = ()>,
) -> Result<u64> {
    let mut pump = Pump { consumer: &mut consumer, sink, limits, delivered: 0 };
    let outcome = pump.run(info, stop).await;
    let delivered = pump.delivered;
    let closed = consumer.close().await;
    info!(delivered, "stopped");
    outcome.and(closed).map(|()| delivered)
}

struct Pump<'a, S> {
    consumer: &'a mut Consumer,
    sink: &'a mut S,
    limits: Limits,
    delivered: u64,
}

impl<S: Sink> Pump<'_, S> {
    async fn run(&mut self, info: &ConnInfo, stop: impl Future<Output = ()>) -> Result<()> {
        let mut stop = pin!(stop);
        while self.left() > 0 {
            // Asked before every batch: on a busy stream the next event is always there.
            let next = tokio::select! {
                biased;
                () = &mut stop => return self.finish_transaction().await,
                next = self.next(info) => next?,
            };
            let Some(first) = next else { return Ok(()) };
            self.deliver(first, |_| true)?;
        }
        Ok(())
    }

    /// The next event; none at the end of the stream, or when it is idle and nothing is left.
    async fn next(&mut self, info: &ConnInfo) -> Result<Option<Delivery>> {
        let Some(idle) = self.limits.exit_when_idle else { return self.consumer.next().await.transpose() };
        loop {
            match timeout(idle, self.consumer.next()).await {
                Ok(next) => return next.transpose(),
                Err(_) if self.is_drained(info).await? => return Ok(None),
                Err(_) => {}
            }
        }
    }

    /// Delivers the rest of a transaction of which a part is delivered: it can be confirmed only as a whole, and that
    /// part would come again.
    async fn finish_transaction(&mut self) -> Result<()> {
        while self.left() > 0 && self.consumer.is_within_transaction() {
            let Ok(next) = timeout(REST_PATIENCE, self.consumer.next()).await else {
                warn!("the rest of a transaction does not come; what was delivered of it comes again");
                return Ok(());
            };
            let Some(first) = next else { return Ok(()) };
            self.deliver(first?, Consumer::is_within_transaction)?;
        }
        Ok(())
    }

    /// Delivers an event and, as long as they are `wanted`, those behind it that have already come.
    fn deliver(&mut self, first: Delivery, wanted: impl Fn(&Consumer) -> bool) -> Result<()> {
        let most = self.left().min(BATCH_EVENTS);
        let mut bytes = size(&first);
        let mut batch = vec![first];
        // An error waits until what came before it is delivered.
        let mut outcome = Ok(());
        while (batch.len() as u64) < most && bytes < BATCH_BYTES && wanted(self.consumer) {
            match self.consumer.try_next() {
                Some(Ok(delivery)) => {
                    bytes += size(&delivery);
                    batch.push(delivery);
                }
                Some(Err(error)) => {
                    outcome = Err(error);
                    break;
                }
                None => break,
            }
        }
        self.sink.deliver(&batch)?;
        self.delivered += batch.len() as u64;
        for delivery in batch {
            delivery.ack();
        }
        outcome
    }

    /// How many events may still be delivered.
    fn left(&self) -> u64 {
        self.limits.max_events.map_or(u64::MAX, |most| most.saturating_sub(self.delivered))
    }

    /// True if everything that is in the log now has been delivered. A server that does not answer is waited out like
    /// any other broken connection.
    async fn is_drained(&mut self, info: &ConnInfo) -> Result<bool> {
        let answer = timeout(ANSWER_PATIENCE, end_of_log(info)).await;
        match answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Connect, "the server does not answer"))) {
            Ok(end) => Ok(self.consumer.caught_up(end).await),
            Err(error) if error.is_transient() => {
                warn!("cannot ask whether anything is left: {}", error.chain());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn size(delivery: &Delivery) -> usize {
    delivery.payload.as_ref().map_or(0, |payload| payload.len())
        + delivery.headers.as_ref().map_or(0, |headers| headers.len())
}

/// Where the log ends that survives a crash of the server.
async fn end_of_log(info: &ConnInfo) -> Result<Lsn> {
    let client = connect_sql(info).await?;
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await?;
    Ok(Lsn(row.try_get::<_, tokio_postgres::types::PgLsn>(0)?.into()))
}
