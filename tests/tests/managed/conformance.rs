//! Both sources give the same lines, byte for byte what JSON has in them: ids, keys, headers, payloads, positions, ordinals, times,
//! transactions, and error events. What is not the same is in `differences.rs`.

use postbox_tests::{Cluster, Run};

use super::{deliver_both, deliver_same, drop_groups, make_groups, start, types};
use crate::shop::PATIENCE;

/// Outboxes of all payload types.
fn with_all_types(cluster: &Cluster, database: &str) {
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        let sql = format!("SELECT postbox.create_outbox('of_{payload_type}', payload_type => '{payload_type}')");
        cluster.psql(database, &sql);
    }
}

#[test]
fn payloads_keys_and_headers_of_every_type_and_null() {
    let cluster = start();
    with_all_types(&cluster, "postgres");
    make_groups(&cluster, "postgres", "of_jsonb,of_json,of_text,of_bytea");
    cluster.psql(
        "postgres",
        r#"INSERT INTO of_jsonb (key, type, headers, payload) VALUES
               ('k', 'a', '{"h": [1, {"n": null}], "ü": "\t"}', '{"n": 1.50, "e": 1e30, "s": "😀 \"\\\n", "deep": [[[]]]}'),
               ('', '', '[]', '"s"'), (NULL, 'null', NULL, NULL), ('k', 'json null', 'null', 'null'), (E'a\nb\\"', E'\x01\x7f', '{}', '[]');
           INSERT INTO of_json (type, payload) VALUES ('spaces', E'{ "b" : 1,\n "a":\t2, "a": 3 }'), ('null', NULL), ('s', '"\u0000"');
           INSERT INTO of_text (type, payload) VALUES ('text', E'😀\n\t"\\'), ('', ''), ('null', NULL), ('long', repeat('ä', 100000));
           INSERT INTO of_bytea (type, payload) VALUES ('bytes', '\x00ff10'), ('none', ''), ('null', NULL), ('long', decode(repeat('00ff', 100000), 'hex'))"#,
    );
    assert_eq!(deliver_same(&cluster, "postgres").len(), 16);
}

/// Which nothing in the log tells from a row that is inserted.
#[test]
fn a_row_that_an_update_moves_to_another_partition_comes_again() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "CREATE TABLE parts (event_id int, type text, payload jsonb) PARTITION BY LIST (type);
         CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a', 'still a'); CREATE TABLE parts_b PARTITION OF parts FOR VALUES IN ('b');
         SELECT postbox.adopt_outbox('parts')",
    );
    make_groups(&cluster, "postgres", "parts");
    cluster.psql(
        "postgres",
        "INSERT INTO parts VALUES (1, 'a'); UPDATE parts SET type = 'still a'; UPDATE parts SET type = 'b'; UPDATE parts SET payload = '1'",
    );
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(types(&events), ["a", "b"]);
    assert_eq!(events[0]["event_id"], events[1]["event_id"]);
}

