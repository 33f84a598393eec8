//! The full circle: a shop's outbox, an office's inbox, a handler that charges and publishes, the office's outbox, the shop's inbox.
//! Two servers, two consumers and two kinds of workers, all processes of their own, are killed at random on the way; every
//! order has to be charged and paid once.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_postgres::NoTls;

use crate::{Cluster, Stop, postbox_binary, tree};

/// How long nothing may move before the circle counts as broken.
const PATIENCE: Duration = Duration::from_secs(90);

/// An order leaves the shop as this event; place_order makes one, once, however often it is called.
const SHOP: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, payments int NOT NULL DEFAULT 0);
    SELECT postbox.create_outbox('order_events');
    SELECT postbox.create_inbox('charges', max_retries => 1000);
    CREATE FUNCTION place_order(number int) RETURNS void LANGUAGE sql AS $$
        WITH placed AS (INSERT INTO orders VALUES (number) ON CONFLICT DO NOTHING RETURNING id)
        SELECT postbox.publish('order_events', 'order.placed', jsonb_build_object('order', id), key => id::text) FROM placed
    $$;
    CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE sql AS $$
        UPDATE orders SET payments = payments + 1 WHERE id = (message -> 'payload' ->> 'order')::int
    $$;
    SELECT postbox.create_consumer_group('to_office', '{order_events}')";

/// A charge is a row: two for one order would be two charges.
const OFFICE: &str = "
    CREATE TABLE charges (order_id int NOT NULL);
    SELECT postbox.create_outbox('charge_events');
    SELECT postbox.create_inbox('orders', max_retries => 1000);
    CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE sql AS $$
        INSERT INTO charges VALUES ((message -> 'payload' ->> 'order')::int);
        SELECT postbox.publish('charge_events', 'order.charged', message -> 'payload', key => message -> 'payload' ->> 'order')
    $$;
    SELECT postbox.create_consumer_group('to_shop', '{charge_events}')";

/// What the circle is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// So many orders are placed.
    pub orders: usize,
    /// So many times something is killed while they are on their way: first a worker, a consumer and a server, then whatever it is.
    pub kills: usize,
    /// Decides what is killed when.
    pub seed: u64,
}

/// What can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `postbox run`.
    Consumer,
    /// `postbox inbox work`.
    Worker,
    /// PostgreSQL.
    Server,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Orders that the shop has.
    pub placed: usize,
    /// Orders that were charged once and paid once.
    pub once: usize,
    /// What was killed, of which kind it is, and how often.
    pub kills: Vec<(&'static str, Kind, usize)>,
    /// Messages that a worker had when it died, and that were handed out again.
    pub handed_out_again: i64,
    /// Messages that came to an inbox that had them.
    pub came_again: i64,
    /// Messages that are dead or left over in an inbox, and events that are dead letters of a group.
    pub left: i64,
    /// From the first order to the last payment.
    pub took: Duration,
}

impl Report {
    /// Every order went round once, and nothing is left.
    pub fn is_as_promised(&self, plan: &Plan) -> bool {
        (self.placed, self.once, self.left) == (plan.orders, plan.orders, 0)
    }

    /// How many of this kind were killed.
    pub fn killed(&self, kind: Kind) -> usize {
        self.kills.iter().filter(|(_, of, _)| *of == kind).map(|(.., kills)| kills).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, _, kills) in &self.kills {
            writeln!(f, "  SIGKILL  {kills:>3} x {name}")?;
        }
        writeln!(f, "  {:>6} orders placed", self.placed)?;
        writeln!(f, "  {:>6} of them charged once and paid once", self.once)?;
        writeln!(f, "  {:>6} messages whose worker died with them, handed out again", self.handed_out_again)?;
        writeln!(f, "  {:>6} messages that came to an inbox a second time", self.came_again)?;
        write!(f, "  {:>6} dead or left over, after {:.1} s", self.left, self.took.as_secs_f64())
    }
}

/// A process that is started again whenever it has ended.
struct Service {
    name: &'static str,
    kind: Kind,
    command: Command,
    process: Option<Child>,
}

impl Service {
    fn new(name: &'static str, kind: Kind, mut command: Command, log: &File) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone().expect("a second handle of the log"));
        Self { name, kind, command, process: None }
    }

