//! The producers: transactions on a business table, with events in them.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use postbox_tests::Cluster;
use rand::RngExt;
use rand::seq::IndexedRandom;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement, Transaction};
use uuid::Uuid;

use crate::Result;
use crate::ledger::{Ledger, Stored};

/// How many write at the same time.
pub(crate) const PRODUCERS: usize = 8;

/// What each of them runs.
const TRANSACTIONS: usize = 400;

/// How a transaction goes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// An order, and one event about it through `postbox.publish`.
    Publish,
    /// The same through a plain INSERT.
    Insert,
    /// Several events, in both ways.
    Several(usize),
    /// The event in the middle is undone with its savepoint.
    Savepoint,
    /// Everything is undone.
    Rollback,
}

impl Kind {
    fn random() -> Self {
        let mut rng = rand::rng();
        match rng.random_range(0..10) {
            0..5 => Self::Publish,
            5 => Self::Insert,
            6 => Self::Several(rng.random_range(2..8)),
            7 => Self::Savepoint,
            _ => Self::Rollback,
        }
    }

    fn committed_events(self) -> usize {
        match self {
            Self::Publish | Self::Insert => 1,
            Self::Several(events) => events,
            Self::Savepoint => 2,
            Self::Rollback => 0,
        }
    }

    fn rolled_back_events(self) -> usize {
        match self {
            Self::Publish | Self::Insert | Self::Several(_) => 0,
            Self::Savepoint => 1,
            Self::Rollback => 2,
        }
    }
}

/// All transactions of all producers, drawn beforehand so that the number of events is known.
#[derive(Debug)]
pub(crate) struct Plan(Vec<Vec<Kind>>);

impl Plan {
    pub(crate) fn random() -> Self {
        Self((0..PRODUCERS).map(|_| (0..TRANSACTIONS).map(|_| Kind::random()).collect()).collect())
    }

    pub(crate) fn transactions(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    pub(crate) fn committed_events(&self) -> usize {
        self.0.iter().flatten().map(|kind| kind.committed_events()).sum()
    }

    pub(crate) fn rolled_back_events(&self) -> usize {
        self.0.iter().flatten().map(|kind| kind.rolled_back_events()).sum()
    }
}

/// Starts all producers, each on a connection of its own.
pub(crate) async fn start(cluster: &Cluster, plan: &Plan, ledger: &Ledger) -> Result<Vec<JoinHandle<Result<()>>>> {
    let mut tasks = Vec::new();
    for kinds in &plan.0 {
        let producer = Producer::prepare(cluster.client("demo").await, ledger.clone()).await?;
        tasks.push(tokio::spawn(producer.produce(kinds.clone())));
    }
    Ok(tasks)
}

/// Commits one more event when all producers are done, and returns its id.
pub(crate) async fn commit_last(client: &Client, ledger: &Ledger) -> Result<Uuid> {
    let id = Uuid::new_v4();
    let sent = Instant::now();
    let sql = "SELECT postbox.publish('order_events', 'orders.closed', '{}'::jsonb, event_id => $1)";
    client.query_one(sql, &[&id]).await?;
    ledger.committed(&[id], sent);
    Ok(id)
}

/// What lies in the outbox.
pub(crate) async fn stored(client: &Client) -> Result<Stored> {
    let rows = client.query("SELECT event_id, seq FROM order_events", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

struct Producer {
    client: Client,
    ledger: Ledger,
    order: Statement,
    publish: Statement,
    insert: Statement,
}

impl Producer {
    async fn prepare(client: Client, ledger: Ledger) -> Result<Self> {
        let order = client.prepare("INSERT INTO orders (item, amount) VALUES ($1, $2) RETURNING id").await?;
        let publish = client
            .prepare("SELECT postbox.publish('order_events', 'order.created', $1::jsonb, key => $2, event_id => $3)")
            .await?;
        let insert = client
            .prepare("INSERT INTO order_events (type, payload, key, event_id) VALUES ('order.created', $1, $2, $3)")
            .await?;
        Ok(Self { client, ledger, order, publish, insert })
    }

    async fn produce(mut self, kinds: Vec<Kind>) -> Result<()> {
        for kind in kinds {
            self.transact(kind).await?;
        }
        Ok(())
    }

    async fn transact(&mut self, kind: Kind) -> Result<()> {
        let Self { client, ledger, order, publish, insert } = self;
        let mut transaction = client.transaction().await?;
        let mut kept = Vec::new();
        let mut undone = Vec::new();
        match kind {
            Kind::Publish => kept.push(sell(&transaction, order, publish).await?),
            Kind::Insert => kept.push(sell(&transaction, order, insert).await?),
            Kind::Several(events) => {
                for number in 0..events {
                    let statement = if number % 2 == 0 { &*publish } else { &*insert };
                    kept.push(sell(&transaction, order, statement).await?);
                }
            }
            Kind::Savepoint => {
                kept.push(sell(&transaction, order, publish).await?);
                let savepoint = transaction.savepoint("regret").await?;
                undone.push(sell(&savepoint, order, publish).await?);
                savepoint.rollback().await?;
                kept.push(sell(&transaction, order, insert).await?);
            }
            Kind::Rollback => {
                undone.push(sell(&transaction, order, publish).await?);
                undone.push(sell(&transaction, order, insert).await?);
            }
        }
        hesitate().await;
        if let Kind::Rollback = kind {
            transaction.rollback().await?;
        } else {
            let sent = Instant::now();
            transaction.commit().await?;
            ledger.committed(&kept, sent);
        }
        ledger.rolled_back(&undone);
        Ok(())
    }
}

/// One order and the event about it.
async fn sell(transaction: &Transaction<'_>, order: &Statement, event: &Statement) -> Result<Uuid> {
    static AMOUNT: AtomicI64 = AtomicI64::new(1);
    let item = *["cup", "plate", "spoon", "bowl"].choose(&mut rand::rng()).unwrap_or(&"cup");
    let amount = (AMOUNT.fetch_add(1, Ordering::Relaxed) % 100) as i32;
    let number: i64 = transaction.query_one(order, &[&item, &amount]).await?.get(0);
    let id = Uuid::new_v4();
    let payload = json!({ "order": number, "item": item, "amount": amount });
    transaction.execute(event, &[&payload, &format!("order-{number}"), &id]).await?;
    Ok(id)
}

/// Lets other transactions overtake this one, so that commit order is not the order of inserts.
async fn hesitate() {
    let micros = match rand::rng().random_range(0..20) {
        0..5 => 0,
        5..19 => rand::rng().random_range(100..6_000),
        _ => 40_000,
    };
    if micros > 0 {
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}
