//! A standby that is promoted when the primary is gone.

use std::time::Duration;

use postbox::{Consumer, Lsn};
use postbox_tests::{Cluster, Run, Stop, major, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::block_in_place;

use super::{Office, Publishers, assert_came, names};
use crate::shop::PATIENCE;

/// With a slot for its standby.
fn primary() -> Office {
    let office = Office::open_with(
        Cluster::builder()
            .hba("local replication all trust")
            .setting("wal_sender_timeout", "3s")
            .setting("hot_standby_feedback", "on")
            .setting("wal_log_hints", "on"),
    );
    office.psql("SELECT pg_create_physical_replication_slot('to_standby', true)");
    office
}

/// Of both, to whichever takes writes.
fn both(office: &Office, standby: &Cluster) -> String {
    format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres target_session_attrs=read-write connect_timeout=5",
        office.cluster.port(),
        standby.port()
    )
}

/// The whole process group at once, as when the machine dies.
fn kill(office: &Office) {
    let server = Pid::from_raw(office.cluster.pid().cast_signed()).expect("a process");
    rustix::process::kill_process_group(server, Signal::KILL).expect("a process group");
    let _ = kill_process(server, Signal::KILL);
    office.cluster.stop(Stop::Immediate);
}

fn promote(standby: &Cluster) {
    standby.psql("postgres", "SELECT pg_promote()");
    wait_until("the standby is promoted", PATIENCE, || {
        (standby.psql("postgres", "SELECT pg_is_in_recovery()") == "f").then_some(())
    });
}

fn stored(standby: &Cluster) -> std::collections::BTreeSet<String> {
    standby.psql("postgres", "SELECT type FROM orders").lines().map(str::to_owned).collect()
}

/// It follows: some of what is published while it does is there.
fn has_some(standby: &Cluster) {
    wait_until("the standby follows", PATIENCE, || stored(standby).contains("p0:20").then_some(()));
}

