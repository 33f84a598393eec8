//! The task that keeps the connection to the slot: frames in, confirmations out, and a new connection when it breaks.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use postbox_wire::{Claims, ErrorCode, Lsn, Options};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::backfill::{Backfill, Chunk, FIRST_ROWS};
use crate::backoff::Backoff;
use crate::claim::ClaimReader;
use crate::consumer::{Builder, Source};
use crate::decode::{self, FrameReader};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ClaimChunk, Event, EventError};
use crate::failpoint;
use crate::lease::{Lease, Moment};
use crate::member::{Lost, Membership, Place, can_recover};
use crate::pgoutput;
use crate::progress::{Progress, Server};
use crate::slot::{self, SlotState};
use crate::transport::{ConnInfo, CopyBoth, Received, Replication, Status, SystemId, connect_sql};

/// What the task shares with the consumer and with every delivery.
#[derive(Debug)]
pub(crate) struct Shared {
    progress: Mutex<Progress>,
    /// For how long events may be handed out; another one in each term of the member.
    lease: Mutex<Lease>,
    /// Nothing is left to be delivered from the table.
    backfilled: AtomicBool,
    /// Whoever waits for the lease to be renewed.
    waker: Mutex<Option<Waker>>,
    /// Events handed out, and acknowledged; those that were dropped are among the former alone.
    handed_out: AtomicU64,
    acknowledged: AtomicU64,
    /// Counts connections.
    connection: AtomicU64,
    closing: AtomicBool,
    ping: AtomicBool,
    /// Tells the task that something above has changed.
    wake: Notify,
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

