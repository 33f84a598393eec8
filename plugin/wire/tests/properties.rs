//! What holds for any stream, and for any bytes.

mod stream;

use std::sync::Arc;

use postbox_wire::{Decoder, ErrorCode, FRAME_BYTES, Lsn, Names, Outbox, PayloadType, PgMicros, Transaction};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use stream::{Fault, Id, Part, Row, decode, decode_part, encode, encode_parts, ends, outbox};

/// Second byte of a frame: the decoder empties its dictionary.
const RESET: u8 = 4;

fn outboxes() -> impl Strategy<Value = Arc<Outbox>> {
    prop_oneof![
        Just(outbox("public", "orders", PayloadType::Jsonb)),
        Just(outbox("public", "imports", PayloadType::Json)),
        Just(outbox("audit", "log", PayloadType::Text)),
        Just(outbox("größe", "a.\"b\"", PayloadType::Bytea)),
        Just(outbox("", "", PayloadType::Bytea)),
    ]
}

fn ids() -> impl Strategy<Value = Id> {
    prop_oneof![
        any::<[u8; 16]>().prop_map(Id::Uuid),
        "\\PC{0,40}".prop_map(Id::Text),
        any::<i64>().prop_map(Id::Int),
        (-70..70_i64).prop_map(Id::Int)
    ]
}

/// Mostly small; sometimes so large that a few fill a frame; seldom larger than a frame.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let filled = |lengths: std::ops::Range<usize>| (lengths, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
    prop_oneof![
        12 => vec(any::<u8>(), 0..300),
        2 => filled(15_000..30_000),
        1 => filled(FRAME_BYTES - 200..FRAME_BYTES + 20_000),
    ]
}

fn faults() -> impl Strategy<Value = Fault> {
    let codes =
        vec![ErrorCode::Encoding, ErrorCode::TooLarge, ErrorCode::Malformed, ErrorCode::Null, ErrorCode::Mapping];
    let raw = vec(("\\PC{0,12}", vec(any::<u8>(), 0..40)), 0..4);
    (prop::sample::select(codes), "\\PC{0,40}", raw).prop_map(|(code, detail, raw)| Fault { code, detail, raw })
}

/// A row whose ordinal is, for now, the number of ordinals that it skips.
fn rows() -> impl Strategy<Value = Row> {
    let skipped = prop_oneof![4 => Just(0), 1 => 1..1000_u64, 1 => 0..1_u64 << 50];
    let texts = (option::of("\\PC{0,30}"), option::of("\\PC{0,200}"), option::of("\\PC{0,60}"));
    let optional = (option::of(ids()), option::of(any::<i64>()), option::of(payloads()));
    let fault = option::weighted(0.2, faults());
    let claims = (option::weighted(0.2, "\\PC{0,60}"), option::weighted(0.2, any::<(u32, u32)>()));
    (outboxes(), skipped, texts, optional, fault, claims).prop_map(
        |(outbox, ordinal, (event_type, key, headers), (id, seq, payload), fault, (claim, chunk))| {
            if let Some(numbers) = chunk {
                let (seq, data) = (seq.unwrap_or_default(), payload.unwrap_or_default());
                return Row::of_chunk(&outbox, ordinal, seq, numbers, &data);
            }
            // Only an error event may lack these.
            let (id, event_type) = match fault {
                Some(_) => (id, event_type),
                None => (id.or(Some(Id::Int(0))), event_type.or(Some("plain".into()))),
            };
            Row { outbox, ordinal, id, seq, event_type, key, headers, payload, claim, fault, chunk: None }
        },
    )
}

fn transactions(most_rows: usize) -> impl Strategy<Value = (Transaction, Vec<Row>)> {
    let transaction =
        (any::<u64>(), 0..1_u64 << 20, any::<i64>(), any::<u64>()).prop_map(|(commit, length, time, xid)| {
            let end = commit.saturating_add(length);
            Transaction { commit_lsn: Lsn(commit), end_lsn: Lsn(end), commit_time: PgMicros(time), xid }
        });
    (transaction, vec(rows(), 1..=most_rows)).prop_map(|(transaction, mut rows)| {
        let mut next = 0;
        for row in &mut rows {
            row.ordinal += next;
            // A chunk has the ordinal of the event that follows.
            next = row.ordinal + u64::from(row.chunk.is_none());
        }
        (transaction, rows)
    })
}

fn modes() -> impl Strategy<Value = Names> {
    prop::sample::select(&[Names::Frame, Names::Stream][..])
}

