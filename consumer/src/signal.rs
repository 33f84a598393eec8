//! SIGTERM, SIGINT and SIGHUP.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::command;
use crate::error::{Error, ErrorKind, Result};

/// Signals that come within such a time are one: who stops a process may also stop its group, and a terminal that closes says so in
/// more than one way.
const TOGETHER: Duration = Duration::from_millis(100);

/// Ends when the first SIGTERM, SIGINT or SIGHUP comes. The second ends the process at once with exit code 130, and the commands
/// that it runs, also when the sink is stuck.
pub(crate) fn stop() -> Result<impl Future<Output = ()>> {
    let listen = |kind| {
        signal(kind).map_err(|error| Error::new(ErrorKind::Other, "cannot listen for signals").with_source(error))
    };
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    // Under nohup it stays ignored.
    let mut hangup = if is_ignored(SignalKind::hangup()) { None } else { Some(listen(SignalKind::hangup())?) };
    let (first, stop) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut next = async || {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => (), _ = hung_up => () }
        };
        next().await;
        let begin = Instant::now();
        // The receiver is gone if the process is about to end anyway.
        let _ = first.send(());
        info!("stopping: delivering and confirming what is under way");
        loop {
            next().await;
            if begin.elapsed() >= TOGETHER {
                break;
            }
        }
        warn!("stopped at once: what was not confirmed comes again");
        command::exit(130);
    });
    Ok(async move {
        let _ = stop.await;
    })
}

/// Whether whoever started this process has it ignore a signal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| (mask >> (kind.as_raw_value() - 1)) & 1 == 1)
}
