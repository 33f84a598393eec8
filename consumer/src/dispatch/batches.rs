//! Delivery to a sink that takes batches, in commit order, and may block.
//!
//! Source and sink share a thread of their own, as handing each batch to another thread would cost more than most batches do. The
//! caller watches: when a call does not end, it gives up without waiting for the thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::{Limits, REST_PATIENCE, Source, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::lease::Lease;
use crate::sink::BatchSink;

/// Most events, and about the most bytes, that the sink gets at once.
const BATCH_EVENTS: u64 = 1024;
const BATCH_BYTES: usize = 256 << 10;

/// What is left when delivery has ended.
pub(crate) struct Ended<S> {
    /// Not there if the sink has not let go of it.
    pub(crate) source: Option<S>,
    pub(crate) delivered: u64,
    pub(crate) outcome: Result<()>,
}

/// What the two threads know of each other.
struct Watch {
    begin: Instant,
    /// When the present call began, in µs since `begin`, counted from 1; 0: there is none.
    call: AtomicU64,
    delivered: AtomicU64,
    /// Nobody waits for the outcome any more.
    abandoned: AtomicBool,
}

/// Delivers until the source ends, a limit is reached, `stop` says so, the lease is revoked, or an error; a call that takes longer
/// than `max_processing` is one of kind [`ErrorKind::Stuck`].
pub(crate) async fn deliver<S: Source, K: BatchSink>(
    source: S,
    sink: K,
    limits: Limits,
    max_processing: Duration,
    lease: &Lease,
    stop: impl Future<Output = ()>,
) -> Ended<S> {
    let watch = Arc::new(Watch {
        begin: Instant::now(),
        call: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        abandoned: AtomicBool::new(false),
    });
    let (tell_stop, stopped) = watch::channel(false);
    let (tell_end, mut end) = oneshot::channel();
    let runtime = Handle::current();
    let mut pump = Pump { source, sink, limits, lease: lease.clone(), watch: Arc::clone(&watch), stopped };
    let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
        let outcome = runtime.block_on(pump.run());
        // Nobody is there if the call took too long.
        let _ = tell_end.send((pump.source, outcome));
    });
    if let Err(error) = thread {
        let error = Error::new(ErrorKind::Other, "cannot start a thread for the sink").with_source(error);
        return Ended { source: None, delivered: 0, outcome: Err(error) };
    }
    let stop = async {
        stop.await;
        let _ = tell_stop.send(true);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        biased;
        ended = &mut end => ended.map_err(|_| Error::new(ErrorKind::Other, "the thread of the sink failed")),
        () = stop => Err(Error::place_lost()),
        () = lease.revoked() => Err(Error::place_lost()),
        error = watch.stuck(max_processing, lease) => {
            lease.revoke();
            Err(error)
        }
    };
    watch.abandoned.store(true, Ordering::Release);
    let delivered = watch.delivered.load(Ordering::Acquire);
    match ended {
        Ok((source, outcome)) => Ended { source: Some(source), delivered, outcome },
        Err(error) => Ended { source: None, delivered, outcome: Err(error) },
    }
}

impl Watch {
    fn called(&self) {
        let micros = u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.call.store(micros + 1, Ordering::Release);
    }

    fn returned(&self) {
        self.call.store(0, Ordering::Release);
    }

    /// Waits until a call has taken longer than `most`. The time in which the lease is not valid does not count: the sink
    /// waits for it.
    async fn stuck(&self, most: Duration, lease: &Lease) -> Error {
        let mut excused = self.begin;
        loop {
            let call = self.call.load(Ordering::Acquire);
            let now = Instant::now();
            let since = if call == 0 { now } else { excused.max(self.begin + Duration::from_micros(call - 1)) };
            if call != 0 && now >= since + most {
                if lease.is_valid() {
                    let message = format!("the sink has not taken a batch of events for {most:?} (--max-processing)");
                    return Error::new(ErrorKind::Stuck, message)
                        .with_hint("Whether it has them is not known: they come again.");
                }
                lease.valid().await;
                excused = Instant::now();
                continue;
            }
            sleep_until(since + most).await;
        }
    }
}

struct Pump<S, K> {
    source: S,
    sink: K,
    limits: Limits,
    lease: Lease,
    watch: Arc<Watch>,
    stopped: watch::Receiver<bool>,
}

