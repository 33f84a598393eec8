//! What an inbox says of itself: its views, its status, its health, and whom it alerts.

use std::fmt::Write as _;

use postbox_tests::Cluster;
use tokio_postgres::Client;

use crate::sql::{refused, row, rows, run, start};

/// Claims and completes up to so many messages of `payments`.
const COMPLETE: &str = "SELECT postbox.inbox_complete('payments', array_agg(event_id), array_agg(token)) FROM postbox.inbox_claim('payments', 'w', ";
const MAINTAIN: &str = "SELECT step, subject, outcome, detail FROM postbox.maintain(true) WHERE step ~ 'inbox'";

async fn inbox(client: &Client, settings: &str) {
    run(client, &format!("SELECT postbox.create_inbox('payments'{settings})")).await;
}

async fn order(client: &Client) {
    let sql = "SELECT postbox.enable_inbox_ordering('payments')";
    run(client, sql).await;
}

/// Every way of counting says the same: pending, dead, processed, discarded.
async fn counts(client: &Client) -> String {
    let shown = row(
        client,
        "SELECT (SELECT count(*) FROM pending_payments), (SELECT count(*) FROM dlq_payments),
            count(*) FILTER (WHERE state = 'processed'), count(*) FILTER (WHERE state = 'discarded')
        FROM messages_payments",
    )
    .await;
    let states = row(
        client,
        "SELECT count(*) FILTER (WHERE state IN ('waiting', 'leased', 'delayed', 'behind')), count(*) FILTER (WHERE state IN ('dead', 'follower')),
            count(*) FILTER (WHERE state = 'processed'), count(*) FILTER (WHERE state = 'discarded')
        FROM messages_payments",
    )
    .await;
    let status =
        row(client, "SELECT pending, dead, processed, discarded FROM postbox.inbox_status('payments') WHERE is_exact")
            .await;
    let health = row(client, "SELECT pending, dead FROM postbox.inbox_health('payments')").await;
    let stats = row(client, "SELECT sum(pending), sum(dead), sum(processed) FROM stats_payments WHERE is_exact").await;
    assert_eq!(shown, states);
    assert_eq!(shown, status);
    assert!(shown.starts_with(&health) && shown.starts_with(&stats), "{shown}, {health}, {stats}");
    shown
}

