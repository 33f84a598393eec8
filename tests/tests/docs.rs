//! The commands of the README and of docs/ are run as they stand there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use postbox_tests::tap::make_slot;
use postbox_tests::{Cluster, knows_output_plugin_libraries, postbox_binary, wait_until};
use serde_json::Value;

/// The fenced blocks of a document: language and content.
pub(crate) fn blocks(document: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    let text = fs::read_to_string(&path).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, content))) => {
                content.push_str(line);
                content.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

fn postbox(cluster: &Cluster, line: &str) -> Command {
    let mut command = Command::new("sh");
    let binary = postbox_binary();
    let path = format!("{}:/usr/bin:/bin", binary.parent().unwrap().display());
    command.args(["-c", &format!("exec {line}")]).env_clear().env("PATH", path);
    command.env("PGHOST", cluster.socket_dir()).env("PGPORT", cluster.port().to_string());
    command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
    command
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_readme_does_what_it_says() {
    let cluster = Cluster::start();
    let mut running = None;
    let mut shown = None;
    let makefile = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Makefile")).unwrap();
    for (language, content) in blocks("README.md") {
        match language.as_str() {
            "sql" => {
                let known = knows_output_plugin_libraries();
                let lines = content.lines().filter(|line| known || !line.contains("output_plugin_libraries"));
                drop(cluster.psql("postgres", &lines.collect::<Vec<_>>().join("\n")));
            }
            "sh" => {
                for line in content.lines() {
                    let mut words = line.split_whitespace();
                    match words.next() {
                        Some("make") => {
                            let target = words.next().unwrap();
                            assert!(makefile.contains(&format!("\n{target}: ")), "make {target}");
                        }
                        Some("postbox") if line.starts_with("postbox run") => {
                            running = Some(Running(postbox(&cluster, line).stdout(Stdio::piped()).spawn().unwrap()));
                        }
                        _ => {
                            let output = postbox(&cluster, line).output().unwrap();
                            assert!(output.status.success(), "{line}: {output:?}");
                        }
                    }
                }
            }
            "json" => shown = Some(serde_json::from_str::<Value>(&content).unwrap()),
            "text" | "rust,no_run" => {}
            other => panic!("a block in {other:?} that nobody runs"),
        }
    }
    let mut printed = String::new();
    BufReader::new(running.unwrap().0.stdout.take().unwrap()).read_line(&mut printed).unwrap();
    let (printed, shown) = (serde_json::from_str::<Value>(&printed).unwrap(), shown.unwrap());
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&printed), keys(&shown));
    for name in ["outbox", "type", "key", "headers", "payload", "ordinal"] {
        assert_eq!(printed[name], shown[name], "{name}");
    }
}

#[test]
fn the_statements_of_the_operations_guide_run() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('billing', '{order_events}')");
    make_slot(&cluster, "postgres", "by_hand");
    cluster.psql("postgres", "SELECT postbox.publish('order_events', 't', '1')");
    let (commands, statements): (Vec<_>, Vec<_>) = blocks("docs/operations.md")
        .into_iter()
        .filter(|(language, _)| language != "toml")
        .partition(|(language, _)| language == "sh");
    assert_eq!(statements.len(), 4, "each is looked at below");
    assert!(cluster.psql("postgres", &statements[0].1).contains("billing|f|"));
    cluster.psql("postgres", &statements[1].1);
    for (_, lines) in commands {
        // The others have their own tests.
        for line in lines.lines().filter(|line| line.starts_with("postbox maintain")) {
            let output = postbox(&cluster, line).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            assert!(String::from_utf8(output.stdout).unwrap().contains("sample"), "{line}");
        }
    }
    let shown = cluster.psql("postgres", &statements[2].1);
    assert!(shown.contains("order_events|") && shown.contains("|0|{}"), "{shown}");
    let rows = wait_until("the event is decodable", std::time::Duration::from_secs(10), || {
        let rows = cluster.psql("postgres", &statements[3].1.replace("SLOT", "by_hand"));
        (!rows.is_empty()).then_some(rows)
    });
    assert!(rows.starts_with("public.order_events|"), "{rows}");

    // What drops the slots of this database leaves those of another one.
    cluster.psql("postgres", "CREATE DATABASE other");
    make_slot(&cluster, "other", "of_another");
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md")).unwrap();
    let drop_slots = page.split('`').find(|code| code.starts_with("SELECT pg_drop_replication_slot")).unwrap();
    cluster.psql("postgres", drop_slots);
    assert_eq!(cluster.psql("postgres", "SELECT slot_name FROM pg_replication_slots"), "of_another");
}