    pub(crate) fn acknowledge(&self, transaction: u64) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        let (rose, idle) = {
            let mut progress = self.progress();
            (progress.acknowledge(transaction), progress.is_idle())
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

    fn wake_leased(&self) {
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }

    pub(crate) fn hand_out(&self) {
        self.handed_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until what has been handed out is acknowledged.
    async fn all_acknowledged(&self) {
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

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits until the consumer is closed.
    async fn closed(&self) {
        while !self.is_closing() {
            self.wake.notified().await;
        }
    }
}

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

/// One connection. Dropping it closes it.
pub(crate) struct Link {
    stream: CopyBoth,
    reader: StreamReader,
    server: Server,
    /// How often the server hears from us, whatever happens.
    heartbeat: Duration,
    /// Without a sign of life for so long, the server counts as gone.
    patience: Duration,
}

/// What the bytes of a stream mean, by the plugin of its slot.
enum StreamReader {
    Frames(FrameReader),
    Pgoutput(Box<pgoutput::Reader>),
}

impl StreamReader {
    /// The events of what has come; none if they are not whole yet, or there are none.
    async fn read(&mut self, bytes: &Bytes) -> Result<Option<decode::Received>> {
        match self {
            Self::Frames(reader) => reader.read(bytes).map(Some),
            Self::Pgoutput(reader) => reader.read(bytes).await,
        }
    }
}

/// What a semaphore can count on every platform.
const MOST_QUEUE_BYTES: u32 = u32::MAX >> 3;

/// What has been received and has no room in the queue yet.
#[derive(Default)]
struct Waiting {
    parts: Vec<Part>,
    bytes: usize,
}

/// How long a member that is paused waits for what its sink has under way.
const UNDER_WAY: Duration = Duration::from_secs(5);

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
                Reader::Group(membership, _) if can_recover(&error) => {
                    Lost::CutOff(error.chain()).into_error(&membership.group)
                }
                _ => error,
            };
            if error.kind() == ErrorKind::PlaceLost && !self.builder.one_term {
                warn!("{}", error.chain());
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

    /// A link after the former one, of which nothing counts any more; before the first one, what is to come from the table is
    /// delivered. None if the consumer is closed meanwhile.
    async fn attach(&mut self, again: bool) -> Result<Option<Link>> {
        let shared = Arc::clone(&self.shared);
        let (lost, stuck) = (self.lost(), self.stuck());
        tokio::select! {
            link = async {
                self.shared.connection.fetch_add(1, Ordering::Relaxed);
                self.shared.progress().reconnected();
                self.backfill().await?;
                let link = self.wait_for_link().await?;
                if again {
                    // The server that was gone may have let go of our lock as well, and another member may wait for the slot.
                    if let Reader::Group(_, Some(place)) = &self.reader {
                        place.still_held().await?;
                    }
                    info!("connected again");
                }
                Ok(Some(link))
            } => link,
            error = lost => Err(error),
            error = stuck => Err(error),
            () = shared.closed() => Ok(None),
        }
    }

    /// After the place was lost: waits until it is this process's turn again. False if the consumer is closed meanwhile.
    async fn stand_by(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        if let Reader::Group(membership, place) = &mut self.reader {
            *place = None;
            *shared.lease.lock().unwrap_or_else(PoisonError::into_inner) = membership.lease();
        }
        shared.connection.fetch_add(1, Ordering::Relaxed);
        shared.wake_leased();
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
        let sql = connect_sql(&self.info).await?;
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

    /// Delivers what is to come from the table.
    async fn backfill(&mut self) -> Result<()> {
        let Reader::Group(membership, Some(place)) = &self.reader else { return Ok(()) };
        for backfill in place.backfills.iter().filter(|backfill| !backfill.finished) {
            let client = connect_sql(&self.info).await?;
            let (mut delivered, mut rows) = (0, FIRST_ROWS);
            let mut chunk = backfill.read(&client, &membership.group, None, rows).await?;
            while !chunk.events.is_empty() {
                delivered += chunk.events.len();
                rows = Backfill::next_rows(&chunk);
                let position = chunk.position;
                // While this one is delivered the next one is read.
                let next = backfill.read(&client, &membership.group, Some(position), rows);
                let (settled, next) = tokio::join!(self.deliver_stored(chunk, place), next);
                settled?;
                place.backfilled(backfill.outbox, position, false).await?;
                chunk = next?;
            }
            place.backfilled(backfill.outbox, chunk.position, true).await?;
            info!("delivered {delivered} stored events");
        }
        self.shared.backfilled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Hands stored events out and waits until they are acknowledged. Each counts as a transaction without a position.
    async fn deliver_stored(&self, chunk: Chunk, place: &Place) -> Result<()> {
        let lost = async || Err(place.lost().await.into_error(place.group()));
        let mut events = chunk.events.into_iter().peekable();
        while let Some(first) = events.peek_mut() {
            if first.claim.is_some() && self.builder.options.claims == Claims::Stream {
                self.deliver_claim(first, place).await?;
            }
            let mut bytes = 0;
            let mut parts = Vec::new();
            while let Some(event) =
                events.next_if(|event| bytes < TOGETHER_BYTES && (parts.is_empty() || event.claim.is_none()))
            {
                bytes += size_of::<Event>() + event.size();
                parts.push(self.stored(event));
            }
            self.hand_over(parts, bytes, place).await?;
        }
        loop {
            let settled = self.shared.settled.notified();
            if self.shared.progress().is_idle() {
                return Ok(());
            }
            tokio::select! {
                () = settled => {}
                error = lost() => return error,
            }
        }
    }

    /// Hands out the data of a stored event's claim, before it. Where that cannot be read, the event says so.
    async fn deliver_claim(&self, event: &mut Event, place: &Place) -> Result<()> {
        let mut reader = match ClaimReader::connect(&self.info, event).await {
            Ok(reader) => reader,
            Err(error) => return unreadable(event, error),
        };
        let Some(seq) = event.seq else { return Ok(()) };
        for number in 0.. {
            let data = match reader.chunk().await {
                Ok(Some(data)) => data,
                Ok(None) => break,
                Err(error) => return unreadable(event, error),
            };
            let rows = reader.rows_of_chunk();
            let bytes = size_of::<Event>() + data.len();
            let chunk = Event {
                id: None,
                event_type: Default::default(),
                key: None,
                headers: None,
                payload: Some(data),
                claim: None,
                chunk: Some(ClaimChunk { seq, number, rows }),
                ..event.clone()
            };
            self.hand_over(vec![self.stored(chunk)], bytes, place).await?;
        }
        Ok(())
    }

    /// Each counts as a transaction without a position.
    fn stored(&self, event: Event) -> Part {
        let mut progress = self.shared.progress();
        let transaction = progress.begin(Lsn::default());
        progress.frame(1, true);
        Part { transaction, end: Some(Lsn::default()), events: vec![event] }
    }

    async fn hand_over(&self, parts: Vec<Part>, bytes: usize, place: &Place) -> Result<()> {
        let connection = self.shared.connection.load(Ordering::Relaxed);
        let room = tokio::select! {
            room = room(Arc::clone(&self.room), bytes, self.queue_bytes) => room,
            lost = place.lost() => return Err(lost.into_error(place.group())),
        };
        if let Some(batches) = &self.batches {
            // A closed channel means that the consumer is closing.
            let _ = batches.send(Ok(Batch { connection, parts, room }));
        }
        Ok(())
    }

    fn give_up(&mut self, error: Error) -> Result<()> {
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

    /// Streams until the consumer is closed; an error ends the connection.
    async fn stream(&mut self, link: &mut Link) -> Result<()> {
        let mut waiting = Waiting::default();
        // What is wrong after the events that wait.
        let mut failed = None;
        let mut transaction = None;
        let mut last_status = Instant::now();
        let mut last_heard = Instant::now();
        let mut lost = pin!(self.lost());
        let mut stuck = pin!(self.stuck());
        let mut shutdown = pin!(shutdown(self.info.clone(), Arc::clone(&self.shared), link.heartbeat));
        loop {
            if self.shared.is_closing() {
                return Ok(());
            }
            let full = !waiting.parts.is_empty();
            if self.ended && !full {
                self.batches = None;
            }
            if let (false, Some(error)) = (full, failed.take()) {
                return Err(error);
            }
            // With the queue full not even one more frame is read, which may be as large as the largest event.
            let crowded = !full && self.room.available_permits() == 0;
            let confirm = self.shared.progress().is_confirmation_due();
            let ping = self.shared.ping.load(Ordering::Relaxed);
            // The end that was asked for may lie where nothing is sent any more.
            let ask = ping || (self.builder.until.is_some() && !self.ended);
            let interval = if confirm || ask { self.builder.confirm_interval } else { link.heartbeat };
            let mut report = false;
            tokio::select! {
                biased;
                () = sleep_until(last_status + interval) => report = true,
                () = self.shared.wake.notified() => {}
                room = room(Arc::clone(&self.room), waiting.bytes, self.queue_bytes), if full => {
                    let Waiting { parts, .. } = std::mem::take(&mut waiting);
                    if let Some(batches) = &self.batches {
                        let connection = self.shared.connection.load(Ordering::Relaxed);
                        // A closed channel means that the consumer is closing.
                        let _ = batches.send(Ok(Batch { connection, parts, room }));
                    }
                    last_heard = Instant::now();
                }
                // Looks only: the permit is given back at once.
                _ = room(Arc::clone(&self.room), 1, 1), if crowded => last_heard = Instant::now(),
                received = link.stream.recv(), if !full && !crowded => {
                    last_heard = Instant::now();
                    if received.is_ok() {
                        self.backoff.reset();
                    }
                    let mut received = received.map(Some);
                    while let Some(outcome) = received.transpose() {
                        let read = match outcome {
                            // The rest of the stream is not for us.
                            Ok(Received::Data(_)) if self.ended => Ok(None),
                            Ok(Received::Data(bytes)) => link.reader.read(&bytes).await,
                            Ok(Received::Keepalive { wal_end, reply_requested }) => {
                                self.keepalive(wal_end, transaction.is_some());
                                report |= reply_requested;
                                Ok(None)
                            }
                            Err(error) => Err(error),
                        };
                        match read {
                            Ok(Some(events)) => self.receive(events, &mut transaction, &mut waiting),
                            Ok(None) => {}
                            Err(error) => {
                                failed = Some(error);
                                break;
                            }
                        }
                        if waiting.bytes >= TOGETHER_BYTES {
                            break;
                        }
                        received = link.stream.try_recv();
                    }
                }
                error = &mut lost => {
                    // What was acknowledged until now is done, whoever goes on.
                    let _ = self.report(link, false).await;
                    return Err(error);
                }
                error = &mut stuck => {
                    let _ = self.report(link, false).await;
                    return Err(error);
                }
                error = &mut shutdown => return Err(error),
            }
            if report {
                let silent = last_heard.elapsed();
                if !full && !crowded && silent > link.patience {
                    return Err(Error::new(
                        ErrorKind::Connect,
                        format!("no sign of life from the server for {} s", silent.as_secs()),
                    ));
                }
                self.shared.ping.store(false, Ordering::Relaxed);
                self.report(link, ask || silent > link.heartbeat / 2).await?;
                last_status = Instant::now();
            }
        }
    }

    /// Ends when the place is lost. When the group is paused, what is under way is waited for.
    fn lost(&self) -> impl Future<Output = Error> + use<> {
        let place = match &self.reader {
            Reader::Group(membership, Some(place)) => Some((membership.group.clone(), place.lost())),
            _ => None,
        };
        let shared = Arc::clone(&self.shared);
        async move {
            let Some((group, lost)) = place else { return std::future::pending().await };
            let lost = lost.await;
            if lost == Lost::Paused {
                let _ = timeout(UNDER_WAY, shared.all_acknowledged()).await;
            }
            lost.into_error(&group)
        }
    }

    /// Ends when the application holds on to an event for longer than it may.
    fn stuck(&self) -> impl Future<Output = Error> + use<> {
        let shared = Arc::clone(&self.shared);
        let most = (!self.builder.one_term).then_some(self.builder.max_processing);
        async move {
            let Some(most) = most else { return std::future::pending().await };
            let (mut before, mut since) = (None, Instant::now());
            loop {
                let held = shared.progress().held();
                if held.is_none() || held != before {
                    (before, since) = (held, Instant::now());
                } else if since.elapsed() >= most {
                    let message = format!("an event has not been acknowledged for {most:?} (max_processing)");
                    return Error::new(ErrorKind::Stuck, message).with_hint(
                        "Acknowledge each delivery once it is dealt with, or raise max_processing. The event comes again.",
                    );
                }
                sleep((most / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))).await;
            }
        }
    }

    /// Takes events in, which wait for room in the queue then.
    fn receive(
        &mut self,
        mut received: decode::Received,
        transaction: &mut Option<Option<u64>>,
        waiting: &mut Waiting,
    ) {
        let header = received.transaction;
        if self.builder.until.is_some_and(|until| received.first && header.commit_lsn >= until) {
            self.ended = true;
            return;
        }
        let mut progress = self.shared.progress();
        if received.first {
            // After a reconnect the server starts from what it has noted; what is durable here need not come twice.
            *transaction = Some((!progress.is_durable(header.end_lsn)).then(|| progress.begin(header.end_lsn)));
        }
        let number = transaction.flatten();
        if received.last {
            *transaction = None;
        }
        let Some(number) = number else { return };
        if received.last {
            progress.ends(header.end_lsn);
        }
        let backfills = match &self.reader {
            Reader::Group(_, Some(place)) => &*place.backfills,
            _ => &[],
        };
        if !backfills.is_empty() {
            received.events.retain(|event| !backfills.iter().any(|backfill| backfill.covers(event)));
        }
        progress.frame(received.events.len(), received.last);
        if received.events.is_empty() {
            progress.settle();
            return;
        }
        waiting.bytes += received.bytes + received.events.len() * size_of::<Event>();
        waiting.parts.push(Part {
            transaction: number,
            end: received.last.then_some(header.end_lsn),
            events: received.events,
        });
    }

    fn keepalive(&mut self, wal_end: Lsn, in_transaction: bool) {
        // Past the end of what was asked for, positions cover transactions that were not delivered.
        if self.ended {
            return;
        }
        self.shared.progress().keepalive(wal_end);
        self.shared.settled.notify_waiters();
        if self.builder.until.is_some_and(|until| wal_end >= until && !in_transaction) {
            self.ended = true;
        }
    }

    /// Tells the server what is durable.
    async fn report(&mut self, link: &mut Link, reply_requested: bool) -> Result<()> {
        let (received, flushed, rose) = {
            let mut progress = self.shared.progress();
            let rose = progress.is_confirmation_due();
            let flushed = progress.confirm();
            (progress.positions().received, flushed, rose)
        };
        if rose {
            failpoint::reach("confirm.before");
        }
        debug!(%received, %flushed, "status");
        let status = Status { received, flushed, reply_requested };
        timeout(link.patience, link.stream.send_status(status)).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Connect, "the server takes no data from the connection any more"))
        })?;
        if rose {
            failpoint::reach("confirm.after");
        }
        Ok(())
    }

