//! How a sink that takes events one by one is called, and what becomes of those that fail.

use std::time::Duration;

use crate::backoff;

/// How the sink is called.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Most calls at once.
    pub(crate) concurrency: usize,
    pub(crate) keyless: Keyless,
    /// The wait after the first failure is up to this, then twice, and so on.
    pub(crate) retry_initial: Duration,
    pub(crate) retry_max: Duration,
    /// So many failures make a dead letter.
    pub(crate) max_attempts: u32,
    /// So does the first failure so long after the first.
    pub(crate) max_retry_time: Duration,
    pub(crate) on_failure: Policy,
    /// A call that takes longer has failed.
    pub(crate) max_processing: Duration,
}

/// Events without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keyless {
    /// In any order.
    Any,
    /// One after the other, as if they had a key.
    OneLane,
}

/// What becomes of the key of an event that has failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// It goes on.
    Skip,
    /// Its later events are stored behind, until somebody redrives or discards what lies there.
    Park,
    /// As `Park`, and the stored event is tried again by itself for ever.
    Pause,
}

impl Settings {
    /// The wait after so many failures.
    pub(super) fn backoff(&self, attempts: u32) -> Duration {
        backoff::wait(self.retry_initial, self.retry_max, attempts.saturating_sub(1))
    }

    pub(super) fn keeps_order(&self) -> bool {
        self.on_failure != Policy::Skip
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 1,
            keyless: Keyless::Any,
            retry_initial: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            max_attempts: 10,
            max_retry_time: Duration::from_secs(60),
            on_failure: Policy::Skip,
            max_processing: Duration::from_secs(300),
        }
    }
}
