//! An inbox of another database, perhaps of another server: the events and how far the stream has come, in one transaction of its.
//!
//! What is not known after a broken link is asked: the position in the inbox's database says what has been taken over. What came from
//! the table of an outbox, and what was sent on another timeline, has no position there; it is known by its id.

use std::time::{Duration, SystemTime};

use futures_util::future::join;
use postbox_wire::{Lsn, PayloadType, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::DbError;
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Statement};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::consumer::Builder;
use crate::dead_letter::{DeadLetters, NewLetter, Why};
use crate::dispatch::name;
use crate::dispatch::settings::Settings;
use crate::dispatch::{Origin, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, EventId};
use crate::format::CloudEvents;
use crate::lease::Lease;
use crate::member::{self, STALE};
use crate::transport::{ConnInfo, connect_own};
use crate::{failpoint, group};

/// An inbox that takes the stream of a consumer group; see [`Builder::deliver_into`](crate::Builder::deliver_into).
#[derive(Clone, Debug)]
pub struct InboxTarget {
    pub(crate) conninfo: String,
    pub(crate) inbox: String,
    pub(crate) source: Option<String>,
    pub(crate) sequence_header: Option<String>,
    pub(crate) priority_header: Option<String>,
}

/// How an inbox is reached and what is written there.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) info: ConnInfo,
    pub(crate) inbox: String,
    pub(crate) source: CloudEvents,
    pub(crate) sequence_header: Option<String>,
    pub(crate) priority_header: Option<String>,
    pub(crate) member: String,
    /// After so long another member takes the group over, and has not to wait for a transaction of this one.
    pub(crate) session_timeout: Duration,
}

/// The identity of a stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamSource {
    system_identifier: i64,
    timeline: i32,
    database_oid: u32,
    database_name: String,
    group: String,
    group_created_at: SystemTime,
    log_end: PgLsn,
    epoch: i64,
}

/// The inbox, for one term of the group's active member.
pub(crate) struct Inbox {
    target: Target,
    stream: StreamSource,
    open: Option<Open>,
    backoff: Backoff,
    /// Longest time that one transaction may take.
    patience: Duration,
    /// Workers are told at most once in [`BELL`].
    told: Option<Instant>,
    /// Workers are to be told.
    untold: bool,
}

/// A connection to the inbox's database that may write to the stream.
struct Open {
    client: Client,
    write: Statement,
    stream: i64,
    token: i64,
    position: Option<Position>,
}

/// A place in the log: the commit, and the event in it.
type Position = (u64, i64);

/// Workers hear of new messages at most so often.
const BELL: Duration = Duration::from_millis(50);

/// Why a transaction was not committed.
enum Failure {
    /// Something is wrong with one of the messages.
    Refused(Error),
    /// The lease has run out.
    Unleased,
    /// It took too long: fewer may be done in time.
    Late(Error),
    /// The link broke, or the server cannot take anything now.
    Again(Error),
    /// Nothing can be written, whatever it is.
    Fatal(Error),
}

impl InboxTarget {
    /// The inbox `inbox` of the database that `conninfo` names: a URI or a `key=value` string as libpq takes them.
    pub fn new(conninfo: impl Into<String>, inbox: impl Into<String>) -> Self {
        Self {
            conninfo: conninfo.into(),
            inbox: inbox.into(),
            source: None,
            sequence_header: None,
            priority_header: None,
        }
    }

    /// What the column `source` begins with, before the outbox's schema and table (`/postbox/` and the database's name).
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Takes a message's sequence number from this header (none has one unless asked).
    #[must_use]
    pub fn sequence_header(mut self, name: impl Into<String>) -> Self {
        self.sequence_header = Some(name.into());
        self
    }

    /// Takes a message's priority from this header (none has one unless asked).
    #[must_use]
    pub fn priority_header(mut self, name: impl Into<String>) -> Self {
        self.priority_header = Some(name.into());
        self
    }
}

