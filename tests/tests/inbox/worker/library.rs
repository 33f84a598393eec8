//! `InboxWorker` with handlers in this process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::{Failure, InboxHandler, InboxMessage, InboxWorker};
use postbox_tests::{Cluster, Proxy, wait_until_async};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::Transaction;

use super::{Desk, PATIENCE};

/// A worker in a task, and what stops it.
struct Running {
    task: JoinHandle<postbox::Result<u64>>,
    stop: oneshot::Sender<()>,
}

impl Running {
    fn start(worker: InboxWorker, handler: impl InboxHandler) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(worker.maintenance(false).run(handler, async { drop(stopped.await) }));
        Self { task, stop }
    }

    async fn stop(self) -> u64 {
        drop(self.stop);
        self.task.await.expect("the worker does not panic").expect("it stops without an error")
    }
}

fn worker(desk: &Desk) -> InboxWorker {
    InboxWorker::new(desk.cluster.conninfo("postgres"), "box")
}

async fn wait(desk: &Desk, sql: &str, expected: &str) {
    let client = desk.cluster.client("postgres").await;
    let fact = async || {
        let row = client.query_one(&format!("SELECT ({sql})::text"), &[]).await.expect(sql);
        (row.get::<_, Option<&str>>(0) == Some(expected)).then_some(())
    };
    wait_until_async(&format!("{sql} gives {expected}"), PATIENCE, fact).await;
}

const LEFT: &str = "SELECT count(*) FROM postbox.inbox_batch";

/// Notes the message in a table, and then does what its id says.
#[derive(Clone, Copy)]
struct Note;

