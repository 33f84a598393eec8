//! Events that came by logical replication: with the others, or left out where asked.

use std::process::Command;

use postbox_tests::tap::{deliver, make_slot, peek, prepare};
use postbox_tests::{Cluster, major, postbox_binary, skip, wait_until};
use serde_json::Value;

use crate::docs::spans;
use crate::shop::PATIENCE;

/// A cluster with three events in the outbox `fence`: `here`, `there`, which came from elsewhere, and `here again`. The group `g` and
/// the slots `s` and `t` were made before.
fn with_events() -> Cluster {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    for slot in ["s", "t"] {
        make_slot(&cluster, "postgres", slot);
    }
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{fence}')");
    cluster.psql(
        "postgres",
        "SELECT pg_replication_origin_create('elsewhere'); INSERT INTO fence (type) VALUES ('here');
         SELECT pg_replication_origin_session_setup('elsewhere'); INSERT INTO fence (type) VALUES ('there');
         SELECT pg_replication_origin_session_reset(); INSERT INTO fence (type) VALUES ('here again')",
    );
    cluster
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

/// What the binary says when it refuses to run with these arguments.
fn refusal(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = Command::new(postbox_binary())
        .args(["run", "--exit-when-idle", "300ms", "-d", &cluster.conninfo("postgres")])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

const ALL: [&str; 3] = ["here", "there", "here again"];
const LOCAL: [&str; 2] = ["here", "here again"];

#[test]
fn a_slot_gives_all_events_or_those_of_its_server() {
    let cluster = with_events();
    let run = |arguments: &[&str]| deliver(&cluster, "postgres", arguments);
    assert_eq!(types(&run(&["--slot", "s", "--origin", "any"])), ALL);
    for (option, expected) in [("any", &ALL[..]), ("none", &LOCAL)] {
        let events = peek(&cluster, "t", &format!("'origin', '{option}'")).into_iter().flat_map(|frame| frame.events);
        assert_eq!(types(&events.collect::<Vec<_>>()), expected);
    }
    let by_hand = spans("docs/operations.md", "SELECT * FROM pg_logical_slot_get_binary_changes").remove(0);
    assert_eq!(cluster.psql("postgres", &by_hand.replace("SLOT", "t")).lines().count(), 2);
    assert!(run(&["--slot", "t"]).is_empty(), "what was left out is passed");
}

#[test]
fn a_group_gives_those_of_its_server_from_the_log_alone() {
    let cluster = with_events();
    let run = |arguments: &[&str]| deliver(&cluster, "postgres", &[&["--group", "g"], arguments].concat());
    assert_eq!(types(&run(&["--origin", "none"])), LOCAL);
    assert!(run(&[]).is_empty(), "what was left out is passed");

    assert!(refusal(&cluster, &["--group", "g", "--origin", "none", "--recover"]).contains("Leave out --recover"));
    for move_it in [
        "SELECT postbox.seek_consumer_group('g', 'earliest')",
        "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_groups; INSERT INTO fence (type) VALUES ('more');
         SELECT postbox.recover_consumer_group('g')",
    ] {
        cluster.psql("postgres", move_it);
        let said = refusal(&cluster, &["--group", "g", "--origin", "none"]);
        assert!(said.contains("group g has stored events to deliver") && said.contains("seek g --to latest"), "{said}");
        let events = run(&["--origin", "any"]);
        assert!(types(&events).contains(&if move_it.contains("more") { "more" } else { "there" }), "{events:?}");
        assert!(run(&["--origin", "none"]).is_empty());
    }
}

/// The subscriber numbers what it gets by itself, as the operations guide has it publish.
#[test]
fn what_a_subscription_brings_is_delivered_and_recovered() {
    if major() < 15 {
        skip("PostgreSQL 14 publishes no single columns");
        return;
    }
    let (publisher, subscriber) = (Cluster::start(), Cluster::start());
    for cluster in [&publisher, &subscriber] {
        cluster.psql("postgres", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events')");
    }
    // The subscriber is far ahead of the publisher's numbers.
    subscriber
        .psql("postgres", "DO 'BEGIN FOR n IN 1 .. 200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END'");
    subscriber.psql("postgres", "SELECT postbox.publish('order_events', 'own', '1') FROM generate_series(1, 5)");
    subscriber.psql("postgres", "SELECT postbox.create_consumer_group('g', '{order_events}')");
    make_slot(&subscriber, "postgres", "s");
    publisher.psql("postgres", &spans("docs/operations.md", "CREATE PUBLICATION")[0]);
    let subscribe = format!(
        "CREATE SUBSCRIPTION order_events CONNECTION '{}' PUBLICATION order_events WITH (copy_data = false)",
        publisher.conninfo("postgres")
    );
    subscriber.psql("postgres", &subscribe);
    publisher.psql("postgres", "SELECT postbox.publish('order_events', 'brought', '2', 'k', '{\"h\": 1}')");
    publisher.psql("postgres", "TRUNCATE order_events; SELECT postbox.publish('order_events', 'brought', '3')");
    let count = "SELECT count(*) FROM order_events WHERE type = 'brought'";
    wait_until("the rows are brought", PATIENCE, || (subscriber.psql("postgres", count) == "2").then_some(()));
    subscriber.psql("postgres", "SELECT postbox.publish('order_events', 'own', '4')");

    assert_eq!(types(&deliver(&subscriber, "postgres", &["--slot", "s", "--origin", "none"])), ["own"]);
    // The group has got none of them when its slot is lost.
    subscriber.psql(
        "postgres",
        "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_groups; SELECT postbox.recover_consumer_group('g')",
    );
    let events = deliver(&subscriber, "postgres", &["--group", "g"]);
    assert_eq!(types(&events), ["brought", "brought", "own"]);
    assert_eq!((&events[0]["key"], &events[0]["headers"]["h"]), (&Value::from("k"), &Value::from(1)));
    let ids = |cluster: &Cluster| {
        cluster.psql("postgres", "SELECT event_id FROM order_events WHERE type = 'brought' ORDER BY seq")
    };
    assert!(ids(&subscriber).ends_with(&ids(&publisher)), "the ids are those of the publisher");
}
