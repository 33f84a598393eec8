//! Where delivery stops: at a number of events, at a position, when nothing is left, when told to.

use std::time::Duration;

use postbox_tests::{Line, wait_until};
use rustix::process::Signal;

use crate::shop::{PATIENCE, Shop, Writers, assert_delivered, insert, lsn};

#[test]
fn max_events_prints_so_many_and_confirms_whole_transactions() {
    let shop = Shop::open();
    for _ in 0..3 {
        shop.publish(5, 10);
    }
    let first = shop.run(&["--max-events", "7"]).end(PATIENCE);
    assert_eq!((first.code, first.lines.len()), (Some(0), 7), "{}", first.log);
    let confirmed = shop.confirmed_at_rest();
    assert!(confirmed > first.lines[4].commit_lsn && confirmed <= first.lines[5].commit_lsn, "{confirmed}");
    let second = shop.run(&["--max-events", "10"]).end(PATIENCE);
    assert_eq!((second.code, second.lines.len()), (Some(0), 10), "{}", second.log);
    assert_eq!(second.lines[..2], first.lines[5..], "the transaction that was cut comes again from its start");
    assert_eq!(shop.drain(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_lsn_prints_what_committed_below_and_nothing_above() {
    let shop = Shop::open();
    let (across, above) = (shop.client().await, shop.client().await);
    shop.publish(3, 10);
    across.batch_execute(&format!("BEGIN; {}", insert(1, 10))).await.expect("begun");
    shop.publish(2, 10);
    let end = shop.psql("SELECT pg_current_wal_insert_lsn()");
    across.batch_execute("COMMIT").await.expect("committed");
    above.batch_execute(&insert(4, 10)).await.expect("published");

    for expected in [5, 0] {
        let ended = shop.run(&["--until-lsn", &end]).end(PATIENCE);
        assert_eq!((ended.code, ended.lines.len()), (Some(0), expected), "{}", ended.log);
        assert!(ended.lines.iter().all(|line| line.commit_lsn < lsn(&end)));
        assert!(shop.confirmed_at_rest() <= lsn(&end), "positions above the end were confirmed");
    }
    let ordinals: Vec<u64> = shop.drain().iter().map(|line| line.ordinal).collect();
    assert_eq!(ordinals, [0, 0, 1, 2, 3], "the transaction that committed above, and the one behind it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_when_idle_ends_while_other_tables_are_busy() {
    let shop = Shop::open();
    shop.publish(2_000, 100);
    let busy = shop.client().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let working = tokio::spawn(async move {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            busy.batch_execute("INSERT INTO other SELECT generate_series(1, 10)").await.expect("inserted");
        }
    });
    let ended = tokio::task::block_in_place(|| shop.run(&["--exit-when-idle", "300ms"]).end(PATIENCE));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    working.await.expect("the other work");
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 2_000), "{}", ended.log);
    assert_eq!(shop.drain(), []);
}

#[test]
fn sigterm_finishes_the_transaction_that_was_begun_and_confirms_it() {
    const EVENTS: usize = 5_000;
    let shop = Shop::open();
    for _ in 0..20 {
        shop.publish(EVENTS, 100);
    }
    let mut all: Vec<Line> = Vec::new();
    for round in 0..8 {
        // The pipe takes a small part of a transaction, so the signal comes in the middle of one.
        let mut run = shop.run_held(&[]);
        wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
        run.signal(Signal::TERM);
        run.wait_for_log("stopping", 1, PATIENCE);
        run.release();
        let ended = run.end(PATIENCE);
        assert_eq!((ended.code, ended.torn.as_str()), (Some(0), ""), "{}", ended.log);
        assert_eq!(ended.lines.len(), EVENTS, "the transaction that was begun in round {round}, and no other");
        let confirmed = shop.confirmed_at_rest();
        let open = ended.lines.iter().find(|line| line.commit_lsn >= confirmed);
        assert_eq!(open, None, "printed in round {round} and not confirmed: {confirmed} is");
        all.extend(ended.lines);
    }
    all.extend(shop.drain());
    assert_eq!(assert_delivered(&all, &shop.committed()), 0, "came again although it was confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_on_a_busy_stream_leaves_nothing_unconfirmed() {
    let shop = Shop::open();
    let writers = Writers::start(&shop, 4, Duration::from_millis(4));
    let mut all: Vec<Line> = Vec::new();
    for round in 0..10 {
        let mut run = shop.run(&[]);
        run.wait_for(20 + 10 * round, PATIENCE);
        let ended = run.terminate(PATIENCE);
        assert_eq!((ended.code, ended.torn.as_str()), (Some(0), ""), "{}", ended.log);
        let confirmed = shop.confirmed_at_rest();
        let open = ended.lines.iter().find(|line| line.commit_lsn >= confirmed);
        assert_eq!(open, None, "printed in round {round} and not confirmed: {confirmed} is");
        all.extend(ended.lines);
    }
    writers.stop().await;
    all.extend(shop.drain());
    assert_eq!(assert_delivered(&all, &shop.committed()), 0, "came again although it was confirmed");
}

#[test]
fn a_signal_without_anything_to_do_ends_the_process_at_once() {
    let shop = Shop::open();
    shop.publish(3, 10);
    let mut run = shop.run(&[]);
    run.wait_for(3, PATIENCE);
    let begin = std::time::Instant::now();
    let ended = run.terminate(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 3), "{}", ended.log);
    assert!(begin.elapsed() < Duration::from_secs(3), "took {:?}", begin.elapsed());
    assert_eq!(shop.drain(), []);
}
