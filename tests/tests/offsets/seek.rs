//! Seeking: where to, what comes then, and what is refused.

use postbox_tests::wait_until;

use super::earliest::{hold, office_without_its_standby, release};
use super::{CHECKPOINT, Office, assert_came, execute, names, numbered};
use crate::shop::PATIENCE;

/// Notes a moment, as maintenance does every ten seconds.
fn sample(office: &Office) {
    assert!(office.psql("SELECT step, outcome FROM postbox.maintain(true)").contains("sample|taken"));
}

/// `a:1` to `a:10`, a sample, `a:11` to `a:20`, another one: all delivered.
fn delivered() -> Office {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 10);
    sample(&office);
    office.publish("a", 11, 20);
    sample(&office);
    assert_came(&office.deliver(), &numbered("a", 1, 20));
    office
}

fn seek(office: &Office, target: &str) {
    let (code, said) = office.group(&["seek", "g", "--to", target]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("consumer group g moves "), "{said}");
}

fn event_id(office: &Office, name: &str) -> String {
    office.psql(&format!("SELECT event_id FROM orders WHERE type = '{name}'"))
}

#[test]
fn backwards_what_lies_behind_the_target_comes_again() {
    let office = delivered();
    seek(&office, "earliest");
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 1, 20)), 0);
    let (first, taken_at) = (
        office.psql("SELECT lsn FROM postbox.sample ORDER BY taken_at LIMIT 1"),
        office.psql("SELECT to_char(taken_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM postbox.sample ORDER BY taken_at LIMIT 1"),
    );
    for target in [first, taken_at, event_id(&office, "a:15"), event_id(&office, "a:11").to_uppercase()] {
        seek(&office, &target);
        assert_eq!(assert_came(&office.deliver(), &numbered("a", 11, 20)), 0, "{target}");
    }
    // Queued events come too, once.
    office.publish("a", 21, 25);
    seek(&office, &event_id(&office, "a:18"));
    office.publish("a", 26, 30);
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 11, 30)), 0);
    assert_eq!(office.deliver(), []);
}

#[test]
fn forwards_what_lies_before_the_target_does_not_come() {
    let office = delivered();
    office.publish("a", 21, 30);
    sample(&office);
    office.publish("a", 31, 40);
    seek(&office, &event_id(&office, "a:35"));
    office.publish("a", 41, 45);
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 31, 45)), 0);
    office.publish("a", 46, 50);
    let end = office.psql("SELECT pg_current_wal_flush_lsn()");
    office.publish("a", 51, 55);
    seek(&office, &end);
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 51, 55)), 0);
    office.publish("a", 56, 60);
    seek(&office, "latest");
    office.publish("a", 61, 65);
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 61, 65)), 0);
    // What was skipped is not owed: recovery does not bring it.
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    assert!(names(&office.deliver_with(&["--recover"])).is_disjoint(&numbered("a", 1, 60)));
}

/// An event that was committed and not visible when the sample was taken lies below the sample's position.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_event_that_became_visible_after_the_sample_is_not_passed() {
    let office = office_without_its_standby();
    office.create("latest");
    office.publish("a", 1, 10);
    let (watcher, late) = (office.client().await, office.client().await);
    let held = hold(&office, &watcher, late).await;
    sample(&office);
    release(&office);
    held.await.expect("no panic");
    office.publish("a", 11, 20);
    sample(&office);
    seek(&office, &event_id(&office, "held:1"));
    let mut expected = numbered("a", 11, 20);
    expected.insert("held:1".to_owned());
    let came = office.deliver();
    assert!(names(&came).is_superset(&expected), "{:?}", names(&came));
}

