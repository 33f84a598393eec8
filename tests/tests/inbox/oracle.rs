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
    Claim {
        most: usize,
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
}

#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) id: usize,
    pub(super) payload: u8,
    /// Aggregate and sequence number.
    pub(super) place: Option<(usize, i64)>,
    pub(super) delayed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Pick {
    pub(super) message: usize,
    pub(super) token: Token,
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
        place: rng.random_bool(0.85).then(|| (rng.random_range(0..4), rng.random_range(1..9))),
        delayed: rng.random_bool(0.1),
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
    (0..rng.random_range(20..90))
        .map(|_| match rng.random_range(0..20) {
            0..3 => Op::Insert((0..rng.random_range(1..8)).map(|_| arrival(rng)).collect()),
            3..6 => Op::Receive(arrival(rng)),
            6..10 => Op::Claim { most: rng.random_range(1..9) },
            10..13 => Op::Complete { picks: picks(rng) },
            13..15 => Op::Fail { pick: pick(rng), at_once: rng.random_bool(0.5) },
            15 => Op::Extend { picks: picks(rng) },
            16 => Op::Release { picks: picks(rng) },
            17..19 => Op::Expire { lease: rng.random_range(0..1000) },
            _ if rng.random_bool(0.5) => Op::Skip { key: rng.random_range(0..4), number: rng.random_range(1..6) },
            _ => Op::TimePasses,
        })
        .collect()
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) ordered: bool,
    pub(super) policy: &'static str,
    pub(super) max_retries: i32,
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
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) payload: u8,
    pub(super) place: Option<(usize, i64)>,
    /// Not to be handed out before time passes.
    pub(super) later: bool,
    pub(super) stage: Stage,
    pub(super) attempts: i32,
    pub(super) crashes: i32,
    /// All that it has had.
    pub(super) tokens: Vec<i64>,
}

#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) next: i64,
    pub(super) skipped: BTreeSet<i64>,
    pub(super) blocked: bool,
}

impl Lane {
    pub(super) fn advance(&mut self) {
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
}

impl Model {
    pub(super) fn place(&self, message: &Message) -> Option<(usize, i64)> {
        message.place.filter(|_| self.settings.ordered)
    }

    pub(super) fn receive(&mut self, arrival: &Arrival) -> &'static str {
        let id = format!("m{}", arrival.id);
        if let Some(known) = self.messages.get(&id) {
            return if known.payload == arrival.payload { "duplicate" } else { "conflict" };
        }
        let ordered = self.settings.ordered && arrival.place.is_some();
        let message = Message {
            payload: arrival.payload,
            place: arrival.place,
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
    pub(super) fn sort(&mut self, dead: &BTreeSet<String>) {
        let mut groups: BTreeMap<(usize, i64), Vec<String>> = BTreeMap::new();
        for (id, message) in &self.messages {
            if message.stage == Stage::Arrived {
                groups.entry(message.place.unwrap()).or_default().push(id.clone());
            }
        }
        for ((key, number), ids) in groups {
            let lane =
                self.lanes.entry(key).or_insert(Lane { next: 1, skipped: BTreeSet::new(), blocked: false }).clone();
            let taken = self.messages.values().any(|message| {
                message.place == Some((key, number)) && matches!(message.stage, Stage::Waiting | Stage::Leased { .. })
            });
            let passed = number < lane.next || lane.skipped.contains(&number);
            let taken = taken || (lane.blocked && number == lane.next);
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

    pub(super) fn claimable(&self) -> BTreeSet<String> {
        let can_be = |message: &Message| {
            message.stage == Stage::Waiting
                && !message.later
                && self.place(message).is_none_or(|(key, number)| {
                    let lane = &self.lanes[&key];
                    number == lane.next && !lane.blocked
                })
        };
        self.messages.iter().filter(|(_, message)| can_be(message)).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn bury(&mut self, id: &str) {
        let message = self.messages.get_mut(id).unwrap();
        message.stage = Stage::Dead;
        let place = message.place;
        if let Some((key, _)) = place.filter(|_| self.settings.ordered) {
            let lane = self.lanes.get_mut(&key).unwrap();
            if self.settings.policy == "skip" {
                lane.advance();
            } else {
                lane.blocked = true;
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
            message.stage = Stage::Waiting;
            message.crashes = if message.attempts > max_retries { 2 } else { message.crashes + 1 };
        }
    }

    /// What a claim returned, against what it could.
    pub(super) fn claim(&mut self, most: usize, claimed: &[Claimed], seen: &Seen) {
        self.sort(&seen.dead);
        let is_suspect = |model: &Self, id: &String| model.messages[id].crashes >= 2;
        // Who finds nothing that is handed out in company looks for what never came back, and one claim in eight does so first.
        let tidying = seen.token % 8 == 0 || self.claimable().iter().all(|id| is_suspect(self, id));
        let lost: Vec<String> =
            self.leases().filter(|(id, token)| seen.held.get(*id) != Some(token)).map(|(id, _)| id.clone()).collect();
        for (id, message) in &self.messages {
            let over = matches!(message.stage, Stage::Leased { expiry: Expiry::Yes, .. });
            assert!(!(over && tidying) || lost.contains(id), "the lease of {id} is over");
        }
        for id in &lost {
            self.reap(id);
        }
        // What was taken back may be handed out by the same claim.
        let ready = self.claimable();
        assert_eq!(claimed.is_empty(), ready.is_empty(), "{claimed:?}, ready: {ready:?}");
        let suspect = claimed.iter().any(|got| is_suspect(self, &got.id));
        let first = tidying && ready.iter().any(|id| is_suspect(self, id));
        assert_eq!(suspect, first, "{claimed:?}, ready: {ready:?}");
        // As many as there are: it ends before a batch that would be too many.
        assert!(
            suspect || seen.waits.is_none_or(|waits| claimed.len() + waits > most),
            "{claimed:?} of {most}: {seen:?}"
        );
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

    /// Whether the number is one of a gap: something behind it has come. What has come and is not in its lane yet counts.
    pub(super) fn is_missing(&self, key: usize, number: i64) -> bool {
        let lane = self.lanes.get(&key).cloned().unwrap_or(Lane { next: 1, skipped: BTreeSet::new(), blocked: false });
        let has_come = |n: i64| {
            n == lane.next && lane.blocked
                || self.messages.values().any(|message| {
                    message.place == Some((key, n))
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
        let message = self.messages.get_mut(id).unwrap();
        message.stage = Stage::Done;
        let place = message.place;
        if let Some((key, _)) = place.filter(|_| self.settings.ordered) {
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
    /// How many messages the first batch has that is still there.
    pub(super) waits: Option<usize>,
}
