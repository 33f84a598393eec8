//! The kill matrix: a member that is killed at a named step, or stands still there while the server crashes or the link is cut;
//! another member goes on. Nothing may be lost, made up or overtaken, with `synchronous_commit = off` as the database has it.

mod under_way;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use postbox_tests::{Cluster, Line, Proxy, Run, Stop, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::shop::PATIENCE;

/// After this the server gives up a member that it does not hear of.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a test of each step and each fault.
macro_rules! matrix {
    ($module:ident: $sink:ident; $($name:ident: $step:literal after $before:ident;)*) => {
        mod $module {
            use super::{Before, Fault, Sink, run};

            pub(super) const STEPS: &[&str] = &[$($step),*];

            mod member_killed {
                $(#[test] fn $name() { super::run($step, super::Before::$before, super::Fault::Member, super::Sink::$sink); })*
            }
            mod server_crashed {
                $(#[test] fn $name() { super::run($step, super::Before::$before, super::Fault::Server, super::Sink::$sink); })*
            }
            mod link_cut {
                $(#[test] fn $name() { super::run($step, super::Before::$before, super::Fault::Link, super::Sink::$sink); })*
            }
        }
    };
}

matrix! { exec: Exec;
    deliver_before_sink: "deliver.before-sink@8" after Nothing;
    deliver_after_sink: "deliver.after-sink@8" after Nothing;
    confirm_before: "confirm.before@2" after Nothing;
    confirm_after: "confirm.after@2" after Nothing;
    dead_letter_before_store: "dead-letter.before-store@1" after Poison;
    dead_letter_after_store: "dead-letter.after-store@1" after Poison;
    checkpoint_before_write: "checkpoint.before-write@1" after Nothing;
    checkpoint_after_write: "checkpoint.after-write@1" after Nothing;
    backfill_before_position: "backfill.before-position@1" after Recovery;
    backfill_after_position: "backfill.after-position@1" after Recovery;
    recover_before: "recover.before@1" after Loss;
    recover_after: "recover.after@1" after Loss;
    activate_after: "activate.after@1" after Nothing;
}

matrix! { stdout: Stdout;
    deliver_before_sink: "deliver.before-sink@4" after Nothing;
    deliver_after_sink: "deliver.after-sink@4" after Nothing;
    confirm_before: "confirm.before@2" after Nothing;
    confirm_after: "confirm.after@2" after Nothing;
    checkpoint_before_write: "checkpoint.before-write@1" after Nothing;
    checkpoint_after_write: "checkpoint.after-write@1" after Nothing;
    backfill_before_position: "backfill.before-position@1" after Recovery;
    backfill_after_position: "backfill.after-position@1" after Recovery;
}

// From PostgreSQL's own plugin; what does not come by the stream is the same code.
matrix! { pgoutput: Pgoutput;
    deliver_after_sink: "deliver.after-sink@8" after Nothing;
    confirm_before: "confirm.before@2" after Nothing;
    dead_letter_after_store: "dead-letter.after-store@1" after Poison;
    checkpoint_after_write: "checkpoint.after-write@1" after Nothing;
    backfill_after_position: "backfill.after-position@1" after Recovery;
    recover_after: "recover.after@1" after Loss;
}

/// The steps that the code names are those that there are rows for.
#[test]
fn every_failpoint_has_a_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../consumer/src");
    let mut reached = BTreeSet::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a file");
            let steps = text.split("failpoint::reach(\"").skip(1).filter_map(|rest| rest.split('"').next());
            reached.extend(steps.map(str::to_owned));
        }
    }
    let text = fs::read_to_string(root.join("failpoint.rs")).expect("a file");
    let listed = text.split_once("STEPS: &[&str] = &[").and_then(|(_, rest)| rest.split_once("];")).expect("a list").0;
    let listed: BTreeSet<_> = listed.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let name = |row: &&str| row.split('@').next().unwrap_or_default().to_owned();
    let rows: BTreeSet<_> = exec::STEPS
        .iter()
        .chain(stdout::STEPS)
        .chain(pgoutput::STEPS)
        .chain(crate::inbox::stream::STEPS)
        .map(name)
        .collect();
    assert!(!rows.is_empty());
    assert_eq!(reached, listed, "consumer/src/failpoint.rs lists others than the code reaches");
    assert_eq!(rows, listed, "the matrix has rows for others");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    Exec,
    Stdout,
    /// As `Exec`, with events from PostgreSQL's own plugin.
    Pgoutput,
}

/// What must have happened for the step to be reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// An event that no sink takes.
    Poison,
    /// The slot was lost; the next member recovers the group.
    Loss,
    /// The slot was lost, and the group has been recovered.
    Recovery,
}

