//! When to look for messages: of the hands that have nothing to do one looks, and those behind it wait for their turn.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::time::sleep;

/// The first wait after nothing was found.
const FIRST: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Turn {
    gate: Mutex<Duration>,
    hint: Notify,
    /// A tier has a pace of its own, and hints say nothing of tiers.
    paced: bool,
    most: Duration,
}

/// The right to look next.
#[derive(Debug)]
pub(super) struct Look<'a> {
    turn: &'a Turn,
    wait: MutexGuard<'a, Duration>,
}

impl Turn {
    /// Waits grow up to `most`, and hints end them.
    pub(super) fn growing(most: Duration) -> Self {
        Self { gate: Mutex::new(Duration::ZERO), hint: Notify::new(), paced: false, most }
    }

    /// Looks every `pace` as long as nothing is found.
    pub(super) fn paced(pace: Duration) -> Self {
        Self { gate: Mutex::new(Duration::ZERO), hint: Notify::new(), paced: true, most: pace }
    }

    /// There may be something.
    pub(super) fn hint(&self) {
        if !self.paced {
            self.hint.notify_one();
        }
    }

    pub(super) async fn come(&self) -> Look<'_> {
        Look { turn: self, wait: self.gate.lock().await }
    }
}

impl Look<'_> {
    pub(super) async fn due(&self) {
        tokio::select! {
            () = sleep(*self.wait) => (),
            () = self.turn.hint.notified(), if !self.wait.is_zero() => (),
        }
    }

    /// What was found says when the next one looks.
    pub(super) fn done(&mut self, found: bool) {
        let Turn { paced, most, .. } = *self.turn;
        *self.wait = match (found, paced) {
            (true, _) => Duration::ZERO,
            (false, true) => most,
            (false, false) => (*self.wait * 2).max(FIRST).min(most),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_a_hint_or_a_find_ends_them() {
        let turn = Turn::growing(Duration::from_millis(100));
        let mut look = turn.come().await;
        let mut waits = Vec::new();
        for found in [false, false, false, false, true, false] {
            let begin = Instant::now();
            look.due().await;
            waits.push(begin.elapsed().as_millis());
            look.done(found);
        }
        assert_eq!(waits, [0, 20, 40, 80, 100, 0]);
        turn.hint();
        let begin = Instant::now();
        look.due().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept_whatever_is_hinted() {
        let turn = Turn::paced(Duration::from_secs(30));
        let mut look = turn.come().await;
        look.due().await;
        look.done(false);
        turn.hint();
        let begin = Instant::now();
        look.due().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(30));
        look.done(true);
        look.due().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(30));
    }
}
