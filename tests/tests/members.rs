//! Members of a group: one delivers, the others stand by; whatever happens to one, another goes on.

use std::time::{Duration, Instant};

use postbox::{Consumer, ErrorKind};
use postbox_tests::{Cluster, Line, Run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::block_in_place;

use crate::shop::PATIENCE;

/// A cluster with the group `g` on the outbox `orders`.
struct Team {
    cluster: Cluster,
}

impl Team {
    fn open() -> Self {
        let cluster = Cluster::with_postbox();
        cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
        cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
        Self { cluster }
    }

    fn psql(&self, sql: &str) -> String {
        self.cluster.psql("postgres", sql)
    }

    fn member(&self, name: &str, arguments: &[&str]) -> Run {
        let common = ["--group", "g", "--member", name, "--session-timeout", "2s", "--no-maintenance"];
        Run::start(&self.cluster.conninfo("postgres"), &[&common, arguments].concat())
    }

    /// A member that delivers.
    fn active(&self, name: &str, arguments: &[&str]) -> Run {
        let mut member = self.member(name, arguments);
        member.wait_for_log("active member of group", 1, PATIENCE);
        member
    }

    /// A member that stands by.
    fn standby(&self, name: &str) -> Run {
        let mut member = self.member(name, &[]);
        member.wait_for_log("standing by", 1, PATIENCE);
        member
    }

    fn publish(&self, events: usize) {
        self.psql(&format!("SELECT count(postbox.publish('orders', 't', '{{}}')) FROM generate_series(1, {events})"));
    }

    /// Holds what was delivered against what is stored: everything at least once. The result is how many came again.
    fn check(&self, lines: &[Line]) -> usize {
        let stored = self.psql("SELECT event_id FROM orders");
        for id in stored.lines() {
            assert!(lines.iter().any(|line| line.event_id.to_string() == id), "{id} was lost");
        }
        lines.len() - stored.lines().count()
    }
}

/// Kills a member with events on the way, and publishes another one: how long it takes until the other delivers that.
fn take_over(team: &Team, one: Run, two: &mut Run) -> (Duration, Vec<Line>) {
    team.publish(1);
    let killed = one.kill();
    let begin = Instant::now();
    let newest = team.psql("SELECT postbox.publish('orders', 't', '{}')");
    two.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_id.to_string() == newest));
    (begin.elapsed(), killed.lines)
}

/// A transaction that stays open holds the position back from which the next member has to decode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_costs_the_decoding_from_where_an_open_writer_holds_the_slot() {
    let team = Team::open();
    team.psql("CREATE TABLE noise (t text)");
    let writer = team.cluster.client("postgres").await;
    writer
        .batch_execute(
            "SET application_name = 'importer'; BEGIN; INSERT INTO orders (type, payload) VALUES ('late', '{}')",
        )
        .await
        .expect("a writer");
    let (took, mut two, killed) = tokio::task::block_in_place(|| {
        let mut one = team.active("one", &[]);
        let mut two = team.standby("two");
        team.publish(100);
        one.wait_for(100, PATIENCE);
        team.psql("CHECKPOINT; INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 30000); CHECKPOINT");
        let lag = "SELECT restart_lag_bytes > 30000000, restart_holder FROM postbox.consumer_lag";
        let lag = team.psql(lag);
        assert!(lag.starts_with("t|process ") && lag.contains("(importer), open for"), "{lag}");
        wait_until("the group has confirmed the rest", PATIENCE, || {
            let described = team.psql("SELECT postbox.describe_consumer_group('g')");
            (described.contains("held back by process") && described.contains("(importer)")).then_some(())
        });
        let (took, killed) = take_over(&team, one, &mut two);
        (took, two, killed)
    });
    // 30 MB are decoded in a fraction of a second where nothing else runs.
    println!("the other delivered after {took:?}");
    assert!(took < Duration::from_secs(6), "took {took:?}");
    writer.batch_execute("COMMIT").await.expect("committed");
    tokio::task::block_in_place(|| {
        two.wait_until("what was held", PATIENCE, |lines| lines.iter().any(|line| line.event_type == "late"));
        let ended = two.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        team.check(&[killed, ended.lines].concat());
    });
}

