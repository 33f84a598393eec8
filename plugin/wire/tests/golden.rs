//! Released bytes are frozen: the files of testdata/v1 read as they were meant, and the encoder still writes them.
//!
//! A new case is added to `cases` and written with `POSTBOX_GOLDEN=write`, which never touches a file that exists.

mod stream;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use postbox_wire::{Decoder, ErrorCode, Lsn, Names, PayloadType, PgMicros, Transaction};
use stream::{Fault, Id, Part, Row, decode_part, encode_parts, outbox};

/// What each file holds: `<name>.bin`, or `<name>.1.bin`, `<name>.2.bin` … for a stream of several frames.
fn cases() -> Vec<(&'static str, Names, Vec<Part>)> {
    let orders = outbox("public", "orders", PayloadType::Jsonb);
    let audit = outbox("audit", "log", PayloadType::Text);
    let documents = outbox("Größe", "a.\"b\"", PayloadType::Json);
    let files = outbox("public", "files", PayloadType::Bytea);

    let at = |lsn: u64| Transaction {
        commit_lsn: Lsn(lsn),
        end_lsn: Lsn(lsn + 0x30),
        commit_time: PgMicros(820_540_800_000_000),
        xid: 771,
    };
    let whole = |transaction, rows| vec![Part { transaction, continues: false, last: true, rows }];
    let uuid =
        Id::Uuid([0x01, 0x9b, 0x76, 0xda, 0xa0, 0x00, 0x70, 0x00, 0x8f, 0x3d, 0x4e, 0x1a, 0x5b, 0x6c, 0x7d, 0x8e]);
    let placed = Row {
        seq: Some(1),
        key: Some("42".into()),
        payload: Some(br#"{"total": 99.5}"#.to_vec()),
        ..Row::new(&orders, 0, uuid.clone(), "order.placed")
    };
    let row = |outbox, ordinal, event_type: &str| Row::new(outbox, ordinal, Id::Int(ordinal as i64), event_type);
    let holding =
        |outbox, ordinal, payload: &[u8]| Row { payload: Some(payload.to_vec()), ..row(outbox, ordinal, "t") };
    let part = |lsn, continues, last, rows| Part { transaction: at(lsn), continues, last, rows };
    let failed = |ordinal, code, detail: &str, raw: &[(&str, &[u8])]| Row {
        fault: Some(Fault {
            code,
            detail: detail.into(),
            raw: raw.iter().map(|&(column, bytes)| (column.into(), bytes.to_vec())).collect(),
        }),
        ..row(&orders, ordinal, "order.placed")
    };

    vec![
        ("one-event", Names::Frame, whole(at(0x016b_3748), vec![placed.clone()])),
        (
            "two-outboxes",
            Names::Frame,
            whole(
                at(0x016b_4000),
                vec![
                    placed.clone(),
                    holding(&audit, 1, "naïve\ntext".as_bytes()),
                    // Ordinals 2 and 3 went to outboxes that the stream does not ask for.
                    Row { headers: Some(r#"{"trace": "00-ab"}"#.into()), ..row(&orders, 4, "order.paid") },
                    row(&audit, 5, "seen"),
                ],
            ),
        ),
        (
            "continued",
            Names::Frame,
            vec![
                part(0x0200_0000, false, false, vec![row(&orders, 0, "a"), row(&audit, 1, "b")]),
                part(0x0200_0000, true, false, vec![row(&audit, 2, "c"), row(&orders, 300, "d")]),
                part(0x0200_0000, true, true, vec![row(&orders, 301, "e")]),
            ],
        ),
        (
            "names-stream",
            Names::Stream,
            vec![
                part(0x0300_0000, false, true, vec![row(&orders, 0, "a"), row(&audit, 1, "b")]),
                part(0x0300_0100, false, true, vec![row(&audit, 0, "c"), row(&orders, 1, "d")]),
                part(0x0300_0200, false, true, vec![row(&files, 0, "e"), row(&orders, 1, "f"), row(&files, 2, "g")]),
            ],
        ),
        ("nulls", Names::Frame, whole(at(0x0400_0000), vec![row(&orders, 0, "nothing")])),
        (
            "ids",
            Names::Frame,
            whole(
                at(0x0500_0000),
                vec![
                    Row::new(&orders, 0, uuid, "uuid"),
                    Row::new(&orders, 1, Id::Text("ord-42/ä".into()), "text"),
                    Row::new(&orders, 2, Id::Text(String::new()), "empty text"),
                    Row::new(&orders, 3, Id::Int(-1), "int"),
                    Row::new(&orders, 4, Id::Int(i64::MIN), "int"),
                    Row::new(&orders, 5, Id::Int(i64::MAX), "int"),
                ],
            ),
        ),
        (
            "payload-types",
            Names::Frame,
            whole(
                at(0x0600_0000),
                vec![
                    holding(&orders, 0, br#"{"a": [1, null, "x"]}"#),
                    holding(&documents, 1, b"{ \"a\" : 1,\r\n  \"a\" : 2 }"),
                    holding(&audit, 2, b"tab\there, \"quoted\", \x01"),
                    holding(&files, 3, &[0x00, 0xff, 0x0a, 0x80]),
                    // Empty is not NULL.
                    holding(&audit, 4, b""),
                    holding(&files, 5, b""),
                ],
            ),
        ),
        (
            "errors",
            Names::Frame,
            whole(
                at(0x0700_0000),
                vec![
                    Row {
                        event_type: None,
                        seq: Some(7),
                        ..failed(0, ErrorCode::Encoding, "type is not text", &[("type", b"caf\xe9"), ("note", b"")])
                    },
                    failed(1, ErrorCode::TooLarge, "300000000 bytes, the limit is 268435456", &[]),
                    failed(2, ErrorCode::Malformed, "jsonb header", &[("payload", &[0xff; 5])]),
                    Row { id: None, ..failed(3, ErrorCode::Null, "event_id is NULL", &[]) },
                    Row { id: None, event_type: None, ..failed(4, ErrorCode::Mapping, "", &[]) },
                ],
            ),
        ),
        // Read from the table: neither place, time nor transaction are known.
        (
            "stored-row",
            Names::Frame,
            whole(
                Transaction { commit_lsn: Lsn::ZERO, end_lsn: Lsn::ZERO, commit_time: PgMicros::UNKNOWN, xid: 0 },
                vec![placed.clone()],
            ),
        ),
        (
            "claim",
            Names::Frame,
            whole(
                at(0x0800_0000),
                vec![
                    Row::of_chunk(&orders, 0, 7, (0, 2), b"{\"id\":1}\n{\"id\":2}\n"),
                    Row::of_chunk(&orders, 0, 7, (1, 0), b"{\"id\":3,\"note\":\"lo"),
                    row(&audit, 0, "meanwhile"),
                    Row::of_chunk(&orders, 1, 7, (2, 1), "ng – ü\"}\n".as_bytes()),
                    Row::of_chunk(&files, 1, -1, (0, 0), &[0x00, 0xff]),
                    Row {
                        seq: Some(7),
                        claim: Some(r#"{"seq": 7, "rows": 3, "bytes": 48, "chunks": 3, "format": "rows"}"#.into()),
                        ..row(&orders, 1, "orders.imported")
                    },
                    Row { payload: Some(b"{}".to_vec()), claim: Some("{}".into()), ..row(&orders, 2, "both") },
                ],
            ),
        ),
        (
            "extremes",
            Names::Frame,
            whole(
                Transaction {
                    commit_lsn: Lsn(u64::MAX - 1),
                    end_lsn: Lsn(u64::MAX),
                    commit_time: PgMicros(-1),
                    xid: u64::MAX,
                },
                vec![
                    Row { seq: Some(i64::MIN), ..Row::new(&orders, 0, Id::Int(0), "") },
                    Row { seq: Some(i64::MAX), ..Row::new(&orders, u64::MAX - 1, Id::Int(64), "") },
                ],
            ),
        ),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1")
}

fn file_names(name: &str, frames: usize) -> Vec<String> {
    match frames {
        1 => vec![format!("{name}.bin")],
        count => (1..=count).map(|number| format!("{name}.{number}.bin")).collect(),
    }
}

/// The file's content; when asked to write, a missing file is written with what it should hold first.
fn frozen(path: &Path, content: &[u8]) -> Vec<u8> {
    if !path.exists() && env::var("POSTBOX_GOLDEN").is_ok_and(|value| value == "write") {
        fs::write(path, content).unwrap();
    }
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A frame's content as a person reads it: the native JSON, and below it what that leaves out.
fn describe(part: &Part) -> String {
    let Part { transaction, continues, last, rows } = part;
    let Transaction { commit_lsn, end_lsn, commit_time, xid } = transaction;
    let mut text = format!("frame: commit {commit_lsn}, end {end_lsn}, {commit_time}, xid {xid}");
    text.push_str(if *continues { ", continues" } else { "" });
    text.push_str(if *last { ", last\n" } else { "\n" });
    for row in rows {
        let mut line = Vec::new();
        row.write_json(transaction, &mut line);
        let line = String::from_utf8(line).unwrap();
        let id = match row.id {
            None => "none",
            Some(Id::Uuid(_)) => "uuid",
            Some(Id::Text(_)) => "text",
            Some(Id::Int(_)) => "int",
        };
        let seq = row.seq.map_or("none".into(), |seq| seq.to_string());
        writeln!(text, "{line}\n  id: {id}, seq: {seq}, payload type: {:?}", row.outbox.payload_type).unwrap();
    }
    text
}

#[test]
fn frozen_bytes_read_as_they_were_meant_and_are_written_again() {
    for (name, names, parts) in cases() {
        let written = encode_parts(names, &parts);
        let frames: Vec<_> = file_names(name, parts.len())
            .iter()
            .zip(&written)
            .map(|(file, frame)| frozen(&folder().join(file), frame))
            .collect();
        let read = stream::decode(&frames).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, parts, "{name} is read");
        assert_eq!(encode_parts(names, &read), frames, "{name} is written");

        let description: String = parts.iter().map(describe).collect();
        let frozen = frozen(&folder().join(format!("{name}.txt")), description.as_bytes());
        assert_eq!(description, String::from_utf8(frozen).unwrap(), "{name} is described");
    }
}

#[test]
fn every_frozen_file_belongs_to_a_case() {
    let expected: Vec<_> = cases().iter().flat_map(|(name, _, parts)| file_names(name, parts.len())).collect();
    for file in fs::read_dir(folder()).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        if file.ends_with(".bin") {
            assert!(expected.contains(&file), "{file} is no case's");
        }
    }
}

/// Each file is a frame with the defect that it is named for; the text beside it is what the decoder says.
#[test]
fn hostile_frames_are_refused_with_field_and_byte() {
    const DEFECTS: [&str; 23] = [
        "absent-id",
        "absent-type",
        "compressed",
        "cut-header",
        "cut-varint",
        "empty",
        "end-overflows",
        "event-length-beyond-end",
        "field-length-beyond-event",
        "huge-raw-count",
        "name-too-long",
        "no-events",
        "ordinal-overflows",
        "overlong-varint",
        "trailing-bytes",
        "type-not-utf8",
        "undefined-reference",
        "unknown-error-code",
        "unknown-flag",
        "unknown-id-tag",
        "unknown-kind",
        "unknown-payload-type",
        "unknown-version",
    ];
    let folder = folder().join("hostile");
    let mut found: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|file| file.unwrap().file_name().into_string().unwrap().strip_suffix(".bin").map(str::to_owned))
        .collect();
    found.sort();
    assert_eq!(found, DEFECTS);
    for name in DEFECTS {
        let frame = fs::read(folder.join(format!("{name}.bin"))).unwrap();
        let error = decode_part(&mut Decoder::new(), &frame).expect_err(name);
        let text = frozen(&folder.join(format!("{name}.txt")), format!("{error}\n").as_bytes());
        assert_eq!(format!("{error}\n"), String::from_utf8(text).unwrap(), "{name}");
        assert!(error.at <= frame.len(), "{name}");
    }
}
