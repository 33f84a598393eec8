//! The second source of events: PostgreSQL's own output plugin, for servers that cannot load Postbox's.
//!
//! ```text
//! slot ──► message ──► reader ──► row ──► events, as the plugin would have sent them
//!                        │ table: marker and types, asked for by SQL
//! ```
//!
//! All outboxes are in the publication `postbox`, the tables of their claims in `postbox_claims` (sql/publication.sql). What differs from the plugin is listed in docs/managed.md.

mod claims;
pub(crate) mod hostile;
mod message;
mod reader;
mod row;
mod stored;
mod table;

pub(crate) use reader::Reader;
pub(crate) use stored::{is_stored_row, stored_event};
pub(crate) use table::Table;

/// The name of the output plugin.
pub(crate) const PLUGIN: &str = "pgoutput";

/// The publication of all outboxes of a database, and that of their claims.
const PUBLICATION: &str = "postbox";
pub(crate) const CLAIMS_PUBLICATION: &str = "postbox_claims";

/// What to do about claims from before they were published.
pub(crate) const UNPUBLISHED_CLAIMS: &str = "Run with --claims reference until the group is past what was published before: the sink fetches the data then. \
    If the publication lacks the table still: SELECT postbox.enable_pgoutput().";

/// Settings of the stream's session: how values are printed that are read here. No text is converted, so that none can
/// fail to be.
pub(crate) const PARAMETERS: [(&str, &str); 4] =
    [("client_encoding", "SQL_ASCII"), ("DateStyle", "ISO"), ("TimeZone", "UTC"), ("bytea_output", "hex")];
