//! Databases whose text is not UTF-8: the stream is UTF-8 all the same, and what cannot be is told.

use std::process::Command;

use postbox_tests::tap::{decode, deliver, make_slot, prepare, raw_of};
use postbox_tests::{Cluster, postbox_binary};
use postbox_wire::Decoder;
use serde_json::{Value, json};

/// A cluster with a database of this encoding, an outbox of each payload type in it, and the slot `s`.
fn with_database(encoding: &str) -> Cluster {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        &format!("CREATE DATABASE other ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"),
    );
    prepare(&cluster, "other");
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        let sql = format!("SELECT postbox.create_outbox('of_{payload_type}', payload_type => '{payload_type}')");
        cluster.psql("other", &sql);
    }
    make_slot(&cluster, "other", "s");
    cluster
}

fn events(cluster: &Cluster) -> Vec<Value> {
    let frames = raw_of(cluster, "other", "s", "");
    frames.iter().flat_map(|frame| decode(&mut Decoder::new(), frame).unwrap().events).collect()
}

#[test]
fn text_of_any_encoding_comes_as_utf8() {
    for (encoding, text) in [
        ("LATIN1", "Größe \"ÿ\""),
        ("WIN1251", "Привет"),
        ("EUC_JP", "日本\\語"),
        ("EUC_KR", "한국어"),
        ("UTF8", "😀 ä"),
    ] {
        let cluster = with_database(encoding);
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        cluster.psql(
            "other",
            &format!(
                "SET client_encoding = 'UTF8';
                 INSERT INTO of_jsonb (key, type, headers, payload) VALUES ('{text}', '{text}', '{{\"{quoted}\": \"{quoted}\"}}', '[\"{quoted}\"]');
                 INSERT INTO of_json (type, payload) VALUES ('t', '[ \"{quoted}\" ]');
                 INSERT INTO of_text (type, payload) VALUES ('t', '{text}');
                 INSERT INTO of_bytea (type, payload) VALUES ('t', convert_to('{text}', 'UTF8'))"
            ),
        );
        let events = events(&cluster);
        assert_eq!(events[0]["key"], text, "{encoding}");
        assert_eq!(events[0]["type"], text, "{encoding}");
        assert_eq!(events[0]["headers"], json!({ text: text }), "{encoding}");
        assert_eq!(events[0]["payload"], json!([text]), "{encoding}");
        assert_eq!(events[1]["payload"], json!([text]), "{encoding}");
        assert_eq!(events[2]["payload"], text, "{encoding}");
        let bytes = cluster.psql("other", "SELECT encode(payload, 'base64') FROM of_bytea");
        assert_eq!(events[3]["payload"], bytes, "{encoding}");
        assert!(events.iter().all(|event| event.get("error").is_none()), "{encoding}: {events:?}");
        // People see the same.
        let shown = "SET client_encoding = 'UTF8'; SELECT d.key, d.payload
            FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL) s, postbox.decode(s.data) d LIMIT 1";
        assert_eq!(cluster.psql("other", shown), format!("{text}|[\"{quoted}\"]"), "{encoding}");
    }
}

#[test]
fn bytes_that_are_no_text_become_error_events_and_the_stream_goes_on() {
    let cluster = with_database("SQL_ASCII");
    cluster.psql(
        "other",
        r#"INSERT INTO of_text (key, type, payload) VALUES ('fine', 'ä', 'ü');
          INSERT INTO of_text (key, type, payload) VALUES (E'k\xe4', E't\xe4', E'p\xe4');
          INSERT INTO of_jsonb (type, headers, payload) VALUES ('t', E'{"h": "\xe4"}', E'["\xe4"]');
          INSERT INTO of_json (type, payload) VALUES ('t', E'["\xe4"]');
          INSERT INTO of_bytea (type, payload) VALUES ('t', '\xe4');
          INSERT INTO of_text (type, payload) VALUES ('after', 'all')"#,
    );
    let events = events(&cluster);
    assert_eq!((&events[0]["type"], &events[0]["payload"]), (&json!("ä"), &json!("ü")));
    let error = |index: usize| &events[index]["error"];
    assert_eq!(error(1)["code"], "encoding");
    // "p\xe4", "t\xe4" and "k\xe4" in base64.
    assert_eq!(error(1)["raw"], json!({"key": "a+Q=", "type": "dOQ=", "payload": "cOQ="}));
    assert!(error(1)["detail"].as_str().unwrap().contains("byte 1 is not UTF-8"), "{}", events[1]);
    assert_eq!(error(2)["code"], "encoding");
    assert!(error(2)["raw"]["payload"].is_string() && error(2)["raw"]["headers"].is_string(), "{}", events[2]);
    assert_eq!(error(3)["raw"]["payload"], "WyLkIl0=");
    assert_eq!((&events[4]["payload"], events[4].get("error")), (&json!("5A=="), None));
    assert_eq!(events[5]["payload"], "all");

    // The consumer takes them as they come, and confirms.
    assert_eq!(deliver(&cluster, "other", &["--slot", "s"]), events);
    assert_eq!(deliver(&cluster, "other", &["--slot", "s"]), [] as [Value; 0]);
}

