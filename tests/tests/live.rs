//! Configuration that changes under a running stream: what the stream gives at once is what a slot gives that is read later.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use postbox_tests::tap::{Tap, deliver, make_slot, peek_events, prepare, to_json};
use postbox_tests::{Cluster, program, wait_until_async};

use serde_json::{Value, json};

/// Runs the steps, each in a session of its own, with a stream running; between steps the stream is known to have come so far.
/// The result is (outbox, type) of the events.
async fn watch(steps: &[&str]) -> Vec<(String, String)> {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "live");
    make_slot(&cluster, "postgres", "later");
    let mut tap = Tap::open(&cluster, "live").await;
    let mut live = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        cluster.psql("postgres", step);
        cluster.psql("postgres", &format!("INSERT INTO fence (type) VALUES ('{number}')"));
        live.extend(tap.until(&number.to_string()).await.iter().map(to_json));
    }
    tap.close().await;
    let later = peek_events(&cluster, "later").into_iter().filter(|event| event["outbox"] != "public.fence");
    assert_eq!(live, later.collect::<Vec<_>>(), "read later, the same events come");
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    live.iter().map(|event| (text(&event["outbox"]), text(&event["type"]))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(outbox, name)| ((*outbox).to_owned(), (*name).to_owned())).collect()
}

const PLAIN: &str = "CREATE TABLE plain (event_id uuid DEFAULT gen_random_uuid(), type text, payload jsonb)";

#[tokio::test]
async fn an_outbox_made_while_the_stream_runs() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a')",
        "INSERT INTO made (type) VALUES ('b')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[("public.made", "a"), ("public.made", "b")]));
}

#[tokio::test]
async fn an_outbox_made_and_filled_in_one_transaction() {
    let steps = ["BEGIN; SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a'); COMMIT"];
    assert_eq!(watch(&steps).await, pairs(&[("public.made", "a")]));
}

#[tokio::test]
async fn a_table_whose_rows_were_skipped_before_it_was_adopted() {
    let steps = [
        PLAIN,
        "INSERT INTO plain (type) VALUES ('skipped')",
        "SELECT postbox.adopt_outbox('plain')",
        "INSERT INTO plain (type) VALUES ('a')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[("public.plain", "a")]));
}

#[tokio::test]
async fn a_table_adopted_in_mid_transaction() {
    let steps = [
        PLAIN,
        "INSERT INTO plain (type) VALUES ('skipped')",
        "BEGIN; INSERT INTO plain (type) VALUES ('before'); SELECT postbox.adopt_outbox('plain'); INSERT INTO plain (type) VALUES ('after'); COMMIT",
        "INSERT INTO plain (type) VALUES ('later')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[("public.plain", "after"), ("public.plain", "later")]));
}

#[tokio::test]
async fn an_adoption_that_is_rolled_back_to_a_savepoint() {
    let steps = [
        PLAIN,
        "BEGIN; SAVEPOINT s; SELECT postbox.adopt_outbox('plain'); INSERT INTO plain (type) VALUES ('gone'); ROLLBACK TO s;
         INSERT INTO plain (type) VALUES ('plain'); COMMIT",
        "INSERT INTO plain (type) VALUES ('still plain')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[]));
}

#[tokio::test]
async fn an_adopted_table_that_is_let_go() {
    let steps = [
        PLAIN,
        "SELECT postbox.adopt_outbox('plain'); INSERT INTO plain (type) VALUES ('a')",
        "BEGIN; INSERT INTO plain (type) VALUES ('b'); SELECT postbox.drop_outbox('plain'); INSERT INTO plain (type) VALUES ('no more'); COMMIT",
        "INSERT INTO plain (type) VALUES ('nor now')",
        "SELECT postbox.adopt_outbox('plain'); INSERT INTO plain (type) VALUES ('c')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[("public.plain", "a"), ("public.plain", "b"), ("public.plain", "c")]));
}

#[tokio::test]
async fn an_outbox_dropped_and_made_anew() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a')",
        "SELECT postbox.drop_outbox('made')",
        "CREATE TABLE made (event_id uuid DEFAULT gen_random_uuid(), type text, payload jsonb); INSERT INTO made (type) VALUES ('an ordinary table')",
        "DROP TABLE made; SELECT postbox.create_outbox('made', payload_type => 'text'); INSERT INTO made (type, payload) VALUES ('b', 'text')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[("public.made", "a"), ("public.made", "b")]));
}

#[tokio::test]
async fn events_bear_the_name_that_the_outbox_had() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a')",
        "ALTER TABLE made RENAME TO renamed; INSERT INTO renamed (type) VALUES ('b')",
        "CREATE SCHEMA other; ALTER TABLE renamed SET SCHEMA other; INSERT INTO other.renamed (type) VALUES ('c')",
        "ALTER SCHEMA other RENAME TO another; INSERT INTO another.renamed (type) VALUES ('d')",
        "BEGIN; INSERT INTO another.renamed (type) VALUES ('e'); ALTER TABLE another.renamed RENAME TO again; INSERT INTO another.again (type) VALUES ('f'); COMMIT",
    ];
    assert_eq!(
        watch(&steps).await,
        pairs(&[
            ("public.made", "a"),
            ("public.renamed", "b"),
            ("other.renamed", "c"),
            ("another.renamed", "d"),
            ("another.renamed", "e"),
            ("another.again", "f"),
        ])
    );
}

#[tokio::test]
async fn a_leaf_that_is_detached_and_attached() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a')",
        "ALTER TABLE made DETACH PARTITION made_g0; INSERT INTO made_g0 (seq, type) OVERRIDING SYSTEM VALUE VALUES (5, 'on its own')",
        "ALTER TABLE made ATTACH PARTITION made_g0 FOR VALUES IN (0); INSERT INTO made (type) VALUES ('b')",
    ];
    assert_eq!(watch(&steps).await, pairs(&[("public.made", "a"), ("public.made", "b")]));
}