impl Target {
    /// For a member of a group in the database of `info`.
    pub(crate) fn new(target: &InboxTarget, builder: &Builder, info: &ConnInfo) -> Result<Self> {
        let InboxTarget { conninfo, inbox, source, sequence_header, priority_header } = target.clone();
        let member = builder.member.clone().unwrap_or_else(|| member::default_name(&inbox));
        Ok(Self {
            info: ConnInfo::resolve(Some(&conninfo))?,
            inbox,
            source: CloudEvents::new(source, info.database()),
            sequence_header,
            priority_header,
            member,
            session_timeout: builder.session_timeout,
        })
    }
}

impl StreamSource {
    /// Asks the database of the group in which this process is the active member.
    pub(crate) async fn ask(client: &Client, group: &str, epoch: i64) -> Result<Self> {
        let sql = "SELECT system_identifier, timeline, database_oid, database_name, group_created_at, log_end \
                   FROM postbox._stream_source($1)";
        let rows = group::query(client, sql, &[&group]).await?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::PlaceLost, format!("group {group} was dropped")));
        };
        Ok(Self {
            system_identifier: row.try_get(0)?,
            timeline: row.try_get(1)?,
            database_oid: row.try_get(2)?,
            database_name: row.try_get(3)?,
            group: group.to_owned(),
            group_created_at: row.try_get(4)?,
            log_end: row.try_get(5)?,
            epoch,
        })
    }
}

impl Inbox {
    pub(crate) fn new(target: Target, stream: StreamSource, settings: &Settings) -> Self {
        Self {
            target,
            stream,
            open: None,
            backoff: Backoff::new(settings.retry_initial, settings.retry_max),
            patience: settings.max_processing,
            told: None,
            untold: false,
        }
    }

