//! Random operations on an inbox, and on a model of it that is nothing but rules: what the one says the other must.
//!
//! `POSTBOX_SEED` repeats one run, `POSTBOX_INBOX_RUNS` says how many there are. What fails is made as short as it gets before it is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::env;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;

use super::oracle::{Arrival, Claimed, Counts, Expiry, Model, Op, Seen, Settings, Stage, random_ops};
use crate::sql::{run, start};

const TIERS: [&str; 2] = ["urgent", "other"];

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
        let priority = arrival.priority.map_or("NULL".to_owned(), |priority| priority.to_string());
        format!("'m{}', '{}', {aggregate}, {number}, {visible}, {priority}", arrival.id, arrival.payload)
    }

    /// What is refused for its state is `Err`; nothing else may happen.
    async fn verb(&self, call: &str) -> Result<String, ()> {
        match self.client.query_one(&format!("SELECT ({call})::text"), &[]).await {
            Ok(row) => Ok(row.get::<_, Option<String>>(0).unwrap_or_default()),
            Err(error)
                if error.code().is_some_and(|code| ["PB002", "P0002", "55000", "55006"].contains(&code.code())) =>
            {
                Err(())
            }
            Err(error) => panic!("{call}: {error:?}"),
        }
    }

    async fn several(&self, verb: &str, picked: &[(String, i64)]) -> Result<String, ()> {
        let ids: Vec<&str> = picked.iter().map(|(id, _)| id.as_str()).collect();
        let tokens: Vec<String> = picked.iter().map(|(_, token)| token.to_string()).collect();
        self.verb(&format!("postbox.{verb}('{}', '{{{}}}', '{{{}}}')", self.name, ids.join(","), tokens.join(",")))
            .await
    }

    async fn claim(&self, most: usize, tier: Option<usize>) -> Vec<Claimed> {
        let tier = tier.map_or("NULL".to_owned(), |tier| format!("'{}'", TIERS[tier]));
        let sql = format!("SELECT * FROM postbox.inbox_claim('{}', 'worker', {most}, tier => {tier}) c", self.name);
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
            "SELECT DISTINCT ON (b.tier) b.tier, cardinality(b.event_ids) FROM postbox.inbox_batch b JOIN postbox.inbox i ON i.id = b.inbox
                WHERE i.name = '{}' AND b.tier >= 0 AND b.token IS NULL AND b.crashes < 2 AND b.ready_at < now() ORDER BY b.tier, b.ready_at",
            self.name
        );
        let rows = self.client.query(&sql, &[]).await.unwrap();
        let size = |size: i32| usize::try_from(size).unwrap();
        let waits = rows.iter().map(|row| (size(row.get::<_, i16>(0).into()), size(row.get(1)))).collect();
        let token = self.client.query_one("SELECT last_value FROM postbox.inbox_token", &[]).await.unwrap().get(0);
        Seen { token, held: self.held().await, dead: self.dead().await, waits }
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

    /// All that is done with was so before its retention began. Ids that outlive their messages are written, seen by everybody, and only then the
    /// messages removed: each in a run of its own.
    async fn let_retention_pass(&self) {
        self.change("UPDATE postbox.inbox_log SET at = at - interval '2 hours' WHERE inbox = $inbox").await;
        self.change("UPDATE postbox.inbox_dead SET died_at = died_at - interval '2 hours' WHERE inbox = $inbox").await;
        for _ in 0..4 {
            run(self.client, "SELECT count(*) FROM postbox.maintain(true)").await;
        }
    }

    async fn missing(&self) -> BTreeSet<(usize, i64)> {
        let sql = format!(
            "SELECT right(aggregate_id, -1)::int, n FROM gaps_{}, generate_series(lower(missing), upper(missing) - 1) n",
            self.name
        );
        let rows = self.client.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| (usize::try_from(row.get::<_, i32>(0)).unwrap(), row.get(1))).collect()
    }

    /// Each message by its own view, and what has been counted.
    async fn states(&self) -> BTreeMap<String, String> {
        let sql = format!("SELECT event_id, state FROM messages_{}", self.name);
        let rows = self.client.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn counts(&self) -> (Counts, i64, i64) {
        let sql = format!(
            "SELECT processed, failed_attempts, duplicates, conflicts, discarded, pending, dead FROM postbox.inbox_status('{}')",
            self.name
        );
        let row = self.client.query_one(&sql, &[]).await.unwrap();
        let counts = Counts {
            processed: row.get(0),
            failed_attempts: row.get(1),
            duplicates: row.get(2),
            conflicts: row.get(3),
            discarded: row.get(4),
        };
        (counts, row.get(5), row.get(6))
    }

    async fn let_time_pass(&self) {
        let sql = "UPDATE postbox.inbox_batch SET ready_at = now() WHERE inbox = $inbox AND token IS NULL";
        self.change(&format!("{sql} AND ready_at > now()")).await;
        // As nobody else may: it says when a message is due before it is sorted.
        let sql = "SET session_replication_role = replica; UPDATE $name SET visible_at = now() WHERE visible_at > now(); RESET session_replication_role";
        self.change(&sql.replace("$name", &self.name)).await;
    }
}

