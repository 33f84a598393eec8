//! Ordered inboxes: what happens at the same time.

use postbox_tests::wait_until_async;
use tokio_postgres::Client;

use super::order::{CLAIM, buffers, dead, ordered, receive};
use super::{PATIENCE, claim, claimed, complete, drain, try_complete};
use crate::sql::{error, refused, row, rows, run, start};

#[tokio::test]
async fn receivers_in_opposite_orders_wait_for_nobody() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    // Lanes are there, and one of them is with a worker.
    receive(&client, "a", &[1]).await;
    let held = claim(&client, CLAIM).await;
    receive(&client, "b", &[1]).await;
    let (first, second) = (cluster.client("postgres").await, cluster.client("postgres").await);
    for receiver in [&first, &second] {
        run(receiver, "SET statement_timeout = '10s'; BEGIN").await;
    }
    receive(&first, "a", &[2]).await;
    receive(&second, "b", &[2]).await;
    // One who claims in the middle of it, with all that is sorted not committed.
    let third = cluster.client("postgres").await;
    run(&third, "SET statement_timeout = '10s'; BEGIN").await;
    assert_eq!(claimed(&third, CLAIM).await, ["b-1"]);
    complete(&third, &held).await;
    receive(&first, "b", &[3]).await;
    receive(&second, "a", &[3]).await;
    for client in [&first, &second, &third] {
        run(client, "COMMIT").await;
    }
    assert_eq!(claimed(&client, CLAIM).await, ["a-2"]);
}

#[tokio::test]
async fn nobody_waits_for_a_claim() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    let other = cluster.client("postgres").await;
    run(&other, "SET statement_timeout = '10s'").await;
    receive(&client, "a", &[1]).await;
    run(&client, "BEGIN").await;
    let held = claim(&client, CLAIM).await;
    assert_eq!(held[0].0, "a-1");
    // The lane of a is there for nobody else yet.
    receive(&other, "a", &[2]).await;
    receive(&other, "b", &[1]).await;
    assert_eq!(claimed(&other, CLAIM).await, [""; 0]);
    run(&client, "ROLLBACK").await;
    assert_eq!(claimed(&other, CLAIM).await, ["a-1", "b-1"]);
    assert_eq!(error_of(try_complete(&client, &held).await), "PB002");
}

fn error_of(result: Result<(), tokio_postgres::Error>) -> String {
    let error = result.expect_err("an error");
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

#[tokio::test]
async fn one_worker_at_a_time_has_an_aggregate() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    let other = cluster.client("postgres").await;
    // Sorted apart, so that they are in batches of their own: a claim that is not committed has all of the batch that it parts.
    for aggregate in ["a", "b"] {
        receive(&client, aggregate, &[1, 2, 3]).await;
        run(&client, "SELECT postbox._sort_arrivals(i, 50) FROM postbox.inbox i").await;
    }
    run(&client, "BEGIN").await;
    run(&other, "SET statement_timeout = '10s'").await;
    let mine = claim(&client, "'payments', 'one', 1").await;
    let theirs = claim(&other, "'payments', 'two', 50").await;
    assert_eq!(theirs.len(), 1);
    assert_ne!(mine[0].0, theirs[0].0);
    run(&client, "COMMIT; BEGIN").await;
    complete(&client, &mine).await;
    // Not committed: the next one of that aggregate is not there yet.
    assert_eq!(claimed(&other, "'payments', 'two', 50").await, [""; 0]);
    run(&client, "COMMIT").await;
    let next = claim(&other, "'payments', 'two', 50").await;
    assert_eq!(next[0].0, mine[0].0.replace('1', "2"));
    assert_eq!(error_of(try_complete(&client, &mine).await), "PB002", "its token is used up");
}

