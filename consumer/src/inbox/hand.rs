//! One of the hands of a worker: claims a batch on a connection of its own and works on its messages one after the other.

use std::ops::ControlFlow;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tracing::{debug, warn};

use super::held::Held;
use super::turn::Turn;
use super::verb::{Verb, is_stale, passes};
use super::work::{Verdict, Work};
use super::worker::Crew;
use super::{Failure, InboxMessage};
use crate::backoff::{self, Backoff};
use crate::error::{Error, Result};
use crate::group::query;
use crate::lease::Moment;
use crate::transport::connect_sql;

pub(super) struct Hand<W> {
    crew: Arc<Crew>,
    work: Arc<W>,
    tier: Option<String>,
    turn: Arc<Turn>,
    held: Arc<Held>,
    link: Option<Link>,
    backoff: Backoff,
    /// How often the message under way has failed for a reason that passes.
    passed: u32,
}

/// So often a message is begun again after failures that pass; then it has used an attempt, as one that always ends so would go round for ever.
const PASSES: u32 = 5;

struct Link {
    client: Client,
    /// The server's process, to end it when what it does is not wanted any more, and when it began, as another may have the number later.
    pid: i32,
    begun: SystemTime,
}

impl<W: Work> Hand<W> {
    pub(super) fn new(crew: Arc<Crew>, work: Arc<W>, tier: Option<String>, turn: Arc<Turn>, held: Arc<Held>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        Self { crew, work, tier, turn, held, link: None, backoff, passed: 0 }
    }

    /// Works until the crew closes, and gives back what it has not begun.
    pub(super) async fn run(mut self) -> Result<()> {
        let mut at_once = false;
        while let Some(batch) = self.next(at_once).await? {
            self.crew.busy();
            let worked = self.through(&batch).await;
            self.crew.free();
            worked?;
            // Where there was something there may be more.
            at_once = true;
        }
        Ok(())
    }

    /// The next batch; none if the crew closes.
    async fn next(&mut self, at_once: bool) -> Result<Option<Vec<InboxMessage>>> {
        let (crew, turn) = (Arc::clone(&self.crew), Arc::clone(&self.turn));
        if crew.is_closing() {
            return Ok(None);
        }
        if at_once && let Some(batch) = self.claim().await?.filter(|batch| !batch.is_empty()) {
            return Ok(Some(batch));
        }
        let mut look = tokio::select! {
            look = turn.come() => look,
            () = crew.closing() => return Ok(None),
        };
        loop {
            tokio::select! {
                () = look.due() => (),
                () = crew.closing() => return Ok(None),
            }
            let Some(batch) = self.claim().await? else { return Ok(None) };
            look.done(!batch.is_empty());
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
            crew.found_nothing();
        }
    }

