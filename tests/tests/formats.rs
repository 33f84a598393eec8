//! How the binary writes events: CloudEvents, and frames that come compressed.

use std::collections::HashSet;
use std::fs;

use postbox_tests::Cluster;
use postbox_tests::tap::{deliver, make_slot, peek_events, prepare, raw};
use serde_json::{Value, json};
use tempfile::TempDir;

const NONE: [Value; 0] = [];

fn with_slot() -> Cluster {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    cluster
}

/// The names of a CloudEvent's attributes: lower-case letters and digits (specification, section 3.1.1).
fn check_names(event: &Value) {
    for (name, value) in event.as_object().unwrap() {
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        assert!(plain || name == "data_base64", "{name}");
        assert!(value != "" && !value.is_null(), "{name} is empty");
        assert!(name == "data" || !(value.is_object() || value.is_array()), "{name} is no attribute");
    }
}

#[test]
fn cloudevents_have_the_attributes_that_they_need() {
    let cluster = with_slot();
    cluster.psql(
        "postgres",
        r#"CREATE SCHEMA "Odd /name"; SELECT postbox.create_outbox('a b', 'Odd /name', payload_type => 'text');
           SELECT postbox.create_outbox('scans', payload_type => 'bytea');
           INSERT INTO fence (event_id, key, type, headers, payload) VALUES
             ('5f0dc0de-0000-4000-8000-000000000001', 'ada', 'order.placed',
              '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b", "retries": 2, "urgent": true}', '{"total": 1.50}'),
             ('5f0dc0de-0000-4000-8000-000000000002', NULL, 'plain', NULL, NULL);
           INSERT INTO "Odd /name"."a b" (event_id, type, payload) VALUES ('5f0dc0de-0000-4000-8000-000000000003', 't', E'line\n"two"');
           INSERT INTO scans (event_id, type, payload) VALUES ('5f0dc0de-0000-4000-8000-000000000004', 't', '\x00ff')"#,
    );
    let native = peek_events(&cluster, "s");
    let mut events = deliver(&cluster, "postgres", &["--slot", "s", "--format", "cloudevents"]);
    let mut sequences = Vec::new();
    for (event, native) in events.iter_mut().zip(&native) {
        check_names(event);
        let event = event.as_object_mut().unwrap();
        assert_eq!(event.remove("specversion").unwrap(), "1.0");
        assert_eq!(event.remove("time").unwrap(), native["commit_time"]);
        sequences.push(event.remove("sequence").unwrap().as_str().unwrap().to_owned());
    }
    assert!(sequences.is_sorted() && sequences.iter().collect::<HashSet<_>>().len() == 4, "{sequences:?}");
    assert!(sequences.iter().all(|sequence| sequence.len() == 32));
    let id = |number: u32| format!("5f0dc0de-0000-4000-8000-00000000000{number}");
    assert_eq!(
        events,
        [
            json!({
                "id": id(1), "source": "/postbox/postgres/public/fence", "type": "order.placed", "subject": "ada", "partitionkey": "ada",
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b", "retries": 2, "urgent": true,
                "datacontenttype": "application/json", "data": {"total": 1.50},
            }),
            json!({"id": id(2), "source": "/postbox/postgres/public/fence", "type": "plain"}),
            json!({
                "id": id(3), "source": "/postbox/postgres/Odd%20%2Fname/a%20b", "type": "t",
                "datacontenttype": "text/plain; charset=utf-8", "data": "line\n\"two\"",
            }),
            json!({
                "id": id(4), "source": "/postbox/postgres/public/scans", "type": "t",
                "datacontenttype": "application/octet-stream", "data_base64": "AP8=",
            }),
        ]
    );
}

#[test]
fn headers_that_cannot_be_attributes_go_along_whole() {
    let cluster = with_slot();
    let headers = [
        r#"{"X-Tenant": "a", "ok": "yes"}"#,
        r#"{"id": "mine", "nested": {"a": 1}}"#,
        r#"{"big": 3000000000, "none": null, "empty": ""}"#,
        r#"["no", "object"]"#,
        "{}",
    ];
    for headers in headers {
        cluster.psql("postgres", &format!("INSERT INTO fence (type, headers) VALUES ('t', '{headers}')"));
    }
    let events = deliver(&cluster, "postgres", &["--slot", "s", "--format", "cloudevents"]);
    assert_eq!(events.len(), headers.len());
    for (event, headers) in events.iter().zip(headers) {
        check_names(event);
        let expected = if headers == "{}" { Value::Null } else { headers.parse().unwrap() };
        let found = event.get("postboxheaders").map_or(Value::Null, |text| text.as_str().unwrap().parse().unwrap());
        assert_eq!(found, expected);
    }
    assert_eq!((&events[0]["ok"], events[0].get("X-Tenant")), (&json!("yes"), None));
    assert_ne!(events[1]["id"], "mine");
}

