//! The one error of the consumer: what happened, of which kind, and what to do about it.

use std::error::Error as StdError;
use std::fmt;

/// What kind of failure an [`Error`] is. Retries and exit codes are decided by it, never by the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A connection string, an environment variable or an argument cannot be used as it is.
    Usage,
    /// The server could not be reached, or the link to it broke.
    Connect,
    /// TLS was required and not offered, or the server's certificate is not the one asked for.
    Tls,
    /// The server refused the role, its password or the database.
    Login,
    /// The server cannot serve now and will later: it starts, stops, or has no connection left.
    Server,
    /// There is no replication slot of that name.
    SlotMissing,
    /// Another session reads the slot.
    SlotInUse,
    /// The slot belongs to another output plugin, or is a physical one.
    SlotPlugin,
    /// The server has removed WAL that the slot needs; it can never be read again.
    SlotInvalidated,
    /// The slot belongs to another database of the server.
    SlotDatabase,
    /// There is no consumer group of that name.
    GroupMissing,
    /// The server is not the one that the group's position belongs to: promoted, restored, or a copy.
    Moved,
    /// This process is not the group's active member any more.
    PlaceLost,
    /// The server is not set up for Postbox: a setting, a role attribute, a library, an extension or a version.
    Setup,
    /// The peer does not speak the protocol as specified.
    Protocol,
    /// A frame of the plugin cannot be decoded.
    Decode,
    /// A sink did not take an event.
    Sink,
    /// A call of the sink does not end; what becomes of it is not known.
    Stuck,
    /// Anything else, in most cases an SQL error that nobody expected.
    Other,
}

/// An error of the consumer.
///
/// `Display` gives the message alone; [`hint`](Self::hint) says how to mend it, and
/// [`source`](StdError::source) what lies beneath.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    sqlstate: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result of the consumer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), hint: None, sqlstate: None, source: None }))
    }

    /// That of a server that does not answer in time: as if the link were broken.
    pub(crate) fn silent() -> Self {
        Self::new(ErrorKind::Connect, "the server does not answer")
    }

    /// What ends a term whose lease is revoked. Why it is has been logged by whoever noticed.
    pub(crate) fn place_lost() -> Self {
        Self::new(ErrorKind::PlaceLost, "this member has given up its place; nothing more is delivered")
    }

    /// The same error, known to be of another kind.
    #[must_use]
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error with a remedy; an earlier one is replaced.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error with its cause attached. The cause is not repeated in the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error with the SQLSTATE the server gave.
    #[must_use]
    pub fn with_sqlstate(mut self, sqlstate: impl Into<String>) -> Self {
        self.0.sqlstate = Some(sqlstate.into());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// How to mend it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The SQLSTATE, if the server reported one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }

    /// Whether the same attempt may succeed later with nothing changed by anybody.
    ///
    /// [`ErrorKind::SlotInUse`] is not transient: a second consumer would wait for ever. Who has held
    /// the slot a moment ago and lost the link may still retry it, as the server frees the slot only
    /// when it notices.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), ErrorKind::Connect | ErrorKind::Server)
    }

    /// The message and those of its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut source = self.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    /// The exit code of `postbox` when this error ends it.
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            ErrorKind::Usage => 2,
            ErrorKind::Connect | ErrorKind::Tls | ErrorKind::Login | ErrorKind::Server => 3,
            ErrorKind::SlotMissing
            | ErrorKind::SlotInUse
            | ErrorKind::SlotPlugin
            | ErrorKind::SlotInvalidated
            | ErrorKind::SlotDatabase
            | ErrorKind::GroupMissing
            | ErrorKind::Moved
            | ErrorKind::PlaceLost => 4,
            ErrorKind::Setup => 5,
            ErrorKind::Sink | ErrorKind::Stuck => 6,
            ErrorKind::Protocol | ErrorKind::Decode | ErrorKind::Other => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, message, hint, sqlstate, source } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("message", message)
            .field("hint", hint)
            .field("sqlstate", sqlstate)
            .field("source", source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_hint_and_cause_are_told_apart() {
        let cause = std::io::Error::other("the cause");
        let error = Error::new(ErrorKind::Connect, "what happened")
            .with_hint("first")
            .with_hint("what to do")
            .with_sqlstate("08006")
            .with_source(cause);
        assert_eq!(error.to_string(), "what happened");
        assert_eq!(error.chain(), "what happened: the cause");
        assert_eq!(error.hint(), Some("what to do"));
        assert_eq!(error.sqlstate(), Some("08006"));
        assert!(error.source().is_some());
    }

    #[test]
    fn kinds_decide_retries_and_exit_codes() {
        let all = [
            (ErrorKind::Usage, 2, false),
            (ErrorKind::Connect, 3, true),
            (ErrorKind::Tls, 3, false),
            (ErrorKind::Login, 3, false),
            (ErrorKind::Server, 3, true),
            (ErrorKind::SlotMissing, 4, false),
            (ErrorKind::SlotInUse, 4, false),
            (ErrorKind::SlotPlugin, 4, false),
            (ErrorKind::SlotInvalidated, 4, false),
            (ErrorKind::SlotDatabase, 4, false),
            (ErrorKind::GroupMissing, 4, false),
            (ErrorKind::Moved, 4, false),
            (ErrorKind::PlaceLost, 4, false),
            (ErrorKind::Setup, 5, false),
            (ErrorKind::Sink, 6, false),
            (ErrorKind::Stuck, 6, false),
            (ErrorKind::Protocol, 1, false),
            (ErrorKind::Decode, 1, false),
            (ErrorKind::Other, 1, false),
        ];
        for (kind, code, transient) in all {
            let error = Error::new(kind, "");
            assert_eq!((error.exit_code(), error.is_transient()), (code, transient), "{kind:?}");
        }
    }
}