#[test]
fn what_is_rolled_back_prepared_updated_and_removed() {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "5").with_postbox().start();
    cluster.psql("postgres", "SELECT postbox.enable_pgoutput()");
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('others'); CREATE TABLE business (n int)",
    );
    make_groups(&cluster, "postgres", "orders");
    cluster.psql(
        "postgres",
        "BEGIN; INSERT INTO orders (type) VALUES ('rolled back'); ROLLBACK;
         BEGIN; INSERT INTO orders (type) VALUES ('0'); SAVEPOINT a; INSERT INTO orders (type) VALUES ('gone'); ROLLBACK TO a;
         SAVEPOINT b; INSERT INTO orders (type) VALUES ('1'), ('2'); RELEASE b; INSERT INTO business VALUES (1);
         -- Counts, and is not for these groups.
         INSERT INTO others (type) VALUES ('other'); INSERT INTO orders (type) VALUES ('4'); COMMIT;
         BEGIN; INSERT INTO orders (type) VALUES ('prepared'); PREPARE TRANSACTION 'p';
         BEGIN; INSERT INTO orders (type) VALUES ('never'); PREPARE TRANSACTION 'q';
         INSERT INTO orders (type) VALUES ('between');
         COMMIT PREPARED 'p'; ROLLBACK PREPARED 'q';
         UPDATE orders SET type = 'updated'; DELETE FROM orders WHERE seq < 3; TRUNCATE orders_g1; TRUNCATE orders;
         INSERT INTO business SELECT generate_series(1, 1000);
         COPY orders (type) FROM stdin;\n7\n8\n\\.\n",
    );
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(types(&events), ["0", "1", "2", "4", "between", "prepared", "7", "8"]);
    let ordinals = events.iter().map(|event| event["ordinal"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(ordinals, [0, 1, 2, 4, 0, 0, 0, 1]);
}

#[test]
fn every_leaf_of_the_ring_and_of_an_adopted_partitioned_table() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('orders', generation_rows => 1024);
         CREATE TABLE parts (event_id uuid, type text, key text, payload jsonb, n int) PARTITION BY RANGE (n);
         CREATE TABLE parts_low (type text, dropped int, payload jsonb, n int, key text, event_id uuid);
         ALTER TABLE parts_low DROP COLUMN dropped; ALTER TABLE parts ATTACH PARTITION parts_low FOR VALUES FROM (0) TO (10);
         CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (10) TO (20) PARTITION BY LIST (n);
         CREATE TABLE parts_15 PARTITION OF parts_high FOR VALUES IN (15);
         SELECT postbox.adopt_outbox('parts')",
    );
    make_groups(&cluster, "postgres", "orders,parts");
    cluster.psql(
        "postgres",
        "INSERT INTO orders (type) SELECT n::text FROM generate_series(1, 5000) n;
         INSERT INTO parts VALUES (gen_random_uuid(), 'low', 'k', '1', 1), (gen_random_uuid(), 'high', 'k', '2', 15);
         INSERT INTO parts_low (event_id, type, key, payload, n) VALUES (gen_random_uuid(), 'direct', 'k', '3', 2);
         CREATE TABLE parts_12 PARTITION OF parts_high FOR VALUES IN (12); INSERT INTO parts VALUES (gen_random_uuid(), 'new', 'k', '4', 12)",
    );
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(types(&events[5000..]), ["low", "high", "direct", "new"]);
    assert!(events[5000..].iter().all(|event| event["outbox"] == "public.parts"));
}