#[tokio::test]
async fn a_message_that_comes_while_the_one_before_is_completed_is_not_lost() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    let other = cluster.client("postgres").await;
    run(&other, "SET statement_timeout = '10s'").await;
    receive(&client, "a", &[1]).await;
    let first = claim(&client, CLAIM).await;
    // Completed and not committed, then received and looked for.
    run(&client, "BEGIN").await;
    complete(&client, &first).await;
    receive(&other, "a", &[2]).await;
    assert_eq!(claimed(&other, CLAIM).await, [""; 0]);
    run(&client, "COMMIT").await;
    let waiting = &other;
    let second = wait_until_async("it is handed out", PATIENCE, async || claim(waiting, CLAIM).await.pop()).await;
    assert_eq!(second.0, "a-2");

    // Sorted and not committed, then completed.
    receive(&client, "a", &[3]).await;
    run(&client, "BEGIN").await;
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    // Neither who completes waits for it nor who claims then.
    run(&other, "SET lock_timeout = '1ms'").await;
    complete(&other, &[second]).await;
    assert_eq!(claimed(&other, CLAIM).await, [""; 0]);
    assert_eq!(row(&other, "SELECT state FROM messages_payments WHERE event_id = 'a-2'").await, "processed");
    run(&client, "COMMIT").await;
    let waiting = &other;
    let third = vec![wait_until_async("it goes on", PATIENCE, async || claim(waiting, CLAIM).await.pop()).await];
    assert_eq!(third[0].0, "a-3");

    // With a snapshot from before the arrival: told to try again, and then right.
    run(&other, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM postbox.inbox").await;
    receive(&client, "a", &[4]).await;
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    assert_eq!(error_of(try_complete(&other, &third).await), "40001");
    run(&other, "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    complete(&other, &third).await;
    run(&other, "COMMIT; SET default_transaction_isolation = 'repeatable read'").await;
    let fourth = claim(&other, CLAIM).await;
    assert_eq!(fourth[0].0, "a-4");
    receive(&other, "a", &[5]).await;
    complete(&other, &fourth).await;
    assert_eq!(claimed(&other, CLAIM).await, ["a-5"]);
}

#[tokio::test]
async fn claims_with_old_snapshots_lose_nothing() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    let other = cluster.client("postgres").await;
    receive(&client, "a", &[1, 2]).await;
    // It sees the notes that the other one takes away, and a lane that is not there for it.
    run(&other, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM postbox.inbox").await;
    let first = claim(&client, CLAIM).await;
    assert_eq!(error(&other, "SELECT * FROM postbox.inbox_claim('payments', 'old', 50)").await.code().code(), "40001");
    run(&other, "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM postbox.inbox").await;
    // The order goes while it looks.
    run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
    let late = other.batch_execute("SELECT * FROM postbox.inbox_claim('payments', 'old', 50); COMMIT").await;
    if late.is_err() {
        run(&other, "ROLLBACK").await;
    }
    complete(&client, &first).await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_lane").await, "0");
    assert_eq!(drain(&client).await, ["a-2"]);
}

/// A message `b` with the number of `x`, which lies before that one in the table and is committed when `x` is in its place and `head` handed out.
async fn two_with_one_number(client: &Client, other: &Client) -> Vec<(String, i64)> {
    ordered(client).await;
    run(other, "BEGIN; INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('b', 'a', 2)").await;
    run(client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('head', 'a', 1), ('x', 'a', 2)")
        .await;
    let head = claim(client, CLAIM).await;
    assert_eq!(head[0].0, "head");
    run(other, "COMMIT").await;
    head
}

#[tokio::test]
async fn of_two_messages_with_one_number_the_one_that_was_sorted_is_handed_out() {
    let (cluster, client) = start().await;
    let head = two_with_one_number(&client, &cluster.client("postgres").await).await;
    complete(&client, &head).await;
    assert_eq!(drain(&client).await, ["x"]);
    let taken = "b|sequence|sequence number 2 of aggregate a has arrived with another event_id";
    let passed = "b|sequence|sequence number 2 of aggregate a is below the next expected one, 3";
    let dead = dead(&client).await;
    assert!(dead == [taken] || dead == [passed], "{dead:?}");
}

#[tokio::test]
async fn a_message_that_is_not_sorted_when_the_order_goes_is_handed_out_once() {
    let (cluster, client) = start().await;
    let head = two_with_one_number(&client, &cluster.client("postgres").await).await;
    run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
    complete(&client, &head).await;
    assert_eq!(claimed(&client, CLAIM).await, ["b", "x"]);
}

/// Dead notes of arrivals stay in the index as long as a transaction is open anywhere.
#[tokio::test]
async fn a_transaction_held_open_costs_ordered_claims_nothing() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    let held = cluster.client("postgres").await;
    run(&held, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()").await;
    let round = async |from: u32, to: u32| {
        for n in from..to {
            run(
                &client,
                &format!("INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('m{n}', 'k{n}', 1)"),
            )
            .await;
            assert_eq!(drain(&client).await.len(), 1);
        }
    };
    round(0, 20).await;
    // The least of a few: some tidy up.
    let least = async |from: u32| {
        let mut least = u64::MAX;
        for n in from..from + 4 {
            run(
                &client,
                &format!("INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('m{n}', 'k{n}', 1)"),
            )
            .await;
            least = least.min(buffers(&client, "SELECT * FROM postbox.inbox_claim('payments', 'w', 1, 3600)").await);
        }
        least
    };
    let before = least(5000).await;
    round(20, 1000).await;
    floors_rise(&client).await;
    let after = least(5010).await;
    assert!(after <= before + 150, "{before} buffers before, {after} after");
    run(&held, "COMMIT").await;
    // What comes so late that it lies below the floor is found.
    run(&held, "BEGIN; INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('late', 'late', 1)").await;
    floors_rise(&client).await;
    run(&held, "COMMIT").await;
    let below = "SELECT count(*) FROM postbox.inbox_floor f JOIN postbox.inbox_batch b ON b.event_ids = '{late}' AND b.tier = f.tier AND b.ready_at < f.ready_at";
    assert_ne!(row(&client, below).await, "0", "it lies below the floor");
    // Not by each claim where looking there is dear.
    let late = async || Some(drain(&client).await).filter(|found| !found.is_empty());
    assert_eq!(wait_until_async("what is late", PATIENCE, late).await, ["late"]);
}

/// Waits until claims, of which one in eight does so, twice a second at most and a second behind, have moved all floors past this moment.
async fn floors_rise(client: &Client) {
    let now = row(client, "SELECT clock_timestamp()").await;
    let risen = format!(
        "SELECT count(DISTINCT tier) FROM postbox.inbox_floor WHERE kind = 'batch' AND tier IN (0, -1, -32768) AND ready_at > '{now}'"
    );
    wait_until_async("the floors have risen", PATIENCE, async || {
        assert_eq!(row(client, "SELECT count(*) FROM postbox.inbox_claim('payments', 'w')").await, "0");
        (row(client, &risen).await == "3").then_some(())
    })
    .await;
}

/// Completes all that is handed out while somebody holds the lane of a.
async fn complete_while_it_is_held(client: &Client, holder: &Client) {
    let held = claim(client, CLAIM).await;
    run(holder, "BEGIN; SELECT FROM postbox.inbox_lane WHERE key = 'a' FOR UPDATE").await;
    complete(client, &held).await;
    run(holder, "ROLLBACK").await;
    assert_eq!(row(client, NOTED).await, "1");
}

const NOTED: &str = "SELECT count(*) FROM postbox.inbox_batch WHERE tier = -32768";

#[tokio::test]
async fn a_lane_that_is_to_go_on_hides_nothing_and_goes_on_whatever_comes_first() {
    let (cluster, client) = start().await;
    let holder = cluster.client("postgres").await;
    ordered(&client).await;
    receive(&client, "a", &[1, 2, 3, 5]).await;
    complete_while_it_is_held(&client, &holder).await;
    let states = "SELECT event_id, state FROM messages_payments ORDER BY 1";
    assert_eq!(rows(&client, states).await, ["a-1|processed", "a-2|behind", "a-3|behind", "a-5|behind"]);
    assert_eq!(rows(&client, "SELECT event_id, state FROM pending_payments ORDER BY 1").await.len(), 3);
    let counts = "SELECT pending, processed, dead FROM postbox.inbox_status()";
    assert_eq!(row(&client, counts).await, "3|1|0");
    assert_eq!(row(&client, "SELECT count(*) FROM stats_payments").await, "1");
    assert_eq!(rows(&client, "SELECT event_id FROM next_payments").await, [""; 0]);
    assert_eq!(rows(&client, "SELECT aggregate_id, missing FROM gaps_payments").await, ["a|[4,5)"]);
    // A second message with the number that is done with, and a number that is given up.
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('late', 'a', 1)").await;
    run(&client, "SELECT postbox.inbox_gap_skip('payments', 'a', '[4,4]', 'lost')").await;
    assert_eq!(dead(&client).await.len(), 1);
    // Maintenance does it, if nobody claims.
    run(&client, "UPDATE postbox.inbox_batch SET ready_at = ready_at - interval '1 minute' WHERE tier = -32768").await;
    run(&client, "SELECT postbox.maintain(true)").await;
    assert_eq!(row(&client, NOTED).await, "0");
    assert_eq!(rows(&client, "SELECT event_id FROM next_payments").await, ["a-2"]);
    // What is processed may be replayed.
    complete_while_it_is_held(&client, &holder).await;
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_messages('payments', '{a-2}')").await, "1");
    assert_eq!(drain(&client).await, ["a-3", "a-2", "a-5"]);
    // Tiers come, and the order goes.
    receive(&client, "a", &[6, 7, 8]).await;
    complete_while_it_is_held(&client, &holder).await;
    run(&client, r#"SELECT postbox.enable_inbox_priority('payments', tiers => '[{"name": "all"}]')"#).await;
    complete_while_it_is_held(&client, &holder).await;
    run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
    assert_eq!(row(&client, NOTED).await, "0");
    assert_eq!(drain(&client).await, ["a-8"]);
    // And nothing that is processed keeps the inbox.
    run(&client, "SELECT postbox.enable_inbox_ordering('payments'); DELETE FROM postbox.inbox_dead").await;
    receive(&client, "a", &[4]).await;
    complete_while_it_is_held(&client, &holder).await;
    run(&client, "SELECT postbox.drop_inbox('payments')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch").await, "0");
}

/// What is committed while adoption waits for the table's lock is there for no older snapshot, and no trigger has seen it.
#[tokio::test]
async fn a_table_is_adopted_by_who_sees_what_others_commit() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE mine (event_id text PRIMARY KEY)").await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let adopt = format!("BEGIN ISOLATION LEVEL {level}; SELECT postbox.enable_inbox_tracking('mine')");
        refused(&client, &adopt, "25001", &level.to_lowercase(), "READ COMMITTED").await;
        run(&client, "ROLLBACK").await;
    }
}

