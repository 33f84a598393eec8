//! What stands between a login and a stream: every refusal has its kind and says how to mend it.

use postbox::transport::connect_sql;
use postbox::{Error, ErrorKind, explain_in_use, inspect};
use postbox_tests::{Cluster, Stop, skip};

use super::{create_slot, info, refused, replication};

/// The error of a stream that must not start.
async fn not_started(string: &str, slot: &str, options: &[(&str, String)]) -> Error {
    let replication = replication(string).await.unwrap_or_else(|error| panic!("{string}: {error}"));
    replication.start(slot, options).await.map(drop).expect_err(slot)
}

/// What the look at the slot before the stream finds wrong.
async fn inspected(string: &str, slot: &str) -> Error {
    let client = connect_sql(&info(string)).await.unwrap_or_else(|error| panic!("{string}: {error}"));
    inspect(&client, slot).await.map(drop).expect_err(slot)
}

fn assert_hint(error: &Error, words: &str) {
    assert!(error.hint().unwrap_or_default().contains(words), "{error}: {:?}", error.hint());
}

#[tokio::test]
async fn the_replication_attribute_is_missing_and_not_inherited() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE ROLE parent REPLICATION; CREATE ROLE \"the app\" LOGIN IN ROLE parent");
    let string = format!("{} user='the app'", cluster.conninfo("postgres"));
    let error = replication(&string).await.map(drop).expect_err("no attribute");
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Setup, 5));
    assert!(error.to_string().contains("\"the app\""), "{error}");
    assert_hint(&error, "ALTER ROLE \"the app\" REPLICATION;");
    assert_hint(&error, "not inherited");

    // The remedy is the remedy.
    cluster.psql("postgres", "ALTER ROLE \"the app\" REPLICATION;");
    replication(&string).await.expect("connected");
}

#[tokio::test]
async fn a_slot_that_cannot_be_read_is_told_by_its_reason() {
    let cluster = Cluster::start();
    let string = cluster.conninfo("postgres");
    cluster.psql("postgres", "CREATE DATABASE other");
    cluster.psql("postgres", "SELECT pg_create_physical_replication_slot('physical', true)");
    create_slot(&cluster, "foreign");
    cluster.psql("other", "SELECT pg_create_logical_replication_slot('elsewhere', 'test_decoding')");

    let error = not_started(&string, "No Such", &[]).await;
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::SlotMissing, 4));
    assert!(error.to_string().contains("\"No Such\""), "{error}");
    assert_hint(&error, "pg_create_logical_replication_slot");
    let error = inspected(&string, "nosuch").await;
    assert_eq!(error.kind(), ErrorKind::SlotMissing);
    assert_hint(&error, "pg_create_logical_replication_slot('nosuch', 'postbox')");

    let error = not_started(&string, "physical", &[]).await;
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::SlotPlugin, 4));
    let error = inspected(&string, "physical").await;
    assert_eq!(error.kind(), ErrorKind::SlotPlugin);
    assert!(error.to_string().contains("physical"), "{error}");

    let error = inspected(&string, "foreign").await;
    assert_eq!(error.kind(), ErrorKind::SlotPlugin);
    assert!(error.to_string().contains("test_decoding"), "{error}");

    let error = not_started(&string, "elsewhere", &[]).await;
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::SlotDatabase, 4));

    // An option that a plugin does not know is not taken for a missing slot or for a wrong setup.
    let error = not_started(&string, "foreign", &[("nonsense", "it's".to_owned())]).await;
    assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Other, Some("22023")));
    assert!(error.to_string().contains("\"nonsense\" = \"it's\""), "{error}");
}

#[tokio::test]
async fn a_slot_in_use_names_its_reader() {
    let cluster = Cluster::start();
    create_slot(&cluster, "busy");
    let string = cluster.tcp_conninfo("postgres");
    let reader = replication(&format!("{string} application_name='the first'")).await.expect("connected");
    let _stream = reader.start("busy", &[]).await.expect("started");
    let pid = cluster.psql("postgres", "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'busy'");

    let error = not_started(&string, "busy", &[]).await;
    assert_eq!((error.kind(), error.exit_code(), error.is_transient()), (ErrorKind::SlotInUse, 4, false));
    assert!(error.to_string().contains(&pid), "{error}");

    let client = connect_sql(&info(&string)).await.expect("connected");
    let error = explain_in_use(&client, "busy").await;
    assert_eq!(error.kind(), ErrorKind::SlotInUse);
    let text = error.to_string();
    for part in
        ["\"busy\"", &format!("process {pid}"), "\"the first\"", "\"postgres\"", "from 127.0.0.1", "connected for"]
    {
        assert!(text.contains(part), "{part} in: {text}");
    }

    // A role without rights sees less and is told as much as it may see.
    cluster.psql("postgres", "CREATE ROLE small LOGIN REPLICATION");
    let client = connect_sql(&info(&format!("{string} user=small"))).await.expect("connected");
    let text = explain_in_use(&client, "busy").await.to_string();
    assert!(text.contains(&format!("process {pid}")) && text.contains("\"the first\""), "{text}");
    assert!(!text.contains("127.0.0.1"), "{text}");
}

