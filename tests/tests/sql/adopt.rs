//! `adopt_outbox`: existing tables.

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
    assert_eq!(row(&client, marker).await, "{event_id=id,type=kind,key=,headers=,payload=body,origin=adopted}");
    let status = "SELECT name, payload_type, generation, last_seq, adopted FROM postbox.outbox_status()";
    assert_eq!(row(&client, status).await, "old|json|||t");

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
    run(&client, "SELECT postbox.adopt_outbox('old', key => NULL)").await;
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
    run(&client, "CREATE TABLE t (event_id uuid, type text, payload jsonb, n int, at date)").await;
    run(&client, "CREATE VIEW v AS SELECT * FROM t; CREATE UNLOGGED TABLE u (LIKE t)").await;
    let cases = [
        ("NULL", "22004", "NULL", "key and headers"),
        ("'t', type => NULL", "22004", "NULL", "key and headers"),
        ("'none'", "42P01", "\"public.none\" does not exist", "schema as the second argument"),
        ("'t', 'nowhere'", "42P01", "\"nowhere.t\" does not exist", "schema as the second argument"),
        ("'v'", "42809", "\"public.v\" is not a table", "ordinary or a partitioned table"),
        ("'u'", "42809", "temporary or unlogged", "SET LOGGED"),
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
