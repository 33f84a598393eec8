//! Settings of an inbox that change while it is at work.

use crate::sql::{error, refused, row, rows, run, start};

const MAINTAIN: &str = "SELECT postbox.maintain(true)";
const COMPLETE: &str = "SELECT postbox.inbox_complete('payments', array_agg(event_id), array_agg(token)) FROM postbox.inbox_claim('payments', 'w', 1000) HAVING count(*) > 0";
const AGE: &str = "UPDATE postbox.inbox_log SET at = at - interval '2 hours' WHERE what = 'processed'";

#[tokio::test]
async fn settings_change_without_anything_being_forgotten() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', dead_retention => '1 day'); SELECT postbox.enable_inbox_ordering('payments')").await;
    run(
        &client,
        "INSERT INTO payments (event_id, aggregate_id, sequence_num) VALUES ('a1', 'a', 1), ('a2', 'a', 2), ('b2', 'b', 2)",
    )
    .await;
    let set = async |settings: &str| row(&client, &format!("SELECT postbox.set_inbox('payments', {settings})")).await;
    assert_eq!(
        set("max_retries => 0, retention => '1 hour', dedup_window => '1 hour', failure_policy => 'pause', backoff_initial => '2 s',
            backoff_max => '4 s', gap_alert_after => '0'").await,
        "t"
    );
    let settings = "SELECT max_retries, retention, dedup_window, failure_policy, dead_retention, backoff_initial, backoff_max, gap_alert_after FROM postbox.inbox";
    assert_eq!(row(&client, settings).await, "0|01:00:00|01:00:00|pause|1 day|00:00:02|00:00:04|00:00:00");
    assert_eq!(set("retention => '60 minutes', max_retries => 0").await, "f", "nothing to change");
    assert_eq!(set("keep_dead => true").await, "t");
    assert_eq!(row(&client, "SELECT dead_retention IS NULL FROM postbox.inbox").await, "t");
    assert_eq!(set("keep_dead => true").await, "f");
    assert_eq!(
        rows(&client, "SELECT action, subject, detail FROM postbox.audit ORDER BY at").await,
        [
            r#"inbox_set|payments|{"retention": "01:00:00", "backoff_max": "00:00:04", "max_retries": 0, "dedup_window": "01:00:00", "failure_policy": "pause", "backoff_initial": "00:00:02", "gap_alert_after": "00:00:00"}"#,
            r#"inbox_set|payments|{"dead_retention": null}"#
        ]
    );
    // They count from now on: no retry, the aggregate waits, and the gap is told of. Where aggregates stand is as it was.
    run(
        &client,
        "SELECT postbox.inbox_fail('payments', event_id, token, 'boom') FROM postbox.inbox_claim('payments', 'w')",
    )
    .await;
    assert_eq!(rows(&client, "SELECT event_id, why FROM dlq_payments").await, ["a1|failed"]);
    assert_eq!(row(&client, "SELECT next, blocked FROM postbox.inbox_lane WHERE key = 'a'").await, "1|paused");
    let maintained =
        rows(&client, "SELECT outcome, detail FROM postbox.maintain(true) WHERE subject = 'payments'").await;
    assert!(maintained.contains(&"alerted|inbox_ordering_gap".to_owned()), "{maintained:?}");
}

/// Whether ids outlive their rows is written into the triggers.
#[tokio::test]
async fn a_longer_dedup_window_knows_what_is_removed_from_then_on() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', retention => '1 hour', dedup_window => '1 hour')").await;
    let count = "SELECT count(*) FROM payments";
    run(&client, &format!("INSERT INTO payments (event_id) VALUES ('before'); {COMPLETE}; {AGE}")).await;
    run(&client, MAINTAIN).await;
    assert_eq!(row(&client, count).await, "0");
    assert_eq!(row(&client, "SELECT postbox.set_inbox('payments', dedup_window => '1 day')").await, "t");
    run(&client, &format!("INSERT INTO payments (event_id) VALUES ('after'); {COMPLETE}; {AGE}")).await;
    for left in ["1", "1", "0"] {
        run(&client, MAINTAIN).await;
        assert_eq!(row(&client, count).await, left);
    }
    let again = "INSERT INTO payments (event_id) VALUES ('before'), ('after') ON CONFLICT DO NOTHING";
    run(&client, again).await;
    assert_eq!(rows(&client, "SELECT event_id FROM payments").await, ["before"], "the other one is known");
    assert_eq!(
        row(&client, "SELECT postbox.inbox_receive_batch('payments', '{after,new}')").await,
        "{duplicate,received}"
    );
    assert_eq!(row(&client, "SELECT duplicates FROM postbox.inbox_status()").await, "2");
    // And back: an id is known for as long as its row is there.
    run(&client, "SELECT postbox.set_inbox('payments', dedup_window => '0')").await;
    run(&client, again).await;
    assert_eq!(rows(&client, "SELECT event_id FROM payments ORDER BY 1").await, ["after", "before", "new"]);
    run(&client, &format!("{COMPLETE}; {AGE}")).await;
    run(&client, MAINTAIN).await;
    assert_eq!(row(&client, count).await, "0");
}

