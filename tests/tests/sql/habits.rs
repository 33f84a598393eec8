//! Beside publishing: events that leave later, or once; what an outbox stores, seen and removed; helpers for the tests of others.

use std::process::Command;
use std::time::Duration;

use postbox::testing::{Tap, published_here};
use postbox_tests::{Cluster, postbox_binary, wait_until_async};
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, SqlState};

use super::{error, refused, row, rows, run, start};
use crate::shop::PATIENCE;

const STORED: &str = "SELECT type, key, payload FROM postbox.peek_outbox('orders', 100)";

async fn outbox() -> (Cluster, Client) {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders', generation_rows => 1024)").await;
    (cluster, client)
}

#[tokio::test]
async fn what_is_no_text_nor_jsonb_is_cast_to_text_as_the_reference_says() {
    let (_cluster, client) = start().await;
    let later = |payload: &str| format!("SELECT postbox.publish_later('orders', 't', {payload}, '2100-01-01')");
    let once = |payload: &str| format!("SELECT postbox.publish_once('orders', gen_random_uuid(), 't', {payload})");
    for (kind, payload, stored) in
        [("bytea", "'\\x00ff'::bytea", "\\x00ff"), ("json", "'{\"b\":1, \"a\":2}'::json", "{\"b\":1, \"a\":2}")]
    {
        run(&client, &format!("SELECT postbox.create_outbox('orders', payload_type => '{kind}')")).await;
        run(&client, "SELECT postbox.enable_delayed_events('orders'), postbox.enable_unique_events('orders')").await;
        for call in [&later as &dyn Fn(&str) -> String, &once] {
            assert_eq!(error(&client, &call(payload)).await.code().code(), "42883", "{kind}");
            run(&client, &call(&format!("{payload}::text"))).await;
        }
        for table in ["orders", "orders_later"] {
            assert_eq!(
                rows(&client, &format!("SELECT payload::text FROM {table}")).await,
                [stored],
                "{table} of {kind}"
            );
        }
        run(&client, "SELECT postbox.drop_outbox('orders', force => true)").await;
    }
}

#[tokio::test]
async fn an_event_leaves_when_its_time_has_come_and_once() {
    let (cluster, client) = outbox().await;
    refused(
        &client,
        "SELECT postbox.publish_later('orders', 'late', '{}', now() + interval '1 hour')",
        "55000",
        "outbox \"orders\" takes no delayed events",
        "enable_delayed_events('orders')",
    )
    .await;
    assert_eq!(row(&client, "SELECT postbox.enable_delayed_events('orders')").await, "orders_later");
    refused(&client, "SELECT postbox.enable_delayed_events('orders')", "42P07", "already", "publish_later").await;
    refused(
        &client,
        "SELECT postbox.publish_later('orders', 'late', '{}', NULL)",
        "22004",
        "visible_at of an event for outbox \"orders\" is NULL",
        "postbox.publish",
    )
    .await;
    assert_eq!(
        error(&client, "SELECT postbox.publish_later('orders', 'late', '{oops', now() + interval '1 hour')")
            .await
            .code()
            .code(),
        "22P02",
        "what cannot be published later is not taken now"
    );
    run(
        &client,
        "BEGIN; SELECT postbox.publish_later('orders', 'gone', '{}', now() + interval '1 hour'); ROLLBACK;
         SELECT postbox.publish_later('orders', 'second', '{\"n\": 2}', now() + interval '2 hours', key => 'k', headers => '{\"h\": 1}', event_id => '00000000-0000-4000-8000-000000000002');
         SELECT postbox.publish_later('orders', 'first', '{\"n\": 1}'::jsonb, now() + interval '1 hour');
         SELECT postbox.publish_later('orders', 'third', NULL, now() + interval '3 hours');
         SELECT postbox.publish_later('orders', 'at once', '{}', now() - interval '1 second')",
    )
    .await;
    let maintain = "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'events'";
    assert_eq!(rows(&client, maintain).await, [""; 0], "nothing is due");
    assert_eq!(rows(&client, STORED).await, ["at once||{}"]);
    run(&client, "UPDATE orders_later SET due_at = due_at - interval '2 hours'").await;
    // While somebody else's run of maintenance is not committed, nobody takes the same ones.
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN").await;
    assert_eq!(rows(&other, maintain).await, ["public.orders|published|2 delayed events"]);
    assert_eq!(rows(&client, maintain).await, [""; 0]);
    run(&other, "ROLLBACK").await;
    assert_eq!(rows(&client, maintain).await, ["public.orders|published|2 delayed events"]);
    assert_eq!(rows(&client, maintain).await, [""; 0]);
    assert_eq!(rows(&client, STORED).await, ["at once||{}", "first||{\"n\": 1}", "second|k|{\"n\": 2}"]);
    assert_eq!(
        row(&client, "SELECT headers, event_id FROM orders WHERE type = 'second'").await,
        "{\"h\": 1}|00000000-0000-4000-8000-000000000002"
    );
    refused(
        &client,
        "SELECT postbox.drop_outbox('orders')",
        "55006",
        "has delayed events, in public.orders_later",
        "force => true",
    )
    .await;
    run(&client, "SELECT postbox.drop_outbox('orders', force => true)").await;
    assert_eq!(row(&client, "SELECT to_regclass('orders_later') IS NULL").await, "t");
}

