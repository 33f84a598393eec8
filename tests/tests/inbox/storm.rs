//! Many workers over one ordered inbox, some of which die or dawdle: every message has its effect once, in its order.

use std::sync::Arc;
use std::time::Duration;

use postbox_tests::{Cluster, wait_until_async};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::{LocalSet, spawn_local};
use tokio_postgres::Client;

use super::{claim, try_complete};
use crate::sql::{row, rows, run, start};

const KEYS: usize = 40;
const EACH: usize = 40;

/// Messages in any order, some of them twice, in statements of a few.
async fn send(client: Client, mut messages: Vec<(usize, usize)>, mut random: StdRng) {
    messages.extend_from_slice(&messages.clone()[..messages.len() / 4]);
    messages.shuffle(&mut random);
    while !messages.is_empty() {
        let some = messages.split_off(messages.len().saturating_sub(random.random_range(1..20)));
        let values: Vec<String> =
            some.iter().map(|(key, number)| format!("('{key}-{number}', '{key}', {number}, '{{}}')")).collect();
        let insert = format!(
            "INSERT INTO payments (event_id, aggregate_id, sequence_num, payload) VALUES {} ON CONFLICT DO NOTHING",
            values.join(", ")
        );
        run(&client, &insert).await;
    }
}

/// What a worker may do with what it was handed.
enum Fate {
    Works,
    Dies,
    ComesTooLate,
}

async fn work(cluster: Arc<Cluster>, name: usize, mut random: StdRng) -> [usize; 3] {
    let mut client = cluster.client("postgres").await;
    let mut fates = [0; 3];
    loop {
        let messages = claim(&client, &format!("'payments', 'worker {name}', {}, 1", random.random_range(1..12))).await;
        if messages.is_empty() {
            if row(&client, "SELECT count(*) FROM effect").await.parse() == Ok(KEYS * EACH) {
                return fates;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        let fate = match random.random_range(0..100) {
            0..5 => Fate::Dies,
            5..10 => Fate::ComesTooLate,
            _ => Fate::Works,
        };
        match fate {
            Fate::Dies => {
                fates[1] += 1;
                client = cluster.client("postgres").await;
                continue;
            }
            Fate::ComesTooLate => {
                fates[2] += 1;
                let over = "SELECT count(*) FROM postbox.inbox_batch WHERE token = $1";
                let (token, client) = (messages[0].1, &client);
                // All may dawdle at once, so each also asks for messages, as an idle worker does, and gives them back.
                let idle = "SELECT postbox.inbox_release('payments', array_agg(event_id), array_agg(token))
                    FROM postbox.inbox_claim('payments', 'idle', 1, 1) HAVING count(*) > 0";
                wait_until_async("somebody else has them", Duration::from_secs(60), async || {
                    client.execute(idle, &[]).await.expect("a claim");
                    (client.query_one(over, &[&token]).await.expect("a count").get::<_, i64>(0) == 0).then_some(())
                })
                .await;
            }
            Fate::Works => fates[0] += 1,
        }
        // One transaction each: the effect, and the completion as its last statement.
        for message in messages {
            let transaction = client.transaction().await.expect("a transaction");
            let (key, number) = message.0.split_once('-').expect("an id");
            let number: i64 = number.parse().expect("a number");
            transaction
                .execute(
                    "INSERT INTO effect (key, number, worker) VALUES ($1, $2, $3)",
                    &[&key, &number, &(name as i32)],
                )
                .await
                .expect("the effect");
            match try_complete(transaction.client(), std::slice::from_ref(&message)).await {
                Ok(()) => transaction.commit().await.expect("the commit"),
                Err(error) => {
                    assert_eq!(error.code().map(|code| code.code()), Some("PB002"), "{message:?}: {error:?}");
                    transaction.rollback().await.expect("the rollback");
                }
            }
        }
    }
}

#[tokio::test]
async fn eight_workers_that_die_and_dawdle_have_each_effect_once_and_in_order() {
    LocalSet::new().run_until(storm()).await;
}

async fn storm() {
    let seed = std::env::var("POSTBOX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("POSTBOX_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('payments', max_retries => 1000); SELECT postbox.enable_inbox_ordering('payments');
         CREATE TABLE effect (id bigserial, key text, number bigint, worker int)",
    )
    .await;
    let cluster = Arc::new(cluster);
    let mut messages: Vec<(usize, usize)> =
        (0..KEYS).flat_map(|key| (1..=EACH).map(move |number| (key, number))).collect();
    messages.shuffle(&mut random);
    let mut senders = Vec::new();
    for part in messages.chunks(messages.len().div_ceil(3)) {
        senders.push(spawn_local(send(
            cluster.client("postgres").await,
            part.to_vec(),
            StdRng::seed_from_u64(random.random()),
        )));
    }
    let workers: Vec<_> = (0..8)
        .map(|name| spawn_local(work(Arc::clone(&cluster), name, StdRng::seed_from_u64(random.random()))))
        .collect();
    for sender in senders {
        sender.await.expect("a sender");
    }
    let mut fates = [0; 3];
    for worker in workers {
        for (sum, one) in fates.iter_mut().zip(worker.await.expect("a worker")) {
            *sum += one;
        }
    }
    println!("claims: {} worked on, {} lost with their worker, {} overstayed", fates[0], fates[1], fates[2]);
    let wrong = "SELECT key, number, place FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY id) AS place FROM effect) e WHERE number <> place";
    assert_eq!(rows(&client, wrong).await, [""; 0], "out of order, or twice");
    assert_eq!(
        row(&client, "SELECT count(*), count(DISTINCT (key, number)) FROM effect").await,
        format!("{0}|{0}", KEYS * EACH)
    );
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_dead").await, "0");
    // Lanes whose last message was completed while somebody held them.
    assert_eq!(claim(&client, "'payments', 'last'").await, []);
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch").await, "0");
    assert_eq!(
        row(&client, "SELECT count(*) FROM postbox.inbox_lane WHERE next <> 41 OR arrived <> '{}' OR head IS NOT NULL")
            .await,
        "0"
    );
    assert_eq!(
        row(&client, "SELECT sum(messages) FROM postbox.inbox_log WHERE what = 'processed'").await,
        (KEYS * EACH).to_string()
    );
}
