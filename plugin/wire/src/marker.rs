//! The marker trigger: what makes a table an outbox, and which of its columns mean what.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::PayloadType;
use crate::headers::Header;
use crate::type_oid::{BYTEA, INT2, INT4, INT8, JSON, JSONB};

/// The reserved name of the trigger.
pub const TRIGGER: &str = "postbox_outbox";

/// The marker's argument without which an outbox takes no messages.
pub const ACCEPTS_MESSAGES: &[u8] = b"emit=on";

/// A column of a table, as far as a marker looks at it.
pub trait Column: Clone {
    /// Name, in the database's encoding.
    fn name(&self) -> &[u8];
    /// OID of its type.
    fn type_oid(&self) -> u32;
    /// Computed when it is read: a row holds NULL in its place.
    fn is_virtual(&self) -> bool;
    /// The same with the type that its domain is over, through all domains.
    fn of_base_type(self) -> Self;
}

/// Where an event's fields stand in a row.
#[derive(Clone, Debug)]
pub struct Mapping<C> {
    /// The id.
    pub event_id: C,
    /// What happened.
    pub event_type: C,
    /// The key, if events have any.
    pub key: Option<C>,
    /// The headers, likewise.
    pub headers: Option<C>,
    /// The payload.
    pub payload: C,
    /// The row's number, where it has one.
    pub seq: Option<C>,
    /// Says, in an event whose data lies in the claims of the outbox, what there is.
    pub claim: Option<C>,
    /// Columns that are headers, next to what `headers` holds.
    pub header_columns: Vec<Header<C>>,
}

const ROLES: [&str; 7] = ["event_id", "type", "key", "headers", "payload", "seq", "claim"];
/// Mean nothing for a row: whether the table was made or adopted, its column of transaction ids, and whether messages are taken.
const OTHERS: [&[u8]; 3] = [b"origin", b"xid", b"emit"];
/// Begins the role of a column that is a header: `header:name=column`. No header's name contains `=`.
const HEADER: &[u8] = b"header:";

impl<C: Column> Mapping<C> {
    /// Reads the trigger's arguments, each `role=column`. A role that is not named takes the column of its own name, if there is
    /// one. `show` makes UTF-8 of names.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn read(arguments: &[Vec<u8>], columns: &[C], shown: impl Fn(&[u8]) -> String) -> Result<Self, String> {
        let mut named: [Option<&[u8]>; ROLES.len()] = [None; ROLES.len()];
        let mut named_headers: Vec<(String, &[u8])> = Vec::new();
        for argument in arguments {
            let split = argument.iter().position(|byte| *byte == b'=');
            let Some((role, column)) = split.map(|at| (&argument[..at], &argument[at + 1..])) else {
                return Err(format!("the marker's argument \"{}\" is not of the form role=column", shown(argument)));
            };
            if OTHERS.contains(&role) {
                continue;
            }
            if let Some(header) = role.strip_prefix(HEADER) {
                named_headers.push((shown(header), column));
                continue;
            }
            let Some(index) = ROLES.iter().position(|known| known.as_bytes() == role) else {
                return Err(format!("the marker maps the unknown role \"{}\"", shown(role)));
            };
            if named[index].replace(column).is_some() {
                return Err(format!("the marker maps the role \"{}\" twice", ROLES[index]));
            }
        }
        let existing = |name: &[u8], role: &str| match columns.iter().find(|column| column.name() == name) {
            Some(column) if column.is_virtual() => {
                Err(format!("the column \"{}\" for {role} is virtual, its values are not stored", shown(name)))
            }
            Some(column) => Ok(column.clone()),
            None => Err(format!("the column \"{}\" for {role} does not exist", shown(name))),
        };
        let find = |index: usize| match named[index] {
            // An empty column name says that the table has none.
            Some([]) => Ok(None),
            Some(name) => existing(name, ROLES[index]).map(Some),
            None => Ok(columns.iter().find(|column| column.name() == ROLES[index].as_bytes()).cloned()),
        };
        let need = |index: usize| {
            find(index)?.ok_or_else(|| format!("there is no column for {}, which every event needs", ROLES[index]))
        };
        let seq = find(5)?.filter(|column| is_int(column.type_oid()));
        // A column that is merely called so is the user's.
        let claim = if named[6].is_some() { find(6)? } else { None };
        if let Some(column) = &claim
            && column.type_oid() != JSONB
        {
            return Err(format!("the column \"{}\" for claim is not jsonb", shown(column.name())));
        }
        let headers = find(3)?;
        if let Some(column) = &headers
            && !matches!(column.type_oid(), JSON | JSONB)
        {
            return Err(format!("the column \"{}\" for headers is neither json nor jsonb", shown(column.name())));
        }
        let mut header_columns: Vec<Header<C>> = Vec::new();
        for (name, column) in named_headers {
            if header_columns.iter().any(|header| header.name == name) {
                return Err(format!("the marker maps the header \"{name}\" twice"));
            }
            let column = existing(column, &format!("header \"{name}\""))?;
            header_columns.push(Header::new(name, column));
        }
        let payload = need(4)?;
        Ok(Self {
            event_id: need(0)?,
            event_type: need(1)?,
            key: find(2)?,
            headers,
            payload,
            seq,
            claim,
            header_columns,
        })
    }

    /// How consumers read the payload's bytes.
    pub fn payload_type(&self) -> PayloadType {
        match self.payload.type_oid() {
            JSONB => PayloadType::Jsonb,
            JSON => PayloadType::Json,
            BYTEA => PayloadType::Bytea,
            _ => PayloadType::Text,
        }
    }
}

/// Where the fields of a chunk stand in a row of claims.
pub struct ChunkMapping<C> {
    /// The seq of the event.
    pub seq: C,
    /// The chunk's number, from 0 on.
    pub number: C,
    /// How many rows end in it.
    pub rows: C,
    /// The bytes.
    pub data: C,
}

impl<C: Column> ChunkMapping<C> {
    /// Finds the columns.
    ///
    /// # Errors
    ///
    /// What does not fit, in words.
    pub fn read(columns: &[C]) -> Result<Self, String> {
        let column = |name: &str, type_oid: u32| {
            let found = columns.iter().find(|column| column.name() == name.as_bytes() && column.type_oid() == type_oid);
            found.cloned().ok_or_else(|| format!("the table of the claims has no column \"{name}\" of its type"))
        };
        Ok(Self {
            seq: column("seq", INT8)?,
            number: column("chunk", INT4)?,
            rows: column("rows", INT4)?,
            data: column("data", BYTEA)?,
        })
    }
}

/// The column that plays a role of those that events do not show, where it is of this type.
pub fn column_of<C: Column>(role: &str, type_oid: u32, marker: &[Vec<u8>], columns: &[C]) -> Option<C> {
    let of_role = |argument: &[u8]| Some(argument.strip_prefix(role.as_bytes())?.strip_prefix(b"=")?.to_vec());
    let name = marker.iter().find_map(|argument| of_role(argument)).unwrap_or_else(|| role.as_bytes().to_owned());
    let wanted = |column: &&C| column.name() == name && column.type_oid() == type_oid && !column.is_virtual();
    columns.iter().find(wanted).cloned()
}

/// True for the integer types.
pub fn is_int(type_oid: u32) -> bool {
    matches!(type_oid, INT2 | INT4 | INT8)
}
