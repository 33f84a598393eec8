//! A server with a backlog of WAL, and the slots that wait in front of it.

use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postbox_tests::Cluster;
use tokio_postgres::Client;

use crate::Outcome;
use crate::measure::{Meter, peak_resident, time_of_own_children};

/// The database, in which everything lies.
pub(crate) const DATABASE: &str = "postgres";

/// A business of two tables, an outbox, and the same outbox as a publication.
pub(crate) const SCHEMA: &str = r#"
    CREATE EXTENSION postbox;
    CREATE TABLE purchase (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        customer bigint NOT NULL,
        total numeric NOT NULL,
        placed_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE stock (article int PRIMARY KEY, quantity bigint NOT NULL) WITH (fillfactor = 50);
    INSERT INTO stock SELECT article, 1000000 FROM generate_series(0, 999) AS article;
    SELECT postbox.create_outbox('events');
    CREATE PUBLICATION events FOR TABLE events WITH (publish = 'insert', publish_via_partition_root = true);

    -- Payload, type and key together have about 300 bytes.
    CREATE FUNCTION payload(n bigint) RETURNS jsonb LANGUAGE sql IMMUTABLE RETURN jsonb_build_object(
        'purchase', n, 'customer', n * 7919 % 100000, 'status', 'confirmed', 'currency', 'EUR',
        'total', round(n % 9973 * 0.37, 2), 'express', n % 3 = 0, 'coupon', NULL,
        'lines', jsonb_build_array(
            jsonb_build_object('article', n % 1000, 'quantity', 1 + n % 3, 'price', round(n % 4999 * 0.01, 2)),
            jsonb_build_object('article', n % 997, 'quantity', 1, 'price', 4.99)),
        'note', 'Ring twice');

    CREATE PROCEDURE without_events(transactions bigint) LANGUAGE plpgsql AS $$
    BEGIN
        FOR n IN 1 .. transactions LOOP
            INSERT INTO purchase (customer, total) VALUES (n * 7919 % 100000, n % 9973 * 0.37);
            UPDATE stock SET quantity = quantity - 1 WHERE article = n % 1000;
            COMMIT;
        END LOOP;
    END $$;
    CREATE PROCEDURE with_one_event(transactions bigint) LANGUAGE plpgsql AS $$
    BEGIN
        FOR n IN 1 .. transactions LOOP
            INSERT INTO purchase (customer, total) VALUES (n * 7919 % 100000, n % 9973 * 0.37);
            UPDATE stock SET quantity = quantity - 1 WHERE article = n % 1000;
            INSERT INTO events (key, type, payload) VALUES (n, 'purchase.confirmed', payload(n));
            COMMIT;
        END LOOP;
    END $$;
    CREATE PROCEDURE with_many_events(transactions bigint, events bigint) LANGUAGE plpgsql AS $$
    BEGIN
        FOR t IN 1 .. transactions LOOP
            INSERT INTO events (key, type, payload)
                SELECT n, 'purchase.confirmed', payload(n) FROM generate_series(t * events, t * events + events - 1) AS n;
            COMMIT;
        END LOOP;
    END $$;
"#;

/// What the transactions of a backlog do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// A business INSERT and UPDATE, and one event.
    Small,
    /// A thousand events.
    Bulk,
    /// A business INSERT and UPDATE, and no event.
    None,
    /// All events in one transaction.
    Single,
    /// So many events a transaction.
    Each(u64),
    /// A thousand events, with a payload of this type.
    Typed(&'static str),
}

fn schema(workload: Workload) -> String {
    let Workload::Typed(payload_type) = workload else { return SCHEMA.to_owned() };
    let payload = match payload_type {
        "bytea" => "convert_to(payload(n)::text, 'UTF8')".to_owned(),
        _ => format!("payload(n)::{payload_type}"),
    };
    let outbox = format!("create_outbox('events', payload_type => '{payload_type}')");
    SCHEMA
        .replace("create_outbox('events')", &outbox)
        .replace("'purchase.confirmed', payload(n)", &format!("'purchase.confirmed', {payload}"))
}

/// WAL with one workload in it.
pub(crate) struct Backlog {
    /// The server.
    pub(crate) cluster: Cluster,
    /// Its transactions.
    pub(crate) transactions: u64,
    /// Their events.
    pub(crate) events: u64,
    /// The position right behind the last of them.
    pub(crate) end: String,
    admin: Client,
}

impl Backlog {
    /// Starts a server, makes a slot for each of the plugins, and lets as many transactions commit.
    pub(crate) async fn produce(workload: Workload, amount: u64, plugins: &[&str]) -> Outcome<Self> {
        let cluster = server().start();
        cluster.psql_result(DATABASE, &schema(workload))?;
        let admin = cluster.client(DATABASE).await;
        for plugin in plugins {
            admin.execute("SELECT pg_create_logical_replication_slot($1, $1)", &[plugin]).await?;
        }
        let (transactions, events, call) = match workload {
            Workload::Small => (amount, amount, format!("CALL with_one_event({amount})")),
            Workload::Bulk => (amount, amount * 1000, format!("CALL with_many_events({amount}, 1000)")),
            Workload::None => (amount, 0, format!("CALL without_events({amount})")),
            Workload::Single => (1, amount, format!("CALL with_many_events(1, {amount})")),
            Workload::Each(events) => {
                let transactions = amount.div_ceil(events);
                (transactions, transactions * events, format!("CALL with_many_events({transactions}, {events})"))
            }
            Workload::Typed(_) => (amount, amount * 1000, format!("CALL with_many_events({amount}, 1000)")),
        };
        cluster.psql(DATABASE, &format!("SET synchronous_commit = off; {call}"));
        let end = admin.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        // Behind the end there must be something more, so that who waits for the end learns at once that it is reached.
        admin.execute("INSERT INTO purchase (customer, total) VALUES (0, 0)", &[]).await?;
        Ok(Self { cluster, transactions, events, end, admin })
    }

    /// Runs a client on a fresh copy of a plugin's slot, whose name it is given, and returns what it took.
    pub(crate) async fn run(&self, plugin: &str, client: impl FnOnce(&str) -> Command) -> Outcome<Cost> {
        let slot = format!("{plugin}_copy");
        self.admin.execute("SELECT pg_copy_logical_replication_slot($1, $2)", &[&plugin, &slot]).await?;
        let mut command = client(&slot);
        let meter = Meter::start(self.cluster.pid())?;
        let client_before = time_of_own_children()?;
        let begin = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let watch = watch_resident(child.id());
        let status = child.wait()?;
        let time = begin.elapsed();
        if !status.success() {
            return Err(format!("{command:?} failed with {status}\n{}", self.cluster.log()).into());
        }
        let client_processor = time_of_own_children()?.saturating_sub(client_before);
        let processor = meter.stop()?;
        self.admin.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await?;
        Ok(Cost {
            time,
            processor,
            client_processor,
            peak: watch.join().map_err(|_| "the watch on the client failed")?,
        })
    }

    /// `pg_recvlogical` that writes what a slot holds, up to the end of the backlog, to a file.
    pub(crate) fn receiver(&self, slot: &str, options: &[&str]) -> Command {
        let mut command = Command::new(self.cluster.bin("pg_recvlogical"));
        command.env_clear().args(["--start", "--no-loop", "--fsync-interval=0", "--status-interval=10"]);
        command.arg("--dbname").arg(self.cluster.conninfo(DATABASE));
        command.args(["--slot", slot, "--endpos", &self.end, "--file"]).arg(self.file());
        for option in options {
            command.args(["--option", option]);
        }
        command
    }

    /// Where a client writes to: beside the server's own files.
    pub(crate) fn file(&self) -> PathBuf {
        self.cluster.socket_dir().join("received")
    }

    /// How many bytes the client wrote, which are then removed.
    pub(crate) fn take_file(&self) -> Outcome<u64> {
        let length = std::fs::metadata(self.file())?.len();
        std::fs::remove_file(self.file())?;
        Ok(length)
    }
}

/// What a client took.
pub(crate) struct Cost {
    /// From its start to its end.
    pub(crate) time: Duration,
    /// The processor time of the server's process that served it.
    pub(crate) processor: Duration,
    /// The processor time of the client.
    pub(crate) client_processor: Duration,
    /// The greatest resident set of the client, in bytes.
    pub(crate) peak: u64,
}

/// Follows the greatest resident set of a client until it ends.
fn watch_resident(pid: u32) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut peak = 0;
        // The kernel keeps the peak, so only what a client adds in its last moments can be missed.
        while let Some(now) = peak_resident(pid) {
            peak = now;
            thread::sleep(Duration::from_millis(5));
        }
        peak
    })
}

/// A server on which nothing happens by itself, and which does not wait for the disk.
pub(crate) fn server() -> postbox_tests::Builder {
    Cluster::builder()
        .setting("autovacuum", "off")
        .setting("checkpoint_timeout", "1h")
        .setting("full_page_writes", "off")
        .setting("max_wal_size", "32GB")
        .setting("shared_buffers", "512MB")
        .setting("wal_sender_timeout", "0")
}
