//! Retention: what goes, what stays, and who waits. The part of the ring is played by small generations, that of members by
//! checkpoints that are written here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postbox_tests::{Cluster, wait_until_async};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;

use super::{error, refused, row, rows, run};

/// The group has dealt with everything that is committed.
const CHECKPOINT: &str = "UPDATE postbox.checkpoint SET snapshot = pg_current_snapshot(), \
    lsn = pg_current_wal_insert_lsn(), taken_at = clock_timestamp()";
const MAINTAIN: &str = "SELECT step, subject, outcome, detail FROM postbox.maintain(true)";

/// A cluster with the outbox `orders` of small generations that keeps nothing longer than its readers need it.
pub(crate) async fn with_ring() -> (Cluster, Client) {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "10").with_postbox().start();
    let client = cluster.client("postgres").await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders', generation_rows => 1024);
         SELECT postbox.set_retention('orders', '0')",
    )
    .await;
    (cluster, client)
}

async fn publish(client: &Client, count: u32) {
    let sql = format!("INSERT INTO orders (type, payload) SELECT 't', '{{}}' FROM generate_series(1, {count})");
    run(client, &sql).await;
}

/// Lets the next leaf take rows, so that the one that did can be emptied.
async fn turn(client: &Client) {
    let sql = "SELECT setval('orders_seq_seq', (((coalesce(pg_sequence_last_value('orders_seq_seq'), 0) >> 10) + 1) << 10) - 1)";
    run(client, sql).await;
}

pub(crate) async fn maintain(client: &Client) -> Vec<String> {
    rows(client, MAINTAIN).await
}

async fn leaf_rows(client: &Client, leaf: u32) -> String {
    row(client, &format!("SELECT count(*) FROM orders_g{leaf}")).await
}

#[tokio::test]
async fn an_old_leaf_goes_when_every_group_is_done_with_it() {
    let (_cluster, client) = with_ring().await;
    for group in ["a", "b"] {
        run(&client, &format!("SELECT postbox.create_consumer_group('{group}', '{{orders}}')")).await;
    }
    publish(&client, 1000).await;
    turn(&client).await;
    publish(&client, 10).await;

    let pinned = maintain(&client).await;
    assert!(pinned.iter().any(|row| row.starts_with("retention|public.orders|pinned|")), "{pinned:?}");
    let reasons = "SELECT array_to_string(pinned_by, ';') FROM postbox.retention_status";
    let said = row(&client, reasons).await;
    assert!(said.contains("consumer group a,") && said.contains("consumer group b,"), "{said}");

    run(&client, &format!("{CHECKPOINT} WHERE group_name = 'a'")).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "1000");
    let said = row(&client, reasons).await;
    assert!(!said.contains("group a,") && said.contains("group b,"), "{said}");

    run(&client, &format!("{CHECKPOINT} WHERE group_name = 'b'")).await;
    let emptied = maintain(&client).await;
    assert!(emptied.contains(&"retention|public.orders|emptied|public.orders_g0 with 1000 rows".into()), "{emptied:?}");
    assert_eq!(leaf_rows(&client, 0).await, "0");
    assert_eq!(leaf_rows(&client, 1).await, "10", "the leaf that takes rows stays");
    let removed = "SELECT r.rows, r.leaves, postbox._includes(c.snapshot, r.snapshot) FROM postbox.removed r, postbox.checkpoint c \
        WHERE c.group_name = 'a'";
    assert_eq!(row(&client, removed).await, "1000|1|t", "the group that is behind can still start where it is");
    let audited = "SELECT action, subject, detail FROM postbox.audit WHERE action = 'truncate'";
    assert_eq!(row(&client, audited).await, "truncate|public.orders|{\"leaf\": \"public.orders_g0\", \"rows\": 1000}");
}

#[tokio::test]
async fn a_dropped_group_needs_nothing_and_one_without_a_checkpoint_everything() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('a', '{orders}')").await;
    run(&client, "DELETE FROM postbox.checkpoint").await;
    publish(&client, 10).await;
    turn(&client).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "10");
    let said = row(&client, "SELECT array_to_string(pinned_by, ';') FROM postbox.retention_status").await;
    assert!(said.contains("consumer group a needs every row"), "{said}");
    run(&client, "SELECT postbox.drop_consumer_group('a')").await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "0");
}

