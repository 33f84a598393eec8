//! Membership of a group: one member is active, the others stand by.
//!
//! ```text
//! standby ──lock──► activate (epoch + 1) ──► rows from the table ──► stream ──► released
//!    ▲                                                                  │
//!    └──── paused, replaced, cut off: the place is lost ◄───────────────┘
//! ```
//!
//! The lock is held by the member's control session. The server ends that session when it has not heard of the member for
//! the session timeout, and the member delivers nothing later than its last answered message plus that time, less a margin.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postbox_wire::{Lsn, OutboxSelector, parse_selectors};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use crate::backfill::Backfill;
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::Shared;
use crate::lease::{Lease, Moment};
use crate::progress::Server;
use crate::transport::{ConnInfo, connect_own};
use crate::{failpoint, group, slot};

/// What a process that wants to read for a group says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) info: ConnInfo,
    pub(crate) group: String,
    pub(crate) member: String,
    pub(crate) session_timeout: Duration,
    pub(crate) max_processing: Duration,
    /// Make the slot anew by oneself when it is lost.
    pub(crate) recover: bool,
    /// Only what was published on this server is wanted.
    pub(crate) local_only: bool,
    pub(crate) doubt: Doubt,
}

/// The slot that could not be read on, and why: the server's view of it may say nothing of that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubt(Arc<Mutex<Option<(String, Error)>>>);

/// The place of the active member. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Place {
    client: Arc<Client>,
    group: String,
    pub(crate) epoch: i64,
    pub(crate) slot_name: String,
    pub(crate) selectors: Vec<OutboxSelector>,
    pub(crate) backfills: Vec<Backfill>,
    /// Why the place is lost, once it is.
    lost: watch::Receiver<Option<Lost>>,
    shared: Arc<Shared>,
    heartbeat: tokio::task::JoinHandle<()>,
}

/// How a member loses its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Paused,
    Replaced,
    /// The control session is gone, or the server does not answer.
    CutOff(String),
}

/// How often a standby asks whether the place is free, and how often the active member tells that it lives.
const ASK: Duration = Duration::from_millis(200);
const BEAT: Duration = Duration::from_secs(1);

/// How often a checkpoint is written while events flow, and while only other transactions do.
const CHECKPOINT: Duration = Duration::from_secs(5);
const QUIET_CHECKPOINT: Duration = Duration::from_secs(300);
const QUIET_BYTES: u64 = 64 << 20;
/// Less than this may have been written by checkpoints and samples alone: an idle server comes to rest.
const OWN_BYTES: u64 = 64 << 10;

impl Membership {
    /// Leave to deliver: for the session timeout after a proven contact, less a margin for what is under way.
    pub(crate) fn lease(&self) -> Lease {
        Lease::new(self.session_timeout, self.session_timeout / 5)
    }

