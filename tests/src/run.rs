//! A `postbox run` process: started as a user starts it, its lines read as they come, signalled, killed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postbox::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use uuid::Uuid;

use crate::{postbox_binary, tree, wait_until};

/// An event as one line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its transaction's place in the log; 0 for one that came from the table.
    pub commit_lsn: Lsn,
    /// Its place in the transaction.
    pub ordinal: u64,
    /// Its id; nil if that is no UUID.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
}

/// A running `postbox run`; killed when dropped.
#[derive(Debug)]
pub struct Run {
    process: Child,
    shared: Arc<Shared>,
    readers: [JoinHandle<()>; 2],
    /// A second handle of the pipe, to see how much of it is unread.
    pipe: OwnedFd,
}

/// What a process left behind.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none when a signal ended the process.
    pub code: Option<i32>,
    /// What it printed.
    pub lines: Vec<Line>,
    /// What it printed after the last end of a line.
    pub torn: String,
    /// What it logged.
    pub log: String,
}

#[derive(Debug, Default)]
struct Shared {
    output: Mutex<Output>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Output {
    held: bool,
    lines: Vec<Line>,
    torn: String,
    log: String,
}

impl Run {
    /// Starts `postbox run` with these arguments against the database of `conninfo`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(conninfo: &str, arguments: &[&str]) -> Self {
        Self::start_reading(postbox_binary(), conninfo, arguments, &[], true)
    }

