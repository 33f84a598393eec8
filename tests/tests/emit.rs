//! `postbox.emit`: events that are in the log and in no table.

use std::fs;
use std::time::Duration;

use postbox_tests::tap::{Tap, decode, make_slot, peek_events, prepare, raw_of};
use postbox_tests::{Cluster, Run, wait_until_async};
use postbox_wire::Decoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::docs::spans;
use crate::shop::PATIENCE;

const OUTBOXES: [(&str, &str); 4] =
    [("of_jsonb", "jsonb"), ("of_json", "json"), ("of_text", "text"), ("of_bytea", "bytea")];

/// A cluster with an outbox of each payload type that takes emitted events, the outbox `closed` that takes none, and the slot `s`.
fn with_outboxes(database: &str, encoding: &str) -> Cluster {
    let cluster = Cluster::start();
    if database != "postgres" {
        let sql =
            format!("CREATE DATABASE {database} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        cluster.psql("postgres", &sql);
    }
    prepare(&cluster, database);
    for (outbox, payload_type) in OUTBOXES {
        let sql = format!(
            "SELECT postbox.create_outbox('{outbox}', payload_type => '{payload_type}'), postbox.set_emit('{outbox}', true)"
        );
        cluster.psql(database, &sql);
    }
    cluster.psql(database, "SELECT postbox.create_outbox('closed')");
    make_slot(&cluster, database, "s");
    cluster
}

fn member<'v>(events: &'v [Value], name: &str) -> Vec<&'v Value> {
    events.iter().map(|event| &event[name]).collect()
}

fn oid(cluster: &Cluster, outbox: &str) -> String {
    cluster.psql("postgres", &format!("SELECT '{outbox}'::regclass::oid"))
}

#[test]
fn they_come_among_rows_in_the_order_of_the_transaction_and_are_stored_nowhere() {
    let cluster = with_outboxes("postgres", "UTF8");
    cluster.psql(
        "postgres",
        "BEGIN;
         INSERT INTO of_jsonb (type) VALUES ('row');
         SELECT postbox.emit('of_jsonb', 'first', '{\"n\": 1.50, \"t\": \"ä\\n\"}', key => 'k \"1\"', headers => '{\"h\": [1]}', event_id => '00000000-0000-4000-8000-0000000000ab');
         SAVEPOINT s;
         SELECT postbox.emit('of_jsonb', 'undone', '{}');
         ROLLBACK TO s;
         INSERT INTO of_jsonb (type) VALUES ('row');
         SELECT postbox.emit('of_jsonb', 'second', NULL::jsonb);
         COMMIT;
         BEGIN; SELECT postbox.emit('of_jsonb', 'rolled back', '{}'); ROLLBACK;
         SELECT postbox.emit('of_jsonb', 'third', '{}')",
    );
    let events = peek_events(&cluster, "s");
    assert_eq!(member(&events, "type"), ["row", "first", "row", "second", "third"]);
    assert_eq!(member(&events, "ordinal"), [0, 1, 2, 3, 0]);
    let first = &events[1];
    assert_eq!(first["event_id"], "00000000-0000-4000-8000-0000000000ab");
    assert_eq!(first["outbox"], "public.of_jsonb");
    assert_eq!(first["key"], "k \"1\"");
    assert_eq!(first["headers"], json!({ "h": [1] }));
    assert_eq!(first["payload"], json!({ "n": 1.5, "t": "ä\n" }));
    assert_eq!(events[3]["payload"], Value::Null);
    assert_eq!(events[0]["commit_lsn"], events[3]["commit_lsn"]);
    let returned = cluster.psql("postgres", "SELECT postbox.emit('of_jsonb', 'fourth', '{}')");
    assert_eq!(peek_events(&cluster, "s")[5]["event_id"], returned);
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM of_jsonb"), "2");
}

