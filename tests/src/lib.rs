//! Private PostgreSQL clusters for the tests, the demo and the benchmarks.
//!
//! [`Cluster::start`] gives a server of its own: own directory, own port, removed when the value is dropped, also when
//! the process that started it is killed. The server comes from `target/pg/<major>`, which `make` fills; no other
//! server on the machine is ever touched. `POSTBOX_PG` chooses the major version.
//!
//! ```no_run
//! use postbox_tests::{Cluster, Stop};
//!
//! let cluster = Cluster::builder().setting("wal_sender_timeout", "2s").start();
//! cluster.psql("postgres", "CREATE EXTENSION postbox");
//! cluster.restart(Stop::Immediate);
//! ```

mod cluster;
mod nest;
mod proxy;
mod run;
mod tree;
mod wait;

pub mod circle;
pub mod tap;

pub use cluster::{Builder, Cluster, Stop, knows_output_plugin_libraries};
pub use proxy::Proxy;
pub use run::{Ended, Line, Run, memory_kib};
pub use tree::{major, peers, postbox_binary, program};
pub use wait::{wait_until, wait_until_async};

/// Says that the present test does nothing here, and why. Past the harness, which shows what is printed by tests that fail only.
pub fn skip(why: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    // A line that cannot be printed is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}
