//! Claims in the stream: chunks in bounded frames, and the event behind them.

use std::process::{Command, Stdio};

use postbox::{Claims, Consumer};
use postbox_tests::tap::{deliver, peek};
use postbox_tests::{Cluster, memory_kib, postbox_binary};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{claim, data, numbers, publish, with_claims};
use crate::delivery::MEMORY_LIMIT_KIB;
use crate::sql::{row, rows, run};

const STREAM: &str = "'claims', 'stream'";

/// The texts of all chunks.
fn text(lines: &[Value]) -> String {
    lines.iter().filter_map(|line| line["text"].as_str()).collect()
}

#[tokio::test]
async fn a_slot_gives_what_it_is_asked_for() {
    let (cluster, client) = with_claims().await;
    run(&client, "BEGIN; INSERT INTO orders (type) VALUES ('before'); SELECT postbox.publish_batch('orders', 'numbers', 'SELECT generate_series(1, 2000) AS n, repeat(''x'', 100) AS t'); INSERT INTO orders (type) VALUES ('behind'); COMMIT").await;
    let stored = claim(&client).await;
    // Whoever does not know claims is told, and nothing passes for a payload.
    let events: Vec<_> = peek(&cluster, "s", "").into_iter().flat_map(|frame| frame.events).collect();
    assert_eq!(events.iter().map(|event| &event["type"]).collect::<Vec<_>>(), ["before", "numbers", "behind"]);
    let error = &events[1]["error"];
    assert_eq!(error["code"], "too_large");
    let detail = error["detail"].as_str().expect("a text");
    assert!(detail.contains("option claims") && detail.contains("\"rows\": 2000"), "{detail}");
    assert_eq!((events[1].get("claim"), &events[1]["payload"]), (None, &Value::Null));

    let events: Vec<_> =
        peek(&cluster, "s", "'claims', 'reference'").into_iter().flat_map(|frame| frame.events).collect();
    assert_eq!(events.iter().map(|event| event["ordinal"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert_eq!((&events[1]["claim"], events[1].get("error")), (&stored, None));

    let frames = peek(&cluster, "s", STREAM);
    assert!(frames.len() > 2 && frames.iter().all(|frame| frame.length < 3 * 65536), "{}", frames.len());
    let entries: Vec<_> = frames.iter().flat_map(|frame| frame.events.clone()).collect();
    let chunks: Vec<_> = entries.iter().filter(|entry| entry.get("chunk").is_some()).collect();
    assert_eq!(json!(chunks.len()), stored["chunks"]);
    for (chunk, number) in chunks.iter().zip(0..) {
        assert_eq!((&chunk["chunk"], &chunk["seq"], &chunk["ordinal"]), (&json!(number), &stored["seq"], &json!(1)));
    }
    assert_eq!(text(&entries), data(&client, &stored["seq"]).await);
    let events: Vec<_> = entries.iter().filter(|entry| entry.get("chunk").is_none()).collect();
    assert_eq!(events.iter().map(|event| event["ordinal"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert_eq!(events[1]["claim"], stored);
    // A renamed outbox is called by its name, and another outbox's claims are not sent.
    run(&client, "SELECT postbox.create_outbox('other')").await;
    let others = peek(&cluster, "s", &format!("{STREAM}, 'outboxes', 'public.other'"));
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(row(&client, "SELECT count(*), count(d.event_id), count(d.claim) FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'claims', 'stream', 'names', 'frame') f, postbox.decode(f.data) d").await,
        format!("{}|3|1", chunks.len() + 3));
}

#[tokio::test]
async fn names_go_along_and_what_cannot_be_read_is_an_error_event() {
    let (cluster, client) = with_claims().await;
    publish(&client, &numbers(20)).await;
    run(&client, "ALTER TABLE orders RENAME TO sales; ALTER TABLE orders_claims RENAME TO large").await;
    run(&client, "SELECT postbox.publish_batch('sales', 'numbers', 'SELECT generate_series(1, 20) AS n')").await;
    let names: Vec<_> = peek(&cluster, "s", STREAM)
        .into_iter()
        .flat_map(|frame| frame.events)
        .map(|entry| entry["outbox"].clone())
        .collect();
    assert_eq!(names, ["public.orders", "public.orders", "public.sales", "public.sales"]);
    run(&client, "ALTER TABLE large RENAME data TO bytes; INSERT INTO large VALUES (9, 0, 0, '\\x00')").await;
    run(&client, "BEGIN; INSERT INTO large VALUES (8, 0, 1, '\\x00'); INSERT INTO sales (type, claim) VALUES ('broken', '{\"seq\": 8}'); COMMIT").await;
    let last = peek(&cluster, "s", STREAM).into_iter().flat_map(|frame| frame.events).last().expect("an event");
    assert_eq!((&last["type"], &last["error"]["code"]), (&json!("broken"), &json!("malformed")));
    assert!(last["error"]["detail"].as_str().is_some_and(|detail| detail.contains("no column \"data\"")), "{last}");
}

#[tokio::test]
async fn stdout_prints_chunks_and_then_the_event() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat('ü', 50) AS t FROM generate_series(1, 3000) n").await;
    publish(&client, &numbers(3)).await;
    run(&client, "SELECT postbox.publish_large('orders', 'file', '\\x00ff'::bytea)").await;
    let slots = ["a", "b", "c"];
    for slot in slots {
        run(&client, &format!("SELECT pg_copy_logical_replication_slot('s', '{slot}')")).await;
    }
    let seq = row(&client, "SELECT min(seq) FROM orders WHERE claim IS NOT NULL").await;
    let lines = deliver(&cluster, "postgres", &["--slot", "a"]);
    assert_eq!(text(&lines), data(&client, &seq.parse().expect("a number")).await);
    let (chunks, events): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.get("chunk").is_some());
    assert_eq!(
        events.iter().map(|event| event["claim"]["rows"].as_u64()).collect::<Vec<_>>(),
        [Some(3000), None, None]
    );
    assert_eq!(events[0]["claim"]["chunks"], json!(chunks.len() - 1));
    let last = chunks.last().expect("a chunk");
    assert_eq!((&last["base64"], last.get("text")), (&json!("AP8="), None));
    assert!(lines.last().is_some_and(|line| line["type"] == "file"), "the event comes last");
    // Limits count events.
    let lines = deliver(&cluster, "postgres", &["--slot", "b", "--max-events", "1"]);
    assert_eq!(lines.iter().filter(|line| line.get("event_id").is_some()).count(), 1);
    let lines = deliver(&cluster, "postgres", &["--slot", "b"]);
    assert_eq!(lines.iter().filter(|line| line.get("event_id").is_some()).count(), 2);
    let lines = deliver(&cluster, "postgres", &["--slot", "c", "--claims", "reference"]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    let lines = deliver(&cluster, "postgres", &["--slot", "s", "--format", "cloudevents"]);
    assert_eq!(
        (&lines[0]["datacontenttype"], &lines[0]["data"]["rows"]),
        (&json!("application/vnd.postbox.claim+json"), &json!(3000))
    );
}

#[tokio::test]
async fn stored_events_come_with_their_claims() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat('x', 500) AS t FROM generate_series(1, 1000) n").await;
    publish(&client, &numbers(2)).await;
    publish(&client, &numbers(13)).await;
    for group in ["whole", "references", "broken"] {
        run(&client, &format!("SELECT postbox.create_consumer_group('{group}', '{{orders}}', start => 'earliest')"))
            .await;
    }
    publish(&client, &numbers(14)).await;
    let lines = deliver(&cluster, "postgres", &["--group", "whole"]);
    let whole =
        rows(&client, "SELECT convert_from(data, 'UTF8') FROM orders_claims ORDER BY seq, chunk").await.concat();
    assert_eq!(text(&lines), whole);
    let rows: Vec<_> =
        lines.iter().filter(|line| line.get("event_id").is_some()).map(|line| line["claim"]["rows"].as_u64()).collect();
    assert_eq!(rows, [Some(1000), None, Some(13), Some(14)]);
    let lines = deliver(&cluster, "postgres", &["--group", "references", "--claims", "reference"]);
    assert_eq!(lines.len(), 4);
    run(&client, "UPDATE orders_claims SET data = 'x' WHERE seq = (SELECT min(seq) FROM orders_claims) AND chunk = 1")
        .await;
    let lines = deliver(&cluster, "postgres", &["--group", "broken"]);
    let events: Vec<_> = lines.iter().filter(|line| line.get("event_id").is_some()).collect();
    assert_eq!(events.len(), 4);
    assert!(events[0]["error"]["detail"].as_str().is_some_and(|detail| detail.contains("damaged")), "{}", events[0]);
}

/// What keeps the data from being read is not the event's fault: it does not pass as one that is broken.
#[tokio::test]
async fn stored_events_wait_until_their_claims_may_be_read() {
    let (cluster, client) = with_claims().await;
    publish(&client, &numbers(13)).await;
    run(
        &client,
        "SELECT postbox.create_consumer_group('g', '{orders}', start => 'earliest'); CREATE ROLE reader LOGIN REPLICATION; \
         SELECT postbox.grant_role('consumer', 'reader'); GRANT SELECT ON orders TO reader",
    )
    .await;
    let arguments = |conninfo: &str| {
        ["run", "--group", "g", "-d", conninfo, "--no-maintenance", "--exit-when-idle", "0"].map(str::to_owned)
    };
    let conninfo = format!("{} user=reader", cluster.conninfo("postgres"));
    let refused = Command::new(postbox_binary()).args(arguments(&conninfo)).output().expect("postbox runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.stdout.is_empty() && said.contains("permission denied for table orders_claims"), "{refused:?}");
    assert_eq!(refused.status.code(), Some(1), "{said}");
    run(&client, "GRANT SELECT ON orders_claims TO reader").await;
    let delivered = Command::new(postbox_binary()).args(arguments(&conninfo)).output().expect("postbox runs");
    assert!(delivered.status.success(), "{delivered:?}");
    let lines = String::from_utf8(delivered.stdout).expect("UTF-8");
    let event: Value = serde_json::from_str(lines.lines().last().expect("an event")).expect("JSON");
    assert_eq!((&event["claim"]["rows"], event.get("error")), (&json!(13), None), "{lines}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_any_size_comes_in_bounded_memory() {
    let (cluster, client) = with_claims().await;
    large_claim(&cluster, &client, &["--slot", "s"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_any_size_comes_in_bounded_memory_from_pgoutput() {
    let (cluster, client) = with_claims().await;
    run(&client, "SELECT postbox.enable_pgoutput()").await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')").await;
    large_claim(&cluster, &client, &["--group", "g", "--source", "pgoutput", "--no-maintenance"]).await;
}

/// One claim, all of which comes out while the process that hands it out stays small.
async fn large_claim(cluster: &Cluster, client: &Client, arguments: &[&str]) {
    // 150 MB that compress badly, so that more lies behind than any buffer holds.
    publish(
        client,
        "SELECT n, md5(n::text) || md5((-n)::text) || md5((n * 7)::text) AS t FROM generate_series(1, 1200000) n",
    )
    .await;
    let summary = claim(client).await;
    let mut process = Command::new(postbox_binary())
        .arg("run")
        .args(arguments)
        .args(["-d", &cluster.conninfo("postgres"), "--max-events", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("postbox starts");
    let output = process.stdout.take().expect("a pipe");
    let pid = process.id();
    let reading = std::thread::spawn(move || {
        let (mut bytes, mut rows, mut peak) = (0, 0, 0);
        for line in std::io::BufRead::lines(std::io::BufReader::new(output)) {
            let line = line.expect("a line");
            let value: Value = serde_json::from_str(&line).expect("JSON");
            if let Some(text) = value["text"].as_str() {
                bytes += text.len() as u64;
                rows += value["rows"].as_u64().expect("a number");
            }
            peak = peak.max(memory_kib(pid, "VmHWM"));
        }
        (bytes, rows, peak)
    });
    let (bytes, rows, peak) = reading.join().expect("read");
    assert!(process.wait().expect("it ends").success());
    assert_eq!((json!(bytes), json!(rows)), (summary["bytes"].clone(), summary["rows"].clone()));
    assert!(peak > 0 && peak < MEMORY_LIMIT_KIB, "{peak} KiB");
    println!("{bytes} bytes, {rows} rows, {peak} KiB");
}

#[tokio::test]
async fn the_library_hands_out_chunks_that_are_acknowledged_like_events() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat('x', 200) AS t FROM generate_series(1, 2000) n").await;
    let stored = claim(&client).await;
    // A consumer that stops in the middle gets all of it again.
    for taken in [3, usize::MAX] {
        let builder = Consumer::builder(cluster.conninfo("postgres")).slot("s").claims(Claims::Stream);
        let mut events = builder.connect().await.expect("a consumer");
        let mut chunks = 0;
        while chunks < taken {
            let event = events.next().await.expect("an event").expect("no error").ack();
            let Some(chunk) = event.chunk else {
                assert_eq!(json!(chunks), stored["chunks"]);
                break;
            };
            assert_eq!((json!(chunk.seq), chunk.number as usize), (stored["seq"].clone(), chunks));
            chunks += 1;
        }
        events.close().await.expect("a clean end");
    }
    assert!(peek(&cluster, "s", STREAM).is_empty(), "the slot is past it");
}