impl<S: Source, K: BatchSink> Pump<S, K> {
    async fn run(&mut self) -> Result<()> {
        let mut stopped = self.stopped.clone();
        while self.left() > 0 {
            // Asked before every batch: on a busy stream the next event is always there.
            let next = tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return self.finish_transaction().await,
                next = self.next() => next?,
            };
            let Some(first) = next else { return Ok(()) };
            self.deliver(first, |_| true).await?;
        }
        Ok(())
    }

    /// The next event; none at the end of the stream, or when it is idle and nothing is left.
    async fn next(&mut self) -> Result<Option<Task>> {
        let Some(idle) = self.limits.exit_when_idle else { return self.source.next().await.transpose() };
        loop {
            match timeout(idle, self.source.next()).await {
                Ok(next) => return next.transpose(),
                Err(_) if self.source.is_drained().await? => return Ok(None),
                Err(_) => {}
            }
        }
    }

    /// Delivers the rest of a transaction of which a part is delivered: it can be confirmed only as a whole, and that
    /// part would come again.
    async fn finish_transaction(&mut self) -> Result<()> {
        while self.left() > 0 && self.source.is_within_transaction() {
            let Ok(next) = timeout(REST_PATIENCE, self.source.next()).await else {
                warn!("the rest of a transaction does not come; what was delivered of it comes again");
                return Ok(());
            };
            let Some(first) = next else { return Ok(()) };
            self.deliver(first?, S::is_within_transaction).await?;
        }
        Ok(())
    }

    /// Delivers an event and, as long as they are `wanted`, those behind it that have already come.
    async fn deliver(&mut self, first: Task, wanted: impl Fn(&S) -> bool) -> Result<()> {
        let most = self.left().min(BATCH_EVENTS);
        let mut bytes = size(&first);
        let mut batch = vec![first];
        // An error waits until what came before it is delivered.
        let mut outcome = Ok(());
        while (batch.len() as u64) < most && bytes < BATCH_BYTES && wanted(&self.source) {
            match self.source.try_next() {
                Some(Ok(task)) => {
                    bytes += size(&task);
                    batch.push(task);
                }
                Some(Err(error)) => {
                    outcome = Err(error);
                    break;
                }
                None => break,
            }
        }
        failpoint::reach("deliver.before-sink");
        if !self.lease.is_valid() {
            tokio::select! {
                () = self.lease.valid() => {}
                () = self.lease.revoked() => return Err(Error::place_lost()),
            }
        }
        self.watch.called();
        let taken = self.sink.deliver(&batch, &self.lease);
        self.watch.returned();
        failpoint::reach("deliver.after-sink");
        // Whoever waited has given up, and perhaps another member has these events now.
        if self.watch.abandoned.load(Ordering::Acquire) {
            return Err(Error::place_lost());
        }
        taken?;
        // A chunk of a claim is no event.
        let events = batch.iter().filter(|task| task.event.chunk.is_none()).count();
        self.watch.delivered.fetch_add(events as u64, Ordering::Release);
        Task::complete_all(batch);
        outcome
    }

    /// How many events may still be delivered.
    fn left(&self) -> u64 {
        let delivered = self.watch.delivered.load(Ordering::Relaxed);
        self.limits.max_events.map_or(u64::MAX, |most| most.saturating_sub(delivered))
    }
}

fn size(task: &Task) -> usize {
    task.event.payload.as_ref().map_or(0, |payload| payload.len())
        + task.event.headers.as_ref().map_or(0, |headers| headers.len())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::dispatch::events::tests::{plain, tasks};
    use crate::lease::Moment;

    /// Looks at no lease by itself.
    struct Trusting(mpsc::Sender<usize>);

    impl BatchSink for Trusting {
        fn deliver(&mut self, batch: &[Task], _lease: &Lease) -> Result<()> {
            self.0.send(batch.len()).expect("somebody counts");
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_batch_is_handed_out_without_a_lease() {
        let hour = Duration::from_secs(3600);
        for leased in [false, true] {
            let lease = Lease::new(hour, Duration::ZERO);
            if leased {
                lease.renewed(Moment::now());
            }
            let (source, mut done) = tasks(&plain(3, 0));
            let (got, batches) = mpsc::channel();
            let never = std::future::pending();
            let limits = Limits::default();
            let delivering = deliver(source, Trusting(got), limits, hour, &lease, never);
            if leased {
                assert_eq!(delivering.await.delivered, 3);
                assert_eq!(batches.iter().sum::<usize>(), 3);
                assert!(done.recv().await.is_some());
                continue;
            }
            let revoke = async {
                // Whoever does not look at the lease has long handed the batch out then.
                let wait = move || (batches.recv_timeout(Duration::from_millis(300)), batches);
                let waited = tokio::task::spawn_blocking(wait).await.expect("no panic");
                lease.revoke();
                waited
            };
            let (ended, (handed_out, batches)) = tokio::join!(delivering, revoke);
            assert!(handed_out.is_err(), "handed out without a lease");
            assert_eq!(ended.outcome.expect_err("revoked").kind(), ErrorKind::PlaceLost);
            // To the end of the thread.
            assert_eq!(batches.iter().count(), 0, "handed out without a lease");
        }
    }
}