    /// Waits until the group has no active member, and becomes it.
    ///
    /// # Errors
    /// The first connection fails; the group does not exist, belongs to another server or has lost its slot. Later
    /// failures to connect are waited out.
    pub(crate) async fn acquire(&self, shared: &Arc<Shared>) -> Result<Place> {
        let mut first = true;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let mut client = self.connect().await?;
        loop {
            let error = match self.stand_by(&client).await {
                Ok(()) => match self.activate(client, shared).await {
                    Ok(place) => return Ok(place),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            // Somebody writes and does not come to an end, or has changed the group.
            let is_locked = error.sqlstate() == Some(LOCKED);
            // A standby that was there before is to be promoted.
            if !error.is_transient() && !is_locked || first && error.sqlstate() == Some(READ_ONLY) {
                return Err(error);
            }
            first = false;
            warn!(
                "{}: {}",
                if is_locked { "cannot take the place yet" } else { "lost the control connection" },
                error.chain()
            );
            client = loop {
                sleep(backoff.next()).await;
                match self.connect().await {
                    Err(error) if error.is_transient() => warn!("cannot connect yet: {}", error.chain()),
                    client => break client?,
                }
            };
        }
    }

    /// A session that the server ends when it does not hear of it. Nor does it wait for long behind somebody who has changed the group and not
    /// committed yet: a session that waits is not idle, and would keep the place of a member that is gone.
    async fn connect(&self) -> Result<Client> {
        let client = connect_own(&self.info).await?;
        let name = format!("postbox:{}:{}", self.group, self.member);
        let idle = format!("{}ms", self.session_timeout.as_millis());
        let lock = format!("{}ms", (self.session_timeout / 4).as_millis().max(1));
        group::query(
            &client,
            "SELECT pg_catalog.set_config('application_name', $1, false), \
             pg_catalog.set_config('idle_session_timeout', $2, false), pg_catalog.set_config('lock_timeout', $3, false)",
            &[&name, &idle, &lock],
        )
        .await?;
        Ok(client)
    }

    /// Returns with the lock.
    async fn stand_by(&self, client: &Client) -> Result<()> {
        let mut told = None;
        loop {
            let asked = async { group::query(client, "SELECT postbox._try_membership($1)", &[&self.group]).await };
            let rows = timeout(self.session_timeout, asked).await.map_err(|_| Error::silent())??;
            let state: Option<String> = rows.first().map(|row| row.try_get(0)).transpose()?.flatten();
            match state.as_deref() {
                Some("active") => return Ok(()),
                Some(state) => {
                    if told.as_deref() != Some(state) {
                        match state {
                            "paused" => info!("group {} is paused: waiting until it is resumed", self.group),
                            _ => info!("group {} has an active member: standing by", self.group),
                        }
                        told = Some(state.to_owned());
                    }
                }
                None => return Err(group::missing(&self.group, self.info.dbname())),
            }
            // Not all at the same moment.
            sleep(ASK.mul_f64(0.5 + rand::random::<f64>())).await;
        }
    }

    async fn activate(&self, client: Client, shared: &Arc<Shared>) -> Result<Place> {
        let sent = Moment::now();
        let taken = self.take_over(&client).await;
        let slot_name = taken.as_ref().map(|activated| activated.slot_name.clone()).ok();
        let sound = taken.and_then(|activated| self.doubt.settle(&activated.slot_name).map(|()| activated));
        let activated = match sound {
            Err(error) if self.recover && can_recover(&error) => {
                warn!("recovering: {}", error.chain());
                failpoint::reach("recover.before");
                let slot = match group::recover(&client, &self.group, group::TIMEOUT).await {
                    Ok(slot) => slot,
                    Err(failed) => {
                        // Tried again, when the server may say nothing of it.
                        slot_name.inspect(|slot| self.doubt.raise(slot, error));
                        return Err(failed);
                    }
                };
                failpoint::reach("recover.after");
                info!("group {} has been recovered with slot {slot}", self.group);
                self.take_over(&client).await?
            }
            Err(error) if matches!(error.kind(), ErrorKind::SlotMissing | ErrorKind::SlotInvalidated) => {
                let remedy = format!("postbox group recover {} (or run with --recover)", self.group);
                return Err(error.with_hint(format!(
                    "Make the slot anew and deliver from the outboxes what the group had not confirmed: {remedy}."
                )));
            }
            activated => activated?,
        };
        failpoint::reach("activate.after");
        let Activated { epoch, slot_name, selectors, former, server } = activated;
        // Before the heartbeat holds checkpoints against positions of a server that is gone.
        if !shared.progress().is_at(server) {
            info!("group {} goes on with system {} timeline {}", self.group, server.0, server.1);
        }
        if let Some(former) = former {
            info!("taking over from {former}, which did not leave in order");
        }
        let backfills = Backfill::list(&client, &self.group).await?;
        if self.local_only && backfills.iter().any(|backfill| !backfill.finished) {
            let message = format!(
                "group {} has stored events to deliver, and a table does not tell which of them came by replication",
                self.group
            );
            return Err(Error::new(ErrorKind::Usage, message).with_hint(format!(
                "Run without --origin none until they are delivered, or skip them: postbox group seek {} --to latest.",
                self.group
            )));
        }
        let client = Arc::new(client);
        let (sender, lost) = watch::channel(None);
        // The answers to what was sent since have come from a session that holds the lock.
        shared.renew_lease(sent);
        let heartbeat = Heartbeat {
            client: Arc::clone(&client),
            membership: self.clone(),
            epoch,
            lease: shared.lease(),
            shared: Arc::clone(shared),
            backfilling: backfills.iter().any(|backfill| !backfill.finished),
        };
        info!("active member of group {} in epoch {epoch}", self.group);
        Ok(Place {
            group: self.group.clone(),
            epoch,
            slot_name,
            selectors,
            backfills,
            lost,
            heartbeat: tokio::spawn(heartbeat.run(sender)),
            shared: Arc::clone(shared),
            client,
        })
    }

    async fn take_over(&self, client: &Client) -> Result<Activated> {
        let interval = |time: Duration| format!("{} milliseconds", time.as_millis());
        let rows = group::query(
            client,
            "SELECT epoch, slot_name, former, outboxes, outbox_names, system_identifier, timeline \
             FROM postbox._activate($1, $2, $3::text::interval, $4::text::interval)",
            &[&self.group, &self.member, &interval(self.session_timeout), &interval(self.max_processing)],
        )
        .await?;
        let Some(row) = rows.first() else { return Err(group::missing(&self.group, self.info.dbname())) };
        let slot_name: String = row.try_get(1)?;
        slot::inspect(client, &slot_name).await?;
        let oids = row.try_get::<_, Option<Vec<u32>>>(3)?.unwrap_or_default();
        let names = row.try_get::<_, Option<Vec<String>>>(4)?.unwrap_or_default();
        // By OID, so that a renamed outbox is followed, and by name, so that one made anew is too.
        let by_name = names.iter().flat_map(|name| parse_selectors(name).unwrap_or_default());
        let selectors = oids.into_iter().map(OutboxSelector::Oid).chain(by_name).collect();
        let server = (row.try_get::<_, i64>(5)?.cast_unsigned(), row.try_get::<_, i32>(6)?.cast_unsigned());
        Ok(Activated { epoch: row.try_get(0)?, slot_name, selectors, former: row.try_get(2)?, server })
    }
}

struct Activated {
    epoch: i64,
    slot_name: String,
    selectors: Vec<OutboxSelector>,
    former: Option<String>,
    server: Server,
}

/// A slot that is gone for good, and a server that is not the one it was.
pub(crate) fn can_recover(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::SlotMissing | ErrorKind::SlotInvalidated | ErrorKind::Moved)
}

impl Doubt {
    pub(crate) fn raise(&self, slot: &str, error: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((slot.to_owned(), error));
    }

