//! `postbox.maintain()` as a whole: when it runs, what it says, what it does when it may not, and whom it alerts.

use std::time::Duration;

use postbox_tests::{Cluster, wait_until_async};

use super::retention::{maintain, with_ring};
use super::{error, refused, row, rows, run, start};

/// What psql prints that listens while it runs this: results and notifications.
fn listen(cluster: &Cluster, sql: &str) -> String {
    cluster.psql("postgres", &format!("LISTEN postbox_alert;\n{sql};\nSELECT;"))
}

/// Lets whatever holds now have held for long.
const LONG_SINCE: &str = "UPDATE postbox.alert SET since = since - interval '1 hour' WHERE alerted_at IS NULL";
const MAINTAIN: &str = "SELECT step, outcome, detail FROM postbox.maintain(true)";

#[tokio::test]
async fn it_runs_once_in_ten_seconds_and_once_at_a_time() {
    let (cluster, client) = start().await;
    assert_eq!(rows(&client, "SELECT step, outcome FROM postbox.maintain()").await, ["sample|taken"]);
    assert_eq!(row(&client, "SELECT step, outcome FROM postbox.maintain()").await, "maintain|recent");
    assert_eq!(rows(&client, "SELECT step, outcome FROM postbox.maintain(true)").await, [""; 0]);

    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; SELECT postbox.maintain(true)").await;
    assert_eq!(row(&client, "SELECT step, outcome FROM postbox.maintain(true)").await, "maintain|running");
    run(&other, "COMMIT").await;
    assert_eq!(rows(&client, "SELECT step, outcome FROM postbox.maintain(true)").await, [""; 0]);
}

#[tokio::test]
async fn a_server_on_which_nothing_happens_is_left_in_peace() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.publish('orders', 't', '{}')").await;
    wait_until_async("maintenance finds nothing to do", Duration::from_secs(30), async || {
        maintain(&client).await.is_empty().then_some(())
    })
    .await;
    let state = "SELECT pg_snapshot_xmax(pg_current_snapshot()), (SELECT count(*) FROM postbox.sample)";
    let before = row(&client, state).await;
    for _ in 0..5 {
        assert_eq!(maintain(&client).await, [""; 0]);
    }
    // Autovacuum is the only other one here, and it has written nothing if no id is gone.
    assert_eq!(row(&client, state).await, before);
    assert_eq!(row(&client, "SELECT overdue_since FROM postbox.maintenance_status").await, "");
    run(&client, "SELECT postbox.publish('orders', 't', '{}')").await;
    assert!(maintain(&client).await.iter().any(|row| row.starts_with("sample|")));
}

#[tokio::test]
async fn samples_thin_out_with_age() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.maintain(true)").await;
    // One a minute for 40 days, as if nobody had thinned them; the last hour is left alone.
    run(
        &client,
        "INSERT INTO postbox.sample SELECT now() - n * interval '1 minute', snapshot, lsn, system_identifier, timeline, outboxes, last_seqs
            FROM postbox.sample, generate_series(1, 40 * 1440) n",
    )
    .await;
    run(&client, "CREATE TABLE moved ()").await;
    // A little that is written is no reason for a sample, unless somebody was writing before.
    run(&client, "UPDATE postbox.sample SET lsn = lsn - 100000; SELECT 1").await;
    run(&client, "SELECT postbox.maintain(true)").await;
    let left =
        "SELECT count(*) FILTER (WHERE age < '1 hour'), count(*) FILTER (WHERE age BETWEEN '61 minutes' AND '1 day'),
            count(*) FILTER (WHERE age BETWEEN '3 days' AND '29 days'), count(*) FILTER (WHERE age > '30 days 1 hour')
        FROM (SELECT now() - taken_at AS age FROM postbox.sample) s";
    let counts: Vec<u32> = row(&client, left).await.split('|').map(|count| count.parse().unwrap()).collect();
    assert!((59..=62).contains(&counts[0]), "{counts:?}");
    assert!((270..=280).contains(&counts[1]), "{counts:?}");
    assert!((620..=628).contains(&counts[2]), "{counts:?}");
    assert_eq!(counts[3], 0, "{counts:?}");
}

