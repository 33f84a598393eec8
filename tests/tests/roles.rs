//! The roles at work: who has logged in with one role does the whole of its task with it, and no superuser helps.

use std::fs;
use std::process::{Command, Output};

use postbox_tests::{Cluster, Run, postbox_binary, wait_until};
use tempfile::TempDir;

use crate::docs::code_of_line;
use crate::shop::PATIENCE;

/// A cluster with the outbox `orders`, and a login for each role: `app` publishes, `ops` operates, `reader` consumes,
/// `watch` monitors, `keeper` maintains.
fn staffed() -> Cluster {
    let cluster = Cluster::with_postbox();
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('orders');
         CREATE ROLE app LOGIN; CREATE ROLE ops LOGIN REPLICATION; CREATE ROLE reader LOGIN REPLICATION;
         CREATE ROLE watch LOGIN; CREATE ROLE keeper LOGIN REPLICATION;
         SELECT postbox.grant_role('publisher', 'app', '{orders}'); SELECT postbox.grant_role('operator', 'ops');
         SELECT postbox.grant_role('consumer', 'reader'); SELECT postbox.grant_role('monitor', 'watch');
         SELECT postbox.grant_role('maintainer', 'keeper', '{orders}')",
    );
    cluster
}

fn conninfo(cluster: &Cluster, role: &str) -> String {
    cluster.conninfo("postgres").replace("user=postgres", &format!("user={role}"))
}

fn postbox(cluster: &Cluster, role: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(postbox_binary());
    command.args(arguments).args(["--database", &conninfo(cluster, role)]).output().expect("postbox runs")
}

