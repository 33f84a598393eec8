//! `postbox run --sink inbox`: the outbox of one server, the inbox of another, and every event there once.

use std::collections::BTreeSet;

use postbox::{Consumer, InboxTarget};
use postbox_tests::{Cluster, Proxy, Run, Stop, postbox_binary, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::shop::PATIENCE;

/// A shop that publishes, and an office that receives.
pub(super) struct Pair {
    pub(super) shop: Cluster,
    pub(super) office: Cluster,
}

impl Pair {
    pub(super) fn open() -> Self {
        let pair = Self { shop: Cluster::with_postbox(), office: Cluster::with_postbox() };
        for cluster in [&pair.shop, &pair.office] {
            // Durability is not for the database to give.
            cluster.psql("postgres", "ALTER DATABASE postgres SET synchronous_commit = off");
        }
        pair.shop("SELECT postbox.create_outbox('orders'); SELECT postbox.create_consumer_group('g', '{orders}')");
        pair.office("SELECT postbox.create_inbox('orders')");
        pair
    }

    pub(super) fn shop(&self, sql: &str) -> String {
        self.shop.psql("postgres", sql)
    }

    pub(super) fn office(&self, sql: &str) -> String {
        self.office.psql("postgres", sql)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        self.arguments_to(&self.office.conninfo("postgres"), more)
    }

    fn arguments_to(&self, office: &str, more: &[&str]) -> Vec<String> {
        let timeout = if more.contains(&"--session-timeout") { &[][..] } else { &["--session-timeout", "3s"] };
        let common = ["--group", "g", "--no-maintenance", "--retry-max", "200ms"];
        let inbox = ["--sink", "inbox", "--inbox", "orders", "--inbox-url", office];
        [&common[..], timeout, &inbox, more].concat().into_iter().map(str::to_owned).collect()
    }

    fn member(&self, more: &[&str]) -> Run {
        let arguments = self.arguments(more);
        Run::start(&self.shop.conninfo("postgres"), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Takes over what there is.
    fn drain(&self, more: &[&str]) -> String {
        let ended = self.member(&[&["--exit-when-idle", "300ms"], more].concat()).end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        ended.log
    }

    /// One transaction of events `from` to `to`; the type of an event is its number.
    fn publish(&self, from: usize, to: usize) {
        self.shop(&format!(
            "INSERT INTO orders (type, key, payload) SELECT n, 'k' || n % 7, jsonb_build_object('n', n) FROM generate_series({from}, {to}) n"
        ));
    }

    /// The committed events. A crash may have taken some whose commit was reported.
    fn published(&self) -> Vec<String> {
        self.shop("SELECT type FROM orders ORDER BY length(type), type").lines().map(str::to_owned).collect()
    }

    fn received(&self) -> Vec<String> {
        let sql = "SELECT event_type FROM orders ORDER BY length(event_type), event_type";
        self.office(sql).lines().map(str::to_owned).collect()
    }

    /// Every committed event is there, once, and handed out once; of these so many came again.
    fn check(&self) -> usize {
        let published = self.published();
        assert_eq!(self.received(), published);
        let (waiting, ids) = (
            self.office("SELECT count(*) FROM postbox.inbox_batch b, unnest(b.event_ids)"),
            self.office("SELECT count(DISTINCT id) FROM postbox.inbox_batch b, unnest(b.event_ids) id"),
        );
        assert_eq!([&waiting, &ids], [&published.len().to_string(); 2]);
        self.came_again()
    }

    /// Messages that the inbox was given and had.
    fn came_again(&self) -> usize {
        let sql = "SELECT coalesce(sum(messages), 0) FROM postbox.inbox_log WHERE what IN ('duplicate', 'conflict')";
        self.office(sql).parse().expect("a number")
    }

    fn wait_until_all_received(&self) {
        wait_until("all that was published is received", PATIENCE, || {
            (self.received().len() >= self.published().len()).then_some(())
        });
    }

    fn wait_until_received(&self, events: usize) {
        wait_until(&format!("{events} messages"), PATIENCE, || (self.received().len() >= events).then_some(()));
    }
}

#[test]
fn an_event_becomes_a_message() {
    let pair = Pair::open();
    pair.shop(
        "SELECT postbox.create_outbox('texts', payload_type => 'text'), postbox.create_outbox('bytes', payload_type => 'bytea');
         CREATE TABLE numbered (id bigint PRIMARY KEY, type text, body json);
         SELECT postbox.adopt_outbox('numbered', event_id => 'id', type => 'type', payload => 'body');
         SELECT postbox.create_consumer_group('all', '{orders, texts, bytes, numbered}')",
    );
    pair.shop(
        r#"BEGIN;
         SELECT postbox.publish('orders', 'paid', '{"a": 1}'::jsonb, key => 'k-1', event_id => '00000000-0000-4000-8000-000000000001',
             headers => '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "seq": 7, "urgency": "2"}');
         SELECT postbox.publish('texts', 'said', 'it''s "text"'::text, event_id => '00000000-0000-4000-8000-000000000002');
         SELECT postbox.publish('bytes', 'sent', decode(repeat('ff', 100), 'hex'), event_id => '00000000-0000-4000-8000-000000000003');
         INSERT INTO numbered VALUES (5, 'adopted', '{"b" : 2}');
         COMMIT;"#,
    );
    let arguments =
        pair.arguments(&["--sequence-header", "seq", "--priority-header", "urgency", "--exit-when-idle", "300ms"]);
    let arguments = arguments.iter().map(|word| if word == "g" { "all" } else { word }).collect::<Vec<_>>();
    let ended = Run::start(&pair.shop.conninfo("postgres"), &arguments).end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let messages = pair.office(
        "SELECT event_id, event_type, source, aggregate_id, sequence_num, priority, payload, trace_id, headers ->> 'seq' FROM orders ORDER BY event_type",
    );
    let base64 = "/".repeat(133);
    assert_eq!(
        messages.lines().collect::<Vec<_>>(),
        [
            r#"/postbox/postgres/public/numbered/5|adopted|/postbox/postgres/public/numbered||||{"b": 2}||"#,
            r#"00000000-0000-4000-8000-000000000001|paid|/postbox/postgres/public/orders|k-1|7|2|{"a": 1}|0af7651916cd43dd8448eb211c80319c|7"#,
            r#"00000000-0000-4000-8000-000000000002|said|/postbox/postgres/public/texts||||"it's \"text\""||"#,
            &format!(r#"00000000-0000-4000-8000-000000000003|sent|/postbox/postgres/public/bytes||||"{base64}w=="||"#),
        ]
    );
    assert_eq!(pair.office("SELECT count(DISTINCT xmin::text) FROM orders"), "1", "one transaction there, one here");
    let stream = "SELECT group_name, database_name, epoch, ordinal, commit_lsn IS NOT NULL, system_identifier FROM postbox.inbox_stream";
    let identity = pair.shop("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(pair.office(stream), format!("all|postgres|1|3|t|{identity}"));
}

#[test]
fn columns_of_an_inbox_may_have_other_names_and_types_or_be_missing() {
    let pair = Pair::open();
    pair.shop("SELECT postbox.create_outbox('bytes', payload_type => 'bytea'); SELECT postbox.create_consumer_group('h', '{orders, bytes}')");
    pair.shop(
        "SELECT postbox.publish('orders', 't', '{\"a\": 1}'::jsonb), postbox.publish('bytes', 'b', 'xyz'::bytea)",
    );
    for (inbox, body, expected, handed_out) in [
        ("mail", "text", "b|eHl6\nt|{\"a\": 1}", "b|\"eHl6\"\nt|\"{\\\"a\\\": 1}\""),
        ("heap", "bytea", "b|\\x78797a\nt|\\x7b2261223a20317d", "b|\"eHl6\"\nt|\"eyJhIjogMX0=\""),
    ] {
        pair.office(&format!(
            "CREATE TABLE \"The {inbox}\" (id uuid PRIMARY KEY, \"Kind\" varchar(20), body {body});
             SELECT postbox.enable_inbox_tracking('\"The {inbox}\"', '{inbox}', event_id => 'id', event_type => 'Kind', payload => 'body')"
        ));
        let into = |more: &[&str]| {
            let arguments = pair.arguments(&[&["--exit-when-idle", "300ms"], more].concat());
            let arguments = arguments.iter().map(|word| match word.as_str() {
                "g" => "h",
                "orders" => inbox,
                word => word,
            });
            let ended = Run::start(&pair.shop.conninfo("postgres"), &arguments.collect::<Vec<_>>()).end(PATIENCE);
            assert_eq!(ended.code, Some(0), "{}", ended.log);
        };
        for duplicates in ["0", "2"] {
            pair.shop("SELECT postbox.seek_consumer_group('h', 'earliest')");
            into(&[]);
            assert_eq!(pair.office(&format!("SELECT \"Kind\", body FROM \"The {inbox}\" ORDER BY 1")), expected);
            let status = format!("SELECT duplicates, conflicts, pending FROM postbox.inbox_status('{inbox}')");
            assert_eq!(pair.office(&status), format!("{duplicates}|0|2"), "what comes again is known");
        }
        let claim = format!("SELECT event_type, payload FROM postbox.inbox_claim('{inbox}', 'w') ORDER BY event_type");
        assert_eq!(pair.office(&claim), handed_out);
    }
}

#[test]
fn an_inbox_whose_workers_write_into_it_is_written_to_as_well() {
    let pair = Pair::open();
    pair.office("SELECT postbox.drop_inbox('orders', cascade => true); SELECT postbox.create_inbox('orders', style => 'update', max_retries => 0)");
    pair.publish(0, 9);
    pair.drain(&[]);
    assert_eq!(pair.received(), pair.published());
    let states = "SELECT count(*), count(processed_at), sum(retry_count), (SELECT count(*) FROM postbox.inbox_batch) FROM orders";
    assert_eq!(pair.office(states), "10|0|0|0", "in the table, and in no queue");
    // What workers have written stays when it comes again.
    pair.office("UPDATE orders SET processed_at = now() WHERE event_type::int < 5; UPDATE orders SET retry_count = 1, error = 'no' WHERE event_type = '7'");
    pair.shop("SELECT postbox.seek_consumer_group('g', 'earliest')");
    pair.publish(10, 19);
    pair.drain(&[]);
    assert_eq!(pair.received(), pair.published());
    assert_eq!(pair.office(states), "20|5|1|0");
    let status = "SELECT pending, dead, processed, duplicates, conflicts FROM postbox.inbox_status('orders')";
    assert_eq!(pair.office(status), "14|1|5|10|0");
}

#[test]
fn events_from_pgoutput_become_messages_once() {
    let pair = Pair::open();
    pair.shop("SELECT postbox.drop_consumer_group('g'); SELECT postbox.enable_pgoutput(); SELECT postbox.create_consumer_group('g', '{orders}', source => 'pgoutput')");
    let source = ["--source", "pgoutput"];
    for n in 0..30 {
        pair.publish(n * 100, n * 100 + 99);
    }
    // It goes away in the middle of a transaction, and comes again to all of it.
    pair.drain(&[&source[..], &["--max-events", "250"]].concat());
    assert_eq!(pair.received().len(), 250);
    pair.drain(&source);
    assert_eq!(pair.check(), 0);
    let parted = "SELECT count(*) FROM (SELECT FROM orders WHERE event_type::int NOT BETWEEN 200 AND 299 GROUP BY event_type::int / 100 HAVING count(DISTINCT xmin::text) > 1) parted";
    assert_eq!(pair.office(parted), "0");
    let shape = "SELECT count(*) FROM orders WHERE aggregate_id = 'k' || event_type::int % 7 AND payload = jsonb_build_object('n', event_type::int) AND source = '/postbox/postgres/public/orders'";
    assert_eq!(pair.office(shape), "3000");
    // Killed before it has confirmed what is committed: the position says what is there.
    let arguments = pair.arguments(&source);
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    let mut killed = Run::start_with_failpoint(&pair.shop.conninfo("postgres"), &arguments, "deliver.after-sink=kill");
    pair.publish(3000, 3099);
    killed.wait_until_gone(PATIENCE);
    killed.end(PATIENCE);
    assert_eq!(pair.received().len(), 3100);
    pair.drain(&source);
    assert_eq!(pair.check(), 0);
}

#[test]
fn transactions_are_not_parted_unless_they_are_large() {
    let pair = Pair::open();
    for n in 0..30 {
        pair.publish(n * 100, n * 100 + 99);
    }
    pair.publish(3000, 9999);
    pair.publish(10_000, 10_050);
    pair.drain(&[]);
    assert_eq!(pair.check(), 0);
    let parted = "SELECT count(*) FROM (SELECT FROM orders WHERE event_type::int < 3000 GROUP BY event_type::int / 100 HAVING count(DISTINCT xmin::text) > 1) parted";
    assert_eq!(pair.office(parted), "0");
    let most = "SELECT max(n) FROM (SELECT count(*) AS n FROM orders GROUP BY xmin::text) sizes";
    assert_eq!(pair.office(most), "1000");
}

#[test]
fn what_comes_again_is_known() {
    let pair = Pair::open();
    pair.publish(0, 9);
    pair.drain(&["--max-events", "7"]);
    assert_eq!(pair.received().len(), 7, "a part of the transaction is enough");
    // Nothing of it is confirmed, so all of it comes; the position says what is new.
    pair.drain(&[]);
    assert_eq!(pair.check(), 0);

    pair.publish(10, 19);
    pair.drain(&[]);
    pair.shop("SELECT postbox.seek_consumer_group('g', 'earliest')");
    pair.publish(20, 29);
    pair.drain(&[]);
    assert_eq!(pair.check(), 20, "what comes from the table is known by its id");

    pair.shop("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    pair.publish(30, 39);
    pair.drain(&["--recover"]);
    assert!(pair.check() >= 20);

    pair.shop("SELECT postbox.drop_consumer_group('g'); SELECT postbox.create_consumer_group('g', '{orders}', start => 'earliest')");
    pair.publish(40, 49);
    pair.drain(&[]);
    pair.check();
    assert_eq!(pair.office("SELECT epoch FROM postbox.inbox_stream"), "1", "that of the group made anew");
}

#[test]
fn after_a_promotion_ids_tell_what_came() {
    let shop = Cluster::builder().hba("local replication all trust").with_postbox().start();
    let pair = Pair { shop, office: Cluster::with_postbox() };
    pair.shop("SELECT postbox.create_outbox('orders'); SELECT postbox.create_consumer_group('g', '{orders}')");
    pair.office("SELECT postbox.create_inbox('orders')");
    pair.publish(0, 9);
    pair.drain(&[]);
    let standby = pair.shop.standby();
    let old = pair.office("SELECT id FROM postbox.inbox_stream");
    standby.psql("postgres", "SELECT pg_promote()");
    let promoted = Pair { shop: standby, office: pair.office };
    wait_until("promoted", PATIENCE, || (promoted.shop("SELECT pg_is_in_recovery()") == "f").then_some(()));
    promoted.publish(10, 19);
    promoted.drain(&["--recover"]);
    promoted.check();
    assert_eq!(
        promoted.office("SELECT count(*), min(timeline) FROM postbox.inbox_stream"),
        "1|2",
        "the row of the old server is gone"
    );
    let late = promoted.office.psql_result(
        "postgres",
        &format!("SELECT postbox._stream_into_inbox({old}, 1, NULL, NULL, '{{x}}', '{{x}}', '{{x}}', '{{x}}', '{{NULL}}', '{{NULL}}', '{{json}}')"),
    );
    assert!(late.expect_err("fenced").contains("token 1 is stale"));
}

#[test]
fn a_position_beyond_the_log_is_of_another_history() {
    let pair = Pair::open();
    pair.publish(0, 9);
    pair.drain(&[]);
    pair.office("UPDATE postbox.inbox_stream SET commit_lsn = 'FFFF/0'");
    pair.publish(10, 19);
    pair.drain(&[]);
    pair.check();
}

#[test]
fn a_former_member_is_refused() {
    let pair = Pair::open();
    pair.publish(0, 9);
    pair.drain(&[]);
    pair.publish(10, 19);
    pair.drain(&[]);
    let open = |epoch: i32, age: &str| {
        let sql = format!(
            "SELECT (postbox._open_inbox_stream('orders', s.system_identifier, s.timeline, s.database_oid, 'postgres', 'g', s.group_created_at - interval '{age}', \
             s.commit_lsn, {epoch}, 'me', NULL, NULL)).token FROM postbox.inbox_stream s"
        );
        pair.office.psql_result("postgres", &sql)
    };
    for (epoch, age) in [(1, "0"), (9, "1 second")] {
        let error = open(epoch, age).expect_err("an earlier one");
        for says in ["has been replaced", "in epoch 2", "DELETE FROM postbox.inbox_stream WHERE id = "] {
            assert!(error.contains(says), "{error}");
        }
    }
    assert_eq!(open(2, "0"), Ok("3".to_owned()), "a member that connects again");
    let stale =
        "SELECT postbox._stream_into_inbox(1, 2, NULL, NULL, '{x}', '{x}', '{x}', '{x}', '{NULL}', '{NULL}', '{json}')";
    assert!(pair.office.psql_result("postgres", stale).expect_err("stale").contains("token 2 is stale"));

    // A group that was set back does not count on until it is in front: its position may lie beyond events that the inbox has not.
    pair.office("UPDATE postbox.inbox_stream SET epoch = 5");
    pair.publish(20, 29);
    let ended = pair.member(&["--exit-when-idle", "300ms"]).end(PATIENCE);
    assert_eq!((ended.code, pair.received().len()), (Some(4), 20), "{}", ended.log);
    let hint = "DELETE FROM postbox.inbox_stream WHERE id = 1";
    assert!(ended.log.contains("has been replaced") && ended.log.contains(hint), "{}", ended.log);
    pair.office(hint);
    pair.drain(&[]);
    assert_eq!(pair.check(), 0);
}

#[test]
fn what_an_inbox_refuses_is_a_dead_letter() {
    let pair = Pair::open();
    pair.office("ALTER TABLE orders ADD CONSTRAINT even CHECK (event_type !~ '^7')");
    // With a code of its own.
    pair.office(
        "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'odd' USING ERRCODE = 'ZX001'; END $$;
         CREATE TRIGGER odd BEFORE INSERT ON orders FOR EACH ROW WHEN (new.event_type ~ '^3') EXECUTE FUNCTION odd()",
    );
    pair.shop("ALTER TABLE orders ALTER type DROP NOT NULL");
    pair.publish(0, 99);
    pair.shop("INSERT INTO orders (type, payload) VALUES (NULL, '{}')");
    pair.publish(100, 149);
    pair.drain(&[]);
    assert_eq!(pair.received().len(), 150 - 22);
    let letters = pair.shop("SELECT why, count(*), count(*) FILTER (WHERE error LIKE '%even%'), min(attempts) FROM postbox.dead_letters GROUP BY 1 ORDER BY 1");
    assert_eq!(letters, "failed|22|11|1\nunreadable|1|0|0");
    assert_eq!(pair.came_again(), 0, "nobody was written twice to find them");

    pair.office("ALTER TABLE orders DROP CONSTRAINT even; DROP TRIGGER odd ON orders");
    pair.shop("SELECT postbox.redrive_dead_letters('g', every => true)");
    pair.drain(&[]);
    assert_eq!(pair.received().len(), 150);
    assert_eq!(pair.shop("SELECT why, attempts FROM postbox.dead_letters"), "unreadable|1");
}

/// Both have one code, 42501.
#[test]
fn a_message_that_a_policy_refuses_is_a_dead_letter_and_a_missing_right_is_none() {
    let pair = Pair::open();
    pair.office(
        "CREATE ROLE clerk LOGIN; SELECT postbox.grant_role('receiver', 'clerk', '{orders}'); ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
         CREATE POLICY all_but_sevens ON orders FOR INSERT TO clerk WITH CHECK (event_type !~ '^7'); CREATE POLICY all_seen ON orders FOR SELECT TO clerk USING (true)",
    );
    let office = format!("host=127.0.0.1 port={} user=clerk dbname=postgres", pair.office.port());
    let arguments = pair.arguments_to(&office, &["--exit-when-idle", "300ms"]);
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    let run = || Run::start(&pair.shop.conninfo("postgres"), &arguments).end(PATIENCE);
    pair.publish(0, 9);
    let ended = run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(pair.received().join(" "), "0 1 2 3 4 5 6 8 9");
    let letters = "SELECT why, attempts, error LIKE '%row-level security%' FROM postbox.dead_letters";
    assert_eq!(pair.shop(letters), "failed|1|t");

    pair.office("REVOKE INSERT ON orders FROM clerk");
    pair.publish(10, 12);
    let ended = run();
    assert_eq!(ended.code, Some(6), "{}", ended.log);
    assert!(ended.log.contains("permission denied for table orders"), "{}", ended.log);
    assert_eq!(pair.shop("SELECT count(*) FROM postbox.dead_letters"), "1");
}

#[test]
fn an_inbox_that_is_not_there_is_waited_for() {
    let pair = Pair::open();
    pair.publish(0, 9);
    pair.office.stop(Stop::Fast);
    let mut member = pair.member(&[]);
    member.wait_for_log("takes nothing now", 2, PATIENCE);
    let ended = member.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);

    let mut member = pair.member(&[]);
    member.wait_for_log("takes nothing now", 1, PATIENCE);
    assert_eq!(pair.shop("SELECT count(*) FROM pg_replication_slots WHERE active"), "1", "it keeps its place");
    pair.office.start_again();
    pair.wait_until_received(10);
    for stop in [Stop::Fast, Stop::Immediate] {
        pair.office.restart(stop);
        let events = pair.received().len();
        pair.publish(events, events + 9);
        pair.wait_until_received(events + 10);
    }
    assert_eq!(member.terminate(PATIENCE).code, Some(0));
    assert_eq!(pair.check(), 0);
}

/// A member that is killed or stands still at a step, a server that crashes, a link that is cut: nothing is lost, nothing comes twice, and nothing
/// is even sent twice, because the position says what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Member,
    Shop,
    Office,
    Link,
}

fn run(step: &str, fault: Fault) {
    let pair = Pair::open();
    pair.publish(0, 9);
    pair.drain(&[]);
    pair.publish(10, 19);
    let proxy = Proxy::to(pair.office.port());
    let through = format!("host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=5", proxy.port());
    let action = if fault == Fault::Member { "kill" } else { "stop" };
    let arguments = pair.arguments_to(&through, &["--member", "one"]);
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    let mut one = Run::start_with_failpoint(&pair.shop.conninfo("postgres"), &arguments, &format!("{step}={action}"));
    let mut published = 20;
    wait_until(&format!("the member reaches {step}"), PATIENCE, || {
        if published < 60 && pair.received().len() == published {
            pair.publish(published, published + 9);
            published += 10;
        }
        one.log().contains("failpoint ").then_some(())
    });
    pair.publish(published, published + 9);
    match fault {
        Fault::Member => one.wait_until_gone(PATIENCE),
        Fault::Shop => pair.shop.restart(Stop::Immediate),
        Fault::Office => pair.office.restart(Stop::Immediate),
        Fault::Link => proxy.cut(),
    }
    let two = pair.member(&["--member", "two"]);
    // One that stands still is given up; one whose connections are gone too.
    pair.wait_until_all_received();
    if fault != Fault::Member {
        one.signal(Signal::CONT);
    }
    pair.publish(published + 10, published + 19);
    pair.wait_until_all_received();
    assert_eq!(two.terminate(PATIENCE).code, Some(0));
    let one = if fault == Fault::Member { one.end(PATIENCE) } else { one.terminate(PATIENCE) };
    // 4: it has noticed that it was replaced before the signal came.
    assert!([None, Some(0), Some(3), Some(4)].contains(&one.code), "{:?} {}", one.code, one.log);
    assert_eq!(pair.check(), 0, "{}", one.log);
}

macro_rules! matrix {
    ($($name:ident: $step:literal;)*) => {
        pub(crate) const STEPS: &[&str] = &[$($step),*];
        mod member_killed { $(#[test] fn $name() { super::run($step, super::Fault::Member); })* }
        mod shop_crashed { $(#[test] fn $name() { super::run($step, super::Fault::Shop); })* }
        mod office_crashed { $(#[test] fn $name() { super::run($step, super::Fault::Office); })* }
        mod link_cut { $(#[test] fn $name() { super::run($step, super::Fault::Link); })* }
    };
}

matrix! {
    after_open: "inbox.after-open";
    before_write: "deliver.before-sink@2";
    before_commit: "inbox.before-commit@2";
    at_commit: "inbox.at-commit@2";
    after_commit: "deliver.after-sink@2";
    before_confirm: "confirm.before@2";
}

/// Whoever stood still for so long that another member may have the group by now writes nothing, although its transaction is open still.
#[test]
fn a_member_whose_lease_has_run_out_rolls_back() {
    let pair = Pair::open();
    pair.publish(0, 9);
    pair.drain(&[]);
    pair.publish(10, 19);
    let arguments = pair.arguments(&["--session-timeout", "10s"]);
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    let shop = pair.shop.conninfo("postgres");
    let mut member = Run::start_with_failpoint(&shop, &arguments, "inbox.before-commit=stop");
    member.wait_for_log("failpoint inbox.before-commit: stop", 1, PATIENCE);
    let rolled_back = || {
        let sql =
            "SELECT pg_stat_clear_snapshot(), xact_rollback FROM pg_stat_database WHERE datname = current_database()";
        pair.office(sql).trim_start_matches('|').parse::<u64>().expect("a number")
    };
    let before = rolled_back();
    // The lease ends a fifth of the time before the server ends an idle transaction.
    wait_until("the lease has run out", PATIENCE, || {
        let sql = "SELECT clock_timestamp() - state_change > '8.2 s' FROM pg_stat_activity WHERE state = 'idle in transaction'";
        (pair.office(sql) == "t").then_some(())
    });
    // Nobody answers before it has looked at its lease, which would be renewed.
    let control = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'postbox:g:%' AND backend_type = 'client backend'";
    let control =
        pair.shop.psql("postgres", control).parse().ok().and_then(Pid::from_raw).expect("the control session");
    kill_process(control, Signal::STOP).expect("it stands still");
    member.signal(Signal::CONT);
    wait_until("it rolls back", PATIENCE, || (rolled_back() > before).then_some(()));
    kill_process(control, Signal::CONT).expect("it goes on");
    pair.wait_until_all_received();
    let ended = member.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(!ended.log.contains("takes nothing now"), "the connection was there: {}", ended.log);
    assert_eq!(pair.check(), 0, "{}", ended.log);
}

#[test]
fn workers_are_told_once_a_message_is_there() {
    let pair = Pair::open();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    runtime.block_on(async {
        let (client, mut connection) =
            tokio_postgres::connect(&pair.office.conninfo("postgres"), NoTls).await.expect("a connection");
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = tell.send(notification);
                }
            }
        });
        client.batch_execute("LISTEN postbox_inbox").await.expect("LISTEN");
        let member = pair.member(&[]);
        pair.publish(0, 9);
        let notification = tokio::time::timeout(PATIENCE, told.recv()).await.expect("in time").expect("told");
        assert_eq!(notification.payload(), "orders");
        let backend = pair.office("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'postbox:g:%'");
        assert_eq!(notification.process_id().to_string(), backend);
        assert_eq!(pair.received().len(), 10);
        // Many transactions, few words.
        let begin = std::time::Instant::now();
        let insert = "INSERT INTO orders (type, payload) SELECT n, '{}' FROM generate_series";
        pair.shop(&(1..500).map(|n| format!("{insert}({0}0, {0}9) n;", n)).collect::<String>());
        pair.wait_until_received(5000);
        assert_eq!(member.terminate(PATIENCE).code, Some(0));
        drop(client);
        let mut words = 0;
        while told.recv().await.is_some() {
            words += 1;
        }
        let most = begin.elapsed().as_millis() / 50 + 2;
        assert!((1..=most).contains(&words), "{words}, at most {most}");
    });
}

#[test]
fn the_library_and_the_file_do_the_same() {
    let pair = Pair::open();
    pair.publish(0, 9);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let delivered = runtime.block_on(async {
        let target = InboxTarget::new(pair.office.conninfo("postgres"), "orders").source("/shop/");
        let consumer = Consumer::builder(pair.shop.conninfo("postgres")).group("g");
        let running =
            tokio::spawn(
                async move { consumer.deliver_into(&target, async { stopped.await.unwrap_or_default() }).await },
            );
        tokio::task::block_in_place(|| pair.wait_until_received(10));
        stop.send(()).expect("it runs");
        running.await.expect("it ends").expect("well")
    });
    assert_eq!(delivered, 10);
    assert_eq!(pair.office("SELECT DISTINCT source FROM orders"), "/shop/public/orders");

    pair.publish(10, 19);
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("postbox.toml");
    let text = format!(
        "[[run]]\ngroup = 'g'\nsink = 'inbox'\ninbox-url = '{}'\ninbox = 'orders'\nexit-when-idle = '300ms'\n",
        pair.office.conninfo("postgres")
    );
    std::fs::write(&file, text).expect("a file");
    let mut serve = std::process::Command::new(postbox_binary());
    serve.args(["serve", "--database", &pair.shop.conninfo("postgres")]).arg(&file);
    assert!(serve.status().expect("postbox").success());
    assert_eq!(pair.check(), 0);
}

#[test]
fn what_cannot_be_done_is_said() {
    let pair = Pair::open();
    let office = pair.office.conninfo("postgres");
    pair.office("CREATE DATABASE bare");
    let bare = pair.office.conninfo("bare");
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--group", "g", "--sink", "inbox"], 2, "--sink inbox needs --inbox-url CONNINFO and --inbox NAME"),
        (&["--slot", "s", "--sink", "inbox", "--inbox", "orders", "--inbox-url", &office], 2, "needs --group"),
        (&["--group", "g", "--inbox", "orders"], 2, "--inbox needs --sink inbox"),
        (
            &["--group", "g", "--sink", "inbox", "--inbox", "orders", "--inbox-url", &office, "--exec", "true"],
            2,
            "--exec needs",
        ),
        (
            &["--group", "g", "--sink", "inbox", "--inbox", "orders", "--inbox-url", &office, "--concurrency", "2"],
            2,
            "means nothing to --sink inbox",
        ),
        (
            &[
                "--group",
                "g",
                "--sink",
                "inbox",
                "--inbox",
                "orders",
                "--inbox-url",
                &office,
                "--format",
                "cloudevents",
            ],
            2,
            "--format means nothing",
        ),
        (&["--group", "g", "--sink", "inbox", "--inbox", "orders", "--inbox-url", "nonsense=1"], 2, "nonsense"),
        (
            &["--group", "g", "--sink", "inbox", "--inbox", "letters", "--inbox-url", &office],
            4,
            "inbox \"letters\" does not exist",
        ),
        (
            &["--group", "g", "--sink", "inbox", "--inbox", "orders", "--inbox-url", &bare],
            5,
            "CREATE EXTENSION postbox",
        ),
    ];
    let mut said = BTreeSet::new();
    for (arguments, code, says) in cases {
        let ended =
            Run::start(&pair.shop.conninfo("postgres"), &[arguments, &["--no-maintenance"]].concat()).end(PATIENCE);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.log);
        assert!(ended.log.contains(says), "{arguments:?}: {}", ended.log);
        assert!(said.insert(ended.log), "each says something of its own");
    }
}

/// So is a limit that is set for a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_takes_too_long_is_taken_over_in_parts() {
    let pair = Pair::open();
    // From its ninth row on a transaction waits for a lock that is not given up.
    let holder = pair.office.client("postgres").await;
    holder.batch_execute("SELECT pg_advisory_lock(9)").await.expect("a lock");
    pair.office(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM set_config('test.rows', (coalesce(nullif(current_setting('test.rows', true), ''), '0')::int + 1)::text, true);
             IF current_setting('test.rows')::int >= 9 THEN PERFORM pg_advisory_xact_lock_shared(9); END IF;
             IF new.event_type = '31' THEN RAISE EXCEPTION USING errcode = '53400', message = 'over a limit'; END IF;
             RETURN new; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    pair.publish(1, 30);
    let log = pair.drain(&["--max-processing", "1s"]);
    assert!(log.contains("30 messages were not taken in the 1s that --max-processing gives"), "{log}");
    assert_eq!(pair.check(), 0);
    pair.publish(31, 32);
    pair.drain(&["--max-processing", "1s"]);
    assert_eq!(pair.received().len(), 31);
    assert_eq!(pair.shop("SELECT type, error LIKE '%over a limit%' FROM postbox.dead_letter"), "31|t");
}