#[tokio::test]
async fn it_refuses_where_it_cannot_see_or_would_hold_locks() {
    let (cluster, client) = with_ring().await;
    let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postbox.maintain(true)";
    refused(&client, sql, "25001", "repeatable read", "READ COMMITTED").await;
    run(&client, "ROLLBACK").await;
    let sql = "BEGIN; CREATE TABLE written (); SELECT postbox.maintain(true)";
    refused(&client, sql, "25001", "has written", "transaction of its own").await;
    run(&client, "ROLLBACK; CREATE ROLE nobody; SET ROLE nobody").await;
    assert_eq!(error(&client, "SELECT postbox.maintain()").await.code().code(), "42501");
    drop(cluster);
}

#[tokio::test]
async fn what_is_not_allowed_on_one_outbox_does_not_stop_the_others() {
    let (_cluster, client) = with_ring().await;
    run(
        &client,
        "SELECT postbox.create_outbox('mine', generation_rows => 1024); SELECT postbox.set_retention('mine', '0');
         CREATE ROLE keeper; SELECT postbox.grant_role('maintainer', 'keeper', '{orders}');
         INSERT INTO orders (type, payload) VALUES ('t', '{}'); INSERT INTO mine (type, payload) VALUES ('t', '{}')",
    )
    .await;
    run(&client, "SET ROLE keeper").await;
    let done = maintain(&client).await;
    assert!(done.contains(&"retention|public.orders|emptied|public.orders_g0 with 1 rows".into()), "{done:?}");
    let done = maintain(&client).await;
    assert!(
        done.iter().any(|row| row.starts_with("retention|public.mine|skipped|permission denied for sequence")),
        "{done:?}"
    );
    run(&client, "RESET ROLE; SELECT postbox.grant_role('maintainer', 'keeper', '{mine}'); SET ROLE keeper").await;
    wait_until_async("the other is emptied too", Duration::from_secs(10), async || {
        maintain(&client)
            .await
            .contains(&"retention|public.mine|emptied|public.mine_g0 with 1 rows".into())
            .then_some(())
    })
    .await;
    run(&client, "RESET ROLE; SELECT postbox.revoke_role('maintainer', 'keeper', '{mine}')").await;
    assert_eq!(row(&client, "SELECT has_table_privilege('keeper', 'mine_g0', 'truncate')").await, "f");
    assert_eq!(row(&client, "SELECT has_table_privilege('keeper', 'orders_g0', 'truncate')").await, "t");
}

/// PostgreSQL asks nobody before it makes a table unlogged or attaches one that is.
#[tokio::test]
async fn an_outbox_whose_rows_are_not_in_the_log_is_told() {
    let (cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); SELECT postbox.enable_claim_check('orders'); CREATE TABLE old (event_id uuid, type text, payload jsonb) PARTITION BY LIST (type);
         CREATE TABLE \"Old 1\" PARTITION OF old DEFAULT; SELECT postbox.adopt_outbox('old');
         CREATE UNLOGGED TABLE mine (n int)",
    )
    .await;
    assert!(!listen(&cluster, MAINTAIN).contains("outbox_not_logged"));
    run(&client, "ALTER TABLE \"Old 1\" SET UNLOGGED; ALTER TABLE orders_claims_g2 SET UNLOGGED").await;
    let heard = listen(&cluster, MAINTAIN);
    for tables in [r#""tables": ["public.\"Old 1\""]"#, r#""tables": ["public.orders_claims_g2"]"#] {
        assert!(heard.contains(tables), "{heard}");
    }
    assert!(!listen(&cluster, MAINTAIN).contains("outbox_not_logged"), "told once");
    run(&client, "ALTER TABLE \"Old 1\" SET LOGGED").await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"subject\": \"public.old\"") && heard.contains("\"cleared\": true"), "{heard}");
    run(&client, "SELECT postbox.drop_outbox('orders')").await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"subject\": \"public.orders\"") && heard.contains("\"cleared\": true"), "{heard}");
    assert_eq!(rows(&client, "SELECT kind FROM postbox.alert").await, [""; 0]);
}

