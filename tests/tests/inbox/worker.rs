//! Workers: the library's and `postbox inbox work`, with real commands, real HTTP, real kills.

mod commands;
mod http;
mod kill;
mod library;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postbox_tests::{Builder, Cluster, Stop, postbox_binary, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// An inbox, and a directory for what commands leave behind.
struct Desk {
    cluster: Cluster,
    dir: TempDir,
}

/// A running `postbox inbox work`; killed when dropped.
struct Worker {
    process: Child,
    log: PathBuf,
}

impl Desk {
    /// With the arguments of `create_inbox` behind the name.
    fn open(settings: &str) -> Self {
        Self::open_with(Cluster::builder(), settings)
    }

    fn open_with(builder: Builder, settings: &str) -> Self {
        let desk = Self { cluster: builder.with_postbox().start(), dir: TempDir::new().expect("a directory") };
        desk.psql(&format!("SELECT postbox.create_inbox('box'{settings})"));
        desk
    }

    fn psql(&self, sql: &str) -> String {
        self.cluster.psql("postgres", sql)
    }

    /// Messages with these ids, each a statement of its own.
    fn receive(&self, ids: &[&str]) {
        for id in ids {
            self.psql(&format!(
                "INSERT INTO box (event_id, event_type, payload) VALUES ('{id}', 'paid', '{{\"n\": 1}}')"
            ));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What commands have written to the file `log`.
    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.path("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// `postbox …` against the inbox's database, with `{dir}` for the directory.
    fn postbox(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(postbox_binary());
        command.args(["-d", &self.cluster.conninfo("postgres")]);
        command.args(arguments.iter().map(|argument| argument.replace("{dir}", self.dir.path().to_str().unwrap())));
        command
    }

    /// Exit code and output.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.postbox(arguments).env("RUST_LOG", "off").output().expect("postbox runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("an exit code"), String::from_utf8_lossy(&text).into_owned())
    }

    fn work(&self, arguments: &[&str]) -> Worker {
        let log = self.path(&format!("worker-{}", rand::random::<u64>()));
        let mut command = self.postbox(&[&["inbox", "work", "box"], arguments].concat());
        command.env("RUST_LOG", "postbox=debug").env_remove("POSTBOX_TYPE");
        let process = command.stdout(Stdio::null()).stderr(File::create(&log).expect("a log")).spawn();
        Worker { process: process.expect("postbox starts"), log }
    }

    fn wait_for(&self, what: &str, sql: &str, expected: &str) {
        let mut seen = String::new();
        let begin = std::time::Instant::now();
        loop {
            if begin.elapsed() > PATIENCE {
                panic!("waited in vain for {what}: {sql} gives {seen:?}, not {expected:?}");
            }
            seen = self.psql(sql);
            if seen == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_lines(&self, expected: usize) -> Vec<String> {
        wait_until("lines of commands", PATIENCE, || Some(self.lines()).filter(|lines| lines.len() >= expected))
    }

    /// Nothing waits, and nothing is leased.
    fn wait_until_empty(&self) {
        self.wait_for("an empty inbox", "SELECT count(*) FROM postbox.inbox_batch", "0");
    }

    fn processed(&self) -> String {
        self.psql("SELECT coalesce(sum(messages), 0) FROM postbox.inbox_log WHERE what = 'processed'")
    }

    fn dead(&self, columns: &str) -> String {
        self.psql(&format!("SELECT {columns} FROM postbox.inbox_dead ORDER BY event_id"))
    }
}

impl Worker {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("a process that takes signals");
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), PATIENCE, || self.log().contains(text).then_some(()));
    }

    /// The exit code; none when a signal ended it.
    fn end(mut self) -> Option<i32> {
        wait_until("the worker ends", PATIENCE, || self.process.try_wait().expect("its state")).code()
    }

    fn terminate(self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.end()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("What a worker logged:\n{}", self.log());
        }
    }
}

/// Appends what a command got to the file `log`.
const NOTE: &str = r#"{ cat | tr -d '\n'; echo " $POSTBOX_EVENT_ID $POSTBOX_TYPE ${POSTBOX_KEY-none} $POSTBOX_INBOX $POSTBOX_ATTEMPT"; } >> {dir}/log"#;

#[test]
fn a_command_gets_the_message_and_its_exit_code_decides() {
    let desk = Desk::open(", max_retries => 2, backoff_initial => '1 millisecond', backoff_max => '5 milliseconds'");
    desk.psql("INSERT INTO box (event_id, event_type, aggregate_id, payload, headers) VALUES ('a', 'paid', 'ada', '{\"n\": 1}', '{\"h\": 2}')");
    let flaky = format!(
        "{NOTE}; case $POSTBOX_EVENT_ID$POSTBOX_ATTEMPT in b[12]|c*) echo no $POSTBOX_ATTEMPT >&2; exit 7; esac"
    );
    let worker = desk.work(&["--exec", &flaky]);
    desk.receive(&["b", "c"]);
    desk.wait_until_empty();
    let expected = [
        r#"{"inbox":"box","event_id":"a","event_type":"paid","aggregate_id":"ada","sequence_num":null,"headers":{"h": 2},"payload":{"n": 1},"attempt":1} a paid ada box 1"#,
    ];
    let lines = desk.lines();
    assert_eq!(lines[..1], expected);
    let attempts = |id: &str| lines.iter().filter(|line| line.contains(&format!("}} {id} paid none box"))).count();
    assert_eq!((attempts("b"), attempts("c"), lines.len()), (3, 3, 7), "{lines:?}");
    assert_eq!(desk.dead("event_id, why, attempts, error"), "c|failed|3|exit status: 7: no 3");
    assert_eq!(desk.processed(), "2");
    assert_eq!(worker.terminate(), Some(0));

    let (code, text) = desk.run(&["inbox", "dlq", "list", "box", "--type", "paid", "--error", "NO 3"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().count() == 2 && text.contains("c      failed  paid  -          3"), "{text}");
    let (_, text) = desk.run(&["inbox", "dlq", "list", "box", "--older-than", "1h"]);
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn dead_letters_are_shown_replayed_and_discarded() {
    let desk = Desk::open(", max_retries => 0");
    desk.receive(&["a", "b", "c", "d"]);
    let work = |command: &str| desk.run(&["inbox", "work", "box", "--exec", command, "--exit-when-idle", "50ms"]).0;
    assert_eq!(work("echo $POSTBOX_EVENT_ID is bad >&2; exit 1"), 0);
    let dlq = |arguments: &[&str]| desk.run(&[&["inbox", "dlq"], arguments].concat());
    let (code, text) = dlq(&["show", "box", "a"]);
    assert!(
        code == 0 && text.contains("\"event_id\":\"a\"") && text.contains("\"n\": 1") && text.contains("a is bad"),
        "{text}"
    );
    let (code, text) = dlq(&["show", "box", "x"]);
    assert!(code == 2 && text.contains("no dead letter \"x\""), "{text}");
    for (arguments, says) in [
        (&["replay", "box", "a", "b", "--dry-run"][..], "2 dead letters of box would be replayed\n"),
        (&["replay", "box", "a"], "1 dead letter of box replayed\n"),
        (&["discard", "box", "--error", "B IS"], "1 dead letter of box discarded\n"),
        (&["discard", "box", "--older-than", "1h"], "0 dead letters of box discarded\n"),
        (&["replay", "box", "--type", "paid", "--rate", "0.001"], "2 dead letters of box replayed\n"),
    ] {
        assert_eq!(dlq(arguments), (0, says.to_owned()), "{arguments:?}");
    }
    assert_eq!(dlq(&["replay", "box", "--all", "--rate", "0"]).0, 2);
    assert_eq!(desk.dead("event_id"), "");
    assert_eq!(work(NOTE), 0);
    // At that rate one of the two waits for a quarter of an hour.
    assert_eq!((desk.processed().as_str(), desk.psql("SELECT count(*) FROM postbox.inbox_batch").as_str()), ("2", "1"));

    assert_eq!(desk.run(&["inbox", "pause", "box"]), (0, "inbox box is paused\n".to_owned()));
    desk.receive(&["e"]);
    assert_eq!((work(NOTE), desk.processed().as_str()), (0, "2"));
    assert_eq!(desk.run(&["inbox", "resume", "box"]), (0, "inbox box goes on\n".to_owned()));
    assert_eq!((work(NOTE), desk.processed().as_str()), (0, "3"));
}

#[test]
fn a_worker_ends_when_nothing_could_be_claimed_for_long_enough() {
    let desk = Desk::open("");
    desk.receive(&["a", "b"]);
    let (code, text) =
        desk.run(&["inbox", "work", "box", "--exec", NOTE, "--exit-when-idle", "200ms", "--concurrency", "3"]);
    assert_eq!((code, desk.lines().len()), (0, 2), "{text}");
}

#[test]
fn a_hint_ends_the_wait_of_an_idle_worker() {
    let desk = Desk::open("");
    let _worker = desk.work(&["--exec", NOTE, "--poll-interval", "1h"]);
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%LISTEN postbox_inbox%' AND application_name <> 'psql'";
    desk.wait_for("the worker listens", listens, "1");
    // By now it has waited for 20 ms, 40 ms and so on; the next wait is one of five seconds.
    desk.wait_for("looks in vain", "SELECT last_value >= 9 FROM postbox.inbox_token", "t");
    desk.receive(&["a"]);
    desk.psql("NOTIFY postbox_inbox, 'another'; NOTIFY postbox_inbox, 'box'");
    desk.wait_until_empty();
    let soon =
        "SELECT l.at - b.received_at < interval '2 seconds' FROM postbox.inbox_log l, box b WHERE l.what = 'processed'";
    assert_eq!(desk.psql(soon), "t");
}

/// The one under way ends, and is done; those behind it go back as if nobody had had them.
#[test]
fn who_is_told_to_stop_gives_back_what_was_not_begun() {
    let desk = Desk::open("");
    desk.psql("INSERT INTO box (event_id) VALUES ('a'), ('b'), ('c')");
    let worker = desk.work(&["--exec", &format!("{NOTE}; while [ ! -e {{dir}}/go ]; do sleep 0.01; done")]);
    desk.wait_for_lines(1);
    worker.signal(Signal::TERM);
    worker.wait_for_log("stopping");
    fs::write(desk.path("go"), "").expect("a file");
    assert_eq!(worker.end(), Some(0));
    assert_eq!((desk.lines().len(), desk.processed().as_str()), (1, "1"));
    assert_eq!(desk.psql("SELECT event_ids, attempts, token FROM postbox.inbox_batch"), "{b,c}|0|");
}

#[test]
fn who_does_not_end_within_the_grace_is_ended_and_its_message_given_back() {
    let desk = Desk::open("");
    desk.psql("INSERT INTO box (event_id) VALUES ('a'), ('b')");
    let worker = desk.work(&["--exec", "echo $$ >> {dir}/log; exec sleep 1000", "--grace", "50ms"]);
    let pid: i32 = desk.wait_for_lines(1)[0].parse().expect("a process id");
    assert_eq!(worker.terminate(), Some(0));
    assert_eq!(
        desk.psql("SELECT sum(cardinality(event_ids)), max(attempts), count(token) FROM postbox.inbox_batch"),
        "2|0|0"
    );
    let gone = || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(());
    wait_until("the command is gone", PATIENCE, gone);
}

#[test]
fn a_second_signal_ends_a_command_with_the_worker() {
    let desk = Desk::open("");
    desk.receive(&["a"]);
    let mut worker = desk.work(&["--exec", "echo $$ >> {dir}/log; exec sleep 1000"]);
    let pid: i32 = desk.wait_for_lines(1)[0].parse().expect("a process id");
    // Signals that come together are one.
    let ended = wait_until("the worker ends", PATIENCE, || {
        worker.signal(Signal::TERM);
        worker.process.try_wait().expect("its state")
    });
    assert_eq!(ended.code(), Some(130));
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // What nobody waits for stays as a zombie where there is no init.
    let gone = || (status().is_empty() || status().contains("State:\tZ")).then_some(());
    wait_until("the command is gone", PATIENCE, gone);
}

#[test]
fn a_command_that_takes_too_long_is_killed_and_has_failed() {
    let desk = Desk::open(", max_retries => 0");
    desk.receive(&["a"]);
    let arguments =
        ["inbox", "work", "box", "--exec", "sleep 1000", "--max-processing", "100ms", "--exit-when-idle", "10ms"];
    assert_eq!(desk.run(&arguments).0, 0);
    assert_eq!(desk.dead("event_id, why, error"), "a|failed|took longer than 100ms");
}

#[test]
fn a_command_that_takes_long_keeps_its_message() {
    let desk = Desk::open("");
    desk.receive(&["a"]);
    let held = format!("{NOTE}; while [ ! -e {{dir}}/go ]; do sleep 0.01; done");
    let arguments = ["--exec", &held, "--visibility", "1s", "--poll-interval", "20ms"];
    let workers = [desk.work(&arguments), desk.work(&arguments)];
    desk.wait_for(
        "three leases' time",
        "SELECT leased_at < clock_timestamp() - interval '3 seconds' FROM postbox.inbox_batch",
        "t",
    );
    fs::write(desk.path("go"), "").expect("a file");
    desk.wait_until_empty();
    assert_eq!((desk.lines().len(), desk.processed().as_str()), (1, "1"));
    assert_eq!(workers.map(Worker::terminate), [Some(0), Some(0)]);
}

#[test]
fn a_command_whose_message_is_lost_is_killed() {
    let desk = Desk::open("");
    desk.receive(&["a"]);
    let worker = desk.work(&["--exec", "echo $$ >> {dir}/log; exec sleep 1000", "--visibility", "1s"]);
    let pid: i32 = desk.wait_for_lines(1)[0].parse().expect("a process id");
    // As if it had been handed to somebody else, for an hour.
    desk.psql("UPDATE postbox.inbox_batch SET token = nextval('postbox.inbox_token'), lease_until = now() + interval '1 hour'");
    wait_until("the command is gone", PATIENCE, || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_message_whose_row_is_gone_is_let_go() {
    let desk = Desk::open(", max_retries => 0");
    desk.psql("INSERT INTO box (event_id) VALUES ('gone'), ('there'); DELETE FROM box WHERE event_id = 'gone'");
    let worker = desk.work(&["--exec", "echo $POSTBOX_EVENT_ID >> {dir}/log", "--visibility", "1s"]);
    assert_eq!(desk.wait_for_lines(1), ["there"]);
    desk.wait_until_empty();
    assert_eq!(desk.dead("event_id"), "");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn each_tier_is_looked_at_at_its_own_pace() {
    let desk = Desk::open("");
    let set_pace = |background: &str| {
        let sql = format!(
            r#"SELECT postbox.enable_inbox_priority('box', tiers => '[{{"name": "critical", "lowest": 10, "pace": "20 milliseconds"}},
                {{"name": "background", "highest": 9, "pace": "{background}", "concurrency": 2}}]')"#
        );
        // Workers that claim at the moment are waited for half a second only.
        wait_until("the tiers are set", PATIENCE, || match desk.cluster.psql_result("postgres", &sql) {
            Ok(_) => Some(()),
            Err(error) => {
                assert!(error.contains("is in use"), "{error}");
                None
            }
        });
    };
    set_pace("1 hour");
    let insert = |id: &str, priority: i32| {
        desk.psql(&format!("INSERT INTO box (event_id, event_type, priority) VALUES ('{id}', 'x', {priority})"));
    };
    // Two hands of the background have something to do until they are let go, and a third message waits.
    for id in ["slow1", "slow2", "slow3"] {
        insert(id, 1);
    }
    let held = format!("{NOTE}; case $POSTBOX_EVENT_ID in slow*) while [ ! -e {{dir}}/go ]; do sleep 0.01; done; esac");
    let worker = desk.work(&["--exec", &held, "--batch-size", "1"]);
    desk.wait_for_lines(2);
    insert("quick", 10);
    assert!(desk.wait_for_lines(3)[2].contains("quick"));
    assert_eq!(desk.lines().len(), 3, "a tier works on no more at once than it says");
    fs::write(desk.path("go"), "").expect("a file");
    desk.wait_until_empty();
    // Now the background has found nothing, and looks again in an hour.
    let looks: i64 = desk.psql("SELECT last_value FROM postbox.inbox_token").parse().expect("a number");
    desk.wait_for("looks in vain", &format!("SELECT last_value > {looks} + 50 FROM postbox.inbox_token"), "t");
    insert("late", 1);
    for n in 0..5 {
        insert(&format!("quick{n}"), 11);
        desk.wait_for_lines(5 + n);
    }
    assert!(!desk.lines().iter().any(|line| line.contains("late")));
    // A pace that changes is heard of.
    set_pace("20 milliseconds");
    desk.wait_until_empty();
    assert_eq!(worker.terminate(), Some(0));

    let (code, text) = desk.run(&["inbox", "work", "box", "--exec", "true", "--tier", "urgent"]);
    assert!(code == 2 && text.contains("no tier \"urgent\"") && text.contains("critical, background"), "{text}");
    insert("other", 10);
    insert("mine", 1);
    let only = ["inbox", "work", "box", "--exec", "true", "--tier", "background", "--exit-when-idle", "50ms"];
    assert_eq!(desk.run(&only).0, 0);
    assert_eq!(desk.psql("SELECT event_ids FROM postbox.inbox_batch"), "{other}");
}

#[test]
fn a_server_that_comes_back_finds_the_worker_at_work() {
    let desk = Desk::open("");
    desk.receive(&["a"]);
    let worker = desk.work(&[
        "--exec",
        &format!("{NOTE}; while [ ! -e {{dir}}/go ]; do sleep 0.01; done"),
        "--concurrency",
        "2",
    ]);
    desk.wait_for_lines(1);
    desk.cluster.stop(Stop::Immediate);
    fs::write(desk.path("go"), "").expect("a file");
    worker.wait_for_log("cannot connect");
    desk.cluster.start_again();
    desk.wait_until_empty();
    desk.receive(&["b"]);
    desk.wait_until_empty();
    assert_eq!((desk.lines().len(), desk.processed().as_str()), (2, "2"));
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_role_that_was_granted_to_work_can() {
    let desk = Desk::open(", max_retries => 1, backoff_initial => '1 millisecond'");
    desk.psql(
        "CREATE ROLE clerk LOGIN; SELECT postbox.grant_role('worker', 'clerk', '{box}');
         CREATE TABLE effect (id text); GRANT INSERT ON effect TO clerk;
         CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             IF message ->> 'event_id' = 'bad' THEN RAISE 'bad'; END IF;
             INSERT INTO effect VALUES (message ->> 'event_id');
         END $$",
    );
    desk.receive(&["good", "bad"]);
    let clerk = desk.cluster.conninfo("postgres").replace("user=postgres", "user=clerk");
    let arguments = ["inbox", "work", "box", "--call", "handle", "--exit-when-idle", "100ms", "-d", &clerk];
    let output = Command::new(postbox_binary()).args(arguments).output().expect("postbox runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!((desk.psql("TABLE effect").as_str(), desk.dead("event_id").as_str()), ("good", "bad"));
}

#[test]
fn what_cannot_be_worked_on_is_said() {
    let desk = Desk::open("");
    desk.psql("SELECT postbox.create_inbox('by_hand', style => 'update'); CREATE FUNCTION f(jsonb, int) RETURNS int LANGUAGE sql RETURN 1");
    for (arguments, code, words) in [
        (&["none", "--exec", "true"][..], 4, "inbox \"none\" does not exist"),
        (&["by_hand", "--exec", "true"], 1, "style \"update\""),
        (&["box"], 2, "--exec"),
        (&["box", "--exec", "true", "--http", "http://localhost"], 2, "cannot be used with"),
        (&["box", "--exec", " "], 2, "--exec is empty"),
        (&["box", "--call", "f"], 2, "no function f(jsonb)"),
        (&["box", "--call", "f'; DROP TABLE box"], 2, "postbox: "),
        (&["box", "--http", "ftp://x"], 2, "http or https"),
        (&["box", "--http", "http://localhost", "--header", "@/nonexistent"], 2, "/nonexistent"),
        (&["box", "--exec", "true", "--visibility", "1500ms"], 2, "whole seconds"),
        (&["box", "--exec", "true", "--max-processing", "0s"], 2, "max_processing is 0"),
        (&["box", "--exec", "true", "--poll-interval", "0s", "--exit-when-idle", "0s"], 2, "poll_interval is 0ns"),
        (&["box", "--exec", "true", "--poll-interval", "9ms", "--exit-when-idle", "0s"], 2, "must be at least 10ms"),
        (&["box", "--exec", "true", "--tier", "x"], 2, "enable_inbox_priority"),
    ] {
        let (found, text) = desk.run(&[&["inbox", "work"], arguments].concat());
        assert!(found == code && text.contains(words), "{arguments:?}: {found}: {text}");
    }
    for (arguments, words) in [
        (&["dlq", "replay", "box"][..], "--all means all"),
        (&["dlq", "discard", "box", "a", "--all"], "Leave out the one or the other"),
        (&["skip-gap", "box", "--aggregate", "a", "--range", "9-7", "--reason", "x"], "as 7, 7-9 or -9..-7"),
    ] {
        let (code, text) = desk.run(&[&["inbox"], arguments].concat());
        assert!(code == 2 && text.contains(words), "{arguments:?}: {code}: {text}");
    }
    assert_eq!(desk.run(&["inbox", "dlq", "list", "none"]).0, 4);
}

/// What a command says may be anything, and the database has not every character.
#[test]
fn a_failure_whose_text_the_database_cannot_have_is_recorded() {
    for (encoding, text) in [("LATIN1", r"\342\234\227 kaputt"), ("SQL_ASCII", "✗ kaputt")] {
        let cluster = Cluster::start();
        let create =
            format!("CREATE DATABASE other ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        cluster.psql("postgres", &create);
        cluster.psql(
            "other",
            "CREATE EXTENSION postbox; SELECT postbox.create_inbox('box', max_retries => 0);
             CREATE ROLE hand LOGIN; SELECT postbox.grant_role('worker', 'hand', '{box}');
             INSERT INTO box (event_id, event_type, payload) VALUES ('a', 'paid', '{}')",
        );
        let mut command = Command::new(postbox_binary());
        let conninfo = cluster.conninfo("other").replace("user=postgres", "user=hand");
        command.args(["-d", &conninfo, "inbox", "work", "box", "--no-maintenance"]);
        command.args(["--exit-when-idle", "100ms", "--exec", "echo '✗ kaputt' >&2; exit 1"]);
        let output = command.output().expect("postbox runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{encoding}: {said}");
        let error = cluster.psql("other", "SELECT error FROM postbox.inbox_dead");
        assert!(error.contains(text), "{encoding}: {error:?}");
    }
}