#[tokio::test]
async fn a_group_that_is_given_rows_from_the_table_keeps_all_of_them() {
    let (_cluster, client) = with_ring().await;
    publish(&client, 10).await;
    run(&client, "SELECT postbox.create_consumer_group('a', '{orders}', start => 'earliest')").await;
    run(&client, CHECKPOINT).await;
    turn(&client).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "10");
    run(&client, "UPDATE postbox.backfill SET finished = true").await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "0");
}

#[tokio::test]
async fn rows_stay_for_the_retention() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.set_retention('orders', '1 day')").await;
    publish(&client, 5).await;
    maintain(&client).await;
    // An old moment, at which half of the rows were not there yet.
    run(&client, "UPDATE postbox.sample SET taken_at = taken_at - interval '3 days'").await;
    publish(&client, 5).await;
    turn(&client).await;
    publish(&client, 10).await;
    maintain(&client).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "10");
    let said = row(&client, "SELECT array_to_string(pinned_by, ';') FROM postbox.retention_status").await;
    assert!(said.contains("retention of 1 day"), "{said}");

    // A sample of another server, or of another life of this one, proves nothing: its transactions are others.
    run(&client, "UPDATE postbox.sample SET taken_at = taken_at - interval '25 hours'").await;
    for lie in ["system_identifier = system_identifier + 1", "timeline = timeline + 1"] {
        run(&client, &format!("BEGIN; UPDATE postbox.sample SET {lie}; COMMIT")).await;
        maintain(&client).await;
        assert_eq!(leaf_rows(&client, 0).await, "10", "{lie}");
        run(&client, &format!("UPDATE postbox.sample SET {}", lie.replace('+', "-"))).await;
    }
    run(
        &client,
        "DELETE FROM postbox.sample WHERE taken_at > now() - interval '1 hour' OR timeline < 1;
         UPDATE postbox.sample SET (system_identifier, timeline) = (SELECT s.system_identifier, s.timeline FROM postbox._server s)",
    )
    .await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "0");
    assert_eq!(leaf_rows(&client, 1).await, "10");
}

/// A transaction that began long ago commits when the group is past all that came after it.
#[tokio::test]
async fn a_row_that_was_committed_late_stays_whatever_lies_around_it() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('a', '{orders}')").await;
    let slow = cluster.client("postgres").await;
    run(&slow, "BEGIN; INSERT INTO orders (type, payload) VALUES ('slow', '{}')").await;
    publish(&client, 1000).await;
    run(&client, CHECKPOINT).await;
    turn(&client).await;
    maintain(&client).await;
    run(&slow, "COMMIT").await;
    for _ in 0..3 {
        maintain(&client).await;
        assert_eq!(row(&client, "SELECT count(*), min(type) FROM orders_g0").await, "1001|slow");
    }
    run(&client, CHECKPOINT).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "0");
}

#[tokio::test]
async fn a_leaf_that_a_transaction_uses_stays_and_nobody_waits_for_it() {
    let (cluster, client) = with_ring().await;
    publish(&client, 100).await;
    turn(&client).await;
    let other = cluster.client("postgres").await;
    let publisher = cluster.client("postgres").await;
    // Whoever waits for as long as this fails.
    run(&publisher, "SET lock_timeout = '5ms'").await;
    let status = "SELECT array_to_string(pinned_by, ';') FROM postbox.retention_status";
    let pid = row(&other, "SELECT pg_backend_pid()").await;
    let cases = [
        ("reading", "BEGIN; SELECT count(*) FROM orders", "ROLLBACK", format!("process {pid}")),
        (
            "writing late",
            "BEGIN; INSERT INTO orders (seq, type, payload) OVERRIDING SYSTEM VALUE VALUES (7, 'late', '{}')",
            "ROLLBACK",
            format!("process {pid}"),
        ),
        (
            "prepared",
            "BEGIN; INSERT INTO orders (seq, type, payload) OVERRIDING SYSTEM VALUE VALUES (8, 'late', '{}'); PREPARE TRANSACTION 'two'",
            "ROLLBACK PREPARED 'two'",
            "prepared transaction 'two'".into(),
        ),
    ];
    for (what, open, close, named) in cases {
        run(&other, open).await;
        let publishing = async {
            for _ in 0..300 {
                publish(&publisher, 1).await;
            }
        };
        let maintaining = async {
            for _ in 0..5 {
                let done = maintain(&client).await;
                assert!(!done.iter().any(|row| row.contains("emptied|public.orders_g0")), "{what}: {done:?}");
            }
        };
        tokio::join!(publishing, maintaining);
        assert_eq!(leaf_rows(&client, 0).await, "100", "{what}");
        let said = row(&client, status).await;
        assert!(said.contains(&named), "{what}: {said}");
        run(&other, close).await;
    }
    // With the open transactions gone it goes.
    let emptied = wait_until_async("the leaf is emptied", Duration::from_secs(10), async || {
        maintain(&client).await.into_iter().find(|row| row.contains("emptied|public.orders_g0"))
    })
    .await;
    assert!(emptied.ends_with("with 100 rows"), "{emptied}");
}

