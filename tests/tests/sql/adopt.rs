//! `adopt_outbox`: existing tables.

use postbox_tests::tap::{make_slot, peek_events};
use postbox_tests::{major, skip};
use serde_json::{Value, json};

use super::{refused, row, rows, run, start};

#[tokio::test]
async fn adoption_changes_nothing_but_the_mark() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE old (id bigint PRIMARY KEY, kind varchar(20), body json, note text)").await;
    run(&client, "INSERT INTO old VALUES (1, 'before', '{}', 'n')").await;
    let shape =
        "SELECT relfilenode, relnatts, relhasindex, reloptions, relacl, xmin FROM pg_class WHERE relname = 'old'";
    let before = row(&client, &shape.replace(", xmin", "")).await;
    let adopt = "SELECT postbox.adopt_outbox('old', event_id => 'id', type => 'kind', payload => 'body')";
    assert_eq!(row(&client, adopt).await, "old");
    assert_eq!(row(&client, &shape.replace(", xmin", "")).await, before);
    let marker = "SELECT postbox._marker_arguments(tgargs) FROM pg_trigger WHERE tgrelid = 'old'::regclass";
    assert_eq!(
        row(&client, marker).await,
        "{event_id=id,type=kind,key=,headers=,payload=body,seq=,xid=,origin=adopted}"
    );
    let status = "SELECT name, payload_type, generation, last_seq, adopted, replayable FROM postbox.outbox_status()";
    assert_eq!(row(&client, status).await, "old|json|||t|f");

    run(&client, "SELECT postbox.drop_outbox('old')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM old").await, "1");
    assert_eq!(row(&client, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'old'::regclass").await, "0");
}

#[tokio::test]
async fn an_adopted_table_is_published_to_by_its_own_columns() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE old (\"the id\" text, kind varchar(20), k uuid, h json, body bytea)").await;
    run(
        &client,
        "SELECT postbox.adopt_outbox('old', event_id => 'the id', type => 'kind', key => 'k', headers => 'h',
             payload => 'body')",
    )
    .await;
    let key = "00000000-0000-4000-8000-00000000000a";
    let id = row(&client, &format!("SELECT postbox.publish('old', 'made', '\\x01ff', '{key}', '{{\"h\": 1}}')")).await;
    assert_eq!(row(&client, "SELECT * FROM old").await, format!("{id}|made|{key}|{{\"h\": 1}}|\\x01ff"));
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    run(&client, &format!("SELECT postbox.publish('old', 'made', '\\x01ff'::bytea, '{key}', '{{\"h\": 1}}')")).await;
    let event = "SELECT d.outbox, d.type, d.key, d.headers, d.payload
        FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL), postbox.decode(data) d";
    assert_eq!(row(&client, event).await, format!("public.old|made|{key}|{{\"h\": 1}}|Af8="));
}

#[tokio::test]
async fn columns_that_an_adopted_table_lacks_cannot_be_published() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE old (event_id uuid, type text, key text, payload jsonb, n int)").await;
    run(&client, "SELECT postbox.adopt_outbox('old', key => '')").await;
    run(&client, "SELECT postbox.publish('old', 't', '{}')").await;
    refused(&client, "SELECT postbox.publish('old', 't', '{}', 'k')", "42703", "no column for key", "adopt_outbox")
        .await;
    refused(&client, "SELECT postbox.publish('old', 't', '{}', headers => '{}')", "42703", "for headers", "adopt")
        .await;
    // A column added later is not taken for one of the event's.
    run(&client, "ALTER TABLE old ADD headers jsonb").await;
    refused(&client, "SELECT postbox.publish('old', 't', '{}', headers => '{}')", "42703", "for headers", "adopt")
        .await;
    run(&client, "SELECT postbox.drop_outbox('old'); SELECT postbox.adopt_outbox('old')").await;
    run(&client, "SELECT postbox.publish('old', 't', '{}', 'k', '{}')").await;
    assert_eq!(rows(&client, "SELECT key, headers FROM old").await, ["|", "k|{}"]);

    run(&client, "SELECT postbox.drop_outbox('old'); SELECT postbox.adopt_outbox('old', event_id => 'n')").await;
    let sql = "SELECT postbox.publish('old', 't', '{}')";
    refused(&client, sql, "42804", "event_id of type uuid does not fit column \"n\"", "INSERT into the table").await;
    run(&client, "ALTER TABLE old RENAME n TO m").await;
    refused(&client, sql, "42809", "the column \"n\" for event_id does not exist", "postbox.adopt_outbox").await;
}

