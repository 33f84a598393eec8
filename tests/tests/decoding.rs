//! What the plugin makes of the log, read through the slot's SQL functions.

use postbox_tests::tap::{decode, deliver, make_slot, peek, peek_events, prepare, raw};
use postbox_tests::{Cluster, major};
use postbox_wire::{Decoder, FRAME_BYTES, Problem};
use serde_json::{Value, json};

/// A cluster with the outbox `public.events` and the slot `s`.
fn with_outbox(payload_type: &str) -> Cluster {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    cluster.psql("postgres", &format!("SELECT postbox.create_outbox('events', payload_type => '{payload_type}')"));
    make_slot(&cluster, "postgres", "s");
    cluster
}

fn member<'v>(events: &'v [Value], name: &str) -> Vec<&'v Value> {
    events.iter().map(|event| &event[name]).collect()
}

#[test]
fn a_small_transaction_is_one_frame_that_stands_alone() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "INSERT INTO events (key, type, headers, payload) VALUES ('k', 'a', '{\"h\": 1}', '{\"n\": 1}'), (NULL, 'b', NULL, NULL);
         INSERT INTO events (type, payload) VALUES ('c', '[1, 2.50, \"ä\\n\"]');",
    );
    let frames = peek(&cluster, "s", "");
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|frame| !frame.continues && frame.is_last));
    let rows = cluster.psql(
        "postgres",
        "SELECT json_build_object('outbox', 'public.events', 'event_id', event_id, 'type', type, 'key', key, 'headers', headers,
            'payload', payload, 'xid', xid::text::bigint) FROM events ORDER BY seq",
    );
    let mut events = frames.iter().flat_map(|frame| frame.events.clone()).collect::<Vec<_>>();
    for event in &mut events {
        let event = event.as_object_mut().unwrap();
        for name in ["commit_lsn", "commit_time", "ordinal"] {
            assert!(event.remove(name).is_some(), "{name}");
        }
    }
    let expected = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect::<Vec<Value>>();
    assert_eq!(events, expected);
    assert!(frames[0].transaction.end_lsn > frames[0].transaction.commit_lsn);
    assert!(frames[1].transaction.commit_lsn >= frames[0].transaction.end_lsn);
}

#[test]
fn with_names_stream_each_name_is_sent_once_and_frames_need_those_before_them() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "INSERT INTO events (type) VALUES ('a'); INSERT INTO events (type) VALUES ('b'); ANALYZE events; INSERT INTO fence (type) VALUES ('c')",
    );
    // Another leaf of the same outbox, and an invalidation in between.
    cluster.psql(
        "postgres",
        "SELECT setval(pg_get_serial_sequence('events', 'seq'), 1 << 20); INSERT INTO events (type) VALUES ('d')",
    );
    let frames = raw(&cluster, "s", "'names', 'stream'");
    let mut decoder = Decoder::new();
    let types = frames.iter().flat_map(|frame| decode(&mut decoder, frame).unwrap().events).collect::<Vec<_>>();
    assert_eq!(member(&types, "type"), ["a", "b", "c", "d"]);
    let alone = decode(&mut Decoder::new(), &frames[1]).unwrap_err();
    assert_eq!(alone.problem, Problem::Undefined(1));
    let all = frames.concat();
    assert_eq!(all.windows(6).filter(|bytes| bytes == b"events").count(), 1);
    assert_eq!(all.windows(5).filter(|bytes| bytes == b"fence").count(), 1);
    let standing_alone = raw(&cluster, "s", "").concat();
    assert_eq!(standing_alone.windows(6).filter(|bytes| bytes == b"events").count(), 3);
}