#[tokio::test]
async fn a_slot_that_lags_still_has_what_was_truncated() {
    let (_cluster, client) = with_ring().await;
    let slot = row(&client, "SELECT postbox.create_consumer_group('a', '{orders}')").await;
    publish(&client, 50).await;
    run(&client, CHECKPOINT).await;
    turn(&client).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "0");
    let sql = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL) AS s, postbox.decode(s.data) AS d"
    );
    let seen = wait_until_async("the slot shows them", Duration::from_secs(10), async || {
        let count = row(&client, &sql).await;
        (count != "0").then_some(count)
    })
    .await;
    assert_eq!(seen, "50");
}

/// A late row arrives while a leaf is looked through that takes a while to look through.
#[tokio::test]
async fn a_row_that_arrives_during_the_proof_is_not_lost() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.create_consumer_group('a', '{orders}')").await;
    let fill = "INSERT INTO orders (seq, type, payload) OVERRIDING SYSTEM VALUE
        SELECT 1, 't', to_jsonb(repeat(md5(n::text), 60)) FROM generate_series(1, 80000) n";
    run(
        &client,
        "ALTER TABLE orders_g0 ALTER payload SET STORAGE PLAIN; ALTER TABLE orders_g0 SET (autovacuum_enabled = false)",
    )
    .await;
    turn(&client).await;
    run(&client, fill).await;
    let publisher = cluster.client("postgres").await;
    let late = "INSERT INTO orders (seq, type, payload) OVERRIDING SYSTEM VALUE VALUES (1, 'late', '{}')";
    let seed = rand::rng().random();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut sent, mut looked, mut said) = (0, 0, Vec::new());
    for _ in 0..30 {
        run(&client, CHECKPOINT).await;
        let delay = Duration::from_micros(random.random_range(0..150_000));
        let publish = async {
            tokio::time::sleep(delay).await;
            run(&publisher, late).await;
        };
        let (_, done) = tokio::join!(publish, maintain(&client));
        sent += 1;
        said = done.clone();
        looked += usize::from(done.iter().any(|row| row.contains("emptied") || row.contains("somebody waits")));
        let there = "SELECT count(*) FROM orders WHERE type = 'late' AND NOT pg_visible_in_snapshot(xid, (SELECT snapshot FROM postbox.checkpoint))";
        assert_eq!(row(&client, there).await, "1", "seed {seed}, late row {sent}: {done:?}");
        if leaf_rows(&client, 0).await == "1" {
            run(&client, fill).await;
        }
    }
    assert!(looked > 0, "the leaf was never looked through: {said:?}");
}

/// Whoever comes late finds the leaf locked for a part of the look only, however large it is.
#[tokio::test]
async fn a_publisher_of_a_late_row_waits_for_a_moment_only() {
    let (cluster, client) = with_ring().await;
    turn(&client).await;
    let fill = "INSERT INTO orders (seq, type, payload) OVERRIDING SYSTEM VALUE
        SELECT 1, 't', to_jsonb(repeat(md5(n::text), 60)) FROM generate_series(1, 160000) n";
    run(
        &client,
        "ALTER TABLE orders_g0 ALTER payload SET STORAGE PLAIN; ALTER TABLE orders_g0 SET (autovacuum_enabled = false)",
    )
    .await;
    run(&client, fill).await;
    run(&client, "CHECKPOINT").await;
    let publisher = cluster.client("postgres").await;
    let watcher = cluster.client("postgres").await;
    let late = async {
        let locked = "SELECT 1 FROM pg_locks WHERE relation = 'orders_g0'::regclass AND mode = 'ShareLock' AND granted";
        wait_until_async("the leaf is looked through", Duration::from_secs(30), async || {
            rows(&watcher, locked).await.pop()
        })
        .await;
        run(&publisher, "INSERT INTO orders (seq, type, payload) OVERRIDING SYSTEM VALUE VALUES (1, 'late', '{}')")
            .await;
    };
    let (done, ()) = tokio::join!(maintain(&client), late);
    assert!(done.iter().any(|row| row.ends_with("public.orders_g0: somebody waits to write to it")), "{done:?}");
    assert_eq!(leaf_rows(&client, 0).await, "160001");
}

