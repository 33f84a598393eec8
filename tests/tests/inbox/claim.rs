//! What claims hand out, and what becomes of leases: who has one, for how long, and that a stale one does nothing.

use tokio_postgres::Client;

use super::order::buffers;
use super::{claim, claimed, complete, try_complete};
use crate::sql::{error, refused, row, rows, run, start};

const CLAIM: &str = "'payments', 'worker', 50";

async fn receive(client: &Client, ids: &str) {
    run(client, &format!("INSERT INTO payments (event_id, event_type, payload) SELECT id, 't', '{{}}' FROM {ids}"))
        .await;
}

fn ids(messages: &[(String, i64)]) -> Vec<&str> {
    messages.iter().map(|(id, _)| id.as_str()).collect()
}

/// Makes every lease one that has run out.
async fn let_leases_run_out(client: &Client) {
    run(
        client,
        "UPDATE postbox.inbox_batch SET lease_until = clock_timestamp() - interval '1 second' WHERE token IS NOT NULL",
    )
    .await;
}

#[tokio::test]
async fn batches_stay_whole_unless_they_are_larger_than_the_claim() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    receive(&client, "generate_series(1, 3) n, lateral (SELECT 'a' || n AS id) i").await;
    for id in ["b", "c"] {
        receive(&client, &format!("(VALUES ('{id}')) v (id)")).await;
    }
    receive(&client, "generate_series(1, 5) n, lateral (SELECT 'd' || n AS id) i").await;

    let first = claim(&client, "'payments', 'w', 2").await;
    assert_eq!(ids(&first), ["a1", "a2"], "larger than the claim: parted");
    let second = claim(&client, "'payments', 'w', 4").await;
    assert_eq!(ids(&second), ["a3", "b", "c"], "the next one would be too many, and stays whole");
    let third = claim(&client, CLAIM).await;
    assert_eq!(ids(&third), ["d1", "d2", "d3", "d4", "d5"]);
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    assert_eq!(row(&client, "SELECT count(*), min(attempts), max(attempts) FROM postbox.inbox_batch").await, "5|1|1");
    for messages in [&first, &second, &third] {
        complete(&client, messages).await;
    }
    assert_eq!(row(&client, "SELECT sum(messages) FROM postbox.inbox_log WHERE what = 'processed'").await, "10");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch").await, "0");
}

#[tokio::test]
async fn many_arrivals_come_in_batches_of_50_and_types_apart() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('payments');
         INSERT INTO payments (event_id, event_type, visible_at)
             SELECT lpad(n::text, 3, '0'), CASE WHEN n % 4 = 0 THEN 'quarter' END, CASE WHEN n = 7 THEN now() + interval '1 hour' END FROM generate_series(1, 120) n",
    )
    .await;
    let batches = "SELECT event_type, cardinality(event_ids), event_ids[1], ready_at > now() FROM postbox.inbox_batch ORDER BY 4, 1, 3";
    assert_eq!(rows(&client, batches).await, ["quarter|30|004|f", "|50|001|f", "|39|069|f", "|1|007|t"]);
    assert_eq!(claim(&client, "'payments', 'w', 1000").await.len(), 119);
}

#[tokio::test]
async fn workers_that_claim_at_the_same_time_share_and_nobody_waits() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    for n in 1..=8 {
        receive(&client, &format!("generate_series(1, 3) m, lateral (SELECT '{n}-' || m AS id) i")).await;
    }
    let mut seen = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..4 {
        let worker = cluster.client("postgres").await;
        run(&worker, "SET lock_timeout = '1ms'; BEGIN").await;
        seen.extend(claimed(&worker, "'payments', 'w', 6").await);
        workers.push(worker);
    }
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 24, "each message once");
    run(&workers[0], "ROLLBACK").await;
    assert_eq!(claimed(&client, CLAIM).await.len(), 6, "what was not committed is handed out again");
}

