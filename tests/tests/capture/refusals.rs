//! What cannot be captured, and what is too much.

use crate::sql::{refused, row, rows, run, start};

use super::ORDERS;

#[tokio::test]
async fn what_cannot_be_captured_is_refused_with_the_remedy() {
    let (_cluster, client) = start().await;
    run(&client, ORDERS).await;
    run(
        &client,
        "SELECT postbox.create_outbox('box'); SELECT postbox.create_outbox('bytes', payload_type => 'bytea');
         CREATE TABLE old (event_id uuid, type text, payload jsonb); SELECT postbox.adopt_outbox('old');
         CREATE VIEW v AS SELECT 1 AS id; CREATE MATERIALIZED VIEW m AS SELECT 1 AS id; CREATE TEMP TABLE t (id int);
         CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent);
         CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT;
         CREATE TABLE tree (id int PRIMARY KEY, parent int) PARTITION BY LIST (id); CREATE TABLE branch PARTITION OF tree DEFAULT;
         ALTER TABLE tree ADD FOREIGN KEY (parent) REFERENCES tree ON DELETE SET NULL;
         CREATE TABLE taken (id int PRIMARY KEY); CREATE TABLE taken_outbox (id int); CREATE TABLE heap (id int);
         CREATE TABLE \"a.b\" (id int); CREATE TABLE \"a\"\"b\" (id int)",
    )
    .await;
    let cases = [
        ("NULL", "42P01", "table NULL does not exist", "search_path"),
        ("'none'", "42P01", "table \"none\" does not exist", "search_path"),
        ("'pg_class'", "42939", "reserved schema", "tables of yours"),
        ("'postbox.audit'", "42939", "reserved schema", "tables of yours"),
        ("'box'", "42809", "is an outbox", "events already"),
        ("'old'", "42809", "is an outbox", "events already"),
        ("'v'", "42809", "\"public.v\" is not a table", "tables that it reads"),
        ("'m'", "42809", "is a materialized view", "postbox.refresh_materialized_view('m')"),
        ("'t'", "42809", "is temporary", "a table that stays"),
        ("'parent'", "42809", "part of an inheritance", "partitioned"),
        ("'child'", "42809", "part of an inheritance", "partitioned"),
        ("'tree'", "42809", "references itself with an action", "NO ACTION"),
        ("'part'", "42809", "is a partition", "partitioned table"),
        (
            "'orders', granularity => 'cell'",
            "22023",
            "granularity is \"cell\"",
            "one event for what a statement changed",
        ),
        ("'heap', granularity => 'row'", "42P16", "no primary key", "key => '{...}'"),
        ("'orders', key => '{}'", "22004", "the key of the events", "Name columns"),
        ("'orders', columns => '{id,NULL}'", "22004", "has a NULL", "Name columns"),
        ("'orders', key => '{ID}'", "42703", "no column \"ID\" for the key", "in the case they have"),
        ("'orders', columns => '{gone}'", "42703", "no column \"gone\" for the columns", "unquoted"),
        ("'orders', columns => '{id,id}'", "42701", "\"id\" is named twice", "once"),
        ("'orders', 'heap'", "42809", "\"heap\" is not an outbox", "outbox => '...'"),
        ("'orders', 'old'", "0A000", "\"public.old\" cannot take", "an outbox is made"),
        ("'orders', 'bytes'", "0A000", "\"public.bytes\" cannot take", "an outbox is made"),
        ("'orders', 'a.b.c'", "0A000", "cross-database", ""),
        ("'orders', 'nowhere.box'", "3F000", "\"nowhere\" does not exist", "CREATE SCHEMA"),
        ("'\"a.b\"'", "42602", "\"a.b_outbox\", with a dot or a double quote", "outbox => '...'"),
        ("'\"a\"\"b\"'", "42602", "with a dot or a double quote", "outbox => '...'"),
        ("'taken'", "42809", "\"public.taken_outbox\" is not an outbox", "outbox => '...'"),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.enable_outbox({arguments})"), code, message, hint).await;
    }
    // Nothing was left behind.
    assert_eq!(row(&client, "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^postbox_capture'").await, "0");
    assert_eq!(rows(&client, "SELECT name FROM postbox.outbox_status()").await, ["box", "bytes", "old"]);

    run(&client, "SELECT postbox.enable_outbox('orders', 'box')").await;
    assert_eq!(row(&client, "SELECT postbox.enable_outbox('\"a.b\"', outbox => 'ab')").await, "ab", "as the hint says");
    let twice = "SELECT postbox.enable_outbox('orders')";
    refused(
        &client,
        twice,
        "42710",
        "captured already, into outbox \"public.box\"",
        "disable_outbox('public.orders') first",
    )
    .await;
    refused(&client, "SELECT postbox.disable_outbox('heap')", "42704", "\"heap\" is not captured", "postbox.captures")
        .await;
    refused(&client, "SELECT postbox.disable_outbox('none')", "42P01", "\"none\" does not exist", "postbox.captures")
        .await;
    assert_eq!(
        row(&client, "SELECT postbox.disable_outbox('heap', if_exists => true), postbox.disable_outbox('none', true)")
            .await,
        "f|f"
    );
    let used = "takes the changes of table public.orders";
    refused(&client, "SELECT postbox.drop_outbox('box')", "2BP01", used, "postbox.disable_outbox").await;
    refused(&client, "SELECT postbox.drop_outbox('box', force => true)", "2BP01", used, "postbox.disable_outbox").await;
    refused(&client, "DROP TABLE box", "2BP01", "cannot drop table box", "CASCADE").await;
}

#[tokio::test]
async fn a_delta_that_is_no_event_is_refused_and_the_statement_undone() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE docs (id int PRIMARY KEY, body text); SELECT postbox.enable_outbox('docs')").await;
    // 1,100 rows of 250 kB; jsonb itself can hold no more than 256 MiB.
    let large = "INSERT INTO docs SELECT n, repeat(chr(65 + n % 26), 250000) FROM generate_series(1, 1100) n";
    refused(
        &client,
        large,
        "54000",
        "changes of one statement to the captured table \"public.docs\" are too large",
        "granularity => 'row'",
    )
    .await;
    // As text it is longer: each of these is six bytes there.
    let escaped = "INSERT INTO docs SELECT n, repeat(chr(1), 40000) FROM generate_series(1, 1200) n";
    refused(&client, escaped, "54000", "too large for an event", "Change fewer rows").await;
    assert_eq!(row(&client, "SELECT count(*) FROM docs").await, "0");
    run(&client, &large.replace("1100", "100")).await;
    assert_eq!(row(&client, "SELECT jsonb_array_length(payload -> 'inserted') FROM docs_outbox").await, "100");
}