#[test]
fn a_standby_delivers_within_a_second_after_the_active_member_was_killed() {
    let team = Team::open();
    let mut one = team.active("one", &[]);
    let mut two = team.standby("two");
    team.publish(100);
    one.wait_for(100, PATIENCE);
    let mut lines = Vec::new();
    let mut times = Vec::new();
    // Other work of the machine may hold one of them up.
    for round in 0..4 {
        let (took, killed) = take_over(&team, one, &mut two);
        times.push(took);
        lines.extend(killed);
        one = two;
        two = team.standby(&format!("three{round}"));
    }
    println!("the next one delivered after {times:?}");
    let quick = times.iter().filter(|took| **took < Duration::from_secs(1)).count();
    assert!(quick >= 3, "took {times:?}");
    assert_eq!(two.terminate(PATIENCE).code, Some(0));
    let ended = one.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("taking over from three1, which did not leave in order"), "{}", ended.log);
    team.check(&[lines, ended.lines].concat());
    let log = team.cluster.log();
    assert!(!log.contains("is active for PID"), "a standby does not try the slot: {log}");
}

#[test]
fn of_eight_members_exactly_one_takes_over_each_time_and_none_tries_the_slot() {
    let team = Team::open();
    let mut members = vec![team.active("first", &[])];
    members.extend((2..=8).map(|number| team.standby(&format!("member{number}"))));
    let mut lines = Vec::new();
    for kills in 1..=6 {
        team.publish(10);
        let active = members.iter().position(|member| member.log().contains("active member of group")).expect("one");
        lines.extend(members.swap_remove(active).kill().lines);
        let newest = team.psql("SELECT postbox.publish('orders', 't', '{}')");
        let has = |member: &&Run| member.lines().iter().any(|line| line.event_id.to_string() == newest);
        wait_until("the last event", PATIENCE, || members.iter().any(|member| has(&member)).then_some(()));
        // Had two been active, both would have come after the one that was killed.
        let activated = members.iter().filter(|member| member.log().contains("active member of group")).count();
        assert_eq!((activated, members.iter().filter(has).count()), (1, 1), "after {kills} kills");
        let epoch = team.psql("SELECT epoch FROM postbox.consumer_group");
        assert_eq!(epoch, format!("{}", kills + 1), "one member for each kill");
    }
    for member in members {
        let ended = member.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        lines.extend(ended.lines);
    }
    team.check(&lines);
    let log = team.cluster.log();
    assert!(!log.contains("is active for PID"), "a standby does not try the slot: {log}");
}

#[test]
fn a_frozen_member_is_replaced_and_delivers_nothing_when_it_thaws() {
    let team = Team::open();
    let mut one = team.active("one", &[]);
    let mut two = team.standby("two");
    team.publish(10);
    one.wait_for(10, PATIENCE);
    one.signal(Signal::STOP);
    let frozen = Instant::now();
    team.publish(10);
    two.wait_for(10, PATIENCE);
    let took = frozen.elapsed();
    // Two sessions run out, each after two seconds; the rest is the machine's.
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(8), "took {took:?}");
    let before = one.count();
    one.signal(Signal::CONT);
    // It comes back as a standby, and has delivered nothing on the way.
    one.wait_for_log("standing by", 1, PATIENCE);
    assert_eq!(one.count(), before, "{}", one.log());
    team.publish(10);
    two.wait_for(20, PATIENCE);
    let killed = two.kill();
    team.publish(10);
    let newest = team.psql("SELECT event_id FROM orders ORDER BY seq DESC LIMIT 1");
    one.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_id.to_string() == newest));
    let ended = one.terminate(PATIENCE);
    team.check(&[killed.lines, ended.lines].concat());
}

#[test]
fn a_paused_group_leaves_its_slot_and_goes_on_where_it_was() {
    let team = Team::open();
    let mut one = team.active("one", &[]);
    team.publish(10);
    one.wait_for(10, PATIENCE);
    assert_eq!(team.psql("SELECT postbox.pause_consumer_group('g')"), "t");
    assert_eq!(team.psql("SELECT postbox.pause_consumer_group('g')"), "f");
    one.wait_for_log("is paused: waiting", 1, PATIENCE);
    wait_until("the slot is free", PATIENCE, || {
        (team.psql("SELECT active FROM pg_replication_slots") == "f").then_some(())
    });
    team.publish(10);
    let status = "SELECT role, paused_at IS NOT NULL, healthy FROM postbox.consumer_status";
    assert_eq!(team.psql(status), "standby|t|t");
    assert_eq!(one.count(), 10);
    assert_eq!(team.psql("SELECT postbox.resume_consumer_group('g')"), "t");
    one.wait_for(20, PATIENCE);
    let ended = one.terminate(PATIENCE);
    assert_eq!((ended.code, team.check(&ended.lines)), (Some(0), 0), "{}", ended.log);
    let audit = "SELECT string_agg(action, ',' ORDER BY at) FROM postbox.audit WHERE subject = 'g'";
    assert_eq!(team.psql(audit), "pause,resume");
}