    /// As [`start`](Self::start), but nothing that it prints is read before [`release`](Self::release): its pipe
    /// fills up.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_held(conninfo: &str, arguments: &[&str]) -> Self {
        Self::start_reading(postbox_binary(), conninfo, arguments, &[], false)
    }

    /// As [`start`](Self::start), with a failpoint: `STEP@N=kill` or `STEP@N=stop`, see consumer/src/failpoint.rs.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_with_failpoint(conninfo: &str, arguments: &[&str], failpoint: &str) -> Self {
        let environment = [("POSTBOX_FAILPOINT", failpoint)];
        Self::start_reading(tree::failpoints_binary(), conninfo, arguments, &environment, true)
    }

    fn start_reading(
        binary: PathBuf,
        conninfo: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        reading: bool,
    ) -> Self {
        // Who runs the tests under nohup has them ignore it.
        let mut postbox = tree::clean("/usr/bin/env");
        postbox
            .arg("--default-signal=HUP")
            .arg(binary)
            .args(["run", "--database", conninfo])
            .args(arguments)
            .envs(environment.iter().copied());
        let mut process = postbox.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("postbox starts");
        let stdout = process.stdout.take().expect("the output is a pipe");
        let stderr = process.stderr.take().expect("the log is a pipe");
        let pipe = stdout.as_fd().try_clone_to_owned().expect("a second handle of the pipe");
        let shared = Arc::new(Shared::default());
        shared.output().held = !reading;
        let (for_lines, for_log) = (Arc::clone(&shared), Arc::clone(&shared));
        let readers =
            [thread::spawn(move || for_lines.read_lines(stdout)), thread::spawn(move || for_log.read_log(stderr))];
        Self { process, shared, readers, pipe }
    }

    /// Stops reading what the process prints; what is on the way to the reader still comes.
    pub fn hold(&self) {
        self.shared.output().held = true;
    }

    /// Reads what the process prints.
    pub fn release(&self) {
        self.shared.output().held = false;
        self.shared.released.notify_all();
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed so far.
    pub fn lines(&self) -> Vec<Line> {
        self.shared.output().lines.clone()
    }

    /// Tells what it has printed so far, also when it has ended.
    pub fn reader(&self) -> impl Fn() -> Vec<Line> + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.output().lines.clone()
    }

    /// How many lines it has printed so far.
    pub fn count(&self) -> usize {
        self.shared.output().lines.len()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.shared.output().log.clone()
    }

    /// Bytes that it has printed and nobody has read.
    ///
    /// # Panics
    /// When the kernel does not know.
    pub fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.pipe).expect("the fill of the pipe")
    }

    /// The most memory that was resident so far, in KiB.
    pub fn peak_kib(&self) -> u64 {
        memory_kib(self.pid(), "VmHWM")
    }

    /// Waits until it has printed so many lines.
    ///
    /// # Panics
    /// When they do not come in time, or the process ends before.
    pub fn wait_for(&mut self, lines: usize, timeout: Duration) {
        self.wait_until(&format!("{lines} lines"), timeout, |output| output.len() >= lines);
    }

    /// Waits for a fact about the lines printed so far.
    ///
    /// # Panics
    /// When it does not come true in time, or the process ends before.
    pub fn wait_until(&mut self, what: &str, timeout: Duration, fact: impl Fn(&[Line]) -> bool) {
        self.wait_for_output(what, timeout, |output| fact(&output.lines));
    }

    /// Waits until it has logged a text so many times.
    ///
    /// # Panics
    /// When it does not in time, or the process ends before.
    pub fn wait_for_log(&mut self, text: &str, times: usize, timeout: Duration) {
        let what = format!("{times} times \"{text}\" in the log");
        self.wait_for_output(&what, timeout, |output| output.log.matches(text).count() >= times);
    }

    fn wait_for_output(&mut self, what: &str, timeout: Duration, fact: impl Fn(&Output) -> bool) {
        let shared = Arc::clone(&self.shared);
        let now = || {
            let output = shared.output();
            (fact(&output), format!("{what}; there are {} lines, and it logged:\n{}", output.lines.len(), output.log))
        };
        let begin = Instant::now();
        while !fact(&shared.output()) {
            assert!(begin.elapsed() < timeout, "waited {timeout:?} in vain: {}", now().1);
            if let Some(status) = self.process.try_wait().expect("the state of postbox") {
                // The readers come to the end of the pipes.
                let gone = || self.readers.iter().all(JoinHandle::is_finished);
                wait_until("the end of the output", timeout, || gone().then_some(()));
                let (true_at_last, description) = now();
                assert!(true_at_last, "postbox ended with {status} before {description}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When there is no process to take it.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("a process that takes signals");
    }

    /// Waits for the process to end by itself, and for all that it printed; it must not be held then.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn end(mut self, timeout: Duration) -> Ended {
        let what = format!("postbox ends; it logged:\n{}", self.log());
        let status = wait_until(&what, timeout, || self.process.try_wait().expect("the state of postbox"));
        self.release();
        self.collect(status.code())
    }

    /// Waits for the process to end by itself or be killed, while what it printed is still to be had.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_until_gone(&mut self, timeout: Duration) {
        wait_until("postbox ends", timeout, || self.process.try_wait().expect("the state of postbox"));
    }

    /// SIGTERM, and then [`end`](Self::end).
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(self, timeout: Duration) -> Ended {
        self.signal(Signal::TERM);
        self.end(timeout)
    }

    /// SIGTERM again and again, as signals that come together are one, and then [`end`](Self::end).
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn insist(mut self, timeout: Duration) -> Ended {
        wait_until("postbox ends", timeout, || {
            self.signal(Signal::TERM);
            self.process.try_wait().expect("the state of postbox")
        });
        self.end(timeout)
    }

    /// SIGKILL: it gets no chance to confirm anything.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn kill(mut self) -> Ended {
        assert!(matches!(self.process.try_wait(), Ok(None)), "postbox ended by itself: {}", self.log());
        self.process.kill().expect("a process to kill");
        let status = self.process.wait().expect("the end of postbox");
        self.release();
        self.collect(status.code())
    }

    fn collect(mut self, code: Option<i32>) -> Ended {
        let idle = || thread::spawn(|| ());
        for reader in std::mem::replace(&mut self.readers, [idle(), idle()]) {
            if let Err(panic) = reader.join() {
                std::panic::resume_unwind(panic);
            }
        }
        let output = self.shared.output();
        Ended { code, lines: output.lines.clone(), torn: output.torn.clone(), log: output.log.clone() }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.release();
        if thread::panicking() {
            eprintln!("What postbox logged:\n{}", self.log());
        }
    }
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_lines(&self, stdout: ChildStdout) {
        let mut stdout = BufReader::new(stdout);
        let mut text = Vec::new();
        loop {
            drop(self.released.wait_while(self.output(), |output| output.held));
            text.clear();
            let read = stdout.read_until(b'\n', &mut text).unwrap_or(0);
            if read == 0 {
                return;
            }
            if text.last() != Some(&b'\n') {
                self.output().torn = String::from_utf8_lossy(&text).into_owned();
                return;
            }
            let line = parse(&text).unwrap_or_else(|| panic!("no event: {}", String::from_utf8_lossy(&text)));
            self.output().lines.push(line);
        }
    }

    fn read_log(&self, stderr: ChildStderr) {
        let mut stderr = BufReader::new(stderr);
        let mut text = [0; 4096];
        while let Ok(read @ 1..) = stderr.read(&mut text) {
            self.output().log.push_str(&String::from_utf8_lossy(&text[..read]));
        }
    }
}

fn parse(text: &[u8]) -> Option<Line> {
    let line: Value = serde_json::from_slice(text).ok()?;
    // jsonb stands as it is, text and bytea as strings.
    if !(line["payload"].is_object() || line["payload"].is_string()) {
        return None;
    }
    Some(Line {
        commit_lsn: match &line["commit_lsn"] {
            Value::Null => Lsn::default(),
            position => position.as_str()?.parse().ok()?,
        },
        ordinal: line["ordinal"].as_u64()?,
        event_id: line["event_id"].as_str()?.parse().unwrap_or_default(),
        event_type: line["type"].as_str()?.to_owned(),
    })
}

/// A number of `/proc/<pid>/status` in KiB, for instance `VmHWM` or `RssAnon`; 0 when there is no such process.
pub fn memory_kib(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