#[tokio::test]
async fn a_renamed_inbox_with_a_lane_that_is_to_go_on_can_be_dropped() {
    let (cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[1]).await;
    complete_while_it_is_held(&client, &cluster.client("postgres").await).await;
    run(&client, "ALTER TABLE payments RENAME TO receipts").await;
    let drop = "SELECT postbox.drop_inbox('payments')";
    refused(&client, drop, "2BP01", "holds messages", "repair_inbox('payments')").await;
    run(&client, "SELECT postbox.repair_inbox('payments')").await;
    run(&client, drop).await;
}

/// An older snapshot shows no message that was committed since.
#[tokio::test]
async fn an_inbox_is_dropped_by_who_sees_what_others_commit() {
    let (cluster, client) = start().await;
    let other = cluster.client("postgres").await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        run(&client, &format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class")).await;
        run(&other, "INSERT INTO payments (event_id) VALUES (gen_random_uuid())").await;
        for arguments in ["'payments'", "'payments', cascade => true"] {
            run(&client, "SAVEPOINT s").await;
            let drop = format!("SELECT postbox.drop_inbox({arguments})");
            refused(&client, &drop, "25001", &level.to_lowercase(), "READ COMMITTED").await;
            run(&client, "ROLLBACK TO s").await;
        }
        run(&client, "ROLLBACK").await;
    }
    assert_eq!(rows(&client, "SELECT event_id FROM postbox.inbox_claim('payments', 'w')").await.len(), 2);
}