#[test]
fn payloads_of_every_type_come_as_those_of_rows_do_whatever_the_encoding() {
    for (database, encoding, text) in [("utf8", "UTF8", "😀 \"ä\" \\"), ("latin1", "LATIN1", "Größe \"ÿ\" \\")] {
        let cluster = with_outboxes(database, encoding);
        let json = text.replace('\\', "\\\\").replace('"', "\\\"");
        for verb in ["postbox.emit", "postbox.publish"] {
            cluster.psql(
                database,
                &format!(
                    "SET client_encoding = 'UTF8';
                     SELECT {verb}('of_jsonb', '{text}', '{{\"{json}\": 1.0}}', key => '{text}', headers => '[\"{json}\"]');
                     SELECT {verb}('of_jsonb', 't', '{{\"b\": 1,   \"a\": [true, null]}}'::jsonb);
                     SELECT {verb}('of_json', 't', '[ \"{json}\" ]'::json);
                     SELECT {verb}('of_text', 't', '{text}');
                     SELECT {verb}('of_text', 't', '{{\"a\": 1}}'::jsonb);
                     SELECT {verb}('of_bytea', 't', decode('00ff10', 'hex')), {verb}('of_bytea', 't', ''::bytea), {verb}('of_bytea', 't', 'a'::bytea);"
                ),
            );
        }
        let frames = raw_of(&cluster, database, "s", "");
        let events: Vec<Value> =
            frames.iter().flat_map(|frame| decode(&mut Decoder::new(), frame).unwrap().events).collect();
        assert_eq!(events.len(), 16, "{events:#?}");
        let (emitted, published) = events.split_at(8);
        for (emitted, published) in emitted.iter().zip(published) {
            for name in ["outbox", "type", "key", "headers", "payload", "error"] {
                assert_eq!(emitted.get(name), published.get(name), "{encoding} {name}");
            }
        }
        assert_eq!(emitted[0]["type"], text);
        assert_eq!(emitted[3]["payload"], text);
    }
}

#[test]
fn what_anybody_writes_to_the_log_is_believed_only_where_it_may_be_and_stops_nothing() {
    let cluster = with_outboxes("postgres", "UTF8");
    let (open, closed) = (oid(&cluster, "of_jsonb"), oid(&cluster, "closed"));
    let leaf = oid(&cluster, "of_jsonb_g0");
    let catalog = oid(&cluster, "pg_catalog.pg_class");
    let id = "00000000-0000-4000-8000-0000000000ab";
    let emit = |transactional: bool, prefix: &str, message: &str| {
        cluster
            .psql("postgres", &format!("SELECT pg_logical_emit_message({transactional}, '{prefix}', $m${message}$m$)"));
    };
    for message in [
        "",
        "garbage",
        "{",
        "null",
        "[]",
        "{}",
        "{\"outbox\":\"x\"}",
        "{\"outbox\":-1}",
        "{\"outbox\":4294967296}",
        "{\"outbox\":0}",
        "{\"outbox\":1}",
    ] {
        emit(true, "postbox", message);
    }
    for target in [&closed, &leaf, &catalog] {
        emit(true, "postbox", &format!("{{\"outbox\":{target},\"id\":\"{id}\",\"type\":\"t\"}}"));
    }
    let good = format!("{{\"outbox\":{open},\"id\":\"{id}\",\"type\":\"t\"}}");
    emit(true, "postbox2", &good);
    emit(false, "postbox", &good);
    cluster.psql("postgres", "SELECT pg_logical_emit_message(true, 'postbox', '\\xff00'::bytea)");
    assert_eq!(peek_events(&cluster, "s"), [Value::Null; 0]);

    let malformed = [
        format!("{{\"outbox\":{open}}}"),
        format!("{{\"outbox\":{open},\"id\":\"x\",\"type\":\"t\"}}"),
        format!("{{\"outbox\":{open},\"id\":\"{id}\",\"type\":5}}"),
        format!("{{\"outbox\":{open},\"id\":\"{id}\"}}"),
        format!("{{\"outbox\":{open},\"id\":\"{id}\",\"type\":\"t\",\"key\":[]}}"),
        format!("{{\"outbox\":{open},\"id\":\"{id}\",\"type\":\"a\\u0000\"}}"),
        format!("{{\"outbox\":{open},\"id\":\"{id}\",\"type\":\"t\",\"key\":\"\\u0000\"}}"),
        format!("{{\"outbox\":{open},\"id\":\"\\u0000\",\"type\":\"t\"}}"),
        format!("{{\"outbox\":{},\"id\":\"{id}\",\"type\":\"t\",\"payload\":\"\\u0000\"}}", oid(&cluster, "of_text")),
        format!("{{\"outbox\":{},\"id\":\"{id}\",\"type\":\"t\",\"payload\":\"a*b\"}}", oid(&cluster, "of_bytea")),
        format!("{{\"outbox\":{},\"id\":\"{id}\",\"type\":\"t\",\"payload\":{{}}}}", oid(&cluster, "of_text")),
    ];
    for message in &malformed {
        emit(true, "postbox", message);
    }
    emit(true, "postbox", &good);
    let events = peek_events(&cluster, "s");
    assert_eq!(events.len(), malformed.len() + 1);
    for (event, message) in events.iter().zip(&malformed) {
        assert_eq!(event["error"]["code"], "malformed", "{message}");
        let raw = event["error"]["raw"]["message"].as_str().unwrap();
        assert_eq!(
            cluster.psql("postgres", &format!("SELECT convert_from(decode('{raw}', 'base64'), 'UTF8')")),
            *message
        );
    }
    assert_eq!(events[malformed.len()]["type"], "t");
}