    /// Brings tasks into the inbox, in this order; what cannot be a message becomes a dead letter. When it returns, all are done,
    /// durably. A server that is not there is waited for.
    pub(crate) async fn take_over(&mut self, tasks: &[Task], letters: &impl DeadLetters, lease: &Lease) -> Result<()> {
        self.until_open(lease).await?;
        for task in tasks.iter().filter(|task| !self.has(task)) {
            if let Some(error) = &task.event.error {
                keep(task, Why::Unreadable, format!("{}: {}", error.code.name(), error.detail), letters).await?;
            }
        }
        // What is left to do of them; of what was refused both halves, the first one last.
        let mut parts = Vec::from([tasks]);
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            let Some(refusal) = self.write(part, lease).await? else {
                for task in part.iter().filter(|task| task.event.error.is_none()) {
                    if let Origin::Letter { id, .. } = task.origin {
                        letters.delivered(id).await?;
                    }
                }
                continue;
            };
            if let [task] = part {
                keep(task, Why::Failed, refusal.chain(), letters).await?;
                continue;
            }
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        }
        self.tell().await;
        Ok(())
    }

    /// When workers are to be told of new messages, if they are.
    pub(crate) fn tell_at(&self) -> Option<Instant> {
        self.untold.then(|| self.told.map_or_else(Instant::now, |told| told + BELL))
    }

    /// Writes tasks and the position behind them in one transaction. What is refused comes back as the reason, and so do several that take too
    /// long; a single one is tried until it is there.
    async fn write(&mut self, part: &[Task], lease: &Lease) -> Result<Option<Error>> {
        loop {
            failpoint::reach("deliver.before-sink");
            lease.valid().await;
            self.until_open(lease).await?;
            let attempt = timeout(self.patience, self.attempt(part, lease)).await;
            match attempt.unwrap_or_else(|_| Err(Failure::Late(Error::silent()))) {
                Ok(()) => {
                    failpoint::reach("deliver.after-sink");
                    self.backoff.reset();
                    return Ok(None);
                }
                Err(Failure::Refused(error)) => return Ok(Some(error)),
                Err(Failure::Unleased) => debug!("the lease has run out before the commit"),
                Err(Failure::Again(error)) => self.wait(&error).await,
                Err(Failure::Late(error)) => {
                    let time = humantime::format_duration(self.patience);
                    let what =
                        format!("{} messages were not taken in the {time} that --max-processing gives", part.len());
                    let error = Error::new(ErrorKind::Connect, what).with_source(error);
                    self.wait(&error).await;
                    if part.len() > 1 {
                        return Ok(Some(error));
                    }
                }
                Err(Failure::Fatal(error)) => return Err(self.about(&error)),
            }
        }
    }

    async fn attempt(&mut self, part: &[Task], lease: &Lease) -> Result<(), Failure> {
        let fresh = part.iter().filter(|task| !self.has(task)).collect::<Vec<_>>();
        let Some(open) = &mut self.open else { return Ok(()) };
        if fresh.is_empty() {
            return Ok(());
        }
        let position = fresh.iter().rev().find_map(|task| position(task));
        let events = fresh.iter().map(|task| &task.event).filter(|event| event.error.is_none()).collect::<Vec<_>>();
        let sources = events.iter().map(|event| self.target.source.source_of(event)).collect::<Vec<_>>();
        let ids = events.iter().zip(&sources).map(|(event, source)| message_id(event, source)).collect::<Vec<_>>();
        let types = events.iter().map(|event| &*event.event_type).collect::<Vec<_>>();
        let keys = events.iter().map(|event| event.key.as_deref()).collect::<Vec<_>>();
        let references = events.iter().map(|event| Reference::of(event)).collect::<Vec<_>>();
        let with_references = || events.iter().zip(&references);
        let headers = with_references()
            .map(|(event, reference)| reference.as_ref().map(|to| &*to.headers).or(event.headers.as_deref()))
            .collect::<Vec<_>>();
        let payloads = with_references()
            .map(|(event, reference)| reference.as_ref().map(|to| to.payload.as_bytes()).or(event.payload.as_deref()))
            .collect::<Vec<_>>();
        let payload_types = events.iter().map(|event| payload_type(event)).collect::<Vec<_>>();
        let (lsn, ordinal) = position.map(|(lsn, ordinal)| (PgLsn::from(lsn), ordinal)).unzip();
        let parameters: [&(dyn ToSql + Sync); 11] = [
            &open.stream,
            &open.token,
            &lsn,
            &ordinal,
            &ids,
            &types,
            &sources,
            &keys,
            &headers,
            &payloads,
            &payload_types,
        ];
        // Both go out at once, the one behind the other.
        let begin = open.client.batch_execute("BEGIN");
        let (begun, written) = join(begin, open.client.query_one(&open.write, &parameters)).await;
        let written = begun.and(written);
        failpoint::reach("inbox.before-commit");
        let messages: i64 = match written.and_then(|row| row.try_get(0)) {
            Ok(messages) if lease.may_finish() => messages,
            outcome => {
                // A link that is broken has ended the transaction too.
                let _ = open.client.batch_execute("ROLLBACK").await;
                return Err(outcome.map_or_else(Failure::from, |_| Failure::Unleased));
            }
        };
        failpoint::reach("inbox.at-commit");
        open.client.batch_execute("COMMIT").await?;
        open.position = open.position.max(position);
        self.untold |= messages > 0;
        debug!(messages, known = events.len() as i64 - messages, "taken over");
        Ok(())
    }

    /// True if the inbox is beyond this place in the log.
    fn has(&self, task: &Task) -> bool {
        let taken = self.open.as_ref().and_then(|open| open.position);
        position(task).is_some_and(|position| taken.is_some_and(|taken| position <= taken))
    }

    /// Tells workers that there is something, unless they were told a moment ago. They look by themselves now and then, so
    /// nothing depends on it. In a transaction of its own: such transactions wait for each other.
    async fn tell(&mut self) {
        let (Some(at), Some(open)) = (self.tell_at(), &self.open) else { return };
        if at > Instant::now() {
            return;
        }
        let sql = "SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify('postbox_inbox', $1)";
        if let Ok(Err(error)) = timeout(self.patience, open.client.execute(sql, &[&self.target.inbox])).await {
            debug!("workers are not told: {error}");
        }
        (self.told, self.untold) = (Some(Instant::now()), false);
    }

    async fn until_open(&mut self, lease: &Lease) -> Result<()> {
        while self.open.is_none() {
            match timeout(self.patience, self.open()).await.unwrap_or_else(|_| Err(Error::silent())) {
                Ok(open) => self.open = Some(open),
                Err(error) if is_passing(&error) => self.wait(&error).await,
                Err(error) if error.sqlstate() == Some(STALE) => return Err(self.refused(&error, lease).await),
                Err(error) => return Err(self.about(&error)),
            }
        }
        Ok(())
    }

    /// A member of another epoch has the stream. Mostly that is the next member of this group, which this one hears of in a moment; else the
    /// group's server is not the one that it was.
    async fn refused(&self, error: &Error, lease: &Lease) -> Error {
        let about = self.about(error);
        match timeout(self.target.session_timeout, lease.revoked()).await {
            Ok(()) => about.with_kind(ErrorKind::PlaceLost),
            Err(_) => about.with_kind(ErrorKind::Moved),
        }
    }

    async fn open(&self) -> Result<Open> {
        let (target, stream) = (&self.target, &self.stream);
        let client = connect_own(&target.info).await?;
        let name = format!("postbox:{}:{}", stream.group, target.member);
        let millis = |time: Duration| format!("{}ms", time.as_millis().min(i32::MAX as u128));
        group::query(
            &client,
            "SELECT pg_catalog.set_config('application_name', $1, false), \
             pg_catalog.set_config('statement_timeout', $2, false), \
             pg_catalog.set_config('idle_in_transaction_session_timeout', $3, false)",
            // A member that stands still in a transaction does not keep its successor waiting for longer than it has the group.
            &[&name, &millis(self.patience), &millis(target.session_timeout)],
        )
        .await?;
        let rows = group::query(
            &client,
            "SELECT stream, token, commit_lsn, ordinal \
             FROM postbox._open_inbox_stream($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            &[
                &target.inbox,
                &stream.system_identifier,
                &stream.timeline,
                &stream.database_oid,
                &stream.database_name,
                &stream.group,
                &stream.group_created_at,
                &stream.log_end,
                &stream.epoch,
                &target.member,
                &target.sequence_header,
                &target.priority_header,
            ],
        )
        .await?;
        failpoint::reach("inbox.after-open");
        let row = rows.first().ok_or_else(Error::silent)?;
        let lsn: Option<PgLsn> = row.try_get(2)?;
        let position = lsn.map(u64::from).zip(row.try_get::<_, Option<i64>>(3)?);
        match lsn {
            Some(lsn) => info!("inbox {} has the stream up to {lsn}", target.inbox),
            None => info!("inbox {} begins with the stream", target.inbox),
        }
        let write =
            client.prepare("SELECT postbox._stream_into_inbox($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)").await?;
        Ok(Open { write, stream: row.try_get(0)?, token: row.try_get(1)?, position, client })
    }

    /// Before another connection.
    async fn wait(&mut self, error: &Error) {
        self.open = None;
        warn!("inbox {} takes nothing now: {}", self.target.inbox, error.chain());
        sleep(self.backoff.next()).await;
    }

    fn about(&self, error: &Error) -> Error {
        let Target { inbox, info, .. } = &self.target;
        let kind = match error.kind() {
            ErrorKind::Other => ErrorKind::Sink,
            kind => kind,
        };
        let about = Error::new(kind, format!("inbox {inbox} of database {}: {}", info.dbname(), error.chain()));
        match error.hint() {
            _ if kind == ErrorKind::Setup => about.with_hint("The database of the inbox needs the extension of this release: CREATE EXTENSION postbox; as a superuser there."),
            Some(hint) => about.with_hint(hint),
            None => about,
        }
    }
}

