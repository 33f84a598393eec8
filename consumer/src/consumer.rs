//! The consumer: a stream of committed events, each to be acknowledged.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_util::FutureExt;
use postbox_wire::{Claims, Compression, Lsn, Names, Options, Origin, OutboxSelector};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::dispatch::Limits;
use crate::dispatch::settings::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::feed::{Batch, Feed, Part, Shared};
use crate::lease::Lease;
use crate::maintain::Beside;
use crate::member::{self, Doubt, Membership};
use crate::progress::Positions;
use crate::run::{self, Sink};
use crate::sink::InboxTarget;
use crate::slot::SlotState;
use crate::transport::ConnInfo;

/// Reads a slot. Made by [`Consumer::builder`].
///
/// A task in the background keeps the connection: it answers the server, confirms what is acknowledged, and connects
/// again when the link breaks. Events that wait to be taken are bounded in bytes; beyond that the server waits.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    batches: mpsc::UnboundedReceiver<Result<Batch>>,
    current: Option<Current>,
    /// The connection that has sent the event handed out last, if its transaction goes on behind it.
    unfinished: Option<u64>,
    term: Option<(String, i64)>,
    /// Whoever takes the events looks at the lease, and ends with it.
    one_term: bool,
    _maintenance: Option<Beside>,
    feed: tokio::task::JoinHandle<Result<()>>,
}

/// A batch that is being handed out.
#[derive(Debug)]
struct Current {
    connection: u64,
    parts: std::vec::IntoIter<Part>,
    transaction: u64,
    /// End of the transaction, if it ends with these events.
    end: Option<Lsn>,
    events: std::vec::IntoIter<Event>,
    /// Room in the queue, given back with the batch.
    _room: OwnedSemaphorePermit,
}

/// An event that has been delivered and not yet acknowledged.
#[derive(Debug)]
pub struct Delivery {
    event: Event,
    receipt: Receipt,
}

/// What acknowledges an event.
#[derive(Debug)]
pub(crate) struct Receipt {
    shared: Arc<Shared>,
    connection: u64,
    transaction: u64,
}

/// Closes the connection of a consumer that somebody else holds, and perhaps will for ever.
#[derive(Debug)]
pub(crate) struct Closer {
    shared: Arc<Shared>,
    feed: tokio::task::AbortHandle,
}

/// What to read and how; see [`Consumer::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) conninfo: Option<String>,
    pub(crate) source: Option<Source>,
    pub(crate) plugin: Option<OutputPlugin>,
    pub(crate) options: Options,
    pub(crate) queue_bytes: usize,
    pub(crate) confirm_interval: Duration,
    pub(crate) slot_wait: Duration,
    pub(crate) until: Option<Lsn>,
    pub(crate) member: Option<String>,
    pub(crate) session_timeout: Duration,
    pub(crate) max_processing: Duration,
    pub(crate) recover: bool,
    pub(crate) maintenance: bool,
    /// The consumer ends when its place is lost, rather than stand by for another term.
    pub(crate) one_term: bool,
    pub(crate) doubt: Doubt,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    Group(String),
    Slot(String),
}

/// By which output plugin events come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputPlugin {
    /// Postbox's own.
    Postbox,
    /// PostgreSQL's, for servers that cannot load another.
    Pgoutput,
}

impl Consumer {
    /// Starts to describe a consumer of the server that `conninfo` names: a URI or a `key=value` string as libpq takes
    /// them. What it does not say comes from the environment (`PGHOST` and so on).
    pub fn builder(conninfo: impl Into<String>) -> Builder {
        Builder::new(Some(conninfo.into()))
    }

    /// The next event, in commit order. `None` after the position given by [`Builder::until`], and after an error.
    ///
    /// Waits through broken connections. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        std::future::poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// The next event if one has already come.
    pub fn try_next(&mut self) -> Option<Result<Delivery>> {
        match self.poll_delivery(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(delivery) => delivery,
            Poll::Pending => None,
        }
    }

    /// Leave to deliver: it ends when another member takes over.
    pub(crate) fn lease(&self) -> Lease {
        self.shared.lease()
    }

    /// The group and the epoch in which this process is its active member.
    pub(crate) fn term(&self) -> Option<(String, i64)> {
        self.term.clone()
    }

    /// How far the consumer is.
    pub fn positions(&self) -> Positions {
        self.shared.progress().positions()
    }

