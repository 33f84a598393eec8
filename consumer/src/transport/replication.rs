//! A connection that may stream from slots: asking the server who it is, and starting a stream.

use std::time::Duration;

use bytes::{Buf, Bytes};
use postbox_wire::Lsn;
use postgres_protocol::message::frontend;

use super::link::{Link, Message};
use super::{ConnInfo, CopyBoth, connect, refusal};
use crate::error::{Error, ErrorKind, Result};

/// A replication connection that does not stream yet.
#[derive(Debug)]
pub struct Replication {
    link: Link,
}

/// Which server this is and where it stands, as `IDENTIFY_SYSTEM` says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemId {
    /// Identifies the cluster; its physical standbys have the same.
    pub system_id: u64,
    /// The timeline; every promotion begins another.
    pub timeline: u32,
    /// WAL is flushed up to here.
    pub xlogpos: Lsn,
    /// The database of this connection.
    pub dbname: Option<String>,
}

/// Settings that make no sense for a stream that runs for weeks; whatever the role or the database sets, these hold.
const PARAMETERS: [(&str, &str); 4] = [
    ("replication", "database"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

impl Replication {
    /// Connects and logs in. The server shows `application_name` in its views, unless `info` has one of its own. It ends the
    /// session when it does not hear of the client for `session_timeout`, or else for its own `wal_sender_timeout`.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] and [`ErrorKind::Server`] may pass by themselves; [`ErrorKind::Tls`],
    /// [`ErrorKind::Login`] and [`ErrorKind::Setup`] (no REPLICATION attribute) need somebody.
    pub async fn connect(info: &ConnInfo, application_name: &str, session_timeout: Option<Duration>) -> Result<Self> {
        Self::connect_with(info, application_name, session_timeout, &[]).await
    }

    /// As [`connect`](Self::connect), with further settings for the session, which win.
    pub(crate) async fn connect_with(
        info: &ConnInfo,
        application_name: &str,
        session_timeout: Option<Duration>,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let session_timeout = session_timeout.map(|timeout| format!("{}ms", timeout.as_millis()));
        let mut parameters = [&PARAMETERS, settings].concat();
        parameters.extend(session_timeout.as_deref().map(|timeout| ("wal_sender_timeout", timeout)));
        let (link, _) = connect::open(info, application_name, &parameters).await?;
        Ok(Self { link })
    }

    /// Asks the server who it is.
    ///
    /// # Errors
    /// The link breaks or the server answers something else.
    pub async fn identify(&mut self) -> Result<SystemId> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let [row] = rows.as_slice() else { return Err(malformed("IDENTIFY_SYSTEM")) };
        let [Some(system_id), Some(timeline), Some(xlogpos), dbname] = row.as_slice() else {
            return Err(malformed("IDENTIFY_SYSTEM"));
        };
        Ok(SystemId {
            system_id: system_id.parse().map_err(|_| malformed("IDENTIFY_SYSTEM"))?,
            timeline: timeline.parse().map_err(|_| malformed("IDENTIFY_SYSTEM"))?,
            xlogpos: xlogpos.parse().map_err(|_| malformed("IDENTIFY_SYSTEM"))?,
            dbname: dbname.clone(),
        })
    }

    /// The value of a setting, in the unit that the server chooses to print.
    ///
    /// # Errors
    /// There is no such setting, or the role may not see it.
    pub async fn show(&mut self, name: &str) -> Result<String> {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("\"{}\" is not the name of a setting", name.escape_debug()),
            ));
        }
        let rows = self.query(&format!("SHOW {name}")).await?;
        match rows.into_iter().next().and_then(|row| row.into_iter().next()) {
            Some(Some(value)) => Ok(value),
            _ => Err(malformed("SHOW")),
        }
    }

    /// Starts the stream of `slot` where the slot stands, with `options` for its plugin.
    ///
    /// # Errors
    /// One kind for each reason why the slot cannot be read: [`ErrorKind::SlotMissing`], [`ErrorKind::SlotInUse`],
    /// [`ErrorKind::SlotInvalidated`], [`ErrorKind::SlotDatabase`], [`ErrorKind::SlotPlugin`], [`ErrorKind::Setup`].
    pub async fn start(mut self, slot: &str, options: &[(&str, String)]) -> Result<CopyBoth> {
        self.link.about().slot = Some(slot.to_owned());
        let command = start_command(slot, options);
        let error = match self.begin(&command).await {
            Ok(()) => return Ok(CopyBoth::new(self.link)),
            Err(error) if refusal::refuses_plugin(&error) => {
                let role = self.link.about().role.clone();
                let list = self.plugin_list().await;
                error.with_hint(refusal::allow_plugin(role.as_deref(), list.as_deref()))
            }
            Err(error) => error,
        };
        self.link.close().await;
        Err(error)
    }

    async fn begin(&mut self, command: &str) -> Result<()> {
        self.send(command).await?;
        let answer = self.link.recv().await;
        match answer {
            // CopyBothResponse; the formats of its columns are of no meaning here.
            Ok(Message { tag: b'W', .. }) => Ok(()),
            Ok(Message { tag, .. }) => Err(Error::new(
                ErrorKind::Protocol,
                format!("the server answered START_REPLICATION with a message of type 0x{tag:02x}"),
            )),
            Err(error) => {
                // An error leaves the connection usable, once the server has said that it is ready.
                if error.sqlstate().is_some() {
                    let _ = self.rows().await;
                }
                Err(error)
            }
        }
    }

    /// `output_plugin_libraries` as far as this role may know it: the list in force, or else the one that was set for
    /// the role.
    async fn plugin_list(&mut self) -> Option<String> {
        if let Ok(list) = self.show("output_plugin_libraries").await {
            return Some(list);
        }
        let rows = self.query(refusal::PLUGIN_LIST_OF_ROLE).await.ok()?;
        rows.into_iter().next()?.into_iter().next()?
    }

    /// Runs one statement by the simple protocol.
    async fn query(&mut self, statement: &str) -> Result<Vec<Row>> {
        self.send(statement).await?;
        self.rows().await
    }

    async fn send(&mut self, statement: &str) -> Result<()> {
        frontend::query(statement, self.link.outbox()).map_err(|error| {
            Error::new(ErrorKind::Usage, "a name or an option contains a zero byte or is too long").with_source(error)
        })?;
        self.link.flush().await
    }

    /// Reads answers up to ReadyForQuery; an error among them is returned once that has come.
    async fn rows(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.link.recv().await {
                Ok(Message { tag: b'D', body }) => rows.push(row(body).ok_or_else(|| malformed("a query"))?),
                Ok(Message { tag: b'Z', .. }) => return failure.map_or(Ok(rows), Err),
                Ok(_) => {}
                Err(error) if error.sqlstate().is_some() && failure.is_none() => failure = Some(error),
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
    }
}

