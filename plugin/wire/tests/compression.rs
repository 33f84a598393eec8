//! Compressed frames: expanded they are what they were, and hostile ones cost little and break nothing.

mod stream;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use postbox_wire::{
    COMPRESS_BYTES, Compressor, Decoder, Lsn, MAX_COMPRESSED_BYTES, Names, Outbox, PayloadType, PgMicros, Problem,
    Transaction, expand,
};
use proptest::prelude::*;
use stream::{Id, Row, decode_part, encode, outbox, varint};

const TRANSACTION: Transaction = Transaction {
    commit_lsn: Lsn(0x16b_3748),
    end_lsn: Lsn(0x16b_3778),
    commit_time: PgMicros(820_540_800_000_000),
    xid: 771,
};

fn row(orders: &Arc<Outbox>, ordinal: u64, payload: Vec<u8>) -> Row {
    Row { payload: Some(payload), ..Row::new(orders, ordinal, Id::Int(ordinal as i64), "order.placed") }
}

/// One frame with one event.
fn frame(payload: Vec<u8>) -> Vec<u8> {
    let orders = outbox("public", "orders", PayloadType::Jsonb);
    encode(Names::Frame, &[(TRANSACTION, vec![row(&orders, 0, payload)])]).concat()
}

/// A frame with events that are alike, as an application's are.
fn similar(events: u64) -> Vec<u8> {
    let orders = outbox("public", "orders", PayloadType::Jsonb);
    let rows = (0..events).map(|n| row(&orders, n, format!(r#"{{"order": {n}, "state": "placed"}}"#).into_bytes()));
    encode(Names::Frame, &[(TRANSACTION, rows.collect())]).concat()
}

#[test]
fn events_that_are_alike_shrink_and_come_back() {
    let frame = similar(500);
    let mut compressor = Compressor::default();
    let compressed = compressor.compress(&frame).to_vec();
    assert!(compressed.len() * 3 < frame.len(), "{} bytes of {}", compressed.len(), frame.len());
    assert_eq!(expand(&compressed), Ok(Some(frame.clone())));
    assert_eq!(expand(&frame), Ok(None));
    // What came before leaves no trace.
    assert_eq!(compressor.compress(&frame), compressed);
}

#[test]
fn a_compressed_frame_is_refused_until_it_is_expanded() {
    let frame = similar(100);
    let compressed = Compressor::default().compress(&frame).to_vec();
    let error = decode_part(&mut Decoder::new(), &compressed).expect_err("refused");
    assert_eq!(error.problem, Problem::Compressed);
    let expanded = expand(&compressed).unwrap().unwrap();
    assert_eq!(decode_part(&mut Decoder::new(), &expanded).unwrap().rows.len(), 100);
}

#[test]
fn small_large_and_stubborn_frames_stay_as_they_are() {
    let overhead = frame(Vec::new()).len();
    let mut compressor = Compressor::default();
    let mut stays = |frame: &[u8]| compressor.compress(frame) == frame;
    // The lengths before the payload and the event take more bytes when these are longer.
    assert!(stays(&frame(vec![b'x'; COMPRESS_BYTES - overhead - 3])));
    assert!(!stays(&frame(vec![b'x'; COMPRESS_BYTES])));
    assert!(!stays(&frame(vec![b'x'; MAX_COMPRESSED_BYTES - overhead - 8])));
    assert!(stays(&frame(vec![b'x'; MAX_COMPRESSED_BYTES])));
    // Bytes without any pattern: the squares of a linear congruence, upper half.
    let noise = (0..40_000_u64).scan(1_u64, |state, _| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((*state >> 56) as u8)
    });
    assert!(stays(&frame(noise.collect())));
}

#[test]
fn a_length_that_cannot_be_is_refused_before_anything_is_reserved() {
    let compressed = Compressor::default().compress(&similar(100)).to_vec();
    let header = &compressed[..17];
    let block = &compressed[19..];
    for (length, problem) in [
        (MAX_COMPRESSED_BYTES + 1, None),
        (block.len() * 255 + 1, None),
        (block.len() * 255, Some(Problem::Damaged)),
        (0, Some(Problem::Damaged)),
    ] {
        let hostile = [header, &varint(length), block].concat();
        let error = expand(&hostile).expect_err("refused");
        let limit = block.len().saturating_mul(255).min(MAX_COMPRESSED_BYTES) as u64;
        assert_eq!(error.problem, problem.unwrap_or(Problem::TooLarge { found: length as u64, limit }));
    }
}

/// The block's compressor may change with its release; what was written stays readable.
#[test]
fn the_frozen_compressed_frame_is_expanded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1/compressed");
    let read = |name| fs::read(folder.join(name)).unwrap();
    assert_eq!(expand(&read("similar.bin")), Ok(Some(read("similar.expanded.bin"))));
    assert_eq!(read("similar.expanded.bin"), similar(40));
}

proptest! {
    #[test]
    fn any_frame_comes_back(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..12), repeat in 1..5_usize) {
        let orders = outbox("public", "orders", PayloadType::Bytea);
        let rows = payloads.iter().cycle().take(payloads.len() * repeat).zip(0..);
        let rows = rows.map(|(payload, ordinal)| row(&orders, ordinal, payload.clone())).collect();
        let mut compressor = Compressor::default();
        for frame in encode(Names::Stream, &[(TRANSACTION, rows)]) {
            let compressed = compressor.compress(&frame);
            prop_assert!(compressed.len() <= frame.len());
            match expand(compressed).unwrap() {
                Some(expanded) => prop_assert_eq!(expanded, frame),
                None => prop_assert_eq!(compressed, &*frame),
            }
        }
    }

    #[test]
    fn changed_bytes_do_no_harm(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let mut compressed = Compressor::default().compress(&similar(60)).to_vec();
        *at.get_mut(&mut compressed) = byte;
        compressed.truncate(cut.index(compressed.len() + 1));
        if let Ok(Some(expanded)) = expand(&compressed) {
            prop_assert!(expanded.len() <= MAX_COMPRESSED_BYTES + 40);
            let _ = decode_part(&mut Decoder::new(), &expanded);
        }
    }

    #[test]
    fn arbitrary_blocks_do_no_harm(block in prop::collection::vec(any::<u8>(), 0..300), length in 0..9000_usize) {
        let hostile = [&[1, 0x0e, 1, 1, 0, 1][..], &varint(length), &block].concat();
        if let Ok(Some(expanded)) = expand(&hostile) {
            prop_assert_eq!(expanded.len(), 6 + length);
            let _ = decode_part(&mut Decoder::new(), &expanded);
        }
    }
}