fn caught_up(office: &Office, standby: &Cluster) {
    let end = office.psql("SELECT pg_current_wal_insert_lsn()");
    wait_until("the standby has everything", PATIENCE, || {
        (standby.psql("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) == "t").then_some(())
    });
}

/// No slot goes along: the group goes on from its checkpoint when it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_failover_slots_a_promotion_is_noticed_and_recovered_from() {
    let office = primary();
    office.create("latest");
    let standby = office.cluster.standby_with(&[("primary_slot_name", "to_standby")]);
    let conninfo = both(&office, &standby);
    office.publish("a", 1, 50);
    let first = Run::start(&conninfo, &["--group", "g", "--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!((first.code, first.lines.len()), (Some(0), 50), "{}", first.log);

    let mut strict = Run::start(&conninfo, &["--group", "g", "--session-timeout", "3s"]);
    strict.wait_for_log("in epoch", 1, PATIENCE);
    let publishers = Publishers::start(&office.cluster, 3).await;
    strict.wait_for(200, PATIENCE);
    block_in_place(|| has_some(&standby));
    block_in_place(|| kill(&office));
    publishers.stop().await;
    promote(&standby);
    let strict = strict.end(PATIENCE);
    assert_eq!(strict.code, Some(4), "{}", strict.log);
    for text in ["timeline 1 has become 2", "postbox group recover g", "--recover"] {
        assert!(strict.log.contains(text), "{text}: {}", strict.log);
    }

    standby.psql("postgres", "INSERT INTO orders (type, key, payload) VALUES ('b:1', 'b', '{}')");
    let after = Run::start(&conninfo, &["--group", "g", "--recover", "--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!(after.code, Some(0), "{}", after.log);
    let came = names(&[first.lines, strict.lines, after.lines.clone()].concat());
    let stored = stored(&standby);
    assert!(came.is_superset(&stored), "lost: {:?}", stored.difference(&came).collect::<Vec<_>>());
    // What the standby had not got was delivered all the same: these are the phantoms.
    let phantoms = came.difference(&stored).count();
    println!("{} events, {phantoms} phantoms", stored.len());
    assert!(names(&after.lines).is_subset(&stored), "only what is there comes from the standby");
    assert_eq!(standby.psql("postgres", "SELECT timeline FROM postbox.consumer_group"), "2");
}

/// A member that may recover goes on in the same process.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_may_recover_goes_on_after_a_promotion() {
    let office = primary();
    office.create("latest");
    let standby = office.cluster.standby_with(&[("primary_slot_name", "to_standby")]);
    let mut run = Run::start(&both(&office, &standby), &["--group", "g", "--recover", "--session-timeout", "3s"]);
    run.wait_for_log("in epoch", 1, PATIENCE);
    let publishers = Publishers::start(&office.cluster, 3).await;
    run.wait_for(200, PATIENCE);
    block_in_place(|| has_some(&standby));
    block_in_place(|| kill(&office));
    publishers.stop().await;
    // There is no server for a while.
    run.wait_for_log("cannot connect yet", 1, PATIENCE);
    promote(&standby);
    run.wait_for_log("has been recovered", 1, PATIENCE);
    standby.psql("postgres", "INSERT INTO orders (type, key, payload) VALUES ('b:1', 'b', '{}')");
    let stored = stored(&standby);
    run.wait_until("everything", PATIENCE, |lines| names(lines).is_superset(&stored));
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

/// The server brings the slot along, and holds back what the standby has not got.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_failover_slots_a_promotion_loses_nothing_and_shows_no_phantoms() {
    if major() < 17 {
        let office = Office::open();
        let create = "SELECT postbox.create_consumer_group('g', '{orders}', failover => true)";
        let error = office.cluster.psql_result("postgres", create).expect_err("too old");
        assert!(error.contains("does not keep replication slots on standbys"), "{error}");
        return;
    }
    let office = primary();
    let standby = office.cluster.standby_with(&[("primary_slot_name", "to_standby"), ("sync_replication_slots", "on")]);
    // Not before the copy: on the promoted server it would wait for a standby that it does not have.
    office.psql("ALTER SYSTEM SET synchronized_standby_slots = 'to_standby'");
    office.psql("SELECT pg_reload_conf()");
    office.psql("SELECT postbox.create_consumer_group('g', '{orders}', failover => true)");
    let mut run = Run::start(&both(&office, &standby), &["--group", "g", "--session-timeout", "3s"]);
    run.wait_for_log("in epoch", 1, PATIENCE);
    let publishers = Publishers::start(&office.cluster, 3).await;
    run.wait_for(100, PATIENCE);
    block_in_place(|| {
        wait_until("the slot is on the standby", Duration::from_secs(120), || {
            let sql =
                "SELECT 1 FROM pg_replication_slots WHERE synced AND NOT temporary AND invalidation_reason IS NULL";
            (standby.psql("postgres", sql) == "1").then_some(())
        });
    });
    let before = run.count();
    run.wait_for(before + 200, PATIENCE);
    block_in_place(|| kill(&office));
    publishers.stop().await;
    run.wait_for_log("cannot connect yet", 1, PATIENCE);
    run.signal(Signal::STOP);
    promote(&standby);
    let seek = "SELECT postbox.seek_consumer_group('g', 'latest')";
    let error = standby.psql_result("postgres", seek).expect_err("no member has been there");
    assert!(error.contains("the next member takes note of: postbox run --group g"), "{error}");
    run.signal(Signal::CONT);
    run.wait_for_log("in epoch", 2, PATIENCE);
    standby.psql("postgres", "INSERT INTO orders (type, key, payload) VALUES ('b:1', 'b', '{}')");
    let stored = stored(&standby);
    run.wait_until("everything", PATIENCE, |lines| names(lines).is_superset(&stored));
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let again = assert_came(&ended.lines, &stored);
    println!("{} events, {again} came again, no phantoms", stored.len());
    assert!(!ended.log.contains("recovered"), "{}", ended.log);
    assert_eq!(standby.psql("postgres", "SELECT subject FROM postbox.audit WHERE action = 'failover'"), "g");
}

/// A standby that has everything: nothing comes that the checkpoint shows.
#[test]
fn a_planned_switch_costs_what_came_since_the_checkpoint() {
    let office = primary();
    office.create("latest");
    let standby = office.cluster.standby_with(&[("primary_slot_name", "to_standby")]);
    office.publish("a", 1, 30);
    let before = office.deliver();
    office.publish("a", 31, 60);
    caught_up(&office, &standby);
    office.cluster.stop(Stop::Fast);
    promote(&standby);
    let (code, said) = super::group(&standby, &["recover", "g"]);
    assert_eq!(code, 0, "{said}");
    let after = super::run(&standby, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!(after.code, Some(0), "{}", after.log);
    assert_eq!(assert_came(&[before, after.lines].concat(), &stored(&standby)), 0);
}

/// A consumer of the library goes on in the same process, on a server whose log is behind the one that it knew.
async fn library(recover: bool) {
    let office = primary();
    let standby = office.cluster.standby_with(&[
        ("primary_slot_name", "to_standby"),
        if recover { ("wal_receiver_status_interval", "1s") } else { ("sync_replication_slots", "on") },
    ]);
    let failover = !recover;
    office.psql(&format!("SELECT postbox.create_consumer_group('g', '{{orders}}', failover => {failover})"));
    let builder = Consumer::builder(both(&office, &standby)).group("g").recover(recover);
    let mut events = builder.session_timeout(Duration::from_secs(2)).connect().await.expect("a member");
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time");
        let event = next.expect("an event").expect("no error").ack();
        (event.event_type.to_string(), event.commit_lsn, events.positions())
    };
    office.publish("a", 1, 10);
    while next().await.0 != "a:10" {}
    block_in_place(|| {
        caught_up(&office, &standby);
        if failover {
            let synced = "SELECT 1 FROM pg_replication_slots WHERE synced AND NOT temporary";
            wait_until("the slot is on the standby", Duration::from_secs(120), || {
                (standby.psql("postgres", synced) == "1").then_some(())
            });
        }
        standby.stop(Stop::Fast);
        office
            .psql("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) FROM generate_series(1, 20)");
        office.publish("ahead", 1, 5);
    });
    let (mut name, mut ahead, mut positions) = next().await;
    while name != "ahead:5" {
        (name, ahead, positions) = next().await;
    }
    assert!(positions.durable > Lsn(0), "{positions:?}");
    block_in_place(|| {
        kill(&office);
        standby.start_again();
        promote(&standby);
        for n in 1..=3 {
            standby.psql("postgres", &format!("INSERT INTO orders (type, key, payload) VALUES ('b:{n}', 'b', '{{}}')"));
        }
    });
    let mut came = Vec::new();
    while came.last().is_none_or(|name| name != "b:3") {
        let (name, lsn, positions) = next().await;
        assert!(lsn < ahead && positions.durable < ahead, "a position of the old server: {positions:?}");
        came.push(name);
    }
    let stored = stored(&standby);
    assert!(came.iter().all(|name| stored.contains(name)), "{came:?}");
    let new: Vec<_> = came.iter().filter(|name| name.starts_with('b')).collect();
    assert_eq!(new, ["b:1", "b:2", "b:3"], "{came:?}");
    events.close().await.expect("in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_of_the_library_that_may_recover_goes_on_after_a_promotion() {
    library(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_of_the_library_goes_on_with_its_failover_slot() {
    if major() >= 17 {
        library(false).await;
    }
}

/// The standby was promoted before it had the slot: as without failover slots, and the new one is kept on standbys again.
#[test]
fn a_failover_slot_that_had_not_come_along_is_recovered() {
    if major() < 17 {
        return;
    }
    let office = primary();
    let standby = office.cluster.standby_with(&[("primary_slot_name", "to_standby")]);
    office.psql("SELECT postbox.create_consumer_group('g', '{orders}', failover => true)");
    office.publish("a", 1, 30);
    let before = office.deliver();
    office.publish("a", 31, 60);
    caught_up(&office, &standby);
    kill(&office);
    promote(&standby);
    standby.psql("postgres", "INSERT INTO orders (type, key, payload) VALUES ('b:1', 'b', '{}')");
    let refused = super::run(&standby, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!((refused.code, refused.lines.len()), (Some(4), 0), "{}", refused.log);
    assert!(refused.log.contains("postbox group recover g"), "{}", refused.log);
    let (code, said) = super::group(&standby, &["recover", "g"]);
    assert_eq!(code, 0, "{said}");
    let after = super::run(&standby, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!(after.code, Some(0), "{}", after.log);
    assert_came(&[before, after.lines].concat(), &stored(&standby));
    assert_eq!(standby.psql("postgres", "SELECT failover FROM pg_replication_slots WHERE plugin = 'postbox'"), "t");
}

/// Nobody has asked for a server that takes writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_waited_out_by_who_was_there_before_and_refused_at_the_start() {
    let office = primary();
    office.psql("SELECT postbox.create_inbox('box')");
    office.create("latest");
    let standby = office.cluster.standby_with(&[("primary_slot_name", "to_standby")]);
    let conninfo = both(&office, &standby).replace("target_session_attrs=read-write", "");
    let work = |arguments: &[&str]| {
        let mut command = std::process::Command::new(postbox_tests::postbox_binary());
        command.args(["-d", &conninfo, "inbox", "work", "box", "--exec", "true"]).args(arguments);
        command.env("RUST_LOG", "info").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("postbox starts")
    };
    block_in_place(|| {
        let mut member = Run::start(&conninfo, &["--group", "g", "--recover", "--session-timeout", "3s"]);
        member.wait_for_log("in epoch", 1, PATIENCE);
        let worker = work(&[]);
        // Not an earlier look of this kind that is just leaving.
        let working =
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%postbox.\\_claim(%' AND application_name <> 'psql'";
        wait_until("the worker works", PATIENCE, || (office.psql(working) == "1").then_some(()));
        office.publish("a", 1, 10);
        member.wait_for(10, PATIENCE);
        caught_up(&office, &standby);
        kill(&office);
        member.wait_for_log("read-only transaction", 1, PATIENCE);

        let ended = Run::start(&conninfo, &["--group", "g"]).end(PATIENCE);
        assert_eq!(ended.code, Some(3), "{}", ended.log);
        assert!(ended.log.contains("target_session_attrs=read-write"), "{}", ended.log);
        let ended = work(&[]).wait_with_output().expect("an end");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(3), "{said}");
        assert!(said.contains("target_session_attrs=read-write"), "{said}");

        promote(&standby);
        standby.psql("postgres", &super::insert("b:1", 10));
        member.wait_until("what came after the promotion", PATIENCE, |lines| names(lines).contains("b:1"));
        assert_eq!(member.terminate(PATIENCE).code, Some(0));
        standby.psql("postgres", "INSERT INTO box (event_id, event_type, payload) VALUES ('m', 'paid', '{}')");
        wait_until("the worker goes on", PATIENCE, || {
            (standby.psql("postgres", "SELECT count(*) FROM postbox.inbox_batch") == "0").then_some(())
        });
        let worker_pid = Pid::from_raw(worker.id().cast_signed()).expect("a process");
        kill_process(worker_pid, Signal::TERM).expect("a worker");
        let ended = worker.wait_with_output().expect("an end");
        assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    });
}
