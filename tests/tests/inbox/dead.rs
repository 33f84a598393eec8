//! Messages that were given up: handed out again, or let go, alone and in an order.

use postbox_tests::wait_until_async;
use tokio_postgres::Client;

use crate::shop::PATIENCE;
use crate::sql::{error, refused, row, rows, run, start};

async fn inbox(client: &Client, settings: &str) {
    run(client, &format!("SELECT postbox.create_inbox('payments', max_retries => 0{settings})")).await;
}

async fn order(client: &Client) {
    let sql = "SELECT postbox.enable_inbox_ordering('payments')";
    run(client, sql).await;
}

/// Claims what there is and completes it; in the order of their ids.
async fn complete(client: &Client) -> Vec<String> {
    let sql = "WITH c AS MATERIALIZED (SELECT * FROM postbox.inbox_claim('payments', 'w', 100))
        SELECT u.id FROM (SELECT array_agg(event_id ORDER BY event_id) AS ids, postbox.inbox_complete('payments', array_agg(event_id), array_agg(token)) FROM c HAVING count(*) > 0) done,
            unnest(done.ids) AS u(id)";
    rows(client, sql).await
}

async fn fail(client: &Client, error: &str) {
    let sql = format!(
        "SELECT postbox.inbox_fail('payments', event_id, token, '{error}') FROM postbox.inbox_claim('payments', 'w', 100)"
    );
    run(client, &sql).await;
}

async fn dead(client: &Client) -> Vec<String> {
    rows(client, "SELECT event_id FROM dlq_payments ORDER BY event_id").await
}

