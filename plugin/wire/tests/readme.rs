//! The specification says what the code does.

use std::path::Path;
use std::{fs, str};

use postbox_wire::{Decoder, Options, json};

const README: &str = include_str!("../README.md");

fn block(language: &str) -> &'static str {
    let (_, after) = README.split_once(&format!("```{language}\n")).unwrap();
    after.split_once("```").unwrap().0
}

/// The bytes of the annotated frame; offsets are checked on the way.
fn annotated() -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in block("hexdump").lines() {
        let offset = usize::from_str_radix(&line[..2], 16).unwrap();
        assert_eq!(offset, bytes.len(), "{line}");
        let columns = line.get(4..28).unwrap();
        bytes.extend(columns.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_annotated_frame_is_the_golden_file() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1/one-event.bin");
    assert_eq!(annotated(), fs::read(file).unwrap());
}

#[test]
fn the_json_example_is_the_annotated_frame() {
    let bytes = annotated();
    let mut decoder = Decoder::new();
    let mut frame = decoder.frame(&bytes).unwrap();
    let mut line = Vec::new();
    let event = frame.next_event().unwrap().unwrap();
    json::write(&mut line, &frame.transaction, &event);
    assert_eq!(str::from_utf8(&line).unwrap(), block("json").trim_end());
}

#[test]
fn limits_and_options_are_listed_with_their_values() {
    for (name, value) in [
        ("FRAME_BYTES", postbox_wire::FRAME_BYTES),
        ("MAX_EVENT_BYTES", postbox_wire::MAX_EVENT_BYTES),
        ("MAX_FRAME_BYTES", postbox_wire::MAX_FRAME_BYTES),
        ("MAX_NAMES", postbox_wire::MAX_NAMES),
        ("MAX_NAME_BYTES", postbox_wire::MAX_NAME_BYTES),
        ("MAX_RAW_COLUMNS", postbox_wire::MAX_RAW_COLUMNS),
    ] {
        let row = format!("\n| `{name}` | {value} |");
        assert!(README.contains(&row), "{row}");
    }
    for (name, value) in Options::default().render() {
        let row = format!("\n| `{name}` | `{value}` |");
        assert!(README.contains(&row), "{row}");
    }
    assert!(README.contains("\n| `outboxes` |"));
}
