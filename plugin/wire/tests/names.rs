//! The dictionary of names: frames that are missed, left half read or dropped never make an event another outbox's.

mod stream;

use std::sync::Arc;

use postbox_wire::{
    Decoder, Encoder, Lsn, MAX_FRAME_BYTES, MAX_NAME_BYTES, MAX_NAMES, MAX_RAW_COLUMNS, Names, Outbox, PayloadType,
    PgMicros, Problem, Transaction,
};
use stream::{Fault, Id, Row, Slots, decode, decode_part, encode, outbox, varint};

const TRANSACTION: Transaction =
    Transaction { commit_lsn: Lsn(100), end_lsn: Lsn(150), commit_time: PgMicros(0), xid: 7 };

fn of(outboxes: &[&Arc<Outbox>]) -> (Transaction, Vec<Row>) {
    let row = |(ordinal, outbox): (usize, &&Arc<Outbox>)| Row::new(outbox, ordinal as u64, Id::Int(1), "t");
    (TRANSACTION, outboxes.iter().enumerate().map(row).collect())
}

fn pair() -> (Arc<Outbox>, Arc<Outbox>) {
    (outbox("public", "a", PayloadType::Text), outbox("public", "b", PayloadType::Text))
}

/// The problem that the decoder has with the frame.
fn problem(decoder: &mut Decoder, frame: &[u8]) -> Option<Problem> {
    decode_part(decoder, frame).err().map(|error| error.problem)
}

#[test]
fn a_stream_names_an_outbox_once_and_a_frame_alone_names_it_each_time() {
    let (a, _) = pair();
    let name = outbox("public", "a_long_name_that_is_counted", PayloadType::Text);
    let transactions = [of(&[&a, &name]), of(&[&name, &name]), of(&[&name])];
    for (names, times) in [(Names::Frame, 3), (Names::Stream, 1)] {
        let sent = encode(names, &transactions).concat();
        let found = sent.windows(name.table.len()).filter(|bytes| *bytes == name.table.as_bytes()).count();
        assert_eq!(found, times, "{names:?}");
    }
}

#[test]
fn a_stream_read_from_its_middle_refuses_references() {
    let (a, b) = pair();
    let frames = encode(Names::Stream, &[of(&[&a]), of(&[&b, &a]), of(&[&b])]);
    let mut decoder = Decoder::new();
    // The second frame defines b, which would be name 1 to a decoder that knew no better, and refers to a, which is.
    assert_eq!(problem(&mut decoder, &frames[1]), Some(Problem::Undefined(1)));
    assert_eq!(problem(&mut decoder, &frames[2]), Some(Problem::Undefined(2)));
    // From the start again.
    assert_eq!(frames.iter().find_map(|frame| problem(&mut decoder, frame)), None);
}

#[test]
fn after_a_frame_that_was_not_read_to_its_end_references_are_refused() {
    let (a, b) = pair();
    let frames = encode(Names::Stream, &[of(&[&a, &a]), of(&[&b, &b]), of(&[&a])]);
    let mut decoder = Decoder::new();
    assert_eq!(problem(&mut decoder, &frames[0]), None);
    assert!(decoder.frame(&frames[1]).unwrap().next_event().unwrap().is_some());
    assert_eq!(problem(&mut decoder, &frames[2]), Some(Problem::Undefined(1)));
}

#[test]
fn after_a_damaged_frame_references_are_refused() {
    let (a, b) = pair();
    let frames = encode(Names::Stream, &[of(&[&a]), of(&[&b]), of(&[&a])]);
    for damaged in [&[][..], &frames[1][..frames[1].len() - 1], &[9]] {
        let mut decoder = Decoder::new();
        assert_eq!(problem(&mut decoder, &frames[0]), None);
        assert!(problem(&mut decoder, damaged).is_some());
        assert_eq!(problem(&mut decoder, &frames[2]), Some(Problem::Undefined(1)), "after {damaged:?}");
    }
}

