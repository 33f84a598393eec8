//! Random operations on an inbox, and on a model of it that is nothing but rules: what the one says the other must.
//!
//! `POSTBOX_SEED` repeats one run, `POSTBOX_INBOX_RUNS` says how many there are. What fails is made as short as it gets before it is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::env;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;

use crate::sql::{row, run, start};

/// Numbers in operations are taken modulo what there is when they come, so that a sequence of which some are left out makes sense too.
#[derive(Clone, Debug)]
enum Op {
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
struct Arrival {
    id: usize,
    payload: u8,
    /// Aggregate and sequence number.
    place: Option<(usize, i64)>,
    delayed: bool,
}

#[derive(Clone, Debug)]
struct Pick {
    message: usize,
    token: Token,
}

#[derive(Clone, Copy, Debug)]
enum Token {
    Right,
    /// One that the message had before.
    Earlier(usize),
    /// That of another message.
    Foreign(usize),
}

fn random_ops(rng: &mut StdRng) -> Vec<Op> {
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
struct Settings {
    ordered: bool,
    policy: &'static str,
    max_retries: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    No,
    /// Of a batch of which some messages were given more time, all may have been.
    Perhaps,
    Yes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
struct Message {
    payload: u8,
    place: Option<(usize, i64)>,
    /// Not to be handed out before time passes.
    later: bool,
    stage: Stage,
    attempts: i32,
    crashes: i32,
    /// All that it has had.
    tokens: Vec<i64>,
}

#[derive(Clone, Debug)]
struct Lane {
    next: i64,
    skipped: BTreeSet<i64>,
    blocked: bool,
}

impl Lane {
    fn advance(&mut self) {
        self.next += 1;
        while self.skipped.contains(&self.next) {
            self.next += 1;
        }
    }
}

struct Model {
    settings: Settings,
    messages: BTreeMap<String, Message>,
    lanes: BTreeMap<usize, Lane>,
}

impl Model {
    fn place(&self, message: &Message) -> Option<(usize, i64)> {
        message.place.filter(|_| self.settings.ordered)
    }

    fn receive(&mut self, arrival: &Arrival) -> &'static str {
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
    fn sort(&mut self, dead: &BTreeSet<String>) {
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

    fn claimable(&self) -> BTreeSet<String> {
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

    fn bury(&mut self, id: &str) {
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
    fn reap(&mut self, id: &str) {
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
    fn claim(&mut self, most: usize, claimed: &[Claimed], seen: &Seen) {
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
    fn is_missing(&self, key: usize, number: i64) -> bool {
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

    fn leases(&self) -> impl Iterator<Item = (&String, i64)> {
        self.messages.iter().filter_map(|(id, message)| match message.stage {
            Stage::Leased { token, .. } => Some((id, token)),
            _ => None,
        })
    }

    /// Messages and tokens that were picked, each message once; of those that are leased, if any, where the token is to be right.
    fn resolve(&self, picks: &[Pick]) -> Vec<(String, i64)> {
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

    fn all_held(&self, picked: &[(String, i64)]) -> bool {
        picked
            .iter()
            .all(|(id, token)| matches!(self.messages[id].stage, Stage::Leased { token: held, .. } if held == *token))
    }

    fn complete(&mut self, id: &str) {
        let message = self.messages.get_mut(id).unwrap();
        message.stage = Stage::Done;
        let place = message.place;
        if let Some((key, _)) = place.filter(|_| self.settings.ordered) {
            self.lanes.get_mut(&key).unwrap().advance();
        }
    }

    fn fail(&mut self, id: &str, at_once: bool) -> &'static str {
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

    fn release(&mut self, id: &str) {
        let message = self.messages.get_mut(id).unwrap();
        message.stage = Stage::Waiting;
        message.attempts -= 1;
    }

    fn extend(&mut self, ids: &[(String, i64)]) {
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
struct Claimed {
    id: String,
    token: i64,
    attempts: i32,
    payload: String,
    place: Option<(String, i64)>,
}

/// What the database says after a claim.
#[derive(Debug)]
struct Seen {
    /// The last that was given.
    token: i64,
    held: BTreeMap<String, i64>,
    dead: BTreeSet<String>,
    /// How many messages the first batch has that is still there.
    waits: Option<usize>,
}

/// The inbox itself, by what anybody may call. Only who holds what, and what is dead, is looked up: where the inbox has a choice, the model follows.
struct Inbox<'a> {
    client: &'a Client,
    name: String,
}

impl Inbox<'_> {
    fn values(arrival: &Arrival) -> String {
        let (aggregate, number) = arrival
            .place
            .map_or(("NULL".to_owned(), "NULL".to_owned()), |(key, number)| (format!("'a{key}'"), number.to_string()));
        let visible = if arrival.delayed { "now() + interval '1 day'" } else { "NULL" };
        format!("'m{}', '{}', {aggregate}, {number}, {visible}", arrival.id, arrival.payload)
    }

    /// PB002 is `Err`; nothing else may happen.
    async fn verb(&self, call: &str) -> Result<String, ()> {
        match self.client.query_one(&format!("SELECT ({call})::text"), &[]).await {
            Ok(row) => Ok(row.get::<_, Option<String>>(0).unwrap_or_default()),
            Err(error) if error.code().is_some_and(|code| code.code() == "PB002") => Err(()),
            Err(error) => panic!("{call}: {error:?}"),
        }
    }

    async fn several(&self, verb: &str, picked: &[(String, i64)]) -> Result<String, ()> {
        let ids: Vec<&str> = picked.iter().map(|(id, _)| id.as_str()).collect();
        let tokens: Vec<String> = picked.iter().map(|(_, token)| token.to_string()).collect();
        self.verb(&format!("postbox.{verb}('{}', '{{{}}}', '{{{}}}')", self.name, ids.join(","), tokens.join(",")))
            .await
    }

    async fn claim(&self, most: usize) -> Vec<Claimed> {
        let sql = format!("SELECT * FROM postbox.inbox_claim('{}', 'worker', {most}) c", self.name);
        let sql = format!("SELECT event_id, token, attempts, payload::text, aggregate_id, sequence_num FROM ({sql}) c");
        let rows = self.client.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter()
            .map(|row| Claimed {
                id: row.get(0),
                token: row.get(1),
                attempts: row.get(2),
                payload: row.get(3),
                place: row.get::<_, Option<String>>(4).map(|key| (key, row.get(5))),
            })
            .collect()
    }

    async fn held(&self) -> BTreeMap<String, i64> {
        let sql = format!(
            "SELECT e, token FROM postbox.inbox_batch b JOIN postbox.inbox i ON i.id = b.inbox CROSS JOIN LATERAL unnest(event_ids) e
                WHERE i.name = '{0}' AND token IS NOT NULL",
            self.name
        );
        let rows = self.client.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn dead(&self) -> BTreeSet<String> {
        let sql = format!(
            "SELECT event_id FROM postbox.inbox_dead d JOIN postbox.inbox i ON i.id = d.inbox WHERE i.name = '{}'",
            self.name
        );
        self.client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn seen(&self) -> Seen {
        let sql = format!(
            "SELECT (SELECT last_value FROM postbox.inbox_token), (
                SELECT cardinality(b.event_ids) FROM postbox.inbox_batch b JOIN postbox.inbox i ON i.id = b.inbox
                WHERE i.name = '{}' AND b.tier >= 0 AND b.token IS NULL AND b.crashes < 2 AND b.ready_at < now() ORDER BY b.ready_at LIMIT 1)",
            self.name
        );
        let row = self.client.query_one(&sql, &[]).await.unwrap();
        let waits = row.get::<_, Option<i32>>(1).map(|size| usize::try_from(size).unwrap());
        Seen { token: row.get(0), held: self.held().await, dead: self.dead().await, waits }
    }

    async fn change(&self, sql: &str) {
        run(
            self.client,
            &sql.replace("$inbox", &format!("(SELECT id FROM postbox.inbox WHERE name = '{}')", self.name)),
        )
        .await;
    }

    async fn expire(&self, token: i64) {
        let sql =
            "UPDATE postbox.inbox_batch SET lease_until = now() - interval '1 s' WHERE inbox = $inbox AND token =";
        self.change(&format!("{sql} {token}")).await;
    }

    async fn let_time_pass(&self) {
        let sql = "UPDATE postbox.inbox_batch SET ready_at = now() WHERE inbox = $inbox AND token IS NULL";
        self.change(&format!("{sql} AND ready_at > now()")).await;
        self.change(&format!("UPDATE {} SET visible_at = now() WHERE visible_at > now()", self.name)).await;
    }
}

async fn step(model: &mut Model, inbox: &Inbox<'_>, op: &Op) {
    match op {
        Op::Insert(arrivals) => {
            let values: Vec<String> = arrivals.iter().map(|arrival| format!("({})", Inbox::values(arrival))).collect();
            let expected = arrivals.iter().filter(|arrival| model.receive(arrival) == "received").count();
            let columns = "event_id, payload, aggregate_id, sequence_num, visible_at";
            let sql =
                format!("INSERT INTO {} ({columns}) VALUES {} ON CONFLICT DO NOTHING", inbox.name, values.join(", "));
            let inserted = inbox.client.execute(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            assert_eq!(usize::try_from(inserted), Ok(expected), "{sql}");
        }
        Op::Receive(arrival) => {
            let values = Inbox::values(arrival);
            let [id, payload, aggregate, number, visible] = values.splitn(5, ", ").collect::<Vec<_>>()[..] else {
                panic!()
            };
            let call = format!(
                "postbox.inbox_receive('{}', {id}, {payload}, aggregate_id => {aggregate}, sequence_num => {number}, visible_at => {visible})",
                inbox.name
            );
            assert_eq!(inbox.verb(&call).await.as_deref(), Ok(model.receive(arrival)), "{call}");
        }
        Op::Claim { most } => {
            let claimed = inbox.claim(*most).await;
            model.claim(*most, &claimed, &inbox.seen().await);
        }
        Op::Complete { picks } | Op::Extend { picks } | Op::Release { picks } => {
            let picked = model.resolve(picks);
            let verb = match op {
                Op::Complete { .. } => "inbox_complete",
                Op::Extend { .. } => "inbox_extend",
                _ => "inbox_release",
            };
            let held = model.all_held(&picked);
            let outcome = inbox.several(verb, &picked).await;
            assert_eq!(outcome.is_ok(), held, "{verb} {picked:?}");
            match op {
                _ if !held => {}
                Op::Complete { .. } => picked.iter().for_each(|(id, _)| model.complete(id)),
                Op::Extend { .. } => model.extend(&picked),
                _ => picked.iter().for_each(|(id, _)| model.release(id)),
            }
        }
        Op::Fail { pick, at_once } => {
            let Some((id, token)) = model.resolve(std::slice::from_ref(pick)).pop() else { return };
            let held = model.all_held(&[(id.clone(), token)]);
            let retry_after = if *at_once { "'0'" } else { "NULL" };
            let call = format!("postbox.inbox_fail('{}', '{id}', {token}, 'e', {retry_after})", inbox.name);
            let outcome = inbox.verb(&call).await;
            assert_eq!(outcome.is_ok(), held, "{call}");
            if held {
                assert_eq!(outcome.as_deref(), Ok(model.fail(&id, *at_once)), "{call}");
            }
        }
        Op::Skip { key, number } if model.settings.ordered => {
            let call =
                format!("SELECT postbox.inbox_gap_skip('{}', 'a{key}', '[{number},{number}]', 'lost')", inbox.name);
            let outcome = inbox.client.batch_execute(&call).await;
            assert_eq!(outcome.is_ok(), model.is_missing(*key, *number), "{call}: {outcome:?}");
            if outcome.is_ok() {
                model.sort(&inbox.dead().await);
                let lane = model.lanes.get_mut(key).unwrap();
                lane.skipped.insert(*number);
                if lane.next == *number {
                    lane.advance();
                }
            }
        }
        Op::Skip { .. } => {}
        Op::Expire { lease } => {
            let tokens: BTreeSet<i64> = model.leases().map(|(_, token)| token).collect();
            let Some(&token) = tokens.iter().nth(lease % tokens.len().max(1)) else { return };
            inbox.expire(token).await;
            for message in model.messages.values_mut() {
                if let Stage::Leased { token: held, expiry, .. } = &mut message.stage
                    && *held == token
                {
                    *expiry = Expiry::Yes;
                }
            }
        }
        Op::TimePasses => {
            inbox.let_time_pass().await;
            model.messages.values_mut().for_each(|message| message.later = false);
        }
    }
    let held: BTreeMap<String, i64> = model.leases().map(|(id, token)| (id.clone(), token)).collect();
    assert_eq!(inbox.held().await, held, "who holds what");
    let mut dead: BTreeSet<String> = inbox.dead().await;
    dead.retain(|id| model.messages[id].stage != Stage::Dead);
    assert!(dead.is_empty(), "dead in the inbox alone: {dead:?}");
    let known = model.messages.values().filter(|message| message.stage == Stage::Dead).count();
    assert_eq!(inbox.dead().await.len(), known, "dead letters");
}

/// Runs the operations, then processes everything that is left. Panics where inbox and model differ.
async fn play(client: &Client, name: String, settings: &Settings, ops: &[Op]) {
    let Settings { ordered, policy, max_retries } = settings.clone();
    let made = format!(
        "SELECT postbox.create_inbox('{name}', max_retries => {max_retries}, failure_policy => '{policy}', backoff_initial => '1 day', backoff_max => '1 day')"
    );
    run(client, &made).await;
    if ordered {
        run(client, &format!("SELECT postbox.enable_inbox_ordering('{name}')")).await;
    }
    let inbox = Inbox { client, name };
    let mut model = Model { settings: settings.clone(), messages: BTreeMap::new(), lanes: BTreeMap::new() };
    for op in ops {
        step(&mut model, &inbox, op).await;
    }
    loop {
        for op in [Op::TimePasses, Op::Claim { most: 1000 }] {
            step(&mut model, &inbox, &op).await;
        }
        let held: Vec<(String, i64)> = model.leases().map(|(id, token)| (id.clone(), token)).collect();
        if held.is_empty() {
            break;
        }
        assert_eq!(inbox.several("inbox_complete", &held).await, Ok(String::new()));
        held.iter().for_each(|(id, _)| model.complete(id));
    }
    for (id, message) in &model.messages {
        let behind = model.place(message).is_some_and(|(key, number)| {
            let lane = &model.lanes[&key];
            lane.blocked && number >= lane.next || number > lane.next
        });
        assert!(matches!(message.stage, Stage::Done | Stage::Dead) || behind, "{id} was never handed out: {message:?}");
    }
    let processed = format!(
        "SELECT count(DISTINCT e) = count(*), count(*) FROM postbox.inbox_log l JOIN postbox.inbox i ON i.id = l.inbox, unnest(l.event_ids) e
            WHERE i.name = '{}' AND what = 'processed'",
        inbox.name
    );
    let done = model.messages.values().filter(|message| message.stage == Stage::Done).count();
    assert_eq!(row(client, &processed).await, format!("t|{done}"), "each processed once");
    run(client, &format!("SELECT postbox.drop_inbox('{}', cascade => true)", inbox.name)).await;
}

/// Runs until nothing can be left out any more.
async fn shortest(settings: &Settings, mut ops: Vec<Op>, fails: impl AsyncFn(&Settings, &[Op]) -> bool) -> Vec<Op> {
    let mut length = ops.len().div_ceil(2);
    while length > 0 {
        let mut from = 0;
        while from < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(from..(from + length).min(ops.len()));
            if fails(settings, &fewer).await {
                ops = fewer;
            } else {
                from += length;
            }
        }
        length = if length == 1 { 0 } else { length.div_ceil(2) };
    }
    ops
}

async fn compare(ordered: bool) {
    let runs: u64 = env::var("POSTBOX_INBOX_RUNS").map_or(12, |runs| runs.parse().unwrap());
    let chosen = env::var("POSTBOX_SEED").ok().filter(|seed| !seed.is_empty()).map(|seed| seed.parse::<u64>().unwrap());
    let (cluster, client) = start().await;
    for _ in 0..if chosen.is_some() { 1 } else { runs } {
        let seed = chosen.unwrap_or_else(|| rand::rng().random());
        let mut rng = StdRng::seed_from_u64(seed);
        let settings = Settings {
            ordered,
            policy: ["skip", "pause", "park"][rng.random_range(0..3)],
            max_retries: rng.random_range(0..3),
        };
        let ops = random_ops(&mut rng);
        let attempts = std::sync::atomic::AtomicU64::new(0);
        let fails = async |settings: &Settings, ops: &[Op]| {
            let attempt = attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let (client, settings, ops) = (cluster.client("postgres").await, settings.clone(), ops.to_vec());
            let name = format!("i{seed}_{attempt}");
            tokio::spawn(async move { play(&client, name, &settings, &ops).await }).await.is_err()
        };
        if fails(&settings, &ops).await {
            eprintln!("POSTBOX_SEED={seed} {settings:?}: {} operations fail; making them fewer", ops.len());
            let ops = shortest(&settings, ops, fails).await;
            eprintln!("POSTBOX_SEED={seed} {settings:?}, shortest:");
            ops.iter().for_each(|op| eprintln!("    {op:?}"));
            play(&client, format!("i{seed}_shown"), &settings, &ops).await;
            panic!("POSTBOX_SEED={seed} fails now and then");
        }
    }
}

#[tokio::test]
async fn whatever_happens_in_whatever_order_is_what_the_model_says() {
    compare(false).await;
}

#[tokio::test]
async fn whatever_happens_to_an_ordered_inbox_is_what_the_model_says() {
    compare(true).await;
}