#[tokio::test]
async fn a_standby_maintains_nothing() {
    let cluster = Cluster::builder().hba("local replication all trust").start();
    cluster.psql("postgres", "CREATE EXTENSION postbox");
    let standby = cluster.standby();
    let said = wait_until_async("the extension is there", Duration::from_secs(30), async || {
        standby.psql_result("postgres", "SELECT step, outcome, detail FROM postbox.maintain()").ok()
    })
    .await;
    assert!(said.starts_with("maintain|skipped|this server is a standby"), "{said}");
    for view in ["consumer_status", "active_leases", "consumer_lag", "retention_status", "maintenance_status"] {
        standby.psql("postgres", &format!("SELECT * FROM postbox.{view}"));
    }
}

#[tokio::test]
async fn alerts_begin_when_a_condition_has_lasted_and_end_with_it() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    assert!(!listen(&cluster, MAINTAIN).contains("notification"));
    run(&client, LONG_SINCE).await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"kind\": \"consumer_unhealthy\"") && heard.contains("\"subject\": \"g\""), "{heard}");
    assert!(!listen(&cluster, MAINTAIN).contains("notification"), "once");
    // A member comes.
    let member = cluster.client("postgres").await;
    run(&member, "SELECT pg_advisory_lock(postbox._member_lock('g'))").await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"cleared\": true"), "{heard}");

    // It does nothing, while events wait.
    run(&client, "SELECT postbox.publish('orders', 't', '{}')").await;
    assert!(!listen(&cluster, MAINTAIN).contains("notification"));
    run(&client, LONG_SINCE).await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"kind\": \"group_stalled\""), "{heard}");
    run(&client, "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots")
        .await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("group_stalled") && heard.contains("\"cleared\": true"), "{heard}");

    // It is given rows from the table first.
    run(
        &client,
        "INSERT INTO postbox.backfill (group_name, outbox, done, upto, upto_lsn, reason) \
                  VALUES ('g', 'orders', '{}', pg_current_snapshot(), pg_current_wal_insert_lsn(), 'earliest'); \
                  SELECT postbox.publish('orders', 't', '{}')",
    )
    .await;
    listen(&cluster, MAINTAIN);
    run(&client, "UPDATE postbox.alert SET since = since - interval '29 minutes'").await;
    assert!(!listen(&cluster, MAINTAIN).contains("group_stalled"));
    run(&client, "UPDATE postbox.backfill SET position = 10000").await;
    listen(&cluster, MAINTAIN);
    run(&client, "UPDATE postbox.alert SET since = since - interval '29 minutes'").await;
    assert!(!listen(&cluster, MAINTAIN).contains("group_stalled"), "it has come on");
    run(&client, "UPDATE postbox.alert SET since = since - interval '2 minutes'").await;
    assert!(listen(&cluster, MAINTAIN).contains("group_stalled"));
    run(&client, "UPDATE postbox.backfill SET finished = true").await;
    assert!(listen(&cluster, MAINTAIN).contains("\"cleared\": true"));
    run(&client, LONG_SINCE).await;
    assert!(listen(&cluster, MAINTAIN).contains("group_stalled"));
    run(&client, "DELETE FROM postbox.backfill; SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots")
        .await;
    assert!(listen(&cluster, MAINTAIN).contains("\"cleared\": true"));

    run(&client, "SELECT postbox.set_retention('orders', '1 day', 1)").await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"kind\": \"outbox_storage_critical\"") && heard.contains("public.orders"), "{heard}");
    assert_eq!(row(&client, "SELECT is_critical FROM postbox.retention_status").await, "t");
    run(&member, "SELECT pg_advisory_unlock_all()").await;
    run(&client, "SELECT postbox.drop_consumer_group('g'); SELECT postbox.drop_outbox('orders')").await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("outbox_storage_critical") && heard.contains("\"cleared\": true"), "{heard}");
    assert_eq!(rows(&client, "SELECT kind FROM postbox.alert").await, [""; 0]);
}

