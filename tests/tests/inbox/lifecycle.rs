//! Tables that become inboxes and stop being it, and what happens to them meanwhile.

use std::process::Command;

use postbox_tests::Cluster;
use tokio_postgres::Client;

use crate::sql::{error, refused, row, rows, run, start};

/// What is handed out, by the id.
async fn handed_out(client: &Client, inbox: &str) -> Vec<String> {
    let sql = format!(
        "SELECT event_id, event_type, payload FROM postbox.inbox_claim('{inbox}', 'w', 1000) ORDER BY event_id"
    );
    rows(client, &sql).await
}

const HEALTH: &str = "SELECT status, array_to_string(reasons, '; ') FROM postbox.inbox_health('payments')";

#[tokio::test]
async fn a_table_of_any_shape_is_adopted_and_not_changed() {
    let (_cluster, client) = start().await;
    let columns = "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attnum FROM pg_attribute
        WHERE attrelid = '\"Shop 1\".\"Odd \"\"table\"'::regclass AND attnum > 0 ORDER BY attnum";
    run(&client, "CREATE SCHEMA \"Shop 1\"").await;
    for (id, first, second) in [
        ("text", "a", "b"),
        ("varchar(10)", "a", "b"),
        ("uuid", "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"),
        ("bigint", "1", "2"),
        ("int", "1", "2"),
    ] {
        for (payload, stored, out) in [
            ("jsonb", "{\"n\": 1}", "{\"n\": 1}"),
            ("json", "{\"n\":1}", "{\"n\": 1}"),
            ("text", "plain", "\"plain\""),
            ("bytea", "\\x00ff", "\"AP8=\""),
        ] {
            run(
                &client,
                &format!(
                    "CREATE TABLE \"Shop 1\".\"Odd \"\"table\" (\"the id\" {id} NOT NULL UNIQUE, \"Kind\" varchar(20), body {payload})"
                ),
            )
            .await;
            let before = rows(&client, columns).await;
            let insert = format!(
                "INSERT INTO \"Shop 1\".\"Odd \"\"table\" VALUES ('{first}', 'k', '{stored}') ON CONFLICT DO NOTHING"
            );
            run(&client, &insert).await;
            let adopt = "SELECT postbox.enable_inbox_tracking('\"Shop 1\".\"Odd \"\"table\"', 'odd', event_id => 'the id', event_type => 'Kind',
                payload => 'body', pending => 'all')";
            run(&client, adopt).await;
            assert_eq!(rows(&client, columns).await, before);
            run(&client, &insert).await;
            let receive = format!(
                "SELECT postbox.inbox_receive('odd', '{second}', '{out}', 'k', source => 'nowhere', headers => '{{}}')"
            );
            assert_eq!(row(&client, &receive).await, "received", "{id} {payload}");
            assert_eq!(row(&client, &receive).await, "duplicate", "{id} {payload}");
            let other = format!("SELECT postbox.inbox_receive('odd', '{first}', '\"b3RoZXI=\"')");
            assert_eq!(row(&client, &other).await, "conflict", "{id} {payload}");
            let log = "SELECT string_agg(what, ' ' ORDER BY what) FROM postbox.inbox_log l JOIN postbox.inbox i ON i.id = l.inbox";
            assert_eq!(row(&client, log).await, "conflict duplicate duplicate", "{id} {payload}");
            assert_eq!(handed_out(&client, "odd").await, [format!("{first}|k|{out}"), format!("{second}|k|{out}")]);
            let complete = "SELECT postbox.inbox_complete('odd', array_agg(e), array_agg(token)) FROM postbox.inbox_batch, unnest(event_ids) e";
            run(&client, complete).await;
            run(&client, "SELECT postbox.drop_inbox('odd')").await;
            assert_eq!(row(&client, "SELECT count(*) FROM \"Shop 1\".\"Odd \"\"table\"").await, "2");
            assert_eq!(row(&client, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").await, "0");
            run(&client, "DROP TABLE \"Shop 1\".\"Odd \"\"table\"").await;
        }
    }
}

#[tokio::test]
async fn what_an_adopted_table_holds_is_handed_out_once_and_in_its_order() {
    let (_cluster, client) = start().await;
    let make = "CREATE TABLE events (event_id text PRIMARY KEY, event_type text, payload json, received_at timestamp, visible_at timestamptz,
            processed_at timestamptz, retry_count smallint, error text);
        INSERT INTO events SELECT 'm' || n, 't', '{}', now() - n * interval '1 s', CASE WHEN n = 7 THEN now() + interval '1 day' END,
            CASE WHEN n % 2 = 0 THEN now() END, CASE WHEN n = 9 THEN 4 END, CASE WHEN n = 9 THEN 'old' END FROM generate_series(1, 1001) n";
    run(&client, make).await;
    run(&client, "SELECT postbox.enable_inbox_tracking('events')").await;
    let first = rows(&client, "SELECT event_id FROM postbox.inbox_claim('events', 'w', 50)").await;
    let expected: Vec<String> = (903..=1001).rev().step_by(2).map(|n| format!("m{n}")).collect();
    assert_eq!(first, expected);
    // 501 are not processed: one is to come later, one had all its attempts.
    assert_eq!(handed_out(&client, "events").await.len(), 501 - 50 - 2);
    assert_eq!(row(&client, "SELECT event_id, attempts, error, why FROM postbox.inbox_dead").await, "m9|4|old|failed");
    run(
        &client,
        "SELECT postbox.drop_inbox('events'); SELECT postbox.enable_inbox_tracking('events', pending => 'none')",
    )
    .await;
    assert_eq!(handed_out(&client, "events").await, [""; 0]);
    run(&client, "SELECT postbox.drop_inbox('events'); SELECT postbox.enable_inbox_tracking('events', pending => 'all', retry_count => '')").await;
    assert_eq!(handed_out(&client, "events").await.len(), 1000);
    run(&client, "SELECT postbox.drop_inbox('events'); DELETE FROM events; SELECT postbox.enable_inbox_tracking('events', processed_at => '')").await;

    // JSON that jsonb does not take.
    run(
        &client,
        "INSERT INTO events VALUES ('nul', 't', '\"\\u0000\"'), ('big', 't', '1e999999'), ('half', 't', '\"\\ud800\"')",
    )
    .await;
    run(&client, "INSERT INTO events VALUES ('nul', 't', '\"\\u0000\"') ON CONFLICT DO NOTHING").await;
    let out = ["big|t|\"1e999999\"", "half|t|\"\\\"\\\\ud800\\\"\"", "nul|t|\"\\\"\\\\u0000\\\"\""];
    assert_eq!(handed_out(&client, "events").await, out);
}

/// What does not fit into `work_mem` is sorted on disk.
#[tokio::test]
async fn a_large_table_is_adopted_in_little_memory() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE events (event_id text PRIMARY KEY, received_at timestamptz DEFAULT now());
         INSERT INTO events SELECT n FROM generate_series(1, 200000) n; SET work_mem = '64kB'; SET log_temp_files = 0",
    )
    .await;
    run(&client, "SELECT postbox.enable_inbox_tracking('events', pending => 'all')").await;
    assert!(cluster.log().contains("temporary file"), "{}", cluster.log());
    let batches = "SELECT count(*), sum(cardinality(event_ids)), max(cardinality(event_ids)) FROM postbox.inbox_batch";
    assert_eq!(row(&client, batches).await, "4000|200000|50");
    assert_eq!(handed_out(&client, "events").await.len(), 1000);
}

