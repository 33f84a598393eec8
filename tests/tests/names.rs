//! Names as long and as strange as PostgreSQL takes them.

use std::process::Command;

use postbox_tests::tap::{deliver, make_slot};
use postbox_tests::{Cluster, Run, postbox_binary, wait_until};
use serde_json::Value;

use crate::shop::PATIENCE;

/// As in a connection string.
const DATABASE: &str = "'Größe \"x\"'";

/// 63 bytes that need quotes, of which the last ones are these.
fn longest(end: &str) -> String {
    let mut name = "Ä \"q\".'s' $".to_owned();
    name.extend(std::iter::repeat_n('n', 63 - name.len() - end.len()));
    name + end
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What stands in a URI for this name.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A cluster with an adopted outbox, all of whose names are as long as they can be: schema, table, columns.
fn with_long_names() -> (Cluster, String, String) {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE DATABASE \"Größe \"\"x\"\"\" TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'");
    let (schema, table) = (longest("schema"), longest("table"));
    let columns = ["id", "type", "key", "headers", "payload", "seq", "xid"].map(longest);
    let [id, event_type, key, headers, payload, seq, xid] = columns.each_ref().map(|name| quoted(name));
    let literals = columns.map(|name| format!("$n${name}$n$"));
    cluster.psql(
        DATABASE,
        &format!(
            "CREATE EXTENSION postbox; CREATE SCHEMA {0};
             CREATE TABLE {0}.{1} ({id} uuid DEFAULT gen_random_uuid(), {event_type} text, {key} text, {headers} jsonb, {payload} jsonb,
                 {seq} bigint NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {xid} xid8 NOT NULL DEFAULT pg_current_xact_id());
             SELECT postbox.adopt_outbox($n${table}$n$, $n${schema}$n$, event_id => {2}, type => {3}, key => {4}, headers => {5}, payload => {6},
                 seq => {7}, xid => {8})",
            quoted(&schema),
            quoted(&table),
            literals[0],
            literals[1],
            literals[2],
            literals[3],
            literals[4],
            literals[5],
            literals[6],
        ),
    );
    (cluster, schema, table)
}

fn publish(cluster: &Cluster, outbox: &str, event_type: &str) {
    let sql = format!("SELECT postbox.publish($n${outbox}$n$, '{event_type}', '{{}}', 'k', '{{\"h\": 1}}')");
    cluster.psql(DATABASE, &sql);
}