/// What came in one statement is due at one moment, and claimed from one end to the other.
#[tokio::test]
async fn a_claim_does_not_pass_what_was_claimed_before() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    // Autovacuum would do it as well, later.
    run(&client, "ALTER TABLE postbox.inbox_batch SET (autovacuum_enabled = false)").await;
    receive(&client, "generate_series(1, 15000) n, lateral (SELECT 'm' || n AS id) i").await;
    let after = async |claims: u32| {
        for _ in 0..claims {
            let messages = claim(&client, CLAIM).await;
            complete(&client, &messages).await;
        }
        run(&client, "BEGIN").await;
        let pages = super::order::buffers(&client, "SELECT * FROM postbox.inbox_claim('payments', 'w')").await;
        run(&client, "ROLLBACK").await;
        pages
    };
    let (first, later) = (after(5).await, after(195).await);
    assert!(later < first + 20, "{first} pages at first, {later} when 10,000 were processed");
}

#[tokio::test]
async fn what_is_committed_late_below_the_floor_is_found() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    let late = cluster.client("postgres").await;
    let floor = "SELECT ready_at FROM postbox.inbox_floor WHERE kind = 'batch' ORDER BY at DESC LIMIT 1";
    run(&late, "BEGIN").await;
    receive(&late, "(VALUES ('late')) v (id)").await;
    // The floor rises with the queue: from what it was ten seconds ago, to what waits now.
    receive(&client, "(VALUES ('one')) v (id)").await;
    run(&client, "SELECT postbox._raise_floors(1, '{0}')").await;
    assert_eq!(row(&client, floor).await, "-infinity", "at first nobody knows what else is under way");
    let age = "UPDATE postbox.inbox_floor SET at = at - interval '10 seconds'";
    run(&client, age).await;
    run(&client, "SELECT postbox._raise_floors(1, '{0}')").await;
    let above = format!("SELECT ({floor}) < (SELECT ready_at FROM postbox.inbox_batch WHERE event_ids = '{{one}}')");
    assert_eq!(row(&client, &above).await, "t", "ten seconds ago and one more");
    run(&client, "UPDATE postbox.inbox_floor SET at = clock_timestamp() + interval '1 second'; SELECT postbox._raise_floors(1, '{0}')").await;
    assert_eq!(row(&client, &above).await, "t", "not more than twice a second");

    // The transaction took longer than the floor allows for.
    run(&client, "INSERT INTO postbox.inbox_floor (inbox, kind, tier, at, ready_at) SELECT 1, 'batch', 0, clock_timestamp() + interval '2 seconds', ready_at FROM postbox.inbox_batch").await;
    run(&late, "COMMIT").await;
    let [(id, _)] = &claim(&client, "'payments', 'w', 1").await[..] else { panic!("one is handed out") };
    assert_eq!(id, "one", "claims begin at the floor");
    assert_eq!(claimed(&client, CLAIM).await, ["late"], "who finds nothing looks below");

    // Maintenance lowers the floor where everybody is busy.
    run(&late, "BEGIN").await;
    receive(&late, "(VALUES ('later')) v (id)").await;
    receive(&client, "(VALUES ('two'), ('three')) v (id)").await;
    run(&client, "INSERT INTO postbox.inbox_floor (inbox, kind, tier, at, ready_at) SELECT 1, 'batch', 0, clock_timestamp() + interval '3 seconds', ready_at FROM postbox.inbox_batch WHERE token IS NULL").await;
    run(&late, "COMMIT").await;
    // In a second, so that what is swept is newer.
    run(&client, "UPDATE postbox.inbox_floor SET at = at - interval '1 minute'").await;
    run(&client, "SELECT postbox._sweep_inbox(i, 100) FROM postbox.inbox i").await;
    assert_eq!(ids(&claim(&client, "'payments', 'w', 1").await), ["later"]);
    assert_eq!(claimed(&client, CLAIM).await, ["three", "two"]);
}

