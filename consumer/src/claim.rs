//! The data of an event that lies in the claims of its outbox, by reference: a few chunks at a time, each asked for by a query of its
//! own, so that a reader holds no more than these and goes on wherever it stopped.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::group;
use crate::transport::{ConnInfo, connect_sql, quote};

/// What an event says of its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimSummary {
    /// Under this number its chunks are stored: the event's own.
    pub seq: i64,
    /// What the data is.
    pub format: ClaimFormat,
    /// How many rows; none where the data is one value.
    pub rows: Option<u64>,
    /// Bytes of the data.
    pub bytes: u64,
    /// Chunks that the data is cut into.
    pub chunks: u32,
    /// SHA-256 of that of the chunks before the last one, and the last one: see the decision on claim checks.
    pub sha256: [u8; 32],
}

/// What the data of a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimFormat {
    /// JSON documents, each on a line that ends with a line break.
    Rows,
    /// A JSON document.
    Json,
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Bytes,
}

/// How far a claim has been read. As text it can be kept, and [`ClaimReader::resume`] goes on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimPosition {
    chunk: u32,
    bytes: u64,
    rows: u64,
    sha256: Option<[u8; 32]>,
}

/// Reads the data of a claim. Everything that it gives is complete: the last chunk comes only if rows, bytes and checksum are those
/// that the event names.
///
/// The data is kept for as long as the event is: read it before you acknowledge the event.
///
/// ```no_run
/// # async fn example(delivery: postbox::Delivery) -> Result<(), postbox::Error> {
/// if delivery.claim.is_some() {
///     let mut claim = postbox::ClaimReader::open("postgres://billing@localhost/shop", &delivery).await?;
///     while let Some(row) = claim.row().await? {
///         println!("{}", String::from_utf8_lossy(&row));
///     }
/// }
/// delivery.ack();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ClaimReader {
    client: Arc<Client>,
    /// Quoted as in SQL.
    outbox: String,
    xid: u64,
    summary: ClaimSummary,
    /// How far it has been read.
    at: ClaimPosition,
    /// Where a reader can go on that has had what was handed out.
    position: ClaimPosition,
    fetched: VecDeque<Chunk>,
    /// The rest of a chunk whose rows are handed out one by one, and how much of it is known to have no line break.
    rest: BytesMut,
    searched: usize,
    patience: Duration,
    last_rows: u32,
}

#[derive(Debug)]
struct Chunk {
    rows: u32,
    data: Bytes,
}

/// Chunks are asked for together, so many at most: about half a megabyte.
const TOGETHER: i32 = 16;

/// How long a claim may not be visible that has been committed.
const PATIENCE: Duration = Duration::from_secs(60);

impl ClaimSummary {
    /// What the event says of its claim; none if it has none.
    ///
    /// # Errors
    /// It says nothing that a claim check has written.
    pub fn of(event: &Event) -> Result<Option<Self>> {
        event.claim.as_deref().map(str::parse).transpose()
    }
}

impl FromStr for ClaimSummary {
    type Err = Error;

    fn from_str(json: &str) -> Result<Self> {
        let read = || {
            let value: Value = serde_json::from_str(json).ok()?;
            let number = |name: &str| value.get(name)?.as_u64();
            Some(Self {
                seq: value.get("seq")?.as_i64()?,
                format: match value.get("format")?.as_str()? {
                    "rows" => ClaimFormat::Rows,
                    "json" => ClaimFormat::Json,
                    "text" => ClaimFormat::Text,
                    "bytes" => ClaimFormat::Bytes,
                    _ => return None,
                },
                rows: number("rows"),
                bytes: number("bytes")?,
                chunks: number("chunks")?.try_into().ok()?,
                sha256: from_hex(value.get("sha256")?.as_str()?)?,
            })
        };
        read().ok_or_else(|| {
            Error::new(ErrorKind::Decode, format!("the event's claim is none: {}", json.escape_debug()))
                .with_hint("publish_batch and publish_large write the column claim, and nobody else should.")
        })
    }
}

impl ClaimReader {
    /// Opens the claim of an event, by a connection of its own. The role needs SELECT on the claims of the outbox.
    ///
    /// # Errors
    /// The event has no claim, or the server cannot be reached.
    pub async fn open(conninfo: &str, event: &Event) -> Result<Self> {
        Self::connect(&ConnInfo::resolve(Some(conninfo))?, event).await
    }

