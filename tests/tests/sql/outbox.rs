//! `create_outbox`, `drop_outbox`, `outbox_status`.

use super::{refused, row, rows, run, start};

#[tokio::test]
async fn a_new_outbox_has_the_row_shape_the_ring_and_the_marker() {
    let (_cluster, client) = start().await;
    assert_eq!(row(&client, "SELECT postbox.create_outbox('orders')").await, "orders");

    let columns =
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = 'public.orders'::regclass AND attnum > 0 ORDER BY attnum";
    let expected = [
        "seq|bigint|t|a|",
        "xid|xid8|t||pg_current_xact_id()",
        "event_id|uuid|t||gen_random_uuid()",
        "created_at|timestamp with time zone|t||now()",
        "key|text|f||",
        "type|text|t||",
        "headers|jsonb|f||",
        "payload|jsonb|f||",
    ];
    assert_eq!(rows(&client, columns).await, expected);
    let ring = "SELECT pg_get_partkeydef('orders'::regclass)";
    assert_eq!(row(&client, ring).await, "LIST ((((seq >> 20) & (3)::bigint)))");
    let leaves = "SELECT relid, pg_get_expr(relpartbound, oid) FROM pg_partition_tree('orders')
        JOIN pg_class ON oid = relid WHERE isleaf ORDER BY relname";
    let expected = (0..4).map(|leaf| format!("orders_g{leaf}|FOR VALUES IN ('{leaf}')")).collect::<Vec<_>>();
    assert_eq!(rows(&client, leaves).await, expected);
    let markers = "SELECT tgrelid::regclass, tgparentid = 0, tgfoid::regproc, tgnargs FROM pg_trigger
        WHERE tgname = 'postbox_outbox' ORDER BY tgrelid::regclass::text";
    let function = "suppress_redundant_updates_trigger|0";
    let clones = (0..4).map(|leaf| format!("orders_g{leaf}|f|{function}"));
    let expected = [format!("orders|t|{function}")].into_iter().chain(clones).collect::<Vec<_>>();
    assert_eq!(rows(&client, markers).await, expected);
    let comment = row(&client, "SELECT obj_description('orders'::regclass)").await;
    assert!(comment.starts_with("Outbox of Postbox"), "{comment}");
}

#[tokio::test]
async fn generations_follow_each_other_round_the_ring_and_emptying_one_leaves_the_others() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders', generation_rows => 1024)").await;
    run(&client, "INSERT INTO orders (type) SELECT 't' FROM generate_series(1, 5000)").await;
    let count = "SELECT tableoid::regclass, min(seq), max(seq), count(*) FROM orders
        GROUP BY tableoid ORDER BY tableoid::regclass::text";
    let expected =
        ["orders_g0|1|5000|1928", "orders_g1|1024|2047|1024", "orders_g2|2048|3071|1024", "orders_g3|3072|4095|1024"];
    assert_eq!(rows(&client, count).await, expected);
    let status = "SELECT generation, last_seq FROM postbox.outbox_status('orders')";
    assert_eq!(row(&client, status).await, "4|5000");
    run(&client, "TRUNCATE orders_g1").await;
    assert_eq!(row(&client, "SELECT count(*) FROM orders").await, "3976");
    // An UPDATE works, marker or not.
    run(&client, "UPDATE orders SET type = 'u' WHERE seq = 5000").await;
    assert_eq!(row(&client, "SELECT type FROM orders WHERE seq = 5000").await, "u");
}

