//! Delivery to a sink that takes events one by one: different keys at once, one key never overtaken by itself.
//!
//! Everything happens in one task: sink calls and writes of dead letters are futures that it waits for, so the state needs no
//! lock. A lane has one call under way at most. What is taken from the source and not done is bounded by [`WINDOW_EVENTS`] and
//! [`WINDOW_BYTES`]; beyond that the source waits, and with it the slot.

mod letters;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytestring::ByteString;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use self::letters::again;
use super::lane::{Front, Lane, LaneId, Need, Retry};
use super::settings::{Keyless, Settings};
use super::{Limits, Origin, REST_PATIENCE, Source, Task, name};
use crate::dead_letter::{DeadLetters, DueLetter, NewLetter, Why};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::failpoint;
use crate::lease::Lease;
use crate::sink::EventSink;

/// Most events that are taken from the source and not done.
const WINDOW_EVENTS: usize = 1024;
/// About the most bytes of them; a single larger event is let through alone.
const WINDOW_BYTES: usize = 16 << 20;

/// An event that has to wait and is smaller than this gives the frame back that it came in.
const DETACH_BYTES: usize = 32 << 10;

/// Delivers until the source ends, a limit is reached, `stop` says so, or an error. Without dead letters an event that fails for good
/// is such an error. The result is the number of events delivered.
pub(crate) async fn deliver<S: Source, K: EventSink, D: DeadLetters>(
    source: &mut S,
    sink: Arc<K>,
    letters: Option<D>,
    settings: Settings,
    limits: Limits,
    lease: &Lease,
    stop: impl Future<Output = ()>,
) -> (u64, Result<()>) {
    let mut engine = Engine {
        source,
        sink,
        letters,
        settings,
        limits,
        lease: lease.clone(),
        lanes: HashMap::new(),
        parked: HashSet::new(),
        line: VecDeque::new(),
        waits: BTreeSet::new(),
        running: FuturesUnordered::new(),
        calls: 0,
        events: 0,
        bytes: 0,
        due: HashSet::new(),
        poll_at: Instant::now(),
        polling: false,
        nothing_due: false,
        begun: 0,
        newest: None,
        unkeyed: 0,
        last_arrival: Instant::now(),
        far: Instant::now() + Duration::from_secs(365 * 86_400),
        taken: 0,
        delivered: 0,
        ended: false,
        stopping: false,
        blocked: false,
        outcome: Ok(()),
    };
    let outcome = engine.run(stop).await;
    (engine.delivered, outcome)
}

struct Engine<'a, S, K, D> {
    source: &'a mut S,
    sink: Arc<K>,
    letters: Option<D>,
    settings: Settings,
    limits: Limits,
    lease: Lease,
    lanes: HashMap<LaneId, Lane>,
    /// Lanes that had events among the dead letters when last heard of.
    parked: HashSet<LaneId>,
    /// Lanes that wait for a call of the sink.
    line: VecDeque<LaneId>,
    /// Lanes that wait for the time of another attempt.
    waits: BTreeSet<(Instant, LaneId)>,
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    /// Calls of the sink that are under way.
    calls: usize,
    /// What is taken and not done.
    events: usize,
    bytes: usize,
    /// Dead letters in hand.
    due: HashSet<i64>,
    poll_at: Instant,
    polling: bool,
    /// The last answer was that none are due.
    nothing_due: bool,
    /// The latest transaction of which the sink has got something.
    begun: u64,
    /// The transaction of the event taken last.
    newest: Option<u64>,
    /// Counts events without a key.
    unkeyed: u64,
    last_arrival: Instant,
    /// Later than anything.
    far: Instant,
    taken: u64,
    delivered: u64,
    /// Nothing more is taken.
    ended: bool,
    /// Nothing is begun any more.
    stopping: bool,
    /// The lease has run out.
    blocked: bool,
    outcome: Result<()>,
}

/// Something that was waited for.
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and moved once")]
enum Done {
    Attempt {
        lane: LaneId,
        task: Task,
        outcome: Result<(), String>,
    },
    Stored {
        lane: LaneId,
        tasks: Vec<Task>,
        outcome: Result<bool>,
    },
    /// The outcome of a letter's attempt is written down.
    Settled {
        lane: LaneId,
        id: i64,
        outcome: Result<Settled>,
    },
    Due(Result<Vec<DueLetter>>),
}