#[tokio::test]
async fn every_message_is_shown_once_in_the_state_it_is_in() {
    let (_cluster, client) = start().await;
    inbox(&client, ", max_retries => 1").await;
    run(
        &client,
        "INSERT INTO payments (event_id, event_type, payload) SELECT 'm' || n, 'paid', '{}' FROM generate_series(1, 6) n;
         INSERT INTO payments (event_id, event_type, visible_at) VALUES ('late', 'refunded', now() + interval '1 hour');
         CREATE TABLE held AS SELECT * FROM postbox.inbox_claim('payments', 'w1', 4);
         SELECT postbox.inbox_complete('payments', '{m1}', ARRAY(SELECT token FROM held LIMIT 1));
         SELECT postbox.inbox_fail('payments', 'm2', (SELECT max(token) FROM held), 'first', '1 hour');
         SELECT postbox.inbox_fail('payments', 'm3', (SELECT max(token) FROM held), 'second', '0');
         SELECT postbox.inbox_fail('payments', 'm3', token, 'third') FROM postbox.inbox_claim('payments', 'w2', 10) WHERE event_id = 'm3'",
    )
    .await;
    let pending = "SELECT event_id, event_type, state, attempts, worker, error, lease_until > now(), payload, first_failed_at <= last_failed_at FROM pending_payments ORDER BY event_id";
    assert_eq!(
        rows(&client, pending).await,
        [
            "late|refunded|delayed|0||||||",
            "m2|paid|delayed|1||first||{}|t",
            "m4|paid|leased|1|w1||t|{}|",
            "m5|paid|leased|1|w2||t|{}|",
            "m6|paid|leased|1|w2||t|{}|"
        ]
        .map(|row| row.replace("||||||", "|||||"))
    );
    let dead = "SELECT event_id, why, error, attempts, first_failed_at < last_failed_at, last_failed_at <= died_at, payload FROM dlq_payments";
    assert_eq!(row(&client, dead).await, "m3|failed|third|2|t|t|{}");
    let messages = "SELECT event_id, state, processed_at > received_at, retry_count, error FROM messages_payments ORDER BY event_id";
    assert_eq!(
        rows(&client, messages).await,
        [
            "late|delayed||0|",
            "m1|processed|t|0|",
            "m2|delayed||1|first",
            "m3|dead||2|third",
            "m4|leased||0|",
            "m5|leased||0|",
            "m6|leased||0|"
        ]
    );
    let stats = "SELECT event_type, pending, processed, dead, failed_attempts, average_seconds BETWEEN 0 AND 60, is_exact FROM stats_payments";
    assert_eq!(rows(&client, stats).await, ["paid|4|1|1|2|t|t", "refunded|1|0|0|0||t"]);
    assert_eq!(counts(&client).await, "5|1|1|0");
    let status = "SELECT inbox_table, style, leased, delayed, failed_attempts, duplicates, max_retries FROM postbox.inbox_status() WHERE inbox_name = 'payments'";
    assert_eq!(row(&client, status).await, "public.payments|claim|3|2|2|0|1");

    // Maintenance moves the sums elsewhere, and nothing changes.
    let before = rows(&client, stats).await;
    rows(&client, MAINTAIN).await;
    assert_ne!(row(&client, "SELECT folded_id FROM postbox.inbox_keeping").await, "0");
    assert_eq!(rows(&client, stats).await, before);
    run(&client, "SELECT postbox.discard_inbox_dead_letters('payments', '{m3}')").await;
    assert_eq!(counts(&client).await, "5|0|1|1");
    assert_eq!(
        row(&client, "SELECT state, retry_count FROM messages_payments WHERE event_id = 'm3'").await,
        "discarded|1"
    );
}

#[tokio::test]
async fn lanes_are_shown_with_what_waits_in_them() {
    let (_cluster, client) = start().await;
    inbox(&client, ", max_retries => 0, failure_policy => 'park'").await;
    order(&client).await;
    run(
        &client,
        "INSERT INTO payments (event_id, event_type, aggregate_id, sequence_num) SELECT a || n, 't' || n, a, n FROM unnest('{a,b}'::text[]) a, generate_series(1, 3) n;
         INSERT INTO payments (event_id, event_type, aggregate_id, sequence_num) VALUES ('c2', 't2', 'c', 2), ('free', 'free', NULL, NULL)",
    )
    .await;
    assert_eq!(counts(&client).await, "8|0|0|0");
    run(
        &client,
        "CREATE TABLE held AS SELECT * FROM postbox.inbox_claim('payments', 'w', 10);
         SELECT postbox.inbox_fail('payments', 'a1', token, 'boom') FROM held WHERE event_id = 'a1'",
    )
    .await;
    let pending = "SELECT event_id, aggregate_id, sequence_num, state FROM pending_payments ORDER BY event_id";
    assert_eq!(
        rows(&client, pending).await,
        ["b1|b|1|leased", "b2|b|2|behind", "b3|b|3|behind", "c2|c|2|behind", "free|||leased"]
    );
    let dead = "SELECT event_id, aggregate_id, sequence_num, why, error FROM dlq_payments ORDER BY event_id";
    assert_eq!(rows(&client, dead).await, ["a1|a|1|failed|boom", "a2|a|2|follower|", "a3|a|3|follower|"]);
    assert_eq!(counts(&client).await, "5|3|0|0");
    let stats = "SELECT event_type, pending, dead FROM stats_payments";
    assert_eq!(rows(&client, stats).await, ["free|1|0", "t1|1|1", "t2|2|1", "t3|1|1"]);
    run(&client, "SELECT postbox.inbox_complete('payments', ARRAY(SELECT event_id FROM held WHERE event_id IN ('b1', 'free')), ARRAY(SELECT token FROM held WHERE event_id IN ('b1', 'free')))").await;
    assert_eq!(counts(&client).await, "3|3|2|0");
    assert_eq!(rows(&client, pending).await, ["b2|b|2|waiting", "b3|b|3|behind", "c2|c|2|behind"]);
}

