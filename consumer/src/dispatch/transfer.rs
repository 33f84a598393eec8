//! Delivery into an inbox: in commit order, many events a transaction. While one batch is written the next one is gathered.

use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::POLL;
use super::{Limits, Origin, Source, Task};
use crate::dead_letter::{DeadLetters, DueLetter};
use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::sink::Inbox;

/// Most events, and about the most bytes, that are written at once. A transaction of the source that fits is never parted.
const BATCH_EVENTS: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;

/// How long what is under way may take when the process is to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Delivers until the source ends, a limit is reached, `stop` says so, the lease is revoked, or an error. The result is the number of
/// events delivered.
pub(crate) async fn deliver<S: Source, D: DeadLetters>(
    source: &mut S,
    inbox: Inbox,
    letters: D,
    limits: Limits,
    lease: &Lease,
    stop: impl Future<Output = ()>,
) -> (u64, Result<()>) {
    let now = Instant::now();
    let mut transfer = Transfer {
        source,
        letters,
        limits,
        lease: lease.clone(),
        gathered: Vec::new(),
        whole: 0,
        bytes: 0,
        taken: 0,
        delivered: 0,
        last_arrival: now,
        poll_at: now,
        nothing_due: false,
        ended: false,
        stopped: None,
        outcome: Ok(()),
    };
    let outcome = transfer.run(Box::new(inbox), stop).await;
    (transfer.delivered, outcome)
}

struct Transfer<'a, S, D> {
    source: &'a mut S,
    letters: D,
    limits: Limits,
    lease: Lease,
    /// What is to be written next; `whole` of them are whole transactions.
    gathered: Vec<Task>,
    whole: usize,
    bytes: usize,
    taken: u64,
    delivered: u64,
    last_arrival: Instant,
    /// When the dead letters are asked for those that are due.
    poll_at: Instant,
    /// The last answer was that none are, and no event has come since.
    nothing_due: bool,
    /// Nothing more is taken.
    ended: bool,
    stopped: Option<Instant>,
    outcome: Result<()>,
}

/// What is being written, and the inbox that it is written to.
type Writing = Pin<Box<dyn Future<Output = Written> + Send>>;

struct Written {
    inbox: Box<Inbox>,
    tasks: Vec<Task>,
    /// They are dead letters that were due.
    due: bool,
    outcome: Result<()>,
}