#[tokio::test]
async fn tables_that_cannot_be_inboxes_are_refused() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE TABLE good (event_id text PRIMARY KEY, payload jsonb, processed_at timestamptz);
         CREATE VIEW seen AS SELECT * FROM good; CREATE UNLOGGED TABLE fleeting (LIKE good INCLUDING ALL); CREATE TEMP TABLE short (LIKE good INCLUDING ALL);
         CREATE TABLE parts (event_id text PRIMARY KEY) PARTITION BY HASH (event_id); CREATE TABLE part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
         CREATE TABLE child () INHERITS (good); CREATE TABLE lone (LIKE good); CREATE TABLE \"lone.some\" (event_id text PRIMARY KEY); CREATE TABLE loose (event_id text UNIQUE);
         CREATE TABLE late (event_id text PRIMARY KEY DEFERRABLE); CREATE TABLE partly (event_id text NOT NULL); CREATE UNIQUE INDEX ON partly (event_id) WHERE event_id <> '';
         CREATE TABLE pair (event_id text, payload int, PRIMARY KEY (event_id, payload)); CREATE TABLE numbers (event_id numeric PRIMARY KEY);
         CREATE TABLE typed (event_id text PRIMARY KEY, payload xml, headers text, body jsonb); CREATE TABLE full_one (event_id text PRIMARY KEY); INSERT INTO full_one VALUES ('a');
         CREATE TABLE made (event_id text PRIMARY KEY, payload text, error text GENERATED ALWAYS AS (payload) STORED);
         CREATE COLLATION blind (locale = 'C'); CREATE TABLE blind (event_id text COLLATE blind PRIMARY KEY); UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'blind';
         CREATE TABLE wide (event_id text PRIMARY KEY); INSERT INTO wide VALUES (repeat('x', 600));
         CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (event_id text) SERVER s",
    )
    .await;
    let cases = [
        ("'seen'", "42809", "it is not a table", "ordinary table"),
        ("'fleeting'", "42809", "a crash would empty it", "SET LOGGED"),
        ("'short'", "42809", "no worker sees it", "ordinary table"),
        ("'far'", "42809", "a foreign table", "ordinary table"),
        ("'parts'", "42809", "partitioned", "ordinary table"),
        ("'part'", "42809", "partitioned", "ordinary table"),
        ("'good'", "42809", "part of an inheritance", "ordinary table"),
        ("'child'", "42809", "part of an inheritance", "ordinary table"),
        ("'pg_catalog.pg_class'", "42939", "reserved schema", "a schema of yours"),
        ("'postbox.audit'", "42939", "reserved schema", "a schema of yours"),
        ("NULL", "22004", "is NULL", "create_inbox"),
        ("0", "42809", "it is gone", "ordinary table"),
        ("'lone'", "42P16", "is not unique", "ADD UNIQUE (event_id)"),
        ("'loose'", "42P16", "can be NULL", "SET NOT NULL"),
        ("'late'", "42P16", "is not unique", "ADD UNIQUE"),
        ("'partly'", "42P16", "is not unique", "ADD UNIQUE"),
        ("'pair', payload => ''", "42P16", "is not unique", "ADD UNIQUE"),
        ("'blind'", "42P16", "takes different texts for equal", "deterministic collation"),
        ("'numbers'", "42804", "is of type numeric and cannot be the event_id", "event_id => '...'"),
        ("'pair'", "42804", "is of type integer and cannot be the payload", "With payload => ''"),
        ("'typed', headers => ''", "42804", "is of type xml", "payload => '...'"),
        ("'typed', payload => 'body'", "42804", "is of type text and cannot be the headers", "headers => '...'"),
        ("'typed', payload => 'nothing'", "42703", "has no column \"nothing\" to be the payload", "With payload => ''"),
        (
            "'typed', event_id => 'nothing'",
            "42703",
            "has no column \"nothing\" to be the event_id",
            "event_id => '...'",
        ),
        ("'typed', event_id => ''", "22023", "need a column for event_id", "event_id => '...'"),
        ("'typed', payload => 'body', headers => 'body'", "22023", "column \"body\"", "Name each column once"),
        ("'made'", "0A000", "is generated", "error => '...'"),
        ("'full_one'", "22023", "no column says which of them are processed", "pending => 'all'"),
        ("'full_one', pending => 'some'", "22023", "must be all or none", "Left out"),
        ("'full_one', style => 'update'", "42703", "has no column \"processed_at\"", "processed_at => '...'"),
        ("'wide', pending => 'all'", "23514", "has 600 bytes", "another id"),
        ("'lone', name => ''", "42602", "has 0 bytes", "shorter"),
        ("'lone', name => repeat('x', 55)", "42602", "has 55 bytes, must have 1 to 54", "shorter"),
        ("'lone', name => 'a.b'", "42602", "contains a dot", "bare name"),
        ("'\"lone.some\"'", "42602", "contains a dot", "name => 'payments'"),
        ("'lone', max_retries => -1", "22023", "max_retries of inbox \"lone\" is -1", "first attempt is not counted"),
        ("'lone', style => 'both'", "22023", "must be claim or update", "inbox_claim"),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.enable_inbox_tracking({arguments})"), code, message, hint).await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox").await, "0");
    run(&client, "DROP TABLE child; SELECT postbox.enable_inbox_tracking('good'); CREATE TABLE other (event_id text PRIMARY KEY)").await;
    refused(
        &client,
        "SELECT postbox.enable_inbox_tracking('good', 'again')",
        "42710",
        "good is an inbox already",
        "drop_inbox",
    )
    .await;
    refused(
        &client,
        "SELECT postbox.enable_inbox_tracking('other', 'good')",
        "42710",
        "inbox \"good\" already exists",
        "inbox_status",
    )
    .await;
}