#[test]
fn names_of_any_encoding_are_followed_and_shown() {
    let cluster = with_database("LATIN1");
    // 60 bytes in the database, which leaves room for the leaves' suffix, and 120 in UTF-8.
    let long = "ä".repeat(60);
    cluster.psql(
        "other",
        &format!(
            "SET client_encoding = 'UTF8'; CREATE SCHEMA \"Größe\"; SELECT postbox.create_outbox('{long}', 'Größe');
             INSERT INTO \"Größe\".\"{long}\" (type) VALUES ('long'); INSERT INTO of_text (type) VALUES ('short')"
        ),
    );
    let name = format!("Größe.{long}");
    assert_eq!(events(&cluster)[0]["outbox"], name);
    for selector in [format!("\"Größe\".\"{long}\""), "public.of_text".to_owned()] {
        let frames = raw_of(&cluster, "other", "s", &format!("'outboxes', '{selector}'"));
        assert_eq!(frames.len(), 1, "{selector}");
    }
    let create = format!(
        "SET client_encoding = 'UTF8'; SELECT postbox.create_consumer_group('g', ARRAY['\"Größe\".\"{long}\"'])"
    );
    cluster.psql("other", &create);
    cluster.psql(
        "other",
        &format!("SET client_encoding = 'UTF8'; INSERT INTO \"Größe\".\"{long}\" (type) VALUES ('grouped')"),
    );
    let delivered = deliver(&cluster, "other", &["--group", "g"]);
    assert_eq!(
        delivered.iter().map(|event| (&event["outbox"], &event["type"])).collect::<Vec<_>>(),
        [(&json!(name), &json!("grouped"))]
    );

    // A message cannot have the character as it is.
    let error = cluster
        .psql_result("other", "SET client_encoding = 'UTF8'; SELECT postbox.publish('nöwhere', 't', '{}'::jsonb)")
        .unwrap_err();
    assert!(error.contains("outbox \"n\\u{f6}where\" does not exist"), "{error}");
}