/// Nobody was told that it had begun.
#[tokio::test]
async fn a_condition_that_ends_too_soon_for_an_alert_is_no_step() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    maintain(&client).await;
    assert_eq!(rows(&client, "SELECT kind, alerted_at FROM postbox.alert").await, ["consumer_unhealthy|"]);
    run(&client, "SELECT postbox.drop_consumer_group('g')").await;
    let steps = "SELECT step, subject FROM postbox.maintain(true) WHERE subject = 'g' OR outcome IS NULL";
    assert_eq!(rows(&client, steps).await, [""; 0]);
    assert_eq!(rows(&client, "SELECT kind FROM postbox.alert").await, [""; 0]);
}

#[tokio::test]
async fn a_paused_group_is_not_unhealthy() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}'); SELECT postbox.pause_consumer_group('g')")
        .await;
    listen(&cluster, MAINTAIN);
    run(&client, LONG_SINCE).await;
    assert!(!listen(&cluster, MAINTAIN).contains("notification"));
    assert_eq!(row(&client, "SELECT member, healthy FROM postbox.consumer_status").await, "|t");
}

#[tokio::test]
async fn an_alert_fits_a_notification() {
    let (cluster, _client) = start().await;
    let heard = listen(
        &cluster,
        "SELECT postbox._alert('test', repeat('s', 9000), jsonb_build_object('x', repeat('y', 9000)))",
    );
    assert!(heard.contains("\"left_out_bytes\": 90"), "{heard}");
}

#[tokio::test]
async fn a_group_over_its_budget_loses_its_slot_if_told_so() {
    let (cluster, client) = with_ring().await;
    let slot = row(&client, "SELECT postbox.create_consumer_group('g', '{orders}', wal_budget => 100000)").await;
    run(
        &client,
        "CREATE TABLE noise (t text); INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)",
    )
    .await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"kind\": \"slot_at_risk\"") && heard.contains("wal_budget"), "{heard}");
    assert_eq!(row(&client, "SELECT wal_status FROM postbox.consumer_groups").await, "reserved");

    run(&client, "SELECT postbox.set_wal_budget('g', 100000, 'drop')").await;
    // Its reader is cut off.
    let conninfo = cluster.conninfo("postgres");
    let mut reader = std::process::Command::new(cluster.bin("pg_recvlogical"))
        .args([
            "--start",
            "--file",
            "-",
            "--no-loop",
            "--fsync-interval=0",
            "--status-interval=0",
            "--slot",
            &slot,
            "--dbname",
            &conninfo,
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until_async("the slot is read", Duration::from_secs(30), async || {
        (row(&client, "SELECT active FROM pg_replication_slots").await == "t").then_some(())
    })
    .await;
    // Reading it, the reader may have moved it on.
    run(
        &client,
        "SET synchronous_commit = on; INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)",
    )
    .await;
    let done = rows(&client, "SELECT step, subject, outcome FROM postbox.maintain(true) WHERE step = 'slots'").await;
    assert_eq!(done, ["slots|g|dropped"]);
    assert_eq!(row(&client, "SELECT wal_status FROM postbox.consumer_groups").await, "missing");
    let audited = "SELECT action, subject, detail ->> 'slot' FROM postbox.audit WHERE action = 'slot_dropped'";
    assert_eq!(row(&client, audited).await, format!("slot_dropped|g|{slot}"));
    assert!(!reader.wait().unwrap().success());
}

#[tokio::test]
async fn a_slot_that_is_about_to_be_lost_is_told_and_one_that_is_gone_once_more() {
    let cluster = Cluster::builder()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("min_wal_size", "32MB")
        .setting("checkpoint_timeout", "1h")
        .start();
    let client = cluster.client("postgres").await;
    run(&client, "CREATE EXTENSION postbox; SELECT postbox.create_outbox('orders')").await;
    for group in ["g", "h"] {
        run(&client, &format!("SELECT postbox.create_consumer_group('{group}', '{{orders}}')")).await;
    }
    assert!(!listen(&cluster, MAINTAIN).contains("slot_at_risk"));
    // The slot's segment is kept until the next checkpoint.
    for _ in 0..4 {
        run(&client, "SELECT pg_logical_emit_message(false, 'filler', 'x'); SELECT pg_switch_wal()").await;
    }
    let status = "SELECT DISTINCT wal_status FROM postbox.consumer_groups";
    assert_eq!(row(&client, status).await, "unreserved");
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"kind\": \"slot_at_risk\"") && heard.contains("\"unreserved\""), "{heard}");
    assert!(!listen(&cluster, MAINTAIN).contains("slot_at_risk"), "once");

    run(&client, "CHECKPOINT").await;
    assert_eq!(row(&client, status).await, "lost");
    run(&client, "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_group WHERE name = 'h'").await;
    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"reasons\": [\"lost\"") && heard.contains("\"reasons\": [\"missing\"]"), "{heard}");
}

