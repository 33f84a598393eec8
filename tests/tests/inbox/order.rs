//! Ordered inboxes: the next message of each aggregate and no other, gaps, and what happens at the same time.

use postbox_tests::wait_until_async;
use tokio_postgres::Client;

use super::{PATIENCE, claim, claimed, complete, drain};
use crate::sql::{error, refused, row, rows, run, start};

pub(super) const CLAIM: &str = "'payments', 'worker', 50";

/// Messages of an aggregate, called `a-1` for number 1 of `a`.
pub(super) async fn receive(client: &Client, aggregate: &str, numbers: &[i64]) {
    for number in numbers {
        let sql = format!(
            "INSERT INTO payments (event_id, aggregate_id, sequence_num, payload)
             VALUES ('{aggregate}-{number}', '{aggregate}', {number}, '{{}}') ON CONFLICT DO NOTHING"
        );
        run(client, &sql).await;
    }
}

pub(super) async fn ordered(client: &Client) {
    run(client, "SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_ordering('payments')").await;
}

async fn lane(client: &Client, columns: &str) -> String {
    row(client, &format!("SELECT {columns} FROM postbox.inbox_lane WHERE key = 'a'")).await
}

pub(super) async fn dead(client: &Client) -> Vec<String> {
    rows(client, "SELECT event_id, why, error FROM postbox.inbox_dead ORDER BY event_id").await
}

const NEXT: &str = "SELECT event_id FROM next_payments ORDER BY 1";
const GAPS: &str = "SELECT aggregate_id, missing FROM gaps_payments ORDER BY 1, 2";

/// What a policy hides from a worker is not what its owner has deleted.
#[tokio::test]
async fn a_worker_that_does_not_see_every_row_is_refused_before_anything_is_sorted() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    run(
        &client,
        "CREATE ROLE blind; SELECT postbox.grant_role('worker', 'blind', '{payments}'); ALTER TABLE payments ENABLE ROW LEVEL SECURITY",
    )
    .await;
    receive(&client, "a", &[1]).await;
    run(&client, "SET ROLE blind").await;
    refused(&client, &format!("SELECT FROM postbox.inbox_claim({CLAIM})"), "42501", "row-level security", "").await;
    run(&client, "RESET ROLE").await;
    // Nor when the aggregate goes on.
    receive(&client, "a", &[2]).await;
    let first = claim(&client, CLAIM).await;
    run(&client, "SET ROLE blind").await;
    let ids = format!("SELECT postbox.inbox_complete('payments', '{{a-1}}', '{{{}}}')", first[0].1);
    refused(&client, &ids, "42501", "row-level security", "").await;
    run(&client, "RESET ROLE").await;
    complete(&client, &first).await;
    assert_eq!(drain(&client).await, ["a-2"]);
}

#[tokio::test]
async fn an_aggregate_hands_out_one_message_at_a_time_in_its_order_whatever_order_they_came_in() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[3, 1, 2, 1, 3]).await;
    receive(&client, "b", &[2]).await;
    run(&client, "INSERT INTO payments (event_id, payload) VALUES ('loose', '{}')").await;
    // Before anything is sorted as well as after.
    assert_eq!(rows(&client, NEXT).await, ["a-1"]);
    let mut first = claim(&client, CLAIM).await;
    first.sort();
    assert_eq!(first.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a-1", "loose"]);
    assert_eq!(rows(&client, NEXT).await, [""; 0]);
    assert_eq!(claimed(&client, CLAIM).await, [""; 0], "a is with its worker, b waits for 1");
    complete(&client, &first).await;
    assert_eq!(rows(&client, NEXT).await, ["a-2"]);
    receive(&client, "b", &[1]).await;
    assert_eq!(rows(&client, NEXT).await, ["a-2", "b-1"]);
    let mut order = drain(&client).await;
    let of_a: Vec<String> = order.iter().filter(|id| id.starts_with('a')).cloned().collect();
    assert_eq!(of_a, ["a-2", "a-3"]);
    order.retain(|id| id.starts_with('b'));
    assert_eq!(order, ["b-1", "b-2"]);
    assert_eq!(dead(&client).await, [""; 0], "what came again under its own id is nothing new");
}