#[test]
fn wrong_options_are_refused_with_a_hint_and_change_nothing() {
    let cluster = with_outbox("jsonb");
    cluster.psql("postgres", "INSERT INTO events (type) VALUES ('a')");
    for (options, message, hint) in [
        ("'colour', 'red'", "unrecognized postbox option: \"colour\"", "proto_version, names"),
        ("'names', 'often'", "invalid value for postbox option \"names\": \"often\"", "\"stream\""),
        ("'names', 'frame', 'names', 'frame'", "given twice", "once"),
        ("'proto_version', '2'", "proto_version 2, this postbox plugin speaks 1 to 1", "same release"),
        ("'max_event_bytes', '-1'", "max_event_bytes", "from 1 to"),
        ("'outboxes', 'events'", "outboxes", "schema-qualified"),
    ] {
        let sql =
            format!("\\set VERBOSITY verbose\nSELECT pg_logical_slot_get_binary_changes('s', NULL, NULL, {options})");
        let error = cluster.psql_result("postgres", &sql).unwrap_err();
        assert!(error.contains("22023"), "{error}");
        assert!(error.contains(message) && error.contains(hint), "{error}");
    }
    assert_eq!(peek_events(&cluster, "s").len(), 1);
}

#[test]
fn only_what_was_committed_comes_with_ordinals_that_never_repeat() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "BEGIN; INSERT INTO events (type) VALUES ('rolled back'); ROLLBACK;
         BEGIN;
         INSERT INTO events (type) VALUES ('0');
         SAVEPOINT a; INSERT INTO events (type) VALUES ('gone'); ROLLBACK TO a;
         SAVEPOINT b; INSERT INTO events (type) VALUES ('1'), ('2'); SAVEPOINT c; INSERT INTO events (type) VALUES ('3'); RELEASE b;
         INSERT INTO events (type) SELECT n::text FROM generate_series(4, 6) n;
         COPY events (type) FROM stdin;\n7\n8\n9\n\\.
         COMMIT;",
    );
    let events = peek_events(&cluster, "s");
    assert_eq!(member(&events, "type"), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(member(&events, "ordinal"), (0..10).map(|n| json!(n)).collect::<Vec<_>>().iter().collect::<Vec<_>>());
}

#[test]
fn housekeeping_and_other_tables_say_nothing() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "CREATE TABLE business (n int); INSERT INTO business SELECT generate_series(1, 1000); VACUUM FULL business",
    );
    assert_eq!(raw(&cluster, "s", "").len(), 0);
    cluster.psql("postgres", "INSERT INTO events (type) VALUES ('a')");
    cluster.psql(
        "postgres",
        "UPDATE events SET type = 'b'; DELETE FROM events; TRUNCATE events; CLUSTER; VACUUM FULL events",
    );
    assert_eq!(member(&peek_events(&cluster, "s"), "type"), ["a"]);
}

#[test]
fn large_payloads_come_whole_however_they_are_stored() {
    let cluster = with_outbox("jsonb");
    for (storage, sql) in [
        ("toasted", "SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, 5000) n"),
        ("compressed in the row", "SELECT to_jsonb(repeat('abc', 2000))"),
        (
            "compressed and toasted",
            "SELECT jsonb_agg(md5((n % 1000)::text) || repeat('x', n % 300)) FROM generate_series(1, 20000) n",
        ),
    ] {
        cluster.psql(
            "postgres",
            &format!("INSERT INTO events (type, payload, headers) VALUES ('{storage}', ({sql}), ({sql}))"),
        );
    }
    for column in ["payload", "headers"] {
        let stored = cluster.psql("postgres", &format!("SELECT {column} FROM events ORDER BY seq"));
        let stored = stored.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        assert_eq!(member(&peek_events(&cluster, "s"), column), stored.iter().collect::<Vec<_>>());
    }
}

#[test]
fn payloads_of_every_type_come_as_they_are() {
    for (payload_type, sql, expected) in [
        ("json", "'{\"b\" : 1,\n \"a\": [1 ,2]}'", json!({"b": 1, "a": [1, 2]})),
        ("text", "E'tab\\tquote\" back\\\\ ä \\x01'", json!("tab\tquote\" back\\ ä \u{1}")),
        ("bytea", "'\\x00ff10'", json!("AP8Q")),
        ("jsonb", "'null'", json!(null)),
    ] {
        let cluster = with_outbox(payload_type);
        cluster.psql("postgres", &format!("INSERT INTO events (type, payload) VALUES ('a', {sql}), ('b', NULL)"));
        assert_eq!(member(&peek_events(&cluster, "s"), "payload"), [&expected, &Value::Null], "{payload_type}");
    }
}

