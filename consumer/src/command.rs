//! Shell commands that get something on their standard input.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::debug;

/// So much of the end of the standard error is kept.
const STDERR_BYTES: usize = 1 << 10;

/// How long a process that the command has left behind may hold its standard error open.
const STDERR_PATIENCE: Duration = Duration::from_millis(100);

/// Runs `sh -c COMMAND`; an error unless its exit code is 0, with the end of its standard error. Whoever drops the future kills it
/// and all that it has started in its group.
///
/// What comes from events is in the environment and on the standard input, never in the command line.
pub(crate) async fn run(
    command: &str,
    input: Vec<u8>,
    variables: impl IntoIterator<Item = (&str, Option<String>)>,
) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::inherit()).stderr(Stdio::piped());
    for (name, value) in variables {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut group = Group::start(&mut shell).map_err(|error| format!("cannot start sh: {error}"))?;
    let (stdin, stderr) = (group.child.stdin.take(), group.child.stderr.take());
    let mut said = Vec::new();
    let write = async {
        // A command need not read its input to the end.
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&input).await;
        }
    };
    let read = async {
        if let Some(stderr) = stderr {
            read_tail(stderr, &mut said).await;
        }
    };
    let status = {
        let mut pipes = pin!(async { tokio::join!(write, read) });
        tokio::select! {
            status = group.wait() => {
                let _ = timeout(STDERR_PATIENCE, pipes).await;
                status
            }
            _ = &mut pipes => group.wait().await,
        }
    };
    // No text of PostgreSQL holds a NUL.
    let said = String::from_utf8_lossy(&said).trim_end().replace('\0', "\u{fffd}");
    if !said.is_empty() {
        debug!("the command said: {said}");
    }
    let status = status.map_err(|error| format!("cannot wait for the command: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(if said.is_empty() { status.to_string() } else { format!("{status}: {said}") })
}

/// The leaders of the groups that run. A process that has ended keeps its number until it is waited for, and that happens under this
/// lock: none of these numbers belongs to somebody else.
static LEADERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn leaders() -> MutexGuard<'static, BTreeSet<i32>> {
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends this process with all commands that run.
pub(crate) fn exit(code: i32) -> ! {
    // Held to the end, so that none is started meanwhile.
    let leaders = leaders();
    leaders.iter().for_each(|leader| kill(*leader));
    std::process::exit(code);
}

fn kill(leader: i32) {
    // It may have ended just now.
    let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
}

/// The process and all that it has started in its group; killed when dropped before the process has ended.
struct Group {
    leader: i32,
    child: Child,
}

impl Group {
    fn start(command: &mut Command) -> std::io::Result<Self> {
        let mut leaders = leaders();
        let child = command.spawn()?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(std::io::ErrorKind::Other)?;
        leaders.insert(leader);
        Ok(Self { leader, child })
    }

    async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let mut wait = pin!(self.child.wait());
        poll_fn(|context| {
            let mut leaders = leaders();
            let ended = wait.as_mut().poll(context);
            if ended.is_ready() {
                leaders.remove(&self.leader);
            }
            ended
        })
        .await
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut leaders = leaders();
        if leaders.remove(&self.leader) {
            kill(self.leader);
        }
    }
}

/// Reads to the end and keeps the last [`STDERR_BYTES`].
async fn read_tail(mut stderr: impl AsyncRead + Unpin, tail: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut piece).await {
        tail.extend_from_slice(&piece[..read]);
        let over = tail.len().saturating_sub(STDERR_BYTES);
        tail.drain(..over);
    }
}
