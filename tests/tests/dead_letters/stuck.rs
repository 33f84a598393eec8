//! Sinks that hang, and sinks that fail where there are no dead letters.

use std::path::Path;
use std::process::Command;

use postbox_tests::{postbox_binary, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use super::{GROUP, Office, SAY};
use crate::shop::{PATIENCE, SLOT, Shop, assert_delivered};

#[test]
fn a_command_that_hangs_is_killed_with_all_that_it_has_started() {
    let office = Office::open();
    let hangs = "sleep 1000 & echo $! >> {dir}/log; wait";
    let run = office.exec(hangs, &["--max-processing", "300ms", "--max-attempts", "2"]);
    office.publish("kept", "a", "1");
    office.wait_for_letters("attempts, error", &["2|took longer than 300ms (--max-processing)"]);
    let pids = office.log();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        wait_until("the process is gone", PATIENCE, || is_gone(&pid).then_some(()));
    }
    assert_eq!(run.terminate(PATIENCE).code, Some(0));
}

#[test]
fn a_second_signal_ends_a_command_with_the_process() {
    let office = Office::open();
    office.publish("kept", "a", "1");
    let mut run = office.exec("exec > /dev/null; sleep 1000 & echo $! >> {dir}/log; echo $$ >> {dir}/log; wait", &[]);
    let pids = wait_until("a command", PATIENCE, || Some(office.log()).filter(|lines| lines.len() == 2));
    run.signal(Signal::TERM);
    run.wait_for_log("stopping", 1, PATIENCE);
    let ended = run.insist(PATIENCE);
    assert_eq!(ended.code, Some(130), "{}", ended.log);
    for pid in pids {
        wait_until("the process is gone", PATIENCE, || is_gone(&pid).then_some(()));
    }
}

/// A supervisor may signal the process and then its group, and a terminal that closes sends another signal.
#[test]
fn signals_that_come_together_are_one_and_a_hangup_is_one_of_them() {
    let office = Office::open();
    let command = format!("{SAY}\nwhile [ ! -e {{dir}}/go ]; do sleep 0.01; done");
    for (signals, name) in
        [(&[Signal::TERM, Signal::INT][..], "1"), (&[Signal::HUP], "2"), (&[Signal::HUP, Signal::TERM], "3")]
    {
        let mut run = office.exec(&command, &[]);
        office.publish("kept", "a", name);
        wait_until("a command", PATIENCE, || office.log().iter().any(|line| line == name).then_some(()));
        signals.iter().for_each(|signal| run.signal(*signal));
        run.wait_for_log("stopping", 1, PATIENCE);
        std::fs::write(office.path("go"), "").expect("a file");
        let ended = run.end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{signals:?}: {}", ended.log);
        std::fs::remove_file(office.path("go")).expect("removed");
    }
    assert_eq!(office.log(), ["1", "2", "3"], "each is confirmed");
}

/// As nohup starts it.
#[test]
fn a_hangup_that_is_ignored_stays_so() {
    let office = Office::open();
    let mut process = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(postbox_binary())
        .args([
            "run",
            "-d",
            &office.shop.conninfo(),
            "--group",
            GROUP,
            "--sink",
            "exec",
            "--exec",
            &office.command(SAY),
        ])
        .spawn()
        .expect("postbox starts");
    let signal = |signal| kill_process(Pid::from_child(&process), signal).expect("a process that takes signals");
    office.publish("kept", "a", "1");
    office.wait_for_log(&["1"]);
    signal(Signal::HUP);
    office.publish("kept", "a", "2");
    office.wait_for_log(&["1", "2"]);
    signal(Signal::TERM);
    let status = wait_until("postbox ends", PATIENCE, || process.try_wait().expect("its state"));
    assert_eq!(status.code(), Some(0));
}

fn is_gone(pid: &str) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status")).unwrap_or_default();
    // What nobody waits for stays as a zombie where there is no init.
    status.is_empty() || status.contains("State:\tZ")
}

#[test]
fn a_reader_that_hangs_makes_the_member_give_up_and_nothing_is_written_after() {
    let shop = Shop::open();
    let run = shop.run_held(&["--max-processing", "1s"]);
    for _ in 0..20 {
        shop.publish(100, 1_000);
    }
    wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
    // Not wait_for_log: it reads to the end once the process is gone.
    let says = "has not taken a batch of events for 1s (--max-processing)";
    wait_until("it gives up", PATIENCE, || run.log().contains(says).then_some(()));
    let unread = run.unread();
    // The slot is free although nobody has read anything.
    shop.confirmed_at_rest();
    let ended = run.end(PATIENCE);
    assert_eq!(ended.code, Some(6), "{}", ended.log);
    println!("{unread} bytes were unread, {} lines came", ended.lines.len());
    assert!(ended.lines.len() < 100, "{} lines", ended.lines.len());
    assert_delivered(&[ended.lines, shop.drain()].concat(), &shop.committed());
}

#[test]
fn a_reader_that_is_only_slow_is_waited_for() {
    let shop = Shop::open();
    let mut run = shop.run_held(&["--max-processing", "3s"]);
    for _ in 0..20 {
        shop.publish(100, 1_000);
    }
    wait_until("the pipe is full", PATIENCE, || (run.unread() > 32 << 10).then_some(()));
    run.release();
    run.wait_for(2_000, PATIENCE);
    let ended = run.terminate(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 2_000), "{}", ended.log);
    assert_eq!(shop.drain(), []);
}

