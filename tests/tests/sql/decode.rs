//! `postbox.decode`: frames as rows.

use super::{refused, row, rows, run, start};

const EVENTS: &str = "FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL), postbox.decode(data) d";

#[tokio::test]
async fn a_peeked_frame_reads_as_the_rows_that_were_published() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "SELECT postbox.create_outbox('orders'); SELECT postbox.create_outbox('files', payload_type => 'bytea')",
    )
    .await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    run(
        &client,
        "BEGIN; SELECT postbox.publish('orders', 'made', '{\"n\": 1.50}', 'k', '{\"h\": [1]}');
         SELECT postbox.publish('files', 'up', '\\x00ff'::bytea);
         SELECT postbox.publish('orders', 'void', NULL); COMMIT",
    )
    .await;
    let fields = format!("SELECT d.ordinal, d.outbox, d.type, d.key, d.headers, d.payload, d.error {EVENTS}");
    let expected =
        ["0|public.orders|made|k|{\"h\": [1]}|{\"n\": 1.50}|", "1|public.files|up||||", "2|public.orders|void||||"];
    let expected = expected.map(|line| line.replace("up||||", "up|||AP8=|"));
    assert_eq!(rows(&client, &fields).await, expected);
    let same = format!(
        "SELECT bool_and(o.xid = d.xid), bool_and(lsn > d.commit_lsn),
            bool_and(d.commit_time BETWEEN o.created_at AND now()), count(*)
         {EVENTS} JOIN (SELECT event_id, xid, created_at FROM orders
            UNION ALL SELECT event_id, xid, created_at FROM files) o
         ON o.event_id::text = d.event_id"
    );
    assert_eq!(row(&client, &same).await, "t|t|t|3");
}

#[tokio::test]
async fn text_comes_out_as_it_went_in() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('words', payload_type => 'text')").await;
    run(&client, "SELECT postbox.create_outbox('facts', payload_type => 'json')").await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    let texts = ["'plain'", "''", "'\"quoted\" \\ and \\u0000'", "E'two\\nlines\\ttab'", "'ünï 🐘'", "'null'", "'{}'"];
    for text in texts {
        run(&client, &format!("SELECT postbox.publish('words', {text}, {text}, {text})")).await;
    }
    let equal = format!(
        "SELECT count(*), bool_and((w.type, w.key, w.payload) IS NOT DISTINCT FROM (d.type, d.key, d.payload)) {EVENTS}
         JOIN words w ON w.event_id::text = d.event_id"
    );
    assert_eq!(row(&client, &equal).await, format!("{}|t", texts.len()));
    // A frame may have what no text of PostgreSQL has.
    run(&client, "SELECT postbox.publish('words', '~~~~', '~~~~ \\u0000', 'k')").await;
    let nul = EVENTS.replace("(data)", "(decode(replace(encode(data, 'hex'), '7e7e7e7e', '00000000'), 'hex'))");
    let nul = row(&client, &format!("SELECT d.type, d.payload {nul} WHERE d.key = 'k'")).await;
    assert_eq!(nul, format!("{0}|{0} \\u0000", "\\u0000".repeat(4)));

    // json keeps what jsonb and text cannot hold.
    let documents = [
        "{\"a\":  1, \"a\": \"\\u0000\"}",
        "\"\\u0000\\u0000\"",
        "\"a \\\\u0000\"",
        "{\"a\":\"\\ud800\"}",
        "[\n null]",
        "null",
        "1e400",
    ];
    for json in documents {
        run(&client, &format!("SELECT postbox.publish('facts', 't', '{json}'::json)")).await;
    }
    let payloads = format!("SELECT d.payload {EVENTS} WHERE d.outbox = 'public.facts' ORDER BY d.commit_lsn");
    assert_eq!(rows(&client, &payloads).await, documents);
}

#[tokio::test]
async fn headers_that_jsonb_cannot_hold_are_a_string() {
    let (_cluster, client) = start().await;
    run(&client, "SELECT postbox.create_outbox('orders'), postbox.set_emit('orders', true)").await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'postbox')").await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let quoted = ["{\"a\": \"\\u0000\"}", "[\"\\ud800\"]", "1e1000000", &deep].map(|headers| (headers, headers));
    for (headers, string) in quoted.into_iter().chain([("\"string\"", "string")]) {
        let message = format!(
            "format('{{\"outbox\":%s,\"id\":\"00000000-0000-4000-8000-0000000000ab\",\"type\":\"t\",\"headers\":%s}}',
                'orders'::regclass::oid, '{headers}')"
        );
        run(&client, &format!("SELECT pg_logical_emit_message(true, 'postbox', {message})")).await;
        let same =
            format!("SELECT d.type, d.headers #>> '{{}}' = '{string}' {EVENTS} ORDER BY d.commit_lsn DESC LIMIT 1");
        assert_eq!(row(&client, &same).await, "t|t");
    }
}

#[tokio::test]
async fn what_is_no_frame_is_refused() {
    let (_cluster, client) = start().await;
    refused(&client, "SELECT * FROM postbox.decode('\\xffff')", "22P03", "cannot decode the frame", "peek_binary")
        .await;
    refused(&client, "SELECT * FROM postbox.decode('')", "22P03", "cannot decode the frame", "peek_binary").await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.decode(NULL)").await, "0");
}