/// What cannot be a message is kept as a dead letter, or stays one.
async fn keep(task: &Task, why: Why, error: String, letters: &impl DeadLetters) -> Result<()> {
    warn!("{} is a dead letter: {error}", name(&task.event));
    if let Origin::Letter { id, .. } = task.origin {
        return letters.failed(id, error, None).await;
    }
    let letter = NewLetter {
        attempts: u32::from(why == Why::Failed),
        error: Some(error),
        first_failed: (why == Why::Failed).then(SystemTime::now),
        ..NewLetter::new(&task.event, why)
    };
    letters.store(vec![letter], false).await.map(drop)
}

/// Where the stream is with this task; none if it does not come from there.
fn position(task: &Task) -> Option<Position> {
    let Event { commit_lsn, ordinal, .. } = task.event;
    let streamed = matches!(task.origin, Origin::Stream(_)) && commit_lsn != Lsn::ZERO;
    streamed.then(|| (commit_lsn.0, i64::try_from(ordinal).unwrap_or(i64::MAX)))
}

/// What an inbox gets of an event whose data lies in the claims of its outbox: where it is, and a header that says so.
struct Reference {
    headers: String,
    payload: String,
}

/// The header that tells a reference from a payload.
const REFERENCE: &str = "postbox-claim";

impl Reference {
    fn of(event: &Event) -> Option<Self> {
        let claim = event.claim.as_deref()?;
        let given = event.headers.as_deref().unwrap_or("{}").trim();
        let headers = match given.strip_prefix('{').map(str::trim_start) {
            Some(rest) => {
                let comma = if rest.starts_with('}') { "" } else { "," };
                format!("{{\"{REFERENCE}\":true{comma}{rest}")
            }
            None => format!("{{\"{REFERENCE}\":true,\"headers\":{given}}}"),
        };
        let mut outbox = Vec::new();
        json::string(&mut outbox, &event.outbox.to_string());
        let outbox = String::from_utf8_lossy(&outbox);
        Some(Self { headers, payload: format!("{{\"outbox\":{outbox},\"xid\":{},\"claim\":{claim}}}", event.xid) })
    }
}