#[tokio::test]
async fn a_slot_is_told_to_be_at_risk_while_all_that_it_needs_is_there() {
    for (max_wal_size, status) in [("1GB", "reserved"), ("32MB", "extended")] {
        let cluster = Cluster::builder()
            .setting("max_slot_wal_keep_size", "64MB")
            .setting("max_wal_size", max_wal_size)
            .setting("min_wal_size", "32MB")
            .setting("checkpoint_timeout", "1h")
            .start();
        let client = cluster.client("postgres").await;
        run(&client, "CREATE EXTENSION postbox; SELECT postbox.create_outbox('orders')").await;
        run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
        let slot = "SELECT safe_wal_size < pg_size_bytes('6400kB'), wal_status FROM pg_replication_slots";
        let write = async |until: &str| {
            while row(&client, &format!("SELECT safe_wal_size < pg_size_bytes('{until}') FROM pg_replication_slots"))
                .await
                == "f"
            {
                run(&client, "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 500000))").await;
            }
        };
        // Others write as well: pages that are changed for the first time since a checkpoint go into the log whole.
        write("16MB").await;
        let heard = listen(&cluster, MAINTAIN);
        assert!(!heard.contains("slot_at_risk"), "more than a tenth is left: {heard}");
        write("6400kB").await;
        assert_eq!(row(&client, slot).await, format!("t|{status}"));
        let heard = listen(&cluster, MAINTAIN);
        let told = heard.contains("\"kind\": \"slot_at_risk\"") && heard.contains("\"reasons\": [\"safe_wal_size\"]");
        assert!(told, "{status}: {heard}");
        assert!(!listen(&cluster, MAINTAIN).contains("slot_at_risk"), "once");
    }
}

