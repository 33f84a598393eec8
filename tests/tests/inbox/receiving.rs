//! How messages come in, each id once.

use std::time::Duration;

use postbox_tests::wait_until_async;
use tokio_postgres::Client;

use super::PATIENCE;
use crate::sql::{error, refused, row, rows, run, start};

/// What waits to be handed out, and what the log counts of each kind.
async fn state(client: &Client) -> (String, String) {
    let waiting = row(client, "SELECT coalesce(sum(cardinality(event_ids)), 0) FROM postbox.inbox_batch").await;
    let log = rows(client, "SELECT what, sum(messages) FROM postbox.inbox_log GROUP BY what ORDER BY what").await;
    (waiting, log.join(" "))
}

#[tokio::test]
async fn the_same_id_is_one_message_however_it_comes() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    run(&client, "INSERT INTO payments (event_id, payload) VALUES ('a', '1') ON CONFLICT DO NOTHING").await;
    run(&client, "INSERT INTO payments (event_id, payload) VALUES ('a', '1') ON CONFLICT DO NOTHING").await;
    run(&client, "INSERT INTO payments (event_id, payload) VALUES ('a', '2') ON CONFLICT (event_id) DO NOTHING").await;
    // In one statement as well.
    run(&client, "INSERT INTO payments (event_id) VALUES ('b'), ('b'), ('c'), ('a') ON CONFLICT DO NOTHING").await;
    assert_eq!(state(&client).await, ("3".to_owned(), "conflict|2 duplicate|2".to_owned()));
    let failed = error(&client, "INSERT INTO payments (event_id) VALUES ('d'), ('c')").await;
    assert_eq!(failed.code().code(), "23505", "{failed:?}");
    run(&client, "COPY payments (event_id, event_type, payload) FROM PROGRAM 'seq -f \"%.0f\tpaid\t{}\" 1 120'").await;
    assert_eq!(state(&client).await.0, "123");
    // An upsert of a message that is there is no arrival.
    let upsert = "INSERT INTO payments (event_id, payload) VALUES ('a', '3')
        ON CONFLICT (event_id) DO UPDATE SET payload = excluded.payload";
    run(&client, upsert).await;
    assert_eq!(state(&client).await.0, "123");
    let sizes = "SELECT event_type, cardinality(event_ids) FROM postbox.inbox_batch ORDER BY 1, 2";
    assert_eq!(rows(&client, sizes).await, ["paid|20", "paid|50", "paid|50", "|1", "|2"]);
    let all = "SELECT count(*), count(DISTINCT event_id), bool_and(attempts = 1) FROM postbox.inbox_claim('payments', 'w', 1000)";
    assert_eq!(row(&client, all).await, "123|123|t");
}

#[tokio::test]
async fn receive_says_what_became_of_the_message() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    let full = "SELECT postbox.inbox_receive('payments', 'a', '{\"n\": 1.0}', 'paid', 'shop', 'order-1', 7, 3, '{\"h\": 1}', '2001-01-01', 'trace')";
    assert_eq!(row(&client, full).await, "received");
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'a', '{\"n\": 1}')").await, "duplicate");
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'a', '{\"n\": 2}')").await, "conflict");
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'a')").await, "conflict");
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'b')").await, "received");
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'b', NULL)").await, "duplicate");
    let stored = "SELECT event_type, source, aggregate_id, sequence_num, priority, payload, headers, visible_at < now(), trace_id, processed_at IS NULL
        FROM payments WHERE event_id = 'a'";
    assert_eq!(row(&client, stored).await, "paid|shop|order-1|7|3|{\"n\": 1.0}|{\"h\": 1}|t|trace|t");
    assert_eq!(state(&client).await, ("2".to_owned(), "conflict|2 duplicate|2".to_owned()));
    // An id whose message is gone, within its window.
    run(&client, "INSERT INTO postbox.inbox_seen SELECT 0, id, 'gone', now() + interval '1 day' FROM postbox.inbox")
        .await;
    run(&client, "SELECT postbox.create_inbox('short', retention => '0', dedup_window => '1 day')").await;
    run(&client, "INSERT INTO postbox.inbox_seen SELECT 1, id, 'gone', now() + interval '1 day' FROM postbox.inbox WHERE name = 'short'").await;
    run(&client, "INSERT INTO postbox.inbox_seen SELECT 1, id, 'over', now() - interval '1 s' FROM postbox.inbox WHERE name = 'short'").await;
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('short', 'gone')").await, "duplicate");
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('short', 'over')").await, "received");
    run(&client, "INSERT INTO short (event_id) VALUES ('gone')").await;
    assert_eq!(rows(&client, "SELECT event_id FROM short").await, ["over"]);
    // A trigger of the owner's keeps it out.
    run(
        &client,
        "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER first BEFORE INSERT ON payments FOR EACH ROW EXECUTE FUNCTION keep_out()",
    )
    .await;
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'c') IS NULL").await, "t");
}