#[test]
fn outboxes_are_selected_by_name_or_oid_and_ordinals_stay() {
    let cluster = with_outbox("jsonb");
    cluster.psql("postgres", "CREATE SCHEMA \"Odd \"\"name\"; SELECT postbox.create_outbox('Events', 'Odd \"name')");
    cluster.psql(
        "postgres",
        "BEGIN; INSERT INTO events (type) VALUES ('0'); INSERT INTO \"Odd \"\"name\".\"Events\" (type) VALUES ('1');
         INSERT INTO fence (type) VALUES ('2'); INSERT INTO events (type) VALUES ('3'); COMMIT;
         INSERT INTO fence (type) VALUES ('alone')",
    );
    let oid = cluster.psql("postgres", "SELECT 'events'::regclass::oid");
    for (selected, ordinals) in [
        (oid, vec![0, 3]),
        ("public.events, public.fence".to_owned(), vec![0, 2, 3]),
        ("\"Odd \"\"name\".\"Events\"".to_owned(), vec![1]),
        ("public.nothing".to_owned(), vec![]),
    ] {
        let frames = peek(&cluster, "s", &format!("'outboxes', '{selected}'"));
        let of_first = frames.iter().take(usize::from(!ordinals.is_empty()));
        let found = of_first.flat_map(|frame| member(&frame.events, "ordinal")).map(|n| n.as_u64().unwrap());
        assert_eq!(found.collect::<Vec<_>>(), ordinals, "{selected}");
    }
    let names = peek_events(&cluster, "s");
    assert_eq!(names[1]["outbox"], "Odd \"name.Events");
}

#[test]
fn leaves_are_called_by_their_root() {
    let cluster = with_outbox("jsonb");
    for generation in 0..5 {
        cluster.psql(
            "postgres",
            &format!(
                "SELECT setval(pg_get_serial_sequence('events', 'seq'), ({generation}::bigint << 20) + 5); INSERT INTO events (type) VALUES ('{generation}')"
            ),
        );
    }
    // The row says which leaf it belongs to, so it can also be inserted there.
    cluster.psql("postgres", "INSERT INTO events_g1 (seq, type) OVERRIDING SYSTEM VALUE VALUES (1 << 20, 'directly')");
    assert_eq!(cluster.psql("postgres", "SELECT count(DISTINCT tableoid) FROM events"), "4");
    let events = peek_events(&cluster, "s");
    assert_eq!(member(&events, "type"), ["0", "1", "2", "3", "4", "directly"]);
    assert!(events.iter().all(|event| event["outbox"] == "public.events"), "{events:?}");
}

#[test]
fn a_transaction_beyond_the_decoding_memory_comes_in_bounded_frames() {
    let cluster = with_outbox("jsonb");
    cluster.psql("postgres", "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'; SELECT pg_reload_conf()");
    cluster.psql(
        "postgres",
        "INSERT INTO events (key, type, payload) SELECT n, 'bulk', jsonb_build_object('n', n, 'text', repeat('x', 200)) FROM generate_series(0, 9999) n;
         INSERT INTO events (type) VALUES ('after')",
    );
    let frames = peek(&cluster, "s", "");
    let bulk = &frames[..frames.len() - 1];
    assert!(bulk.len() > 20, "{}", bulk.len());
    assert!(bulk.iter().all(|frame| frame.length < FRAME_BYTES + 1024));
    assert_eq!(bulk.iter().filter(|frame| !frame.continues).count(), 1);
    assert_eq!(bulk.iter().filter(|frame| frame.is_last).count(), 1);
    assert!(!bulk[0].continues && bulk[bulk.len() - 1].is_last);
    assert!(bulk.iter().all(|frame| frame.transaction == bulk[0].transaction));
    let events = bulk.iter().flat_map(|frame| &frame.events).collect::<Vec<_>>();
    assert_eq!(events.len(), 10_000);
    for (n, event) in events.iter().enumerate() {
        assert_eq!((&event["ordinal"], &event["payload"]["n"]), (&json!(n), &json!(n)));
    }
    let spilled =
        cluster.psql("postgres", "SELECT spill_txns > 0 FROM pg_stat_replication_slots WHERE slot_name = 's'");
    assert_eq!(spilled, "t");
}

