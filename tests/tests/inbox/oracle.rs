//! A model of an inbox that is nothing but rules, and random operations on it.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;

/// Numbers in operations are taken modulo what there is when they come, so that a sequence of which some are left out makes sense too.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Messages in one statement.
    Insert(Vec<Arrival>),
    /// One by `inbox_receive`.
    Receive(Arrival),
    /// Some by `inbox_receive_batch`.
    ReceiveBatch(Vec<Arrival>),
    Claim {
        most: usize,
        /// Of this tier only, where there are tiers.
        tier: Option<usize>,
    },
    Complete {
        picks: Vec<Pick>,
    },
    Fail {
        pick: Pick,
        at_once: bool,
    },
    Extend {
        picks: Vec<Pick>,
    },
    Release {
        picks: Vec<Pick>,
    },
    /// A number is not waited for any more.
    Skip {
        key: usize,
        number: i64,
    },
    /// The time of a worker is over.
    Expire {
        lease: usize,
    },
    /// Whatever has to be waited for is over: delays and backoffs, not leases.
    TimePasses,
    /// Messages are to be handed out again, which is for those that are dead or done.
    Replay {
        picks: Vec<Finished>,
    },
    ReplayDead {
        dry_run: bool,
    },
    Discard {
        picks: Vec<Finished>,
    },
    /// Retention is over for all that is done with by now.
    Forget,
    Pause {
        tier: Option<usize>,
    },
    Resume {
        tier: Option<usize>,
    },
    /// Order is asked for, or given up.
    Order(bool),
    Tiers(bool),
}

#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) id: usize,
    pub(super) payload: u8,
    pub(super) priority: Option<i32>,
    /// Aggregate and sequence number.
    pub(super) place: Option<(usize, i64)>,
    pub(super) delayed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Pick {
    pub(super) message: usize,
    pub(super) token: Token,
}

/// One of those that are dead or done, or any message that there may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Finished {
    Nth(usize),
    Any(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    Right,
    /// One that the message had before.
    Earlier(usize),
    /// That of another message.
    Foreign(usize),
}