#[tokio::test]
async fn what_create_inbox_cannot_make_is_refused() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE taken (); SELECT postbox.create_inbox('there')").await;
    let cases = [
        ("NULL", "22004", "neither of them NULL", "create_inbox('payments')"),
        ("'a', NULL", "22004", "neither of them NULL", "create_inbox('payments')"),
        ("''", "42602", "has 0 bytes", "shorter"),
        ("repeat('\u{e4}', 28)", "42602", "has 56 bytes, must have 1 to 54", "shorter"),
        ("'a.b'", "42602", "contains a dot", "bare name"),
        ("'a\"b'", "42602", "double quote", "bare name"),
        ("'a', 'pg_catalog'", "42939", "reserved", "schema of yours"),
        ("'a', 'postbox'", "42939", "reserved", "schema of yours"),
        ("'a', 'nowhere'", "3F000", "does not exist", "CREATE SCHEMA nowhere"),
        ("'taken'", "42P07", "already exists", "enable_inbox_tracking"),
        ("'there'", "42710", "already exists", "inbox_status"),
        ("'a', max_retries => -1", "22023", "is -1, must be 0 to 1000", "four times"),
        ("'a', max_retries => NULL", "22023", "is NULL", "four times"),
        ("'a', retention => '-1 s'", "22023", "retention of inbox", "processed messages"),
        ("'a', dedup_window => '-1 s'", "22023", "dedup_window of inbox", "comes again"),
        ("'a', dead_retention => '-1 s'", "22023", "dead_retention of inbox", "dead letters"),
        ("'a', failure_policy => 'stop'", "22023", "must be skip, pause or park", "goes on"),
        ("'a', style => 'x'", "22023", "must be claim or update", "inbox_claim"),
        ("'a', backoff_initial => '0'", "22023", "must be more than 0", "1 second"),
        ("'a', backoff_max => '1 ms'", "22023", "not fall", "5 minutes"),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.create_inbox({arguments})"), code, message, hint).await;
    }
}

#[tokio::test]
async fn names_of_all_kinds_work() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE SCHEMA \"Sch\u{f6}n\"").await;
    for (name, schema) in [
        ("Mixed Case", "public"),
        ("it's", "public"),
        ("\u{fc}ber", "Sch\u{f6}n"),
        (&*"x".repeat(54), "public"),
        ("select", "Sch\u{f6}n"),
    ] {
        let quoted = format!("\"{schema}\".\"{name}\"");
        let (name, literal) = (name.replace('\'', "''"), quoted.replace('\'', "''"));
        for style in ["claim", "update"] {
            run(&client, &format!("SELECT postbox.create_inbox('{name}', '{schema}', style => '{style}')")).await;
            run(&client, &format!("INSERT INTO {quoted} (event_id) VALUES ('a') ON CONFLICT (event_id) DO NOTHING"))
                .await;
            assert_eq!(row(&client, &format!("SELECT postbox.inbox_receive('{name}', 'a')")).await, "duplicate");
            if style == "claim" {
                assert_eq!(handed_out(&client, &name).await, ["a||"]);
            } else {
                run(&client, &format!("UPDATE {quoted} SET processed_at = now()")).await;
            }
            run(&client, &format!("SELECT postbox.drop_inbox('{name}', cascade => true)")).await;
            assert_eq!(row(&client, &format!("SELECT to_regclass('{literal}') IS NULL")).await, "t");
        }
    }
    // The name of an adopted table may be longer than that of the inbox.
    let long = "x".repeat(63);
    for style in ["claim", "update"] {
        run(
            &client,
            &format!("CREATE TABLE {long} (event_id text PRIMARY KEY, processed_at timestamptz, retry_count int)"),
        )
        .await;
        run(&client, &format!("SELECT postbox.enable_inbox_tracking('{long}', 'short', style => '{style}')")).await;
        for answer in ["received", "duplicate"] {
            assert_eq!(row(&client, "SELECT postbox.inbox_receive('short', 'a')").await, answer);
        }
        assert_eq!(row(&client, "SELECT event_id, state FROM pending_short").await, "a|waiting");
        if style == "claim" {
            assert_eq!(handed_out(&client, "short").await, ["a||"]);
        } else {
            run(&client, &format!("UPDATE {long} SET processed_at = now()")).await;
            assert_eq!(row(&client, "SELECT state FROM messages_short").await, "processed");
        }
        run(&client, &format!("SELECT postbox.drop_inbox('short', cascade => true); DROP TABLE {long}")).await;
    }
    let left =
        "SELECT count(*) FROM pg_proc WHERE pronamespace IN ('public'::regnamespace, '\"Sch\u{f6}n\"'::regnamespace)";
    assert_eq!(row(&client, left).await, "0");
}

