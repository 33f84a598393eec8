//! Events that `postbox.emit` wrote to the log and to no table: transactional logical messages.
//!
//! Anybody may write such messages, so what one says is believed only of an outbox that accepts them (`emit=on` among the
//! marker's arguments), and nothing in it can stop the stream.

use alloc::borrow::{Cow, ToOwned};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::value::RawValue;

use crate::PayloadType;

/// The prefix of messages that are events.
pub const PREFIX: &str = "postbox";

/// A message that names an outbox: a JSON object in UTF-8 with the members `outbox`, an OID; `id`, a UUID; `type` and
/// `key`, strings; `headers`, any JSON; and `payload`, JSON as it stands, or a string that is text, or one that is base64.
#[derive(Debug)]
pub struct Emitted<'a> {
    /// OID of the outbox.
    pub outbox: u32,
    members: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

/// The fields of an event.
#[derive(Debug)]
pub struct Fields<'a> {
    /// A UUID.
    pub id: [u8; 16],
    /// What happened.
    pub event_type: Cow<'a, str>,
    /// The key.
    pub key: Option<Cow<'a, str>>,
    /// JSON text.
    pub headers: Option<&'a str>,
    /// The payload's bytes, by its type.
    pub payload: Option<Cow<'a, [u8]>>,
}

impl<'a> Emitted<'a> {
    /// `None` if it is not such a message at all.
    pub fn read(message: &'a [u8]) -> Option<Self> {
        let members: BTreeMap<Cow<'a, str>, &'a RawValue> = serde_json::from_slice(message).ok()?;
        let outbox: u32 = members.get("outbox")?.get().parse().ok()?;
        Some(Self { outbox, members })
    }

    /// The event that it says.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn fields(&self, payload_type: PayloadType) -> Result<Fields<'a>, String> {
        let id = self.string("id")?.ok_or("it has no id")?;
        let payload = match (self.present("payload"), payload_type) {
            (None, _) => None,
            (Some(value), PayloadType::Jsonb | PayloadType::Json) => Some(Cow::Borrowed(value.get().as_bytes())),
            (Some(_), PayloadType::Bytea) => {
                let text = self.string("payload")?.unwrap_or_default();
                Some(Cow::Owned(base64(&text).ok_or("its payload is not base64")?))
            }
            (Some(_), _) => self.string("payload")?.map(|text| match text {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            }),
        };
        Ok(Fields {
            id: uuid(&id).ok_or_else(|| format!("its id \"{id:.100}\" is not a UUID"))?,
            event_type: self.string("type")?.ok_or("it has no type")?,
            key: self.string("key")?,
            headers: self.present("headers").map(|value| value.get()),
            payload,
        })
    }

    fn present(&self, name: &str) -> Option<&'a RawValue> {
        self.members.get(name).copied().filter(|value| value.get() != "null")
    }

    fn string(&self, name: &str) -> Result<Option<Cow<'a, str>>, String> {
        let Some(value) = self.present(name) else { return Ok(None) };
        let Ok(Text(text)) = serde_json::from_str::<Text<'a>>(value.get()) else {
            return Err(format!("its {name} is not a string"));
        };
        if text.contains('\0') {
            return Err(format!("its {name} has the character U+0000, which no text has"));
        }
        Ok(Some(text))
    }
}

/// A string, borrowed where nothing in it is escaped.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Text<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Reads a UUID as PostgreSQL prints it.
pub fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut bytes = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// Reads base64 as PostgreSQL's `encode` prints it, with line breaks.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held, mut padding) = (0_u32, 0, 0);
    for digit in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    (padding <= 2 && held < 6 && bits & ((1 << held) - 1) == 0).then_some(bytes)
}
