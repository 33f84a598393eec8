//! What the binary says when something is wrong, and its exit codes.

use std::process::Command;

use postbox_tests::tap::{make_slot, prepare};
use postbox_tests::{Cluster, Stop, knows_output_plugin_libraries, postbox_binary, skip};

/// Exit code and standard error of the binary, run against a database.
fn run(conninfo: &str, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(postbox_binary())
        .args(arguments)
        .args(["-d", conninfo])
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.stdout.is_empty(), "nothing but events goes to the standard output: {output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Runs, and checks code and words.
fn expect(conninfo: &str, arguments: &[&str], code: i32, words: &[&str]) {
    let (found, stderr) = run(conninfo, arguments);
    assert_eq!(found, code, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{stderr:?} should say {word:?}");
    }
}

const READ: [&str; 5] = ["run", "--slot", "s", "--exit-when-idle", "100ms"];

#[test]
fn a_slot_that_is_missing_or_of_another_kind() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    let server = cluster.conninfo("postgres");
    expect(
        &server,
        &READ,
        4,
        &["\"s\" does not exist", "hint: ", "pg_create_logical_replication_slot('s', 'postbox')"],
    );
    make_slot(&cluster, "postgres", "right");
    expect(&server, &READ, 4, &["does not exist", "right"]);
    cluster.psql("postgres", "SELECT pg_create_logical_replication_slot('s', 'test_decoding')");
    expect(&server, &READ, 4, &["\"test_decoding\"", "not of \"postbox\""]);
    cluster.psql("postgres", "SELECT pg_drop_replication_slot('s'), pg_create_physical_replication_slot('s')");
    expect(&server, &READ, 4, &["physical"]);
    cluster.psql("postgres", "SELECT pg_drop_replication_slot('s')");
    cluster.psql("postgres", "CREATE DATABASE other");
    make_slot(&cluster, "other", "s");
    expect(&server, &READ, 4, &["belongs to database \"other\"", "dbname=other"]);
    expect(&server, &["run", "--group", "g"], 4, &["no consumer group \"g\"", "postbox group create g"]);
    expect(&server, &["group", "drop", "g"], 4, &["\"g\"", "does not exist"]);
}

#[test]
fn a_slot_that_has_been_invalidated() {
    let cluster = Cluster::builder()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("max_wal_size", "32MB")
        .with_postbox()
        .start();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    for _ in 0..6 {
        cluster.psql("postgres", "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 20000); DROP TABLE t; SELECT pg_switch_wal(); CHECKPOINT");
    }
    assert_eq!(cluster.psql("postgres", "SELECT wal_status FROM pg_replication_slots"), "lost");
    expect(&cluster.conninfo("postgres"), &READ, 4, &["invalidated", "hint: ", "pg_drop_replication_slot"]);
}

#[test]
fn a_server_whose_wal_level_is_too_low() {
    let cluster = Cluster::builder().setting("wal_level", "replica").with_postbox().start();
    prepare(&cluster, "postgres");
    let create = ["group", "create", "g", "--outbox", "fence"];
    expect(
        &cluster.conninfo("postgres"),
        &create,
        5,
        &["wal_level", "ALTER SYSTEM SET wal_level = logical", "restart"],
    );
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM postbox.consumer_groups"), "0");
}

#[test]
fn a_server_that_does_not_allow_the_plugin() {
    if !knows_output_plugin_libraries() {
        skip("this server takes every output plugin, as those before August 2026 did");
        return;
    }
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    cluster.psql("postgres", "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding");
    cluster.restart(Stop::Fast);
    let line = "ALTER ROLE \"postgres\" SET output_plugin_libraries = pgoutput, test_decoding, postbox;";
    let server = cluster.conninfo("postgres");
    for arguments in [&READ[..], &["group", "create", "g", "--outbox", "fence"]] {
        let (code, stderr) = run(&server, arguments);
        assert_eq!(code, 5, "{stderr}");
        assert!(
            stderr.replace("\"postgres\"", "postgres").contains(&line.replace("\"postgres\"", "postgres")),
            "{stderr}"
        );
    }
    cluster.psql("postgres", line);
    assert_eq!(run(&server, &READ).0, 0, "the line that is printed mends it");
}

#[test]
fn a_server_without_the_plugin_library() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    cluster.psql("postgres", "ALTER SYSTEM SET dynamic_library_path = '/nonexistent'");
    cluster.restart(Stop::Fast);
    let words = ["could not access file \"postbox\"", "make install PG_CONFIG="];
    expect(&cluster.conninfo("postgres"), &READ, 5, &words);
}

