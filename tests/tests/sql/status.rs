//! The views that say how groups and outboxes are.

use std::time::Duration;

use postbox_tests::wait_until_async;

use super::retention::{maintain, with_ring};
use super::{row, rows, run};

const VIEWS: [&str; 5] = ["consumer_status", "active_leases", "consumer_lag", "retention_status", "maintenance_status"];

#[tokio::test]
async fn members_are_shown_with_their_roles_and_leases() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "SELECT postbox.create_consumer_group('h', '{orders}')").await;
    let shown = "SELECT group_name, member, role, healthy, epoch, last_contact IS NOT NULL FROM postbox.consumer_status ORDER BY 1, 3";
    assert_eq!(rows(&client, shown).await, ["g|||f||f", "h|||f||f"]);

    let (first, second) = (cluster.client("postgres").await, cluster.client("postgres").await);
    run(&first, "SET application_name = 'postbox:g:one:1'; SELECT pg_advisory_lock(postbox._member_lock('g'))").await;
    run(&first, "SELECT * FROM postbox._activate('g', 'one:1', '10 seconds', '1 minute')").await;
    run(&second, "SET application_name = 'postbox:g:two:2'").await;
    assert_eq!(rows(&client, shown).await, ["g|one:1|active|t|1|t", "g|two:2|standby|t||t", "h|||f||f"]);
    let leases = "SELECT group_name, member, epoch, expires_at - last_contact FROM postbox.active_leases";
    assert_eq!(rows(&client, leases).await, ["g|one:1|1|00:00:10"]);
    let pid = row(&first, "SELECT pg_backend_pid()").await;
    assert_eq!(row(&client, "SELECT pid FROM postbox.active_leases").await, pid);

    // Not heard of for longer than its session timeout.
    run(&client, "UPDATE postbox.consumer_group SET session_timeout = '0' WHERE name = 'g'").await;
    assert_eq!(row(&client, "SELECT healthy FROM postbox.consumer_status WHERE role = 'active'").await, "f");
    drop((first, second));
    wait_until_async("both are gone", Duration::from_secs(10), async || {
        (rows(&client, shown).await == ["g|||f||f", "h|||f||f"]).then_some(())
    })
    .await;
    assert_eq!(rows(&client, leases).await, [""; 0]);
}

#[tokio::test]
async fn lag_is_told_in_bytes_seconds_and_events() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "SELECT postbox.set_retention('orders', '1 day')").await;
    let advance = "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots";
    run(&client, "INSERT INTO orders (type, payload) VALUES ('t', '{}')").await;
    maintain(&client).await;
    run(&client, advance).await;
    let lag = "SELECT bytes, seconds, events, precision FROM postbox.consumer_lag";
    // Nobody else writes; the server itself does now and then.
    wait_until_async("nothing waits", Duration::from_secs(30), async || {
        let shown = row(&client, lag).await;
        if shown == "0|0|0|exact" {
            return Some(());
        }
        run(&client, advance).await;
        None
    })
    .await;

    // A few are no less than many.
    run(&client, "INSERT INTO orders (type, payload) VALUES ('t', '{}')").await;
    assert_eq!(row(&client, "SELECT seconds > 0, events FROM postbox.consumer_lag").await, "t|1");
    run(&client, "INSERT INTO orders (type, payload) SELECT 't', '{}' FROM generate_series(2, 700)").await;
    run(&client, "UPDATE postbox.sample SET taken_at = taken_at - interval '100 seconds'").await;
    let events = "SELECT bytes > 700, seconds BETWEEN 100 AND 160, events, precision FROM postbox.consumer_lag";
    assert_eq!(row(&client, events).await, "t|t|700|approximate");
    // Moving the sequence on is no event.
    maintain(&client).await;
    maintain(&client).await;
    assert_ne!(row(&client, "SELECT count(*) FROM postbox.ring_move").await, "0");
    assert_eq!(row(&client, events).await, "t|t|700|approximate");

    let writer = cluster.client("postgres").await;
    run(&writer, "SET application_name = 'slow job'; BEGIN; CREATE TABLE t ()").await;
    let holder = "SELECT restart_lag_bytes > 0, restart_holder FROM postbox.consumer_lag";
    let shown = row(&client, holder).await;
    assert!(shown.starts_with("t|process ") && shown.contains("(slow job), open for 00:00:0"), "{shown}");
    run(&writer, "PREPARE TRANSACTION 'half way'").await;
    let shown = row(&client, holder).await;
    assert!(shown.contains("prepared transaction 'half way'"), "{shown}");
    run(&writer, "ROLLBACK PREPARED 'half way'").await;
}