/// What is under way when the group is paused comes to its end, and does not come again.
#[test]
fn a_pause_waits_for_what_is_under_way() {
    let team = Team::open();
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().to_str().expect("a plain path");
    let command =
        format!("echo begun >> {path}/log; until [ -e {path}/go ]; do sleep 0.01; done; echo ended >> {path}/log");
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    let mut one = team.active("one", &["--sink", "exec", "--exec", &command]);
    team.publish(1);
    team.publish(1);
    wait_until("the first is under way", PATIENCE, || (log() == "begun\n").then_some(()));
    team.psql("SELECT postbox.pause_consumer_group('g')");
    // It has noticed when it does not ask any more.
    let asked = "SELECT state_change < clock_timestamp() - interval '1 second' FROM pg_stat_activity WHERE application_name = 'postbox:g:one' AND query LIKE '%_beat%'";
    wait_until("the pause is noticed", PATIENCE, || (team.psql(asked) == "t").then_some(()));
    std::fs::write(dir.path().join("go"), "").expect("a file");
    one.wait_for_log("is paused: waiting", 1, PATIENCE);
    assert_eq!(log(), "begun\nended\n");
    team.psql("SELECT postbox.resume_consumer_group('g')");
    wait_until("the second is delivered", PATIENCE, || (log() == "begun\nended\n".repeat(2)).then_some(()));
    assert_eq!(one.terminate(PATIENCE).code, Some(0));
}

/// A person looks at dead letters in a transaction of his own, or has changed the group and not committed yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_who_has_the_group_locked_does_not_take_its_place_away() {
    let team = Team::open();
    let person = team.cluster.client("postgres").await;
    let execute = async |sql: &str| person.batch_execute(sql).await.expect(sql);
    execute("BEGIN; SELECT postbox.discard_dead_letters('g', every => true, dry_run => true)").await;
    let mut one = block_in_place(|| {
        let checkpoint = || team.psql("SELECT lsn FROM postbox.checkpoint");
        let first = checkpoint();
        let mut one = team.active("one", &[]);
        team.publish(10);
        one.wait_for(10, PATIENCE);
        wait_until("a checkpoint", PATIENCE, || (checkpoint() != first).then_some(()));
        one
    });
    // From here on the member cannot write another one.
    execute("SELECT postbox.discard_dead_letters('g', every => true)").await;
    let (killed, mut two) = block_in_place(|| {
        team.publish(10);
        let refused = || team.cluster.log().matches("canceling statement due to lock timeout").count();
        wait_until("it has waited twice", PATIENCE, || (refused() >= 2).then_some(()));
        team.publish(10);
        one.wait_for(30, PATIENCE);
        assert!(!one.log().contains("lost the place"), "{}", one.log());
        // Nor can another one take the place, which is no end of it.
        let killed = one.kill();
        let mut two = team.member("two", &[]);
        two.wait_for_log("cannot take the place yet", 1, PATIENCE);
        (killed, two)
    });
    execute("COMMIT").await;
    block_in_place(|| {
        two.wait_for_log("active member of group", 1, PATIENCE);
        team.publish(10);
        two.wait_until("what came last", PATIENCE, |lines| lines.len() >= 10);
        let ended = two.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        team.check(&[killed.lines, ended.lines].concat());
    });
}

