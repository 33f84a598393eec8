//! For how long a member may deliver: the server keeps its place for the session timeout after it last heard from it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A moment by two clocks. The monotonic one stands still while the machine is suspended, the other may be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Time since then, by the clock that says more.
    pub(crate) fn elapsed(&self) -> Duration {
        self.monotonic.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

/// The right to deliver.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    granted: Arc<Mutex<Option<Granted>>>,
    /// Nobody else may read: there is nothing to run out.
    unlimited: bool,
}

#[derive(Debug)]
struct Granted {
    /// When a message was sent that the server has answered.
    proven: Moment,
    lasts: Duration,
}

impl Lease {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self { granted: Arc::default(), unlimited: false }
    }

    /// For ever.
    pub(crate) fn unlimited() -> Self {
        Self { unlimited: true, ..Self::none() }
    }

    /// The server has answered what was sent then; it keeps the place for `lasts` from then on.
    pub(crate) fn renewed(&self, sent: Moment, lasts: Duration) {
        *self.lock() = Some(Granted { proven: sent, lasts });
    }

    pub(crate) fn revoke(&self) {
        *self.lock() = None;
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.unlimited || self.lock().as_ref().is_some_and(|granted| granted.proven.elapsed() < granted.lasts)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Granted>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
