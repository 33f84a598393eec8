//! What maintenance keeps and removes: messages, ids that must not come again, dead letters, the log.

use std::collections::BTreeMap;
use std::time::Duration;

use postbox_tests::{Cluster, wait_until_async};
use tokio_postgres::Client;

use super::{claim, drain};
use crate::shop::PATIENCE;
use crate::sql::{refused, row, rows, run, start};

const MAINTAIN: &str = "SELECT step, subject, outcome, detail FROM postbox.maintain(true) WHERE step ~ 'inbox'";
const COMPLETE: &str = "SELECT postbox.inbox_complete('payments', array_agg(event_id), array_agg(token)) FROM postbox.inbox_claim('payments', 'w', 10000) HAVING count(*) > 0";
const COUNT: &str = "SELECT count(*) FROM payments";

async fn inbox(client: &Client, settings: &str) {
    run(client, &format!("SELECT postbox.create_inbox('payments'{settings})")).await;
}

async fn receive(client: &Client, from: u32, to: u32) {
    run(client, &format!("INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' FROM generate_series({from}, {to}) n ON CONFLICT DO NOTHING")).await;
}

async fn maintain(client: &Client) -> Vec<String> {
    rows(client, MAINTAIN).await
}

/// As if all that has happened had happened earlier.
async fn age(client: &Client, by: &str) {
    run(client, &format!("UPDATE postbox.inbox_log SET at = at - interval '{by}'")).await;
}

#[tokio::test]
async fn processed_messages_go_when_they_were_kept_for_long_enough() {
    let (_cluster, client) = start().await;
    inbox(&client, ", max_retries => 0").await;
    receive(&client, 1, 10).await;
    run(&client, COMPLETE).await;
    age(&client, "7 days").await;
    receive(&client, 11, 20).await;
    run(
        &client,
        "SELECT postbox.inbox_fail('payments', event_id, token, 'x') FROM postbox.inbox_claim('payments', 'w', 5)",
    )
    .await;
    age(&client, "1 hour").await;
    run(&client, COMPLETE).await;
    receive(&client, 21, 25).await;
    assert_eq!(maintain(&client).await[..1], ["inboxes|payments|removed|10 messages"]);
    let left = "SELECT state, count(*) FROM messages_payments GROUP BY state ORDER BY state";
    assert_eq!(rows(&client, left).await, ["dead|5", "processed|5", "waiting|5"]);
    // Ids that are kept no longer than the rows are nowhere, and one that comes again is new.
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_seen").await, "0");
    receive(&client, 1, 1).await;
    assert_eq!(row(&client, "SELECT state FROM messages_payments WHERE event_id = 'm1'").await, "waiting");
    let status = "SELECT pending, dead, processed, is_exact FROM postbox.inbox_status()";
    assert_eq!(row(&client, status).await, "6|5|15|t");
    maintain(&client).await;
    assert_eq!(rows(&client, left).await, ["dead|5", "processed|5", "waiting|6"]);
}

