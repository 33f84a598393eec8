//! Recovery of a group whose slot is gone.

use postbox::{Consumer, ErrorKind};
use postbox_tests::{Cluster, Stop, wait_until};
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::{CHECKPOINT, Office, Publishers, assert_came, execute, insert, names, numbered};
use crate::shop::PATIENCE;

const DROP_SLOTS: &str =
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_type = 'logical'";

#[test]
fn a_dropped_slot_is_made_anew_and_only_what_came_since_the_checkpoint_comes_twice() {
    let office = Office::open();
    office.create("latest");
    let mut run = office.run(&[]);
    let checkpoint = || office.psql("SELECT lsn FROM postbox.checkpoint");
    let first = checkpoint();
    office.publish("old", 1, 100);
    run.wait_for(100, PATIENCE);
    wait_until("a checkpoint", CHECKPOINT, || (checkpoint() != first).then_some(()));
    office.publish("new", 1, 20);
    run.wait_for(120, PATIENCE);
    let killed = run.kill();
    office.publish("missed", 1, 30);
    wait_until("the slot is free", PATIENCE, || office.cluster.psql_result("postgres", DROP_SLOTS).ok());
    office.publish("missed", 31, 50);
    office.refuses(&["does not exist", "postbox group recover g"]);

    let (code, said) = office.group(&["recover", "g"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("recovered consumer group g with replication slot postbox1_"), "{said}");
    office.publish("missed", 51, 60);
    let recovered = office.deliver();
    let again = assert_came(&[killed.lines, recovered.clone()].concat(), &office.stored());
    assert!(again <= 20, "{again} came again, and 20 were delivered since the checkpoint");
    assert!(names(&recovered).is_disjoint(&numbered("old", 1, 100)));
    assert_eq!(office.deliver(), []);
    assert_eq!(office.psql("SELECT action, subject FROM postbox.audit WHERE action = 'recover'"), "recover|g");
    assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), "1");
}

/// What is set for the sessions of people is not for what a member does by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_of_the_database_do_not_cut_a_recovery_off() {
    let office = Office::open();
    office.create("latest");
    office.psql(DROP_SLOTS);
    let writer = office.client().await;
    for timeout in ["statement_timeout", "lock_timeout", "transaction_timeout"] {
        let set = format!("ALTER DATABASE postgres SET {timeout} = '200ms'");
        if office.psql(&format!("SELECT count(*) FROM pg_settings WHERE name = '{timeout}'")) == "1" {
            office.psql(&set);
        }
    }
    execute(&writer, &format!("BEGIN; {}", insert("open:1", 10))).await;
    let mut run = office.run(&["--recover", "--no-maintenance"]);
    let waited = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%recover_consumer_group%' AND wait_event = 'PgSleep'
        AND clock_timestamp() > xact_start + interval '1 second'";
    block_in_place(|| {
        wait_until("it has waited for longer than they allow", PATIENCE, || (office.psql(waited) == "1").then_some(()));
    });
    execute(&writer, "COMMIT").await;
    block_in_place(|| {
        run.wait_for(1, PATIENCE);
        let ended = run.terminate(PATIENCE);
        assert_eq!((ended.code, ended.lines.len()), (Some(0), 1), "{}", ended.log);
    });
}

#[test]
fn an_invalidated_slot_is_recovered_by_the_member_itself() {
    let builder = Cluster::builder().setting("max_slot_wal_keep_size", "1MB").setting("min_wal_size", "32MB");
    let office = Office::open_with(builder.setting("max_wal_size", "48MB"));
    office.create("latest");
    office.publish("a", 1, 20);
    let before = office.deliver();
    office.publish("a", 21, 40);
    wait_until("the slot is lost", PATIENCE, || {
        office.psql(
            "INSERT INTO orders (type, key, payload) SELECT 'bulk', 'bulk', '{}' WHERE false;
             SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) FROM generate_series(1, 20);
             SELECT pg_switch_wal(); CHECKPOINT",
        );
        (office.psql("SELECT wal_status FROM pg_replication_slots") == "lost").then_some(())
    });
    office.publish("a", 41, 60);
    office.refuses(&["invalidated", "postbox group recover g"]);
    let after = office.deliver_with(&["--recover"]);
    assert_came(&[before, after].concat(), &office.stored());
    assert_eq!(office.deliver(), []);
}

