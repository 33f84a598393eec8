//! A private cluster: started, asked, stopped, crashed, removed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

use crate::nest::Nest;
use crate::{tree, wait_until};

/// How long a server may take to start (crash recovery included) or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every cluster is started with; [`Builder::setting`] comes after it and wins.
const SETTINGS: &[(&str, &str)] = &[
    ("autovacuum", "on"),
    ("fsync", "off"),
    ("listen_addresses", "127.0.0.1"),
    ("log_line_prefix", "%m [%p] %b %a "),
    ("max_connections", "100"),
    ("max_replication_slots", "50"),
    ("max_wal_senders", "50"),
    ("wal_level", "logical"),
];

/// Output plugins that a server may load, where it asks (minor releases since August 2026).
const PLUGINS: &str = "pgoutput, test_decoding, postbox, postbox_floor, wal2json, decoderbufs";

/// The modes of `pg_ctl stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Waits for every client to leave.
    Smart,
    /// Ends the sessions and writes a checkpoint.
    Fast,
    /// Quits at once: the next start does crash recovery.
    Immediate,
}

/// What a cluster is started with.
#[derive(Debug, Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    with_postbox: bool,
}

impl Builder {
    /// The database `postgres` has the extension from the start.
    pub fn with_postbox(mut self) -> Self {
        self.with_postbox = true;
        self
    }

    /// Sets a configuration parameter; the value needs no quotes.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a line to `pg_hba.conf`, before the lines that trust everybody who comes from this machine.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// Puts a file into the data directory, readable by the server alone, for certificates and keys.
    pub fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), contents.into()));
        self
    }

    /// Starts the cluster, and returns once it takes connections.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub fn start(self) -> Cluster {
        let dir = if self.with_postbox {
            Nest::get().new_cluster_with_postbox(make_template)
        } else {
            Nest::get().new_cluster()
        };
        let data = dir.join("data");
        let hba: String = self.hba.iter().map(|line| format!("{line}\n")).collect();
        write(&data.join("pg_hba.conf"), format!("{hba}local all all trust\nhost all all 127.0.0.1/32 trust\n"));
        for (name, contents) in &self.files {
            write(&data.join(name), contents);
        }

        let mut cluster = Cluster { dir, port: 0, server: Mutex::default(), kept: false };
        let mut error = String::new();
        // A port that was free a moment ago may be taken by a cluster of another process.
        for _ in 0..5 {
            cluster.port = free_port();
            write(&data.join("harness.conf"), self.configuration(&cluster));
            match cluster.spawn() {
                Ok(server) => {
                    *cluster.server() = Some(server);
                    return cluster;
                }
                Err(log) if log.contains("could not bind") || log.contains("lock file") => error = log,
                Err(log) => panic!("the server did not start:\n{log}"),
            }
        }
        panic!("no free port found:\n{error}");
    }

    fn configuration(&self, cluster: &Cluster) -> String {
        let port = cluster.port.to_string();
        let socket_dir = cluster.dir.display().to_string();
        let libraries = format!("$libdir:{}", tree::peers().display());
        let mut settings = vec![
            ("port", port.as_str()),
            ("unix_socket_directories", &socket_dir),
            ("dynamic_library_path", &libraries),
        ];
        settings.extend(SETTINGS);
        if knows_output_plugin_libraries() {
            settings.push(("output_plugin_libraries", PLUGINS));
        }
        settings.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        settings.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect()
    }
}

/// A running server with databases of its own; dropping it stops the server and removes its files.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    port: u16,
    server: Mutex<Option<Child>>,
    kept: bool,
}

impl Cluster {
    /// Starts a cluster with the settings that every test needs: logical WAL, slots, `postbox` allowed as a plugin.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// As [`start`](Self::start), with the extension in the database `postgres`.
    pub fn with_postbox() -> Self {
        Self::builder().with_postbox().start()
    }

    /// Starts from [`Builder`] for other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a hot standby that follows this server, and returns once it takes connections. `pg_hba.conf` must let
    /// `postgres` in for `replication`.
    ///
    /// # Panics
    /// When it cannot be copied or does not start.
    pub fn standby(&self) -> Self {
        self.standby_with(&[])
    }

    /// As [`standby`](Self::standby), with further settings.
    ///
    /// # Panics
    /// When it cannot be copied or does not start.
    pub fn standby_with(&self, settings: &[(&str, &str)]) -> Self {
        let primary = self.conninfo("postgres");
        self.base_backup(&[&[("primary_conninfo", primary.as_str())], settings].concat(), true)
    }