enum Settled {
    /// It is gone; others of its key may be left.
    Delivered {
        left: bool,
    },
    Failed {
        again: Option<Duration>,
    },
}

impl<S: Source, K: EventSink, D: DeadLetters> Engine<'_, S, K, D> {
    async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let mut stop = pin!(stop);
        let lease = self.lease.clone();
        let mut revoked = pin!(lease.revoked());
        let mut timer = pin!(sleep_until(Instant::now()));
        if let Some(letters) = self.letters.clone()
            && self.settings.keeps_order()
        {
            let keys = letters.keys().await?;
            self.parked = keys.into_iter().filter_map(|key| self.shared_lane(key)).collect();
        }
        loop {
            self.poll();
            self.call();
            if self.is_finished() {
                return std::mem::replace(&mut self.outcome, Ok(()));
            }
            let deadline = self.deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let wants_more = self.wants_more();
            tokio::select! {
                biased;
                () = &mut revoked => return Err(Error::place_lost()),
                () = &mut stop, if !self.stopping => self.stop(),
                Some(done) = self.running.next(), if !self.running.is_empty() => self.done(done)?,
                next = self.source.next(), if wants_more => {
                    self.take(next);
                    while self.wants_more() && let Some(next) = self.source.try_next() {
                        self.take(Some(next));
                    }
                }
                () = lease.valid(), if self.blocked => {}
                () = &mut timer => {
                    if self.tick() {
                        let drained = tokio::select! {
                            biased;
                            () = &mut stop => { self.stop(); false }
                            drained = self.source.is_drained() => drained?,
                        };
                        self.ended |= drained;
                        self.last_arrival = Instant::now();
                    }
                }
            }
        }
    }

    /// A task from the source.
    fn take(&mut self, next: Option<Result<Task>>) {
        let mut task = match next {
            Some(Ok(task)) => task,
            Some(Err(error)) => {
                // What came before it is delivered first.
                self.outcome = Err(error);
                self.ended = true;
                return;
            }
            None => {
                self.ended = true;
                return;
            }
        };
        self.taken += 1;
        self.last_arrival = Instant::now();
        self.nothing_due = false;
        self.newest = task.transaction();
        self.events += 1;
        self.bytes += task.event.size();
        let id = self.lane_of(&task.event);
        let lane = self.lanes.entry(id.clone()).or_default();
        if (lane.is_busy() || self.events > self.settings.concurrency) && task.event.size() < DETACH_BYTES {
            task.event.detach();
        }
        lane.queue.push_back(task);
        self.wake(id);
    }

    /// Looks what a lane needs: storing begins at once, for a call of the sink it gets in line.
    fn wake(&mut self, id: LaneId) {
        self.drop_stale(&id);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        match lane.need(self.parked.contains(&id)) {
            Need::Nothing if lane.is_empty() => drop(self.lanes.remove(&id)),
            Need::Nothing => {}
            Need::Store => self.store_front(id),
            Need::Letter | Need::Attempt => {
                if !std::mem::replace(&mut lane.in_line, true) {
                    self.line.push_back(id);
                }
            }
        }
    }

    /// What comes again anyway is not begun, and counts when it comes.
    fn drop_stale(&mut self, id: &LaneId) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        while lane.front == Front::Idle && lane.queue.front().is_some_and(Task::is_stale) {
            if let Some(task) = lane.queue.pop_front() {
                lane.retry = None;
                self.taken -= 1;
                self.events -= 1;
                self.bytes -= task.event.size();
            }
        }
    }

    /// Calls the sink for as many lanes as it may be called for at once.
    fn call(&mut self) {
        self.blocked = false;
        while self.calls < self.settings.concurrency && !self.line.is_empty() {
            failpoint::reach("deliver.before-sink");
            if !self.lease.is_valid() {
                self.blocked = true;
                return;
            }
            let Some(id) = self.line.pop_front() else { return };
            // Its connection may have ended while it stood in line.
            self.drop_stale(&id);
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.in_line = false;
            let (task, attempt) = match lane.need(self.parked.contains(&id)) {
                Need::Letter => {
                    let Some(task) = lane.letters.pop_front() else { continue };
                    lane.letter = true;
                    let Origin::Letter { attempts, .. } = task.origin else { continue };
                    (task, attempts + 1)
                }
                Need::Attempt => {
                    let Some(task) = lane.queue.pop_front() else { continue };
                    lane.front = Front::Attempt;
                    self.begun = self.begun.max(task.transaction().unwrap_or(0));
                    (task, lane.retry.as_ref().map_or(0, |retry| retry.attempts) + 1)
                }
                Need::Nothing | Need::Store => {
                    self.wake(id);
                    continue;
                }
            };
            self.calls += 1;
            let call = self.sink.deliver(task.event.clone(), attempt);
            let (limit, lease) = (self.settings.max_processing, self.lease.clone());
            self.running.push(Box::pin(async move {
                // Looked at again where the call begins, which may be long after it got in here.
                if !lease.is_valid() {
                    lease.valid().await;
                }
                let outcome = timeout(limit, call).await;
                let outcome = outcome.unwrap_or_else(|_| Err(format!("took longer than {limit:?} (--max-processing)")));
                failpoint::reach("deliver.after-sink");
                Done::Attempt { lane: id, task, outcome }
            }));
        }
    }

    fn done(&mut self, done: Done) -> Result<()> {
        let lane = match done {
            Done::Attempt { lane, task, outcome } => {
                self.calls -= 1;
                match task.origin {
                    Origin::Letter { id, attempts } => self.settle(lane.clone(), id, attempts + 1, outcome),
                    _ => self.attempted(&lane, task, outcome),
                }
                lane
            }
            Done::Stored { lane, tasks, outcome } => {
                self.stored(&lane, tasks, outcome?);
                lane
            }
            Done::Settled { lane, id, outcome } => {
                self.settled(&lane, id, outcome?);
                lane
            }
            Done::Due(letters) => {
                self.polling = false;
                let letters = letters?;
                self.nothing_due = letters.is_empty() && self.due.is_empty();
                for letter in letters {
                    self.take_letter(letter);
                }
                return Ok(());
            }
        };
        self.wake(lane);
        Ok(())
    }

    /// The sink has had an event that was not stored.
    fn attempted(&mut self, id: &LaneId, mut task: Task, outcome: Result<(), String>) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let error = match outcome {
            Ok(()) => {
                (lane.front, lane.retry) = (Front::Idle, None);
                self.delivered += 1;
                return self.complete(task);
            }
            Err(error) => error,
        };
        let mut retry = lane.retry.take().unwrap_or_else(|| Retry {
            attempts: 0,
            error: String::new(),
            since: Instant::now(),
            first_failed: SystemTime::now(),
        });
        retry.attempts += 1;
        retry.error = error;
        debug!(attempt = retry.attempts, "{} failed: {}", name(&task.event), retry.error);
        match retry.wait(&self.settings) {
            _ if self.stopping => {
                // It comes again at the next start, and those behind it must not come before: also not those to be taken.
                lane.front = Front::Idle;
                self.ended = true;
                self.release(&task);
                self.let_go_all(id);
            }
            Some(wait) => {
                lane.front = Front::Wait;
                if task.event.size() < DETACH_BYTES {
                    task.event.detach();
                }
                lane.queue.push_front(task);
                lane.retry = Some(retry);
                self.waits.insert((Instant::now() + wait, id.clone()));
            }
            None => {
                let letter = NewLetter {
                    attempts: retry.attempts,
                    error: Some(retry.error),
                    first_failed: Some(retry.first_failed),
                    due_in: again(&self.settings, retry.attempts),
                    ..NewLetter::new(&task.event, Why::Failed)
                };
                lane.front = Front::Idle;
                self.store(id.clone(), vec![task], vec![letter], false);
            }
        }
    }

    fn complete(&mut self, task: Task) {
        self.release(&task);
        task.complete();
    }

    fn release(&mut self, task: &Task) {
        self.events -= 1;
        self.bytes -= task.event.size();
    }

    fn lane_of(&mut self, event: &Event) -> LaneId {
        // A copy: the key as it came would keep the frame in memory.
        let key = event.key.as_deref().map(ByteString::from);
        self.shared_lane(key).unwrap_or_else(|| {
            self.unkeyed += 1;
            LaneId::Own(self.unkeyed)
        })
    }

    /// The lane of all events with this key; none where each has its own.
    fn shared_lane(&self, key: Option<ByteString>) -> Option<LaneId> {
        match (key, self.settings.keyless) {
            (Some(key), _) => Some(LaneId::Key(key)),
            (None, Keyless::OneLane) => Some(LaneId::Keyless),
            (None, Keyless::Any) => None,
        }
    }

    /// When something is to be done at the latest.
    fn deadline(&self) -> Instant {
        let waits = self.waits.first().map(|(until, _)| *until);
        let poll = (self.letters.is_some() && self.may_poll()).then_some(self.poll_at);
        let idle = self.limits.exit_when_idle.filter(|_| self.may_be_idle()).map(|idle| self.last_arrival + idle);
        let rest = self.waits_for_rest().then(|| self.last_arrival + REST_PATIENCE);
        [waits, poll, idle, rest].into_iter().flatten().fold(self.far, Instant::min)
    }

    /// Time has passed. True if it is to be asked whether anything is left to deliver.
    fn tick(&mut self) -> bool {
        let now = Instant::now();
        while self.waits.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, id)) = self.waits.pop_first() else { break };
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.front = Front::Idle;
            }
            self.wake(id);
        }
        if self.waits_for_rest() && self.last_arrival + REST_PATIENCE <= now {
            warn!("the rest of a transaction does not come; what was delivered of it comes again");
            self.ended = true;
        }
        let Some(idle) = self.limits.exit_when_idle else { return false };
        if !self.may_be_idle() || self.last_arrival + idle > now {
            return false;
        }
        if self.letters.is_some() && !self.nothing_due {
            self.poll_at = now;
            self.last_arrival = now;
            return false;
        }
        true
    }

    fn waits_for_rest(&self) -> bool {
        self.stopping && !self.ended && self.events == 0
    }

    fn may_be_idle(&self) -> bool {
        self.events == 0 && self.due.is_empty() && !self.ended && !self.stopping
    }

    fn wants_more(&self) -> bool {
        let room = self.events < WINDOW_EVENTS && self.bytes < WINDOW_BYTES;
        let left = self.limits.max_events.is_none_or(|most| self.taken < most);
        let wanted = !self.stopping || self.is_within_begun();
        room && left && wanted && !self.ended
    }

    /// The source has more of a transaction of which the sink has got something: it can be confirmed only as a whole, and what
    /// was delivered would come again.
    fn is_within_begun(&self) -> bool {
        self.source.is_within_transaction() && self.newest.is_some_and(|transaction| transaction <= self.begun)
    }

    fn is_finished(&self) -> bool {
        let no_more = self.ended
            || self.limits.max_events.is_some_and(|most| self.taken >= most)
            || (self.stopping && !self.is_within_begun());
        no_more && self.events == 0 && self.calls == 0 && self.due.is_empty()
    }

    /// Begins nothing any more: what is under way ends, and so do the transactions of which a part is delivered.
    fn stop(&mut self) {
        self.stopping = true;
        self.last_arrival = Instant::now();
        for id in self.lanes.keys().cloned().collect::<Vec<_>>() {
            self.let_go(&id);
        }
    }

    /// Ends with this error once the calls that are under way have ended.
    fn fail(&mut self, error: Error) {
        if self.outcome.is_ok() {
            self.outcome = Err(error);
        }
        self.stopping = true;
        self.ended = true;
        for id in self.lanes.keys().cloned().collect::<Vec<_>>() {
            self.let_go(&id);
            self.let_go_all(&id);
        }
    }

    /// Leaves to the next start what has not been begun of a lane.
    fn let_go(&mut self, id: &LaneId) {
        let begun = self.begun;
        let Some(lane) = self.lanes.get_mut(id) else { return };
        for letter in lane.letters.drain(..) {
            if let Origin::Letter { id, .. } = letter.origin {
                self.due.remove(&id);
            }
        }
        // Another attempt may be far off; those behind must not come before.
        let waits = lane.front == Front::Wait;
        let keep = if waits {
            0
        } else {
            lane.queue.iter().take_while(|task| task.transaction().is_some_and(|number| number <= begun)).count()
        };
        if waits {
            // Its transaction comes again as a whole, so the rest of it is not waited for.
            self.ended = true;
            (lane.front, lane.retry) = (Front::Idle, None);
            self.waits.retain(|(_, waiting)| waiting != id);
        }
        let gone = lane.queue.split_off(keep);
        for task in &gone {
            self.release(task);
        }
        self.wake(id.clone());
    }

    fn let_go_all(&mut self, id: &LaneId) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let gone = std::mem::take(&mut lane.queue);
        for task in &gone {
            self.release(task);
        }
    }
}

#[cfg(test)]
pub(in crate::dispatch) mod tests;