#[test]
fn an_error_event_is_a_cloudevent_with_the_reason() {
    let cluster = with_slot();
    cluster.psql(
        "postgres",
        "ALTER TABLE fence ALTER COLUMN event_id DROP NOT NULL; INSERT INTO fence (event_id, type, payload) VALUES (NULL, 'lost', '1');
         INSERT INTO fence (type) VALUES ('')",
    );
    let source = ["--slot", "s", "--format", "cloudevents", "--cloudevents-source", "https://shop.example/"];
    let events = deliver(&cluster, "postgres", &source);
    check_names(&events[0]);
    assert_eq!(events[0]["type"], "postbox.error");
    assert_eq!(events[0]["source"], "https://shop.example/public/fence");
    assert_eq!(events[0]["data"]["error"]["code"], "null");
    assert_eq!((&events[0]["data"]["type"], &events[0]["data"]["payload"]), (&json!("lost"), &json!(1)));
    let place = format!("{}/0", events[0]["data"]["commit_lsn"].as_str().unwrap());
    assert_eq!(events[0]["id"], place);
    assert_eq!(events[1]["type"], "postbox.untyped");
}

#[test]
fn compressed_frames_bring_the_same_events_in_fewer_bytes() {
    let cluster = with_slot();
    cluster.psql(
        "postgres",
        "INSERT INTO fence (key, type, payload) SELECT n, 'bulk', jsonb_build_object('order', n, 'state', 'placed', 'currency', 'EUR') FROM generate_series(1, 3000) n;
         INSERT INTO fence (type) VALUES ('small');
         INSERT INTO fence (type, payload) VALUES ('large', to_jsonb(repeat('x', 6 << 20)))",
    );
    let native = peek_events(&cluster, "s");
    assert_eq!(native.len(), 3002);
    let (plain, compressed) = (raw(&cluster, "s", ""), raw(&cluster, "s", "'compression', 'lz4'"));
    let length = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
    let (plain, compressed) = (length(&plain), length(&compressed));
    let (bulk, of_bulk) = (&plain[..plain.len() - 2], &compressed[..compressed.len() - 2]);
    assert!(of_bulk.iter().sum::<usize>() * 2 < bulk.iter().sum(), "{of_bulk:?} against {bulk:?}");
    assert_eq!(plain[plain.len() - 2..], compressed[compressed.len() - 2..], "the small one and the large one");

    // People read it, and the consumer does.
    let rows = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'compression', 'lz4') s, postbox.decode(s.data)";
    assert_eq!(cluster.psql("postgres", rows), "3002");
    assert_eq!(deliver(&cluster, "postgres", &["--slot", "s", "--compression", "lz4"]), native);
    assert_eq!(deliver(&cluster, "postgres", &["--slot", "s"]), NONE);
}

#[test]
fn cloudevents_go_to_commands_and_come_from_the_table() {
    let cluster = with_slot();
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('live', '{fence}')");
    for n in 1..4 {
        let headers = r#"{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
        let sql = format!("INSERT INTO fence (key, type, headers, payload) VALUES ('k', 't{n}', '{headers}', '{n}')");
        cluster.psql("postgres", &sql);
    }
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('stored', '{fence}', 'earliest')");
    let dir = TempDir::new().unwrap();
    let said = |group: &str| {
        let file = dir.path().join(group);
        let command = format!("cat >> {}", file.display());
        let exec = ["--group", group, "--format", "cloudevents", "--sink", "exec", "--exec", &command];
        assert!(deliver(&cluster, "postgres", &exec).is_empty());
        let lines = fs::read_to_string(file).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let mut printed = deliver(&cluster, "postgres", &["--slot", "s", "--format", "cloudevents"]);
    assert_eq!(said("live"), printed);
    // A row says nothing of its commit: no place in the log, and the time is when it was made.
    let mut stored = said("stored");
    let made = cluster.psql("postgres", "SELECT to_json(created_at AT TIME ZONE 'UTC')::text FROM fence ORDER BY seq");
    for (event, made) in stored.iter_mut().zip(made.lines()) {
        check_names(event);
        let time = event.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().starts_with(made.trim_matches('"').trim_end_matches('0')), "{time} {made}");
    }
    for event in &mut printed {
        let event = event.as_object_mut().unwrap();
        assert!(event.remove("time").is_some() && event.remove("sequence").is_some());
    }
    assert_eq!(stored, printed);
}
