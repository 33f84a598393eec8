//! A connection at work: events into the queue, confirmations to the server, and what ends it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postbox_wire::Lsn;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use super::link::Link;
use super::shared::{Batch, Part, Shared};
use super::{Feed, Reader, TOGETHER_BYTES, room};
use crate::backfill::Backfill;
use crate::decode;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::failpoint;
use crate::member::Lost;
use crate::transport::{ConnInfo, Received, Status, connect_sql};

/// What has been received and has no room in the queue yet.
#[derive(Default)]
struct Waiting {
    parts: Vec<Part>,
    bytes: usize,
}

/// How long a member that is paused waits for what its sink has under way.
const UNDER_WAY: Duration = Duration::from_secs(5);

impl Feed {
    /// Streams until the consumer is closed; an error ends the connection.
    pub(super) async fn stream(&mut self, link: &mut Link) -> Result<()> {
        let mut waiting = Waiting::default();
        // What is wrong after the events that wait.
        let mut failed = None;
        let mut transaction = None;
        let mut last_status = Instant::now();
        let mut last_heard = Instant::now();
        let mut lost = pin!(self.lost());
        let mut stuck = pin!(self.stuck());
        let mut shutdown = pin!(shutdown(self.info.clone(), Arc::clone(&self.shared), link.heartbeat));
        loop {
            if self.shared.is_closing() {
                return Ok(());
            }
            let full = !waiting.parts.is_empty();
            if self.ended && !full {
                self.batches = None;
            }
            // Not before what stands in front of it is handed over.
            if !full && let Some(error) = failed.take() {
                return Err(error);
            }
            // With the queue full not even one more frame is read, which may be as large as the largest event.
            let crowded = !full && self.room.available_permits() == 0;
            let confirm = self.shared.progress().is_confirmation_due();
            let ping = self.shared.ping.load(Ordering::Relaxed);
            // The end that was asked for may lie where nothing is sent any more.
            let ask = ping || (self.builder.until.is_some() && !self.ended);
            let interval = if confirm || ask { self.builder.confirm_interval } else { link.heartbeat };
            let mut report = false;
            tokio::select! {
                biased;
                () = sleep_until(last_status + interval) => report = true,
                () = self.shared.wake.notified() => {}
                room = room(Arc::clone(&self.room), waiting.bytes, self.queue_bytes), if full => {
                    let Waiting { parts, .. } = std::mem::take(&mut waiting);
                    if let Some(batches) = &self.batches {
                        let connection = self.shared.connection.load(Ordering::Relaxed);
                        // A closed channel means that the consumer is closing.
                        let _ = batches.send(Ok(Batch { connection, parts, room }));
                    }
                    last_heard = Instant::now();
                }
                // Looks only: the permit is given back at once.
                _ = room(Arc::clone(&self.room), 1, 1), if crowded => last_heard = Instant::now(),
                received = link.stream.recv(), if !full && !crowded => {
                    last_heard = Instant::now();
                    if received.is_ok() {
                        self.backoff.reset();
                    }
                    let mut received = received.map(Some);
                    while let Some(outcome) = received.transpose() {
                        let read = match outcome {
                            // The rest of the stream is not for us.
                            Ok(Received::Data(_)) if self.ended => Ok(None),
                            Ok(Received::Data(bytes)) => link.reader.read(&bytes).await,
                            Ok(Received::Keepalive { wal_end, reply_requested }) => {
                                self.keepalive(wal_end, transaction.is_some());
                                report |= reply_requested;
                                Ok(None)
                            }
                            Err(error) => Err(error),
                        };
                        match read {
                            Ok(Some(events)) => self.receive(events, &mut transaction, &mut waiting),
                            Ok(None) => {}
                            Err(error) => {
                                failed = Some(error);
                                break;
                            }
                        }
                        if waiting.bytes >= TOGETHER_BYTES {
                            break;
                        }
                        received = link.stream.try_recv();
                    }
                }
                error = &mut lost => {
                    // What was acknowledged until now is done, whoever goes on.
                    let _ = self.report(link, false).await;
                    return Err(error);
                }
                error = &mut stuck => {
                    let _ = self.report(link, false).await;
                    return Err(error);
                }
                error = &mut shutdown => return Err(error),
            }
            if report {
                let silent = last_heard.elapsed();
                if !full && !crowded && silent > link.patience {
                    return Err(Error::new(
                        ErrorKind::Connect,
                        format!("no sign of life from the server for {} s", silent.as_secs()),
                    ));
                }
                self.shared.ping.store(false, Ordering::Relaxed);
                self.report(link, ask || silent > link.heartbeat / 2).await?;
                last_status = Instant::now();
            }
        }
    }

    /// Ends when the place is lost. When the group is paused, what is under way is waited for.
    pub(super) fn lost(&self) -> impl Future<Output = Error> + use<> {
        let place = match &self.reader {
            Reader::Group(membership, Some(place)) => Some((membership.group.clone(), place.lost())),
            _ => None,
        };
        let shared = Arc::clone(&self.shared);
        async move {
            let Some((group, lost)) = place else { return std::future::pending().await };
            let lost = lost.await;
            if lost == Lost::Paused {
                let _ = timeout(UNDER_WAY, shared.all_acknowledged()).await;
                shared.lease().revoke();
            }
            lost.into_error(&group)
        }
    }

