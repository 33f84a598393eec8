//! What a worker does beside working: leases are extended in time, hints are heard, and tiers that change are noticed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tracing::{debug, warn};

use super::held::{Held, Lease};
use super::turn::Turn;
use super::verb::{STALE, extend};
use super::worker::Crew;
use crate::error::{Error, Result};
use crate::group::query;
use crate::lease::Moment;
use crate::transport::{ConnInfo, connect_listening};

/// How often tiers are looked at.
const TIERS_INTERVAL: Duration = Duration::from_secs(5);

/// A tier as `enable_inbox_priority` made it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tier {
    pub(super) name: String,
    pub(super) pace: Duration,
    pub(super) concurrency: usize,
}

pub(super) struct Keeper {
    pub(super) crew: Arc<Crew>,
    pub(super) hands: Vec<Arc<Held>>,
    pub(super) turns: Vec<Arc<Turn>>,
    pub(super) tiers: Vec<Tier>,
}

impl Keeper {
    /// Goes on until it is dropped.
    pub(super) async fn keep(self) {
        let mut ticks = interval((self.crew.visibility / 6).min(Duration::from_secs(5)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let patience = (self.crew.visibility / 3).max(Duration::from_secs(1));
        let mut client = None;
        // What is in the log already.
        let mut told = None;
        let mut tiers_due = Instant::now() + TIERS_INTERVAL;
        loop {
            ticks.tick().await;
            let kept = async {
                let client = match client.take() {
                    Some(client) => client,
                    None => self.connect().await?,
                };
                self.extend(&client).await?;
                if tiers_due <= Instant::now() {
                    tiers_due = Instant::now() + TIERS_INTERVAL;
                    if tiers(&client, &self.crew.inbox).await? != self.tiers {
                        self.crew.tiers_changed.notify_one();
                    }
                }
                Ok::<_, Error>(client)
            };
            match timeout(patience, kept).await.unwrap_or_else(|_| Err(Error::silent())) {
                Ok(kept) => (client, told) = (Some(kept), None),
                Err(error) => {
                    let why = error.chain();
                    if told.as_ref() != Some(&why) {
                        warn!("leases are not extended: {why}");
                        told = Some(why);
                    }
                    self.give_up();
                }
            }
        }
    }

    async fn connect(&self) -> Result<Client> {
        let (inbox, turns) = (self.crew.inbox.clone(), self.turns.clone());
        let client = connect_listening(&self.crew.info, move |notification| {
            if notification.payload() == inbox {
                turns.iter().for_each(|turn| turn.hint());
            }
        })
        .await?;
        // A message whose completion waits for its commit is locked, and others wait for us. Who listens and takes nothing keeps the server's
        // queue of notifications, for all databases; we say something every few seconds.
        client
            .batch_execute("SET lock_timeout = '200ms'; SET idle_session_timeout = '1min'; LISTEN postbox_inbox")
            .await?;
        Ok(client)
    }

    /// Extends the leases of which a third is over.
    async fn extend(&self, client: &Client) -> Result<()> {
        for held in &self.hands {
            let lease = held.lease();
            if lease.settling || lease.left.is_empty() || lease.elapsed() < self.crew.visibility / 3 {
                continue;
            }
            let now = Moment::now();
            match self.ask(client, &lease, &lease.left).await {
                Ok(()) => held.extended(lease.token, now),
                Err(error) if error.sqlstate() == Some(STALE) => self.examine(client, held, &lease).await?,
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => debug!("not extended: {}", error.chain()),
            }
        }
        Ok(())
    }

    /// Finds out which of the messages are lost, unless the hand has just settled one of them.
    async fn examine(&self, client: &Client, held: &Held, before: &Lease) -> Result<()> {
        for id in &before.left {
            let now = held.lease();
            if now.settling || now.token != before.token || now.left.len() != before.left.len() {
                return Ok(());
            }
            match self.ask(client, before, std::slice::from_ref(id)).await {
                Err(error) if error.sqlstate() == Some(STALE) => {
                    debug!(event_id = id, token = before.token, "the lease was lost");
                    held.lose(before.token, id);
                    return Box::pin(self.examine(client, held, &held.lease())).await;
                }
                Err(error) if error.is_transient() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn ask(&self, client: &Client, lease: &Lease, ids: &[String]) -> Result<()> {
        let tokens = vec![lease.token; ids.len()];
        Ok(extend(client, &self.crew.inbox, &ids, &tokens, self.crew.visibility_seconds()).await?)
    }

    /// The server cannot be asked: what has not been extended in time may be another worker's by now.
    fn give_up(&self) {
        for held in &self.hands {
            let lease = held.lease();
            if !lease.settling && lease.elapsed() > self.crew.visibility {
                lease.left.iter().for_each(|id| held.lose(lease.token, id));
            }
        }
    }
}

/// The tiers of an inbox, the first one first; none if it has no priorities.
pub(super) async fn tiers(client: &Client, inbox: &str) -> Result<Vec<Tier>> {
    let sql = "SELECT t.name, extract(epoch FROM t.pace)::float8, t.concurrency \
               FROM postbox.inbox i JOIN postbox.inbox_tier t ON t.inbox = i.id WHERE i.name = $1 ORDER BY t.tier";
    let tier = |row: &tokio_postgres::Row| {
        Ok(Tier {
            name: row.try_get(0)?,
            pace: Duration::try_from_secs_f64(row.try_get(1)?).unwrap_or(Duration::MAX),
            concurrency: usize::try_from(row.try_get::<_, i32>(2)?).unwrap_or(1).max(1),
        })
    };
    query(client, sql, &[&inbox]).await?.iter().map(tier).collect()
}

/// As [`tiers`], for a worker that starts.
///
/// # Errors
/// Besides: the server is a standby, which would be waited out later.
pub(super) async fn first_tiers(info: &ConnInfo, inbox: &str) -> Result<Vec<Tier>> {
    let client = crate::transport::connect_sql(info).await?;
    let tiers = tiers(&client, inbox).await?;
    client.batch_execute("LISTEN postbox_inbox").await?;
    Ok(tiers)
}

/// As [`tiers`], on a connection of its own.
pub(super) async fn ask_tiers(info: &ConnInfo, inbox: &str) -> Result<Vec<Tier>> {
    tiers(&crate::transport::connect_sql(info).await?, inbox).await
}