    /// Of another slot it says nothing.
    fn settle(&self, slot: &str) -> Result<()> {
        let doubt = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        doubt.filter(|(of, _)| of == slot).map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl Place {
    /// Ends when the place is lost.
    pub(crate) fn lost(&self) -> impl Future<Output = Lost> + use<> {
        let mut lost = self.lost.clone();
        async move {
            match lost.wait_for(Option::is_some).await.map(|lost| lost.clone()) {
                Ok(Some(lost)) => lost,
                _ => Lost::CutOff("the heartbeat ended".to_owned()),
            }
        }
    }

    /// True if it is lost, which is in the log then.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// The stored events of this outbox are delivered up to `position`, and durably so.
    pub(crate) async fn backfilled(&self, outbox: u32, position: i64, finished: bool) -> Result<()> {
        let sql = "SELECT postbox._backfilled($1, $2, $3, $4, $5)";
        failpoint::reach("backfill.before-position");
        loop {
            match group::query(&self.client, sql, &[&self.group, &self.epoch, &outbox, &position, &finished]).await {
                // It has waited for a while, and beats have their turn between.
                Err(error) if error.sqlstate() == Some(LOCKED) => {}
                noted => {
                    noted?;
                    break;
                }
            }
        }
        failpoint::reach("backfill.after-position");
        Ok(())
    }

    /// Asks the session that holds the lock.
    pub(crate) async fn still_held(&self) -> Result<()> {
        let beat = async { group::query(&self.client, "SELECT epoch FROM postbox._beat($1)", &[&self.group]).await };
        let lost = match timeout(BEAT * 10, beat).await {
            Ok(Ok(rows)) => match rows.first().map(|row| row.try_get::<_, i64>(0)).transpose()? {
                Some(epoch) if epoch == self.epoch => return Ok(()),
                _ => Lost::Replaced,
            },
            Ok(Err(error)) => Lost::CutOff(error.chain()),
            Err(_) => Lost::CutOff(Error::silent().chain()),
        };
        Err(lost.into_error(&self.group))
    }

    /// Leaves in order: the next member need not wonder what became of this one, and knows how far it has come.
    pub(crate) async fn release(self) {
        self.heartbeat.abort();
        let durable = tokio_postgres::types::PgLsn::from(self.shared.progress().positions().durable.0);
        let sql = "SELECT postbox._release($1, $2, $3)";
        let released = async { group::query(&self.client, sql, &[&self.group, &self.epoch, &durable]).await };
        if let Ok(Err(error)) = timeout(Duration::from_secs(5), released).await {
            debug!("could not leave in order: {}", error.chain());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// Tells the server that the member lives, asks whether it is still the one, and writes checkpoints.
struct Heartbeat {
    client: Arc<Client>,
    membership: Membership,
    epoch: i64,
    lease: Lease,
    shared: Arc<Shared>,
    /// Rows are still delivered from the table: nothing that could be a checkpoint counts yet.
    backfilling: bool,
}

/// A checkpoint that counts once everything below `lsn` is durable.
struct Candidate {
    snapshot: String,
    lsn: Lsn,
}

impl Heartbeat {
    async fn run(mut self, lost: watch::Sender<Option<Lost>>) {
        let outcome = self.beat().await;
        // Whoever delivers says only that the place is lost.
        warn!("{}", outcome.text(&self.membership.group));
        match outcome {
            // Nobody else has the group meanwhile: there is time for what is under way.
            Lost::Paused => self.lease.suspend(),
            _ => self.lease.revoke(),
        }
        lost.send_replace(Some(outcome));
    }

    async fn beat(&mut self) -> Lost {
        let Membership { group, session_timeout, .. } = self.membership.clone();
        let interval = BEAT.min(session_timeout / 3);
        let sql = "SELECT epoch, paused, snapshot::text, lsn FROM postbox._beat($1)";
        let mut candidate: Option<Candidate> = None;
        let mut written = (Instant::now(), Lsn::default(), self.shared.progress().settled());
        loop {
            sleep(interval).await;
            let sent = Moment::now();
            let beat = async { group::query(&self.client, sql, &[&group]).await };
            let rows = match timeout(session_timeout, beat).await {
                Ok(Ok(rows)) => rows,
                Ok(Err(error)) => return Lost::CutOff(error.chain()),
                Err(_) => return Lost::CutOff(Error::silent().chain()),
            };
            let Some(row) = rows.first() else { return Lost::Replaced };
            let beat = (|| -> Result<_> {
                let lsn = row.try_get::<_, Option<tokio_postgres::types::PgLsn>>(3)?;
                Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, bool>(1)?, row.try_get::<_, String>(2)?, lsn))
            })();
            let (epoch, paused, snapshot, lsn) = match beat {
                Ok(beat) => beat,
                Err(error) => return Lost::CutOff(error.chain()),
            };
            if epoch != self.epoch {
                return Lost::Replaced;
            }
            self.shared.renew_lease(sent);
            if paused {
                return Lost::Paused;
            }

            let (durable, settled) = {
                let progress = self.shared.progress();
                (progress.positions().durable, progress.settled())
            };
            if let Some(due) = candidate.take_if(|candidate| candidate.lsn <= durable) {
                match self.checkpoint(&due).await {
                    Ok(()) => written = (Instant::now(), due.lsn, settled),
                    // Somebody has changed the group and has not committed yet: with the next beat.
                    Err(error) if error.sqlstate() == Some(LOCKED) => candidate = Some(due),
                    Err(error) if error.sqlstate() == Some(STALE) => return Lost::Replaced,
                    Err(error) => return Lost::CutOff(error.chain()),
                }
            }
            self.backfilling &= !self.shared.is_backfilled();
            let (when, below, events) = written;
            let since = when.elapsed();
            // What is written for its own sake would never come to rest.
            let moved = durable.0.saturating_sub(below.0);
            let due = (settled != events && since >= CHECKPOINT)
                || (since >= QUIET_CHECKPOINT && moved >= OWN_BYTES)
                || moved >= QUIET_BYTES;
            if let (None, true, false, Some(lsn)) = (&candidate, due, self.backfilling, lsn) {
                candidate = Some(Candidate { snapshot, lsn: Lsn(lsn.into()) });
            }
        }
    }

    async fn checkpoint(&self, due: &Candidate) -> Result<()> {
        let Candidate { snapshot, lsn } = due;
        let lsn = tokio_postgres::types::PgLsn::from(lsn.0);
        let sql = "SELECT postbox._checkpoint($1, $2, $3::text::pg_catalog.pg_snapshot, $4)";
        failpoint::reach("checkpoint.before-write");
        let written =
            async { group::query(&self.client, sql, &[&self.membership.group, &self.epoch, snapshot, &lsn]).await };
        timeout(self.membership.session_timeout, written).await.map_err(|_| Error::silent())??;
        failpoint::reach("checkpoint.after-write");
        debug!(%snapshot, lsn = %due.lsn, "checkpoint");
        Ok(())
    }
}

/// The SQLSTATE of a server that takes no writes.
const READ_ONLY: &str = "25006";

/// The SQLSTATE of a statement that has waited too long for somebody else's transaction.
const LOCKED: &str = "55P03";

/// The SQLSTATE of what a former member writes: see `postbox._require_epoch` and `postbox._open_inbox_stream`.
pub(crate) const STALE: &str = "24000";

/// How a member names itself unless told: machine and process. The server cuts the name of a session, `postbox:GROUP:MACHINE:PROCESS`, at 63 bytes: the process has to
/// be left of it, or two members would have one name.
pub(crate) fn default_name(group: &str) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name_in(group, host.as_deref().unwrap_or("localhost"), std::process::id())
}

fn name_in(group: &str, host: &str, process: u32) -> String {
    let process = process.to_string();
    let room = SESSION_NAME_BYTES.saturating_sub("postbox:::".len() + group.len() + process.len());
    format!("{}:{process}", &host[..host.floor_char_boundary(room)])
}

const SESSION_NAME_BYTES: usize = 63;

impl Lost {
    /// As the error that ends the stream.
    pub(crate) fn into_error(self, group: &str) -> Error {
        Error::new(ErrorKind::PlaceLost, self.text(group))
    }

    fn text(&self, group: &str) -> String {
        match self {
            Self::Paused => format!("group {group} has been paused"),
            Self::Replaced => format!("group {group} was taken over, moved or dropped"),
            Self::CutOff(why) => format!("lost the place in group {group}: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_the_process_however_long_the_group_and_the_machine_are() {
        assert_eq!(name_in("billing", "db7", 4_194_304), "db7:4194304");
        let group = "g".repeat(40);
        for host in ["a-machine-with-a-long-name.example", "größer-als-sonst"] {
            let name = format!("postbox:{group}:{}", name_in(&group, host, 4_194_304));
            assert!(name.len() <= SESSION_NAME_BYTES && name.ends_with(":4194304"), "{name}");
        }
        assert_eq!(name_in(&group, "größer", 4_194_304), "größ:4194304");
        assert_eq!(name_in(&"g".repeat(99), "host", 1), ":1");
    }
}
