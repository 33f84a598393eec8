//! What is not the same with pgoutput, as docs/managed.md lists it.

use std::time::Duration;

use postbox::{Compression, Consumer, OutputPlugin};
use postbox_tests::tap::deliver;
use postbox_tests::{Cluster, Run, major, skip, wait_until_async};
use serde_json::{Value, json};

use super::{deliver_both, make_groups, postbox, start, types};
use crate::shop::PATIENCE;

#[test]
fn the_marker_is_that_of_now() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "CREATE TABLE box (id int, kind text, name text, payload text); SELECT postbox.adopt_outbox('box', event_id => 'id', type => 'kind')",
    );
    make_groups(&cluster, "postgres", "box");
    cluster.psql(
        "postgres",
        "INSERT INTO box VALUES (1, 'by kind', 'by name', 'p'); SELECT postbox.drop_outbox('box', force => true);
         SELECT postbox.adopt_outbox('box', event_id => 'id', type => 'name'); INSERT INTO box VALUES (2, 'by kind', 'by name', 'p')",
    );
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!(types(&plugin), ["by kind", "by name"]);
    assert_eq!(types(&pgoutput), ["by name", "by name"]);
}

/// PostgreSQL describes the root of partitions anew when a partition has changed, and renaming the root changes none.
#[test]
fn a_renamed_ring_keeps_its_name_until_the_stream_begins_anew() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    make_groups(&cluster, "postgres", "orders");
    let names = |events: &[serde_json::Value]| {
        events.iter().map(|event| event["outbox"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    cluster.psql(
        "postgres",
        "INSERT INTO orders (type) VALUES ('t'); ALTER TABLE orders RENAME TO renamed; INSERT INTO renamed (type) VALUES ('t')",
    );
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!(names(&plugin), ["public.orders", "public.renamed"]);
    assert_eq!(names(&pgoutput), ["public.orders", "public.orders"]);
    cluster.psql("postgres", "INSERT INTO renamed (type) VALUES ('t')");
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!((names(&plugin), plugin), (vec!["public.renamed".to_owned()], pgoutput));
}

/// To PostgreSQL a partition belongs to no published table any more from the moment at which its detach begins.
#[tokio::test]
async fn what_is_written_while_a_partition_is_detached_concurrently_does_not_come() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "CREATE TABLE old (event_id int, type text, payload jsonb) PARTITION BY LIST (event_id);
         CREATE TABLE leaf PARTITION OF old FOR VALUES IN (1); SELECT postbox.adopt_outbox('old')",
    );
    make_groups(&cluster, "postgres", "old");
    let (writer, detacher) = (cluster.client("postgres").await, cluster.client("postgres").await);
    writer.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM old").await.unwrap();
    let detach = "ALTER TABLE old DETACH PARTITION leaf CONCURRENTLY";
    let detaching = tokio::spawn(async move { detacher.batch_execute(detach).await });
    let pending = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = 'leaf'::regclass";
    wait_until_async("the detach is begun", Duration::from_secs(30), async || {
        (cluster.psql("postgres", pending) == "t").then_some(())
    })
    .await;
    writer.batch_execute("INSERT INTO old VALUES (1, 'meanwhile'); COMMIT").await.unwrap();
    detaching.await.unwrap().unwrap();
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!(types(&plugin), ["meanwhile"]);
    assert_eq!(types(&pgoutput), [""; 0]);
}

#[test]
fn generated_columns_come_from_postgresql_18_on() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "CREATE TABLE box (id int, type text, payload text GENERATED ALWAYS AS ('p' || type) STORED); SELECT postbox.adopt_outbox('box', event_id => 'id')",
    );
    if major() < 18 {
        let refused = cluster
            .psql_result(
                "postgres",
                "\\set VERBOSITY verbose\nSELECT postbox.create_consumer_group('g', '{box}', source => 'pgoutput')",
            )
            .unwrap_err();
        assert!(
            refused.contains("0A000") && refused.contains("column \"payload\" of outbox \"public.box\""),
            "{refused}"
        );
        return;
    }
    make_groups(&cluster, "postgres", "box");
    cluster.psql("postgres", "INSERT INTO box VALUES (1, 't')");
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!(plugin, pgoutput);
    assert_eq!(pgoutput[0]["payload"], "pt");
}

