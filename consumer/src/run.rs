//! `postbox run`: from the slot to a sink, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use postbox_wire::Lsn;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::consumer::{self, Builder, Consumer};
use crate::dead_letter::{DeadLetters, StoredLetters};
use crate::dispatch::settings::Settings;
use crate::dispatch::{Limits, Source, Task, batches, events, transfer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Format;
use crate::lease::Lease;
use crate::member::Doubt;
use crate::sink::{BatchSink, EventSink, Exec, Inbox, InboxTarget, Stdout, StreamSource, Target};
use crate::transport::{ConnInfo, connect_own};

/// How long the server may take to say where its log ends.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// How long the server may take to hear of the last confirmation when the sink is stuck.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The longest wait before the next term.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Ends when the process is to stop. Each term waits for a clone: one that has ended may not be asked again.
pub(crate) type Stop = Shared<BoxFuture<'static, ()>>;

/// Where events go.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    Stdout(Format),
    Exec { command: String, format: Format },
    Inbox(InboxTarget),
}

/// Delivers each time this process is the active member of the group; with a slot there is one time only. The result is the number of
/// events delivered.
pub(crate) async fn terms(
    mut builder: Builder,
    info: &ConnInfo,
    sink: &Sink,
    settings: &Settings,
    mut limits: Limits,
    stop: Stop,
) -> Result<u64> {
    (builder.one_term, builder.doubt) = (true, Doubt::default());
    let has_group = matches!(builder.source, Some(consumer::Source::Group(_)));
    let target = match sink {
        Sink::Inbox(target) => Some(Target::new(target, &builder, info)?),
        _ => None,
    };
    let mut sum = 0;
    let mut was_active = false;
    let mut backoff = Backoff::new(Duration::from_millis(100), LONGEST_WAIT);
    loop {
        let connected = tokio::select! {
            connected = builder.clone().connect() => connected,
            // It may stand by for long.
            () = stop.clone() => return Ok(sum),
        };
        let consumer = match connected {
            // A server that was there before comes back, or another one takes its place.
            Err(error) if was_active && error.is_transient() => {
                warn!("cannot connect yet: {}", error.chain());
                tokio::select! {
                    () = sleep(backoff.next()) => continue,
                    () = stop.clone() => return Err(error),
                }
            }
            connected => connected?,
        };
        was_active = true;
        let begun = Instant::now();
        let lease = consumer.lease();
        let (delivered, outcome) = match (sink, consumer.term(), &target) {
            (Sink::Stdout(format), ..) => {
                let sink = Stdout::new(format.clone());
                run(consumer, sink, limits, settings.max_processing, &lease, info, stop.clone()).await
            }
            (Sink::Exec { command, format }, term, _) => match letters(info, term).await {
                Ok(letters) => {
                    let sink = Exec::new(command, format.clone());
                    run_events(consumer, sink, letters, settings.clone(), limits, &lease, info, stop.clone()).await
                }
                Err(error) => (0, Err(error)),
            },
            (Sink::Inbox(_), Some(term), Some(target)) => match stream(info, term).await {
                Ok((letters, stream)) => {
                    let inbox = Inbox::new(target.clone(), stream, settings);
                    run_inbox(consumer, inbox, letters, limits, &lease, info, stop.clone()).await
                }
                Err(error) => (0, Err(error)),
            },
            (Sink::Inbox(_), ..) => (
                0,
                Err(Error::new(ErrorKind::Usage, "an inbox takes the stream of a consumer group, not that of a slot")),
            ),
        };
        sum += delivered;
        limits.max_events = limits.max_events.map(|most| most.saturating_sub(delivered));
        match outcome {
            Err(error)
                if has_group
                    && stop.peek().is_none()
                    && (error.kind() == ErrorKind::PlaceLost || error.is_transient()) =>
            {
                warn!("{}", error.chain());
                if delivered > 0 || begun.elapsed() > LONGEST_WAIT {
                    backoff.reset();
                }
                // Whatever ended this term may end the next one as soon.
                if delivered == 0 {
                    tokio::select! {
                        () = sleep(backoff.next()) => {}
                        () = stop.clone() => return if error.is_transient() { Err(error) } else { Ok(sum) },
                    }
                }
            }
            outcome => return outcome.map(|()| sum),
        }
    }
}

/// Where the dead letters of the group are kept, if there is a group.
async fn letters(info: &ConnInfo, term: Option<(String, i64)>) -> Result<Option<StoredLetters>> {
    let Some((group, epoch)) = term else { return Ok(None) };
    Ok(Some(StoredLetters::new(Arc::new(connect_own(info).await?), &group, epoch)))
}

/// As [`letters`], and what the stream of the group is known by.
async fn stream(info: &ConnInfo, (group, epoch): (String, i64)) -> Result<(StoredLetters, StreamSource)> {
    let client = connect_own(info).await?;
    let stream = StreamSource::ask(&client, &group, epoch).await?;
    Ok((StoredLetters::new(Arc::new(client), &group, epoch), stream))
}

/// Delivers to a sink that takes batches until a limit is reached, `stop` says so, or an error. What the sink has taken is
/// confirmed at the end in any case. The result is the number of events delivered, and how it ended.
async fn run(
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
async fn run_events(
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

/// As [`run`], to an inbox.
async fn run_inbox(
    consumer: Consumer,
    inbox: Inbox,
    letters: impl DeadLetters,
    limits: Limits,
    lease: &Lease,
    info: &ConnInfo,
    stop: impl Future<Output = ()>,
) -> (u64, Result<()>) {
    let mut slot = Slot { consumer, info: info.clone() };
    let (delivered, outcome) = transfer::deliver(&mut slot, inbox, letters, limits, lease, stop).await;
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
        match answer.unwrap_or_else(|_| Err(Error::silent())) {
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
    let client = connect_own(info).await?;
    let row = client.query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()", &[]).await?;
    Ok(Lsn(row.try_get::<_, tokio_postgres::types::PgLsn>(0)?.into()))
}