#[tokio::test]
async fn what_is_too_much_to_count_is_said_to_be_as_of_the_last_count() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    run(
        &client,
        "INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' || n % 2 FROM generate_series(1, 80000) n",
    )
    .await;
    let status = "SELECT pending, is_exact, as_of IS NOT NULL FROM postbox.inbox_status()";
    assert_eq!(row(&client, status).await, "0|f|f", "nobody has counted yet");
    rows(&client, MAINTAIN).await;
    assert_eq!(row(&client, status).await, "80000|f|t");
    let stats = "SELECT event_type, pending, is_exact, as_of = (SELECT max(taken_at) FROM postbox.inbox_sample) FROM stats_payments";
    assert_eq!(rows(&client, stats).await, ["t0|40000|f|t", "t1|40000|f|t"]);
    run(&client, &format!("{COMPLETE}100)")).await;
    assert_eq!(row(&client, "SELECT pending, processed, is_exact FROM postbox.inbox_status()").await, "80000|100|f");

    run(&client, "DELETE FROM postbox.inbox_batch WHERE ctid <> (SELECT min(ctid) FROM postbox.inbox_batch)").await;
    assert_eq!(row(&client, "SELECT pending, processed, is_exact FROM postbox.inbox_status()").await, "50|100|t");
    run(&client, "UPDATE postbox.inbox_sample SET taken_at = taken_at - interval '1 hour'").await;
    rows(&client, MAINTAIN).await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_sample").await, "0");
}

#[tokio::test]
async fn many_messages_of_lanes_are_counted_by_maintenance() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    order(&client).await;
    run(
        &client,
        "INSERT INTO payments (event_id, event_type, aggregate_id, sequence_num) SELECT 'm' || n, 't' || n % 2, 'a' || n / 100, n % 100 + 1 FROM generate_series(0, 3999) n",
    )
    .await;
    // A claim sorts some of what has come in.
    for _ in 0..3 {
        run(&client, "SELECT count(*) FROM postbox.inbox_claim('payments', 'w', 1000)").await;
    }
    rows(&client, MAINTAIN).await;
    let arrived =
        row(&client, "SELECT coalesce(sum(upper(u) - lower(u)), 0) FROM postbox.inbox_lane, unnest(arrived) u").await;
    assert_eq!(arrived, "4000");
    let stats = "SELECT event_type, pending, is_exact FROM stats_payments";
    assert_eq!(rows(&client, stats).await, ["t0|2000|f", "t1|2000|f"]);
    assert_eq!(row(&client, "SELECT pending FROM postbox.inbox_health()").await, "4000");
}