    /// Starts a copy of this server that goes on by itself, as from a backup.
    ///
    /// # Panics
    /// When it cannot be copied or does not start.
    pub fn copy(&self) -> Self {
        self.base_backup(&[], false)
    }

    fn base_backup(&self, settings: &[(&str, &str)], follow: bool) -> Self {
        let dir = Nest::get().new_cluster();
        let data = dir.join("data");
        fs::remove_dir_all(&data).unwrap_or_else(|error| panic!("cannot remove {}: {error}", data.display()));
        let mut copy = tree::unprivileged(tree::program("pg_basebackup"));
        copy.args(["--checkpoint=fast", "--no-sync"]);
        let copied = copy.arg("--pgdata").arg(&data).args(["--dbname", &self.conninfo("postgres")]).output();
        let copied = copied.unwrap_or_else(|error| panic!("cannot run pg_basebackup: {error}"));
        assert!(copied.status.success(), "pg_basebackup failed: {}", String::from_utf8_lossy(&copied.stderr));

        let standby = Self { port: free_port(), dir, server: Mutex::default(), kept: false };
        let place = format!("port = {}\nunix_socket_directories = '{}'\n", standby.port, standby.dir.display());
        append(&data.join("harness.conf"), &place);
        for (name, value) in settings {
            append(&data.join("harness.conf"), &format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        if follow {
            write(&data.join("standby.signal"), "");
        }
        standby.start_again();
        standby
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The port: of TCP on 127.0.0.1, and in the Unix socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// How to connect over the Unix socket as the superuser `postgres`.
    pub fn conninfo(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.dir.display(), self.port)
    }

    /// How to connect over TCP as the superuser `postgres`.
    pub fn tcp_conninfo(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port)
    }

    /// The path of one of the server's programs, for instance `pg_recvlogical`.
    pub fn bin(&self, name: &str) -> PathBuf {
        tree::program(name)
    }

    /// The process id of the server.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn pid(&self) -> u32 {
        self.server().as_ref().expect("the server is stopped").id()
    }