#[tokio::test]
async fn large_steps_are_parted_and_a_server_comes_to_rest() {
    let (_cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '1 day'").await;
    receive(&client, 1, 12_000).await;
    run(&client, COMPLETE).await;
    run(&client, COMPLETE).await;
    let mut removed = Vec::new();
    wait_until_async("there is nothing to do", PATIENCE, async || {
        let done = maintain(&client).await;
        removed.extend(done.iter().filter(|row| row.contains("|removed|")).cloned());
        done.is_empty().then_some(())
    })
    .await;
    assert!(removed.len() >= 2, "{removed:?}");
    assert_eq!(
        row(&client, &format!("{COUNT} UNION ALL SELECT count(*) FROM postbox.inbox_seen ORDER BY 1 LIMIT 1")).await,
        "0"
    );
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_seen").await, "12000");
    let id = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
    wait_until_async("it has come to rest", PATIENCE, async || {
        let before = row(&client, id).await;
        run(&client, "SELECT postbox.maintain(true)").await;
        (row(&client, id).await == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_id_is_known_for_the_dedup_window_whatever_became_of_its_row() {
    let (_cluster, client) = start().await;
    inbox(&client, ", retention => '1 hour', dedup_window => '1 day'").await;
    receive(&client, 1, 10).await;
    run(&client, COMPLETE).await;
    age(&client, "2 hours").await;
    for expected in ["10", "10", "0"] {
        maintain(&client).await;
        receive(&client, 1, 10).await;
        assert_eq!(row(&client, COUNT).await, expected);
    }
    assert_eq!(row(&client, "SELECT duplicates, pending, processed FROM postbox.inbox_status()").await, "30|0|10");
    run(&client, "UPDATE postbox.inbox_seen SET until = clock_timestamp()").await;
    receive(&client, 1, 10).await;
    assert_eq!(row(&client, "SELECT duplicates, pending FROM postbox.inbox_status()").await, "30|10");
    // Removed a second time: noted until later.
    run(&client, COMPLETE).await;
    run(&client, "UPDATE postbox.inbox_log SET at = at - interval '2 hours' WHERE at > now() - interval '1 hour'")
        .await;
    for _ in 0..3 {
        maintain(&client).await;
    }
    receive(&client, 1, 10).await;
    assert_eq!(row(&client, COUNT).await, "0");
}

/// A receiver whose snapshot is older than the note of the id still finds the row, and counts on it.
#[tokio::test]
async fn a_row_stays_while_a_transaction_is_open_that_may_not_know_its_id() {
    let (cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '1 day'").await;
    receive(&client, 1, 1).await;
    run(&client, COMPLETE).await;
    let old = cluster.client("postgres").await;
    run(&old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM payments").await;
    for _ in 0..5 {
        maintain(&client).await;
        assert_eq!(row(&client, COUNT).await, "1");
    }
    let waits = row(&client, "SELECT removal_waits_for FROM postbox.inbox_status()").await;
    let pid = row(&old, "SELECT pg_backend_pid()").await;
    assert!(waits.starts_with(&format!("process {pid} ")), "{waits}");
    run(&old, "INSERT INTO payments (event_id, event_type) VALUES ('m1', 't') ON CONFLICT DO NOTHING; COMMIT").await;
    wait_until_async("it is removed", PATIENCE, async || {
        maintain(&client).await;
        (row(&client, COUNT).await == "0").then_some(())
    })
    .await;
    assert_eq!(row(&client, "SELECT pending, removal_waits_for FROM postbox.inbox_status()").await, "0|");
    receive(&client, 1, 1).await;
    assert_eq!(row(&client, COUNT).await, "0", "it never came in a second time");
}

/// A receiver has passed our trigger and stands before the unique key when the row is removed.
#[tokio::test]
async fn a_row_that_was_found_and_is_removed_before_the_key_is_looked_at_lets_nobody_in() {
    let (cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '1 day'").await;
    receive(&client, 1, 1).await;
    run(&client, COMPLETE).await;
    maintain(&client).await;
    maintain(&client).await;
    assert_eq!(row(&client, COUNT).await, "1");
    // Fires after ours, whose name comes before.
    run(
        &client,
        "CREATE FUNCTION stand() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN new; END';
         CREATE TRIGGER stand BEFORE INSERT ON payments FOR EACH ROW EXECUTE FUNCTION stand();
         SELECT pg_advisory_lock(1)",
    )
    .await;
    let receiver = cluster.client("postgres").await;
    let received = tokio::spawn(async move { receive(&receiver, 1, 1).await });
    let stands = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    wait_until_async("it stands there, or was turned away", PATIENCE, async || {
        (received.is_finished() || row(&client, stands).await == "1").then_some(())
    })
    .await;
    maintain(&client).await;
    run(&client, "SELECT pg_advisory_unlock(1)").await;
    received.await.unwrap();
    assert_eq!(row(&client, COUNT).await, "0");
}

/// Senders repeat themselves, workers process, maintenance removes: each message is processed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_while_retention_removes_is_heard_once() {
    const IDS: u32 = 400;
    let (cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '1 day'").await;
    let mut senders = Vec::new();
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let sender = cluster.client("postgres").await;
        senders.push(tokio::spawn(async move {
            for round in 0..6 {
                for from in (1..=IDS).step_by(20) {
                    let to = from + 19 + round % 2;
                    let sql = format!(
                        "BEGIN ISOLATION LEVEL {isolation};
                         INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' FROM generate_series({from}, {to}) n ORDER BY n ON CONFLICT DO NOTHING;
                         COMMIT"
                    );
                    while let Err(error) = sender.batch_execute(&sql).await {
                        assert_eq!(error.code().map(|code| code.code()), Some("40001"), "{error:?}");
                        sender.batch_execute("ROLLBACK").await.unwrap();
                    }
                }
            }
        }));
    }
    let processed =
        "SELECT count(*) FROM (SELECT unnest(event_ids) AS id FROM postbox.inbox_log WHERE what = 'processed') p";
    wait_until_async("all is processed and removed", Duration::from_secs(120), async || {
        run(&client, COMPLETE).await;
        maintain(&client).await;
        (senders.iter().all(|sender| sender.is_finished()) && row(&client, COUNT).await == "0").then_some(())
    })
    .await;
    for sender in senders {
        sender.await.unwrap();
    }
    assert_eq!(
        row(&client, "SELECT processed, pending, dead FROM postbox.inbox_status()").await,
        format!("{}|0|0", IDS + 1)
    );
    // The log of this is younger than any leaf is emptied.
    assert_eq!(row(&client, processed).await, (IDS + 1).to_string());
}

#[tokio::test]
async fn what_was_replayed_stays_until_it_is_processed_again() {
    let (_cluster, client) = start().await;
    inbox(&client, ", retention => '1 hour', dedup_window => '1 hour'").await;
    receive(&client, 1, 3).await;
    run(&client, COMPLETE).await;
    run(&client, "SELECT postbox.replay_inbox_messages('payments', '{m1}')").await;
    age(&client, "2 hours").await;
    maintain(&client).await;
    assert_eq!(rows(&client, "SELECT event_id, state FROM messages_payments").await, ["m1|waiting"]);
    run(&client, COMPLETE).await;
    maintain(&client).await;
    assert_eq!(rows(&client, "SELECT event_id, state FROM messages_payments").await, ["m1|processed"]);
    run(&client, "SELECT postbox.replay_inbox_messages('payments', '{m1}')").await;
    run(&client, COMPLETE).await;
    age(&client, "2 hours").await;
    maintain(&client).await;
    assert_eq!(row(&client, "SELECT count(*), (SELECT count(*) FROM postbox.inbox_replay) FROM payments").await, "0|0");
}

/// Noted as seen and not removed yet, then replayed: nothing is removed under it.
#[tokio::test]
async fn an_id_is_the_same_however_it_is_written() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE payments (event_id uuid PRIMARY KEY, payload jsonb)").await;
    run(
        &client,
        "SELECT postbox.enable_inbox_tracking('payments', retention => '1 hour', dedup_window => '1 day', max_retries => 0)",
    )
    .await;
    let printed = "aaaaaaaa-0000-0000-0000-00000000000a";
    let written = format!("{{{}}}", printed.to_uppercase());
    let received = format!("SELECT postbox.inbox_receive('payments', '{written}', '{{}}')");
    assert_eq!(row(&client, &received).await, "received");
    let replay = format!("SELECT postbox.replay_inbox_messages('payments', ARRAY['{written}'])");
    refused(&client, &replay, "55000", "not processed yet", "pending_payments").await;
    // Given up, and handed out again; done, and handed out again: once each time.
    let got = claim(&client, "'payments', 'w'").await;
    run(&client, &format!("SELECT postbox.inbox_fail('payments', '{printed}', {}, 'e')", got[0].1)).await;
    assert_eq!(row(&client, &replay).await, "1");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_dead").await, "0");
    assert_eq!(drain(&client).await, [printed]);
    assert_eq!(row(&client, &replay).await, "1");
    age(&client, "2 hours").await;
    for _ in 0..4 {
        maintain(&client).await;
    }
    assert_eq!(drain(&client).await, [printed], "retention does not take what is replayed");
    let got = "SELECT postbox.replay_inbox_dead_letters('payments', ARRAY['{AAAAAAAA-0000-0000-0000-00000000000B}'])";
    refused(&client, got, "P0002", "has no dead letter \"aaaaaaaa-0000-0000-0000-00000000000b\"", "").await;
    age(&client, "2 hours").await;
    for _ in 0..4 {
        maintain(&client).await;
    }
    assert_eq!(row(&client, COUNT).await, "0");
    assert_eq!(row(&client, &received).await, "duplicate", "known by its id alone");
}

#[tokio::test]
async fn what_waits_again_in_the_table_is_not_removed() {
    let (_cluster, client) = start().await;
    inbox(&client, ", style => 'update', retention => '0', dedup_window => '0'").await;
    receive(&client, 1, 2).await;
    run(&client, "UPDATE payments SET processed_at = now()").await;
    run(&client, "UPDATE payments SET processed_at = NULL WHERE event_id = 'm1'").await;
    for _ in 0..2 {
        maintain(&client).await;
    }
    assert_eq!(rows(&client, "SELECT event_id, state FROM messages_payments").await, ["m1|waiting"]);
    run(&client, "UPDATE payments SET processed_at = now()").await;
    for _ in 0..2 {
        maintain(&client).await;
    }
    assert_eq!(row(&client, COUNT).await, "0");
}

#[tokio::test]
async fn what_is_replayed_between_note_and_removal_stays() {
    let (cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '1 day'").await;
    receive(&client, 1, 2).await;
    run(&client, COMPLETE).await;
    maintain(&client).await;
    maintain(&client).await;
    run(&client, "SELECT postbox.replay_inbox_messages('payments', '{m1}')").await;
    // And while somebody is at it, retention leaves the inbox alone.
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; SELECT postbox.replay_inbox_messages('payments', '{m2}')").await;
    assert!(
        maintain(&client)
            .await
            .contains(&"inboxes|payments|skipped|somebody is replaying or discarding messages of it".to_owned())
    );
    run(&other, "ROLLBACK").await;
    maintain(&client).await;
    assert_eq!(rows(&client, "SELECT event_id, state FROM messages_payments").await, ["m1|waiting"]);
    // It is noted and there: what comes under its id is compared with it.
    let others = "INSERT INTO payments (event_id, payload) VALUES ('m1', '1'), ('m2', '1') ON CONFLICT DO NOTHING";
    run(&client, others).await;
    let counted = "SELECT duplicates, conflicts FROM postbox.inbox_status('payments')";
    assert_eq!(row(&client, counted).await, "2|1");
    run(&client, COMPLETE).await;
    for _ in 0..3 {
        maintain(&client).await;
    }
    assert_eq!(row(&client, COUNT).await, "0");
}

#[tokio::test]
async fn the_dead_are_let_go_in_time_but_for_those_that_others_wait_for() {
    let (_cluster, client) = start().await;
    inbox(&client, ", max_retries => 0, failure_policy => 'pause', retention => '1 hour', dedup_window => '1 hour', dead_retention => '1 day'").await;
    run(
        &client,
        "SELECT postbox.enable_inbox_ordering('payments');
         INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('a1', 'a', 1), ('a2', 'a', 2), ('free', NULL, NULL);
         SELECT postbox.inbox_fail('payments', event_id, token, 'boom') FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    maintain(&client).await;
    assert_eq!(row(&client, "SELECT count(*) FROM dlq_payments").await, "2");
    run(&client, "UPDATE postbox.inbox_dead SET died_at = died_at - interval '25 hours'").await;
    let done = maintain(&client).await;
    assert!(done.contains(&"inboxes|payments|expired|1 dead letters".to_owned()), "{done:?}");
    assert_eq!(
        rows(&client, "SELECT event_id, state FROM messages_payments ORDER BY 1").await,
        ["a1|dead", "a2|behind", "free|discarded"]
    );
    age(&client, "2 hours").await;
    maintain(&client).await;
    assert_eq!(
        rows(&client, "SELECT event_id, state FROM messages_payments ORDER BY 1").await,
        ["a1|dead", "a2|behind"]
    );
    assert_eq!(row(&client, "SELECT action, detail ->> 'count' FROM postbox.audit").await, "inbox_expire|1");
}

#[tokio::test]
async fn maintenance_takes_back_what_a_dead_worker_held_once() {
    let (cluster, client) = start().await;
    inbox(&client, "").await;
    receive(&client, 1, 120).await;
    run(&client, "SELECT postbox.inbox_claim('payments', 'dead', 100); UPDATE postbox.inbox_batch SET lease_until = now() - interval '1 second' WHERE token IS NOT NULL").await;
    assert_eq!(maintain(&client).await[..1], ["inboxes|payments|taken back|2 leases that ran out"]);
    maintain(&client).await;
    assert_eq!(
        row(&client, "SELECT count(*), count(DISTINCT event_id), bool_or(worker IS NOT NULL) FROM pending_payments")
            .await,
        "120|120|f"
    );
    // Who completes at this moment is not waited for, and has it.
    let worker = cluster.client("postgres").await;
    run(&client, "UPDATE postbox.inbox_batch SET ready_at = now() - interval '1 hour'").await;
    run(
        &worker,
        "CREATE TABLE held AS SELECT * FROM postbox.inbox_claim('payments', 'slow', 1);
        UPDATE postbox.inbox_batch SET lease_until = now() - interval '1 second' WHERE token IS NOT NULL;
        BEGIN; SELECT postbox.inbox_complete('payments', array_agg(event_id), array_agg(token)) FROM held",
    )
    .await;
    assert!(!maintain(&client).await.iter().any(|row| row.contains("taken back")));
    run(&worker, "COMMIT").await;
    assert_eq!(row(&client, "SELECT count(*) FROM pending_payments").await, "119");
}

#[tokio::test]
async fn a_leaf_of_the_log_goes_when_no_inbox_needs_it() {
    let (cluster, client) = start().await;
    inbox(&client, "").await;
    run(&client, "SELECT postbox.create_inbox('other')").await;
    receive(&client, 1, 10).await;
    run(&client, COMPLETE).await;
    run(&client, "INSERT INTO other (event_id) VALUES ('a'); SELECT postbox.inbox_complete('other', array_agg(event_id), array_agg(token)) FROM postbox.inbox_claim('other', 'w')").await;
    assert!(!maintain(&client).await.iter().any(|row| row.contains("inbox_log")));
    age(&client, "4 days").await;
    assert!(maintain(&client).await.contains(&"inbox_rings|inbox_log|advanced|".to_owned()));
    receive(&client, 11, 20).await;
    run(&client, COMPLETE).await;
    let leaves = "SELECT tableoid::regclass, count(*) FROM postbox.inbox_log GROUP BY 1 ORDER BY 1";
    assert_eq!(rows(&client, leaves).await, ["postbox.inbox_log_g0|2", "postbox.inbox_log_g1|1"]);
    // One of them keeps its messages for longer.
    run(&client, "UPDATE postbox.inbox SET retention = '30 days', dedup_window = '30 days' WHERE name = 'other'; UPDATE postbox.inbox_log SET at = at - interval '4 days' WHERE at < now() - interval '1 day'").await;
    let done = maintain(&client).await;
    assert!(done.contains(&"inboxes|payments|removed|10 messages".to_owned()), "{done:?}");
    maintain(&client).await;
    assert_eq!(rows(&client, leaves).await.len(), 2);
    run(&client, "UPDATE postbox.inbox SET retention = '7 days', dedup_window = '7 days' WHERE name = 'other'").await;

    // Whoever reads it is not waited for.
    let reader = cluster.client("postgres").await;
    run(&reader, "BEGIN; SELECT count(*) FROM postbox.inbox_log").await;
    let done = maintain(&client).await;
    assert!(done.iter().any(|row| row.starts_with("inbox_rings|inbox_log|busy|postbox.inbox_log_g0")), "{done:?}");
    run(&reader, "COMMIT").await;
    let done = maintain(&client).await;
    assert!(done.contains(&"inbox_rings|inbox_log|emptied|postbox.inbox_log_g0".to_owned()), "{done:?}");
    assert_eq!(rows(&client, leaves).await, ["postbox.inbox_log_g1|1"]);
    let status = "SELECT inbox_name, processed, is_exact FROM postbox.inbox_status()";
    assert_eq!(rows(&client, status).await, ["other|1|t", "payments|20|t"]);
}

#[tokio::test]
async fn the_log_does_not_run_into_a_leaf_that_is_needed() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    run(&client, "SELECT setval('postbox.inbox_log_id_seq', 600000)").await;
    receive(&client, 1, 10).await;
    run(&client, COMPLETE).await;
    assert!(maintain(&client).await.contains(&"inbox_rings|inbox_log|kept|".to_owned()));
    receive(&client, 11, 20).await;
    run(&client, COMPLETE).await;
    let leaves = "SELECT tableoid::regclass, count(*), max(id) >= 4294967296 FROM postbox.inbox_log GROUP BY 1";
    assert_eq!(rows(&client, leaves).await, ["postbox.inbox_log_g0|2|t"]);
    maintain(&client).await;
    assert_eq!(row(&client, "SELECT processed, is_exact FROM postbox.inbox_status()").await, "20|t");
}

#[tokio::test]
async fn ids_go_by_the_leaf() {
    let (cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '1 day'").await;
    let leaves = "SELECT tableoid::regclass, count(*) FROM postbox.inbox_seen GROUP BY 1 ORDER BY 1";
    for round in 0..2 {
        receive(&client, round * 10 + 1, round * 10 + 10).await;
        run(&client, COMPLETE).await;
        for _ in 0..3 {
            maintain(&client).await;
        }
        run(&client, "UPDATE postbox.inbox_seen_leaf SET since = since - interval '13 hours' WHERE takes_rows").await;
        let done = maintain(&client).await;
        assert!(done.contains(&"inbox_rings|inbox_seen|advanced|".to_owned()), "{done:?}");
    }
    assert_eq!(rows(&client, leaves).await, ["postbox.inbox_seen_g0|10", "postbox.inbox_seen_g1|10"]);
    assert!(maintain(&client).await.is_empty());
    run(&client, "UPDATE postbox.inbox_seen_leaf SET until = clock_timestamp() WHERE generation = 0").await;
    // A receiver that is under way reads all leaves; it is not waited for.
    let receiver = cluster.client("postgres").await;
    run(&receiver, "BEGIN").await;
    receive(&receiver, 100, 100).await;
    let done = maintain(&client).await;
    assert!(done.iter().any(|row| row.starts_with("inbox_rings|inbox_seen|busy|postbox.inbox_seen_g0")), "{done:?}");
    run(&receiver, "COMMIT").await;
    assert!(maintain(&client).await.contains(&"inbox_rings|inbox_seen|emptied|postbox.inbox_seen_g0".to_owned()));
    assert_eq!(rows(&client, leaves).await, ["postbox.inbox_seen_g1|10"]);
    receive(&client, 1, 20).await;
    assert_eq!(
        row(&client, "SELECT count(*) FROM payments WHERE event_id <> 'm100'").await,
        "10",
        "the ids of the leaf that is left are known"
    );
}

#[tokio::test]
async fn nothing_grows_over_many_cycles() {
    let cluster = Cluster::builder().setting("autovacuum", "off").with_postbox().start();
    let client = cluster.client("postgres").await;
    inbox(&client, ", retention => '0', dedup_window => '1 hour'").await;
    let mut sizes = BTreeMap::new();
    for cycle in 0..15u32 {
        receive(&client, cycle * 3000 + 1, cycle * 3000 + 3000).await;
        run(&client, COMPLETE).await;
        // An hour has passed.
        age(&client, "1 hour").await;
        run(&client, "UPDATE postbox.inbox_seen SET until = until - interval '1 hour'; UPDATE postbox.inbox_seen_leaf SET since = since - interval '1 hour', until = until - interval '1 hour'").await;
        for _ in 0..4 {
            maintain(&client).await;
        }
        assert_eq!(row(&client, COUNT).await, "0", "cycle {cycle}");
        run(&client, "VACUUM").await;
        let size = row(
            &client,
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
             WHERE c.relkind IN ('r', 'p') AND (c.relname ~ '^inbox' AND c.relnamespace = 'postbox'::regnamespace OR c.relname = 'payments')",
        )
        .await;
        sizes.insert(cycle, size.parse::<u64>().unwrap());
    }
    let early = (3..9).map(|cycle| sizes[&cycle]).max().unwrap();
    let late = (9..15).map(|cycle| sizes[&cycle]).max().unwrap();
    assert!(late <= early + early / 20, "{sizes:?}");
}

#[tokio::test]
async fn roles_do_what_is_theirs() {
    let (_cluster, client) = start().await;
    inbox(&client, ", max_retries => 0, retention => '0', dedup_window => '1 day', dead_retention => '1 hour', failure_policy => 'pause'").await;
    run(
        &client,
        "SELECT postbox.enable_inbox_ordering('payments');
         SET client_min_messages = error;
         CREATE ROLE keeper; SELECT postbox.grant_role('maintainer', 'keeper', '{payments}');
         CREATE ROLE op; SELECT postbox.grant_role('operator', 'op'); GRANT SELECT ON payments TO op;
         CREATE ROLE mo; SELECT postbox.grant_role('monitor', 'mo'); GRANT SELECT ON stats_payments TO mo",
    )
    .await;
    receive(&client, 1, 10).await;
    run(&client, COMPLETE).await;
    receive(&client, 11, 20).await;
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('a1', 'a', 1), ('a2', 'a', 2), ('b1', 'b', 1), ('b2', 'b', 2)").await;
    run(
        &client,
        "SELECT postbox.inbox_fail('payments', event_id, token, 'boom') FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    run(&client, "UPDATE postbox.inbox_dead SET died_at = died_at - interval '2 hours' WHERE event_id = 'm11'").await;
    run(&client, "SET ROLE mo").await;
    let status = "SELECT pending, dead, processed, is_exact FROM postbox.inbox_status()";
    assert_eq!(row(&client, status).await, "2|12|10|t", "who may not read the messages is told how many");
    assert_eq!(row(&client, "SELECT status FROM postbox.inbox_health()").await, "critical");
    assert_eq!(row(&client, "SELECT sum(processed) FROM stats_payments").await, "10");
    run(&client, "RESET ROLE; SET ROLE op").await;
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_messages('payments', '{m1,m12,a1}')").await, "3");
    assert_eq!(row(&client, "SELECT postbox.discard_inbox_dead_letters('payments', '{b1}')").await, "1");
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_dead_letters('payments', '{m13}', rate => 1)").await, "1");
    run(&client, "RESET ROLE").await;
    run(&client, "SELECT postbox.inbox_claim('payments', 'dead', 1); UPDATE postbox.inbox_batch SET lease_until = now() WHERE token IS NOT NULL").await;
    run(&client, "SET ROLE keeper").await;
    let mut done = Vec::new();
    for _ in 0..4 {
        done.extend(rows(&client, "SELECT step, subject, outcome, detail FROM postbox.maintain(true)").await);
    }
    assert!(!done.iter().any(|row| row.contains("|skipped|")), "{done:?}");
    for expected in ["taken back|1 leases", "noted|", "removed|", "expired|1 dead letters"] {
        assert!(done.iter().any(|row| row.contains(expected)), "{expected}: {done:?}");
    }
    assert_eq!(row(&client, "SELECT count(*) FILTER (WHERE event_id ~ '^m([2-9]|10)$') FROM payments").await, "0");
}

#[tokio::test]
async fn what_workers_mark_in_the_table_is_removed_like_what_they_complete() {
    let (_cluster, client) = start().await;
    inbox(&client, ", style => 'update', max_retries => 0, retention => '1 hour', dedup_window => '1 day', dead_retention => '1 hour'").await;
    receive(&client, 1, 6).await;
    run(
        &client,
        "UPDATE payments SET processed_at = now() WHERE event_id IN ('m1', 'm2', 'm3');
         UPDATE payments SET retry_count = 1 WHERE event_id IN ('m4', 'm5')",
    )
    .await;
    // One is done once more, and one of the dead is younger than the others.
    run(&client, "SELECT postbox.replay_inbox_messages('payments', '{m1}')").await;
    age(&client, "2 hours").await;
    run(&client, "UPDATE postbox.inbox_dead SET died_at = died_at - interval '2 hours' WHERE event_id = 'm4'").await;
    let client = &client;
    wait_until_async("what is kept for long enough is gone", PATIENCE, async || {
        maintain(client).await;
        (row(client, "SELECT count(*) FROM payments WHERE event_id IN ('m2', 'm3')").await == "0").then_some(())
    })
    .await;
    let left = "SELECT event_id, state FROM messages_payments ORDER BY 1";
    assert_eq!(rows(client, left).await, ["m1|waiting", "m4|discarded", "m5|dead", "m6|waiting"]);
    receive(client, 2, 2).await;
    assert_eq!(row(client, "SELECT duplicates FROM postbox.inbox_status()").await, "1", "its id is known still");
    run(client, "UPDATE payments SET processed_at = now() WHERE event_id = 'm1'").await;
    age(client, "2 hours").await;
    wait_until_async("what is done in the end goes too", PATIENCE, async || {
        maintain(client).await;
        (rows(client, left).await == ["m5|dead", "m6|waiting"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_owner_refuses_to_let_go_stops_nothing_else_and_shows() {
    let (_cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '0'").await;
    run(&client, "CREATE TABLE note (about text REFERENCES payments)").await;
    receive(&client, 1, 3).await;
    run(&client, "INSERT INTO note VALUES ('m1')").await;
    run(&client, COMPLETE).await;
    receive(&client, 4, 4).await;
    run(&client, "SELECT postbox.inbox_claim('payments', 'w'); UPDATE postbox.inbox_batch SET lease_until = now() - interval '1 s'").await;
    let done = maintain(&client).await;
    assert!(done.contains(&"inboxes|payments|taken back|1 leases that ran out".to_owned()), "{done:?}");
    assert!(
        done.iter().any(|line| line.starts_with("inboxes|payments|skipped|") && line.contains("foreign key")),
        "{done:?}"
    );
    assert_eq!(row(&client, "SELECT sum(messages) FROM postbox.inbox_total WHERE what = 'processed'").await, "3");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch WHERE token IS NOT NULL").await, "0");
    let status = "SELECT removal_waits_for FROM postbox.inbox_status()";
    assert!(row(&client, status).await.contains("foreign key"));
    let reasons = "SELECT status, reasons FROM postbox.inbox_health()";
    let health = row(&client, reasons).await;
    assert!(health.starts_with("degraded|") && health.contains("retention fails"), "{health}");
    run(&client, "DROP TABLE note").await;
    maintain(&client).await;
    assert_eq!(row(&client, status).await, "");
    assert_eq!(row(&client, reasons).await, "healthy|{}");
    assert_eq!(row(&client, COUNT).await, "1");
}

#[tokio::test]
async fn a_row_that_somebody_holds_for_a_moment_is_no_failure() {
    let (cluster, client) = start().await;
    inbox(&client, ", retention => '0', dedup_window => '0'").await;
    receive(&client, 1, 3).await;
    run(&client, COMPLETE).await;
    let holder = cluster.client("postgres").await;
    let failure = "SELECT coalesce(failure, 'none') FROM postbox.inbox_keeping";
    for failed in ["none", "of old"] {
        run(&client, &format!("UPDATE postbox.inbox_keeping SET failure = nullif('{failed}', 'none')")).await;
        run(&holder, "BEGIN; SELECT FROM payments FOR UPDATE").await;
        let done = maintain(&client).await;
        assert!(done.iter().any(|line| line.starts_with("inboxes|payments|busy|")), "{done:?}");
        assert_eq!(row(&client, failure).await, failed);
        run(&holder, "ROLLBACK").await;
    }
    let done = maintain(&client).await;
    assert!(done.contains(&"inboxes|payments|removed|3 messages".to_owned()), "{done:?}");
    assert_eq!(row(&client, failure).await, "none");
}
