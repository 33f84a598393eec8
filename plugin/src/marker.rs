//! The marker trigger: what makes a table an outbox, and which of its columns mean what.

use core::ffi::CStr;

use pgrx::pg_sys;
use postbox_wire::PayloadType;

use crate::headers::Header;
use crate::pg::encoding::Encoding;
use crate::pg::relation::Column;

/// The reserved name of the trigger.
pub(crate) const TRIGGER: &CStr = c"postbox_outbox";

/// Where an event's fields stand in a row.
pub(crate) struct Mapping {
    pub(crate) event_id: Column,
    pub(crate) event_type: Column,
    pub(crate) key: Option<Column>,
    pub(crate) headers: Option<Column>,
    pub(crate) payload: Column,
    pub(crate) seq: Option<Column>,
    /// Says, in an event whose data lies in the claims of the outbox, what there is.
    pub(crate) claim: Option<Column>,
    /// Columns that are headers, next to what `headers` holds.
    pub(crate) header_columns: Vec<Header>,
}

const ROLES: [&str; 7] = ["event_id", "type", "key", "headers", "payload", "seq", "claim"];
/// Mean nothing for a row: whether the table was made or adopted, its column of transaction ids, and whether messages are taken.
const OTHERS: [&[u8]; 3] = [b"origin", b"xid", b"emit"];
/// Begins the role of a column that is a header: `header:name=column`. No header's name contains `=`.
const HEADER: &[u8] = b"header:";

impl Mapping {
    /// Reads the trigger's arguments, each `role=column`. A role that is not named takes the column of its own name, if there is
    /// one. The error says what does not fit.
    pub(crate) fn read(arguments: &[Vec<u8>], columns: &[Column], encoding: Encoding) -> Result<Self, String> {
        let shown = |bytes: &[u8]| encoding.show(bytes);
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
        let existing = |name: &[u8], role: &str| match columns.iter().find(|column| column.name == name) {
            Some(column) if column.is_virtual => {
                Err(format!("the column \"{}\" for {role} is virtual, its values are not stored", shown(name)))
            }
            Some(column) => Ok(column.clone()),
            None => Err(format!("the column \"{}\" for {role} does not exist", shown(name))),
        };
        let find = |index: usize| match named[index] {
            // An empty column name says that the table has none.
            Some([]) => Ok(None),
            Some(name) => existing(name, ROLES[index]).map(Some),
            None => Ok(columns.iter().find(|column| column.name == ROLES[index].as_bytes()).cloned()),
        };
        let need = |index: usize| {
            find(index)?.ok_or_else(|| format!("there is no column for {}, which every event needs", ROLES[index]))
        };
        let seq = find(5)?.filter(|column| is_int(column.type_oid));
        // A column that is merely called so is the user's.
        let claim = if named[6].is_some() { find(6)? } else { None };
        if let Some(column) = &claim
            && column.type_oid != pg_sys::JSONBOID
        {
            return Err(format!("the column \"{}\" for claim is not jsonb", shown(&column.name)));
        }
        let headers = find(3)?;
        if let Some(column) = &headers
            && !matches!(column.type_oid, pg_sys::JSONOID | pg_sys::JSONBOID)
        {
            return Err(format!("the column \"{}\" for headers is neither json nor jsonb", shown(&column.name)));
        }
        let mut header_columns: Vec<Header> = Vec::new();
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
    pub(crate) fn payload_type(&self) -> PayloadType {
        match self.payload.type_oid {
            pg_sys::JSONBOID => PayloadType::Jsonb,
            pg_sys::JSONOID => PayloadType::Json,
            pg_sys::BYTEAOID => PayloadType::Bytea,
            _ => PayloadType::Text,
        }
    }
}

/// The reserved name of the trigger that makes a table the claims of an outbox; the outbox is the table that it refers to.
pub(crate) const CLAIMS_TRIGGER: &CStr = c"postbox_claims";

/// Where the fields of a chunk stand in a row of claims.
pub(crate) struct ChunkMapping {
    pub(crate) seq: Column,
    pub(crate) number: Column,
    pub(crate) rows: Column,
    pub(crate) data: Column,
}

impl ChunkMapping {
    /// The error says what does not fit.
    pub(crate) fn read(columns: &[Column]) -> Result<Self, String> {
        let column = |name: &str, type_oid: pg_sys::Oid| {
            let found = columns.iter().find(|column| column.name == name.as_bytes() && column.type_oid == type_oid);
            found.cloned().ok_or_else(|| format!("the table of the claims has no column \"{name}\" of its type"))
        };
        Ok(Self {
            seq: column("seq", pg_sys::INT8OID)?,
            number: column("chunk", pg_sys::INT4OID)?,
            rows: column("rows", pg_sys::INT4OID)?,
            data: column("data", pg_sys::BYTEAOID)?,
        })
    }
}

/// The column that plays a role of those that events do not show, where it is of this type.
pub(crate) fn column_of(role: &str, type_oid: pg_sys::Oid, marker: &[Vec<u8>], columns: &[Column]) -> Option<Column> {
    let of_role = |argument: &[u8]| Some(argument.strip_prefix(role.as_bytes())?.strip_prefix(b"=")?.to_vec());
    let name = marker.iter().find_map(|argument| of_role(argument)).unwrap_or_else(|| role.into());
    let wanted = |column: &&Column| column.name == name && column.type_oid == type_oid && !column.is_virtual;
    columns.iter().find(wanted).cloned()
}

/// True for the integer types.
pub(crate) fn is_int(type_oid: pg_sys::Oid) -> bool {
    matches!(type_oid, pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID)
}