/// What happens at the step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Member,
    Server,
    Link,
}

fn run(step: &str, before: Before, fault: Fault, sink: Sink) {
    let stage = Stage::open_with(sink);
    // Events have flowed before.
    stage.publish(3);
    let zero = stage.member("zero", &[]);
    stage.wait_until_dealt_with();
    let ended = zero.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(stage.log().iter().all(|(member, _)| member == "zero") && stage.log().len() == stage.stored().len());

    stage.publish(3);
    let arguments: &[&str] = if before == Before::Loss { &["--recover"] } else { &[] };
    if matches!(before, Before::Loss | Before::Recovery) {
        stage.lose_slot();
    }
    if before == Before::Recovery {
        stage.psql("SELECT postbox.recover_consumer_group('g')");
    }

    let proxy = Proxy::to(stage.cluster.port());
    let through_proxy = format!("host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=5", proxy.port());
    let conninfo = if fault == Fault::Link { through_proxy } else { stage.conninfo() };
    let action = if fault == Fault::Member { "kill" } else { "stop" };
    let mut one = stage.member_with_failpoint("one", &conninfo, arguments, &format!("{step}={action}"));
    // The other is there before anything happens; it may be its turn already.
    let holder = "SELECT count(*) FROM postbox._active_member";
    wait_until("it holds the lock, or has ended", PATIENCE, || {
        (stage.psql(holder) == "1" || one.log().contains("failpoint ")).then_some(())
    });
    let mut two = stage.member("two", arguments);
    wait_until("the other stands by", PATIENCE, || {
        let log = two.log();
        (log.contains("standing by") || log.contains("active member of group")).then_some(())
    });
    let name = step.split('@').next().unwrap_or_default();
    let fired = format!("failpoint {name}: {action}");
    if before == Before::Poison {
        stage.publish_poison();
    }
    wait_until(&format!("{fired}; the member logged:\n{}", one.log()), PATIENCE, || {
        // More events once those before are delivered: enough for every step that comes again and again.
        if stage.published.get() < 60 && stage.left().is_empty() {
            stage.publish(3);
        }
        one.log().contains(&fired).then_some(())
    });

    match fault {
        Fault::Member => one.wait_until_gone(PATIENCE),
        Fault::Server => {
            // The crash loses some of these, or none: they were not committed for good.
            stage.publish(3);
            stage.cluster.restart(Stop::Immediate);
        }
        Fault::Link => proxy.cut(),
    }
    two.wait_for_log("active member of group", 1, PATIENCE);
    if fault != Fault::Member {
        one.signal(Signal::CONT);
    }
    stage.publish(3);
    stage.wait_until_dealt_with();
    assert!(
        stage.log().iter().any(|(member, _)| member == "two"),
        "the other has delivered nothing: {:?}",
        stage.log()
    );
    let two = two.terminate(PATIENCE);
    assert_eq!(two.code, Some(0), "{}", two.log);
    let one = if fault == Fault::Member { one.end(PATIENCE) } else { one.terminate(PATIENCE) };
    // A member whose connection breaks while it stores dead letters ends, for its supervisor to start it again; and one may learn
    // only while it stops that another has its place.
    let codes: &[Option<i32>] = if fault == Fault::Member { &[None] } else { &[Some(0), Some(3), Some(4)] };
    assert!(codes.contains(&one.code), "{:?}: {}", one.code, one.log);
    stage.check();
    let (stored, got) = (stage.stored().len(), stage.log().len());
    let (lost, letters) = (stage.published.get() - stored, stage.letters().len());
    println!(
        "{step}: {stored} events, {letters} of them dead letters, and {lost} whose commit the crash took; {} came again; exit code {:?}",
        got + letters - stored,
        one.code
    );
}

