//! One connection to a slot: replication begun, bytes read as events, and how long silence is borne.

use std::time::Duration;

use bytes::Bytes;
use postbox_wire::Options;
use tokio::time::timeout;

use crate::decode::{self, FrameReader};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput;
use crate::progress::Server;
use crate::slot::SlotState;
use crate::transport::{ConnInfo, CopyBoth, Replication, SystemId};

/// One connection. Dropping it closes it.
pub(crate) struct Link {
    pub(super) stream: CopyBoth,
    pub(super) reader: StreamReader,
    pub(super) server: Server,
    /// How often the server hears from us, whatever happens.
    pub(super) heartbeat: Duration,
    /// Without a sign of life for so long, the server counts as gone.
    pub(super) patience: Duration,
}

/// What the bytes of a stream mean, by the plugin of its slot.
pub(super) enum StreamReader {
    Frames(FrameReader),
    Pgoutput(Box<pgoutput::Reader>),
}

impl StreamReader {
    /// The events of what has come; none if they are not whole yet, or there are none.
    pub(super) async fn read(&mut self, bytes: &Bytes) -> Result<Option<decode::Received>> {
        match self {
            Self::Frames(reader) => reader.read(bytes).map(Some),
            Self::Pgoutput(reader) => reader.read(bytes).await,
        }
    }
}

impl Link {
    /// Connects and starts replication. A link that dies silently meanwhile is an error too.
    pub(super) async fn open(
        info: &ConnInfo,
        slot: &SlotState,
        options: &Options,
        session_timeout: Option<Duration>,
    ) -> Result<Self> {
        let late = |_| Error::new(ErrorKind::Connect, format!("the server did not start to stream within {START:?}"));
        timeout(START, Self::start(info, slot, options, session_timeout)).await.map_err(late)?
    }

    async fn start(
        info: &ConnInfo,
        slot: &SlotState,
        options: &Options,
        session_timeout: Option<Duration>,
    ) -> Result<Self> {
        let (reader, options, settings) = if slot.is_of_pgoutput() {
            let (reader, options) = pgoutput::Reader::open(info, options).await?;
            (StreamReader::Pgoutput(Box::new(reader)), options, &pgoutput::PARAMETERS[..])
        } else {
            (StreamReader::Frames(FrameReader::default()), options.render(), &[][..])
        };
        let name = format!("postbox {}", slot.name);
        let mut replication = Replication::connect_with(info, &name, session_timeout, settings).await?;
        let SystemId { system_id, timeline, .. } = replication.identify().await?;
        let server_timeout = parse_interval(&replication.show("wal_sender_timeout").await?);
        let heartbeat = server_timeout.map_or(HEARTBEAT, |timeout| (timeout / 3).min(HEARTBEAT));
        let patience = server_timeout.unwrap_or_default().max(6 * heartbeat);
        let stream = replication.start(&slot.name, &options).await?;
        Ok(Self { stream, reader, server: (system_id, timeline), heartbeat, patience })
    }
}

/// How long connecting and starting may take, several hosts and a busy server included.
const START: Duration = Duration::from_secs(120);

/// How often the server hears from us at least, if its timeout allows for it.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A time setting as SHOW prints it; none for `0`, which switches the timeout off.
fn parse_interval(setting: &str) -> Option<Duration> {
    let digits = setting.find(|c: char| !c.is_ascii_digit()).unwrap_or(setting.len());
    let (number, unit) = setting.split_at(digits);
    let number = number.parse::<u64>().ok().filter(|number| *number > 0)?;
    let millis = match unit {
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 1,
    };
    Some(Duration::from_millis(number.saturating_mul(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_time_as_the_server_shows_them() {
        for (setting, seconds) in [("1min", 60.0), ("30s", 30.0), ("1500ms", 1.5), ("1d", 86_400.0), ("2h", 7_200.0)] {
            assert_eq!(parse_interval(setting), Some(Duration::from_secs_f64(seconds)), "{setting}");
        }
        assert_eq!(parse_interval("0"), None);
    }
}
