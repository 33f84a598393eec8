//! Dead letters: what the sink is not to get, or has failed for good, is stored; what is due is taken up again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Done, Engine, Settled};
use crate::dead_letter::{DeadLetters, DueLetter, NewLetter, Why};
use crate::dispatch::lane::{Front, LaneId};
use crate::dispatch::settings::{Keyless, Policy, Settings};
use crate::dispatch::{Origin, POLL, Source, Task, name};
use crate::error::{Error, ErrorKind};
use crate::sink::EventSink;

/// Most events that are stored together behind others of their key.
const STORE_EVENTS: usize = 256;
const STORE_BYTES: usize = 4 << 20;

/// With so many dead letters in hand no others are asked for.
const DUE_LETTERS: usize = 64;

impl<S: Source, K: EventSink, D: DeadLetters> Engine<'_, S, K, D> {
    /// Stores the front of a lane's queue, which the sink is not to get; with it what lies behind in the queue, if the lane is parked.
    pub(super) fn store_front(&mut self, id: LaneId) {
        let behind = self.parked.contains(&id);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let (mut tasks, mut letters, mut bytes) = (Vec::new(), Vec::new(), 0);
        while (letters.is_empty() || (behind && letters.len() < STORE_EVENTS && bytes < STORE_BYTES))
            && let Some(task) = lane.queue.pop_front()
        {
            bytes += task.event.size();
            letters.push(match task.event.error.as_deref() {
                Some(error) => NewLetter {
                    error: Some(format!("{}: {}", error.code.name(), error.detail)),
                    ..NewLetter::new(&task.event, Why::Unreadable)
                },
                None => NewLetter::new(&task.event, Why::Follower),
            });
            tasks.push(task);
        }
        self.store(id, tasks, letters, behind);
    }

    /// `behind`: only if others of the key lie there still.
    pub(super) fn store(&mut self, id: LaneId, tasks: Vec<Task>, letters: Vec<NewLetter>, behind: bool) {
        for letter in letters.iter().filter(|letter| letter.why != Why::Follower) {
            let error = letter.error.as_deref().unwrap_or_default();
            warn!(attempts = letter.attempts, "{} is a dead letter: {error}", name(&letter.event));
        }
        let Some(store) = self.letters.clone() else {
            let what = letters.first().map(|letter| (name(&letter.event), letter.error.clone().unwrap_or_default()));
            let (name, error) = what.unwrap_or_default();
            tasks.iter().for_each(|task| self.release(task));
            let error = Error::new(ErrorKind::Sink, format!("{name} could not be delivered: {error}"));
            self.fail(error.with_hint(
                "It comes again at the next start, and holds up all behind it. With --group it would go to the dead letters.",
            ));
            return;
        };
        if let Some(lane) = self.lanes.get_mut(&id) {
            (lane.front, lane.retry) = (Front::Store, None);
        }
        self.running.push(Box::pin(async move {
            let outcome = store.store(letters, behind).await;
            Done::Stored { lane: id, tasks, outcome }
        }));
    }

    /// `stored`: false if nothing of the key lies there any more, so that these events go to the sink after all.
    pub(super) fn stored(&mut self, id: &LaneId, tasks: Vec<Task>, stored: bool) {
        if stored && self.settings.keeps_order() && !matches!(id, LaneId::Own(_)) {
            self.parked.insert(id.clone());
        }
        if !stored {
            self.parked.remove(id);
        }
        let Some(lane) = self.lanes.get_mut(id) else { return };
        lane.front = Front::Idle;
        if stored {
            tasks.into_iter().for_each(|task| self.complete(task));
            return;
        }
        for task in tasks.into_iter().rev() {
            lane.queue.push_front(task);
        }
        if self.stopping {
            self.let_go(id);
        }
    }

    /// Whether more dead letters would be taken in hand.
    pub(super) fn may_poll(&self) -> bool {
        !self.polling && !self.stopping && self.due.len() < DUE_LETTERS
    }

    /// Asks for the dead letters that are due.
    pub(super) fn poll(&mut self) {
        if !self.may_poll() || Instant::now() < self.poll_at {
            return;
        }
        self.poll_at = Instant::now() + POLL;
        let Some(letters) = self.letters.clone() else { return };
        self.polling = true;
        let busy = self.due.iter().copied().collect();
        let (in_order, keyless) = (self.settings.keeps_order(), self.settings.keyless == Keyless::OneLane);
        self.running.push(Box::pin(async move { Done::Due(letters.due(in_order, keyless, busy).await) }));
    }

    pub(super) fn take_letter(&mut self, letter: DueLetter) {
        let DueLetter { id, attempts, event } = letter;
        if self.stopping || !self.due.insert(id) {
            return;
        }
        let lane = self.lane_of(&event);
        let task = Task { event, origin: Origin::Letter { id, attempts } };
        self.lanes.entry(lane.clone()).or_default().letters.push_back(task);
        self.wake(lane);
    }

    /// Writes down what has become of a dead letter.
    pub(super) fn settle(&mut self, lane: LaneId, id: i64, attempts: u32, outcome: Result<(), String>) {
        let Some(letters) = self.letters.clone() else { return };
        let again = again(&self.settings, attempts);
        match &outcome {
            Ok(()) => info!(id, attempts, "delivered a dead letter"),
            Err(error) => warn!(id, attempts, "a dead letter failed again: {error}"),
        }
        self.running.push(Box::pin(async move {
            let outcome = match outcome {
                Ok(()) => letters.delivered(id).await.map(|left| Settled::Delivered { left }),
                Err(error) => letters.failed(id, error, again).await.map(|()| Settled::Failed { again }),
            };
            Done::Settled { lane, id, outcome }
        }));
    }

    pub(super) fn settled(&mut self, id: &LaneId, letter: i64, settled: Settled) {
        self.due.remove(&letter);
        match settled {
            Settled::Delivered { left: true } => self.poll_at = Instant::now(),
            Settled::Delivered { left: false } => drop(self.parked.remove(id)),
            Settled::Failed { again } => {
                let again = again.map_or(self.poll_at, |wait| Instant::now() + wait);
                self.poll_at = self.poll_at.min(again);
            }
        }
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.letter = false;
        }
    }
}

/// When a stored event is tried again by itself.
pub(super) fn again(settings: &Settings, attempts: u32) -> Option<Duration> {
    (settings.on_failure == Policy::Pause).then(|| settings.backoff(attempts))
}