/// Random publishers, also slow and late ones, groups that come, read and go, and maintenance: after each step every event that
/// some group has not had is there.
#[tokio::test]
async fn nothing_that_a_group_needs_ever_goes() {
    let seed: u64 =
        std::env::var("POSTBOX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random());
    let mut random = StdRng::seed_from_u64(seed);
    let (cluster, client) = with_ring().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push((cluster.client("postgres").await, Vec::new()));
    }
    let mut next_id = 0_u32;
    let mut committed = BTreeSet::new();
    // What each group has had.
    let mut groups = BTreeMap::<String, BTreeSet<u32>>::new();
    let mut made = 0;
    let mut all = BTreeSet::new();
    for step in 0..600 {
        let what = random.random_range(0..100);
        let (session, pending) = {
            let index = random.random_range(0..sessions.len());
            let (session, pending) = &mut sessions[index];
            (&*session, pending)
        };
        match what {
            0..35 => {
                if pending.is_empty() {
                    run(session, "BEGIN").await;
                }
                next_id += 1;
                all.insert(next_id);
                // One in four has had its seq for a while.
                let seq = match random.random_range(0..4) {
                    0 => {
                        "greatest(coalesce(pg_sequence_last_value('orders_seq_seq'), 1) - 1024 * (random() * 4)::int, 1)"
                    }
                    _ => "nextval('orders_seq_seq')",
                };
                let sql = format!(
                    "INSERT INTO orders (seq, type, key, payload) OVERRIDING SYSTEM VALUE VALUES ({seq}, 't', '{next_id}', '{{}}')"
                );
                run(session, &sql).await;
                pending.push(next_id);
            }
            35..55 => {
                run(session, "COMMIT").await;
                committed.append(&mut pending.drain(..).collect());
            }
            55..58 => {
                run(session, "ROLLBACK").await;
                pending.clear();
            }
            58..72 => {
                if let Some(name) = groups.keys().nth(random.random_range(0..3)).cloned() {
                    let sql = format!("{CHECKPOINT} WHERE group_name = '{name}'");
                    run(&client, &sql).await;
                    // What it was to be given from the table, it has as well, or the checkpoint comes a little earlier.
                    if random.random_bool(0.5) {
                        run(
                            &client,
                            &format!("UPDATE postbox.backfill SET finished = true WHERE group_name = '{name}'"),
                        )
                        .await;
                    }
                    groups.insert(name, committed.clone());
                }
            }
            // Making one waits for whoever writes.
            72..75 if groups.len() < 3 => {
                for (session, pending) in &mut sessions {
                    run(session, "COMMIT").await;
                    committed.append(&mut pending.drain(..).collect());
                }
                made += 1;
                let earliest = random.random_bool(0.5);
                let name = format!("g{made}");
                let start = if earliest { "earliest" } else { "latest" };
                run(
                    &client,
                    &format!("SELECT postbox.create_consumer_group('{name}', '{{orders}}', start => '{start}')"),
                )
                .await;
                let held = rows(&client, "SELECT key FROM orders").await;
                let held: BTreeSet<u32> = held.iter().map(|key| key.parse().unwrap()).collect();
                let had = if earliest { committed.difference(&held).copied().collect() } else { committed.clone() };
                groups.insert(name, had);
            }
            75..77 if groups.len() > 1 => {
                let name = groups.keys().next().unwrap().clone();
                run(&client, &format!("SELECT postbox.drop_consumer_group('{name}')")).await;
                groups.remove(&name);
            }
            _ => {
                maintain(&client).await;
                let held = rows(&client, "SELECT key FROM orders").await;
                let held: BTreeSet<u32> = held.iter().map(|key| key.parse().unwrap()).collect();
                for (name, had) in &groups {
                    let lost: Vec<_> = committed.difference(had).filter(|id| !held.contains(id)).collect();
                    assert!(lost.is_empty(), "seed {seed}, step {step}: {name} has not had {lost:?}, which are gone");
                }
            }
        }
    }
    let removed = row(&client, "SELECT coalesce(sum(rows), 0) FROM postbox.removed").await;
    assert_ne!(removed, "0", "seed {seed}: nothing was ever removed");
}