#[test]
fn adopted_layouts_with_columns_of_every_type_as_headers() {
    let cluster = start();
    cluster.psql(
        "postgres",
        r#"CREATE DOMAIN money_amount AS numeric(10, 2); CREATE DOMAIN price AS money_amount; CREATE TYPE mood AS ENUM ('fine');
           CREATE TABLE "Legacy box" ("Id" bigint PRIMARY KEY, aggregatetype varchar(255), "AGGREGATEID" int, type varchar(20), payload text,
               i2 smallint, f8 float8, f4 real, num numeric, b boolean, js json, jb jsonb, d date, ts timestamp, tz timestamptz, p price, m mood,
               u uuid, ba bytea, tt time, iv interval, ar int[], c char(5));
           SELECT postbox.adopt_outbox('Legacy box', layout => 'debezium', key => 'AGGREGATEID',
               header_columns => '{aggregatetype=ce_type,i2,f8,f4,num,b,js,jb,d,ts,tz,p,m,u,ba,tt,iv,ar,c}');
           CREATE TABLE keyed (event_id text, type text, key uuid, headers json, payload varchar, tenant int);
           SELECT postbox.adopt_outbox('keyed', header_columns => '{tenant}')"#,
    );
    make_groups(&cluster, "postgres", "\"\\\"Legacy box\\\"\",keyed");
    cluster.psql(
        "postgres",
        r#"INSERT INTO "Legacy box" VALUES
               (1, 'order', 7, 'placed', 'p', 1, 1.5, 2.5, 1e20, true, '{"a" :1}', '{"a" :1}', '2026-01-02', '2026-01-02 03:04:05', '2026-01-02 03:04:05.000007+02',
                12.5, 'fine', '00000000-0000-4000-8000-0000000000ab', '\xff00', '03:04', '1 day 02:03', '{1,NULL}', 'ab');
           INSERT INTO "Legacy box" VALUES (2, NULL, NULL, 'nulls', NULL);
           INSERT INTO "Legacy box" VALUES
               (-3, 'x', -7, 'odd', '', NULL, 'NaN', '-Infinity', 'NaN', false, 'null', 'null', 'infinity', '-infinity', 'infinity', 0),
               (4, 'x', 1, 'before Christ', '', NULL, 1e300, 1e-30, -0.0, NULL, NULL, NULL, '0044-03-15 BC', '0001-12-31 23:59:59.5 BC', '0001-01-01 00:00:00+00 BC', -1),
               (5, 'x', 1, 'far', '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '5874897-12-31', '294276-12-31 23:59:59', '12026-01-01 00:00:00+00', 1);
           INSERT INTO keyed VALUES
               ('id ä', 'a', '00000000-0000-4000-8000-0000000000ab', '{ "h": 1 }', 'p', 42),
               ('2', 'own', NULL, '{"tenant": 1}', 'p', 42), ('3', 'array', NULL, '[1]', 'p', 42), ('4', 'json null', NULL, 'null', 'p', 42),
               ('5', 'none', NULL, NULL, 'p', NULL), (NULL, 'no id', NULL, NULL, 'p', 1), ('7', NULL, NULL, NULL, 'p', 1), (NULL, NULL, NULL, NULL, NULL, NULL)"#,
    );
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(events.len(), 13);
    let codes = events.iter().filter_map(|event| event["error"]["code"].as_str()).collect::<Vec<_>>();
    assert_eq!(codes, ["mapping", "mapping", "null", "null", "null"]);
    assert_eq!(events[0]["headers"]["tz"], "2026-01-02T01:04:05.000007Z");
    assert_eq!(events[3]["headers"]["d"], "-043-03-15");
}

#[test]
fn ddl_under_the_stream() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('orders'); CREATE TABLE other (event_id uuid DEFAULT gen_random_uuid(), type text, key text, payload jsonb);
         SELECT postbox.adopt_outbox('other')",
    );
    make_groups(&cluster, "postgres", "orders,other");
    cluster.psql(
        "postgres",
        "INSERT INTO orders (type) VALUES ('first');
         ALTER TABLE orders ADD COLUMN extra text DEFAULT 'x'; INSERT INTO orders (type) VALUES ('column added');
         ALTER TABLE orders DROP COLUMN extra; INSERT INTO orders (type) VALUES ('column dropped');
         BEGIN; ALTER TABLE other ADD COLUMN n int; INSERT INTO other (type) VALUES ('within'); ALTER TABLE other RENAME TO \"Other\";
         INSERT INTO \"Other\" (type) VALUES ('renamed within'); COMMIT;
         ALTER TABLE \"Other\" RENAME TO other;
         SELECT postbox.drop_outbox('other', force => true); INSERT INTO other (type) VALUES ('no event');
         SELECT postbox.drop_outbox('orders', force => true);
         -- Under a name that the groups know it is theirs again.
         SELECT postbox.create_outbox('orders'); INSERT INTO orders (type) VALUES ('made anew')",
    );
    let events = deliver_same(&cluster, "postgres");
    let names = events.iter().map(|event| event["outbox"].as_str().unwrap()).collect::<Vec<_>>();
    let expected = ["public.orders", "public.orders", "public.orders", "public.other", "public.Other", "public.orders"];
    assert_eq!(names, expected, "{:?}", types(&events));
    assert!(events.iter().all(|event| event.get("error").is_none()), "{events:#?}");
}

#[test]
fn what_a_dropped_outbox_has_published_still_comes() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('ring'); CREATE TABLE let_go (id int, kind text, body text); CREATE TABLE gone (id int, kind text, body text);
         SELECT postbox.adopt_outbox('let_go', event_id => 'id', type => 'kind', payload => 'body')",
    );
    let adopt = "SELECT postbox.adopt_outbox('gone', event_id => 'id', type => 'kind', payload => 'body')";
    cluster.psql("postgres", adopt);
    make_groups(&cluster, "postgres", "ring,let_go,gone");
    cluster.psql(
        "postgres",
        "INSERT INTO ring (type) VALUES ('ring'); INSERT INTO let_go VALUES (1, 'let go', 'b'); INSERT INTO gone VALUES (2, 'gone', 'b');
         SELECT postbox.drop_outbox('ring', force => true); SELECT postbox.drop_outbox('let_go', force => true); DROP TABLE gone;
         INSERT INTO let_go VALUES (3, 'no event', 'b')",
    );
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(types(&events), ["ring", "let go", "gone"]);
    assert!(events.iter().all(|event| event.get("error").is_none()), "{events:#?}");
}