#[tokio::test]
async fn the_dead_and_the_processed_are_handed_out_again_and_the_pending_are_not() {
    let (cluster, client) = start().await;
    inbox(&client, "").await;
    run(&client, "INSERT INTO payments (event_id, event_type) VALUES ('a', 't'), ('b', 't')").await;
    fail(&client, "boom").await;
    run(&client, "INSERT INTO payments (event_id, event_type) VALUES ('c', 't'), ('d', 'u')").await;
    assert_eq!(complete(&client).await, ["c", "d"]);
    run(&client, "INSERT INTO payments (event_id) VALUES ('e')").await;
    let replay = |ids: &str| format!("SELECT postbox.replay_inbox_messages('payments', {ids})");
    for (ids, code, message, hint) in [
        ("'{a,e}'", "55000", "message \"e\" of inbox \"payments\" is not processed yet", "pending_payments"),
        ("'{a,x}'", "P0002", "no message \"x\"", "retention has removed it"),
        ("'{a,NULL}'", "22004", "NULL", "'{a,b}'"),
        ("NULL", "22004", "NULL", "'{a,b}'"),
    ] {
        refused(&client, &replay(ids), code, message, hint).await;
    }
    run(&client, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    refused(&client, &replay("'{a}'"), "25001", "repeatable read", "READ COMMITTED").await;
    run(&client, "ROLLBACK").await;
    assert_eq!(dead(&client).await, ["a", "b"], "nothing has come of what was refused");
    assert_eq!(row(&client, &replay("'{a,c,a,d}'")).await, "3");
    refused(&client, &replay("'{a}'"), "55000", "is not processed yet", "pending_payments").await;
    refused(&client, &replay("'{c}'"), "55000", "is not processed yet", "pending_payments").await;
    let waiting = "SELECT event_id, state, attempts FROM pending_payments ORDER BY event_id";
    assert_eq!(rows(&client, waiting).await, ["a|waiting|0", "c|waiting|0", "d|waiting|0", "e|waiting|0"]);
    assert_eq!(complete(&client).await, ["a", "c", "d", "e"]);
    assert_eq!(row(&client, &replay("'{}'")).await, "0");
    let audit = "SELECT action, subject, detail ->> 'count', detail ->> 'ids' FROM postbox.audit";
    assert_eq!(rows(&client, audit).await, ["inbox_replay|payments|3|[\"a\", \"c\", \"d\"]"]);

    // Two at the same time: the second one sees what the first has done.
    let other = cluster.client("postgres").await;
    run(&client, &format!("BEGIN; {}", replay("'{c}'"))).await;
    let sql = replay("'{c}'");
    let second = tokio::spawn(async move { error(&other, &sql).await.code().code().to_owned() });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    wait_until_async("the second one waits", PATIENCE, async || (row(&client, waits).await == "1").then_some(())).await;
    run(&client, "COMMIT").await;
    assert_eq!(second.await.unwrap(), "55000");
    assert_eq!(complete(&client).await, ["c"]);
}

#[tokio::test]
async fn filters_say_which_of_the_dead_and_a_rate_how_fast() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    for (kind, error) in [("paid", "Timeout"), ("refunded", "no such account")] {
        run(&client, &format!("INSERT INTO payments (event_id, event_type) SELECT '{kind}-' || n, '{kind}' FROM generate_series(1, 4) n")).await;
        fail(&client, error).await;
    }
    run(&client, "UPDATE postbox.inbox_dead SET died_at = died_at - interval '2 days' WHERE event_id IN ('paid-1', 'refunded-1')").await;
    let all = dead(&client).await;
    for (arguments, count) in [
        ("every => true", 8),
        ("type => 'paid'", 4),
        ("error => 'TIMEOUT'", 4),
        ("error => 'timeout', type => 'refunded'", 0),
        ("older_than => '1 day'", 2),
        ("event_ids => '{paid-1,refunded-2}', older_than => '1 day'", 1),
    ] {
        for verb in ["replay", "discard"] {
            let sql = format!("SELECT postbox.{verb}_inbox_dead_letters('payments', {arguments}, dry_run => true)");
            assert_eq!(row(&client, &sql).await, count.to_string(), "{sql}");
        }
    }
    assert_eq!(dead(&client).await, all);
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.audit").await, "0");
    for (call, code, message, hint) in [
        ("replay_inbox_dead_letters('payments')", "22023", "neither event_ids nor a filter", "every => true"),
        (
            "discard_inbox_dead_letters('payments', older_than => '-1 day')",
            "22023",
            "older_than -1 days is negative",
            "1 day",
        ),
        ("discard_inbox_dead_letters('payments', '{paid-1,nope}')", "P0002", "no dead letter \"nope\"", "dlq_payments"),
        ("discard_inbox_dead_letters('payments', '{NULL}')", "P0002", "no dead letter NULL", "dlq_payments"),
        ("replay_inbox_dead_letters('payments', every => true, rate => 0)", "22023", "rate is 0", "a second"),
        ("replay_inbox_dead_letters('payments', every => true, rate => 'nan')", "22023", "rate is NaN", "a second"),
        (
            "replay_inbox_dead_letters('payments', every => true, rate => 1e-300)",
            "22023",
            "rate is 1e-300, must be 0.00001 or more",
            "a second",
        ),
        ("replay_inbox_dead_letters('payments', every => true, dry_run => NULL)", "22004", "dry_run is NULL", "false"),
        ("discard_inbox_dead_letters('payments', every => true, dry_run => NULL)", "22004", "dry_run is NULL", "false"),
        ("replay_inbox_dead_letters('nope', every => true)", "42704", "inbox \"nope\" does not exist", "inbox_status"),
    ] {
        refused(&client, &format!("SELECT postbox.{call}"), code, message, hint).await;
    }
    assert_eq!(row(&client, "SELECT postbox.discard_inbox_dead_letters('payments', '{paid-1,paid-2}')").await, "2");
    assert_eq!(
        row(&client, "SELECT postbox.replay_inbox_dead_letters('payments', every => true, rate => 2)").await,
        "6"
    );
    let due = "SELECT round(extract(epoch FROM ready_at - min(ready_at) OVER ())), count(*) FROM pending_payments GROUP BY ready_at ORDER BY 1";
    assert_eq!(rows(&client, due).await, ["0|2", "1|2", "2|2"]);
    let audit = "SELECT action, detail ->> 'count', detail ->> 'rate' FROM postbox.audit ORDER BY at";
    assert_eq!(rows(&client, audit).await, ["inbox_discard|2|", "inbox_replay|6|2"]);
    // The oldest first: what died first is tried first.
    assert_eq!(
        row(
            &client,
            "SELECT min(event_id) FROM pending_payments WHERE ready_at = (SELECT min(ready_at) FROM pending_payments)"
        )
        .await,
        "paid-3"
    );
}

#[tokio::test]
async fn an_aggregate_that_waits_goes_on_in_order() {
    for policy in ["pause", "park"] {
        let (_cluster, client) = start().await;
        inbox(&client, &format!(", failure_policy => '{policy}'")).await;
        order(&client).await;
        run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) SELECT a || n, a, n FROM unnest('{a,b}'::text[]) a, generate_series(1, 3) n").await;
        fail(&client, "boom").await;
        assert_eq!(complete(&client).await, [""; 0], "{policy}: nothing overtakes");
        let behind: &[&str] = if policy == "park" { &["a1", "a2", "a3", "b1", "b2", "b3"] } else { &["a1", "b1"] };
        assert_eq!(dead(&client).await, behind);
        refused(
            &client,
            "SELECT postbox.replay_inbox_messages('payments', '{a2}')",
            "55000",
            "is not processed yet",
            if policy == "park" { "dlq_payments" } else { "pending_payments" },
        )
        .await;
        refused(
            &client,
            "SELECT postbox.discard_inbox_dead_letters('payments', '{a2}')",
            "P0002",
            "no dead letter \"a2\"",
            "goes when that one goes",
        )
        .await;

        // Tried again where it is; when it fails again, it waits again.
        assert_eq!(row(&client, "SELECT postbox.replay_inbox_messages('payments', '{a1}')").await, "1");
        fail(&client, "again").await;
        assert_eq!(row(&client, "SELECT error, attempts FROM dlq_payments WHERE event_id = 'a1'").await, "again|1");
        assert_eq!(row(&client, "SELECT postbox.replay_inbox_dead_letters('payments', '{a1}')").await, "1");
        for expected in ["a1", "a2", "a3"] {
            assert_eq!(complete(&client).await, [expected], "{policy}");
        }
        // Let go: the next one comes.
        assert_eq!(row(&client, "SELECT postbox.discard_inbox_dead_letters('payments', every => true)").await, "1");
        for expected in ["b2", "b3"] {
            assert_eq!(complete(&client).await, [expected], "{policy}");
        }
        assert_eq!(complete(&client).await, [""; 0]);
        assert_eq!(dead(&client).await, [""; 0]);
        assert_eq!(row(&client, "SELECT state FROM messages_payments WHERE event_id = 'b1'").await, "discarded");
    }
}

