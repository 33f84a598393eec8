//! Consumer groups: the slot and the rows stay together.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postbox_tests::{Cluster, major, postbox_binary, wait_until_async};
use tokio_postgres::Client;

use super::{error, refused, row, rows, run, start};

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";
const GROUPS: &str = "SELECT count(*) FROM postbox.consumer_group";

async fn with_outboxes() -> (Cluster, Client) {
    let (cluster, client) = start().await;
    run(
        &client,
        "CREATE SCHEMA shop; SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('Bills', 'shop')",
    )
    .await;
    (cluster, client)
}

#[tokio::test]
async fn a_group_is_a_slot_of_the_plugin_and_its_outboxes() {
    let (_cluster, client) = with_outboxes().await;
    let oid = row(&client, "SELECT oid FROM pg_database WHERE datname = current_database()").await;
    let sql = "SELECT postbox.create_consumer_group('billing', ARRAY['orders', 'shop.\"Bills\"', 'public.orders'])";
    let slot = row(&client, sql).await;
    assert_eq!(slot, format!("postbox_{oid}_billing"));
    let made = "SELECT plugin, slot_type, database, temporary FROM pg_replication_slots";
    assert_eq!(row(&client, made).await, "postbox|logical|postgres|f");
    let shown = "SELECT name, outboxes, slot_name, active, active_pid, confirmed_flush_lsn IS NOT NULL,
        lag_bytes >= 0, wal_status, created_at <= now(), missing_outboxes FROM postbox.consumer_groups";
    let expected = format!("billing|{{public.orders,\"shop.\\\"Bills\\\"\"}}|{slot}|f||t|t|reserved|t|{{}}");
    assert_eq!(row(&client, shown).await, expected);
    let table = "SELECT group_name, outbox, outbox_name FROM postbox.consumer_group_outbox ORDER BY 3";
    assert_eq!(rows(&client, table).await, ["billing|orders|public.orders", "billing|shop.\"Bills\"|shop.\"Bills\""]);

    run(&client, "SELECT postbox.drop_consumer_group('billing')").await;
    assert_eq!(row(&client, SLOTS).await, "0");
    assert_eq!(row(&client, GROUPS).await, "0");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.consumer_group_outbox").await, "0");
}

#[tokio::test]
async fn what_the_command_is_told_of_a_group_is_stored() {
    let (cluster, client) = with_outboxes().await;
    let create = |name: &str, options: &[&str]| {
        let mut command = Command::new(postbox_binary());
        command.args(["group", "create", name, "--outbox", "orders", "--database", &cluster.conninfo("postgres")]);
        command.args(options).output().unwrap()
    };
    let group = "SELECT wal_budget, over_budget, failover FROM postbox.consumer_group WHERE name";
    for (name, options, stored) in [
        ("plain", &[][..], "|alert|f"),
        ("bounded", &["--wal-budget", "10MB"], "10485760|alert|f"),
        ("expendable", &["--wal-budget", "1GB", "--drop-over-budget"], "1073741824|drop|f"),
    ] {
        let output = create(name, options);
        assert!(output.status.success(), "{options:?}: {output:?}");
        assert_eq!(row(&client, &format!("{group} = '{name}'")).await, stored);
    }
    assert_eq!(create("endless", &["--drop-over-budget"]).status.code(), Some(2), "beyond which budget?");

    let output = create("kept", &["--failover"]);
    if major() < 17 {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("does not keep replication slots on standbys"), "{said}");
        return;
    }
    assert!(output.status.success(), "{output:?}");
    let slots = "SELECT g.name, g.failover, s.failover FROM postbox.consumer_group g JOIN pg_replication_slots s USING (slot_name) ORDER BY 1";
    assert_eq!(rows(&client, slots).await, ["bounded|f|f", "expendable|f|f", "kept|t|t", "plain|f|f"]);
}

#[tokio::test]
async fn outboxes_of_a_group_are_looked_up_along_the_callers_search_path() {
    let (_cluster, client) = with_outboxes().await;
    run(&client, "SELECT postbox.create_outbox('orders', 'shop')").await;
    run(&client, "SET search_path = shop; SELECT postbox.create_consumer_group('g', '{orders}')").await;
    assert_eq!(row(&client, "SELECT outboxes FROM postbox.consumer_groups").await, "{shop.orders}");
}

