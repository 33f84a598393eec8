//! What a hand has of the inbox at the moment, seen by the hand and by the keeper.

use std::time::Instant;

use tokio::sync::watch;

use super::InboxMessage;

/// The messages of one claim that are not done with.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) token: i64,
    pub(super) left: Vec<String>,
    /// Nobody else is handed them before.
    pub(super) until: Instant,
    /// The hand is telling the server what became of one of them.
    pub(super) settling: bool,
}

#[derive(Debug)]
pub(super) struct Held(watch::Sender<Lease>);

impl Held {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Lease { token: 0, left: Vec::new(), until: Instant::now(), settling: false }))
    }

    pub(super) fn take(&self, messages: &[InboxMessage], until: Instant) {
        let token = messages.first().map_or(0, |message| message.token);
        let left = messages.iter().map(|message| message.event_id.to_string()).collect();
        self.0.send_replace(Lease { token, left, until, settling: false });
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

    pub(super) fn settled(&self, event_id: &str) {
        self.0.send_modify(|lease| {
            lease.settling = false;
            lease.left.retain(|id| id != event_id);
        });
    }

    /// The server has said how long the lease of all that is left holds.
    pub(super) fn extended(&self, token: i64, until: Instant) {
        self.0.send_modify(|lease| {
            if lease.token == token {
                lease.until = until;
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
