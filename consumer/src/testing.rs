//! Helpers for the tests of services that publish: what was published, seen as a consumer sees it, or within the transaction.
//!
//! ```no_run
//! # use std::time::Duration;
//! # async fn test(client: &mut tokio_postgres::Client) -> Result<(), postbox::Error> {
//! use postbox::testing::{Tap, published_here};
//!
//! let conninfo = "postgres://postgres@localhost/shop_test";
//! let mut tap = Tap::open(conninfo, &["orders"]).await?;
//!
//! let transaction = client.transaction().await?;
//! transaction.batch_execute("SELECT postbox.publish('orders', 'order.placed', '{}', key => 'o-1')").await?;
//! assert_eq!(published_here(&transaction, "orders").await?[0].event_type, "order.placed");
//! transaction.commit().await?;
//!
//! let event = tap.wait_for(Duration::from_secs(10), |event| event.key.as_deref() == Some("o-1")).await?;
//! assert_eq!(event.event_type, "order.placed");
//! assert!(tap.drain(Duration::from_millis(200)).await?.is_empty(), "and nothing else");
//! tap.close().await
//! # }
//! ```

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::GenericClient;

use crate::consumer::Consumer;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::group::{self, NewGroup};
use crate::transport::{ConnInfo, connect_sql};

/// WAL that a tap may hold back. One that a test has left behind loses its slot beyond it.
const BUDGET: i64 = 1 << 30;
/// Events that did not match, as far as the error of [`Tap::wait_for`] tells of them.
const SHOWN: usize = 10;

/// Everything that is published to some outboxes from now on, in commit order: a consumer group of its own, whose name begins with `tap_`.
#[derive(Debug)]
pub struct Tap {
    consumer: Consumer,
    conninfo: String,
    group: String,
}

/// An event that a transaction has published and not committed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// What happened.
    pub event_type: String,
    /// The key, if it has one.
    pub key: Option<String>,
    /// The headers, a JSON document.
    pub headers: Option<String>,
    /// The payload as text.
    pub payload: Option<String>,
}

impl Tap {
    /// Opens a tap on outboxes, named as `orders` or `public.orders`. Waits for the transactions that are writing now.
    ///
    /// # Errors
    /// An outbox does not exist, the role may not make groups, or the server is not set up for them.
    pub async fn open(conninfo: impl Into<String>, outboxes: &[&str]) -> Result<Self> {
        let conninfo = conninfo.into();
        let group = format!("tap_{:016x}", rand::random::<u64>());
        let outboxes = outboxes.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let client = connect_sql(&ConnInfo::resolve(Some(&conninfo))?).await?;
        let new = NewGroup {
            name: &group,
            outboxes: &outboxes,
            earliest: false,
            failover: false,
            wal_budget: Some(BUDGET),
            drop_over_budget: false,
            timeout: Duration::from_secs(60),
            source: None,
        };
        group::create(&client, &new).await?;
        match Consumer::builder(conninfo.clone()).group(&group).maintenance(false).connect().await {
            Ok(consumer) => Ok(Self { consumer, conninfo, group }),
            Err(error) => {
                group::drop(&client, &group, true).await?;
                Err(error)
            }
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// None has come in time, or the consumer failed.
    pub async fn next(&mut self, patience: Duration) -> Result<Event> {
        self.wait_for(patience, |_| true).await
    }

    /// The next event that matches; those before it are dropped.
    ///
    /// # Errors
    /// None has come in time; the message tells of those that came. Or the consumer failed.
    pub async fn wait_for(&mut self, patience: Duration, matches: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + patience;
        let mut others = Vec::new();
        while let Ok(delivery) = timeout_at(deadline, self.consumer.next()).await {
            let event = delivery.ok_or_else(ended)??.ack();
            if matches(&event) {
                return Ok(event);
            }
            others.push(format!("{} of key {}", event.event_type, event.key.as_deref().unwrap_or("NULL")));
        }
        let more = others.len().saturating_sub(SHOWN);
        others.truncate(SHOWN);
        let came = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(Error::new(ErrorKind::Other, format!("no event that matches has come in {patience:?}; what came: {came}{more}"))
            .with_hint("Was the transaction committed, and to an outbox of this tap? What committed before Tap::open does not come."))
    }

    /// What comes until nothing has come for so long.
    ///
    /// # Errors
    /// The consumer failed.
    pub async fn drain(&mut self, quiet: Duration) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Ok(delivery) = timeout(quiet, self.consumer.next()).await {
            events.push(delivery.ok_or_else(ended)??.ack());
        }
        Ok(events)
    }

    /// Drops the group. A tap that is not closed leaves it behind, and its slot holds back WAL.
    ///
    /// # Errors
    /// The server could not be reached.
    pub async fn close(self) -> Result<()> {
        self.consumer.close().await?;
        let client = connect_sql(&ConnInfo::resolve(Some(&self.conninfo))?).await?;
        group::drop(&client, &self.group, true).await
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Other, "the consumer has ended")
}

/// The events that the transaction of `client` has published to an outbox made by `create_outbox`, in their order, committed or not.
///
/// # Errors
/// There is no such outbox, or the role may not read it.
pub async fn published_here(client: &impl GenericClient, outbox: &str) -> Result<Vec<Published>> {
    let sql = "SELECT type, key, headers::text, payload FROM postbox.published_here($1)";
    let rows = client.query(sql, &[&outbox]).await?;
    rows.iter()
        .map(|row| {
            Ok(Published {
                event_type: row.try_get(0)?,
                key: row.try_get(1)?,
                headers: row.try_get(2)?,
                payload: row.try_get(3)?,
            })
        })
        .collect()
}