/// Who began before goes on to write through the root until the detach is done, which waits for them.
#[tokio::test]
async fn a_partition_that_is_being_detached_concurrently() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    cluster.psql(
        "postgres",
        "CREATE TABLE old (event_id int, type text, payload jsonb) PARTITION BY LIST (event_id);
         CREATE TABLE leaf PARTITION OF old FOR VALUES IN (1);
         CREATE TABLE tree PARTITION OF old FOR VALUES IN (2) PARTITION BY LIST (event_id);
         CREATE TABLE twig PARTITION OF tree DEFAULT;
         SELECT postbox.adopt_outbox('old'); SELECT postbox.create_consumer_group('g', '{old}')",
    );
    for (partition, id) in [("leaf", 1), ("tree", 2)] {
        let (writer, detacher) = (cluster.client("postgres").await, cluster.client("postgres").await);
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
        writer.batch_execute(&format!("{begin}; INSERT INTO old VALUES ({id}, 'before')")).await.unwrap();
        let detach = format!("ALTER TABLE old DETACH PARTITION {partition} CONCURRENTLY");
        let detaching = tokio::spawn(async move { detacher.batch_execute(&detach).await });
        let pending = format!("SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = '{partition}'::regclass");
        wait_until_async("the detach is begun", Duration::from_secs(30), async || {
            (cluster.psql("postgres", &pending) == "t").then_some(())
        })
        .await;
        writer.batch_execute(&format!("INSERT INTO old VALUES ({id}, 'after'); COMMIT")).await.unwrap();
        detaching.await.unwrap().unwrap();
        cluster.psql("postgres", &format!("INSERT INTO {partition} VALUES ({id}, 'on its own')"));
        let events = deliver(&cluster, "postgres", &["--group", "g"]);
        let found = events.iter().map(|event| (&event["outbox"], &event["type"])).collect::<Vec<_>>();
        assert_eq!(found, [(&json!("public.old"), &json!("before")), (&json!("public.old"), &json!("after"))]);
    }
}

#[tokio::test]
async fn leaves_and_schemas_that_change_in_mid_transaction() {
    let steps = [
        "SELECT postbox.create_outbox('made')",
        "BEGIN; INSERT INTO made (type) VALUES ('a'); ALTER TABLE made DETACH PARTITION made_g0;
         INSERT INTO made_g0 (seq, type) OVERRIDING SYSTEM VALUE VALUES (5, 'on its own');
         ALTER TABLE made ATTACH PARTITION made_g0 FOR VALUES IN (0); INSERT INTO made (type) VALUES ('b'); COMMIT",
        "BEGIN; INSERT INTO made (type) VALUES ('c'); CREATE SCHEMA other; ALTER TABLE made SET SCHEMA other; INSERT INTO other.made (type) VALUES ('d');
         ALTER SCHEMA other RENAME TO another; INSERT INTO another.made (type) VALUES ('e'); COMMIT",
        "BEGIN; ALTER TABLE another.made DETACH PARTITION made_g0; INSERT INTO made_g0 (seq, type) OVERRIDING SYSTEM VALUE VALUES (6, 'on its own');
         CREATE TABLE another.fresh PARTITION OF another.made FOR VALUES IN (0); INSERT INTO another.made (type) VALUES ('f'); COMMIT",
        "INSERT INTO another.made (type) VALUES ('g'); INSERT INTO another.fresh (seq, type) OVERRIDING SYSTEM VALUE VALUES (7, 'h')",
    ];
    let expected = [
        ("public.made", "a"),
        ("public.made", "b"),
        ("public.made", "c"),
        ("other.made", "d"),
        ("another.made", "e"),
        ("another.made", "f"),
        ("another.made", "g"),
        ("another.made", "h"),
    ];
    assert_eq!(watch(&steps).await, pairs(&expected));
}