#[test]
fn a_dry_run_and_what_is_refused_change_nothing() {
    let office = delivered();
    office.psql("CREATE TABLE plain (id text, type text, payload text)");
    let state = || {
        office.psql(
            "SELECT to_jsonb(g) - 'member' FROM postbox.consumer_group g; SELECT * FROM postbox.checkpoint;
             SELECT * FROM postbox.backfill; SELECT * FROM postbox.audit; SELECT confirmed_flush_lsn FROM pg_replication_slots",
        )
    };
    let before = state();
    let (code, said) = office.group(&["seek", "g", "--to", "earliest", "--dry-run"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("would move backward") && said.contains("20 stored events would be delivered"), "{said}");
    let (_, said) = office.group(&["seek", "g", "--to", &event_id(&office, "a:15"), "--dry-run"]);
    assert!(said.contains("10 stored events would be delivered"), "{said}");
    let (_, said) = office.group(&["seek", "g", "--to", "latest", "--dry-run"]);
    assert!(said.contains("would move forward"), "{said}");
    assert_eq!(state(), before);

    let nobody = "00000000-0000-0000-0000-000000000000";
    for (target, text) in [
        ("2999-01-01", "lies in the future"),
        ("infinity", "lies in the future"),
        ("FFFFFFFF/0", "beyond the end of the log"),
        (nobody, "holds an event with the id"),
        ("order-7", "holds an event with the id \"order-7\""),
    ] {
        let (code, said) = office.group(&["seek", "g", "--to", target]);
        assert!(code == 2 && said.contains(text), "{target}: {code} {said}");
    }
    assert_eq!(state(), before);

    // Retention has removed what was committed before the second sample.
    office.psql("INSERT INTO postbox.removed SELECT 'orders', snapshot, lsn, now(), 5, 1 FROM postbox.sample ORDER BY taken_at DESC LIMIT 1");
    for target in [event_id(&office, "a:15"), "0/1".to_owned(), "2020-01-01".to_owned()] {
        let (code, said) = office.group(&["seek", "g", "--to", &target]);
        assert!(
            code == 2 && said.contains("is before what outbox public.orders still holds"),
            "{target}: {code} {said}"
        );
        assert!(said.contains("Seek to earliest"), "{said}");
    }
    assert_eq!(state(), before);

    office.psql("SELECT postbox.adopt_outbox('plain', event_id => 'id', key => '', headers => '')");
    office.psql("SELECT postbox.create_consumer_group('h', '{plain}')");
    let (code, said) = office.group(&["seek", "h", "--to", "earliest"]);
    assert!(code != 0 && said.contains("public.plain"), "{said}");
    let (code, said) = office.group(&["seek", "h", "--to", "latest"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_group_with_a_member_is_paused_first() {
    let office = delivered();
    let mut run = office.run(&[]);
    run.wait_for_log("in epoch", 1, PATIENCE);
    let (code, said) = office.group(&["seek", "g", "--to", "earliest"]);
    assert!(code == 4 && said.contains("while member") && said.contains("postbox group pause g"), "{code} {said}");
    let (code, said) = office.group(&["recover", "g"]);
    assert!(code == 4 && said.contains("postbox group pause g"), "{code} {said}");
    assert_eq!(office.group(&["pause", "g"]).0, 0);
    wait_until("the member steps aside", PATIENCE, || {
        (office.group(&["seek", "g", "--to", "earliest"]).0 == 0).then_some(())
    });
    assert_eq!(run.count(), 0);
    assert_eq!(office.group(&["resume", "g"]).0, 0);
    run.wait_for(20, PATIENCE);
    assert_eq!(assert_came(&run.terminate(PATIENCE).lines, &numbered("a", 1, 20)), 0);
}

#[test]
fn a_seek_is_audited_and_told() {
    let office = delivered();
    let said = office.psql("LISTEN postbox_alert; SELECT direction FROM postbox.seek_consumer_group('g', 'earliest')");
    assert!(said.starts_with("backward"), "{said}");
    assert!(
        said.contains("\"postbox_alert\"") && said.contains("consumer_seeked") && said.contains("earliest"),
        "{said}"
    );
    let audit =
        office.psql("SELECT subject, detail->>'target', detail->>'direction' FROM postbox.audit WHERE action = 'seek'");
    assert_eq!(audit, "g|earliest|backward");
}

#[test]
fn a_kill_and_a_lost_slot_after_a_seek_lose_nothing() {
    let office = delivered();
    office.publish("b", 1, 2000);
    assert_eq!(office.deliver().len(), 2000);
    seek(&office, "earliest");
    let ended = office.run(&["--max-events", "500"]).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let sought = ended.lines;
    office.publish("c", 1, 10);
    let mut run = office.run(&[]);
    run.wait_for(10, PATIENCE);
    let killed = run.kill();
    wait_until("the slot is dropped", PATIENCE, || {
        office
            .cluster
            .psql_result("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
            .ok()
    });
    office.publish("c", 11, 20);
    assert_eq!(office.group(&["recover", "g"]).0, 0);
    let after = office.deliver();
    // All of them came again after the seek.
    let again = [sought, killed.lines, after].concat();
    assert_came(&again, &office.stored());
}

/// An adopted table with the columns that make its rows deliverable again, and ids of its own.
fn adopted() -> Office {
    let office = Office::open();
    office.psql(
        "CREATE TABLE mine (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
             id text, type text, payload text);
         SELECT postbox.adopt_outbox('mine', event_id => 'id', key => '', headers => '', seq => 'seq', xid => 'xid')",
    );
    office.psql("SELECT postbox.create_consumer_group('g', '{mine}')");
    office
}

fn write(office: &Office, from: usize, to: usize) {
    for n in from..=to {
        office.psql(&format!("INSERT INTO mine (id, type, payload) VALUES ('order-{n}', 'm:{n}', '')"));
    }
}

#[test]
fn events_of_an_adopted_table_are_found_by_their_own_ids() {
    let office = adopted();
    write(&office, 1, 5);
    sample(&office);
    write(&office, 6, 10);
    assert_came(&office.deliver(), &numbered("m", 1, 10));
    seek(&office, "order-8");
    assert_eq!(assert_came(&office.deliver(), &numbered("m", 6, 10)), 0);
}

/// Its owner may remove rows whose events still wait in the slot.
#[test]
fn a_seek_does_not_lose_queued_events_whose_rows_are_gone() {
    let office = adopted();
    write(&office, 1, 5);
    assert_came(&office.deliver(), &numbered("m", 1, 5));
    write(&office, 6, 10);
    office.psql("DELETE FROM mine WHERE id IN ('order-7', 'order-8')");
    seek(&office, "earliest");
    // Those two late, as they come from the slot, which goes on behind the table.
    assert_eq!(names(&office.deliver()), numbered("m", 1, 10));
    assert_eq!(office.deliver(), []);
}

/// Retention must not remove what a seek has just found to be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_seek_waits_for_retention_before_it_looks() {
    let office = delivered();
    let (retention, watcher, seeker) = (office.client().await, office.client().await, office.client().await);
    execute(&retention, "BEGIN; SELECT pg_advisory_xact_lock(postbox._lock_key('orders'))").await;
    let seeking =
        tokio::spawn(async move { seeker.batch_execute("SELECT postbox.seek_consumer_group('g', '0/1')").await });
    office.waits(&watcher, "SELECT postbox.seek", "advisory").await;
    execute(
        &retention,
        "INSERT INTO postbox.removed SELECT 'orders', snapshot, lsn, now(), 5, 1 FROM postbox.sample ORDER BY taken_at DESC LIMIT 1; COMMIT",
    )
    .await;
    let error = seeking.await.expect("no panic").expect_err("rows are gone");
    assert!(error.as_db_error().expect("of the server").message().contains("still holds"), "{error}");
}

#[test]
fn forwards_to_a_time_what_was_committed_before_does_not_come() {
    let office = delivered();
    office.publish("a", 21, 30);
    sample(&office);
    let time = office.psql("SELECT clock_timestamp()");
    office.publish("a", 31, 40);
    let (code, said) = office.group(&["seek", "g", "--to", &time]);
    assert!(code == 0 && said.starts_with("consumer group g moves forward"), "{said}");
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 31, 40)), 0);
    assert_eq!(office.deliver(), []);
}