#[test]
fn a_role_without_the_replication_attribute() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    cluster.psql("postgres", "CREATE ROLE chief REPLICATION; CREATE ROLE \"Reader\" LOGIN IN ROLE chief");
    let server = cluster.conninfo("postgres").replace("user=postgres", "user=Reader");
    expect(&server, &READ, 5, &["\"Reader\"", "ALTER ROLE \"Reader\" REPLICATION;", "not inherited"]);
}

#[test]
fn logins_and_addresses_that_do_not_work() {
    let cluster = Cluster::builder()
        .hba("host all locked 127.0.0.1/32 scram-sha-256")
        .hba("host all banned 127.0.0.1/32 reject")
        .start();
    cluster.psql("postgres", "CREATE ROLE locked LOGIN REPLICATION PASSWORD 'right'; CREATE ROLE banned LOGIN");
    let server = cluster.tcp_conninfo("postgres");
    let locked = server.replace("user=postgres", "user=locked");
    expect(&format!("{locked} password=wrong-secret"), &READ, 3, &["password", "locked", "hint: "]);
    assert!(!run(&format!("{locked} password=wrong-secret"), &READ).1.contains("wrong-secret"));
    expect(&locked, &READ, 3, &["password"]);
    expect(&server.replace("user=postgres", "user=banned"), &READ, 3, &["pg_hba.conf", "banned"]);
    expect(&cluster.conninfo("nowhere"), &READ, 3, &["\"nowhere\" does not exist"]);
    expect("host=127.0.0.1 port=1 user=x dbname=x", &READ, 3, &["127.0.0.1", "refused"]);
    expect("postgres://localhost/x?colour=red", &READ, 2, &["colour"]);
    expect("host=/tmp sslmode=sometimes", &READ, 2, &["sslmode", "sometimes", "verify-full"]);
}

#[test]
fn an_extension_that_is_not_there() {
    let cluster = Cluster::start();
    for arguments in [
        &["group", "list"][..],
        &["group", "create", "g", "--outbox", "o"],
        &["outbox", "list"],
        &["run", "--group", "g"],
    ] {
        expect(&cluster.conninfo("postgres"), arguments, 5, &["CREATE EXTENSION postbox"]);
    }
}

#[test]
fn wrong_usage() {
    let server = "host=/nonexistent";
    for (arguments, words) in [
        (&["run"][..], "--group"),
        (&["run", "--group", "a", "--slot", "b"], "cannot be used with"),
        (&["run", "--slot", "s", "--until-lsn", "12"], "16/B374D848"),
        (&["run", "--slot", "s", "--exit-when-idle", "soon"], "soon"),
        (&["run", "--slot", "s", "--format", "xml"], "xml"),
        (&["run", "--slot", "s", "--compression", "zip"], "zip"),
        (&["run", "--slot", "s", "--origin", "elsewhere"], "elsewhere"),
        (&["run", "--slot", "s", "--cloudevents-source", "/shop"], "needs --format cloudevents"),
        (
            &["run", "--slot", "s", "--format", "cloudevents", "--cloudevents-source", "a shop"],
            "\"a shop\" is not a URI",
        ),
        (&["group", "create", "g"], "--outbox"),
        (&["frobnicate"], "frobnicate"),
    ] {
        expect(server, arguments, 2, &[words]);
    }
}

#[test]
fn group_and_outbox_names_that_do_not_work() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    let server = cluster.conninfo("postgres");
    let create = |name: &'static str, outbox: &'static str| ["group", "create", name, "--outbox", outbox];
    expect(&server, &create("Bad Name", "fence"), 2, &["\"Bad Name\"", "1 to 40 characters"]);
    expect(&server, &create("g", "nothing"), 2, &["\"nothing\" does not exist", "hint: "]);
    cluster.psql("postgres", "CREATE TABLE plain (n int)");
    expect(&server, &create("g", "plain"), 2, &["\"plain\" is not an outbox", "hint: "]);
    expect(&server, &create("g", "postbox_x"), 2, &["\"postbox_x\" does not exist"]);
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('g', '{fence}')");
    expect(&server, &create("g", "fence"), 2, &["\"g\" already exists"]);
}

#[tokio::test]
async fn plugin_and_consumer_of_different_versions() {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    make_slot(&cluster, "postgres", "s");
    let newer = postbox::Consumer::builder(cluster.conninfo("postgres")).slot("s").proto_version(9);
    let error = newer.connect().await.unwrap_err();
    assert_eq!(error.kind(), postbox::ErrorKind::Setup, "{error:?}");
    assert!(error.to_string().contains("proto_version 9") && error.to_string().contains("1 to 1"), "{error:?}");
    assert!(error.hint().unwrap().contains("one release"), "{error:?}");
}