#[tokio::test]
async fn a_partitioned_table_is_adopted_as_a_whole() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE old (event_id uuid, type text, payload jsonb) PARTITION BY LIST (type)").await;
    run(&client, "CREATE TABLE old_a PARTITION OF old FOR VALUES IN ('a')").await;
    refused(&client, "SELECT postbox.adopt_outbox('old_a')", "42809", "is a partition", "partitioned table").await;
    run(&client, "SELECT postbox.adopt_outbox('old'); SELECT postbox.publish('old', 'a', '{}')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM old_a").await, "1");
    refused(&client, "SELECT postbox.publish('old_a', 'a', '{}')", "42809", "is a partition", "public.old").await;
    assert_eq!(rows(&client, "SELECT name FROM postbox.outbox_status()").await, ["old"]);
    run(&client, "SELECT postbox.drop_outbox('old')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").await, "0");
}

#[tokio::test]
async fn tables_that_cannot_be_outboxes_are_refused_with_the_remedy() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE t (event_id uuid, type text, payload jsonb, n int, at date, \"a=b\" int, big bigint)")
        .await;
    run(&client, "CREATE TABLE f (LIKE t) PARTITION BY LIST (type); CREATE UNLOGGED TABLE f_u PARTITION OF f DEFAULT")
        .await;
    run(&client, "CREATE VIEW v AS SELECT * FROM t; CREATE UNLOGGED TABLE u (LIKE t)").await;
    let cases = [
        ("NULL", "22004", "a name", "key, headers, seq and xid"),
        ("'t', type => ''", "22004", "columns for event_id, type and payload", "may be empty"),
        ("'t', layout => NULL", "22004", "a layout", "may be empty"),
        ("'t', layout => 'kafka'", "22023", "layout \"kafka\" is not one of", "one by one"),
        ("'consumer_group', 'postbox'", "42939", "reserved schema", "a schema of yours"),
        ("'pg_class', 'pg_catalog'", "42939", "reserved schema", "a schema of yours"),
        ("'f'", "42809", "f_u is temporary, unlogged or foreign", "SET LOGGED"),
        ("'t', layout => 'debezium'", "42703", "no column \"id\" to be the event_id", "event_id =>"),
        ("'t', seq => 'n'", "42804", "\"n\" of \"public.t\" has type integer", "seq => '' the events have none"),
        ("'t', seq => 'big'", "42P16", "\"big\"", "Leave seq and xid out"),
        ("'t', header_columns => '{gone}'", "42703", "no column \"gone\" to be a header", "column=header"),
        ("'t', header_columns => '{n=}'", "42602", "\"\" cannot be the name of a header", "{\"n=...\"}"),
        ("'t', header_columns => '{a=b}'", "42602", "\"a=b\" cannot be the name of a header", "{\"a=b=...\"}"),
        ("'t', header_columns => '{n,at=n}'", "42710", "the header \"n\" twice", "{\"at=...\"}"),
        ("'t', header_columns => '{NULL}'", "22004", "header_columns has a NULL", "column=header"),
        ("'t', header_columns => '{at}', payload => 'x'", "42703", "no column \"x\"", "payload =>"),
        ("'none'", "42P01", "\"public.none\" does not exist", "schema as the second argument"),
        ("'t', 'nowhere'", "42P01", "\"nowhere.t\" does not exist", "schema as the second argument"),
        ("'v'", "42809", "\"public.v\" is not a table", "ordinary or a partitioned table"),
        ("'u'", "42809", "public.u is temporary, unlogged or foreign", "SET LOGGED"),
        ("'t', event_id => 'id'", "42703", "no column \"id\" to be the event_id", "event_id =>"),
        ("'t', key => 'k'", "42703", "no column \"k\" to be the key", "key =>"),
        ("'t', event_id => 'at'", "42804", "\"at\" of \"public.t\" has type date", "event_id =>"),
        ("'t', payload => 'n'", "42804", "has type integer and cannot be the payload", "payload =>"),
        ("'t', headers => 'type'", "42804", "has type text and cannot be the headers", "headers =>"),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.adopt_outbox({arguments})"), code, message, hint).await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").await, "0");
    run(&client, "SELECT postbox.adopt_outbox('t')").await;
    refused(&client, "SELECT postbox.adopt_outbox('t')", "42710", "is an outbox already", "drop_outbox").await;
}

