//! Dead letters: events that could not be delivered, and those that wait behind them, stored with their group.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use bytestring::ByteString;
use sha2::{Digest, Sha256};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use crate::decode;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::failpoint;
use crate::member::STALE;

/// Where a member keeps the dead letters of its group. When a write returns, it survives a crash of the server.
pub(crate) trait DeadLetters: Clone + Send + Sync + 'static {
    /// Stores events in this order; one that is stored already stays where it is. All have the same key unless there is one only.
    /// False: they were to be stored only `behind` others of their key, and none are left.
    fn store(&self, letters: Vec<NewLetter>, behind: bool) -> impl Future<Output = Result<bool>> + Send;

    /// The keys of stored events.
    fn keys(&self) -> impl Future<Output = Result<Vec<Option<ByteString>>>> + Send;

    /// Some of those whose turn it is, but not the `busy` ones. `in_order`: of a key only the first; `keyless`: events
    /// without a key count as events of one key.
    fn due(&self, in_order: bool, keyless: bool, busy: Vec<i64>)
    -> impl Future<Output = Result<Vec<DueLetter>>> + Send;

    /// The event is delivered; its letter goes, and the turn of one that waited behind it comes. True if any are left of its key.
    fn delivered(&self, id: i64) -> impl Future<Output = Result<bool>> + Send;

    /// Another attempt has failed. It is tried again after a time, or when somebody says so.
    fn failed(&self, id: i64, error: String, again: Option<Duration>) -> impl Future<Output = Result<()>> + Send;
}

/// An event to store.
#[derive(Clone, Debug)]
pub(crate) struct NewLetter {
    pub(crate) event: Event,
    pub(crate) why: Why,
    pub(crate) attempts: u32,
    pub(crate) error: Option<String>,
    pub(crate) first_failed: Option<SystemTime>,
    /// When it is tried again by itself; none: when somebody says so.
    pub(crate) due_in: Option<Duration>,
}

/// Why an event is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Failed,
    /// It waits behind others of its key.
    Follower,
    Unreadable,
}

/// A stored event whose turn it is.
#[derive(Clone, Debug)]
pub(crate) struct DueLetter {
    pub(crate) id: i64,
    pub(crate) attempts: u32,
    pub(crate) event: Event,
}

impl NewLetter {
    pub(crate) fn new(event: &Event, why: Why) -> Self {
        Self { event: event.clone(), why, attempts: 0, error: None, first_failed: None, due_in: None }
    }
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Follower => "follower",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The dead letters of a group in its database. What a member of an earlier epoch writes is refused.
#[derive(Clone, Debug)]
pub(crate) struct StoredLetters {
    client: Arc<Client>,
    group: Arc<str>,
    epoch: i64,
}

/// Most letters, and about the most bytes of them, that are fetched at once.
const FETCH_LETTERS: i32 = 64;
const FETCH_BYTES: i64 = 16 << 20;

impl StoredLetters {
    /// With the connection and the epoch of the member.
    pub(crate) fn new(client: Arc<Client>, group: &str, epoch: i64) -> Self {
        Self { client, group: group.into(), epoch }
    }

    async fn fail(&self, id: i64, error: &str, again: Option<Duration>) -> Result<()> {
        let sql = "SELECT postbox._fail_dead_letter($1, $2, $3, $4, $5)";
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&&*self.group, &self.epoch, &id, &error.as_bytes(), &again.map(millis)];
        self.client.query_one(sql, &parameters).await.map(drop).map_err(refused)
    }
}