impl<S: Source, D: DeadLetters> Transfer<'_, S, D> {
    async fn run(&mut self, inbox: Box<Inbox>, stop: impl Future<Output = ()>) -> Result<()> {
        let mut stop = pin!(stop);
        let lease = self.lease.clone();
        let mut revoked = pin!(lease.revoked());
        // The position is asked for before anything comes.
        let (mut inbox, mut writing) = (None, Some(self.write(inbox, Vec::new())));
        loop {
            if let Some(idle) = inbox.take() {
                match self.begin(idle) {
                    Ok(begun) => writing = Some(begun),
                    Err(_) if self.is_finished() => return std::mem::replace(&mut self.outcome, Ok(())),
                    Err(idle) => inbox = Some(idle),
                }
            }
            let deadline = self.deadline(inbox.as_deref());
            let wants_more = self.wants_more();
            let written = async {
                match &mut writing {
                    Some(writing) => writing.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut revoked => return Err(Error::place_lost()),
                () = &mut stop, if self.stopped.is_none() => self.stopped = Some(Instant::now()),
                written = written => {
                    writing = None;
                    inbox = Some(self.written(written)?);
                }
                next = self.source.next(), if wants_more => {
                    self.take(next);
                    while self.wants_more() && let Some(next) = self.source.try_next() {
                        self.take(Some(next));
                    }
                }
                () = sleep_until(deadline) => {
                    if self.stopped.is_some() {
                        warn!("the inbox does not take what is under way; it comes again");
                        return Ok(());
                    }
                    if self.is_idle() && inbox.is_some() {
                        self.last_arrival = Instant::now();
                        if !self.nothing_due {
                            self.poll_at = self.last_arrival;
                            continue;
                        }
                        tokio::select! {
                            biased;
                            () = &mut stop => self.stopped = Some(Instant::now()),
                            drained = self.source.is_drained() => self.ended |= drained?,
                        }
                    }
                }
            }
        }
    }

    /// A task from the source.
    fn take(&mut self, next: Option<Result<Task>>) {
        self.last_arrival = Instant::now();
        self.nothing_due = false;
        match next {
            Some(Ok(task)) => {
                // What came by a connection that is gone comes again from the start of its transaction.
                if self.gathered.last().is_some_and(Task::is_stale) {
                    self.taken -= self.gathered.len() as u64;
                    self.gathered.clear();
                    (self.whole, self.bytes) = (0, 0);
                }
                self.taken += 1;
                self.bytes += task.event.size();
                self.gathered.push(task);
                if !self.source.is_within_transaction() {
                    self.whole = self.gathered.len();
                }
            }
            // What came before it is delivered first.
            Some(Err(error)) => (self.outcome, self.ended) = (Err(error), true),
            None => self.ended = true,
        }
    }

    /// Begins to write what is to be written, or gives the inbox back.
    fn begin(&mut self, inbox: Box<Inbox>) -> Result<Writing, Box<Inbox>> {
        let now = Instant::now();
        if self.stopped.is_some() {
            return Err(inbox);
        }
        if self.poll_at <= now {
            self.poll_at = now + POLL;
            return Ok(self.write_due(inbox));
        }
        let events = if self.all_is_wanted() { self.gathered.len() } else { self.whole };
        if events > 0 {
            let rest = self.gathered.split_off(events);
            let batch = std::mem::replace(&mut self.gathered, rest);
            self.whole = self.whole.saturating_sub(events);
            self.bytes = self.gathered.iter().map(|task| task.event.size()).sum();
            return Ok(self.write(inbox, batch));
        }
        if inbox.tell_at().is_some_and(|at| at <= now) { Ok(self.write(inbox, Vec::new())) } else { Err(inbox) }
    }

    fn write(&self, mut inbox: Box<Inbox>, tasks: Vec<Task>) -> Writing {
        let (letters, lease) = (self.letters.clone(), self.lease.clone());
        Box::pin(async move {
            let outcome = inbox.take_over(&tasks, &letters, &lease).await;
            Written { inbox, tasks, due: false, outcome }
        })
    }

    /// Writes the dead letters that are due.
    fn write_due(&self, mut inbox: Box<Inbox>) -> Writing {
        let (letters, lease) = (self.letters.clone(), self.lease.clone());
        Box::pin(async move {
            let due = letters.due(false, false, Vec::new()).await;
            let task = |DueLetter { id, attempts, event }| Task { event, origin: Origin::Letter { id, attempts } };
            let (tasks, outcome) = match due {
                Ok(due) => {
                    let tasks = due.into_iter().map(task).collect::<Vec<_>>();
                    let outcome = inbox.take_over(&tasks, &letters, &lease).await;
                    (tasks, outcome)
                }
                Err(error) => (Vec::new(), Err(error)),
            };
            Written { inbox, tasks, due: true, outcome }
        })
    }

    fn written(&mut self, written: Written) -> Result<Box<Inbox>> {
        let Written { inbox, tasks, due, outcome } = written;
        outcome?;
        if due {
            self.nothing_due = tasks.is_empty();
        } else {
            self.delivered += tasks.len() as u64;
            Task::complete_all(tasks);
        }
        Ok(inbox)
    }

    /// When something is to be done at the latest.
    fn deadline(&self, inbox: Option<&Inbox>) -> Instant {
        if let Some(stopped) = self.stopped {
            return stopped + STOP_PATIENCE;
        }
        // While something is written there is nothing else to do.
        let Some(inbox) = inbox else { return Instant::now() + POLL };
        let idle = self.limits.exit_when_idle.filter(|_| self.is_empty()).map(|idle| self.last_arrival + idle);
        [idle, inbox.tell_at()].into_iter().flatten().fold(self.poll_at, Instant::min)
    }

    fn is_empty(&self) -> bool {
        self.gathered.is_empty() && !self.ended
    }

    fn is_idle(&self) -> bool {
        let idle = self.limits.exit_when_idle.is_some_and(|idle| self.last_arrival + idle <= Instant::now());
        idle && self.is_empty()
    }

    fn has_room(&self) -> bool {
        self.gathered.len() < BATCH_EVENTS && self.bytes < BATCH_BYTES
    }

    fn is_at_limit(&self) -> bool {
        self.limits.max_events.is_some_and(|most| self.taken >= most)
    }

    fn wants_more(&self) -> bool {
        self.has_room() && !self.is_at_limit() && !self.ended && self.stopped.is_none()
    }

    /// A part of a transaction is written too: it does not fit, or the rest is not to come.
    fn all_is_wanted(&self) -> bool {
        (self.whole == 0 && !self.has_room()) || self.is_at_limit()
    }

    /// Asked when nothing can be begun.
    fn is_finished(&self) -> bool {
        self.stopped.is_some() || self.ended || self.is_at_limit()
    }
}
