//! The worker: its settings, and its crew of hands from the start to the stop.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::InboxHandler;
use super::hand::Hand;
use super::held::Held;
use super::keeper::{Keeper, Tier, ask_tiers, first_tiers};
use super::turn::Turn;
use super::verb::passes;
use super::work::{Within, Work};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::maintain;
use crate::member::default_name;
use crate::transport::ConnInfo;

/// How long hands may take to give back what they have when the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// An inbox that has nothing is not asked more often.
const LEAST_POLL: Duration = Duration::from_millis(10);

/// What the server allows as a visibility timeout.
const VISIBILITY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(43_200);

/// A worker of an inbox: claims messages and gives each to a handler, until it is told to stop.
///
/// It goes on through broken connections and restarts of the server, extends the leases of messages whose handlers take
/// long, and drops a handler whose message is another worker's by now. It also runs `postbox.maintain()` now and then.
/// See [`InboxHandler`] for what a handler is given and may rely on.
#[derive(Clone, Debug)]
#[must_use]
pub struct InboxWorker {
    database: Option<String>,
    inbox: String,
    name: Option<String>,
    concurrency: Option<usize>,
    batch_size: i32,
    visibility: Duration,
    tiers: Vec<String>,
    poll_interval: Duration,
    grace: Duration,
    max_processing: Duration,
    exit_when_idle: Option<Duration>,
    maintenance: bool,
}

impl InboxWorker {
    /// A worker of this inbox, with the connection string as psql takes it.
    pub fn new(conninfo: impl Into<String>, inbox: impl Into<String>) -> Self {
        Self::resolve(Some(conninfo.into()), inbox.into())
    }

    pub(crate) fn resolve(database: Option<String>, inbox: String) -> Self {
        Self {
            database,
            inbox,
            name: None,
            concurrency: None,
            batch_size: 50,
            visibility: Duration::from_secs(30),
            tiers: Vec::new(),
            poll_interval: Duration::from_secs(1),
            grace: Duration::from_secs(30),
            max_processing: Duration::from_secs(300),
            exit_when_idle: None,
            maintenance: true,
        }
    }

    /// How errors and monitoring name this worker. Default: the machine and the process.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many messages are worked on at once. Default: 1; with tiers, for each of them what it says.
    pub fn concurrency(mut self, hands: usize) -> Self {
        self.concurrency = Some(hands);
        self
    }

    /// The most messages that are claimed at once. Default: 50.
    pub fn batch_size(mut self, messages: i32) -> Self {
        self.batch_size = messages;
        self
    }

    /// After so long without a word of this worker its messages are handed to others; whole seconds. Default: 30 s.
    pub fn visibility(mut self, timeout: Duration) -> Self {
        self.visibility = timeout;
        self
    }

    /// Works on this tier only; may be said several times.
    pub fn tier(mut self, name: impl Into<String>) -> Self {
        self.tiers.push(name.into());
        self
    }

    /// The longest wait between two looks at an inbox that has nothing, 10 ms or more. Tiers have their own. Default: 1 s.
    pub fn poll_interval(mut self, most: Duration) -> Self {
        self.poll_interval = most;
        self
    }

    /// How long handlers may go on after the stop; then they are dropped and their messages are given back. Default: 30 s.
    pub fn grace(mut self, time: Duration) -> Self {
        self.grace = time;
        self
    }

    /// A handler that takes longer is dropped and has failed. Default: 5 min.
    pub fn max_processing(mut self, time: Duration) -> Self {
        self.max_processing = time;
        self
    }

    /// Stops when for so long nothing could be claimed.
    pub fn exit_when_idle(mut self, time: Duration) -> Self {
        self.exit_when_idle = Some(time);
        self
    }

    /// Whether it calls `postbox.maintain()` too. Default: yes.
    pub fn maintenance(mut self, on: bool) -> Self {
        self.maintenance = on;
        self
    }

    /// Works until `stop` ends. The result is the number of messages processed.
    ///
    /// # Errors
    /// The server cannot be reached at the start, there is no such inbox or tier, or the role may not work on it.
    pub async fn run(self, handler: impl InboxHandler, stop: impl Future<Output = ()> + Send) -> Result<u64> {
        self.work(Within(handler), stop).await
    }

