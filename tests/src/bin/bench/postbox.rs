//! `postbox run`, as the benchmarks start it.

use std::process::Command;

use postbox_tests::Cluster;

use crate::backlog::DATABASE;

/// `postbox run` on a slot, with events on standard output, connected by the variables that libpq knows.
pub(crate) fn run(cluster: &Cluster, slot: &str) -> Command {
    let mut command = Command::new(postbox_tests::postbox_binary());
    command
        .env_clear()
        .env("PGHOST", cluster.socket_dir())
        .env("PGPORT", cluster.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", DATABASE)
        .env("RUST_LOG", "warn")
        .args(["run", "--slot", slot, "--sink", "stdout"]);
    command
}