/// Retention as maintenance does it, and a group as a member moves it.
#[test]
fn retention_leaves_what_a_recovery_needs_and_a_seek_is_refused_below_it() {
    let office = Office::open();
    office.psql(
        "SELECT postbox.drop_outbox('orders'); SELECT postbox.create_outbox('orders', generation_rows => 1024);
         SELECT postbox.set_retention('orders', '0')",
    );
    office.create("latest");
    let turn = "SELECT setval('orders_seq_seq', (((pg_sequence_last_value('orders_seq_seq') >> 10) + 1) << 10) - 1)";
    let maintain = || office.psql("SELECT step, outcome, detail FROM postbox.maintain(true) WHERE step = 'retention'");
    office.publish("old", 1, 20);
    sample(&office);
    let before = office.psql("SELECT clock_timestamp()");
    let position = office.psql("SELECT pg_current_wal_insert_lsn()");
    let old_id = event_id(&office, "old:5");
    office.psql(turn);
    office.publish("mid", 1, 20);
    assert!(maintain().contains("pinned"), "the group has had none of it");
    assert_eq!(office.stored().len(), 40);

    let mut run = office.run(&["--no-maintenance"]);
    run.wait_for(40, PATIENCE);
    // A checkpoint of the member, and not that of the making.
    let dealt_with = "SELECT bool_and(pg_visible_in_snapshot(o.xid, c.snapshot)) FROM orders o, postbox.checkpoint c";
    wait_until("a checkpoint", CHECKPOINT, || (office.psql(dealt_with) == "t").then_some(()));
    let emptied =
        wait_until("the old leaf is emptied", PATIENCE, || Some(maintain()).filter(|done| done.contains("emptied")));
    assert!(emptied.contains("retention|emptied|public.orders_g0 with 20 rows"), "{emptied}");
    assert_eq!(office.stored(), numbered("mid", 1, 20));

    // Delivered, and not part of a checkpoint: a recovery would need them.
    office.publish("new", 1, 10);
    run.wait_for(50, PATIENCE);
    run.kill();
    office.psql(turn);
    office.publish("next", 1, 5);
    wait_until("only what is needed is left", PATIENCE, || maintain().contains("pinned").then_some(()));
    assert!(office.stored().is_superset(&numbered("new", 1, 10)));

    for (target, text) in [
        (before.as_str(), "is before what outbox public.orders still holds"),
        (&position, "is before what outbox public.orders still holds"),
        (&old_id, "holds an event with the id"),
    ] {
        let (code, said) = office.group(&["seek", "g", "--to", target]);
        assert!(code == 2 && said.contains(text), "{target}: {code} {said}");
    }
    wait_until("the slot is dropped", PATIENCE, || {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        office.cluster.psql_result("postgres", drop).ok()
    });
    assert_eq!(office.group(&["recover", "g"]).0, 0);
    let came = names(&office.deliver_with(&["--no-maintenance"]));
    assert!(came.is_superset(&(&numbered("new", 1, 10) | &numbered("next", 1, 5))), "{came:?}");
    seek(&office, "earliest");
    assert_eq!(names(&office.deliver()), office.stored());
}