#[test]
fn what_exceeds_the_limit_becomes_an_error_event_and_the_stream_goes_on() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "INSERT INTO events (key, type, payload) VALUES ('k', 'large', to_jsonb(repeat('x', 1000)));
         INSERT INTO events (key, type, payload) VALUES (repeat('k', 2000), repeat('t', 2000), '1');
         INSERT INTO events (type, payload) VALUES ('small', '1')",
    );
    let frames = peek(&cluster, "s", "'max_event_bytes', '500'");
    let events = frames.iter().flat_map(|frame| &frame.events).collect::<Vec<_>>();
    let large = events[0];
    assert_eq!((&large["type"], &large["key"], &large["payload"]), (&json!("large"), &json!("k"), &Value::Null));
    assert_eq!(large["error"]["code"], "too_large");
    let raw = cluster.psql(
        "postgres",
        &format!(
            "SELECT convert_from(decode('{}', 'base64'), 'UTF8') = to_jsonb(repeat('x', 1000))::text",
            large["error"]["raw"]["payload"].as_str().unwrap()
        ),
    );
    assert_eq!(raw, "t");
    assert_eq!((&events[1]["key"], &events[1]["type"]), (&Value::Null, &Value::Null));
    assert!(events[1]["event_id"].is_string());
    assert!(events[1]["error"]["raw"]["key"].is_string() && events[1]["error"]["raw"]["type"].is_string());
    assert_eq!((&events[2]["type"], events[2].get("error")), (&json!("small"), None));
}

#[test]
fn a_value_whose_text_would_exhaust_memory_becomes_an_error_event() {
    let cluster = with_outbox("jsonb");
    // 20 kB on disk, 2.6 GB as text.
    cluster.psql(
        "postgres",
        "INSERT INTO events (type, payload) SELECT 'bomb', jsonb_agg(('1e131071')::numeric) FROM generate_series(1, 2300);
         INSERT INTO events (type) VALUES ('after')",
    );
    let events = peek_events(&cluster, "s");
    assert_eq!(events[0]["error"]["code"], "too_large");
    assert!(events[0]["error"]["raw"]["payload"].as_str().unwrap().len() < 100_000);
    assert_eq!(events[1]["type"], "after");
}

#[test]
fn a_row_without_a_needed_value_or_column_becomes_an_error_event() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "ALTER TABLE events ALTER COLUMN type DROP NOT NULL; INSERT INTO events (type, payload) VALUES (NULL, '1');
         ALTER TABLE events RENAME COLUMN payload TO body; INSERT INTO events (type, body) VALUES ('renamed', '2');
         ALTER TABLE events RENAME COLUMN body TO payload; INSERT INTO events (type, payload) VALUES ('back', '3')",
    );
    let events = peek_events(&cluster, "s");
    assert_eq!((&events[0]["error"]["code"], &events[0]["payload"]), (&json!("null"), &json!(1)));
    assert_eq!(events[1]["error"]["code"], "mapping");
    assert!(events[1]["error"]["detail"].as_str().unwrap().contains("payload"), "{}", events[1]);
    assert_eq!(events[1]["error"]["raw"]["body"], "Mg==");
    assert_eq!((&events[2]["type"], &events[2]["payload"]), (&json!("back"), &json!(3)));
}

#[test]
fn a_marker_that_makes_no_sense_yields_error_events_and_no_error() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    let marked = |table: &str, arguments: &str| {
        format!(
            "CREATE TABLE {table} (event_id uuid DEFAULT gen_random_uuid(), type text DEFAULT 't', payload jsonb, headers int);
             CREATE TRIGGER postbox_outbox BEFORE UPDATE ON {table} FOR EACH ROW WHEN (false)
                 EXECUTE FUNCTION suppress_redundant_updates_trigger({arguments});
             INSERT INTO {table} (payload) VALUES ('1');"
        )
    };
    for (table, arguments, detail) in [
        ("a", "'nonsense'", "role=column"),
        ("b", "'colour=type'", "colour"),
        ("c", "'payload=nothing', 'headers='", "nothing"),
        ("d", "'type=type', 'type=type'", "twice"),
        ("e", "", "neither json nor jsonb"),
        ("f", "'headers=', 'payload='", "payload"),
    ] {
        cluster.psql("postgres", &marked(table, arguments));
        let events = peek_events(&cluster, "s");
        let event = events.last().unwrap();
        assert_eq!(event["outbox"], format!("public.{table}"));
        assert_eq!(event["error"]["code"], "mapping", "{event}");
        assert!(event["error"]["detail"].as_str().unwrap().contains(detail), "{event}");
    }
}