/// Pages that a query reads.
async fn pages(client: &Client, sql: &str) -> u64 {
    // Once for the catalogs.
    rows(client, sql).await;
    let plan =
        rows(client, &format!("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) {sql}")).await.join(" ");
    let number = |what: &str| -> u64 {
        plan.split_once(what)
            .map_or(0, |(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap())
    };
    number("hit=") + number("read=")
}

#[tokio::test]
async fn statistics_of_five_million_messages_cost_what_those_of_a_thousand_do() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    // What 5 million processed messages and 5 million pending ones leave, in whole batches.
    let fill = |batches: u32| {
        format!(
            "INSERT INTO postbox.inbox_log (inbox, at, what, event_type, messages, seconds, event_ids)
                SELECT i.id, now() - interval '1 hour', 'processed', 't' || n % 10, 50, 1, ARRAY(SELECT 'message-' || n * 50 + k FROM generate_series(1, 50) k)
                FROM postbox.inbox i, generate_series(1, {batches}) n;
             INSERT INTO postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
                SELECT i.id, 0, now(), 't' || n % 10, ARRAY(SELECT 'message-' || n * 50 + k FROM generate_series(1, 50) k) FROM postbox.inbox i, generate_series(1, {batches}) n"
        )
    };
    let mut figures = String::new();
    let mut most = Vec::new();
    for batches in [20, 100_000] {
        run(&client, &fill(batches)).await;
        while rows(&client, MAINTAIN).await.iter().any(|row| row.contains("|more|")) {}
        run(&client, "VACUUM ANALYZE postbox.inbox_batch").await;
        run(&client, "VACUUM ANALYZE postbox.inbox_log").await;
        let stats = pages(&client, "SELECT * FROM stats_payments").await;
        let health = pages(&client, "SELECT * FROM postbox.inbox_health('payments')").await;
        let status = pages(&client, "SELECT * FROM postbox.inbox_status('payments')").await;
        writeln!(figures, "{batches} batches: stats {stats}, health {health}, status {status} pages").unwrap();
        most.push(stats.max(health).max(status));
    }
    // A thousand batches are read before it is known that they are too many.
    assert!(most[1] < 2000, "{figures}");
    assert_eq!(
        row(&client, "SELECT sum(processed), bool_or(is_exact) FROM stats_payments").await,
        "5001000|f",
        "{figures}"
    );
    println!("{figures}");
}

/// What is written by a transaction that is open stays out of the sums until it can be seen.
#[tokio::test]
async fn sums_do_not_pass_by_a_transaction_that_is_open() {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "10").with_postbox().start();
    let client = cluster.client("postgres").await;
    inbox(&client, "").await;
    run(&client, "INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' FROM generate_series(1, 10) n")
        .await;
    let duplicate = "INSERT INTO payments (event_id, event_type) VALUES ('m1', 't') ON CONFLICT DO NOTHING";
    let slow = cluster.client("postgres").await;
    let prepared = cluster.client("postgres").await;
    run(&slow, &format!("BEGIN; {duplicate}")).await;
    run(&prepared, &format!("BEGIN; {duplicate}")).await;
    run(&client, &format!("{COMPLETE}5)")).await;
    rows(&client, MAINTAIN).await;
    run(&prepared, "PREPARE TRANSACTION 'two'").await;
    run(&client, &format!("{COMPLETE}5)")).await;
    let status = "SELECT processed, duplicates, is_exact FROM postbox.inbox_status()";
    for _ in 0..3 {
        rows(&client, MAINTAIN).await;
        assert_eq!(row(&client, status).await, "10|0|t");
    }
    run(&slow, "COMMIT").await;
    for _ in 0..3 {
        rows(&client, MAINTAIN).await;
        assert_eq!(row(&client, status).await, "10|1|t");
    }
    run(&prepared, "COMMIT PREPARED 'two'").await;
    for _ in 0..3 {
        rows(&client, MAINTAIN).await;
        assert_eq!(row(&client, status).await, "10|2|t");
    }
    let folded = "SELECT k.folded_id = (SELECT max(id) FROM postbox.inbox_log), (SELECT sum(messages) FROM postbox.inbox_total) FROM postbox.inbox_keeping k";
    assert_eq!(row(&client, folded).await, "t|12");
}