    /// Waits until the server has sent everything that committed below `lsn` and all of it is acknowledged. False if an event
    /// comes in between, which waits to be taken.
    pub(crate) async fn caught_up(&mut self, lsn: Lsn) -> bool {
        loop {
            let settled = self.shared.settled.notified();
            if self.current.is_some() || !self.batches.is_empty() || self.batches.is_closed() {
                return false;
            }
            let (received, idle) = {
                let progress = self.shared.progress();
                (progress.positions().received, progress.is_idle())
            };
            if received >= lsn {
                return idle;
            }
            self.shared.ping();
            // A batch that comes settles nothing, so look again now and then.
            let _ = tokio::time::timeout(Duration::from_millis(100), settled).await;
        }
    }

    /// True if the event handed out last has others of its transaction behind it. Those of a connection that is gone
    /// do not count: after a reconnect the transaction comes again from its start.
    pub(crate) fn is_within_transaction(&self) -> bool {
        self.unfinished.is_some_and(|connection| self.shared.is_current(connection))
    }

    /// Another way to close it, for when the consumer itself is in the hands of a sink that hangs.
    pub(crate) fn closer(&self) -> Closer {
        Closer { shared: Arc::clone(&self.shared), feed: self.feed.abort_handle() }
    }

    /// Stops reading, tells the server what is acknowledged, and ends the connection. Events that were taken and not
    /// acknowledged, and those that wait to be taken, come again to the next consumer of the slot.
    ///
    /// # Errors
    /// The server could not be told: what was acknowledged since the last confirmation comes again.
    pub async fn close(mut self) -> Result<()> {
        self.shared.close();
        self.batches.close();
        let ended = (&mut self.feed).await;
        ended.map_err(|error| Error::new(ErrorKind::Other, "the connection task failed").with_source(error))?
    }

    fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        loop {
            // What is left over from a connection that broke comes again.
            if let Some(current) = self.current.as_mut().filter(|current| self.shared.is_current(current.connection)) {
                if !self.one_term && !self.shared.lease().is_valid() {
                    // Asked again when it is renewed, or when the place is lost.
                    self.shared.wake_when_leased(cx.waker());
                    if !self.shared.lease().is_valid() {
                        return Poll::Pending;
                    }
                }
                if let Some(event) = current.events.next() {
                    self.shared.hand_out();
                    self.unfinished = match (current.events.len(), current.end) {
                        (0, Some(end)) => {
                            self.shared.progress().dispatched(end);
                            None
                        }
                        _ => Some(current.connection),
                    };
                    let Current { connection, transaction, .. } = *current;
                    // Where there is one term, whoever takes the events looks after the sink.
                    if !self.one_term {
                        self.shared.progress().hold(transaction);
                    }
                    let receipt = Receipt { shared: Arc::clone(&self.shared), connection, transaction };
                    return Poll::Ready(Some(Ok(Delivery { event, receipt })));
                }
                if let Some(Part { transaction, end, events }) = current.parts.next() {
                    (current.transaction, current.end, current.events) = (transaction, end, events.into_iter());
                    continue;
                }
            }
            self.current = None;
            let Some(batch) = ready!(self.batches.poll_recv(cx)).transpose()? else { return Poll::Ready(None) };
            let Batch { connection, parts, room } = batch;
            self.current = Some(Current {
                connection,
                parts: parts.into_iter(),
                transaction: 0,
                end: None,
                events: Vec::new().into_iter(),
                _room: room,
            });
        }
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_delivery(cx)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Delivery {
    /// The event has been dealt with, durably: it need not come again. The slot is confirmed up to the end of a transaction once
    /// all of its events and all before it are acknowledged; the order of acknowledgements does not matter.
    ///
    /// A delivery that is dropped without this comes again after the next start.
    pub fn ack(self) -> Event {
        self.receipt.ack();
        self.event
    }

    pub(crate) fn split(self) -> (Event, Receipt) {
        (self.event, self.receipt)
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }
}

impl Receipt {
    /// See [`Delivery::ack`].
    pub(crate) fn ack(self) {
        self.shared.acknowledge(&[self.transaction]);
    }

    /// Acknowledges these events, all of one consumer.
    pub(crate) fn ack_all(receipts: &[Self]) {
        let Some(first) = receipts.first() else { return };
        first.shared.acknowledge(&receipts.iter().map(|receipt| receipt.transaction).collect::<Vec<_>>());
    }

    /// True if the event comes again: the connection that brought it is gone.
    pub(crate) fn is_stale(&self) -> bool {
        !self.shared.is_current(self.connection)
    }