/// The slot is lost under a member that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_runs_recovers_without_a_restart() {
    let office = Office::open();
    office.create("latest");
    let mut run = office.run(&["--recover"]);
    let publishers = Publishers::start(&office.cluster, 3).await;
    run.wait_for(200, PATIENCE);
    block_in_place(|| {
        wait_until("the slot is dropped", PATIENCE, || {
            drop(office.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active"));
            office.cluster.psql_result("postgres", DROP_SLOTS).ok()
        });
    });
    run.wait_for_log("has been recovered", 1, PATIENCE);
    let before = run.count();
    run.wait_for(before + 200, PATIENCE);
    publishers.stop().await;
    let stored = office.stored();
    run.wait_until("everything", PATIENCE, |lines| names(lines).len() >= stored.len());
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    println!("{} of {} came again", assert_came(&ended.lines, &stored), stored.len());
}

#[test]
fn a_kill_in_the_middle_of_the_backfill_loses_nothing_and_keeps_the_position() {
    let office = Office::open();
    office.psql(
        "INSERT INTO orders (type, key, payload) SELECT 'a:' || n, 'a', jsonb_build_object('filler', repeat('x', 2000))
         FROM generate_series(1, 20000) n",
    );
    office.create("earliest");
    let position = || office.psql("SELECT position = -9223372036854775808, finished FROM postbox.backfill");
    // Nobody takes what it prints: nothing is acknowledged beyond what fits into the pipe.
    let run = postbox_tests::Run::start_held(&office.cluster.conninfo("postgres"), &["--group", "g"]);
    wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
    assert_eq!(position(), "t|f", "a position counts when everything up to it is acknowledged");
    let first = run.kill();
    assert!(first.lines.len() < 256, "{}", first.lines.len());

    let mut run = office.run(&[]);
    wait_until("a position", PATIENCE, || (position() == "f|f").then_some(()));
    run.wait_for(256, PATIENCE);
    let second = run.kill();
    assert!(second.lines.len() < 20_000, "{}", second.lines.len());

    office.cluster.restart(Stop::Immediate);
    let mut run = office.run(&[]);
    run.wait_for(1, PATIENCE);
    let third = run.lines();
    assert!(!names(&third).contains("a:1"), "what is before the position comes again");
    // The server goes away under it, and comes back.
    office.cluster.restart(Stop::Immediate);
    office.publish("b", 1, 10);
    run.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_type == "b:10"));
    let third = run.terminate(PATIENCE);
    assert_eq!(third.code, Some(0), "{}", third.log);
    let again = assert_came(&[first.lines, second.lines, third.lines].concat(), &office.stored());
    println!("{again} came again");
    assert_eq!(office.deliver(), []);
}

/// It holds its log for as long as rows come from the table.
#[test]
fn a_slot_that_is_lost_under_a_backfill_costs_what_was_published_since() {
    let office = Office::open();
    office.create("latest");
    office.psql(
        "INSERT INTO orders (type, key, payload) SELECT 'a:' || n, 'a', jsonb_build_object('filler', repeat('x', 2000))
         FROM generate_series(1, 2000) n",
    );
    office.psql(DROP_SLOTS);
    let mut run = postbox_tests::Run::start_held(&office.cluster.conninfo("postgres"), &["--group", "g", "--recover"]);
    wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
    // Meanwhile it is nobody's fault that it does not read the slot.
    let described = office.psql("SELECT postbox.describe_consumer_group('g')");
    assert!(described.contains("State:         active") && described.contains("because of recover"), "{described}");
    assert_eq!(office.psql("SELECT seconds, events, precision FROM postbox.consumer_lag"), "||");
    office.psql(DROP_SLOTS);
    office.publish("b", 1, 10);
    run.release();
    run.wait_for_log("has been recovered", 2, PATIENCE);
    office.publish("c", 1, 10);
    run.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_type == "c:10"));
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(assert_came(&ended.lines, &office.stored()), 0, "what came from the table comes again");
    assert_eq!(office.deliver(), []);
}