#[tokio::test]
async fn health_says_what_is_wrong() {
    let (cluster, client) = start().await;
    inbox(&client, ", max_retries => 0").await;
    let health = "SELECT status, array_to_string(reasons, '; ') FROM postbox.inbox_health('payments')";
    assert_eq!(row(&client, health).await, "healthy|");
    run(&client, "INSERT INTO payments (event_id) VALUES ('a'); INSERT INTO payments (event_id, visible_at) VALUES ('b', now() + interval '1 hour')").await;
    let age = |age: &str| {
        format!(
            "UPDATE postbox.inbox_batch SET ready_at = clock_timestamp() - interval '{age}' WHERE ready_at <= now()"
        )
    };
    for (waits, says) in [
        ("50 seconds", "healthy|"),
        ("2 minutes", "degraded|a message has waited for 00:02:00"),
        ("11 minutes", "critical|a message has waited for 00:11:00"),
    ] {
        run(&client, &age(waits)).await;
        assert_eq!(row(&client, health).await, says);
    }
    run(&client, "UPDATE postbox.inbox SET paused_at = '2026-01-01 00:00+00'; SET timezone = 'UTC'").await;
    assert_eq!(row(&client, health).await, "degraded|paused since 2026-01-01 00:00:00+00");
    assert_eq!(row(&client, "SELECT oldest_claimable_age FROM postbox.inbox_health()").await, "");
    run(&client, "UPDATE postbox.inbox SET paused_at = NULL").await;
    run(
        &client,
        "SELECT postbox.inbox_fail('payments', event_id, token, 'boom') FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    assert_eq!(row(&client, health).await, "degraded|1 dead letters");
    run(&client, "INSERT INTO payments (event_id) SELECT 'x' || n FROM generate_series(1, 12) n").await;
    run(
        &client,
        "SELECT postbox.inbox_fail('payments', event_id, token, 'boom') FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    assert_eq!(
        row(&client, health).await,
        "critical|13 messages became dead letters lately, 0 were processed; 13 dead letters"
    );
    run(&client, "SELECT postbox.discard_inbox_dead_letters('payments', every => true); UPDATE postbox.inbox_log SET at = at - interval '2 minutes'").await;
    run(&client, "UPDATE postbox.maintenance SET installed_at = now() - interval '1 hour'").await;
    let overdue = row(&client, health).await;
    assert!(overdue.starts_with("degraded|maintenance is overdue since"), "{overdue}");
    rows(&client, MAINTAIN).await;
    assert_eq!(row(&client, health).await, "healthy|");

    // Somebody claims and stays in the transaction: nobody else can sort what comes in.
    order(&client).await;
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('o1', 'a', 1)").await;
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; SELECT postbox.inbox_claim('payments', 'w')").await;
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('o2', 'a', 2);
        UPDATE postbox.inbox_batch SET ready_at = ready_at - interval '10 seconds' WHERE tier = -1 AND event_ids = '{o2}'").await;
    let pid = row(&other, "SELECT pg_backend_pid()").await;
    assert_eq!(row(&client, health).await, format!("degraded|arrivals wait for the transaction of pid {pid}"));
    run(&other, "COMMIT").await;
    assert_eq!(row(&client, health).await, "healthy|");
    refused(&client, "SELECT postbox.inbox_health('nope')", "42704", "inbox \"nope\" does not exist", "inbox_status()")
        .await;
    refused(&client, "SELECT postbox.inbox_status('nope')", "42704", "inbox \"nope\" does not exist", "create_inbox")
        .await;
}

/// What no claim has sorted yet lies in a queue in which the time when it is due is not written.
#[tokio::test]
async fn a_message_due_tomorrow_is_delayed_before_it_is_sorted() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    order(&client).await;
    run(&client, "SELECT postbox.enable_inbox_priority('payments', tiers => '[{\"name\": \"high\", \"lowest\": 1}, {\"name\": \"low\", \"highest\": 0}]')").await;
    let insert = |id: &str, due: &str| {
        format!(
            "INSERT INTO payments (event_id, event_type, aggregate_id, sequence_num, visible_at) VALUES ('{id}', 't', '{id}', 1, clock_timestamp() + interval '{due}')"
        )
    };
    let age = |age: &str| format!("UPDATE postbox.inbox_batch SET ready_at = ready_at - interval '{age}'");
    run(&client, &format!("{}; {}", insert("late", "1 day"), age("11 minutes"))).await;
    let health = "SELECT status, array_to_string(reasons, '; '), oldest_claimable_age IS NULL FROM postbox.inbox_health('payments')";
    assert_eq!(row(&client, health).await, "healthy||t", "nobody claims, and there is nothing to claim");
    for shown in [
        "SELECT state, ready_at > now() + interval '23 hours' FROM pending_payments",
        "SELECT state, true FROM messages_payments",
    ] {
        assert_eq!(row(&client, shown).await, "delayed|t", "{shown}");
    }
    assert_eq!(row(&client, "SELECT ready_at > now() + interval '23 hours' FROM pending_payments_low").await, "t");
    let status = "SELECT pending, delayed, is_exact FROM postbox.inbox_status()";
    assert_eq!(row(&client, status).await, "1|1|t");
    // One that came before and is due since a moment ago, and one without such a time.
    run(&client, &format!("{}; {}", insert("due", "-2 minutes"), age("10 minutes"))).await;
    assert_eq!(row(&client, health).await, "degraded|a message has waited for 00:02:00|f");
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('plain', 'plain', 1)").await;
    run(&client, &age("3 minutes")).await;
    assert_eq!(row(&client, health).await, "degraded|a message has waited for 00:03:00|f");
    assert_eq!(row(&client, status).await, "3|1|t");
    // Paused tiers are none of it.
    run(&client, "SELECT postbox.pause_inbox('payments', 'low')").await;
    assert_eq!(row(&client, "SELECT oldest_claimable_age IS NULL FROM postbox.inbox_health('payments')").await, "t");
    run(&client, "SELECT postbox.resume_inbox('payments', 'low')").await;
    // A claim sorts, and nothing changes but that two are handed out.
    run(&client, "SELECT postbox.inbox_claim('payments', 'w')").await;
    assert_eq!(row(&client, status).await, "3|1|t");
    assert_eq!(row(&client, "SELECT state FROM pending_payments WHERE event_id = 'late'").await, "delayed");

    // A backlog costs no more than its beginning, and where that is all delayed the first behind it stands for the rest.
    run(&client, "INSERT INTO payments (event_id, aggregate_id, sequence_num, visible_at) SELECT 'm' || n, 'm' || n, 1, now() + interval '1 day' FROM generate_series(1, 20000) n").await;
    run(&client, "VACUUM ANALYZE payments, postbox.inbox_batch").await;
    assert_eq!(row(&client, status).await, "20003|501|f");
    assert_eq!(
        row(&client, "SELECT is_exact, as_of > now() - interval '1 minute' FROM postbox.inbox_status()").await,
        "f|t"
    );
    let mut figures = String::new();
    for sql in ["SELECT * FROM postbox.inbox_status('payments')", "SELECT * FROM postbox.inbox_health('payments')"] {
        let read = pages(&client, sql).await;
        assert!(read < 8_000, "{sql}: {read} pages");
        writeln!(figures, "{sql}: {read} pages").unwrap();
    }
    print!("{figures}");
    run(&client, &age("11 minutes")).await;
    let critical = row(&client, health).await;
    assert!(critical.starts_with("critical|a message has waited for 00:11:0"), "{critical}");
}

