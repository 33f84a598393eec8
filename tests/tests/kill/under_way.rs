//! What is under way: neither confirmed, nor part of a checkpoint, nor delivered by a member that has lost its place.

use std::fs;
use std::time::Duration;

use postbox_tests::{Proxy, Run, wait_until};
use rustix::process::Signal;

use super::{SESSION_TIMEOUT, Stage};
use crate::shop::PATIENCE;

impl Stage {
    /// Waits until the member has told the server that it lives, so many seconds from now. Whatever it may confirm or note it has
    /// confirmed or noted by then.
    fn wait_for_beat(&self, member: &str, seconds: u32) {
        let now = self.psql("SELECT clock_timestamp()");
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postbox:g:{member}' AND query ~ '_beat' \
             AND query_start > timestamptz '{now}' + interval '{seconds} s'"
        );
        wait_until("a sign of life", PATIENCE, || (self.psql(&sql) == "1").then_some(()));
    }

    /// Waits until the server has answered a beat and the next is not due yet. A member that is cut off now has a lease that began
    /// just before: it ends so much earlier than the latest that the rule allows, which is room for a slow machine, and less than
    /// the margin.
    fn wait_between_beats(&self, member: &str) {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postbox:g:{member}' AND query ~ '_beat' \
             AND state = 'idle' AND clock_timestamp() - query_start BETWEEN '0.4 s' AND '0.6 s'"
        );
        wait_until("a moment between signs of life", PATIENCE, || (self.psql(&sql) == "1").then_some(()));
    }

    /// The rule of the lease: a member that cannot have reached the server after `contact` dispatches nothing later than the session
    /// timeout, less the margin, after that. When it has dispatched for the last time.
    fn check_lease(&self, member: &str, contact: Duration) -> Duration {
        let dispatches = self.dispatches();
        let times = dispatches.iter().filter(|(by, ..)| by == member).map(|(.., time)| *time);
        let last = times.max().expect("it has delivered something");
        let margin = SESSION_TIMEOUT / 5;
        let end = contact + SESSION_TIMEOUT - margin;
        let late = last.saturating_sub(end);
        assert!(
            late.is_zero(),
            "{member} dispatched {late:?} after its lease had run out, with a margin of {margin:?}"
        );
        last
    }

    /// A member that has delivered something and has an event under way that its sink does not let go of; others behind it are
    /// delivered. So much later it is killed.
    fn kill_with_slow_event(&self, seconds: u32) {
        let one = self.member("one", &[]);
        self.publish(2);
        self.wait_until_dealt_with();
        let slow = [self.insert("s", ".slow"), self.insert("s", "")].concat();
        self.psql(&slow);
        self.publish(2);
        wait_until("those behind the slow one", PATIENCE, || (self.left().len() == 2).then_some(()));
        self.wait_for_beat("one", seconds);
        kill(one);
        self.touch("one-is-dead");
        assert_eq!(self.left().len(), 2, "{:?}", self.log());
    }

    fn finish(&self, more: &[&str]) {
        self.touch("go");
        let two = self.member("two", more);
        self.wait_until_dealt_with();
        let ended = two.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        self.check();
    }
}

/// How long the machine runs: the clock by which processes have their start.
fn uptime() -> Duration {
    let text = fs::read_to_string("/proc/uptime").expect("the uptime");
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs_f64(seconds.expect("seconds"))
}

fn kill(run: Run) {
    assert_eq!(run.kill().code, None);
}

#[test]
fn an_event_that_the_sink_has_not_taken_is_not_confirmed() {
    let stage = Stage::open();
    stage.kill_with_slow_event(1);
    stage.finish(&[]);
}

