//! A group moved from one source to the other: nothing is lost, nothing is passed over.

use postbox_tests::tap::deliver;
use postbox_tests::{Cluster, Run, wait_until};

use super::{postbox, start, types};
use crate::shop::PATIENCE;

fn source(cluster: &Cluster) -> String {
    let sql = "SELECT g.source, s.plugin, count(*) OVER () FROM postbox.consumer_group g JOIN pg_replication_slots s USING (slot_name)";
    cluster.psql("postgres", sql)
}

fn refused(cluster: &Cluster, sql: &str, code: &str, message: &str) {
    let error = cluster.psql_result("postgres", &format!("\\set VERBOSITY verbose\n{sql}")).unwrap_err();
    assert!(error.contains(code) && error.contains(message) && error.contains("HINT"), "{sql}: {error}");
}

#[test]
fn there_and_back_with_events_before_between_and_after() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
    cluster.psql("postgres", "INSERT INTO orders (type) VALUES ('a'), ('b'); INSERT INTO orders (type) VALUES ('c')");
    // Nothing of it has been delivered: the position goes along.
    assert_eq!(cluster.psql("postgres", "SELECT postbox.set_source('g', 'pgoutput')"), "t");
    assert_eq!(source(&cluster), "pgoutput|pgoutput|1");
    assert_eq!(cluster.psql("postgres", "SELECT postbox.set_source('g', 'pgoutput')"), "f");
    cluster.psql("postgres", "INSERT INTO orders (type) VALUES ('d')");
    let first = deliver(&cluster, "postgres", &["--group", "g", "--max-events", "2"]);
    assert_eq!(types(&first), ["a", "b"]);
    let conninfo = cluster.conninfo("postgres");
    let output = postbox(&conninfo, &["group", "set-source", "g", "postbox"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "consumer group g has the source postbox from now on\n",
        "{output:?}"
    );
    assert_eq!(source(&cluster), "postbox|postbox|1");
    cluster.psql("postgres", "INSERT INTO orders (type) VALUES ('e')");
    assert_eq!(types(&deliver(&cluster, "postgres", &["--group", "g"])), ["c", "d", "e"]);
    let audit =
        "SELECT string_agg(detail ->> 'source', ',' ORDER BY at) FROM postbox.audit WHERE action = 'set_source'";
    assert_eq!(cluster.psql("postgres", audit), "pgoutput,postbox");
}

#[test]
fn a_running_group_is_paused_moved_and_resumed() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('others')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
    let publish = |from: u32, to: u32| {
        cluster.psql(
            "postgres",
            &format!("SELECT postbox.publish('orders', n::text, '{{}}') FROM generate_series({from}, {to}) n"),
        );
    };
    let mut member = Run::start(&cluster.conninfo("postgres"), &["--group", "g"]);
    publish(1, 100);
    member.wait_for(100, PATIENCE);
    refused(&cluster, "SELECT postbox.set_source('g', 'pgoutput')", "55006", "while member");
    for (to, source) in [(200, "pgoutput"), (300, "postbox"), (400, "pgoutput")] {
        cluster.psql("postgres", "SELECT postbox.pause_consumer_group('g')");
        publish(to - 99, to);
        wait_until("the member has left", PATIENCE, || {
            cluster.psql_result("postgres", &format!("SELECT postbox.set_source('g', '{source}')")).ok()
        });
        cluster.psql("postgres", "SELECT postbox.resume_consumer_group('g')");
        member.wait_for(to as usize, PATIENCE);
    }
    let ended = member.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let delivered = ended.lines.iter().map(|line| line.event_type.clone()).collect::<Vec<_>>();
    assert_eq!(delivered, (1..=400).map(|n| n.to_string()).collect::<Vec<_>>(), "{}", ended.log);
}

#[test]
fn what_was_published_too_late_is_waited_for() {
    let cluster = Cluster::with_postbox();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
    cluster.psql("postgres", "INSERT INTO orders (type) VALUES ('before the publication')");
    refused(&cluster, "SELECT postbox.set_source('g', 'pgoutput')", "55000", "in the publication postbox");
    cluster.psql("postgres", "SELECT postbox.enable_pgoutput(); INSERT INTO orders (type) VALUES ('after it')");
    // From where the group stands pgoutput could not read, or would pass over what it does not know as published.
    refused(&cluster, "SELECT postbox.set_source('g', 'pgoutput')", "55000", "has not come to the moment");
    assert_eq!(source(&cluster), "postbox|postbox|1");
    let sample = "SELECT count(*) FROM postbox.maintain(force => true)";
    cluster.psql("postgres", sample);
    assert_eq!(types(&deliver(&cluster, "postgres", &["--group", "g"])), ["before the publication", "after it"]);
    cluster.psql(
        "postgres",
        "SELECT postbox.set_source('g', 'pgoutput'); INSERT INTO orders (type) VALUES ('by pgoutput')",
    );
    assert_eq!(types(&deliver(&cluster, "postgres", &["--group", "g"])), ["by pgoutput"]);
}

#[test]
fn what_cannot_be_moved_stays_as_it_is() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
    refused(&cluster, "SELECT postbox.set_source('none', 'pgoutput')", "42704", "does not exist");
    refused(&cluster, "SELECT postbox.set_source('g', 'decoderbufs')", "22023", "cannot have the source");
    refused(
        &cluster,
        "BEGIN; INSERT INTO orders (type) VALUES ('t'); SELECT postbox.set_source('g', 'pgoutput')",
        "25001",
        "has written",
    );
    let slots = "SELECT string_agg(slot_name || plugin, ',') FROM pg_replication_slots";
    let before = cluster.psql("postgres", slots);
    // The slot that was copied goes when what follows fails.
    cluster
        .psql("postgres", "ALTER TABLE postbox.consumer_group ADD CONSTRAINT no_pgoutput CHECK (source <> 'pgoutput')");
    let error = cluster.psql_result("postgres", "SELECT postbox.set_source('g', 'pgoutput')").unwrap_err();
    assert!(error.contains("no_pgoutput"), "{error}");
    assert_eq!(cluster.psql("postgres", slots), before);
    cluster.psql("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_group");
    refused(&cluster, "SELECT postbox.set_source('g', 'pgoutput')", "55000", "no position to go on from");
}