#[test]
fn messages_among_rows_and_what_anybody_writes() {
    let cluster = start();
    with_all_types(&cluster, "postgres");
    for outbox in ["of_jsonb", "of_text", "of_bytea"] {
        cluster.psql("postgres", &format!("SELECT postbox.set_emit('{outbox}', true)"));
    }
    make_groups(&cluster, "postgres", "of_jsonb,of_json,of_text,of_bytea");
    let oid = |outbox: &str| cluster.psql("postgres", &format!("SELECT '{outbox}'::regclass::oid"));
    let (open, closed, leaf) = (oid("of_jsonb"), oid("of_json"), oid("of_jsonb_g0"));
    cluster.psql(
        "postgres",
        &format!(
            r#"BEGIN; INSERT INTO of_jsonb (type) VALUES ('row');
               SELECT postbox.emit('of_jsonb', 'first', '{{"n": 1.50}}', key => 'k "1"', headers => '{{"h": [1]}}');
               SAVEPOINT s; SELECT postbox.emit('of_jsonb', 'undone', '{{}}'); ROLLBACK TO s;
               INSERT INTO of_text (type) VALUES ('row'); SELECT postbox.emit('of_text', 'text', E'ä\n'); SELECT postbox.emit('of_bytea', 'bytes', '\x00ff'::bytea);
               SELECT postbox.emit('of_jsonb', 'null', NULL::jsonb); COMMIT;
               SELECT pg_logical_emit_message(true, 'other', 'noise'), pg_logical_emit_message(true, 'postbox', 'garbage');
               SELECT pg_logical_emit_message(false, 'postbox', '{{"outbox":{open},"id":"00000000-0000-4000-8000-0000000000ab","type":"not of a transaction"}}');
               SELECT pg_logical_emit_message(true, 'postbox', '{{"outbox":{closed},"id":"00000000-0000-4000-8000-0000000000ab","type":"closed"}}');
               SELECT pg_logical_emit_message(true, 'postbox', '{{"outbox":{leaf},"id":"00000000-0000-4000-8000-0000000000ab","type":"leaf"}}');
               SELECT pg_logical_emit_message(true, 'postbox', '{{"outbox":1,"id":"00000000-0000-4000-8000-0000000000ab","type":"no table"}}');
               SELECT pg_logical_emit_message(true, 'postbox', '{{"outbox":{open},"id":"no id","type":"t"}}');
               SELECT pg_logical_emit_message(true, 'postbox', '{{"outbox":{open},"id":"00000000-0000-4000-8000-0000000000ab","type":7}}')"#
        ),
    );
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(types(&events)[..6], ["row", "first", "row", "text", "bytes", "null"]);
    let codes = events[6..].iter().map(|event| event["error"]["code"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(codes, ["malformed", "malformed"]);
}

#[test]
fn messages_count_as_of_when_they_were_written() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('orders'), postbox.create_outbox('dropped', payload_type => 'bytea'); CREATE TABLE let_go (id int, kind text, body text);
         CREATE TABLE gone (id int, kind text, body text)",
    );
    for (adopted, emits) in [("let_go", "true"), ("gone", "true")] {
        let adopt =
            format!("SELECT postbox.adopt_outbox('{adopted}', event_id => 'id', type => 'kind', payload => 'body')");
        cluster.psql("postgres", &format!("{adopt}; SELECT postbox.set_emit('{adopted}', {emits})"));
    }
    make_groups(&cluster, "postgres", "orders,dropped,let_go,gone");
    let oid = |outbox: &str| cluster.psql("postgres", &format!("SELECT '{outbox}'::regclass::oid"));
    let (orders, let_go) = (oid("orders"), oid("let_go"));
    let by_hand = |oid: &str, kind: &str| {
        format!(
            "SELECT pg_logical_emit_message(true, 'postbox', '{{\"outbox\":{oid},\"id\":\"00000000-0000-4000-8000-0000000000ab\",\"type\":\"{kind}\"}}')"
        )
    };
    let row = |kind: &str| format!("INSERT INTO orders (type) VALUES ('{kind}')");
    let emit = |kind: &str| format!("SELECT postbox.emit('orders', '{kind}', '{{}}')");
    let set = |enabled: bool| format!("SELECT postbox.set_emit('orders', {enabled})");
    for transaction in [
        vec![by_hand(&orders, "before"), row("row 1")],
        vec![by_hand(&orders, "too early"), set(true), emit("of its transaction"), row("row 2")],
        vec![emit("later"), row("row 3")],
        vec![emit("at last"), set(false), by_hand(&orders, "too late"), row("row 4")],
        vec![by_hand(&orders, "between"), row("row 5")],
        vec![set(true), "SAVEPOINT s".to_owned(), set(false), "ROLLBACK TO s".to_owned(), emit("again")],
        vec![set(false), by_hand(&orders, "after"), row("row 6")],
        vec!["SELECT postbox.set_emit('dropped', true)".to_owned()],
        vec![r"SELECT postbox.emit('dropped', 'of a dropped outbox', '\x00ff'::bytea)".to_owned()],
        vec!["SELECT postbox.drop_outbox('dropped', force => true)".to_owned()],
        vec!["SELECT postbox.emit('let_go', 'let go', 'text')".to_owned()],
        vec!["SELECT postbox.drop_outbox('let_go', force => true)".to_owned(), by_hand(&let_go, "no event")],
        vec!["SELECT postbox.emit('gone', 'of a dropped table', 'text')".to_owned()],
        vec!["DROP TABLE gone".to_owned()],
    ] {
        cluster.psql("postgres", &format!("BEGIN; {}; COMMIT", transaction.join("; ")));
    }
    let events = deliver_same(&cluster, "postgres");
    let expected = "row 1,of its transaction,row 2,later,row 3,at last,row 4,row 5,again,row 6,of a dropped outbox,let go,of a dropped table";
    assert_eq!(types(&events).join(","), expected);
    assert!(events.iter().all(|event| event.get("error").is_none()), "{events:#?}");
}

