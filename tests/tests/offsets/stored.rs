//! How stored events are read: by the place where they lie, of which a list is made once.

use postbox_tests::wait_until;
use tokio_postgres::Client;

use super::{Office, execute};
use crate::shop::PATIENCE;

/// Asks for the next 100 and keeps what came, which is told by the seq.
const NEXT: &str = "INSERT INTO came (seq) SELECT seq FROM postbox._stored_events('g', 'orders'::regclass, (SELECT max(seq) FROM came), 100)";

/// A group that is to be given what is stored, and a session that reads it.
async fn reader(office: &Office) -> Client {
    office.psql("INSERT INTO orders (type, payload) SELECT 'stored:' || n, '{}' FROM generate_series(1, 500) n");
    office.create("earliest");
    let client = office.client().await;
    execute(&client, "CREATE TEMP TABLE came (number int GENERATED ALWAYS AS IDENTITY, seq bigint)").await;
    client
}

async fn came(client: &Client) -> Vec<i64> {
    let rows = client.query("SELECT seq FROM came ORDER BY number", &[]).await.expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

/// A link that breaks is no reason to look through the table again.
#[tokio::test]
async fn they_come_once_however_often_the_link_breaks() {
    let office = Office::open();
    office.psql("INSERT INTO orders (type, payload) SELECT 'stored:' || n, '{}' FROM generate_series(1, 100) n");
    office.create("earliest");
    let mut run = office.run(&[]);
    run.wait_for(100, PATIENCE);
    for again in 1..=3 {
        wait_until("the slot is read and cut off", PATIENCE, || {
            let cut = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
            (office.psql(cut) == "t").then_some(())
        });
        run.wait_for_log("connected again", again, PATIENCE);
    }
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.log.matches(" stored events").count(), 1, "{}", ended.log);
}

/// There is no index by seq: to look for each chunk anew would take a time that grows with the square of the size.
#[tokio::test]
async fn the_table_is_looked_through_once() {
    let office = Office::open();
    let client = reader(&office).await;
    execute(&client, &format!("BEGIN; {}", format!("{NEXT};").repeat(6))).await;
    let sql = "SELECT sum(seq_scan)::bigint FROM pg_stat_xact_user_tables WHERE relname LIKE 'orders\\_g_'";
    let scans: i64 = client.query_one(sql, &[]).await.expect("statistics").get(0);
    assert_eq!(scans, 4, "one for each leaf");
    assert_eq!(came(&client).await, (1..=500).collect::<Vec<_>>());
}

#[tokio::test]
async fn rows_that_their_owner_changes_meanwhile_come_as_they_are_then() {
    let office = Office::open();
    let client = reader(&office).await;
    execute(&client, NEXT).await;
    office.psql("UPDATE orders SET headers = '{}' WHERE seq BETWEEN 150 AND 250; DELETE FROM orders WHERE seq = 350");
    office.psql("VACUUM orders");
    // New rows where old ones lay; they are the slot's to send.
    office.psql("INSERT INTO orders (type, payload) SELECT 'new:' || n, '{}' FROM generate_series(1, 200) n");
    for _ in 0..5 {
        execute(&client, NEXT).await;
    }
    assert_eq!(came(&client).await, (1..=500).filter(|&seq| seq != 350).collect::<Vec<_>>());
}

/// Nothing is held back while events are delivered: no old row from vacuum, nobody from the table.
#[tokio::test]
async fn reading_holds_nothing_back() {
    let office = Office::open();
    let client = reader(&office).await;
    execute(&client, NEXT).await;
    // Autovacuum may be at work as well.
    let held = "SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND (
            a.backend_xmin IS NOT NULL
            OR EXISTS (SELECT FROM pg_locks k WHERE k.pid = a.pid AND k.relation IN (SELECT relid FROM pg_partition_tree('orders'))))";
    assert_eq!(office.psql(held), "0");
    execute(&client, &format!("{NEXT};").repeat(5)).await;
    assert_eq!(came(&client).await, (1..=500).collect::<Vec<_>>());
}

/// Where all of a chunk is gone, what lies behind it is not.
#[tokio::test]
async fn rows_behind_a_chunk_that_is_gone_come() {
    let office = Office::open();
    let client = reader(&office).await;
    execute(&client, NEXT).await;
    office.psql("DELETE FROM orders WHERE seq BETWEEN 101 AND 350");
    // None would be the end.
    execute(&client, NEXT).await;
    assert_eq!(came(&client).await, (1..=100).chain(351..=400).collect::<Vec<_>>());
}

/// However many rows are asked for, a chunk of large ones is a few megabytes.
#[tokio::test]
async fn a_chunk_is_bounded_by_its_bytes() {
    let office = Office::open();
    office.psql(
        "INSERT INTO orders (type, payload) SELECT 'large:' || n, to_jsonb((SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 32768)))
         FROM generate_series(1, 20) n",
    );
    office.create("earliest");
    let client = office.client().await;
    execute(&client, "CREATE TEMP TABLE came (number int GENERATED ALWAYS AS IDENTITY, seq bigint)").await;
    for upto in [8, 16, 20, 20] {
        execute(&client, NEXT).await;
        assert_eq!(came(&client).await, (1..=upto).collect::<Vec<_>>());
    }
}