#[tokio::test]
async fn who_was_skipped_is_handed_out_beside_its_aggregate() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    order(&client).await;
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) SELECT 'a' || n, 'a', n FROM generate_series(1, 3) n").await;
    fail(&client, "boom").await;
    assert_eq!(complete(&client).await, ["a2"]);
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_messages('payments', '{a1,a2}')").await, "2");
    assert_eq!(complete(&client).await, ["a1", "a2", "a3"]);
    // One that took the place of another, and one that came too late.
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('late', 'a', 2)").await;
    assert_eq!(complete(&client).await, [""; 0]);
    assert_eq!(row(&client, "SELECT event_id, why FROM dlq_payments").await, "late|sequence");
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_dead_letters('payments', every => true)").await, "1");
    assert_eq!(complete(&client).await, ["late"]);
}

#[tokio::test]
async fn where_workers_write_into_the_table_the_dead_and_the_processed_wait_again() {
    let (_cluster, client) = start().await;
    inbox(&client, ", style => 'update', failure_policy => 'skip'").await;
    run(&client, "INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' FROM generate_series(1, 5) n").await;
    run(
        &client,
        "UPDATE payments SET processed_at = now() WHERE event_id = 'm1';
         UPDATE payments SET retry_count = 1, error = 'boom' WHERE event_id IN ('m2', 'm3', 'm4')",
    )
    .await;
    assert_eq!(
        rows(&client, "SELECT event_id, why, error, attempts FROM dlq_payments ORDER BY 1").await,
        ["m2|failed|boom|1", "m3|failed|boom|1", "m4|failed|boom|1"]
    );
    let states = "SELECT event_id, state FROM messages_payments ORDER BY 1";
    assert_eq!(rows(&client, states).await, ["m1|processed", "m2|dead", "m3|dead", "m4|dead", "m5|waiting"]);
    refused(
        &client,
        "SELECT postbox.replay_inbox_messages('payments', '{m1,m5}')",
        "55000",
        "message \"m5\" of inbox \"payments\" is not processed yet",
        "pending_payments",
    )
    .await;
    refused(
        &client,
        "SELECT postbox.replay_inbox_dead_letters('payments', every => true, rate => 1)",
        "55000",
        "have no rate",
        "Replay some of them",
    )
    .await;
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_messages('payments', '{m2,m1}')").await, "2");
    assert_eq!(row(&client, "SELECT postbox.replay_inbox_dead_letters('payments', '{m3}')").await, "1");
    assert_eq!(row(&client, "SELECT postbox.discard_inbox_dead_letters('payments', '{m4}')").await, "1");
    assert_eq!(
        rows(&client, "SELECT event_id, retry_count, error, processed_at FROM payments ORDER BY 1").await,
        ["m1|0||", "m2|0||", "m3|0||", "m4|1|boom|", "m5|0||"]
    );
    assert_eq!(rows(&client, states).await, ["m1|waiting", "m2|waiting", "m3|waiting", "m4|discarded", "m5|waiting"]);
    assert_eq!(dead(&client).await, [""; 0]);
    assert_eq!(row(&client, "SELECT pending, dead FROM postbox.inbox_status()").await, "4|0");
    assert_eq!(
        rows(&client, "SELECT action, detail->>'count' FROM postbox.audit ORDER BY at").await,
        ["inbox_replay|2", "inbox_replay|1", "inbox_discard|1"]
    );
    // What fails again is dead again.
    run(&client, "UPDATE payments SET retry_count = 1, error = 'again' WHERE event_id = 'm2'").await;
    assert_eq!(rows(&client, "SELECT event_id, error FROM dlq_payments").await, ["m2|again"]);
}