#[test]
fn an_error_event_says_names_of_any_encoding() {
    let cluster = with_database("LATIN1");
    cluster.psql(
        "other",
        "SET client_encoding = 'UTF8';
         CREATE TABLE odd (event_id uuid DEFAULT gen_random_uuid(), type text, headers jsonb, \"größe\" jsonb, \"höhe\" text);
         SELECT postbox.adopt_outbox('odd', payload => 'größe', header_columns => '{höhe}');
         INSERT INTO odd (type, headers, \"höhe\") VALUES ('t', '{\"höhe\": 1}', 'x');
         ALTER TABLE odd RENAME \"größe\" TO \"länge\"; INSERT INTO odd (\"länge\") VALUES ('1')",
    );
    let events = events(&cluster);
    let (clash, renamed) = (&events[0]["error"], &events[1]["error"]);
    assert_eq!(clash["detail"], "column \"höhe\": the row's headers have a \"höhe\" of their own");
    assert_eq!(clash["raw"], json!({"höhe": "eA=="}));
    assert!(renamed["detail"].as_str().unwrap().contains("\"größe\""), "{renamed}");
    assert_eq!(renamed["raw"]["länge"], "MQ==", "{renamed}");
}

#[test]
fn people_see_events_with_characters_that_the_database_lacks() {
    let cluster = with_database("LATIN1");
    cluster.psql("other", "SELECT postbox.set_emit('of_json', true), postbox.set_emit('of_text', true)");
    let emit = |outbox: &str, members: &str| {
        let oid = cluster.psql("other", &format!("SELECT '{outbox}'::regclass::oid"));
        let message = format!("{{\"outbox\":{oid},{members}}}");
        let bytes: String = message.bytes().map(|byte| format!("{byte:02x}")).collect();
        cluster.psql("other", &format!("SELECT pg_logical_emit_message(true, 'postbox', '\\x{bytes}'::bytea)"));
    };
    let id = "\"id\":\"00000000-0000-4000-8000-0000000000ab\"";
    cluster.psql("other", "SELECT postbox.publish('of_json', 't', '{\"a\": \"\\u20ac\"}'::json)");
    emit("of_json", &format!("{id},\"type\":\"t\",\"headers\":[\"ä\",\"€\"],\"payload\":\"ä\""));
    emit("of_json", &format!("{id},\"type\":\"t\",\"headers\":[\"ä\"],\"payload\":\"ä€😀\""));
    emit("of_text", &format!("{id},\"type\":\"t\",\"payload\":\"€\""));
    emit("of_text", "\"id\":\"€\"");
    let shown = "SET client_encoding = 'UTF8'; SELECT d.headers, coalesce(d.payload, d.error ->> 'detail')
        FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL) s, postbox.decode(s.data) d";
    let expected = [
        r#"|{"a": "\u20ac"}"#,
        r#""[\"\\u00e4\",\"\\u20ac\"]"|"ä""#,
        r#"["\\u00e4"]|"\u00e4\u20ac\ud83d\ude00""#,
        r"|\u20ac",
        r#"|the message is no event: its id "\u20ac" is not a UUID"#,
    ];
    assert_eq!(cluster.psql("other", shown).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_name_that_is_no_text_does_not_stop_the_stream() {
    let cluster = with_database("SQL_ASCII");
    let name = "convert_from('\\x62e464', 'SQL_ASCII')";
    cluster.psql(
        "other",
        &format!(
            "DO $do$ BEGIN EXECUTE format('CREATE TABLE odd (event_id uuid DEFAULT gen_random_uuid(), type text, %I jsonb)', {name});
                 PERFORM postbox.adopt_outbox('odd', payload => {name}); EXECUTE format('ALTER TABLE odd RENAME TO %I', {name}); EXECUTE format('INSERT INTO %I (type, %I) VALUES (''odd'', ''1'')', {name}, {name}); END $do$;
             INSERT INTO of_text (type) VALUES ('after')"
        ),
    );
    let events = events(&cluster);
    let shown = |event: &Value| (event["outbox"].clone(), event["type"].clone(), event["payload"].clone());
    assert_eq!(shown(&events[0]), (json!("public.b\u{fffd}d"), json!("odd"), json!(1)));
    assert_eq!(shown(&events[1]), (json!("public.of_text"), json!("after"), Value::Null));
    assert_eq!(deliver(&cluster, "other", &["--slot", "s"]), events);
}

#[test]
fn a_name_that_is_no_text_is_refused_for_outboxes_and_their_groups() {
    let cluster = with_database("SQL_ASCII");
    let name = "convert_from('\\x62e464', 'SQL_ASCII')";
    cluster.psql(
        "other",
        &format!(
            "DO $do$ BEGIN EXECUTE format('CREATE SCHEMA %I', {name}); EXECUTE format('ALTER TABLE of_bytea RENAME TO %I', {name}); END $do$;
             CREATE TABLE old (event_id uuid, type text, payload jsonb)"
        ),
    );
    for (sql, shown) in [
        (format!("postbox.create_outbox({name} || 'x')"), "\"public.b\\344dx\""),
        (format!("postbox.create_outbox('orders', {name})"), "\"b\\344d.orders\""),
        (format!("postbox.adopt_outbox({name})"), "\"public.b\\344d\""),
        (format!("postbox.create_consumer_group('g', ARRAY[quote_ident({name})])"), "\"public.b\\344d\""),
    ] {
        let refused = cluster.psql_result("other", &format!("\\set VERBOSITY verbose\nSELECT {sql}")).unwrap_err();
        assert!(
            refused.contains("42602") && refused.contains(shown) && refused.contains("RENAME TO"),
            "{sql}: {refused}"
        );
    }
}

#[test]
fn an_outbox_renamed_to_what_is_no_text_stops_nobody() {
    let cluster = with_database("SQL_ASCII");
    cluster.psql(
        "other",
        "SELECT postbox.create_consumer_group('g', '{of_text,of_json}'); SELECT postbox.create_consumer_group('h', '{of_text}');
         SELECT postbox.set_retention('of_json', '0')",
    );
    cluster.psql(
        "other",
        "DO $do$ BEGIN EXECUTE format('ALTER TABLE of_json RENAME TO %I', convert_from('\\x62e464', 'SQL_ASCII')); END $do$;
         INSERT INTO of_text (type) VALUES ('first')",
    );
    let insert = "DO $do$ BEGIN EXECUTE format('INSERT INTO %I (type) VALUES (''odd'')', convert_from('\\x62e464', 'SQL_ASCII')); END $do$";
    cluster.psql("other", insert);
    let run = |line: &str| {
        let mut command = Command::new(postbox_binary());
        let output = command.args(line.split(' ')).args(["-d", &cluster.conninfo("other")]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for line in ["outbox list", "group list", "group describe g"] {
        let listed = run(line);
        assert!(listed.contains("b\\344d"), "{line}: {listed}");
    }
    let types = |group: &str| {
        let events = deliver(&cluster, "other", &["--group", group]);
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(types("g"), ["first", "odd"]);
    assert_eq!(types("h"), ["first"]);
    run("maintain --once");
    // From the table, where the stream has lost its place.
    cluster.psql("other", insert);
    cluster.psql("other", "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_group WHERE name = 'g'");
    run("group recover g");
    assert!(
        run("group describe g").contains("From table:    public.\"b\\344d\", because of recover"),
        "{}",
        run("group describe g")
    );
    assert!(types("g").contains(&"odd".to_owned()));
}
