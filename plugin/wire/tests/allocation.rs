//! Memory: hostile bytes never make the decoder hold more than a small multiple of what was read, and the encoder holds on to
//! one frame's worth.

#![allow(unsafe_code, reason = "a global allocator cannot be written without it")]

mod stream;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use postbox_wire::{
    DecodeError, Decoder, Encoder, FRAME_BYTES, Lsn, MAX_NAMES, MAX_RAW_COLUMNS, Names, PayloadType, PgMicros,
    Transaction,
};
use proptest::collection::vec;
use proptest::prelude::*;
use stream::{Id, Row, Slots, outbox, varint};

/// The system's allocator, with a count of what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    HELD.set(HELD.get() + change);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: every call is passed on to the system's allocator as it came; the counting allocates nothing, since the
// thread's cells are initialised by constants and have no destructors. `realloc` is the trait's own, so that the old block
// and the new one count together.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the pointer came from `System.alloc` with this layout, by the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads the frame as a consumer does, an event at a time; the most bytes that were held meanwhile.
fn held_while_reading(decoder: &mut Decoder, bytes: &[u8]) -> (usize, Result<usize, DecodeError>) {
    let before = HELD.get();
    PEAK.set(before);
    let mut read = || {
        let mut frame = decoder.frame(bytes)?;
        let mut events = 0;
        while frame.next_event()?.is_some() {
            events += 1;
        }
        Ok(events)
    };
    let result = read();
    ((PEAK.get() - before) as usize, result)
}

/// Raw columns of one event are held together: 32 bytes for each, and as many again for growing the vector.
const SLACK: usize = 3 * 32 * MAX_RAW_COLUMNS;

fn allowed(bytes: &[u8]) -> usize {
    16 * bytes.len() + SLACK
}

const HEADER: [u8; 6] = [1, 6, 1, 1, 0, 1];
/// The smallest event: it defines an outbox without a name, and has number 0 for its id and an empty type.
const SMALLEST: [u8; 10] = [9, 0x80, 0, 0, 0, 0, 4, 3, 0, 0];

#[test]
fn the_counting_counts() {
    let before = HELD.get();
    let bytes = vec![1_u8; 5000];
    assert_eq!(HELD.get() - before, 5000);
    drop(bytes);
    assert_eq!(HELD.get(), before);
    assert!(PEAK.get() >= before + 5000);
}

#[test]
fn a_claimed_size_is_not_believed() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let definition = [0, 1, b's', 1, b't', 4];
    // Lengths of an event, a name, an id, a type and a payload; the number of raw columns; the length of one.
    let claims: [&[u8]; 8] = [
        &[],
        &[0x80, 0, 0],
        &[&[0x80, 0][..], &definition, &[2]].concat(),
        &[&[0x80, 0][..], &definition, &[3, 0]].concat(),
        &[&[0xa0, 0][..], &definition, &[3, 0, 0]].concat(),
        &[&[0x84, 0][..], &definition, &[3, 0, 0, 1]].concat(),
        &[&[0x84, 0][..], &definition, &[3, 0, 0, 1, 0]].concat(),
        &[&[0x84, 0][..], &definition, &[3, 0, 0, 1, 0, 1, 0]].concat(),
    ];
    for before in claims {
        let length = [(before.len() + huge.len()) as u8];
        let length = if before.is_empty() { &[][..] } else { &length };
        let frame = [&HEADER, length, before, &huge].concat();
        let (held, result) = held_while_reading(&mut Decoder::new(), &frame);
        let error = result.expect_err("the claim is refused");
        assert!(error.at + huge.len() >= frame.len(), "{error} where {huge:x?} was meant to be read");
        assert!(held <= 1024, "{held} bytes were held for {error}");
    }
}

#[test]
fn many_raw_columns_stay_within_the_bound() {
    for columns in [100, MAX_RAW_COLUMNS] {
        let event = [&[0x84, 0, 0, 0, 0, 4, 3, 0, 0, 1, 0][..], &varint(columns), &vec![0; 2 * columns]].concat();
        let frame = [&HEADER[..], &varint(event.len()), &event].concat();
        let (held, result) = held_while_reading(&mut Decoder::new(), &frame);
        assert_eq!(result, Ok(1));
        assert!(held <= allowed(&frame), "{held} bytes were held for a frame of {}", frame.len());
    }
}

#[test]
fn many_names_stay_within_the_bound() {
    let frame = [&HEADER[..], &SMALLEST.repeat(MAX_NAMES)].concat();
    let mut decoder = Decoder::new();
    let (held, result) = held_while_reading(&mut decoder, &frame);
    assert_eq!(result, Ok(MAX_NAMES));
    assert!(held <= allowed(&frame), "{held} bytes were held for a frame of {}", frame.len());
    // And they are let go: ten such frames hold no more than one.
    let held_by_one = HELD.get();
    for _ in 0..10 {
        assert_eq!(held_while_reading(&mut decoder, &frame).1, Ok(MAX_NAMES));
    }
    assert!(HELD.get() <= held_by_one);
}

#[test]
fn the_encoder_lets_go_of_a_huge_frame_and_keeps_a_common_one() {
    const TRANSACTION: Transaction =
        Transaction { commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time: PgMicros(0), xid: 1 };
    let files = outbox("public", "files", PayloadType::Bytea);
    let row = |payload| Row { payload: Some(vec![0; payload]), ..Row::new(&files, 0, Id::Int(0), "t") };
    let (common, huge) = (row(FRAME_BYTES / 2), row(100 * FRAME_BYTES));
    let mut slots = Slots::default();
    let mut encoder = Encoder::new(Names::Frame);
    let before = HELD.get();
    let mut send = |row: &Row| {
        encoder.begin();
        encoder.event(&TRANSACTION, &row.event(), slots.of(&files));
        encoder.take(true, |_| ());
        HELD.get() - before
    };
    let kept = send(&common);
    assert!(kept >= (FRAME_BYTES / 2) as isize);
    PEAK.set(HELD.get());
    assert_eq!(send(&common), kept);
    assert_eq!(PEAK.get() - before, kept, "a frame like the one before takes no more memory");
    assert!(send(&huge) < FRAME_BYTES as isize);
}

proptest! {
    #[test]
    fn hostile_bytes_stay_within_the_bound(
        frame in vec(prop_oneof![3 => 0..9_u8, 1 => any::<u8>()], 0..4000),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        // Small numbers behind a good header; and many small events of which some bytes are others.
        let small = [&HEADER[..], &frame].concat();
        let mut events = [&HEADER[..], &SMALLEST.repeat(200)].concat();
        for (place, byte) in damage {
            let place = place.index(events.len());
            events[place] = byte;
        }
        for frame in [frame, small, events] {
            let (held, _) = held_while_reading(&mut Decoder::new(), &frame);
            prop_assert!(held <= allowed(&frame), "{} bytes were held for a frame of {}", held, frame.len());
        }
    }
}