async fn step(model: &mut Model, inbox: &Inbox<'_>, op: &Op) {
    match op {
        Op::Insert(arrivals) => {
            let values: Vec<String> = arrivals.iter().map(|arrival| format!("({})", Inbox::values(arrival))).collect();
            let expected = arrivals.iter().filter(|arrival| model.receive(arrival) == "received").count();
            let columns = "event_id, payload, aggregate_id, sequence_num, visible_at, priority";
            let sql =
                format!("INSERT INTO {} ({columns}) VALUES {} ON CONFLICT DO NOTHING", inbox.name, values.join(", "));
            let inserted = inbox.client.execute(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            assert_eq!(usize::try_from(inserted), Ok(expected), "{sql}");
        }
        Op::Receive(arrival) => {
            let values = Inbox::values(arrival);
            let [id, payload, aggregate, number, visible, priority] = values.splitn(6, ", ").collect::<Vec<_>>()[..]
            else {
                panic!()
            };
            let call = format!(
                "postbox.inbox_receive('{}', {id}, {payload}, aggregate_id => {aggregate}, sequence_num => {number}, visible_at => {visible}, priority => {priority})",
                inbox.name
            );
            assert_eq!(inbox.verb(&call).await.as_deref(), Ok(model.receive(arrival)), "{call}");
        }
        Op::ReceiveBatch(arrivals) => {
            let columns: Vec<[String; 6]> = arrivals
                .iter()
                .map(|arrival| {
                    let values = Inbox::values(arrival);
                    let mut values = values.splitn(6, ", ").map(str::to_owned);
                    std::array::from_fn(|_| values.next().unwrap())
                })
                .collect();
            let array = |n: usize| columns.iter().map(|values| &*values[n]).collect::<Vec<_>>().join(", ");
            let call = format!(
                "postbox.inbox_receive_batch('{}', ARRAY[{}], ARRAY[{}]::jsonb[], aggregate_ids => ARRAY[{}]::text[],
                    sequence_nums => ARRAY[{}]::bigint[], visible_at => ARRAY[{}]::timestamptz[], priorities => ARRAY[{}]::int[])",
                inbox.name, array(0), array(1), array(2), array(3), array(4), array(5)
            );
            let expected: Vec<&str> = arrivals.iter().map(|arrival| model.receive(arrival)).collect();
            assert_eq!(inbox.verb(&call).await, Ok(format!("{{{}}}", expected.join(","))), "{call}");
        }
        Op::Claim { most, tier } => {
            let tier = tier.filter(|_| model.settings.tiered);
            let claimed = inbox.claim(*most, tier).await;
            model.claim(*most, tier, &claimed, &inbox.seen().await);
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
                model.sort(&inbox.dead().await, usize::MAX);
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
            for message in model.messages.values_mut() {
                message.later = false;
                message.delayed = false;
            }
        }
        Op::Replay { picks } => {
            let ids = model.pick_finished(picks);
            let can_be = ids.iter().all(|id| model.messages.get(id).is_some_and(super::oracle::Message::is_finished));
            let call = format!("postbox.replay_inbox_messages('{}', '{{{}}}')", inbox.name, join(&ids));
            assert_eq!(inbox.verb(&call).await.ok(), can_be.then(|| ids.len().to_string()), "{call}");
            if can_be {
                ids.iter().for_each(|id| model.replay(id));
            }
        }
        Op::ReplayDead { dry_run } => {
            let call =
                format!("postbox.replay_inbox_dead_letters('{}', every => true, dry_run => {dry_run})", inbox.name);
            let ids = model.dead();
            assert_eq!(inbox.verb(&call).await, Ok(ids.len().to_string()), "{call}");
            if !dry_run {
                ids.iter().for_each(|id| model.replay(id));
            }
        }
        Op::Discard { picks } => {
            let (ids, dead) = (model.pick_finished(picks), model.dead());
            let call = format!("postbox.discard_inbox_dead_letters('{}', '{{{}}}')", inbox.name, join(&ids));
            let can_be = ids.is_subset(&dead);
            assert_eq!(inbox.verb(&call).await.ok(), can_be.then(|| ids.len().to_string()), "{call}");
            if can_be {
                ids.iter().for_each(|id| model.discard(id));
            }
        }
        Op::Forget => {
            inbox.let_retention_pass().await;
            model.forget(&inbox.held().await);
        }
        Op::Pause { tier } | Op::Resume { tier } => {
            let (verb, pauses) = if matches!(op, Op::Pause { .. }) { ("pause", true) } else { ("resume", false) };
            let tier = tier.filter(|_| model.settings.tiered);
            let name = tier.map_or("NULL".to_owned(), |tier| format!("'{}'", TIERS[tier]));
            let was = tier.map_or(model.is_paused, |tier| model.paused_tiers.contains(&tier));
            let call = format!("postbox.{verb}_inbox('{}', {name})", inbox.name);
            assert_eq!(inbox.verb(&call).await, Ok((was != pauses).to_string()), "{call}");
            match tier {
                None => model.is_paused = pauses,
                Some(tier) if pauses => _ = model.paused_tiers.insert(tier),
                Some(tier) => _ = model.paused_tiers.remove(&tier),
            }
        }
        Op::Order(true) if !model.settings.ordered => {
            let outcome = inbox.verb(&format!("postbox.enable_inbox_ordering('{}')", inbox.name)).await;
            // Those whose time is over are taken away first.
            let held = model.messages.values().any(|message| match message.stage {
                Stage::Leased { expiry: Expiry::Perhaps, .. } => outcome.is_err(),
                Stage::Leased { expiry, .. } => expiry == Expiry::No,
                _ => false,
            });
            assert_eq!(outcome.is_err(), held, "enable_inbox_ordering");
            if outcome.is_ok() {
                model.reap_lost(&BTreeMap::new(), true);
                model.enable_order();
            }
        }
        Op::Order(false) if model.settings.ordered => {
            inbox.change(&format!("SELECT postbox.disable_inbox_ordering('{}')", inbox.name)).await;
            model.disable_order();
        }
        Op::Order(_) => {}
        Op::Tiers(wanted) if *wanted != model.settings.tiered => {
            let call = if *wanted {
                let tiers =
                    format!(r#"[{{"name": "{}", "lowest": 5}}, {{"name": "{}", "highest": 4}}]"#, TIERS[0], TIERS[1]);
                format!("SELECT postbox.enable_inbox_priority('{}', tiers => '{tiers}')", inbox.name)
            } else {
                format!("SELECT postbox.disable_inbox_priority('{}')", inbox.name)
            };
            inbox.change(&call).await;
            model.settings.tiered = *wanted;
            model.paused_tiers.clear();
        }
        Op::Tiers(_) => {}
    }
    let held: BTreeMap<String, i64> = model.leases().map(|(id, token)| (id.clone(), token)).collect();
    assert_eq!(inbox.held().await, held, "who holds what");
    let dead: BTreeSet<String> = inbox.dead().await;
    assert_eq!(dead, model.dead(), "dead letters");
    if model.settings.ordered {
        assert_eq!(inbox.missing().await, model.missing(), "gaps");
    }
    let states = inbox.states().await;
    assert!(states.keys().eq(model.messages.keys()), "in the table: {:?}", states.keys());
    for (id, state) in &states {
        let message = &model.messages[id];
        let lane = model.place(message).and_then(|(key, number)| model.lanes.get(&key).map(|lane| (lane, number)));
        let expected = match message.stage {
            Stage::Done => "processed",
            Stage::Dead => "dead",
            Stage::Discarded => "discarded",
            Stage::Leased { .. } => "leased",
            Stage::Waiting if lane.is_some_and(|(lane, number)| number > lane.next) => {
                if model.settings.policy == "park" && lane.is_some_and(|(lane, _)| lane.blocked.is_some()) {
                    "follower"
                } else {
                    "behind"
                }
            }
            Stage::Waiting if message.later => "delayed",
            Stage::Waiting => "waiting",
            // Where it stands is known when it is sorted.
            Stage::Arrived if ["waiting", "delayed", "behind", "follower"].contains(&state.as_str()) => continue,
            Stage::Arrived => "any of those that wait",
        };
        assert_eq!(state, expected, "{id} is {message:?}");
    }
}

fn join(ids: &BTreeSet<String>) -> String {
    ids.iter().cloned().collect::<Vec<_>>().join(",")
}

/// Runs the operations, then processes everything that is left. Panics where inbox and model differ.
async fn play(client: &Client, name: String, settings: &Settings, ops: &[Op]) {
    let Settings { ordered, tiered, policy, max_retries, remembers, expires_dead } = settings.clone();
    let made = format!(
        "SELECT postbox.create_inbox('{name}', max_retries => {max_retries}, failure_policy => '{policy}', backoff_initial => '1 day', backoff_max => '1 day',
            retention => '1 hour', dedup_window => '{}', dead_retention => {})",
        if remembers { "1 year" } else { "1 hour" },
        if expires_dead { "'1 hour'" } else { "NULL" }
    );
    run(client, &made).await;
    let inbox = Inbox { client, name };
    let mut model = Model::new(&Settings { ordered: false, tiered: false, ..settings.clone() });
    for op in [Op::Order(ordered), Op::Tiers(tiered)].iter().chain(ops) {
        step(&mut model, &inbox, op).await;
    }
    for op in [Op::Resume { tier: None }, Op::Resume { tier: Some(0) }, Op::Resume { tier: Some(1) }] {
        step(&mut model, &inbox, &op).await;
    }
    loop {
        for op in [Op::TimePasses, Op::Claim { most: 1000, tier: None }] {
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
            lane.blocked.is_some() && number >= lane.next || number > lane.next
        });
        assert!(message.is_finished() || behind, "{id} was never handed out: {message:?}");
    }
    let pending = model.messages.values().filter(|message| !message.is_finished()).count();
    let (counts, pending_seen, dead_seen) = inbox.counts().await;
    assert_eq!(counts, model.counts);
    let followers = inbox.states().await.values().filter(|state| *state == "follower").count();
    let expected = (pending - followers, model.dead().len() + followers);
    assert_eq!((usize::try_from(pending_seen), usize::try_from(dead_seen)), (Ok(expected.0), Ok(expected.1)));
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
    let runs: u64 = env::var("POSTBOX_INBOX_RUNS").map_or(10, |runs| runs.parse().unwrap());
    let chosen = env::var("POSTBOX_SEED").ok().filter(|seed| !seed.is_empty()).map(|seed| seed.parse::<u64>().unwrap());
    let (cluster, client) = start().await;
    for _ in 0..if chosen.is_some() { 1 } else { runs } {
        let seed = chosen.unwrap_or_else(|| rand::rng().random());
        let mut rng = StdRng::seed_from_u64(seed);
        let settings = Settings {
            ordered,
            tiered: rng.random_bool(0.5),
            policy: ["skip", "pause", "park"][rng.random_range(0..3)],
            max_retries: rng.random_range(0..3),
            remembers: rng.random_bool(0.5),
            expires_dead: rng.random_bool(0.5),
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