/// How the payload's bytes are to be read.
fn payload_type(event: &Event) -> &'static str {
    if event.claim.is_some() {
        return "json";
    }
    match event.outbox.payload_type {
        PayloadType::Text => "text",
        PayloadType::Bytea => "bytea",
        _ => "json",
    }
}

/// A number says which event of its outbox it is, and other outboxes have the same.
fn message_id(event: &Event, source: &str) -> String {
    match &event.id {
        Some(EventId::Int(number)) => format!("{source}/{number}"),
        Some(id) => id.to_string(),
        None => String::new(),
    }
}

/// Another attempt may find the server in another state.
fn is_passing(error: &Error) -> bool {
    // Serialization failures and deadlocks, lack of resources, the operating system; a timeout, a lock.
    let passing = |code: &str| {
        code != OVER_LIMIT && ["40", "53", "58"].iter().any(|class| code.starts_with(class))
            || ["25P03", "25P04", "55P03", CANCELED].contains(&code)
    };
    error.is_transient() || error.sqlstate().is_some_and(passing)
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        // The code of a policy for rows is that of a right that is missing; it is about one message.
        let by_policy = error.as_db_error().and_then(DbError::routine) == Some("ExecWithCheckOptions");
        let error = Error::from(error);
        let code = error.sqlstate().unwrap_or_default().to_owned();
        // Data and constraints, what a trigger of the application raises, and limits of the server.
        let refuses = |class: &str| ["22", "23", "44", "54", "P0"].contains(&class) || !CLASSES.contains(&class);
        if by_policy || code == OVER_LIMIT || code.get(..2).is_some_and(refuses) {
            return Self::Refused(error);
        }
        if code == CANCELED {
            return Self::Late(error);
        }
        // Who has the stream now is found out where it is opened again.
        if is_passing(&error) || code == STALE { Self::Again(error) } else { Self::Fatal(error) }
    }
}

/// The SQLSTATE of what goes beyond a limit that is set for it, and will do so again.
const OVER_LIMIT: &str = "53400";

/// The classes of SQLSTATEs that the server raises (PostgreSQL, appendix A), and Postbox; a trigger of the application may have others.
const CLASSES: &[&str] = &[
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24", "25",
    "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57",
    "58", "72", "F0", "HV", "P0", "PB", "XX",
];

/// The SQLSTATE of a statement that took too long.
const CANCELED: &str = "57014";