/// The members of the events that the mapping decides.
fn mapped(events: &[Value]) -> Vec<Value> {
    let members = ["outbox", "event_id", "type", "key", "headers", "payload", "error"];
    let of = |event: &Value| {
        let members = members.iter().filter(|name| !event[**name].is_null());
        members.map(|name| ((*name).to_owned(), event[*name].clone())).collect()
    };
    events.iter().map(|event| Value::Object(of(event))).collect()
}

#[tokio::test]
async fn the_debezium_layout_is_adopted_by_one_word() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
             type varchar(255) NOT NULL, payload jsonb, headers jsonb);
         CREATE TABLE \"Outbox\" (\"Id\" uuid, \"AggregateType\" text, \"AggregateId\" text, \"Type\" text, \"Payload\" text);
         CREATE TABLE other (id uuid, aggregatetype text, customer bigint, type text, payload bytea);
         CREATE TABLE twice (\"ID\" uuid, \"Id\" uuid, aggregatetype text, aggregateid text, type text, payload jsonb);
         SELECT postbox.adopt_outbox('outbox', layout => 'debezium');
         SELECT postbox.adopt_outbox('Outbox', layout => 'debezium');
         SELECT postbox.adopt_outbox('other', layout => 'debezium', key => 'customer', header_columns => '{aggregatetype=ce_type}')",
    )
    .await;
    refused(&client, "SELECT postbox.adopt_outbox('twice', layout => 'debezium')", "42702", "ID, Id", "event_id =>")
        .await;
    run(
        &client,
        "SELECT postbox.adopt_outbox('twice', layout => 'debezium', event_id => 'Id', header_columns => '{}')",
    )
    .await;
    make_slot(&cluster, "postgres", "s");
    let id = |n: u8| format!("00000000-0000-4000-8000-0000000000{n:02x}");
    run(
        &client,
        &format!(
            "INSERT INTO outbox VALUES ('{}', 'order', '7', 'placed', '{{\"n\": 1}}', '{{\"ignored\": 1}}');
             INSERT INTO outbox VALUES ('{}', 'order', '7', 'deleted', NULL);
             INSERT INTO \"Outbox\" VALUES ('{}', 'order', '8', 'placed', 'text');
             INSERT INTO other VALUES ('{}', 'order', 9, 'placed', '\\xff');
             INSERT INTO twice VALUES ('{}', '{}', 'order', '1', 't', '1')",
            id(1),
            id(2),
            id(3),
            id(4),
            id(5),
            id(6),
        ),
    )
    .await;
    let expected = [
        json!({"outbox": "public.outbox", "event_id": id(1), "type": "placed", "key": "7", "headers": {"aggregatetype": "order"}, "payload": {"n": 1}}),
        // A tombstone.
        json!({"outbox": "public.outbox", "event_id": id(2), "type": "deleted", "key": "7", "headers": {"aggregatetype": "order"}}),
        json!({"outbox": "public.Outbox", "event_id": id(3), "type": "placed", "key": "8", "headers": {"aggregatetype": "order"}, "payload": "text"}),
        json!({"outbox": "public.other", "event_id": id(4), "type": "placed", "key": "9", "headers": {"ce_type": "order"}, "payload": "/w=="}),
        json!({"outbox": "public.twice", "event_id": id(6), "type": "t", "key": "1", "payload": 1}),
    ];
    assert_eq!(mapped(&peek_events(&cluster, "s")), expected);
}

