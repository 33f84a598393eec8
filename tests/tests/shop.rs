//! A shop: an outbox `orders`, those who write to it, a slot to deliver from, and the truth to compare with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postbox::Lsn;
use postbox_tests::{Builder, Cluster, Line, Run, wait_until, wait_until_async};
use rand::RngExt;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// The slot that tests deliver from.
pub(crate) const SLOT: &str = "shop";

/// Longer than anything takes on a busy machine; a test that hangs fails with what it waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The type of the events that are never committed.
pub(crate) const UNDONE: &str = "undone";

/// A cluster with an outbox, and two slots that saw the same log from the same place on: one of Postbox, and one of
/// test_decoding, which tells the truth.
pub(crate) struct Shop {
    pub(crate) cluster: Cluster,
}

impl Shop {
    pub(crate) fn open() -> Self {
        Self::open_with(Cluster::builder())
    }

    pub(crate) fn open_with(builder: Builder) -> Self {
        let cluster = builder.with_postbox().start();
        cluster.psql("postgres", "SELECT postbox.create_outbox('orders'); CREATE TABLE other (n int)");
        for (slot, plugin) in [("truth", "test_decoding"), (SLOT, "postbox")] {
            cluster.psql("postgres", &format!("SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')"));
        }
        Self { cluster }
    }

    pub(crate) fn conninfo(&self) -> String {
        self.cluster.conninfo("postgres")
    }

    pub(crate) async fn client(&self) -> Client {
        self.cluster.client("postgres").await
    }

    pub(crate) fn psql(&self, sql: &str) -> String {
        self.cluster.psql("postgres", sql)
    }

    /// Starts `postbox run` on the slot.
    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::start(&self.conninfo(), &[&["--slot", SLOT], arguments].concat())
    }

    /// As [`run`](Self::run), but nothing reads what it prints.
    pub(crate) fn run_held(&self, arguments: &[&str]) -> Run {
        Run::start_held(&self.conninfo(), &[&["--slot", SLOT], arguments].concat())
    }

    /// Delivers what is left, and returns it.
    pub(crate) fn drain(&self) -> Vec<Line> {
        let end = self.psql("SELECT pg_current_wal_flush_lsn()");
        let ended = self.run(&["--until-lsn", &end]).end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        ended.lines
    }

    /// The ids of the committed events in commit order, and within a transaction in the order of their insertion: as
    /// test_decoding tells it.
    pub(crate) fn committed(&self) -> Vec<Uuid> {
        let ids = self.psql(
            "SELECT substring(data FROM 'event_id\\[uuid\\]:''([0-9a-f-]{36})''') \
             FROM pg_logical_slot_peek_changes('truth', NULL, NULL) WHERE data LIKE 'table public.orders%: INSERT:%'",
        );
        ids.lines().map(|id| id.parse().expect("an id")).collect()
    }

    /// Everything that committed below this is confirmed.
    pub(crate) fn confirmed(&self) -> Lsn {
        lsn(&self.psql(&format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'")))
    }

    /// Waits until nobody reads the slot, and returns how far it is confirmed.
    pub(crate) fn confirmed_at_rest(&self) -> Lsn {
        wait_until("the slot is free", PATIENCE, || {
            let answer = self.psql(&format!(
                "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND NOT active"
            ));
            (!answer.is_empty()).then(|| lsn(&answer))
        })
    }

    /// The server process that streams from the slot.
    pub(crate) fn walsender(&self) -> u32 {
        wait_until("somebody reads the slot", PATIENCE, || {
            self.psql(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}'")).parse().ok()
        })
    }

    /// Waits until the walsender cannot go on because nobody takes what it sends.
    pub(crate) fn wait_until_stuck(&self) {
        wait_until("the walsender is stuck", PATIENCE, || {
            let wait = self.psql("SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'walsender'");
            (wait == "WalSenderWriteData").then_some(())
        });
    }

    /// Commits so many events of `bytes` bytes in one transaction.
    pub(crate) fn publish(&self, events: usize, bytes: usize) {
        self.psql(&insert(events, bytes));
    }
}

/// The statement that publishes so many events of `bytes` bytes.
pub(crate) fn insert(events: usize, bytes: usize) -> String {
    format!(
        "INSERT INTO orders (type, key, payload) SELECT 'kept', 'key-' || n % 100, jsonb_build_object('n', n, 'filler', \
         repeat('x', {bytes})) FROM generate_series(1, {events}) AS n;"
    )
}

pub(crate) fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no position"))
}