    /// Everything that the server has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.dir.join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// A connection over the Unix socket, driven by a task of the current runtime.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn client(&self, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.conninfo(database), NoTls)
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {database}: {error}: {:?}", error.as_db_error()));
        // How the connection ends shows in the calls of its client.
        tokio::spawn(connection);
        client
    }

    /// Runs SQL with `psql -XAtq`, each statement in a transaction of its own, and returns what it printed.
    ///
    /// # Panics
    /// At the first error, with its message.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.psql_result(database, sql).unwrap_or_else(|error| panic!("psql failed: {error}\n{sql}"))
    }

    /// [`Cluster::psql`] that gives back what `psql` printed on standard error instead of panicking.
    ///
    /// # Errors
    /// The server's message of the first statement that failed; the ones behind it did not run.
    pub fn psql_result(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = tree::clean(tree::program("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d", &self.conninfo(database)]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut psql = psql.spawn().map_err(|error| format!("cannot start psql: {error}"))?;
        let mut stdin = psql.stdin.take().expect("the input of psql is a pipe");
        let output = thread::scope(|scope| {
            // From a thread, as psql may print before it has read everything. A broken pipe means that it gave up.
            scope.spawn(move || stdin.write_all(sql.as_bytes()));
            psql.wait_with_output()
        });
        let output = output.map_err(|error| format!("cannot run psql: {error}"))?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.trim_end_matches('\n').to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Stops the server and returns once it is gone; nothing to do when it is stopped already.
    pub fn stop(&self, mode: Stop) {
        if let Some(mut server) = self.server().take() {
            let gone = signal_and_wait(&mut server, mode, PATIENCE);
            assert!(gone, "the server did not stop in {PATIENCE:?} ({mode:?}):\n{}", self.log());
        }
    }

    /// Starts the stopped server on the same port, and returns once it takes connections.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub fn start_again(&self) {
        let mut server = self.server();
        assert!(server.is_none(), "the server runs already");
        *server = Some(self.spawn().unwrap_or_else(|log| panic!("the server did not start again:\n{log}")));
    }

    /// Stops and starts.
    pub fn restart(&self, mode: Stop) {
        self.stop(mode);
        self.start_again();
    }

    /// Leaves the server running and its files in place, also when this process ends. Returns the cluster's directory.
    pub fn keep(mut self) -> PathBuf {
        File::create(self.dir.join("keep")).unwrap_or_else(|error| panic!("cannot keep the cluster: {error}"));
        self.kept = true;
        self.dir.clone()
    }

    /// Starts the server; the error is what it logged.
    fn spawn(&self) -> Result<Child, String> {
        let before = self.log().len();
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("log")).expect("the server's log");
        let mut server = tree::unprivileged(tree::program("postgres"));
        server.arg("-D").arg(self.data_dir()).process_group(0);
        // Where the plugins of others look for their libraries.
        server.env("LD_LIBRARY_PATH", tree::peers());
        server.stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
        let mut server = server.spawn().map_err(|error| format!("cannot start postgres: {error}"))?;

        let pidfile = self.data_dir().join("postmaster.pid");
        let ready = wait_until("the server takes connections", PATIENCE, || {
            if server.try_wait().expect("the state of the server").is_some() {
                return Some(false);
            }
            // Line 1 is the process id, line 8 the state: both are checked, as a crash leaves the old file.
            let text = fs::read_to_string(&pidfile).ok()?;
            let own = text.lines().next() == Some(server.id().to_string().as_str());
            let state = text.lines().nth(7)?.trim();
            (own && matches!(state, "ready" | "standby")).then_some(true)
        });
        if ready { Ok(server) } else { Err(self.log().split_off(before)) }
    }

    /// SIGKILL for the postmaster, as when memory runs out: nothing is written or told any more. Starts again once its processes,
    /// which see that they are alone, are gone.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub fn crash(&self) {
        let pidfile = fs::read_to_string(self.data_dir().join("postmaster.pid")).expect("a running server");
        let memory = pidfile.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).expect("its shared memory");
        let mut server = self.server().take().expect("the server is stopped");
        server.kill().expect("a process to kill");
        server.wait().expect("the end of the server");
        wait_until("its processes are gone", PATIENCE, || {
            let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
            let attached = |line: &str| line.split_whitespace().nth(6).is_some_and(|number| number != "0");
            let ours = |line: &&str| line.split_whitespace().nth(1) == Some(memory);
            (!segments.lines().find(ours).is_some_and(attached)).then_some(())
        });
        self.start_again();
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("The end of the server's log:");
            tail.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
        if let Some(mut server) = self.server().take()
            && !signal_and_wait(&mut server, Stop::Immediate, Duration::from_secs(10))
        {
            let _ = server.kill();
            let _ = server.wait();
        }
        // What is left over is the watchdog's.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A data directory whose database `postgres` has the extension. Not from `postgres --single`, which takes its objects for the
/// system's own: pg_dump would leave them out.
fn make_template() -> PathBuf {
    let mut cluster = Cluster::start();
    cluster.psql("postgres", "CREATE EXTENSION postbox");
    // However long this process runs, a new installation is not overdue for maintenance.
    cluster.psql("postgres", "UPDATE postbox.maintenance SET installed_at = 'infinity'");
    cluster.stop(Stop::Fast);
    // Until this process ends.
    cluster.kept = true;
    cluster.data_dir()
}

fn signal_and_wait(server: &mut Child, mode: Stop, timeout: Duration) -> bool {
    let signal = match mode {
        Stop::Smart => Signal::TERM,
        Stop::Fast => Signal::INT,
        Stop::Immediate => Signal::QUIT,
    };
    // An error means that it is gone already.
    let _ = kill_process(Pid::from_child(server), signal);
    let begin = std::time::Instant::now();
    while begin.elapsed() < timeout {
        if !matches!(server.try_wait(), Ok(None)) {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Below the range from which the kernel takes ports for outgoing connections, so that a restarted server finds its
/// port free.
fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// True if the server asks which output plugins it may load: minor releases since August 2026 do.
///
/// # Panics
/// When the server cannot be asked.
pub fn knows_output_plugin_libraries() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let mut postgres = tree::unprivileged(tree::program("postgres"));
        let output = postgres.arg("--describe-config").output().expect("postgres --describe-config");
        String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with("output_plugin_libraries\t"))
    })
}

fn write(path: &Path, contents: impl AsRef<[u8]>) {
    let result = fs::write(path, contents).and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o600)));
    result.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    tree::give_to_server(path);
}

pub(crate) fn append(path: &Path, text: &str) {
    let result = OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    result.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
