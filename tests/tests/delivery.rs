//! What is delivered: everything that committed, in commit order, at least once, and nothing else.

use std::collections::HashSet;
use std::env;
use std::time::Duration;

use postbox::{Consumer, Delivery, Lsn};
use postbox_tests::{Cluster, Line, Stop, memory_kib, wait_until, wait_until_async};
use rand::RngExt;

use crate::shop::{
    PATIENCE, SLOT, Shop, Writers, assert_delivered, confirmed, insert, lsn, place, transact, wait_for_more,
    wait_until_confirmed,
};

mod limits;

/// 64 MiB, in KiB.
pub(crate) const MEMORY_LIMIT_KIB: u64 = 64 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_in_commit_order_however_transactions_overlap() {
    let shop = Shop::open();
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let conninfo = shop.conninfo();
            tokio::spawn(async move {
                let connecting = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls);
                let (mut client, connection) = connecting.await.expect("a connection");
                tokio::spawn(connection);
                for _ in 0..40 {
                    transact(&mut client, Duration::from_millis(25)).await.expect("a transaction");
                }
            })
        })
        .collect();
    // Nobody else writes: another plugin counts the transactions too.
    let mut events =
        Consumer::builder(shop.conninfo()).slot(SLOT).maintenance(false).connect().await.expect("a consumer");
    for writer in writers {
        writer.await.expect("a writer");
    }
    shop.psql("INSERT INTO orders (type, payload) VALUES ('last', '{}')");
    let mut lines = Vec::new();
    let mut seqs = Vec::new();
    while lines.last().is_none_or(|line: &Line| line.event_type != "last") {
        let event = next(&mut events).await.ack();
        seqs.push(event.seq.expect("a number"));
        lines.push(Line {
            commit_lsn: event.commit_lsn,
            ordinal: event.ordinal,
            event_id: event.id.as_ref().expect("an id").to_string().parse().expect("a uuid"),
            event_type: event.event_type.to_string(),
        });
    }
    events.close().await.expect("a clean end");

    assert_eq!(assert_delivered(&lines, &shop.committed()), 0, "came again");
    let overtaken = seqs.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(overtaken > 100, "only {overtaken} events were overtaken: the order of commits was hardly put to the test");
    let undone: usize = shop.psql("SELECT count(*) FROM generate_series(1, (SELECT max(seq) FROM orders)) n WHERE n NOT IN (SELECT seq FROM orders)").parse().expect("a number");
    assert!(undone > 100, "only {undone} events were rolled back");
    assert_commits_agree(&shop, &lines);
    println!("{} events, {overtaken} overtaken, {undone} rolled back", lines.len());
}