/// The columns of a row, as text.
type Row = Vec<Option<String>>;

/// Reads a DataRow.
fn row(mut body: Bytes) -> Option<Row> {
    let columns = body.try_get_u16().ok()?;
    let mut row = Row::new();
    for _ in 0..columns {
        let value = match body.try_get_i32().ok()? {
            -1 => None,
            length => {
                let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
                Some(String::from_utf8(body.split_to(length).to_vec()).ok()?)
            }
        };
        row.push(value);
    }
    Some(row)
}

/// The slot's own position is asked for by 0/0: any other could skip what has not been confirmed.
fn start_command(slot: &str, options: &[(&str, String)]) -> String {
    let mut command = format!("START_REPLICATION SLOT {} LOGICAL 0/0", refusal::quote(slot));
    for (index, (name, value)) in options.iter().enumerate() {
        command.push_str(if index == 0 { " (" } else { ", " });
        command.push_str(&refusal::quote(name));
        command.push_str(" '");
        // The grammar of replication commands knows no escape but the doubled quote.
        command.push_str(&value.replace('\'', "''"));
        command.push('\'');
    }
    if !options.is_empty() {
        command.push(')');
    }
    command
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("the server's answer to {what} is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_values_are_quoted() {
        assert_eq!(start_command("s", &[]), "START_REPLICATION SLOT \"s\" LOGICAL 0/0");
        let options = [("proto_version", "1".to_owned()), ("a\"b", "it's \\ ok".to_owned())];
        assert_eq!(
            start_command("a\"b", &options),
            "START_REPLICATION SLOT \"a\"\"b\" LOGICAL 0/0 (\"proto_version\" '1', \"a\"\"b\" 'it''s \\ ok')"
        );
    }

    #[test]
    fn rows_are_read() {
        let body = Bytes::from_static(b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0");
        assert_eq!(row(body), Some(vec![Some("ab".to_owned()), None, Some(String::new())]));
    }

    proptest! {
        #[test]
        fn hostile_rows_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = row(bytes.into());
        }
    }
}
