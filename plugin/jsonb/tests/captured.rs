//! Values as a server stored them (read with `pageinspect` from a column of STORAGE PLAIN), one a line: the bytes in
//! hexadecimal, and the text that the server printed. Also what hostile changes to such bytes may do.

#![cfg(target_endian = "little")]

use std::sync::LazyLock;

use postbox_jsonb::{Error, print};
use proptest::prelude::*;

const CAPTURED: &str = include_str!("captured.txt");

/// The types and flags of entries and headers that the tests put together by hand.
const ARRAY: u32 = 0x4000_0000;
const NUMERIC: u32 = 0x1000_0000;
const CONTAINER: u32 = 0x5000_0000;

static VALUES: LazyLock<Vec<(Vec<u8>, &'static str)>> = LazyLock::new(|| {
    let byte = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
    CAPTURED
        .lines()
        .map(|line| {
            let (bytes, text) = line.split_once(' ').unwrap();
            (bytes.as_bytes().chunks(2).map(byte).collect(), text)
        })
        .collect()
});

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// An array whose only element is `numeric`, given with its varlena header.
fn number(numeric: &[u8]) -> Vec<u8> {
    [words(&[ARRAY | 1, NUMERIC | numeric.len() as u32]), numeric.to_vec()].concat()
}

fn printed(container: &[u8]) -> Result<String, Error> {
    let mut out = Vec::new();
    print(container, &mut out, 1 << 20).map(|()| String::from_utf8(out).unwrap())
}

fn what(container: &[u8]) -> (&'static str, usize) {
    match printed(container) {
        Err(Error::Malformed { what, at }) => (what, at),
        other => panic!("not malformed: {other:?}"),
    }
}

#[test]
fn captured_values_print_as_the_server_printed_them() {
    assert!(VALUES.len() >= 20);
    for (bytes, text) in VALUES.iter() {
        assert_eq!(printed(bytes).as_deref(), Ok(*text));
    }
}

#[test]
fn text_is_appended_and_the_limit_is_exact() {
    for (bytes, text) in VALUES.iter() {
        let mut out = b"before".to_vec();
        assert_eq!(print(bytes, &mut out, text.len()), Ok(()));
        assert_eq!(out, [b"before", text.as_bytes()].concat());
        for limit in 0..text.len() {
            let mut out = b"before".to_vec();
            assert_eq!(print(bytes, &mut out, limit), Err(Error::TooLong), "{text} in {limit}");
            assert_eq!(out, b"before");
        }
    }
}

#[test]
fn every_cut_of_a_value_is_an_error_or_another_value() {
    for (bytes, text) in VALUES.iter() {
        for length in 0..bytes.len() {
            assert_ne!(printed(&bytes[..length]).as_deref(), Ok(*text), "cut to {length} of {}", bytes.len());
        }
    }
}

#[test]
fn a_million_levels_need_no_call_stack() {
    const LEVELS: u32 = 1_000_000;
    let mut bytes = Vec::new();
    for level in (1..LEVELS).rev() {
        bytes.extend(words(&[ARRAY | 1, CONTAINER | (level * 8 - 4)]));
    }
    bytes.extend(words(&[ARRAY]));
    let mut out = Vec::new();
    assert_eq!(print(&bytes, &mut out, usize::MAX), Ok(()));
    assert_eq!(out.len(), 2 * LEVELS as usize);
    assert_eq!(print(&bytes, &mut out, 1000), Err(Error::TooLong));
}

#[test]
fn numbers_with_the_header_of_a_short_varlena_are_read() {
    // Length 5 with its header, short form, no places, weight 0, digit 4711.
    assert_eq!(printed(&number(&[5 << 1 | 1, 0x00, 0x80, 0x67, 0x12])).as_deref(), Ok("[4711]"));
    assert_eq!(what(&number(&[6 << 1 | 1, 0x00, 0x80, 0x67, 0x12])), ("number with an impossible length", 8));
    assert_eq!(what(&number(&[1, 0x00, 0x80, 0x67, 0x12])), ("number with an impossible length", 8));
}

#[test]
fn the_long_form_shows_digits_that_are_not_stored() {
    // Negative with 3 places, weight 2, digits 1 and 20: 1 0020 0000.000
    assert_eq!(printed(&number(&[48, 0, 0, 0, 3, 0x40, 2, 0, 1, 0, 20, 0])).as_deref(), Ok("[-100200000.000]"));
    // Six places, weight -2: the first digit is the second behind the point.
    assert_eq!(printed(&number(&[40, 0, 0, 0, 6, 0, 0xfe, 0xff, 0xd2, 0x04])).as_deref(), Ok("[0.000012]"));
}

#[test]
fn a_number_that_stands_for_more_than_the_limit_is_too_long_at_once() {
    // One digit of weight 32,767: 131,072 characters and their brackets.
    let largest = number(&[40, 0, 0, 0, 0, 0, 0xff, 0x7f, 0x0f, 0x27]);
    assert_eq!(printed(&largest).map(|text| text.len()), Ok(131_074));
    let mut out = Vec::new();
    assert_eq!(print(&largest, &mut out, 100_000), Err(Error::TooLong));
    assert!(out.capacity() < 1000);
}

