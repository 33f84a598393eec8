//! Dump and restore, DROP EXTENSION and CREATE EXTENSION.

use std::process::Command;

use postbox_tests::Cluster;

use super::{refused, row, rows, run, start};

/// What `pg_dump` makes of the database `postgres`.
fn dump(cluster: &Cluster, options: &[&str]) -> String {
    let output = Command::new(cluster.bin("pg_dump"))
        .args(options)
        .args(["-d", &cluster.conninfo("postgres")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn an_outbox_depends_on_nothing_of_ours_and_outlives_the_extension() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'); CREATE TABLE old (event_id uuid, type text, payload jsonb)")
        .await;
    run(&client, "SELECT postbox.adopt_outbox('old'); SELECT postbox.publish('orders', 'before', '{}')").await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    let members = "SELECT count(*) FROM pg_depend d WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        AND d.classid = 'pg_class'::regclass
        AND (SELECT relnamespace FROM pg_class WHERE oid = d.objid) = 'public'::regnamespace";
    assert_eq!(row(&client, members).await, "0");

    // Without CASCADE.
    run(&client, "DROP EXTENSION postbox").await;
    assert_eq!(row(&client, "SELECT to_regnamespace('postbox') IS NULL").await, "t");
    run(&client, "INSERT INTO orders (type, payload) VALUES ('between', '{}')").await;
    run(&client, "CREATE EXTENSION postbox").await;

    run(&client, "SELECT postbox.publish('orders', 'after', '{}'); SELECT postbox.publish('old', 'after', '{}')").await;
    assert_eq!(rows(&client, "SELECT type FROM orders ORDER BY seq").await, ["before", "between", "after"]);
    let status = "SELECT name, adopted, groups FROM postbox.outbox_status()";
    assert_eq!(rows(&client, status).await, ["old|t|{}", "orders|f|{}"]);
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.consumer_groups").await, "0");
    // The slot stayed, and owes everything since.
    let owed = "SELECT d.type FROM pg_replication_slots,
        pg_logical_slot_peek_binary_changes(slot_name, NULL, NULL), postbox.decode(data) d
        WHERE d.outbox = 'public.orders'";
    assert_eq!(rows(&client, owed).await, ["between", "after"]);
}

#[tokio::test]
async fn a_restored_database_has_the_same_outboxes() {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE SCHEMA \"Shop 1\"; SELECT postbox.create_outbox('orders', generation_rows => 1024);
         SELECT postbox.create_outbox('Odd name', 'Shop 1', 'bytea');
         CREATE TABLE old (id uuid, \"the type\" text, body json);
         SELECT postbox.adopt_outbox('old', event_id => 'id', type => 'the type', payload => 'body');
         INSERT INTO orders (type, payload) SELECT 't', to_jsonb(n) FROM generate_series(1, 3000) n;
         SELECT postbox.publish('\"Shop 1\".\"Odd name\"', 't', '\\x00'::bytea);
         CREATE ROLE app; GRANT INSERT ON orders TO app; ANALYZE",
    )
    .await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders,old,\"\\\"Shop 1\\\".\\\"Odd name\\\"\"}')").await;
    let look = "SELECT name, schema, payload_type, generation, rows_estimate, last_seq, adopted, groups
        FROM postbox.outbox_status()";
    let marks = "SELECT tgrelid::regclass, tgparentid <> 0, postbox._marker_arguments(tgargs) FROM pg_trigger
        WHERE tgname = 'postbox_outbox' ORDER BY tgrelid::regclass::text";
    let table = "SELECT tableoid::regclass, seq, xid, event_id, created_at, type, payload FROM orders ORDER BY seq";
    let definition =
        "SELECT format_type(atttypid, atttypmod), attname, attidentity, attnotnull, pg_get_expr(adbin, adrelid),
        (SELECT pg_get_partkeydef(attrelid)), obj_description(attrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = 'orders'::regclass AND attnum > 0 ORDER BY attnum";

    for options in [&[][..], &["--inserts"], &["--load-via-partition-root"]] {
        let text = dump(&cluster, options);
        run(&client, "DROP DATABASE IF EXISTS restored").await;
        run(&client, "CREATE DATABASE restored").await;
        cluster.psql("restored", &text);
        let restored = cluster.client("restored").await;
        run(&restored, "ANALYZE").await;
        for question in [look, marks, table, definition] {
            assert_eq!(rows(&restored, question).await, rows(&client, question).await, "{options:?}: {question}");
        }
        assert_eq!(
            row(&restored, "SELECT postbox.publish('orders', 'next', '{}'); SELECT max(seq) FROM orders").await,
            "3001"
        );
        let leaf = "SELECT tableoid::regclass FROM orders WHERE type = 'next'";
        assert_eq!(row(&restored, leaf).await, "orders_g2");
        run(&restored, "SET ROLE app; SELECT postbox.publish('orders', 'allowed', '{}')").await;
    }
}

#[tokio::test]
async fn a_copy_of_a_database_shows_its_groups_as_missing_and_leaves_the_originals_slots_alone() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let slot = row(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "CREATE DATABASE copy").await;
    cluster.psql("copy", &dump(&cluster, &[]));
    let copy = cluster.client("copy").await;
    let groups = "SELECT name, outboxes, slot_name, wal_status, missing_outboxes FROM postbox.consumer_groups";
    assert_eq!(row(&copy, groups).await, format!("g|{{public.orders}}|{slot}|missing|{{}}"));
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    refused(&copy, create, "42710", "\"g\" already exists", "drop_consumer_group").await;
    run(&copy, "SELECT postbox.drop_consumer_group('g')").await;
    assert_eq!(row(&client, groups).await, format!("g|{{public.orders}}|{slot}|reserved|{{}}"));
    assert_ne!(row(&copy, create).await, slot);
    assert_eq!(row(&client, "SELECT count(*) FROM pg_replication_slots").await, "2");
}

#[tokio::test]
async fn the_extension_keeps_out_of_a_schema_that_is_there_already() {
    let cluster = Cluster::start();
    let client = cluster.client("postgres").await;
    run(&client, "CREATE SCHEMA postbox").await;
    refused(
        &client,
        "CREATE EXTENSION postbox",
        "42P06",
        "schema postbox is there already",
        "DROP SCHEMA postbox CASCADE",
    )
    .await;
    run(&client, "DROP SCHEMA postbox; CREATE EXTENSION postbox; DROP SCHEMA public").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.outbox_status()").await, "0");
}