#[test]
fn what_the_database_cannot_hold_as_text_holds_no_group_up() {
    for (encoding, odd, says) in [("LATIN1", "\\u20ac", "LATIN1"), ("UTF8", "\\u0000", "U+0000")] {
        let cluster = with_outboxes("other", encoding);
        cluster.psql("other", "SELECT postbox.create_consumer_group('g', '{of_jsonb}')");
        for members in [format!("\"type\":\"{odd}\""), format!("\"type\":\"t\",\"key\":\"{odd}\"")] {
            let message = format!("{{\"outbox\":%s,\"id\":\"00000000-0000-4000-8000-0000000000ab\",{members}}}");
            let sql = format!(
                "SELECT pg_logical_emit_message(true, 'postbox', format('{message}', 'of_jsonb'::regclass::oid))"
            );
            cluster.psql("other", &sql);
        }
        cluster.psql("other", "SELECT postbox.emit('of_jsonb', 'after', '{}')");
        let dir = TempDir::new().expect("a directory");
        let log = dir.path().join("log");
        let command = format!("[ \"$POSTBOX_TYPE\" = after ] && echo \"$POSTBOX_TYPE\" >> {}", log.display());
        let sink = ["--sink", "exec", "--exec", &command, "--max-attempts", "1", "--on-failure", "park"];
        let arguments = [&["--group", "g", "--exit-when-idle", "200ms"], &sink[..]].concat();
        let ended = Run::start(&cluster.conninfo("other"), &arguments).end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{encoding}: {}", ended.log);
        assert_eq!(fs::read_to_string(&log).expect("the event behind them"), "after\n", "{encoding}");
        let letters = "SELECT why, error FROM postbox.dead_letters ORDER BY id";
        let letters = cluster.psql("other", letters);
        let told = |line: &str| line.starts_with("unreadable|") && line.contains(says);
        assert!(letters.lines().count() == 2 && letters.lines().all(told), "{encoding}: {letters}");
    }
}

/// What is said of a fault may quote what anybody has written.
#[test]
fn a_message_of_any_size_fits_a_frame_and_a_dead_letter() {
    let cluster = with_outboxes("postgres", "UTF8");
    for source in ["postbox", "pgoutput"] {
        let group = format!("SELECT postbox.create_consumer_group('{source}', '{{of_jsonb}}', source => '{source}')");
        cluster.psql("postgres", &format!("SELECT postbox.enable_pgoutput(); {group}"));
    }
    let message = |bytes: usize| {
        let message = "format('{\"outbox\":%s,\"id\":\"%s\"}', 'of_jsonb'::regclass::oid, repeat('ä', ";
        format!("SELECT pg_logical_emit_message(true, 'postbox', {message} {bytes} / 2)))")
    };
    cluster.psql("postgres", &message(20_000_000));
    let events = peek_events(&cluster, "s");
    let error = &events[0]["error"];
    assert!(error["detail"].as_str().expect("words").len() < 1_000, "{error}");
    assert!(error["raw"]["message"].as_str().expect("base64").len() > 20_000_000);
    for source in ["postbox", "pgoutput"] {
        let sink = ["--sink", "exec", "--exec", "true", "--source", source, "--exit-when-idle", "200ms"];
        let ended =
            Run::start(&cluster.conninfo("postgres"), &[&["--group", source], &sink[..]].concat()).end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        let letter = "SELECT length(error) < 1000, octet_length(frame) > 20000000 FROM postbox.dead_letter";
        let letter = format!("{letter} WHERE group_name = '{source}'");
        assert_eq!(cluster.psql("postgres", &letter), "t|t", "{source}");
    }
}