#[tokio::test]
async fn the_same_id_is_published_once() {
    let (cluster, client) = outbox().await;
    let once = |id: u32| {
        format!("SELECT postbox.publish_once('orders', '00000000-0000-4000-8000-{id:012}', 'paid', '{{\"n\": {id}}}')")
    };
    refused(&client, &once(1), "55000", "knows no ids", "enable_unique_events('orders')").await;
    assert_eq!(row(&client, "SELECT postbox.enable_unique_events('orders', '1 day')").await, "orders_once");
    for (sql, code, message, hint) in [
        ("SELECT postbox.enable_unique_events('orders', '0')", "22023", "must be more than 0", "7 days"),
        ("SELECT postbox.publish_once('orders', NULL, 't', '{}')", "22004", "event_id", "which events are the same"),
        (
            "SELECT postbox.publish_once('nosuch', NULL, 't', '{}')",
            "42P01",
            "outbox \"nosuch\" does not exist",
            "outbox_status",
        ),
    ] {
        refused(&client, sql, code, message, hint).await;
    }
    assert_eq!(row(&client, &once(1)).await, "t");
    assert_eq!(row(&client, &once(1)).await, "f");
    // Who comes at the same time waits, and publishes if the first one does not.
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN").await;
    assert_eq!(row(&other, &once(2)).await, "t");
    let second = once(2);
    let waits = async { row(&client, &second).await };
    let rolls_back = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        wait_until_async("the other waits", PATIENCE, async || (row(&other, sql).await == "1").then_some(())).await;
        run(&other, "ROLLBACK").await;
    };
    assert_eq!(tokio::join!(waits, rolls_back).0, "t");
    assert_eq!(rows(&client, STORED).await, ["paid||{\"n\": 1}", "paid||{\"n\": 2}"]);
    // What a trigger keeps out was not published, and is not tried again.
    run(&client, "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$").await;
    run(&client, "CREATE TRIGGER keep_out BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION keep_out()").await;
    assert_eq!(row(&client, &once(3)).await, "");
    run(&client, "DROP TRIGGER keep_out ON orders").await;
    assert_eq!(row(&client, &once(3)).await, "f");
    run(&client, "DELETE FROM orders_once WHERE event_id = '00000000-0000-4000-8000-000000000003'").await;
    // Ids are forgotten when they are old enough, and not before.
    run(&client, "UPDATE orders_once SET published_at = published_at - interval '25 hours' WHERE event_id = '00000000-0000-4000-8000-000000000001'").await;
    let maintain = "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'events'";
    assert_eq!(rows(&client, maintain).await, ["public.orders|removed|1 ids of events that were published once"]);
    assert_eq!(row(&client, &once(1)).await, "t");
    assert_eq!(row(&client, &once(2)).await, "f");
}