/// [`Shop::confirmed`] over a connection that is already there.
pub(crate) async fn confirmed(client: &Client) -> Lsn {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    lsn(client.query_one(sql, &[&SLOT]).await.expect("the slot").get(0))
}

/// Waits until the slot is confirmed at least up to here.
pub(crate) async fn wait_until_confirmed(client: &Client, position: Lsn, timeout: Duration) {
    let what = format!("{position} is confirmed");
    wait_until_async(&what, timeout, async || (confirmed(client).await >= position).then_some(())).await;
}

/// Everything that was committed came, in its order, and nothing else; what came again is set aside. Returns how many
/// came again.
pub(crate) fn assert_delivered(lines: &[Line], committed: &[Uuid]) -> usize {
    let mut seen = std::collections::HashSet::new();
    let fresh: Vec<&Line> = lines.iter().filter(|line| seen.insert(line.event_id)).collect();
    assert!(fresh.iter().all(|line| line.event_type != UNDONE), "an event that was rolled back came");
    assert!(fresh.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "out of the order of (commit_lsn, ordinal)");
    let first_wrong = fresh.iter().zip(committed).position(|(line, id)| line.event_id != *id);
    assert_eq!(
        (fresh.len(), first_wrong),
        (committed.len(), None),
        "delivered and committed; the first difference is at {first_wrong:?}"
    );
    lines.len() - fresh.len()
}

/// Waits until the process has printed so many events that it had not printed when this was called.
pub(crate) fn wait_for_more(run: &mut Run, events: usize) {
    let newest = run.lines().iter().map(place).max();
    run.wait_until(&format!("{events} new events"), PATIENCE, |lines| {
        // What came again lies before.
        lines.iter().rev().take_while(|line| Some(place(line)) > newest).count() >= events
    });
}

/// Where an event stands in the log.
pub(crate) fn place(line: &Line) -> (Lsn, u64) {
    (line.commit_lsn, line.ordinal)
}

/// Concurrent writers: transactions that commit or roll back, with savepoints that are kept or rolled back, and pauses
/// before the end. They live through restarts of the server.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// So many writers, each with pauses up to this long.
    pub(crate) fn start(shop: &Shop, writers: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..writers).map(|_| tokio::spawn(write(shop.conninfo(), Arc::clone(&stop), pause))).collect();
        Self { stop, tasks }
    }

    /// Lets them finish what they have begun.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer");
        }
    }
}

async fn write(conninfo: String, stop: Arc<AtomicBool>, pause: Duration) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut client, connection)) = tokio_postgres::connect(&conninfo, NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let connection = tokio::spawn(connection);
        // An error is that of a server that stops; whether a commit under way took place, the log knows.
        while !stop.load(Ordering::Relaxed) && transact(&mut client, pause).await.is_ok() {}
        drop(client);
        let _ = connection.await;
    }
}

/// One transaction.
pub(crate) async fn transact(client: &mut Client, pause: Duration) -> Result<(), tokio_postgres::Error> {
    let (events, savepoint, commit, pause) = {
        let mut rng = rand::rng();
        let commit = rng.random_bool(0.8);
        (rng.random_range(1..5), rng.random_range(0..4), commit, pause.mul_f64(rng.random::<f64>()))
    };
    let kind = if commit { "kept" } else { UNDONE };
    let insert = |kind: &str, events: usize| {
        format!(
            "INSERT INTO orders (type, payload) SELECT '{kind}', jsonb_build_object('n', n, 'filler', repeat('x', 500)) \
             FROM generate_series(1, {events}) n"
        )
    };
    let mut transaction = client.transaction().await?;
    transaction.batch_execute(&insert(kind, events)).await?;
    match savepoint {
        0 => {
            let savepoint = transaction.savepoint("regret").await?;
            savepoint.batch_execute(&insert(UNDONE, 2)).await?;
            savepoint.rollback().await?;
        }
        1 => {
            let savepoint = transaction.savepoint("keep").await?;
            savepoint.batch_execute(&insert(kind, 1)).await?;
            savepoint.commit().await?;
        }
        _ => {}
    }
    tokio::time::sleep(pause).await;
    if commit { transaction.commit().await } else { transaction.rollback().await }
}
