//! The accounts: what the producers know to have happened, held against what the consumer printed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::consumer::Delivery;

/// The rows of the outbox: event ids and their `seq`.
pub(crate) type Stored = HashMap<Uuid, i64>;

/// Kept by the producers, each on its own transactions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    committed: HashMap<Uuid, Commit>,
    rolled_back: HashSet<Uuid>,
}

/// When COMMIT was sent, and when its answer had come.
#[derive(Clone, Copy, Debug)]
struct Commit {
    sent: Instant,
    answered: Instant,
}

impl Ledger {
    pub(crate) fn committed(&self, events: &[Uuid], sent: Instant) {
        let commit = Commit { sent, answered: Instant::now() };
        self.books().committed.extend(events.iter().map(|id| (*id, commit)));
    }

    pub(crate) fn rolled_back(&self, events: &[Uuid]) {
        self.books().rolled_back.extend(events);
    }

    /// Holds the deliveries against the accounts.
    pub(crate) fn check(&self, deliveries: &[Delivery], stored: &Stored, killed: Instant) -> Report {
        let books = self.books();
        let mut seen = HashSet::new();
        let first: Vec<&Delivery> = deliveries.iter().filter(|delivery| seen.insert(delivery.event_id)).collect();
        let known = |id: &Uuid| books.committed.contains_key(id);
        let resumed = deliveries.iter().find(|delivery| delivery.run > 1).map(|delivery| delivery.at);

        let latency = |delivery: &&Delivery| {
            let commit = books.committed.get(&delivery.event_id)?;
            Some((commit.sent, delivery.at.saturating_duration_since(commit.sent), delivery.at))
        };
        let all: Vec<_> = first.iter().filter_map(latency).collect();
        // Held up by the restart: on its way when the consumer was killed, or committed before the next one was there.
        let held_up = |sent: Instant, at: Instant| at >= killed && resumed.is_none_or(|resumed| sent < resumed);

        Report {
            committed: books.committed.len(),
            stored_otherwise: books.committed.keys().filter(|id| !stored.contains_key(id)).count()
                + stored.keys().filter(|id| !known(id)).count(),
            delivered: first.iter().filter(|delivery| known(&delivery.event_id)).count(),
            duplicates: deliveries.len() - first.len(),
            lost: books.committed.keys().filter(|id| !seen.contains(id)).count(),
            out_of_order: out_of_order(deliveries, &first, &books),
            overtaken: overtaken(&first, stored),
            rolled_back: books.rolled_back.len(),
            rolled_back_but_delivered: seen.intersection(&books.rolled_back).count(),
            never_published: seen.iter().filter(|id| !known(id) && !books.rolled_back.contains(id)).count(),
            latency: Latency::of(
                all.iter().filter(|(sent, _, at)| !held_up(*sent, *at)).map(|(_, latency, _)| *latency),
            ),
            latency_of_all: Latency::of(all.iter().map(|(_, latency, _)| *latency)),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the deliveries that came too late, by two measures: by the positions that the events carry, which must rise
/// within each run and over all first deliveries; and by the producers' clocks, which know nothing of positions: a
/// commit that was answered before another one was sent must not come after it.
fn out_of_order(deliveries: &[Delivery], first: &[&Delivery], books: &Books) -> usize {
    let position = |delivery: &Delivery| (delivery.commit_lsn, delivery.ordinal);
    let falls = |pair: &[&Delivery]| position(pair[1]) <= position(pair[0]);
    let runs: Vec<&Delivery> = deliveries.iter().collect();
    let within_runs = runs.windows(2).filter(|pair| pair[0].run == pair[1].run && falls(pair)).count();
    let over_all = first.windows(2).filter(|pair| falls(pair)).count();

    let mut latest_sent = None;
    let mut by_clock = 0;
    for commit in first.iter().filter_map(|delivery| books.committed.get(&delivery.event_id)) {
        by_clock += usize::from(latest_sent.is_some_and(|sent| commit.answered < sent));
        latest_sent = latest_sent.max(Some(commit.sent));
    }
    within_runs.max(over_all).max(by_clock)
}

/// Counts the events that were inserted before one that came earlier: those that a reader who polls by `seq` may skip.
fn overtaken(first: &[&Delivery], stored: &Stored) -> usize {
    let mut highest = i64::MIN;
    let mut count = 0;
    for seq in first.iter().filter_map(|delivery| stored.get(&delivery.event_id)) {
        count += usize::from(*seq < highest);
        highest = highest.max(*seq);
    }
    count
}

/// From just before COMMIT was sent until the consumer's line was read.
#[derive(Debug)]
struct Latency {
    events: usize,
    p50: Duration,
    p99: Duration,
}

impl Latency {
    fn of(latencies: impl Iterator<Item = Duration>) -> Self {
        let mut latencies: Vec<Duration> = latencies.collect();
        latencies.sort_unstable();
        let quantile = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default();
        Self { events: latencies.len(), p50: quantile(50), p99: quantile(99) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99] = [self.p50, self.p99].map(|latency| latency.as_secs_f64() * 1000.0);
        write!(f, "{p50:.1} / {p99:.1} ms")
    }
}

/// The outcome of the demo.
#[derive(Debug)]
pub(crate) struct Report {
    committed: usize,
    /// Events on which the producers and the outbox disagree: were it not 0, the accounts themselves would be wrong.
    stored_otherwise: usize,
    delivered: usize,
    duplicates: usize,
    lost: usize,
    out_of_order: usize,
    overtaken: usize,
    rolled_back: usize,
    rolled_back_but_delivered: usize,
    never_published: usize,
    latency: Latency,
    latency_of_all: Latency,
}

impl Report {
    /// True if the promises held, and had the chance not to.
    pub(crate) fn is_as_promised(&self) -> bool {
        let wrong = self.lost
            + self.out_of_order
            + self.rolled_back_but_delivered
            + self.never_published
            + self.stored_otherwise;
        wrong == 0
            && self.delivered == self.committed
            && self.delivered > 0
            && self.overtaken > 0
            && self.rolled_back > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display, note: &str| {
            let line = format!("  {name:<28}{:>16}   {note}", value.to_string());
            writeln!(f, "{}", line.trim_end())
        };
        row("committed", &self.committed, "")?;
        row("delivered", &self.delivered, "")?;
        row("duplicates", &self.duplicates, "not yet confirmed when the consumer was killed")?;
        row("lost", &self.lost, "")?;
        row("out of commit order", &self.out_of_order, &format!("although {} were inserted earlier", self.overtaken))?;
        row("rolled back but delivered", &self.rolled_back_but_delivered, &format!("of {}", self.rolled_back))?;
        if self.never_published + self.stored_otherwise > 0 {
            row("never published", &self.never_published, "")?;
            row("not as in the outbox", &self.stored_otherwise, "")?;
        }
        row("latency p50 / p99", &self.latency, "from COMMIT to the line read")?;
        let note =
            format!("with the {} events that the restart held up", self.latency_of_all.events - self.latency.events);
        row("", &self.latency_of_all, &note)
    }
}
