//! The fence: all `unsafe` of the project is below here (and in the callbacks' signatures).
//!
//! Rules. A wrapper borrows what PostgreSQL owns and lives no longer than the callback that received it. Every call into
//! the server goes through pgrx's guards, which turn an ERROR into an unwinding panic and the callback's `#[pg_guard]`
//! turns that back into the ERROR, so destructors run; the one exception is the INSERT of `publish`, see [`spi`]. Text arrives in the
//! database's encoding and leaves as UTF-8 through [`encoding`].

pub(crate) mod call;
pub(crate) mod change;
pub(crate) mod context;
pub(crate) mod datum;
pub(crate) mod encoding;
pub(crate) mod invalidation;
pub(crate) mod memory;
pub(crate) mod record;
pub(crate) mod relation;
pub(crate) mod report;
pub(crate) mod spi;