#[tokio::test]
async fn what_cannot_be_a_message_is_refused() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    let hint = "The id says which messages are the same";
    refused(&client, "SELECT postbox.inbox_receive('payments', NULL)", "23502", "has NULL bytes", hint).await;
    refused(&client, "SELECT postbox.inbox_receive('payments', '')", "23514", "has 0 bytes, must have 1 to 512", hint)
        .await;
    refused(&client, "INSERT INTO payments (event_id) VALUES (repeat('x', 513))", "23514", "has 513 bytes", hint).await;
    refused(&client, "INSERT INTO payments DEFAULT VALUES", "23502", "has NULL bytes", hint).await;
    run(&client, "SELECT postbox.inbox_receive('payments', repeat('x', 512))").await;
    refused(
        &client,
        "SELECT postbox.inbox_receive('none', 'a')",
        "42704",
        "inbox \"none\" does not exist",
        "create_inbox",
    )
    .await;
    refused(&client, "SELECT postbox.inbox_receive(NULL, 'a')", "42704", "inbox NULL does not exist", "create_inbox")
        .await;
    for column in ["processed_at = now()", "error = 'e'", "retry_count = 1"] {
        let (name, value) = column.split_once(" = ").unwrap();
        let insert = format!("INSERT INTO payments (event_id, {name}) VALUES ('a', {value})");
        refused(&client, &insert, "23514", "as one that was tried already", "the inbox keeps that elsewhere").await;
        let update = format!("UPDATE payments SET {column}");
        refused(&client, &update, "55000", "cannot be changed so", "inbox_complete and inbox_fail say how it went")
            .await;
    }
    for column in ["event_id = 'b'", "aggregate_id = 'b'", "sequence_num = 2", "priority = 2", "visible_at = now()"] {
        refused(&client, &format!("UPDATE payments SET {column}"), "55000", "cannot be changed so", "stay as they are")
            .await;
    }
    // What changes nothing, or only what the message says, is its owner's business.
    run(
        &client,
        "UPDATE payments SET payload = '\"redacted\"', processed_at = NULL, retry_count = 0, event_id = event_id",
    )
    .await;
    run(&client, "INSERT INTO payments (event_id, retry_count, error) VALUES ('plain', 0, NULL)").await;
}

#[tokio::test]
async fn two_transactions_with_the_same_id_are_one_message() {
    for (first_ends, outcome) in [("COMMIT", "conflict"), ("ROLLBACK", "received")] {
        let (cluster, first) = start().await;
        run(&first, "SELECT postbox.create_inbox('payments')").await;
        run(&first, "BEGIN; SELECT postbox.inbox_receive('payments', 'a', '1')").await;
        let second = cluster.client("postgres").await;
        let watcher = cluster.client("postgres").await;
        let receiving =
            tokio::spawn(async move { row(&second, "SELECT postbox.inbox_receive('payments', 'a', '2')").await });
        one_waits(&watcher).await;
        // What it waits for is the end of the first transaction, which its unique key asks for.
        let waits_for = "SELECT locktype FROM pg_locks WHERE NOT granted";
        assert_eq!(row(&watcher, waits_for).await, "transactionid");
        run(&first, first_ends).await;
        assert_eq!(receiving.await.unwrap(), outcome);
        let claimed = "SELECT event_id, payload FROM postbox.inbox_claim('payments', 'w')";
        assert_eq!(rows(&first, claimed).await, [if first_ends == "COMMIT" { "a|1" } else { "a|2" }]);
    }
}

