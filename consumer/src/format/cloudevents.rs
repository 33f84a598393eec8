//! CloudEvents 1.0 in the JSON format, structured mode.
//!
//! Attributes: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>; `partitionkey`, `sequence` and
//! `traceparent` are the extensions of those names, kept in the same repository.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use postbox_wire::json::{self, Output};
use postbox_wire::{Lsn, PayloadType, PgMicros};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::event::Event;

/// The format with its settings.
#[derive(Clone, Debug)]
pub(crate) struct CloudEvents {
    source: String,
}

/// The type of an event that could not be represented: its data is the native form, with the reason and the raw columns.
const ERROR: &str = "postbox.error";
/// The type of an event whose type is empty, which an attribute must not be.
const UNTYPED: &str = "postbox.untyped";

/// The media type of what stands for the data of an event that lies in the claims of its outbox.
const CLAIM: &str = "application/vnd.postbox.claim+json";

/// Attributes that no header can take the place of.
const RESERVED: [&str; 12] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
    "partitionkey",
    "sequence",
    HEADERS,
];

/// Holds the headers as JSON text where they are not all attributes.
const HEADERS: &str = "postboxheaders";

/// What stays as it is in a segment of a path (RFC 3986, `unreserved`).
const SEGMENT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl CloudEvents {
    /// `source` is what every event's source begins with; by default the database tells.
    pub(crate) fn new(source: Option<String>, database: &str) -> Self {
        let default = || format!("/postbox/{}", utf8_percent_encode(database, &SEGMENT));
        let source = source.unwrap_or_else(default);
        Self { source: source.trim_end_matches('/').to_owned() }
    }

    /// Where an event comes from: with its id it is like no other.
    pub(crate) fn source_of(&self, event: &Event) -> String {
        let segment = |name| utf8_percent_encode(name, &SEGMENT);
        format!("{}/{}/{}", self.source, segment(&event.outbox.schema), segment(&event.outbox.table))
    }

    pub(crate) fn write(&self, event: &Event, out: &mut impl Output) {
        out.put(b"{\"specversion\":\"1.0\"");
        match event.id.as_ref().map(ToString::to_string).filter(|id| !id.is_empty()) {
            Some(id) => published(out, "id", &id),
            None => attribute(out, "id", &place(event)),
        }
        attribute(out, "source", &self.source_of(event));
        let event_type = match (&event.error, &*event.event_type) {
            (Some(_), _) => ERROR,
            (None, "") => UNTYPED,
            (None, event_type) => event_type,
        };
        published(out, "type", event_type);
        let key = event.key.as_deref().filter(|key| !key.is_empty());
        if let Some(key) = key {
            published(out, "subject", key);
        }
        if event.commit_time != PgMicros::UNKNOWN {
            attribute(out, "time", &event.commit_time.to_string());
        }
        if let Some(key) = key {
            published(out, "partitionkey", key);
        }
        if event.commit_lsn != Lsn::ZERO {
            // Of one length, so that the order of the text is that of the log.
            attribute(out, "sequence", &format!("{:016X}{:016X}", event.commit_lsn.0, event.ordinal));
        }
        if let Some(headers) = &event.headers {
            extensions(out, headers);
        }
        data(out, event);
        out.put(b"}");
    }
}

/// Stands for the id of an event that has none: its place in the log. A stored row does not know that place; it has its
/// number in the table, or else only what it says.
fn place(event: &Event) -> String {
    if event.commit_lsn != Lsn::ZERO {
        return format!("{}/{}", event.commit_lsn, event.ordinal);
    }
    if let Some(seq) = event.seq {
        return format!("seq/{seq}");
    }
    let mut said = Vec::new();
    event.write_json(&mut said);
    let mut hasher = DefaultHasher::new();
    said.hash(&mut hasher);
    format!("row/{:016X}", hasher.finish())
}

/// Headers as attributes of their own: those with a name and a value that an attribute may have.
fn extensions(out: &mut impl Output, headers: &str) {
    // Each by itself: a value that cannot be read is no attribute, and takes no other with it.
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(headers).unwrap_or_default();
    let mut taken = 0;
    for (name, value) in &members {
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) && !name.is_empty();
        if !is_name || RESERVED.contains(&name.as_str()) {
            continue;
        }
        match serde_json::from_str(value.get()) {
            Ok(Value::String(value)) if !value.is_empty() && !value.contains(is_forbidden) => {
                attribute(out, name, &value)
            }
            Ok(Value::Bool(value)) => literal(out, name, value),
            // An integer of CloudEvents has 32 bits.
            Ok(Value::Number(number)) if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => {
                literal(out, name, number);
            }
            _ => continue,
        }
        taken += 1;
    }
    if taken < members.len() || members.is_empty() && headers != "{}" {
        attribute(out, HEADERS, &permitted(headers, in_json));
    }
}

fn data(out: &mut impl Output, event: &Event) {
    if event.error.is_some() {
        attribute(out, "datacontenttype", "application/json");
        member(out, "data");
        return event.write_json(out);
    }
    if let Some(claim) = &event.claim {
        attribute(out, "datacontenttype", CLAIM);
        member(out, "data");
        return json::document(out, claim);
    }
    let Some(payload) = &event.payload else { return };
    let text = std::str::from_utf8(payload).ok();
    match (event.outbox.payload_type, text) {
        (PayloadType::Jsonb | PayloadType::Json, Some(document)) => {
            attribute(out, "datacontenttype", "application/json");
            member(out, "data");
            json::document(out, document);
        }
        (PayloadType::Text, Some(text)) => {
            attribute(out, "datacontenttype", "text/plain; charset=utf-8");
            member(out, "data");
            json::string(out, text);
        }
        _ => {
            attribute(out, "datacontenttype", "application/octet-stream");
            member(out, "data_base64");
            json::base64(out, payload);
        }
    }
}

