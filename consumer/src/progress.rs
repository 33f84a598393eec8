//! How far the group is: the only place where a position becomes one that may be confirmed.
//!
//! ```text
//! received ≥ dispatched ≥ durable ≥ confirmed
//! ```
//!
//! A transaction is durable when every event of it and of all transactions before it has been acknowledged; then the end of
//! its commit record may be confirmed, exactly that. A keepalive's position may be confirmed when nothing that came before it
//! is open. Acknowledgements may come in any order; only the low watermark counts.

use std::collections::VecDeque;

use postbox_wire::Lsn;

/// Positions of one consumer on one slot. While a connection lasts they only rise; `durable` and `confirmed` always do.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The server that they are positions of; on another one, or on another timeline, they mean other transactions.
    server: Option<Server>,
    received: Lsn,
    dispatched: Lsn,
    durable: Lsn,
    confirmed: Lsn,
    /// Transactions that are not durable yet, in commit order.
    open: VecDeque<Open>,
    /// Number of the first of `open`. Numbers count transactions over the whole life of the consumer, so that an
    /// acknowledgement from before a reconnect finds nothing.
    first: u64,
}

/// System identifier and timeline.
pub(crate) type Server = (u64, u32);

#[derive(Debug)]
struct Open {
    /// End of the commit record; raised by a keepalive that follows.
    end: Lsn,
    /// Events not yet acknowledged.
    events: usize,
    /// Of these, so many are in the hands of the application, if that is counted.
    held: usize,
    /// The last frame has come.
    complete: bool,
}

/// The positions, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Positions {
    /// The server has sent everything that committed below this.
    pub received: Lsn,
    /// Everything that committed below this has been handed to the application, or was not for it.
    pub dispatched: Lsn,
    /// Everything that committed below this has been acknowledged, or was not for us.
    pub durable: Lsn,
    /// The server has been told that everything that committed below this is durable.
    pub confirmed: Lsn,
}

impl Progress {
    /// Forgets what is open: the server sends it again after a reconnect. Late acknowledgements of it do nothing.
    pub(crate) fn reconnected(&mut self) {
        self.first += self.open.len() as u64;
        self.open.clear();
        self.received = self.durable;
        self.dispatched = self.durable;
    }

    /// From here on positions are those of this server. False if they were those of another one, and are forgotten.
    pub(crate) fn is_at(&mut self, server: Server) -> bool {
        let same = self.server.replace(server).is_none_or(|before| before == server);
        if !same {
            let first = self.first + self.open.len() as u64;
            *self = Self { server: self.server, first, ..Self::default() };
        }
        same
    }

    pub(crate) fn server(&self) -> Option<Server> {
        self.server
    }

    /// True if the transaction that ends here was durable before the server sent it (again).
    pub(crate) fn is_durable(&self, end: Lsn) -> bool {
        end <= self.durable
    }

    /// A transaction begins; the result is its number.
    pub(crate) fn begin(&mut self, end: Lsn) -> u64 {
        debug_assert!(self.open.back().is_none_or(|open| open.complete), "one transaction at a time");
        self.open.push_back(Open { end, events: 0, held: 0, complete: false });
        self.first + self.open.len() as u64 - 1
    }

    /// Where the latest transaction ends, if that was not known when it began.
    pub(crate) fn ends(&mut self, end: Lsn) {
        if let Some(open) = self.open.back_mut() {
            open.end = open.end.max(end);
        }
    }

    /// A frame of the latest transaction has come, with so many events; `last` if the transaction ends with it.
    pub(crate) fn frame(&mut self, events: usize, last: bool) {
        let Some(open) = self.open.back_mut() else { return };
        open.events += events;
        open.complete = last;
        if last {
            self.received = self.received.max(open.end);
        }
    }

    /// The server has sent everything up to here.
    pub(crate) fn keepalive(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        match self.open.back_mut() {
            // Counts once that transaction is durable. If it is still being sent, `wal_end` lies before its commit.
            Some(open) => open.end = open.end.max(wal_end),
            None => {
                self.dispatched = self.dispatched.max(wal_end);
                self.durable = self.durable.max(wal_end);
            }
        }
        self.check();
    }

