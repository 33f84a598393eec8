//! A stream from a slot of test_decoding: what comes, what is confirmed, and how it ends.

use bytes::Bytes;
use postbox::transport::{CopyBoth, Received, Status, connect_sql};
use postbox::{ErrorKind, Lsn};
use postbox_tests::{Cluster, Stop, wait_until};
use tokio::time::timeout;

use super::{SOON, create_slot, info, lsn, replication};

async fn start(cluster: &Cluster, slot: &str) -> CopyBoth {
    let options = [("include-xids", "off".to_owned()), ("skip-empty-xacts", "on".to_owned())];
    let replication = replication(&cluster.conninfo("postgres")).await.expect("connected");
    replication.start(slot, &options).await.expect("started")
}

async fn recv(stream: &mut CopyBoth) -> Received {
    timeout(SOON, stream.recv()).await.expect("something arrives").expect("it is no error")
}

/// What the plugin writes next, keepalives left aside.
async fn data(stream: &mut CopyBoth) -> Bytes {
    loop {
        if let Received::Data(data) = recv(stream).await {
            return data;
        }
    }
}

fn status(at: Lsn, reply_requested: bool) -> Status {
    Status { received: at, flushed: at, reply_requested }
}

fn confirmed(cluster: &Cluster, slot: &str) -> Lsn {
    lsn(&cluster
        .psql("postgres", &format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")))
}

fn current_lsn(cluster: &Cluster) -> Lsn {
    lsn(&cluster.psql("postgres", "SELECT pg_current_wal_lsn()"))
}

#[tokio::test]
async fn what_is_committed_arrives_and_exactly_what_is_reported_is_confirmed() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE TABLE t(i int, s text)");
    create_slot(&cluster, "s");
    cluster.psql("postgres", "INSERT INTO t VALUES (1, 'first')");
    let first = current_lsn(&cluster);

    let mut stream = start(&cluster, "s").await;
    assert_eq!(data(&mut stream).await, "BEGIN");
    assert_eq!(data(&mut stream).await, "table public.t: INSERT: i[integer]:1 s[text]:'first'");
    assert_eq!(data(&mut stream).await, "COMMIT");

    cluster.psql("postgres", "INSERT INTO t VALUES (2, 'second')");
    assert_eq!(data(&mut stream).await, "BEGIN");
    assert!(data(&mut stream).await.ends_with(b"'second'"));
    assert_eq!(data(&mut stream).await, "COMMIT");

    // Received is ahead of flushed, and only flushed counts.
    let ahead = Status { received: current_lsn(&cluster), flushed: first, reply_requested: false };
    stream.send_status(ahead).await.expect("sent");
    stream.finish().await.expect("finished");
    assert_eq!(confirmed(&cluster, "s"), first);
    assert_eq!(cluster.psql("postgres", "SELECT active FROM pg_replication_slots"), "f");

    // The slot is free at once, and what was not confirmed comes again.
    let mut stream = start(&cluster, "s").await;
    assert_eq!(data(&mut stream).await, "BEGIN");
    assert!(data(&mut stream).await.ends_with(b"'second'"));
    assert_eq!(data(&mut stream).await, "COMMIT");
    let second = current_lsn(&cluster);
    stream.send_status(status(second, false)).await.expect("sent");
    stream.finish().await.expect("finished");
    assert_eq!(confirmed(&cluster, "s"), second);
}

#[tokio::test]
async fn answers_keep_the_link_that_the_server_would_give_up() {
    let cluster = Cluster::builder().setting("wal_sender_timeout", "2s").start();
    cluster.psql("postgres", "CREATE TABLE t(i int)");
    create_slot(&cluster, "s");
    let at = current_lsn(&cluster);
    let mut stream = start(&cluster, "s").await;
    // It asks when half of the time has passed in silence.
    let mut asked = 0;
    while asked < 3 {
        if let Received::Keepalive { wal_end, reply_requested: true } = recv(&mut stream).await {
            assert!(wal_end >= at, "{wal_end} is behind {at}");
            stream.send_status(status(wal_end, false)).await.expect("sent");
            asked += 1;
        }
    }
    cluster.psql("postgres", "INSERT INTO t VALUES (1)");
    assert_eq!(data(&mut stream).await, "BEGIN");

    // Whoever does not answer loses the link, and may come again.
    let error = error_of(&mut stream).await;
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn a_keepalive_comes_when_it_is_asked_for() {
    let cluster = Cluster::builder().setting("wal_sender_timeout", "0").start();
    create_slot(&cluster, "s");
    let at = current_lsn(&cluster);
    let mut stream = start(&cluster, "s").await;
    // More often than the server has reasons of its own.
    for _ in 0..10 {
        stream.send_status(status(at, true)).await.expect("sent");
        assert!(matches!(recv(&mut stream).await, Received::Keepalive { reply_requested: false, .. }));
    }
}

#[tokio::test]
async fn a_message_of_many_megabytes_arrives_whole() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE TABLE t(i int, s text)");
    create_slot(&cluster, "s");
    cluster.psql("postgres", "INSERT INTO t VALUES (1, repeat('0123456789', 5000000)), (2, 'after')");
    let mut stream = start(&cluster, "s").await;
    assert_eq!(data(&mut stream).await, "BEGIN");
    let large = data(&mut stream).await;
    let (digits, quote) = large[large.len() - 50_000_001..].split_at(50_000_000);
    assert!(digits.chunks(10).all(|ten| ten == b"0123456789") && quote == b"'");
    assert!(data(&mut stream).await.ends_with(b"'after'"));
}

#[tokio::test]
async fn a_terminated_backend_is_worth_another_try() {
    let cluster = Cluster::start();
    create_slot(&cluster, "s");
    let mut stream = start(&cluster, "s").await;
    cluster.psql("postgres", "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
    let error = error_of(&mut stream).await;
    assert_eq!((error.sqlstate(), error.is_transient()), (Some("57P01"), true), "{error:?}");

    // The slot is free as soon as the server process is gone.
    wait_until("the slot is free", SOON, || {
        (cluster.psql("postgres", "SELECT active FROM pg_replication_slots") == "f").then_some(())
    });
    start(&cluster, "s").await.finish().await.expect("finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_is_worth_another_try() {
    let cluster = Cluster::start();
    create_slot(&cluster, "s");
    let sql = connect_sql(&info(&cluster.conninfo("postgres"))).await.expect("connected");

    let mut stream = start(&cluster, "s").await;
    cluster.stop(Stop::Immediate);
    let error = error_of(&mut stream).await;
    assert!(error.is_transient(), "{error:?}");
    assert!(stream.send_status(status(Lsn(1), false)).await.and(stream.finish().await).is_err());
    let error: postbox::Error = sql.query("SELECT 1", &[]).await.expect_err("the server is gone").into();
    assert!(error.is_transient(), "{error:?}");

    cluster.start_again();
    let mut stream = start(&cluster, "s").await;
    // A fast stop waits until the client has confirmed what it was sent; a client that answers does not hold it up.
    let stopped = std::thread::scope(|scope| {
        let stop = scope.spawn(|| cluster.stop(Stop::Fast));
        let error = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                loop {
                    match timeout(SOON, stream.recv()).await.expect("something arrives") {
                        Ok(Received::Keepalive { wal_end, .. }) => {
                            // The end may overtake the answer.
                            let _ = stream.send_status(status(wal_end, false)).await;
                        }
                        Ok(Received::Data(_)) => {}
                        Err(error) => break error,
                    }
                }
            })
        });
        stop.join().expect("stopped");
        error
    });
    assert!(stopped.is_transient(), "{stopped:?}");
    assert!(matches!(stopped.kind(), ErrorKind::Server | ErrorKind::Connect), "{stopped:?}");
}

async fn error_of(stream: &mut CopyBoth) -> postbox::Error {
    loop {
        if let Err(error) = timeout(SOON, stream.recv()).await.expect("something arrives") {
            return error;
        }
    }
}
