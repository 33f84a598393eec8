//! Tiers: which one a message belongs to, that one does not slow another, and what they mean where there is an order.

use postbox_tests::Cluster;
use tokio_postgres::Client;

use super::order::buffers;
use super::{claim, claimed, complete};
use crate::sql::{refused, row, rows, run, start};

const TIERS: &str = r#"[{"name": "critical", "lowest": 100, "pace": "1 second", "concurrency": 8}, {"name": "normal", "lowest": 0, "highest": 99},
    {"name": "background", "highest": -1, "pace": "30 seconds"}]"#;

async fn start_with_tiers() -> (Cluster, Client) {
    let (cluster, client) = start().await;
    run(&client, &format!("SELECT postbox.create_inbox('payments'); SELECT postbox.enable_inbox_priority('payments', tiers => '{TIERS}')")).await;
    (cluster, client)
}

/// Messages with these priorities, called after them.
async fn receive(client: &Client, messages: &[&str]) {
    for message in messages {
        let priority = message.split('.').next().expect("a priority");
        run(client, &format!("INSERT INTO payments (event_id, priority) VALUES ('{message}', {priority})")).await;
    }
}

async fn pending(client: &Client, tier: &str) -> Vec<String> {
    rows(client, &format!("SELECT event_id FROM pending_payments_{tier} ORDER BY 1")).await
}

/// Where claims begin to look in a queue goes by what was in it before.
#[tokio::test]
async fn what_waits_is_not_passed_by_for_what_comes_later_when_it_goes_to_another_queue() {
    let (_cluster, client) = start_with_tiers().await;
    run(&client, "INSERT INTO payments (event_id, priority, aggregate_id, sequence_num) VALUES ('0.old', 0, 'a', 1)")
        .await;
    // As claims leave it behind where much goes through.
    let busy = "DELETE FROM postbox.inbox_floor; INSERT INTO postbox.inbox_floor (inbox, kind, tier, at, ready_at)
        SELECT i.id, 'batch', t, clock_timestamp(), clock_timestamp() FROM postbox.inbox i, unnest('{-3,-2,-1,0,1,2}'::int[]) t";
    for (n, change) in [
        "SELECT postbox.enable_inbox_priority('payments', tiers => '[{\"name\": \"high\", \"lowest\": 1}, {\"name\": \"low\", \"highest\": 0}]')",
        "SELECT postbox.disable_inbox_priority('payments')",
        "SELECT postbox.enable_inbox_ordering('payments')",
        "SELECT postbox.disable_inbox_ordering('payments')",
    ]
    .into_iter()
    .enumerate()
    {
        run(&client, busy).await;
        run(&client, change).await;
        let new = format!("-1.new{n}");
        receive(&client, &[&new]).await;
        let (old, other): (Vec<_>, Vec<_>) =
            claim(&client, "'payments', 'w', 50").await.into_iter().partition(|(id, _)| id == "0.old");
        assert_eq!((old.len(), other.len()), (1, 1), "{change}: {other:?}");
        complete(&client, &other).await;
        run(&client, &format!("SELECT postbox.inbox_release('payments', '{{0.old}}', '{{{}}}')", old[0].1)).await;
    }
}

#[tokio::test]
async fn the_first_tier_is_served_first_and_each_may_be_asked_for() {
    let (_cluster, client) = start_with_tiers().await;
    receive(&client, &["-5.a", "0.a", "NULL.a", "99.a", "100.a", "2147483647.a", "-2147483648.a"]).await;
    assert_eq!(pending(&client, "critical").await, ["100.a", "2147483647.a"]);
    assert_eq!(pending(&client, "normal").await, ["0.a", "99.a", "NULL.a"]);
    assert_eq!(pending(&client, "background").await, ["-2147483648.a", "-5.a"]);
    assert_eq!(
        rows(&client, "SELECT name, pace, concurrency FROM postbox.inbox_tier ORDER BY tier").await,
        ["critical|00:00:01|8", "normal|00:00:01|1", "background|00:00:30|1"]
    );
    let ids: Vec<String> = claim(&client, "'payments', 'w', 3").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["100.a", "2147483647.a", "0.a"]);
    assert_eq!(claimed(&client, "'payments', 'w', 50, tier => 'critical'").await, [""; 0]);
    let background = claim(&client, "'payments', 'w', 50, tier => 'background'").await;
    assert_eq!(background.len(), 2);
    complete(&client, &background).await;
    assert_eq!(pending(&client, "background").await, [""; 0]);
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["99.a", "NULL.a"]);
    refused(
        &client,
        "SELECT postbox.inbox_claim('payments', 'w', tier => 'nosuch')",
        "42704",
        "no tier \"nosuch\"",
        "enable_inbox_priority",
    )
    .await;
}

