//! Events that fail: how often they are tried, what becomes of them and of their keys, and that nothing is lost or overtaken.

mod letters;
mod order;
mod stuck;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use postbox_tests::{Builder, Cluster, Run, postbox_binary, wait_until};
use tempfile::TempDir;

use crate::shop::{PATIENCE, Shop};

const GROUP: &str = "billing";

/// A shop with a group, and a directory for what commands leave behind: a `log`, and files that they wait for.
struct Office {
    shop: Shop,
    dir: TempDir,
}

impl Office {
    fn open() -> Self {
        Self::open_with(Cluster::builder())
    }

    fn open_with(builder: Builder) -> Self {
        let shop = Shop::open_with(builder);
        // The sink of most tests says what it got, and fails for events of type poison as long as there is no cure.
        shop.psql(&format!("SELECT postbox.create_consumer_group('{GROUP}', '{{orders}}')"));
        Self { shop, dir: TempDir::new().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command, with `{dir}` for the directory.
    fn command(&self, text: &str) -> String {
        text.replace("{dir}", self.dir.path().to_str().expect("a plain path"))
    }

    /// Runs a member with a command for each event, and quick retries.
    fn exec(&self, command: &str, arguments: &[&str]) -> Run {
        let command = self.command(command);
        let sink =
            ["--group", GROUP, "--sink", "exec", "--exec", &command, "--retry-initial", "1ms", "--retry-max", "20ms"];
        Run::start(&self.shop.conninfo(), &[&sink, arguments].concat())
    }

    /// Lets the poison pass.
    fn cure(&self) {
        fs::write(self.path("cure"), "").expect("a file");
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Commits an event with this type and key, which says its name.
    fn publish(&self, event_type: &str, key: &str, name: &str) {
        self.shop.psql(&insert(event_type, key, name));
    }

    fn letters(&self, columns: &str) -> Vec<String> {
        let letters = self.shop.psql(&format!("SELECT {columns} FROM postbox.dead_letters ORDER BY id"));
        letters.lines().map(str::to_owned).collect()
    }

    fn wait_for_letters(&self, columns: &str, expected: &[&str]) {
        self.wait_for("dead letters", expected, || self.letters(columns));
    }

    fn wait_for_log(&self, expected: &[&str]) {
        self.wait_for("lines in the log", expected, || self.log());
    }

    fn wait_for(&self, what: &str, expected: &[&str], now: impl Fn() -> Vec<String>) {
        let begin = Instant::now();
        loop {
            let seen = now();
            if seen == expected {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for these {what}: {expected:?}; there are {seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the group's slot has passed everything that is committed now.
    fn wait_until_passed(&self) {
        let end = self.shop.psql("SELECT pg_current_wal_flush_lsn()");
        let sql = format!("SELECT confirmed_flush_lsn >= '{end}' FROM postbox.consumer_groups WHERE name = '{GROUP}'");
        wait_until("the slot has passed everything", PATIENCE, || (self.shop.psql(&sql) == "t").then_some(()));
    }

    /// `postbox dead-letter …`: the exit code, and what it printed.
    fn dead_letter(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut postbox = Command::new(postbox_binary());
        postbox.args(["-d", &self.shop.conninfo(), "dead-letter"]).args(arguments).env("RUST_LOG", "off");
        let output = postbox.output().expect("postbox runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}

fn insert(event_type: &str, key: &str, name: &str) -> String {
    let key = if key.is_empty() { "NULL".to_owned() } else { format!("'{key}'") };
    format!("INSERT INTO orders (type, key, payload) VALUES ('{event_type}', {key}, '{{\"name\": \"{name}\"}}');")
}

/// Says the event's name if it is no poison.
const SAY: &str = r#"
name=$(sed -E 's/.*"name": ?"([^"]*)".*/\1/')
if [ "$POSTBOX_TYPE" = poison ] && [ ! -e {dir}/cure ]; then echo "$name is poison" >&2; exit 3; fi
echo "$name" >> {dir}/log"#;