/// What waits in the slot would be lost for good.
#[tokio::test]
async fn a_slot_is_never_dropped_for_its_budget_if_the_table_cannot_give_what_waits_in_it() {
    let (_cluster, client) = with_ring().await;
    run(
        &client,
        "CREATE TABLE plain (id text, type text, payload text); CREATE TABLE noise (t text);
         SELECT postbox.adopt_outbox('plain', event_id => 'id', key => '', headers => '')",
    )
    .await;
    let create =
        "SELECT postbox.create_consumer_group('p', '{orders,plain}', wal_budget => 100000, over_budget => 'drop')";
    refused(&client, create, "55000", "public.plain cannot be delivered again", "over_budget at alert").await;
    run(&client, "SELECT postbox.create_consumer_group('p', '{orders,plain}', wal_budget => 100000)").await;
    let set = "SELECT postbox.set_wal_budget('p', 100000, 'drop')";
    refused(&client, set, "55000", "public.plain cannot be delivered again", "seq => and xid =>").await;
    refused(&client, "SELECT postbox.set_wal_budget('q', 1, 'drop')", "42704", "does not exist", "").await;

    // These became so afterwards.
    run(&client, "SELECT postbox.create_outbox('other')").await;
    let create =
        "SELECT postbox.create_consumer_group('g', '{orders,other}', wal_budget => 100000, over_budget => 'drop')";
    let slot = row(&client, create).await;
    run(&client, "SELECT postbox.publish('other', 't', '{}'); SELECT postbox.drop_outbox('other', force => true)")
        .await;
    run(&client, "INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await;
    let done = "SELECT subject, outcome, detail FROM postbox.maintain(true) WHERE step = 'slots'";
    let done = rows(&client, done).await;
    assert_eq!(done.len(), 1, "{done:?}");
    assert!(done[0].starts_with(&format!("g|skipped|slot {slot} holds back ")), "{done:?}");
    assert!(done[0].ends_with("is not dropped: public.other cannot be delivered again"), "{done:?}");
    assert_eq!(row(&client, "SELECT count(*) FROM pg_replication_slots").await, "2");
}

#[tokio::test]
async fn slots_that_no_group_has_are_dropped_a_minute_later() {
    let (cluster, client) = with_ring().await;
    let slot = row(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    let oid = row(&client, "SELECT oid FROM pg_database WHERE datname = current_database()").await;
    run(&client, "SELECT pg_create_logical_replication_slot('by_hand', 'postbox')").await;
    run(&client, &format!("SELECT pg_create_logical_replication_slot('postbox3_{oid}_gone', 'postbox')")).await;
    run(&client, &format!("SELECT pg_create_logical_replication_slot('postbox_1{oid}_elsewhere', 'postbox')")).await;
    let slots = "SELECT slot_name FROM pg_replication_slots ORDER BY 1";
    let orphan = format!("postbox3_{oid}_gone");

    let noted = maintain(&client).await;
    assert!(noted.iter().any(|row| row.starts_with(&format!("slots|{orphan}|noted"))), "{noted:?}");
    maintain(&client).await;
    assert!(rows(&client, slots).await.contains(&orphan), "not within a minute");
    // Somebody is just making the group.
    run(&client, "UPDATE postbox.alert SET since = since - interval '61 seconds' WHERE kind = 'orphaned_slot'").await;
    let maker = cluster.client("postgres").await;
    run(&maker, "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('postbox.consumer_group gone', 0))").await;
    maintain(&client).await;
    assert!(rows(&client, slots).await.contains(&orphan));
    run(&maker, "ROLLBACK").await;

    // A role that may not drop slots says so.
    run(&client, "CREATE ROLE keeper; SELECT postbox.grant_role('maintainer', 'keeper', '{orders}'); SET ROLE keeper")
        .await;
    let skipped = maintain(&client).await;
    assert!(skipped.iter().any(|row| row.starts_with(&format!("slots|{orphan}|skipped|"))), "{skipped:?}");
    run(&client, "RESET ROLE").await;

    let heard = listen(&cluster, MAINTAIN);
    assert!(heard.contains("\"kind\": \"consumer_reaped\"") && heard.contains("\"subject\": \"gone\""), "{heard}");
    let mut left = vec!["by_hand".to_owned(), slot, format!("postbox_1{oid}_elsewhere")];
    left.sort();
    let mut there = rows(&client, slots).await;
    there.sort();
    assert_eq!(there, left);
    assert_eq!(row(&client, "SELECT action, subject FROM postbox.audit").await, format!("slot_reaped|{orphan}"));
}

/// What an earlier installation left has events that nobody else has.
#[tokio::test]
async fn a_slot_of_an_earlier_installation_is_told_and_kept() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "INSERT INTO orders (type) VALUES ('kept'); DROP EXTENSION postbox; CREATE EXTENSION postbox").await;
    let slot = row(&client, "SELECT slot_name FROM pg_replication_slots").await;
    for _ in 0..2 {
        let told = maintain(&client).await;
        let kept = format!("slots|{slot}|kept|it is of an earlier installation");
        assert!(told.iter().any(|row| row.starts_with(&kept) && row.contains("pg_drop_replication_slot")), "{told:?}");
    }
    let events = "SELECT type FROM pg_logical_slot_get_binary_changes((SELECT slot_name FROM pg_replication_slots), NULL, NULL, 'names', 'frame') f, postbox.decode(f.data)";
    assert_eq!(row(&client, events).await, "kept");
    // Whoever reads it may stop, and go on.
    let told = maintain(&client).await;
    assert!(told.iter().any(|row| row.starts_with(&format!("slots|{slot}|kept|"))), "{told:?}");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.alert").await, "0");
}