#[test]
fn emitting_is_refused_where_it_cannot_be_and_says_why() {
    let cluster = with_outboxes("postgres", "UTF8");
    cluster.psql("postgres", "CREATE ROLE app LOGIN; CREATE TABLE plain (id int); GRANT INSERT ON of_text TO app");
    for (sql, code, hint) in [
        ("postbox.emit('closed', 't', '{}')", "55000", "postbox.set_emit"),
        ("postbox.emit('plain', 't', '{}')", "42809", "outbox_status"),
        ("postbox.emit('nowhere', 't', '{}')", "42P01", "create_outbox"),
        ("postbox.emit(NULL, 't', '{}')", "22004", "needs an outbox"),
        ("postbox.emit('of_jsonb', NULL, '{}')", "22004", "a type"),
        ("postbox.emit('of_jsonb_g0', 't', '{}')", "42809", "public.of_jsonb"),
        ("postbox.emit('of_jsonb', 't', '{bad')", "22P02", "takes JSON"),
        ("postbox.emit('of_jsonb', 't', '\\x00'::bytea)", "42804", "convert_from"),
        ("postbox.emit('of_bytea', 't', 'text')", "42804", "convert_to"),
        ("postbox.set_emit('plain', true)", "42809", "outbox_status"),
        ("postbox.set_emit('nowhere', true)", "42P01", "outbox_status"),
        ("postbox.set_emit('closed', NULL)", "22004", "true or false"),
    ] {
        let error = cluster.psql_result("postgres", &format!("\\set VERBOSITY verbose\nSELECT {sql}")).expect_err(sql);
        assert!(error.contains(code) && error.contains(hint), "{sql}: {error}");
    }
    assert!(
        cluster
            .psql_result("postgres", "SET ROLE app; SELECT postbox.emit('of_jsonb', 't', '{}')")
            .unwrap_err()
            .contains("permission denied")
    );
    cluster.psql("postgres", "SET ROLE app; SELECT postbox.emit('of_text', 't', 'x')");
    // What is stored nowhere cannot be given again.
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{of_jsonb}')");
    for sql in [
        "postbox.create_consumer_group('e', '{of_jsonb}', start => 'earliest')",
        "postbox.seek_consumer_group('g', 'earliest')",
        "postbox.seek_consumer_group('g', now()::text)",
        "postbox.seek_consumer_group('g', gen_random_uuid()::text)",
        "postbox.seek_consumer_group('g', pg_current_wal_flush_lsn()::text)",
        "postbox.recover_consumer_group('g')",
    ] {
        let error = cluster.psql_result("postgres", &format!("\\set VERBOSITY verbose\nSELECT {sql}")).expect_err(sql);
        assert!(error.contains("55000") && error.contains("set_emit('public.of_jsonb', false)"), "{sql}: {error}");
    }
    // Skipping needs nothing that is stored.
    cluster.psql("postgres", "SELECT postbox.emit('of_jsonb', 'skipped', '{}')");
    assert_eq!(cluster.psql("postgres", "SELECT direction FROM postbox.seek_consumer_group('g', 'latest')"), "forward");
    cluster.psql("postgres", "SELECT postbox.emit('of_jsonb', 'delivered', '{}')");
    let delivered = postbox_tests::tap::deliver(&cluster, "postgres", &["--group", "g"]);
    assert!(delivered.len() == 1 && delivered[0]["type"] == "delivered", "{delivered:?}");
}

#[test]
fn who_may_not_write_to_the_log_by_hand_may_still_emit() {
    let cluster = with_outboxes("postgres", "UTF8");
    cluster.psql("postgres", "CREATE ROLE app LOGIN; GRANT INSERT ON of_jsonb TO app");
    let by_hand = |payload: &str| {
        let sql = format!(
            "\\set VERBOSITY verbose\nSET ROLE app; SELECT pg_logical_emit_message(true, 'postbox', {payload})"
        );
        cluster.psql_result("postgres", &sql)
    };
    by_hand("'x'").expect("PUBLIC may");
    cluster.psql("postgres", &spans("docs/sql.md", "DO $$ BEGIN EXECUTE")[0]);
    for payload in ["'x'", "'x'::bytea"] {
        let error = by_hand(payload).expect_err(payload);
        assert!(error.contains("42501") && error.contains("pg_logical_emit_message"), "{error}");
    }
    cluster.psql("postgres", "SET ROLE app; SELECT postbox.emit('of_jsonb', 'mine', '{}')");
    assert_eq!(member(&peek_events(&cluster, "s"), "type"), ["mine"]);
}

