//! From messages to the events of transactions, a frame's worth at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postbox_wire::emitted::{self, Emitted};
use postbox_wire::{self as wire, FRAME_BYTES, Lsn, Options, Origin, PgMicros, Transaction};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use super::claims::{Chunks, Claims};
use super::message::{Message, Relation, Row};
use super::row;
use super::table::Table;
use super::{CLAIMS_PUBLICATION, PUBLICATION, UNPUBLISHED_CLAIMS};
use crate::decode::Received;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::transport::{ConnInfo, connect_own};

/// Reads the messages of one connection, in order.
pub(crate) struct Reader {
    /// Asks what tables mean.
    client: Client,
    options: Options,
    /// Newer than any transaction before it, within half of the numbers: tells the epoch of a transaction's id.
    latest_xid: u64,
    relations: HashMap<u32, Rows>,
    /// Of messages: what the outboxes that they name take.
    emitters: HashMap<u32, Emitter>,
    last_commit: Lsn,
    current: Option<Current>,
}

/// What the rows of a relation are.
#[derive(Clone)]
enum Rows {
    Events(Arc<Table>),
    Chunks(Arc<Claims>),
}

/// What was said about an outbox that a message names.
struct Emitter {
    /// None if it takes no messages.
    table: Option<Arc<Table>>,
    asked: Instant,
    /// The transaction that it was asked for, and which ones were all over by then.
    of: u64,
    over_before: u64,
}

impl Emitter {
    /// The outbox, if a message that stands there in the log is an event of it.
    fn taking(&self, lsn: Lsn) -> Option<&Arc<Table>> {
        self.table.as_ref().filter(|table| table.takes_message(lsn))
    }

    /// Whether a message of this transaction is no event for sure if none was known then: an outbox that takes it did so before it was
    /// written, and was seen to by who was asked after it was visible.
    fn knows(&self, xid: u64) -> bool {
        xid == self.of || xid < self.over_before
    }
}

/// The transaction that is being received.
struct Current {
    transaction: Transaction,
    /// Rows and messages so far, selected or not: an event keeps its ordinal whatever is selected.
    ordinal: u64,
    /// It came by replication, and such events are not wanted.
    left_out: bool,
    /// Some of its events are handed on already.
    begun: bool,
    events: Vec<Event>,
    bytes: usize,
    /// Those of claims, where these are wanted in the stream.
    chunks: Option<Chunks>,
}

/// How long the server may take to say what a table means.
const LOOK_UP: Duration = Duration::from_secs(30);

/// That an outbox takes messages, and what it is called, holds for so long: PostgreSQL tells of changes of a table with the next row only.
const EMITTERS_HOLD: Duration = Duration::from_secs(1);

