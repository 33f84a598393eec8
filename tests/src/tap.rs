//! What a slot gives: live through a consumer, or later through the slot's SQL functions.

use std::process::Command;
use std::time::Duration;

use postbox::{Consumer, Event};
use postbox_wire::{Decoder, Entry, Transaction, expand, json};
use serde_json::Value;

use crate::{Cluster, postbox_binary};

/// A consumer that reads up to fences: events of the outbox `fence`, published for the purpose.
pub struct Tap {
    consumer: Consumer,
}

/// One row of `pg_logical_slot_peek_binary_changes`, decoded.
#[derive(Debug)]
pub struct PeekedFrame {
    /// Of the frame's header.
    pub transaction: Transaction,
    /// Not the first frame of its transaction.
    pub continues: bool,
    /// The last frame of its transaction.
    pub is_last: bool,
    /// Bytes of the frame.
    pub length: usize,
    /// The events in native JSON.
    pub events: Vec<Value>,
}

/// Installs the extension and makes the outbox `fence`.
pub fn prepare(cluster: &Cluster, database: &str) {
    cluster.psql(database, "CREATE EXTENSION IF NOT EXISTS postbox; SELECT postbox.create_outbox('fence')");
}

/// Makes a slot with the plugin.
pub fn make_slot(cluster: &Cluster, database: &str, slot: &str) {
    cluster.psql(database, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'postbox')"));
}

impl Tap {
    /// Starts to read a slot of the database `postgres`.
    pub async fn open(cluster: &Cluster, slot: &str) -> Self {
        let builder = Consumer::builder(cluster.conninfo("postgres")).slot(slot);
        Self { consumer: builder.connect().await.expect("a consumer") }
    }

    /// The events since the last fence, in order, acknowledged. A fence of this name must have been published.
    pub async fn until(&mut self, fence: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(30), self.consumer.next()).await;
            let next = next.unwrap_or_else(|_| panic!("fence {fence} did not come; before it came {events:#?}"));
            let event = next.expect("the stream goes on").expect("no error").ack();
            if event.outbox.table == "fence" && event.event_type == *fence {
                return events;
            }
            events.push(event);
        }
    }

    /// Ends the stream in order.
    pub async fn close(self) {
        self.consumer.close().await.expect("a clean end");
    }
}

/// An event as JSON, to be compared.
pub fn to_json(event: &Event) -> Value {
    let mut line = Vec::new();
    event.write_json(&mut line);
    serde_json::from_slice(&line).expect("native JSON")
}

/// The frames that the slot holds, each decoded by itself; `options` as `'name', 'value', …`.
pub fn peek(cluster: &Cluster, slot: &str, options: &str) -> Vec<PeekedFrame> {
    raw(cluster, slot, options)
        .iter()
        .map(|bytes| decode(&mut Decoder::new(), bytes).unwrap_or_else(|error| panic!("{error}: {bytes:x?}")))
        .collect()
}

/// All events that the slot holds, as native JSON.
pub fn peek_events(cluster: &Cluster, slot: &str) -> Vec<Value> {
    peek(cluster, slot, "").into_iter().flat_map(|frame| frame.events).collect()
}

/// What the binary prints and confirms until nothing is left, line by line; it has to end well.
///
/// # Panics
/// When it does not, with what it logged.
pub fn deliver(cluster: &Cluster, database: &str, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(postbox_binary())
        .args(["run", "--exit-when-idle", "300ms", "-d", &cluster.conninfo(database)])
        .args(arguments)
        .output()
        .expect("postbox runs");
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The frames' bytes.
pub fn raw(cluster: &Cluster, slot: &str, options: &str) -> Vec<Vec<u8>> {
    raw_of(cluster, "postgres", slot, options)
}

/// The frames' bytes, of a slot of this database.
pub fn raw_of(cluster: &Cluster, database: &str, slot: &str, options: &str) -> Vec<Vec<u8>> {
    let options = if options.is_empty() { String::new() } else { format!(", {options}") };
    let sql =
        format!("SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL{options})");
    let hex = |line: &str| {
        (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).expect("hex")).collect()
    };
    // Names in the options are UTF-8 as everything here.
    let sql = format!("SET client_encoding = 'UTF8'; {sql}");
    cluster.psql(database, &sql).lines().map(hex).collect()
}

/// One frame, read with a decoder that may have read others before.
///
/// # Errors
/// The bytes are no frame.
pub fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Result<PeekedFrame, postbox_wire::DecodeError> {
    let expanded = expand(bytes)?;
    let mut frame = decoder.frame(expanded.as_deref().unwrap_or(bytes))?;
    let (transaction, continues, is_last) = (frame.transaction, frame.continues(), frame.is_last());
    let mut events = Vec::new();
    while let Some(entry) = frame.next_entry()? {
        let mut line = Vec::new();
        match entry {
            Entry::Event(event) => json::write(&mut line, &transaction, &event),
            Entry::Chunk(chunk) => json::write_chunk(&mut line, &transaction, &chunk),
        }
        events.push(serde_json::from_slice(&line).expect("native JSON"));
    }
    Ok(PeekedFrame { transaction, continues, is_last, length: bytes.len(), events })
}