#[tokio::test]
async fn a_name_that_looks_like_the_end_of_a_function_is_a_name() {
    let (_cluster, client) = start().await;
    for style in ["claim", "update"] {
        // Whoever owns a table may call it and its columns what he likes; who repairs the inbox may be somebody else.
        run(
            &client,
            "CREATE TABLE box (event_id text PRIMARY KEY, event_type text, payload jsonb, aggregate_id text, sequence_num int, priority int, done timestamptz)",
        )
        .await;
        run(
            &client,
            &format!("SELECT postbox.enable_inbox_tracking('box', style => '{style}', processed_at => 'done')"),
        )
        .await;
        if style == "claim" {
            run(&client, "SELECT postbox.enable_inbox_ordering('box')").await;
        }
        let end = r#"$body$ set check_function_bodies = 0; /*"#;
        for column in ["event_id", "event_type", "payload", "aggregate_id", "sequence_num", "priority", "done"] {
            run(&client, &format!(r#"ALTER TABLE box RENAME COLUMN {column} TO "*/ {column} {end}""#)).await;
        }
        run(&client, &format!(r#"ALTER TABLE box RENAME TO "{end}""#)).await;
        run(&client, "SELECT postbox.repair_inbox('box')").await;
        let received = "SELECT postbox.inbox_receive('box', 'a', '{}', event_type => 't', aggregate_id => 'k', sequence_num => 1),
            postbox.inbox_receive('box', 'a', '{}'), postbox.inbox_receive_batch('box', '{a,b}', '{\"{}\",\"{}\"}'::jsonb[])";
        assert_eq!(row(&client, received).await, "received|duplicate|{duplicate,received}", "{style}");
        if style == "claim" {
            assert_eq!(handed_out(&client, "box").await, ["a|t|{}", "b||{}"]);
        }
        run(&client, &format!(r#"SELECT postbox.drop_inbox('box', cascade => true); DROP TABLE "{end}""#)).await;
    }
}

#[tokio::test]
async fn an_inbox_in_which_nothing_waits_is_dropped_whatever_its_columns_are_called() {
    let (_cluster, client) = start().await;
    let drop = "SELECT postbox.drop_inbox('payments')";
    run(
        &client,
        "SELECT postbox.create_inbox('payments', style => 'update', max_retries => 0);
         ALTER TABLE payments RENAME processed_at TO done; ALTER TABLE payments RENAME retry_count TO tries; SELECT postbox.repair_inbox('payments');
         INSERT INTO payments (event_id) VALUES ('a')",
    )
    .await;
    refused(&client, drop, "2BP01", "holds messages that are not processed", "cascade => true").await;
    run(&client, "UPDATE payments SET tries = 1").await;
    refused(&client, drop, "2BP01", "dead letters", "cascade => true").await;
    run(&client, "SELECT postbox.discard_inbox_dead_letters('payments', every => true)").await;
    assert_eq!(row(&client, "SELECT pending, dead FROM postbox.inbox_status()").await, "0|0");
    run(&client, drop).await;
    assert_eq!(row(&client, "SELECT to_regclass('payments') IS NULL").await, "t");
}

#[tokio::test]
async fn dropping_keeps_what_is_not_ours_and_what_is_not_done() {
    let (_cluster, client) = start().await;
    let drop = "SELECT postbox.drop_inbox('payments')";
    refused(&client, drop, "42704", "does not exist", "if_exists => true").await;
    refused(&client, "SELECT postbox.drop_inbox(NULL)", "22004", "needs a name", "inbox_status").await;
    run(&client, "SELECT postbox.drop_inbox('payments', if_exists => true)").await;

    // Made by us: not while it holds something, or something hangs on it.
    run(&client, "SELECT postbox.create_inbox('payments'); INSERT INTO payments (event_id) VALUES ('a')").await;
    refused(&client, drop, "2BP01", "holds messages that are not processed", "cascade => true").await;
    run(
        &client,
        "SELECT postbox.inbox_complete('payments', '{a}', ARRAY[token]) FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    run(&client, "CREATE VIEW mine AS SELECT * FROM payments").await;
    assert_eq!(error(&client, drop).await.code().code(), "2BP01");
    assert_eq!(row(&client, "SELECT event_id FROM mine").await, "a");
    run(&client, "SELECT postbox.drop_inbox('payments', cascade => true)").await;
    assert_eq!(row(&client, "SELECT to_regclass('payments') IS NULL AND to_regclass('mine') IS NULL").await, "t");
    run(&client, "SELECT postbox.create_inbox('payments'); INSERT INTO payments (event_id) VALUES ('a')").await;
    run(&client, "SELECT postbox.drop_inbox('payments', cascade => true); SELECT postbox.create_inbox('payments', max_retries => 0)").await;
    run(&client, "INSERT INTO payments (event_id) VALUES ('a')").await;
    run(&client, "SELECT postbox.inbox_fail('payments', 'a', token, 'e') FROM postbox.inbox_claim('payments', 'w')")
        .await;
    refused(&client, drop, "2BP01", "dead letters", "cascade => true").await;
    run(&client, "SELECT postbox.drop_inbox('payments', cascade => true); SELECT postbox.create_inbox('payments', style => 'update')").await;
    run(&client, "INSERT INTO payments (event_id) VALUES ('a')").await;
    refused(&client, drop, "2BP01", "holds messages that are not processed", "cascade => true").await;
    run(&client, "UPDATE payments SET processed_at = now()").await;
    run(&client, drop).await;

    // Adopted: the table stays, whatever it holds.
    for cascade in ["false", "true"] {
        run(
            &client,
            "CREATE TABLE old (event_id text PRIMARY KEY, processed_at timestamptz, retry_count int); INSERT INTO old VALUES ('a'), ('b');
             SELECT postbox.enable_inbox_tracking('old', style => 'update'); CREATE VIEW mine AS SELECT * FROM old",
        )
        .await;
        run(&client, &format!("SELECT postbox.drop_inbox('old', cascade => {cascade})")).await;
        assert_eq!(row(&client, "SELECT count(*) FROM mine").await, "2");
        run(&client, "INSERT INTO old VALUES ('c', now(), 9); UPDATE old SET event_id = event_id || 'x'").await;
        run(&client, "DROP TABLE old CASCADE").await;
    }
    let left = "SELECT (SELECT count(*) FROM postbox.inbox) + (SELECT count(*) FROM postbox.inbox_batch) + (SELECT count(*) FROM postbox.inbox_dead)
        + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)";
    assert_eq!(row(&client, left).await, "0");

    // The table is gone already.
    run(
        &client,
        "SELECT postbox.create_inbox('payments'); INSERT INTO payments (event_id) VALUES ('a'); DROP TABLE payments CASCADE",
    )
    .await;
    refused(
        &client,
        "SELECT postbox.inbox_claim('payments', 'w')",
        "55000",
        "is not public.payments any more",
        "drop_inbox",
    )
    .await;
    refused(&client, "SELECT postbox.repair_inbox('payments')", "42P01", "was dropped", "drop_inbox").await;
    let gone = "critical|its table is not public.payments any more: call postbox.drop_inbox";
    assert_eq!(row(&client, HEALTH).await, gone);
    run(&client, drop).await;
    assert_eq!(row(&client, left).await, "0");
}

#[tokio::test]
async fn an_inbox_follows_what_is_renamed_and_keeps_its_columns() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments'); INSERT INTO payments (event_id, payload) VALUES ('a', '1')")
        .await;
    run(
        &client,
        "SELECT postbox.create_inbox('updated', style => 'update'); INSERT INTO updated (event_id) VALUES ('a')",
    )
    .await;
    for column in ["event_id", "payload", "source", "processed_at"] {
        for change in [format!("DROP COLUMN {column}"), format!("ALTER COLUMN {column} TYPE varchar(100)")] {
            let denied = error(&client, &format!("ALTER TABLE payments {change}")).await;
            assert!(["2BP01", "0A000"].contains(&denied.code().code()), "{change}: {denied:?}");
        }
    }
    run(&client, "ALTER TABLE payments ADD COLUMN more int; CREATE SCHEMA shop").await;

    // Until it is repaired nothing is received and nothing handed out, so nothing is lost.
    run(&client, "ALTER TABLE payments RENAME TO receipts").await;
    assert_eq!(error(&client, "INSERT INTO receipts (event_id) VALUES ('b')").await.code().code(), "42P01");
    let claim = "SELECT postbox.inbox_claim('payments', 'w')";
    refused(
        &client,
        claim,
        "55000",
        "the table of inbox \"payments\" is not public.payments any more",
        "repair_inbox('payments')",
    )
    .await;
    let renamed = "critical|its table is not public.payments any more: call postbox.repair_inbox";
    assert_eq!(row(&client, HEALTH).await, renamed);
    // Another table of that name is not taken for it.
    run(&client, "CREATE TABLE payments (LIKE receipts INCLUDING ALL)").await;
    refused(&client, claim, "55000", "is not public.payments any more", "repair_inbox").await;
    run(&client, "DROP TABLE payments; SELECT postbox.repair_inbox('payments')").await;
    assert_eq!(row(&client, HEALTH).await, "healthy|");
    run(
        &client,
        "BEGIN; ALTER TABLE receipts RENAME COLUMN payload TO body; ALTER TABLE receipts RENAME COLUMN event_id TO \"The id\";
         ALTER TABLE receipts SET SCHEMA shop; SELECT postbox.repair_inbox('payments'); COMMIT;
         INSERT INTO shop.receipts (\"The id\", body) VALUES ('b', '2'), ('a', '3') ON CONFLICT DO NOTHING",
    )
    .await;
    assert_eq!(row(&client, "SELECT postbox.inbox_receive('payments', 'b', '2')").await, "duplicate");
    assert_eq!(handed_out(&client, "payments").await, ["a||1", "b||2"]);
    let places = "SELECT DISTINCT pronamespace::regnamespace FROM pg_proc WHERE proname ~ '^payments_'";
    assert_eq!(rows(&client, places).await, ["shop"]);
    run(&client, "SELECT postbox.drop_inbox('payments', cascade => true)").await;
    assert_eq!(row(&client, "SELECT count(*) FROM pg_proc WHERE proname ~ '^payments_'").await, "0");

    run(
        &client,
        "BEGIN; ALTER TABLE updated RENAME COLUMN processed_at TO done; SELECT postbox.repair_inbox('updated'); COMMIT",
    )
    .await;
    run(&client, "UPDATE updated SET done = now()").await;
    assert_eq!(
        row(&client, "SELECT what, messages FROM postbox.inbox_log WHERE what = 'processed'").await,
        "processed|1"
    );
    run(&client, "DROP TRIGGER postbox_inbox_changing ON updated; ALTER TABLE updated DROP COLUMN source CASCADE")
        .await;
    refused(&client, "SELECT postbox.repair_inbox('updated')", "55000", "postbox_inbox_changing", "drop_inbox").await;
    refused(&client, "SELECT postbox.repair_inbox('none')", "42704", "does not exist", "inbox_status").await;
}

#[tokio::test]
async fn workers_may_write_into_the_table_where_that_is_the_style() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', style => 'update', max_retries => 1)").await;
    run(&client, "INSERT INTO payments (event_id, event_type) SELECT 'm' || n, 't' FROM generate_series(1, 4) n").await;
    let next = "SELECT event_id FROM payments WHERE processed_at IS NULL AND retry_count <= 1 AND (visible_at IS NULL OR visible_at <= now())
        ORDER BY received_at, event_id LIMIT 2 FOR UPDATE SKIP LOCKED";
    let other = cluster.client("postgres").await;
    run(&client, "BEGIN").await;
    run(&other, "BEGIN").await;
    assert_eq!(rows(&client, next).await, ["m1", "m2"]);
    assert_eq!(rows(&other, next).await, ["m3", "m4"]);
    run(&client, "UPDATE payments SET processed_at = now() WHERE event_id IN ('m1', 'm2'); COMMIT").await;
    run(
        &other,
        "UPDATE payments SET retry_count = retry_count + 1, error = 'e1' WHERE event_id IN ('m3', 'm4'); COMMIT",
    )
    .await;
    run(&client, "UPDATE payments SET retry_count = retry_count + 1, error = 'e2' WHERE event_id = 'm3'").await;
    assert_eq!(rows(&client, next).await, ["m4"]);
    let log = "SELECT what, messages, event_type, event_ids FROM postbox.inbox_log ORDER BY id";
    assert_eq!(rows(&client, log).await, ["processed|2|t|{m1,m2}", "failed|2|t|", "dead|1|t|{m3}"]);
    let dead = "SELECT event_id, event_type, why, error, attempts FROM postbox.inbox_dead";
    assert_eq!(rows(&client, dead).await, ["m3|t|failed|e2|2"]);
    // Once more, by hand.
    run(&client, "UPDATE payments SET retry_count = 0, error = NULL WHERE event_id = 'm3'").await;
    assert_eq!(rows(&client, dead).await, [""; 0]);
    assert_eq!(rows(&client, next).await, ["m3", "m4"]);
    run(&client, "SET enable_seqscan = off").await;
    for _ in 0..2 {
        let plan = rows(&client, &format!("EXPLAIN {next}")).await.join("\n");
        assert!(plan.contains("payments_pending"), "{plan}");
        // It is made again, though another index is of pending messages, too.
        run(&client, "DROP INDEX payments_pending; SELECT postbox.repair_inbox('payments')").await;
    }

    // Nothing is handed out by calls, and none of them takes a token.
    let hint = "lock rows of its table and set processed_at";
    refused(&client, "SELECT postbox.inbox_claim('payments', 'w')", "55000", "is of style \"update\"", hint).await;
    for call in [
        "complete('payments', '{m3}', '{1}')",
        "fail('payments', 'm3', 1, 'e')",
        "extend('payments', '{m3}', '{1}')",
        "release('payments', '{m3}', '{1}')",
    ] {
        refused(&client, &format!("SELECT postbox.inbox_{call}"), "55000", "is of style \"update\"", hint).await;
    }
    refused(&client, "UPDATE payments SET event_id = 'x'", "55000", "cannot be changed so", "event_id stays as it is")
        .await;
    refused(
        &client,
        "INSERT INTO payments (event_id, retry_count) VALUES ('x', 5)",
        "23514",
        "tried already",
        "Leave error and retry_count out",
    )
    .await;
    run(&client, "INSERT INTO payments (event_id, processed_at) VALUES ('imported', now())").await;

    // An index that is there already is used, and stays.
    run(
        &client,
        "CREATE TABLE old (event_id text PRIMARY KEY, processed_at timestamptz); CREATE INDEX own ON old (event_id) WHERE processed_at IS NULL;
         SELECT postbox.enable_inbox_tracking('old', style => 'update'); SELECT postbox.drop_inbox('old')",
    )
    .await;
    assert_eq!(
        rows(&client, "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'old'::regclass ORDER BY 1::text")
            .await,
        ["old_pkey", "own"]
    );
}

#[tokio::test]
async fn nobody_smuggles_anything_in_by_the_search_path() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('payments', dedup_window => '8 days'); SELECT postbox.create_inbox('updated', style => 'update');
         CREATE SCHEMA evil;
         CREATE FUNCTION evil.sprung() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''sprung''; END';
         CREATE FUNCTION evil.equal(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.sprung()';
         CREATE OPERATOR evil.= (FUNCTION = evil.equal, LEFTARG = text, RIGHTARG = text);
         CREATE FUNCTION evil.other(jsonb, jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT evil.sprung()';
         CREATE OPERATOR evil.= (FUNCTION = evil.other, LEFTARG = jsonb, RIGHTARG = jsonb);
         CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT evil.sprung()::int';
         CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''sprung''; END';
         CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT evil.sprung()::text';
         CREATE FUNCTION evil.count(text) RETURNS bigint LANGUAGE sql AS 'SELECT evil.sprung()::int::bigint';
         CREATE TABLE evil.payments (LIKE payments); CREATE TABLE evil.old (event_id pg_catalog.text PRIMARY KEY, processed_at pg_catalog.timestamptz);
         CREATE TYPE evil.text AS (trap pg_catalog.int4); CREATE TYPE evil.jsonb AS (trap pg_catalog.int4);
         CREATE TEMP TABLE inbox_batch (LIKE postbox.inbox_batch); CREATE TEMP TABLE pg_class (trap int);
         SET search_path = evil, pg_temp, public, pg_catalog",
    )
    .await;
    assert_eq!(error(&client, "SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text").await.message(), "sprung");
    run(
        &client,
        "INSERT INTO public.payments (event_id, payload) VALUES ('a', '1'), ('a', '2'), ('b', '3') ON CONFLICT DO NOTHING;
         SELECT postbox.inbox_receive('payments', 'a', '5');
         SELECT postbox.inbox_complete('payments', ARRAY[c.event_id], ARRAY[c.token]) FROM postbox.inbox_claim('payments', 'w') c;
         INSERT INTO public.updated (event_id) VALUES ('a'); UPDATE public.updated SET retry_count = 9; UPDATE public.updated SET processed_at = pg_catalog.now();
         SELECT postbox.enable_inbox_tracking('old', style => 'update'); SELECT postbox.create_inbox('more'); SELECT postbox.repair_inbox('more');
         SELECT postbox.drop_inbox('old'); SELECT postbox.drop_inbox('more'); SELECT postbox.drop_inbox('payments'); SELECT postbox.drop_inbox('updated')",
    )
    .await;
}

/// The database of a cluster as SQL.
fn dump(cluster: &Cluster) -> String {
    let output = Command::new(cluster.bin("pg_dump")).args(["-d", &cluster.conninfo("postgres")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_restored_database_goes_on_with_its_inboxes() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE SCHEMA \"Shop 1\"; SELECT postbox.create_inbox('Odd name', 'Shop 1', max_retries => 0); SELECT postbox.create_inbox('updated', style => 'update');
         CREATE TABLE old (id bigint PRIMARY KEY, body bytea); INSERT INTO old VALUES (1, '\\x00'); SELECT postbox.enable_inbox_tracking('old', event_id => 'id', payload => 'body', pending => 'all');
         SELECT postbox.create_inbox('ordered'); SELECT postbox.enable_inbox_ordering('ordered');
         INSERT INTO ordered (event_id, aggregate_id, sequence_num) VALUES ('o2', 'x', 2), ('o1', 'x', 1);
         INSERT INTO updated (event_id) VALUES ('u1');
         INSERT INTO \"Shop 1\".\"Odd name\" (event_id, visible_at) VALUES ('dead', NULL), ('leased', NULL), ('pending', now() + interval '1 day')",
    )
    .await;
    let claim = "SELECT postbox.inbox_fail('Odd name', 'dead', token, 'e') FROM postbox.inbox_claim('Odd name', 'w', visibility_seconds => 40000) WHERE event_id = 'dead'";
    assert_eq!(row(&client, claim).await, "dead");
    let token = row(&client, "SELECT token FROM postbox.inbox_batch WHERE token IS NOT NULL").await;
    run(&client, "SELECT postbox.inbox_claim('ordered', 'w', 1, 40000)").await;
    let ordered =
        row(&client, "SELECT token FROM postbox.inbox_batch WHERE token IS NOT NULL AND lanes IS NOT NULL").await;

    let text = dump(&cluster);
    run(&client, "CREATE DATABASE restored").await;
    cluster.psql("restored", &text);
    let client = cluster.client("restored").await;
    let kinds = "SELECT name, relation, managed, style FROM postbox.inbox ORDER BY name";
    let expected = [
        "Odd name|\"Shop 1\".\"Odd name\"|t|claim",
        "old|old|f|claim",
        "ordered|ordered|t|claim",
        "updated|updated|t|update",
    ];
    assert_eq!(rows(&client, kinds).await, expected);
    // What was handed out is still whose it was; tokens are never given twice.
    run(&client, &format!("SELECT postbox.inbox_complete('Odd name', '{{leased}}', '{{{token}}}')")).await;
    run(&client, &format!("SELECT postbox.inbox_complete('ordered', '{{o1}}', '{{{ordered}}}')")).await;
    assert_eq!(handed_out(&client, "ordered").await, ["o2||"]);
    assert_eq!(
        row(
            &client,
            &format!(
                "SELECT min(token) > {ordered} FROM postbox.inbox_batch WHERE token IS NOT NULL AND lanes IS NOT NULL"
            )
        )
        .await,
        "t"
    );
    assert_eq!(rows(&client, "SELECT event_id FROM postbox.inbox_dead").await, ["dead"]);
    assert_eq!(handed_out(&client, "Odd name").await, [""; 0]);
    run(&client, "UPDATE postbox.inbox_batch SET ready_at = now() WHERE token IS NULL").await;
    assert_eq!(handed_out(&client, "Odd name").await, ["pending||"]);
    assert_eq!(handed_out(&client, "old").await, ["1||\"AA==\""]);
    for (receive, outcome) in [
        ("'Odd name', 'leased'", "duplicate"),
        ("'Odd name', 'new'", "received"),
        ("'old', '1', '\"AA==\"'", "duplicate"),
        ("'old', '2'", "received"),
    ] {
        assert_eq!(row(&client, &format!("SELECT postbox.inbox_receive({receive})")).await, outcome, "{receive}");
    }
    assert_eq!(handed_out(&client, "Odd name").await, ["new||"]);
    run(&client, "UPDATE updated SET processed_at = now()").await;
    refused(&client, "UPDATE \"Shop 1\".\"Odd name\" SET error = 'e'", "55000", "cannot be changed so", "inbox_fail")
        .await;
    run(
        &client,
        "SELECT postbox.create_inbox('more'); SELECT postbox.drop_inbox(name, cascade => true) FROM postbox.inbox",
    )
    .await;
    assert_eq!(
        row(
            &client,
            "SELECT count(*) FROM pg_proc WHERE pronamespace IN ('public'::regnamespace, '\"Shop 1\"'::regnamespace)"
        )
        .await,
        "0"
    );
}

#[tokio::test]
async fn drop_extension_says_what_hangs_on_it_and_leaves_plain_tables() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments'); INSERT INTO payments (event_id) VALUES ('a')").await;
    let denied = error(&client, "DROP EXTENSION postbox").await;
    assert_eq!(denied.code().code(), "2BP01");
    assert!(denied.detail().unwrap_or_default().contains("view pending_payments"), "{denied:?}");
    run(&client, "DROP EXTENSION postbox CASCADE; INSERT INTO payments (event_id) VALUES ('b')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'payments'::regclass").await, "0");
    assert_eq!(row(&client, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").await, "0");
    // From the beginning, and what it holds comes again.
    run(&client, "CREATE EXTENSION postbox; SELECT postbox.enable_inbox_tracking('payments')").await;
    assert_eq!(handed_out(&client, "payments").await, ["a||", "b||"]);
}

#[tokio::test]
async fn what_somebody_has_prepared_is_not_taken_for_part_of_an_inbox() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE eve; CREATE ROLE shop; CREATE ROLE clerk IN ROLE shop; CREATE SCHEMA app; GRANT ALL ON SCHEMA app TO eve, shop; SET ROLE eve;
         CREATE FUNCTION app.pay_arrived() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; RESET ROLE",
    )
    .await;
    let create = "SELECT postbox.create_inbox('pay', 'app')";
    refused(&client, create, "42723", "function app.pay_arrived() exists already", "another name").await;
    // However well it is made up.
    run(
        &client,
        "SET ROLE eve; COMMENT ON FUNCTION app.pay_arrived() IS 'Trigger of inbox pay, made by Postbox'; RESET ROLE",
    )
    .await;
    refused(&client, create, "42723", "inbox \"pay\" belong to \"eve\"", "drop them, or choose another name").await;
    run(&client, "DROP FUNCTION app.pay_arrived()").await;
    run(&client, &format!("{create}; ALTER TABLE app.pay OWNER TO shop")).await;
    // Theirs who own the table, or were members of that role when they made the inbox.
    run(&client, "ALTER FUNCTION app.pay_receive OWNER TO clerk; ALTER FUNCTION app.pay_arrived OWNER TO shop").await;
    run(&client, "SELECT postbox.repair_inbox('pay'); SELECT postbox.enable_inbox_ordering('pay')").await;
    let repair = "SELECT postbox.repair_inbox('pay')";
    for (kind, name) in [("FUNCTION", "app.pay_receive"), ("FUNCTION", "app.pay_heads"), ("VIEW", "app.pending_pay")] {
        run(&client, &format!("ALTER {kind} {name} OWNER TO eve")).await;
        refused(&client, repair, "42723", "inbox \"pay\" belong to \"eve\"", &format!("ALTER {kind} {name}")).await;
        run(&client, &format!("ALTER {kind} {name} OWNER TO clerk; {repair}")).await;
    }
}

/// The statements that a hint ends with.
async fn follow(client: &Client, call: &str) {
    let refusal = error(client, call).await;
    let hint = refusal.hint().unwrap();
    let (_, statements) = hint.split_once(": ").unwrap();
    run(client, &format!("BEGIN; {statements}; {call}; COMMIT")).await;
}

#[tokio::test]
async fn who_gets_the_table_of_an_inbox_is_told_what_else_there_is_to_have() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE op; CREATE ROLE \"the app\"; GRANT CREATE ON SCHEMA public TO op, \"the app\"; SELECT postbox.grant_role('operator', 'op');
         SELECT postbox.grant_role('operator', '\"the app\"'); SET ROLE op; SELECT postbox.create_inbox('pay'); SELECT postbox.create_inbox('due', style => 'update');
         SELECT postbox.enable_inbox_ordering('pay'); RESET ROLE; ALTER TABLE pay OWNER TO \"the app\"; ALTER TABLE due OWNER TO \"the app\"",
    )
    .await;
    let tiers = r#"SELECT postbox.enable_inbox_priority('pay', tiers => '[{"name": "all"}]')"#;
    for who in ["SET ROLE \"the app\"", "RESET ROLE"] {
        run(&client, who).await;
        let refusal = error(&client, tiers).await;
        assert_eq!(refusal.code().code(), "42723", "{who}: {refusal:?}");
        let detail = refusal.detail().unwrap();
        for part in ["pay_refused()", "pay_arriving()", "pay_arrived()", "pay_claimed(", "pay_heads(", "pay_receive("] {
            assert!(detail.contains(&format!("FUNCTION public.{part}")), "{part}: {detail}");
        }
        for part in ["pending_pay", "dlq_pay", "messages_pay", "stats_pay", "next_pay", "gaps_pay"] {
            assert!(detail.contains(&format!("VIEW public.{part} of \"op\"")), "{part}: {detail}");
        }
    }
    run(&client, "SET ROLE \"the app\"").await;
    let refusal = error(&client, "SELECT postbox.drop_inbox('pay', cascade => true)").await;
    assert_eq!(
        (refusal.code().code(), refusal.message()),
        ("42501", "parts of inbox \"pay\" belong to \"op\", who could drop them")
    );
    let (_, remedy) = refusal.hint().unwrap().split_once(": ").unwrap();
    run(&client, "RESET ROLE; BEGIN").await;
    run(&client, remedy).await;
    run(&client, "SET ROLE \"the app\"; SELECT postbox.drop_inbox('pay', cascade => true); ROLLBACK").await;
    run(&client, "SET ROLE op").await;
    refused(
        &client,
        "SELECT postbox.drop_inbox('pay')",
        "42501",
        "table public.pay of inbox \"pay\" belongs to \"the app\"",
        "owner",
    )
    .await;
    run(&client, "RESET ROLE").await;
    follow(&client, tiers).await;
    follow(&client, "SELECT postbox.repair_inbox('due')").await;
    // What a superuser has made since is his.
    let disable = "SELECT postbox.disable_inbox_priority('pay')";
    run(&client, "SET ROLE \"the app\"").await;
    refused(&client, disable, "42723", "belong to \"postgres\"", "ALTER VIEW public.pending_pay_all OWNER TO").await;
    run(&client, "RESET ROLE; ALTER VIEW pending_pay_all OWNER TO \"the app\"").await;
    run(&client, "SET ROLE \"the app\"; SELECT postbox.disable_inbox_priority('pay'); SELECT postbox.disable_inbox_ordering('pay')").await;
    run(&client, "SELECT postbox.drop_inbox('pay'); SELECT postbox.drop_inbox('due'); RESET ROLE").await;
    assert_eq!(rows(&client, LEFT).await, [""; 0]);

    // Who owns the schema of Postbox could change what the triggers call anyway.
    run(
        &client,
        "SELECT postbox.create_inbox('pay'); ALTER TABLE pay OWNER TO \"the app\"; CREATE ROLE admin SUPERUSER; SET ROLE admin;
         SELECT postbox.repair_inbox('pay'); RESET ROLE",
    )
    .await;
}

/// What lies in schema public and is no table.
const LEFT: &str = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1";

#[tokio::test]
async fn what_has_the_name_of_a_view_of_an_inbox_stays() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE old (event_id text PRIMARY KEY, processed_at timestamptz); CREATE TABLE one (secret int); INSERT INTO one VALUES (42)").await;
    for (kind, query) in
        [("VIEW", "AS SELECT 42 AS secret"), ("MATERIALIZED VIEW", "AS SELECT 42 AS secret"), ("TABLE", "AS TABLE one")]
    {
        for prefix in ["pending", "dlq", "messages", "stats"] {
            for (name, make) in [("pay", "create_inbox('pay'"), ("old", "enable_inbox_tracking('old'")] {
                for style in ["claim", "update"] {
                    let taken = format!("{prefix}_{name}");
                    run(&client, &format!("CREATE {kind} {taken} {query}")).await;
                    let make = format!("SELECT postbox.{make}, style => '{style}')");
                    let message =
                        format!("relation \"public.{taken}\", which is to be a view of inbox \"{name}\", exists");
                    refused(&client, &make, "42P07", &message, "another name").await;
                    assert_eq!(row(&client, &format!("SELECT secret FROM {taken}")).await, "42");
                    run(&client, &format!("DROP {kind} {taken}")).await;
                }
            }
        }
    }
    // What somebody has put in the place of a view is his.
    run(&client, "SELECT postbox.create_inbox('pay'); DROP VIEW dlq_pay; CREATE VIEW dlq_pay AS SELECT 42 AS secret")
        .await;
    refused(&client, "SELECT postbox.repair_inbox('pay')", "42P07", "public.dlq_pay", "Rename").await;
    run(&client, "ALTER VIEW dlq_pay RENAME TO dlq_mine; SELECT postbox.repair_inbox('pay'); DROP VIEW dlq_pay; ALTER VIEW dlq_mine RENAME TO dlq_pay").await;
    // Elsewhere too, and whatever it reads.
    run(&client, "CREATE SCHEMA rep; CREATE VIEW rep.stats_pay AS SELECT * FROM postbox.inbox_status('pay'); CREATE VIEW rep.pending_pay AS SELECT inbox FROM postbox.inbox_batch").await;
    run(&client, "SELECT postbox.drop_inbox('pay', cascade => true)").await;
    assert_eq!(
        row(
            &client,
            "SELECT to_regclass('rep.stats_pay') IS NOT NULL, (SELECT count(*) FROM rep.pending_pay), secret FROM dlq_pay"
        )
        .await,
        "t|0|42"
    );
    run(&client, "DROP VIEW dlq_pay").await;
    assert_eq!(rows(&client, LEFT).await, [""; 0]);
}

#[tokio::test]
async fn what_has_the_name_of_a_function_of_an_inbox_stays() {
    let (_cluster, client) = start().await;
    for (style, function) in [
        ("claim", "pay_refused()"),
        ("claim", "pay_arriving()"),
        ("claim", "pay_arrived()"),
        ("claim", "pay_claimed(text[], int[], bigint)"),
        ("claim", "pay_heads(text[], bigint[], boolean[], text[])"),
        ("update", "pay_updated()"),
        (
            "update",
            "pay_receive(text[], jsonb[], text[], text[], text[], bigint[], int[], jsonb[], timestamptz[], text[])",
        ),
    ] {
        let body = if function.ends_with("()") {
            "RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        } else {
            "RETURNS text RETURN 42::text"
        };
        run(&client, &format!("CREATE FUNCTION {function} {body}")).await;
        let make = format!("SELECT postbox.create_inbox('pay', style => '{style}')");
        refused(&client, &make, "42723", "exists already", "another name").await;
        run(&client, &format!("DROP FUNCTION {function}")).await;
    }
    // Others are in nobody's way.
    run(
        &client,
        "CREATE FUNCTION pay_updated() RETURNS text RETURN 42::text; CREATE FUNCTION pay_arrived(int) RETURNS text RETURN 43::text;
         SELECT postbox.create_inbox('pay'); SELECT postbox.enable_inbox_ordering('pay'); SELECT postbox.disable_inbox_ordering('pay'); SELECT postbox.drop_inbox('pay')",
    )
    .await;
    assert_eq!(row(&client, "SELECT pay_updated(), pay_arrived(1)").await, "42|43");
    run(&client, "DROP FUNCTION pay_updated(); DROP FUNCTION pay_arrived(int)").await;
}

#[tokio::test]
async fn views_of_tiers_and_of_order_are_known_from_those_of_others() {
    let (_cluster, client) = start().await;
    let tiers = r#"SELECT postbox.enable_inbox_priority('pay', tiers => '[{"name": "high"}]')"#;
    run(&client, &format!("SELECT postbox.create_inbox('pay'); {tiers}")).await;
    let make = "SELECT postbox.create_inbox('pay_high')";
    refused(&client, make, "42P07", "public.pending_pay_high", "another name for the inbox").await;
    run(&client, &format!("SELECT postbox.disable_inbox_priority('pay'); {make}")).await;
    refused(&client, tiers, "42P07", "public.pending_pay_high", "another name for the tier").await;
    run(&client, "SELECT postbox.grant_role('maintainer', current_user::regrole, '{pay_high}')").await;
    assert_eq!(row(&client, "SELECT count(*) FROM pending_pay_high").await, "0");

    // Theirs who dropped ours and made their own.
    run(
        &client,
        &format!("SELECT postbox.drop_inbox('pay_high'); {tiers}; SELECT postbox.enable_inbox_ordering('pay')"),
    )
    .await;
    for view in ["pending_pay_high", "next_pay", "gaps_pay"] {
        run(&client, &format!("DROP VIEW {view}; CREATE VIEW {view} AS SELECT 42 AS secret")).await;
    }
    run(&client, "ALTER VIEW pending_pay_high RENAME TO mine; SELECT postbox.disable_inbox_ordering('pay'); DROP VIEW pending_pay_high; ALTER VIEW mine RENAME TO pending_pay_high").await;
    run(&client, "SELECT postbox.disable_inbox_priority('pay'); SELECT postbox.drop_inbox('pay')").await;
    for view in ["pending_pay_high", "next_pay", "gaps_pay"] {
        assert_eq!(row(&client, &format!("SELECT secret FROM {view}")).await, "42");
    }
}

#[tokio::test]
async fn views_follow_the_table_into_another_schema() {
    let (_cluster, client) = start().await;
    run(
        &client,
        r#"CREATE SCHEMA "the shop"; CREATE ROLE reader; SELECT postbox.create_inbox('pay'); SELECT postbox.enable_inbox_ordering('pay');
         SELECT postbox.enable_inbox_priority('pay', tiers => '[{"name": "All of it"}]'); GRANT SELECT ON pending_pay, stats_pay, next_pay TO reader;
         CREATE VIEW mine AS SELECT event_id FROM pending_pay; ALTER TABLE pay SET SCHEMA "the shop"; CREATE VIEW "the shop".gaps_pay AS SELECT 42 AS secret"#,
    )
    .await;
    let repair = "SELECT postbox.repair_inbox('pay')";
    refused(&client, repair, "42P07", "\"the shop\".gaps_pay", "Rename").await;
    run(&client, &format!("DROP VIEW \"the shop\".gaps_pay; {repair}")).await;
    assert_eq!(rows(&client, LEFT).await, ["mine"]);
    let there = "SELECT relname, coalesce(relacl::text ~ 'reader=r', false) FROM pg_class WHERE relnamespace = '\"the shop\"'::regnamespace AND relkind = 'v' ORDER BY relname COLLATE \"C\"";
    let views = [
        "dlq_pay|f",
        "gaps_pay|f",
        "messages_pay|f",
        "next_pay|t",
        "pending_pay|t",
        "pending_pay_All of it|f",
        "stats_pay|t",
    ];
    assert_eq!(rows(&client, there).await, views);
    run(&client, "INSERT INTO \"the shop\".pay (event_id) VALUES ('a')").await;
    assert_eq!(row(&client, "SELECT event_id FROM mine").await, "a");
    run(&client, "SELECT postbox.disable_inbox_priority('pay'); SELECT postbox.disable_inbox_ordering('pay')").await;
    assert_eq!(rows(&client, there).await, ["dlq_pay|f", "messages_pay|f", "pending_pay|t", "stats_pay|t"]);
    // A schema that is renamed is no other one.
    run(&client, "ALTER SCHEMA \"the shop\" RENAME TO shop; SELECT postbox.repair_inbox('pay')").await;
    // Moved and not repaired.
    run(&client, "ALTER TABLE shop.pay SET SCHEMA public; SELECT postbox.drop_inbox('pay', cascade => true)").await;
    let left = "SELECT relname FROM pg_class WHERE relnamespace = 'shop'::regnamespace UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'shop'::regnamespace";
    assert_eq!(rows(&client, &format!("{left} UNION ALL {LEFT}")).await, [""; 0]);
}

#[tokio::test]
async fn an_inbox_is_made_again_over_what_is_left_of_it() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_inbox('pay', style => 'update'); INSERT INTO pay (event_id) VALUES ('a'); DROP EXTENSION postbox CASCADE; CREATE EXTENSION postbox;
         SELECT postbox.enable_inbox_tracking('pay', style => 'update')",
    )
    .await;
    assert_eq!(row(&client, "SELECT event_id FROM pending_pay").await, "a");
    run(&client, "DROP TABLE pay CASCADE; SELECT postbox.drop_inbox('pay')").await;
    assert_eq!(rows(&client, LEFT).await, [""; 0]);
}
