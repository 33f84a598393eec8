//! `postbox._frame`: a stored row is the very event that the slot has for it, but for its place in the log.

use postbox_tests::{Cluster, major};
use postbox_wire::{Decoder, Lsn, PgMicros, Transaction};
use tokio_postgres::Client;

use super::{refused, row, rows, run, start};

/// An event as it shows in the wire crate, ordinal aside, and its transaction.
type Seen = (String, Transaction);

async fn seen(client: &Client, sql: &str) -> Vec<Seen> {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
    let mut seen = Vec::new();
    for row in rows {
        let mut decoder = Decoder::new();
        let mut frame = decoder.frame(row.get(0)).unwrap();
        while let Some(mut event) = frame.next_event().unwrap() {
            event.ordinal = 0;
            seen.push((format!("{event:?}"), frame.transaction));
        }
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    seen
}

/// What the slot has for an outbox.
async fn streamed(client: &Client, outbox: &str) -> Vec<Seen> {
    let oid = row(client, &format!("SELECT '{outbox}'::regclass::oid")).await;
    let sql = format!("SELECT data FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'outboxes', '{oid}')");
    seen(client, &sql).await
}

/// Asserts that the rows of the outbox, read from there, make the events that the slot has; returns how many.
async fn check(client: &Client, outbox: &str, from: &[&str]) -> usize {
    let streamed = streamed(client, outbox).await;
    let frames = from.iter().map(|from| format!("SELECT postbox._frame('{outbox}', o) FROM {from} o"));
    let stored = seen(client, &frames.collect::<Vec<_>>().join(" UNION ALL ")).await;
    assert_eq!(stored.len(), streamed.len(), "{outbox}");
    for ((stored, at), (streamed, then)) in stored.iter().zip(&streamed) {
        let shown = |event: &str| event.chars().take(2000).collect::<String>();
        assert!(stored == streamed, "{outbox}: {} is not {}", shown(stored), shown(streamed));
        assert_eq!((at.commit_lsn, at.end_lsn), (Lsn::ZERO, Lsn::ZERO));
        assert!(at.xid == then.xid || at.xid == 0, "{at:?} {then:?}");
    }
    stored.len()
}

async fn with_slot() -> (Cluster, Client) {
    let (cluster, client) = start().await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    (cluster, client)
}

const TYPES: [&str; 4] = ["jsonb", "json", "text", "bytea"];

#[tokio::test]
async fn rows_of_an_outbox_are_what_the_slot_has_wherever_they_are_read() {
    let (_cluster, client) = with_slot().await;
    for payload_type in TYPES {
        run(&client, &format!("SELECT postbox.create_outbox('of_{payload_type}', payload_type => '{payload_type}')"))
            .await;
        // In each of the leaves.
        for generation in 0..5 {
            run(
                &client,
                &format!(
                    "SELECT setval(pg_get_serial_sequence('of_{payload_type}', 'seq'), ({generation}::bigint << 20) + 5);
                     INSERT INTO of_{payload_type} (key, type, headers, payload) VALUES
                         ('k{generation}', 'ä', '{{\"h\": [1, null]}}', '[1, 2.50, \"x\\\\u00e4\"]'), (NULL, '', NULL, NULL), ('', 'empty', 'null', '\"\"')"
                ),
            )
            .await;
        }
        let outbox = format!("of_{payload_type}");
        assert_eq!(check(&client, &outbox, &[&outbox]).await, 15);
        // Without a type of its own, as rows of a subquery are.
        check(&client, &outbox, &[&format!("(SELECT * FROM {outbox} ORDER BY seq DESC LIMIT 100)")]).await;
        let leaves = [0, 1, 2, 3].map(|leaf| format!("{outbox}_g{leaf}"));
        check(&client, &outbox, &leaves.each_ref().map(|leaf| leaf.as_str())).await;
        // In a parallel worker.
        let parallel = if major() >= 16 { "debug_parallel_query" } else { "force_parallel_mode" };
        run(&client, &format!("SET {parallel} = on")).await;
        check(&client, &outbox, &[&outbox]).await;
        check(&client, &outbox, &[&format!("(SELECT * FROM {outbox} OFFSET 0)")]).await;
        run(&client, &format!("RESET {parallel}")).await;
        // As PL/pgSQL holds rows.
        run(
            &client,
            &format!(
                "CREATE FUNCTION {outbox}_by_loop() RETURNS SETOF bytea LANGUAGE plpgsql AS $$
                 DECLARE o {outbox}; BEGIN FOR o IN SELECT * FROM {outbox} LOOP RETURN NEXT postbox._frame('{outbox}', o); END LOOP; END $$"
            ),
        )
        .await;
        assert_eq!(
            seen(&client, &format!("SELECT * FROM {outbox}_by_loop()")).await,
            seen(&client, &format!("SELECT postbox._frame('{outbox}', o) FROM {outbox} o")).await
        );
        let known = format!(
            "SELECT bool_and(d.xid = o.xid AND d.commit_time = o.created_at AND d.commit_lsn IS NULL AND d.ordinal = 0 AND d.event_id = o.event_id::text)
             FROM {outbox} o, postbox.decode(postbox._frame('{outbox}', o)) d"
        );
        assert_eq!(row(&client, &known).await, "t");
    }
}

#[tokio::test]
async fn adopted_tables_come_by_their_mapping() {
    let (_cluster, client) = with_slot().await;
    run(
        &client,
        r#"CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN cents AS numeric CHECK (VALUE >= 0);
           CREATE TABLE debezium (id uuid DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text, type text, payload jsonb);
           SELECT postbox.adopt_outbox('debezium', layout => 'debezium');
           INSERT INTO debezium (aggregatetype, aggregateid, type, payload) VALUES ('order', '42', 'placed', '{"a": 1}'), (NULL, '43', 'gone', NULL);

           CREATE TABLE renamed ("Id" text, dropped int, body json, "what=" varchar(20), who bigint, meta jsonb, day date, at timestamptz, local timestamp,
               price cents, small float4, ok bool, doc jsonb, m mood, span interval, raw bytea,
               n bigint GENERATED ALWAYS AS IDENTITY, x xid8 NOT NULL DEFAULT pg_current_xact_id(), created_at timestamptz);
           ALTER TABLE renamed DROP COLUMN dropped;
           SELECT postbox.adopt_outbox('renamed', event_id => 'Id', type => 'what=', key => 'who', headers => 'meta', payload => 'body', seq => 'n', xid => 'x',
               header_columns => '{day,at,local,price=Price,small,ok,doc,m,span,raw}');
           INSERT INTO renamed VALUES
               ('one', '[1,  2]', 'made', 7, '{"given": true}', '2026-02-03', '2026-02-03 04:05:06.7+01', '2026-02-03 04:05', 1.50, 'NaN', true, '{"d": null}', 'sad', '1 day', '\x00ff'),
               ('two', NULL, 'bare', NULL, NULL, 'infinity', '-infinity', NULL, 0, 0.1, false, '[]', NULL, NULL, NULL),
               ('three', '1', 'taken', 1, '{"day": "mine"}', '0044-03-15 BC', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
               ('four', '1', 'no object', 1, '[1]', '2026-01-01', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
           UPDATE renamed SET created_at = 'infinity' WHERE "Id" = 'one'; UPDATE renamed SET created_at = '2026-01-01' WHERE "Id" = 'two';
           UPDATE renamed SET created_at = '-infinity' WHERE "Id" = 'three';

           CREATE TABLE numbered (event_id bigint, type text, payload bytea);
           SELECT postbox.adopt_outbox('numbered', key => '', headers => '');
           INSERT INTO numbered VALUES (-1, 'a', '\x00'), (9223372036854775807, 'b', NULL);
           CREATE TABLE small (event_id int, type text, key int, payload varchar);
           SELECT postbox.adopt_outbox('small');
           INSERT INTO small VALUES (-5, 'a', -6, 'words'), (NULL, 'no id', 1, 'x')"#,
    )
    .await;
    for (outbox, count) in [("debezium", 2), ("renamed", 4), ("numbered", 2), ("small", 2)] {
        assert_eq!(check(&client, outbox, &[outbox]).await, count);
        check(&client, outbox, &[&format!("(SELECT * FROM {outbox} LIMIT 100)")]).await;
    }
    let decoded = "SELECT d.event_id, d.commit_time, d.xid = o.x FROM renamed o, postbox.decode(postbox._frame('renamed', o)) d ORDER BY o.n";
    run(&client, "SET timezone = 'UTC'").await;
    assert_eq!(rows(&client, decoded).await, ["one||t", "two|2026-01-01 00:00:00+00|t", "three||t", "four||t"]);
    // A time that RFC 3339 cannot write is not known either.
    for (created_at, shown) in [
        ("0001-01-01 00:00+00", "0001-01-01 00:00:00+00"),
        ("0001-12-31 23:59:59.999999+00 BC", ""),
        ("9999-12-31 23:59:59.999999+00", "9999-12-31 23:59:59.999999+00"),
        ("10000-01-01 00:00+00", ""),
    ] {
        run(&client, &format!("UPDATE renamed SET created_at = '{created_at}'")).await;
        let times = "SELECT DISTINCT d.commit_time FROM renamed o, postbox.decode(postbox._frame('renamed', o)) d";
        assert_eq!(rows(&client, times).await, [shown], "{created_at}");
    }
    // Nothing tells when these were made, or by whom.
    let unknown = seen(&client, "SELECT postbox._frame('numbered', o) FROM numbered o").await;
    assert!(unknown.iter().all(|(_, at)| (at.commit_time, at.xid) == (PgMicros::UNKNOWN, 0)), "{unknown:?}");
}

#[tokio::test]
async fn a_leaf_may_have_its_columns_elsewhere() {
    let (_cluster, client) = with_slot().await;
    run(
        &client,
        "CREATE TABLE events (gone int, event_id uuid DEFAULT gen_random_uuid(), seq bigint, type text, key text, old text, payload jsonb, created_at timestamptz DEFAULT now())
             PARTITION BY RANGE (seq);
         ALTER TABLE events DROP COLUMN gone;
         CREATE TABLE same PARTITION OF events FOR VALUES FROM (0) TO (10);
         CREATE TABLE other (payload jsonb, waste int, key text, created_at timestamptz DEFAULT now(), type text, lost bytea, old text, seq bigint, event_id uuid DEFAULT gen_random_uuid());
         ALTER TABLE other DROP COLUMN waste, DROP COLUMN lost;
         ALTER TABLE events ATTACH PARTITION other FOR VALUES FROM (10) TO (20);
         CREATE TABLE branch (LIKE events) PARTITION BY LIST (type);
         ALTER TABLE events ATTACH PARTITION branch FOR VALUES FROM (20) TO (30);
         CREATE TABLE twig PARTITION OF branch DEFAULT;
         SELECT postbox.adopt_outbox('events');
         ALTER TABLE events DROP COLUMN old;
         INSERT INTO events (event_id, seq, type, key, payload) SELECT gen_random_uuid(), n, 't' || n, CASE WHEN n % 3 > 0 THEN 'k' || n END, to_jsonb(n) FROM generate_series(1, 29) n",
    )
    .await;
    assert_eq!(check(&client, "events", &["events"]).await, 29);
    check(&client, "events", &["same", "other", "twig"]).await;
    check(&client, "events", &["same", "other", "branch"]).await;
    let keys = "SELECT string_agg(DISTINCT d.key, ',') FROM other o, postbox.decode(postbox._frame('events', o)) d";
    assert_eq!(row(&client, keys).await, "k10,k11,k13,k14,k16,k17,k19");
    run(&client, "ALTER TABLE events DETACH PARTITION other").await;
    refused(
        &client,
        "SELECT postbox._frame('events', o) FROM other o",
        "42804",
        "a row of \"public.other\" is not",
        "whole rows",
    )
    .await;
}

#[tokio::test]
async fn large_payloads_come_whole_however_they_are_stored() {
    let (_cluster, client) = with_slot().await;
    let lz4 = client.batch_execute("SET default_toast_compression = 'lz4'").await.is_ok();
    for (at, storage) in ["external", "extended", "main", "plain"].into_iter().enumerate() {
        for (payload_type, value) in [
            ("jsonb", "(SELECT jsonb_agg(md5((n % 977)::text) || repeat('x', n % 9)) FROM generate_series(1, rows) n)"),
            ("text", "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, rows) n)"),
            ("text", "repeat('postbox ', rows * 4)"),
            ("bytea", "(SELECT string_agg(sha256(n::text::bytea), '') FROM generate_series(1, rows) n)"),
        ] {
            // A plain value stays in the row, which has to fit a page.
            let number = if storage == "plain" { "100" } else { "32768" };
            let value = value.replace("rows", number);
            let compression = if lz4 && at % 2 == 0 { "lz4" } else { "pglz" };
            run(
                &client,
                &format!(
                    "CREATE TABLE large (event_id bigint, type text, key text, headers jsonb, payload {payload_type});
                     SET default_toast_compression = '{compression}';
                     ALTER TABLE large ALTER payload SET STORAGE {storage};
                     SELECT postbox.adopt_outbox('large');
                     INSERT INTO large SELECT 1, 't', 'k', jsonb_build_array(repeat('h', 100000)), {value};
                     INSERT INTO large VALUES (2, 't', NULL, NULL, NULL)"
                ),
            )
            .await;
            assert_eq!(check(&client, "large", &["large"]).await, 2, "{storage} {payload_type}");
            check(&client, "large", &["(SELECT * FROM large ORDER BY event_id LIMIT 9)"]).await;
            let least = if storage == "plain" { 800 } else { 1 << 20 };
            let length = format!(
                "SELECT min(octet_length(postbox._frame('large', o))) >= {least} FROM large o WHERE event_id = 1"
            );
            assert_eq!(row(&client, &length).await, "t", "{storage} {payload_type}");
            run(&client, "DROP TABLE large").await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_represented_is_the_same_error_event() {
    let (_cluster, client) = with_slot().await;
    run(
        &client,
        "SELECT postbox.create_outbox('events'); ALTER TABLE events ALTER COLUMN type DROP NOT NULL, ALTER COLUMN event_id DROP NOT NULL;
         INSERT INTO events (event_id, type, payload) VALUES (NULL, NULL, '1');
         INSERT INTO events (type, payload) SELECT 'bomb', jsonb_agg(('1e131071')::numeric) FROM generate_series(1, 2300)",
    )
    .await;
    assert_eq!(check(&client, "events", &["events"]).await, 2);
    let codes = "SELECT d.error ->> 'code' FROM events o, postbox.decode(postbox._frame('events', o)) d ORDER BY o.seq";
    assert_eq!(rows(&client, codes).await, ["null", "too_large"]);

    // Columns that the marker does not find.
    run(&client, "TRUNCATE events; SELECT pg_drop_replication_slot('s')").await;
    run(&client, "ALTER TABLE events RENAME COLUMN payload TO body").await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    run(&client, "INSERT INTO events (type, key, body) VALUES ('renamed', 'k', '2')").await;
    check(&client, "events", &["events"]).await;
    check(&client, "events", &["(SELECT * FROM events LIMIT 1)"]).await;
    assert_eq!(rows(&client, codes).await, ["mapping"]);

    // Markers that make no sense; virtual columns, of which the log knows no value.
    let virtual_column = if major() >= 18 { ", doubled text GENERATED ALWAYS AS (type || type) VIRTUAL" } else { "" };
    for (table, arguments) in [
        ("a", "'nonsense'"),
        ("b", "'colour=type'"),
        ("c", "'payload=nothing', 'headers='"),
        ("d", "'type=type', 'type=type'"),
        ("e", ""),
        ("f", "'headers=', 'payload='"),
        ("g", "'headers='"),
    ] {
        run(
            &client,
            &format!(
                "CREATE TABLE {table} (event_id uuid DEFAULT gen_random_uuid(), type text DEFAULT 't', payload jsonb, headers int{virtual_column});
                 CREATE TRIGGER postbox_outbox BEFORE UPDATE ON {table} FOR EACH ROW WHEN (false)
                     EXECUTE FUNCTION suppress_redundant_updates_trigger({arguments});
                 INSERT INTO {table} (payload) VALUES ('1')"
            ),
        )
        .await;
        assert_eq!(check(&client, table, &[table]).await, 1);
    }
}

#[tokio::test]
async fn text_of_any_encoding_comes_as_in_the_stream() {
    let (cluster, postgres) = start().await;
    for (encoding, byte) in [("SQL_ASCII", "e4"), ("LATIN1", "e4"), ("EUC_JP", "b0a1"), ("WIN1252", "81")] {
        let name = encoding.to_lowercase();
        run(
            &postgres,
            &format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"),
        )
        .await;
        let client = cluster.client(&name).await;
        run(&client, "CREATE EXTENSION postbox").await;
        run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
        // Given as bytes: not all of it has characters that the connection could send.
        let text = format!("convert_from('\\x70{byte}', getdatabaseencoding())");
        for payload_type in TYPES {
            let value = match payload_type {
                "bytea" => "'\\xe4'".to_owned(),
                "text" => text.clone(),
                _ => format!("('[\"' || {text} || '\"]')::{payload_type}"),
            };
            run(
                &client,
                &format!(
                    "SELECT postbox.create_outbox('of_{payload_type}', payload_type => '{payload_type}');
                     INSERT INTO of_{payload_type} (key, type, headers, payload) SELECT {text}, {text}, jsonb_build_object({text}, {text}), {value};
                     INSERT INTO of_{payload_type} (type) VALUES ('plain')"
                ),
            )
            .await;
            let outbox = format!("of_{payload_type}");
            assert_eq!(check(&client, &outbox, &[&outbox]).await, 2, "{encoding}");
            let errors = format!(
                "SELECT string_agg(d.error ->> 'code', ',') FROM {outbox} o, postbox.decode(postbox._frame('{outbox}', o)) d"
            );
            let code = if encoding == "SQL_ASCII" || encoding == "WIN1252" { "encoding" } else { "" };
            assert_eq!(row(&client, &errors).await, code, "{encoding}");
        }
        run(&client, "SELECT pg_drop_replication_slot('s')").await;
    }
}

#[tokio::test]
async fn what_is_no_row_of_the_outbox_is_refused() {
    let (_cluster, client) = with_slot().await;
    run(
        &client,
        "SELECT postbox.create_outbox('events'); SELECT postbox.create_outbox('others'); INSERT INTO events (type) VALUES ('t'); INSERT INTO others (type) VALUES ('t');
         CREATE TABLE business (n int); INSERT INTO business VALUES (1); CREATE VIEW seen AS SELECT * FROM events;
         CREATE TABLE child () INHERITS (business); CREATE TYPE pair AS (a int, b int)",
    )
    .await;
    let whole = "Pass whole rows";
    let list = "outbox_status()";
    for (sql, code, message, hint) in [
        (
            "'events', o) FROM others o",
            "42804",
            "a row of \"public.others\" is not a row of outbox \"public.events\"",
            whole,
        ),
        ("'events', o) FROM business o", "42804", "a row of \"public.business\" is not", whole),
        ("'events', o) FROM seen o", "42804", "a row of \"public.seen\" is not", whole),
        ("'events', (1, 2)::pair)", "42804", "a row of \"public.pair\" is not", whole),
        ("'events', ROW(1, 2))", "42804", "no column \"seq\" of type bigint", whole),
        (
            "'events', o) FROM (SELECT seq, xid, event_id, type, payload FROM events) o",
            "42804",
            "no column \"created_at\"",
            whole,
        ),
        (
            "'events', o) FROM (SELECT seq::int, xid, event_id, created_at, key, type, headers, payload FROM events) o",
            "42804",
            "no column \"seq\" of type bigint",
            whole,
        ),
        ("'business', o) FROM business o", "42809", "\"public.business\" is not an outbox", list),
        (
            "'events_g0', o) FROM events_g0 o",
            "42809",
            "\"public.events_g0\" is a partition of an outbox",
            "public.events;",
        ),
        ("'pg_class_oid_index', o) FROM events o", "42809", "is not an outbox", list),
        ("987654321, o) FROM events o", "42P01", "987654321", list),
    ] {
        refused(&client, &format!("SELECT postbox._frame({sql}"), code, message, hint).await;
    }
    assert_eq!(row(&client, "SELECT postbox._frame(NULL, o) IS NULL FROM events o").await, "t");
    assert_eq!(row(&client, "SELECT postbox._frame('events', NULL) IS NULL").await, "t");
    assert_eq!(check(&client, "events", &["events"]).await, 1);

    // Not for everybody.
    run(&client, "CREATE ROLE nobody; CREATE ROLE reader REPLICATION; SELECT postbox.grant_role('consumer', 'reader')")
        .await;
    run(&client, "GRANT SELECT ON events TO nobody, reader").await;
    refused(&client, "SET ROLE nobody; SELECT postbox._frame('events', o) FROM events o", "42501", "_frame", "").await;
    let as_reader = "SET ROLE reader; SELECT count(postbox._frame('events', o)) FROM events o";
    assert_eq!(row(&client, as_reader).await, "1");
}

#[tokio::test]
async fn what_is_kept_between_rows_follows_every_change() {
    let (_cluster, client) = with_slot().await;
    run(
        &client,
        "CREATE TABLE events (event_id bigint, type text, spare text, payload text); SELECT postbox.adopt_outbox('events');
         INSERT INTO events VALUES (1, 'typed', 'spare', 'paid');
         SELECT postbox.create_outbox('others'); INSERT INTO others (type) VALUES ('other');
         CREATE SCHEMA elsewhere",
    )
    .await;
    // One place in a query, with rows of two outboxes in turn.
    let both = "SELECT d.outbox FROM (SELECT unnest('{events,others,events}'::regclass[]),
            unnest(ARRAY[(SELECT e FROM events e)]::record[] || ARRAY[(SELECT o FROM others o)]::record[] || ARRAY[(SELECT e FROM events e)]::record[]))
        t(outbox, o), postbox.decode(postbox._frame(t.outbox, t.o)) d";
    assert_eq!(rows(&client, both).await, ["public.events", "public.others", "public.events"]);

    // One expression of PL/pgSQL, kept over everything that happens in between, errors also.
    run(
        &client,
        "CREATE FUNCTION follow(changes text[]) RETURNS TABLE (said text) LANGUAGE plpgsql AS $$
         DECLARE outbox regclass := 'events'; o record; change text; frame bytea;
         BEGIN
             FOREACH change IN ARRAY changes LOOP
                 EXECUTE change;
                 EXECUTE format('SELECT t FROM %s t', outbox) INTO o;
                 BEGIN
                     frame := postbox._frame(outbox, o.t);
                     SELECT concat_ws(' ', d.outbox, d.type, d.payload, d.error ->> 'code') INTO said FROM postbox.decode(frame) d;
                 EXCEPTION WHEN others THEN said := SQLERRM;
                 END;
                 RETURN NEXT;
             END LOOP;
         END $$",
    )
    .await;
    let changes = [
        ("SELECT 1", "public.events typed paid"),
        ("ALTER TABLE events RENAME TO renamed", "public.renamed typed paid"),
        ("ALTER TABLE renamed SET SCHEMA elsewhere", "elsewhere.renamed typed paid"),
        ("ALTER SCHEMA elsewhere RENAME TO moved", "moved.renamed typed paid"),
        ("SELECT postbox.drop_outbox('renamed', 'moved')", "\"moved.renamed\" is not an outbox"),
        ("SELECT postbox.adopt_outbox('renamed', 'moved', type => 'spare')", "moved.renamed spare paid"),
        ("ALTER TABLE moved.renamed DROP COLUMN type, ADD COLUMN late text DEFAULT 'x'", "moved.renamed spare paid"),
        ("ALTER TABLE moved.renamed RENAME COLUMN spare TO type", "moved.renamed mapping"),
        ("ALTER TABLE moved.renamed RENAME COLUMN type TO spare", "moved.renamed spare paid"),
        ("ALTER TABLE moved.renamed ALTER COLUMN payload TYPE bytea USING 'abc'", "moved.renamed spare YWJj"),
    ];
    let list = changes.map(|(change, _)| format!("$c${change}$c$")).join(", ");
    let said = rows(&client, &format!("SELECT * FROM follow(ARRAY[{list}])")).await;
    assert_eq!(said, changes.map(|(_, said)| said));
}