#[tokio::test]
async fn wrong_outboxes_are_refused_with_the_remedy_and_leave_nothing_behind() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE TABLE taken (); CREATE TABLE half_g2 (); SELECT postbox.create_outbox('orders')").await;
    let long = "n".repeat(61);
    let umlauts = "ü".repeat(31);
    let cases = [
        ("''", "42602", "has 0 bytes, must have 1 to 60", "shorter name"),
        (&format!("'{long}'"), "42602", "has 61 bytes, must have 1 to 60", "shorter name"),
        (&format!("'{umlauts}'"), "42602", "has 62 bytes, must have 1 to 60", "shorter name"),
        ("'public.orders'", "42602", "contains a dot", "schema as the second argument"),
        ("'\"Orders\"'", "42602", "double quote", "unquoted"),
        ("NULL", "22004", "NULL", "no more than the name"),
        ("'x', NULL", "22004", "NULL", "default"),
        ("'x', 'nowhere'", "3F000", "schema \"nowhere\" does not exist", "CREATE SCHEMA nowhere"),
        ("'x', 'postbox'", "42939", "schema \"postbox\" is reserved", "schema of yours"),
        ("'x', 'pg_catalog'", "42939", "is reserved", "schema of yours"),
        ("'x', 'public', 'xml'", "22023", "\"xml\" is not one of jsonb, json, text, bytea", "jsonb"),
        ("'x', generation_rows => 1000", "22023", "is 1000, must be a power of two from 1024", "1048576"),
        ("'x', generation_rows => 512", "22023", "is 512, must be", "1048576"),
        ("'x', generation_rows => 8589934592", "22023", "is 8589934592, must be", "1048576"),
        ("'x', generation_rows => -1024", "22023", "is -1024, must be", "1048576"),
        ("'orders'", "42P07", "outbox \"public.orders\" already exists", "outbox_status"),
        ("'taken'", "42P07", "relation \"public.taken\" already exists", "adopt_outbox"),
        ("'half'", "42P07", "relation \"public.half_g2\" already exists", "rename that table"),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.create_outbox({arguments})"), code, message, hint).await;
    }
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')";
    assert_eq!(row(&client, tables).await, "7");
}

#[tokio::test]
async fn the_longest_and_the_oddest_names_work() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE SCHEMA \"Odd Schema\"").await;
    for name in ["n".repeat(60), "ü".repeat(30), "select".to_owned(), "Mixed Case; %I ''".to_owned()] {
        run(&client, &format!("SELECT postbox.create_outbox('{name}', 'Odd Schema', 'text')")).await;
        let publish = format!("SELECT postbox.publish('\"Odd Schema\".\"{name}\"', 't', 'p') IS NOT NULL");
        assert_eq!(row(&client, &publish).await, "t");
        let status = format!("SELECT name, schema, last_seq FROM postbox.outbox_status('{name}')");
        assert_eq!(row(&client, &status).await, format!("{}|Odd Schema|1", name.replace("''", "'")));
        run(&client, &format!("SELECT postbox.drop_outbox('{name}', 'Odd Schema')")).await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.outboxes").await, "0");
}

#[tokio::test]
async fn status_shows_what_there_is_and_takes_a_name_or_a_schema() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE SCHEMA shop; SELECT postbox.create_outbox('orders', 'shop', 'bytea')").await;
    run(&client, "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('bills', 'public', 'text')")
        .await;
    run(&client, "INSERT INTO bills (type) SELECT 't' FROM generate_series(1, 10); ANALYZE bills").await;
    let names = |filter: &str| format!("SELECT schema, name FROM postbox.outbox_status({filter})");
    assert_eq!(rows(&client, &names("")).await, ["public|bills", "public|orders", "shop|orders"]);
    assert_eq!(rows(&client, &names("'orders'")).await, ["public|orders", "shop|orders"]);
    assert_eq!(rows(&client, &names("schema => 'shop'")).await, ["shop|orders"]);
    assert_eq!(rows(&client, &names("'nothing'")).await, [""; 0]);
    let all = "SELECT name, schema, payload_type, generation, rows_estimate, bytes > 0, last_seq, adopted, groups
        FROM postbox.outbox_status('bills')";
    assert_eq!(row(&client, all).await, "bills|public|text|0|10|t|10|f|{}");
    let first = "SELECT column_name FROM information_schema.columns
        WHERE table_schema = 'postbox' AND table_name = 'outboxes' AND ordinal_position = 1";
    assert_eq!(row(&client, first).await, "name");
}