#[tokio::test]
async fn a_role_may_what_it_may_with_outboxes_otherwise() {
    let (_cluster, client) = outbox().await;
    run(
        &client,
        "SET client_min_messages = error; CREATE ROLE app; CREATE ROLE late; CREATE ROLE keeper; SELECT postbox.grant_role('publisher', 'app', '{orders}');
         SELECT postbox.enable_delayed_events('orders'), postbox.enable_unique_events('orders');
         SELECT postbox.grant_role('publisher', 'late', '{orders}'); SELECT postbox.grant_role('maintainer', 'keeper', '{orders}')",
    )
    .await;
    for role in ["app", "late"] {
        run(&client, &format!("SET ROLE {role}")).await;
        run(&client, "SELECT postbox.publish_later('orders', 'late', '{}', clock_timestamp() + interval '1 hour')")
            .await;
        assert_eq!(row(&client, "SELECT postbox.publish_once('orders', gen_random_uuid(), 't', '{}')").await, "t");
        for sql in ["DELETE FROM orders_later", "DELETE FROM orders_once", "SELECT postbox.purge_outbox('orders')"] {
            assert_eq!(error(&client, sql).await.code().code(), "42501", "{sql}");
        }
        run(&client, "RESET ROLE").await;
    }
    run(&client, "UPDATE orders_later SET due_at = now(); UPDATE orders_once SET published_at = now() - interval '8 days'; SET ROLE keeper").await;
    assert_eq!(
        rows(&client, "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'events'").await,
        ["public.orders|published|2 delayed events", "public.orders|removed|2 ids of events that were published once"]
    );
    // Who operates and maintains it may purge it.
    run(
        &client,
        "RESET ROLE; CREATE ROLE boss; SELECT postbox.grant_role('operator', 'boss'), postbox.grant_role('maintainer', 'boss', '{orders}'); SET ROLE boss",
    )
    .await;
    assert_eq!(rows(&client, "SELECT outcome, rows FROM postbox.purge_outbox('orders')").await, ["emptied|4"]);
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.peek_outbox('orders')").await, "0");
}

#[tokio::test]
async fn what_an_outbox_stores_is_seen_and_not_taken() {
    let (cluster, client) = outbox().await;
    run(&client, "SELECT postbox.publish('orders', 'before', '{}')").await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "SELECT postbox.publish('orders', 'after', '{\"n\": 1}', 'k')").await;
    assert_eq!(rows(&client, STORED).await, ["before||{}", "after|k|{\"n\": 1}"]);
    let of_group = "SELECT type FROM postbox.peek_outbox('orders', 10, 'g')";
    for _ in 0..2 {
        assert_eq!(rows(&client, of_group).await, ["after"], "not taken");
    }
    for (arguments, code, message, hint) in [
        ("'nosuch'", "42P01", "does not exist", "outbox_status"),
        ("'pg_class'", "42809", "is not an outbox", "outbox_status"),
        ("'orders', 0", "22023", "max_events is 0", "oldest first"),
        (
            "'orders', 10, 'nosuch'",
            "42704",
            "no consumer group \"nosuch\" that reads outbox \"orders\"",
            "consumer_groups",
        ),
    ] {
        refused(&client, &format!("SELECT postbox.peek_outbox({arguments})"), code, message, hint).await;
    }
    // Of a claim its summary.
    run(&client, "SELECT postbox.enable_claim_check('orders', 1), postbox.publish_batch('orders', 'large', 'SELECT generate_series(1, 2) AS n')").await;
    let claims = "SELECT type, payload, claim ->> 'rows' FROM postbox.peek_outbox('orders', 10, 'g')";
    assert_eq!(rows(&client, claims).await, ["after|{\"n\": 1}|", "large||2"]);
    run(&client, "BEGIN; SELECT postbox.publish_batch('orders', 'larger', 'SELECT generate_series(1, 3) AS n')").await;
    let here = "SELECT type, payload, claim ->> 'rows' FROM postbox.published_here('orders')";
    assert_eq!(rows(&client, here).await, ["larger||3"]);
    run(&client, "ROLLBACK").await;
    let postbox = |arguments: &[&str]| {
        let mut command = Command::new(postbox_binary());
        command.args(["--database", &cluster.conninfo("postgres"), "outbox"]).args(arguments);
        let output = command.output().expect("postbox");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, shown, _) = postbox(&["peek", "orders", "--group", "g"]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[1].contains("after") && lines[1].ends_with("{\"n\": 1}"), "{shown}");
    assert!(lines[2].contains("large") && lines[2].contains("claim {\"seq\""), "{shown}");
    let (code, _, log) = postbox(&["peek", "nosuch"]);
    assert!(code != Some(0) && log.contains("outbox \"nosuch\" does not exist"), "{code:?} {log}");
    let (code, shown, log) = postbox(&["purge", "orders"]);
    assert_eq!(code, Some(0), "{log}");
    assert!(shown.contains("pinned"), "{shown}");
}