#[test]
fn columns_added_dropped_and_generated_do_not_shift_the_fields() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "INSERT INTO events (type, payload) VALUES ('a', '1');
         BEGIN; ALTER TABLE events DROP COLUMN created_at; INSERT INTO events (type, payload) VALUES ('b', '2');
         ALTER TABLE events ADD COLUMN added text DEFAULT 'x', ADD COLUMN doubled text GENERATED ALWAYS AS (type || type) STORED;
         INSERT INTO events (type, payload) VALUES ('c', '3'); COMMIT;",
    );
    let events = peek_events(&cluster, "s");
    assert_eq!(member(&events, "type"), ["a", "b", "c"]);
    assert_eq!(member(&events, "payload"), [&json!(1), &json!(2), &json!(3)]);
    assert!(events.iter().all(|event| event.get("error").is_none()), "{events:?}");
}

#[test]
fn a_prepared_transaction_comes_when_it_is_committed() {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "5").with_postbox().start();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    // A slot that asks to be told at PREPARE gets what this plugin gives: committed events only.
    cluster.psql("postgres", "SELECT pg_create_logical_replication_slot('t', 'postbox', twophase => true)");
    cluster.psql(
        "postgres",
        "BEGIN; INSERT INTO fence (type) VALUES ('two-phase'); PREPARE TRANSACTION 'p';
         BEGIN; INSERT INTO fence (type) VALUES ('never'); PREPARE TRANSACTION 'q'",
    );
    for slot in ["s", "t"] {
        assert_eq!(peek_events(&cluster, slot).len(), 0, "{slot}");
    }
    cluster.psql(
        "postgres",
        "INSERT INTO fence (type) VALUES ('between'); ROLLBACK PREPARED 'q'; COMMIT PREPARED 'p'; INSERT INTO fence (type) VALUES ('after')",
    );
    for slot in ["s", "t"] {
        assert_eq!(member(&peek_events(&cluster, slot), "type"), ["between", "two-phase", "after"], "{slot}");
        let live = deliver(&cluster, "postgres", &["--slot", slot]);
        assert_eq!(member(&live, "type"), ["between", "two-phase", "after"], "{slot}");
    }
}

#[test]
fn decode_shows_frames_as_rows() {
    let cluster = with_outbox("jsonb");
    cluster.psql(
        "postgres",
        "INSERT INTO events (key, type, headers, payload) VALUES ('k', 't', '{\"a\": 1}', '{\"n\": 1.50}')",
    );
    let decoded = cluster.psql(
        "postgres",
        "SELECT d.outbox, d.event_id::uuid = e.event_id, d.type, d.key, d.headers, d.payload, d.ordinal, d.xid::text = e.xid::text,
            d.commit_time > e.created_at, d.commit_lsn < s.lsn, d.error IS NULL
         FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL) s, postbox.decode(s.data) d, events e",
    );
    assert_eq!(decoded, "public.events|t|t|k|{\"a\": 1}|{\"n\": 1.50}|0|t|t|t|t");
    let error = cluster.psql_result("postgres", "SELECT postbox.decode('\\x0900')").unwrap_err();
    assert!(error.contains("frame version") && error.contains("byte 0"), "{error}");
}