#[tokio::test]
async fn what_is_missing_shows_with_its_age_and_holds_its_aggregate_alone() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[1, 3, 4, 8]).await;
    receive(&client, "b", &[5]).await;
    receive(&client, "c", &[1, 2]).await;
    let expected = ["a|[2,3)", "a|[5,8)", "b|[1,5)"];
    assert_eq!(rows(&client, GAPS).await, expected, "nothing is sorted yet");
    assert_eq!(drain(&client).await.len(), 3);
    assert_eq!(rows(&client, GAPS).await, expected);
    let since = "SELECT count(*) FROM postbox.inbox_ordering_gaps('payments') g JOIN payments p
        ON p.aggregate_id = g.aggregate_id AND p.sequence_num = upper(g.missing) AND p.received_at = g.since AND g.age > '0'";
    assert_eq!(row(&client, since).await, "3");
    assert_eq!(
        row(&client, "SELECT count(*) FROM postbox.inbox_ordering_gaps() WHERE inbox_name = 'payments'").await,
        "3"
    );

    receive(&client, "a", &[2, 6]).await;
    let expected = ["a|[5,6)", "a|[7,8)", "b|[1,5)"];
    assert_eq!(rows(&client, GAPS).await, expected, "what has come is missing no more, sorted or not");
    assert_eq!(drain(&client).await, ["a-2", "a-3", "a-4"]);
    assert_eq!(rows(&client, GAPS).await, expected);
    receive(&client, "a", &[7, 5]).await;
    receive(&client, "b", &[4, 3, 2, 1]).await;
    assert_eq!(drain(&client).await.len(), 9);
    assert_eq!(rows(&client, GAPS).await, [""; 0]);
    // A message that its owner has deleted before its turn is missing like one that never came.
    receive(&client, "a", &[9, 10, 11]).await;
    let first = claim(&client, CLAIM).await;
    run(&client, "DELETE FROM payments WHERE event_id = 'a-10'").await;
    complete(&client, &first).await;
    assert_eq!(rows(&client, GAPS).await, ["a|[10,11)"]);
    // So is one whose worker never came back, and when it comes again it is the next one.
    receive(&client, "a", &[10]).await;
    assert_eq!(claimed(&client, CLAIM).await, ["a-10"]);
    run(&client, "DELETE FROM payments WHERE event_id = 'a-10'; UPDATE postbox.inbox_batch SET lease_until = 'epoch' WHERE token IS NOT NULL").await;
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    assert_eq!(rows(&client, GAPS).await, ["a|[10,11)"]);
    receive(&client, "a", &[10]).await;
    assert_eq!(drain(&client).await, ["a-10", "a-11"]);
    assert_eq!(dead(&client).await, [""; 0]);
}

#[tokio::test]
async fn a_gap_is_given_up_on_the_record() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[1, 2, 4, 8]).await;
    let first = claim(&client, CLAIM).await;
    let skip = async |range: &str| {
        row(&client, &format!("SELECT postbox.inbox_gap_skip('payments', 'a', '{range}', 'lost')")).await
    };
    // Beyond what is handed out, a part of a gap, and the rest of it when it is the next.
    assert_eq!(skip("[5,7)").await, "2");
    assert_eq!(rows(&client, GAPS).await, ["a|[3,4)", "a|[7,8)"]);
    assert_eq!(skip("[7,7]").await, "1");
    complete(&client, &first).await;
    assert_eq!(drain(&client).await, ["a-2"]);
    assert_eq!(skip("[3,4)").await, "1");
    assert_eq!(rows(&client, NEXT).await, ["a-4"]);
    assert_eq!(drain(&client).await, ["a-4", "a-8"]);
    assert_eq!(rows(&client, GAPS).await, [""; 0]);
    assert_eq!(lane(&client, "next, arrived, skipped").await, "9|{}|{}");
    assert_eq!(
        rows(&client, "SELECT role, subject, detail->>'aggregate_id', detail->>'range', detail->>'reason' FROM postbox.audit WHERE action = 'inbox_gap_skipped'").await,
        ["postgres|payments|a|[5,7)|lost", "postgres|payments|a|[7,8)|lost", "postgres|payments|a|[3,4)|lost"]
    );
    assert_eq!(row(&client, "SELECT sum(messages) FROM postbox.inbox_log WHERE what = 'skipped'").await, "4");
    // It comes all the same.
    receive(&client, "a", &[5]).await;
    assert_eq!(drain(&client).await, [""; 0]);
    assert_eq!(
        dead(&client).await,
        ["a-5|sequence|sequence number 5 of aggregate a is below the next expected one, 9"]
    );
    // Before its turn as well.
    receive(&client, "a", &[10, 13]).await;
    assert_eq!(skip("[11,13)").await, "2");
    receive(&client, "a", &[12, 9]).await;
    assert_eq!(drain(&client).await, ["a-9", "a-10", "a-13"]);
    assert_eq!(dead(&client).await[0], "a-12|sequence|sequence number 12 of aggregate a is not waited for any more");
}