#[tokio::test]
async fn what_every_group_is_past_is_removed_when_it_is_told_to() {
    let (cluster, client) = outbox().await;
    let purge = "SELECT leaf, outcome, rows FROM postbox.purge_outbox('orders')";
    assert_eq!(rows(&client, purge).await, [""; 0], "there is nothing");
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}'); SELECT postbox.publish('orders', 't', '{}') FROM generate_series(1, 10)").await;
    assert_eq!(rows(&client, purge).await, ["public.orders_g0|pinned|"]);
    assert_eq!(row(&client, "SELECT count(*) FROM orders").await, "10");
    // The group takes them, and its checkpoint says so.
    let conninfo = cluster.conninfo("postgres");
    let mut consumer =
        postbox::Consumer::builder(conninfo).group("g").maintenance(false).connect().await.expect("a consumer");
    for _ in 0..10 {
        consumer.next().await.expect("an event").expect("an event").ack();
    }
    let client = &client;
    wait_until_async("the leaf is emptied", PATIENCE, async || {
        (rows(client, purge).await == ["public.orders_g0|emptied|10"]).then_some(())
    })
    .await;
    assert_eq!(row(client, "SELECT count(*) FROM orders").await, "0");
    // What is there no more, nobody can go back to.
    run(client, "SELECT postbox.publish('orders', 'next', '{}')").await;
    assert_eq!(consumer.next().await.expect("an event").expect("an event").ack().event_type, "next");
    consumer.close().await.expect("closed");
    run(client, "SELECT postbox.publish('orders', 'kept', '{}') FROM generate_series(1, 3)").await;
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('postbox.maintain', 0))").await;
    refused(client, purge, "55P03", "cannot be purged while maintenance runs", "Try again").await;
    run(&other, "ROLLBACK").await;
    run(client, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    refused(client, purge, "25001", "repeatable read", "READ COMMITTED").await;
    run(client, "ROLLBACK").await;
    let forced = "SELECT outcome FROM postbox.purge_outbox('orders', force => true)";
    assert_eq!(rows(client, forced).await, ["emptied"]);
    assert_eq!(row(client, "SELECT count(*) FROM orders").await, "0");
    assert_eq!(
        rows(client, "SELECT detail FROM postbox.audit WHERE action = 'purge' AND detail = '{\"force\": true}'").await,
        ["{\"force\": true}"]
    );
    // The slot has them still.
    let mut consumer = postbox::Consumer::builder(cluster.conninfo("postgres"))
        .group("g")
        .maintenance(false)
        .connect()
        .await
        .expect("a consumer");
    for _ in 0..3 {
        assert_eq!(consumer.next().await.expect("an event").expect("an event").ack().event_type, "kept");
    }
    consumer.close().await.expect("closed");
}

