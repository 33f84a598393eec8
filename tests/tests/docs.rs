//! The commands of the README and of docs/ are run as they stand there.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use postbox_tests::tap::make_slot;
use postbox_tests::{Cluster, knows_output_plugin_libraries, major, postbox_binary, skip, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{DONE, Server};
use crate::shop::PATIENCE;

/// The fenced blocks of a document: language and content.
pub(crate) fn blocks(document: &str) -> Vec<(String, String)> {
    blocks_of(&page(document))
}

fn blocks_of(text: &str) -> Vec<(String, String)> {
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

fn page(document: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document)).unwrap()
}

/// The code within the text of a document that begins with this.
pub(crate) fn spans(document: &str, begin: &str) -> Vec<String> {
    page(document).split('`').filter(|code| code.starts_with(begin)).map(str::to_owned).collect()
}

/// The first code in the line of a document that begins with this.
pub(crate) fn code_of_line(document: &str, begin: &str) -> String {
    let page = page(document);
    let line = page.lines().find(|line| line.starts_with(begin)).expect(begin);
    line.split('`').nth(1).expect("code").to_owned()
}

/// The sections of the operations guide: heading and text.
fn sections() -> Vec<(String, String)> {
    let page = page("docs/operations.md");
    let sections = page.split("\n## ").map(|section| section.split_once('\n').expect("a heading"));
    sections.map(|(heading, text)| (heading.to_owned(), text.to_owned())).collect()
}

