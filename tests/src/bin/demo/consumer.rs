//! The real binary, run as a user would run it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postbox_tests::{Cluster, postbox_binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;

use crate::Result;

/// How long the consumer may take to drain and leave after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);

/// One line that the consumer printed.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) event_id: Uuid,
    pub(crate) commit_lsn: u64,
    pub(crate) ordinal: u64,
    /// When the line was read.
    pub(crate) at: Instant,
    /// Which start of the consumer printed it, from 1.
    pub(crate) run: u32,
}

/// The lines of one run; it ends with the run.
pub(crate) type Lines = UnboundedReceiver<Result<Delivery>>;

/// How a user connects to the demo's database.
pub(crate) fn url(cluster: &Cluster) -> String {
    format!("postgresql://postgres@127.0.0.1:{}/demo", cluster.port())
}

/// Makes the consumer group, and with it the slot.
pub(crate) fn create_group(cluster: &Cluster) -> Result<()> {
    let arguments = ["group", "create", "demo", "--outbox", "order_events"];
    println!("  $ postbox {}", arguments.join(" "));
    let status = postbox(cluster)?.args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("postbox {}: {status}", arguments.join(" ")).into()) }
}

/// What the consumer wrote on standard error.
pub(crate) fn log(cluster: &Cluster) -> String {
    fs::read_to_string(log_file(cluster)).unwrap_or_default()
}

/// A running `postbox run`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Run {
    process: Child,
}

impl Run {
    pub(crate) fn start(cluster: &Cluster, run: u32) -> Result<(Self, Lines)> {
        let arguments = ["run", "--group", "demo"];
        println!("  $ postbox {}", arguments.join(" "));
        let mut process = postbox(cluster)?.args(arguments).stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().ok_or("the consumer's output is no pipe")?;
        let (sender, lines) = unbounded_channel();
        thread::spawn(move || read(stdout, run, &sender));
        Ok((Self { process }, lines))
    }

    /// SIGKILL: the consumer gets no chance to confirm anything.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// SIGTERM: the consumer delivers what it has begun, confirms, and leaves.
    pub(crate) fn terminate(mut self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        let begin = Instant::now();
        while begin.elapsed() < DRAIN {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(format!("the consumer did not leave in {DRAIN:?} after SIGTERM").into())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(stdout: ChildStdout, run: u32, sender: &UnboundedSender<Result<Delivery>>) {
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    // A line without its end is what a killed process had begun to write: not delivered.
    while stdout.read_line(&mut line).is_ok() && line.ends_with('\n') {
        let at = Instant::now();
        let delivery = parse(&line, at, run).ok_or_else(|| format!("not an event of the outbox: {line}").into());
        if sender.send(delivery).is_err() {
            return;
        }
        line.clear();
    }
}

fn parse(line: &str, at: Instant, run: u32) -> Option<Delivery> {
    let event: Value = serde_json::from_str(line).ok()?;
    let (high, low) = event["commit_lsn"].as_str()?.split_once('/')?;
    let commit_lsn = u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?;
    let sound = event["outbox"] == "public.order_events" && event["error"].is_null();
    sound.then_some(Delivery {
        event_id: event["event_id"].as_str()?.parse().ok()?,
        commit_lsn,
        ordinal: event["ordinal"].as_u64()?,
        at,
        run,
    })
}

fn postbox(cluster: &Cluster) -> Result<Command> {
    let log: File = OpenOptions::new().create(true).append(true).open(log_file(cluster))?;
    let mut command = Command::new(postbox_binary());
    command.env("DATABASE_URL", url(cluster)).stdin(Stdio::null()).stderr(log);
    Ok(command)
}

fn log_file(cluster: &Cluster) -> PathBuf {
    cluster.socket_dir().join("postbox.log")
}