#[tokio::test]
async fn only_what_is_missing_can_be_given_up() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    run(&client, "SELECT postbox.create_inbox('loose')").await;
    receive(&client, "a", &[1, 4]).await;
    assert_eq!(claimed(&client, CLAIM).await, ["a-1"]);
    let skip = async |arguments: &str, code: &str, message: &str, hint: &str| {
        refused(&client, &format!("SELECT postbox.inbox_gap_skip({arguments})"), code, message, hint).await;
    };
    skip("'nosuch', 'a', '[2,4)', 'r'", "42704", "inbox \"nosuch\" does not exist", "inbox_status").await;
    skip("'loose', 'a', '[2,4)', 'r'", "55000", "has no order", "enable_inbox_ordering").await;
    skip("'payments', 'b', '[2,4)', 'r'", "42704", "waits for nothing of aggregate \"b\"", "inbox_ordering_gaps").await;
    skip("'payments', 'a', '[2,4)', NULL", "22004", "no reason", "postbox.audit").await;
    skip("'payments', 'a', '[2,4)', ' '", "22004", "no reason", "postbox.audit").await;
    for range in ["empty", "[2,)", "(,4)"] {
        skip(&format!("'payments', 'a', '{range}', 'r'"), "22023", "cannot be skipped", "both ends").await;
    }
    for range in ["[1,2)", "[2,5)", "[4,5)", "[5,9)", "[0,1)", "[1,4)"] {
        skip(&format!("'payments', 'a', '{range}', 'r'"), "22023", "is not missing: {[2,4)} is", "no more").await;
    }
    // A message that has come and cannot be sorted yet, as somebody else is sorting.
    let other = _cluster.client("postgres").await;
    run(
        &other,
        "BEGIN; SELECT pg_advisory_xact_lock(postbox._sort_lock(id)) FROM postbox.inbox WHERE name = 'payments'",
    )
    .await;
    receive(&client, "a", &[3]).await;
    skip("'payments', 'a', '[2,4)', 'r'", "55000", "message \"a-3\" has come", "next claim").await;
    run(&other, "COMMIT").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.audit").await, "0");
    skip("'payments', 'a', '[2,4)', 'r'", "22023", "is not missing: {[2,3)} is", "no more").await;
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postbox.inbox_gap_skip('payments', 'a', '[2,3)', 'r')";
    refused(&client, old, "25001", "repeatable read", "READ COMMITTED").await;
    run(&client, "ROLLBACK").await;
}

#[tokio::test]
async fn a_sequence_starts_where_it_is_told_to() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_ordering('payments', start_at => 10)",
    )
    .await;
    receive(&client, "a", &[11, 9, 10]).await;
    assert_eq!(rows(&client, NEXT).await, ["a-10"]);
    assert_eq!(drain(&client).await, ["a-10", "a-11"]);
    assert_eq!(
        dead(&client).await,
        ["a-9|sequence|sequence number 9 of aggregate a is below the next expected one, 10"]
    );

    run(&client, "SELECT postbox.disable_inbox_ordering('payments'); SELECT postbox.enable_inbox_ordering('payments', start_at => NULL)").await;
    receive(&client, "b", &[-3]).await;
    receive(&client, "c", &[7, 6]).await;
    // Claims that see more or less of them.
    run(&client, "SELECT postbox._tell_lanes(i, '{c-7}', '{c}', '{7}', '{NULL}', '{0}', '{NULL}') FROM postbox.inbox i; DELETE FROM postbox.inbox_batch WHERE event_ids = '{c-7}'").await;
    assert_eq!(rows(&client, NEXT).await, ["b--3", "c-6"]);
    assert_eq!(drain(&client).await, ["b--3", "c-6", "c-7"]);
    receive(&client, "c", &[5]).await;
    assert_eq!(drain(&client).await, [""; 0]);
    assert!(
        dead(&client)
            .await
            .contains(&"c-5|sequence|sequence number 5 of aggregate c is below the next expected one, 8".to_owned())
    );
}