/// In an inbox whose workers write into the table.
#[tokio::test]
async fn a_message_of_the_table_waits_from_when_it_is_due() {
    let (_cluster, client) = start().await;
    inbox(&client, ", style => 'update'").await;
    let insert = |id: &str, received: &str, due: &str| {
        format!(
            "INSERT INTO payments (event_id, received_at, visible_at) SELECT '{id}' || n, now() - interval '{received}', now() - interval '{due}' FROM generate_series(1, 1) n"
        )
    };
    let health = "SELECT status, array_to_string(reasons, '; '), oldest_claimable_age IS NULL FROM postbox.inbox_health('payments')";
    run(&client, &insert("late", "3 hours", "-1 day")).await;
    assert_eq!(row(&client, health).await, "healthy||t");
    run(&client, &insert("due", "2 hours", "2 minutes")).await;
    assert_eq!(row(&client, health).await, "degraded|a message has waited for 00:02:00|f");
    // Received later, and due since then.
    run(&client, "INSERT INTO payments (event_id, received_at) VALUES ('plain', now() - interval '3 minutes')").await;
    assert_eq!(row(&client, health).await, "degraded|a message has waited for 00:03:00|f");
    // What is delayed costs nothing until it is due.
    run(&client, &insert("many", "3 hours", "-1 day").replace("(1, 1)", "(1, 20000)")).await;
    run(&client, "DELETE FROM payments WHERE event_id IN ('plain', 'due1')").await;
    run(&client, "VACUUM ANALYZE payments").await;
    assert_eq!(row(&client, "SELECT oldest_claimable_age IS NULL FROM postbox.inbox_health('payments')").await, "t");
    let read = pages(&client, "SELECT * FROM postbox._oldest_claimable((SELECT i FROM postbox.inbox i))").await;
    println!("{read} pages");
    assert!(read < 200, "{read} pages");
}

