//! `postbox claim`.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use clap::Subcommand;
use postbox_wire::{Lsn, Outbox, PayloadType, PgMicros};
use serde_json::Value;

use crate::claim::{ClaimPosition, ClaimReader};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::transport::ConnInfo;

#[derive(Debug, Subcommand)]
pub(super) enum Claim {
    /// Write the data of an event's claim to the standard output; the event, as --sink exec and stdout give it, comes on the
    /// standard input
    Fetch {
        /// How long to wait for a claim that is committed and cannot be seen yet
        #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = humantime::parse_duration)]
        patience: Duration,
        /// Go on from here, a line that --positions has written [default: the beginning]
        #[arg(long, value_name = "POSITION", default_value_t, hide_default_value = true)]
        from: ClaimPosition,
        /// Append to this file how far the data is written, a line after each chunk; the second number of a line is that of the bytes
        #[arg(long, value_name = "FILE")]
        positions: Option<PathBuf>,
    },
}

impl Claim {
    pub(super) async fn execute(self, info: &ConnInfo) -> Result<()> {
        let Self::Fetch { patience, from, positions } = self;
        let mut line = String::new();
        io::stdin().lock().take(MOST_BYTES).read_to_string(&mut line).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("cannot read an event from the standard input: {error}"))
        })?;
        let event = read(&line).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "what came on the standard input is no event with a claim")
                .with_hint("Give one line of JSON in the native format, with the members outbox, xid and claim.")
        })?;
        let open = |path: &PathBuf| OpenOptions::new().create(true).append(true).open(path);
        let mut positions = positions.as_ref().map(open).transpose().map_err(|error| {
            Error::new(ErrorKind::Usage, format!("cannot write to the file of --positions: {error}"))
        })?;
        let mut reader = ClaimReader::connect(info, &event).await?.patience(patience).resume(from);
        while let Some(data) = reader.chunk().await? {
            let mut output = io::stdout().lock();
            output.write_all(&data).and_then(|()| output.flush()).map_err(|error| {
                Error::new(ErrorKind::Sink, format!("cannot write to the standard output: {error}"))
            })?;
            // Not before the data: whoever goes on from here has all of it. One write, so that it is there whole or not at all.
            if let Some(file) = &mut positions {
                file.write_all(format!("{}\n", reader.position()).as_bytes()).map_err(|error| {
                    Error::new(ErrorKind::Sink, format!("cannot write to the file of --positions: {error}"))
                })?;
            }
        }
        Ok(())
    }
}

/// An event has no more.
const MOST_BYTES: u64 = 1 << 30;

/// What the native JSON of an event says about its claim.
fn read(line: &str) -> Option<Event> {
    let value: Value = serde_json::from_str(line).ok()?;
    // The native form does not quote; the name of an outbox has no dot.
    let (schema, table) = value.get("outbox")?.as_str()?.rsplit_once('.')?;
    let claim = value.get("claim").filter(|claim| claim.is_object())?;
    Some(Event {
        outbox: Arc::new(Outbox { schema: schema.into(), table: table.into(), payload_type: PayloadType::Text }),
        id: None,
        seq: None,
        event_type: ByteString::new(),
        key: None,
        headers: None,
        payload: None,
        claim: Some(claim.to_string().into()),
        chunk: None,
        commit_lsn: Lsn::ZERO,
        ordinal: 0,
        commit_time: PgMicros::UNKNOWN,
        xid: value.get("xid")?.as_u64()?,
        error: None,
        end_lsn: Lsn::ZERO,
    })
}