#[tokio::test]
async fn each_priority_belongs_to_one_tier() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    let enable = async |tiers: &str, message: &str, hint: &str| {
        let sql = format!("SELECT postbox.enable_inbox_priority('payments', tiers => '{tiers}')");
        refused(&client, &sql, "22023", message, hint).await;
        assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_tier").await, "0");
    };
    enable("{}", "must be an array of 1 to 100", "For instance: [{").await;
    enable("[]", "must be an array of 1 to 100", "For instance: [{").await;
    enable("[1]", "tier 1 is no object", "For instance: [{").await;
    enable(
        r#"[{"name": "a", "weight": 3}]"#,
        "has an unknown \"weight\"",
        "name, lowest, highest, pace and concurrency",
    )
    .await;
    enable(r#"[{"lowest": 3}]"#, "has no name", "give each its own").await;
    enable(r#"[{"name": "a.b"}]"#, "has no name, one with a dot", "give each its own").await;
    enable(
        r#"[{"name": "a", "lowest": 0}, {"name": "a", "highest": -1}]"#,
        "that of another tier",
        "give each its own",
    )
    .await;
    enable(r#"[{"name": "a", "lowest": "high"}]"#, "invalid input syntax for type integer", "are integers").await;
    enable(r#"[{"name": "a", "pace": "soon"}]"#, "invalid input syntax for type interval", "pace is an interval").await;
    enable(r#"[{"name": "a", "pace": "0"}]"#, "has pace 00:00:00", "more than 0").await;
    enable(r#"[{"name": "a", "concurrency": 0}]"#, "concurrency 0", "1 to 1000").await;
    enable(r#"[{"name": "a", "lowest": 2, "highest": 1}]"#, "goes from 2 to 1", "must not be above").await;
    enable(
        r#"[{"name": "a", "lowest": 5}, {"name": "b", "highest": 5}]"#,
        "\"b\" overlaps another one at priority 5",
        "one tier",
    )
    .await;
    enable(r#"[{"name": "a"}, {"name": "b"}]"#, "\"b\" overlaps another one at priority 0", "one tier").await;
    enable(
        r#"[{"name": "a", "lowest": 5}, {"name": "b", "highest": 3}]"#,
        "no tier has priority 4",
        "without priority has 0",
    )
    .await;
    enable(r#"[{"name": "a", "lowest": 1}]"#, "no tier has priority 0", "without priority has 0").await;
    enable(r#"[{"name": "a", "highest": 7}]"#, "no tier has priority 8", "without priority has 0").await;
    let long = "l".repeat(60);
    let sql = format!(r#"SELECT postbox.enable_inbox_priority('payments', tiers => '[{{"name": "{long}"}}]')"#);
    refused(&client, &sql, "42602", "would have a name of 77 bytes", "shorter").await;
    let enable = async |arguments: &str, code: &str, message: &str, hint: &str| {
        refused(&client, &format!("SELECT postbox.enable_inbox_priority({arguments})"), code, message, hint).await;
    };
    enable("'payments'", "22023", "tiers are NULL", "For instance: [{").await;
    enable("'nosuch'", "42704", "does not exist", "inbox_status").await;
    enable("'payments', 'payload', '[]'", "42804", "it cannot be the priority", "smallint, integer, bigint").await;
    run(&client, "UPDATE postbox.inbox SET columns = columns - 'priority'").await;
    enable("'payments', 'nosuch', '[]'", "42703", "no column \"nosuch\" for the priority", "smallint").await;
    refused(
        &client,
        "SELECT postbox.disable_inbox_priority('payments')",
        "55000",
        "has no tiers",
        "enable_inbox_priority",
    )
    .await;
}

#[tokio::test]
async fn what_waits_and_what_is_handed_out_follows_when_tiers_change() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', max_retries => 0)").await;
    run(&client, "INSERT INTO payments (event_id, priority) VALUES ('100.a', 100), ('-1.a', -1), ('100.b', 100), ('0.a', 0), ('-1.b', -1)").await;
    let held = claim(&client, "'payments', 'w', 50, 3600").await;
    run(&client, "INSERT INTO payments (event_id, priority) VALUES ('100.c', 100), ('-1.c', -1)").await;
    run(&client, &format!("SELECT postbox.enable_inbox_priority('payments', tiers => '{TIERS}')")).await;
    assert_eq!(pending(&client, "critical").await, ["100.a", "100.b", "100.c"]);
    assert_eq!(pending(&client, "background").await, ["-1.a", "-1.b", "-1.c"]);
    // One batch was handed out; its parts keep the token, and go where they belong when they come back.
    let (mut done, mut back) = (held.clone(), held.clone());
    done.retain(|(id, _)| id == "100.a" || id == "-1.a");
    back.retain(|(id, _)| id == "100.b" || id == "-1.b");
    complete(&client, &done).await;
    run(&client, "BEGIN").await;
    for (id, token) in &back {
        run(&client, &format!("SELECT postbox.inbox_release('payments', '{{{id}}}', '{{{token}}}')")).await;
    }
    run(&client, "COMMIT").await;
    assert_eq!(claimed(&client, "'payments', 'w', 50, tier => 'background'").await, ["-1.b", "-1.c"]);
    let critical = claim(&client, "'payments', 'w', 50, tier => 'critical'").await;
    assert_eq!(critical.len(), 2);
    for (id, token) in &critical {
        run(&client, &format!("SELECT postbox.inbox_fail('payments', '{id}', {token}, 'no')")).await;
    }
    assert_eq!(rows(&client, "SELECT event_id, tier FROM postbox.inbox_dead ORDER BY 1").await, ["100.b|0", "100.c|0"]);

    // Other tiers, of which one is called as before and stays paused; then none.
    run(&client, "SELECT postbox.pause_inbox('payments', 'background')").await;
    run(&client, r#"SELECT postbox.enable_inbox_priority('payments', tiers => '[{"name": "background", "highest": 50}, {"name": "top", "lowest": 51}]')"#).await;
    assert_eq!(row(&client, "SELECT to_regclass('pending_payments_critical') IS NULL").await, "t");
    assert_eq!(rows(&client, "SELECT event_id, tier FROM postbox.inbox_dead ORDER BY 1").await, ["100.b|1", "100.c|1"]);
    receive(&client, &["60.a", "7.a"]).await;
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["60.a"]);
    run(&client, "SELECT postbox.disable_inbox_priority('payments')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_batch WHERE tier <> 0").await, "0");
    assert_eq!(rows(&client, "SELECT event_id, tier FROM postbox.inbox_dead ORDER BY 1").await, ["100.b|0", "100.c|0"]);
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["7.a"]);
    assert_eq!(row(&client, "SELECT to_regclass('pending_payments_top') IS NULL").await, "t");
}

#[tokio::test]
async fn an_aggregate_is_in_the_tier_of_its_next_message() {
    let (_cluster, client) = start_with_tiers().await;
    run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num, priority) VALUES
             ('a-2', 'a', 2, 100), ('a-3', 'a', 3, -1), ('b-1', 'b', 1, 100), ('b-2', 'b', 2, -1), ('c-1', 'c', 1, 5), ('a-1', 'a', 1, -1)",
    )
    .await;
    assert_eq!(
        rows(&client, "SELECT event_id, tier FROM next_payments ORDER BY 1").await,
        ["a-1|background", "b-1|critical", "c-1|normal"]
    );
    // The critical message of a waits for one in the background.
    let critical = claim(&client, "'payments', 'w', 50, tier => 'critical'").await;
    assert_eq!(critical[0].0, "b-1");
    assert_eq!(critical.len(), 1);
    complete(&client, &critical).await;
    assert_eq!(claimed(&client, "'payments', 'w', 50, tier => 'critical'").await, [""; 0]);
    assert_eq!(
        rows(&client, "SELECT event_id, tier FROM next_payments ORDER BY 1").await,
        ["a-1|background", "b-2|background", "c-1|normal"]
    );
    let background = claim(&client, "'payments', 'w', 50, tier => 'background'").await;
    complete(&client, &background).await;
    assert_eq!(claimed(&client, "'payments', 'w', 50, tier => 'critical'").await, ["a-2"]);
    assert_eq!(pending(&client, "critical").await, ["a-2", "a-3"], "those behind are where the aggregate is");
    run(&client, "SELECT postbox.disable_inbox_priority('payments')").await;
    assert_eq!(
        rows(&client, "SELECT key, tier FROM postbox.inbox_lane WHERE head IS NOT NULL ORDER BY 1").await,
        ["a|0", "c|0"]
    );
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["c-1"]);
}

#[tokio::test]
async fn a_flood_in_one_tier_costs_another_nothing() {
    for ordered in [false, true] {
        let (_cluster, client) = start_with_tiers().await;
        if ordered {
            run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
        }
        let round = async |name: &str| {
            run(&client, &format!("INSERT INTO payments (event_id, aggregate_id, sequence_num, priority) VALUES ('{name}', '{name}', 1, 100)")).await;
            let used =
                buffers(&client, "SELECT * FROM postbox.inbox_claim('payments', 'w', 1, tier => 'critical')").await;
            assert_eq!(
                row(&client, "SELECT count(*) FROM postbox.inbox_claim('payments', 'w', 1, tier => 'critical')").await,
                "0"
            );
            let held = row(
                &client,
                &format!("SELECT count(*) FROM pending_payments_critical WHERE event_id = '{name}' AND attempts = 1"),
            )
            .await;
            assert_eq!(held, "1", "{name} was handed out");
            used
        };
        round("warm").await;
        let before = round("before").await;
        run(
            &client,
            "INSERT INTO payments (event_id, aggregate_id, sequence_num, priority) SELECT 'f' || n, 'f' || n % 5000, n / 5000 + 1, -1 FROM generate_series(0, 19999) n",
        )
        .await;
        let after = round("after").await;
        println!("ordered {ordered}: {before} buffers before the flood, {after} in it");
        assert!(after <= before + 30, "ordered {ordered}: {before} buffers before, {after} after");
    }
}

#[tokio::test]
async fn a_paused_inbox_or_tier_hands_out_nothing_until_it_is_resumed() {
    let (_cluster, client) = start_with_tiers().await;
    receive(&client, &["100.a", "0.a", "-1.a"]).await;
    let held = claim(&client, "'payments', 'w', 1").await;
    let set = async |call: &str| row(&client, &format!("SELECT postbox.{call}")).await;
    assert_eq!(set("pause_inbox('payments')").await, "t");
    assert_eq!(set("pause_inbox('payments')").await, "f");
    receive(&client, &["100.b"]).await;
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, [""; 0]);
    complete(&client, &held).await;
    assert_eq!(set("pause_inbox('payments', 'normal')").await, "t");
    assert_eq!(set("resume_inbox('payments')").await, "t");
    assert_eq!(set("resume_inbox('payments')").await, "f");
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["-1.a", "100.b"]);
    assert_eq!(claimed(&client, "'payments', 'w', 50, tier => 'normal'").await, [""; 0]);
    assert_eq!(set("resume_inbox('payments', 'normal')").await, "t");
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["0.a"]);
    assert_eq!(
        rows(&client, "SELECT action, subject, detail FROM postbox.audit").await,
        [
            r"inbox_paused|payments|{}",
            r#"inbox_paused|payments|{"tier": "normal"}"#,
            r"inbox_resumed|payments|{}",
            r#"inbox_resumed|payments|{"tier": "normal"}"#
        ]
    );
    refused(&client, "SELECT postbox.pause_inbox('payments', 'nosuch')", "42704", "no tier \"nosuch\"", "whole inbox")
        .await;
    refused(&client, "SELECT postbox.resume_inbox('nosuch')", "42704", "does not exist", "inbox_status").await;
    // Where workers lock rows, nobody asks whether they may.
    run(&client, "SELECT postbox.create_inbox('invoices', style => 'update')").await;
    for verb in ["pause", "resume"] {
        let call = format!("SELECT postbox.{verb}_inbox('invoices')");
        refused(&client, &call, "55000", "inbox \"invoices\" is of style \"update\"", "Stop its workers").await;
    }
}

#[tokio::test]
async fn what_is_paused_does_not_come_next() {
    let (_cluster, client) = start_with_tiers().await;
    run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
    let insert = |id: &str, priority: i32| {
        format!(
            "INSERT INTO payments (event_id, aggregate_id, sequence_num, priority) VALUES ('{id}', '{id}', 1, {priority})"
        )
    };
    // Sorted ones and such as are not.
    run(&client, &format!("{}; {}", insert("sorted", 100), insert("slow", -1))).await;
    let held = claim(&client, "'payments', 'w', 50").await;
    let (ids, tokens): (Vec<&str>, Vec<i64>) = held.iter().map(|(id, token)| (id.as_str(), *token)).unzip();
    client.execute("SELECT postbox.inbox_release('payments', $1, $2)", &[&ids, &tokens]).await.unwrap();
    run(&client, &format!("{}; {}", insert("new", 100), insert("slower", -1))).await;
    let next = "SELECT event_id FROM next_payments ORDER BY 1";
    for (call, shown) in [
        ("pause_inbox('payments', 'critical')", &["slow", "slower"][..]),
        ("pause_inbox('payments')", &[]),
        ("resume_inbox('payments', 'critical')", &[]),
        ("resume_inbox('payments')", &["new", "slow", "slower", "sorted"]),
    ] {
        run(&client, &format!("SELECT postbox.{call}")).await;
        assert_eq!(rows(&client, next).await, shown, "{call}");
    }
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["new", "slow", "slower", "sorted"]);
}