#[tokio::test]
async fn an_outbox_dropped_and_made_anew_in_one_transaction() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a')",
        "BEGIN; INSERT INTO made (type) VALUES ('b'); SELECT postbox.drop_outbox('made'); SELECT postbox.create_outbox('made', payload_type => 'text');
         INSERT INTO made (type, payload) VALUES ('c', 'text'); COMMIT",
        "INSERT INTO made (type, payload) VALUES ('d', 'text')",
    ];
    let expected = ["a", "b", "c", "d"].map(|event_type| ("public.made", event_type));
    assert_eq!(watch(&steps).await, pairs(&expected));
}

#[tokio::test]
async fn columns_that_change_between_and_within_transactions() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type, payload) VALUES ('a', '1')",
        "ALTER TABLE made ADD COLUMN tenant text DEFAULT 'x'; INSERT INTO made (type, payload) VALUES ('b', '2')",
        "BEGIN; INSERT INTO made (type, payload) VALUES ('c', '3'); ALTER TABLE made DROP COLUMN created_at;
         INSERT INTO made (type, payload) VALUES ('d', '4'); SAVEPOINT s; ALTER TABLE made DROP COLUMN tenant; ROLLBACK TO s;
         INSERT INTO made (type, payload, tenant) VALUES ('e', '5', 'y'); COMMIT",
        // Rewrites the table: rows that are only copied are no events.
        "BEGIN; ALTER TABLE made ALTER COLUMN payload TYPE text; INSERT INTO made (type, payload) VALUES ('f', 'six'); COMMIT",
        "ALTER TABLE made ALTER COLUMN key TYPE varchar(80); INSERT INTO made (type, payload) VALUES ('g', 'seven')",
        "VACUUM FULL made; ALTER TABLE made REPLICA IDENTITY FULL; INSERT INTO made (type, payload) VALUES ('h', 'eight')",
    ];
    let expected = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|event_type| ("public.made", event_type));
    assert_eq!(watch(&steps).await, pairs(&expected));
}

#[tokio::test]
async fn a_column_that_is_renamed_and_named_back() {
    let steps = [
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type) VALUES ('a')",
        "BEGIN; ALTER TABLE made RENAME COLUMN type TO kind; INSERT INTO made (kind) VALUES ('cannot be told'); ALTER TABLE made RENAME COLUMN kind TO type;
         INSERT INTO made (type) VALUES ('b'); COMMIT",
    ];
    // An error event with the raw columns stands for the row that has no type.
    assert_eq!(watch(&steps).await, pairs(&[("public.made", "a"), ("public.made", "-"), ("public.made", "b")]));
}

/// The next version of the extension, for as long as the test runs: the files of a server are in its own tree.
struct NextVersion(PathBuf);

impl NextVersion {
    fn publish(sql: &str) -> Self {
        let output = Command::new(program("pg_config")).arg("--sharedir").output().expect("pg_config runs");
        let share = PathBuf::from(String::from_utf8(output.stdout).expect("UTF-8").trim());
        let path = share.join("extension").join(format!("postbox--{}--next.sql", env!("CARGO_PKG_VERSION")));
        fs::write(&path, sql).expect("written");
        Self(path)
    }
}

impl Drop for NextVersion {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn the_extension_is_updated_while_the_stream_runs() {
    let _next = NextVersion::publish(
        "CREATE FUNCTION postbox.next() RETURNS int LANGUAGE sql RETURN 1;
         CREATE OR REPLACE FUNCTION postbox.publish(outbox text, type text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
             event_id uuid DEFAULT NULL) RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'postbox_publish_jsonb';",
    );
    let steps = [
        "SELECT postbox.create_outbox('made'); SELECT postbox.publish('made', 'a', '1'::jsonb)",
        "BEGIN; SELECT postbox.publish('made', 'b', '2'::jsonb); ALTER EXTENSION postbox UPDATE TO 'next'; SELECT postbox.publish('made', 'c', '3'::jsonb); COMMIT",
        "SELECT postbox.next(); SELECT postbox.publish('made', 'd', '4'::jsonb)",
        "DROP EXTENSION postbox; INSERT INTO made (type) VALUES ('e')",
        "CREATE EXTENSION postbox; SELECT postbox.publish('made', 'f', '6'::jsonb)",
    ];
    let expected = ["a", "b", "c", "d", "e", "f"].map(|event_type| ("public.made", event_type));
    assert_eq!(watch(&steps).await, pairs(&expected));
}

#[tokio::test]
async fn an_outbox_dropped_while_a_slot_lags_behind_does_not_wedge_it() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('made'); INSERT INTO made (type, payload) SELECT 'a', to_jsonb(repeat(md5(n::text), 1000)) FROM generate_series(1, 5) n;
         SELECT postbox.drop_outbox('made'); DROP EXTENSION postbox; INSERT INTO fence (type) VALUES ('end')",
    );
    cluster.restart(postbox_tests::Stop::Immediate);
    let events = peek_events(&cluster, "s");
    assert_eq!(events.len(), 6);
    assert_eq!(events[0]["payload"].as_str().unwrap().len(), 32_000);
    assert_eq!(events[5]["type"], "end");
}