#[test]
fn the_slot_works_with_pg_recvlogical_and_get_changes() {
    let cluster = with_outbox("jsonb");
    cluster.psql("postgres", "INSERT INTO events (type) VALUES ('a')");
    let end = cluster.psql("postgres", "SELECT pg_current_wal_lsn()");
    let output = std::process::Command::new(cluster.bin("pg_recvlogical"))
        .args(["-d", &cluster.conninfo("postgres"), "--slot", "s", "--start", "-f", "-", "--no-loop", "--endpos", &end])
        .args(["-o", "names=frame", "-o", "proto_version=1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let frame = output.stdout.strip_suffix(b"\n").unwrap();
    assert_eq!(member(&decode(&mut Decoder::new(), frame).unwrap().events, "type"), ["a"]);
    cluster.psql("postgres", "INSERT INTO events (type) VALUES ('b')");
    let count = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('s', NULL, NULL)";
    assert_eq!(cluster.psql("postgres", count), "1");
    assert_eq!(cluster.psql("postgres", count), "0");
    let bare = std::process::Command::new(cluster.bin("pg_recvlogical"))
        .args(["-d", &cluster.conninfo("postgres"), "--slot", "s", "--start", "-f", "-", "--no-loop", "-o", "names"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&bare.stderr).contains("needs a value"), "PostgreSQL {}: {bare:?}", major());
}

#[test]
fn the_text_form_is_refused_and_reads_end_where_they_are_told() {
    let cluster = with_outbox("jsonb");
    for event_type in ["a", "b", "c", "d"] {
        cluster.psql("postgres", &format!("INSERT INTO events (type) VALUES ('{event_type}'), ('second')"));
    }
    for function in ["get", "peek"] {
        let sql = format!("SELECT * FROM pg_logical_slot_{function}_changes('s', NULL, NULL)");
        let error = cluster.psql_result("postgres", &sql).unwrap_err();
        assert!(error.contains("\"postbox\" produces binary output"), "{error}");
    }
    // Changes are counted by frames, and a position means the transaction that it lies in too.
    let read = |upto: &str| {
        let rows = "SELECT d.type FROM pg_logical_slot_get_binary_changes('s', UPTO) s, postbox.decode(s.data) d WHERE d.ordinal = 0";
        cluster.psql("postgres", &rows.replace("UPTO", upto)).replace('\n', " ")
    };
    assert_eq!(read("NULL, 1"), "a");
    let second = peek(&cluster, "s", "")[0].transaction;
    assert_eq!(read(&format!("'{}', NULL", second.end_lsn)), "b");
    assert_eq!((read("NULL, 1000"), read("NULL, NULL")), ("c d".to_owned(), String::new()));
}

#[test]
fn rows_with_nothing_in_them_become_error_events_for_every_payload_type() {
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        let cluster = with_outbox(payload_type);
        cluster.psql(
            "postgres",
            &format!(
                "CREATE TABLE loose (event_id uuid, type text, key text, headers jsonb, payload {payload_type});
                 SELECT postbox.adopt_outbox('loose');
                 ALTER TABLE events ALTER event_id DROP NOT NULL, ALTER type DROP NOT NULL, ALTER created_at DROP NOT NULL, ALTER xid DROP NOT NULL;
                 INSERT INTO events (event_id, type, key, headers, payload, created_at, xid) VALUES (NULL, NULL, NULL, NULL, NULL, NULL, NULL);
                 INSERT INTO loose DEFAULT VALUES;
                 INSERT INTO events (type, key, headers, payload, created_at, xid) VALUES ('all that may be', NULL, NULL, NULL, NULL, NULL)"
            ),
        );
        let events = peek_events(&cluster, "s");
        assert_eq!(events.len(), 3, "{payload_type}");
        for event in &events[..2] {
            assert_eq!(event["error"]["code"], "null", "{payload_type}: {event}");
            let fields = ["event_id", "type", "key", "headers", "payload"];
            assert!(fields.iter().all(|field| event[field].is_null()), "{payload_type}: {event}");
        }
        assert_eq!((&events[2]["type"], events[2].get("error")), (&json!("all that may be"), None));
        let fields = ["key", "headers", "payload"];
        assert!(fields.iter().all(|field| events[2][field].is_null()), "{payload_type}: {}", events[2]);
        assert_eq!(deliver(&cluster, "postgres", &["--slot", "s"]), events, "{payload_type}");
    }
}
