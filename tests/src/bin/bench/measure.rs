//! Samples, and the processor time of processes.

use std::fs;
use std::time::Duration;

use postbox_tests::wait_until;

use crate::Outcome;

/// The kernel counts the processor time of a process in hundredths of a second, whatever its own clock is.
const TICK: Duration = Duration::from_millis(10);

const PATIENCE: Duration = Duration::from_secs(30);

/// Measurements of one thing, in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Takes at least one measurement.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value that half of the measurements do not exceed.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { f64::midpoint(self.0[middle - 1], self.0[middle]) }
    }

    /// The value that the given share of the measurements does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The least.
    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    /// The greatest.
    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// All of them.
    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }
}

/// The processor time of the children of this process that have ended and been waited for.
pub(crate) fn time_of_own_children() -> Outcome<Duration> {
    time_of_ended_children(std::process::id())
}

/// Counts the processor time of the processes that a server starts for its clients.
pub(crate) struct Meter {
    server: u32,
    children: Vec<u32>,
    before: Duration,
}

impl Meter {
    /// Starts counting, before the client connects.
    pub(crate) fn start(server: u32) -> Outcome<Self> {
        Ok(Self { server, children: children(server)?, before: time_of_ended_children(server)? })
    }

    /// Waits until the processes that were started have ended, as the kernel adds up their time only then.
    pub(crate) fn stop(self) -> Outcome<Duration> {
        wait_until("the client's process in the server ends", PATIENCE, || {
            let started = |pid| !self.children.contains(&pid);
            (!children(self.server).ok()?.into_iter().any(started)).then_some(())
        });
        Ok(time_of_ended_children(self.server)?.saturating_sub(self.before))
    }
}

/// The processor time of all children of a process that have ended and been waited for.
fn time_of_ended_children(pid: u32) -> Outcome<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path)?;
    // cutime and cstime
    match (field(&text, 13), field(&text, 14)) {
        (Some(user), Some(system)) => Ok(TICK * (user + system)),
        _ => Err(format!("cannot make sense of {path}: {text}").into()),
    }
}

/// The processes whose parent is `pid`, those included that have ended but were not waited for.
fn children(pid: u32) -> Outcome<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        if field(&stat, 1) == Some(pid) {
            children.push(child);
        }
    }
    Ok(children)
}

/// A field of /proc/PID/stat, counted from the state on: before it the program's name in brackets may hold anything.
fn field(stat: &str, index: usize) -> Option<u32> {
    stat.rsplit(')').next()?.split_whitespace().nth(index)?.parse().ok()
}

/// The greatest resident set of a running process so far, in bytes; `None` once it has ended.
pub(crate) fn peak_resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
