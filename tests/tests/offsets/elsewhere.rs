//! Copies of a server: nothing is delivered there before somebody says so.

use std::fs;
use std::process::Command;

use postbox_tests::Cluster;

use super::{Office, assert_came, group, names, numbered, run};
use crate::shop::PATIENCE;

fn deliver(cluster: &Cluster, arguments: &[&str]) -> Vec<postbox_tests::Line> {
    let ended = run(cluster, &[&["--exit-when-idle", "200ms"], arguments].concat()).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    ended.lines
}

#[test]
fn a_physical_copy_refuses_until_it_is_recovered() {
    let office = Office::open_with(Cluster::builder().hba("local replication all trust"));
    office.create("latest");
    office.publish("a", 1, 20);
    let before = office.deliver();
    office.publish("a", 21, 30);
    let copy = office.cluster.copy();
    // The original goes on, and so does the copy, each on its own.
    office.publish("original", 1, 5);
    assert_came(&office.deliver(), &[numbered("a", 21, 30), numbered("original", 1, 5)].concat_sets());
    copy.psql("postgres", "INSERT INTO orders (type, key, payload) VALUES ('copy:1', 'copy', '{}')");

    let ended = run(&copy, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(4), 0), "{}", ended.log);
    assert!(ended.log.contains("does not exist") && ended.log.contains("postbox group recover g"), "{}", ended.log);
    let (code, said) = group(&copy, &["recover", "g"]);
    assert_eq!(code, 0, "{said}");
    let came = deliver(&copy, &[]);
    assert_came(&[before, came].concat(), &[numbered("a", 1, 30), numbered("copy", 1, 1)].concat_sets());
}

trait ConcatSets {
    fn concat_sets(self) -> std::collections::BTreeSet<String>;
}

impl<const N: usize> ConcatSets for [std::collections::BTreeSet<String>; N] {
    fn concat_sets(self) -> std::collections::BTreeSet<String> {
        self.into_iter().flatten().collect()
    }
}

/// The transaction ids of the rows are those of the old server: smaller and larger than what the new one has got to, so that
/// its own pass them meanwhile.
#[test]
fn a_dump_restored_elsewhere_is_recovered_whole_whatever_its_transaction_ids() {
    let office = Office::open();
    office.create("latest");
    // About where the new server will be when it has been restored, and beyond.
    office.publish("a", 1, 600);
    assert_eq!(office.deliver().len(), 600);
    let dump = office.cluster.data_dir().join("../dump.sql");
    let dumped = Command::new(office.cluster.bin("pg_dump"))
        .arg("-f")
        .arg(&dump)
        .args(["-d", &office.cluster.conninfo("postgres")])
        .output();
    let dumped = dumped.expect("pg_dump runs");
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));

    let other = Cluster::start();
    other.psql("postgres", &fs::read_to_string(&dump).expect("a dump"));
    // All clusters of the tests are copies of one initdb and have its identifier.
    for table in ["consumer_group", "checkpoint", "sample"] {
        other.psql("postgres", &format!("UPDATE postbox.{table} SET system_identifier = system_identifier - 1"));
    }
    let ended = run(&other, &["--exit-when-idle", "200ms"]).end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(4), 0), "{}", ended.log);
    for text in ["belongs to another server", "postbox group recover g"] {
        assert!(ended.log.contains(text), "{}", ended.log);
    }
    // Rows of every kind: long past, and in the future, which comes.
    let now: u64 = other.psql("postgres", "SELECT pg_snapshot_xmax(pg_current_snapshot())").parse().expect("an id");
    let mut expected = numbered("a", 1, 600);
    other.psql("postgres", &format!("UPDATE orders SET xid = ({now} + seq - 300)::text::xid8"));
    let range = other.psql("postgres", // PostgreSQL 14 has no min(xid8).
        "SELECT bool_or(xid < pg_snapshot_xmin(pg_current_snapshot())), bool_or(xid > pg_snapshot_xmax(pg_current_snapshot())) FROM orders");
    assert_eq!(range, "t|t");
    let (code, said) = group(&other, &["recover", "g"]);
    assert_eq!(code, 0, "{said}");
    // The new server's ids come into the range of the old ones.
    other.psql("postgres", "DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$");
    for n in 1..=10 {
        other.psql("postgres", &format!("INSERT INTO orders (type, key, payload) VALUES ('new:{n}', 'new', '{{}}')"));
    }
    expected.extend(numbered("new", 1, 10));
    let came = deliver(&other, &[]);
    assert_eq!(assert_came(&came, &expected), 0);
    assert_eq!(deliver(&other, &[]), []);
    // And again, by a seek, with ids that still lie ahead.
    assert_eq!(group(&other, &["seek", "g", "--to", "earliest"]).0, 0);
    assert!(names(&deliver(&other, &[])).is_superset(&expected));
    assert_eq!(
        other.psql("postgres", "SELECT detail->>'former_slot' IS NOT NULL FROM postbox.audit WHERE action = 'recover'"),
        "t"
    );
}