    pub(crate) async fn connect(info: &ConnInfo, event: &Event) -> Result<Self> {
        Self::new(Arc::new(connect_sql(info).await?), event)
    }

    /// As [`open`](Self::open), by this connection.
    pub(crate) fn new(client: Arc<Client>, event: &Event) -> Result<Self> {
        let Some(summary) = ClaimSummary::of(event)? else {
            return Err(Error::new(ErrorKind::Usage, "the event has no claim")
                .with_hint("Its data is its payload; Event::claim tells."));
        };
        Ok(Self {
            client,
            outbox: format!("{}.{}", quote(&event.outbox.schema), quote(&event.outbox.table)),
            xid: event.xid,
            summary,
            at: ClaimPosition::default(),
            position: ClaimPosition::default(),
            fetched: VecDeque::new(),
            rest: BytesMut::new(),
            searched: 0,
            patience: PATIENCE,
            last_rows: 0,
        })
    }

    /// Goes on where another reader of the same claim was.
    #[must_use]
    pub fn resume(mut self, position: ClaimPosition) -> Self {
        (self.at, self.position) = (position, position);
        self
    }

    /// How long to wait for a claim that is committed and cannot be seen yet (a minute), as when the server waits for a standby.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What the event says.
    pub fn summary(&self) -> &ClaimSummary {
        &self.summary
    }

    /// Where another reader can go on: behind the chunk handed out last, or before the rows of one of which some were handed out.
    pub fn position(&self) -> ClaimPosition {
        self.position
    }

    /// The next chunk, of 64 KiB at most; none at the end.
    ///
    /// # Errors
    /// The link broke; the claim is gone, is damaged, or cannot be seen for longer than [`patience`](Self::patience).
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.next_chunk().await?;
        self.position = self.at;
        Ok(chunk)
    }

    /// The next row, a JSON document; none at the end. Not to be mixed with [`chunk`](Self::chunk).
    ///
    /// # Errors
    /// As for `chunk`; and the data is no rows.
    pub async fn row(&mut self) -> Result<Option<Bytes>> {
        if self.summary.format != ClaimFormat::Rows {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the data of the claim is {:?}, not rows", self.summary.format),
            )
            .with_hint("Read it chunk by chunk."));
        }
        loop {
            if let Some(at) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let row = self.rest.split_to(self.searched + at).freeze();
                self.rest.advance(1);
                self.searched = 0;
                return Ok(Some(row));
            }
            self.searched = self.rest.len();
            if self.rest.is_empty() {
                self.position = self.at;
            }
            match self.next_chunk().await? {
                Some(data) => self.rest.extend_from_slice(&data),
                None if self.rest.is_empty() => return Ok(None),
                None => return Err(self.damaged("its last row has no end")),
            }
        }
    }

    /// Rows that end in the chunk handed out last.
    pub(crate) fn rows_of_chunk(&self) -> u32 {
        self.last_rows
    }

    async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if self.at.chunk >= self.summary.chunks {
            // Somebody may have resumed here.
            if self.at.chunk > self.summary.chunks {
                return Err(self.damaged("the position is behind its end"));
            }
            self.verify()?;
            return Ok(None);
        }
        if self.fetched.is_empty() {
            self.fetch().await?;
        }
        let Some(Chunk { rows, data }) = self.fetched.pop_front() else { return Ok(None) };
        let ClaimPosition { chunk, bytes, rows: rows_before, sha256 } = self.at;
        let mut hash = Sha256::new();
        hash.update(sha256.as_ref().map_or(&[][..], |before| &before[..]));
        hash.update(&data);
        self.at = ClaimPosition {
            chunk: chunk + 1,
            bytes: bytes + data.len() as u64,
            rows: rows_before + u64::from(rows),
            sha256: Some(hash.finalize().into()),
        };
        self.last_rows = rows;
        if self.at.chunk == self.summary.chunks {
            self.verify()?;
        }
        Ok(Some(data))
    }

    fn verify(&self) -> Result<()> {
        let ClaimPosition { bytes, rows, sha256, .. } = self.at;
        if bytes != self.summary.bytes {
            return Err(self.damaged(&format!("it has {bytes} bytes instead of {}", self.summary.bytes)));
        }
        if self.summary.rows.is_some_and(|expected| rows != expected) {
            return Err(self.damaged(&format!("it has {rows} rows instead of {:?}", self.summary.rows)));
        }
        if sha256 != Some(self.summary.sha256) {
            return Err(self.damaged("its checksum is another"));
        }
        Ok(())
    }

    /// Asks for the next chunks. Those of a transaction that cannot be seen yet are waited for.
    async fn fetch(&mut self) -> Result<()> {
        let sql = "SELECT chunk, rows, data FROM postbox.claim_chunks($1, $2, $3, $4, $5::text::xid8)";
        let xid = (self.xid > 0).then(|| self.xid.to_string());
        let first = i32::try_from(self.at.chunk).unwrap_or(i32::MAX);
        let begin = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            let rows =
                group::query(&self.client, sql, &[&self.outbox, &self.summary.seq, &first, &TOGETHER, &xid]).await?;
            for (expected, row) in (self.at.chunk..).zip(&rows) {
                let found = u32::try_from(row.try_get::<_, i32>(0)?).ok();
                if found != Some(expected) {
                    return Err(self.damaged(&format!("chunk {expected} is missing")));
                }
                self.fetched.push_back(Chunk {
                    rows: u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or(0),
                    data: Bytes::from(row.try_get::<_, Vec<u8>>(2)?),
                });
            }
            if !self.fetched.is_empty() {
                return Ok(());
            }
            if xid.is_none() || begin.elapsed() >= self.patience {
                let message = format!("claim {} of {} cannot be seen", self.summary.seq, self.outbox);
                return Err(Error::new(ErrorKind::Server, message)
                    .with_hint("Its transaction is committed and not visible yet, perhaps as the server waits for a standby; or this is another server."));
            }
            sleep(backoff.next()).await;
        }
    }

    fn damaged(&self, what: &str) -> Error {
        let message = format!("claim {} of {} is damaged: {what}", self.summary.seq, self.outbox);
        Error::new(ErrorKind::Decode, message)
            .with_hint("Claims are written by publish_batch and publish_large, and nobody else may write there.")
    }
}