#[tokio::test]
async fn the_ring_turns_by_time_and_never_backwards() {
    let (cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.set_retention('orders', '2 hours')").await;
    publish(&client, 10).await;
    let before: i64 = row(&client, "SELECT last_seq FROM postbox.outbox_status('orders')").await.parse().unwrap();
    let young = maintain(&client).await;
    assert!(!young.iter().any(|row| row.starts_with("ring|")), "{young:?}");
    // After half of the retention the next leaf takes over, with publishers at full speed.
    run(&client, "UPDATE postbox.sample SET taken_at = taken_at - interval '61 minutes'").await;
    let publisher = cluster.client("postgres").await;
    let publishing = async {
        for _ in 0..200 {
            publish(&publisher, 1).await;
        }
    };
    let (_, turned) = tokio::join!(publishing, maintain(&client));
    assert!(turned.iter().any(|row| row.starts_with("ring|public.orders|advanced")), "{turned:?}");
    publish(&client, 5).await;
    assert_ne!(leaf_rows(&client, 1).await, "0");
    let order = "SELECT bool_and(ordered), max(seq) > 4294967296, count(*) = count(DISTINCT seq) FROM
        (SELECT seq, seq > lag(seq, 1, 0::bigint) OVER (ORDER BY xid) AS ordered FROM orders WHERE xid IN (SELECT xid FROM orders GROUP BY xid HAVING count(*) = 1)) o";
    assert_eq!(row(&client, order).await, "t|t|t");
    let after: i64 = row(&client, "SELECT last_seq FROM postbox.outbox_status('orders')").await.parse().unwrap();
    assert!(after > before);
    assert_eq!(
        row(&client, "SELECT count(*) FROM postbox.ring_move WHERE to_seq - from_seq >= 4294967296 - 1024").await,
        "1"
    );
}

#[tokio::test]
async fn a_busy_outbox_does_not_come_round_before_its_rows_are_old() {
    let (_cluster, client) = with_ring().await;
    run(&client, "SELECT postbox.set_retention('orders', '1 day')").await;
    // Ten generations' worth, with maintenance now and then.
    for _ in 0..20 {
        publish(&client, 600).await;
        maintain(&client).await;
    }
    assert_eq!(leaf_rows(&client, 0).await, "12000");
    // A day later all of it goes, and not before the next leaf has taken over.
    run(&client, "UPDATE postbox.sample SET taken_at = taken_at - interval '25 hours'").await;
    publish(&client, 1).await;
    maintain(&client).await;
    publish(&client, 1).await;
    run(&client, "UPDATE postbox.sample SET taken_at = taken_at - interval '25 hours'").await;
    maintain(&client).await;
    maintain(&client).await;
    assert_eq!(leaf_rows(&client, 0).await, "0");
    // Without maintenance the sequence goes through all leaves, and publishing goes on.
    publish(&client, 6000).await;
    for leaf in 0..4 {
        assert_ne!(leaf_rows(&client, leaf).await, "0");
    }
    maintain(&client).await;
    let full = "SELECT is_ring_full, full_leaves FROM postbox.retention_status";
    assert_eq!(row(&client, full).await, "t|3");
}

#[tokio::test]
async fn wrong_settings_are_refused() {
    let (_cluster, client) = with_ring().await;
    run(&client, "CREATE TABLE plain (); CREATE TABLE mine (event_id uuid, type text, payload jsonb)").await;
    run(&client, "SELECT postbox.adopt_outbox('mine')").await;
    let cases = [
        ("'orders', '-1 day'", "22023", "the retention of outbox \"orders\" is -1 days", "interval"),
        ("'orders', NULL", "22023", "is NULL", "interval"),
        ("'orders', '1 day', 0", "22023", "is 0 bytes", "10 GB"),
        ("'orders', '1 day', NULL", "22023", "is NULL bytes", "10 GB"),
        ("'plain', '1 day'", "42809", "\"plain\" is not an outbox", "outbox_status"),
        ("'orders_g0', '1 day'", "42809", "\"orders_g0\" is not an outbox", "outbox_status"),
        ("'nowhere', '1 day'", "42P01", "outbox \"nowhere\" does not exist", "outbox_status"),
        ("NULL, '1 day'", "42P01", "outbox NULL does not exist", "outbox_status"),
        ("'mine', '1 day'", "42809", "adopted table", "create_outbox"),
    ];
    for (arguments, code, message, hint) in cases {
        refused(&client, &format!("SELECT postbox.set_retention({arguments})"), code, message, hint).await;
    }
    let kept = "SELECT outbox, retention, critical_bytes FROM postbox.outbox_setting";
    assert_eq!(row(&client, kept).await, "orders|00:00:00|10737418240");
    let said = "SELECT pinned_by FROM postbox.retention_status WHERE name = 'mine'";
    assert!(row(&client, said).await.contains("adopted table"));
    run(&client, "SELECT postbox.drop_outbox('orders')").await;
    maintain(&client).await;
    assert_eq!(rows(&client, kept).await, [""; 0]);
}

/// Rows that a policy hides from the one who maintains are an error, never rows that are not there.
#[tokio::test]
async fn hidden_rows_are_not_removed() {
    let (_cluster, client) = with_ring().await;
    run(&client, "CREATE ROLE keeper; SELECT postbox.grant_role('maintainer', 'keeper', '{orders}')").await;
    publish(&client, 10).await;
    turn(&client).await;
    run(&client, "ALTER TABLE orders_g0 ENABLE ROW LEVEL SECURITY; SET ROLE keeper").await;
    let skipped = maintain(&client).await;
    assert!(
        skipped
            .iter()
            .any(|row| row.starts_with("retention|public.orders|skipped|") && row.contains("row-level security")),
        "{skipped:?}"
    );
    run(&client, "RESET ROLE").await;
    assert_eq!(leaf_rows(&client, 0).await, "10");
    let late = error(&client, "SET ROLE keeper; TRUNCATE orders_g1; DELETE FROM orders_g1").await;
    assert_eq!(late.code().code(), "42501");
}

/// Maintenance may be run by a role that may do more than the owner of a table, so it calls nothing that is his.
#[tokio::test]
async fn a_table_whose_types_are_its_owners_is_no_ring() {
    let (_cluster, client) = with_ring().await;
    run(
        &client,
        "CREATE TYPE mine AS ENUM ('one'); CREATE TABLE called (by name);
         CREATE FUNCTION theirs(mine) RETURNS xid8 LANGUAGE plpgsql AS $$ BEGIN INSERT INTO called VALUES (current_user); RETURN '1'::xid8; END $$;
         CREATE CAST (mine AS xid8) WITH FUNCTION theirs(mine) AS IMPLICIT;
         CREATE TABLE trap (seq bigint GENERATED ALWAYS AS IDENTITY, event_id uuid, type text, payload jsonb, xid mine) PARTITION BY LIST (((seq >> 10) & 3));
         CREATE TABLE trap_g0 PARTITION OF trap FOR VALUES IN (0); CREATE TABLE trap_g1 PARTITION OF trap FOR VALUES IN (1);
         CREATE TABLE trap_g2 PARTITION OF trap FOR VALUES IN (2); CREATE TABLE trap_g3 PARTITION OF trap FOR VALUES IN (3);
         CREATE TRIGGER postbox_outbox BEFORE UPDATE ON trap FOR EACH ROW WHEN (false) EXECUTE FUNCTION suppress_redundant_updates_trigger();
         INSERT INTO trap (xid) SELECT 'one' FROM generate_series(1, 3000);
         INSERT INTO postbox.outbox_setting VALUES ('trap', '0', 1)",
    )
    .await;
    for _ in 0..3 {
        let steps = maintain(&client).await;
        assert!(!steps.iter().any(|step| step.contains("trap") && step.contains("emptied")), "{steps:?}");
    }
    assert_eq!(row(&client, "SELECT count(*), (SELECT count(*) FROM called) FROM trap").await, "3000|0");
    // It may become one between two looks.
    let probe =
        "SELECT postbox._probe('trap_g0'::regclass::oid, 'public.trap_g0', 0, 10, array[pg_current_snapshot()])";
    refused(&client, probe, "42809", "trap_g0 is no leaf of an outbox any more", "xid8").await;
    assert_eq!(row(&client, "SELECT count(*) FROM called").await, "0");
}

/// A leaf is looked at and emptied by its name, which another table may have by then.
#[tokio::test]
async fn a_table_that_has_the_name_of_a_leaf_by_now_is_left_alone() {
    let (_cluster, client) = with_ring().await;
    let oid = row(&client, "SELECT 'orders_g0'::regclass::oid").await;
    run(&client, "ALTER TABLE orders_g0 RENAME TO former; CREATE TABLE orders_g0 (xid xid8)").await;
    let probe = format!("SELECT postbox._probe({oid}, 'public.orders_g0', 0, 10, array[pg_current_snapshot()])");
    refused(&client, &probe, "42809", "public.orders_g0 is no leaf of an outbox any more", "xid8").await;
}