#[tokio::test]
async fn status_locks_no_table_of_an_outbox() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    run(&client, "BEGIN; SELECT * FROM postbox.outbox_status()").await;
    let other = cluster.client("postgres").await;
    run(
        &other,
        "SET lock_timeout = '5s'; TRUNCATE orders_g0, orders_g1; TRUNCATE orders; ALTER TABLE orders ADD x int",
    )
    .await;
}

#[tokio::test]
async fn a_dropped_outbox_takes_its_leaves_along() {
    let (_cluster, client) = start().await;
    let count = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(row(&client, count).await, "0");
    run(&client, "SELECT postbox.create_outbox('orders'); SELECT postbox.publish('orders', 't', '{}')").await;
    run(&client, "SELECT postbox.drop_outbox('orders')").await;
    assert_eq!(row(&client, count).await, "0");
    refused(
        &client,
        "SELECT postbox.drop_outbox('orders')",
        "42P01",
        "\"public.orders\" does not exist",
        "outbox_status",
    )
    .await;
    refused(&client, "SELECT postbox.drop_outbox(NULL)", "22004", "cannot be NULL", "outbox_status").await;
    run(&client, "CREATE TABLE mine ()").await;
    refused(&client, "SELECT postbox.drop_outbox('mine')", "42809", "\"public.mine\" is not an outbox", "DROP TABLE")
        .await;
    assert_eq!(row(&client, "SELECT to_regclass('mine')").await, "mine");
}

#[tokio::test]
async fn an_outbox_that_a_group_reads_is_dropped_only_by_force() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    run(&client, "SELECT postbox.create_consumer_group('billing', '{orders}')").await;
    assert_eq!(row(&client, "SELECT groups FROM postbox.outbox_status('orders')").await, "{billing}");
    let sql = "SELECT postbox.drop_outbox('orders')";
    refused(&client, sql, "55006", "\"public.orders\" is read by consumer group billing", "force => true").await;
    refused(&client, "SELECT postbox.drop_outbox('orders', force => NULL)", "55006", "is read by", "force => true")
        .await;
    run(&client, "SELECT postbox.publish('orders', 'last words', '{}')").await;
    run(&client, "SELECT postbox.drop_outbox('orders', force => true)").await;

    // What was published before is still owed to the group, so the group goes on naming the outbox.
    let group = "SELECT outboxes, missing_outboxes FROM postbox.consumer_groups";
    assert_eq!(row(&client, group).await, "{public.orders}|{public.orders}");
    let owed = "SELECT d.outbox, d.type FROM postbox.consumer_group,
        pg_logical_slot_peek_binary_changes(slot_name, NULL, NULL), postbox.decode(data) d";
    assert_eq!(row(&client, owed).await, "public.orders|last words");
}

#[tokio::test]
async fn an_outbox_is_not_dropped_by_who_does_not_see_what_others_commit() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'); SELECT postbox.enable_delayed_events('orders'); CREATE TABLE docs (id int PRIMARY KEY)").await;
    run(&client, "SELECT postbox.enable_outbox('docs')").await;
    let other = cluster.client("postgres").await;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        for drop in ["drop_outbox('orders')", "disable_outbox('docs', with_outbox => true)"] {
            run(&client, &format!("BEGIN ISOLATION LEVEL {isolation}; SELECT 1")).await;
            run(&other, "SELECT postbox.publish_later('orders', 't', '{}', now() + interval '1 hour')").await;
            let sql = format!("SELECT postbox.{drop}");
            refused(&client, &sql, "25001", &isolation.to_lowercase(), "READ COMMITTED").await;
            run(&client, "ROLLBACK").await;
        }
    }
}