#[tokio::test]
async fn an_invalidated_slot_is_never_retried() {
    let cluster = Cluster::builder()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "32MB")
        .start();
    create_slot(&cluster, "behind");
    cluster.psql("postgres", "CREATE TABLE t(i int)");
    for _ in 0..3 {
        cluster.psql("postgres", "INSERT INTO t VALUES (1); SELECT pg_switch_wal(); CHECKPOINT");
    }
    assert_eq!(cluster.psql("postgres", "SELECT wal_status FROM pg_replication_slots"), "lost");
    let error = not_started(&cluster.conninfo("postgres"), "behind", &[]).await;
    assert_eq!((error.kind(), error.exit_code(), error.is_transient()), (ErrorKind::SlotInvalidated, 4, false));
    assert_hint(&error, "pg_drop_replication_slot('behind')");
    assert_hint(&error, "max_slot_wal_keep_size");
}

#[tokio::test]
async fn a_wal_level_that_is_too_low_is_mended_by_the_line_that_is_shown() {
    let cluster = Cluster::builder().setting("wal_level", "replica").start();
    let error = not_started(&cluster.conninfo("postgres"), "any", &[]).await;
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Setup, 5));
    let hint = error.hint().expect("a hint");
    let (_, line) = hint.split_once("run: ").expect("a line to run");
    let (line, _) = line.split_once(';').expect("the end of the line");
    cluster.psql("postgres", line);
    cluster.restart(Stop::Fast);
    assert_eq!(not_started(&cluster.conninfo("postgres"), "any", &[]).await.kind(), ErrorKind::SlotMissing);
}

#[tokio::test]
async fn a_plugin_that_is_not_allowed_is_allowed_by_the_line_that_is_shown() {
    let cluster = Cluster::start();
    create_slot(&cluster, "s");
    if cluster.psql_result("postgres", "SHOW output_plugin_libraries").is_err() {
        skip("this server takes every output plugin, as those before August 2026 did");
        return;
    }
    cluster.psql(
        "postgres",
        "CREATE ROLE app LOGIN REPLICATION; ALTER ROLE app SET output_plugin_libraries = pgoutput, wal2json",
    );
    let string = format!("{} user=app", cluster.conninfo("postgres"));
    let error = not_started(&string, "s", &[]).await;
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Setup, 5));
    assert!(error.to_string().contains("test_decoding"), "{error}");
    assert_hint(&error, "ALTER ROLE \"app\" SET output_plugin_libraries = pgoutput, wal2json, postbox;");

    // Whoever may read the list in force gets that one.
    cluster.psql("postgres", "ALTER ROLE app RESET ALL; ALTER SYSTEM SET output_plugin_libraries = pgoutput, decoderbufs; GRANT pg_read_all_settings TO app");
    cluster.restart(Stop::Fast);
    let error = not_started(&string, "s", &[]).await;
    assert_hint(&error, "ALTER ROLE \"app\" SET output_plugin_libraries = pgoutput, decoderbufs, postbox;");

    // Whoever may not gets the default, and is told to look.
    cluster.psql("postgres", "REVOKE pg_read_all_settings FROM app");
    let error = not_started(&string, "s", &[]).await;
    assert_hint(&error, "ALTER ROLE \"app\" SET output_plugin_libraries = pgoutput, test_decoding, postbox;");
    assert_hint(&error, "SHOW output_plugin_libraries;");

    // The remedy is the remedy.
    let hint = error.hint().expect("a hint");
    let (_, line) = hint.split_once("run: ").expect("a line to run");
    let (line, _) = line.split_once(';').expect("the end of the line");
    cluster.psql("postgres", line);
    replication(&string).await.expect("connected").start("s", &[]).await.expect("started");
}

#[tokio::test]
async fn no_room_for_another_replication_client_is_worth_another_try() {
    let cluster = Cluster::builder().setting("max_wal_senders", "1").start();
    let _first = replication(&cluster.conninfo("postgres")).await.expect("connected");
    let error = replication(&cluster.conninfo("postgres")).await.map(drop).expect_err("full");
    assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Server, true), "{error:?}");
    assert_hint(&error, "max_wal_senders");

    let cluster = Cluster::builder().setting("max_wal_senders", "0").start();
    let error = replication(&cluster.conninfo("postgres")).await.map(drop).expect_err("none");
    assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Setup, false), "{error:?}");
}

#[tokio::test]
async fn a_role_that_may_not_connect_to_the_database_is_told_so() {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        "CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC; CREATE ROLE app LOGIN REPLICATION",
    );
    let error = refused(&format!("{} user=app", cluster.conninfo("closed"))).await;
    assert_eq!(error.kind(), ErrorKind::Login);
    assert_hint(&error, "GRANT CONNECT ON DATABASE \"closed\" TO \"app\";");
}