/// Who learns from the unique key alone that a message is there counts it all the same, and once.
#[tokio::test]
async fn who_waited_for_the_first_one_counts_as_who_came_later() {
    let (cluster, first) = start().await;
    run(&first, "SELECT postbox.create_inbox('payments')").await;
    let watcher = cluster.client("postgres").await;
    for (id, payload, answer, log) in
        [("a", "1", "duplicate", "duplicate|1"), ("b", "2", "conflict", "conflict|1 duplicate|1")]
    {
        run(&first, &format!("BEGIN; SELECT postbox.inbox_receive('payments', '{id}', '1')")).await;
        let second = cluster.client("postgres").await;
        let receive = format!("SELECT postbox.inbox_receive('payments', '{id}', '{payload}', 'paid')");
        let receiving = tokio::spawn(async move { row(&second, &receive).await });
        one_waits(&watcher).await;
        run(&first, "COMMIT").await;
        assert_eq!(receiving.await.unwrap(), answer);
        assert_eq!(state(&first).await.1, log);
    }
    let noted = "SELECT what, event_type, event_ids FROM postbox.inbox_log ORDER BY id";
    assert_eq!(rows(&first, noted).await, ["duplicate|paid|", "conflict|paid|{b}"]);
    // What the trigger has noted is not noted again, whatever came before in the transaction.
    run(
        &first,
        "BEGIN; INSERT INTO payments (event_id, payload) VALUES ('a', '1') ON CONFLICT DO NOTHING; SELECT postbox.inbox_receive('payments', 'a', '1'); COMMIT",
    )
    .await;
    assert_eq!(state(&first).await.1, "conflict|1 duplicate|3");
    assert_eq!(row(&first, "SELECT duplicates, conflicts FROM postbox.inbox_status()").await, "4|1");
}

