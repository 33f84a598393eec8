//! Whatever happens in whatever order: what is owed comes, and what was rolled back never does.

use std::collections::BTreeSet;

use postbox_tests::{Line, wait_until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;

use super::{Office, execute, insert, names};
use crate::shop::PATIENCE;

/// Steps of one run.
const STEPS: usize = 40;

struct World {
    office: Office,
    rng: StdRng,
    /// Transactions that are open, with the names of what they have inserted.
    open: Vec<(Client, Vec<String>)>,
    number: usize,
    committed: BTreeSet<String>,
    /// Committed, and skipped by a seek: need not come.
    skipped: BTreeSet<String>,
    /// What has to come from now on, after a seek even what has come before.
    owed: BTreeSet<String>,
    came: Vec<Line>,
}

impl World {
    fn name(&mut self) -> String {
        self.number += 1;
        format!("e{}", self.number)
    }

    async fn begin(&mut self) {
        let client = self.office.client().await;
        let name = self.name();
        execute(&client, &format!("BEGIN; {}", insert(&name, 10))).await;
        let mut inserted = vec![name];
        if self.rng.random_bool(0.5) {
            let (kept, gone) = (self.name(), self.name());
            let sql = format!(
                "SAVEPOINT a; {} RELEASE a; SAVEPOINT b; {} ROLLBACK TO b",
                insert(&kept, 10),
                insert(&gone, 10)
            );
            execute(&client, &sql).await;
            inserted.push(kept);
        }
        self.open.push((client, inserted));
    }

    async fn end(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.open.len());
        let (client, inserted) = self.open.swap_remove(index);
        if self.rng.random_bool(0.8) {
            execute(&client, "COMMIT").await;
            self.committed.extend(inserted.iter().cloned());
            self.owed.extend(inserted);
        } else {
            execute(&client, "ROLLBACK").await;
        }
    }

    fn publish(&mut self) {
        for _ in 0..self.rng.random_range(1..40) {
            let name = self.name();
            self.office.psql(&insert(&name, 10));
            self.committed.insert(name.clone());
            self.owed.insert(name);
        }
    }

    /// Runs a member for some events, and lets it end or kills it.
    fn deliver_some(&mut self) {
        let most = self.rng.random_range(1..30);
        let ended = if self.rng.random_bool(0.5) {
            self.office.run(&["--exit-when-idle", "50ms", "--max-events", &most.to_string()]).end(PATIENCE)
        } else {
            let mut run = self.office.run(&["--exit-when-idle", "1h"]);
            run.wait_for_log("in epoch", 1, PATIENCE);
            if !self.owed.is_empty() && self.rng.random_bool(0.7) {
                run.wait_for(1, PATIENCE);
            }
            run.kill()
        };
        self.take(ended.lines);
    }

    fn take(&mut self, lines: Vec<Line>) {
        for line in &lines {
            self.owed.remove(&line.event_type);
        }
        self.came.extend(lines);
    }

    /// Moves and recoveries wait for the writers that are open.
    async fn settle(&mut self) {
        while !self.open.is_empty() {
            self.end().await;
        }
        wait_until("the slot is free", PATIENCE, || {
            (self.office.psql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0").then_some(())
        });
    }

    fn group(&self, arguments: &[&str]) {
        let (code, said) = self.office.group(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..20) {
            0..5 => self.publish(),
            5..8 => self.begin().await,
            8..11 => self.end().await,
            11..15 => self.deliver_some(),
            15 => {
                self.settle().await;
                self.office.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
                self.group(&["recover", "g"]);
            }
            16 => {
                self.settle().await;
                self.group(&["seek", "g", "--to", "earliest"]);
                self.owed = self.committed.clone();
            }
            17 => {
                self.settle().await;
                self.group(&["seek", "g", "--to", "latest"]);
                self.skipped.append(&mut self.owed);
            }
            18 => {
                self.group(&["pause", "g"]);
                let run = self.office.run(&[]);
                self.publish();
                assert_eq!(run.kill().lines, []);
                self.group(&["resume", "g"]);
            }
            _ => drop(self.office.psql("SELECT postbox.maintain(true)")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_nothing_owed_is_lost_and_nothing_undone_comes() {
    let seed = std::env::var("POSTBOX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("POSTBOX_SEED={seed}");
    let office = Office::open();
    office.psql(&insert("early", 10));
    office.create("earliest");
    let mut world = World {
        office,
        rng: StdRng::seed_from_u64(seed),
        open: Vec::new(),
        number: 0,
        committed: BTreeSet::from(["early".to_owned()]),
        skipped: BTreeSet::new(),
        owed: BTreeSet::from(["early".to_owned()]),
        came: Vec::new(),
    };
    for _ in 0..STEPS {
        world.step().await;
    }
    world.settle().await;
    let rest = world.office.deliver();
    world.take(rest);
    assert!(world.owed.is_empty(), "seed {seed}: lost {:?}", world.owed);
    let foreign: Vec<_> = names(&world.came).difference(&world.committed).cloned().collect();
    assert!(foreign.is_empty(), "seed {seed}: rolled back: {foreign:?}");
    assert_eq!(world.committed, world.office.stored());
    println!("{} committed, {} came, {} skipped", world.committed.len(), world.came.len(), world.skipped.len());
}