#[tokio::test]
async fn wrong_groups_are_refused_before_a_slot_is_made() {
    let (_cluster, client) = with_outboxes().await;
    run(&client, "CREATE TABLE plain ()").await;
    let long = format!("'{}', '{{orders}}'", "g".repeat(41));
    let cases = [
        ("'Billing', '{orders}'", "42602", "\"Billing\" is not 1 to 40 characters of a-z, 0-9 and _", "billing"),
        ("'', '{orders}'", "42602", "\"\" is not 1 to 40", "billing"),
        ("NULL, '{orders}'", "42602", "NULL is not 1 to 40", "billing"),
        ("E'a\\n', '{orders}'", "42602", "is not 1 to 40", "billing"),
        (&long, "42602", "is not 1 to 40", "billing"),
        ("'g', '{}'", "22023", "needs at least one outbox", "create_consumer_group"),
        ("'g', NULL", "22023", "needs at least one outbox", "create_consumer_group"),
        ("'g', '{orders,nowhere}'", "42P01", "outbox \"nowhere\" does not exist", "outbox_status"),
        ("'g', '{NULL}'", "42P01", "outbox NULL does not exist", "outbox_status"),
        ("'g', '{orders,plain}'", "42809", "\"plain\" is not an outbox", "adopt_outbox"),
        ("'g', '{orders_g0}'", "42809", "\"orders_g0\" is not an outbox", "outbox_status"),
    ];
    for (arguments, code, message, hint) in cases {
        let sql = format!("SELECT postbox.create_consumer_group({arguments})");
        refused(&client, &sql, code, message, hint).await;
        assert_eq!(row(&client, SLOTS).await, "0", "{sql}");
    }
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    let written = format!("BEGIN; SELECT postbox.publish('orders', 't', '{{}}'); {create}");
    refused(&client, &written, "25001", "in a transaction that has written", "transaction of its own").await;
    run(&client, "ROLLBACK").await;
    assert_eq!(row(&client, SLOTS).await, "0");

    run(&client, create).await;
    refused(&client, create, "42710", "consumer group \"g\" already exists", "drop_consumer_group").await;
    assert_eq!(row(&client, SLOTS).await, "1");
    let drop = "SELECT postbox.drop_consumer_group('other')";
    refused(&client, drop, "42704", "consumer group \"other\" does not exist", "postbox.consumer_groups").await;
    refused(&client, "SELECT postbox.drop_consumer_group(NULL)", "42704", "NULL does not exist", "").await;
}

#[tokio::test]
async fn a_group_that_cannot_be_stored_leaves_no_slot() {
    let (cluster, client) = with_outboxes().await;
    run(&client, "CREATE ROLE weak LOGIN REPLICATION; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA postbox TO weak; GRANT SELECT ON postbox.maintenance TO weak").await;
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    run(&client, "SET ROLE weak").await;
    refused(&client, create, "42501", "permission denied for table consumer_group", "").await;
    run(&client, "RESET ROLE").await;
    assert_eq!(row(&client, SLOTS).await, "0");

    // A cancel is no ordinary error to PL/pgSQL.
    run(
        &client,
        "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN new; END $$;
         CREATE TRIGGER hang BEFORE INSERT ON postbox.consumer_group FOR EACH ROW EXECUTE FUNCTION hang()",
    )
    .await;
    let canceller = cluster.client("postgres").await;
    let cancel = async {
        wait_until_async("the INSERT hangs", Duration::from_secs(60), async || {
            let hanging = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            rows(&canceller, hanging).await.pop()
        })
        .await;
    };
    let (failed, _) = tokio::join!(error(&client, create), cancel);
    assert_eq!(failed.code().code(), "57014");
    assert_eq!(row(&client, SLOTS).await, "0");

    run(&client, "DROP TRIGGER hang ON postbox.consumer_group").await;
    run(&client, "SELECT postbox.grant_role('operator', 'weak')").await;
    run(&client, &format!("SET ROLE weak; {create}; SELECT postbox.drop_consumer_group('g')")).await;
}

#[tokio::test]
async fn a_slot_left_by_an_earlier_installation_is_named() {
    let (_cluster, client) = with_outboxes().await;
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    let slot = row(&client, create).await;
    run(&client, "DROP EXTENSION postbox; CREATE EXTENSION postbox").await;
    refused(&client, create, "42710", &format!("replication slot \"{slot}\""), "pg_drop_replication_slot").await;
    assert_eq!(row(&client, GROUPS).await, "0");
    run(&client, &format!("SELECT pg_drop_replication_slot('{slot}'); {create}")).await;
}

/// It holds events that nobody else has.
#[tokio::test]
async fn a_slot_left_by_an_earlier_installation_is_dropped_by_nobody() {
    let (_cluster, client) = with_outboxes().await;
    let create = "SELECT postbox.create_consumer_group('g', '{orders}')";
    run(&client, create).await;
    let left = row(&client, "SELECT postbox.recover_consumer_group('g')").await;
    assert!(left.starts_with("postbox1_"), "{left}");
    run(&client, "DROP EXTENSION postbox; CREATE EXTENSION postbox").await;
    run(&client, create).await;
    let recovered = row(&client, "SELECT postbox.recover_consumer_group('g')").await;
    assert!(recovered.starts_with("postbox2_"), "{recovered}");
    let slots = "SELECT slot_name FROM pg_replication_slots ORDER BY 1";
    assert_eq!(rows(&client, slots).await, [left.clone(), recovered]);

    run(&client, "SELECT postbox.drop_consumer_group('g'); SELECT postbox.enable_pgoutput()").await;
    run(&client, "SELECT postbox.maintain(true)").await;
    run(&client, create).await;
    run(&client, "SELECT postbox.set_source('g', 'pgoutput')").await;
    let moved = row(&client, "SELECT slot_name FROM postbox.consumer_groups").await;
    assert!(moved.starts_with("postbox2_"), "{moved}");
    assert_eq!(rows(&client, slots).await, [left, moved]);
}

