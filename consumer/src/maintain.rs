//! `postbox maintain`, and what every process does beside delivering: calling `postbox.maintain()` now and then. Whoever comes
//! first does the work; the server tells the others so.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use crate::error::{Error, Result};
use crate::group::query;
use crate::transport::{ConnInfo, connect_own};

/// How often it is called. The server does nothing when the last run is more recent.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// A call empties one leaf; so many calls may follow each other. The rest waits for the next interval.
const MOST_CALLS: usize = 64;

/// Something that maintenance did, or could not do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Step {
    /// Which part of it: `sample`, `cleanup`, `events`, `groups`, `inboxes`, `inbox_rings`, `ring`, `retention`, `slots`, `storage`, or `maintain` as a whole.
    pub step: String,
    /// The outbox, group or slot.
    pub subject: Option<String>,
    /// What became of it; `skipped` if it could not be done.
    pub outcome: String,
    /// Why, or how much.
    pub detail: Option<String>,
}

/// Runs maintenance, unless somebody did in the last 10 seconds or does now, and says what it did.
///
/// # Errors
/// The extension is not installed, or the role may not do this.
pub async fn maintain_once(client: &Client) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for call in 0..MOST_CALLS {
        let sql = "SELECT step, postbox._shown(subject), outcome, postbox._shown(detail) FROM postbox.maintain($1)";
        let mut more = false;
        for row in query(client, sql, &[&(call > 0)]).await? {
            let step = Step {
                step: row.try_get(0)?,
                subject: row.try_get(1)?,
                outcome: row.try_get(2)?,
                detail: row.try_get(3)?,
            };
            if step.outcome == "more" { more = true } else { steps.push(step) }
        }
        if !more {
            break;
        }
    }
    Ok(steps)
}

/// Logs what was done, and what could not be done once until it changes.
#[derive(Debug, Default)]
pub struct Journal {
    known: HashSet<Step>,
}

impl Journal {
    /// Logs the steps of one run.
    pub fn log(&mut self, steps: &[Step]) {
        let mut standing = HashSet::new();
        for step in steps {
            let Step { step: part, subject, outcome, detail } = step;
            let (subject, detail) = (subject.as_deref().unwrap_or("-"), detail.as_deref().unwrap_or("-"));
            match outcome.as_str() {
                "skipped" | "blocked" => {
                    if !self.known.contains(step) {
                        warn!(part, subject, detail, "maintenance: {outcome}");
                    }
                    standing.insert(step.clone());
                }
                "taken" | "pinned" | "recent" | "running" => debug!(part, subject, detail, "maintenance: {outcome}"),
                _ => info!(part, subject, detail, "maintenance: {outcome}"),
            }
        }
        // Another process that had its turn says nothing of what still stands.
        if !steps.iter().any(|step| step.step == "maintain") {
            self.known = standing;
        }
    }
}

/// Runs maintenance every [`INTERVAL`] until `stop`. A link that breaks is made anew.
pub(crate) async fn run(info: &ConnInfo, stop: impl Future<Output = ()>) -> Result<()> {
    let mut stop = pin!(stop);
    let mut journal = Journal::default();
    // What is wrong at the start is for whoever started us.
    let first = connect_own(info).await?;
    journal.log(&maintain_once(&first).await?);
    let mut client = Some(first);
    loop {
        tokio::select! {
            () = sleep(INTERVAL) => (),
            () = &mut stop => return Ok(()),
        }
        let turn = async {
            let connected = match client.take() {
                Some(client) => client,
                None => connect_own(info).await?,
            };
            let steps = maintain_once(&connected).await?;
            Ok::<_, Error>((connected, steps))
        };
        let turn = tokio::select! {
            turn = turn => turn,
            () = &mut stop => return Ok(()),
        };
        match turn {
            Ok((connected, steps)) => {
                journal.log(&steps);
                client = Some(connected);
            }
            Err(error) => warn!("maintenance failed, trying again in {INTERVAL:?}: {}", error.chain()),
        }
    }
}

/// Maintenance beside something that matters more; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Beside(tokio::task::JoinHandle<()>);

impl Beside {
    pub(crate) fn start(info: ConnInfo) -> Self {
        Self(tokio::spawn(async move { beside(&info).await }))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is wrong is logged once, and tried again.
async fn beside(info: &ConnInfo) {
    let mut told = None;
    loop {
        if let Err(error) = run(info, std::future::pending()).await {
            let text = error.chain();
            if told.as_ref() != Some(&text) {
                info!("no maintenance by this process: {text}");
                told = Some(text);
            }
        }
        sleep(INTERVAL).await;
    }
}