/// Transactions out of the frames that they were cut into.
fn joined(parts: Vec<Part>) -> Vec<(Transaction, Vec<Row>)> {
    let mut whole: Vec<(Transaction, Vec<Row>)> = Vec::new();
    for Part { transaction, continues, rows, .. } in parts {
        match whole.last_mut().filter(|_| continues) {
            Some((_, earlier)) => earlier.extend(rows),
            None => whole.push((transaction, rows)),
        }
    }
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_was_encoded_is_decoded(names in modes(), transactions in vec(transactions(14), 1..5)) {
        let frames = encode(names, &transactions);
        let parts = decode(&frames).unwrap();

        for (frame, part) in frames.iter().zip(&parts) {
            let ends = ends(frame);
            prop_assert_eq!(ends.len() - 1, part.rows.len());
            prop_assert_eq!(ends[ends.len() - 1], frame.len());
            // A frame is closed before the next event once it is full, and not earlier.
            prop_assert!(ends[ends.len() - 2] < FRAME_BYTES, "an event was added to a full frame");
            prop_assert!(part.last || frame.len() >= FRAME_BYTES, "a frame was cut early");
        }
        for pair in parts.windows(2) {
            // A frame continues the transaction of the one before it unless that one was the last of its own.
            prop_assert_eq!(pair[1].continues, !pair[0].last);
            prop_assert!(!pair[1].continues || pair[0].transaction == pair[1].transaction);
        }
        prop_assert!(!parts[0].continues);
        prop_assert!(parts[parts.len() - 1].last);

        match names {
            // Each frame is read by itself.
            Names::Frame => for (frame, part) in frames.iter().zip(&parts) {
                prop_assert_eq!(frame[1] & RESET, RESET);
                prop_assert_eq!(&decode_part(&mut Decoder::new(), frame).unwrap(), part);
            },
            Names::Stream => for (index, frame) in frames.iter().enumerate() {
                prop_assert_eq!(frame[1] & RESET != 0, index == 0);
            },
        }
        prop_assert_eq!(joined(parts), transactions);
    }

    #[test]
    fn a_cut_frame_is_refused_unless_it_is_cut_between_events(transaction in transactions(4), cut in any::<prop::sample::Index>()) {
        let frames = encode(Names::Frame, &[transaction]);
        let frame = &frames[0];
        let ends = ends(frame);
        // Everywhere in a small frame; where a payload is large, at the boundaries and somewhere.
        let near = ends.iter().flat_map(|end| end.saturating_sub(40)..(end + 40).min(frame.len()));
        let cuts: Vec<_> = if frame.len() < 2000 { (0..frame.len()).collect() } else { near.chain([cut.index(frame.len())]).collect() };
        for cut in cuts {
            let between = ends[1..].contains(&cut);
            let read = decode_part(&mut Decoder::new(), &frame[..cut]);
            prop_assert_eq!(read.is_ok(), between, "cut at {} of {:?}: {:?}", cut, ends, read);
            if let Err(error) = read {
                prop_assert!(error.at <= cut);
            }
        }
    }

    #[test]
    fn a_damaged_stream_is_refused_or_is_another_stream(
        names in modes(),
        transactions in vec(transactions(5), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut frames = encode(names, &transactions);
        for (frame, place, byte, how) in damage {
            let index = frame.index(frames.len());
            let frame = &mut frames[index];
            if frame.is_empty() {
                continue;
            }
            // Half of the time near the start, where the structure is.
            let place = place.index(if byte & 1 == 0 { frame.len() } else { frame.len().min(120) });
            match how {
                0 => frame[place] = byte,
                1 => frame[place] ^= 1 << (byte & 7),
                2 => frame.insert(place, byte),
                _ => drop(frame.remove(place)),
            }
        }
        let mut decoder = Decoder::new();
        let mut read = Vec::new();
        for frame in &frames {
            match decode_part(&mut decoder, frame) {
                Ok(part) => read.push(part),
                Err(error) => prop_assert!(error.at <= frame.len() && !error.to_string().is_empty()),
            }
        }
        for part in &read {
            for row in &part.rows {
                let mut line = Vec::new();
                row.write_json(&part.transaction, &mut line);
                prop_assert!(std::str::from_utf8(&line).is_ok_and(|line| !line.contains('\n')));
            }
        }
        // What was read is a stream but for damaged flags: it can be written, and reads the same.
        for index in 0..read.len() {
            read[index].continues &= index > 0 && !read[index - 1].last;
        }
        prop_assert_eq!(decode(&encode_parts(Names::Stream, &read)).unwrap(), read);
    }

    #[test]
    fn any_bytes_are_read_or_refused(flags in 0..8_u8, bytes in vec(any::<u8>(), 0..200), small in vec(0..9_u8, 0..200)) {
        let _ = decode_part(&mut Decoder::new(), &bytes);
        // Small numbers are lengths and references that fit.
        let _ = decode_part(&mut Decoder::new(), &[&[1, flags, 1, 1, 0, 1][..], &small].concat());
    }
}