/// Between the making of the slot and the commit that says which hole it leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slot_that_no_transaction_vouches_for_is_never_read() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 10);
    let before = office.deliver();
    office.publish("a", 11, 20);
    office.psql(DROP_SLOTS);
    for (end, left) in [("pg_cancel_backend", "0"), ("pg_terminate_backend", "1"), ("crash", "1")] {
        let (keeper, watcher, recoverer) = (office.client().await, office.client().await, office.client().await);
        execute(&keeper, "SELECT pg_advisory_lock(postbox._lock_key('orders'))").await;
        let recovering =
            tokio::spawn(async move { recoverer.batch_execute("SELECT postbox.recover_consumer_group('g')").await });
        office.waits(&watcher, "SELECT postbox.recover", "advisory").await;
        assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), "1");
        office.publish(end, 1, 10);
        match end {
            "crash" => office.cluster.crash(),
            _ => {
                execute(&watcher, &format!("SELECT {end}(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'"))
                    .await
            }
        }
        recovering.await.expect("no panic").expect_err("it was cut off");
        wait_until("the lock is free", PATIENCE, || {
            (office.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == "0")
                .then_some(())
        });
        assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), left, "{end}");
        office.refuses(&["does not exist", "postbox group recover g"]);
    }
    office.publish("a", 21, 30);
    let after = office.deliver_with(&["--recover"]);
    assert_came(&[before, after].concat(), &office.stored());
    assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), "1");
}

/// Recovery waits for what a checkpoint does not show, and is started again in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recovery_that_is_recovered_gives_what_the_first_one_owed() {
    let office = Office::open();
    office.publish("a", 1, 3000);
    office.create("earliest");
    office.publish("b", 1, 10);
    let mut run = office.run(&["--max-events", "300"]);
    run.wait_for(300, PATIENCE);
    let first = run.end(PATIENCE).lines;
    for round in 0..2 {
        office.psql(DROP_SLOTS);
        let late = office.client().await;
        execute(&late, &format!("BEGIN; {}", insert(&format!("late:{round}"), 10))).await;
        assert_eq!(office.psql("BEGIN; SELECT 1; COMMIT"), "1");
        execute(&late, "COMMIT").await;
        assert_eq!(office.group(&["recover", "g"]).0, 0);
    }
    let rest = office.deliver();
    assert_came(&[first, rest].concat(), &office.stored());
}

/// A slot that held back too much is dropped on purpose, with all that waits in it.
#[test]
fn a_slot_that_was_over_its_budget_is_recovered_with_all_that_waited_in_it() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 20);
    let before = office.deliver();
    office.psql("SELECT postbox.set_wal_budget('g', 100000, 'drop')");
    office.publish("waiting", 1, 20);
    office.psql("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 200000))");
    let done = office.psql("SELECT step, subject, outcome FROM postbox.maintain(true) WHERE step = 'slots'");
    assert_eq!(done, "slots|g|dropped");
    office.publish("later", 1, 20);
    office.refuses(&["does not exist", "postbox group recover g"]);
    assert_eq!(office.group(&["recover", "g"]).0, 0);
    let after = office.deliver();
    assert!(names(&after).is_superset(&(&numbered("waiting", 1, 20) | &numbered("later", 1, 20))));
    assert_came(&[before, after].concat(), &office.stored());
}