/// A cluster with the group `g` on the outbox `orders`, and the log of a sink that all members share.
struct Stage {
    cluster: Cluster,
    dir: TempDir,
    published: Cell<usize>,
    sink: Sink,
    /// What members with the standard output as their sink have printed, in the order of their start.
    printed: RefCell<Vec<(String, Printed)>>,
}

type Printed = Box<dyn Fn() -> Vec<Line>>;

impl Stage {
    fn open() -> Self {
        Self::open_with(Sink::Exec)
    }

    fn open_with(sink: Sink) -> Self {
        let cluster = Cluster::with_postbox();
        cluster.psql("postgres", "ALTER DATABASE postgres SET synchronous_commit = off");
        cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
        let source = if sink == Sink::Pgoutput { "pgoutput" } else { "postbox" };
        cluster.psql("postgres", "SELECT postbox.enable_pgoutput()");
        cluster.psql(
            "postgres",
            &format!("SELECT postbox.create_consumer_group('g', '{{orders}}', source => '{source}')"),
        );
        let dir = TempDir::new().expect("a directory");
        Self { cluster, dir, published: Cell::new(0), sink, printed: RefCell::default() }
    }

    fn psql(&self, sql: &str) -> String {
        self.cluster.psql("postgres", sql)
    }

    fn conninfo(&self) -> String {
        self.cluster.conninfo("postgres")
    }

    fn touch(&self, name: &str) {
        fs::write(self.dir.path().join(name), "").expect("a file");
    }