#[tokio::test]
async fn a_group_is_described_with_its_place_in_the_log_and_the_host_of_its_member() {
    let (cluster, client) = outbox().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    let consumer = postbox::Consumer::builder(cluster.conninfo("postgres"))
        .group("g")
        .member("one")
        .connect()
        .await
        .expect("a consumer");
    let described = row(&client, "SELECT postbox.describe_consumer_group('g')").await;
    let line = |name: &str| {
        let line =
            described.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {described}"));
        line[name.len()..].trim().to_owned()
    };
    assert!(line("Confirmed:").contains('/') && line("Log end:").contains('/'), "{described}");
    assert!(
        line("Member:").starts_with("one, active, process ")
            && ["from 127.0.0.1", "from this host"].iter().any(|host| line("Member:").contains(host)),
        "{described}"
    );
    consumer.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helpers_for_the_tests_of_others_do_what_they_say() {
    let (cluster, mut client) = outbox().await;
    run(&client, "SELECT postbox.set_emit('orders', true), postbox.enable_delayed_events('orders')").await;
    let mut tap = Tap::open(cluster.conninfo("postgres"), &["orders"]).await.expect("a tap");
    let transaction = client.transaction().await.expect("a transaction");
    transaction
        .batch_execute("SELECT postbox.publish('orders', 'order.placed', '{\"n\": 1}', 'o-1')")
        .await
        .expect("published");
    let here = published_here(&transaction, "orders").await.expect("events");
    assert_eq!((here.len(), &*here[0].event_type, here[0].key.as_deref()), (1, "order.placed", Some("o-1")));
    assert_eq!(here[0].payload.as_deref(), Some("{\"n\": 1}"));
    // No rows of the outbox.
    transaction
        .batch_execute(
            "SELECT postbox.emit('orders', 'flash', '{}'), postbox.publish_later('orders', 'later', '{}', '2100-01-01')",
        )
        .await
        .expect("published");
    assert_eq!(published_here(&transaction, "orders").await.expect("events").len(), 1);
    transaction.commit().await.expect("committed");
    assert!(published_here(&client, "orders").await.expect("events").is_empty(), "another transaction");
    run(&client, "SELECT postbox.publish('orders', 'order.paid', '{}', 'o-2'); SELECT postbox.publish('orders', 'order.sent', '{}', 'o-2')").await;
    let paid = tap.wait_for(PATIENCE, |event| event.event_type == "order.paid").await.expect("it comes");
    assert_eq!(paid.key.as_deref(), Some("o-2"));
    let rest = tap.drain(Duration::from_secs(1)).await.expect("events");
    assert_eq!(rest.iter().map(|event| &*event.event_type).collect::<Vec<_>>(), ["order.sent"]);
    run(&client, "SELECT postbox.publish('orders', 'order.lost', '{}', 'o-3')").await;
    let missing =
        tap.wait_for(Duration::from_secs(1), |event| event.event_type == "nosuch").await.expect_err("it does not come");
    assert!(missing.to_string().contains("order.lost of key o-3"), "{missing}");
    assert!(missing.hint().is_some());
    tap.close().await.expect("closed");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.consumer_group").await, "0");
    assert_eq!(row(&client, "SELECT count(*) FROM pg_replication_slots").await, "0");
    let wrong = Tap::open(cluster.conninfo("postgres"), &["nosuch"]).await.expect_err("no outbox");
    assert!(wrong.to_string().contains("nosuch"), "{wrong}");
}

#[tokio::test]
async fn what_is_beside_an_outbox_belongs_to_its_owner() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE ROLE shop; GRANT CREATE ON SCHEMA public TO shop; SELECT postbox.create_outbox('orders')")
        .await;
    run(&client, "GRANT INSERT ON orders TO public; ALTER TABLE orders OWNER TO shop").await;
    run(&client, "SELECT postbox.enable_delayed_events('orders'), postbox.enable_unique_events('orders')").await;
    let owners = "SELECT relname, pg_get_userbyid(relowner), has_table_privilege('public', oid, 'insert')
        FROM pg_class WHERE relname IN ('orders_later', 'orders_once') ORDER BY 1";
    assert_eq!(rows(&client, owners).await, ["orders_later|shop|t", "orders_once|shop|t"]);
    run(&client, "SET ROLE shop; DELETE FROM orders_later; DROP TABLE orders_later, orders_once, orders").await;
}

#[tokio::test]
async fn a_delayed_event_that_cannot_leave_holds_up_no_other() {
    let (_cluster, client) = outbox().await;
    run(&client, "SELECT postbox.enable_delayed_events('orders'); ALTER TABLE orders ADD CHECK (type <> 'bad')").await;
    let publish = |event_type: &str, ago: u32| {
        format!(
            "INSERT INTO orders_later (due_at, type, payload) VALUES (now() - interval '{ago} minutes', '{event_type}', '{{}}')"
        )
    };
    for (event_type, ago) in [("bad", 9), ("first", 8), ("second", 7)] {
        run(&client, &publish(event_type, ago)).await;
    }
    let maintain = "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'events'";
    let said = rows(&client, maintain).await;
    assert_eq!((said.len(), &*said[1]), (2, "public.orders|published|2 delayed events"), "{said:?}");
    assert!(
        said[0].starts_with("public.orders|skipped|delayed event ") && said[0].contains("violates check"),
        "{said:?}"
    );
    assert_eq!(rows(&client, STORED).await, ["first||{}", "second||{}"]);
    // However many there are.
    run(&client, "INSERT INTO orders_later (due_at, type, payload) SELECT now() - interval '1 hour', 'bad', '{}' FROM generate_series(1, 150)").await;
    run(&client, &publish("third", 0)).await;
    let said = rows(&client, maintain).await;
    assert_eq!(
        (said.len(), &*said[100]),
        (101, "public.orders|more|0 delayed events"),
        "whoever maintains calls again"
    );
    let said = rows(&client, maintain).await;
    assert_eq!((said.len(), &*said[50]), (51, "public.orders|published|1 delayed events"), "{said:?}");
    assert_eq!(rows(&client, STORED).await, ["first||{}", "second||{}", "third||{}"]);
    run(&client, "ALTER TABLE orders DROP CONSTRAINT orders_type_check; UPDATE orders_later SET due_at = now()").await;
    assert_eq!(rows(&client, maintain).await, ["public.orders|published|151 delayed events"]);
}