    /// Claims; none if the crew closes before the server answers.
    async fn claim(&mut self) -> Result<Option<Vec<InboxMessage>>> {
        let crew = Arc::clone(&self.crew);
        let sql = "SELECT ids, tries, lease FROM postbox._claim($1, $2, $3, $4, $5) WHERE ids IS NOT NULL";
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&crew.inbox, &crew.name, &crew.batch_size, &crew.visibility_seconds(), &self.tier.clone()];
        loop {
            let Some(link) = self.connection(false).await? else { return Ok(None) };
            // Its time begins no earlier than this.
            let since = Moment::now();
            match query(&link.client, sql, &parameters).await {
                Ok(rows) => {
                    let Some(row) = rows.first() else { return Ok(Some(Vec::new())) };
                    let (ids, attempts, token) = (row.try_get::<_, Vec<String>>(0)?, row.try_get(1)?, row.try_get(2)?);
                    self.held.take(token, ids.clone(), since);
                    return self.read(&ids, attempts, token).await;
                }
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// What has been claimed. Their sizes are not bounded, so the claim is committed by now, and extended meanwhile.
    async fn read(&mut self, ids: &[String], attempts: Vec<i32>, token: i64) -> Result<Option<Vec<InboxMessage>>> {
        let sql = format!("SELECT {} FROM postbox._claimed($1, $2, $3, $4)", InboxMessage::COLUMNS);
        let inbox = self.crew.inbox.clone();
        loop {
            let Some(link) = self.connection(true).await? else { return Ok(None) };
            match query(&link.client, &sql, &[&inbox, &ids, &attempts, &token]).await {
                Ok(rows) => {
                    let messages = rows.iter().map(InboxMessage::from_row).collect::<Result<Vec<_>>>()?;
                    if messages.len() < ids.len() {
                        // The time of those whose rows are gone runs out.
                        let is_gone = |id: &&String| messages.iter().all(|message| *message.event_id != ***id);
                        ids.iter().filter(is_gone).for_each(|id| self.held.settled(id));
                    }
                    return Ok(Some(messages));
                }
                Err(error) => self.recover(error).await?,
            }
        }
    }

    async fn through(&mut self, batch: &[InboxMessage]) -> Result<()> {
        let mut number = 0;
        while let Some(message) = batch.get(number) {
            if self.crew.is_closing() || self.connection(false).await?.is_none() {
                let rest = &batch[number..];
                self.tell(rest, &Verb::Release).await?;
                rest.iter().for_each(|message| self.held.settled(&message.event_id));
                debug!(messages = rest.len(), "released");
                break;
            }
            let ours = if self.held.has(&message.event_id) {
                self.is_still_ours(message).await?
            } else {
                lost(message);
                false
            };
            if !ours || self.one(message).await?.is_break() {
                number += 1;
                self.passed = 0;
            }
        }
        Ok(())
    }

    /// Asks if its time is over, as it is after we stood still, or if it is begun again: a commit may have succeeded that said it did not.
    async fn is_still_ours(&mut self, message: &InboxMessage) -> Result<bool> {
        if self.passed == 0 && self.held.lease().elapsed() < self.crew.visibility {
            return Ok(true);
        }
        let extend = Verb::Extend(self.crew.visibility_seconds());
        let ours = self.tell(slice::from_ref(message), &extend).await?;
        if !ours {
            self.held.settled(&message.event_id);
        }
        Ok(ours)
    }

    /// Works on a message; goes on if it is to be begun again.
    async fn one(&mut self, message: &InboxMessage) -> Result<ControlFlow<()>> {
        let Some(Link { client, .. }) = &mut self.link else { return Ok(ControlFlow::Break(())) };
        let (crew, held, id) = (&self.crew, &self.held, &*message.event_id);
        let interrupted = async {
            tokio::select! {
                () = held.lost(id) => Verdict::Lost,
                () = crew.over() => Verdict::Tell(Verb::Release),
                () = sleep(crew.max_processing) => {
                    let text = format!("took longer than {}", humantime::format_duration(crew.max_processing));
                    Verdict::Tell(Verb::Fail(Failure::new(text)))
                }
            }
        };
        let verdict = self.work.perform(client, &crew.inbox, message, interrupted, || held.settle()).await;
        let interrupted = !held.lease().settling;
        held.settle();
        if interrupted {
            self.abandon().await?;
        }
        let verdict = match verdict {
            Verdict::Passing(failure) if self.passed == PASSES => Verdict::Tell(Verb::Fail(failure)),
            verdict => verdict,
        };
        match verdict {
            Verdict::Done => self.crew.processed(id),
            Verdict::Lost => lost(message),
            Verdict::Passing(failure) => {
                warn!(event_id = id, attempt = message.attempt, "is begun again: {}", failure.error);
                self.held.resume();
                tokio::select! {
                    () = sleep(backoff::wait(Duration::from_millis(100), Duration::from_secs(5), self.passed)) => (),
                    () = self.crew.closing() => (),
                }
                self.passed += 1;
                return Ok(ControlFlow::Continue(()));
            }
            Verdict::Tell(verb) => {
                match &verb {
                    Verb::Fail(failure) => {
                        warn!(event_id = id, attempt = message.attempt, "failed: {}", failure.error);
                    }
                    Verb::Complete | Verb::Release | Verb::Extend(_) => {}
                }
                let told = self.tell(slice::from_ref(message), &verb).await?;
                if told && verb == Verb::Complete {
                    self.crew.processed(id);
                }
            }
        }
        self.held.settled(&message.event_id);
        Ok(ControlFlow::Break(()))
    }

    /// Says it until the server has heard; false if the messages are not ours any more. Where it is not known whether an earlier
    /// statement was committed, this settles it: the token holds, or it does not.
    async fn tell(&mut self, messages: &[InboxMessage], verb: &Verb) -> Result<bool> {
        let inbox = self.crew.inbox.clone();
        loop {
            let Some(link) = self.connection(true).await? else { return Ok(false) };
            match verb.say(&link.client, &inbox, messages).await {
                Ok(()) => return Ok(true),
                Err(error) if is_stale(&error) => match messages {
                    [message] => {
                        lost(message);
                        return Ok(false);
                    }
                    // The others may be ours all the same.
                    _ => {
                        for message in messages {
                            Box::pin(self.tell(slice::from_ref(message), verb)).await?;
                        }
                        return Ok(true);
                    }
                },
                Err(error) => self.recover(error.into()).await?,
            }
        }
    }

    /// Ends the session, as a statement that is under way would go on and keep its locks.
    async fn abandon(&mut self) -> Result<()> {
        let sql = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a WHERE a.pid = $1 AND a.backend_start = $2";
        let Some(old) = self.link.take().filter(|link| !link.client.is_closed()) else { return Ok(()) };
        if let Some(link) = self.connection(true).await?
            && let Err(error) = link.client.execute(sql, &[&old.pid, &old.begun]).await
        {
            debug!("cannot end session {}: {error}", old.pid);
        }
        Ok(())
    }

    /// After an error that passes, waits a while. The next statement gets a new connection.
    async fn recover(&mut self, error: Error) -> Result<()> {
        if !passes(&error) {
            return Err(error);
        }
        warn!("{}", error.chain());
        self.link = None;
        sleep(self.backoff.next()).await;
        Ok(())
    }

    /// A connection that works, as far as is known. None if the crew closes before there is one, unless `whatever` happens.
    async fn connection(&mut self, whatever: bool) -> Result<Option<&mut Link>> {
        while self.link.as_ref().is_none_or(|link| link.client.is_closed()) {
            if !whatever && self.crew.is_closing() {
                return Ok(None);
            }
            let info = self.crew.info.clone();
            // A worker that stands still in a transaction keeps the locks of its handler no longer than it would have let it go on.
            let idle = format!("{}ms", self.crew.max_processing.as_millis().min(i32::MAX as u128));
            let connect = async {
                let client = connect_sql(&info).await?;
                let sql = "SELECT a.pid, a.backend_start, pg_catalog.set_config('idle_in_transaction_session_timeout', $1, false) \
                           FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid()";
                let row = client.query_one(sql, &[&idle]).await?;
                let (pid, begun) = (row.try_get(0)?, row.try_get(1)?);
                Ok(Link { client, pid, begun })
            };
            match connect.await {
                Ok(link) => {
                    self.backoff.reset();
                    self.link = Some(link);
                }
                Err(error) => self.recover(error).await?,
            }
        }
        Ok(self.link.as_mut())
    }
}

fn lost(message: &InboxMessage) {
    warn!(event_id = &*message.event_id, token = message.token, "the message is not this worker's any more");
}