/// Runs a command that has to end well, and returns what it printed.
fn done(cluster: &Cluster, role: &str, arguments: &[&str]) -> String {
    let output = postbox(cluster, role, arguments);
    assert!(output.status.success(), "{role}: {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that this role may not do.
fn denied(cluster: &Cluster, role: &str, arguments: &[&str], says: &str) {
    let output = postbox(cluster, role, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(says), "{role}: {arguments:?}: {output:?}");
}

fn publish(cluster: &Cluster, types: &[&str]) {
    for event_type in types {
        let sql = format!("SET ROLE app; SELECT postbox.publish('orders', '{event_type}', '{{}}', 'k')");
        cluster.psql("postgres", &sql);
    }
}

fn member(cluster: &Cluster, arguments: &[&str]) -> Run {
    Run::start(&conninfo(cluster, "reader"), &[&["--group", "g", "--no-maintenance"], arguments].concat())
}

/// What a member of the group delivers until nothing is left.
fn delivered(cluster: &Cluster) -> Vec<String> {
    let ended = member(cluster, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    ended.lines.into_iter().map(|line| line.event_type).collect()
}

fn create(cluster: &Cluster) {
    done(cluster, "ops", &["group", "create", "g", "--outbox", "orders"]);
}

#[test]
fn an_operator_makes_pauses_moves_recovers_and_drops_a_group_that_a_consumer_reads() {
    let cluster = staffed();
    create(&cluster);
    publish(&cluster, &["one"]);
    assert_eq!(delivered(&cluster), ["one"]);

    assert!(done(&cluster, "ops", &["group", "list"]).contains("orders"));
    assert!(done(&cluster, "ops", &["group", "describe", "g"]).contains('g'));
    done(&cluster, "ops", &["group", "pause", "g"]);
    let mut paused = member(&cluster, &[]);
    paused.wait_for_log("is paused: waiting", 1, PATIENCE);
    denied(&cluster, "ops", &["group", "seek", "g", "--to", "earliest"], "permission denied for table orders");
    done(&cluster, "ops", &["group", "seek", "g", "--to", "latest"]);
    done(&cluster, "ops", &["group", "resume", "g"]);
    paused.wait_for_log("active member", 1, PATIENCE);
    publish(&cluster, &["two"]);
    paused.wait_for(1, PATIENCE);
    denied(&cluster, "ops", &["group", "recover", "g"], "while member");
    assert_eq!(paused.terminate(PATIENCE).code, Some(0));

    // What comes from the table needs the right to read the table: of who moves the group, and of who delivers.
    cluster.psql("postgres", "GRANT SELECT ON orders TO ops");
    done(&cluster, "ops", &["group", "seek", "g", "--to", "earliest"]);
    let ended = member(&cluster, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_ne!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("permission denied for table orders"), "{}", ended.log);
    cluster.psql("postgres", "GRANT SELECT ON orders TO reader");
    assert_eq!(delivered(&cluster), ["one", "two"]);

    cluster.psql("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    publish(&cluster, &["three"]);
    let recovering = member(&cluster, &["--exit-when-idle", "200ms", "--recover"]).end(PATIENCE);
    assert!(recovering.code != Some(0) && recovering.log.contains("permission denied"), "{}", recovering.log);
    done(&cluster, "ops", &["group", "recover", "g"]);
    assert!(delivered(&cluster).contains(&"three".to_owned()));
    done(&cluster, "ops", &["group", "drop", "g"]);
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
}

#[test]
fn a_consumer_delivers_by_commands_and_an_operator_sees_to_what_failed() {
    let cluster = staffed();
    create(&cluster);
    let dir = TempDir::new().expect("a directory");
    let log = dir.path().join("log");
    let command = format!(
        "[ \"$POSTBOX_TYPE\" != poison ] || [ -e {0}/cure ] || exit 3; echo \"$POSTBOX_TYPE\" >> {0}/log",
        dir.path().display()
    );
    let exec = ["--sink", "exec", "--exec", &command, "--max-attempts", "1", "--on-failure", "park"];
    let said = || fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let letters = || cluster.psql("postgres", "SELECT type, why FROM postbox.dead_letters ORDER BY id");
    let mut run = member(&cluster, &exec);
    run.wait_for_log("active member", 1, PATIENCE);
    publish(&cluster, &["before", "poison", "behind"]);
    wait_until("the letters", PATIENCE, || (letters() == "poison|failed\nbehind|follower").then_some(()));
    assert_eq!(said(), ["before"]);

    denied(&cluster, "reader", &["dead-letter", "discard", "g", "--all"], "permission denied");
    assert!(done(&cluster, "ops", &["dead-letter", "list", "g"]).contains("poison"));
    fs::write(dir.path().join("cure"), "").expect("a file");
    done(&cluster, "ops", &["dead-letter", "redrive", "g", "--all"]);
    wait_until("all is delivered", PATIENCE, || (said() == ["before", "poison", "behind"]).then_some(()));
    wait_until("no letter is left", PATIENCE, || letters().is_empty().then_some(()));

    // A standby of the same role takes over.
    let mut standby = member(&cluster, &exec);
    standby.wait_for_log("standing by", 1, PATIENCE);
    drop(run);
    standby.wait_for_log("active member", 1, PATIENCE);
    publish(&cluster, &["after"]);
    wait_until("the standby delivers", PATIENCE, || said().contains(&"after".to_owned()).then_some(()));
    assert_eq!(standby.terminate(PATIENCE).code, Some(0));
}

#[test]
fn each_role_does_its_own_task_and_not_the_others() {
    let cluster = staffed();
    create(&cluster);
    assert!(done(&cluster, "keeper", &["maintain", "--once"]).contains("sample"));
    for role in ["watch", "keeper", "ops"] {
        done(&cluster, role, &["outbox", "list"]);
        assert!(done(&cluster, role, &["group", "describe", "g"]).contains('g'), "{role}");
    }
    let run: &[&str] = &["run", "--group", "g", "--exit-when-idle", "100ms"];
    let create: &[&str] = &["group", "create", "h", "--outbox", "orders"];
    let drop: &[&str] = &["group", "drop", "g"];
    let pause: &[&str] = &["group", "pause", "g"];
    let maintain: &[&str] = &["maintain", "--once"];
    for (role, commands) in [
        ("app", &[run, create, drop, pause, maintain][..]),
        ("watch", &[run, create, drop, pause, maintain]),
        ("keeper", &[run, create, drop, pause]),
        ("reader", &[create, drop, pause, maintain]),
        ("ops", &[run, maintain]),
    ] {
        for command in commands {
            denied(&cluster, role, command, "permission denied");
        }
    }
    // Nor by way of the table.
    let pause = "SET ROLE reader; UPDATE postbox.consumer_group SET paused_at = now()";
    let error = cluster.psql_result("postgres", pause).expect_err("an operator's task");
    assert!(error.contains("permission denied"), "{error}");
    // Beside a member that may not maintain, deliveries go on.
    publish(&cluster, &["one"]);
    let ended = Run::start(&conninfo(&cluster, "reader"), &["--group", "g", "--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 1), "{}", ended.log);
}

#[test]
fn who_is_granted_what_the_readme_says_makes_adopts_and_drops_outboxes() {
    let cluster = Cluster::with_postbox();
    cluster.psql(
        "postgres",
        "CREATE ROLE maker; CREATE SCHEMA mine; GRANT USAGE, CREATE ON SCHEMA mine TO maker;
         CREATE TABLE mine.old (event_id uuid, type text, payload jsonb); ALTER TABLE mine.old OWNER TO maker",
    );
    cluster.psql("postgres", &code_of_line("sql/README.md", "- **Make outboxes**").replace('…', "maker"));
    cluster.psql(
        "postgres",
        "SET ROLE maker; SELECT postbox.create_outbox('orders', 'mine'); SELECT postbox.adopt_outbox('old', 'mine');
         SELECT postbox.publish('mine.orders', 't', '{}'), postbox.publish('mine.old', 't', '{}');
         SELECT postbox.drop_outbox('orders', 'mine', force => true); SELECT postbox.drop_outbox('old', 'mine', force => true)",
    );
}