#[tokio::test]
async fn a_message_that_is_not_due_holds_its_aggregate() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num, visible_at) VALUES
             ('a-1', 'a', 1, clock_timestamp() + interval '1 second'), ('a-2', 'a', 2, NULL),
             ('b-1', 'b', 1, NULL), ('b-2', 'b', 2, clock_timestamp() + interval '1 hour'), ('b-3', 'b', 3, NULL)",
    )
    .await;
    assert_eq!(rows(&client, NEXT).await, ["b-1"]);
    assert_eq!(drain(&client).await, ["b-1"]);
    assert_eq!(rows(&client, GAPS).await, [""; 0], "it is not missing");
    let client = &client;
    wait_until_async("a is due", PATIENCE, async || (rows(client, NEXT).await == ["a-1"]).then_some(())).await;
    assert_eq!(drain(client).await, ["a-1", "a-2"]);
    let late = "SELECT count(*) FROM postbox.inbox_log g JOIN payments p ON p.event_id = g.event_ids[1] WHERE g.at < p.visible_at";
    assert_eq!(row(client, late).await, "0");
}

#[tokio::test]
async fn a_message_that_failed_is_tried_again_before_those_behind_it() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[1, 2]).await;
    let (id, token) = claim(&client, CLAIM).await.remove(0);
    let fail = format!("SELECT postbox.inbox_fail('payments', '{id}', {token}, 'no luck', '1 second')");
    assert_eq!(row(&client, &fail).await, "retry");
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    assert_eq!(error(&client, &fail).await.code().code(), "PB002");
    let client = &client;
    let again = wait_until_async("the backoff is over", PATIENCE, async || claim(client, CLAIM).await.pop()).await;
    assert_eq!(again.0, "a-1");
    assert_eq!(row(client, "SELECT attempts, lanes FROM postbox.inbox_batch WHERE event_ids = '{a-1}'").await, "2|{a}");
    complete(client, &[again]).await;
    assert_eq!(drain(client).await, ["a-2"]);
}

#[tokio::test]
async fn what_becomes_of_those_behind_a_dead_letter_is_the_policys_business() {
    let (_cluster, client) = start().await;
    for (policy, blocked, behind) in
        [("skip", "", vec!["a-2", "a-3", "b-1"]), ("pause", "paused", vec!["b-1"]), ("park", "parked", vec!["b-1"])]
    {
        run(
            &client,
            &format!(
                "SELECT postbox.create_inbox('payments', max_retries => 0, failure_policy => '{policy}');
                 SELECT postbox.enable_inbox_ordering('payments')"
            ),
        )
        .await;
        receive(&client, "a", &[1, 2]).await;
        let (id, token) = claim(&client, CLAIM).await.remove(0);
        assert_eq!(
            row(&client, &format!("SELECT postbox.inbox_fail('payments', '{id}', {token}, 'poison')")).await,
            "dead"
        );
        receive(&client, "a", &[3]).await;
        receive(&client, "b", &[1]).await;
        let mut order = drain(&client).await;
        order.sort();
        assert_eq!(order, behind, "{policy}");
        assert_eq!(lane(&client, "blocked").await, blocked);
        assert_eq!(dead(&client).await, ["a-1|failed|poison"], "{policy}");
        // What waits behind it is kept when there is no order any more.
        run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
        assert_eq!(drain(&client).await.len(), if policy == "skip" { 0 } else { 2 }, "{policy}");
        run(&client, "DROP TABLE payments CASCADE; DELETE FROM postbox.inbox; DELETE FROM postbox.inbox_dead; DELETE FROM postbox.inbox_lane").await;
    }
}

