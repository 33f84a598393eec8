//! What a function has said is done is done after a crash, although the database says `synchronous_commit = off`.

use postbox_tests::Cluster;

/// With nobody who writes the log by the way.
fn start() -> Cluster {
    let cluster =
        Cluster::builder().setting("wal_writer_delay", "10s").setting("autovacuum", "off").with_postbox().start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    cluster.psql("postgres", "ALTER DATABASE postgres SET synchronous_commit = off");
    cluster
}

#[test]
fn what_was_said_to_be_done_survives_a_crash() {
    let cluster = start();
    // The test would see what is lost.
    cluster.psql("postgres", "INSERT INTO orders (type, payload) VALUES ('lost', '{}')");
    cluster.crash();
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM orders"), "0");

    let group = "SELECT epoch, paused_at IS NOT NULL, wal_budget FROM postbox.consumer_group";
    let slots = "SELECT count(*) FROM pg_replication_slots";
    for (call, query, expected) in [
        ("create_consumer_group('g', '{orders}')", group, "0|f|"),
        ("pause_consumer_group('g')", group, "0|t|"),
        ("set_wal_budget('g', 1000000)", group, "0|t|1000000"),
        ("_activate('g', 'me', '10 s', '1 min')", group, "1|t|1000000"),
        ("seek_consumer_group('g', 'earliest')", "SELECT reason FROM postbox.backfill", "seek to earliest"),
        ("seek_consumer_group('g', 'latest')", "SELECT count(*) FROM postbox.backfill", "0"),
        ("recover_consumer_group('g')", "SELECT slot_generation FROM postbox.consumer_group", "1"),
        ("resume_consumer_group('g')", "SELECT paused_at IS NULL FROM postbox.consumer_group", "t"),
        ("drop_consumer_group('g')", "SELECT count(*) FROM postbox.consumer_group", "0"),
    ] {
        cluster.psql("postgres", &format!("SELECT postbox.{call}"));
        cluster.crash();
        assert_eq!(cluster.psql("postgres", query), expected, "{call} was lost");
        let count = if call.starts_with("drop") { "0" } else { "1" };
        assert_eq!(cluster.psql("postgres", slots), count, "{call}");
    }
}
