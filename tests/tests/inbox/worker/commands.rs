//! What `postbox inbox` says of an inbox, and does to it.

use std::process::Command;

use postbox_tests::postbox_binary;

use super::Desk;

/// The lines of a table that a command prints, the heads among them, by columns.
fn table(desk: &Desk, arguments: &[&str]) -> Vec<Vec<String>> {
    let (code, text) = desk.run(&[&["inbox"], arguments].concat());
    assert_eq!(code, 0, "{arguments:?}: {text}");
    let cells =
        |line: &str| line.split("  ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect();
    text.lines().map(cells).collect()
}

/// The cells of these columns in the only line.
fn cells<const N: usize>(table: &[Vec<String>], heads: [&str; N]) -> [String; N] {
    assert_eq!(table.len(), 2, "{table:?}");
    heads.map(|head| {
        let column = table[0].iter().position(|cell| cell == head).unwrap_or_else(|| panic!("no {head} in {table:?}"));
        table[1][column].clone()
    })
}

/// One setting or count of `inbox status NAME`.
fn setting(table: &[Vec<String>], name: &str) -> String {
    table.iter().find(|line| line[0] == name).unwrap_or_else(|| panic!("no {name} in {table:?}"))[1].clone()
}

#[test]
fn what_nobody_has_counted_is_not_said_to_be_nothing() {
    let desk = Desk::open("");
    desk.receive(&["a", "b"]);
    desk.psql(
        "SELECT postbox.inbox_complete('box', array[event_id], array[token]) FROM postbox.inbox_claim('box', 'w', 1)",
    );
    desk.psql("INSERT INTO box (event_id) VALUES ('a') ON CONFLICT DO NOTHING");
    let status = || cells(&table(&desk, &["status"]), ["PENDING", "DEAD", "PROCESSED", "AS OF"]);
    let health = || cells(&table(&desk, &["health"]), ["PENDING", "DEAD", "DUPLICATE RATE", "AS OF"]);
    assert_eq!(status(), ["1", "0", "1", "now"]);
    assert_eq!(health(), ["1", "0", "0.5", "now"]);

    // Each type has rows of its own: more than are counted at every look.
    desk.psql("INSERT INTO box (event_id, event_type) SELECT n, n FROM generate_series(1, 1100) n");
    assert_eq!(status(), ["-", "-", "~1", "-"]);
    assert_eq!(health(), ["-", "-", "0.5", "-"]);
    let one = table(&desk, &["status", "box"]);
    assert_eq!(
        ["pending", "processed", "is_exact", "as_of"].map(|name| setting(&one, name)),
        ["-", "~1", "false", "-"]
    );

    desk.psql("SELECT postbox.maintain(true)");
    let taken = desk.psql("SELECT to_char(min(taken_at), 'YYYY-MM-DD HH24:MI:SS') FROM postbox.inbox_sample");
    assert_eq!(status(), ["~1101", "~0", "~1", &*taken]);
    assert_eq!(health(), ["~1101", "~0", "0.5", &*taken]);
    let one = table(&desk, &["status", "box"]);
    assert_eq!(["pending", "dead", "max_retries"].map(|name| setting(&one, name)), ["~1101", "~0", "3"]);
}

#[test]
fn what_waits_behind_a_dead_letter_is_listed_with_it() {
    let desk = Desk::open(", max_retries => 0, failure_policy => 'park'");
    // A name that has to be quoted, in a schema that nobody looks into.
    desk.psql(
        "SELECT postbox.enable_inbox_ordering('box');
         CREATE SCHEMA \"Else where\"; SELECT postbox.create_inbox('odd box', schema => 'Else where')",
    );
    desk.psql("INSERT INTO box (event_id, event_type, aggregate_id, sequence_num) SELECT a || n, 't' || n, a, n FROM unnest('{a,b}'::text[]) a, generate_series(1, 3) n");
    desk.psql("SELECT postbox.inbox_fail('box', event_id, token, 'boom ' || event_id) FROM postbox.inbox_claim('box', 'w', 100)");
    let list = |arguments: &[&str]| -> String {
        let table = table(&desk, &[&["dlq", "list", "box"], arguments].concat());
        // That there are more is a line of its own.
        table[1..]
            .iter()
            .filter(|line| line.len() > 1)
            .map(|line| format!("{} {}", line[0], line[1]))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(list(&[]), "a1 failed, b1 failed, a2 follower, a3 follower, b2 follower, b3 follower");
    assert_eq!(list(&["a1", "b3"]), "a1 failed, b3 follower");
    assert_eq!(list(&["--type", "t2"]), "a2 follower, b2 follower");
    assert_eq!(list(&["--error", "BOOM B"]), "b1 failed");
    assert_eq!(list(&["--limit", "3"]), "a1 failed, b1 failed, a2 follower");
    assert_eq!(list(&["--older-than", "1h"]), "");
    desk.psql("UPDATE postbox.inbox_dead SET died_at = died_at - interval '2 hours' WHERE event_id = 'b1'");
    assert_eq!(list(&["--older-than", "1h"]), "b1 failed");
    assert_eq!(table(&desk, &["dlq", "list", "odd box"]).len(), 1);

    // Who may not read the messages is shown the letters, and told so.
    desk.psql("CREATE ROLE watcher LOGIN; SELECT postbox.grant_role('monitor', 'watcher')");
    let watcher = desk.cluster.conninfo("postgres").replace("user=postgres", "user=watcher");
    let mut command = Command::new(postbox_binary());
    let output = command.args(["inbox", "dlq", "list", "box", "-d", &watcher]).output().expect("postbox runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("b1") && !text.contains("b2"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("SELECT on public.dlq_box"), "{output:?}");
}

#[test]
fn sequence_numbers_of_any_size_are_given_up() {
    let desk = Desk::open("");
    desk.psql("SELECT postbox.enable_inbox_ordering('box', start_at => NULL)");
    for (id, numbers) in [("old", "(-9), (-5), (-3)"), ("large", "(4999999999), (5000000003)"), ("small", "(1), (4)")] {
        desk.psql(&format!(
            "INSERT INTO box (event_id, aggregate_id, sequence_num) SELECT '{id}' || n, '{id}', n FROM (VALUES {numbers}) v (n)"
        ));
    }
    let skip = |aggregate: &str, range: &str| {
        desk.run(&["inbox", "skip-gap", "box", "--aggregate", aggregate, "--range", range, "--reason", "lost"])
    };
    let gaps = || desk.psql("SELECT coalesce(string_agg(missing::text, ' ' ORDER BY missing), '') FROM gaps_box");
    desk.psql("SELECT FROM postbox.inbox_claim('box', 'w', 100)");
    assert_eq!(gaps(), "[-8,-5) [-4,-3) [2,4) [5000000000,5000000003)");
    for (aggregate, range, left) in [
        ("old", "-4", "[-8,-5) [2,4) [5000000000,5000000003)"),
        ("old", "-8..-7", "[-6,-5) [2,4) [5000000000,5000000003)"),
        ("old", "-6..-6", "[2,4) [5000000000,5000000003)"),
        ("large", "5000000000", "[2,4) [5000000001,5000000003)"),
        ("large", "5000000001-5000000002", "[2,4)"),
        ("small", "2..3", ""),
    ] {
        let (code, text) = skip(aggregate, range);
        assert!(code == 0 && text.contains("aggregate") && text.contains("any more"), "{range}: {code}: {text}");
        assert_eq!(gaps(), left, "{range}");
    }
    for (range, words) in [
        ("9-7", "as 7, 7-9 or -9..-7"),
        ("-7..-9", "as 7, 7-9 or -9..-7"),
        ("-9--7", "as 7, 7-9 or -9..-7"),
        ("x", "as 7, 7-9 or -9..-7"),
        ("", "as 7, 7-9 or -9..-7"),
        ("7..", "as 7, 7-9 or -9..-7"),
        ("9223372036854775807", "below 9223372036854775000"),
    ] {
        let (code, text) = skip("old", range);
        assert!(code == 2 && text.contains(words), "{range:?}: {code}: {text}");
    }
}

#[test]
fn one_tier_is_paused_and_goes_on() {
    let desk = Desk::open("");
    let tiers = r#"[{"name": "critical", "lowest": 10}, {"name": "background", "highest": 9}]"#;
    desk.psql(&format!("SELECT postbox.enable_inbox_priority('box', tiers => '{tiers}')"));
    desk.psql("INSERT INTO box (event_id, priority) VALUES ('quick', 10), ('slow', 1)");
    let claimed = || desk.psql("SELECT event_id FROM postbox.inbox_claim('box', 'w', 100)");
    let tier = |verb: &str, name: &str| desk.run(&["inbox", verb, "box", "--tier", name]);
    assert_eq!(tier("pause", "background"), (0, "tier background of inbox box is paused\n".to_owned()));
    assert_eq!(claimed(), "quick");
    let (_, text) = desk.run(&["inbox", "health", "box"]);
    assert!(text.contains("tier background paused since"), "{text}");
    assert_eq!(tier("resume", "background"), (0, "tier background of inbox box goes on\n".to_owned()));
    assert_eq!(claimed(), "slow");
    for verb in ["pause", "resume"] {
        let (code, text) = tier(verb, "urgent");
        assert!(code == 4 && text.contains("no tier \"urgent\""), "{verb}: {code}: {text}");
    }
}
