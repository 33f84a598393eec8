//! Payloads from nothing to the largest there can be.

use postbox::Consumer;
use postbox_tests::Cluster;
use postbox_tests::tap::{make_slot, peek, prepare};
use postbox_wire::MAX_EVENT_BYTES;

use crate::shop::PATIENCE;

/// What else of an event counts, with an empty type: its id.
const ID_BYTES: usize = 16;

fn with_bytes() -> Cluster {
    let cluster = Cluster::with_postbox();
    prepare(&cluster, "postgres");
    cluster.psql("postgres", "SELECT postbox.create_outbox('scans', payload_type => 'bytea')");
    make_slot(&cluster, "postgres", "s");
    cluster
}

/// Stored in the row, compressed there, out of line, and compressed out of line; around every bound of the row's storage.
#[test]
fn payloads_of_every_length_come_whole_however_they_are_stored() {
    let cluster = with_bytes();
    let lengths = "0, 1, 2, 125, 126, 127, 128, 1990, 2000, 2010, 2030, 2040, 8150, 8190, 8200, 65000, 65535, 65536, 70000, 1000000";
    for storage in ["PLAIN", "MAIN", "EXTERNAL", "EXTENDED"] {
        // A row of PLAIN storage has to fit a page.
        let most = if storage == "PLAIN" { 8000 } else { usize::MAX };
        cluster.psql(
            "postgres",
            &format!(
                "ALTER TABLE scans ALTER COLUMN payload SET STORAGE {storage};
                 INSERT INTO scans (key, type, payload) SELECT n, '{storage}', decode(repeat(md5(n::text), n / 16 + 1), 'hex')
                     FROM unnest(ARRAY[{lengths}]) n WHERE n <= {}",
                most.min(1 << 30)
            ),
        );
    }
    let stored = cluster.psql(
        "postgres",
        "SELECT key || ' ' || type || ' ' || translate(encode(payload, 'base64'), E'\\n', '') FROM scans ORDER BY seq",
    );
    let stored = stored.lines().collect::<Vec<_>>();
    let events = peek(&cluster, "s", "").into_iter().flat_map(|frame| frame.events).collect::<Vec<_>>();
    assert_eq!(events.len(), stored.len());
    assert!(stored.len() > 60, "{}", stored.len());
    for (event, stored) in events.iter().zip(stored) {
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let found = format!("{} {} {}", text("key"), text("type"), text("payload"));
        assert!(found == stored, "{} of {} differs", event["key"], event["type"]);
    }
}

#[test]
fn the_limit_is_exact() {
    let cluster = with_bytes();
    for length in [499 - ID_BYTES, 500 - ID_BYTES, 501 - ID_BYTES] {
        let sql = format!("INSERT INTO scans (type, payload) VALUES ('', decode(repeat('ab', {length}), 'hex'))");
        cluster.psql("postgres", &sql);
    }
    let frames = peek(&cluster, "s", "'max_event_bytes', '500'");
    let errors = frames.iter().flat_map(|frame| &frame.events).map(|event| event["error"]["code"].as_str());
    assert_eq!(errors.collect::<Vec<_>>(), [None, None, Some("too_large")]);
}

/// An outbox and its largest payload: the SQL that makes it, what it repeats, and what stands around that.
struct Largest {
    outbox: &'static str,
    sql: String,
    repeated: &'static str,
    around: &'static str,
}

impl Largest {
    /// A block at a time, as a debug build takes seconds for so many single bytes.
    fn is(&self, bytes: &[u8]) -> bool {
        let inner =
            bytes.strip_prefix(self.around.as_bytes()).and_then(|rest| rest.strip_suffix(self.around.as_bytes()));
        let block = self.repeated.repeat(1 << 16).into_bytes();
        bytes.len() == MAX_EVENT_BYTES - ID_BYTES
            && inner.is_some_and(|inner| inner.chunks(block.len()).all(|chunk| chunk == &block[..chunk.len()]))
    }
}

/// However the payload is stored: the bytes as they are, so that neither writing nor reading them takes more than their size
/// at once, the others compressed to a few megabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_event_comes_whole_and_one_byte_more_as_an_error_event() {
    let cluster = with_bytes();
    let most = MAX_EVENT_BYTES - ID_BYTES;
    let largest = |outbox, sql, repeated, around| Largest { outbox, sql, repeated, around };
    let kinds = [
        largest("scans", format!("convert_to(repeat('x', {most}), 'UTF8')"), "x", ""),
        largest("notes", format!("repeat('x', {most})"), "x", ""),
        // Its text is twice as long as the value: it is the text that counts.
        largest("documents", format!("to_jsonb(repeat(E'\\n', {}))", (most - 2) / 2), r"\n", "\""),
    ];
    cluster.psql(
        "postgres",
        "ALTER TABLE scans ALTER COLUMN payload SET STORAGE EXTERNAL;
         SELECT postbox.create_outbox('notes', payload_type => 'text');
         SELECT postbox.create_outbox('documents', payload_type => 'jsonb')",
    );
    for Largest { outbox, sql, .. } in &kinds {
        // The second one has its byte more in the type: its payload is copied as it is stored, not compressed again.
        let sql = format!(
            "INSERT INTO {outbox} (type, payload) VALUES ('', {sql});
             INSERT INTO {outbox} (type, payload) SELECT 'x', payload FROM {outbox};
             INSERT INTO {outbox} (type, payload) VALUES ('small', '1')"
        );
        cluster.psql("postgres", &sql);
    }
    let compressed = "SELECT max(pg_column_size(payload)) < 10000000 FROM";
    let compressed = kinds.each_ref().map(|kind| cluster.psql("postgres", &format!("{compressed} {}", kind.outbox)));
    assert_eq!(compressed, ["f", "t", "t"]);
    let builder = Consumer::builder(cluster.conninfo("postgres")).slot("s");
    let mut consumer = builder.connect().await.expect("a consumer");
    for kind in &kinds {
        for event_type in ["", "x", "small"] {
            let event = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it comes").expect("no end");
            let event = event.expect("no error").ack();
            let found = (event.outbox.table.as_str(), &*event.event_type);
            assert_eq!(found, (kind.outbox, event_type));
            let error = event.error.as_ref();
            let code = error.map(|error| error.code.name());
            assert_eq!(code, (event_type == "x").then_some("too_large"), "{}", kind.outbox);
            let payload = error.map_or_else(|| event.payload.as_ref().expect("a payload"), |error| &error.raw[0].1);
            let whole = if event_type == "small" { payload[..] == *b"1" } else { kind.is(payload) };
            assert!(whole, "{}, type {event_type:?}: {} bytes", kind.outbox, payload.len());
        }
    }
    consumer.close().await.expect("a clean end");
}