/// A consumer of the slot; gone when it is dropped.
struct Reader(Child);

impl Reader {
    fn start(cluster: &Cluster, slot: &str) -> Self {
        let conninfo = format!("{} application_name=reader-1", cluster.conninfo("postgres"));
        let mut command = Command::new(cluster.bin("pg_recvlogical"));
        command.args(["--start", "--file", "-", "--slot", slot, "--dbname", &conninfo]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_group_in_use_is_not_dropped_and_its_reader_is_named() {
    let (cluster, client) = with_outboxes().await;
    let slot = row(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    let reader = Reader::start(&cluster, &slot);
    let state = "SELECT active, coalesce(active_pid, 0) FROM postbox.consumer_groups";
    let pid = wait_until_async("the reader is connected", Duration::from_secs(60), async || {
        row(&client, state).await.strip_prefix("t|").map(str::to_owned)
    })
    .await;
    let message = format!("\"g\" is in use by process {pid} (application reader-1)");
    let hint = format!("pg_terminate_backend({pid})");
    refused(&client, "SELECT postbox.drop_consumer_group('g')", "55006", &message, &hint).await;
    assert_eq!(row(&client, GROUPS).await, "1");
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.consumer_group_outbox").await, "1");

    drop(reader);
    wait_until_async("the reader is gone", Duration::from_secs(60), async || {
        (row(&client, state).await == "f|0").then_some(())
    })
    .await;
    run(&client, "SELECT postbox.drop_consumer_group('g')").await;
    assert_eq!(row(&client, SLOTS).await, "0");
}

#[tokio::test]
async fn renamed_outboxes_are_followed_and_dropped_ones_are_still_named() {
    let (_cluster, client) = with_outboxes().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders,\"shop.\\\"Bills\\\"\"}')").await;
    run(&client, "ALTER TABLE orders RENAME TO sales; ALTER TABLE sales SET SCHEMA shop; DROP TABLE shop.\"Bills\"")
        .await;
    let shown = "SELECT outboxes, missing_outboxes FROM postbox.consumer_groups";
    assert_eq!(row(&client, shown).await, "{\"shop.\\\"Bills\\\"\",shop.sales}|{\"shop.\\\"Bills\\\"\"}");
    assert_eq!(row(&client, "SELECT groups FROM postbox.outbox_status('sales')").await, "{g}");
}

#[tokio::test]
async fn a_missing_slot_is_shown_and_the_group_can_be_dropped() {
    let (_cluster, client) = with_outboxes().await;
    let slot = row(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, &format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    let shown = "SELECT active, active_pid, confirmed_flush_lsn, lag_bytes, wal_status FROM postbox.consumer_groups";
    assert_eq!(row(&client, shown).await, "f||||missing");
    run(&client, "SELECT postbox.drop_consumer_group('g')").await;
    assert_eq!(row(&client, GROUPS).await, "0");
}

#[tokio::test]
async fn a_rolled_back_drop_leaves_a_group_that_can_be_dropped_again() {
    let (_cluster, client) = with_outboxes().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "BEGIN; SELECT postbox.drop_consumer_group('g'); ROLLBACK").await;
    assert_eq!(row(&client, "SELECT wal_status FROM postbox.consumer_groups").await, "missing");
    run(&client, "SELECT postbox.drop_consumer_group('g')").await;
}

#[tokio::test]
async fn an_outbox_that_is_dropped_while_the_group_waits_for_writers_leaves_no_slot() {
    let (cluster, client) = with_outboxes().await;
    run(&client, "BEGIN; SELECT postbox.drop_outbox('orders')").await;
    let maker = cluster.client("postgres").await;
    let making =
        tokio::spawn(async move { error(&maker, "SELECT postbox.create_consumer_group('g', '{orders}')").await });
    let watcher = cluster.client("postgres").await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait_until_async("it waits for the writer", Duration::from_secs(60), async || {
        (row(&watcher, waits).await == "1").then_some(())
    })
    .await;
    run(&client, "COMMIT").await;
    let error = making.await.unwrap();
    assert_eq!(error.code().code(), "42P01", "{error}");
    assert!(error.message().contains("was dropped by another session just now"), "{error}");
    assert_eq!(row(&client, SLOTS).await, "0");
    assert_eq!(row(&client, GROUPS).await, "0");
}

#[tokio::test]
async fn whether_it_is_a_dry_run_has_to_be_said() {
    let (_cluster, client) = with_outboxes().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "SELECT postbox.publish('orders', 't', '{}')").await;
    let position = "SELECT confirmed_flush_lsn, (SELECT epoch FROM postbox.consumer_group) FROM pg_replication_slots";
    let before = row(&client, position).await;
    for call in [
        "seek_consumer_group('g', 'latest', dry_run => NULL)",
        "redrive_dead_letters('g', every => true, dry_run => NULL)",
        "discard_dead_letters('g', every => true, dry_run => NULL)",
    ] {
        refused(&client, &format!("SELECT postbox.{call}"), "22004", "dry_run is NULL", "false").await;
    }
    assert_eq!(row(&client, position).await, before);
}