/// The server has not noticed: to it the slot is sound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_wal_is_missing_ends_the_stream_with_the_reason_or_is_recovered() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 20);
    let before = block_in_place(|| office.deliver());
    office.publish("a", 21, 40);
    office.psql("SELECT pg_switch_wal()");
    office.publish("a", 41, 60);
    let segment = office.psql("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots");
    std::fs::remove_file(office.cluster.data_dir().join("pg_wal").join(segment)).expect("a segment");
    assert_eq!(office.psql("SELECT wal_status FROM pg_replication_slots"), "reserved");
    block_in_place(|| office.refuses(&["lost the place in group g: requested WAL segment", "postbox group recover g"]));

    let consumer = Consumer::builder(office.cluster.conninfo("postgres")).group("g").connect().await;
    let next = timeout(PATIENCE, consumer.expect("a consumer").next()).await.expect("an end");
    let error = next.expect("an item").expect_err("no event");
    assert_eq!(error.kind(), ErrorKind::SlotInvalidated, "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("postbox group recover g")), "{error:?}");

    let after = block_in_place(|| office.deliver_with(&["--recover"]));
    assert_came(&[before, after].concat(), &office.stored());
    assert_eq!(block_in_place(|| office.deliver()), []);
}

/// Its members read it by its name, so recovery, seek and retention know it too.
#[test]
fn an_outbox_that_was_made_anew_is_recovered_like_the_one_before() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 5);
    let mut came = office.deliver_with(&["--no-maintenance"]);
    office.publish("a", 6, 8);
    let renew = "SELECT postbox.drop_outbox('orders', force => true); SELECT postbox.create_outbox('orders'); SELECT postbox.set_retention('orders', '0')";
    office.psql(renew);
    office.publish("b", 1, 5);
    // What waits in the slot of the one before still comes, also if the group is moved back.
    let (code, said) = office.group(&["seek", "g", "--to", "earliest"]);
    assert_eq!(code, 0, "{said}");
    came.extend(office.deliver_with(&["--no-maintenance"]));
    assert_eq!(office.psql("SELECT outboxes, missing_outboxes FROM postbox.consumer_groups"), "{public.orders}|{}");
    let mut expected = [numbered("a", 1, 8), numbered("b", 1, 5)].into_iter().flatten().collect();
    assert_came(&came, &expected);

    office.psql(renew);
    office.publish("c", 1, 5);
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    assert_eq!(office.group(&["recover", "g"]).0, 0);
    came.extend(office.deliver_with(&["--no-maintenance"]));
    expected.extend(numbered("c", 1, 5));
    assert_came(&came, &expected);

    // Nothing that is still needed goes, however often the ring turns.
    office.psql(renew);
    office.publish("d", 1, 5);
    for _ in 0..20 {
        office.psql("SELECT postbox.maintain(true)");
    }
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    came.extend(office.deliver_with(&["--recover"]));
    expected.extend(numbered("d", 1, 5));
    assert_came(&came, &expected);
}

/// Members read by OID and by name.
#[test]
fn an_outbox_that_takes_the_name_of_one_that_was_renamed_is_the_groups_too() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 5);
    let mut came = office.deliver_with(&["--no-maintenance"]);
    let rename: String = (0..4)
        .map(|n| format!("ALTER TABLE orders_g{n} RENAME TO former_g{n};"))
        .chain(["ALTER TABLE orders RENAME TO former;".to_owned()])
        .collect();
    let anew = "SELECT postbox.create_outbox('orders'); SELECT postbox.set_retention('orders', '0')";
    office.psql(&(rename + anew));
    let publish_to_former = |name: &str| {
        office.psql(&format!("INSERT INTO former (type, key, payload) VALUES ('{name}', 'f', '{{}}')"));
    };
    publish_to_former("f:1");
    office.publish("b", 1, 5);
    let dry_run = "SELECT stored_events FROM postbox.seek_consumer_group('g', 'earliest', dry_run => true)";
    assert_eq!(office.psql(dry_run), "11");
    assert_eq!(office.group(&["seek", "g", "--to", "earliest"]).0, 0);
    came.extend(office.deliver_with(&["--no-maintenance"]));
    let mut expected = [numbered("a", 1, 5), numbered("b", 1, 5), numbered("f", 1, 1)].into_iter().flatten().collect();
    assert_came(&came, &expected);

    publish_to_former("f:2");
    office.publish("c", 1, 5);
    for _ in 0..20 {
        office.psql("SELECT postbox.maintain(true)");
    }
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    came.extend(office.deliver_with(&["--recover"]));
    expected.extend(numbered("c", 1, 5));
    expected.extend(numbered("f", 2, 2));
    assert_came(&came, &expected);
}