impl fmt::Display for ClaimPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunk, bytes, rows, sha256 } = self;
        write!(f, "{chunk}:{bytes}:{rows}:")?;
        sha256.iter().flatten().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ClaimPosition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let [chunk, bytes, rows, sha256] = text.split(':').collect::<Vec<_>>().try_into().ok()?;
            let sha256 = if sha256.is_empty() { None } else { Some(from_hex(sha256)?) };
            let position =
                Self { chunk: chunk.parse().ok()?, bytes: bytes.parse().ok()?, rows: rows.parse().ok()?, sha256 };
            (position.sha256.is_some() == (position.chunk > 0)).then_some(position)
        };
        read().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("no position in a claim: {}", text.escape_debug()))
                .with_hint("Keep what ClaimReader::position gives, as text.")
        })
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        for position in
            [ClaimPosition::default(), ClaimPosition { chunk: 3, bytes: 98_304, rows: 7, sha256: Some([0xa5; 32]) }]
        {
            assert_eq!(position.to_string().parse::<ClaimPosition>().ok(), Some(position));
        }
        for wrong in ["", "1:2:3:", "0:0:0:00", "x:0:0:", "1:2:3", "1:2:3:4:5"] {
            let error = wrong.parse::<ClaimPosition>().expect_err(wrong);
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn what_is_no_summary_is_refused() {
        let whole = format!(
            r#"{{"seq": 7, "rows": null, "bytes": 2, "chunks": 1, "format": "bytes", "sha256": "{}"}}"#,
            "0a".repeat(32)
        );
        let summary: ClaimSummary = whole.parse().expect("a summary");
        assert_eq!((summary.seq, summary.rows, summary.chunks), (7, None, 1));
        assert_eq!((summary.format, summary.sha256), (ClaimFormat::Bytes, [10; 32]));
        for (from, to) in
            [("\"seq\"", "\"sq\""), ("bytes\",", "words\","), ("0a0a", "0a"), ("\"chunks\": 1", "\"chunks\": -1")]
        {
            let broken = whole.replacen(from, to, 1);
            assert_ne!(broken, whole);
            broken.parse::<ClaimSummary>().expect_err(&broken);
        }
    }
}
