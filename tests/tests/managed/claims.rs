//! Claims from PostgreSQL's own plugin: a publication of their own, which only those read who want them in the stream.

use postbox_tests::tap::deliver;
use serde_json::Value;

use super::{SOURCES, deliver_both, deliver_same, make_groups, postbox, start, types};

const OUTBOXES: &str = "SELECT postbox.create_outbox('orders'); SELECT postbox.enable_claim_check('orders', 10, 1000);
    SELECT postbox.create_outbox('others'); SELECT postbox.enable_claim_check('others', 10, 1000)";

fn rows(outbox: &str, count: u32) -> String {
    format!(
        "SELECT postbox.publish_batch('{outbox}', 'rows', 'SELECT n, repeat(''ü'', 100) AS t FROM generate_series(1, {count}) n');"
    )
}

fn chunks(lines: &[Value]) -> usize {
    lines.iter().filter(|line| line.get("chunk").is_some()).count()
}

#[test]
fn chunks_come_before_their_event_or_the_reference_alone() {
    let cluster = start();
    cluster.psql("postgres", OUTBOXES);
    make_groups(&cluster, "postgres", "orders");
    let sql = format!(
        "BEGIN; INSERT INTO orders (type) VALUES ('before'); {large} {others} SAVEPOINT s; {large} ROLLBACK TO s;
         SELECT postbox.publish_large('orders', 'file', decode(repeat('00ff', 100000), 'hex')); INSERT INTO orders (type) VALUES ('behind'); COMMIT;
         {inline}",
        large = rows("orders", 3000),
        others = rows("others", 3000),
        inline = rows("orders", 3),
    );
    cluster.psql("postgres", &sql);
    let lines = deliver_same(&cluster, "postgres");
    assert_eq!(lines.len() - chunks(&lines), 5);
    assert!(chunks(&lines) > 10, "{}", chunks(&lines));
    let at = |n: usize| (&lines[n]["ordinal"], lines[n].get("chunk").is_some());
    assert_eq!((at(0), at(1)), ((&0.into(), false), (&1.into(), true)));
    let text: String = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert_eq!(text.lines().count(), 3000);

    cluster.psql("postgres", &sql);
    let [plugin, pgoutput] = SOURCES
        .map(|source| deliver(&cluster, "postgres", &["--group", &format!("by_{source}"), "--claims", "reference"]));
    assert_eq!(plugin, pgoutput);
    assert_eq!((types(&pgoutput), chunks(&pgoutput)), (vec!["before", "rows", "file", "behind", "rows"], 0));
}

#[test]
fn a_claim_whose_data_does_not_come_is_an_error_event() {
    let cluster = start();
    cluster.psql("postgres", OUTBOXES);
    make_groups(&cluster, "postgres", "orders,others");
    // Dropped before it is read, and whole.
    cluster.psql("postgres", &rows("others", 20));
    cluster.psql("postgres", "SELECT postbox.drop_outbox('others', force => true)");
    cluster.psql("postgres", &rows("orders", 20));
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!(plugin.len() - chunks(&plugin), 2);
    let events: Vec<_> = pgoutput.iter().filter(|line| line.get("chunk").is_none()).collect();
    assert_eq!(chunks(&pgoutput), 1);
    let details: Vec<_> = events.iter().map(|event| event["error"]["detail"].as_str().unwrap_or_default()).collect();
    assert!(details[0].contains("was dropped"), "{details:?}");
    assert_eq!((&events[0]["error"]["code"], events[0].get("claim")), (&"malformed".into(), None));
    assert_eq!(details[1], "");
}

