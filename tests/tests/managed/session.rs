//! The session beside the stream, which is asked what tables mean.

use postbox_tests::{Run, wait_until};
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
