//! Claims by reference: the library's reader, the program, the SQL function.

use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use postbox::{ClaimFormat, ClaimPosition, ClaimReader, ClaimSummary, Consumer, ErrorKind, Event};
use postbox_tests::tap::{deliver, to_json};
use postbox_tests::{Cluster, postbox_binary, wait_until_async};
use serde_json::json;

use super::{claim, data, numbers, publish, with_claims};
use crate::docs::commands;
use crate::shop::PATIENCE;
use crate::sql::{refused, row, run};

/// The next event of the slot.
async fn event(cluster: &Cluster) -> Event {
    let mut events = Consumer::builder(cluster.conninfo("postgres")).slot("s").connect().await.expect("a consumer");
    let event = events.next().await.expect("an event").expect("no error").ack();
    events.close().await.expect("a clean end");
    event
}

async fn reader(cluster: &Cluster, event: &Event) -> ClaimReader {
    ClaimReader::open(&cluster.conninfo("postgres"), event).await.expect("a reader")
}

async fn rows_of(mut reader: ClaimReader) -> Vec<String> {
    let mut rows = Vec::new();
    while let Some(row) = reader.row().await.expect("a row") {
        rows.push(String::from_utf8(row.to_vec()).expect("UTF-8"));
    }
    rows
}

/// `postbox claim fetch` with this on its standard input.
fn fetch(cluster: &Cluster, input: &str) -> Output {
    let mut postbox = Command::new(postbox_binary());
    postbox.args(["claim", "fetch", "--patience", "1s", "-d", &cluster.conninfo("postgres")]).env("RUST_LOG", "off");
    let mut process =
        postbox.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("postbox starts");
    process.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    process.wait_with_output().expect("it ends")
}

#[tokio::test]
async fn rows_and_chunks_come_whole_and_in_order() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat('ü', n) AS t FROM generate_series(1, 3000) n").await;
    let event = event(&cluster).await;
    assert_eq!((event.payload.as_ref(), event.chunk), (None, None));
    let summary = ClaimSummary::of(&event).expect("a summary").expect("a claim");
    assert_eq!((Some(summary.seq), summary.rows, summary.format), (event.seq, Some(3000), ClaimFormat::Rows));
    assert!(summary.chunks > 50, "{summary:?}");
    let whole = data(&client, &claim(&client).await["seq"]).await;

    let mut chunks = reader(&cluster, &event).await;
    let mut read = Vec::new();
    while let Some(chunk) = chunks.chunk().await.expect("a chunk") {
        assert!(chunk.len() <= 65536);
        read.extend_from_slice(&chunk);
    }
    assert_eq!(String::from_utf8(read).expect("UTF-8"), whole);
    assert_eq!(chunks.chunk().await.expect("the end").map(|chunk| chunk.len()), None);

    assert_eq!(rows_of(reader(&cluster, &event).await).await, whole.lines().collect::<Vec<_>>());

    // The event shows what it shows to the program, which gets the same.
    let line = to_json(&event).to_string();
    assert_eq!(to_json(&event)["payload"], json!(null));
    let fetched = fetch(&cluster, &line);
    assert!(fetched.status.success(), "{fetched:?}");
    assert_eq!(String::from_utf8(fetched.stdout).expect("UTF-8"), whole);
    for wrong in ["", "{}", "[1", "{\"outbox\":\"public.orders\",\"xid\":1,\"claim\":null}"] {
        let refused = fetch(&cluster, wrong);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
}