pub(super) fn random_ops(rng: &mut StdRng) -> Vec<Op> {
    let arrival = |rng: &mut StdRng| Arrival {
        id: rng.random_range(0..40),
        payload: rng.random_range(0..20) / 19,
        priority: [None, Some(0), Some(5), Some(9)][rng.random_range(0..4)],
        // Small numbers more often, so that lanes have heads and these have followers.
        place: rng
            .random_bool(0.85)
            .then(|| (rng.random_range(0..4), rng.random_range(1..9).min(rng.random_range(1..9)))),
        delayed: rng.random_bool(0.2),
    };
    let pick = |rng: &mut StdRng| Pick {
        message: rng.random_range(0..1000),
        token: match rng.random_range(0..8) {
            0 => Token::Earlier(rng.random_range(0..1000)),
            1 => Token::Foreign(rng.random_range(0..1000)),
            _ => Token::Right,
        },
    };
    let picks = |rng: &mut StdRng| (0..rng.random_range(1..4)).map(|_| pick(rng)).collect();
    let finished = |rng: &mut StdRng| {
        let one = |rng: &mut StdRng| match rng.random_range(0..12) {
            0 => Finished::Any(rng.random_range(0..41)),
            _ => Finished::Nth(rng.random_range(0..1000)),
        };
        (0..rng.random_range(1..4)).map(|_| one(rng)).collect()
    };
    let tier = |rng: &mut StdRng| rng.random_bool(0.4).then(|| rng.random_range(0..2));
    (0..rng.random_range(20..110))
        .map(|_| match rng.random_range(0..28) {
            0..2 => Op::Insert((0..rng.random_range(1..8)).map(|_| arrival(rng)).collect()),
            2..4 => Op::ReceiveBatch((0..rng.random_range(1..8)).map(|_| arrival(rng)).collect()),
            4..6 => Op::Receive(arrival(rng)),
            6..11 => Op::Claim { most: rng.random_range(1..9), tier: tier(rng) },
            11..14 => Op::Complete { picks: picks(rng) },
            14..16 => Op::Fail { pick: pick(rng), at_once: rng.random_bool(0.5) },
            16 => Op::Extend { picks: picks(rng) },
            17 => Op::Release { picks: picks(rng) },
            18..20 => Op::Expire { lease: rng.random_range(0..1000) },
            20 => Op::Skip { key: rng.random_range(0..4), number: rng.random_range(1..6) },
            21 => Op::TimePasses,
            22 => Op::Replay { picks: finished(rng) },
            23 if rng.random_bool(0.5) => Op::ReplayDead { dry_run: rng.random_bool(0.2) },
            23 => Op::Discard { picks: finished(rng) },
            24 if rng.random_bool(0.6) => Op::Forget,
            24 if rng.random_bool(0.4) => Op::Pause { tier: tier(rng) },
            24 => Op::Resume { tier: tier(rng) },
            25..27 => Op::Fail { pick: pick(rng), at_once: false },
            _ if rng.random_bool(0.5) => Op::Order(rng.random_bool(0.6)),
            _ => Op::Tiers(rng.random_bool(0.6)),
        })
        .collect()
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) ordered: bool,
    pub(super) tiered: bool,
    pub(super) policy: &'static str,
    pub(super) max_retries: i32,
    /// Ids are known for longer than their messages are kept.
    pub(super) remembers: bool,
    /// Dead letters are kept no longer than messages.
    pub(super) expires_dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    No,
    /// Of a batch of which some messages were given more time, all may have been.
    Perhaps,
    Yes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not in its lane yet: that is done by a claim.
    Arrived,
    Waiting,
    Leased {
        token: i64,
        alone: bool,
        expiry: Expiry,
    },
    Done,
    Dead,
    Discarded,
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) payload: u8,
    pub(super) place: Option<(usize, i64)>,
    pub(super) priority: Option<i32>,
    /// It is handed out again beside its aggregate, which has gone on without it.
    pub(super) beside: bool,
    /// Not to be handed out before time passes, by its own word or for whatever reason.
    pub(super) delayed: bool,
    pub(super) later: bool,
    pub(super) stage: Stage,
    pub(super) attempts: i32,
    pub(super) crashes: i32,
    /// All that it has had.
    pub(super) tokens: Vec<i64>,
}

impl Message {
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Dead | Stage::Discarded)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) next: i64,
    pub(super) skipped: BTreeSet<i64>,
    /// The dead letter that it waits for.
    pub(super) blocked: Option<String>,
}

impl Default for Lane {
    fn default() -> Self {
        Lane { next: 1, skipped: BTreeSet::new(), blocked: None }
    }
}

impl Lane {
    pub(super) fn advance(&mut self) {
        self.blocked = None;
        self.next += 1;
        while self.skipped.contains(&self.next) {
            self.next += 1;
        }
    }
}

pub(super) struct Model {
    pub(super) settings: Settings,
    pub(super) messages: BTreeMap<String, Message>,
    pub(super) lanes: BTreeMap<usize, Lane>,
    /// Ids whose messages are gone, and which are duplicates all the same.
    pub(super) remembered: BTreeSet<String>,
    pub(super) is_paused: bool,
    pub(super) paused_tiers: BTreeSet<usize>,
    pub(super) counts: Counts,
}

/// Since the inbox was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) processed: i64,
    /// After which a message was to be tried again.
    pub(super) failed_attempts: i64,
    pub(super) duplicates: i64,
    pub(super) conflicts: i64,
    pub(super) discarded: i64,
}

impl Model {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            messages: BTreeMap::new(),
            lanes: BTreeMap::new(),
            remembered: BTreeSet::new(),
            is_paused: false,
            paused_tiers: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn place(&self, message: &Message) -> Option<(usize, i64)> {
        message.place.filter(|_| self.settings.ordered && !message.beside)
    }

    /// 0: from priority 5 on, 1: below.
    pub(super) fn tier(&self, message: &Message) -> usize {
        usize::from(self.settings.tiered && message.priority.unwrap_or(0) < 5)
    }