    pub(crate) async fn work(self, work: impl Work, stop: impl Future<Output = ()> + Send) -> Result<u64> {
        self.check()?;
        let info = ConnInfo::resolve(self.database.as_deref())?;
        // What is wrong at the start is for whoever started us.
        let mut tiers = first_tiers(&info, &self.inbox).await?;
        let (work, processed, mut stop) = (Arc::new(work), Arc::new(AtomicU64::new(0)), pin!(stop));
        let _maintenance = self.maintenance.then(|| maintain::Beside::start(info.clone()));
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        // From one change of the tiers to the next.
        loop {
            let crew = Arc::new(Crew::new(&self, info.clone(), Arc::clone(&processed)));
            if self.shift(&crew, &work, &tiers, stop.as_mut()).await? == Ended::Stopped {
                let processed = processed.load(Ordering::Relaxed);
                info!(processed, "stopped");
                return Ok(processed);
            }
            tiers = loop {
                match ask_tiers(&info, &self.inbox).await {
                    Ok(tiers) => break tiers,
                    Err(error) if passes(&error) => warn!("cannot read the tiers yet: {}", error.chain()),
                    Err(error) => return Err(error),
                }
                tokio::select! {
                    () = sleep(backoff.next()) => (),
                    () = stop.as_mut() => return Ok(processed.load(Ordering::Relaxed)),
                }
            };
            backoff.reset();
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |message: String, hint: &str| Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
        if self.concurrency == Some(0) {
            return wrong("concurrency is 0: nothing would be worked on".to_owned(), "1 or more.");
        }
        if !VISIBILITY.contains(&self.visibility) || self.visibility.subsec_nanos() != 0 {
            let text = format!("visibility is {:?}, must be whole seconds from 1s to 12h", self.visibility);
            return wrong(text, "30s suits short handlers; longer ones are given more time as they go on.");
        }
        if self.poll_interval < LEAST_POLL {
            let text = format!("poll_interval is {:?}, must be at least {LEAST_POLL:?}", self.poll_interval);
            return wrong(text, "Workers are told of new messages, so that 1s suits most.");
        }
        if self.max_processing.is_zero() {
            return wrong("max_processing is 0: nothing could be handled".to_owned(), "For instance 5min.");
        }
        Ok(())
    }

    /// Works until the tiers change or `stop` ends.
    async fn shift<W: Work>(
        &self,
        crew: &Arc<Crew>,
        work: &Arc<W>,
        tiers: &[Tier],
        mut stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<Ended> {
        let mut hands = JoinSet::new();
        let (mut turns, mut leases) = (Vec::new(), Vec::new());
        for (tier, turn, concurrency) in self.places(tiers)? {
            let turn = Arc::new(turn);
            turns.push(Arc::clone(&turn));
            for _ in 0..concurrency {
                let held = Arc::new(Held::new());
                leases.push(Arc::clone(&held));
                hands.spawn(Hand::new(Arc::clone(crew), Arc::clone(work), tier.clone(), Arc::clone(&turn), held).run());
            }
        }
        let mut keeper = JoinSet::new();
        keeper.spawn(Keeper { crew: Arc::clone(crew), hands: leases, turns, tiers: tiers.to_vec() }.keep());

        let mut outcome = tokio::select! {
            () = stop.as_mut() => Ok(Ended::Stopped),
            () = crew.idle.notified() => Ok(Ended::Stopped),
            () = crew.tiers_changed.notified() => Ok(Ended::TiersChanged),
            Some(ended) = hands.join_next() => ended.unwrap_or_else(|error| Err(died(error))).map(|()| Ended::Stopped),
        };
        // A tier that is gone shows as an error of the hand that asks for it.
        if let Err(error) = &outcome
            && error.sqlstate() == Some("42704")
            && !tiers.is_empty()
            && ask_tiers(&crew.info, &crew.inbox).await.is_ok_and(|now| now != tiers)
        {
            outcome = Ok(Ended::TiersChanged);
        }
        crew.phase.send_replace(Phase::Closing);
        let mut patience = pin!(sleep(self.grace));
        let mut waiting = !matches!(outcome, Ok(Ended::TiersChanged));
        loop {
            tokio::select! {
                ended = hands.join_next() => match ended {
                    None => return outcome,
                    Some(ended) => {
                        let ended = ended.unwrap_or_else(|error| if error.is_cancelled() { Ok(()) } else { Err(died(error)) });
                        outcome = outcome.and_then(|outcome| ended.map(|()| outcome));
                    }
                },
                // Tiers change, and then somebody stops us.
                () = stop.as_mut(), if !waiting => {
                    waiting = true;
                    outcome = outcome.map(|_| Ended::Stopped);
                    patience.set(sleep(self.grace));
                }
                () = patience.as_mut(), if waiting => {
                    if crew.is_over() {
                        hands.abort_all();
                        waiting = false;
                    } else {
                        crew.phase.send_replace(Phase::Over);
                        patience.set(sleep(LAST_WORDS));
                    }
                }
            }
        }
    }

    /// For which tiers hands are needed, and how many.
    fn places(&self, tiers: &[Tier]) -> Result<Vec<(Option<String>, Turn, usize)>> {
        let most = |pace: Duration| self.exit_when_idle.map_or(pace, |idle| pace.min(idle));
        if let Some(name) = self.tiers.iter().find(|name| tiers.iter().all(|tier| tier.name != **name)) {
            let text = format!("inbox \"{}\" has no tier \"{name}\"", self.inbox);
            let known = tiers.iter().map(|tier| tier.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::new(ErrorKind::Usage, text).with_hint(match known.as_str() {
                "" => "postbox.enable_inbox_priority gives an inbox tiers.".to_owned(),
                known => format!("Its tiers: {known}."),
            }));
        }
        if tiers.is_empty() {
            return Ok(vec![(None, Turn::growing(most(self.poll_interval)), self.concurrency.unwrap_or(1))]);
        }
        let wanted = tiers.iter().filter(|tier| self.tiers.is_empty() || self.tiers.contains(&tier.name));
        let place = |tier: &Tier| {
            (Some(tier.name.clone()), Turn::paced(most(tier.pace)), self.concurrency.unwrap_or(tier.concurrency))
        };
        Ok(wanted.map(place).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    TiersChanged,
}

fn died(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Other, "a worker's task died").with_source(error)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Working,
    /// Nothing more is begun.
    Closing,
    /// What is under way is ended too.
    Over,
}

/// What the hands of a worker and its keeper share.
#[derive(Debug)]
pub(super) struct Crew {
    pub(super) info: ConnInfo,
    pub(super) inbox: String,
    pub(super) name: String,
    pub(super) batch_size: i32,
    pub(super) visibility: Duration,
    pub(super) max_processing: Duration,
    pub(super) tiers_changed: Notify,
    exit_when_idle: Option<Duration>,
    idle: Notify,
    phase: watch::Sender<Phase>,
    activity: Mutex<Activity>,
    processed: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Activity {
    busy: usize,
    /// When a hand found nothing first, while no hand had anything.
    quiet: Option<Instant>,
}

impl Crew {
    fn new(worker: &InboxWorker, info: ConnInfo, processed: Arc<AtomicU64>) -> Self {
        Self {
            info,
            inbox: worker.inbox.clone(),
            name: worker.name.clone().unwrap_or_else(|| default_name(&worker.inbox)),
            batch_size: worker.batch_size,
            visibility: worker.visibility,
            max_processing: worker.max_processing,
            tiers_changed: Notify::new(),
            exit_when_idle: worker.exit_when_idle,
            idle: Notify::new(),
            phase: watch::Sender::new(Phase::Working),
            activity: Mutex::default(),
            processed,
        }
    }

    pub(super) fn visibility_seconds(&self) -> i32 {
        i32::try_from(self.visibility.as_secs()).unwrap_or(i32::MAX)
    }

    pub(super) fn is_closing(&self) -> bool {
        *self.phase.borrow() >= Phase::Closing
    }

    fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::Over
    }

    pub(super) async fn closing(&self) {
        self.reach(Phase::Closing).await;
    }

    pub(super) async fn over(&self) {
        self.reach(Phase::Over).await;
    }

    async fn reach(&self, phase: Phase) {
        // The sender is ours, so there is no other end of this.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    pub(super) fn processed(&self, event_id: &str) {
        debug!(event_id, "processed");
        self.processed.fetch_add(1, Ordering::Relaxed);
    }

    /// A hand has something to do.
    pub(super) fn busy(&self) {
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        activity.busy += 1;
        activity.quiet = None;
    }

    pub(super) fn free(&self) {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner).busy -= 1;
    }

    /// A hand has looked in vain.
    pub(super) fn found_nothing(&self) {
        let Some(most) = self.exit_when_idle else { return };
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        if activity.busy == 0 && activity.quiet.get_or_insert_with(Instant::now).elapsed() >= most {
            self.idle.notify_one();
        }
    }
}