#[test]
fn columns_that_are_gone_make_error_events_with_the_rows_values() {
    let cluster = start();
    cluster.psql(
        "postgres",
        "CREATE TABLE box (id int, type text, payload jsonb, at date, ba bytea); SELECT postbox.adopt_outbox('box', event_id => 'id', header_columns => '{at}')",
    );
    make_groups(&cluster, "postgres", "box");
    cluster.psql(
        "postgres",
        "ALTER TABLE box RENAME COLUMN payload TO body; INSERT INTO box VALUES (1, 'ä', '{\"a\": 1}', '2026-01-02', '\\x00ff'), (2, NULL, NULL, NULL, NULL);
         ALTER TABLE box RENAME COLUMN body TO payload; INSERT INTO box VALUES (3, 'fine again', '1')",
    );
    let events = deliver_same(&cluster, "postgres");
    let codes = events.iter().map(|event| event["error"]["code"].as_str().unwrap_or("none")).collect::<Vec<_>>();
    assert_eq!(codes, ["mapping", "mapping", "none"]);
}

#[test]
fn a_database_without_encoding_gives_what_is_no_text_as_bytes() {
    let cluster = Cluster::start();
    cluster
        .psql("postgres", "CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    cluster.psql("bytes", "CREATE EXTENSION postbox; SELECT postbox.enable_pgoutput()");
    with_all_types(&cluster, "bytes");
    make_groups(&cluster, "bytes", "of_text,of_json,of_bytea");
    cluster.psql(
        "bytes",
        r"INSERT INTO of_text (key, type, payload) VALUES ('fine', 'ä', 'ü'), (E'k\xe4', E't\xe4', E'p\xe4');
          INSERT INTO of_json (type, payload) VALUES ('t', E'[\x22\xe4\x22]'); INSERT INTO of_bytea (type, payload) VALUES ('t', '\xe4');
          INSERT INTO of_text (type, payload) VALUES ('after', 'all')",
    );
    let events = deliver_same(&cluster, "bytes");
    let codes = events.iter().map(|event| event["error"]["code"].as_str().unwrap_or("none")).collect::<Vec<_>>();
    assert_eq!(codes, ["none", "encoding", "encoding", "none", "none"]);
}

#[test]
fn large_transactions_come_in_bounded_memory() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    make_groups(&cluster, "postgres", "orders");
    cluster.psql(
        "postgres",
        "INSERT INTO orders (key, type, payload) SELECT n % 7, n, jsonb_build_object('text', repeat('x', 1000)) FROM generate_series(1, 100000) n;
         INSERT INTO orders (type, payload) VALUES ('last', '{}')",
    );
    for source in super::SOURCES {
        let group = format!("by_{source}");
        let arguments = ["--group", &group, "--max-events", "100001"];
        // Held up before it is read, so that everything that can wait does.
        let run = Run::start_held(&cluster.conninfo("postgres"), &arguments);
        postbox_tests::wait_until("the pipe is full", PATIENCE, || (run.unread() > 60_000).then_some(()));
        run.release();
        let mut run = run;
        run.wait_for(100_000, PATIENCE);
        let peak = run.peak_kib();
        let ended = run.end(PATIENCE);
        assert_eq!(ended.lines.len(), 100_001, "{source}: {}", ended.log);
        assert!(ended.lines.iter().take(100_000).enumerate().all(|(n, line)| line.ordinal == n as u64), "{source}");
        // 130 MB of lines.
        assert!(peak < 100 << 10, "{source}: {peak} KiB");
    }
}

