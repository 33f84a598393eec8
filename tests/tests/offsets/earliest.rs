//! Groups that start at the earliest event: the seam between the table and the slot.

use postbox_tests::{Cluster, wait_until_async};

use super::{Office, Publishers, assert_came, execute, insert};
use crate::shop::PATIENCE;

const CREATE: &str = "SELECT postbox.create_consumer_group('g', '{orders}', 'earliest')";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_group_made_among_publishers_gets_every_event_once() {
    let office = Office::open();
    office.publish("before", 1, 300);
    office.psql("BEGIN; INSERT INTO orders (type, payload) VALUES ('undone:1', '{}'); ROLLBACK");
    let (late, later) = (office.client().await, office.client().await);
    let (watcher, maker) = (office.client().await, office.client().await);
    execute(&late, &format!("BEGIN; {}", insert("late:1", 10))).await;
    let publishers = Publishers::start(&office.cluster, 4).await;
    let making = tokio::spawn(async move { maker.batch_execute(CREATE).await });
    office.waits(&watcher, "SELECT postbox.create", "PgSleep").await;
    // One more that is open when the slot is begun, so that the slot waits for it.
    execute(&later, &format!("BEGIN; {}", insert("later:1", 10))).await;
    execute(&late, &format!("{} COMMIT", insert("late:2", 10))).await;
    wait_until_async("the maker waits for it or is done", PATIENCE, async || {
        let sql = "SELECT 1 FROM postbox.consumer_group UNION ALL SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
        watcher.query(sql, &[]).await.expect("an answer").pop().map(drop)
    })
    .await;
    execute(&later, "COMMIT").await;
    making.await.expect("no panic").expect("a group");
    let mut run = office.run(&[]);
    run.wait_for(500, PATIENCE);
    publishers.stop().await;
    let stored = office.stored();
    run.wait_until("everything", PATIENCE, |lines| lines.len() >= stored.len());
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(assert_came(&ended.lines, &stored), 0, "came twice without any crash");
    assert_eq!(office.deliver(), []);
}

/// A transaction that commits while the slot is still being made is not in the slot. When it then waits for a standby,
/// no snapshot shows it either; and when its id is the latest, no snapshot even lists it as running.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_commit_that_is_neither_in_the_slot_nor_visible_is_waited_for() {
    let office = office_without_its_standby();
    commit_in_the_gap(&office, CREATE).await;
    assert_eq!(assert_came(&office.deliver(), &office.stored()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn so_it_is_when_a_group_recovers() {
    let office = office_without_its_standby();
    office.create("latest");
    office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    commit_in_the_gap(&office, "SELECT postbox.recover_consumer_group('g')").await;
    assert_eq!(assert_came(&office.deliver(), &office.stored()), 0);
}

/// Runs a statement that makes a slot, and commits something that the slot does not have and nobody sees yet.
async fn commit_in_the_gap(office: &Office, make: &'static str) {
    let (watcher, maker) = (office.client().await, office.client().await);
    let [t0, t1, t2, t3] = [office.client().await, office.client().await, office.client().await, office.client().await];
    let begin = |name: &str| format!("BEGIN; {}", insert(name, 10));
    let pid: i32 = maker.query_one("SELECT pg_backend_pid()", &[]).await.expect("a pid").get(0);
    execute(&t0, &begin("t0:1")).await;
    let making = tokio::spawn(async move { maker.batch_execute(make).await });
    office.waits(&watcher, make, "PgSleep").await;
    let waits_for = async |client: &tokio_postgres::Client| {
        let blocker: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a pid").get(0);
        wait_until_async("the maker waits for a transaction", PATIENCE, async || {
            let sql = "SELECT 1 WHERE $1 = ANY (pg_blocking_pids($2))";
            watcher.query_opt(sql, &[&blocker, &pid]).await.expect("an answer").map(drop)
        })
        .await;
    };
    execute(&t1, &begin("t1:1")).await;
    execute(&t0, "COMMIT").await;
    waits_for(&t1).await;
    execute(&t2, &begin("t2:1")).await;
    execute(&t1, "COMMIT").await;
    waits_for(&t2).await;
    let held = hold(office, &watcher, t3).await;
    execute(&t2, "COMMIT").await;
    wait_until_async("the maker is done or waits again", PATIENCE, async || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND (state = 'idle' OR wait_event = 'PgSleep')";
        watcher.query_opt(sql, &[&pid]).await.expect("an answer").map(drop)
    })
    .await;
    release(office);
    held.await.expect("no panic");
    making.await.expect("no panic").expect("a group");
}

/// The other way round: it is in the slot, and becomes visible only after the rows were looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_commit_that_becomes_visible_after_the_seam_comes_from_the_slot() {
    let office = office_without_its_standby();
    office.publish("before", 1, 10);
    let (watcher, maker, keeper, late) =
        (office.client().await, office.client().await, office.client().await, office.client().await);
    execute(&keeper, "SELECT pg_advisory_lock(postbox._lock_key('orders'))").await;
    let making = tokio::spawn(async move { maker.batch_execute(CREATE).await });
    office.waits(&watcher, "SELECT postbox.create", "advisory").await;
    let held = hold(&office, &watcher, late).await;
    execute(&keeper, "SELECT pg_advisory_unlock_all()").await;
    office.waits(&watcher, "SELECT postbox.create", "PgSleep").await;
    assert_eq!(office.psql("SELECT count(*) FROM postbox.consumer_group"), "0");
    release(&office);
    held.await.expect("no panic");
    making.await.expect("no panic").expect("a group");
    assert_eq!(assert_came(&office.deliver(), &office.stored()), 0);
}