/// The commands of a section of the operations guide, all of which whoever asks for them runs.
pub(crate) fn commands(section: &str) -> Vec<String> {
    let (_, text) = sections().into_iter().find(|(heading, _)| heading == section).expect(section);
    let shell = blocks_of(&text).into_iter().filter(|(language, _)| language == "sh");
    shell.flat_map(|(_, content)| content.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What a command that does its work prints.
fn printed(cluster: &Cluster, line: &str) -> String {
    let output = postbox(cluster, line).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const PATH: &str = "/usr/bin:/bin";

fn postbox(cluster: &Cluster, line: &str) -> Command {
    let arguments = line.strip_prefix("postbox").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec '{}'{arguments}", postbox_binary().display())]);
    command.env_clear().env("PATH", PATH);
    command.env("PGHOST", cluster.socket_dir()).env("PGPORT", cluster.port().to_string());
    command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
    command
}

/// A `curl` that keeps what it is given to send, in place of the one that would send it.
struct Curl(TempDir);

impl Curl {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$*\" > {0}/arguments\n[ ! -e {0}/broken ] || {{ echo timeout >&2; exit 28; }}\ncat >> {0}/sent\n",
            dir.path().display()
        );
        fs::write(dir.path().join("curl"), script).unwrap();
        fs::set_permissions(dir.path().join("curl"), PermissionsExt::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A line of `postbox`, for which this is curl.
    fn postbox(&self, cluster: &Cluster, line: &str) -> Command {
        let mut command = postbox(cluster, line);
        command.current_dir(self.0.path()).env("PATH", format!("{}:{PATH}", self.0.path().display()));
        command
    }

    fn wait_until_sent(&self, types: &[&str]) {
        wait_until("what curl is to send", PATIENCE, || {
            let sent = fs::read_to_string(self.path("sent")).unwrap_or_default();
            let sent: Vec<Value> = sent.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let mut sent: Vec<&str> = sent.iter().map(|event| event["type"].as_str().unwrap()).collect();
            sent.sort_unstable();
            (sent == types).then_some(())
        });
        let arguments = fs::read_to_string(self.path("arguments")).unwrap();
        assert!(arguments.contains("--data-binary @-"), "{arguments}");
    }
}

/// Killed when a test fails, as it would wait for its server for ever.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The Makefile has this target, or uses the variable that is set.
fn knows(makefile: &str, word: &str) -> bool {
    let known = word.split_once('=').map_or(format!("\n{word}: "), |(variable, _)| format!("$({variable})"));
    makefile.contains(&known)
}

/// The words of a command, without quotes, up to its comment.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in command.chars() {
        match character {
            _ if quote == Some(character) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(character),
            '#' if quote.is_none() && words.last().is_some_and(String::is_empty) => break,
            _ if quote.is_none() && character.is_whitespace() => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The commands of a text that are make's, and settings that are said beside them.
fn makes(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (_, content) in blocks_of(text) {
        for line in content.lines().filter(|line| line.starts_with("make ")) {
            found.push(words(line).split_off(1));
            // Its comment may tell of other targets.
            let comment = line.split_once(" #").map_or("", |(_, comment)| comment);
            found.extend(comment.split("make ").skip(1).map(|rest| words(rest).into_iter().take(1).collect()));
        }
    }
    for paragraph in text.split("\n\n") {
        let code: Vec<_> = paragraph.split('`').skip(1).step_by(2).map(words).collect();
        let of_make = |words: &Vec<String>| words.first().is_some_and(|word| word == "make");
        let told = code.iter().any(of_make);
        for mut words in code {
            if of_make(&words) {
                found.push(words.split_off(1));
            } else if told && words.len() == 1 && is_setting(&words[0]) {
                found.push(words);
            }
        }
    }
    found
}

/// A variable in capitals that is given a value.
fn is_setting(word: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    word.split_once('=').is_some_and(|(variable, _)| !variable.is_empty() && variable.bytes().all(letter))
}

/// The pages of docs/ and of docs/decisions/.
fn pages() -> Vec<String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| format!("{directory}/{name}")).filter(|name| name.ends_with(".md")).collect::<Vec<_>>()
    };
    [names("docs"), names("docs/decisions")].concat()
}

/// The lines of a document that build and install Postbox, without what they say about it.
fn installation(document: &str) -> Vec<String> {
    let lines = blocks(document).into_iter().flat_map(|(_, content)| {
        content.lines().map(|line| line.split(" #").next().unwrap().trim_end().to_owned()).collect::<Vec<_>>()
    });
    lines.filter(|line| line.starts_with("make install ") || line.starts_with("make build")).collect()
}

#[test]
fn the_readme_does_what_it_says() {
    let cluster = Cluster::start();
    let mut running = None;
    let mut shown = None;
    for (language, content) in blocks("README.md") {
        match language.as_str() {
            "sql" => {
                let known = knows_output_plugin_libraries();
                let lines = content.lines().filter(|line| known || !line.contains("output_plugin_libraries"));
                drop(cluster.psql("postgres", &lines.collect::<Vec<_>>().join("\n")));
            }
            "sh" => {
                for line in content.lines() {
                    match line.split_whitespace().next() {
                        // Looked up with those of the other pages.
                        Some("make") => {}
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
fn the_makefile_has_what_the_pages_tell_to_make() {
    let makefile = page("Makefile");
    let mut commands = 0;
    let mut unknown = Vec::new();
    for name in pages().into_iter().chain(["README.md".to_owned()]) {
        for words in makes(&page(&name)) {
            commands += 1;
            unknown
                .extend(words.iter().filter(|word| !knows(&makefile, word)).map(|word| format!("{name}: make {word}")));
        }
    }
    assert!(commands > 20, "only {commands} commands were found");
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn the_statements_of_the_operations_guide_run() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events')");
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('billing', '{order_events}')");
    make_slot(&cluster, "postgres", "by_hand");
    cluster.psql("postgres", "SELECT postbox.publish('order_events', 't', '1')");
    let statements: Vec<_> = blocks("docs/operations.md")
        .into_iter()
        // Inboxes have tests of their own.
        .filter(|(language, content)| language == "sql" && !content.contains("inbox"))
        .collect();
    let commands = commands("Retention and maintenance");
    assert_eq!(statements.len(), 4, "each is looked at below");
    assert!(cluster.psql("postgres", &statements[0].1).contains("billing|f|"));
    cluster.psql("postgres", &statements[1].1);
    assert!(printed(&cluster, &commands[0]).contains("sample"));
    let shown = cluster.psql("postgres", &statements[2].1);
    assert!(shown.contains("order_events|") && shown.contains("|0|{}"), "{shown}");
    assert_eq!(commands.len(), 3);
    for (line, says) in commands[1..].iter().zip(["EVENT ID", "public.order_events_g0"]) {
        let shown = printed(&cluster, line);
        assert!(shown.contains(says), "{line}: {shown}");
    }
    let rows = wait_until("the event is decodable", std::time::Duration::from_secs(10), || {
        let rows = cluster.psql("postgres", &statements[3].1.replace("SLOT", "by_hand"));
        (!rows.is_empty()).then_some(rows)
    });
    assert!(rows.starts_with("public.order_events|"), "{rows}");

    // What drops the slots of this database leaves those of another one.
    cluster.psql("postgres", "CREATE DATABASE other");
    make_slot(&cluster, "other", "of_another");
    cluster.psql("postgres", &spans("docs/operations.md", "SELECT pg_drop_replication_slot")[0]);
    assert_eq!(cluster.psql("postgres", "SELECT slot_name FROM pg_replication_slots"), "of_another");

    // What pg_cron is told to run.
    let schedule = spans("docs/operations.md", "SELECT cron.schedule(").remove(0);
    let scheduled = schedule.rsplit('\'').nth(1).unwrap();
    assert!(cluster.psql("postgres", scheduled).contains("maintain"), "{scheduled}");
    let rows = spans("plugin/wire/README.md", "SELECT postbox._frame(");
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders'); SELECT postbox.publish('orders', 't', '1')");
    assert_eq!(cluster.psql("postgres", &rows[0]).lines().count(), 1);
}

/// Each test that asks for the commands of a section runs all of them.
#[test]
fn no_section_of_the_operations_guide_has_a_command_that_nobody_runs() {
    for (section, text) in sections() {
        for (language, content) in blocks_of(&text) {
            assert!(["sh", "sql", "toml"].contains(&language.as_str()), "a block in {language:?} that nobody runs");
            let tests = [include_str!("docs.rs"), include_str!("claims/reading.rs")];
            let asked = tests.iter().any(|test| test.contains(&format!("commands(\"{section}\")")));
            assert!(language != "sh" || asked, "nobody runs what is in {section:?}: {content}");
        }
    }
}

#[test]
fn a_group_is_moved_and_recovered_as_the_operations_guide_says() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events')");
    let publish = |kind: &str| {
        cluster.psql("postgres", &format!("SELECT postbox.publish('order_events', '{kind}', '{{}}')"));
    };
    publish("order.passed");
    let group = "SELECT paused_at IS NOT NULL FROM postbox.consumer_group";
    let commands = commands("Moving and recovering a group");
    assert_eq!(commands.len(), 8, "{commands:?}");
    for (line, says) in commands.iter().zip([
        "created consumer group shipping",
        "is paused",
        "would move backward from",
        "moves backward from",
        "moves forward from",
        "goes on",
        "recovered consumer group shipping",
        "\"type\":\"order.missed\"",
    ]) {
        if line.contains("recover") {
            publish("order.missed");
            cluster.psql("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
            // As its members see it before it is recovered.
            let member = postbox(&cluster, commands.last().unwrap()).output().unwrap();
            assert_eq!(member.status.code(), Some(4), "{member:?}");
        }
        let shown = printed(&cluster, line);
        assert!(shown.contains(says) && !shown.contains("order.passed"), "{line}: {shown}");
        let paused = if line.contains("pause") || line.contains("seek") { "t" } else { "f" };
        assert_eq!(cluster.psql("postgres", group), paused, "{line}");
    }
    let audit = "SELECT string_agg(action, ' ' ORDER BY at) FROM postbox.audit WHERE subject = 'shipping'";
    assert_eq!(cluster.psql("postgres", audit), "pause seek seek resume recover");
}

#[test]
fn the_plugin_is_allowed_by_the_lines_that_are_given() {
    if !knows_output_plugin_libraries() {
        skip("this server takes every output plugin, so that there is no setting to change");
        return;
    }
    let cluster = Cluster::builder().setting("output_plugin_libraries", "pgoutput, test_decoding").start();
    cluster.psql("postgres", "CREATE ROLE billing LOGIN REPLICATION");
    let make = |role: &str| {
        let login = cluster.conninfo("postgres").replace("user=postgres", &format!("user={role}"));
        let make = format!("SELECT pg_create_logical_replication_slot('{role}', 'postbox')");
        cluster.psql_result("postgres", &format!("\\c \"{login}\"\n{make}"))
    };
    assert!(make("billing").is_err() && make("postgres").is_err());
    for (begin, role, other) in
        [("ALTER ROLE billing", "billing", Some("postgres")), ("ALTER SYSTEM", "postgres", None)]
    {
        let lines = spans("docs/operations.md", begin);
        cluster.psql("postgres", &lines[0]);
        cluster.psql("postgres", "SELECT pg_reload_conf()");
        wait_until(&lines[0], PATIENCE, || make(role).ok());
        assert!(other.is_none_or(|other| make(other).is_err()));
    }
}

#[test]
fn events_that_fail_are_handled_as_the_operations_guide_says() {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events');
         SELECT postbox.create_consumer_group('billing', '{order_events}');
         ALTER TABLE postbox.dead_letter ALTER COLUMN id RESTART WITH 17",
    );
    let commands = commands("Failing events and dead letters");
    assert_eq!(commands.len(), 6, "{commands:?}");
    let curl = Curl::new();
    // The command of the guide would try for a minute.
    fs::write(curl.path("broken"), "").unwrap();
    for (event_type, key) in [("order.paid", "ada"), ("order.sent", "bob"), ("order.lost", "eve")] {
        cluster.psql("postgres", &format!("SELECT postbox.publish('order_events', '{event_type}', '1', '{key}')"));
    }
    let impatient = commands[0].replace("--concurrency 8", "--max-attempts 1 --exit-when-idle 300ms");
    assert!(curl.postbox(&cluster, &impatient).status().unwrap().success());
    cluster.psql(
        "postgres",
        "UPDATE postbox.dead_letter SET stored_at = stored_at - interval '2 h', first_failed_at = first_failed_at - interval '2 h'",
    );
    fs::remove_file(curl.path("broken")).unwrap();
    let _member = Running(curl.postbox(&cluster, &commands[0]).spawn().unwrap());
    for (line, says) in commands[1..].iter().zip([
        "17 ",
        "\"type\":\"order.paid\"",
        "2 dead letters of billing redriven",
        "dead letters of billing would be redriven",
        "1 dead letter of billing discarded",
    ]) {
        let shown = printed(&cluster, line);
        assert!(shown.contains(says), "{line}: {shown}");
        if line.contains("redrive billing 17 18") {
            curl.wait_until_sent(&["order.paid", "order.sent"]);
            wait_until("they are no dead letters any more", PATIENCE, || {
                (cluster.psql("postgres", "SELECT count(*) FROM postbox.dead_letters WHERE due_at IS NOT NULL") == "0")
                    .then_some(())
            });
        }
    }
}

#[test]
fn several_groups_are_served_as_the_operations_guide_says() {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events');
         SELECT postbox.create_consumer_group('billing', '{order_events}')",
    );
    cluster.psql("postgres", "SELECT postbox.create_consumer_group('archive', '{order_events}')");
    let curl = Curl::new();
    let files: Vec<_> = blocks("docs/operations.md").into_iter().filter(|(language, _)| language == "toml").collect();
    assert_eq!(files.len(), 1);
    fs::write(curl.path("FILE"), &files[0].1).unwrap();
    let serve = spans("docs/operations.md", "postbox serve FILE").remove(0);
    let mut serve = Running(curl.postbox(&cluster, &serve).stdout(Stdio::piped()).spawn().unwrap());
    cluster.psql("postgres", "SELECT postbox.publish('order_events', 'order.paid', '1')");
    curl.wait_until_sent(&["order.paid"]);
    let mut printed = String::new();
    BufReader::new(serve.0.stdout.take().unwrap()).read_line(&mut printed).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap()["type"], "order.paid");
}

/// Into the server of the tests, where all of it lies already: so nothing is built anew, and nothing is replaced.
#[test]
fn make_installs_what_is_there() {
    let lines = installation("README.md");
    assert_eq!(lines, installation("docs/getting-started.md"));
    assert_eq!(lines.len(), 2, "{lines:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // Where others may not look into this folder it is a link.
    let server =
        root.join("target/pg").join(major().to_string()).canonicalize().expect("the server").display().to_string();
    for line in &lines {
        let mut make = Command::new("sh");
        make.args(["-c", &line.replace("/path/to", &format!("{server}/bin"))]).current_dir(root).env_clear();
        // What cargo tells a test about its own crate would have others built anew.
        for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
            make.envs(env::var_os(name).map(|value| (name, value)));
        }
        let output = make.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{line}: {output:?}");
        if line.starts_with("make install") {
            let place = format!("Postbox {} is in PostgreSQL {}: ", env!("CARGO_PKG_VERSION"), major());
            assert!(said.contains(&place) && said.contains(&format!("{server}/lib/postbox.so")), "{said}");
            assert!(said.contains("CREATE EXTENSION postbox"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_is_worked_on_as_the_operations_guide_says() {
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
         INSERT INTO statements (event_id, aggregate_id, sequence_num) VALUES ('s3', 'ada', 3)",
    );
    let receive = |ids: &str| {
        let insert = "INSERT INTO payments (event_id, event_type) SELECT unnest(";
        cluster.psql("postgres", &format!("{insert}'{ids}'::text[]), 'payment.made'"));
    };
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(0o700)).unwrap();
    };
    file("charge", "#!/bin/sh\nexec cat > charged\n");
    file("token", "Authorization: Bearer secret\n");
    let server = Server::start(None, |_| DONE).await;
    let here = |line: &str| {
        let url = format!("http://127.0.0.1:{}/", server.port);
        let line =
            line.replace("https://shop.example/", &url).replace("/etc/shop/", &format!("{}/", dir.path().display()));
        // The guide's workers go on for ever.
        if line.contains("inbox work") && !line.contains("--exit") { line + " --exit-when-idle 300ms" } else { line }
    };
    let commands = commands("Inbox workers");
    assert_eq!(commands.len(), 15, "{commands:?}");
    for line in commands {
        let handler = ["--exec", "--http", "--call"].into_iter().find(|handler| line.contains(handler));
        match handler {
            Some("--call") => receive("{ch_1,ch_2}"),
            Some(handler) => receive(&format!("{{{handler}}}")),
            None => {}
        }
        let output = postbox(&cluster, &here(&line)).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{line}: {text}");
        if handler == Some("--exec") {
            let charged = fs::read(dir.path().join("charged")).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&charged).unwrap()["event_id"], "--exec");
        }
        let words = match line.split_whitespace().nth(2).unwrap() {
            "status" | "health" | "pause" | "resume" => "payments",
            "gaps" => "[1,3)",
            _ => "",
        };
        assert!(text.contains(words), "{line}: {text}");
    }
    let [post] = &server.posts("--http")[..] else { panic!("one post") };
    assert_eq!((&*post.line, &*post.headers["authorization"]), ("POST /payments HTTP/1.1", "Bearer secret"));
    assert_eq!(cluster.psql("postgres", "TABLE paid"), "ch_1");
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM postbox.inbox_dead"), "0");
    assert_eq!(cluster.psql("postgres", "SELECT event_id FROM postbox.inbox_claim('statements', 'w')"), "s3");
}

#[test]
fn what_was_made_is_taken_away_as_the_operations_guide_says() {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        "CREATE EXTENSION postbox; CREATE TABLE parcels (id int PRIMARY KEY);
         SELECT postbox.create_outbox('order_events'), postbox.enable_outbox('parcels'), postbox.create_inbox('payments');
         INSERT INTO payments (event_id) VALUES ('a'); INSERT INTO parcels VALUES (1)",
    );
    printed(&cluster, "postbox group create billing --outbox order_events");
    for too_soon in [
        "DROP EXTENSION postbox",
        "SELECT postbox.drop_outbox('parcels_outbox')",
        "SELECT postbox.drop_inbox('payments')",
    ] {
        let refused = cluster.psql_result("postgres", &format!("\\set VERBOSITY verbose\n{too_soon}")).unwrap_err();
        assert!(refused.to_string().contains("2BP01"), "{too_soon}: {refused}");
    }
    for line in commands("Taking it away") {
        printed(&cluster, &line);
    }
    let (_, text) = sections().into_iter().find(|(heading, _)| heading == "Taking it away").unwrap();
    for (_, content) in blocks_of(&text).into_iter().filter(|(language, _)| language == "sql") {
        cluster.psql("postgres", &content);
    }
    cluster.psql("postgres", "INSERT INTO parcels VALUES (2)");
    let left = "SELECT string_agg(c.relname, ' ' ORDER BY 1) FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v') AND c.relnamespace = 'public'::regnamespace";
    assert_eq!(cluster.psql("postgres", left), "parcels");
    assert_eq!(cluster.psql("postgres", "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)"), "0|0");
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
                for line in content.lines().filter(|line| !line.starts_with("make ")) {
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
#[test]
fn a_stream_goes_into_an_inbox_as_the_operations_guide_says() {
    let (shop, office) = (Cluster::start(), Cluster::start());
    shop.psql("postgres", "CREATE EXTENSION postbox; SELECT postbox.create_outbox('order_events')");
    let blocks = blocks("docs/operations.md");
    let block = |words: &str| &blocks.iter().find(|(_, content)| content.contains(words)).expect("a block").1;
    let mut running = None;
    for line in commands("Into an inbox of another database") {
        // What psql does with its arguments.
        if let Some(statements) = line.strip_prefix("psql service=office -c ") {
            let statements = statements.trim_matches('"').replace("\" -c \"", ";");
            office.psql("postgres", &statements);
            continue;
        }
        let line = line.replace("service=office", &format!("'{}'", office.conninfo("postgres")));
        let mut command = postbox(&shop, &line);
        if line.starts_with("postbox run") {
            running = Some(Running(command.spawn().unwrap()));
        } else {
            assert!(command.output().unwrap().status.success(), "{line}");
        }
    }
    shop.psql("postgres", "SELECT postbox.publish('order_events', 'order.placed', '{}')");
    wait_until("the message", std::time::Duration::from_secs(30), || {
        (office.psql("postgres", "SELECT event_type, source FROM orders")
            == "order.placed|/postbox/postgres/public/order_events")
            .then_some(())
    });
    let shown = office.psql("postgres", block("postbox.inbox_stream s"));
    assert!(shown.starts_with("orders|postgres|to_office|"), "{shown}");
    drop(running);
}

#[test]
fn a_managed_server_is_set_up_as_its_page_says() {
    let cluster = Cluster::start();
    for (language, content) in blocks("docs/managed.md") {
        match language.as_str() {
            "sql" => drop(cluster.psql("postgres", &content)),
            "sh" => {
                for line in content.lines() {
                    let output = postbox(&cluster, line).output().unwrap();
                    assert!(output.status.success(), "{line}: {output:?}");
                    if line.starts_with("postbox run") {
                        let event: Value = serde_json::from_slice(&output.stdout).unwrap();
                        assert_eq!((&event["type"], &event["key"]), (&"order.placed".into(), &"ada".into()));
                    }
                }
            }
            other => panic!("a block in {other:?} that nobody runs"),
        }
    }
    cluster.psql("postgres", "SELECT postbox.drop_consumer_group('billing')");
    for statement in spans("docs/managed.md", "DROP SCHEMA postbox") {
        cluster.psql("postgres", &statement);
    }
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM order_events"), "1");
}

/// The benchmark's own parser.
#[allow(dead_code)]
#[path = "../src/bin/bench/arguments.rs"]
mod arguments;

#[test]
fn the_benchmark_takes_the_arguments_that_figures_were_measured_with() {
    let mut commands = 0;
    let mut refused = Vec::new();
    for name in pages() {
        for given in page(&name).split("ARGS=\"").skip(1) {
            let (given, _) = given.split_once('"').expect("an end");
            commands += 1;
            if let Err(error) = arguments::Arguments::parse(given.split_whitespace().map(str::to_owned)) {
                refused.push(format!("{name}: {given}: {error}"));
            }
        }
    }
    assert!(commands > 10, "only {commands} commands were found");
    assert_eq!(refused, [""; 0]);
}