    /// Ends when the application holds on to an event for longer than it may.
    pub(super) fn stuck(&self) -> impl Future<Output = Error> + use<> {
        let shared = Arc::clone(&self.shared);
        let most = (!self.builder.one_term).then_some(self.builder.max_processing);
        async move {
            match most {
                Some(most) => stuck(&shared, most).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Takes events in, which wait for room in the queue then.
    fn receive(
        &mut self,
        mut received: decode::Received,
        transaction: &mut Option<Option<u64>>,
        waiting: &mut Waiting,
    ) {
        let header = received.transaction;
        if self.builder.until.is_some_and(|until| received.first && header.commit_lsn >= until) {
            self.ended = true;
            return;
        }
        let mut progress = self.shared.progress();
        if received.first {
            // After a reconnect the server starts from what it has noted; what is durable here need not come twice.
            *transaction = Some((!progress.is_durable(header.end_lsn)).then(|| progress.begin(header.end_lsn)));
        }
        let number = transaction.flatten();
        if received.last {
            *transaction = None;
        }
        let Some(number) = number else { return };
        if received.last {
            progress.ends(header.end_lsn);
        }
        let backfills = match &self.reader {
            Reader::Group(_, Some(place)) => &*place.backfills,
            _ => &[],
        };
        if !backfills.is_empty() {
            received.events.retain(|event| !Backfill::cover(backfills, event));
        }
        progress.frame(received.events.len(), received.last);
        if received.events.is_empty() {
            progress.settle();
            return;
        }
        waiting.bytes += received.bytes + received.events.len() * size_of::<Event>();
        waiting.parts.push(Part {
            transaction: number,
            end: received.last.then_some(header.end_lsn),
            events: received.events,
        });
    }

    fn keepalive(&mut self, wal_end: Lsn, in_transaction: bool) {
        // Past the end of what was asked for, positions cover transactions that were not delivered.
        if self.ended {
            return;
        }
        self.shared.progress().keepalive(wal_end);
        self.shared.settled.notify_waiters();
        if self.builder.until.is_some_and(|until| wal_end >= until && !in_transaction) {
            self.ended = true;
        }
    }

    /// Tells the server what is durable.
    async fn report(&mut self, link: &mut Link, reply_requested: bool) -> Result<()> {
        let (received, flushed, rose) = {
            let mut progress = self.shared.progress();
            let rose = progress.is_confirmation_due();
            let flushed = progress.confirm();
            (progress.positions().received, flushed, rose)
        };
        if rose {
            failpoint::reach("confirm.before");
        }
        debug!(%received, %flushed, "status");
        let status = Status { received, flushed, reply_requested };
        timeout(link.patience, link.stream.send_status(status)).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Connect, "the server takes no data from the connection any more"))
        })?;
        if rose {
            failpoint::reach("confirm.after");
        }
        Ok(())
    }

    /// Confirms what is durable and ends the connection in order.
    pub(super) async fn end(&mut self, mut link: Link) -> Result<()> {
        self.report(&mut link, false).await?;
        link.stream.finish().await
    }
}

/// As [`Feed::stuck`]. The time is counted in steps: when the whole process stands still the application cannot acknowledge.
async fn stuck(shared: &Shared, most: Duration) -> Error {
    let step = (most / 8).clamp(Duration::from_millis(1), Duration::from_secs(1));
    let (mut before, mut since) = (None, Duration::ZERO);
    loop {
        let held = shared.progress().held();
        if held.is_none() || held != before {
            (before, since) = (held, Duration::ZERO);
        } else if since >= most {
            let message = format!("an event has not been acknowledged for {most:?} (max_processing)");
            return Error::new(ErrorKind::Stuck, message).with_hint(
                "Acknowledge each delivery once it is dealt with, or raise max_processing. The event comes again.",
            );
        }
        sleep(step).await;
        since += step;
    }
}

/// Waits until the server shuts down while nothing is acknowledged any more.
///
/// A server that shuts down waits until its consumers have confirmed everything, for as long as it hears from them. So a
/// sink that is stuck would hold it up for ever, and the stream does not tell what is going on. Whoever asks to be let in
/// is told.
async fn shutdown(info: ConnInfo, shared: Arc<Shared>, interval: Duration) -> Error {
    let mut before = None;
    loop {
        sleep(interval).await;
        let now = {
            let progress = shared.progress();
            (!progress.is_idle()).then(|| progress.positions().durable)
        };
        let stuck = now.is_some() && now == before;
        before = now;
        if stuck
            && let Err(error) = connect_sql(&info).await
            && error.sqlstate() == Some(CANNOT_CONNECT_NOW)
        {
            return Error::new(ErrorKind::Server, "the server shuts down and nothing is acknowledged")
                .with_source(error);
        }
    }
}

/// The SQLSTATE of a server that starts or shuts down.
const CANNOT_CONNECT_NOW: &str = "57P03";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stands_still_does_not_hold_an_event() {
        let most = Duration::from_secs(8);
        let shared = Arc::new(Shared::new(Lease::unlimited()));
        {
            let mut progress = shared.progress();
            let transaction = progress.begin(Lsn(1));
            progress.frame(1, true);
            progress.hold(transaction);
        }
        let mut stuck = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { stuck(&shared, most).await }
        });
        tokio::task::yield_now().await;
        // By the clock an hour passes at once.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let second = Duration::from_secs(1);
        assert!(timeout(6 * second, &mut stuck).await.is_err(), "the process stood still, not the application");
        let error = timeout(3 * second, stuck).await.expect("stuck now").expect("no panic");
        assert_eq!(error.kind(), ErrorKind::Stuck);
    }
}
