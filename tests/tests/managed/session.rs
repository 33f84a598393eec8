//! The session beside the stream, which is asked what tables mean.

use postbox_tests::{Cluster, Run, wait_until};
use rustix::process::Signal;

use super::start;
use crate::shop::PATIENCE;

#[test]
fn an_event_that_cannot_be_asked_about_is_not_lost_between_others() {
    let cluster = start();
    let psql = |sql: &str| cluster.psql("postgres", sql);
    psql("SELECT postbox.create_outbox('orders'), postbox.set_emit('orders', true)");
    psql("SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')");
    let mut run = Run::start(&cluster.conninfo("postgres"), &["--group", "g", "--claims", "reference"]);
    // What rows of the outbox mean is known from here on, and what its messages mean is not.
    psql("INSERT INTO orders (type, payload) VALUES ('first', '{}')");
    run.wait_for(1, PATIENCE);
    run.signal(Signal::STOP);
    let status = format!("/proc/{}/status", run.pid());
    let stopped = || std::fs::read_to_string(&status).expect("a process").contains("State:\tT").then_some(());
    wait_until("it stands still", PATIENCE, stopped);
    let asks = "FROM pg_stat_activity WHERE query LIKE '%_marker_of%' AND pid <> pg_backend_pid()";
    assert_eq!(psql(&format!("SELECT count(pg_terminate_backend(pid)) {asks}")), "1");
    wait_until("the session is gone", PATIENCE, || (psql(&format!("SELECT count(*) {asks}")) == "0").then_some(()));
    // Three transactions that are received together.
    psql("INSERT INTO orders (type, payload) VALUES ('a', '{}')");
    psql("SELECT postbox.emit('orders', 'emitted', '{}')");
    psql("INSERT INTO orders (type, payload) VALUES ('b', '{}')");
    let end = psql("SELECT pg_current_wal_flush_lsn()");
    let sent = format!("SELECT sent_lsn >= '{end}' FROM pg_stat_replication");
    wait_until("all is sent", PATIENCE, || (psql(&sent) == "t").then_some(()));
    run.signal(Signal::CONT);
    run.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_type == "b"));
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let mut types = ended.lines.iter().map(|line| line.event_type.as_str()).collect::<Vec<_>>();
    let mut seen = std::collections::HashSet::new();
    types.retain(|name| seen.insert(*name));
    assert_eq!(types, ["first", "a", "emitted", "b"], "{}", ended.log);
}

/// A transaction is received once its commit is written, and others see it once that is done: much later where it waits for a standby.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_the_transaction_that_allows_messages_is_an_event() {
    let builder =
        Cluster::builder().setting("synchronous_standby_names", "nosuch").setting("synchronous_commit", "local");
    let cluster = builder.start();
    let psql = |sql: &str| cluster.psql("postgres", sql);
    psql("CREATE EXTENSION postbox; SELECT postbox.enable_pgoutput()");
    psql("SELECT postbox.create_outbox('orders')");
    psql("SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')");
    let mut run = Run::start(&cluster.conninfo("postgres"), &["--group", "g"]);
    let publisher = cluster.client("postgres").await;
    publisher.batch_execute("SET synchronous_commit = on").await.expect("a session");
    let publishing = tokio::spawn(async move {
        let sql =
            "BEGIN; SELECT postbox.set_emit('orders', true); SELECT postbox.emit('orders', 'first', '{}'); COMMIT";
        publisher.batch_execute(sql).await
    });
    // The consumer has been told what it was before.
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '_outbox_shape|_emitter|pg_visible_in_snapshot' AND pid <> pg_backend_pid()";
    wait_until("it is asked about", PATIENCE, || (psql(asked) == "1").then_some(()));
    wait_until("it has answered", PATIENCE, || (psql(&format!("{asked} AND state = 'idle'")) == "1").then_some(()));
    assert_eq!(psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), "1");
    psql("ALTER SYSTEM SET synchronous_standby_names = ''");
    psql("SELECT pg_reload_conf()");
    publishing.await.expect("the publisher").expect("the commit");
    psql("INSERT INTO orders (type, payload) VALUES ('second', '{}')");
    run.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_type == "second"));
    let ended = run.terminate(PATIENCE);
    let types = ended.lines.iter().map(|line| line.event_type.as_str()).collect::<Vec<_>>();
    assert_eq!(types, ["first", "second"], "{}", ended.log);
}

/// What the consumer has been told does not hold for what comes later.
#[test]
fn a_message_right_behind_one_that_was_none_is_an_event() {
    let cluster = start();
    let psql = |sql: &str| cluster.psql("postgres", sql);
    psql("SELECT postbox.create_outbox('orders')");
    psql("SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')");
    let mut run = Run::start(&cluster.conninfo("postgres"), &["--group", "g"]);
    psql("INSERT INTO orders (type, payload) VALUES ('zero', '{}')");
    run.wait_for(1, PATIENCE);
    psql(
        "SELECT pg_logical_emit_message(true, 'postbox', format('{\"outbox\":%s,\"id\":\"00000000-0000-4000-8000-0000000000ab\",\"type\":\"none\"}', 'orders'::regclass::oid))",
    );
    psql("INSERT INTO orders (type, payload) VALUES ('first', '{}')");
    run.wait_for(2, PATIENCE);
    psql("SELECT postbox.set_emit('orders', true)");
    psql("SELECT postbox.emit('orders', 'second', '{}')");
    psql("INSERT INTO orders (type, payload) VALUES ('third', '{}')");
    run.wait_until("the last event", PATIENCE, |lines| lines.iter().any(|line| line.event_type == "third"));
    let ended = run.terminate(PATIENCE);
    let types = ended.lines.iter().map(|line| line.event_type.as_str()).collect::<Vec<_>>();
    assert_eq!(types, ["zero", "first", "second", "third"], "{}", ended.log);
}