#[tokio::test]
async fn whom_leases_run_out_on_is_handed_out_alone_and_then_given_up() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', max_retries => 2)").await;
    receive(&client, "(VALUES ('a'), ('b'), ('killer')) v (id)").await;
    for company in [3, 3] {
        assert_eq!(claim(&client, CLAIM).await.len(), company);
        let_leases_run_out(&client).await;
    }
    // Its neighbours are known to be innocent one by one.
    let mut alone = Vec::new();
    loop {
        let messages = claim(&client, CLAIM).await;
        let [(id, _)] = &messages[..] else { break };
        alone.push(id.clone());
        if id == "killer" {
            let_leases_run_out(&client).await;
            if alone.iter().filter(|id| *id == "killer").count() > 3 {
                panic!("{alone:?}");
            }
        } else {
            complete(&client, &messages).await;
        }
    }
    assert!(alone.contains(&"a".to_owned()) && alone.contains(&"b".to_owned()), "{alone:?}");
    assert_eq!(rows(&client, "SELECT event_id, why FROM postbox.inbox_dead").await, ["killer|crashed"]);
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch").await, "0");
}

#[tokio::test]
async fn what_its_owner_has_deleted_is_let_go_when_its_lease_runs_out() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', max_retries => 0)").await;
    receive(&client, "(VALUES ('a'), ('b'), ('c')) v (id)").await;
    assert_eq!(claim(&client, CLAIM).await.len(), 3);
    run(&client, "DELETE FROM payments WHERE event_id IN ('a', 'b')").await;
    let_leases_run_out(&client).await;
    assert_eq!(ids(&claim(&client, CLAIM).await), ["c"]);
    // Alone, with all its attempts used.
    run(&client, "DELETE FROM payments").await;
    let_leases_run_out(&client).await;
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch").await, "0");
    assert_eq!(rows(&client, "SELECT event_id FROM postbox.inbox_dead").await, [""; 0]);
    assert_eq!(rows(&client, "SELECT what, event_ids FROM postbox.inbox_log ORDER BY id").await, ["failed|{c}"]);

    // Who does not see all rows does not know which are gone.
    receive(&client, "(VALUES ('d')) v (id)").await;
    run(
        &client,
        "CREATE ROLE blind; SELECT postbox.grant_role('worker', 'blind', '{payments}'); ALTER TABLE payments ENABLE ROW LEVEL SECURITY; SET ROLE blind",
    )
    .await;
    for _ in 0..2 {
        run(&client, &format!("SELECT FROM postbox.inbox_claim({CLAIM})")).await;
        let_leases_run_out(&client).await;
    }
    run(&client, "RESET ROLE").await;
    assert_eq!(rows(&client, "SELECT event_id, why FROM postbox.inbox_dead").await, ["d|crashed"]);
}

#[tokio::test]
async fn a_lease_that_ran_out_holds_until_the_message_is_handed_out_again() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    receive(&client, "(VALUES ('a')) v (id)").await;
    let late = claim(&client, CLAIM).await;
    let_leases_run_out(&client).await;
    complete(&client, &late).await;

    receive(&client, "(VALUES ('b')) v (id)").await;
    let old = claim(&client, CLAIM).await;
    let_leases_run_out(&client).await;
    let new = claim(&client, CLAIM).await;
    assert_eq!(ids(&new), ["b"]);
    assert!(new[0].1 > old[0].1, "tokens grow");
    let refusal = try_complete(&client, &old).await.expect_err("the token is stale");
    assert_eq!(refusal.code().map(tokio_postgres::error::SqlState::code), Some("PB002"));
    complete(&client, &new).await;
    try_complete(&client, &new).await.expect_err("it is done");
}