/// A member that gives out stored events does not read its slot, and has the group all the same.
#[test]
fn a_group_is_not_dropped_under_a_member_that_gives_out_stored_events() {
    let team = Team::open();
    team.psql(
        "INSERT INTO orders (type, payload) SELECT 't', to_jsonb(repeat('x', 10000)) FROM generate_series(1, 5000)",
    );
    team.psql("SELECT postbox.create_consumer_group('h', '{orders}', 'earliest')");
    let arguments = ["--group", "h", "--no-maintenance"];
    let member = Run::start_held(&team.cluster.conninfo("postgres"), &arguments);
    wait_until("it prints", PATIENCE, || (member.unread() > 0).then_some(()));
    assert_eq!(team.psql("SELECT active FROM pg_replication_slots WHERE slot_name LIKE '%\\_h'"), "f");
    let refused =
        team.cluster.psql_result("postgres", "\\set VERBOSITY verbose\nSELECT postbox.drop_consumer_group('h')");
    let refused = refused.expect_err("it is in use");
    assert!(refused.contains("55006") && refused.contains("its active member"), "{refused}");
    member.kill();
    wait_until("its session is gone", PATIENCE, || {
        team.cluster.psql_result("postgres", "SELECT postbox.drop_consumer_group('h')").is_ok().then_some(())
    });
}

#[test]
fn a_member_that_loses_its_control_session_stands_by_and_comes_back() {
    let team = Team::open();
    let mut one = team.active("one", &[]);
    team.publish(10);
    one.wait_for(10, PATIENCE);
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'postbox:g:one'";
    assert_eq!(team.psql(terminate), "t");
    one.wait_for_log("active member of group", 2, PATIENCE);
    assert_eq!(one.log().matches("lost the place in group g: ").count(), 1, "{}", one.log());
    team.publish(10);
    one.wait_for(20, PATIENCE);
    let ended = one.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    team.check(&ended.lines);
}

/// A session that is stopped answers nothing and ends nothing, as a machine that has lost its power.
#[test]
fn a_standby_whose_server_does_not_answer_connects_again() {
    let team = Team::open();
    let one = team.active("one", &[]);
    let mut two = team.standby("two");
    let session = "SELECT pid FROM pg_stat_activity WHERE application_name = 'postbox:g:two'";
    let session = Pid::from_raw(team.psql(session).parse().expect("a pid")).expect("a process");
    kill_process(session, Signal::STOP).expect("stopped");
    two.wait_for_log("the server does not answer", 1, PATIENCE);
    two.wait_for_log("standing by", 2, PATIENCE);
    kill_process(session, Signal::CONT).expect("it goes on");
    take_over(&team, one, &mut two);
}

#[test]
fn members_wait_until_a_crashed_server_is_back() {
    let team = Team::open();
    let mut one = team.active("one", &[]);
    let two = team.standby("two");
    team.publish(10);
    one.wait_for(10, PATIENCE);
    team.cluster.restart(postbox_tests::Stop::Immediate);
    team.publish(10);
    let last = team.psql("SELECT event_id FROM orders ORDER BY seq DESC LIMIT 1");
    wait_until("one of them delivers the last event", PATIENCE, || {
        let lines = [one.lines(), two.lines()].concat();
        lines.iter().any(|line| line.event_id.to_string() == last).then_some(())
    });
    wait_until("the other stands by", PATIENCE, || {
        let sql = "SELECT count(*) FILTER (WHERE role = 'active'), count(*) FILTER (WHERE role = 'standby') \
                   FROM postbox.consumer_status";
        (team.psql(sql) == "1|1").then_some(())
    });
    one.signal(Signal::TERM);
    two.signal(Signal::TERM);
    let (one, two) = (one.end(PATIENCE), two.end(PATIENCE));
    assert_eq!((one.code, two.code), (Some(0), Some(0)), "{}\n{}", one.log, two.log);
    team.check(&[one.lines, two.lines].concat());
}

#[test]
fn a_checkpoint_says_what_the_group_has_dealt_with() {
    let team = Team::open();
    let made = team.psql("SELECT lsn, snapshot FROM postbox.checkpoint");
    let mut one = team.active("one", &[]);
    team.publish(10);
    one.wait_for(10, PATIENCE);
    let known = wait_until("another checkpoint", PATIENCE, || {
        Some(team.psql("SELECT lsn, snapshot FROM postbox.checkpoint")).filter(|known| *known != made)
    });
    // The ten are visible in it, and it lies below what the slot has confirmed.
    let counts = "SELECT count(*) FROM orders o, postbox.checkpoint c, postbox.consumer_groups g \
                  WHERE pg_visible_in_snapshot(o.xid, c.snapshot) AND c.lsn <= g.confirmed_flush_lsn";
    assert_eq!(team.psql(counts), "10", "{known}");
    one.kill();
}