#[test]
fn what_is_wrong_and_where_is_said() {
    assert_eq!(what(&[]), ("container without a header", 0));
    assert_eq!(what(&words(&[0])), ("container with impossible flags", 0));
    assert_eq!(what(&words(&[0x6000_0000])), ("container with impossible flags", 0));
    assert_eq!(what(&words(&[0x5000_0002, 0x4000_0000, 0x4000_0000])), ("container with impossible flags", 0));
    assert_eq!(what(&words(&[ARRAY | 2, 0x4000_0000])), ("container with more elements than fit in it", 0));
    assert_eq!(what(&words(&[0x2000_0001, 0])), ("container with more elements than fit in it", 0));
    assert_eq!(what(&words(&[ARRAY | 1, 1])), ("element that ends outside of its container", 4));
    assert_eq!(what(&words(&[ARRAY | 2, 4, 0x8000_0002, 0])), ("element that ends outside of its container", 8));
    assert_eq!(what(&words(&[ARRAY | 1, 0x6000_0000])), ("element of an unknown type", 4));
    assert_eq!(what(&words(&[0x2000_0001, 0x4000_0000, 0])), ("key that is not a string", 4));
    assert_eq!(what(&words(&[ARRAY | 2, 1, CONTAINER | 2, 0])), ("element that is shorter than its padding", 13));
    assert_eq!(what(&words(&[ARRAY | 1, CONTAINER])), ("container without a header", 8));
    assert_eq!(what(&words(&[0x5000_0001, CONTAINER | 4, ARRAY])), ("container in the place of a scalar", 8));
    assert_eq!(
        what(&words(&[ARRAY | 1, CONTAINER | 8, 0x5000_0001, 0x4000_0000])),
        ("container with impossible flags", 8)
    );
    assert_eq!(what(&words(&[ARRAY | 1, NUMERIC])), ("number with an impossible length", 8));
    assert_eq!(what(&number(&[24, 0, 0, 0, 0x00, 0xc0])), ("number that is not finite", 8));
    assert_eq!(what(&number(&[16, 0, 0, 0])), ("number without a header", 8));
    assert_eq!(what(&number(&[24, 0, 0, 0, 0x00, 0x00])), ("number without a weight", 8));
    assert_eq!(what(&number(&[32, 0, 0, 0, 0x00, 0x80, 0x10, 0x27])), ("number with an impossible digit", 8));
}

#[test]
fn text_of_another_encoding_is_printed_as_it_is() {
    let latin1 = [words(&[ARRAY | 1, 4]), b"caf\xe9".to_vec()].concat();
    let mut out = b"before ".to_vec();
    assert_eq!(print(&latin1, &mut out, 100), Ok(()));
    assert_eq!(out, b"before [\"caf\xe9\"]");
}

/// One change to the bytes of a value.
#[derive(Debug, Clone)]
enum Change {
    Byte(prop::sample::Index, u8),
    Bit(prop::sample::Index, u8),
    Word(prop::sample::Index, u32),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    // Words as headers and entries have them: flags of their own and a small count, length or offset.
    let word = (0..16_u32, 0..600_u32).prop_map(|(flags, extent)| flags << 28 | extent);
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(place, byte)| Change::Byte(place, byte)),
        (any::<prop::sample::Index>(), 0..8_u8).prop_map(|(place, bit)| Change::Bit(place, bit)),
        (any::<prop::sample::Index>(), prop_oneof![word, any::<u32>()])
            .prop_map(|(place, word)| Change::Word(place, word)),
        any::<prop::sample::Index>().prop_map(Change::Cut),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    match change {
        Change::Byte(place, byte) => *place.get_mut(bytes) = *byte,
        Change::Bit(place, bit) => *place.get_mut(bytes) ^= 1 << bit,
        Change::Word(place, word) => {
            let start = place.index(bytes.len()) & !3;
            if let Some(target) = bytes.get_mut(start..start + 4) {
                target.copy_from_slice(&word.to_ne_bytes());
            }
        }
        Change::Cut(place) => bytes.truncate(place.index(bytes.len())),
        Change::Repeat(from, to) => {
            let tail = bytes[from.index(bytes.len()) & !3..].to_vec();
            bytes.splice(to.index(bytes.len()) & !3.., tail);
        }
    }
}

fn judge(bytes: &[u8], limit: usize) -> Result<(), TestCaseError> {
    let mut out = b"before".to_vec();
    let result = print(bytes, &mut out, limit);
    prop_assert!(out.starts_with(b"before"));
    match result {
        Ok(()) => prop_assert!(out.len() <= 6 + limit),
        Err(error) => {
            prop_assert_eq!(out.len(), 6);
            if let Error::Malformed { at, .. } = error {
                prop_assert!(at <= bytes.len());
            }
        }
    }
    prop_assert!(out.capacity() <= 2 * (limit + bytes.len() + 64));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn changed_values_do_no_harm(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
        limit in prop_oneof![Just(usize::from(u16::MAX)), 0..400_usize],
    ) {
        let mut bytes = which.get(&VALUES).0.clone();
        for change in &changes {
            apply(&mut bytes, change);
        }
        judge(&bytes, limit)?;
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        judge(&bytes, 10_000)?;
    }
}