/// As from cron: it has no time for a checkpoint while it runs.
#[test]
fn members_that_run_for_a_moment_leave_a_checkpoint_behind() {
    let office = Office::open();
    office.create("latest");
    let mut came = Vec::new();
    for (from, to) in [(1, 10), (11, 20), (21, 30)] {
        office.publish("a", from, to);
        office.psql("SELECT postbox.maintain(true)");
        came.extend(office.deliver_with(&["--no-maintenance"]));
    }
    // Some are left.
    office.publish("a", 31, 40);
    office.psql("SELECT postbox.maintain(true)");
    office.publish("a", 41, 50);
    office.psql("SELECT postbox.maintain(true)");
    came.extend(office.deliver_with(&["--no-maintenance", "--max-events", "15"]));
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    let recovered = office.deliver_with(&["--recover"]);
    assert!(names(&recovered).is_disjoint(&numbered("a", 1, 40)), "{:?}", names(&recovered));
    came.extend(recovered);
    assert_came(&came, &numbered("a", 1, 50));
}

/// What was skipped before the slot was lost is not owed.
#[test]
fn a_recovery_does_not_go_back_behind_what_was_skipped() {
    let office = Office::open();
    office.publish("a", 1, 5);
    office.create("earliest");
    let mut came = office.deliver_with(&["--no-maintenance"]);
    office.publish("skipped", 1, 3);
    office.psql("SELECT postbox.maintain(true)");
    let there = office.psql("SELECT pg_current_wal_flush_lsn()");
    office.publish("kept", 1, 3);
    let (code, said) = office.group(&["seek", "g", "--to", &there]);
    assert!(code == 0 && said.contains("moves forward"), "{said}");
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    came.extend(office.deliver_with(&["--recover"]));
    assert_came(&came, &[numbered("a", 1, 5), numbered("kept", 1, 3)].into_iter().flatten().collect());
}

/// Somebody may write for longer than a recovery waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_recover_yet_tries_again() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 3);
    office.psql(DROP_SLOTS);
    let mover = office.client().await;
    // Who makes or moves a group holds this one.
    execute(&mover, "BEGIN; SELECT pg_advisory_xact_lock(postbox._lock_key('orders'))").await;
    let mut run = office.run(&["--recover", "--session-timeout", "2s"]);
    block_in_place(|| {
        run.wait_for_log("cannot take the place yet: canceling statement due to lock timeout", 2, PATIENCE)
    });
    execute(&mover, "COMMIT").await;
    block_in_place(|| {
        run.wait_for(3, PATIENCE);
        assert_eq!(run.terminate(PATIENCE).code, Some(0));
        office.psql(DROP_SLOTS);
    });
    let writer = office.client().await;
    execute(&writer, &format!("BEGIN; {}", insert("open:1", 10))).await;
    block_in_place(|| {
        let (code, said) = office.group(&["recover", "g", "--timeout", "100ms"]);
        assert!(code == 1 && said.contains("gave up waiting for 1 transaction that is writing"), "{code} {said}");
    });
}
