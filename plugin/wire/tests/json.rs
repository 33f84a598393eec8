//! The native JSON form: any JSON reader takes it, and finds what was sent.

mod stream;

use std::sync::Arc;

use postbox_wire::{ErrorCode, Lsn, Outbox, PayloadType, PgMicros, Transaction, json};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use stream::{Fault, Id, Row, outbox};

const TRANSACTION: Transaction = Transaction {
    commit_lsn: Lsn(0x1_0000_2b00),
    end_lsn: Lsn(0x1_0000_2b40),
    commit_time: PgMicros(1),
    xid: u64::MAX,
};

fn write(row: &Row) -> String {
    // Behind what is there already.
    let mut line = b"before".to_vec();
    json::write(&mut line, &TRANSACTION, &row.event());
    let line = String::from_utf8(line).unwrap();
    line.strip_prefix("before").unwrap().to_owned()
}

fn read(row: &Row) -> Value {
    let line = write(row);
    assert!(!line.contains(['\n', '\r']), "{line}");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn orders() -> Arc<Outbox> {
    outbox("public", "orders", PayloadType::Jsonb)
}

fn plain() -> Row {
    Row::new(&orders(), 5, Id::Int(-7), "order.placed")
}

/// The row in an outbox of that payload type, with that payload.
fn holding(payload_type: PayloadType, payload: &[u8]) -> Row {
    Row { outbox: outbox("public", "orders", payload_type), payload: Some(payload.to_vec()), ..plain() }
}

#[test]
fn every_member_stands_in_its_place() {
    let row = Row {
        seq: Some(9),
        key: Some("42".into()),
        headers: Some(r#"{"trace": "00-ab"}"#.into()),
        payload: Some(br#"{"total": 99.50}"#.to_vec()),
        ..plain()
    };
    assert_eq!(
        write(&row),
        "{\"outbox\":\"public.orders\",\"event_id\":\"-7\",\"type\":\"order.placed\",\"key\":\"42\",\
         \"headers\":{\"trace\": \"00-ab\"},\"payload\":{\"total\": 99.50},\"commit_lsn\":\"1/2B00\",\"ordinal\":5,\
         \"commit_time\":\"2000-01-01T00:00:00.000001Z\",\"xid\":18446744073709551615}"
    );
}

#[test]
fn what_is_null_is_null() {
    let value = read(&plain());
    for member in ["key", "headers", "payload"] {
        assert_eq!(value.get(member), Some(&Value::Null), "{member}");
    }
    assert_eq!(value.get("error"), None);
}

#[test]
fn ids_are_strings() {
    let uuid = Id::Uuid([0x01, 0x9b, 0x76, 0xda, 0xa0, 0, 0x70, 0, 0x8f, 0x3d, 0x4e, 0x1a, 0x5b, 0x6c, 0x7d, 0x8e]);
    for (id, text) in [
        (uuid, "019b76da-a000-7000-8f3d-4e1a5b6c7d8e"),
        (Id::Text("a\"\n\\".into()), "a\"\n\\"),
        (Id::Int(i64::MIN), "-9223372036854775808"),
    ] {
        assert_eq!(read(&Row { id: Some(id), ..plain() })["event_id"], text);
    }
}

#[test]
fn a_payload_is_shown_by_its_type() {
    let json = b"{ \"a\" : 1.10,\r\n\t\"a\" : [\n] }";
    for (payload_type, payload, shown) in [
        (PayloadType::Jsonb, &br#"{"a": [1, null]}"#[..], json!({"a": [1, null]})),
        (PayloadType::Jsonb, b"\"text\"", json!("text")),
        (PayloadType::Json, json, json!({"a": []})),
        (PayloadType::Text, b"", json!("")),
        (PayloadType::Text, b"{}", json!("{}")),
        (PayloadType::Text, "line\nä\u{1}".as_bytes(), json!("line\nä\u{1}")),
        (PayloadType::Bytea, b"", json!("")),
        (PayloadType::Bytea, b"\0", json!("AA==")),
        (PayloadType::Bytea, b"\xfb\xff\xfe", json!("+//+")),
        (PayloadType::Bytea, b"ab", json!("YWI=")),
        // Not what a plugin sends, yet the line stays JSON.
        (PayloadType::Text, b"\xff", json!("/w==")),
        (PayloadType::Jsonb, b"\xff", json!("/w==")),
        (PayloadType::Json, b"\xff", json!("/w==")),
    ] {
        assert_eq!(read(&holding(payload_type, payload))["payload"], shown, "{payload_type:?} {payload:x?}");
    }
}

#[test]
fn a_json_payload_keeps_its_text_but_for_line_breaks() {
    let line = write(&holding(PayloadType::Json, b"{ \"a\" : 1.10,\r\n\t\"a\" : \"\\n\" }"));
    assert!(line.contains("\"payload\":{ \"a\" : 1.10,  \t\"a\" : \"\\n\" },"), "{line}");
    let line = write(&Row { headers: Some("{\n}".into()), ..plain() });
    assert!(line.contains("\"headers\":{ },"), "{line}");
}

#[test]
fn an_error_event_gives_reason_and_raw_columns() {
    let row = Row {
        id: None,
        event_type: None,
        fault: Some(Fault {
            code: ErrorCode::Encoding,
            detail: "byte \"\u{7f}\"\n".into(),
            raw: vec![("type".into(), b"caf\xe9".to_vec()), ("a\n\"b\"".into(), vec![])],
        }),
        ..plain()
    };
    let value = read(&row);
    assert_eq!(value["event_id"], Value::Null);
    assert_eq!(value["type"], Value::Null);
    let raw = json!({"type": "Y2Fm6Q==", "a\n\"b\"": ""});
    assert_eq!(value["error"], json!({"code": "encoding", "detail": "byte \"\u{7f}\"\n", "raw": raw}));

    for (code, name) in [
        (ErrorCode::Encoding, "encoding"),
        (ErrorCode::TooLarge, "too_large"),
        (ErrorCode::Malformed, "malformed"),
        (ErrorCode::Null, "null"),
        (ErrorCode::Mapping, "mapping"),
    ] {
        let fault = Some(Fault { code, detail: String::new(), raw: vec![] });
        assert_eq!(read(&Row { fault, ..plain() })["error"], json!({"code": name, "detail": "", "raw": {}}));
    }
}

#[test]
fn control_characters_are_escaped() {
    let all: String = (0..=0x9f_u8).map(char::from).chain("\u{2028}\u{feff}😀".chars()).collect();
    let row = Row { key: Some(all.clone()), ..plain() };
    assert_eq!(read(&row)["key"], all);
    assert!(write(&row).bytes().all(|byte| byte >= 0x20));
}

proptest! {
    #[test]
    fn any_event_is_one_line_of_json(
        names in (any::<String>(), any::<String>()),
        texts in (any::<String>(), option::of(any::<String>()), option::of(any::<String>())),
        payload in option::of(vec(any::<u8>(), 0..60)),
        kind in 0..3_u8,
        raw in vec((any::<u8>(), vec(any::<u8>(), 0..30)), 0..3),
        ordinal: u64,
    ) {
        let (schema, table) = names;
        let (event_type, key, header) = texts;
        // A JSON document as PostgreSQL would let it in: with line breaks, and any text inside.
        let document = |text: &str| serde_json::to_string_pretty(&json!({"a": [text, 1], text: null})).unwrap();
        let (payload_type, payload, shown) = match (payload, kind) {
            (None, _) => (PayloadType::Json, None, Value::Null),
            (Some(bytes), 0) => (PayloadType::Bytea, Some(bytes.clone()), json!(base64(&bytes))),
            (Some(_), 1) => (PayloadType::Text, Some(event_type.clone().into_bytes()), json!(event_type)),
            (Some(_), _) => {
                let text = document(&event_type);
                (PayloadType::Json, Some(text.clone().into_bytes()), serde_json::from_str(&text).unwrap())
            }
        };
        let headers = header.as_deref().map(document);
        let raw: Vec<_> = raw.into_iter().map(|(column, bytes)| (format!("\n{column}\""), bytes)).collect();
        let row = Row {
            ordinal,
            key: key.clone(),
            headers: headers.clone(),
            payload,
            fault: Some(Fault { code: ErrorCode::Malformed, detail: table.clone(), raw: raw.clone() }),
            ..Row::new(&outbox(&schema, &table, payload_type), ordinal, Id::Text(schema.clone()), &event_type)
        };
        let value = read(&row);
        prop_assert_eq!(&value["outbox"], &json!(format!("{schema}.{table}")));
        prop_assert_eq!(&value["event_id"], &json!(schema));
        prop_assert_eq!(&value["type"], &json!(event_type));
        prop_assert_eq!(&value["key"], &json!(key));
        prop_assert_eq!(&value["headers"], &headers.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap()));
        prop_assert_eq!(&value["payload"], &shown);
        prop_assert_eq!(&value["ordinal"], &json!(ordinal));
        prop_assert_eq!(&value["error"]["detail"], &json!(table));
        for (column, _) in &raw {
            let last = raw.iter().rfind(|(other, _)| other == column).unwrap();
            prop_assert_eq!(&value["error"]["raw"][column], &json!(base64(&last.1)));
        }
    }
}

/// Base64 with padding, written down from RFC 4648 a second time.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, index| bits << 8 | u32::from(*group.get(index).unwrap_or(&0)));
        for place in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[test]
fn place_and_time_are_null_where_they_are_not_known() {
    let at = Transaction { commit_lsn: Lsn::ZERO, end_lsn: Lsn::ZERO, commit_time: PgMicros::UNKNOWN, xid: 3 };
    let written = |transaction: &Transaction| {
        let mut line = Vec::new();
        json::write(&mut line, transaction, &plain().event());
        serde_json::from_slice::<Value>(&line).unwrap()
    };
    let unknown = written(&at);
    assert_eq!((&unknown["commit_lsn"], &unknown["commit_time"]), (&Value::Null, &Value::Null));
    assert_eq!((&unknown["ordinal"], &unknown["xid"]), (&json!(5), &json!(3)));
    let known = written(&Transaction { commit_lsn: Lsn(1), commit_time: PgMicros(0), ..at });
    assert_eq!((&known["commit_lsn"], &known["commit_time"]), (&json!("0/1"), &json!("2000-01-01T00:00:00.000000Z")));
}