#[tokio::test]
async fn numbers_that_are_passed_or_taken_become_dead_letters_and_never_take_a_place() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('first', 'a', 2), ('second', 'a', 2), ('head', 'a', 1)",
    )
    .await;
    let head = claim(&client, CLAIM).await;
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('third', 'a', 2), ('last', 'a', 3)",
    )
    .await;
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    let taken = "sequence|sequence number 2 of aggregate a has arrived with another event_id";
    assert_eq!(dead(&client).await, [format!("second|{taken}"), format!("third|{taken}")]);
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('fourth', 'a', 1), ('fifth', 'a', 0)",
    )
    .await;
    // They keep out of the way when nobody keeps them as dead letters any more.
    run(&client, "DELETE FROM postbox.inbox_dead").await;
    complete(&client, &head).await;
    assert_eq!(drain(&client).await, ["first", "last"]);
    assert_eq!(
        rows(&client, "SELECT event_id, why FROM postbox.inbox_dead ORDER BY 1").await,
        ["fifth|sequence", "fourth|sequence"]
    );
    assert_eq!(lane(&client, "next, arrived, displaced").await, "4|{}|");
    // Not when the order is given up either.
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('a-4', 'a', 4), ('a-5', 'a', 5), ('sixth', 'a', 5)").await;
    let head = claim(&client, CLAIM).await;
    assert_eq!(head[0].0, "a-4");
    run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
    complete(&client, &head).await;
    assert_eq!(drain(&client).await, ["a-5"]);
}

#[tokio::test]
async fn a_message_that_was_in_the_way_once_and_is_sent_again_later_has_a_place_of_its_own() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('payments', retention => '1 hour', dedup_window => '1 hour', dead_retention => '1 hour');
         SELECT postbox.enable_inbox_ordering('payments')",
    )
    .await;
    receive(&client, "a", &[1, 3]).await;
    receive(&client, "b", &[1]).await;
    let in_the_way = "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('x', 'a', 3), ('y', 'a', 3)";
    run(&client, in_the_way).await;
    let heads = claim(&client, CLAIM).await;
    assert_eq!(dead(&client).await.len(), 2);
    // Their dead letters go, then they.
    for _ in 0..2 {
        run(&client, "UPDATE postbox.inbox_dead SET died_at = died_at - interval '2 hours'; UPDATE postbox.inbox_log SET at = at - interval '2 hours'").await;
        run(&client, "SELECT postbox.maintain(true)").await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM payments WHERE event_id IN ('x', 'y')").await, "0");
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('x', 'a', 2), ('y', 'b', 2)")
        .await;
    assert_eq!(claimed(&client, CLAIM).await, [""; 0]);
    complete(&client, &heads).await;
    assert_eq!(drain(&client).await, ["x", "y", "a-3"]);
}

#[tokio::test]
async fn order_takes_what_waits_and_what_was_done_into_account() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    receive(&client, "a", &[5]).await;
    receive(&client, "b", &[2]).await;
    assert_eq!(drain(&client).await, ["a-5", "b-2"], "handed out in the order of arrival");
    receive(&client, "a", &[7, 6, 9]).await;
    receive(&client, "b", &[3, 1]).await;
    receive(&client, "c", &[2, 1]).await;
    run(&client, "INSERT INTO payments (event_id, aggregate_id) VALUES ('unnumbered', 'a')").await;
    let leased = claim(&client, "'payments', 'w', 1, 3600").await;
    refused(
        &client,
        "SELECT postbox.enable_inbox_ordering('payments')",
        "55006",
        "1 messages of inbox \"payments\" are handed out",
        "pause_inbox",
    )
    .await;
    let release = format!("SELECT postbox.inbox_release('payments', '{{{}}}', '{{{}}}')", leased[0].0, leased[0].1);
    run(&client, &release).await;
    run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;

    // a goes on behind 5, b has still to do 1 and then not 2, c begins.
    assert_eq!(rows(&client, NEXT).await, ["a-6", "b-1", "c-1"]);
    assert_eq!(rows(&client, GAPS).await, ["a|[8,9)"]);
    let order = drain(&client).await;
    for (aggregate, expected) in
        [("a", vec!["a-6", "a-7"]), ("b", vec!["b-1", "b-3"]), ("c", vec!["c-1", "c-2"]), ("u", vec!["unnumbered"])]
    {
        let order: Vec<&String> = order.iter().filter(|id| id.starts_with(aggregate)).collect();
        assert_eq!(order, expected);
    }
    assert_eq!(dead(&client).await, [""; 0]);

    // Back, with one handed out, one that has failed, and one that is not sorted yet.
    receive(&client, "d", &[1, 2]).await;
    receive(&client, "e", &[1, 2]).await;
    let mut two = claim(&client, CLAIM).await;
    two.sort();
    run(&client, &format!("SELECT postbox.inbox_fail('payments', 'e-1', {}, 'oh', '0')", two[1].1)).await;
    receive(&client, "f", &[1]).await;
    run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
    assert_eq!(
        rows(
            &client,
            "SELECT event_ids, attempts, error, token IS NULL FROM postbox.inbox_batch WHERE attempts > 0 ORDER BY 1"
        )
        .await,
        ["{d-1}|1||f", "{e-1}|1|oh|t"]
    );
    complete(&client, &two[..1]).await;
    assert_eq!(claimed(&client, CLAIM).await, ["a-9", "d-2", "e-1", "e-2", "f-1"]);
    assert_eq!(
        row(&client, "SELECT to_regclass('next_payments') IS NULL AND to_regclass('gaps_payments') IS NULL").await,
        "t"
    );
    refused(
        &client,
        "SELECT postbox.disable_inbox_ordering('payments')",
        "55000",
        "has no order",
        "enable_inbox_ordering",
    )
    .await;
}