/// Returns when a session waits for a lock.
async fn one_waits(client: &Client) {
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    wait_until_async("a session waits", Duration::from_secs(30), async || {
        (row(client, asked).await == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn receiving_locks_nothing_but_its_unique_key() {
    let (cluster, first) = start().await;
    run(
        &first,
        "SELECT postbox.create_inbox('payments'); SELECT postbox.create_inbox('plain');
         CREATE TABLE bare (event_id text PRIMARY KEY)",
    )
    .await;
    // Different ids of the same aggregate, in opposite orders: nobody waits for anybody.
    let second = cluster.client("postgres").await;
    let receive = |id: &str, aggregate: &str, number: i32| {
        format!("SELECT postbox.inbox_receive('payments', '{id}', '{{}}', 't', NULL, '{aggregate}', {number})")
    };
    run(&first, "BEGIN; SET LOCAL lock_timeout = '1ms'").await;
    run(&second, "BEGIN; SET LOCAL lock_timeout = '1ms'").await;
    run(&first, &receive("1", "x", 1)).await;
    run(&second, &receive("2", "y", 1)).await;
    run(&first, &receive("3", "y", 2)).await;
    run(&second, &receive("4", "x", 2)).await;
    // A worker takes what others have committed meanwhile and waits for neither.
    let third = cluster.client("postgres").await;
    run(&third, "SET lock_timeout = '1ms'; SELECT postbox.inbox_receive('payments', '5')").await;
    assert_eq!(rows(&third, "SELECT event_id FROM postbox.inbox_claim('payments', 'w')").await, ["5"]);
    // Locks on tables as an INSERT has them, its own transaction, and no other.
    let locks = "SELECT DISTINCT coalesce(mode, '') || ' ' || locktype FROM pg_locks
        WHERE pid = pg_backend_pid() AND locktype NOT IN ('virtualxid') AND mode <> 'AccessShareLock' ORDER BY 1";
    assert_eq!(rows(&first, locks).await, ["ExclusiveLock transactionid", "RowExclusiveLock relation"]);
    run(&first, "COMMIT").await;
    run(&second, "COMMIT").await;

    // The same two ids in opposite orders are a deadlock of any unique key, which PostgreSQL ends.
    run(&first, "BEGIN").await;
    run(&second, "BEGIN").await;
    run(&first, &receive("6", "x", 6)).await;
    run(&second, &receive("7", "x", 7)).await;
    let blocked = receive("6", "x", 6);
    let waiting = tokio::spawn(async move {
        let outcome = second.batch_execute(&blocked).await;
        second.batch_execute("ROLLBACK").await.unwrap();
        outcome
    });
    one_waits(&third).await;
    let here = first.batch_execute(&receive("7", "x", 7)).await;
    run(&first, if here.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    let there = waiting.await.unwrap();
    assert!(here.is_ok() != there.is_ok(), "one of them goes on: {here:?} {there:?}");
}

/// A hundred thousand messages in one COPY, or as many as `POSTBOX_INBOX_MESSAGES` says (a million took 42 s).
#[tokio::test]
async fn a_copy_of_any_size_is_received_and_handed_out() {
    let messages: u64 = std::env::var("POSTBOX_INBOX_MESSAGES").map_or(100_000, |count| count.parse().unwrap());
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    let begin = std::time::Instant::now();
    run(&client, &format!("COPY payments (event_id, payload) FROM PROGRAM 'seq -f \"%.0f\t{{}}\" 1 {messages}'")).await;
    eprintln!("COPY of {messages} messages: {:?}", begin.elapsed());
    let batches = "SELECT count(*), sum(cardinality(event_ids)), max(cardinality(event_ids)) FROM postbox.inbox_batch";
    assert_eq!(row(&client, batches).await, format!("{}|{messages}|50", messages.div_ceil(50)));
    let claimed = "SELECT count(DISTINCT event_id) FROM postbox.inbox_claim('payments', 'w', 1000)";
    assert_eq!(row(&client, claimed).await, "1000");
}

/// One COPY of messages in a bad order, more than a batch holds.
#[tokio::test]
async fn a_copy_is_sorted_into_aggregates_and_tiers() {
    for (ordered, tiered) in [(true, false), (false, true), (true, true)] {
        let (cluster, client) = start().await;
        run(&client, "SELECT postbox.create_inbox('payments')").await;
        if ordered {
            run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
        }
        if tiered {
            run(&client, r#"SELECT postbox.enable_inbox_priority('payments', tiers => '[{"name": "high", "lowest": 1}, {"name": "low", "highest": 0}]')"#).await;
        }
        let mut lines = String::new();
        for number in (1..=3).rev() {
            for aggregate in 0..60 {
                let priority = i32::from(aggregate % 2 == 1);
                lines += &format!("{aggregate}-{number}\ta{aggregate}\t{number}\t{priority}\n");
            }
        }
        // And two without an order, the second one not due.
        lines += "loose\t\\N\t\\N\t\\N\n";
        cluster.psql(
            "postgres",
            &format!("COPY payments (event_id, aggregate_id, sequence_num, priority) FROM STDIN;\n{lines}\\.\n"),
        );
        cluster.psql("postgres", "COPY payments (event_id, visible_at) FROM STDIN;\nlater\tinfinity\n\\.\n");
        let order = super::drain(&client).await;
        assert_eq!(order.len(), 181, "ordered {ordered}, tiered {tiered}");
        let mut distinct = order.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 181);
        let place = |id: &str| order.iter().position(|other| other == id).unwrap_or_else(|| panic!("{id}"));
        for aggregate in 0..60 {
            let places = [1, 2, 3].map(|number| place(&format!("{aggregate}-{number}")));
            assert_eq!(places.is_sorted(), ordered, "ordered {ordered}, tiered {tiered}: {places:?}");
        }
        if tiered {
            let high = |id: &String| {
                id.split_once('-').is_some_and(|(aggregate, _)| aggregate.parse::<u32>().unwrap() % 2 == 1)
            };
            assert!(order[..90].iter().all(high), "ordered {ordered}: {order:?}");
        }
    }
}

/// Retention has removed the rows, and the dedup window is not over.
#[tokio::test]
async fn ids_that_outlive_their_rows_are_left_out_of_a_copy_and_of_inserts_of_many_rows() {
    for ordered in [false, true] {
        let (cluster, client) = start().await;
        run(&client, "SELECT postbox.create_inbox('payments', retention => '0', dedup_window => '1 day')").await;
        if ordered {
            run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
        }
        let columns = "payments (event_id, aggregate_id, sequence_num, payload)";
        let line = |number: i32| format!("m{number}\ta\t{number}\t{{}}\n");
        let copy = |numbers: std::ops::RangeInclusive<i32>| {
            let lines: String = numbers.map(line).collect();
            cluster.psql("postgres", &format!("COPY {columns} FROM STDIN;\n{lines}\\.\n"));
        };
        copy(1..=80);
        assert_eq!(super::drain(&client).await.len(), 80);
        let kept = "SELECT count(*) FROM payments";
        wait_until_async("all are removed", PATIENCE, async || {
            run(&client, "SELECT postbox.maintain(true)").await;
            (row(&client, kept).await == "0").then_some(())
        })
        .await;
        let counts = "SELECT duplicates, conflicts, pending FROM postbox.inbox_status('payments')";
        // With others and alone, and with another payload, which nobody remembers.
        copy(61..=140);
        assert_eq!(row(&client, counts).await, "20|0|60", "ordered {ordered}");
        copy(1..=2);
        assert_eq!(row(&client, counts).await, "22|0|60", "ordered {ordered}");
        let many = |numbers: &str, more: &str| {
            format!("INSERT INTO {columns} SELECT 'm' || n, 'a', n, '[]' FROM {numbers} n{more}")
        };
        run(&client, &many("generate_series(78, 80)", "")).await;
        assert_eq!(row(&client, counts).await, "25|0|60", "ordered {ordered}");
        run(&client, &many("generate_series(79, 82)", " ON CONFLICT DO NOTHING")).await;
        assert_eq!(row(&client, counts).await, "29|2|60", "ordered {ordered}: two of them are there");
        run(&client, &many("unnest('{80,141,1,142}'::int[])", " ON CONFLICT DO NOTHING")).await;
        assert_eq!(row(&client, counts).await, "31|2|62", "ordered {ordered}");
        assert_eq!(row(&client, kept).await, "62");
        let order = super::drain(&client).await;
        assert_eq!(order.len(), 62);
        if ordered {
            assert_eq!(order, (81..=142).map(|number| format!("m{number}")).collect::<Vec<_>>());
        }
        // When the window is over the same ids are new ones.
        run(&client, "UPDATE postbox.inbox_seen SET until = clock_timestamp()").await;
        if !ordered {
            copy(1..=2);
            assert_eq!(super::drain(&client).await.len(), 2);
        }
    }
}

#[tokio::test]
async fn a_batch_is_received_as_its_messages_are_one_by_one() {
    let (cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('payments', retention => '0', dedup_window => '1 day'); SELECT postbox.enable_inbox_ordering('payments');
         CREATE TABLE bare (id bigint PRIMARY KEY, body text); SELECT postbox.enable_inbox_tracking('bare', event_id => 'id', payload => 'body');
         INSERT INTO postbox.inbox_seen SELECT 1, id, 'gone', now() + interval '1 day' FROM postbox.inbox;
         INSERT INTO postbox.inbox_seen SELECT 1, id, 'over', now() - interval '1 s' FROM postbox.inbox",
    )
    .await;
    let batch = async |arguments: &str| row(&client, &format!("SELECT postbox.inbox_receive_batch({arguments})")).await;
    let received = batch(
        "'payments', '{a,b,a,gone,b,over}', ARRAY['{}', '{}', '{}', '{}', '[]', NULL]::jsonb[], '{t,t,t,t,u,u}', NULL, '{k,k,k,k,k,NULL}', '{1,2,1,3,2,NULL}'",
    )
    .await;
    assert_eq!(received, "{received,received,duplicate,duplicate,conflict,received}");
    assert_eq!(
        batch("'payments', '{b,c}', headers => ARRAY['{}', '{\"h\": 1}']::jsonb[]").await,
        "{conflict,received}"
    );
    assert_eq!(batch("'payments', '{}'").await, "{}");
    assert_eq!(
        rows(
            &client,
            "SELECT event_id, aggregate_id, sequence_num, payload, headers, event_type FROM payments ORDER BY 1"
        )
        .await,
        ["a|k|1|{}||t", "b|k|2|{}||t", "c||||{\"h\": 1}|", "over|||||u"]
    );
    assert_eq!(
        rows(
            &client,
            "SELECT what, event_type, sum(messages), max(event_ids) FROM postbox.inbox_log GROUP BY 1, 2 ORDER BY 1, 2"
        )
        .await,
        ["conflict|u|1|{b}", "conflict||1|{b}", "duplicate|t|2|"]
    );
    assert_eq!(row(&client, "SELECT duplicates, conflicts FROM postbox.inbox_status('payments')").await, "4|2");
    // Other types, and ids that are written in another way.
    assert_eq!(
        batch("'bare', '{7,007,8}', ARRAY['\"x\"', '\"x\"', NULL]::jsonb[]").await,
        "{received,duplicate,received}"
    );
    assert_eq!(batch("'bare', '{7,8}', ARRAY['\"y\"', NULL]::jsonb[]").await, "{conflict,duplicate}");
    let receive = "SELECT postbox.inbox_receive_batch";
    refused(
        &client,
        &format!("{receive}('payments', '{{x,NULL}}')"),
        "23502",
        "has NULL bytes",
        "which messages are the same",
    )
    .await;
    refused(
        &client,
        &format!("{receive}('payments', '{{x}}', event_types => '{{a,b}}')"),
        "22023",
        "1 event_ids of messages for inbox \"payments\" are given with 2 event_types",
        "same length",
    )
    .await;
    refused(&client, &format!("{receive}('payments', NULL)"), "22023", "NULL event_ids", "same length").await;
    refused(&client, &format!("{receive}('none', '{{x}}')"), "42704", "inbox \"none\" does not exist", "create_inbox")
        .await;
    // Somebody else inserts the same id just now.
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; INSERT INTO payments (event_id, payload) VALUES ('d', '1')").await;
    let commit = async {
        wait_until_async("it waits for the other", PATIENCE, async || {
            (row(&other, "SELECT count(*) FROM pg_locks WHERE NOT granted").await == "1").then_some(())
        })
        .await;
        run(&other, "COMMIT").await;
    };
    let (came, ()) = tokio::join!(batch("'payments', '{e,d}', ARRAY['1', '2']::jsonb[]"), commit);
    assert_eq!(came, "{received,conflict}");
    // A trigger of the owner's keeps one out; what it inserts elsewhere is looked up there.
    run(
        &client,
        "CREATE FUNCTION pass_on() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO public.bare (id) VALUES (7) ON CONFLICT DO NOTHING;
             RETURN CASE WHEN NEW.event_id = 'f' THEN NULL ELSE NEW END;
         END $$;
         CREATE TRIGGER first BEFORE INSERT ON payments FOR EACH ROW EXECUTE FUNCTION pass_on(); DELETE FROM postbox.inbox_log",
    )
    .await;
    assert_eq!(batch("'payments', '{f,g}'").await, "{NULL,received}");
    assert_ne!(row(&client, "SELECT count(*) FROM postbox.inbox_log").await, "0");
    run(&client, "RESET ALL; INSERT INTO payments (event_id) VALUES ('g') ON CONFLICT DO NOTHING").await;
    assert_eq!(
        row(
            &client,
            "SELECT count(*) FROM postbox.inbox_log l JOIN postbox.inbox i ON i.id = l.inbox WHERE name = 'payments'"
        )
        .await,
        "1"
    );
}

#[tokio::test]
async fn batches_of_the_same_ids_in_opposite_orders_do_not_wait_for_each_other_in_a_circle() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments')").await;
    run(&client, "BEGIN; INSERT INTO payments (event_id) VALUES ('m')").await;
    // One after the other, so that each has what comes before m for it.
    let mut answers = Vec::new();
    for (ids, waiting) in [("{a,m,z}", "1"), ("{z,m,a}", "2")] {
        let receiver = cluster.client("postgres").await;
        answers.push(tokio::spawn(async move {
            row(&receiver, &format!("SELECT postbox.inbox_receive_batch('payments', '{ids}')")).await
        }));
        wait_until_async("they wait", PATIENCE, async || {
            (row(&client, "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted").await == waiting).then_some(())
        })
        .await;
    }
    run(&client, "ROLLBACK").await;
    let mut said = Vec::new();
    for answer in answers {
        said.push(answer.await.expect("received"));
    }
    assert_eq!(said, ["{received,received,received}", "{duplicate,duplicate,duplicate}"]);
}
