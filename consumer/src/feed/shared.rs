//! What the task shares with the consumer, and hands over to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use postbox_wire::Lsn;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::sleep;

use crate::event::Event;
use crate::lease::{Lease, Moment};
use crate::progress::Progress;

/// What the task shares with the consumer and with every delivery.
#[derive(Debug)]
pub(crate) struct Shared {
    progress: Mutex<Progress>,
    /// For how long events may be handed out; another one in each term of the member.
    pub(super) lease: Mutex<Lease>,
    /// Nothing is left to be delivered from the table.
    pub(super) backfilled: AtomicBool,
    /// Whoever waits for the lease to be renewed.
    waker: Mutex<Option<Waker>>,
    /// Events handed out, and acknowledged; those that were dropped are among the former alone.
    handed_out: AtomicU64,
    acknowledged: AtomicU64,
    /// Counts connections.
    pub(super) connection: AtomicU64,
    closing: AtomicBool,
    pub(super) ping: AtomicBool,
    /// Tells the task that something above has changed.
    pub(super) wake: Notify,
    /// Tells waiting consumers that a position has risen.
    pub(crate) settled: Notify,
}

/// Events on their way to the application: those of all frames that arrived together, as handing over costs a wake-up.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) connection: u64,
    pub(crate) parts: Vec<Part>,
    pub(crate) room: OwnedSemaphorePermit,
}

/// Events of one frame.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) transaction: u64,
    /// End of the transaction, if it ends with this frame.
    pub(crate) end: Option<Lsn>,
    pub(crate) events: Vec<Event>,
}

impl Shared {
    pub(crate) fn new(lease: Lease) -> Self {
        Self {
            progress: Mutex::default(),
            lease: Mutex::new(lease),
            backfilled: AtomicBool::default(),
            waker: Mutex::default(),
            handed_out: AtomicU64::default(),
            acknowledged: AtomicU64::default(),
            connection: AtomicU64::default(),
            closing: AtomicBool::default(),
            ping: AtomicBool::default(),
            wake: Notify::default(),
            settled: Notify::default(),
        }
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        // Every method leaves the positions consistent, so a panic elsewhere does not spoil them.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event of each of these transactions is acknowledged. Together they cost one wake-up of the task.
    pub(crate) fn acknowledge(&self, transactions: &[u64]) {
        self.acknowledged.fetch_add(transactions.len() as u64, Ordering::Relaxed);
        let (rose, idle) = {
            let mut progress = self.progress();
            let mut rose = false;
            for transaction in transactions {
                rose |= progress.acknowledge(*transaction);
            }
            (rose, progress.is_idle())
        };
        if rose || idle {
            self.wake.notify_one();
            self.settled.notify_waiters();
        }
    }

    pub(crate) fn lease(&self) -> Lease {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The server has answered what was sent then.
    pub(crate) fn renew_lease(&self, sent: Moment) {
        self.lease().renewed(sent);
        self.wake_leased();
    }

    pub(crate) fn wake_when_leased(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    pub(super) fn wake_leased(&self) {
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }

    pub(crate) fn hand_out(&self) {
        self.handed_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until what has been handed out is acknowledged.
    pub(super) async fn all_acknowledged(&self) {
        while self.acknowledged.load(Ordering::Relaxed) < self.handed_out.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn is_backfilled(&self) -> bool {
        self.backfilled.load(Ordering::Relaxed)
    }

    /// Asks the server how far it is.
    pub(crate) fn ping(&self) {
        self.ping.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// True if events of this connection still count: it is the present one.
    pub(crate) fn is_current(&self, connection: u64) -> bool {
        self.connection.load(Ordering::Relaxed) == connection
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits until the consumer is closed.
    pub(super) async fn closed(&self) {
        while !self.is_closing() {
            self.wake.notified().await;
        }
    }
}
