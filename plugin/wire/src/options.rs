//! The options of `START_REPLICATION … LOGICAL` and of the slot's SQL functions: the plugin parses them, the consumer
//! renders them.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::MAX_EVENT_BYTES;

/// Oldest version of the stream that is spoken.
pub const PROTO_VERSION_MIN: u32 = 1;
/// Newest version of the stream that is spoken.
pub const PROTO_VERSION_MAX: u32 = 1;

/// What a client may ask of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `proto_version`: version of the stream.
    pub proto_version: u32,
    /// `names`: how often the names of outboxes are sent.
    pub names: Names,
    /// `outboxes`: those whose events are sent; `None` sends the events of every outbox of the database.
    pub outboxes: Option<Vec<OutboxSelector>>,
    /// `max_event_bytes`: an event with larger fields becomes an error event.
    pub max_event_bytes: usize,
    /// `compression`: whether frames may come compressed.
    pub compression: Compression,
    /// `origin`: whether changes that came from another server by replication are sent.
    pub origin: Origin,
    /// `claims`: what is sent of events whose data lies in the claims of their outbox.
    pub claims: Claims,
}

/// What is sent of an event whose data lies beside its outbox (claim check).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claims {
    /// An error event: the client is not prepared for claims.
    None,
    /// The event with what it says of its data, to be fetched by SQL.
    Reference,
    /// The data in chunks, and behind them the event.
    Stream,
}

/// How often the names of outboxes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// In every frame, so that each can be decoded by itself.
    Frame,
    /// Once; frames have to be decoded in order from the start of the stream.
    Stream,
}

/// Whether frames may come compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Never.
    None,
    /// As LZ4 blocks, where that makes a frame shorter.
    Lz4,
}

/// Which transactions are sent, by where they were made: PostgreSQL notes a replication origin with those that a subscription
/// has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// All.
    Any,
    /// Those without an origin: made on this server.
    None,
}

/// One element of the option `outboxes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxSelector {
    /// The table's OID: goes along when the table is renamed.
    Oid(u32),
    /// The table's name at the time of the transaction: goes along when the table is dropped and made anew.
    Name {
        /// Schema, exactly as in the catalog.
        schema: String,
        /// Table, exactly as in the catalog.
        table: String,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            proto_version: PROTO_VERSION_MAX,
            names: Names::Frame,
            outboxes: None,
            max_event_bytes: MAX_EVENT_BYTES,
            compression: Compression::None,
            origin: Origin::Any,
            claims: Claims::None,
        }
    }
}

/// An option that the plugin refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// What is wrong, naming option and value.
    pub message: String,
    /// What would be right.
    pub hint: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}", self.message, self.hint)
    }
}

impl core::error::Error for OptionError {}

const NAMES: [&str; 7] = ["proto_version", "names", "outboxes", "max_event_bytes", "compression", "origin", "claims"];

impl Options {
    /// The options as `START_REPLICATION` takes them.
    pub fn render(&self) -> Vec<(&'static str, String)> {
        let Self { proto_version, names, outboxes, max_event_bytes, compression, origin, claims } = self;
        let names = match names {
            Names::Frame => "frame",
            Names::Stream => "stream",
        };
        let mut rendered = Vec::from([
            ("proto_version", proto_version.to_string()),
            ("names", names.to_owned()),
            ("max_event_bytes", max_event_bytes.to_string()),
        ]);
        if let Some(outboxes) = outboxes {
            let list = outboxes.iter().map(ToString::to_string).collect::<Vec<_>>();
            rendered.push(("outboxes", list.join(",")));
        }
        if *compression == Compression::Lz4 {
            rendered.push(("compression", "lz4".to_owned()));
        }
        if *origin == Origin::None {
            rendered.push(("origin", "none".to_owned()));
        }
        match claims {
            Claims::None => {}
            Claims::Reference => rendered.push(("claims", "reference".to_owned())),
            Claims::Stream => rendered.push(("claims", "stream".to_owned())),
        }
        rendered
    }

