//! Random operations on an inbox, and on a model of it that is nothing but rules: what the one says the other must.
//!
//! `POSTBOX_SEED` repeats one run, `POSTBOX_INBOX_RUNS` says how many there are. What fails is made as short as it gets before it is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::env;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;

use super::oracle::{Arrival, Claimed, Expiry, Model, Op, Seen, Settings, Stage, random_ops};
use crate::sql::{row, run, start};

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