#[tokio::test]
async fn a_delayed_event_that_is_not_allowed_holds_up_no_other() {
    let (_cluster, client) = outbox().await;
    run(
        &client,
        "SELECT postbox.enable_delayed_events('orders');
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW WHEN (new.type = 'bad') EXECUTE FUNCTION refuse();
         INSERT INTO orders_later (due_at, type, payload) VALUES (now() - interval '2 minutes', 'bad', '{}'), (now() - interval '1 minute', 'good', '{}')",
    )
    .await;
    let maintain = "SELECT outcome, detail FROM postbox.maintain(true) WHERE step = 'events'";
    let said = rows(&client, maintain).await;
    assert_eq!((said.len(), &*said[1]), (2, "published|1 delayed events"), "{said:?}");
    assert!(said[0].starts_with("skipped|delayed event ") && said[0].ends_with("insufficient_privilege"), "{said:?}");
    assert_eq!(rows(&client, STORED).await, ["good||{}"]);
    // One whom nothing is allowed puts nothing off.
    for right in ["INSERT ON orders", "DELETE ON orders_later"] {
        run(&client, "DROP TRIGGER IF EXISTS refuse ON orders; UPDATE orders_later SET due_at = now()").await;
        run(&client, "CREATE ROLE keeper; SELECT postbox.grant_role('maintainer', 'keeper', '{orders}')").await;
        run(&client, &format!("REVOKE {right} FROM keeper; SET ROLE keeper")).await;
        let said = row(&client, maintain).await;
        assert_eq!(
            said,
            "skipped|role \"keeper\" may not move delayed events from public.orders_later to public.orders"
        );
        run(&client, "RESET ROLE; DROP OWNED BY keeper; DROP ROLE keeper").await;
        assert_eq!(row(&client, "SELECT count(*) FROM orders_later WHERE due_at <= now()").await, "1");
    }
}

#[tokio::test]
async fn a_delayed_event_that_somebody_holds_holds_up_no_other() {
    let (cluster, client) = outbox().await;
    run(
        &client,
        "SELECT postbox.enable_delayed_events('orders'); ALTER TABLE orders ADD CHECK (type <> 'bad');
         INSERT INTO orders_later (due_at, type, payload) SELECT now() - interval '1 hour' + n * interval '1 minute', 'n' || n, '{}' FROM generate_series(1, 5) n",
    )
    .await;
    let maintain = "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'events'";
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; DELETE FROM orders_later WHERE type = 'n3'").await;
    assert_eq!(rows(&client, maintain).await, ["public.orders|published|4 delayed events"]);
    // What cannot be published is another one, and so is what is put off.
    run(&client, "INSERT INTO orders_later (due_at, type, payload) VALUES (now() - interval '1 second', 'bad', '{}')")
        .await;
    let bad = row(&client, "SELECT id FROM orders_later WHERE type = 'bad'").await;
    let said = row(&client, maintain).await;
    assert!(said.starts_with(&format!("public.orders|skipped|delayed event {bad} is tried again")), "{said}");
    assert_eq!(rows(&client, maintain).await, [""; 0], "nothing else is due");
    run(&other, "ROLLBACK").await;
    assert_eq!(rows(&client, maintain).await, ["public.orders|published|1 delayed events"]);
    let expected = ["n1||{}", "n2||{}", "n4||{}", "n5||{}", "n3||{}"];
    assert_eq!(rows(&client, STORED).await, expected, "each once");
    // Somebody has another time in mind for it.
    run(
        &client,
        "DELETE FROM orders_later; INSERT INTO orders_later (due_at, type, payload) VALUES (now(), 'moved', '{}')",
    )
    .await;
    run(&other, "BEGIN; UPDATE orders_later SET due_at = now() + interval '1 day'").await;
    assert_eq!(rows(&client, maintain).await, [""; 0]);
    run(&other, "COMMIT").await;
    assert_eq!(rows(&client, maintain).await, [""; 0]);
    assert_eq!(row(&client, "SELECT type FROM orders_later").await, "moved");
}