#[tokio::test]
async fn settings_that_cannot_be_or_cannot_change_are_refused() {
    let (cluster, client) = start().await;
    run(&client, "SELECT postbox.create_inbox('payments', dedup_window => '0'); SELECT postbox.create_inbox('invoices', style => 'update')").await;
    for (call, code, message, hint) in [
        ("'nosuch', max_retries => 1", "42704", "does not exist", "inbox_status"),
        ("'payments', max_retries => -1", "22023", "max_retries of inbox \"payments\" is -1", "first attempt"),
        ("'payments', retention => '-1 s'", "22023", "retention of inbox \"payments\" is -00:00:01", "7 days"),
        ("'payments', failure_policy => 'stop'", "22023", "must be skip, pause or park", "given up"),
        ("'payments', backoff_max => '1 ms'", "22023", "backoff of inbox \"payments\"", "backoff_initial"),
        ("'payments', keep_dead => true, dead_retention => '1 d'", "22023", "keep_dead", "one of the two"),
        ("'payments', gap_alert_after => '1 s'", "55000", "inbox \"payments\" has no order", "enable_inbox_ordering"),
        ("'invoices', max_retries => 9", "55000", "max_retries of inbox \"invoices\" is 3", "another inbox"),
    ] {
        refused(&client, &format!("SELECT postbox.set_inbox({call})"), code, message, hint).await;
    }
    run(&client, "SELECT postbox.enable_inbox_ordering('payments')").await;
    refused(
        &client,
        "SELECT postbox.set_inbox('payments', gap_alert_after => '-1 s')",
        "22023",
        "must be 0 or more",
        "5 minutes",
    )
    .await;
    assert_eq!(row(&client, "SELECT postbox.set_inbox('invoices', max_retries => 3, retention => '1 day')").await, "t");
    assert_eq!(row(&client, "SELECT retention FROM postbox.inbox_status('invoices')").await, "1 day");

    // What the triggers say changes when nobody is in the middle of it.
    let other = cluster.client("postgres").await;
    run(&other, "BEGIN; INSERT INTO payments (event_id) VALUES ('a')").await;
    let longer = "SELECT postbox.set_inbox('payments', dedup_window => '30 days')";
    refused(&client, longer, "55P03", "inbox \"payments\" is in use", "Try again").await;
    run(&client, "SELECT postbox.set_inbox('payments', retention => '8 days')").await;
    run(&other, "COMMIT").await;
    run(&client, longer).await;

    // An operator may, and nobody else.
    run(
        &client,
        "CREATE ROLE boss; CREATE ROLE eye; GRANT CREATE ON SCHEMA public TO boss; SET client_min_messages = error;
         SELECT postbox.grant_role('operator', 'boss'), postbox.grant_role('monitor', 'eye'); SET ROLE eye",
    )
    .await;
    let set = "SELECT postbox.set_inbox('orders', dedup_window => '30 days', max_retries => 7)";
    assert_eq!(error(&client, set).await.code().code(), "42501");
    run(&client, "RESET ROLE; SET ROLE boss; SELECT postbox.create_inbox('orders')").await;
    assert_eq!(row(&client, set).await, "t");
    // Who does not own the table changes what is not in its triggers.
    assert_eq!(row(&client, "SELECT postbox.set_inbox('payments', max_retries => 7)").await, "t");
}