    /// Counts transactions over the whole life of the consumer.
    pub(crate) fn transaction(&self) -> u64 {
        self.transaction
    }
}

impl Closer {
    /// Closes the connection: what is acknowledged is confirmed, and the slot is free. A server that does not take the
    /// confirmation in time is left alone.
    pub(crate) async fn close(&self, patience: Duration) {
        self.shared.close();
        let begin = tokio::time::Instant::now();
        while !self.feed.is_finished() {
            if begin.elapsed() > patience {
                return self.feed.abort();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Deref for Delivery {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

impl OutputPlugin {
    /// As SQL and the command line have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postbox => "postbox",
            Self::Pgoutput => "pgoutput",
        }
    }
}

impl Builder {
    pub(crate) fn new(conninfo: Option<String>) -> Self {
        Self {
            conninfo,
            source: None,
            plugin: None,
            options: Options { names: Names::Stream, claims: Claims::Reference, ..Options::default() },
            queue_bytes: 16 << 20,
            confirm_interval: Duration::from_millis(100),
            slot_wait: Duration::from_secs(10),
            until: None,
            member: None,
            session_timeout: Duration::from_secs(30),
            max_processing: Duration::from_secs(300),
            recover: false,
            maintenance: true,
            one_term: false,
            doubt: Doubt::default(),
        }
    }

    pub(crate) fn membership(&self, info: ConnInfo, group: String) -> Membership {
        Membership {
            info,
            member: self.member.clone().unwrap_or_else(|| member::default_name(&group)),
            group,
            session_timeout: self.session_timeout,
            max_processing: self.max_processing,
            recover: self.recover,
            local_only: self.options.origin == Origin::None,
            doubt: self.doubt.clone(),
        }
    }

    /// Whether the slot is what is to be read, and can be read as asked.
    pub(crate) fn check_source(&self, slot: &SlotState) -> Result<()> {
        let plugin = if slot.is_of_pgoutput() { OutputPlugin::Pgoutput } else { OutputPlugin::Postbox };
        if let Some(wanted) = self.plugin.filter(|wanted| *wanted != plugin) {
            let (wanted, found) = (wanted.name(), plugin.name());
            return Err(Error::new(
                ErrorKind::SlotPlugin,
                format!("replication slot \"{}\" is of source {found}, not of {wanted}", slot.name),
            )
            .with_hint(format!("A group is moved to another source by: postbox group set-source GROUP {wanted}.")));
        }
        if plugin == OutputPlugin::Pgoutput && self.options.compression != Compression::None {
            return Err(Error::new(ErrorKind::Usage, "pgoutput does not compress what it sends")
                .with_hint("Leave compression out, or use the source postbox."));
        }
        Ok(())
    }

    /// Reads for this consumer group (made with `postbox group create` or `postbox.create_consumer_group`).
    #[must_use]
    pub fn group(mut self, name: impl Into<String>) -> Self {
        self.source = Some(Source::Group(name.into()));
        self
    }

    /// Reads this slot, made with the plugin `postbox`, or with `pgoutput` where there is the publication `postbox`.
    #[must_use]
    pub fn slot(mut self, name: impl Into<String>) -> Self {
        self.source = Some(Source::Slot(name.into()));
        self
    }

    /// Refuses a slot of another output plugin than this. Unless asked, what the slot was made with is found out and read.
    #[must_use]
    pub fn plugin(mut self, plugin: OutputPlugin) -> Self {
        self.plugin = Some(plugin);
        self
    }

    /// Takes the events of these outboxes only. A group takes those that it was made for.
    #[must_use]
    pub fn outboxes(mut self, outboxes: impl IntoIterator<Item = OutboxSelector>) -> Self {
        self.options.outboxes = Some(outboxes.into_iter().collect());
        self
    }

    /// Most bytes of events that wait to be taken (16 MiB); a single larger event is let through alone.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// An event with more bytes than this comes as an error event (256 MiB, the most that is possible).
    #[must_use]
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.options.max_event_bytes = bytes;
        self
    }

    /// Has the server compress what it sends (not unless asked): fewer bytes on the network, at some of its CPU.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.options.compression = compression;
        self
    }

    /// What comes of an event whose data lies in the claims of its outbox: the event with a reference ([`Claims::Reference`], unless
    /// asked otherwise), or before it the data in chunks ([`Claims::Stream`]), each a delivery to be acknowledged, of 64 KiB at most.
    #[must_use]
    pub fn claims(mut self, claims: Claims) -> Self {
        self.options.claims = claims;
        self
    }

    /// Leaves out events that were published on another server and came by logical replication ([`Origin::Any`] takes all).
    /// What is stored in the table has no origin: such a consumer delivers nothing from there, and refuses a group that has to be
    /// given stored events.
    #[must_use]
    pub fn origin(mut self, origin: Origin) -> Self {
        self.options.origin = origin;
        self
    }

    /// Shortest time between two confirmations (100 ms). What was acknowledged since the last one comes again after a crash.
    #[must_use]
    pub fn confirm_interval(mut self, interval: Duration) -> Self {
        self.confirm_interval = interval;
        self
    }

    /// How long to wait at the start for a slot that another connection holds (10 s): that of a consumer that was killed is
    /// freed only when the server notices.
    #[must_use]
    pub fn slot_wait(mut self, wait: Duration) -> Self {
        self.slot_wait = wait;
        self
    }

    /// Ends the stream after the transactions that committed below this position.
    #[must_use]
    pub fn until(mut self, lsn: Lsn) -> Self {
        self.until = Some(lsn);
        self
    }

    /// How this member of the group is called in the server's views (machine and process).
    #[must_use]
    pub fn member(mut self, name: impl Into<String>) -> Self {
        self.member = Some(name.into());
        self
    }

    /// After how long without contact to the server another member takes the place (30 s, at least 1 s). A member that was
    /// killed is replaced at once, as its connections end; this is for one that is frozen or cut off.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout.max(Duration::from_secs(1));
        self
    }