#[tokio::test]
async fn a_delayed_event_is_put_off_by_its_own_fault_only() {
    let (_cluster, client) = outbox().await;
    run(
        &client,
        "CREATE TABLE old (id bigserial, event_id uuid, type text, payload jsonb); SELECT postbox.adopt_outbox('old');
         SELECT postbox.enable_delayed_events('old'); CREATE ROLE keeper; SELECT postbox.grant_role('maintainer', 'keeper', '{old}');
         INSERT INTO old_later (due_at, type, payload) VALUES (now(), 'first', '{}')",
    )
    .await;
    let maintain = "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'events'";
    run(&client, "SET ROLE keeper").await;
    assert_eq!(rows(&client, maintain).await, ["public.old|published|1 delayed events"], "the role has all it needs");
    // Who lacks a right puts nothing off.
    for (take, give) in [
        ("REVOKE USAGE ON SEQUENCE old_id_seq FROM keeper", "GRANT USAGE ON SEQUENCE old_id_seq TO keeper"),
        ("REVOKE USAGE ON SCHEMA public FROM public, keeper", "GRANT USAGE ON SCHEMA public TO public"),
    ] {
        run(&client, &format!("RESET ROLE; INSERT INTO old_later (due_at, type, payload) VALUES (now(), 'next', '{{}}'); {take}; SET ROLE keeper")).await;
        let said = row(&client, maintain).await;
        assert!(said.contains("skipped|role \"keeper\" may not move delayed events"), "{take}: {said}");
        run(&client, &format!("RESET ROLE; {give}; SET ROLE keeper")).await;
        assert_eq!(rows(&client, maintain).await, ["public.old|published|1 delayed events"], "{take}");
    }
    // What is wrong with the table is said once for each event.
    run(&client, "RESET ROLE; ALTER TABLE old_later RENAME headers TO other; INSERT INTO old_later (due_at, type, payload) VALUES (now(), 'last', '{}')").await;
    let said = row(&client, maintain).await;
    assert!(said.starts_with("public.old|skipped|delayed event 4 is tried again in a minute: "), "{said}");
    assert_eq!(rows(&client, maintain).await, [""; 0]);
}

#[tokio::test]
async fn what_can_never_be_published_is_not_taken_for_later() {
    let (_cluster, client) = outbox().await;
    run(
        &client,
        "CREATE TABLE bare (event_id uuid, type text, payload jsonb); SELECT postbox.adopt_outbox('bare');
         CREATE TABLE keyed (event_id text, type text, key uuid, headers json, payload text); SELECT postbox.adopt_outbox('keyed');
         CREATE TABLE numbered (event_id bigint, type text, payload jsonb); SELECT postbox.adopt_outbox('numbered');
         SELECT postbox.enable_delayed_events(o) FROM unnest('{orders,bare,keyed}'::text[]) o",
    )
    .await;
    let key = "11111111-1111-4111-8111-111111111111";
    for (outbox, rest) in [
        ("bare", ", key => 'k'".to_owned()),
        ("bare", ", headers => '{}'".to_owned()),
        ("keyed", ", key => 'k'".to_owned()),
    ] {
        let at_once = error(&client, &format!("SELECT postbox.publish('{outbox}', 't', '{{}}'{rest})")).await;
        let later = format!("SELECT postbox.publish_later('{outbox}', 't', '{{}}', now() + interval '1 hour'{rest})");
        let later = error(&client, &later).await;
        assert_eq!(
            (later.code(), later.message(), later.hint()),
            (at_once.code(), at_once.message(), at_once.hint()),
            "{outbox}{rest}"
        );
    }
    let at_once = error(&client, "SELECT postbox.publish('numbered', 't', '{}')").await;
    let enabled = error(&client, "SELECT postbox.enable_delayed_events('numbered')").await;
    assert_eq!(
        (enabled.code(), enabled.message(), enabled.hint()),
        (at_once.code(), at_once.message(), at_once.hint())
    );
    assert_eq!(row(&client, "SELECT to_regclass('numbered_later') IS NULL").await, "t");
    refused(
        &client,
        "SELECT postbox.publish_later('orders', NULL, '{}', now() + interval '1 hour')",
        "22004",
        "the type of an event cannot be NULL",
        "postbox.publish needs an outbox and a type",
    )
    .await;
    // The table has changed meanwhile.
    run(&client, "ALTER TABLE orders ALTER headers TYPE bytea USING NULL").await;
    refused(
        &client,
        "SELECT postbox.publish_later('orders', 't', '{}', now() + interval '1 hour')",
        "42804",
        "headers of type jsonb does not fit column \"headers\" of outbox \"orders\", which has type bytea",
        "INSERT into the table",
    )
    .await;
    run(&client, &format!("SELECT postbox.publish_later('keyed', 't', '{{}}', now() + interval '1 hour', '{key}', '{{}}'), postbox.publish_later('bare', 't', '{{}}', now() + interval '1 hour'); UPDATE keyed_later SET due_at = now(); UPDATE bare_later SET due_at = now()")).await;
    assert_eq!(
        rows(&client, "SELECT subject, outcome FROM postbox.maintain(true) WHERE step = 'events'").await,
        ["public.bare|published", "public.keyed|published"]
    );
}