#[tokio::test]
async fn order_needs_columns_that_fit_and_an_index() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments'); ALTER TABLE payments ADD tenant uuid, ADD nr smallint, ADD amount numeric").await;
    let enable = async |arguments: &str, code: &str, message: &str, hint: &str| {
        refused(&client, &format!("SELECT postbox.enable_inbox_ordering({arguments})"), code, message, hint).await;
    };
    enable("'nosuch'", "42704", "does not exist", "inbox_status").await;
    enable("NULL", "42704", "inbox NULL does not exist", "inbox_status").await;
    enable(
        "'payments', 'amount'",
        "42804",
        "column \"amount\" of table public.payments is of type numeric",
        "text, character varying, uuid",
    )
    .await;
    enable("'payments', 'payload'", "42804", "jsonb", "text, character varying, uuid").await;
    enable("'payments', 'tenant', 'amount'", "42804", "it cannot be the sequence_num", "smallint, integer, bigint")
        .await;
    enable("'payments', gap_alert_after => '-1s'", "22023", "gap_alert_after", "5 minutes").await;
    enable("'payments', gap_alert_after => NULL", "22023", "gap_alert_after", "5 minutes").await;
    enable("'payments', start_at => 9223372036854775807", "22023", "start_at", "NULL for whichever").await;
    run(&client, "UPDATE postbox.inbox SET columns = columns - 'sequence_num'").await;
    enable(
        "'payments', 'tenant', 'number'",
        "42703",
        "no column \"number\" for the sequence_num",
        "smallint, integer, bigint",
    )
    .await;
    run(&client, "UPDATE postbox.inbox SET style = 'update'").await;
    enable("'payments'", "55000", "is of style \"update\"", "inbox_claim").await;
    run(&client, "UPDATE postbox.inbox SET style = 'claim'; INSERT INTO payments (event_id, tenant, nr) VALUES ('x', gen_random_uuid(), 1)").await;
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; INSERT INTO payments (event_id) VALUES ('y')").await;
    enable("'payments'", "55P03", "is in use", "Try again").await;
    run(&other, "ROLLBACK; BEGIN; SELECT * FROM postbox.inbox_claim('payments', 'w')").await;
    enable("'payments'", "55P03", "is in use", "Try again").await;
    run(&other, "ROLLBACK").await;
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postbox.enable_inbox_ordering('payments')";
    refused(&client, old, "25001", "repeatable read", "READ COMMITTED").await;
    run(&client, "ROLLBACK; CREATE VIEW gaps_payments AS SELECT 1").await;
    enable("'payments', 'tenant', 'nr'", "42P07", "gaps_payments", "Rename").await;
    run(&client, "DROP VIEW gaps_payments").await;

    let indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'payments'::regclass";
    run(&client, "SELECT postbox.enable_inbox_ordering('payments', 'tenant', 'nr')").await;
    assert_eq!(row(&client, indexes).await, "2");
    enable("'payments'", "55000", "has had an order since", "disable_inbox_ordering").await;
    assert_eq!(
        row(&client, "SELECT n.aggregate_id = p.tenant::text, n.sequence_num FROM next_payments n, payments p").await,
        "t|1"
    );
    assert_eq!(drain(&client).await, ["x"]);
    run(&client, "SELECT postbox.disable_inbox_ordering('payments'); SELECT postbox.enable_inbox_ordering('payments', 'tenant', 'nr')").await;
    assert_eq!(row(&client, indexes).await, "2", "it stays, and will do");

    let insert = "INSERT INTO payments (event_id, tenant, nr) VALUES ('z', NULL, 1)";
    refused(&client, insert, "23502", "a sequence number and no aggregate", "both, or neither").await;
    run(&client, "SELECT postbox.disable_inbox_ordering('payments'); SELECT postbox.enable_inbox_ordering('payments', 'aggregate_id', 'sequence_num')").await;
    let insert = "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('z', 'z', 9223372036854775807)";
    refused(&client, insert, "22003", "too high", "9223372036854775000").await;
    run(&client, "SELECT postbox.disable_inbox_ordering('payments')").await;
    run(&client, insert).await;
    enable("'payments'", "55000", "message \"z\" of inbox \"payments\" has no place", "1024 bytes").await;
}