    /// The last event of a transaction has been handed out.
    pub(crate) fn dispatched(&mut self, end: Lsn) {
        self.dispatched = self.dispatched.max(end);
        self.received = self.received.max(end);
    }

    /// The application gets an event of the transaction with this number.
    pub(crate) fn hold(&mut self, number: u64) {
        if let Some(open) = self.open(number) {
            open.held += 1;
        }
    }

    /// The first transaction that is not durable and how many of its events are left, if the application holds one of them: as long
    /// as that stays the same, the application stands still.
    pub(crate) fn held(&self) -> Option<(u64, usize)> {
        self.open.front().filter(|open| open.held > 0).map(|open| (self.first, open.events))
    }

    fn open(&mut self, number: u64) -> Option<&mut Open> {
        number.checked_sub(self.first).and_then(|index| self.open.get_mut(usize::try_from(index).ok()?))
    }

    /// An event of the transaction with this number is acknowledged. True if `durable` rose.
    pub(crate) fn acknowledge(&mut self, number: u64) -> bool {
        let Some(open) = self.open(number) else { return false };
        open.events = open.events.saturating_sub(1);
        open.held = open.held.saturating_sub(1);
        self.settle()
    }

    /// Moves `durable` over the transactions at the front that are finished.
    pub(crate) fn settle(&mut self) -> bool {
        let before = self.durable;
        while let Some(open) = self.open.front().filter(|open| open.complete && open.events == 0) {
            self.durable = self.durable.max(open.end);
            self.dispatched = self.dispatched.max(self.durable);
            self.received = self.received.max(self.durable);
            self.open.pop_front();
            self.first += 1;
        }
        self.check();
        self.durable > before
    }

    /// The position to tell the server; it counts as told from here on.
    pub(crate) fn confirm(&mut self) -> Lsn {
        self.confirmed = self.durable;
        self.confirmed
    }

    /// True if the server has not been told of all that is durable.
    pub(crate) fn is_confirmation_due(&self) -> bool {
        self.durable > self.confirmed
    }

    /// True if every event that has come is acknowledged.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Transactions that are finished, as are all before them.
    pub(crate) fn settled(&self) -> u64 {
        self.first
    }

    pub(crate) fn positions(&self) -> Positions {
        let Self { received, dispatched, durable, confirmed, .. } = *self;
        Positions { received, dispatched, durable, confirmed }
    }