/// Calls it in a session of its own; once it waits for a lock, the other thing is done.
async fn while_it_waits(cluster: &Cluster, sql: &str, then: impl AsyncFnOnce()) -> Result<(), DbError> {
    let (caller, watcher) = (cluster.client("postgres").await, cluster.client("postgres").await);
    let mut call = std::pin::pin!(caller.batch_execute(sql));
    let waits = wait_until_async("it waits", PATIENCE, async || {
        (row(&watcher, "SELECT count(*) FROM pg_locks WHERE NOT granted").await == "1").then_some(())
    });
    let ended = tokio::select! { ended = &mut call => Some(ended), () = waits => None };
    let ended = match ended {
        Some(ended) => {
            then().await;
            ended
        }
        None => tokio::join!(call, then()).0,
    };
    ended.map_err(|error| error.as_db_error().expect("an error of the server").clone())
}

#[tokio::test]
async fn a_delayed_event_that_is_committed_while_its_outbox_is_being_dropped_is_kept() {
    let (cluster, client) = outbox().await;
    run(&client, "SELECT postbox.enable_delayed_events('orders')").await;
    loop {
        run(&client, "DELETE FROM orders_later; BEGIN; SELECT postbox.publish_later('orders', 'late', '{}', now() + interval '1 hour')").await;
        let dropped =
            while_it_waits(&cluster, "SELECT postbox.drop_outbox('orders')", async || run(&client, "COMMIT").await);
        let error = dropped.await.expect_err("there is an event");
        assert_eq!(row(&client, "SELECT type FROM orders_later").await, "late");
        // On a slow machine the drop has given up before.
        if *error.code() != SqlState::LOCK_NOT_AVAILABLE {
            assert_eq!(error.code().code(), "55006", "{error:?}");
            break;
        }
    }
}

#[tokio::test]
async fn a_drop_gives_way_to_publishers() {
    let (cluster, client) = outbox().await;
    run(
        &client,
        "SELECT postbox.enable_delayed_events('orders'), postbox.enable_unique_events('orders'), postbox.enable_claim_check('orders', 0, 0);
         CREATE TABLE old (event_id uuid, type text, payload jsonb); SELECT postbox.adopt_outbox('old'), postbox.enable_delayed_events('old')",
    )
    .await;
    for (outbox, next) in [
        ("orders", "SELECT postbox.publish_later('orders', 'late', '{}', now() + interval '1 hour')"),
        ("orders", "SELECT postbox.publish_large('orders', 'large', '{}'::text)"),
        ("orders", "SELECT postbox.publish_once('orders', gen_random_uuid(), 'once', '{}')"),
        ("old", "SELECT postbox.publish_later('old', 'late', '{}', now() + interval '1 hour')"),
    ] {
        run(&client, &format!("BEGIN; SELECT postbox.publish('{outbox}', 'first', '{{}}')")).await;
        let drop = format!("SELECT postbox.drop_outbox('{outbox}', force => true)");
        let error = while_it_waits(&cluster, &drop, async || run(&client, next).await).await.expect_err("in use");
        assert_eq!(error.code().code(), "55P03", "{next}: {error:?}");
        assert_eq!(error.message(), format!("outbox \"public.{outbox}\" is in use"));
        assert!(error.hint().is_some_and(|hint| hint.contains("Try again")), "{error:?}");
        run(&client, "COMMIT").await;
    }
    run(&client, "SELECT postbox.drop_outbox('orders', force => true), postbox.drop_outbox('old', force => true)")
        .await;
    assert_eq!(row(&client, "SELECT count(*) FROM pg_class WHERE relname ~ '^(orders|old_)'").await, "0");
}
