//! The harness itself: what the other tests take for granted.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use postbox_tests::{Cluster, Stop, knows_output_plugin_libraries, major, wait_until, wait_until_async};

#[tokio::test]
async fn a_cluster_starts_with_logical_wal_and_answers_over_socket_and_tcp() {
    let cluster = Cluster::builder().setting("cluster_name", "it's quoted").start();
    assert_eq!(cluster.psql("postgres", "SHOW wal_level; SHOW cluster_name"), "logical\nit's quoted");
    let client = cluster.client("postgres").await;
    let number: String = client.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    assert_eq!(number.parse::<u32>().unwrap() / 10_000, major());
    let port =
        cluster.psql("postgres", &format!("\\c '{}'\nSELECT inet_server_port()", cluster.tcp_conninfo("postgres")));
    assert_eq!(port, cluster.port().to_string());
}

/// The tests for servers that ask which plugins they may load, and for those that do not, run on the right ones.
#[test]
fn minor_releases_since_august_2026_ask_which_plugins_they_may_load() {
    let number = Cluster::start().psql("postgres", "SHOW server_version_num").parse::<u32>().unwrap();
    let since = match number / 10_000 {
        14 => 24,
        15 => 19,
        16 => 15,
        17 => 11,
        _ => 6,
    };
    assert_eq!(knows_output_plugin_libraries(), number % 10_000 >= since, "{number}");
}

#[test]
fn an_immediate_stop_loses_no_commit_and_needs_recovery() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE TABLE t AS SELECT 1 AS n; BEGIN; INSERT INTO t VALUES (2); COMMIT;");
    let port = cluster.port();
    cluster.restart(Stop::Immediate);
    assert_eq!(cluster.port(), port);
    assert_eq!(cluster.psql("postgres", "SELECT sum(n) FROM t"), "3");
    assert!(cluster.log().contains("automatic recovery in progress"), "{}", cluster.log());
    cluster.restart(Stop::Fast);
    cluster.restart(Stop::Smart);
    assert_eq!(cluster.log().matches("automatic recovery in progress").count(), 1);
}

#[test]
fn psql_reports_the_first_error_and_stops_there() {
    let cluster = Cluster::start();
    let error = cluster.psql_result("postgres", "CREATE TABLE t (); SELECT 1/0; CREATE TABLE u ();").unwrap_err();
    assert!(error.contains("division by zero"), "{error}");
    assert_eq!(cluster.psql("postgres", "SELECT relname FROM pg_class WHERE relname IN ('t', 'u')"), "t");
    let many = cluster.psql("postgres", &"SELECT repeat('x', 1000);\n".repeat(1000));
    assert_eq!(many.lines().count(), 1000);
}

#[test]
fn hba_lines_come_before_those_that_trust() {
    let cluster = Cluster::builder().hba("host all refused 127.0.0.1/32 reject").start();
    cluster.psql("postgres", "CREATE ROLE refused LOGIN");
    let connect = format!("\\c '{}'", cluster.tcp_conninfo("postgres").replace("user=postgres", "user=refused"));
    let error = cluster.psql_result("postgres", &connect).unwrap_err();
    assert!(error.contains("rejects connection"), "{error}");
}

#[test]
fn files_are_the_servers_own() {
    let cluster = Cluster::builder().file("greeting", "good day").start();
    assert_eq!(cluster.psql("postgres", "SELECT pg_read_file('greeting')"), "good day");
}

#[test]
fn a_dropped_cluster_leaves_no_process_and_no_file() {
    let cluster = Cluster::start();
    let (pid, dir) = (cluster.pid(), cluster.socket_dir().to_owned());
    assert!(fs::exists(format!("/proc/{pid}")).unwrap());
    drop(cluster);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    assert!(!dir.exists());
}

#[test]
fn a_killed_process_leaves_no_server_and_no_file() {
    const VICTIM: &str = "POSTBOX_VICTIM";
    if env::var_os(VICTIM).is_some() {
        let cluster = Cluster::start();
        println!("cluster {}", cluster.socket_dir().display());
        loop {
            thread::park();
        }
    }
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "harness::a_killed_process_leaves_no_server_and_no_file", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The test runner may have printed on the same line.
    let line = lines.into_iter().find(|line| line.contains("cluster /")).expect("the victim starts a cluster");
    let dir = Path::new(line.split_once("cluster ").unwrap().1).to_owned();
    let pidfile = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap();
    let pid: u32 = pidfile.lines().next().unwrap().parse().unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("the directory is gone", Duration::from_secs(30), || (!dir.parent()?.exists()).then_some(()));
    // A process that nobody has waited for yet has no command line any more.
    let gone = || fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty().then_some(());
    wait_until("the server is gone", Duration::from_secs(30), gone);
}

#[test]
fn a_kept_cluster_outlives_its_value() {
    let cluster = Cluster::start();
    let (pid, psql, conninfo) = (cluster.pid(), cluster.bin("psql"), cluster.conninfo("postgres"));
    let dir = cluster.keep();
    let answer = Command::new(psql).args(["-XAtc", "SELECT 42", &conninfo]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "42\n");
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::INT).unwrap();
    let pidfile = dir.join("data/postmaster.pid");
    wait_until("the server is gone", Duration::from_secs(30), || (!pidfile.exists()).then_some(()));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn servers_do_not_inherit_the_environment() {
    let cluster = Cluster::start();
    let environment = fs::read(format!("/proc/{}/environ", cluster.pid())).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("LC_ALL=C.UTF-8"), "{environment}");
    for name in ["RUST_BACKTRACE", "HOME", "CARGO"] {
        assert!(!environment.contains(name), "{name} in {environment}");
    }
}

#[test]
#[should_panic(expected = "in vain: the impossible")]
fn waiting_in_vain_names_the_fact() {
    wait_until("the impossible", Duration::from_millis(20), || None::<()>);
}

#[tokio::test]
async fn an_asynchronous_fact_is_waited_for() {
    let cluster = Cluster::start();
    let client = cluster.client("postgres").await;
    let mut asked = 0;
    let answer: i32 = wait_until_async("three questions", Duration::from_secs(10), async || {
        asked += 1;
        let row = client.query_one("SELECT 42", &[]).await.ok()?;
        (asked == 3).then(|| row.get(0))
    })
    .await;
    assert_eq!((answer, asked), (42, 3));
}
