//! One short directory per process, in which all of its clusters live, and the watchdog that empties it. It is made in `/tmp`, or in
//! the directory that `POSTBOX_CLUSTERS` names.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cluster::append;
use crate::tree;

/// Runs once its standard input ends, which the kernel brings about however this process dies. It stops the servers
/// that are left and removes the directory; a cluster with a file `keep` in it stays.
///
/// The server removes `postmaster.pid` as the last thing it does, so the wait is on that.
const WATCHDOG: &str = r#"
cat >/dev/null
cd "$1" || exit 0
for dir in */; do
    pidfile=$dir/data/postmaster.pid
    if [ -e "$dir/keep" ]; then continue; fi
    if pid=$(head -n 1 "$pidfile" 2>/dev/null); then
        kill -QUIT "$pid" 2>/dev/null
        tries=0
        while [ -e "$pidfile" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
        if [ -e "$pidfile" ]; then kill -KILL "$pid" 2>/dev/null; fi
    fi
    rm -rf "$dir"
done
cd / && rmdir "$1" 2>/dev/null
"#;

/// The directory of this process.
pub(crate) struct Nest {
    dir: PathBuf,
    clusters: AtomicU32,
    template: OnceLock<PathBuf>,
    template_with_postbox: OnceLock<PathBuf>,
    /// Nothing is written to it: that its standard input ends is the message.
    _watchdog: Child,
}

impl Nest {
    /// The one of this process, made at first use.
    pub(crate) fn get() -> &'static Self {
        static NEST: OnceLock<Nest> = OnceLock::new();
        NEST.get_or_init(Self::make)
    }

    fn make() -> Self {
        // Not `$TMPDIR`: the path of a Unix socket may have 107 bytes.
        let parent = env::var_os("POSTBOX_CLUSTERS").unwrap_or_else(|| "/tmp".into());
        let dir = tempfile::Builder::new()
            .prefix("pbx-")
            .tempdir_in(&parent)
            .unwrap_or_else(|error| panic!("cannot make a directory in {}: {error}", parent.display()))
            .keep();
        tree::give_to_server(&dir);
        let mut watchdog = tree::unprivileged("/bin/sh");
        watchdog.args(["-c", WATCHDOG, "watchdog"]).arg(&dir).stdin(Stdio::piped()).stdout(Stdio::null());
        // A group of its own, so that Ctrl-C at a terminal does not end it together with this process.
        watchdog.process_group(0);
        let watchdog = watchdog.spawn().unwrap_or_else(|error| panic!("cannot start /bin/sh: {error}"));
        let clusters = AtomicU32::new(0);
        Self { dir, clusters, template: OnceLock::new(), template_with_postbox: OnceLock::new(), _watchdog: watchdog }
    }

    /// A new cluster directory with a data directory in it, copied from the one `initdb` of this process.
    pub(crate) fn new_cluster(&self) -> PathBuf {
        self.copy(self.template.get_or_init(|| self.initdb()))
    }

    /// The same, copied from the data directory that is made once for all: `CREATE EXTENSION` takes longer than to start a server.
    pub(crate) fn new_cluster_with_postbox(&self, make: impl FnOnce() -> PathBuf) -> PathBuf {
        self.copy(self.template_with_postbox.get_or_init(make))
    }

    fn copy(&self, template: &Path) -> PathBuf {
        let number = self.clusters.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(number.to_string());
        make_dir(&dir);
        let mut copy = tree::unprivileged("/bin/cp");
        // The log is mostly zeros.
        run(copy.args(["--archive", "--reflink=auto", "--sparse=always"]).arg(template).arg(dir.join("data")));
        dir
    }

    fn initdb(&self) -> PathBuf {
        let dir = self.dir.join("template");
        let mut initdb = tree::unprivileged(tree::program("initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"]);
        run(initdb.args(["--no-sync", "--no-instructions", "--pgdata"]).arg(&dir));
        append(&dir.join("postgresql.conf"), "include 'harness.conf'\n");
        dir
    }
}

fn make_dir(dir: &Path) {
    fs::create_dir(dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
    tree::give_to_server(dir);
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