#[tokio::test]
async fn a_reader_goes_on_in_the_middle() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat('x', 100) AS t FROM generate_series(1, 5000) n").await;
    let event = event(&cluster).await;
    let whole = data(&client, &claim(&client).await["seq"]).await;
    let mut read = Vec::new();
    let mut position = ClaimPosition::default();
    // Each reader gets a little further, and leaves nothing but a line of text.
    loop {
        let mut reader = reader(&cluster, &event).await.resume(position.to_string().parse().expect("a position"));
        let before = read.len();
        for _ in 0..3 {
            let Some(chunk) = reader.chunk().await.expect("a chunk") else { break };
            read.extend_from_slice(&chunk);
        }
        position = reader.position();
        if read.len() == before {
            break;
        }
    }
    assert_eq!(String::from_utf8(read).expect("UTF-8"), whole);

    // Rows: from where the last row that was handled began its chunk.
    let mut first = reader(&cluster, &event).await;
    let mut rows = Vec::new();
    for _ in 0..1234 {
        rows.push(first.row().await.expect("a row").expect("another"));
    }
    let mut second = reader(&cluster, &event).await.resume(first.position());
    let mut again = Vec::new();
    while let Some(row) = second.row().await.expect("a row") {
        again.push(row);
    }
    let at = rows.iter().position(|row| *row == again[0]).expect("a row that was there before");
    assert!(at > 500, "it began at {at}");
    rows.truncate(at);
    rows.extend(again);
    let lines: Vec<_> = rows.iter().map(|row| std::str::from_utf8(row).expect("UTF-8")).collect();
    assert_eq!(lines, whole.lines().collect::<Vec<_>>());
    // Another claim's position is found out.
    let lie: ClaimPosition = format!("1:10:1:{}", "0".repeat(64)).parse().expect("a position");
    let mut lied_to = reader(&cluster, &event).await.resume(lie);
    let error = loop {
        match lied_to.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("nothing was found out"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test]
async fn a_value_of_any_bytes_comes_back() {
    let (cluster, client) = with_claims().await;
    run(&client, "SELECT postbox.publish_large('orders', 'file', (SELECT string_agg(sha256(n::text::bytea), '') FROM generate_series(1, 10000) n))").await;
    let event = event(&cluster).await;
    let mut reader = reader(&cluster, &event).await;
    assert_eq!((reader.summary().format, reader.summary().bytes), (ClaimFormat::Bytes, 320_000));
    assert_eq!(reader.row().await.expect_err("no rows").kind(), ErrorKind::Usage);
    let mut read = Vec::new();
    while let Some(chunk) = reader.chunk().await.expect("a chunk") {
        read.extend_from_slice(&chunk);
    }
    let hex: String = read.iter().map(|byte| format!("{byte:02x}")).collect();
    let same = format!(
        "SELECT '\\x{hex}'::bytea = (SELECT string_agg(sha256(n::text::bytea), '') FROM generate_series(1, 10000) n)"
    );
    assert_eq!(row(&client, &same).await, "t");
}

#[tokio::test]
async fn what_is_not_what_was_published_is_refused() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat('x', 100) AS t FROM generate_series(1, 2000) n").await;
    let event = event(&cluster).await;
    let damages = [
        ("UPDATE orders_claims SET data = overlay(data placing '\\x79' from 60) WHERE chunk = 3", "checksum"),
        ("UPDATE orders_claims SET data = data || '\\x20' WHERE chunk = 2", "bytes instead"),
        ("UPDATE orders_claims SET rows = rows + 1 WHERE chunk = 2", "rows instead"),
        ("DELETE FROM orders_claims WHERE chunk = 4", "chunk 4 is missing"),
    ];
    for (damage, says) in damages {
        run(&client, &format!("CREATE TABLE kept AS SELECT * FROM orders_claims; {damage}")).await;
        let mut reader = reader(&cluster, &event).await;
        let error = loop {
            match reader.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{damage}: nobody minds"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Decode, "{error}");
        assert!(error.to_string().contains(says), "{damage}: {error}");
        let fetched = fetch(&cluster, &to_json(&event).to_string());
        assert!(!fetched.status.success() && !fetched.stderr.is_empty(), "{fetched:?}");
        run(&client, "DELETE FROM orders_claims; INSERT INTO orders_claims SELECT * FROM kept; DROP TABLE kept").await;
    }
    assert_eq!(rows_of(reader(&cluster, &event).await).await.len(), 2000);

    run(&client, "TRUNCATE orders_claims").await;
    let gone = reader(&cluster, &event).await.chunk().await.expect_err("nothing is there");
    assert_eq!(gone.sqlstate(), Some("P0002"), "{gone}");
    assert!(gone.hint().is_some_and(|hint| hint.contains("before its event is acknowledged")), "{gone:?}");
    let sql = format!("SELECT * FROM postbox.claim_chunks('orders', 1, xid => '{}')", event.xid);
    refused(&client, &sql, "P0002", "claim 1 of outbox \"orders\" has no chunk 0", "set_retention").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_cannot_be_seen_yet_is_waited_for() {
    let (cluster, client) = with_claims().await;
    // The commit waits for a standby that does not exist, and is decoded all the same.
    run(&client, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    run(&client, "SELECT pg_reload_conf()").await;
    wait_until_async("the setting is there", PATIENCE, async || {
        (row(&client, "SHOW synchronous_standby_names").await == "nobody").then_some(())
    })
    .await;
    let publisher = cluster.client("postgres").await;
    let publishing = tokio::spawn(async move { publish(&publisher, &numbers(20)).await });
    let event = event(&cluster).await;
    assert_eq!(row(&client, "SELECT count(*) FROM orders_claims").await, "0");
    let mut impatient = reader(&cluster, &event).await.patience(Duration::from_millis(20));
    let error = impatient.chunk().await.expect_err("nothing can be seen");
    assert!(error.is_transient() && error.to_string().contains("cannot be seen"), "{error}");
    let mut reader = reader(&cluster, &event).await;
    let reading = tokio::spawn(async move { reader.row().await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%claim_chunks%' AND pid <> pg_backend_pid()";
    wait_until_async("the reader has asked", PATIENCE, async || (row(&client, waits).await != "0").then_some(())).await;
    run(&client, "ALTER SYSTEM RESET synchronous_standby_names").await;
    run(&client, "SELECT pg_reload_conf()").await;
    publishing.await.expect("published");
    assert_eq!(reading.await.expect("read").expect("a row").as_deref(), Some(&b"{\"n\":1}"[..]));
}

#[tokio::test]
async fn a_sink_for_events_gets_the_reference_and_fetches() {
    let (cluster, client) = with_claims().await;
    publish(&client, &numbers(30)).await;
    let conninfo = cluster.conninfo("postgres");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("rows");
    let command = format!("{} claim fetch -d '{conninfo}' > {}", postbox_binary().display(), path.display());
    deliver(&cluster, "postgres", &["--slot", "s", "--sink", "exec", "--exec", &command]);
    let rows: String = (1..=30).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    assert_eq!(std::fs::read_to_string(path).expect("the rows"), rows);
}

#[tokio::test]
async fn an_inbox_gets_the_reference() {
    let (cluster, client) = with_claims().await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{orders}')").await;
    run(&client, "CREATE DATABASE office").await;
    cluster.psql("office", "CREATE EXTENSION postbox; SELECT postbox.create_inbox('arrivals')");
    run(&client, "SELECT postbox.publish_batch('orders', 'numbers', 'SELECT generate_series(1, 12)', key => 'k', headers => '{\"a\": 1}')").await;
    publish(&client, &numbers(12)).await;
    publish(&client, &numbers(2)).await;
    let office = cluster.conninfo("office");
    deliver(&cluster, "postgres", &["--group", "g", "--sink", "inbox", "--inbox-url", &office, "--inbox", "arrivals"]);
    let arrived = cluster.psql("office", "SELECT headers, payload ->> 'outbox', payload -> 'claim' ->> 'rows', payload FROM arrivals ORDER BY received_at, event_id");
    assert_eq!(arrived.lines().filter(|line| line.contains("public.orders|12|")).count(), 2, "{arrived}");
    assert_eq!(arrived.lines().filter(|line| line.contains("\"postbox-claim\": true")).count(), 2, "{arrived}");
    assert!(
        arrived.contains("{\"a\": 1, \"postbox-claim\": true}") && arrived.contains("[{\"n\": 1}, {\"n\": 2}]"),
        "{arrived}"
    );
    // What arrived is what the program takes.
    let reference = cluster.psql("office", "SELECT payload FROM arrivals WHERE headers ? 'a'");
    let fetched = fetch(&cluster, &reference);
    assert_eq!(fetched.stdout.iter().filter(|byte| **byte == b'\n').count(), 12, "{fetched:?}");
}

#[tokio::test]
async fn a_fetch_that_is_killed_goes_on_by_the_lines_of_the_operations_guide() {
    let (cluster, client) = with_claims().await;
    publish(&client, "SELECT n, repeat(md5(n::text), 4) AS t FROM generate_series(1, 5000) n").await;
    let event = event(&cluster).await;
    let whole = data(&client, &claim(&client).await["seq"]).await;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("event.json"), to_json(&event).to_string()).expect("a file");
    let rows = || std::fs::read(dir.path().join("rows")).unwrap_or_default();
    let at = || std::fs::read_to_string(dir.path().join("positions")).unwrap_or_default();
    let bytes = || at().lines().last().map_or(0, |line| line.split(':').nth(1).unwrap().parse::<usize>().unwrap());

    // It can write no more than a page behind what is read, and is killed in the middle of a chunk.
    let (mut output, pipe) = std::io::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&pipe, 4096).expect("a small one");
    let mut postbox = Command::new(postbox_binary());
    postbox.args(["claim", "fetch", "--positions", "positions", "-d", &cluster.conninfo("postgres")]);
    let input = std::fs::File::open(dir.path().join("event.json")).expect("the event");
    let mut process = postbox.current_dir(dir.path()).stdin(input).stdout(pipe).spawn().expect("postbox starts");
    drop(postbox);
    let mut written = vec![0; 150_000];
    output.read_exact(&mut written).expect("several chunks");
    process.kill().expect("it runs");
    process.wait().expect("it ends");
    output.read_to_end(&mut written).expect("what it had written");
    std::fs::write(dir.path().join("rows"), &written).expect("a file");
    assert!(bytes() > 65536 && bytes() <= written.len() && written.len() < whole.len(), "{}", at());

    let guide = commands("Large events").join("\n");
    let program = format!("'{}' -d '{}'", postbox_binary().display(), cluster.conninfo("postgres"));
    let go_on = || {
        let script = guide.replace("\npostbox ", &format!("\n{program} "));
        let status = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().expect("a shell");
        assert!(status.success() && rows() == whole.as_bytes(), "{status}, {}", at());
        assert_eq!(bytes(), whole.len(), "{}", at());
    };
    go_on();
    let lines = at();
    let chunks = ClaimSummary::of(&event).expect("a summary").expect("a claim").chunks as usize;
    assert_eq!(lines.lines().count(), chunks, "no chunk is fetched twice: {lines}");
    go_on();
    assert_eq!(at(), lines, "at its end there is nothing to do");
    for name in ["rows", "positions"] {
        std::fs::remove_file(dir.path().join(name)).expect("a file");
    }
    go_on();
    // A position of something else does not pass, nor does what is none.
    for (position, code) in [(format!("1:10:1:{}", "0".repeat(64)), 1), ("1:10".to_owned(), 2)] {
        let script = format!("{program} claim fetch --from {position} < event.json > /dev/null");
        let status = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().expect("a shell");
        assert_eq!(status.code(), Some(code), "{position}");
    }
}

#[tokio::test]
async fn a_position_at_or_behind_the_end_is_looked_at_as_well() {
    let (cluster, client) = with_claims().await;
    publish(&client, &numbers(20)).await;
    let event = event(&cluster).await;
    let mut whole = reader(&cluster, &event).await;
    while whole.chunk().await.expect("a chunk").is_some() {}
    let end = whole.position();
    assert_eq!(reader(&cluster, &event).await.resume(end).chunk().await.expect("the end"), None);
    for lie in [
        format!("999:0:0:{}", "0".repeat(64)),
        format!("1:0:0:{}", "0".repeat(64)),
        end.to_string().replacen("1:", "2:", 1),
    ] {
        let mut lied_to = reader(&cluster, &event).await.resume(lie.parse().expect("a position"));
        let error = lied_to.chunk().await.expect_err(&lie);
        assert!(error.kind() == ErrorKind::Decode && error.to_string().contains("damaged"), "{lie}: {error}");
        let mut lied_to = reader(&cluster, &event).await.resume(lie.parse().expect("a position"));
        assert!(lied_to.row().await.is_err(), "{lie}");
    }
}

#[tokio::test]
async fn a_schema_with_a_dot_and_a_renamed_outbox_are_found() {
    let (cluster, client) = with_claims().await;
    run(
        &client,
        "CREATE SCHEMA \"a.b\"; ALTER TABLE orders SET SCHEMA \"a.b\"; ALTER TABLE orders_claims SET SCHEMA \"a.b\"",
    )
    .await;
    run(&client, "SELECT postbox.create_consumer_group('g', '{\"\\\"a.b\\\".orders\"}')").await;
    run(&client, "SET search_path = \"a.b\", public").await;
    publish(&client, &numbers(20)).await;
    let event = event(&cluster).await;
    let input = to_json(&event).to_string();
    let fetched = fetch(&cluster, &input);
    assert_eq!(fetched.stdout.iter().filter(|byte| **byte == b'\n').count(), 20, "{fetched:?}");
    // The event names the outbox as it was.
    run(&client, "ALTER TABLE orders RENAME TO sales").await;
    let fetched = fetch(&cluster, &input);
    assert_eq!(fetched.stdout.iter().filter(|byte| **byte == b'\n').count(), 20, "{fetched:?}");
    let gone = row(&client, "SELECT count(*) FROM postbox.claim_chunks('\"a.b\".orders', 1)").await;
    assert_ne!(gone, "0");
}