    /// Confirms what is durable and ends the connection in order.
    async fn end(&mut self, mut link: Link) -> Result<()> {
        self.report(&mut link, false).await?;
        link.stream.finish().await
    }
}

/// What stands against a claim; a link that broke ends the connection, and the event comes again.
fn unreadable(event: &mut Event, error: Error) -> Result<()> {
    if error.is_transient() {
        return Err(error);
    }
    warn!("{}", error.chain());
    let error = EventError { code: ErrorCode::Malformed, detail: error.chain().into(), raw: Vec::new() };
    event.error = Some(Arc::new(error));
    Ok(())
}

/// Waits until the server shuts down while nothing is acknowledged any more.
///
/// A server that shuts down waits until its consumers have confirmed everything, for as long as it hears from them. So a
/// sink that is stuck would hold it up for ever, and the stream does not tell what is going on. Whoever asks to be let in
/// is told.
async fn shutdown(info: ConnInfo, shared: Arc<Shared>, interval: Duration) -> Error {
    let mut before = None;
    loop {
        sleep(interval).await;
        let now = {
            let progress = shared.progress();
            (!progress.is_idle()).then(|| progress.positions().durable)
        };
        let stuck = now.is_some() && now == before;
        before = now;
        if stuck
            && let Err(error) = connect_sql(&info).await
            && error.sqlstate() == Some(CANNOT_CONNECT_NOW)
        {
            return Error::new(ErrorKind::Server, "the server shuts down and nothing is acknowledged")
                .with_source(error);
        }
    }
}

