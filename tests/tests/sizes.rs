//! Payloads from nothing to the largest there can be.

use postbox::Consumer;
use postbox_tests::Cluster;
use postbox_tests::tap::{make_slot, peek, prepare};
use postbox_wire::MAX_EVENT_BYTES;

use crate::shop::PATIENCE;

/// What else of an event counts, with an empty type: its id.
const ID_BYTES: usize = 16;

fn with_bytes() -> Cluster {
    let cluster = Cluster::start();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_event_comes_whole_and_one_byte_more_as_an_error_event() {
    let cluster = with_bytes();
    let most = MAX_EVENT_BYTES - ID_BYTES;
    // Out of line and not compressed: neither writing nor reading it takes more than its size at once.
    cluster.psql("postgres", "ALTER TABLE scans ALTER COLUMN payload SET STORAGE EXTERNAL");
    for length in [most, most + 1, 1] {
        let sql = format!("INSERT INTO scans (type, payload) VALUES ('', convert_to(repeat('x', {length}), 'UTF8'))");
        cluster.psql("postgres", &sql);
    }
    let builder = Consumer::builder(cluster.conninfo("postgres")).slot("s");
    let mut consumer = builder.connect().await.expect("a consumer");
    for length in [most, most + 1, 1] {
        let event = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it comes").expect("no end");
        let event = event.expect("no error").ack();
        let bytes = match &event.error {
            None => event.payload.as_ref().expect("a payload"),
            Some(error) => {
                assert_eq!((error.code.name(), length), ("too_large", most + 1), "{}", error.detail);
                &error.raw[0].1
            }
        };
        assert_eq!(bytes.len(), length);
        assert!(bytes.iter().all(|byte| *byte == b'x'));
    }
    consumer.close().await.expect("a clean end");
}