/// The data is there, though not in the stream: nobody takes the event for one that is broken.
#[test]
fn claims_from_before_they_were_published_come_by_reference_only() {
    let taken_out = "ALTER PUBLICATION postbox_claims DROP TABLE orders_claims";
    for gone in [taken_out, "DROP PUBLICATION postbox_claims"] {
        let cluster = start();
        cluster.psql("postgres", OUTBOXES);
        make_groups(&cluster, "postgres", "orders");
        cluster.psql("postgres", &format!("{gone}; {} SELECT postbox.enable_pgoutput()", rows("orders", 2000)));
        let arguments = ["run", "--group", "by_pgoutput", "--no-maintenance", "--exit-when-idle", "0"];
        let output = postbox(&cluster.conninfo("postgres"), &arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(5), 0), "{said}");
        assert!(said.contains("--claims reference"), "{said}");
        let lines = deliver(&cluster, "postgres", &["--group", "by_pgoutput", "--claims", "reference"]);
        assert_eq!((types(&lines), chunks(&lines)), (vec!["rows"], 0));
        cluster.psql("postgres", &rows("orders", 20));
        let lines = deliver(&cluster, "postgres", &["--group", "by_pgoutput"]);
        assert_eq!((lines.len(), chunks(&lines)), (2, 1));
    }
}

#[test]
fn without_its_publication_claims_come_by_reference_only() {
    let cluster = start();
    cluster.psql("postgres", OUTBOXES);
    make_groups(&cluster, "postgres", "orders");
    cluster.psql("postgres", "DROP PUBLICATION postbox_claims");
    let arguments = ["run", "--group", "by_pgoutput", "--exit-when-idle", "0"];
    let output = postbox(&cluster.conninfo("postgres"), &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("no publication postbox_claims") && said.contains("--claims reference"), "{said}");
    cluster.psql("postgres", &rows("orders", 20));
    let lines = deliver(&cluster, "postgres", &["--group", "by_pgoutput", "--claims", "reference"]);
    assert_eq!((types(&lines), chunks(&lines)), (vec!["rows"], 0));
}

#[test]
fn what_was_published_before_the_claim_check_comes_as_ever() {
    let cluster = start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('others')");
    make_groups(&cluster, "postgres", "orders,others");
    cluster.psql(
        "postgres",
        "SELECT postbox.publish('orders', 'before', '{\"n\": 1}'); SELECT postbox.publish('others', 'dropped', '{}');
         SELECT postbox.enable_claim_check('orders', 10, 1000); SELECT postbox.enable_claim_check('others', 10, 1000)",
    );
    cluster.psql(
        "postgres",
        &format!("SELECT postbox.publish('orders', 'after', '{{}}'); {} {}", rows("orders", 20), rows("orders", 3)),
    );
    cluster.psql("postgres", "SELECT postbox.drop_outbox('others', force => true)");
    let lines = deliver_same(&cluster, "postgres");
    assert_eq!(chunks(&lines), 1);
    let events: Vec<_> = lines.into_iter().filter(|line| line.get("chunk").is_none()).collect();
    assert_eq!(types(&events), ["before", "dropped", "after", "rows", "rows"]);
    assert!(events.iter().all(|event| event.get("error").is_none_or(Value::is_null)), "{events:#?}");
}

/// Whoever may write to an outbox may write an event that says it is a claim, and rows of another outbox bring theirs along.
#[test]
fn a_row_that_says_it_is_a_claim_stops_nothing() {
    let cluster = start();
    cluster.psql("postgres", OUTBOXES);
    make_groups(&cluster, "postgres", "orders");
    let claim =
        format!(r#"{{"seq":424242,"rows":null,"bytes":2,"chunks":1,"format":"json","sha256":"{}"}}"#, "0a".repeat(32));
    cluster.psql("postgres", &format!("INSERT INTO orders (type, key, claim) VALUES ('evil', 'k', '{claim}')"));
    cluster.psql("postgres", &rows("others", 20));
    cluster.psql("postgres", "INSERT INTO orders (type, claim) SELECT type, claim FROM others, generate_series(1, 3)");
    cluster.psql("postgres", &rows("orders", 20));
    let [plugin, pgoutput] = deliver_both(&cluster, "postgres");
    assert_eq!([types(&plugin).len(), types(&pgoutput).len()], [6; 2]);
    assert_eq!(types(&pgoutput)[0], "evil");
    for (n, event) in pgoutput.iter().enumerate().take(4) {
        let error = &event["error"];
        assert_eq!((&error["code"], event.get("claim")), (&"malformed".into(), None), "{event}");
        assert!(error["detail"].as_str().is_some_and(|detail| detail.starts_with("0 of the 1 chunks")), "{n}: {event}");
    }
    assert_eq!(chunks(&pgoutput[4..]), 1);
}