/// The SQLSTATE of a server that starts or shuts down.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Room in the queue for what waits. More than the whole queue is let through alone.
async fn room(queue: Arc<Semaphore>, bytes: usize, most: u32) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(most);
    match queue.acquire_many_owned(bytes).await {
        Ok(room) => room,
        // The semaphore is never closed.
        Err(_) => std::future::pending().await,
    }
}

impl Link {
    /// Connects and starts replication. A link that dies silently meanwhile is an error too.
    async fn open(
        info: &ConnInfo,
        slot: &SlotState,
        options: &Options,
        session_timeout: Option<Duration>,
    ) -> Result<Self> {
        let late = |_| Error::new(ErrorKind::Connect, format!("the server did not start to stream within {START:?}"));
        timeout(START, Self::start(info, slot, options, session_timeout)).await.map_err(late)?
    }

    async fn start(
        info: &ConnInfo,
        slot: &SlotState,
        options: &Options,
        session_timeout: Option<Duration>,
    ) -> Result<Self> {
        let (reader, options, settings) = if slot.is_of_pgoutput() {
            let (reader, options) = pgoutput::Reader::open(info, options).await?;
            (StreamReader::Pgoutput(Box::new(reader)), options, &pgoutput::PARAMETERS[..])
        } else {
            (StreamReader::Frames(FrameReader::default()), options.render(), &[][..])
        };
        let name = format!("postbox {}", slot.name);
        let mut replication = Replication::connect_with(info, &name, session_timeout, settings).await?;
        let SystemId { system_id, timeline, .. } = replication.identify().await?;
        let server_timeout = parse_interval(&replication.show("wal_sender_timeout").await?);
        let heartbeat = server_timeout.map_or(HEARTBEAT, |timeout| (timeout / 3).min(HEARTBEAT));
        let patience = server_timeout.unwrap_or_default().max(6 * heartbeat);
        let stream = replication.start(&slot.name, &options).await?;
        Ok(Self { stream, reader, server: (system_id, timeline), heartbeat, patience })
    }
}

/// How long connecting and starting may take, several hosts and a busy server included.
const START: Duration = Duration::from_secs(120);

/// How often the server hears from us at least, if its timeout allows for it.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A time setting as SHOW prints it; none for `0`, which switches the timeout off.
fn parse_interval(setting: &str) -> Option<Duration> {
    let digits = setting.find(|c: char| !c.is_ascii_digit()).unwrap_or(setting.len());
    let (number, unit) = setting.split_at(digits);
    let number = number.parse::<u64>().ok().filter(|number| *number > 0)?;
    let millis = match unit {
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 1,
    };
    Some(Duration::from_millis(number.saturating_mul(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_time_as_the_server_shows_them() {
        for (setting, seconds) in [("1min", 60.0), ("30s", 30.0), ("1500ms", 1.5), ("1d", 86_400.0), ("2h", 7_200.0)] {
            assert_eq!(parse_interval(setting), Some(Duration::from_secs_f64(seconds)), "{setting}");
        }
        assert_eq!(parse_interval("0"), None);
    }
}
