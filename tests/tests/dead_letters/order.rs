//! Order, attempts, and the three policies.

use std::collections::HashMap;

use postbox_tests::Run;

use super::{GROUP, Office, SAY, insert};
use crate::shop::PATIENCE;

#[test]
fn keys_run_side_by_side_and_none_is_overtaken_by_itself_whatever_fails() {
    let office = Office::open();
    for _ in 0..30 {
        office.shop.psql(
            "INSERT INTO orders (type, key, payload) SELECT 'kept', nullif('key-' || n % 11, 'key-10'), '{}' FROM generate_series(1, 11) n",
        );
    }
    let command = r#"
        echo "begin $POSTBOX_EVENT_ID $POSTBOX_ATTEMPT" >> {dir}/log
        [ $(od -An -N1 -tu1 /dev/urandom) -lt 80 ] && exit 1
        echo "end $POSTBOX_EVENT_ID" >> {dir}/log"#;
    let run = office.exec(command, &["--concurrency", "8", "--max-attempts", "100", "--exit-when-idle", "100ms"]);
    let ended = run.end(4 * PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);

    let keys = office.shop.psql("SELECT event_id, key FROM orders");
    let keys: HashMap<&str, &str> = keys.lines().filter_map(|line| line.split_once('|')).collect();
    let committed: Vec<String> = office.shop.committed().iter().map(ToString::to_string).collect();
    let mut expected: HashMap<&str, Vec<&str>> = HashMap::new();
    for id in &committed {
        expected.entry(keys[id.as_str()]).or_default().push(id);
    }
    let log = office.log();
    let (mut ends, mut under_way, mut attempts, mut most, mut failures) =
        (HashMap::<&str, Vec<&str>>::new(), HashMap::new(), HashMap::new(), 0, 0);
    for line in &log {
        let mut words = line.split(' ');
        let (what, id, attempt) = (words.next(), words.next().expect("an id"), words.next());
        let key = keys[id];
        let lane = if key.is_empty() { id } else { key };
        if what == Some("begin") {
            let before = attempts.insert(id, attempt.expect("a number").parse::<u32>().expect("a number"));
            assert_eq!(attempts[id], before.unwrap_or(0) + 1, "attempts are counted");
            let other = under_way.insert(lane, id);
            failures += usize::from(other.is_some());
            assert!(other.is_none_or(|other| other == id), "{other:?} was overtaken by {id}");
            most = most.max(under_way.len());
        } else {
            assert_eq!(under_way.remove(lane), Some(id));
            ends.entry(key).or_default().push(id);
        }
    }
    for (key, expected) in expected {
        let mut ended = ends.remove(key).unwrap_or_default();
        let mut expected = expected;
        if key.is_empty() {
            ended.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(ended, expected, "key {key:?}");
    }
    println!("{failures} failures, at most {most} keys under way");
    assert!(failures > 50 && most > 4, "{failures} failures, at most {most} keys under way: not much of a test");
    assert_eq!(office.letters("id"), [""; 0]);
}

#[test]
fn skip_stores_the_event_after_so_many_attempts_and_its_key_goes_on() {
    let office = Office::open();
    let mut run = office.exec(SAY, &["--max-attempts", "3"]);
    office.publish("poison", "a", "first");
    office.publish("kept", "b", "other");
    office.wait_for_log(&["other"]);
    office.publish("kept", "a", "second");
    office.wait_for_log(&["other", "second"]);
    office.wait_for_letters(
        "group_name, why, outbox, key, type, attempts, error, due_at, first_failed_at <= last_failed_at, seq",
        &["billing|failed|public.orders|a|poison|3|exit status: 3: first is poison||t|1"],
    );
    // What waits holds back no WAL.
    office.wait_until_passed();
    let decoded = office.shop.psql(
        "SELECT e.event_id::text = l.event_id, e.payload, e.key, e.commit_lsn = l.commit_lsn, e.xid = l.xid, e.commit_time = l.commit_time
         FROM postbox.dead_letter l, postbox.decode(l.frame) e",
    );
    assert_eq!(decoded, r#"t|{"name": "first"}|a|t|t|t"#);

    // One more attempt, in vain, and one that succeeds.
    let redrive = ["redrive", GROUP, "--all"];
    assert_eq!(office.dead_letter(&redrive), (Some(0), "1 dead letter of billing redriven\n".into()));
    office.wait_for_letters("attempts, due_at", &["4|"]);
    office.cure();
    assert_eq!(office.dead_letter(&redrive).0, Some(0));
    office.wait_for_log(&["other", "second", "first"]);
    office.wait_for_letters("id", &[]);
    run.wait_for_log("delivered a dead letter", 1, PATIENCE);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn park_stores_the_key_behind_the_event_until_it_is_redriven() {
    let office = Office::open();
    let arguments = ["--max-attempts", "2", "--on-failure", "park", "--concurrency", "4"];
    let run = office.exec(SAY, &arguments);
    for (event_type, key, name) in
        [("poison", "a", "1"), ("kept", "a", "2"), ("poison", "a", "3"), ("kept", "a", "4"), ("kept", "b", "other")]
    {
        office.publish(event_type, key, name);
    }
    let parked = ["failed|2", "follower|0", "follower|0", "follower|0"];
    office.wait_for_letters("why, attempts", &parked);
    office.wait_for_log(&["other"]);
    office.wait_until_passed();
    assert_eq!(run.terminate(PATIENCE).code, Some(0));

    // Another member knows what is parked.
    let run = office.exec(SAY, &arguments);
    office.publish("kept", "a", "5");
    office.wait_for_letters("why, attempts", &[&parked[..], &["follower|0"]].concat());
    // The events that come meanwhile go behind those that are stored.
    let more = |from: u32| {
        for n in from..from + 20 {
            office.publish("kept", "a", &n.to_string());
        }
    };
    more(6);
    office.cure();
    let id = office.shop.psql("SELECT min(id) FROM postbox.dead_letter");
    assert_eq!(office.dead_letter(&["redrive", GROUP, &id]).0, Some(0));
    more(26);
    let all: Vec<String> = std::iter::once("other".into()).chain((1..46).map(|n: u32| n.to_string())).collect();
    office.wait_for_log(&all.iter().map(String::as_str).collect::<Vec<_>>());
    office.wait_for_letters("id", &[]);
    office.publish("kept", "a", "direct");
    office.wait_until_passed();
    assert_eq!(office.log().last().map(String::as_str), Some("direct"));
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn a_follower_that_fails_waits_in_its_turn() {
    let office = Office::open();
    let run = office.exec(SAY, &["--max-attempts", "1", "--on-failure", "park"]);
    for (event_type, name) in [("poison", "1"), ("kept", "2"), ("poison", "3"), ("kept", "4")] {
        office.publish(event_type, "a", name);
    }
    office.wait_for_letters("why", &["failed", "follower", "follower", "follower"]);
    let first = office.shop.psql("SELECT min(id) FROM postbox.dead_letter");
    assert_eq!(office.dead_letter(&["discard", GROUP, &first]).0, Some(0));
    // The second is delivered, the third fails, the fourth waits behind it.
    office.wait_for_letters("why, attempts, due_at", &["failed|1|", "follower|0|"]);
    office.wait_for_log(&["2"]);
    let third = office.shop.psql("SELECT min(id) FROM postbox.dead_letter");
    assert_eq!(office.dead_letter(&["discard", GROUP, &third]).0, Some(0));
    office.wait_for_log(&["2", "4"]);
    office.wait_for_letters("id", &[]);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn pause_tries_the_stored_event_again_by_itself() {
    let office = Office::open();
    let run = office.exec(SAY, &["--max-attempts", "2", "--on-failure", "pause"]);
    for (event_type, name) in [("poison", "1"), ("kept", "2"), ("kept", "3")] {
        office.publish(event_type, "a", name);
    }
    postbox_tests::wait_until("the stored event is tried again", PATIENCE, || {
        let attempts = office
            .shop
            .psql("SELECT attempts > 4 AND due_at IS NOT NULL FROM postbox.dead_letters WHERE why = 'failed'");
        (attempts == "t").then_some(())
    });
    office.wait_until_passed();
    assert_eq!(office.log(), [""; 0]);
    office.cure();
    office.wait_for_log(&["1", "2", "3"]);
    office.wait_for_letters("id", &[]);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn without_a_key_events_share_a_lane_only_if_told_so() {
    let office = Office::open();
    let run = office.exec(SAY, &["--max-attempts", "1", "--on-failure", "park"]);
    office.publish("poison", "", "1");
    office.publish("kept", "", "2");
    office.wait_for_log(&["2"]);
    office.wait_for_letters("why", &["failed"]);
    office.wait_until_passed();
    assert_eq!(run.terminate(PATIENCE).code, Some(0));

    let run = office.exec(SAY, &["--max-attempts", "1", "--on-failure", "park", "--keyless", "one-lane"]);
    office.publish("kept", "", "3");
    office.wait_for_letters("why", &["failed", "follower"]);
    office.cure();
    assert_eq!(office.dead_letter(&["redrive", GROUP, "--type", "poison"]).0, Some(0));
    office.wait_for_log(&["2", "1", "3"]);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn a_signal_finishes_the_transaction_that_was_begun_and_leaves_the_others() {
    let office = Office::open();
    let transaction = |range: std::ops::Range<u32>| {
        let rows: String = range.map(|n| insert("kept", "a", &n.to_string())).collect();
        office.shop.psql(&format!("BEGIN; {rows} COMMIT;"));
    };
    transaction(0..10);
    transaction(10..20);
    let command = format!("{SAY}\nwhile [ ! -e {{dir}}/go ]; do sleep 0.01; done");
    let mut run = office.exec(&command, &["--concurrency", "3"]);
    office.wait_for_log(&["0"]);
    run.signal(rustix::process::Signal::TERM);
    run.wait_for_log("stopping", 1, PATIENCE);
    std::fs::write(office.path("go"), "").expect("a file");
    let ended = run.end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let names = |range: std::ops::Range<u32>| range.map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(office.log(), names(0..10));
    let ended = office.exec(&command, &["--exit-when-idle", "100ms"]).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(office.log(), names(0..20), "came again although it was confirmed");
}

/// An event that has failed comes again at the next start, and so must all of its key that are behind it in the transaction: those
/// in hand, and those that have not been taken yet.
#[test]
fn after_a_signal_nothing_of_a_key_passes_an_event_that_has_failed() {
    let office = Office::open();
    office.shop.psql(
        "INSERT INTO orders (type, key, payload) SELECT 'kept', CASE n WHEN 2 THEN 'other' ELSE 'k' END, jsonb_build_object('n', n) \
         FROM generate_series(1, 1100) n",
    );
    let command = office.command(
        r#"n=$(sed -E 's/.*"n": ?([0-9]+).*/\1/'); echo "try $n" >> {dir}/log
        if [ "$n" = 1 ]; then while [ ! -e {dir}/go ]; do sleep 0.01; done; exit 1; fi
        echo "ok $n" >> {dir}/log"#,
    );
    let sink = ["--group", GROUP, "--sink", "exec", "--exec", &command];
    let patient = ["--retry-initial", "1d", "--retry-max", "1d", "--max-retry-time", "2d"];
    let start = || Run::start(&office.shop.conninfo(), &[&sink[..], &patient].concat());
    // Its attempt is under way.
    let mut run = start();
    office.wait_for_log(&["try 1"]);
    run.signal(rustix::process::Signal::TERM);
    run.wait_for_log("stopping", 1, PATIENCE);
    std::fs::write(office.path("go"), "").expect("a file");
    let ended = run.end(PATIENCE);
    // Another key may go on.
    let log = office.log().join(", ");
    assert_eq!((ended.code, log.strip_suffix(", try 2, ok 2").unwrap_or(&log)), (Some(0), "try 1"), "{}", ended.log);
    // It waits for another one: the next key is tried once that is known.
    std::fs::remove_file(office.path("log")).expect("removed");
    let run = start();
    office.wait_for_log(&["try 1", "try 2", "ok 2"]);
    let ended = run.terminate(PATIENCE);
    assert_eq!((ended.code, office.log().join(", ").as_str()), (Some(0), "try 1, try 2, ok 2"), "{}", ended.log);

    // Nothing of it is confirmed.
    let ended = Run::start(&office.shop.conninfo(), &["--group", GROUP, "--exit-when-idle", "100ms"]).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.lines.iter().map(|line| line.ordinal).eq(0..1100), "{} lines", ended.lines.len());
}

/// What a connection that is gone has brought comes again by the next one.
#[test]
fn what_comes_again_is_not_delivered_before_and_does_not_count() {
    let command = format!("{SAY}\nwhile [ $name = 3 ] && [ ! -e {{dir}}/go ]; do sleep 0.01; done");
    // One behind the other, or side by side.
    for keys in [1, 10] {
        let office = Office::open();
        let rows: String = (1..=10).map(|n| insert("kept", &(n % keys).to_string(), &n.to_string())).collect();
        office.shop.psql(&format!("BEGIN; {rows} COMMIT;"));
        let mut run = office.exec(&command, &["--max-events", "10"]);
        office.wait_for_log(&["1", "2", "3"]);
        let stream =
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name LIKE 'postbox%'";
        office.shop.psql(stream);
        run.wait_for_log("connected again", 1, PATIENCE);
        std::fs::write(office.path("go"), "").expect("a file");
        let ended = run.end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert_eq!(office.log(), ["1", "2", "3", "1", "2", "3", "4", "5", "6", "7"], "{keys} keys: {}", ended.log);
    }
}