    /// The tiers that a claim serves, the first one first.
    fn served(&self, tier: Option<usize>) -> Vec<usize> {
        match tier.filter(|_| self.settings.tiered) {
            _ if self.is_paused => vec![],
            Some(tier) => vec![tier],
            None if self.settings.tiered => vec![0, 1],
            None => vec![0],
        }
        .into_iter()
        .filter(|tier| !self.paused_tiers.contains(tier))
        .collect()
    }

    pub(super) fn receive(&mut self, arrival: &Arrival) -> &'static str {
        let id = format!("m{}", arrival.id);
        if self.remembered.contains(&id) {
            self.counts.duplicates += 1;
            return "duplicate";
        }
        if let Some(known) = self.messages.get(&id) {
            let is_same = known.payload == arrival.payload;
            self.counts.duplicates += 1;
            self.counts.conflicts += i64::from(!is_same);
            return if is_same { "duplicate" } else { "conflict" };
        }
        let ordered = self.settings.ordered && arrival.place.is_some();
        let message = Message {
            payload: arrival.payload,
            place: arrival.place,
            priority: arrival.priority,
            beside: false,
            delayed: arrival.delayed,
            later: arrival.delayed,
            stage: if ordered { Stage::Arrived } else { Stage::Waiting },
            attempts: 0,
            crashes: 0,
            tokens: Vec::new(),
        };
        self.messages.insert(id, message);
        "received"
    }

    /// Puts what has arrived into its place. Of two for the same place one is a dead letter, which of them is the database's choice.
    /// Nobody does it for tiers behind `through`.
    pub(super) fn sort(&mut self, dead: &BTreeSet<String>, through: usize) {
        let mut groups: BTreeMap<(usize, i64), Vec<String>> = BTreeMap::new();
        let arrived = self.messages.iter().filter(|(_, message)| message.stage == Stage::Arrived);
        let sorted: Vec<String> =
            arrived.filter(|(_, message)| self.tier(message) <= through).map(|(id, _)| id.clone()).collect();
        for id in sorted {
            let message = self.messages.get_mut(&id).unwrap();
            match message.place {
                Some(place) => groups.entry(place).or_default().push(id),
                None => message.stage = Stage::Waiting,
            }
        }
        for ((key, number), ids) in groups {
            let lane = self.lanes.entry(key).or_default().clone();
            let taken = self.messages.values().any(|message| {
                self.place(message) == Some((key, number))
                    && matches!(message.stage, Stage::Waiting | Stage::Leased { .. })
            });
            let passed = number < lane.next || lane.skipped.contains(&number);
            let taken = taken || (lane.blocked.is_some() && number == lane.next);
            let survivors: Vec<&String> = ids.iter().filter(|id| !dead.contains(*id)).collect();
            assert_eq!(
                survivors.len(),
                usize::from(!passed && !taken),
                "{ids:?} for place {number} of {key}, {lane:?}"
            );
            for id in &ids {
                let stage = if dead.contains(id) { Stage::Dead } else { Stage::Waiting };
                self.messages.get_mut(id).unwrap().stage = stage;
            }
        }
    }

    pub(super) fn claimable(&self, tiers: &[usize]) -> BTreeSet<String> {
        let can_be = |message: &Message| {
            message.stage == Stage::Waiting
                && !message.later
                && tiers.contains(&self.tier(message))
                && self.place(message).is_none_or(|(key, number)| {
                    let lane = &self.lanes[&key];
                    number == lane.next && lane.blocked.is_none()
                })
        };
        self.messages.iter().filter(|(_, message)| can_be(message)).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn bury(&mut self, id: &str) {
        self.messages.get_mut(id).unwrap().stage = Stage::Dead;
        if let Some((key, _)) = self.place(&self.messages[id]) {
            let lane = self.lanes.get_mut(&key).unwrap();
            if self.settings.policy == "skip" {
                lane.advance();
            } else {
                lane.blocked = Some(id.to_owned());
            }
        }
    }

    /// A lease that has run out is taken away.
    pub(super) fn reap(&mut self, id: &str) {
        let max_retries = self.settings.max_retries;
        let message = self.messages.get_mut(id).unwrap();
        let Stage::Leased { alone, expiry, .. } = message.stage else { panic!("{id} is not leased") };
        assert_ne!(expiry, Expiry::No, "{id} was taken from its worker in time");
        if alone && message.attempts > max_retries {
            self.bury(id);
        } else {
            self.counts.failed_attempts += 1;
            message.stage = Stage::Waiting;
            message.crashes = if message.attempts > max_retries { 2 } else { message.crashes + 1 };
        }
    }

    /// Leases that somebody has taken away.
    pub(super) fn reap_lost(&mut self, held: &BTreeMap<String, i64>, all: bool) {
        let lost: Vec<String> =
            self.leases().filter(|(id, token)| held.get(*id) != Some(token)).map(|(id, _)| id.clone()).collect();
        for (id, message) in &self.messages {
            let over = matches!(message.stage, Stage::Leased { expiry: Expiry::Yes, .. });
            assert!(!(over && all) || lost.contains(id), "the lease of {id} is over");
        }
        for id in &lost {
            self.reap(id);
        }
    }

    /// What a claim returned, against what it could.
    pub(super) fn claim(&mut self, most: usize, tier: Option<usize>, claimed: &[Claimed], seen: &Seen) {
        let tiers = self.served(tier);
        let Some(&last) = tiers.last() else {
            assert!(claimed.is_empty(), "handed out while paused: {claimed:?}");
            return;
        };
        self.sort(&seen.dead, last);
        let is_suspect = |model: &Self, id: &String| model.messages[id].crashes >= 2;
        // Who finds nothing that is handed out in company looks for what never came back, and one claim in eight does so first.
        let tidying = seen.token % 8 == 0 || self.claimable(&tiers).iter().all(|id| is_suspect(self, id));
        self.reap_lost(&seen.held, tidying);
        // What was taken back may be handed out by the same claim.
        let ready = self.claimable(&tiers);
        assert_eq!(claimed.is_empty(), ready.is_empty(), "{claimed:?}, ready: {ready:?}");
        let suspect = claimed.iter().any(|got| is_suspect(self, &got.id));
        let first = tidying && ready.iter().any(|id| is_suspect(self, id));
        assert_eq!(suspect, first, "{claimed:?}, ready: {ready:?}");
        // As many as there are, of the first tiers first: it leaves a batch only if that would be too many.
        for (waiting, size) in seen.waits.iter().filter(|(waiting, _)| tiers.contains(waiting)) {
            let before = claimed.iter().filter(|got| self.tier(&self.messages[&got.id]) <= *waiting).count();
            assert!(suspect || before + size > most, "{claimed:?} of {most}: {seen:?}");
        }
        let ids: BTreeSet<&String> = claimed.iter().map(|claimed| &claimed.id).collect();
        assert_eq!(ids.len(), claimed.len(), "handed out twice: {claimed:?}");
        assert!(ids.len() <= most, "more than asked for: {claimed:?}");
        assert!(ids.iter().all(|id| ready.contains(*id)), "{claimed:?}, ready: {ready:?}");
        assert!(!suspect || ids.len() == 1, "who may kill its worker is alone: {claimed:?}");
        let newest = self.messages.values().flat_map(|message| &message.tokens).max().copied().unwrap_or_default();
        for got in claimed {
            assert!(got.token > newest && got.token == seen.token, "{claimed:?}");
            let message = self.messages.get_mut(&got.id).unwrap();
            message.attempts += 1;
            message.tokens.push(got.token);
            message.stage = Stage::Leased { token: got.token, alone: claimed.len() == 1, expiry: Expiry::No };
            let place = message.place.map(|(key, number)| (format!("a{key}"), number));
            let expected = (message.attempts, message.payload.to_string(), place);
            assert_eq!((got.attempts, got.payload.clone(), got.place.clone()), expected, "{}", got.id);
        }
    }

    /// All numbers that are waited for.
    pub(super) fn missing(&self) -> BTreeSet<(usize, i64)> {
        let all = (0..4).flat_map(|key| (1..10).map(move |number| (key, number)));
        all.filter(|(key, number)| self.is_missing(*key, *number)).collect()
    }

    /// Whether the number is one of a gap: something behind it has come. What has come and is not in its lane yet counts.
    pub(super) fn is_missing(&self, key: usize, number: i64) -> bool {
        let lane = self.lanes.get(&key).cloned().unwrap_or_default();
        let has_come = |n: i64| {
            n == lane.next && lane.blocked.is_some()
                || self.messages.values().any(|message| {
                    self.place(message) == Some((key, n))
                        && matches!(message.stage, Stage::Arrived | Stage::Waiting | Stage::Leased { .. })
                })
        };
        let free = |n: i64| n >= lane.next && !lane.skipped.contains(&n);
        free(number) && !has_come(number) && (number..10).any(|n| free(n) && has_come(n))
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = (&String, i64)> {
        self.messages.iter().filter_map(|(id, message)| match message.stage {
            Stage::Leased { token, .. } => Some((id, token)),
            _ => None,
        })
    }

    /// Messages and tokens that were picked, each message once; of those that are leased, if any, where the token is to be right.
    pub(super) fn resolve(&self, picks: &[Pick]) -> Vec<(String, i64)> {
        let leased: Vec<&String> = self.leases().map(|(id, _)| id).collect();
        let all: Vec<&String> = self.messages.keys().collect();
        let tokens: Vec<i64> = self.messages.values().flat_map(|message| message.tokens.iter().copied()).collect();
        let mut resolved: BTreeMap<String, i64> = BTreeMap::new();
        for pick in picks {
            let from = if leased.is_empty() { &all } else { &leased };
            let Some(id) = from.get(pick.message % from.len().max(1)) else { continue };
            let had = &self.messages[*id].tokens;
            let token = match pick.token {
                Token::Right => had.last().copied(),
                Token::Earlier(n) => (!had.is_empty()).then(|| had[n % had.len()]),
                Token::Foreign(n) => (!tokens.is_empty()).then(|| tokens[n % tokens.len()]),
            };
            resolved.insert((*id).clone(), token.unwrap_or(0));
        }
        resolved.into_iter().collect()
    }

    pub(super) fn all_held(&self, picked: &[(String, i64)]) -> bool {
        picked
            .iter()
            .all(|(id, token)| matches!(self.messages[id].stage, Stage::Leased { token: held, .. } if held == *token))
    }

    pub(super) fn complete(&mut self, id: &str) {
        self.messages.get_mut(id).unwrap().stage = Stage::Done;
        self.counts.processed += 1;
        if let Some((key, _)) = self.place(&self.messages[id]) {
            self.lanes.get_mut(&key).unwrap().advance();
        }
    }

    pub(super) fn fail(&mut self, id: &str, at_once: bool) -> &'static str {
        let max_retries = self.settings.max_retries;
        let message = self.messages.get_mut(id).unwrap();
        if message.attempts > max_retries {
            self.bury(id);
            return "dead";
        }
        self.counts.failed_attempts += 1;
        message.stage = Stage::Waiting;
        message.crashes = 0;
        message.later = !at_once;
        "retry"
    }

    pub(super) fn release(&mut self, id: &str) {
        let message = self.messages.get_mut(id).unwrap();
        message.stage = Stage::Waiting;
        message.attempts -= 1;
    }

    pub(super) fn extend(&mut self, ids: &[(String, i64)]) {
        for (id, message) in &mut self.messages {
            if let Stage::Leased { token, expiry, .. } = &mut message.stage {
                if ids.iter().any(|(picked, _)| picked == id) {
                    *expiry = Expiry::No;
                } else if *expiry == Expiry::Yes && ids.iter().any(|(_, picked)| picked == token) {
                    *expiry = Expiry::Perhaps;
                }
            }
        }
    }

    pub(super) fn pick_finished(&self, picks: &[Finished]) -> BTreeSet<String> {
        let finished: Vec<&String> =
            self.messages.iter().filter(|(_, message)| message.is_finished()).map(|(id, _)| id).collect();
        picks
            .iter()
            .filter_map(|pick| match pick {
                Finished::Nth(n) => finished.get(n % finished.len().max(1)).map(|id| (*id).clone()),
                Finished::Any(id) => Some(format!("m{id}")),
            })
            .collect()
    }

    pub(super) fn dead(&self) -> BTreeSet<String> {
        let dead = self.messages.iter().filter(|(_, message)| message.stage == Stage::Dead);
        dead.map(|(id, _)| id.clone()).collect()
    }

    /// The lane that waits for this dead letter.
    fn waits_for(&mut self, id: &str) -> Option<&mut Lane> {
        self.lanes.values_mut().find(|lane| lane.blocked.as_deref() == Some(id))
    }

    pub(super) fn replay(&mut self, id: &str) {
        let lane = self.waits_for(id);
        let beside = lane.is_none();
        if let Some(lane) = lane {
            lane.blocked = None;
        }
        let message = self.messages.get_mut(id).unwrap();
        message.beside = beside;
        message.stage = Stage::Waiting;
        message.later = false;
        message.attempts = 0;
        message.crashes = 0;
    }

    pub(super) fn discard(&mut self, id: &str) {
        if let Some(lane) = self.waits_for(id) {
            lane.advance();
        }
        self.messages.get_mut(id).unwrap().stage = Stage::Discarded;
        self.counts.discarded += 1;
    }

    pub(super) fn forget(&mut self, held: &BTreeMap<String, i64>) {
        let gone = |message: &Message| matches!(message.stage, Stage::Done | Stage::Discarded);
        if self.settings.remembers {
            let ids = self.messages.iter().filter(|(_, message)| gone(message)).map(|(id, _)| id.clone());
            self.remembered.extend(ids);
        }
        self.messages.retain(|_, message| !gone(message));
        if self.settings.expires_dead {
            for id in self.dead() {
                if self.waits_for(&id).is_none() {
                    self.discard(&id);
                }
            }
        }
        self.reap_lost(held, true);
    }

    /// What waits is sorted as if it had arrived now; what is done with is not waited for.
    pub(super) fn enable_order(&mut self) {
        for message in self.messages.values_mut() {
            message.beside = false;
            if message.stage == Stage::Waiting {
                message.later = message.delayed;
                message.attempts = 0;
                message.crashes = 0;
                message.stage = Stage::Arrived;
            }
        }
        self.settings.ordered = true;
        for key in 0..4 {
            let of_key = || {
                self.messages.values().filter_map(move |message| {
                    message.place.filter(|place| place.0 == key).map(|place| (place.1, message.is_finished()))
                })
            };
            let done: BTreeSet<i64> = of_key().filter(|(_, done)| *done).map(|(number, _)| number).collect();
            let Some(lowest) = of_key().map(|(number, _)| number).min().filter(|_| !done.is_empty()) else { continue };
            let mut lane = Lane { next: lowest - 1, skipped: done, blocked: None };
            lane.advance();
            self.lanes.insert(key, lane);
        }
    }

    /// Everybody keeps what he has been handed.
    pub(super) fn disable_order(&mut self) {
        for message in self.messages.values_mut() {
            message.beside = false;
            if message.stage == Stage::Arrived {
                message.stage = Stage::Waiting;
            }
        }
        self.lanes.clear();
        self.settings.ordered = false;
    }
}

#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) id: String,
    pub(super) token: i64,
    pub(super) attempts: i32,
    pub(super) payload: String,
    pub(super) place: Option<(String, i64)>,
}

/// What the database says after a claim.
#[derive(Debug)]
pub(super) struct Seen {
    /// The last that was given.
    pub(super) token: i64,
    pub(super) held: BTreeMap<String, i64>,
    pub(super) dead: BTreeSet<String>,
    /// How many messages the first batch of each tier has that is still there.
    pub(super) waits: Vec<(usize, usize)>,
}
