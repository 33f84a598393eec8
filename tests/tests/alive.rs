//! The consumer stays alive: through restarts, broken and silent links, stalled readers, and other consumers.

use std::time::{Duration, Instant};

use postbox_tests::{Cluster, Proxy, Run, Stop, wait_until, wait_until_async};
use rustix::process::Signal;

use crate::delivery::MEMORY_LIMIT_KIB;
use crate::shop::{PATIENCE, SLOT, Shop, Writers, assert_delivered, lsn, wait_for_more, wait_until_confirmed};

/// `wal_sender_timeout` of the tests that wait for it.
const SENDER_TIMEOUT: &str = "2s";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_is_lived_through() {
    let shop = Shop::open();
    let run = shop.run(&[]);
    disturb(&shop, run, 2, |_| shop.cluster.restart(Stop::Fast)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_walsender_is_replaced() {
    let shop = Shop::open();
    let run = shop.run(&[]);
    disturb(&shop, run, 5, |_| {
        let pid = shop.walsender();
        assert_eq!(shop.psql(&format!("SELECT pg_terminate_backend({pid})")), "t");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_is_replaced() {
    let shop = Shop::open();
    let proxy = Proxy::to(shop.cluster.port());
    let run = run_through(&proxy);
    disturb(&shop, run, 5, |_| proxy.cut()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_swallows_everything_is_noticed_and_replaced() {
    let shop = Shop::open_with(Cluster::builder().setting("wal_sender_timeout", SENDER_TIMEOUT));
    let proxy = Proxy::to(shop.cluster.port());
    let run = run_through(&proxy);
    disturb(&shop, run, 2, |round| {
        let (before, begin) = (proxy.links(), Instant::now());
        proxy.swallow();
        if round == 0 {
            proxy.reopen();
        }
        wait_until("the consumer opens another link", PATIENCE, || (proxy.links() > before).then_some(()));
        let noticed = begin.elapsed();
        if round == 1 {
            // The first attempt found a link that swallows everything too.
            wait_until("the consumer opens one more", PATIENCE, || (proxy.links() > before + 1).then_some(()));
            proxy.reopen();
        }
        println!("the dead link was noticed after {noticed:?}");
        assert!(noticed < Duration::from_secs(10), "the dead link was noticed after {noticed:?}");
    })
    .await;
}

/// Disturbs the stream so many times while writers write; the consumer has to come back by itself, with nothing lost
/// and in order.
async fn disturb(shop: &Shop, mut run: Run, times: usize, how: impl Fn(usize)) {
    let writers = Writers::start(shop, 4, Duration::from_millis(10));
    for round in 0..times {
        wait_for_more(&mut run, 50);
        tokio::task::block_in_place(|| how(round));
        run.wait_for_log("connected again", round + 1, PATIENCE);
    }
    wait_for_more(&mut run, 50);
    writers.stop().await;
    shop.psql("INSERT INTO orders (type, payload) VALUES ('last', '{}')");
    run.wait_until("the last event", PATIENCE, |lines| lines.last().is_some_and(|line| line.event_type == "last"));
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let committed = shop.committed();
    let again = assert_delivered(&ended.lines, &committed);
    println!("{times} disturbances, {} events, {again} came again", committed.len());
    assert_eq!(shop.drain(), [], "came again although it was confirmed");
}

fn run_through(proxy: &Proxy) -> Run {
    let port = proxy.port();
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=2");
    Run::start(&conninfo, &["--slot", SLOT])
}

#[test]
fn a_link_that_stalls_for_a_moment_is_kept() {
    let shop = Shop::open_with(Cluster::builder().setting("wal_sender_timeout", "10s"));
    let proxy = Proxy::to(shop.cluster.port());
    let mut run = run_through(&proxy);
    shop.publish(10, 100);
    run.wait_for(10, PATIENCE);
    let walsender = shop.walsender();
    proxy.stall();
    shop.publish(100, 100);
    assert_eq!(run.count(), 10);
    proxy.resume();
    run.wait_for(110, PATIENCE);
    assert_eq!(shop.walsender(), walsender);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn a_reader_that_stalls_longer_than_wal_sender_timeout_costs_neither_connection_nor_memory() {
    let shop = Shop::open_with(Cluster::builder().setting("wal_sender_timeout", SENDER_TIMEOUT));
    let mut run = shop.run_held(&[]);
    let walsender = shop.walsender();
    // Far more than the queue and all buffers on the way hold.
    for _ in 0..15 {
        shop.publish(10_000, 500);
    }
    shop.wait_until_stuck();
    let now = shop.psql("SELECT clock_timestamp()");
    let alive =
        format!("SELECT count(*) FROM pg_stat_replication WHERE reply_time > timestamptz '{now}' + interval '5 s'");
    wait_until("a report 5 s later", PATIENCE, || (shop.psql(&alive) == "1").then_some(()));
    assert_eq!(run.count(), 0);
    run.release();
    run.wait_for(150_000, PATIENCE);
    assert_eq!(shop.walsender(), walsender, "the connection was lost");
    let peak = run.peak_kib();
    println!("the consumer's memory peaked at {peak} KiB");
    assert!(peak > 0 && peak < MEMORY_LIMIT_KIB, "the consumer's memory peaked at {peak} KiB");
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(assert_delivered(&ended.lines, &shop.committed()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_slot_advances_while_other_tables_are_busy() {
    let shop = Shop::open();
    let client = shop.client().await;
    let run = shop.run(&[]);
    shop.walsender();
    let restart = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'shop'";
    for _ in 0..3 {
        let busy = "INSERT INTO other SELECT generate_series(1, 20000)";
        shop.psql(busy);
        let end = lsn(&shop.psql("SELECT pg_current_wal_flush_lsn()"));
        wait_until_confirmed(&client, end, Duration::from_secs(10)).await;
        // A checkpoint logs which transactions run: from there decoding could start.
        shop.psql("CHECKPOINT");
        shop.psql(busy);
        wait_until_async("the slot needs no WAL from before the checkpoint", PATIENCE, async || {
            // The position is taken at the first confirmation behind it, which may be that of the next heartbeat.
            (lsn(&shop.psql(restart)) >= end).then_some(())
        })
        .await;
    }
    let ended = run.terminate(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 0), "{}", ended.log);
}

#[test]
fn a_fast_shutdown_of_the_server_does_not_wait_for_an_idle_consumer() {
    let shop = Shop::open();
    let mut run = shop.run(&[]);
    for round in 0..3 {
        shop.publish(100, 100);
        run.wait_for(100 * (round + 1), PATIENCE);
        shop.psql("INSERT INTO other SELECT generate_series(1, 1000)");
        let begin = Instant::now();
        shop.cluster.stop(Stop::Fast);
        let took = begin.elapsed();
        println!("the shutdown took {took:?}");
        assert!(took < Duration::from_secs(5), "the shutdown took {took:?}");
        shop.cluster.start_again();
        run.wait_for_log("connected again", round + 1, PATIENCE);
    }
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

/// The server waits for what its consumers have not confirmed, as long as it hears from them.
#[test]
fn a_fast_shutdown_of_the_server_does_not_wait_for_a_stuck_reader() {
    // With the first amount the server has sent everything, with the second it cannot.
    for events in [2_000, 100_000] {
        let shop = Shop::open_with(Cluster::builder().setting("wal_sender_timeout", SENDER_TIMEOUT));
        let mut run = shop.run_held(&[]);
        shop.walsender();
        shop.publish(events, 500);
        wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
        if events == 100_000 {
            shop.wait_until_stuck();
        }
        let begin = Instant::now();
        shop.cluster.stop(Stop::Fast);
        let took = begin.elapsed();
        println!("with {events} events the shutdown took {took:?}");
        assert!(took < Duration::from_secs(10), "the shutdown took {took:?}");
        shop.cluster.start_again();
        run.wait_for_log("connected again", 1, PATIENCE);
        run.release();
        run.wait_until("the last event", PATIENCE, |lines| {
            lines.last().is_some_and(|line| line.ordinal == events as u64 - 1)
        });
        let ended = run.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert_delivered(&ended.lines, &shop.committed());
        assert_eq!(shop.drain(), []);
    }
}

#[test]
fn idle_is_not_what_a_server_is_that_restarts() {
    let shop = Shop::open();
    let mut run = shop.run(&["--exit-when-idle", "2s"]);
    run.wait_until("it runs", PATIENCE, |_| shop.walsender() > 0);
    shop.cluster.stop(Stop::Fast);
    // Long enough to ask whether anything is left.
    run.wait_for_log("cannot ask", 2, PATIENCE);
    run.wait_for_log("cannot connect yet", 1, PATIENCE);
    shop.cluster.start_again();
    shop.publish(10, 100);
    let ended = run.end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 10), "{}", ended.log);
}

#[test]
fn a_signal_ends_a_consumer_that_has_no_server() {
    let shop = Shop::open();
    let mut run = shop.run(&[]);
    shop.publish(10, 100);
    run.wait_for(10, PATIENCE);
    shop.cluster.stop(Stop::Fast);
    run.wait_for_log("cannot connect yet", 1, PATIENCE);
    let begin = Instant::now();
    let ended = run.terminate(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(3), 10), "{}", ended.log);
    assert!(begin.elapsed() < Duration::from_secs(3), "took {:?}", begin.elapsed());
}

#[test]
fn a_signal_ends_a_consumer_whose_new_link_is_silent() {
    let shop = Shop::open_with(Cluster::builder().setting("wal_sender_timeout", SENDER_TIMEOUT));
    let proxy = Proxy::to(shop.cluster.port());
    let run = run_through(&proxy);
    shop.walsender();
    let before = proxy.links();
    proxy.swallow();
    proxy.cut();
    wait_until("the consumer opens another link", PATIENCE, || (proxy.links() > before).then_some(()));
    let begin = Instant::now();
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert!(begin.elapsed() < Duration::from_secs(3), "took {:?}", begin.elapsed());
}

#[test]
fn a_second_signal_ends_a_consumer_whose_reader_is_stuck() {
    let shop = Shop::open();
    let mut run = shop.run_held(&[]);
    shop.publish(1_000, 1_000);
    wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
    run.signal(Signal::TERM);
    run.wait_for_log("stopping", 1, PATIENCE);
    let begin = Instant::now();
    let ended = run.insist(PATIENCE);
    assert_eq!(ended.code, Some(130), "{}", ended.log);
    assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
    let rest = shop.drain();
    assert_delivered(&[ended.lines, rest].concat(), &shop.committed());
}

#[test]
fn a_second_consumer_waits_and_names_the_first() {
    let shop = Shop::open();
    let first = shop.run(&[]);
    let pid = shop.walsender();
    let begin = Instant::now();
    let second = shop.run(&["--slot-wait", "1s"]).end(PATIENCE);
    let waited = begin.elapsed();
    assert_eq!((second.code, second.lines.len()), (Some(4), 0), "{}", second.log);
    assert!(waited > Duration::from_secs(1) && waited < Duration::from_secs(10), "waited {waited:?}");
    let says =
        format!("postbox: replication slot \"{SLOT}\" is in use by process {pid}, application \"postbox {SLOT}\"");
    assert!(second.log.contains(&says), "{}", second.log);
    assert_eq!(first.terminate(PATIENCE).code, Some(0));
}

#[test]
fn a_signal_ends_a_consumer_that_waits_for_the_slot() {
    let shop = Shop::open();
    let first = shop.run(&[]);
    shop.walsender();
    let mut second = shop.run(&["--slot-wait", "1h"]);
    second.wait_for_log("waiting for the slot", 1, PATIENCE);
    let begin = Instant::now();
    let second = second.terminate(PATIENCE);
    assert_eq!((second.code, second.lines.len()), (Some(0), 0), "{}", second.log);
    assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
    assert_eq!(first.terminate(PATIENCE).code, Some(0));
}

#[test]
fn a_waiting_consumer_takes_over_when_the_first_is_killed() {
    let shop = Shop::open();
    let mut first = shop.run(&[]);
    shop.publish(10, 100);
    first.wait_for(10, PATIENCE);
    let mut second = shop.run(&["--slot-wait", "1h"]);
    second.wait_for_log("waiting for the slot", 1, PATIENCE);
    let killed = first.kill();
    shop.publish(10, 100);
    second.wait_until("the last event", PATIENCE, |lines| {
        let mut ids: Vec<_> = killed.lines.iter().chain(lines).map(|line| line.event_id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len() == 20
    });
    let ended = second.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_delivered(&[killed.lines, ended.lines].concat(), &shop.committed());
}
