//! `postbox install`: the schema without the extension, by a role that is no superuser, as on a managed server.

use postbox_tests::tap::deliver;
use postbox_tests::{Cluster, Run, major};

use super::{postbox, types};
use crate::shop::PATIENCE;

/// A cluster whose database `shop` belongs to `admin`, who may make roles and slots and is no superuser.
pub(super) fn managed() -> (Cluster, String) {
    let cluster = Cluster::start();
    cluster
        .psql("postgres", "CREATE ROLE admin LOGIN CREATEROLE CREATEDB REPLICATION; CREATE DATABASE shop OWNER admin");
    // From PostgreSQL 15 on the schema public is for owners of the database alone; before, it is for everybody.
    let conninfo = cluster.conninfo("shop").replace("user=postgres", "user=admin");
    (cluster, conninfo)
}

pub(super) fn install(conninfo: &str) -> String {
    let output = postbox(conninfo, &["install"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// SQL as `admin`.
pub(super) fn admin(cluster: &Cluster, sql: &str) -> String {
    cluster.psql("shop", &format!("SET SESSION AUTHORIZATION admin; {sql}"))
}

#[test]
fn an_admin_who_is_no_superuser_has_all_of_it() {
    let (cluster, conninfo) = managed();
    assert_eq!(install(&conninfo), format!("Postbox {} is in database shop\n", env!("CARGO_PKG_VERSION")));
    admin(
        &cluster,
        "SELECT postbox.create_outbox('orders'); CREATE TABLE old (id uuid PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload jsonb);
         SELECT postbox.adopt_outbox('old', layout => 'debezium');
         SELECT postbox.publish('orders', 'stored before', '{\"n\": 1.50}', key => 'k', headers => '{\"h\": [1]}')",
    );
    let run = |arguments: &[&str]| {
        let output = postbox(&conninfo, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    run(&["group", "create", "billing", "--outbox", "orders", "--from", "earliest"]);
    run(&["group", "create", "legacy", "--outbox", "old"]);
    let groups = "SELECT name, source, missing_outboxes FROM postbox.consumer_groups";
    assert_eq!(admin(&cluster, groups), "billing|pgoutput|{}\nlegacy|pgoutput|{}");
    admin(
        &cluster,
        "SELECT postbox.publish('orders', 'later', '{}'); SELECT postbox.publish('old', 'legacy', '[]', key => '7', event_id => gen_random_uuid())",
    );
    let deliver = |group: &str| {
        let output = run(&["run", "--group", group, "--exit-when-idle", "300ms"]);
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<serde_json::Value>>()
    };
    let events = deliver("billing");
    assert_eq!(types(&events), ["stored before", "later"]);
    assert_eq!(events[0]["payload"].to_string(), "{\"n\":1.5}");
    assert_eq!((&events[0]["key"], &events[0]["headers"]["h"][0]), (&"k".into(), &1.into()));
    assert!(
        events[0]["xid"].as_u64() > Some(0)
            && events[0]["commit_time"].is_string()
            && events[0]["commit_lsn"].is_null()
    );
    assert_eq!(types(&deliver("legacy")), ["legacy"]);

    // What operators do.
    run(&["group", "pause", "billing"]);
    run(&["group", "seek", "billing", "--to", "earliest"]);
    run(&["group", "resume", "billing"]);
    assert_eq!(types(&deliver("billing")), ["stored before", "later"]);
    admin(
        &cluster,
        "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_group WHERE name = 'billing'; SELECT postbox.publish('orders', 'lost', '{}')",
    );
    run(&["group", "recover", "billing"]);
    assert_eq!(types(&deliver("billing")).last(), Some(&"lost"));
    assert!(run(&["group", "describe", "billing"]).contains("Source:        pgoutput"));
    run(&["maintain", "--once"]);
    let skipped =
        admin(&cluster, "SELECT step, subject, detail FROM postbox.maintain(force => true) WHERE outcome = 'skipped'");
    assert_eq!(skipped, "");
    admin(
        &cluster,
        "SELECT * FROM postbox.consumer_lag; SELECT * FROM postbox.retention_status; SELECT * FROM postbox.consumer_status; SELECT * FROM postbox.outbox_status()",
    );
    admin(
        &cluster,
        "SELECT postbox.create_inbox('payments'); INSERT INTO payments (event_id, payload) VALUES ('e', '{}')",
    );
    assert_eq!(admin(&cluster, "SELECT event_id FROM postbox.inbox_claim('payments', 'w')"), "e");
    run(&["group", "drop", "legacy"]);
    admin(&cluster, "SELECT postbox.drop_inbox('payments', cascade => true)");
}

#[test]
fn roles_of_a_managed_server_can_do_their_work_and_no_more() {
    let (cluster, conninfo) = managed();
    install(&conninfo);
    admin(
        &cluster,
        "SELECT postbox.create_outbox('orders'); CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE watcher LOGIN; CREATE ROLE keeper LOGIN;
         SELECT postbox.grant_role('publisher', 'app', '{orders}'), postbox.grant_role('monitor', 'watcher'), postbox.grant_role('maintainer', 'keeper', '{orders}');
         SELECT postbox.create_consumer_group('billing', '{orders}')",
    );
    // Who has the attribute may give it from PostgreSQL 16 on; before, that is for superusers, or the provider's own role.
    if major() >= 16 {
        admin(&cluster, "ALTER ROLE reader REPLICATION");
    } else {
        cluster.psql("shop", "ALTER ROLE reader REPLICATION");
    }
    admin(&cluster, "SELECT postbox.grant_role('consumer', 'reader')");
    let of = |role: &str, sql: &str| cluster.psql_result("shop", &format!("SET SESSION AUTHORIZATION {role}; {sql}"));
    of("app", "SELECT postbox.publish('orders', 'by app', '{}', key => 'k')").expect("the publisher publishes");
    of("watcher", "SELECT * FROM postbox.consumer_lag; SELECT postbox.describe_consumer_group('billing')")
        .expect("the monitor looks");
    of("keeper", "SELECT * FROM postbox.maintain(force => true)").expect("the maintainer maintains");
    for (role, sql) in [
        ("app", "SELECT * FROM orders"),
        ("app", "SELECT postbox.drop_outbox('orders')"),
        ("watcher", "SELECT postbox.publish('orders', 't', '{}')"),
        ("reader", "SELECT postbox.drop_consumer_group('billing')"),
        ("app", "SELECT postbox.enable_pgoutput()"),
        ("app", "SELECT postbox.set_source('billing', 'postbox')"),
    ] {
        let error = of(role, sql).expect_err(sql);
        assert!(error.contains("permission denied"), "{role}: {sql}: {error}");
    }
    let reader = conninfo.replace("user=admin", "user=reader");
    let ended = Run::start(&reader, &["--group", "billing", "--exit-when-idle", "300ms"]).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(ended.lines.iter().map(|line| &*line.event_type).collect::<Vec<_>>(), ["by app"]);
}

#[test]
fn it_is_there_once_and_the_extension_beside_it_never() {
    let (cluster, conninfo) = managed();
    let dry = postbox(&conninfo, &["install", "--dry-run"]);
    let script = String::from_utf8(dry.stdout).expect("UTF-8");
    assert!(dry.status.success() && script.starts_with("BEGIN;\n") && script.ends_with("COMMIT;\n"), "{script}");
    let there = "SELECT count(*) FROM pg_namespace WHERE nspname = 'postbox'";
    assert_eq!(cluster.psql("shop", there), "0");

    install(&conninfo);
    let functions = "SELECT count(*), max(oid) FROM pg_proc WHERE pronamespace = 'postbox'::regnamespace";
    let before = cluster.psql("shop", functions);
    assert!(install(&conninfo).contains("already: nothing to do"));
    assert_eq!(cluster.psql("shop", functions), before);
    let refused = cluster.psql_result("shop", "\\set VERBOSITY verbose\nCREATE EXTENSION postbox").unwrap_err();
    assert!(
        refused.contains("42P06") && refused.contains("postbox install") && refused.contains("DROP SCHEMA postbox"),
        "{refused}"
    );
    // The script by hand is refused as well.
    assert!(cluster.psql_result("shop", &script).unwrap_err().contains("there already"));

    cluster.psql("shop", "COMMENT ON SCHEMA postbox IS 'Postbox, made by postbox install 0.0.1'");
    let output = postbox(&conninfo, &["install"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is of version 0.0.1"), "{output:?}");
    cluster.psql("shop", "COMMENT ON SCHEMA postbox IS 'mine'");
    let output = postbox(&conninfo, &["install"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("that postbox install did not make"), "{output:?}");

    // What docs/managed.md says about removing it.
    admin(&cluster, "SELECT postbox.create_outbox('orders'); SELECT postbox.publish('orders', 't', '{}')");
    admin(&cluster, "DROP SCHEMA postbox CASCADE; DROP PUBLICATION postbox, postbox_claims");
    assert_eq!(admin(&cluster, "SELECT count(*) FROM orders"), "1");
    cluster.psql("shop", "CREATE EXTENSION postbox");
    let output = postbox(&conninfo, &["install"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && said.contains("has the extension postbox"), "{said}");
    assert_eq!(cluster.psql("shop", "SELECT name FROM postbox.outbox_status()"), "orders");
}

#[test]
fn who_may_not_make_a_schema_leaves_nothing_behind() {
    let (cluster, conninfo) = managed();
    cluster.psql("shop", "CREATE ROLE guest LOGIN");
    let guest = conninfo.replace("user=admin", "user=guest");
    let output = postbox(&guest, &["install"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && said.contains("GRANT CREATE ON DATABASE \"shop\""), "{said}");
    assert_eq!(cluster.psql("shop", "SELECT count(*) FROM pg_namespace WHERE nspname = 'postbox'"), "0");
}

#[test]
fn an_operator_who_does_not_own_the_publication_is_told_what_to_do() {
    let (cluster, conninfo) = managed();
    install(&conninfo);
    cluster.psql("shop", "CREATE ROLE ops LOGIN");
    admin(&cluster, "SELECT postbox.grant_role('operator', 'ops'); GRANT CREATE ON SCHEMA public TO ops");
    let make = "\\set VERBOSITY verbose\nSET SESSION AUTHORIZATION ops; SELECT postbox.create_outbox('mine')";
    let refused = cluster.psql_result("shop", make).unwrap_err();
    assert!(
        refused.contains("42501") && refused.contains("publication postbox") && refused.contains("member of the role"),
        "{refused}"
    );
    assert_eq!(cluster.psql("shop", "SELECT count(*) FROM pg_class WHERE relname = 'mine'"), "0");
    cluster.psql("shop", "GRANT admin TO ops");
    cluster.psql("shop", make);
}

#[test]
fn a_dump_of_it_is_restored_with_the_publication() {
    let (cluster, conninfo) = managed();
    install(&conninfo);
    admin(&cluster, "SELECT postbox.create_outbox('orders')");
    admin(
        &cluster,
        "SELECT postbox.create_consumer_group('g', '{orders}'); SELECT postbox.publish('orders', 't', '{}')",
    );
    cluster.psql("postgres", "CREATE DATABASE restored OWNER admin");
    let dump = std::process::Command::new(cluster.bin("pg_dump")).args(["-d", &conninfo]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    cluster.psql("restored", &format!("SET SESSION AUTHORIZATION admin; {}", String::from_utf8(dump.stdout).unwrap()));
    let restored = conninfo.replace("dbname=shop", "dbname=restored");
    assert!(install(&restored).contains("already"));
    cluster.psql("restored", "SELECT postbox.recover_consumer_group('g')");
    assert_eq!(types(&deliver(&cluster, "restored", &["--group", "g"])), ["t"]);
}