#[test]
fn what_is_not_published_is_no_outbox_of_a_group() {
    let cluster = Cluster::with_postbox();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    let create = "\\set VERBOSITY verbose\nSELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')";
    let refused = cluster.psql_result("postgres", create).unwrap_err();
    assert!(refused.contains("55000") && refused.contains("enable_pgoutput"), "{refused}");
    let no_slot = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(cluster.psql("postgres", no_slot), "0");
    assert_eq!(cluster.psql("postgres", "SELECT postbox.enable_pgoutput(), postbox.enable_pgoutput()"), "1|0");
    // What a wrong publication of that name would leave out.
    cluster.psql("postgres", "ALTER PUBLICATION postbox SET (publish = 'insert, truncate')");
    let refused =
        cluster.psql_result("postgres", "\\set VERBOSITY verbose\nSELECT postbox.enable_pgoutput()").unwrap_err();
    assert!(refused.contains("55000") && refused.contains("another purpose"), "{refused}");
    assert!(cluster.psql_result("postgres", create).unwrap_err().contains("55000"));
    cluster.psql("postgres", "ALTER PUBLICATION postbox SET (publish = 'insert')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')");

    // Taken out behind our back: the group says so rather than pass its events over.
    cluster.psql("postgres", "ALTER PUBLICATION postbox DROP TABLE orders");
    assert_eq!(cluster.psql("postgres", "SELECT missing_outboxes FROM postbox.consumer_groups"), "{public.orders}");
    let output = postbox(&cluster.conninfo("postgres"), &["run", "--group", "g"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("enable_pgoutput"), "{said}");
    let refused = cluster
        .psql_result("postgres", "SELECT postbox.create_consumer_group('h', '{orders}', source => 'wal2json')")
        .unwrap_err();
    assert!(refused.contains("cannot have the source \"wal2json\""), "{refused}");
}

#[test]
fn an_outbox_that_is_published_in_part_is_missing() {
    if major() < 15 {
        return skip("publications have neither row filters nor lists of columns");
    }
    let cluster = Cluster::with_postbox();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders'), postbox.enable_pgoutput()");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')");
    let missing = "SELECT missing_outboxes FROM postbox.consumer_groups";
    for change in ["SET TABLE orders WHERE (key = 'x')", "SET TABLE orders (event_id, seq)", "SET (publish = 'update')"]
    {
        assert_eq!(cluster.psql("postgres", missing), "{}");
        cluster.psql("postgres", &format!("ALTER PUBLICATION postbox {change}"));
        assert_eq!(cluster.psql("postgres", missing), "{public.orders}", "{change}");
        let output = postbox(&cluster.conninfo("postgres"), &["run", "--group", "g"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("with all rows and columns"), "{said}");
        cluster.psql("postgres", "ALTER PUBLICATION postbox SET (publish = 'insert')");
        cluster.psql("postgres", "ALTER PUBLICATION postbox SET TABLE orders");
    }
}

/// The member learns of it at its next checkpoint, which is not made: what was passed over is delivered by recovery.
#[test]
fn what_was_passed_over_while_an_outbox_was_not_published_is_recovered() {
    let cluster = Cluster::with_postbox();
    let psql = |sql: &str| cluster.psql("postgres", sql);
    psql("SELECT postbox.create_outbox('orders'), postbox.create_outbox('notes'), postbox.enable_pgoutput()");
    psql("SELECT postbox.create_consumer_group('g', '{orders,notes}', source => 'pgoutput')");
    let mut run = Run::start(&cluster.conninfo("postgres"), &["--group", "g", "--no-maintenance"]);
    psql("INSERT INTO orders (type, payload) VALUES ('before', '{}')");
    run.wait_for(1, PATIENCE);
    psql("ALTER PUBLICATION postbox DROP TABLE orders");
    psql("INSERT INTO orders (type, payload) VALUES ('passed over', '{}')");
    // Something is to be noted.
    psql("INSERT INTO notes (type, payload) VALUES ('behind it', '{}')");
    let ended = run.end(PATIENCE);
    assert!(ended.code != Some(0) && ended.log.contains("with all rows and columns"), "{}", ended.log);
    assert_eq!(ended.lines.len(), 2);
    assert_eq!(psql("SELECT postbox.enable_pgoutput()"), "1");
    psql("SELECT postbox.recover_consumer_group('g')");
    let came = deliver(&cluster, "postgres", &["--group", "g", "--source", "pgoutput"]);
    assert!(came.iter().any(|event| event["type"] == "passed over"), "{came:?}");
}

#[test]
fn other_encodings_are_refused() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    cluster.psql("latin", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('orders')");
    let refused =
        cluster.psql_result("latin", "\\set VERBOSITY verbose\nSELECT postbox.enable_pgoutput()").unwrap_err();
    assert!(refused.contains("0A000") && refused.contains("encoding LATIN1"), "{refused}");
    cluster.psql("latin", "CREATE PUBLICATION postbox; SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let output = postbox(&cluster.conninfo("latin"), &["run", "--slot", "s"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("encoding LATIN1"), "{output:?}");
}

#[tokio::test]
async fn limits_are_the_consumers_and_nothing_is_compressed() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    make_groups(&cluster, "postgres", "orders");
    cluster.psql(
        "postgres",
        "INSERT INTO orders (key, type, headers, payload) VALUES ('k', 't', '{\"h\": 1}', to_jsonb(repeat('x', 500))), (repeat('k', 300), repeat('t', 300), '{}', '1'),
            ('k', 'fits', NULL, '1')",
    );
    let mut both = Vec::new();
    for source in super::SOURCES {
        let builder =
            Consumer::builder(cluster.conninfo("postgres")).group(format!("by_{source}")).max_event_bytes(100);
        let mut consumer = builder.connect().await.expect("a consumer");
        let mut events = Vec::new();
        for _ in 0..3 {
            let event = consumer.next().await.expect("an event").expect("no error").ack();
            events.push(postbox_tests::tap::to_json(&event));
        }
        consumer.close().await.expect("a clean end");
        both.push(events);
    }
    assert_eq!(both[0], both[1]);
    assert_eq!(both[1][0]["error"]["code"], "too_large");

    let slot = Consumer::builder(cluster.conninfo("postgres")).group("by_pgoutput");
    let error = slot.clone().compression(Compression::Lz4).connect().await.unwrap_err();
    assert!(error.to_string().contains("does not compress"), "{error}");
    let error = slot.plugin(OutputPlugin::Postbox).connect().await.unwrap_err();
    assert!(error.to_string().contains("is of source pgoutput, not of postbox"), "{error}");
    assert!(error.hint().unwrap_or_default().contains("set-source"), "{error:?}");
}

#[test]
fn times_within_other_types_are_as_the_role_has_them_or_iso() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "ALTER ROLE postgres SET datestyle = 'German'; ALTER ROLE postgres SET timezone = 'Asia/Tokyo';
         CREATE TABLE box (id int, type text, payload text, during tstzrange, times timestamptz[], at timestamptz);
         SELECT postbox.adopt_outbox('box', event_id => 'id', header_columns => '{during,times,at}')",
    );
    make_groups(&cluster, "postgres", "box");
    cluster.psql(
        "postgres",
        "INSERT INTO box VALUES (1, 't', 'p', '[2026-01-31 12:00:00+00,2026-02-01 12:00:00+00)', '{2026-01-31 12:00:00+00}', '2026-01-31 12:00:00+00')",
    );
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres").map(|mut events| events.remove(0)["headers"].take());
    let headers =
        |during: &str, times: &str| json!({ "during": during, "times": times, "at": "2026-01-31T12:00:00.000000Z" });
    assert_eq!(
        plugin,
        headers("[\"31.01.2026 21:00:00 JST\",\"01.02.2026 21:00:00 JST\")", "{\"31.01.2026 21:00:00 JST\"}")
    );
    assert_eq!(
        pgoutput,
        headers("[\"2026-01-31 12:00:00+00\",\"2026-02-01 12:00:00+00\")", "{\"2026-01-31 12:00:00+00\"}")
    );
}