#[tokio::test]
async fn a_gap_that_lasts_is_alerted_once_and_its_end_too() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_ordering('payments', gap_alert_after => '1 hour')").await;
    // Nobody has claimed anything.
    receive(&client, "a", &[1, 3]).await;
    let watch = "SELECT subject, outcome, detail FROM postbox._watch_inbox_gaps()";
    let alert = "SELECT detail->>'aggregate_id', detail->>'missing', detail->>'gaps', alerted_at IS NOT NULL FROM postbox.alert WHERE kind = 'inbox_ordering_gap'";
    assert_eq!(rows(&client, watch).await, [""; 0]);
    assert_eq!(rows(&client, alert).await, [""; 0]);
    run(&client, "UPDATE postbox.inbox SET gap_alert_after = '0'").await;
    assert_eq!(rows(&client, watch).await, ["payments|alerted|inbox_ordering_gap"]);
    assert_eq!(rows(&client, watch).await, [""; 0]);
    assert_eq!(rows(&client, alert).await, ["a|[2,3)|1|t"]);
    let health = "SELECT status, reasons FROM postbox.inbox_health()";
    let waits = "degraded|{\"messages wait behind 1 gaps, first behind number [2,3) of aggregate \\\"a\\\"\"}";
    assert_eq!(rows(&client, health).await, [waits]);
    receive(&client, "a", &[2]).await;
    assert_eq!(rows(&client, watch).await, ["payments|cleared|inbox_ordering_gap"]);
    receive(&client, "a", &[5]).await;
    run(&client, "SELECT postbox._watch_inbox_gaps(); SELECT postbox.disable_inbox_ordering('payments')").await;
    assert_eq!(rows(&client, watch).await, ["payments|cleared|inbox_ordering_gap: the order is gone"]);
    assert_eq!(rows(&client, alert).await, [""; 0]);
}

#[tokio::test]
async fn what_is_missing_costs_no_look_at_what_is_processed() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[1, 3]).await;
    assert_eq!(drain(&client).await, ["a-1"]);
    run(&client, "ANALYZE payments; ANALYZE postbox.inbox_lane; ANALYZE postbox.inbox_batch").await;
    let before = buffers(&client, "SELECT * FROM gaps_payments").await;
    // Aggregates and messages that are done with.
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num) SELECT 'k' || n, 'k' || n / 10, n % 10 + 1 FROM generate_series(0, 49999) n;
         DELETE FROM postbox.inbox_batch;
         INSERT INTO postbox.inbox_lane (inbox, key, next) SELECT i.id, 'k' || n, 11 FROM postbox.inbox i, generate_series(0, 4999) n;
         ANALYZE payments; ANALYZE postbox.inbox_lane; ANALYZE postbox.inbox_batch",
    )
    .await;
    for table in ["payments", "postbox.inbox_lane", "postbox.inbox_batch"] {
        run(&client, &format!("VACUUM {table}")).await;
    }
    let after = buffers(&client, "SELECT * FROM gaps_payments").await;
    assert_eq!(rows(&client, GAPS).await, ["a|[2,3)"]);
    assert!(after <= before + 10, "{before} buffers before, {after} after");
}