#[tokio::test]
async fn health_says_how_much_was_done_in_the_last_minute_and_how_much_came_in_again() {
    let (_cluster, client) = start().await;
    inbox(&client, "").await;
    let health = "SELECT messages_per_second, duplicate_rate FROM postbox.inbox_health('payments')";
    assert_eq!(row(&client, health).await, "0|");
    run(&client, "INSERT INTO payments (event_id) SELECT 'm' || n FROM generate_series(1, 12) n").await;
    run(&client, &format!("{COMPLETE}9)")).await;
    assert_eq!(row(&client, health).await, "0.15|0");
    // Of an INSERT, and one by one, the last with another payload.
    run(&client, "INSERT INTO payments (event_id) VALUES ('m1'), ('new') ON CONFLICT DO NOTHING").await;
    for (arguments, answer) in [("'m2'", "duplicate"), ("'m3', payload => '{\"n\": 3}'", "conflict")] {
        let receive = format!("SELECT postbox.inbox_receive('payments', {arguments})");
        assert_eq!(row(&client, &receive).await, answer);
    }
    assert_eq!(row(&client, health).await, "0.15|0.25");
    // Of more than can be looked at, the last thousand entries say it for the time that they took.
    run(&client, "UPDATE postbox.inbox_log SET at = at - interval '2 minutes'").await;
    assert_eq!(row(&client, health).await, "0|");
    run(&client, "INSERT INTO postbox.inbox_log (inbox, at, what, messages) SELECT id, clock_timestamp() - interval '10 seconds', 'processed', 3 FROM postbox.inbox, generate_series(1, 1500)").await;
    let rate: f64 =
        row(&client, "SELECT messages_per_second FROM postbox.inbox_health('payments')").await.parse().unwrap();
    assert!(rate > 60.0 && rate <= 300.0, "{rate}");
}

/// What psql prints that listens while it runs this: results and notifications.
fn listen(cluster: &Cluster, sql: &str) -> String {
    cluster.psql("postgres", &format!("LISTEN postbox_alert;\n{sql};\nSELECT;"))
}