#[test]
fn jsonb_that_is_no_text_is_given_as_stored_or_as_its_text() {
    let cluster = Cluster::start();
    cluster
        .psql("postgres", "CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    cluster.psql(
        "bytes",
        "CREATE EXTENSION postbox; SELECT postbox.enable_pgoutput(); SELECT postbox.create_outbox('orders')",
    );
    make_groups(&cluster, "bytes", "orders");
    let text = r"E'{\x22a\x22: \x22\xe4\x22}'";
    cluster.psql("bytes", &format!("INSERT INTO orders (type, payload) VALUES ('t', {text})"));
    let [plugin, pgoutput] = deliver_both(&cluster, "bytes").map(|mut events| events.remove(0)["error"].take());
    let raw = |error: &Value| error["raw"]["payload"].as_str().unwrap_or_else(|| panic!("{error}")).to_owned();
    assert_eq!((&plugin["code"], &pgoutput["code"]), (&json!("encoding"), &json!("encoding")));
    let is = |raw: &str, bytes: &str| cluster.psql("bytes", &format!("SELECT decode('{raw}', 'base64') = {bytes}"));
    assert_eq!(is(&raw(&pgoutput), &format!("convert_to({text}, 'SQL_ASCII')")), "t", "{pgoutput}");
    // An object of one member: the count of its pairs, the lengths of key and value, and both.
    assert_eq!(is(&raw(&plugin), "'\\x010000200100008001000000' || '\\x61e4'::bytea"), "t", "{plugin}");
}

#[test]
fn a_group_whose_slot_is_kept_on_standbys_keeps_its_source() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    if major() < 17 {
        return skip("standbys have no slots before PostgreSQL 17");
    }
    cluster.psql(
        "postgres",
        "SELECT postbox.create_consumer_group('g', '{orders}', failover => true), postbox.pause_consumer_group('g')",
    );
    let output = postbox(&cluster.conninfo("postgres"), &["group", "set-source", "g", "pgoutput"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("its slot is kept on standbys"), "{said}");
    assert!(said.contains("Make another group with this source"), "{said}");
    let group = "SELECT g.source, s.plugin, s.failover FROM postbox.consumer_group g JOIN pg_replication_slots s USING (slot_name)";
    assert_eq!(cluster.psql("postgres", group), "postbox|postbox|t");
}
