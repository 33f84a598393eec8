//! The unpacked servers under `target/pg`, the user they run as, and the binary under test.

use std::env;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// User and group of Debian's `nobody`: `postgres` refuses to run as root.
const UNPRIVILEGED: u32 = 65534;

/// The major version that this process tests: `POSTBOX_PG`, 18 when it is not set.
pub fn major() -> u32 {
    match env::var("POSTBOX_PG") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("POSTBOX_PG is {text:?}, not a major version such as 18")),
        Err(_) => 18,
    }
}

/// The `postbox` binary that was built into the same target directory as the running program; `POSTBOX_BIN` names
/// another one.
pub fn postbox_binary() -> PathBuf {
    if let Some(path) = env::var_os("POSTBOX_BIN") {
        return path.into();
    }
    let this = env::current_exe().expect("the path of the running program");
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("postbox"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no postbox binary beside {}: run `make build` first", this.display()))
}

/// The `postbox` binary that obeys `POSTBOX_FAILPOINT`: built with the feature `failpoints` by `make failpoints`.
/// `POSTBOX_FAILPOINTS_BIN` names another one.
pub(crate) fn failpoints_binary() -> PathBuf {
    if let Some(path) = env::var_os("POSTBOX_FAILPOINTS_BIN") {
        return path.into();
    }
    let this = env::current_exe().expect("the path of the running program");
    this.ancestors()
        .map(|dir| dir.join("failpoints/debug/postbox"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no target/failpoints beside {}: run `make failpoints` first", this.display()))
}

/// The path of one of the server's programs.
///
/// `POSTBOX_SERVER` names the directory of another server. Links are resolved, because the user that the server runs as may be unable to walk through the checkout.
///
/// # Panics
/// When there is no such server in `target/pg`.
pub fn program(name: &str) -> PathBuf {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pg").join(major().to_string());
    let dir = env::var_os("POSTBOX_SERVER").map_or_else(ours, PathBuf::from);
    let path = dir.join("bin").join(name);
    path.canonicalize()
        .unwrap_or_else(|error| panic!("{}: {error}; `make server-{}` brings it", path.display(), major()))
}

/// Where the output plugins of others lie, if there are any for this server: only benchmarks fetch them.
pub fn peers() -> PathBuf {
    let tree = program("postgres");
    tree.ancestors().nth(2).unwrap_or(Path::new("/")).join("peers")
}

/// A command with an environment of its own: what the shell exports (`PGOPTIONS`, `RUST_BACKTRACE`, …) must not change
/// what a test sees.
pub(crate) fn clean(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// A clean command that runs as the server's user: an unprivileged one for root, oneself for everybody else.
pub(crate) fn unprivileged(program: impl AsRef<Path>) -> Command {
    let mut command = clean(program);
    if is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    command
}

/// Gives a file or directory to the server's user.
pub(crate) fn give_to_server(path: &Path) {
    if is_root() {
        chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED))
            .unwrap_or_else(|error| panic!("cannot give {} to the server's user: {error}", path.display()));
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
