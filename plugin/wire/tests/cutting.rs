//! Where the encoder says that a frame is to be written out.

mod stream;

use postbox_wire::{
    Encoder, FRAME_BYTES, Lsn, MAX_EVENT_BYTES, MAX_FRAME_BYTES, Names, PayloadType, PgMicros, Transaction,
};
use stream::{Id, Row, Slots, outbox};

const TRANSACTION: Transaction =
    Transaction { commit_lsn: Lsn(100), end_lsn: Lsn(150), commit_time: PgMicros(0), xid: 7 };

/// An encoder whose frame holds one event with a payload of so many bytes.
fn holding(payload: usize) -> Encoder {
    let files = outbox("public", "files", PayloadType::Bytea);
    let row = Row { payload: Some(vec![0; payload]), ..Row::new(&files, 0, Id::Int(0), "t") };
    let mut encoder = Encoder::new(Names::Frame);
    encoder.begin();
    encoder.event(&TRANSACTION, &row.event(), Slots::default().of(&files));
    encoder
}

fn length(mut encoder: Encoder) -> usize {
    let mut length = 0;
    encoder.take(true, |frame| length = frame.len());
    length
}

#[test]
fn a_frame_is_due_from_its_64th_kibibyte_on() {
    let rest = length(holding(FRAME_BYTES / 2)) - FRAME_BYTES / 2;
    let fits = FRAME_BYTES - rest;
    assert_eq!(length(holding(fits)), FRAME_BYTES);
    assert!(holding(fits).is_due());
    assert!(!holding(fits - 1).is_due());
}

#[test]
fn a_frame_that_is_not_due_takes_the_largest_event() {
    let encoder = holding(FRAME_BYTES / 2);
    assert!(!encoder.would_overflow(MAX_EVENT_BYTES));
    assert!(encoder.would_overflow(MAX_FRAME_BYTES - FRAME_BYTES));
    assert!(encoder.would_overflow(usize::MAX));
    let empty = Encoder::new(Names::Frame);
    assert!(!empty.would_overflow(MAX_FRAME_BYTES - FRAME_BYTES));
}

#[test]
fn a_transaction_has_events_until_its_last_frame_is_taken() {
    let mut encoder = holding(10);
    assert!(!encoder.is_empty() && encoder.has_events());
    encoder.take(false, |_| ());
    assert!(encoder.is_empty() && encoder.has_events());
    encoder.begin();
    assert!(encoder.is_empty() && !encoder.has_events());

    let mut encoder = holding(10);
    encoder.take(true, |_| ());
    assert!(encoder.is_empty() && !encoder.has_events());
}