impl DeadLetters for StoredLetters {
    async fn store(&self, letters: Vec<NewLetter>, behind: bool) -> Result<bool> {
        fn each<T>(letters: &[NewLetter], of: impl FnMut(&NewLetter) -> T) -> Vec<T> {
            letters.iter().map(of).collect()
        }
        let letters = letters.as_slice();
        let ids = each(letters, |letter| letter.event.id.as_ref().map(ToString::to_string));
        let hashes = ids.iter().map(|id| id.as_ref().map(|id| Sha256::digest(id).to_vec())).collect::<Vec<_>>();
        failpoint::reach("dead-letter.before-store");
        let row = self
            .client
            .query_one(
                "SELECT postbox._store_dead_letters($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
                 $17, $18, $19)",
                &[
                    &&*self.group,
                    &self.epoch,
                    &behind,
                    &each(letters, |letter| letter.event.outbox.to_string()),
                    &ids,
                    &hashes,
                    &each(letters, |letter| letter.event.seq),
                    &each(letters, |letter| letter.event.key.as_deref().map(str::to_owned)),
                    &each(letters, |letter| Some(letter.event.event_type.to_string()).filter(|name| !name.is_empty())),
                    &each(letters, |letter| letter.event.xid.to_string()),
                    &each(letters, |letter| PgLsn::from(letter.event.commit_lsn.0)),
                    &each(letters, |letter| i64::try_from(letter.event.ordinal).unwrap_or(i64::MAX)),
                    &each(letters, |letter| time(letter.event.commit_time.unix_micros())),
                    &each(letters, |letter| letter.event.to_frame()),
                    &each(letters, |letter| letter.why.name()),
                    &each(letters, |letter| i32::try_from(letter.attempts).unwrap_or(i32::MAX)),
                    &each(letters, |letter| letter.error.as_ref().map(|error| error.as_bytes().to_vec())),
                    &each(letters, |letter| letter.first_failed),
                    &each(letters, |letter| letter.due_in.map(millis)),
                ],
            )
            .await
            .map_err(refused)?;
        failpoint::reach("dead-letter.after-store");
        Ok(row.try_get(0)?)
    }

    async fn keys(&self) -> Result<Vec<Option<ByteString>>> {
        let call_up = "SELECT postbox._call_up_dead_letters($1, $2)";
        self.client.query(call_up, &[&&*self.group, &self.epoch]).await.map_err(refused)?;
        let sql = "SELECT postbox._dead_letter_keys($1)";
        let rows = self.client.query(sql, &[&&*self.group]).await.map_err(refused)?;
        let key = |row: &Row| Ok(row.try_get::<_, Option<String>>(0)?.map(ByteString::from));
        rows.iter().map(key).collect()
    }

    async fn due(&self, in_order: bool, keyless: bool, busy: Vec<i64>) -> Result<Vec<DueLetter>> {
        let sql = "SELECT id, attempts, frame FROM postbox._due_dead_letters($1, $2, $3, $4, $5, $6)";
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&&*self.group, &in_order, &keyless, &busy, &FETCH_LETTERS, &FETCH_BYTES];
        let rows = self.client.query(sql, &parameters).await.map_err(refused)?;
        let mut letters = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, attempts) = (row.try_get(0)?, row.try_get::<_, i32>(1)?);
            match decode::stored(&Bytes::copy_from_slice(row.try_get(2)?)) {
                Ok(event) => letters.push(DueLetter { id, attempts: attempts.unsigned_abs(), event }),
                // Written by another release, or by hand.
                Err(error) => self.fail(id, &error.chain(), None).await?,
            }
        }
        Ok(letters)
    }

    async fn delivered(&self, id: i64) -> Result<bool> {
        let sql = "SELECT postbox._delivered_dead_letter($1, $2, $3)";
        let row = self.client.query_one(sql, &[&&*self.group, &self.epoch, &id]).await.map_err(refused)?;
        Ok(row.try_get(0)?)
    }

    async fn failed(&self, id: i64, error: String, again: Option<Duration>) -> Result<()> {
        self.fail(id, &error, again).await
    }
}

/// A stale epoch is no fault of anybody.
fn refused(error: tokio_postgres::Error) -> Error {
    let replaced = error.code().is_some_and(|code| code.code() == STALE);
    let error = Error::from(error);
    if replaced { error.with_kind(ErrorKind::PlaceLost) } else { error }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn time(unix_micros: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_micros(u64::try_from(unix_micros).ok()?))
}