#[test]
fn what_a_former_member_writes_is_refused() {
    let team = Team::open();
    let activate = "SELECT epoch, former FROM postbox._activate('g', 'me', '10 s', '1 min')";
    assert_eq!(team.psql(activate), "1|");
    assert_eq!(team.psql(activate), "2|me");
    let known = team.psql("SELECT lsn FROM postbox.checkpoint");
    for call in [
        "postbox._checkpoint('g', 1, pg_current_snapshot(), pg_current_wal_lsn())",
        "postbox._backfilled('g', 1, 'orders'::regclass::oid, 5, true)",
        "postbox._store_dead_letters('g', 1, false, '{public.orders}', '{a}', '{a}', '{1}', '{k}', '{t}', '{1}', '{0/1}', '{0}', '{now}', '{a}',
             '{failed}', '{1}', '{timeout}', '{now}', '{0}')",
    ] {
        let error = team.cluster.psql_result("postgres", &format!("SELECT {call}")).unwrap_err();
        assert!(error.contains("member of epoch 1 of consumer group \"g\" has been replaced"), "{error}");
    }
    assert_eq!(team.psql("SELECT lsn FROM postbox.checkpoint"), known);
    assert_eq!(team.psql("SELECT count(*) FROM postbox.dead_letter"), "0");
    team.psql("SELECT postbox._release('g', 1, '0/0')");
    assert_eq!(team.psql("SELECT released_at FROM postbox.consumer_group"), "", "released by a former member");
    team.psql("SELECT postbox._release('g', 2, '0/0')");
    assert_eq!(team.psql(activate), "3|");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_the_library_stands_by_for_another_term() {
    let team = Team::open();
    let conninfo = team.cluster.conninfo("postgres");
    let builder = Consumer::builder(conninfo).group("g").session_timeout(Duration::from_secs(2));
    let mut events = builder.clone().connect().await.expect("the first member");
    team.publish(1);
    let first = events.next().await.expect("an event").expect("no error");
    let unacknowledged = first.id.clone();
    team.psql("SELECT postbox.pause_consumer_group('g')");
    wait_until("the slot is free", PATIENCE, || {
        (team.psql("SELECT active FROM pg_replication_slots") == "f").then_some(())
    });
    team.psql("SELECT postbox.resume_consumer_group('g')");
    let again = events.next().await.expect("an event").expect("no error");
    assert_eq!(again.id, unacknowledged, "it had not been acknowledged");
    // The acknowledgement of the former term counts for nothing, that of this one does.
    first.ack();
    again.ack();
    events.close().await.expect("in order");
    team.publish(1);
    let mut events = builder.connect().await.expect("again");
    let next = events.next().await.expect("an event").expect("no error");
    assert_ne!(next.id, unacknowledged);
    next.ack();
    events.close().await.expect("in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_the_library_that_never_acknowledges_gives_up_its_place() {
    let team = Team::open();
    let builder = Consumer::builder(team.cluster.conninfo("postgres")).group("g");
    let builder = builder.max_processing(Duration::from_millis(500));
    let mut events = builder.clone().connect().await.expect("a member");
    team.publish(3);
    let held = events.next().await.expect("an event").expect("no error");
    let two = tokio::task::block_in_place(|| team.standby("two"));
    for _ in 0..2 {
        events.next().await.expect("another").expect("no error yet").ack();
    }
    let error = events.next().await.expect("an error before the end").expect_err("one is held");
    assert_eq!(error.kind(), ErrorKind::Stuck, "{error}");
    assert!(error.to_string().contains("for 500ms (max_processing)"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("raise max_processing")), "{error:?}");
    assert!(events.next().await.is_none());
    // Too late: the event is another's now.
    let id = held.ack().id.expect("an id").to_string();
    tokio::task::block_in_place(|| {
        let mut two = two;
        two.wait_for(3, PATIENCE);
        assert!(two.lines().iter().any(|line| line.event_id.to_string() == id), "{:?}", two.lines());
        assert_eq!(two.terminate(PATIENCE).code, Some(0));
    });
}

#[test]
fn a_member_whose_reader_hangs_gives_up_its_place_and_writes_nothing_after() {
    let team = Team::open();
    let common = ["--group", "g", "--member", "one", "--max-processing", "1s", "--no-maintenance"];
    let one = Run::start_held(&team.cluster.conninfo("postgres"), &common);
    wait_until("it is active", PATIENCE, || one.log().contains("active member of group").then_some(()));
    let mut two = team.standby("two");
    team.psql(
        "INSERT INTO orders (type, payload) SELECT 't', jsonb_build_object('filler', repeat('x', 1000)) FROM generate_series(1, 500)",
    );
    wait_until("the pipe is full", PATIENCE, || (one.unread() > 32 << 10).then_some(()));
    two.wait_for(1, PATIENCE);
    let written = one.unread();
    two.wait_for(500, PATIENCE);
    assert_eq!(one.unread(), written, "written while another member was active");
    assert!(one.log().contains("for 1s (--max-processing)"), "{}", one.log());
    let one = one.end(PATIENCE);
    assert_eq!(one.code, Some(6), "{}", one.log);
    assert!(one.lines.len() < 100, "{} lines", one.lines.len());
    let two = two.terminate(PATIENCE);
    assert_eq!(two.code, Some(0), "{}", two.log);
    team.check(&two.lines);
}

#[tokio::test]
async fn a_group_that_does_not_exist_is_an_error_at_once() {
    let team = Team::open();
    let error = Consumer::builder(team.cluster.conninfo("postgres")).group("other").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GroupMissing, "{error}");
    let ended = Run::start(&team.cluster.conninfo("postgres"), &["--group", "other"]).end(PATIENCE);
    assert_eq!(ended.code, Some(4), "{}", ended.log);
    let ended = team.member("one", &["--session-timeout", "10ms"]).end(PATIENCE);
    assert_eq!(ended.code, Some(2), "{}", ended.log);
}