#[tokio::test]
async fn columns_become_headers_with_values_as_json_has_them() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE DOMAIN amount AS numeric(8, 2); CREATE TYPE mood AS ENUM ('glad', 'sad');
         CREATE TABLE wide (id int PRIMARY KEY, gone int, type text, payload jsonb, headers json,
             \"Mandant 💶\" text, small int2, big int8, exact numeric, ratio float8, yes boolean, doc jsonb, raw json, day date,
             at timestamptz, local timestamp, price amount, how mood, twice int GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE wide DROP gone;
         SELECT postbox.adopt_outbox('wide', event_id => 'id', header_columns => ARRAY['Mandant 💶', 'Mandant 💶=tenant', 'small',
             'big', 'exact', 'ratio', 'yes', 'doc', 'raw', 'day', 'at', 'local', 'price', 'how', 'twice'])",
    )
    .await;
    make_slot(&cluster, "postgres", "s");
    run(
        &client,
        "INSERT INTO wide VALUES (1, 't', '{}', ' { \"a\" : [1] } ', 'say \"ä\"', -3, 9007199254740993, 1.50, 1e20, true, '{\"d\": null}', '[1 ]',
             '2026-02-03', '2026-02-03 04:05:06.7+02', '2026-02-03 04:05:06', 12, 'sad'),
         (2, 't', '{}', '{}', NULL, NULL, NULL, 'NaN', '-Infinity', false, NULL, NULL, 'infinity', '-infinity', '0044-03-15 BC', NULL, NULL),
         (3, 't', '{}', 'null', 'x', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
         (4, 't', '{}', NULL, 'x', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
         ALTER DATABASE postgres SET datestyle = 'German'; ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'",
    )
    .await;
    let events = peek_events(&cluster, "s");
    let headers = events.iter().map(|event| event["headers"].clone()).collect::<Vec<_>>();
    let expected = [
        json!({"a": [1], "Mandant 💶": "say \"ä\"", "tenant": "say \"ä\"", "small": -3, "big": 9_007_199_254_740_993_i64, "exact": 1.50,
            "ratio": 1e20, "yes": true, "doc": {"d": null}, "raw": [1], "day": "2026-02-03", "at": "2026-02-03T02:05:06.700000Z",
            "local": "2026-02-03T04:05:06.000000", "price": 12.00, "how": "sad", "twice": 2}),
        json!({"exact": "NaN", "ratio": "-Infinity", "yes": false, "day": "infinity", "at": "-infinity", "local": "-043-03-15T00:00:00.000000",
            "twice": 4}),
        json!({"Mandant 💶": "x", "tenant": "x", "twice": 6}),
        json!({"Mandant 💶": "x", "tenant": "x", "twice": 8}),
    ];
    assert_eq!(headers, expected);
    assert!(events.iter().all(|event| event["error"].is_null()), "{events:#?}");
}

#[tokio::test]
async fn headers_that_do_not_go_together_are_an_error_event_with_all_of_them() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE old (id int, type text, payload jsonb, headers jsonb, tenant text, n int);
         SELECT postbox.adopt_outbox('old', event_id => 'id', header_columns => '{tenant,n}')",
    )
    .await;
    make_slot(&cluster, "postgres", "s");
    run(
        &client,
        "INSERT INTO old VALUES (1, 't', '{}', '{\"tenant\": \"a\"}', 'b', 5), (2, 't', '{}', '[1]', 'b', 5),
             (3, 't', '{}', '{\"tenant\": \"a\"}', NULL, 5), (4, 't', '{}', '{\"x\": {\"tenant\": 1}}', 'b', NULL)",
    )
    .await;
    let events = peek_events(&cluster, "s");
    let clash = &events[0];
    assert_eq!(clash["headers"], json!({"tenant": "a", "n": 5}));
    assert_eq!(clash["error"]["code"], "mapping");
    assert_eq!(clash["error"]["detail"], "column \"tenant\": the row's headers have a \"tenant\" of their own");
    assert_eq!(clash["error"]["raw"], json!({"tenant": "Yg=="}));
    let array = &events[1];
    assert_eq!(array["headers"], json!([1]));
    assert!(array["error"]["detail"].as_str().unwrap().contains("holds no JSON object"), "{array}");
    assert_eq!(array["error"]["raw"], json!({"tenant": "Yg==", "n": "NQ=="}));
    assert_eq!((&events[2]["headers"], &events[2]["error"]), (&json!({"tenant": "a", "n": 5}), &Value::Null));
    assert_eq!(
        (&events[3]["headers"], &events[3]["error"]),
        (&json!({"x": {"tenant": 1}, "tenant": "b"}), &Value::Null)
    );
}

