//! The letters themselves: stored before the slot passes the event, once, and what people do with them.

use postbox_tests::{Cluster, Stop, wait_until};

use super::{GROUP, Office, SAY, insert};
use crate::shop::PATIENCE;

#[test]
fn a_crash_between_storing_and_confirming_loses_nothing_and_stores_nothing_twice() {
    let office = Office::open();
    // What outlives the member must not hold its pipes. The transaction cannot be confirmed while its second event is under way.
    let command = format!(
        "exec > {{dir}}/said 2>&1\n{SAY}\n[ \"$POSTBOX_KEY\" = slow ] && while [ ! -e {{dir}}/go ]; do sleep 0.01; done; echo \"$name ended\" >> {{dir}}/log"
    );
    let arguments = ["--max-attempts", "2", "--concurrency", "2", "--on-failure", "park"];
    let run = office.exec(&command, &arguments);
    office.shop.psql(&format!("BEGIN; {} {} COMMIT;", insert("poison", "a", "1"), insert("kept", "slow", "2")));
    office.publish("kept", "a", "3");
    office.wait_for_letters("why", &["failed", "follower"]);
    office.wait_for_log(&["2"]);
    let before = office.letters("id, event_id, why, attempts");
    run.kill();

    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name ~ 'billing' AND active";
    wait_until("the slot is free", PATIENCE, || (office.shop.psql(sql) == "0").then_some(()));
    std::fs::write(office.path("go"), "").expect("a file");
    let run = office.exec(&command, &arguments);
    office.wait_until_passed();
    assert_eq!(office.letters("id, event_id, why, attempts"), before);
    assert!(office.log().contains(&"2 ended".to_owned()));
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn letters_survive_a_crash_of_the_server_whatever_the_database_says_about_synchronous_commit() {
    let office = Office::open_with(
        Cluster::builder()
            .setting("synchronous_commit", "off")
            .setting("wal_writer_delay", "10s")
            .setting("autovacuum", "off"),
    );
    let mut run = office.exec(SAY, &["--max-attempts", "1", "--on-failure", "park"]);
    for round in 1..4 {
        office.shop.psql(&format!("SET synchronous_commit = on; {}", insert("poison", &format!("k{round}"), "x")));
        let expected = vec!["failed"; round];
        office.wait_for_letters("why", &expected);
        if round == 3 {
            // Told to the server while nothing else flushed the log: what is passed must be stored.
            office.wait_until_passed();
        }
    }
    office.shop.cluster.stop(Stop::Immediate);
    office.shop.cluster.start_again();
    assert_eq!(office.letters("key, why"), ["k1|failed", "k2|failed", "k3|failed"]);
    // The member waits until the server is back, and goes on.
    run.wait_for_log("active member of group", 2, PATIENCE);
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[test]
fn an_event_that_fails_for_too_long_is_a_letter_however_often_it_may_be_tried() {
    let office = Office::open();
    let begin = std::time::Instant::now();
    let run = office.exec(SAY, &["--max-attempts", "1000000", "--max-retry-time", "700ms"]);
    office.publish("poison", "a", "1");
    office.publish("kept", "a", "2");
    office.wait_for_letters("why, key, attempts > 2", &["failed|a|t"]);
    assert!(begin.elapsed() >= std::time::Duration::from_millis(700), "after {:?}", begin.elapsed());
    wait_until("the next of the key", PATIENCE, || (office.log() == ["2"]).then_some(()));
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn unreadable_rows_go_to_the_letters_at_once() {
    let office = Office::open();
    office.shop.psql(
        "CREATE TABLE loose (event_id uuid DEFAULT gen_random_uuid(), type text, key text, payload jsonb DEFAULT '{}');
         SELECT postbox.adopt_outbox('loose'); SELECT postbox.create_consumer_group('loose', '{loose}')",
    );
    let command = office.command(r#"echo "$POSTBOX_OUTBOX $POSTBOX_TYPE" >> {dir}/log; cat >> {dir}/log"#);
    let arguments = ["--group", "loose", "--sink", "exec", "--exec", &command];
    let run = postbox_tests::Run::start(&office.shop.conninfo(), &arguments);
    office.shop.psql("INSERT INTO loose (key, type) VALUES ('a', NULL), ('a', 'whole')");
    office.wait_for_letters("why, key, type, attempts", &["unreadable|a||0"]);
    wait_until("the other one", PATIENCE, || (office.log().first()? == "public.loose whole").then_some(()));
    let error = office.letters("error").remove(0);
    assert!(error.starts_with("null: "), "{error}");
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn people_list_show_redrive_and_discard() {
    let office = Office::open();
    let run = office.exec(SAY, &["--max-attempts", "1"]);
    for n in 1..5 {
        office.publish("poison", &format!("k{n}"), &format!("name-{n}"));
    }
    office.wait_for_letters("key", &["k1", "k2", "k3", "k4"]);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
    let ids = office.letters("id");
    let id = ids[1].as_str();

    let (code, list) = office.dead_letter(&["list", GROUP]);
    assert_eq!((code, list.lines().count()), (Some(0), 5), "{list}");
    assert!(list.lines().nth(2).is_some_and(|line| line.contains("k2") && line.contains("name-2 is poison")), "{list}");
    let (_, list) =
        office.dead_letter(&["list", GROUP, "--key", "k3", "--type", "poison", "--error", "NAME-3", "--limit", "1"]);
    assert_eq!(list.lines().count(), 2, "{list}");
    let (_, list) = office.dead_letter(&["list", GROUP, "--limit", "2"]);
    assert!(list.contains("more than 2"), "{list}");
    assert_eq!(office.dead_letter(&["list", GROUP, "--older-than", "1h"]).1.lines().count(), 1);
    let (code, shown) = office.dead_letter(&["show", GROUP, id]);
    assert!(code == Some(0) && shown.contains(r#""payload":{"name": "name-2"}"#), "{shown}");

    let before = office.letters("id, due_at, attempts");
    for (arguments, code, says) in [
        (&["redrive", GROUP][..], 2, "--all means all"),
        (&["discard", GROUP], 2, "--all means all"),
        (&["discard", GROUP, "--all", "--key", "k1"], 2, "--all together with"),
        (&["discard", GROUP, id, "999"], 2, "consumer group \"billing\" has no dead letter 999"),
        (&["redrive", "nowhere", "--all"], 4, "consumer group \"nowhere\" does not exist"),
        (&["list", "nowhere"], 4, "consumer group \"nowhere\" does not exist"),
        (&["show", GROUP, "999"], 2, "no dead letter 999"),
        (&["show", "nowhere", "1"], 4, "consumer group \"nowhere\" does not exist"),
        (&["redrive", GROUP, "x"], 2, "invalid value 'x'"),
        (&["discard", GROUP, "--older-than", "1h"], 0, "0 dead letters of billing discarded"),
        (&["discard", GROUP, "--all", "--dry-run"], 0, "4 dead letters of billing would be discarded"),
        (&["redrive", GROUP, "--error", "poison", "--dry-run"], 0, "4 dead letters of billing would be redriven"),
    ] {
        let (status, said) = office.dead_letter(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert_eq!(office.letters("id, due_at, attempts"), before, "{arguments:?}");
    }
    assert_eq!(office.dead_letter(&["discard", GROUP, id]).1, "1 dead letter of billing discarded\n");
    assert_eq!(office.dead_letter(&["discard", GROUP, "--key", "k3"]).1, "1 dead letter of billing discarded\n");
    assert_eq!(office.letters("key"), ["k1", "k4"]);
    let audit = "SELECT action, subject, detail ->> 'count', detail ->> 'key' FROM postbox.audit WHERE action IN ('discard', 'redrive') ORDER BY at";
    assert_eq!(office.shop.psql(audit), "discard|billing|1|\ndiscard|billing|1|k3");

    // What is left is delivered by a member that comes later, before it ends.
    office.cure();
    assert_eq!(office.dead_letter(&["redrive", GROUP, "--all"]).0, Some(0));
    let ended = office.exec(SAY, &["--exit-when-idle", "100ms"]).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(office.log(), ["name-1", "name-4"]);
    assert_eq!(office.letters("id"), [""; 0]);
}

#[test]
fn functions_refuse_what_is_wrong_and_a_group_with_letters_is_kept() {
    let office = Office::open();
    let run = office.exec(SAY, &["--max-attempts", "1"]);
    office.publish("poison", "a", "1");
    office.wait_for_letters("key", &["a"]);
    office.wait_until_passed();
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
    for (sql, says) in [
        ("postbox.redrive_dead_letters(NULL, every => true)", "42704: consumer group NULL does not exist"),
        ("postbox.redrive_dead_letters('billing')", "22023: neither ids nor a filter"),
        ("postbox.discard_dead_letters('billing', older_than => '-1 day')", "22023: older_than -1 days is negative"),
        (
            "postbox.discard_dead_letters('billing', '{NULL}')",
            "P0002: consumer group \"billing\" has no dead letter NULL",
        ),
        (
            "postbox._delivered_dead_letter('billing', 7, 1)",
            "24000: member of epoch 7 of consumer group \"billing\" has been replaced",
        ),
        ("postbox._fail_dead_letter('billing', 7, 1, '', NULL)", "24000: member of epoch 7"),
        ("postbox._call_up_dead_letters('billing', 7)", "24000: member of epoch 7"),
        ("postbox.drop_consumer_group('billing')", "2BP01: consumer group \"billing\" has 1 dead letter, which"),
    ] {
        let error = office
            .shop
            .cluster
            .psql_result("postgres", &format!("\\set VERBOSITY verbose\nSELECT {sql}"))
            .expect_err(sql);
        assert!(error.contains(says), "{sql}: {error}");
        assert_eq!(office.letters("key"), ["a"], "{sql}");
    }
    office.shop.psql("SELECT postbox.drop_consumer_group('billing', force => true)");
    assert_eq!(office.letters("key"), [""; 0]);
    assert_eq!(office.shop.psql("SELECT detail ->> 'dead_letters' FROM postbox.audit WHERE action = 'drop'"), "1");
}

#[test]
fn long_keys_and_strange_errors_are_stored_too() {
    let office = Office::open();
    // Random, so that no compression makes it fit into an index.
    office.shop.psql(
        "CREATE TABLE wide (event_id text, type text, key text, payload jsonb DEFAULT '{}'); SELECT postbox.adopt_outbox('wide');
         SELECT postbox.create_consumer_group('wide', '{wide}')",
    );
    let command = r"printf '\377\000\303\244' >&2; exit 1";
    let arguments =
        ["--group", "wide", "--sink", "exec", "--exec", command, "--max-attempts", "1", "--on-failure", "park"];
    let run = postbox_tests::Run::start(&office.shop.conninfo(), &arguments);
    office.shop.psql(
        "INSERT INTO wide SELECT 'id-' || long.text, 't', 'key-' || long.text FROM
         (SELECT string_agg(md5(random()::text), '') AS text FROM generate_series(1, 1000)) long",
    );
    office.wait_for_letters("why, length(event_id), length(key)", &["failed|32003|32004"]);
    let error = office.letters("error").remove(0);
    assert!(error.starts_with("exit status: 1: ") && error.ends_with('ä'), "{error:?}");
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

/// An adopted table may give its ids again; what has one of them is another event.
#[test]
fn another_event_with_the_id_of_a_dead_letter_is_a_letter_of_its_own() {
    let office = Office::open();
    office.shop.psql(
        "CREATE TABLE legacy (event_id int GENERATED ALWAYS AS IDENTITY, type text, key text, payload jsonb); SELECT postbox.adopt_outbox('legacy')",
    );
    office.shop.psql("SELECT postbox.create_consumer_group('legacy', '{legacy}')");
    let mut member = postbox_tests::Run::start(
        &office.shop.conninfo(),
        &["--group", "legacy", "--sink", "exec", "--exec", "exit 1", "--max-attempts", "1"],
    );
    for name in ["first", "second"] {
        office.shop.psql(&format!(
            "TRUNCATE legacy RESTART IDENTITY; INSERT INTO legacy (type, payload) VALUES ('{name}', '{{}}')"
        ));
        member.wait_for_log("is a dead letter", if name == "first" { 1 } else { 2 }, PATIENCE);
    }
    office.wait_for_letters("event_id, type", &["1|first", "1|second"]);
    // In one transaction as well.
    office
        .shop
        .psql("INSERT INTO legacy OVERRIDING SYSTEM VALUE VALUES (7, 'third', NULL, '{}'), (7, 'fourth', NULL, '{}')");
    member.wait_for_log("is a dead letter", 4, PATIENCE);
    office.wait_for_letters("event_id, type", &["1|first", "1|second", "7|third", "7|fourth"]);
    assert_eq!(member.terminate(PATIENCE).code, Some(0));
}
