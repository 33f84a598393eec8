//! `postbox.publish`: what it inserts and what it refuses.

use tokio_postgres::types::Type;

use super::{error, refused, row, rows, run, start};

#[tokio::test]
async fn publish_inserts_one_row_and_returns_its_id() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let made = row(&client, "SELECT postbox.publish('orders', 'made', '{\"n\": 1}')").await;
    let given = "00000000-0000-4000-8000-000000000001";
    let sql = format!("SELECT postbox.publish('orders', 'paid', '{{}}', 'key', '{{\"h\": 1}}', '{given}')");
    assert_eq!(row(&client, &sql).await, given);
    let expected = [format!("1|{made}||made||{{\"n\": 1}}|t|t"), format!("2|{given}|key|paid|{{\"h\": 1}}|{{}}|t|t")];
    let stored = "SELECT seq, event_id, key, type, headers, payload, xid IS NOT NULL, created_at <= now() FROM orders";
    assert_eq!(rows(&client, stored).await, expected);
    // Version 4, as the column's default makes.
    let other = row(&client, "SELECT postbox.publish('orders', 'made', '{}')").await;
    assert_ne!(made, other);
    for id in [made, other] {
        assert!(id.as_bytes()[14] == b'4' && b"89ab".contains(&id.as_bytes()[19]), "{id}");
    }
}

#[tokio::test]
async fn ids_are_never_the_same() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let publish = "SELECT postbox.publish('orders', 't', '{}') FROM generate_series(1, 1000)";
    run(&client, publish).await;
    run(&cluster.client("postgres").await, publish).await;
    assert_eq!(row(&client, "SELECT count(DISTINCT event_id) FROM orders").await, "2000");
    let same = "SELECT count(DISTINCT substr(event_id::text, n, 1)) FROM orders, generate_series(1, 36) n
        WHERE n NOT IN (9, 14, 15, 19, 20, 24) GROUP BY n ORDER BY 1 LIMIT 1";
    assert_eq!(row(&client, same).await, "16");
}

#[tokio::test]
async fn a_payload_fits_where_it_means_the_same() {
    let (_cluster, client) = start().await;
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        let sql = format!("SELECT postbox.create_outbox('o_{payload_type}', payload_type => '{payload_type}')");
        run(&client, &sql).await;
    }
    let cases = [
        ("'[1,  2]'", "o_jsonb", Some("[1, 2]")),
        ("'[1,  2]'", "o_json", Some("[1,  2]")),
        ("'[1,  2]'", "o_text", Some("[1,  2]")),
        ("'\\x4142'", "o_bytea", Some("\\x4142")),
        ("'[1,  2]'::jsonb", "o_jsonb", Some("[1, 2]")),
        ("'[1,  2]'::jsonb", "o_json", Some("[1, 2]")),
        ("'[1,  2]'::jsonb", "o_text", Some("[1, 2]")),
        ("'[1,  2]'::jsonb", "o_bytea", None),
        ("'[1,  2]'::json", "o_jsonb", Some("[1, 2]")),
        ("'[1,  2]'::json", "o_json", Some("[1,  2]")),
        ("'[1,  2]'::json", "o_text", Some("[1,  2]")),
        ("'[1,  2]'::json", "o_bytea", None),
        ("'\\x4142'::bytea", "o_jsonb", None),
        ("'\\x4142'::bytea", "o_json", None),
        ("'\\x4142'::bytea", "o_text", None),
        ("'\\x4142'::bytea", "o_bytea", Some("\\x4142")),
        ("NULL", "o_jsonb", Some("")),
        ("NULL::bytea", "o_bytea", Some("")),
        ("NULL::json", "o_text", Some("")),
    ];
    for (payload, outbox, expected) in cases {
        let publish = format!("SELECT postbox.publish('{outbox}', 't', {payload})");
        match expected {
            Some(expected) => {
                let stored = format!("{publish}; SELECT payload FROM {outbox} ORDER BY seq DESC LIMIT 1");
                assert_eq!(row(&client, &stored).await, expected, "{publish}");
            }
            None => {
                let hint = if outbox == "o_bytea" { "convert_to" } else { "convert_from" };
                refused(&client, &publish, "42804", "does not fit column \"payload\"", hint).await;
            }
        }
    }
}

#[tokio::test]
async fn parameters_without_a_type_reach_a_jsonb_outbox() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let statement = client.prepare("SELECT postbox.publish($1, $2, $3, $4)").await.unwrap();
    assert_eq!(statement.params(), [Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT]);
    for n in 0..20 {
        let key = (n % 2 == 0).then(|| format!("k{n}"));
        client.query_one(&statement, &[&"orders", &"made", &format!("{{\"n\": {n}}}"), &key]).await.unwrap();
    }
    let sums = "SELECT count(*), sum((payload ->> 'n')::int), count(key) FROM orders";
    assert_eq!(row(&client, sums).await, "20|190|10");
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_with_the_remedy() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'); CREATE TABLE plain (type text, payload jsonb)").await;
    run(&client, "CREATE VIEW shown AS SELECT * FROM orders; CREATE SEQUENCE numbers").await;
    let cases = [
        ("NULL, 't', '{}'", "22004", "outbox of an event cannot be NULL", "outbox and a type"),
        ("'orders', NULL, '{}'", "22004", "type of an event cannot be NULL", "outbox and a type"),
        ("'order', 't', '{}'", "42P01", "outbox \"order\" does not exist", "create_outbox"),
        ("'nowhere.orders', 't', '{}'", "42P01", "outbox \"nowhere.orders\" does not exist", "search_path"),
        ("'Orders.x', 't', '{}'", "42P01", "outbox \"Orders.x\" does not exist", "create_outbox"),
        ("'plain', 't', '{}'", "42809", "\"plain\" is not an outbox", "adopt_outbox"),
        ("'shown', 't', '{}'", "42809", "\"shown\" is not an outbox", "outbox_status"),
        ("'numbers', 't', '{}'", "42809", "\"numbers\" is not an outbox", "outbox_status"),
        ("'pg_class', 't', '{}'", "42809", "\"pg_class\" is not an outbox", "outbox_status"),
        ("'orders_g0', 't', '{}'", "42809", "\"orders_g0\" is a partition of an outbox", "public.orders"),
        ("'no such', 't', '{}'", "42602", "invalid name syntax", ""),
        ("'', 't', '{}'", "42602", "invalid name syntax", ""),
        ("'a.b.c.d', 't', '{}'", "42601", "too many dotted names", ""),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.publish({arguments})"), code, message, hint).await;
    }
    assert_eq!(row(&client, "SELECT count(*) FROM orders").await, "0");
}

