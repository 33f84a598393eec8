//! Entry points for fuzzers: what a hostile server or publisher can hand to the reader of pgoutput. Not part of the interface.

use bytes::Bytes;
use postbox_wire::emitted::Emitted;
use postbox_wire::{Lsn, PgMicros, Transaction};

use super::claims::Chunks;
use super::message::Message;
use super::row::{event, message_event};
use super::stored::{is_stored_row, stored_event};
use super::table::{Column, Table, arguments, show};
use crate::decode::stored;
use crate::error::Result;
use crate::event::Event;

/// The events of these messages, rows and messages alike being of the table that was described last. All tables have this marker.
pub fn events_of<'a>(marker: &[u8], messages: impl Iterator<Item = &'a [u8]>, limit: usize) -> Vec<Event> {
    let marker = arguments(Some(marker.to_vec()));
    let transaction = Transaction { commit_lsn: Lsn(16), end_lsn: Lsn(32), commit_time: PgMicros(5), xid: 752 };
    let mut last = None;
    let mut events = Vec::new();
    for message in messages {
        let bytes = Bytes::copy_from_slice(message);
        let stored = is_stored_row(&bytes);
        match (Message::read(bytes.clone()), &last) {
            (Ok(Message::Relation(relation)), _) => {
                let columns = Column::of_relation(&relation, &[]);
                let name = (show(&relation.schema), show(&relation.table));
                last = Some(Table::new(relation.oid, name, &marker, columns, None));
            }
            (Ok(Message::Insert { row, .. }), Some(table)) => {
                let mut event = event(&row, table, &transaction, 0, limit);
                Chunks::default().complete(&mut event);
                events.push(event);
            }
            (Ok(Message::Logical { content, .. }), Some(table)) => events.extend(
                Emitted::read(&content).map(|message| message_event(&message, &content, table, &transaction, 0, limit)),
            ),
            (Err(_), Some(table)) if stored => events.extend(stored_event(bytes, table)),
            _ => {}
        }
    }
    events
}

/// The event as it is read from a dead letter.
///
/// # Errors
/// It does not come back.
pub fn as_dead_letter(event: &Event) -> Result<Event> {
    stored(&event.to_frame().into())
}