#[tokio::test]
async fn roles_that_may_see_little_get_nulls_and_no_errors() {
    let (cluster, client) = with_ring().await;
    run(
        &client,
        "CREATE ROLE viewer;
         INSERT INTO orders (type, payload) VALUES ('t', '{}'); SELECT postbox.grant_role('monitor', 'viewer')",
    )
    .await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    let member = cluster.client("postgres").await;
    run(&member, "SET application_name = 'postbox:g:one'; SELECT pg_advisory_lock(postbox._member_lock('g'))").await;
    run(&client, "SET ROLE viewer").await;
    for view in VIEWS {
        rows(&client, &format!("SELECT * FROM postbox.{view}")).await;
    }
    let shown = "SELECT group_name, member, role, last_contact, healthy FROM postbox.consumer_status";
    assert_eq!(rows(&client, shown).await, ["g|one|active||"]);
    assert_eq!(row(&client, "SELECT events FROM postbox.consumer_lag").await, "");
    run(&client, "RESET ROLE; CREATE ROLE nobody; SET ROLE nobody").await;
    for view in VIEWS {
        let denied = super::error(&client, &format!("SELECT * FROM postbox.{view}")).await;
        assert_eq!(denied.code().code(), "42501", "{view}");
    }
}

#[tokio::test]
async fn maintenance_that_nobody_runs_is_overdue_once_something_was_written() {
    let (_cluster, client) = with_ring().await;
    let overdue = "SELECT overdue_since IS NOT NULL FROM postbox.maintenance_status";
    assert_eq!(row(&client, overdue).await, "f");
    run(&client, "UPDATE postbox.maintenance SET installed_at = now() - interval '1 hour'").await;
    assert_eq!(row(&client, overdue).await, "t", "it never ran");
    maintain(&client).await;
    assert_eq!(row(&client, overdue).await, "f");
    run(&client, "UPDATE postbox.maintenance SET last_run = now() - interval '1 hour'").await;
    run(&client, "INSERT INTO orders (type, payload) SELECT 't', '{}' FROM generate_series(1, 2000)").await;
    assert_eq!(row(&client, overdue).await, "t");
    let said = "SELECT array_to_string(pinned_by, ';') FROM postbox.retention_status";
    assert!(row(&client, said).await.contains("maintenance is overdue since"));
    maintain(&client).await;
    assert_eq!(row(&client, overdue).await, "f");
}

/// The server's own measure, the best of a few: no outbox is scanned, so their size does not matter.
#[tokio::test]
async fn views_take_milliseconds_over_many_events() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "SELECT postbox.set_retention('orders', '1 day')").await;
    maintain(&client).await;
    run(&client, "INSERT INTO orders (type, payload) SELECT 't', '{}' FROM generate_series(1, 200000)").await;
    run(
        &client,
        "INSERT INTO postbox.sample SELECT now() - n * interval '30 minutes', snapshot, lsn, system_identifier, timeline, outboxes, last_seqs
            FROM postbox.sample, generate_series(1, 1500) n",
    )
    .await;
    maintain(&client).await;
    for view in VIEWS {
        let mut best = f64::MAX;
        // The best of many: other tests run beside this one.
        for _ in 0..50 {
            let plan =
                rows(&client, &format!("EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF) SELECT * FROM postbox.{view}"))
                    .await;
            let time = plan.iter().find_map(|line| line.strip_prefix("Execution Time: ")).unwrap();
            best = best.min(time.trim_end_matches(" ms").parse().unwrap());
            assert!(!plan.iter().any(|line| line.contains("orders_g")), "{view} reads a leaf: {plan:#?}");
        }
        println!("{view}: {best} ms");
        assert!(best < 5.0, "{view} took {best} ms");
    }
}