#[tokio::test]
async fn what_is_missing_shows_and_is_given_up_behind_any_backlog() {
    let (_cluster, client) = start().await;
    ordered(&client).await;
    receive(&client, "a", &[1, 3]).await;
    assert_eq!(drain(&client).await, ["a-1"]);
    // Nobody claims. First b, of which nothing is sorted, in the middle of many others; then a again.
    let many =
        "INSERT INTO payments (event_id, aggregate_id, sequence_num) SELECT 'k' || n, 'k' || n, 1 FROM generate_series";
    run(&client, &format!("{many}(1, 1000) n")).await;
    receive(&client, "b", &[2]).await;
    let mut costs = Vec::new();
    for (from, to) in [(1001, 5000), (5001, 21000)] {
        run(&client, &format!("{many}({from}, {to}) n; ANALYZE payments; ANALYZE postbox.inbox_batch")).await;
        costs.push(buffers(&client, "SELECT * FROM gaps_payments").await);
    }
    assert!(costs[1] <= costs[0] + 100, "{costs:?} buffers");
    receive(&client, "a", &[2]).await;
    assert_eq!(rows(&client, GAPS).await, ["b|[1,2)"], "what has come is missing no more");
    run(&client, "SELECT postbox.inbox_gap_skip('payments', 'b', '[1,2)', 'lost')").await;
    assert_eq!(row(&client, "SELECT next, head FROM postbox.inbox_lane WHERE key = 'b'").await, "2|b-2");
}

/// The buffers that a statement touches.
pub(super) async fn buffers(client: &Client, sql: &str) -> u64 {
    let plan = rows(client, &format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF, COSTS OFF) {sql}")).await;
    let line =
        plan.iter().find(|line| line.trim_start().starts_with("Buffers:")).unwrap_or_else(|| panic!("{plan:#?}"));
    line.split([' ', '=']).filter_map(|word| word.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn each_role_may_do_what_is_its_own() {
    let (_cluster, client) = start().await;
    run(
        &client,
        r#"CREATE ROLE boss; CREATE ROLE hand; CREATE ROLE eye; GRANT CREATE ON SCHEMA public TO boss; SET client_min_messages = error;
           SELECT postbox.grant_role('operator', 'boss'), postbox.grant_role('monitor', 'eye');
           SET ROLE boss; SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_ordering('payments', start_at => NULL);
           SELECT postbox.enable_inbox_priority('payments', tiers => '[{"name": "all"}]'); SELECT postbox.pause_inbox('payments'), postbox.resume_inbox('payments');
           RESET ROLE; SELECT postbox.grant_role('worker', 'hand', '{payments}'), postbox.grant_role('receiver', 'hand', '{payments}'); SET ROLE hand"#,
    )
    .await;
    for numbers in [&[1, 2, 5][..], &[3, 7]] {
        receive(&client, "a", numbers).await;
    }
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('again', 'a', 2)").await;
    assert_eq!(drain(&client).await, ["a-1", "a-2", "a-3"]);
    assert_eq!(
        row(&client, "SELECT count(*) FILTER (WHERE postbox.inbox_is_my_partition(aggregate_id, 0, 1)) FROM payments")
            .await,
        "6"
    );
    for refused in [
        "inbox_gap_skip('payments', 'a', '[4,5)', 'r')",
        "pause_inbox('payments')",
        "disable_inbox_ordering('payments')",
        "disable_inbox_priority('payments')",
    ] {
        assert_eq!(error(&client, &format!("SELECT postbox.{refused}")).await.code().code(), "42501", "{refused}");
    }
    run(&client, "RESET ROLE; GRANT SELECT ON payments TO eye; SET ROLE eye").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_ordering_gaps()").await, "2");
    run(&client, "RESET ROLE; SET ROLE boss; SELECT postbox.inbox_gap_skip('payments', 'a', '[4,5)', 'r')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM gaps_payments").await, "1");
    run(
        &client,
        "SELECT postbox.disable_inbox_priority('payments'); SELECT postbox.disable_inbox_ordering('payments')",
    )
    .await;
    run(
        &client,
        "SELECT postbox.enable_inbox_ordering('payments'); SELECT postbox.drop_inbox('payments', cascade => true)",
    )
    .await;
}