#[tokio::test]
async fn a_slot_of_an_earlier_installation_that_is_dropped_is_forgotten() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    let earlier = row(&client, create).await;
    run(&client, "DROP EXTENSION postbox; CREATE EXTENSION postbox").await;
    refused(&client, create, "42710", "already exists", "pg_drop_replication_slot").await;
    // What a creation leaves that is rolled back is no earlier one's, whether maintenance has run since the hint was followed or not.
    for maintained in [false, true] {
        run(
            &client,
            &format!(
                "SELECT pg_drop_replication_slot('{earlier}') FROM pg_replication_slots WHERE slot_name = '{earlier}'"
            ),
        )
        .await;
        if maintained {
            maintain(&client).await;
        }
        run(&client, &format!("BEGIN; {create}; ROLLBACK")).await;
        let left = row(&client, "SELECT slot_name FROM pg_replication_slots").await;
        assert_eq!(left == earlier, maintained, "{left}");
        let noted = maintain(&client).await;
        assert!(noted.iter().any(|row| row.starts_with(&format!("slots|{left}|noted"))), "{noted:?}");
        run(&client, LONG_SINCE).await;
        let reaped = maintain(&client).await;
        assert!(reaped.iter().any(|row| row.starts_with(&format!("slots|{left}|reaped"))), "{reaped:?}");
    }
    assert_eq!(row(&client, create).await, earlier);
}

#[tokio::test]
async fn a_group_does_not_share_the_name_of_a_slot_of_an_earlier_installation() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders')").await;
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    let earlier = row(&client, create).await;
    run(&client, "DROP EXTENSION postbox; CREATE EXTENSION postbox").await;
    run(&client, &format!("SELECT pg_drop_replication_slot('{earlier}')")).await;
    let slot = row(&client, create).await;
    assert_ne!(slot, earlier);
    // Recovery counts on from there.
    run(&client, "SELECT postbox.publish('orders', 't', '{}')").await;
    let recovered = row(&client, "SELECT postbox.recover_consumer_group('g')").await;
    assert!(recovered != slot && recovered != earlier, "{recovered}");
    assert_eq!(
        row(&client, "SELECT slot_name, slot_generation FROM postbox.consumer_group").await,
        format!("{recovered}|2")
    );
}

/// What is set for the sessions of people is not for maintenance.
#[tokio::test]
async fn settings_of_the_database_do_not_stop_maintenance() {
    let (cluster, client) = start().await;
    run(&client, "ALTER DATABASE postgres SET default_transaction_isolation = 'repeatable read'").await;
    let mut postbox = std::process::Command::new(postbox_tests::postbox_binary());
    let output =
        postbox.args(["maintain", "--once", "-d", &cluster.conninfo("postgres")]).output().expect("postbox runs");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("sample"), "{output:?}");
}
