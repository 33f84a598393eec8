//! Workers that are killed or frozen: each effect happens once all the same.

use std::time::{Duration, Instant};

use postbox_tests::wait_until;
use rand::RngExt;
use rustix::process::Signal;

use super::{Desk, NOTE, PATIENCE, Worker};

/// Notes the message in a table that would take it twice.
const EFFECT: &str = "
    CREATE TABLE effect (id text);
    CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO effect VALUES (message ->> 'event_id');
        PERFORM pg_sleep(0.002);
    END $$";

/// 10 workers and 3,000 messages, or as many as `POSTBOX_INBOX_MESSAGES` says: 100,000 in `make kills`.
#[test]
fn effects_happen_once_while_workers_are_killed_at_random() {
    const WORKERS: usize = 10;
    let messages: usize =
        std::env::var("POSTBOX_INBOX_MESSAGES").map_or(3_000, |count| count.parse().expect("a number"));
    // A kill counts as an attempt of all that the worker had.
    let desk = Desk::open(", max_retries => 1000");
    desk.psql(EFFECT);
    for first in (0..messages).step_by(100) {
        desk.psql(&format!("INSERT INTO box (event_id) SELECT n::text FROM generate_series({first}, {first} + 99) n"));
    }
    let start = || {
        desk.work(&[
            "--call",
            "handle",
            "--batch-size",
            "20",
            "--visibility",
            "1s",
            "--concurrency",
            "2",
            "--no-maintenance",
        ])
    };
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| start()).collect();
    let mut random = rand::rng();
    let (mut kills, begin) = (0, Instant::now());
    while desk.psql("SELECT count(*) FROM postbox.inbox_batch") != "0" {
        assert!(
            begin.elapsed() < Duration::from_secs(300 + messages as u64 / 100),
            "{} of {messages}",
            desk.processed()
        );
        let victim = random.random_range(0..WORKERS);
        workers[victim].signal(Signal::KILL);
        workers[victim] = start();
        kills += 1;
        // So that the others come further, by a random number of messages.
        let done: usize = desk.processed().parse().expect("a number");
        let enough = (done + random.random_range(1..messages / 40)).min(messages);
        let further = || (desk.processed().parse::<usize>().expect("a number") >= enough).then_some(());
        wait_until("more messages", PATIENCE, further);
    }
    let torn = desk.psql("SELECT coalesce(sum(messages), 0) FROM postbox.inbox_log WHERE what = 'failed'");
    let time = begin.elapsed().as_secs();
    println!("{messages} messages, {WORKERS} workers, {time} s, {kills} kills: {torn} messages were handed out again");
    assert!(kills >= 3 && torn != "0", "{kills} kills, {torn} leases ran out: too little to show anything");
    assert_eq!(desk.psql("SELECT count(*), count(DISTINCT id) FROM effect"), format!("{messages}|{messages}"));
    assert_eq!((desk.processed(), desk.dead("event_id")), (messages.to_string(), String::new()));
}

#[test]
fn effects_of_a_worker_that_was_frozen_beyond_its_lease_are_rolled_back() {
    let desk = Desk::open("");
    desk.psql(
        "CREATE TABLE effect (id text);
         CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO effect VALUES (message ->> 'event_id');
             PERFORM pg_advisory_xact_lock_shared(1);
         END $$",
    );
    desk.receive(&["a"]);
    freeze(&desk, "1");
}

const QUICK_EFFECT: &str = "
    CREATE TABLE effect (id text);
    CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE sql AS
        $$ INSERT INTO effect VALUES (message ->> 'event_id') $$";

/// It has locked the message then.
#[test]
fn a_worker_that_is_frozen_before_its_commit_does_not_keep_the_message() {
    let desk = Desk::open("");
    desk.psql(QUICK_EFFECT);
    desk.psql(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF new.what = 'processed' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF; RETURN new; END $$;
         CREATE TRIGGER hold BEFORE INSERT ON postbox.inbox_log FOR EACH ROW EXECUTE FUNCTION hold()",
    );
    desk.receive(&["a"]);
    freeze(&desk, "1");
}

/// Nor does one that is frozen when the server answers its claim, however much there is to say.
#[test]
fn a_worker_that_is_frozen_in_its_claim_does_not_keep_the_messages() {
    let desk = Desk::open("");
    desk.psql(QUICK_EFFECT);
    desk.psql(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF new.worker = 'frozen' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF; RETURN new; END $$;
         CREATE TRIGGER hold BEFORE UPDATE ON postbox.inbox_batch FOR EACH ROW EXECUTE FUNCTION hold();
         INSERT INTO box (event_id, payload) SELECT n::text, to_jsonb(repeat('x', 1000000)) FROM generate_series(1, 20) n",
    );
    freeze(&desk, "20");
}

