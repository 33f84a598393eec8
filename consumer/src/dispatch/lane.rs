//! A lane: what is to be delivered one after the other.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytestring::ByteString;
use tokio::time::Instant;

use super::Task;

/// Which lane an event belongs to. A key has one lane, whichever outbox its events come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum LaneId {
    Key(ByteString),
    /// All events without a key.
    Keyless,
    /// A single event without a key.
    Own(u64),
}

/// What is in hand for one lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Events that nobody has stored yet, in order.
    pub(super) queue: VecDeque<Task>,
    /// What goes on with the front of the queue.
    pub(super) front: Front,
    /// Failed attempts at the front of the queue.
    pub(super) retry: Option<Retry>,
    /// Stored events whose turn it is: before those of the queue.
    pub(super) letters: VecDeque<Task>,
    /// One of them is being delivered, or its outcome is being written down.
    pub(super) letter: bool,
    /// The lane stands in line for the sink.
    pub(super) in_line: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Front {
    #[default]
    Idle,
    /// The sink has it.
    Attempt,
    /// It is tried again later.
    Wait,
    /// It is being stored, perhaps with others behind it.
    Store,
}

/// Attempts that have failed.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) attempts: u32,
    pub(super) error: String,
    pub(super) since: Instant,
    pub(super) first_failed: SystemTime,
}

/// What a lane needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// A call of the sink, for a stored event.
    Letter,
    /// A call of the sink, for the front of the queue.
    Attempt,
    /// The front of the queue can only be stored.
    Store,
}

impl Lane {
    /// `parked`: events of the lane lie among the dead letters, and later ones go behind them.
    pub(super) fn need(&self, parked: bool) -> Need {
        let front = self.queue.front().filter(|_| self.front == Front::Idle);
        if front.is_some_and(|task| parked || task.event.error.is_some()) {
            return Need::Store;
        }
        // One call of the sink at a time, and stored events first.
        if self.letter || matches!(self.front, Front::Attempt | Front::Wait) {
            return Need::Nothing;
        }
        match (self.letters.is_empty(), front) {
            (false, _) => Need::Letter,
            (true, Some(_)) => Need::Attempt,
            (true, None) => Need::Nothing,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.letters.is_empty() && !self.letter && self.front == Front::Idle
    }

    /// True if an event that joins the queue now has to wait.
    pub(super) fn is_busy(&self) -> bool {
        !self.is_empty()
    }
}

impl Retry {
    /// How long to wait before another attempt; none: there is to be none.
    pub(super) fn wait(&self, settings: &super::settings::Settings) -> Option<Duration> {
        let left = settings.max_retry_time.saturating_sub(self.since.elapsed());
        (self.attempts < settings.max_attempts && !left.is_zero()).then(|| settings.backoff(self.attempts).min(left))
    }
}
