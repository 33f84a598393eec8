//! What a hand has of the inbox at the moment, seen by the hand and by the keeper.

use std::time::Duration;

use tokio::sync::watch;

use crate::lease::Moment;

/// The messages of one claim that are not done with.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) token: i64,
    pub(super) left: Vec<String>,
    /// Since when nobody else is handed them, for as long as they are invisible.
    pub(super) since: Moment,
    /// The hand is telling the server what became of one of them.
    pub(super) settling: bool,
}

impl Lease {
    /// How much of the time is over in which nobody else is handed them.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed(Moment::now())
    }
}

#[derive(Debug)]
pub(super) struct Held(watch::Sender<Lease>);

impl Held {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Lease { token: 0, left: Vec::new(), since: Moment::now(), settling: false }))
    }

    pub(super) fn take(&self, token: i64, left: Vec<String>, since: Moment) {
        self.0.send_replace(Lease { token, left, since, settling: false });
    }

    pub(super) fn lease(&self) -> Lease {
        self.0.borrow().clone()
    }

    pub(super) fn has(&self, event_id: &str) -> bool {
        self.0.borrow().left.iter().any(|id| id == event_id)
    }

    /// Waits until the message is not ours any more.
    pub(super) async fn lost(&self, event_id: &str) {
        // The sender is ours, so there is no other end of this.
        let _ = self.0.subscribe().wait_for(|lease| !lease.left.iter().any(|id| id == event_id)).await;
    }

    pub(super) fn settle(&self) {
        self.0.send_modify(|lease| lease.settling = true);
    }

    /// It is worked on again.
    pub(super) fn resume(&self) {
        self.0.send_modify(|lease| lease.settling = false);
    }

    pub(super) fn settled(&self, event_id: &str) {
        self.0.send_modify(|lease| {
            lease.settling = false;
            lease.left.retain(|id| id != event_id);
        });
    }

    /// The lease of all that is left begins anew.
    pub(super) fn extended(&self, token: i64, since: Moment) {
        self.0.send_modify(|lease| {
            if lease.token == token {
                lease.since = since;
            }
        });
    }

    /// The server has handed it to somebody else, or may have.
    pub(super) fn lose(&self, token: i64, event_id: &str) {
        self.0.send_modify(|lease| {
            if lease.token == token && !lease.settling {
                lease.left.retain(|id| id != event_id);
            }
        });
    }
}