#[tokio::test]
async fn errors_of_the_insert_are_postgresqls_own() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    run(&client, "ALTER TABLE orders ADD CONSTRAINT short_key CHECK (length(key) < 5)").await;
    let parser = error(&client, "SELECT '{\"a\": tru}'::jsonb").await;
    let invalid = error(&client, "SELECT postbox.publish('orders', 't', '{\"a\": tru}')").await;
    assert_eq!((invalid.code(), invalid.message()), (parser.code(), parser.message()));
    assert_eq!(invalid.detail(), parser.detail());
    assert!(invalid.where_().unwrap().contains("JSON data, line 1"), "{invalid:?}");

    let violated = error(&client, "SELECT postbox.publish('orders', 't', '{}', 'too long')").await;
    assert_eq!(violated.code().code(), "23514");
    assert_eq!((violated.schema(), violated.table()), (Some("public"), Some("orders_g0")));
    assert_eq!(violated.constraint(), Some("short_key"));
    run(&client, "SELECT postbox.publish('orders', 't', '{}', 'ok')").await;
    refused(&client, "BEGIN READ ONLY; SELECT postbox.publish('orders', 't', '{}')", "25006", "read-only", "").await;
}

#[tokio::test]
async fn names_are_looked_up_along_the_search_path_of_each_call() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE SCHEMA a; CREATE SCHEMA b; CREATE SCHEMA \"C d\"").await;
    for schema in ["a", "b", "C d"] {
        run(&client, &format!("SELECT postbox.create_outbox('orders', '{schema}')")).await;
    }
    run(&client, "SELECT postbox.create_outbox('Mixed', 'b')").await;
    for path in ["a, b", "b, a", "b", "a, b"] {
        run(&client, &format!("SET search_path = {path}; SELECT postbox.publish('orders', '{path}', '{{}}')")).await;
    }
    run(&client, "SET search_path = b; SELECT postbox.publish('\"C d\".orders', 't', '{}')").await;
    run(&client, "SELECT postbox.publish('ORDERS', 'folded', '{}'); SELECT postbox.publish('\"Mixed\"', 't', '{}')")
        .await;
    refused(&client, "SELECT postbox.publish('Mixed', 't', '{}')", "42P01", "\"Mixed\" does not exist", "").await;
    run(&client, "SET search_path = ''").await;
    refused(&client, "SELECT postbox.publish('orders', 't', '{}')", "42P01", "does not exist", "search_path").await;
    assert_eq!(rows(&client, "SELECT type FROM a.orders ORDER BY seq").await, ["a, b", "a, b"]);
    assert_eq!(rows(&client, "SELECT type FROM b.orders ORDER BY seq").await, ["b, a", "b", "folded"]);
    assert_eq!(row(&client, "SELECT count(*) FROM \"C d\".orders").await, "1");
}

#[tokio::test]
async fn what_is_rolled_back_is_not_published() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    run(
        &client,
        "BEGIN; SELECT postbox.publish('orders', 'kept', '{}');
         SAVEPOINT s; SELECT postbox.publish('orders', 'lost', '{}'); ROLLBACK TO s;
         DO $$ BEGIN
             PERFORM postbox.publish('orders', 'lost', '{}');
             PERFORM postbox.publish('orders', 'lost', 'no json');
         EXCEPTION WHEN invalid_text_representation THEN
             PERFORM postbox.publish('orders', 'caught', '{}');
         END $$;
         SELECT postbox.publish('orders', 'kept too', '{}'); COMMIT;
         BEGIN; SELECT postbox.publish('orders', 'lost', '{}'); ROLLBACK",
    )
    .await;
    let types = "SELECT type FROM orders ORDER BY seq";
    assert_eq!(rows(&client, types).await, ["kept", "caught", "kept too"]);
}

#[tokio::test]
async fn a_row_that_a_trigger_keeps_out_has_no_id() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders');
         CREATE FUNCTION no_tests() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF new.type = 'test' THEN RETURN NULL; END IF; RETURN new; END $$;
         CREATE TRIGGER no_tests BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION no_tests()",
    )
    .await;
    let ids = "SELECT postbox.publish('orders', 'test', '{}') IS NULL, postbox.publish('orders', 'real', '{}') IS NULL";
    assert_eq!(row(&client, ids).await, "t|f");
    assert_eq!(rows(&client, "SELECT type FROM orders").await, ["real"]);
}