#[tokio::test]
async fn a_stale_token_raises_in_every_verb_and_undoes_what_was_done() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments'); CREATE TABLE effect (n int)").await;
    receive(&client, "(VALUES ('a'), ('b')) v (id)").await;
    let messages = claim(&client, CLAIM).await;
    let (token, stale) = (messages[0].1, messages[0].1 + 1_000);
    for verb in [
        format!("postbox.inbox_complete('payments', '{{a}}', '{{{stale}}}')"),
        // One of both is enough.
        format!("postbox.inbox_complete('payments', '{{a,b}}', '{{{token},{stale}}}')"),
        format!("postbox.inbox_complete('payments', '{{a,c}}', '{{{token},{token}}}')"),
        format!("postbox.inbox_fail('payments', 'a', {stale}, 'no')"),
        format!("postbox.inbox_extend('payments', '{{a}}', '{{{stale}}}')"),
        format!("postbox.inbox_extend('payments', '{{a,b}}', '{{{token},{stale}}}')"),
        format!("postbox.inbox_release('payments', '{{a}}', '{{{stale}}}')"),
        format!("postbox.inbox_release('payments', '{{b,a}}', '{{{stale},{token}}}')"),
    ] {
        let refusal = error(&client, &format!("BEGIN; INSERT INTO effect VALUES (1); SELECT {verb}")).await;
        assert_eq!(refusal.code().code(), "PB002", "{verb}: {refusal:?}");
        assert!(refusal.hint().is_some_and(|hint| hint.contains("Roll back")), "{verb}: {refusal:?}");
        run(&client, "ROLLBACK").await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM effect").await, "0");
    complete(&client, &messages).await;
    for (arguments, code, message) in [
        ("'{a}', NULL", "22023", "1 messages"),
        ("'{a}', '{1,2}'", "22023", "with 2 tokens"),
        ("'{NULL}', '{1}'", "22004", "is NULL"),
        ("'{a}', '{NULL}'", "22004", "is NULL"),
    ] {
        refused(
            &client,
            &format!("SELECT postbox.inbox_complete('payments', {arguments})"),
            code,
            message,
            "inbox_claim",
        )
        .await;
    }
}

#[tokio::test]
async fn part_of_a_claim_may_be_completed_failed_released_and_extended() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', backoff_initial => '10 seconds', backoff_max => '25 seconds', max_retries => 4)").await;
    receive(&client, "(VALUES ('a'), ('b'), ('c'), ('d')) v (id)").await;
    let messages = claim(&client, CLAIM).await;
    let token = messages[0].1;
    let held =
        "SELECT string_agg(e, ',' ORDER BY e) FROM postbox.inbox_batch, unnest(event_ids) e WHERE token IS NOT NULL";
    complete(&client, &messages[1..2]).await;
    assert_eq!(row(&client, held).await, "a,c,d");
    run(&client, &format!("SELECT postbox.inbox_release('payments', '{{c}}', '{{{token}}}')")).await;
    assert_eq!(row(&client, held).await, "a,d");
    let extended = format!(
        "SELECT postbox.inbox_extend('payments', '{{a}}', '{{{token}}}', 3600) > clock_timestamp() + interval '59 minutes'"
    );
    assert_eq!(row(&client, &extended).await, "t");
    assert_eq!(row(&client, &format!("SELECT postbox.inbox_fail('payments', 'd', {token}, 'no')")).await, "retry");
    let wait = "SELECT ready_at - last_failed_at BETWEEN '0' AND least(interval '25 seconds', interval '10 seconds' * power(2, attempts - 1)), attempts, error FROM postbox.inbox_batch WHERE 'd' = ANY (event_ids)";
    assert_eq!(row(&client, wait).await, "t|1|no");
    // Released: handed out at once, as if it had not been.
    let again = rows(&client, "SELECT event_id, attempts FROM postbox.inbox_claim('payments', 'w')").await;
    assert_eq!(again, ["c|1"]);
    for attempt in 2..=5 {
        run(&client, "UPDATE postbox.inbox_batch SET ready_at = clock_timestamp() WHERE token IS NULL").await;
        let messages = claim(&client, CLAIM).await;
        let [(id, token)] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(id, "d");
        let outcome = row(&client, &format!("SELECT postbox.inbox_fail('payments', 'd', {token}, 'no')")).await;
        if attempt < 5 {
            assert_eq!(outcome, "retry");
            assert!(row(&client, wait).await.starts_with(&format!("t|{attempt}|")));
        } else {
            assert_eq!(outcome, "dead", "the first attempt and four more");
        }
    }
    assert_eq!(rows(&client, "SELECT event_id, why, attempts FROM postbox.inbox_dead").await, ["d|failed|5"]);
}

