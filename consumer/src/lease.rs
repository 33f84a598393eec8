//! How long a member may deliver: as long as the server cannot have given it up.
//!
//! The server gives up a member that it has not heard of for `timeout`. What was sent at some moment and has been answered
//! was heard after that moment; so until `timeout` later nobody else has the group, and until `margin` before that there is time
//! to deliver something.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

/// Leave to deliver. Clones are the same lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// How long after a message that is answered; none: without limit.
    lasts: Option<Duration>,
    state: Mutex<State>,
    /// A renewal or the revocation, for threads and for tasks.
    changed: Condvar,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    renewed: Option<Moment>,
    suspended: bool,
    revoked: bool,
}

/// A moment by two clocks. The monotonic one stands still while the machine is suspended; the other may be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// The time since then by the clock that says more.
    pub(crate) fn elapsed(self, now: Self) -> Duration {
        let wall = now.wall.duration_since(self.wall).unwrap_or_default();
        now.monotonic.saturating_duration_since(self.monotonic).max(wall)
    }
}

impl Lease {
    /// A lease that ends only when it is revoked.
    pub(crate) fn unlimited() -> Self {
        Self::lasting(None)
    }

    /// A lease that ends `margin` before `timeout` after the last message that was answered. It begins with the first.
    pub(crate) fn new(timeout: Duration, margin: Duration) -> Self {
        Self::lasting(Some(timeout.saturating_sub(margin)))
    }

    fn lasting(lasts: Option<Duration>) -> Self {
        let inner = Inner { lasts, state: Mutex::default(), changed: Condvar::new(), notify: Notify::new() };
        Self(Arc::new(inner))
    }

    /// A message to the server that was sent at this moment has been answered.
    pub(crate) fn renewed(&self, sent: Moment) {
        let mut state = self.state();
        // Answers may be looked at out of order.
        if state.renewed.is_none_or(|before| before.monotonic < sent.monotonic) {
            state.renewed = Some(sent);
        }
        drop(state);
        self.tell();
    }

    /// Nothing may be begun any more; what is under way may come to its end, as long as the lease lasts.
    pub(crate) fn suspend(&self) {
        self.state().suspended = true;
    }

    /// Ends the lease for good.
    pub(crate) fn revoke(&self) {
        self.state().revoked = true;
        self.tell();
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.state().revoked
    }

    /// True if something may be delivered now.
    pub(crate) fn is_valid(&self) -> bool {
        let state = self.state();
        !state.suspended && self.holds(&state, Moment::now)
    }

    /// True if what is under way may come to its end now.
    pub(crate) fn may_finish(&self) -> bool {
        self.holds(&self.state(), Moment::now)
    }

    /// Waits until something may be delivered: for ever, once the lease is revoked.
    pub(crate) async fn valid(&self) {
        loop {
            let changed = self.0.notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_valid() {
                return;
            }
            // Only a renewal makes it valid again.
            changed.await;
        }
    }

    /// Waits until the lease is revoked.
    pub(crate) async fn revoked(&self) {
        loop {
            let changed = self.0.notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_revoked() {
                return;
            }
            changed.await;
        }
    }

    /// Waits, on a thread that may block, until what is under way may go on. False: the lease is revoked.
    pub(crate) fn wait_to_finish(&self) -> bool {
        let mut state = self.state();
        while !state.revoked && !self.holds(&state, Moment::now) {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.revoked
    }

    fn holds(&self, state: &State, now: impl FnOnce() -> Moment) -> bool {
        if state.revoked {
            return false;
        }
        let Some(lasts) = self.0.lasts else { return true };
        state.renewed.is_some_and(|sent| sent.elapsed(now()) <= lasts)
    }

    fn tell(&self) {
        self.0.changed.notify_all();
        self.0.notify.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn holds(lease: &Lease, now: Moment) -> bool {
        lease.holds(&lease.state(), || now)
    }

    #[test]
    fn a_lease_ends_the_margin_before_the_timeout_by_either_clock() {
        let lease = Lease::new(10 * SECOND, 2 * SECOND);
        let sent = Moment::now();
        let after = |monotonic, wall| Moment { monotonic: sent.monotonic + monotonic, wall: sent.wall + wall };
        assert!(!holds(&lease, sent), "nothing was answered yet");
        lease.renewed(sent);
        assert!(holds(&lease, after(8 * SECOND, 8 * SECOND)));
        let late = 8 * SECOND + Duration::from_millis(1);
        assert!(!holds(&lease, after(late, SECOND)), "the wall clock was set back");
        assert!(!holds(&lease, after(SECOND, late)), "the machine was suspended");
        let set_back = Moment { monotonic: sent.monotonic + SECOND, wall: sent.wall - 3600 * SECOND };
        assert!(holds(&lease, set_back));
        lease.renewed(after(5 * SECOND, 5 * SECOND));
        lease.renewed(after(SECOND, SECOND));
        assert!(holds(&lease, after(13 * SECOND, 13 * SECOND)), "an answer that came late took nothing back");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_a_renewal_and_never_after_the_revocation() {
        let lease = Lease::new(10 * SECOND, SECOND);
        assert!(!lease.is_valid());
        let waiting = tokio::spawn({
            let lease = lease.clone();
            async move { lease.valid().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        lease.renewed(Moment::now());
        waiting.await.expect("valid again");
        assert!(lease.is_valid() && lease.wait_to_finish());

        lease.revoke();
        lease.renewed(Moment::now());
        assert!(!lease.is_valid() && lease.is_revoked() && !lease.wait_to_finish());
        assert!(tokio::time::timeout(3600 * SECOND, lease.valid()).await.is_err());
        lease.revoked().await;

        let lease = Lease::unlimited();
        assert!(lease.is_valid());
        lease.suspend();
        assert!(!lease.is_valid() && lease.may_finish() && lease.wait_to_finish());
        lease.revoke();
        assert!(!lease.is_valid() && !lease.may_finish());
    }
}