#[tokio::test]
async fn a_header_column_that_is_renamed_or_dropped_is_told_by_each_event() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE old (id int, type text, payload jsonb, tenant text);
         SELECT postbox.adopt_outbox('old', event_id => 'id', header_columns => '{tenant=t}')",
    )
    .await;
    make_slot(&cluster, "postgres", "s");
    run(
        &client,
        "INSERT INTO old VALUES (1, 't', '{}', 'a'); ALTER TABLE old RENAME tenant TO renamed; INSERT INTO old VALUES (2, 't', '{}', 'b');
         ALTER TABLE old RENAME renamed TO tenant; INSERT INTO old VALUES (3, 't', '{}', 'c');
         ALTER TABLE old DROP tenant; INSERT INTO old VALUES (4, 't', '{}')",
    )
    .await;
    let events = peek_events(&cluster, "s");
    let told =
        events.iter().map(|event| (event["headers"].clone(), event["error"]["detail"].clone())).collect::<Vec<_>>();
    let missing = json!("the column \"tenant\" for header \"t\" does not exist");
    let header = |value: &str| (json!({"t": value}), Value::Null);
    assert_eq!(told, [header("a"), (Value::Null, missing.clone()), header("c"), (Value::Null, missing)]);
    assert_eq!(events[1]["error"]["raw"]["renamed"], "Yg==");
}

#[tokio::test]
async fn leaves_with_other_columns_are_read_by_name() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE \"Äußere \"\"Tabelle\"\"\" (\"Ñame\" text, id bigint, \"pay'load\" text, tenant text) PARTITION BY LIST (tenant);
         CREATE TABLE leaf (tenant text, junk int, \"pay'load\" text, id bigint, \"Ñame\" text);
         ALTER TABLE leaf DROP junk; ALTER TABLE \"Äußere \"\"Tabelle\"\"\" ATTACH PARTITION leaf FOR VALUES IN ('a');
         SELECT postbox.adopt_outbox('Äußere \"Tabelle\"', event_id => 'id', type => 'Ñame', payload => 'pay''load',
             header_columns => '{tenant=ten\\\\ant}');",
    )
    .await;
    make_slot(&cluster, "postgres", "s");
    run(&client, "INSERT INTO \"Äußere \"\"Tabelle\"\"\" VALUES ('t', 5, 'p', 'a')").await;
    let expected = json!({"outbox": "public.Äußere \"Tabelle\"", "event_id": "5", "type": "t", "headers": {"ten\\ant": "a"}, "payload": "p"});
    assert_eq!(mapped(&peek_events(&cluster, "s")), [expected]);
}

