//! `postbox maintain`, and who else maintains.

use std::process::{Command, Stdio};
use std::time::Duration;

use postbox_tests::{Cluster, Run, postbox_binary, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;
use tokio_postgres::Transaction;

use crate::docs::Running;

fn postbox(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(postbox_binary());
    command.env_clear().args(["-d", &cluster.conninfo("postgres")]).args(arguments);
    command
}

fn with_full_leaf() -> Cluster {
    let cluster = Cluster::with_postbox();
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('orders', generation_rows => 1024);
         SELECT postbox.set_retention('orders', '0');
         INSERT INTO orders (type, payload) SELECT 't', '{}' FROM generate_series(1, 2500)",
    );
    cluster
}

#[test]
fn once_does_all_there_is_to_do_and_says_what() {
    let cluster = with_full_leaf();
    let output = postbox(&cluster, &["maintain", "--once"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for leaf in ["public.orders_g0 with 1023 rows", "public.orders_g1 with 1024 rows"] {
        assert!(
            text.lines().any(|line| line.starts_with("retention  public.orders  emptied") && line.ends_with(leaf)),
            "{text}"
        );
    }
    let output = postbox(&cluster, &["maintain", "--once"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("recent"));

    cluster.psql("postgres", "DROP EXTENSION postbox");
    let output = postbox(&cluster, &["maintain", "--once"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("CREATE EXTENSION postbox"));
}

/// Retention has something to do, and somebody who delivers does it.
fn maintained_by(cluster: &Cluster, application: &str) {
    let emptied = "SELECT NOT EXISTS (SELECT FROM orders_g0), (SELECT application FROM postbox.maintenance)";
    let expected = format!("t|{application}");
    wait_until("the old leaf is empty", Duration::from_secs(60), || {
        (cluster.psql("postgres", emptied) == expected).then_some(())
    });
}

#[test]
fn whoever_runs_maintains_with_a_group_or_a_slot() {
    for source in ["--group", "--slot"] {
        let cluster = with_full_leaf();
        cluster.psql("postgres", "SELECT pg_create_logical_replication_slot('by_hand', 'postbox')");
        cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
        let name = if source == "--group" { "g" } else { "by_hand" };
        let run = Run::start(&cluster.conninfo("postgres"), &[source, name]);
        maintained_by(&cluster, "postbox");
        assert_eq!(run.terminate(Duration::from_secs(30)).code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_a_consumer_of_the_library() {
    let cluster = with_full_leaf();
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
    let events = postbox::Consumer::builder(cluster.conninfo("postgres")).group("g").connect().await.expect("a member");
    tokio::task::block_in_place(|| maintained_by(&cluster, "postbox"));
    events.close().await.expect("in order");
}

#[test]
fn so_do_whoever_serves_and_whoever_works_on_an_inbox() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("FILE");
    std::fs::write(&file, "[[run]]\ngroup = 'g'\n").unwrap();
    for arguments in [&["serve", file.to_str().unwrap()][..], &["inbox", "work", "box", "--exec", "true"]] {
        let cluster = with_full_leaf();
        cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{orders}')");
        cluster.psql("postgres", "SELECT postbox.create_inbox('box')");
        let mut running = Running(postbox(&cluster, arguments).spawn().unwrap());
        maintained_by(&cluster, "postbox");
        kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
        let ended = wait_until("it has ended", Duration::from_secs(30), || running.0.try_wait().unwrap());
        assert_eq!(ended.code(), Some(0), "{arguments:?}");
    }
}

/// Of an inbox in which nothing is.
struct Idle;

impl postbox::InboxHandler for Idle {
    async fn handle(&self, _: &postbox::InboxMessage, _: &Transaction<'_>) -> Result<(), postbox::Failure> {
        unreachable!("no message was sent")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_a_worker_of_the_library() {
    let cluster = with_full_leaf();
    cluster.psql("postgres", "SELECT postbox.create_inbox('box')");
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = postbox::InboxWorker::new(cluster.conninfo("postgres"), "box");
    let worker = tokio::spawn(worker.run(Idle, async { drop(stopped.await) }));
    tokio::task::block_in_place(|| maintained_by(&cluster, "postbox"));
    drop(stop);
    assert_eq!(worker.await.unwrap().expect("in order"), 0);
}

#[test]
fn it_goes_on_until_it_is_told_to_stop_and_over_a_broken_link() {
    let cluster = with_full_leaf();
    let mut running = Running(postbox(&cluster, &["maintain"]).stderr(Stdio::null()).spawn().unwrap());
    let runs = || cluster.psql("postgres", "SELECT last_run FROM postbox.maintenance_status");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postbox' AND state = 'idle' AND query LIKE '%postbox.maintain%'
        AND state_change < clock_timestamp() - interval '1 second'";
    wait_until("it waits", Duration::from_secs(30), || (cluster.psql("postgres", idle) == "1").then_some(()));
    cluster.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%postbox.maintain%' AND pid <> pg_backend_pid()");
    let first = runs();
    cluster.psql("postgres", "INSERT INTO orders (type, payload) VALUES ('t', '{}')");
    wait_until("it has run again", Duration::from_secs(60), || (runs() != first).then_some(()));
    kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
    let ended = wait_until("it has ended", Duration::from_secs(10), || running.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
}