/// Waits are random up to a bound that doubles with each attempt and is capped, spread evenly: no two messages that failed together come again
/// together. Of so many samples none of these bounds fails by chance.
#[tokio::test]
async fn waits_after_failures_are_spread_evenly_up_to_a_bound_that_doubles() {
    const MESSAGES: usize = 400;
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', backoff_initial => '8 seconds', backoff_max => '40 seconds', max_retries => 9)").await;
    receive(&client, "generate_series(1, 400) n, lateral (SELECT 'm' || n AS id) i").await;
    for (attempt, bound) in (1..).zip([8.0, 16.0, 32.0, 40.0, 40.0]) {
        run(&client, "UPDATE postbox.inbox_batch SET ready_at = clock_timestamp()").await;
        let failed = "SELECT count(*) FROM (SELECT postbox.inbox_fail('payments', event_id, token, 'no') AS outcome FROM postbox.inbox_claim('payments', 'w', 1000)) f WHERE outcome = 'retry'";
        assert_eq!(row(&client, failed).await, MESSAGES.to_string());
        let waits = format!(
            "SELECT extract(epoch FROM ready_at - last_failed_at) FROM postbox.inbox_batch WHERE attempts = {attempt} ORDER BY 1"
        );
        let waits: Vec<f64> = rows(&client, &waits).await.iter().map(|wait| wait.parse().expect("seconds")).collect();
        assert_eq!(waits.len(), MESSAGES);
        let (least, most) = (waits[0], waits[MESSAGES - 1]);
        // The clock is read once for each of the two, and a busy machine may do something else in between.
        assert!(least > -1.0 && most <= bound, "attempt {attempt}: {least} to {most}");
        assert!(least < 0.1 * bound && most > 0.9 * bound, "attempt {attempt}: {least} to {most} of {bound}");
        for quarter in 0..4 {
            let part = f64::from(quarter) * bound / 4.0..f64::from(quarter + 1) * bound / 4.0;
            let share = waits.iter().filter(|wait| part.contains(wait)).count();
            assert!((50..=150).contains(&share), "attempt {attempt}: {share} of {MESSAGES} in {part:?}");
        }
        let mut distinct = waits.clone();
        distinct.dedup();
        assert!(distinct.len() > MESSAGES * 9 / 10, "attempt {attempt}: {} different waits", distinct.len());
    }
    // Whatever is asked for, and however often it failed.
    let most =
        "SELECT bool_and(postbox._inbox_backoff('3 hours', '1 day', n) <= '1 day') FROM generate_series(1, 1000) n";
    assert_eq!(row(&client, most).await, "t");
}

#[tokio::test]
async fn what_is_released_is_found_again_although_the_floor_rose() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    receive(&client, "(VALUES ('first')) v (id)").await;
    let first = claim(&client, CLAIM).await;
    receive(&client, "(VALUES ('second')) v (id)").await;
    run(&client, "INSERT INTO postbox.inbox_floor (inbox, kind, tier, at, ready_at) SELECT 1, 'batch', 0, clock_timestamp(), ready_at FROM postbox.inbox_batch WHERE token IS NULL").await;
    run(&client, &format!("SELECT postbox.inbox_release('payments', '{{first}}', '{{{}}}')", first[0].1)).await;
    assert_eq!(ids(&claim(&client, "'payments', 'w', 1").await), ["first"], "before what came later");
}