    fn tend(&mut self) {
        if self.process.as_mut().is_none_or(|process| !matches!(process.try_wait(), Ok(None))) {
            self.process = Some(self.command.spawn().expect("a process"));
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Plays the plan; `say` hears what happens.
///
/// # Panics
/// When nothing moves any more, with the end of what the processes logged.
pub async fn play(plan: &Plan, say: impl Fn(&str)) -> Report {
    let servers = [("the shop's server", Cluster::start(), SHOP), ("the office's server", Cluster::start(), OFFICE)];
    for (_, cluster, sql) in &servers {
        cluster.psql("postgres", &format!("CREATE EXTENSION postbox; {sql}"));
    }
    let [shop, office] = [&servers[0].1, &servers[1].1];
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("log");
    let log = OpenOptions::new().create(true).append(true).open(&path).expect("a log");
    let consumer = |from: &Cluster, group: &str, to: &Cluster, inbox: &str| {
        let mut command = tree::clean(postbox_binary());
        command.args(["run", "--database", &from.conninfo("postgres"), "--group", group, "--session-timeout", "3s"]);
        command.args(["--sink", "inbox", "--inbox-url", &to.conninfo("postgres"), "--inbox", inbox]);
        command
    };
    let worker = |name: &'static str, of: &Cluster, inbox: &str| {
        let mut command = tree::clean(postbox_binary());
        command.args([
            "inbox",
            "work",
            inbox,
            "--call",
            "handle",
            "--database",
            &of.conninfo("postgres"),
            "--worker",
            name,
        ]);
        command.args(["--batch-size", "20", "--visibility", "3s", "--poll-interval", "50ms"]);
        Service::new(name, Kind::Worker, command, &log)
    };
    let to_office = consumer(shop, "to_office", office, "orders");
    let to_shop = consumer(office, "to_shop", shop, "charges");
    let mut services = [
        Service::new("the consumer from shop to office", Kind::Consumer, to_office, &log),
        Service::new("the consumer from office to shop", Kind::Consumer, to_shop, &log),
        worker("a worker of the office", office, "orders"),
        worker("another worker of the office", office, "orders"),
        worker("a worker of the shop", shop, "charges"),
        worker("another worker of the shop", shop, "charges"),
    ];
    services.iter_mut().for_each(Service::tend);

    let mut rng = StdRng::seed_from_u64(plan.seed);
    let mut kills = vec![0; services.len() + servers.len()];
    let begin = Instant::now();
    // Orders come in waves, and in the midst of each something is killed.
    let waves = plan.kills + 1;
    let wave = |number: usize| plan.orders * number / waves;
    let may_come = Arc::new(Semaphore::new(wave(1)));
    let customers = tokio::spawn(place(shop.conninfo("postgres"), plan.orders, Arc::clone(&may_come)));
    let (mut paid, mut moved) = (0, Instant::now());
    let mut kill_at = rng.random_range(0..wave(1));
    if plan.kills > 0 {
        // Nobody is done with an order until the lock is gone, so whoever has some dies with them.
        let lock = office.client("postgres").await;
        lock.batch_execute("BEGIN; LOCK TABLE charges IN SHARE MODE").await.expect("a lock");
        let holder = crate::wait_until("a worker has orders", PATIENCE, || {
            let holders = "SELECT worker FROM postbox.inbox_batch WHERE token IS NOT NULL LIMIT 1";
            let name = office.psql("postgres", holders);
            services.iter_mut().for_each(Service::tend);
            services.iter().position(|service| service.name == name)
        });
        say(&format!("     0 paid; SIGKILL to {}, which has orders", services[holder].name));
        services[holder].kill();
        kills[holder] += 1;
        lock.batch_execute("COMMIT").await.expect("no lock");
        may_come.add_permits(wave(2) - wave(1));
        kill_at = rng.random_range(wave(1)..wave(2));
    }
    while paid < plan.orders {
        tokio::time::sleep(Duration::from_millis(2)).await;
        services.iter_mut().for_each(Service::tend);
        let done: usize = kills.iter().sum();
        if done < plan.kills && paid >= kill_at {
            let wanted = [Kind::Worker, Kind::Consumer, Kind::Server].get(done);
            let kind = |victim: usize| services.get(victim).map_or(Kind::Server, |service| service.kind);
            let victims = (0..kills.len()).filter(|victim| wanted.is_none_or(|wanted| kind(*victim) == *wanted));
            let victims = victims.collect::<Vec<_>>();
            let victim = victims[rng.random_range(0..victims.len())];
            kills[victim] += 1;
            match victim.checked_sub(services.len()) {
                None => {
                    say(&format!("{paid:>6} paid; SIGKILL to {}", services[victim].name));
                    services[victim].kill();
                }
                Some(server) => {
                    let (name, cluster, _) = &servers[server];
                    say(&format!("{paid:>6} paid; SIGKILL to {name}"));
                    kill(cluster);
                    cluster.start_again();
                }
            }
            may_come.add_permits(wave(done + 2) - wave(done + 1));
            kill_at = rng.random_range(wave(done + 1)..wave(done + 2));
            moved = Instant::now();
        }
        let now = number(shop, "SELECT count(*) FROM orders WHERE payments > 0").try_into().unwrap_or(0);
        if now > paid {
            (paid, moved) = (now, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let tail = log.lines().rev().take(60).collect::<Vec<_>>();
            panic!("nothing moves with {paid} paid:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
    customers.await.expect("the customers");
    let took = begin.elapsed();
    // What would come twice has the time that the last leases have.
    let leased = "SELECT count(*) FROM postbox.inbox_batch";
    crate::wait_until("the inboxes are empty", PATIENCE, || {
        services.iter_mut().for_each(Service::tend);
        (number(shop, leased) + number(office, leased) == 0).then_some(())
    });
    services.iter_mut().for_each(Service::kill);

    let charged = office.psql("postgres", "SELECT order_id FROM charges GROUP BY 1 HAVING count(*) = 1 ORDER BY 1");
    let payments = shop.psql("postgres", "SELECT id FROM orders WHERE payments = 1 ORDER BY 1");
    let both = |sql: &str| number(shop, sql) + number(office, sql);
    let once = if charged == payments { payments.lines().count() } else { 0 };
    let named = services.iter().map(|service| (service.name, service.kind));
    let named = named.chain(servers.iter().map(|(name, ..)| (*name, Kind::Server)));
    Report {
        placed: number(shop, "SELECT count(*) FROM orders").try_into().unwrap_or(0),
        once,
        kills: named.zip(kills).map(|((name, kind), kills)| (name, kind, kills)).collect(),
        handed_out_again: both("SELECT coalesce(sum(messages), 0) FROM postbox.inbox_log WHERE what = 'failed'"),
        came_again: both(
            "SELECT coalesce(sum(messages), 0) FROM postbox.inbox_log WHERE what IN ('duplicate', 'conflict')",
        ),
        left: both(
            "SELECT (SELECT count(*) FROM postbox.inbox_dead) + (SELECT count(*) FROM postbox.dead_letter) + (SELECT count(*) FROM postbox.inbox_batch)",
        ),
        took,
    }
}

/// Places all orders, each when it may come and until the answer has.
async fn place(conninfo: String, orders: usize, may_come: Arc<Semaphore>) {
    let mut next = 0;
    while next < orders {
        let Ok((client, connection)) = tokio_postgres::connect(&conninfo, NoTls).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(connection);
        while next < orders {
            let may_come = may_come.acquire().await.expect("nobody closes it");
            let number = i32::try_from(next).expect("a small number");
            match client.execute("SELECT place_order($1)", &[&number]).await {
                Ok(_) => {
                    may_come.forget();
                    next += 1;
                }
                Err(error) if error.as_db_error().is_some_and(|error| !error.code().code().starts_with("57")) => {
                    panic!("an order is refused: {error}: {:?}", error.as_db_error())
                }
                Err(_) => break,
            }
        }
    }
}

/// The server and all its processes at once, as when the machine dies. Each of them leads a session of its own.
fn kill(cluster: &Cluster) {
    let server = cluster.pid();
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap_or_default();
    let processes = [server.to_string()].into_iter().chain(children.split_whitespace().map(str::to_owned));
    let processes = processes.collect::<Vec<_>>();
    for process in processes.iter().filter_map(|process| Pid::from_raw(process.parse().ok()?)) {
        // It may have ended just now.
        let _ = kill_process(process, Signal::KILL);
    }
    cluster.stop(Stop::Immediate);
    crate::wait_until("the server's processes are gone", PATIENCE, || {
        let gone = |process: &String| {
            let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            state.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
        };
        processes.iter().all(gone).then_some(())
    });
}

fn number(cluster: &Cluster, sql: &str) -> i64 {
    cluster.psql("postgres", sql).parse().expect("a number")
}