/// Commits of sessions that say `synchronous_commit = on` wait for a standby that there is none of.
pub(super) fn office_without_its_standby() -> Office {
    Office::open_with(
        Cluster::builder().setting("synchronous_standby_names", "nosuch").setting("synchronous_commit", "local"),
    )
}

/// Commits `held:1`, which is in the log then and not visible.
pub(super) async fn hold(
    office: &Office,
    watcher: &tokio_postgres::Client,
    client: tokio_postgres::Client,
) -> tokio::task::JoinHandle<()> {
    execute(&client, "SET synchronous_commit = on").await;
    let held = tokio::spawn(async move { execute(&client, &insert("held:1", 10)).await });
    office.waits(watcher, "INSERT INTO orders", "SyncRep").await;
    assert_eq!(office.psql("SELECT count(*) FROM orders WHERE type = 'held:1'"), "0");
    held
}

pub(super) fn release(office: &Office) {
    office.psql("ALTER SYSTEM SET synchronous_standby_names = ''");
    office.psql("SELECT pg_reload_conf()");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn making_a_group_names_what_it_waits_for_and_leaves_no_slot() {
    let office = Office::open_with(Cluster::builder().setting("max_prepared_transactions", "5"));
    let create = "SELECT postbox.create_consumer_group('g', '{orders}', 'earliest', timeout => '300 ms')";
    let writer = office.client().await;
    execute(&writer, &format!("SET application_name = 'importer'; BEGIN; {}", insert("open:1", 10))).await;
    let error = office.cluster.psql_result("postgres", create).expect_err("a writer is open");
    for text in ["gave up waiting for 1 transaction that is writing", "(importer) since", "pg_terminate_backend"] {
        assert!(error.contains(text), "{error}");
    }
    execute(&writer, "PREPARE TRANSACTION 'payment-7'").await;
    let error = office.cluster.psql_result("postgres", create).expect_err("one is prepared");
    assert!(error.contains("prepared transaction 'payment-7' since"), "{error}");
    let said = office.group(&["create", "g", "--outbox", "orders", "--from", "earliest", "--timeout", "300ms"]);
    assert!(said.0 != 0 && said.1.contains("payment-7"), "{said:?}");
    assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), "0");
    execute(&writer, "COMMIT PREPARED 'payment-7'").await;

    // The slot is there already when the cancel comes.
    let (keeper, watcher, maker) = (office.client().await, office.client().await, office.client().await);
    execute(&keeper, "SELECT pg_advisory_lock(postbox._lock_key('orders'))").await;
    let making = tokio::spawn(async move { maker.batch_execute(CREATE).await });
    office.waits(&watcher, "SELECT postbox.create", "advisory").await;
    assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), "1");
    execute(&watcher, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'").await;
    making.await.expect("no panic").expect_err("it was cancelled");
    assert_eq!(office.psql("SELECT count(*) FROM pg_replication_slots"), "0");
    execute(&keeper, "SELECT pg_advisory_unlock_all()").await;
    office.create("earliest");
    assert_eq!(assert_came(&office.deliver(), &office.stored()), 0);
}
