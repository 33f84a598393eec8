//! The task that keeps the connection to the slot: frames in, confirmations out, and a new connection when it breaks.
//!
//! ```text
//! place (of a group) ──► stored events ──► link to the slot ──► stream ──► queue ──► the application
//!        ▲                                       ▲   broken        │ confirmed positions ──► the server
//!        └─────────── place lost ────────────────┴─────────────────┘
//! ```

mod link;
mod shared;
mod stored;
mod stream;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::backfill::Backfill;
use crate::backoff::Backoff;
use crate::consumer::{Builder, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::Lease;
use crate::member::{Lost, Membership, Place, can_recover};
use crate::progress::Server;
use crate::slot;
use crate::transport::{ConnInfo, connect_own};
pub(crate) use link::Link;
pub(crate) use shared::{Batch, Part, Shared};

/// What is read.
pub(crate) enum Reader {
    Slot(String),
    Group(Box<Membership>, Option<Box<Place>>),
}

/// The task's state.
pub(crate) struct Feed {
    info: ConnInfo,
    reader: Reader,
    builder: Builder,
    shared: Arc<Shared>,
    /// The position asked for is reached: the rest of the stream is not for us.
    ended: bool,
    /// Dropped when the stream has ended for the application too.
    batches: Option<mpsc::UnboundedSender<Result<Batch>>>,
    room: Arc<Semaphore>,
    queue_bytes: u32,
    /// Reset when a connection has proved good, so that one that breaks at once is not tried without end.
    backoff: Backoff,
}

/// What a semaphore can count on every platform.
const MOST_QUEUE_BYTES: u32 = u32::MAX >> 3;

/// Frames are handed over together up to about so many bytes.
const TOGETHER_BYTES: usize = 256 << 10;

impl Feed {
    /// Looks at the slot, connects, and starts replication; for a group, once there is no other active member. What comes from
    /// the table comes first, so then there is no link yet. The link is what [`run`](Self::run) begins with.
    pub(crate) async fn open(
        info: ConnInfo,
        source: Source,
        builder: Builder,
    ) -> Result<(Self, Option<Link>, Arc<Shared>, mpsc::UnboundedReceiver<Result<Batch>>)> {
        let (lease, reader) = match source {
            Source::Slot(slot) => (Lease::unlimited(), Reader::Slot(slot)),
            Source::Group(group) => {
                let membership = Box::new(builder.membership(info.clone(), group));
                (membership.lease(), Reader::Group(membership, None))
            }
        };
        let shared = Arc::new(Shared::new(lease));
        let (sender, batches) = mpsc::unbounded_channel();
        let queue_bytes = u32::try_from(builder.queue_bytes).unwrap_or(u32::MAX).clamp(1, MOST_QUEUE_BYTES);
        let mut feed = Self {
            info,
            reader,
            builder,
            shared: Arc::clone(&shared),
            ended: false,
            batches: Some(sender),
            room: Arc::new(Semaphore::new(queue_bytes as usize)),
            queue_bytes,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
        };
        feed.take_place().await?;
        let link = if feed.backfills().iter().all(|backfill| backfill.finished) {
            Some(feed.wait_for_link().await?)
        } else {
            None
        };
        Ok((feed, link, shared, batches))
    }

    /// Runs until the consumer is closed or nothing more can be delivered. An error goes to the application as the last item of
    /// the stream, or is the result if the application has left the stream.
    pub(crate) async fn run(mut self, link: Option<Link>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let result = self.deliver(link).await;
        if let Reader::Group(_, place) = &mut self.reader
            && let Some(place) = place.take()
        {
            place.release().await;
        }
        shared.settled.notify_waiters();
        result
    }

    async fn deliver(&mut self, mut link: Option<Link>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut again = false;
        let mut last = None;
        loop {
            let connected = link.is_some();
            let error = match link.take() {
                Some(mut link) => {
                    again = true;
                    match self.stream(&mut link).await {
                        Ok(()) => return self.end(link).await,
                        // The server frees the slot once the connection is closed.
                        Err(error) => error,
                    }
                }
                None => match self.attach(again).await {
                    Ok(Some(another)) => {
                        link = Some(another);
                        continue;
                    }
                    Ok(None) => return last.map_or(Ok(()), Err),
                    Err(error) => error,
                },
            };
            // What was confirmed last may be lost with the link; then it comes again.
            if shared.is_closing() {
                return Err(error);
            }
            let error = match &self.reader {
                // What can be done about it is decided where the place is taken anew.
                Reader::Group(membership, place) if can_recover(&error) => {
                    let lost = Lost::CutOff(error.chain()).into_error(&membership.group);
                    if let (ErrorKind::SlotInvalidated, Some(place)) = (error.kind(), place) {
                        membership.doubt.raise(&place.slot_name, error);
                    }
                    lost
                }
                _ => error,
            };
            if error.kind() == ErrorKind::PlaceLost && !self.builder.one_term {
                self.tell_lost(&error);
                last = None;
                match self.stand_by().await {
                    Ok(true) => continue,
                    Ok(false) => return Ok(()),
                    Err(error) => return self.give_up(error),
                }
            }
            // The server may not have noticed yet that our own former connection is gone.
            if !error.is_transient() && error.kind() != ErrorKind::SlotInUse {
                return self.give_up(error);
            }
            warn!("{}: {}", if connected { "lost the connection" } else { "cannot connect yet" }, error.chain());
            let lost = self.lost();
            tokio::select! {
                () = sleep(self.backoff.next()) => {}
                // Seen at the next attempt.
                _ = lost => {}
                () = shared.closed() => return Err(error),
            }
            last = Some(error);
        }
    }

    /// A link after the former one. What that has brought may be delivered and acknowledged until then, and comes again if it is not. What is
    /// to come from the table is delivered before the first link. None if the consumer is closed meanwhile.
    async fn attach(&mut self, again: bool) -> Result<Option<Link>> {
        let shared = Arc::clone(&self.shared);
        let (lost, stuck) = (self.lost(), self.stuck());
        tokio::select! {
            link = async {
                self.backfill().await?;
                let link = self.wait_for_link().await?;
                if again {
                    // The server that was gone may have let go of our lock as well, and another member may wait for the slot.
                    if let Reader::Group(_, Some(place)) = &self.reader {
                        place.still_held().await?;
                    }
                    info!("connected again");
                }
                self.forget_link();
                Ok(Some(link))
            } => link,
            error = lost => Err(error),
            error = stuck => Err(error),
            () = shared.closed() => Ok(None),
        }
    }

    /// From here on nothing that came before counts.
    fn forget_link(&self) {
        self.shared.connection.fetch_add(1, Ordering::Relaxed);
        self.shared.progress().reconnected();
    }

    /// After the place was lost: waits until it is this process's turn again. False if the consumer is closed meanwhile.
    async fn stand_by(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        shared.lease().revoke();
        if let Reader::Group(membership, place) = &mut self.reader {
            *place = None;
            *shared.lease.lock().unwrap_or_else(PoisonError::into_inner) = membership.lease();
        }
        self.forget_link();
        shared.wake_leased();
        // What ends each term at once would end them without a pause.
        tokio::select! {
            () = sleep(self.backoff.next()) => {}
            () = shared.closed() => return Ok(false),
        }
        loop {
            let error = tokio::select! {
                taken = self.take_place() => match taken {
                    Ok(()) => return Ok(true),
                    Err(error) => error,
                },
                () = shared.closed() => return Ok(false),
            };
            if !error.is_transient() {
                return Err(error);
            }
            warn!("cannot connect yet: {}", error.chain());
            tokio::select! {
                () = sleep(self.backoff.next()) => {}
                () = shared.closed() => return Ok(false),
            }
        }
    }

    /// Waits until this process is the group's active member.
    async fn take_place(&mut self) -> Result<()> {
        let Reader::Group(membership, place) = &mut self.reader else { return Ok(()) };
        let taken = membership.acquire(&self.shared).await?;
        self.builder.options.outboxes = Some(taken.selectors.clone());
        let backfilled = taken.backfills.iter().all(|backfill| backfill.finished);
        self.shared.backfilled.store(backfilled, Ordering::Relaxed);
        *place = Some(Box::new(taken));
        Ok(())
    }

    /// The group and the epoch in which this process is its active member.
    pub(crate) fn term(&self) -> Option<(String, i64)> {
        match &self.reader {
            Reader::Group(membership, Some(place)) => Some((membership.group.clone(), place.epoch)),
            _ => None,
        }
    }

    fn backfills(&self) -> &[Backfill] {
        match &self.reader {
            Reader::Group(_, Some(place)) => &place.backfills,
            _ => &[],
        }
    }

    /// A link to the slot. Waits for a while if it is in use: that of a consumer that was killed is freed only when the server notices.
    async fn wait_for_link(&self) -> Result<Link> {
        let (slot, most, session_timeout) = match &self.reader {
            Reader::Slot(slot) => (slot, self.builder.slot_wait, None),
            Reader::Group(membership, Some(place)) => {
                let timeout = membership.session_timeout;
                (&place.slot_name, self.builder.slot_wait.max(2 * timeout), Some(timeout))
            }
            Reader::Group(membership, None) => return Err(Lost::Replaced.into_error(&membership.group)),
        };
        let sql = connect_own(&self.info).await?;
        let state = slot::inspect(&sql, slot).await?;
        self.builder.check_source(&state)?;
        let deadline = Instant::now() + most;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match Link::open(&self.info, &state, &self.builder.options, session_timeout).await {
                Err(error) if error.kind() == ErrorKind::SlotInUse => {
                    let error = slot::explain_in_use(&sql, slot).await;
                    if Instant::now() >= deadline {
                        return Err(error);
                    }
                    info!("waiting for the slot: {error}");
                    sleep(backoff.next()).await;
                }
                Err(error) => return Err(slot::explain(&sql, slot, error).await),
                Ok(link) => {
                    self.compare(link.server)?;
                    return Ok(link);
                }
            }
        }
    }

    /// Looks whether a link leads to the server whose positions are known.
    fn compare(&self, server: Server) -> Result<()> {
        let mut progress = self.shared.progress();
        let (system, timeline) = server;
        match &self.reader {
            // Whether the group's position means anything there is found out when the place is taken anew.
            Reader::Group(membership, _) if progress.server() != Some(server) => {
                let why = format!("the server is another one: timeline {timeline}");
                return Err(Lost::CutOff(why).into_error(&membership.group));
            }
            Reader::Slot(_) if !progress.is_at(server) => {
                warn!("the server is another one: system {system} timeline {timeline}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Whoever delivers says only that the place is lost. The heartbeat says itself why it was.
    fn tell_lost(&self, error: &Error) {
        if !matches!(&self.reader, Reader::Group(_, Some(place)) if place.is_lost()) {
            warn!("{}", error.chain());
        }
    }

    fn give_up(&mut self, mut error: Error) -> Result<()> {
        if error.kind() == ErrorKind::PlaceLost {
            self.tell_lost(&error);
            self.shared.lease().revoke();
            error = Error::place_lost();
        }
        if matches!(error.kind(), ErrorKind::PlaceLost | ErrorKind::Stuck) {
            // What waits may not be delivered any more.
            self.shared.connection.fetch_add(1, Ordering::Relaxed);
            self.shared.wake_leased();
        }
        match self.batches.take().map(|batches| batches.send(Err(error))) {
            Some(Err(mpsc::error::SendError(Err(error)))) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Room in the queue for what waits. More than the whole queue is let through alone.
async fn room(queue: Arc<Semaphore>, bytes: usize, most: u32) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(most);
    match queue.acquire_many_owned(bytes).await {
        Ok(room) => room,
        // The semaphore is never closed.
        Err(_) => std::future::pending().await,
    }
}
