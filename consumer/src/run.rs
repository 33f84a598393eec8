//! `postbox run`: from the slot to a sink, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use postbox_wire::Lsn;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::consumer::Consumer;
use crate::dead_letter::DeadLetters;
use crate::dispatch::events::Settings;
use crate::dispatch::{Limits, Source, Task, batches, events};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::Lease;
use crate::sink::{BatchSink, EventSink};
use crate::transport::{ConnInfo, connect_sql};

/// How long the server may take to say where its log ends.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// How long the server may take to hear of the last confirmation when the sink is stuck.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Delivers to a sink that takes batches until a limit is reached, `stop` says so, or an error. What the sink has taken is
/// confirmed at the end in any case. The result is the number of events delivered, and how it ended.
pub(crate) async fn run(
    consumer: Consumer,
    sink: impl BatchSink,
    limits: Limits,
    max_processing: Duration,
    lease: &Lease,
    info: &ConnInfo,
    stop: impl Future<Output = ()>,
) -> (u64, Result<()>) {
    let closer = consumer.closer();
    let slot = Slot { consumer, info: info.clone() };
    let ended = batches::deliver(slot, sink, limits, max_processing, lease, stop).await;
    let closed = match ended.source {
        Some(slot) => slot.consumer.close().await,
        None => {
            closer.close(CLOSE_PATIENCE).await;
            Ok(())
        }
    };
    let delivered = ended.delivered;
    info!(delivered, "stopped");
    (delivered, ended.outcome.and(closed))
}

/// As [`run`], to a sink that takes events one by one.
#[allow(clippy::too_many_arguments, reason = "each is another thing")]
pub(crate) async fn run_events(
    consumer: Consumer,
    sink: impl EventSink,
    letters: Option<impl DeadLetters>,
    settings: Settings,
    limits: Limits,
    lease: &Lease,
    info: &ConnInfo,
    stop: impl Future<Output = ()>,
) -> (u64, Result<()>) {
    let mut slot = Slot { consumer, info: info.clone() };
    let (delivered, outcome) = events::deliver(&mut slot, Arc::new(sink), letters, settings, limits, lease, stop).await;
    let closed = slot.consumer.close().await;
    info!(delivered, "stopped");
    (delivered, outcome.and(closed))
}

/// The events of a slot.
struct Slot {
    consumer: Consumer,
    info: ConnInfo,
}

impl Source for Slot {
    async fn next(&mut self) -> Option<Result<Task>> {
        self.consumer.next().await.map(|next| next.map(Task::from))
    }

    fn try_next(&mut self) -> Option<Result<Task>> {
        self.consumer.try_next().map(|next| next.map(Task::from))
    }

    fn is_within_transaction(&self) -> bool {
        self.consumer.is_within_transaction()
    }

    /// A server that does not answer is waited out like any other broken connection.
    async fn is_drained(&mut self) -> Result<bool> {
        let answer = timeout(ANSWER_PATIENCE, end_of_log(&self.info)).await;
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

/// Where the log ends that survives a crash of the server.
async fn end_of_log(info: &ConnInfo) -> Result<Lsn> {
    let client = connect_sql(info).await?;
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await?;
    Ok(Lsn(row.try_get::<_, tokio_postgres::types::PgLsn>(0)?.into()))
}