    /// Reads options, each at most once; a missing value is an error.
    ///
    /// # Errors
    /// An unknown or repeated option, or a value that is not allowed.
    pub fn parse<'a>(given: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let mut seen = [false; NAMES.len()];
        for (name, value) in given {
            let Some(index) = NAMES.iter().position(|known| *known == name) else {
                return Err(refuse(
                    format!("unrecognized postbox option: \"{name}\""),
                    format!("The options are {}.", NAMES.join(", ")),
                ));
            };
            if core::mem::replace(&mut seen[index], true) {
                return Err(refuse(format!("postbox option \"{name}\" is given twice"), "Give it once.".to_owned()));
            }
            let Some(value) = value else {
                return Err(refuse(format!("postbox option \"{name}\" needs a value"), range(name)));
            };
            let wrong = || refuse(format!("invalid value for postbox option \"{name}\": \"{value}\""), range(name));
            match name {
                "proto_version" => options.proto_version = negotiate(value).ok_or_else(|| too_far(value))?,
                "names" => {
                    options.names = match value {
                        "frame" => Names::Frame,
                        "stream" => Names::Stream,
                        _ => return Err(wrong()),
                    }
                }
                "compression" => {
                    options.compression = match value {
                        "none" => Compression::None,
                        "lz4" => Compression::Lz4,
                        _ => return Err(wrong()),
                    }
                }
                "origin" => {
                    options.origin = match value {
                        "any" => Origin::Any,
                        "none" => Origin::None,
                        _ => return Err(wrong()),
                    }
                }
                "claims" => {
                    options.claims = match value {
                        "none" => Claims::None,
                        "reference" => Claims::Reference,
                        "stream" => Claims::Stream,
                        _ => return Err(wrong()),
                    }
                }
                "outboxes" => options.outboxes = Some(parse_selectors(value).ok_or_else(wrong)?),
                _ => {
                    let bytes = number(value).filter(|bytes| (1..=MAX_EVENT_BYTES as u64).contains(bytes));
                    options.max_event_bytes = bytes.ok_or_else(wrong)? as usize;
                }
            }
        }
        Ok(options)
    }
}

/// The version asked for, if this build speaks it.
fn negotiate(value: &str) -> Option<u32> {
    let version = u32::try_from(number(value)?).ok()?;
    (PROTO_VERSION_MIN..=PROTO_VERSION_MAX).contains(&version).then_some(version)
}

fn too_far(value: &str) -> OptionError {
    refuse(
        format!(
            "client asks for proto_version {value}, this postbox plugin speaks {PROTO_VERSION_MIN} to {PROTO_VERSION_MAX}"
        ),
        "Install the same release of plugin and consumer; the plugin first.".to_owned(),
    )
}

fn number(value: &str) -> Option<u64> {
    value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

fn range(name: &str) -> String {
    match name {
        "proto_version" => format!("A whole number from {PROTO_VERSION_MIN} to {PROTO_VERSION_MAX}."),
        "names" => "\"frame\" or \"stream\".".to_owned(),
        "compression" => "\"none\" or \"lz4\".".to_owned(),
        "origin" => "\"any\" or \"none\".".to_owned(),
        "claims" => "\"none\", \"reference\" or \"stream\".".to_owned(),
        "outboxes" => {
            "A list, separated by commas, of schema-qualified names (quoted as in SQL where needed) or table OIDs."
                .to_owned()
        }
        _ => format!("A whole number of bytes from 1 to {MAX_EVENT_BYTES}."),
    }
}

fn refuse(message: String, hint: String) -> OptionError {
    OptionError { message, hint }
}

/// Reads `schema.table, "Schema"."Table", 16401`: names follow SQL, so what is not quoted is folded to lower case.
/// `None` if the list is empty or an element is neither an OID nor a schema-qualified name.
pub fn parse_selectors(list: &str) -> Option<Vec<OutboxSelector>> {
    let mut selectors = Vec::new();
    let mut rest = list;
    loop {
        rest = rest.trim_start();
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, after) = rest.split_at(end);
            selectors.push(OutboxSelector::Oid(digits.parse().ok().filter(|oid| *oid != 0)?));
            rest = after;
        } else {
            let (schema, after) = identifier(rest)?;
            let (table, after) = identifier(after.trim_start().strip_prefix('.')?.trim_start())?;
            selectors.push(OutboxSelector::Name { schema, table });
            rest = after;
        }
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(selectors);
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// An SQL identifier and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None => return (!name.is_empty()).then_some((name, after)),
            }
        }
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let end = text.find(|c| !plain(c)).unwrap_or(text.len());
    let (name, after) = text.split_at(end);
    (!name.is_empty()).then(|| (name.to_ascii_lowercase(), after))
}