#[tokio::test]
async fn every_aggregate_belongs_to_one_worker_for_good() {
    let (_cluster, client) = start().await;
    let shares = "SELECT w, count(*) FROM generate_series(0, 9999) n, generate_series(0, 3) w WHERE postbox.inbox_is_my_partition('k' || n, w, 4) GROUP BY 1 ORDER BY 1";
    let shares = rows(&client, shares).await;
    let counts: Vec<u32> = shares.iter().map(|share| share[2..].parse().expect("a count")).collect();
    assert_eq!(counts.iter().sum::<u32>(), 10_000, "each once");
    assert!(counts.iter().all(|count| (2300..2700).contains(count)), "{counts:?}");
    // The same on every server and in every version.
    let mine = "SELECT string_agg(w::text, '' ORDER BY k, w) FROM unnest('{a,b,ada,42,order-7,\"\"}'::text[]) k, generate_series(0, 6) w WHERE postbox.inbox_is_my_partition(k, w, 7)";
    assert_eq!(row(&client, mine).await, "116520");
    assert_eq!(
        row(&client, "SELECT postbox.inbox_is_my_partition(NULL, 0, 3), postbox.inbox_is_my_partition(NULL, 1, 3)")
            .await,
        "t|f"
    );
    for (worker, total) in [("4", "4"), ("-1", "4"), ("0", "0"), ("NULL", "4"), ("0", "NULL")] {
        let sql = format!("SELECT postbox.inbox_is_my_partition('a', {worker}, {total})");
        refused(&client, &sql, "22023", &format!("worker {worker} of {total} does not exist"), "counted from 0").await;
    }
}