/// Compares the transactions' positions with those of test_decoding, which reports the end of each commit record.
fn assert_commits_agree(shop: &Shop, lines: &[Line]) {
    let ends = shop.psql(
        "SELECT lsn FROM pg_logical_slot_peek_changes('truth', NULL, NULL, 'skip-empty-xacts', '1') WHERE data LIKE 'COMMIT%'",
    );
    let ends: Vec<Lsn> = ends.lines().map(lsn).collect();
    let mut commits: Vec<Lsn> = lines.iter().map(|line| line.commit_lsn).collect();
    commits.dedup();
    assert_eq!(commits.len(), ends.len());
    let mut before = Lsn(0);
    for (commit, end) in commits.into_iter().zip(ends) {
        assert!(before <= commit && commit < end, "the commit at {commit} lies between {before} and {end}");
        before = end;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_lose_nothing_and_repeat_only_what_was_not_confirmed() {
    let shop = Shop::open();
    let writers = Writers::start(&shop, 4, Duration::from_millis(10));
    let mut lines: Vec<Line> = Vec::new();
    let mut confirmed = shop.confirmed();
    let mut risen = 0;
    for kill in 0..50 {
        let newest = lines.iter().map(place).max();
        let mut run = shop.run(&[]);
        run.wait_until("a new event", PATIENCE, |lines| lines.last().map(place) > newest);
        // Every other process gets stuck in a full pipe, with events in its hands that it has not delivered.
        if kill % 2 == 1 {
            run.hold();
        }
        // Confirmations go out every 100 ms: some kills come before the first one.
        let more = rand::rng().random_range(0..300);
        tokio::time::sleep(Duration::from_millis(more)).await;
        let ended = run.kill();
        assert!(ended.lines.iter().map(place).max() > newest, "no event flowed before kill {kill}");
        assert!(ended.lines.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "run {kill} is out of order");
        let again = ended.lines.iter().find(|line| line.commit_lsn < confirmed);
        assert_eq!(again, None, "came again in run {kill} although {confirmed} was confirmed");
        lines.extend(ended.lines);
        let before = std::mem::replace(&mut confirmed, shop.confirmed_at_rest());
        risen += usize::from(confirmed > before);
    }
    writers.stop().await;
    lines.extend(shop.drain());
    let committed = shop.committed();
    let again = assert_delivered(&lines, &committed);
    println!("50 kills, {} events, {again} came again, {risen} runs confirmed something", committed.len());
    assert!(
        risen >= 10 && again > 0,
        "{risen} runs confirmed something, {again} events came again: kills at poor times"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_server_in_mid_stream_loses_nothing() {
    let shop = Shop::open();
    let mut run = shop.run(&[]);
    let writers = Writers::start(&shop, 4, Duration::from_millis(10));
    for _ in 0..3 {
        wait_for_more(&mut run, 100);
        tokio::task::block_in_place(|| shop.cluster.restart(Stop::Immediate));
    }
    wait_for_more(&mut run, 100);
    writers.stop().await;
    shop.psql("INSERT INTO orders (type, payload) VALUES ('last', '{}')");
    run.wait_until("the last event", PATIENCE, |lines| lines.last().is_some_and(|line| line.event_type == "last"));
    let ended = run.terminate(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(ended.log.matches("connected again").count(), 3, "{}", ended.log);
    let committed = shop.committed();
    let again = assert_delivered(&ended.lines, &committed);
    println!("3 crashes, {} events, {again} came again", committed.len());
    // The slot's position on disk is that of the last checkpoint, but this process knows better what is done.
    assert!(again < 100, "{again} events came again to the same process");
    assert_eq!(shop.drain(), [], "came again although it was confirmed");
}

#[test]
fn a_transaction_of_200_000_events_comes_whole_in_order_and_in_little_memory() {
    let shop = Shop::open();
    let mut run = shop.run(&[]);
    shop.publish(200_000, 300);
    run.wait_for(200_000, PATIENCE);
    let peak = run.peak_kib();
    let ended = run.terminate(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 200_000), "{}", ended.log);
    assert!(ended.lines.iter().map(|line| line.ordinal).eq(0..200_000), "out of order");
    assert!(ended.lines.iter().all(|line| line.commit_lsn == ended.lines[0].commit_lsn));
    let ids: HashSet<_> = ended.lines.iter().map(|line| line.event_id).collect();
    assert_eq!(ids.len(), 200_000);
    println!("the consumer's memory peaked at {peak} KiB");
    assert!(peak > 0 && peak < MEMORY_LIMIT_KIB, "the consumer's memory peaked at {peak} KiB");
    assert_eq!(shop.drain(), [], "came again although it was confirmed");
}

/// The promise is 64 MiB plus one event, also where its line is much longer than its payload: base64 makes four bytes of
/// three, and a quote in text takes two.
#[test]
fn large_events_cost_the_memory_of_one() {
    const EVENT_KIB: usize = 64 << 10;
    let shop = Shop::open();
    shop.psql("SELECT postbox.create_outbox('notes', payload_type => 'text')");
    shop.psql("SELECT postbox.create_outbox('scans', payload_type => 'bytea')");
    let mut run = shop.run(&[]);
    for (index, (outbox, payload)) in [
        ("orders", "jsonb_build_object('n', 1, 'filler', repeat('x', {KIB} << 10))"),
        ("orders", "jsonb_build_object('n', 2, 'filler', repeat('x', {KIB} << 10))"),
        ("notes", r#"repeat('"', {KIB} << 10)"#),
        ("scans", r"decode(repeat('00', {KIB} << 10), 'hex')"),
    ]
    .into_iter()
    .enumerate()
    {
        let payload = payload.replace("{KIB}", &EVENT_KIB.to_string());
        shop.psql(&format!("INSERT INTO {outbox} (type, payload) SELECT 'kept', {payload}"));
        run.wait_for(index + 1, PATIENCE);
        let peak = run.peak_kib();
        println!("with events of {EVENT_KIB} KiB in {outbox} the consumer's memory peaked at {peak} KiB");
        assert!(peak < MEMORY_LIMIT_KIB + EVENT_KIB as u64, "{outbox}: the consumer's memory peaked at {peak} KiB");
    }
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_comes_while_its_commit_still_waits_for_a_standby() {
    // There from the start: a server that is told of it later may take a commit or two without.
    let builder =
        Cluster::builder().setting("synchronous_standby_names", "nosuch").setting("synchronous_commit", "local");
    let shop = Shop::open_with(builder);
    let mut run = shop.run(&[]);
    shop.walsender();
    let client = shop.client().await;
    let publisher = shop.client().await;
    publisher.batch_execute("SET synchronous_commit = on").await.expect("a session");
    let publishing = tokio::spawn(async move { publisher.batch_execute(&insert(1, 10)).await });

    run.wait_for(1, PATIENCE);
    let event_id = run.lines()[0].event_id;
    // The event may come a moment before the wait begins.
    wait_until_async("the commit waits", PATIENCE, async || {
        let waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        client.query_opt(waiting, &[]).await.expect("an answer").map(drop)
    })
    .await;
    assert!(!publishing.is_finished(), "the commit does not wait");
    let sql = "SELECT FROM orders WHERE event_id = $1";
    assert_eq!(client.query(sql, &[&event_id]).await.expect("an answer").len(), 0, "visible already");

    shop.psql("ALTER SYSTEM SET synchronous_standby_names = ''");
    shop.psql("SELECT pg_reload_conf()");
    publishing.await.expect("the publisher").expect("the commit");
    assert_eq!(client.query(sql, &[&event_id]).await.expect("an answer").len(), 1);
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn what_is_confirmed_had_been_written_to_the_pipe() {
    let shop = Shop::open();
    let run = shop.run_held(&[]);
    // Fits into the pipe, so it is delivered although nobody reads.
    shop.publish(10, 100);
    let first = lsn(&shop.psql("SELECT pg_current_wal_flush_lsn()"));
    wait_until("the first events are confirmed", PATIENCE, || (shop.confirmed() >= first).then_some(()));
    // Does not fit.
    for _ in 0..200 {
        shop.publish(100, 1_000);
    }
    shop.wait_until_stuck();
    wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
    // A sign of life from the consumer while it is stuck: what it confirms then is all that it ever will.
    let heard = || {
        shop.psql("SELECT count(*) FROM pg_stat_replication WHERE reply_time > clock_timestamp() - interval '50 ms'")
    };
    wait_until("a report of the stuck consumer", PATIENCE, || (heard() == "1").then_some(()));
    let ended = run.kill();
    let confirmed = shop.confirmed_at_rest();

    let committed = shop.committed();
    assert!(ended.lines.len() > 10 && ended.lines.len() < committed.len(), "{} lines", ended.lines.len());
    assert_eq!(ended.lines.iter().map(|line| line.event_id).collect::<Vec<_>>(), committed[..ended.lines.len()]);
    let rest = shop.drain();
    let covered = rest.first().map_or(committed.len(), |line| {
        committed.iter().position(|id| *id == line.event_id).expect("a committed event")
    });
    assert!(confirmed >= first && rest.iter().all(|line| line.commit_lsn >= confirmed));
    assert!(covered >= 10 && covered <= ended.lines.len(), "{covered} confirmed, {} written", ended.lines.len());
    assert_delivered(&[ended.lines, rest].concat(), &committed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_out_of_order_confirm_the_low_watermark() {
    let shop = Shop::open_with(Cluster::builder().setting("wal_sender_timeout", "2s"));
    let client = shop.client().await;
    let mut events = Consumer::builder(shop.conninfo()).slot(SLOT).connect().await.expect("a consumer");
    // Two transactions of one event, one of three, one of one.
    for count in [1, 1, 3, 1] {
        shop.publish(count, 10);
    }
    let end = lsn(&shop.psql("SELECT pg_current_wal_flush_lsn()"));
    let mut open: Vec<Option<Delivery>> = Vec::new();
    for _ in 0..6 {
        open.push(Some(next(&mut events).await));
    }
    let commits: Vec<Lsn> = open.iter().flatten().map(|delivery| delivery.commit_lsn).collect();
    let mut ack = |index: usize| drop(open[index].take().expect("acknowledged once").ack());

    for index in [5, 1, 3, 2] {
        ack(index);
    }
    heard_of_consumer(&client).await;
    assert!(confirmed(&client).await <= commits[0], "the first is open");
    ack(0);
    heard_of_consumer(&client).await;
    let middle = confirmed(&client).await;
    assert!(
        middle > commits[1] && middle <= commits[2],
        "{middle}: the second is done, of the third one event is open"
    );
    assert!(events.positions().confirmed == middle && events.positions().dispatched > middle);
    ack(4);
    wait_until_confirmed(&client, end, PATIENCE).await;
    events.close().await.expect("a clean end");
    assert_eq!(shop.drain(), []);
}

/// Waits for a report that the consumer sent from now on.
async fn heard_of_consumer(client: &tokio_postgres::Client) {
    let now: String = client.query_one("SELECT clock_timestamp()::text", &[]).await.expect("the time").get(0);
    let sql = "SELECT FROM pg_stat_replication WHERE reply_time > $1::text::timestamptz";
    wait_until_async("a report of the consumer", PATIENCE, async || {
        (client.query(sql, &[&now]).await.expect("an answer").len() == 1).then_some(())
    })
    .await;
}

/// POSTBOX_MEMORY_EVENTS chooses another number of events than a million.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_the_walsender_stays_flat_over_a_million_events() {
    let events: usize = env::var("POSTBOX_MEMORY_EVENTS").map_or(1_000_000, |text| text.parse().expect("a number"));
    let shop = Shop::open_with(Cluster::builder().setting("max_wal_size", "8GB"));
    // The truth is not asked here, and its slot would keep the whole log.
    shop.psql("SELECT pg_drop_replication_slot('truth')");
    let mut run = shop.run(&[]);
    let walsender = shop.walsender();
    let client = shop.client().await;
    let publish =
        format!("DO $$ BEGIN FOR i IN 1 .. {} LOOP {} COMMIT; END LOOP; END $$", events / 200, insert(200, 40));
    let publishing = tokio::spawn(async move { client.batch_execute(&publish).await });
    let mut samples = Vec::new();
    for percent in [20, 40, 60, 80, 100] {
        run.wait_for(events / 100 * percent, 10 * PATIENCE);
        samples.push(memory_kib(walsender, "RssAnon"));
    }
    publishing.await.expect("the publisher").expect("published");
    println!("{events} events; the walsender's private memory from 20 to 100 %: {samples:?} KiB");
    let (early, late) = (samples[0], samples[1..].iter().copied().max().unwrap_or(0));
    assert!(early > 0 && late < early + (4 << 10), "the walsender's memory grew: {samples:?} KiB");
    assert!(run.peak_kib() < MEMORY_LIMIT_KIB, "the consumer's memory peaked at {} KiB", run.peak_kib());
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

async fn next(events: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, events.next()).await;
    next.expect("an event in time").expect("the stream goes on").expect("no error")
}