#[tokio::test]
async fn an_outbox_that_begins_or_ends_to_take_them_does_so_with_the_transaction_for_running_streams_too() {
    let cluster = with_outboxes("postgres", "UTF8");
    let mut tap = Tap::open(&cluster, "s").await;
    let closed = oid(&cluster, "closed");
    let message = |kind: &str| {
        format!(
            "SELECT pg_logical_emit_message(true, 'postbox', '{{\"outbox\":{closed},\"id\":\"00000000-0000-4000-8000-0000000000ab\",\"type\":\"{kind}\"}}')"
        )
    };
    cluster.psql("postgres", &format!("INSERT INTO closed (type) VALUES ('row'); {};", message("before")));
    cluster.psql(
        "postgres",
        &format!(
            "BEGIN; {}; SELECT postbox.set_emit('closed', true); {}; COMMIT;",
            message("too early"),
            message("in time")
        ),
    );
    cluster.psql("postgres", "SELECT postbox.set_emit('closed', true), postbox.emit('closed', 'after', '{}')");
    cluster.psql("postgres", "ALTER TABLE closed RENAME TO renamed; SELECT postbox.emit('renamed', 'renamed', '{}')");
    cluster.psql("postgres", &format!("SELECT postbox.set_emit('renamed', false); {};", message("ended")));
    cluster.psql("postgres", "INSERT INTO renamed (type) VALUES ('row again')");
    cluster.psql("postgres", "INSERT INTO fence (type) VALUES ('end')");
    let live: Vec<Value> = tap.until("end").await.iter().map(postbox_tests::tap::to_json).collect();
    tap.close().await;
    assert_eq!(member(&live, "type"), ["row", "in time", "after", "renamed", "row again"]);
    let outboxes = member(&live, "outbox");
    assert_eq!(outboxes, ["public.closed", "public.closed", "public.closed", "public.renamed", "public.renamed"]);
}

#[test]
fn an_outbox_whose_rows_are_being_delivered_does_not_begin_to_take_them() {
    let cluster = with_outboxes("postgres", "UTF8");
    cluster.psql("postgres", "INSERT INTO closed (type) VALUES ('row')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{closed}', start => 'earliest')");
    let verbose = "\\set VERBOSITY verbose\nSELECT postbox.set_emit('closed', true)";
    let error = cluster.psql_result("postgres", verbose).expect_err("it is being delivered");
    assert!(error.contains("55006") && error.contains("consumer group g") && error.contains("set_emit"), "{error}");
    let lines = postbox_tests::tap::deliver(&cluster, "postgres", &["--group", "g"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(cluster.psql("postgres", "SELECT postbox.set_emit('closed', true)"), "t");
}

#[tokio::test]
async fn an_outbox_that_begins_to_take_them_meanwhile_is_not_begun_to_be_delivered() {
    let cluster = with_outboxes("postgres", "UTF8");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{closed}')");
    let setter = cluster.client("postgres").await;
    for sql in [
        "postbox.create_consumer_group('h', '{closed}', start => 'earliest')",
        "postbox.seek_consumer_group('g', 'earliest')",
        "postbox.recover_consumer_group('g')",
    ] {
        setter.batch_execute("BEGIN; SELECT postbox.set_emit('closed', true)").await.expect(sql);
        let client = cluster.client("postgres").await;
        let waiting = tokio::spawn(async move { client.batch_execute(&format!("SELECT {sql}")).await });
        wait_until_async("it waits", Duration::from_secs(30), async || {
            let waits = "SELECT FROM pg_locks WHERE NOT granted";
            (!setter.query(waits, &[]).await.expect("locks").is_empty()).then_some(())
        })
        .await;
        setter.batch_execute("COMMIT").await.expect(sql);
        let error = waiting.await.expect("ended").expect_err(sql);
        assert!(format!("{error:?}").contains("events that are in the log only"), "{sql}: {error:?}");
        setter.batch_execute("SELECT postbox.set_emit('closed', false)").await.expect(sql);
    }
}