/// A receiver whose snapshot is from before the tiers goes by those that are now.
#[tokio::test]
async fn a_receiver_with_an_old_snapshot_strands_nothing() {
    let (cluster, client) = start_with_tiers().await;
    let old = cluster.client("postgres").await;
    run(&old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM postbox.inbox").await;
    run(&client, r#"SELECT postbox.enable_inbox_priority('payments', tiers => '[{"name": "all"}]')"#).await;
    receive(&old, &["-5.a"]).await;
    run(&old, "COMMIT").await;
    assert_eq!(claimed(&client, "'payments', 'w', 50").await, ["-5.a"]);
}

/// Who moves messages and who changes tiers exclude one another.
#[tokio::test]
async fn nothing_is_moved_while_tiers_change() {
    let (cluster, client) = start_with_tiers().await;
    let other = cluster.client("postgres").await;
    receive(&client, &["-5.a", "-5.b", "100.a"]).await;
    run(&client, "SELECT postbox.inbox_claim('payments', 'w', 50, tier => 'background'); UPDATE postbox.inbox_batch SET lease_until = now() - interval '1 s' WHERE token IS NOT NULL").await;
    let maintain = "SELECT outcome, detail FROM postbox.maintain(true) WHERE subject = 'payments'";
    let disable = "SELECT postbox.disable_inbox_priority('payments')";
    run(&client, "SET statement_timeout = '10s'").await;
    run(&other, "BEGIN").await;
    assert_eq!(rows(&other, maintain).await, ["taken back|2 leases that ran out"]);
    refused(&client, disable, "55P03", "is in use", "Try again").await;
    run(&other, "COMMIT").await;
    run(&client, "UPDATE postbox.inbox SET max_retries = 0; SELECT postbox.inbox_fail('payments', event_id, token, 'no') FROM postbox.inbox_claim('payments', 'w', 50, tier => 'critical')").await;
    run(&other, "BEGIN; SELECT postbox.replay_inbox_dead_letters('payments', every => true)").await;
    refused(&client, disable, "55P03", "is in use", "Try again").await;
    run(&other, "COMMIT").await;
    run(&client, &format!("BEGIN; {disable}")).await;
    assert_eq!(rows(&other, maintain).await, ["skipped|its shape is being changed"]);
    run(&client, "COMMIT").await;
    let mut all = claimed(&client, "'payments', 'w', 50").await;
    while let Some(more) = Some(claimed(&client, "'payments', 'w', 50").await).filter(|more| !more.is_empty()) {
        all.extend(more);
    }
    all.sort();
    assert_eq!(all, ["-5.a", "-5.b", "100.a"]);
}