#[tokio::test]
async fn those_who_listen_are_told_of_the_dead_and_of_health() {
    let (cluster, client) = start().await;
    inbox(&client, ", max_retries => 0").await;
    run(&client, "INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' FROM generate_series(1, 13) n")
        .await;
    run(&client, "SELECT postbox.inbox_fail('payments', event_id, token, 'boom ' || event_id) FROM postbox.inbox_claim('payments', 'w')").await;
    let said = listen(&cluster, MAINTAIN);
    assert_eq!(said.matches(r#""kind": "inbox_dlq_message""#).count(), 11, "{said}");
    assert_eq!(said.matches(r#""error": "boom m"#).count(), 10, "{said}");
    assert!(said.contains(r#""detail": {"more": 3}"#), "{said}");
    assert_eq!(said.matches(r#""kind": "inbox_health""#).count(), 1, "{said}");
    assert!(said.contains(r#""status": "critical""#), "{said}");
    let said = listen(&cluster, MAINTAIN);
    assert!(!said.contains("inbox_dlq_message") && !said.contains("inbox_health"), "{said}");

    // No transaction that is open somewhere and has written to the log keeps it from being said.
    let other = cluster.client("postgres").await;
    run(&client, "INSERT INTO payments (event_id) VALUES ('late')").await;
    run(&other, "BEGIN; INSERT INTO payments (event_id) VALUES ('late') ON CONFLICT DO NOTHING").await;
    run(
        &client,
        "SELECT postbox.inbox_fail('payments', event_id, token, 'boom') FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    listen(&cluster, MAINTAIN);
    run(&client, "SELECT postbox.replay_inbox_dead_letters('payments', '{late}'); SELECT postbox.inbox_fail('payments', event_id, token, 'again') FROM postbox.inbox_claim('payments', 'w')").await;
    let said = listen(&cluster, MAINTAIN);
    assert!(said.contains(r#""error": "again""#) && said.contains(r#""event_id": "late""#), "{said}");
    run(&other, "COMMIT").await;
    let said = listen(&cluster, MAINTAIN);
    assert!(!said.contains("inbox_dlq_message"), "{said}");

    let said = listen(&cluster, "SELECT postbox.replay_inbox_messages('payments', '{m1,m2}')");
    assert!(said.contains(r#""kind": "inbox_replay""#) && said.contains(r#""count": 2"#), "{said}");
    run(&client, "SELECT postbox.discard_inbox_dead_letters('payments', every => true); UPDATE postbox.inbox_log SET at = at - interval '2 minutes'").await;
    let said = listen(&cluster, MAINTAIN);
    assert!(said.contains(r#""kind": "inbox_health""#) && said.contains(r#""cleared": true"#), "{said}");

    run(&client, "UPDATE postbox.maintenance SET last_run = now() - interval '1 hour'; UPDATE postbox.sample SET lsn = lsn - 100000").await;
    let said = listen(&cluster, MAINTAIN);
    assert!(said.contains(r#""kind": "maintenance_overdue""#), "{said}");
    let said = listen(&cluster, MAINTAIN);
    assert!(!said.contains("maintenance_overdue"), "{said}");
}

#[tokio::test]
async fn those_who_listen_are_told_of_a_gap_that_lasts_and_of_its_end() {
    let (cluster, client) = start().await;
    inbox(&client, "").await;
    run(&client, "SELECT postbox.enable_inbox_ordering('payments', gap_alert_after => '0')").await;
    let receive = |number: u32| {
        format!("INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('m{number}', 'a', {number})")
    };
    run(&client, &format!("{}; {}", receive(1), receive(3))).await;
    let gap = r#""kind": "inbox_ordering_gap""#;
    let said = listen(&cluster, MAINTAIN);
    assert_eq!(said.matches(gap).count(), 1, "{said}");
    assert!(
        said.contains(r#""missing": "[2,3)""#) && said.contains("inboxes|payments|alerted|inbox_ordering_gap"),
        "{said}"
    );
    let said = listen(&cluster, MAINTAIN);
    assert!(!said.contains(gap), "{said}");
    run(&client, &receive(2)).await;
    let said = listen(&cluster, MAINTAIN);
    assert_eq!(said.matches(gap).count(), 1, "{said}");
    assert!(said.contains(r#""cleared": true"#), "{said}");
}