#[test]
fn a_group_is_moved_and_recovered_as_the_operations_guide_says() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events')");
    cluster.psql("postgres", "SELECT postbox.publish('order_events', 't', '1')");
    let commands: Vec<String> = blocks("docs/operations.md")
        .into_iter()
        .filter(|(language, content)| language == "sh" && content.contains("shipping"))
        .flat_map(|(_, content)| content.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(commands.len(), 8, "{commands:?}");
    for line in commands {
        if line.contains("recover") {
            cluster.psql("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
            cluster.psql("postgres", "SELECT postbox.publish('order_events', 't', '2')");
        }
        let output = postbox(&cluster, &line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        if line.starts_with("postbox run") {
            // The first one was passed by a seek to latest.
            assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
        }
    }
}

#[test]
fn an_inbox_is_worked_on_as_the_operations_guide_says() {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        "CREATE EXTENSION postbox; CREATE TABLE paid (id text);
         CREATE FUNCTION book_payment(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             IF message ->> 'event_id' = 'ch_2' THEN RAISE 'timeout'; END IF;
             INSERT INTO paid VALUES (message ->> 'event_id');
         END $$;
         SELECT postbox.create_inbox('payments', max_retries => 0), postbox.create_inbox('statements');
         SELECT postbox.enable_inbox_ordering('statements');
         INSERT INTO payments (event_id, event_type) VALUES ('ch_1', 'payment.made'), ('ch_2', 'payment.made');
         INSERT INTO statements (event_id, aggregate_id, sequence_num) VALUES ('s3', 'ada', 3)",
    );
    let commands: Vec<String> = blocks("docs/operations.md")
        .into_iter()
        .filter(|(language, content)| language == "sh" && content.contains("postbox inbox"))
        .flat_map(|(_, content)| content.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(commands.len(), 15, "{commands:?}");
    for line in commands {
        // Neither the command nor the service is here; everything else of the line is right.
        let (line, code) = match line.contains("--exec") || line.contains("--http") {
            true => (line.replace(" --header @/etc/shop/token", "") + " --tier none", 2),
            false => (line, 0),
        };
        let output = postbox(&cluster, &line).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        let words = match line.split_whitespace().nth(2).unwrap() {
            "work" if code == 2 => "has no tier \"none\"",
            "status" | "health" | "pause" | "resume" => "payments",
            "gaps" => "[1,3)",
            _ => "",
        };
        assert!(text.contains(words), "{line}: {text}");
    }
    assert_eq!(cluster.psql("postgres", "TABLE paid"), "ch_1");
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM postbox.inbox_dead"), "0");
    assert_eq!(cluster.psql("postgres", "SELECT event_id FROM postbox.inbox_claim('statements', 'w')"), "s3");
}

/// Runs a page from top to bottom. What `postbox run` prints is held against the JSON that follows it, except for what
/// differs from run to run.
#[test]
fn the_guide_for_beginners_runs_from_top_to_bottom() {
    let cluster = Cluster::start();
    let mut printed: Vec<Value> = Vec::new();
    let mut compared = 0;
    for (language, content) in blocks("docs/getting-started.md") {
        match language.as_str() {
            "sql" => {
                let known = knows_output_plugin_libraries();
                let lines = content.lines().filter(|line| known || !line.contains("output_plugin_libraries"));
                cluster.psql("postgres", &lines.collect::<Vec<_>>().join("\n"));
            }
            "sh" => {
                for line in content.lines().filter(|line| line.starts_with("postbox")) {
                    let output = postbox(&cluster, line).output().unwrap();
                    assert!(output.status.success(), "{line}: {output:?}");
                    if line.starts_with("postbox run") {
                        let lines = String::from_utf8(output.stdout).unwrap();
                        printed = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                    }
                }
            }
            "json" => {
                let shown: Value = serde_json::from_str(&content).unwrap();
                assert_eq!(printed.len(), 1, "{printed:?}");
                assert!(printed[0].as_object().unwrap().keys().eq(shown.as_object().unwrap().keys()), "{printed:?}");
                for name in ["outbox", "type", "key", "headers", "payload", "subject", "data", "traceparent"] {
                    assert_eq!(printed[0].get(name), shown.get(name), "{name}");
                }
                compared += 1;
            }
            other => panic!("a block in {other:?} that nobody runs"),
        }
    }
    assert_eq!(compared, 2);
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
}