#[test]
fn events_of_another_server_are_left_out_where_asked() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    make_groups(&cluster, "postgres", "orders");
    cluster.psql(
        "postgres",
        "SELECT pg_replication_origin_create('elsewhere'); INSERT INTO orders (type) VALUES ('here');
         SELECT pg_replication_origin_session_setup('elsewhere'); INSERT INTO orders (type) VALUES ('there');
         SELECT pg_replication_origin_session_reset(); INSERT INTO orders (type) VALUES ('here again')",
    );
    for source in super::SOURCES {
        let group = format!("by_{source}");
        let events = postbox_tests::tap::deliver(&cluster, "postgres", &["--group", &group, "--origin", "none"]);
        assert_eq!(types(&events), ["here", "here again"], "{source}");
    }
    drop_groups(&cluster, "postgres");
    make_groups(&cluster, "postgres", "orders");
    cluster.psql(
        "postgres",
        "SELECT pg_replication_origin_session_setup('elsewhere'); INSERT INTO orders (type) VALUES ('there')",
    );
    assert_eq!(types(&deliver_same(&cluster, "postgres")), ["there"]);
}

#[test]
fn stored_events_before_those_of_the_stream() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders'); INSERT INTO orders (key, type, payload) SELECT 'k', n, '{\"a\": 1}' FROM generate_series(1, 600) n");
    for source in super::SOURCES {
        cluster.psql(
            "postgres",
            &format!("SELECT postbox.create_consumer_group('by_{source}', '{{orders}}', start => 'earliest', source => '{source}')"),
        );
    }
    cluster.psql("postgres", "INSERT INTO orders (type) VALUES ('later')");
    let events = deliver_same(&cluster, "postgres");
    assert_eq!(events.len(), 601);
    // Lost and recovered, the slot is of the same plugin.
    cluster.psql(
        "postgres",
        "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_group; INSERT INTO orders (type) VALUES ('lost with the slot')",
    );
    for source in super::SOURCES {
        cluster.psql("postgres", &format!("SELECT postbox.recover_consumer_group('by_{source}')"));
    }
    let plugins = "SELECT string_agg(s.plugin, ',' ORDER BY g.name) FROM postbox.consumer_group g JOIN pg_replication_slots s USING (slot_name)";
    assert_eq!(cluster.psql("postgres", plugins), "pgoutput,postbox");
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!(plugin.last(), pgoutput.last());
    assert_eq!(types(&pgoutput).last(), Some(&"lost with the slot"));
}