    fn check(&self) {
        debug_assert!(self.received >= self.dispatched, "{self:?}");
        debug_assert!(self.dispatched >= self.durable, "{self:?}");
        debug_assert!(self.durable >= self.confirmed, "{self:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transaction(progress: &mut Progress, end: u64, events: usize) -> u64 {
        let number = progress.begin(Lsn(end));
        progress.frame(events, true);
        progress.dispatched(Lsn(end));
        number
    }

    #[test]
    fn the_end_of_the_commit_is_confirmed_when_all_before_it_is_acknowledged() {
        let mut progress = Progress::default();
        let (a, b) = (transaction(&mut progress, 10, 1), transaction(&mut progress, 20, 2));
        assert!(!progress.acknowledge(b));
        assert!(!progress.acknowledge(b));
        assert_eq!(progress.confirm(), Lsn(0), "the later one alone confirms nothing");
        assert!(progress.acknowledge(a));
        assert_eq!(progress.confirm(), Lsn(20));
        assert!(progress.is_idle());
    }

    #[test]
    fn an_end_that_comes_with_the_last_frame_is_what_is_confirmed() {
        let mut progress = Progress::default();
        // Just behind the commit record's start.
        let number = progress.begin(Lsn(11));
        progress.frame(1, false);
        assert!(!progress.acknowledge(number));
        progress.ends(Lsn(20));
        progress.frame(1, true);
        assert!(progress.acknowledge(number));
        assert_eq!((progress.confirm(), progress.positions().received), (Lsn(20), Lsn(20)));
        assert!(progress.is_durable(Lsn(11)), "it need not come twice");
    }

    #[test]
    fn a_transaction_that_is_still_being_sent_is_not_durable() {
        let mut progress = Progress::default();
        let number = progress.begin(Lsn(10));
        progress.frame(1, false);
        assert!(!progress.acknowledge(number));
        progress.frame(1, true);
        assert!(!progress.settle());
        assert!(progress.acknowledge(number));
        assert_eq!(progress.confirm(), Lsn(10));
    }

    #[test]
    fn a_keepalive_counts_when_nothing_before_it_is_open() {
        let mut progress = Progress::default();
        progress.keepalive(Lsn(5));
        assert_eq!(progress.confirm(), Lsn(5));
        let number = transaction(&mut progress, 10, 1);
        progress.keepalive(Lsn(30));
        assert_eq!(progress.confirm(), Lsn(5), "the transaction lies below");
        assert!(progress.acknowledge(number));
        assert_eq!(progress.confirm(), Lsn(30));
    }

    #[test]
    fn acknowledgements_from_before_a_reconnect_do_nothing() {
        let mut progress = Progress::default();
        let old = transaction(&mut progress, 10, 1);
        progress.reconnected();
        let new = transaction(&mut progress, 10, 1);
        assert!(!progress.acknowledge(old));
        assert_eq!(progress.confirm(), Lsn(0));
        assert!(progress.acknowledge(new));
        assert_eq!(progress.confirm(), Lsn(10));
        assert!(progress.is_durable(Lsn(10)) && !progress.is_durable(Lsn(11)));
    }

    #[test]
    fn what_is_held_is_known_until_it_is_acknowledged() {
        let mut progress = Progress::default();
        let (a, b) = (transaction(&mut progress, 10, 2), transaction(&mut progress, 20, 1));
        assert_eq!(progress.held(), None, "it waits to be taken");
        progress.hold(a);
        progress.hold(b);
        assert_eq!(progress.held(), Some((a, 2)));
        progress.acknowledge(b);
        assert_eq!(progress.held(), Some((a, 2)), "the first one stands still");
        progress.acknowledge(a);
        assert_eq!(progress.held(), None, "the rest waits to be taken");
        progress.hold(a);
        assert_eq!(progress.held(), Some((a, 1)));
        progress.reconnected();
        assert_eq!(progress.held(), None);
    }

    #[test]
    fn positions_of_another_server_are_forgotten_and_numbers_go_on() {
        let mut progress = Progress::default();
        assert!(progress.is_at((1, 1)));
        let old = transaction(&mut progress, 10, 1);
        assert!(progress.acknowledge(old) && progress.is_at((1, 1)));
        let open = transaction(&mut progress, 20, 1);
        assert!(!progress.is_at((1, 2)));
        assert_eq!(progress.positions(), Positions::default());
        let new = transaction(&mut progress, 5, 1);
        assert!(!progress.acknowledge(open) && progress.acknowledge(new));
        assert_eq!((progress.confirm(), progress.is_at((1, 2))), (Lsn(5), true));
    }

    proptest! {
        /// Whatever the order of acknowledgements, what is durable is the end of the longest finished prefix.
        #[test]
        fn durable_is_the_low_watermark(sizes in prop::collection::vec(1..4_usize, 1..9), seed: u64) {
            let mut progress = Progress::default();
            let mut pending = Vec::new();
            let mut left = Vec::new();
            for (index, &size) in sizes.iter().enumerate() {
                let number = transaction(&mut progress, 10 * (index as u64 + 1), size);
                pending.extend(std::iter::repeat_n((index, number), size));
                left.push(size);
            }
            let mut seed = seed;
            while !pending.is_empty() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (index, number) = pending.swap_remove((seed >> 33) as usize % pending.len());
                left[index] -= 1;
                progress.acknowledge(number);
                let finished = left.iter().take_while(|left| **left == 0).count() as u64;
                prop_assert_eq!(progress.confirm(), Lsn(10 * finished));
            }
        }
    }
}