/// What no attribute has (specification, section 3.1, "String").
fn is_forbidden(c: char) -> bool {
    // Noncharacters are these, and the last two of each plane.
    c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

/// The text with something `instead` of each character that no attribute has.
fn permitted(text: &str, instead: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(is_forbidden) {
        return text.into();
    }
    text.chars().map(|c| if is_forbidden(c) { instead(c) } else { c.into() }).collect()
}

/// What a character of a JSON document can be written as: it is white space, or in a string.
fn in_json(c: char) -> String {
    if c.is_ascii_whitespace() {
        return " ".to_owned();
    }
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// An attribute that there must be, whatever was published.
fn published(out: &mut impl Output, name: &str, value: &str) {
    let encoded = |c: char| utf8_percent_encode(c.encode_utf8(&mut [0; 4]), CONTROLS).to_string();
    attribute(out, name, &permitted(value, encoded));
}

fn attribute(out: &mut impl Output, name: &str, value: &str) {
    member(out, name);
    json::string(out, value);
}

/// A number or a truth value.
fn literal(out: &mut impl Output, name: &str, value: impl Display) {
    member(out, name);
    out.put(value.to_string().as_bytes());
}

fn member(out: &mut impl Output, name: &str) {
    out.put(b",\"");
    out.put(name.as_bytes());
    out.put(b"\":");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postbox_wire::{ErrorCode, Outbox};

    use super::*;
    use crate::event::{EventError, EventId};

    /// An error event of a stored row: without an id, and without a place in the log.
    fn stored(seq: Option<i64>, detail: &str) -> Event {
        Event {
            outbox: Arc::new(Outbox {
                schema: "public".to_owned(),
                table: "orders".to_owned(),
                payload_type: PayloadType::Jsonb,
            }),
            id: None,
            seq,
            event_type: "t".into(),
            key: None,
            headers: None,
            payload: None,
            claim: None,
            chunk: None,
            commit_lsn: Lsn::ZERO,
            ordinal: 0,
            commit_time: PgMicros::UNKNOWN,
            xid: 0,
            error: Some(Arc::new(EventError { code: ErrorCode::Null, detail: detail.into(), raw: Vec::new() })),
            end_lsn: Lsn::ZERO,
        }
    }

    fn written(event: &Event) -> Value {
        let mut out = Vec::new();
        CloudEvents::new(None, "shop").write(event, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn place_and_time_that_are_not_known_are_left_out() {
        let event = written(&stored(Some(7), "a"));
        assert!(event.get("time").is_none() && event.get("sequence").is_none(), "{event}");
        assert_eq!((&event["id"], &event["data"]["commit_lsn"]), (&Value::from("seq/7"), &Value::Null));
        let known = Event { commit_time: PgMicros(0), commit_lsn: Lsn(16), ..stored(None, "a") };
        let known = written(&known);
        assert_eq!(
            (&known["id"], &known["time"]),
            (&Value::from("0/10/0"), &Value::from("2000-01-01T00:00:00.000000Z"))
        );
        assert_eq!(known["sequence"], "00000000000000100000000000000000");
    }

    #[test]
    fn rows_without_id_place_and_number_are_told_apart_by_what_they_say() {
        let id = |detail: &str| written(&stored(None, detail))["id"].as_str().unwrap().to_owned();
        assert_eq!(id("a"), id("a"));
        assert_ne!(id("a"), id("b"));
    }

    #[test]
    fn what_no_attribute_has_is_percent_encoded_where_there_must_be_one() {
        let event = Event {
            id: Some(EventId::Text("a\u{7f}%".into())),
            event_type: "t\n".into(),
            key: Some("k\u{85}\u{fdd0}\u{1ffff} ä".into()),
            error: None,
            ..stored(None, "a")
        };
        let event = written(&event);
        assert_eq!((&event["id"], &event["type"]), (&Value::from("a%7F%"), &Value::from("t%0A")));
        assert_eq!(event["subject"], "k%C2%85%EF%B7%90%F0%9F%BF%BF ä");
        assert_eq!(event["partitionkey"], event["subject"]);
    }

    fn with_headers(headers: &str) -> Value {
        written(&Event { headers: Some(headers.into()), error: None, ..stored(None, "a") })
    }

    #[test]
    fn a_header_that_cannot_be_an_attribute_takes_no_other_with_it() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for odd in ["1e400", &deep, "\"\\ud800\"", "\"\\u0007\"", "\"\\ufffe\""] {
            let headers = format!("{{\"odd\":{odd},\"traceparent\":\"00-1\"}}");
            let event = with_headers(&headers);
            assert_eq!((&event["traceparent"], event.get("odd")), (&Value::from("00-1"), None));
            assert_eq!(event["postboxheaders"], headers);
        }
        let schema = with_headers("{\"dataschema\":\"no URI\"}");
        assert!(schema.get("dataschema").is_none() && schema.get("postboxheaders").is_some(), "{schema}");
    }

    #[test]
    fn headers_go_along_as_the_same_document() {
        let event = with_headers("{\"X\":\t\"\u{7f}\u{1fffe}ä\"\n}");
        assert_eq!(event["postboxheaders"], "{\"X\": \"\\u007f\\ud83f\\udffeä\" }");
    }
}