#[test]
fn without_a_group_an_event_that_fails_for_good_ends_the_run() {
    let office = Office::open();
    let shop = &office.shop;
    office.publish("kept", "a", "1");
    office.publish("poison", "a", "2");
    office.publish("kept", "a", "3");
    let command = office.command(SAY);
    let exec = ["--slot", SLOT, "--sink", "exec", "--exec", &command, "--max-attempts", "3", "--retry-max", "100ms"];
    let run = || postbox_tests::Run::start(&shop.conninfo(), &[&exec[..], &["--exit-when-idle", "100ms"]].concat());
    let ended = run().end(PATIENCE);
    assert_eq!(ended.code, Some(6), "{}", ended.log);
    let says = "of public.orders could not be delivered: exit status: 3: 2 is poison";
    assert!(ended.log.contains(says) && ended.log.contains("hint: "), "{}", ended.log);
    assert_eq!(office.log(), ["1"]);
    office.cure();
    assert_eq!(run().end(PATIENCE).code, Some(0));
    assert_eq!(office.log(), ["1", "2", "3"], "what was delivered is confirmed");
}

#[test]
fn a_command_need_not_read_and_its_output_is_ours() {
    let office = Office::open();
    office.shop.publish(3, 1_000_000);
    let ended = office.exec("exit 0", &["--exit-when-idle", "100ms"]).end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 0), "{}", ended.log);
    assert_eq!(office.letters("id"), [""; 0]);
    office.shop.publish(5, 100);
    let ended = office.exec("cat", &["--exit-when-idle", "100ms"]).end(PATIENCE);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 5), "{}", ended.log);
}

#[test]
fn arguments_that_mean_nothing_are_refused() {
    let shop = Shop::open();
    for (arguments, says) in [
        (&["--sink", "exec"][..], "--sink exec needs --exec"),
        (&["--exec", "true"], "--exec needs --sink exec"),
        (&["--sink", "exec", "--exec", " "], "--exec is empty"),
        (&["--concurrency", "4"], "--concurrency means nothing to --sink stdout"),
        (&["--sink", "exec", "--exec", "true", "--concurrency", "0"], "invalid value '0'"),
        (&["--sink", "exec", "--exec", "true", "--max-attempts", "0"], "invalid value '0'"),
        (&["--sink", "exec", "--exec", "true", "--on-failure", "park"], "--on-failure needs --group"),
        (
            &["--sink", "exec", "--exec", "true", "--retry-initial", "1min"],
            "--retry-initial 60s is longer than --retry-max 30s",
        ),
        (&["--max-processing", "0s"], "--max-processing is 0"),
        (&["--member", "x"], "--member needs --group"),
        (&["--session-timeout", "5s"], "--session-timeout needs --group"),
        (&["--recover"], "--recover needs --group"),
    ] {
        let ended = shop.run(arguments).end(PATIENCE);
        assert_eq!((ended.code, ended.log.contains(says)), (Some(2), true), "{arguments:?}: {}", ended.log);
    }
}

/// Events that go nowhere are not delivered.
#[test]
fn a_standard_output_that_is_closed_is_refused() {
    let shop = Shop::open();
    shop.publish(3, 10);
    let before = shop.confirmed();
    let run = |output: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec \"$0\" \"$@\" {output}")]).arg(postbox_binary());
        shell
            .args(["run", "-d", &shop.conninfo(), "--slot", SLOT, "--exit-when-idle", "100ms"])
            .output()
            .expect("it runs")
    };
    let refused = run(">&-");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("the standard output is closed") && said.contains("> /dev/null"), "{said}");
    assert_eq!(shop.confirmed_at_rest(), before);
    // Whoever wants that says so.
    let thrown = run("> /dev/null");
    assert!(thrown.status.success(), "{thrown:?}");
    assert_eq!(shop.drain(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_frozen_while_it_is_told_its_keys_does_not_keep_the_group() {
    let office = Office::open();
    office.shop.psql(&format!(
        "INSERT INTO postbox.dead_letter (group_name, why, outbox, key, xid, commit_lsn, ordinal, frame, attempts, epoch)
         SELECT '{GROUP}', 'failed', 'orders', n || repeat('k', 200), pg_current_xact_id(), '0/0', n, '', 1, 0 FROM generate_series(1, 20000) n"
    ));
    office.publish("kept", "a", "1");
    let member = || office.exec(SAY, &["--on-failure", "park", "--session-timeout", "2s"]);
    let holder = office.shop.client().await;
    holder.batch_execute("BEGIN; LOCK postbox.dead_letter IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    let frozen = member();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '_dead_letter'";
    wait_until("it waits", PATIENCE, || (office.shop.psql(waits) == "1").then_some(()));
    frozen.signal(Signal::STOP);
    holder.batch_execute("COMMIT").await.expect("released");
    let next = member();
    office.wait_for_log(&["1"]);
    frozen.signal(Signal::CONT);
    assert_eq!(next.terminate(PATIENCE).code, Some(0));
    assert_eq!(frozen.terminate(PATIENCE).code, Some(0));
}