/// A group that has dealt with everything is at latest; that is no reason to give it everything again.
#[test]
fn latest_of_a_group_that_has_caught_up_brings_nothing_again() {
    let office = delivered();
    office
        .psql("SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM postbox.consumer_group");
    let at_latest = "SELECT direction, stored_events FROM postbox.seek_consumer_group('g', 'latest', dry_run => true)";
    assert_eq!(office.psql(at_latest), "forward|");
    seek(&office, "latest");
    assert_eq!(office.deliver(), []);
    office.publish("a", 21, 22);
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 21, 22)), 0);
}

/// What a purge has taken from the table still waits in the slot, and comes from there.
#[test]
fn what_was_purged_by_force_comes_from_the_slot_after_a_seek() {
    let office = delivered();
    office.publish("a", 21, 30);
    office.psql("SELECT postbox.purge_outbox('orders', force => true)");
    assert_eq!(office.psql("SELECT count(*) FROM orders"), "0");
    office.publish("a", 31, 35);
    seek(&office, "earliest");
    // First what the table has, then all that waits in the slot.
    let came: Vec<_> = office.deliver().into_iter().map(|line| line.event_type).collect();
    assert_eq!(came, (31..=35).chain(21..=35).map(|n| format!("a:{n}")).collect::<Vec<_>>());
}

/// Events bear the name that their outbox had when they were published.
#[test]
fn what_was_published_under_a_former_name_comes_once() {
    let office = Office::open();
    office.create("latest");
    office.publish("a", 1, 10);
    office.psql("ALTER TABLE orders RENAME TO bills");
    office.psql("INSERT INTO bills (type, key, payload) VALUES ('a:11', 'a', '{}')");
    seek(&office, "earliest");
    assert_eq!(assert_came(&office.deliver(), &numbered("a", 1, 11)), 0);
    assert_eq!(office.deliver(), []);
}

/// As the hint says, and the guide: pause, seek, resume.
#[test]
fn a_paused_group_is_moved_once_its_member_has_ended_what_is_under_way() {
    let office = Office::open();
    office.create("latest");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a plain path");
    let command = format!("touch {path}/begun; until [ -e {path}/go ]; do sleep 0.01; done");
    let run = office.run(&["--sink", "exec", "--exec", &command]);
    office.publish("a", 1, 1);
    wait_until("it is under way", PATIENCE, || dir.path().join("begun").exists().then_some(()));
    assert_eq!(office.group(&["pause", "g"]).0, 0);
    std::thread::scope(|scope| {
        let seeking = scope.spawn(|| office.group(&["seek", "g", "--to", "earliest", "--dry-run"]));
        let waits = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%seek_consumer_group%' AND wait_event = 'PgSleep'
            AND clock_timestamp() > xact_start + interval '1.5 seconds'";
        wait_until("it waits for the member", PATIENCE, || {
            (seeking.is_finished() || office.psql(waits) == "1").then_some(())
        });
        std::fs::write(dir.path().join("go"), "").expect("a file");
        let (code, said) = seeking.join().expect("no panic");
        assert_eq!(code, 0, "{said}");
    });
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}