/// Runs `postbox` with these arguments, and returns what it printed.
fn postbox(cluster: &Cluster, arguments: &[&str]) -> String {
    let output =
        Command::new(postbox_binary()).args(arguments).args(["-d", &cluster.conninfo(DATABASE)]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[test]
fn a_group_of_40_characters_reads_an_outbox_whose_names_have_63_bytes() {
    let (cluster, schema, table) = with_long_names();
    let outbox = format!("{}.{}", quoted(&schema), quoted(&table));
    let group = "g".repeat(40);
    assert!(postbox(&cluster, &["group", "create", &group, "--outbox", &outbox]).contains(&group));
    publish(&cluster, &outbox, "one");
    let events = deliver(&cluster, DATABASE, &["--group", &group]);
    assert_eq!(types(&events), ["one"]);
    assert_eq!(events[0]["outbox"], format!("{schema}.{table}"));

    let source = format!("/postbox/{}/{}/{}", escaped("Größe \"x\""), escaped(&schema), escaped(&table));
    publish(&cluster, &outbox, "two");
    let events = deliver(&cluster, DATABASE, &["--group", &group, "--format", "cloudevents"]);
    assert_eq!((types(&events), &events[0]["source"]), (vec!["two"], &Value::from(source)));

    for generation in 1..4 {
        cluster.psql(DATABASE, "SELECT pg_drop_replication_slot(slot_name) FROM postbox.consumer_groups");
        publish(&cluster, &outbox, "more");
        assert!(postbox(&cluster, &["group", "recover", &group]).contains(&format!("postbox{generation}_")));
        assert!(types(&deliver(&cluster, DATABASE, &["--group", &group])).contains(&"more"));
    }
    // The longest that there can be: of the last generation, in the last of all databases.
    let name = format!(
        "SELECT replace(postbox._slot_name('{group}', 9999)::text, '_' || oid || '_', '_4294967295_') FROM pg_database WHERE datname = current_database()"
    );
    let name = cluster.psql(DATABASE, &name);
    assert!(name.starts_with("postbox9999_4294967295_") && name.ends_with(&group) && name.len() <= 63, "{name}");
    let too_long = cluster
        .psql_result(DATABASE, &format!("SELECT postbox.create_consumer_group('{group}g', ARRAY[$n${outbox}$n$])"));
    assert!(too_long.unwrap_err().contains("1 to 40 characters"));
    assert!(postbox(&cluster, &["group", "list"]).contains(&group));
    postbox(&cluster, &["group", "drop", &group]);
}

/// Two members of such a group are two in the views, whatever the machine is called.
#[test]
fn members_of_a_group_of_40_characters_are_told_apart() {
    let (cluster, schema, table) = with_long_names();
    let (outbox, group) = (format!("{}.{}", quoted(&schema), quoted(&table)), "g".repeat(40));
    postbox(&cluster, &["group", "create", &group, "--outbox", &outbox]);
    let run = || Run::start(&cluster.conninfo(DATABASE), &["--group", &group, "--no-maintenance"]);
    let mut one = run();
    one.wait_for_log("active member", 1, PATIENCE);
    let two = run();
    let status = "SELECT role, member FROM postbox.consumer_status ORDER BY role";
    let shown = wait_until("two members", PATIENCE, || {
        let shown = cluster.psql(DATABASE, status);
        (shown.lines().count() == 2).then_some(shown)
    });
    let shown: Vec<_> = shown.lines().collect();
    assert!(shown[0].starts_with("active|") && shown[0].ends_with(&format!(":{}", one.pid())), "{shown:?}");
    assert!(shown[1].starts_with("standby|") && shown[1].ends_with(&format!(":{}", two.pid())), "{shown:?}");
}

#[test]
fn a_role_and_a_slot_of_63_bytes_do_their_work() {
    let (cluster, schema, table) = with_long_names();
    let outbox = format!("{}.{}", quoted(&schema), quoted(&table));
    let role = longest("role");
    let slot = "s".repeat(63);
    make_slot(&cluster, DATABASE, &slot);
    cluster.psql(
        DATABASE,
        &format!(
            "CREATE ROLE {0} LOGIN REPLICATION; SELECT postbox.grant_role('publisher', $n${0}$n$, ARRAY[$n${outbox}$n$::regclass]);
             SELECT postbox.grant_role('consumer', $n${0}$n$); SELECT postbox.grant_role('operator', $n${0}$n$);
             SET ROLE {0}; SELECT postbox.publish($n${outbox}$n$, 'mine', '{{}}')",
            quoted(&role)
        ),
    );
    assert_eq!(types(&deliver(&cluster, DATABASE, &["--slot", &slot])), ["mine"]);
    // Logged in as such a role.
    let conninfo = cluster.conninfo(DATABASE);
    let user = format!("user='{}'", role.replace('\\', "\\\\").replace('\'', "\\'"));
    let conninfo = conninfo.replace("user=postgres", &user);
    let create = ["group", "create", "g", "--outbox", &outbox, "-d", &conninfo];
    let output = Command::new(postbox_binary()).args(create).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    publish(&cluster, &outbox, "one");
    let ended = Run::start(&conninfo, &["--group", "g", "--no-maintenance", "--exit-when-idle", "300ms"]).end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 1), "{}", ended.log);
    let too_long =
        cluster.psql_result(DATABASE, &format!("SELECT pg_create_logical_replication_slot('{slot}s', 'postbox')"));
    assert!(too_long.is_err());
}