impl fmt::Display for OutboxSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oid(oid) => write!(f, "{oid}"),
            Self::Name { schema, table } => {
                write!(f, "\"{}\".\"{}\"", schema.replace('"', "\"\""), table.replace('"', "\"\""))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(given: &[(&str, Option<&str>)]) -> Result<Options, OptionError> {
        Options::parse(given.iter().copied())
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse(&[]), Ok(Options::default()));
    }

    #[test]
    fn wrong_options_name_option_value_and_range() {
        for (given, message, hint) in [
            (&[("colour", Some("red"))][..], "\"colour\"", "proto_version, names"),
            (&[("names", Some("frame")), ("names", Some("frame"))], "twice", "once"),
            (&[("names", None)], "needs a value", "frame"),
            (&[("names", Some("Frame"))], "\"Frame\"", "\"stream\""),
            (&[("proto_version", Some("2"))], "proto_version 2, this postbox plugin speaks 1 to 1", "same release"),
            (&[("proto_version", Some("+1"))], "+1", "release"),
            (&[("max_event_bytes", Some("0"))], "\"0\"", "from 1 to 268435456"),
            (&[("max_event_bytes", Some("268435457"))], "\"268435457\"", "268435456"),
            (&[("compression", Some("LZ4"))], "\"LZ4\"", "\"lz4\""),
            (&[("origin", Some("some"))], "\"some\"", "\"none\""),
            (&[("claims", Some("all"))], "\"all\"", "\"stream\""),
            (&[("outboxes", Some(""))], "outboxes", "schema-qualified"),
            (&[("outboxes", Some("orders"))], "\"orders\"", "schema-qualified"),
            (&[("outboxes", Some("a.b,"))], "\"a.b,\"", "commas"),
            (&[("outboxes", Some("0"))], "\"0\"", "OID"),
            (&[("outboxes", Some("a.b.c"))], "a.b.c", "schema"),
            (&[("outboxes", Some("\"a.b"))], "a.b", "schema"),
        ] {
            let error = parse(given).expect_err(message);
            assert!(error.message.contains(message), "{error:?} should say {message}");
            assert!(error.hint.contains(hint), "{error:?} should hint at {hint}");
        }
    }

    #[test]
    fn selectors_follow_sql() {
        let name = |schema: &str, table: &str| OutboxSelector::Name { schema: schema.into(), table: table.into() };
        assert_eq!(
            parse_selectors("Public.Orders , \"A \"\"b\".\"c.d\",16401"),
            Some(Vec::from([name("public", "orders"), name("A \"b", "c.d"), OutboxSelector::Oid(16401)]))
        );
    }

    proptest! {
        #[test]
        fn rendered_options_are_parsed_back(
            stream: bool,
            compressed: bool,
            local: bool,
            claims in prop::sample::select(&[Claims::None, Claims::Reference, Claims::Stream][..]),
            max_event_bytes in 1..=MAX_EVENT_BYTES,
            names in prop::option::of(prop::collection::vec(("[a-zA-Z\",. ä]{1,9}", "[^\0]{1,9}", 0..9_u32), 1..4)),
        ) {
            let outboxes = names.map(|names| names.into_iter().map(|(schema, table, oid)| match oid {
                0 => OutboxSelector::Name { schema, table },
                oid => OutboxSelector::Oid(oid),
            }).collect());
            let names = if stream { Names::Stream } else { Names::Frame };
            let compression = if compressed { Compression::Lz4 } else { Compression::None };
            let origin = if local { Origin::None } else { Origin::Any };
            let options = Options { proto_version: 1, names, outboxes, max_event_bytes, compression, origin, claims };
            let rendered = options.render();
            let given = rendered.iter().map(|(name, value)| (*name, Some(value.as_str())));
            prop_assert_eq!(Options::parse(given), Ok(options));
        }

        #[test]
        fn any_text_is_parsed_or_refused(list in "[\"a-c., 0-9ä]{0,24}") {
            let _ = parse_selectors(&list);
        }
    }
}