#[tokio::test]
async fn plans_made_when_there_is_little_do_when_there_is_much() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    receive(&client, "(VALUES ('a'), ('b')) v (id)").await;
    run(&client, "VACUUM ANALYZE").await;
    // Plans are kept from here on.
    for n in 0..8 {
        receive(&client, &format!("(VALUES ('{n}')) v (id)")).await;
        complete(&client, &claim(&client, "'payments', 'w', 1").await).await;
    }
    let other = cluster.client("postgres").await;
    run(&other, "ALTER TABLE payments SET (autovacuum_enabled = off)").await;
    for part in 0..20 {
        receive(&other, &format!("generate_series(1, 1000) n, lateral (SELECT '{part}-' || n AS id) i")).await;
    }
    let insert = buffers(&client, "INSERT INTO payments (event_id) VALUES ('new')").await;
    let claim = buffers(&client, "SELECT * FROM postbox.inbox_claim('payments', 'w', 1)").await;
    println!("INSERT {insert} buffers, claim {claim}");
    assert!(insert < 60, "an INSERT touches {insert} buffers");
    assert!(claim < 150, "a claim touches {claim} buffers");
}

#[tokio::test]
async fn what_is_due_tomorrow_costs_claims_nothing_today() {
    for ordered in [false, true] {
        let (_cluster, client) = start().await;
        run(&client, "SELECT postbox.create_inbox('payments')").await;
        if ordered {
            run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
        }
        // A claim of one message and one that finds nothing, each the least of a few: some tidy up.
        let least = async |round: u32| {
            let mut least = [u64::MAX; 2];
            for n in 0..9 {
                let id = format!("m{round}-{n}");
                run(
                    &client,
                    &format!("INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('{id}', '{id}', 1)"),
                )
                .await;
                for least in &mut least {
                    let claim = buffers(&client, "SELECT * FROM postbox.inbox_claim('payments', 'w', 1, 3600)").await;
                    *least = claim.min(*least);
                }
            }
            assert_eq!(row(&client, "SELECT count(*) FROM pending_payments WHERE state = 'waiting'").await, "0");
            least
        };
        least(0).await;
        let before = least(1).await;
        run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num, visible_at) SELECT 'late' || n, 'late' || n, 1, now() + interval '1 day' FROM generate_series(1, 20000) n").await;
        // What has an order has to be sorted once.
        let unsorted = "SELECT count(*) FROM postbox.inbox_batch WHERE tier = -1";
        while ordered && row(&client, unsorted).await != "0" {
            assert_eq!(claimed(&client, "'payments', 'w', 1000").await, [""; 0]);
        }
        let after = least(2).await;
        println!("ordered {ordered}: {before:?} buffers before, {after:?} after");
        assert_eq!(row(&client, "SELECT count(*) FROM pending_payments WHERE state = 'delayed'").await, "20000");
        for (before, after) in before.into_iter().zip(after) {
            assert!(after <= before + 20, "ordered {ordered}: {before} buffers before, {after} after");
        }
    }
}

#[tokio::test]
async fn the_head_of_a_lane_that_is_released_is_found_again_although_the_floor_rose() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_ordering('payments')").await;
    let insert = |id: &str| {
        format!(
            "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('{id}-1', '{id}', 1), ('{id}-2', '{id}', 2)"
        )
    };
    run(&client, &insert("first")).await;
    let first = claim(&client, CLAIM).await;
    assert_eq!(ids(&first), ["first-1"]);
    run(&client, &insert("second")).await;
    run(&client, "SELECT postbox._sort_arrivals(i, 50) FROM postbox.inbox i").await;
    run(&client, "INSERT INTO postbox.inbox_floor (inbox, kind, tier, at, ready_at) SELECT 1, 'batch', 0, clock_timestamp(), ready_at FROM postbox.inbox_batch WHERE token IS NULL").await;
    run(&client, &format!("SELECT postbox.inbox_release('payments', '{{first-1}}', '{{{}}}')", first[0].1)).await;
    let again = claim(&client, "'payments', 'w', 1").await;
    assert_eq!(ids(&again), ["first-1"], "before what came later");
    complete(&client, &again).await;
    assert_eq!(claimed(&client, CLAIM).await, ["first-2", "second-1"], "its lane goes on");
}
