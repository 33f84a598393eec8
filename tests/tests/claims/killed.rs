//! In the middle of a claim a member or the server is killed: the claim comes again from its beginning, whole, and then its event.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use postbox_tests::tap::deliver;
use postbox_tests::{Cluster, postbox_binary};
use serde_json::Value;

const GROUP: [&str; 2] = ["--group", "g"];

/// A cluster with a group that has a large claim between two small events to read, and the claim's text.
fn with_group(create: &str) -> (Cluster, String) {
    let cluster = Cluster::with_postbox();
    let publish = "INSERT INTO orders (type) VALUES ('before');
        -- More than a member, pipes and buffers hold.
        SELECT postbox.publish_batch('orders', 'rows', 'SELECT n, md5(n::text) AS t FROM generate_series(1, 500000) n');
        INSERT INTO orders (type) VALUES ('behind')";
    let outbox = "SELECT postbox.enable_pgoutput(); SELECT postbox.create_outbox('orders');
        SELECT postbox.enable_claim_check('orders')";
    cluster.psql("postgres", outbox);
    let stored_before = create.contains("earliest");
    let group = format!("SELECT postbox.create_consumer_group('g', '{{orders}}', {create})");
    for sql in if stored_before { [publish, &group] } else { [&group, publish] } {
        cluster.psql("postgres", sql);
    }
    let text =
        cluster.psql("postgres", "SELECT string_agg(convert_from(data, 'UTF8'), '' ORDER BY chunk) FROM orders_claims");
    (cluster, text + "\n")
}

/// Whether lines end with the whole claim, chunk by chunk, and the events around it, whatever came of it before.
fn check(lines: &[Value], text: &str) {
    let begins = lines.iter().rposition(|line| line["chunk"] == 0).expect("a first chunk");
    let claim: Vec<_> = lines[begins..].iter().take_while(|line| line.get("chunk").is_some()).collect();
    for (chunk, number) in claim.iter().zip(0..) {
        assert_eq!(chunk["chunk"], number);
    }
    let read: String = claim.iter().filter_map(|chunk| chunk["text"].as_str()).collect();
    assert!(read == text, "{} bytes instead of {}", read.len(), text.len());
    let types: Vec<_> = lines[begins + claim.len()..].iter().map(|event| &event["type"]).collect();
    assert_eq!(types, ["rows", "behind"]);
}

/// Reads some lines of a member, which is in the middle of the claim then, and hands it over with what it printed.
fn begin(cluster: &Cluster, lines: usize) -> (std::process::Child, Vec<Value>, impl Iterator<Item = Value> + use<>) {
    let mut member = Command::new(postbox_binary())
        .args(["run", "-d", &cluster.conninfo("postgres")])
        .args(GROUP)
        .env("RUST_LOG", "off")
        .stdout(Stdio::piped())
        .spawn()
        .expect("postbox starts");
    let output = BufReader::new(member.stdout.take().expect("a pipe"));
    let mut output = output.lines().map_while(|line| serde_json::from_str(&line.ok()?).ok());
    let read: Vec<Value> = output.by_ref().take(lines).collect();
    assert_eq!(read.len(), lines);
    assert!(read.last().is_some_and(|line| line["chunk"].as_u64() > Some(5)), "{read:?}");
    (member, read, output)
}

fn member_is_killed(create: &str) {
    let (cluster, text) = with_group(create);
    for _ in 0..2 {
        let (mut member, _, output) = begin(&cluster, 20);
        member.kill().expect("SIGKILL");
        member.wait().expect("it is gone");
        assert!(output.count() < 150, "it was killed in the middle");
    }
    check(&deliver(&cluster, "postgres", &GROUP), &text);
}

fn server_is_killed(create: &str) {
    let (cluster, text) = with_group(create);
    let (mut member, mut lines, output) = begin(&cluster, 20);
    cluster.crash();
    for line in output {
        let is_last = line["type"] == "behind";
        lines.push(line);
        if is_last {
            break;
        }
    }
    member.kill().expect("SIGKILL");
    member.wait().expect("it is gone");
    check(&lines, &text);
    assert!(lines.iter().filter(|line| line["chunk"] == 0).count() > 1, "it was in the middle");
}

#[test]
fn the_next_member_begins_it_again() {
    member_is_killed("source => 'postbox'");
}

#[test]
fn the_next_member_begins_it_again_from_pgoutput() {
    member_is_killed("source => 'pgoutput'");
}

#[test]
fn the_next_member_begins_it_again_from_the_table() {
    member_is_killed("start => 'earliest'");
}

#[test]
fn the_member_begins_it_again_after_a_crash_of_the_server() {
    server_is_killed("source => 'postbox'");
}

#[test]
fn the_member_begins_it_again_after_a_crash_of_the_server_from_pgoutput() {
    server_is_killed("source => 'pgoutput'");
}

#[test]
fn the_member_begins_it_again_after_a_crash_of_the_server_from_the_table() {
    server_is_killed("start => 'earliest'");
}