/// A worker is frozen while it waits for the lock 1, which is then free, and thaws when another one has done the work.
fn freeze(desk: &Desk, messages: &str) {
    let (held, release) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let client = desk.cluster.client("postgres").await;
                client.execute("SELECT pg_advisory_lock(1)", &[]).await.expect("a lock");
                tokio::task::spawn_blocking(move || release.recv()).await.expect("a thread").expect("a word");
            });
        });
        desk.wait_for(
            "the lock",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 1",
            "1",
        );
        let frozen = desk.work(&["--call", "handle", "--visibility", "1s", "--worker", "frozen"]);
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'advisory'";
        desk.wait_for("the frozen one", waits, "1");
        frozen.signal(Signal::STOP);
        held.send(()).expect("somebody who listens");
        // What it has written is not committed, and its lease runs out.
        let other = desk.work(&["--call", "handle", "--worker", "other"]);
        desk.wait_until_empty();
        assert_eq!(desk.psql("SELECT count(*) FROM effect"), messages);
        frozen.signal(Signal::CONT);
        frozen.wait_for_log("not this worker's any more");
        assert_eq!((frozen.terminate(), other.terminate()), (Some(0), Some(0)));
    });
    let effects = desk.psql("SELECT count(*), count(DISTINCT id) FROM effect");
    assert_eq!((effects, &*desk.processed()), (format!("{messages}|{messages}"), messages));
}

/// What is under way by then is done twice, and nothing else.
#[test]
fn a_worker_that_thaws_asks_before_it_begins_what_it_has_claimed() {
    let desk = Desk::open("");
    let gate = desk.path("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    desk.psql("INSERT INTO box (event_id) SELECT n::text FROM generate_series(1, 20) n");
    let waits = "echo $POSTBOX_EVENT_ID >> {dir}/log; test -e {dir}/open || cat {dir}/gate";
    let frozen = desk.work(&["--exec", waits, "--visibility", "1s", "--worker", "frozen"]);
    desk.wait_for_lines(1);
    frozen.signal(Signal::STOP);
    let other = desk.work(&["--exec", "echo $POSTBOX_EVENT_ID >> {dir}/log", "--worker", "other"]);
    desk.wait_until_empty();
    std::fs::write(desk.path("open"), "").expect("a file");
    std::fs::write(&gate, "").expect("a pipe that is read");
    frozen.signal(Signal::CONT);
    let lost = || (frozen.log().matches("not this worker's any more").count() == 20).then_some(());
    wait_until("it has found out", PATIENCE, lost);
    assert_eq!((frozen.terminate(), other.terminate()), (Some(0), Some(0)));
    assert_eq!(desk.lines().len(), 21, "{:?}", desk.lines());
    assert_eq!(desk.processed(), "20");
}

#[test]
fn a_message_that_kills_its_worker_is_found_and_its_neighbours_live() {
    let desk = Desk::open(", max_retries => 3");
    desk.psql(
        "INSERT INTO box (event_id) SELECT CASE n WHEN 7 THEN 'poison' ELSE n::text END FROM generate_series(1, 20) n",
    );
    let deadly = format!("if [ $POSTBOX_EVENT_ID = poison ]; then kill -9 $PPID; exit 1; fi; {NOTE}");
    let begin = Instant::now();
    while desk.psql("SELECT count(*) FROM postbox.inbox_batch") != "0" {
        assert!(begin.elapsed() < PATIENCE, "{}", desk.psql("TABLE postbox.inbox_batch"));
        let code = desk.work(&["--exec", &deadly, "--visibility", "1s", "--exit-when-idle", "1500ms"]).end();
        assert!(code.is_none() || code == Some(0), "{code:?}");
    }
    assert_eq!(desk.dead("event_id, why, attempts"), "poison|crashed|4");
    assert!(desk.dead("error").contains("never came back"), "{}", desk.dead("error"));
    let mut ids =
        desk.psql("SELECT DISTINCT unnest(event_ids) FROM postbox.inbox_log WHERE what = 'processed'").lines().count();
    assert_eq!(ids, 19);
    ids = desk.lines().len();
    assert!(ids >= 19, "{ids}");
}