#[tokio::test]
async fn a_virtual_column_has_no_value_in_the_log() {
    if major() < 18 {
        skip("virtual columns came with PostgreSQL 18");
        return;
    }
    let (cluster, client) = start().await;
    run(&client, "CREATE TABLE old (id int, type text, payload text, twice int GENERATED ALWAYS AS (id * 2))").await;
    let adopt = "SELECT postbox.adopt_outbox('old', event_id => 'id'";
    refused(&client, &format!("{adopt}, key => 'twice')"), "0A000", "is virtual", "stored").await;
    refused(&client, &format!("{adopt}, header_columns => '{{twice}}')"), "0A000", "is virtual", "stored").await;
    run(&client, &format!("{adopt}, header_columns => '{{id=twice}}')")).await;
    run(
        &client,
        "SELECT postbox.drop_outbox('old'); ALTER TABLE old RENAME twice TO other; ALTER TABLE old ADD twice int",
    )
    .await;
    run(&client, &format!("{adopt}, header_columns => '{{twice}}')")).await;
    run(&client, "ALTER TABLE old DROP twice; ALTER TABLE old RENAME other TO twice").await;
    make_slot(&cluster, "postgres", "s");
    run(&client, "INSERT INTO old (id, type) VALUES (1, 't')").await;
    let events = peek_events(&cluster, "s");
    let detail = events[0]["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("is virtual, its values are not stored"), "{detail}");
}

#[tokio::test]
async fn headers_too_large_for_an_event_go_along_as_bytes() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE old (id int, type text, payload text, tenant text);
         SELECT postbox.adopt_outbox('old', event_id => 'id', header_columns => '{tenant}')",
    )
    .await;
    make_slot(&cluster, "postgres", "s");
    run(&client, "INSERT INTO old VALUES (1, 't', 'p', repeat('x', 500))").await;
    let event = "SELECT d.headers, d.error ->> 'code', length(d.error -> 'raw' ->> 'tenant') > 500
        FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'max_event_bytes', '100'), postbox.decode(data) d";
    assert_eq!(row(&client, event).await, "|too_large|t");
}

#[tokio::test]
async fn what_cannot_be_read_again_says_so() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('made');
         CREATE TABLE plain (event_id uuid, type text, payload jsonb, seq bigint, xid xid8);
         CREATE TABLE full_one (event_id uuid, type text, payload jsonb, n bigserial, x xid8 NOT NULL DEFAULT pg_current_xact_id());
         SELECT postbox.adopt_outbox('plain');
         SELECT postbox.adopt_outbox('full_one', seq => 'n', xid => 'x')",
    )
    .await;
    let status = "SELECT name, replayable, last_seq FROM postbox.outbox_status()";
    assert_eq!(rows(&client, status).await, ["full_one|t|", "made|t|", "plain|f|"]);
    run(&client, "SELECT postbox.publish('full_one', 't', '{}')").await;
    assert_eq!(row(&client, "SELECT last_seq FROM postbox.outbox_status('full_one')").await, "1");
    run(&client, "SELECT postbox._require_replayable('made', 'seek_offset'), postbox._require_replayable('full_one', 'seek_offset')").await;
    let require = "SELECT postbox._require_replayable('plain', 'seek_offset')";
    refused(
        &client,
        require,
        "55000",
        "seek_offset needs rows that can be delivered again",
        "seq => 'seq', xid => 'xid'",
    )
    .await;
    // By whatever needs them. From the log alone a group can read it.
    let hint = "seq => 'seq', xid => 'xid'";
    let create = "SELECT postbox.create_consumer_group('g', '{plain}', 'earliest')";
    refused(&client, create, "55000", "rows that can be delivered again", hint).await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{plain}')").await;
    refused(&client, "SELECT postbox.seek_consumer_group('g', 'earliest')", "55000", "seek needs rows", hint).await;
    refused(&client, "SELECT postbox.recover_consumer_group('g')", "55000", "recovering a group needs rows", hint)
        .await;
    assert_eq!(row(&client, "SELECT count(*) FROM pg_replication_slots").await, "1");
    run(&client, "SELECT postbox.drop_consumer_group('g')").await;
    // What the hint says is the remedy.
    run(
        &client,
        "ALTER TABLE plain DROP seq, DROP xid, ADD seq bigint GENERATED ALWAYS AS IDENTITY, ADD xid xid8 NOT NULL DEFAULT pg_current_xact_id();
         SELECT postbox.drop_outbox('plain'); SELECT postbox.adopt_outbox('plain', seq => 'seq', xid => 'xid')",
    )
    .await;
    run(&client, require).await;
    run(&client, "ALTER TABLE plain ALTER xid DROP DEFAULT").await;
    refused(&client, require, "55000", "outbox \"public.plain\" has none", "drop_outbox").await;
}