    /// How long the oldest delivery may stay without acknowledgement (5 min). Then the application counts as hung: the place in the
    /// group, or the slot, is given up, [`Consumer::next`] says so ([`ErrorKind::Stuck`]), and the event comes to whoever is next.
    /// Part of a large transaction that is acknowledged counts as a sign of life.
    #[must_use]
    pub fn max_processing(mut self, time: Duration) -> Self {
        self.max_processing = time.max(Duration::from_millis(1));
        self
    }

    /// Makes the group's slot anew by itself when it is lost, or when the server is another one: what had not been
    /// confirmed is delivered from the outboxes (not unless asked).
    #[must_use]
    pub fn recover(mut self, recover: bool) -> Self {
        self.recover = recover;
        self
    }

    /// Whether this process also calls `postbox.maintain()` every ten seconds (unless told not to): retention, alerts, WAL budgets.
    /// One process at a time gets to work; a role that may not do it leaves it to others.
    #[must_use]
    pub fn maintenance(mut self, maintenance: bool) -> Self {
        self.maintenance = maintenance;
        self
    }

    /// Asks the plugin for another version of the stream than this build speaks.
    #[doc(hidden)]
    #[must_use]
    pub fn proto_version(mut self, version: u32) -> Self {
        self.options.proto_version = version;
        self
    }

    /// Delivers the stream of the group into an inbox of another database until `stop`: position and messages are one transaction
    /// there, so every event is taken over once. Stands by while another member is active. Returns the number of events delivered.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), postbox::Error> {
    /// let shop = postbox::Consumer::builder("postgres://postbox@shop.example/shop").group("to_office");
    /// let orders = postbox::InboxTarget::new("postgres://postbox@office.example/office", "orders");
    /// let stop = async { drop(tokio::signal::ctrl_c().await) };
    /// shop.deliver_into(&orders, stop).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect), for either database; the inbox does not exist, or takes no message at all.
    pub async fn deliver_into(
        mut self,
        target: &InboxTarget,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<u64> {
        let info = ConnInfo::resolve(self.conninfo.as_deref())?;
        // A chunk is no message.
        self.options.claims = Claims::Reference;
        let settings = Settings { max_processing: self.max_processing, ..Settings::default() };
        run::terms(self, &info, &Sink::Inbox(target.clone()), &settings, Limits::default(), stop.boxed().shared()).await
    }

    /// Connects, and starts to stream.
    ///
    /// # Errors
    /// The server cannot be reached or refuses the login, the group or slot cannot be used, or the server is not set up for
    /// Postbox; [`Error::hint`] says how to mend it. Later failures of these kinds come through
    /// [`Consumer::next`]; broken connections do not.
    pub async fn connect(mut self) -> Result<Consumer> {
        let info = ConnInfo::resolve(self.conninfo.as_deref())?;
        let one_term = self.one_term;
        let maintenance = self.maintenance.then(|| info.clone());
        let Some(source) = self.source.take() else {
            return Err(Error::new(ErrorKind::Usage, "neither a group nor a slot is named")
                .with_hint("Call group() or slot() on the builder."));
        };
        if self.recover && self.options.origin == Origin::None {
            let message = "recovery delivers from the table, which does not tell which events came by replication";
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Leave out --recover, or --origin none."));
        }
        let (feed, link, shared, batches) = Feed::open(info, source, self).await?;
        let term = feed.term();
        Ok(Consumer {
            shared,
            batches,
            current: None,
            unfinished: None,
            term,
            one_term,
            _maintenance: maintenance.map(Beside::start),
            feed: tokio::spawn(feed.run(link)),
        })
    }
}