#[test]
fn a_checkpoint_waits_for_what_is_under_way() {
    let stage = Stage::open();
    // A candidate is taken after 5 seconds, and could be written at the next beat.
    stage.kill_with_slow_event(8);
    stage.lose_slot();
    stage.finish(&["--recover"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_stored_before_the_slot_passes_its_event() {
    let stage = Stage::open();
    let one = stage.member("one", &[]);
    stage.publish(1);
    stage.wait_until_dealt_with();
    let client = stage.cluster.client("postgres").await;
    client.batch_execute("BEGIN; LOCK TABLE postbox.dead_letter IN SHARE MODE").await.expect("a lock");
    stage.publish_poison();
    stage.publish(1);
    let waiting = "SELECT pid FROM pg_locks WHERE relation = 'postbox.dead_letter'::regclass AND NOT granted";
    let pid =
        wait_until("the letter is being stored", PATIENCE, || Some(stage.psql(waiting)).filter(|pid| !pid.is_empty()));
    stage.wait_for_beat("one", 1);
    kill(one);
    // It would go on storing, dead client or not.
    stage.psql(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    client.batch_execute("ROLLBACK").await.expect("unlocked");
    assert_eq!(stage.psql("SELECT count(*) FROM postbox.dead_letter"), "0");
    stage.finish(&[]);
    assert_eq!(
        stage.psql("SELECT string_agg(why, ',' ORDER BY id) FROM postbox.dead_letters"),
        "failed,follower,follower"
    );
}

#[test]
fn what_the_table_has_given_the_slot_does_not_give_again() {
    let stage = Stage::open();
    stage.publish(4);
    stage.psql("SELECT postbox.seek_consumer_group('g', 'earliest')");
    stage.publish(2);
    stage.finish(&[]);
    assert_eq!(stage.log().len(), stage.stored().len(), "came twice: {:?}", stage.log());
}

#[test]
fn a_member_that_stood_still_before_a_dispatch_does_not_dispatch_late() {
    let stage = Stage::open();
    let mut one = stage.member_with_failpoint("one", &stage.conninfo(), &[], "deliver.before-sink@5=stop");
    stage.publish(4);
    one.wait_for_log("failpoint deliver.before-sink: stop", 1, PATIENCE);
    let stopped = uptime();
    let two = stage.member("two", &[]);
    // The server has ended the sessions of the one, so its lease has run out.
    stage.wait_until_dealt_with();
    let of_one = || stage.log().iter().filter(|(member, _)| member == "one").count();
    let before = of_one();
    one.signal(Signal::CONT);
    one.wait_for_log("standing by", 1, PATIENCE);
    assert_eq!(of_one(), before, "{:?}", stage.log());
    stage.check_lease("one", stopped);
    for member in [one, two] {
        let ended = member.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    stage.check();
}

/// Its links are dead and nobody is told: it goes on until its lease has run out, and not longer.
#[test]
fn a_member_that_is_cut_off_while_it_delivers_stops_before_another_begins() {
    let stage = Stage::open();
    let proxy = Proxy::to(stage.cluster.port());
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=2", proxy.port());
    let mut one = stage.member_at("one", &conninfo, &[]);
    one.wait_for_log("active member of group", 1, PATIENCE);
    let mut two = stage.member("two", &[]);
    two.wait_for_log("standing by", 1, PATIENCE);
    // Work for many seconds more than a session lasts.
    let backlog: String = (0..600).map(|number| stage.insert(&format!("k{}", number % 3), ".busy")).collect();
    stage.psql(&backlog);
    wait_until("it delivers", PATIENCE, || (stage.log().len() > 20).then_some(()));
    stage.wait_between_beats("one");
    proxy.swallow();
    let cut_off = uptime();
    let cut_off_at = stage.log().len();
    two.wait_for_log("active member of group", 1, PATIENCE);
    stage.wait_until_dealt_with();
    let log = stage.log();
    let first = log.iter().position(|(member, _)| member == "two").expect("the other delivers");
    assert!(first > cut_off_at, "it went on for as long as it might: {cut_off_at}, {first}");
    let late: Vec<_> = log[first..].iter().filter(|(member, _)| member == "one").collect();
    assert!(late.is_empty(), "delivered while another member was active: {late:?}");
    let last = stage.check_lease("one", cut_off);
    // Else the rule would be kept for want of work.
    assert!(last > cut_off + SESSION_TIMEOUT / 3, "it stopped long before its lease ran out: {cut_off:?}, {last:?}");
    proxy.reopen();
    one.wait_for_log("standing by", 1, PATIENCE);
    for member in [one, two] {
        let ended = member.terminate(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    stage.check();
    println!(
        "{cut_off_at} events before it was cut off, {} in {:?} after, {} by the other",
        first - cut_off_at,
        last - cut_off,
        log.len() - first
    );
}

#[test]
fn a_member_that_stood_still_before_a_write_does_not_write_late() {
    let stage = Stage::open();
    let common = ["--group", "g", "--session-timeout", "2s", "--no-maintenance"];
    let mut one = Run::start_with_failpoint(&stage.conninfo(), &common, "deliver.before-sink@2=stop");
    stage.publish(1);
    one.wait_until("the first events", PATIENCE, |lines| !lines.is_empty());
    stage.publish(1);
    one.wait_for_log("failpoint deliver.before-sink: stop", 1, PATIENCE);
    let written = one.count();
    let mut two = Run::start(&stage.conninfo(), &common);
    let stored = stage.stored().len();
    two.wait_until("what the other has not delivered", PATIENCE, |lines| written + lines.len() >= stored);
    one.signal(Signal::CONT);
    one.wait_for_log("standing by", 1, PATIENCE);
    let (one, two) = (one.terminate(PATIENCE), two.terminate(PATIENCE));
    assert_eq!((one.code, two.code), (Some(0), Some(0)), "{}\n{}", one.log, two.log);
    assert_eq!(one.lines.len(), written, "written although another member was active");
}