    fn arguments(&self, member: &str, more: &[&str]) -> Vec<String> {
        // What outlives the member must not hold its pipes. The slow ones wait for a file, and give up once their member is dead. The
        // kernel knows when the member has started the command, however late that gets to run: proc(5), field 22.
        let command = r#"
            exec >/dev/null 2>&1
            read -r stat </proc/$$/stat
            set -- ${stat##*) }
            case $POSTBOX_TYPE in
                *.poison) exit 1 ;;
                *.busy) sleep 0.05 ;;
                *.slow) while [ ! -e {dir}/go ]; do [ -e {dir}/{member}-is-dead ] && exit 1; sleep 0.01; done ;;
            esac
            echo "{member} $POSTBOX_TYPE ${20}" >> {dir}/log"#;
        let command =
            command.replace("{dir}", self.dir.path().to_str().expect("a plain path")).replace("{member}", member);
        let timeout = format!("{}s", SESSION_TIMEOUT.as_secs());
        let common = ["--group", "g", "--member", member, "--session-timeout", &timeout, "--no-maintenance"];
        if self.sink == Sink::Stdout {
            return [&common[..], more].concat().into_iter().map(str::to_owned).collect();
        }
        let sink = ["--sink", "exec", "--exec", &command, "--concurrency", "3"];
        let failures = ["--max-attempts", "1", "--on-failure", "park"];
        [&common[..], &sink, &failures, more].concat().into_iter().map(str::to_owned).collect()
    }

    fn member(&self, name: &str, more: &[&str]) -> Run {
        self.member_at(name, &self.conninfo(), more)
    }

    fn member_at(&self, name: &str, conninfo: &str, more: &[&str]) -> Run {
        let arguments = self.arguments(name, more);
        self.read(name, Run::start(conninfo, &arguments.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    fn read(&self, name: &str, run: Run) -> Run {
        self.printed.borrow_mut().push((name.to_owned(), Box::new(run.reader())));
        run
    }

    fn member_with_failpoint(&self, name: &str, conninfo: &str, more: &[&str], failpoint: &str) -> Run {
        let arguments = self.arguments(name, more);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        self.read(name, Run::start_with_failpoint(conninfo, &arguments, failpoint))
    }

    /// So many rounds of events of three keys: one by one, with one that is rolled back, and all three at once. An event's type is its
    /// name: the key, and a number that rises.
    fn publish(&self, rounds: usize) {
        let mut sql = String::new();
        for round in 0..rounds {
            let events: String = (0..3).map(|key| self.insert(&format!("k{key}"), "")).collect();
            sql += &if round % 2 == 0 { events } else { format!("BEGIN; {events} COMMIT;") };
            sql += "BEGIN; INSERT INTO orders (type, key, payload) VALUES ('k0.undone', 'k0', '{}'); ROLLBACK;";
        }
        self.psql(&sql);
    }

    /// An event of the key `p` that no sink takes, and two behind it.
    fn publish_poison(&self) {
        let sql = [self.insert("p", ".poison"), self.insert("p", ""), self.insert("p", "")].concat();
        self.psql(&sql);
    }

    fn insert(&self, key: &str, what: &str) -> String {
        let number = self.published.replace(self.published.get() + 1);
        format!("INSERT INTO orders (type, key, payload) VALUES ('{key}.{number}{what}', '{key}', '{{}}');")
    }

    fn lose_slot(&self) {
        let free = "SELECT count(*) FROM pg_replication_slots WHERE active";
        wait_until("the slot is free", PATIENCE, || (self.psql(free) == "0").then_some(()));
        self.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    }

    /// What the sink has got: by which member, and which event.
    fn log(&self) -> Vec<(String, String)> {
        if self.sink == Sink::Stdout {
            let printed = self.printed.borrow();
            let lines = printed
                .iter()
                .flat_map(|(member, lines)| lines().into_iter().map(move |line| (member.clone(), line.event_type)));
            return lines.collect();
        }
        self.dispatches().into_iter().map(|(member, event, _)| (member, event)).collect()
    }

    /// What the sink's command has got, and when it was started for that: so long after the machine.
    fn dispatches(&self) -> Vec<(String, String, Duration)> {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let line = |line: &str| {
            let [member, event, ticks] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
            // Linux tells other processes of 100 ticks in a second, whatever it counts in itself.
            Some((member.to_owned(), event.to_owned(), Duration::from_millis(ticks.parse::<u64>().ok()? * 10)))
        };
        log.lines().filter_map(line).collect()
    }

    /// The committed events, in the order in which the only writer committed them.
    fn stored(&self) -> Vec<String> {
        self.psql("SELECT type FROM orders ORDER BY seq").lines().map(str::to_owned).collect()
    }

    /// The dead letters' events.
    fn letters(&self) -> Vec<String> {
        let sql = "SELECT o.type FROM postbox.dead_letters d LEFT JOIN orders o ON o.event_id::text = d.event_id::text";
        self.psql(sql).lines().map(str::to_owned).collect()
    }

    /// The committed events that are neither delivered nor dead letters.
    fn left(&self) -> BTreeSet<String> {
        let mut left: BTreeSet<_> = self.stored().into_iter().collect();
        for (_, event) in self.log() {
            left.remove(&event);
        }
        if !left.is_empty() {
            for event in self.letters() {
                left.remove(&event);
            }
        }
        left
    }

    fn wait_until_dealt_with(&self) {
        let mut left = BTreeSet::new();
        let begin = std::time::Instant::now();
        while begin.elapsed() < PATIENCE / 2 {
            left = self.left();
            if left.is_empty() {
                return;
            }
        }
        panic!("lost, or stuck: {left:?}; the sink has got {:?}", self.log());
    }

    /// Nothing lost, nothing made up, nothing overtaken by its own key.
    fn check(&self) {
        let (log, stored) = (self.log(), self.stored());
        let mut letters = BTreeMap::<_, usize>::new();
        self.letters().into_iter().for_each(|event| *letters.entry(event).or_default() += 1);
        let mut first = HashMap::new();
        for (at, (member, event)) in log.iter().enumerate() {
            assert!(stored.contains(event), "{member} delivered {event}, which was never committed");
            first.entry(event.as_str()).or_insert(at);
        }
        let mut before = HashMap::<&str, (usize, &str)>::new();
        for event in &stored {
            let (at, dead) = (first.get(event.as_str()), letters.remove(event).unwrap_or(0));
            assert_eq!(
                dead + usize::from(at.is_some()),
                1,
                "{event}: {dead} dead letters, first delivered at {at:?}; {log:?}"
            );
            let (Some(&at), Some((key, _))) = (at, event.split_once('.')) else { continue };
            if let Some((earlier, other)) = before.insert(key, (at, event)) {
                assert!(earlier < at, "{event} came before {other}: {log:?}");
            }
        }
        assert_eq!(letters, BTreeMap::new(), "dead letters of events that were never committed");
    }
}