#[test]
fn a_frame_that_was_never_sent_defines_nothing() {
    let (a, _) = pair();
    let mut frames = Vec::new();
    let mut encoder = Encoder::new(Names::Stream);
    let mut slots = Slots::default();
    let (transaction, rows) = of(&[&a]);
    // The first attempt is dropped by the second `begin`, for instance because the transaction failed to be decoded.
    for _attempt in 0..2 {
        encoder.begin();
        encoder.event(&transaction, &rows[0].event(), slots.of(&a));
    }
    encoder.take(true, |frame| frames.push(frame.to_vec()));
    assert_eq!(decode(&frames).unwrap()[0].rows, rows);
}

#[test]
fn the_encoder_empties_its_dictionary_before_the_decoder_is_full() {
    let outboxes: Vec<_> =
        (0..3 * MAX_NAMES / 2).map(|number| outbox("s", &number.to_string(), PayloadType::Text)).collect();
    let transactions: Vec<_> = outboxes.chunks(500).map(|some| of(&some.iter().collect::<Vec<_>>())).collect();
    let frames = encode(Names::Stream, &transactions);
    let resets: Vec<_> = (0..frames.len()).filter(|index| frames[*index][1] & 4 != 0).collect();
    // The first frame that begins with 8,192 names or more is the 18th: 17 × 500.
    assert_eq!(resets, [0, 17, 34]);
    let parts = decode(&frames).unwrap();
    assert!(parts.iter().zip(&transactions).all(|(part, (_, rows))| part.rows == *rows));
}

/// A frame of events that each define an outbox of that name.
fn defining(flags: u8, table: &[u8], events: usize) -> Vec<u8> {
    let event = [&[0x80, 0, 0, 0][..], &varint(table.len()), table, &[4, 3, 1, 0]].concat();
    [&[1, flags, 1, 1, 0, 1][..], &[varint(event.len()), event].concat().repeat(events)].concat()
}

#[test]
fn limits_are_what_they_say() {
    let mut decoder = Decoder::new();
    assert_eq!(problem(&mut decoder, &defining(6, b"", MAX_NAMES)), None);
    let (found, limit) = (MAX_NAMES as u64 + 1, MAX_NAMES as u64);
    assert_eq!(problem(&mut decoder, &defining(2, b"", 1)), Some(Problem::TooLarge { found, limit }));

    let name = [b'n'; MAX_NAME_BYTES + 1];
    assert_eq!(problem(&mut Decoder::new(), &defining(6, &name[1..], 1)), None);
    let (found, limit) = (MAX_NAME_BYTES as u64 + 1, MAX_NAME_BYTES as u64);
    assert_eq!(problem(&mut Decoder::new(), &defining(6, &name, 1)), Some(Problem::TooLarge { found, limit }));

    let (a, _) = pair();
    for columns in [MAX_RAW_COLUMNS, MAX_RAW_COLUMNS + 1] {
        let raw = (0..columns).map(|column| (column.to_string(), vec![])).collect();
        let fault = Some(Fault { code: postbox_wire::ErrorCode::Encoding, detail: String::new(), raw });
        let frames = encode(Names::Frame, &[(TRANSACTION, vec![Row { fault, ..Row::new(&a, 0, Id::Int(1), "t") }])]);
        let (found, limit) = (columns as u64, MAX_RAW_COLUMNS as u64);
        let expected = (found > limit).then_some(Problem::TooLarge { found, limit });
        assert_eq!(problem(&mut Decoder::new(), &frames[0]), expected);
    }

    let (found, limit) = (MAX_FRAME_BYTES as u64 + 1, MAX_FRAME_BYTES as u64);
    // Zeroed pages that nobody reads are not memory.
    let huge = vec![0; MAX_FRAME_BYTES + 1];
    assert_eq!(problem(&mut Decoder::new(), &huge), Some(Problem::TooLarge { found, limit }));
}