impl InboxHandler for Note {
    async fn handle(&self, message: &InboxMessage, transaction: &Transaction<'_>) -> Result<(), Failure> {
        transaction.execute("INSERT INTO effect VALUES ($1)", &[&&*message.event_id]).await?;
        match &*message.event_id {
            "error" => Err(Failure::new("not today")),
            "panic" => panic!("oh no"),
            "sql" => Ok(transaction.batch_execute("SELECT 1/0").await?),
            "swallowed" => {
                drop(transaction.batch_execute("SELECT 1/0").await);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Says which messages it was given, and waits until it may end.
#[derive(Clone, Default)]
struct Wait {
    entered: Arc<Mutex<Vec<String>>>,
    go: Arc<Notify>,
}

impl InboxHandler for Wait {
    async fn handle(&self, message: &InboxMessage, _: &Transaction<'_>) -> Result<(), Failure> {
        let go = self.go.notified();
        self.entered.lock().unwrap().push(message.event_id.to_string());
        go.await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_a_panic_and_a_broken_constraint_roll_back_and_are_kept() {
    let desk = Desk::open(", max_retries => 1, backoff_initial => '1 millisecond'");
    desk.psql("CREATE TABLE effect (id text, CONSTRAINT late UNIQUE (id) DEFERRABLE INITIALLY DEFERRED); INSERT INTO effect VALUES ('broken')");
    desk.receive(&["broken", "error", "fine", "panic", "sql", "swallowed"]);
    let running = Running::start(worker(&desk), Note);
    wait(&desk, LEFT, "0").await;
    assert_eq!(running.stop().await, 1);
    assert_eq!(desk.psql("SELECT id FROM effect ORDER BY id"), "broken\nfine");
    let dead = desk.dead("event_id || ' ' || attempts || ' ' || split_part(error, E'\\n', 1)");
    let dead = dead.lines().collect::<Vec<_>>();
    assert_eq!(dead.len(), 5, "{dead:?}");
    for (dead, words) in dead.iter().zip([
        "broken 2 db error: ERROR: duplicate key value violates unique constraint",
        "error 2 not today",
        "panic 2 the handler panicked: oh no",
        "sql 2 db error: ERROR: division by zero",
        "swallowed 2 db error: ERROR: current transaction is aborted",
    ]) {
        assert!(dead.contains(words), "{dead} should say {words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_committed_for_the_sake_of_others_has_used_no_attempt() {
    let desk = Desk::open(", max_retries => 0");
    desk.psql(
        "CREATE TABLE effect (id text); CREATE SEQUENCE tries;
         CREATE FUNCTION give_way() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE codes CONSTANT text[] := '{40001,40P01,53100}'; nth CONSTANT bigint := nextval('tries');
         BEGIN
             IF nth <= 3 THEN RAISE 'not now' USING errcode = codes[nth]; END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER give_way AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION give_way()",
    );
    desk.receive(&["a"]);
    let running = Running::start(worker(&desk), Note);
    wait(&desk, LEFT, "0").await;
    assert_eq!(running.stop().await, 1);
    assert_eq!(desk.psql("SELECT count(*) FROM effect"), "1");
    assert_eq!(desk.psql("SELECT last_value FROM tries"), "4");
    assert_eq!(desk.dead("event_id"), "");
    assert_eq!(desk.psql("SELECT count(*) FROM postbox.inbox_log WHERE what = 'failed'"), "0");
}

/// A function that fails with the code that comes next in the list, as often as there is one.
fn give_way(desk: &Desk, codes: &str) {
    desk.psql(&format!(
        "CREATE TABLE effect (id text); CREATE SEQUENCE tries;
         CREATE FUNCTION give_way() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE codes CONSTANT text[] := '{codes}'; code text := codes[nextval('tries')];
         BEGIN
             IF code = '57P01' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             IF code IS NOT NULL THEN RAISE 'not now' USING errcode = code; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER give_way BEFORE INSERT ON effect FOR EACH ROW EXECUTE FUNCTION give_way()"
    ));
}

/// The handler's own statement fails, and not the message.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_gave_way_to_others_has_used_no_attempt() {
    let desk = Desk::open(", max_retries => 0");
    give_way(&desk, "{40001,40P01,57P01,53100}");
    desk.receive(&["a", "b"]);
    let running = Running::start(worker(&desk), Note);
    wait(&desk, LEFT, "0").await;
    assert_eq!(running.stop().await, 2);
    assert_eq!(desk.psql("SELECT string_agg(id, ' ' ORDER BY id) FROM effect"), "a b");
    assert_eq!(desk.psql("SELECT last_value FROM tries"), "6");
    assert_eq!(desk.dead("event_id"), "");
    assert_eq!(desk.psql("SELECT count(*) FROM postbox.inbox_log WHERE what = 'failed'"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_always_gives_way_is_a_failure_in_the_end() {
    for deferred in [false, true] {
        let desk = Desk::open(", max_retries => 1, backoff_initial => '1 millisecond'");
        give_way(&desk, &format!("{{{}}}", ["40P01"; 12].join(",")));
        if deferred {
            desk.psql(
                "DROP TRIGGER give_way ON effect;
                 CREATE CONSTRAINT TRIGGER give_way AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION give_way()",
            );
        }
        desk.receive(&["a"]);
        let running = Running::start(worker(&desk), Note);
        wait(&desk, "SELECT count(*) FROM postbox.inbox_dead", "1").await;
        desk.receive(&["b"]);
        wait(&desk, LEFT, "0").await;
        assert_eq!(running.stop().await, 1);
        // Each attempt is begun six times.
        let seen = desk.dead("event_id || ' ' || attempts || ' ' || error");
        assert!(seen.starts_with("a 2 db error: ERROR: not now"), "{seen}");
        assert_eq!(desk.psql("SELECT last_value FROM tries"), "13");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_in_a_handlers_statement_has_used_no_attempt() {
    let desk = Desk::open(", max_retries => 0");
    desk.psql(
        "CREATE TABLE effect (id text);
         CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END';
         CREATE TRIGGER hold BEFORE INSERT ON effect FOR EACH ROW EXECUTE FUNCTION hold()",
    );
    desk.receive(&["a"]);
    let holder = desk.cluster.client("postgres").await;
    holder.execute("SELECT pg_advisory_lock(1)", &[]).await.expect("a lock");
    let proxy = Proxy::to(desk.cluster.port());
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port());
    let running = Running::start(InboxWorker::new(conninfo, "box"), Note);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    wait(&desk, waiting, "1").await;
    proxy.cut();
    proxy.reopen();
    // The server does not know that nobody listens to the first one.
    wait(&desk, waiting, "2").await;
    holder.execute("SELECT pg_advisory_unlock(1)", &[]).await.expect("no lock");
    wait(&desk, LEFT, "0").await;
    assert_eq!(running.stop().await, 1);
    assert_eq!(desk.psql("SELECT count(*) FROM effect"), "1");
    assert_eq!(desk.dead("event_id"), "");
}

/// While a handler takes longer than its lease, nobody else is handed its message.
#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_a_long_handler_is_extended() {
    let desk = Desk::open("");
    desk.receive(&["a"]);
    let handler = Wait::default();
    let second = Duration::from_secs(1);
    let one = Running::start(worker(&desk).visibility(second), handler.clone());
    let other =
        Running::start(worker(&desk).visibility(second).poll_interval(Duration::from_millis(20)), handler.clone());
    wait(&desk, "SELECT lease_until > leased_at + interval '3 seconds' FROM postbox.inbox_batch", "true").await;
    assert_eq!(*handler.entered.lock().unwrap(), ["a"]);
    handler.go.notify_waiters();
    wait(&desk, LEFT, "0").await;
    assert_eq!(one.stop().await + other.stop().await, 1);
    assert_eq!(desk.psql("SELECT count(*) FROM postbox.inbox_log WHERE what = 'failed'"), "0");
}

/// Says when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Waits in the server for very long.
struct Sleep(Arc<Notify>);

impl InboxHandler for Sleep {
    async fn handle(&self, _: &InboxMessage, transaction: &Transaction<'_>) -> Result<(), Failure> {
        let _dropped = Dropped(Arc::clone(&self.0));
        Ok(transaction.batch_execute("SELECT pg_sleep(3600)").await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_lease_is_lost_is_dropped_and_its_statement_ended() {
    let desk = Desk::open("");
    desk.receive(&["a"]);
    let dropped = Arc::new(Notify::new());
    let handler = Sleep(Arc::clone(&dropped));
    let running = Running::start(worker(&desk).visibility(Duration::from_secs(1)), handler);
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait(&desk, sleeping, "1").await;
    // As if it had been handed to somebody else, for an hour.
    desk.psql("UPDATE postbox.inbox_batch SET token = nextval('postbox.inbox_token'), lease_until = now() + interval '1 hour'");
    tokio::time::timeout(PATIENCE, dropped.notified()).await.expect("the handler is dropped");
    wait(&desk, sleeping, "0").await;
    assert_eq!(running.stop().await, 0);
}

/// The link breaks while the server commits: the worker finds out that it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_outcome_is_unknown_is_settled_by_the_token() {
    for committed in [true, false] {
        let desk = Desk::open("");
        // The commit waits for a lock, and fails or not.
        desk.psql(
            "CREATE TABLE effect (id text); CREATE TABLE verdict (fails boolean);
             CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM pg_advisory_xact_lock(1);
                 IF (SELECT fails FROM verdict) THEN RAISE 'no'; END IF;
                 RETURN NULL;
             END $$;
             CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()",
        );
        desk.psql(&format!("INSERT INTO verdict VALUES ({})", !committed));
        desk.receive(&["a"]);
        let holder = desk.cluster.client("postgres").await;
        holder.execute("SELECT pg_advisory_lock(1)", &[]).await.expect("a lock");
        let proxy = Proxy::to(desk.cluster.port());
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port());
        let running = Running::start(InboxWorker::new(conninfo, "box"), Note);
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query = 'COMMIT'";
        wait(&desk, waits, "1").await;
        proxy.cut();
        proxy.reopen();
        // The server does not know yet that nobody listens. The worker asks, and waits for the commit.
        wait(
            &desk,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%inbox_release%' AND wait_event_type = 'Lock'",
            "1",
        )
        .await;
        desk.psql("UPDATE verdict SET fails = fails");
        holder.execute("SELECT pg_advisory_unlock(1)", &[]).await.expect("no lock");
        if !committed {
            wait(&desk, "SELECT attempts FROM postbox.inbox_batch WHERE token IS NULL OR attempts = 1", "1").await;
            desk.psql("UPDATE verdict SET fails = false");
        }
        wait(&desk, LEFT, "0").await;
        running.stop().await;
        assert_eq!(desk.psql("SELECT count(*) FROM effect"), "1");
        assert_eq!(desk.processed(), "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_messages_are_handled_at_once_and_those_of_a_claim_in_turn() {
    let desk = Desk::open("");
    desk.psql("INSERT INTO box (event_id) SELECT 'x' || n FROM generate_series(1, 3) n");
    desk.psql("INSERT INTO box (event_id) SELECT 'y' || n FROM generate_series(1, 3) n");
    let handler = Wait::default();
    let entered = || handler.entered.lock().unwrap().clone();
    let running = Running::start(worker(&desk).concurrency(2).batch_size(3), handler.clone());
    let both = async || (entered().len() == 2).then_some(());
    wait_until_async("two handlers", PATIENCE, both).await;
    let mut first = entered();
    first.sort();
    assert_eq!(first, ["x1", "y1"]);
    while desk.psql(LEFT) != "0" {
        handler.go.notify_waiters();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(running.stop().await, 6);
    let entered = entered();
    for name in ["x", "y"] {
        let own: Vec<_> = entered.iter().filter(|id| id.starts_with(name)).cloned().collect();
        assert_eq!(own, [1, 2, 3].map(|n| format!("{name}{n}")));
    }
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_the_callers_to_hear() {
    let cluster = Cluster::start();
    let run = async |worker: InboxWorker| worker.run(Note, std::future::pending()).await.unwrap_err();
    let error = run(InboxWorker::new(cluster.conninfo("postgres"), "box")).await;
    assert_eq!(error.kind(), postbox::ErrorKind::Setup, "{error:?}");
    cluster.psql("postgres", "CREATE EXTENSION postbox");
    let error = run(InboxWorker::new(cluster.conninfo("postgres"), "box")).await;
    assert_eq!(error.kind(), postbox::ErrorKind::GroupMissing, "{error:?}");
    let error = run(InboxWorker::new(cluster.conninfo("postgres"), "box").concurrency(0)).await;
    assert_eq!(error.kind(), postbox::ErrorKind::Usage, "{error:?}");
}