#[test]
fn describe_says_who_does_what() {
    let team = Team::open();
    let one = team.active("one", &[]);
    let _two = team.standby("two");
    team.psql(
        "SELECT postbox.set_retention('orders', '0'); INSERT INTO orders (type, payload) VALUES ('t', '{}');
         SELECT setval('orders_seq_seq', (1 << 20) + 1); INSERT INTO orders (type, payload) VALUES ('t', '{}');
         SELECT postbox.maintain(true)",
    );
    let mut postbox = std::process::Command::new(postbox_tests::postbox_binary());
    let conninfo = team.cluster.conninfo("postgres");
    let output = postbox.args(["group", "describe", "g", "--database", &conninfo]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let expires = team.psql("SELECT to_char(expires_at, 'YYYY-MM-DD HH24:MI') FROM postbox.active_leases");
    for part in [
        &format!("lease until {expires}"),
        "Restart lag:   ",
        "Pinned:        public.orders by consumer group g, which had dealt with everything until ",
        "Group:         g",
        "public.orders",
        "active",
        "Checkpoint:",
        "Dead letters:  0",
        "one, active, process",
        "two, standby",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    drop(one);
}

#[test]
fn several_groups_are_delivered_by_one_process() {
    let team = Team::open();
    team.psql("SELECT postbox.create_consumer_group('h', '{orders}')");
    let folder = tempfile::tempdir().expect("a folder");
    let (file, log) = (folder.path().join("postbox.toml"), folder.path().join("log"));
    let text = format!(
        "[[run]]\ngroup = 'g'\nexit-when-idle = '1s'\n\n\
         [[run]]\ngroup = 'h'\nexit-when-idle = '1s'\nsink = 'exec'\nexec = 'cat >> {}'\nconcurrency = 2\n",
        log.display()
    );
    std::fs::write(&file, text).expect("a file");
    team.publish(10);
    let serve = || {
        let mut postbox = std::process::Command::new(postbox_tests::postbox_binary());
        postbox
            .arg("serve")
            .arg(&file)
            .args(["--database", &team.cluster.conninfo("postgres")])
            .output()
            .expect("it runs")
    };
    let output = serve();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).expect("text").lines().count(), 10);
    assert_eq!(std::fs::read_to_string(&log).expect("a log").lines().count(), 10);

    std::fs::write(&file, "[[run]]\ngroup = 'g'\n[[run]]\ngroup = 'other'\n").expect("a file");
    let output = serve();
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{says}");
    assert!(says.contains("there is no consumer group \"other\""), "{says}");
}
