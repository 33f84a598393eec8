//! Claims go with their events: when every group is past them, and together.

use postbox_tests::wait_until_async;

use super::{numbers, publish};
use crate::shop::PATIENCE;
use crate::sql::retention::{maintain, with_ring};
use crate::sql::{error, row, rows, run};

const CHECKPOINT: &str = "UPDATE postbox.checkpoint SET snapshot = pg_current_snapshot(), lsn = pg_current_wal_insert_lsn(), taken_at = clock_timestamp()";
const TURN: &str =
    "SELECT setval('orders_seq_seq', (((coalesce(pg_sequence_last_value('orders_seq_seq'), 0) >> 10) + 1) << 10) - 1)";
const STORED: &str = "SELECT (SELECT count(*) FROM orders_g0), (SELECT coalesce(sum(rows), 0) FROM orders_claims_g0)";

#[tokio::test]
async fn a_fast_group_takes_no_claim_from_a_slow_one() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.enable_claim_check('orders', 10)").await;
    for group in ["fast", "slow"] {
        run(&client, &format!("SELECT postbox.create_consumer_group('{group}', '{{orders}}')")).await;
    }
    publish(&client, &numbers(100)).await;
    publish(&client, &numbers(23)).await;
    let consumed = "SELECT group_name, claims, rows, consumed_claims, consumed_rows, consumed_bytes = CASE consumed_claims WHEN 0 THEN 0 ELSE bytes END
        FROM postbox.outbox_rows_consumed('orders')";
    assert_eq!(rows(&client, consumed).await, ["fast|2|123|0|0|t", "slow|2|123|0|0|t"]);
    run(&client, TURN).await;
    publish(&client, &numbers(1)).await;
    run(&client, &format!("{CHECKPOINT} WHERE group_name = 'fast'")).await;
    maintain(&client).await;
    assert_eq!(row(&client, STORED).await, "2|123");
    assert_eq!(rows(&client, consumed).await, ["fast|2|123|2|123|t", "slow|2|123|0|0|t"]);

    run(&client, &format!("{CHECKPOINT} WHERE group_name = 'slow'")).await;
    let emptied = maintain(&client).await;
    assert!(emptied.contains(&"retention|public.orders|emptied|public.orders_g0 with 2 rows".into()), "{emptied:?}");
    assert_eq!(row(&client, STORED).await, "0|0");
    assert_eq!(rows(&client, consumed).await, ["fast|0|0|0|0|t", "slow|0|0|0|0|t"]);
    let audited = "SELECT detail ->> 'claims' FROM postbox.audit WHERE action = 'truncate'";
    assert_eq!(row(&client, audited).await, "public.orders_claims_g0");
}

#[tokio::test]
async fn a_claim_whose_event_is_not_written_yet_keeps_its_leaf() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.enable_claim_check('orders', 10)").await;
    publish(&client, &numbers(1)).await;
    // A publisher that stands between the claim and its event: the query waits for a lock.
    run(&client, "CREATE TABLE gate (n int)").await;
    let holder = cluster.client("postgres").await;
    run(&holder, "BEGIN; LOCK TABLE gate").await;
    let publisher = cluster.client("postgres").await;
    let publishing = tokio::spawn(async move {
        // The gate is asked for rows once so many were stored.
        run(
            &publisher,
            "CREATE FUNCTION pass() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN count(*) FROM gate; END $$",
        )
        .await;
        publish(&publisher, "SELECT CASE WHEN n > 5000 THEN pass() ELSE n END FROM generate_series(1, 5001) n").await;
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted";
    wait_until_async("the publisher waits", PATIENCE, async || (row(&client, waits).await == "1").then_some(())).await;
    run(&client, TURN).await;
    let busy = maintain(&client).await;
    assert!(!busy.iter().any(|row| row.contains("emptied")), "{busy:?}");
    assert_eq!(row(&client, "SELECT count(*) FROM orders_g0").await, "1");
    let reasons = "SELECT array_to_string(pinned_by, ';') FROM postbox.retention_status";
    let said = row(&client, reasons).await;
    assert!(said.contains("process "), "{said}");
    run(&holder, "ROLLBACK").await;
    publishing.await.expect("published");
    assert_eq!(row(&client, STORED).await, "2|5001");
    maintain(&client).await;
    assert_eq!(row(&client, STORED).await, "0|0");
}

#[tokio::test]
async fn what_an_aborted_publisher_left_behind_goes_too() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.enable_claim_check('orders', 10); ALTER TABLE orders_claims_g0 SET (autovacuum_enabled = false)").await;
    let failing =
        "SELECT postbox.publish_batch('orders', 't', 'SELECT 1 / (5000 - n) FROM generate_series(1, 5001) n')";
    crate::sql::error(&client, failing).await;
    assert_eq!(
        row(&client, "SELECT pg_relation_size('orders_g0'), pg_relation_size('orders_claims_g0') > 0").await,
        "0|t"
    );
    run(&client, TURN).await;
    maintain(&client).await;
    assert_eq!(row(&client, "SELECT pg_relation_size('orders_claims_g0')").await, "0");
}

#[tokio::test]
async fn a_purge_takes_claims_along() {
    let all = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM orders_claims)";
    for force in [false, true] {
        let (_cluster, client) = with_ring().await;
        run(&client, "SELECT postbox.enable_claim_check('orders', 10)").await;
        publish(&client, &numbers(100)).await;
        assert_ne!(row(&client, all).await, "0|0");
        run(&client, &format!("SELECT * FROM postbox.purge_outbox('orders', {force})")).await;
        assert_eq!(row(&client, all).await, "0|0", "force => {force}");
    }
}

/// What docs/sql.md says of a forced purge: the log still has what the tables have not.
#[tokio::test]
async fn of_what_a_forced_purge_took_the_stream_has_the_data_and_the_reference_says_that_it_is_gone() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.enable_claim_check('orders', 10)").await;
    for group in ["by_stream", "by_reference"] {
        run(&client, &format!("SELECT postbox.create_consumer_group('{group}', '{{orders}}')")).await;
    }
    publish(&client, &numbers(100)).await;
    let at = row(&client, "SELECT format('%s, xid => %L', seq, xid) FROM orders").await;
    run(&client, "SELECT * FROM postbox.purge_outbox('orders', true)").await;
    let read = |claims: &str| {
        let group = format!("by_{claims}");
        postbox_tests::tap::deliver(&cluster, "postgres", &["--group", &group, "--claims", claims])
    };
    let streamed = read("stream");
    let event = streamed.last().expect("an event");
    let text = streamed.iter().filter_map(|line| line["text"].as_str()).collect::<String>();
    assert_eq!((text.lines().count(), &event["claim"]["rows"]), (100, &serde_json::json!(100)), "{streamed:#?}");
    assert_eq!(read("reference"), std::slice::from_ref(event));
    let gone = error(&client, &format!("SELECT * FROM postbox.claim_chunks('orders', {at})")).await;
    assert_eq!(gone.code().code(), "P0002", "{gone:?}");
}