/// Between two questions whether a transaction is visible.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl Reader {
    /// Connects to where tables are asked about.
    ///
    /// # Errors
    /// The connection fails; the database's encoding is one whose text would have to be converted.
    pub(crate) async fn open(info: &ConnInfo, options: &Options) -> Result<(Self, Vec<(&'static str, String)>)> {
        let client = connect_own(info).await?;
        let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text, \
                   pg_catalog.current_setting('server_encoding'), pg_catalog.current_setting('server_version_num')::int, \
                   EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = 'postbox_claims')";
        let row = client.query_one(sql, &[]).await?;
        let (xid, encoding, version): (String, String, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if !matches!(encoding.as_str(), "UTF8" | "SQL_ASCII") {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("database \"{}\" has the encoding {encoding}, which is not read from pgoutput", info.dbname()),
            )
            .with_hint("Use a database in UTF8, or the plugin postbox."));
        }
        let mut publications = PUBLICATION.to_owned();
        if options.claims == wire::Claims::Stream {
            if !row.try_get::<_, bool>(3)? {
                let message =
                    format!("there is no publication {CLAIMS_PUBLICATION}, so claims do not come in the stream");
                return Err(Error::new(ErrorKind::Setup, message).with_hint(
                    "As the owner of the outboxes, who may create publications: SELECT postbox.enable_pgoutput(). Or: --claims reference.",
                ));
            }
            publications = format!("{PUBLICATION},{CLAIMS_PUBLICATION}");
        }
        let mut start = vec![
            ("proto_version", "1".to_owned()),
            ("publication_names", publications),
            ("messages", "true".to_owned()),
        ];
        // Before, a transaction tells its origin itself.
        if version >= 160_000 && options.origin == Origin::None {
            start.push(("origin", "none".to_owned()));
        }
        let reader = Self {
            client,
            options: options.clone(),
            latest_xid: xid.parse().unwrap_or_default(),
            relations: HashMap::new(),
            emitters: HashMap::new(),
            last_commit: Lsn::ZERO,
            current: None,
        };
        Ok((reader, start))
    }

    /// Takes a message in. Events come when a frame's worth of them is there, or their transaction ends.
    ///
    /// # Errors
    /// Bytes that are no message, messages out of order; the server does not say what a table means.
    pub(crate) async fn read(&mut self, bytes: &Bytes) -> Result<Option<Received>> {
        match Message::read(bytes.clone())? {
            Message::Begin { commit_lsn, commit_time, xid } => self.begin(commit_lsn, commit_time, xid)?,
            Message::Origin => {
                if let Some(current) = &mut self.current {
                    current.left_out |= self.options.origin == Origin::None;
                }
            }
            Message::Relation(relation) => {
                let rows = within(self.rows_of(&relation)).await?;
                self.relations.insert(relation.oid, rows);
                self.emitters.remove(&relation.oid);
            }
            Message::Insert { relation, row } => {
                let rows = self.relations.get(&relation).cloned();
                match rows.ok_or_else(|| out_of_order("a row of a table that was not described"))? {
                    Rows::Events(table) => {
                        let limit = self.options.max_event_bytes;
                        let event =
                            |transaction: &Transaction, ordinal| row::event(&row, &table, transaction, ordinal, limit);
                        return self.add(&table, bytes.len(), event).await;
                    }
                    Rows::Chunks(claims) => return self.add_chunk(&claims, &row, bytes.len()),
                }
            }
            Message::Logical { transactional: true, lsn, prefix, content } if prefix == emitted::PREFIX.as_bytes() => {
                let Some(message) = Emitted::read(&content) else { return Ok(None) };
                let Some(table) = self.emitter(message.outbox, lsn).await? else { return Ok(None) };
                let limit = self.options.max_event_bytes;
                let event = |transaction: &Transaction, ordinal| {
                    row::message_event(&message, &content, &table, transaction, ordinal, limit)
                };
                return self.add(&table, bytes.len(), event).await;
            }
            Message::Commit { commit_lsn, end_lsn } => return self.commit(commit_lsn, end_lsn),
            Message::Logical { .. } | Message::Other => {}
        }
        Ok(None)
    }

    fn begin(&mut self, commit_lsn: Lsn, commit_time: PgMicros, xid: u32) -> Result<()> {
        if self.current.is_some() || commit_lsn <= self.last_commit {
            return Err(out_of_order(&format!(
                "the transaction that committed at {commit_lsn} does not follow the one at {}",
                self.last_commit
            )));
        }
        // The nearest number that ends with these bits.
        let distance = xid.wrapping_sub(self.latest_xid as u32).cast_signed();
        let xid = self.latest_xid.wrapping_add_signed(distance.into());
        self.latest_xid = self.latest_xid.max(xid);
        // The end of the commit record comes with the commit. Until then: just behind its start, where no other transaction ends.
        let transaction = Transaction { commit_lsn, end_lsn: Lsn(commit_lsn.0 + 1), commit_time, xid };
        let chunks = (self.options.claims == wire::Claims::Stream).then(Chunks::default);
        let current =
            Current { transaction, ordinal: 0, left_out: false, begun: false, events: Vec::new(), bytes: 0, chunks };
        self.current = Some(current);
        Ok(())
    }

    /// Adds an event of the current transaction; hands on what there was before when that is as much as a frame.
    async fn add(
        &mut self,
        table: &Table,
        bytes: usize,
        event: impl FnOnce(&Transaction, u64) -> Event,
    ) -> Result<Option<Received>> {
        let Some(current) = &mut self.current else { return Err(out_of_order("a row outside of a transaction")) };
        let ordinal = current.ordinal;
        current.ordinal += 1;
        if current.left_out || !table.selected {
            return Ok(None);
        }
        let mut event = event(&current.transaction, ordinal);
        if let Some(chunks) = &mut current.chunks
            && let Some(seq) = chunks.complete(&mut event)
            && within(chunks.unpublished(&self.client, table.oid, current.transaction.xid)).await?
        {
            let message = format!(
                "no chunk of claim {seq} of {} has come: its table was not in the publication {CLAIMS_PUBLICATION} when they were written",
                event.outbox
            );
            return Err(Error::new(ErrorKind::Setup, message).with_hint(UNPUBLISHED_CLAIMS));
        }
        Ok(current.push(event, bytes))
    }

    /// Adds a chunk of the claim of an event that follows. It takes no ordinal, as it is no event.
    fn add_chunk(&mut self, claims: &Claims, row: &Row, bytes: usize) -> Result<Option<Received>> {
        let Some(current) = &mut self.current else { return Err(out_of_order("a chunk outside of a transaction")) };
        let Some(chunks) = current.chunks.as_mut().filter(|_| !current.left_out) else { return Ok(None) };
        let chunk = claims.chunk(row, &current.transaction, current.ordinal, chunks);
        Ok(chunk.and_then(|chunk| current.push(chunk, bytes)))
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<Option<Received>> {
        let Some(mut current) = self.current.take().filter(|current| current.transaction.commit_lsn == commit_lsn)
        else {
            return Err(out_of_order(&format!("the commit at {commit_lsn} is of no transaction that has begun")));
        };
        self.last_commit = commit_lsn;
        if current.events.is_empty() {
            return Ok(None);
        }
        current.transaction.end_lsn = end_lsn;
        for event in &mut current.events {
            event.end_lsn = end_lsn;
        }
        Ok(Some(current.take(true)))
    }

    async fn rows_of(&self, relation: &Relation) -> Result<Rows> {
        let selectors = self.options.outboxes.as_deref();
        if self.options.claims == wire::Claims::Stream
            && let Some(claims) = Claims::of_relation(&self.client, relation, selectors).await?
        {
            return Ok(Rows::Chunks(Arc::new(claims)));
        }
        Ok(Rows::Events(Arc::new(Table::of_relation(&self.client, relation, selectors).await?)))
    }

    /// The outbox of this OID, if a message that stands there in the log is an event of it.
    async fn emitter(&mut self, outbox: u32, lsn: Lsn) -> Result<Option<Arc<Table>>> {
        let Some(xid) = self.current.as_ref().map(|current| current.transaction.xid) else {
            return Err(out_of_order("a message outside of a transaction"));
        };
        if let Some(known) = self.emitters.get(&outbox) {
            match known.taking(lsn) {
                Some(table) if known.asked.elapsed() < EMITTERS_HOLD => return Ok(Some(Arc::clone(table))),
                None if known.knows(xid) => return Ok(None),
                _ => {}
            }
        }
        let asked = within(self.ask_emitter(outbox, xid, lsn)).await?;
        let table = asked.taking(lsn).cloned();
        // Anybody may write messages, of any number of outboxes.
        if self.emitters.len() >= MOST_EMITTERS {
            self.emitters.clear();
        }
        self.emitters.insert(outbox, asked);
        Ok(table)
    }

    async fn ask_emitter(&self, outbox: u32, xid: u64, lsn: Lsn) -> Result<Emitter> {
        let mut pause = Duration::from_millis(1);
        loop {
            let asked = Instant::now();
            let (is_visible, over_before) = self.visibility(xid).await?;
            let table = Table::of_emitter(&self.client, outbox, self.options.outboxes.as_deref()).await?;
            let emitter = Emitter { table: table.map(Arc::new), asked, of: xid, over_before };
            if is_visible || emitter.taking(lsn).is_some() {
                return Ok(emitter);
            }
            // What has let the outbox take messages may be this very transaction, which is received before others see it; long before, where its commit
            // waits for a standby.
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether others see what a transaction has done, and before which one all are over.
    async fn visibility(&self, xid: u64) -> Result<(bool, u64)> {
        let sql = "SELECT pg_catalog.pg_visible_in_snapshot($1::text::pg_catalog.xid8, s), pg_catalog.pg_snapshot_xmin(s)::text \
                   FROM pg_catalog.pg_current_snapshot() AS s";
        let row = self.client.query_one(sql, &[&xid.to_string()]).await?;
        let over_before: String = row.try_get(1)?;
        Ok((row.try_get(0)?, over_before.parse().unwrap_or_default()))
    }
}

const MOST_EMITTERS: usize = 4096;

impl Current {
    /// Adds an event or chunk; gives what there was before when that is as much as a frame.
    fn push(&mut self, event: Event, bytes: usize) -> Option<Received> {
        let full = (self.bytes >= FRAME_BYTES).then(|| self.take(false));
        self.events.push(event);
        self.bytes += bytes;
        full
    }

    fn take(&mut self, last: bool) -> Received {
        Received {
            transaction: self.transaction,
            first: !std::mem::replace(&mut self.begun, true),
            last,
            events: std::mem::take(&mut self.events),
            bytes: std::mem::take(&mut self.bytes),
        }
    }
}

/// A server that does not answer is like a broken link.
async fn within<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::new(ErrorKind::Connect, "the server does not say what an outbox means");
    timeout(LOOK_UP, answer).await.map_err(late)?
}

fn out_of_order(what: &str) -> Error {
    Error::new(ErrorKind::Decode, format!("the stream of pgoutput is out of order: {what}"))
}
