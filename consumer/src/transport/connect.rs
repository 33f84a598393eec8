//! From a [`ConnInfo`] to a server that has let us in: hosts in turn, encrypted and not as `sslmode` allows.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::unistd::{Uid, User};
use rand::seq::SliceRandom;
use tokio::net::{UnixStream, lookup_host};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, NoTls, Notification};

use super::auth::{self, Credentials, Failure, Greeting};
use super::conninfo::{Host, Method, Place, SOCKET_DIR, SslMode, Target};
use super::identity::Shown;
use super::link::Link;
use super::refusal::{About, Report};
use super::replay::Replay;
use super::socket::Socket;
use super::{ConnInfo, tls};
use crate::error::{Error, ErrorKind, Result};

/// Opens a connection for SQL. A task that is spawned on the current runtime drives it and ends when the client is
/// dropped or the link breaks.
///
/// # Errors
/// As [`Replication::connect`](super::Replication::connect).
pub async fn connect_sql(info: &ConnInfo) -> Result<Client> {
    connect_listening(info, |_| ()).await
}

/// As [`connect_sql`], for what Postbox does by itself: whatever role and database set for sessions of people, no statement, transaction or
/// session is cut off, and each statement sees what has been committed before it.
///
/// # Errors
/// As [`connect_sql`].
pub(crate) async fn connect_own(info: &ConnInfo) -> Result<Client> {
    let client = connect_sql(info).await?;
    // Which of them there are depends on the server's release.
    client
        .batch_execute(
            "SELECT pg_catalog.set_config(s.name, '0', false) FROM pg_catalog.pg_settings s WHERE s.name IN \
                 ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout'); \
             SET default_transaction_isolation = 'read committed'",
        )
        .await?;
    Ok(client)
}

/// As [`connect_sql`], with what is to be done with notifications.
pub(crate) async fn connect_listening(
    info: &ConnInfo,
    mut notified: impl FnMut(Notification) + Send + 'static,
) -> Result<Client> {
    let (link, greeting) = open(info, "postbox", &[]).await?;
    // What the server says of its own accord may have come with the end of the login: that it shuts down, or a changed setting.
    let (socket, rest) = link.into_parts();
    let mut config = tokio_postgres::Config::new();
    config.user(info.user()).ssl_mode(tokio_postgres::config::SslMode::Disable);
    let (client, mut connection) =
        config.connect_raw(Replay::new(socket, &[&greeting.messages[..], &rest].concat()), NoTls).await?;
    let open = Open::new();
    tokio::spawn(async move {
        let _open = open;
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => Report::from_sql(&notice).log(),
                Some(Ok(AsyncMessage::Notification(notification))) => notified(notification),
                Some(Ok(_)) => {}
                // Whoever uses the client gets the error; here nobody would.
                Some(Err(error)) => return tracing::debug!("the connection for SQL ended: {error}"),
                None => return,
            }
        }
    });
    Ok(client)
}

/// Connections for SQL that are not at their end.
static OPEN: AtomicUsize = AtomicUsize::new(0);
static ENDED: Notify = Notify::const_new();

struct Open;

impl Open {
    fn new() -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
        ENDED.notify_waiters();
    }
}

/// Lets connections that nobody holds any more take their leave, before the process ends: a server that is left without a word reports an
/// error of its own.
pub(crate) async fn take_leave() {
    let ended = async {
        loop {
            let one_more = ENDED.notified();
            if OPEN.load(Ordering::Relaxed) == 0 {
                return;
            }
            one_more.await;
        }
    };
    let _ = timeout(LEAVE, ended).await;
}

/// Somebody may hold a connection for ever.
const LEAVE: Duration = Duration::from_millis(500);

/// Connects to the first host that will do, and logs in with `parameters` added to the startup message.
pub(super) async fn open(
    info: &ConnInfo,
    application_name: &str,
    parameters: &[(&str, &str)],
) -> Result<(Link, Greeting)> {
    let mut startup = vec![
        ("user", info.user.as_str()),
        ("database", info.dbname.as_str()),
        ("client_encoding", "UTF8"),
        ("application_name", info.application_name.as_deref().unwrap_or(application_name)),
    ];
    startup.extend(info.options.as_deref().map(|options| ("options", options)));
    startup.extend(parameters);

    let mut hosts = info.hosts.iter().collect::<Vec<_>>();
    if info.shuffle {
        hosts.shuffle(&mut rand::rng());
    }
    // As in libpq those that do not fit at first are tried anew: they may have been promoted or demoted.
    let rounds: &[Target] = match info.target {
        Target::PreferStandby => &[Target::Standby, Target::Any],
        ref target => slice::from_ref(target),
    };
    let mut failures = Vec::new();
    for target in rounds {
        failures.clear();
        for host in &hosts {
            let mut addresses = match addresses(host, info).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            if info.shuffle {
                addresses.shuffle(&mut rand::rng());
            }
            for address in addresses {
                match within(info, &address, attempt(info, &address, &startup, *target)).await {
                    Ok(opened) => return Ok(opened),
                    // Another server would not know better.
                    Err(error) if !error.is_transient() => return Err(error),
                    Err(error) => failures.push(error),
                }
            }
        }
    }
    Err(summary(failures))
}

/// One server, at one address.
struct Address {
    host: Host,
    socket: SocketAddress,
}

enum SocketAddress {
    Tcp(SocketAddr),
    Unix(std::path::PathBuf),
}

async fn addresses(host: &Host, info: &ConnInfo) -> Result<Vec<Address>> {
    let port = host.port;
    let file = |dir: &Path| dir.join(format!(".s.PGSQL.{port}"));
    let name = match &host.place {
        Place::SocketDir(dir) => {
            return Ok(vec![Address { host: host.clone(), socket: SocketAddress::Unix(file(dir)) }]);
        }
        Place::Default if file(Path::new(SOCKET_DIR)).exists() => {
            let host = Host { place: Place::SocketDir(SOCKET_DIR.into()), port };
            return Ok(vec![Address { host, socket: SocketAddress::Unix(file(Path::new(SOCKET_DIR))) }]);
        }
        Place::Address { addr, .. } => {
            return Ok(vec![Address { host: host.clone(), socket: SocketAddress::Tcp((*addr, port).into()) }]);
        }
        Place::Default => "localhost",
        Place::Name(name) => name,
    };
    let unknown = |error: io::Error| {
        Error::new(ErrorKind::Connect, format!("host name \"{name}\" cannot be resolved"))
            .with_hint("Is the name spelled right, and does this machine reach its name server?")
            .with_source(error)
    };
    let resolving = lookup_host((name, port));
    let found = match info.connect_timeout {
        Some(limit) => timeout(limit, resolving).await.map_err(|_| unknown(io::ErrorKind::TimedOut.into()))?,
        None => resolving.await,
    };
    let addresses: Vec<_> =
        found.map_err(unknown)?.map(|addr| Address { host: host.clone(), socket: SocketAddress::Tcp(addr) }).collect();
    if addresses.is_empty() { Err(unknown(io::ErrorKind::NotFound.into())) } else { Ok(addresses) }
}

async fn within<T>(info: &ConnInfo, address: &Address, attempt: impl Future<Output = Result<T>>) -> Result<T> {
    match info.connect_timeout {
        None => attempt.await,
        Some(limit) => timeout(limit, attempt).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Connect,
                format!("{} did not let us in within {} s", address.host, limit.as_secs()),
            )
            .with_hint("connect_timeout sets another limit."))
        }),
    }
}

/// Logs in at one address, by the ways of encryption that `sslmode` allows, in its order.
async fn attempt(
    info: &ConnInfo,
    address: &Address,
    startup: &[(&str, &str)],
    target: Target,
) -> Result<(Link, Greeting)> {
    let SocketAddress::Tcp(tcp) = &address.socket else {
        return accept(target, address, log_in(info, address, startup, None).await);
    };
    let ways: &[bool] = match info.tls.mode {
        SslMode::Disable => &[false],
        SslMode::Allow => &[false, true],
        SslMode::Prefer => &[true, false],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
    };
    let (last, earlier) = ways.split_last().unwrap_or((&true, &[]));
    for encrypted in earlier {
        let result = log_in(info, address, startup, Some((*tcp, *encrypted))).await;
        match &result {
            // pg_hba.conf may take the same login otherwise; a TLS that fails is as good as none in mode prefer.
            Err(Failure { error, unasked: true }) if matches!(error.kind(), ErrorKind::Login | ErrorKind::Tls) => {
                tracing::debug!(
                    "{}: {error}; trying again {} TLS",
                    address.host,
                    if *encrypted { "without" } else { "with" }
                );
            }
            _ => return accept(target, address, result),
        }
    }
    accept(target, address, log_in(info, address, startup, Some((*tcp, *last))).await)
}

async fn log_in(
    info: &ConnInfo,
    address: &Address,
    startup: &[(&str, &str)],
    tcp: Option<(SocketAddr, bool)>,
) -> Result<(Link, Greeting), Failure> {
    let early = |error| Failure { error, unasked: true };
    let Dialled { socket, end_point, shown } = dial(info, address, tcp).await.map_err(early)?;
    // Who asks for both knows what goes over the wire; either alone may have been meant for a link with TLS.
    let insisted = info.tls.mode == SslMode::Disable && info.methods.name(Method::Password);
    let credentials = Credentials {
        user: &info.user,
        password: info.password(&address.host),
        clear_text: socket.is_private() || insisted,
        end_point,
        channel_binding: info.channel_binding,
        methods: &info.methods,
        certificate: (info.tls.identity.mode, shown),
    };
    let about = About { role: Some(info.user.clone()), dbname: Some(info.dbname.clone()), slot: None };
    // Where the server has no TLS to offer, the way without has just been tried.
    let refused = matches!((tcp, &socket), (Some((_, true)), Socket::Tcp(_)));
    let mut link = Link::new(socket, about);
    match auth::log_in(&mut link, startup, credentials).await {
        Ok(greeting) => Ok((link, greeting)),
        Err(Failure { error, unasked }) => {
            Err(Failure { error: tls::late_failure(error, &address.host), unasked: unasked && !refused })
        }
    }
}

/// An open socket, on which nothing has been said yet.
struct Dialled {
    socket: Socket,
    /// What the login can be bound to, over TLS.
    end_point: Option<Vec<u8>>,
    /// What became of the client's certificate.
    shown: Shown,
}

impl From<Socket> for Dialled {
    fn from(socket: Socket) -> Self {
        Self { socket, end_point: None, shown: Shown::Unasked }
    }
}

/// Opens the socket; with TLS if that is asked for.
async fn dial(info: &ConnInfo, address: &Address, tcp: Option<(SocketAddr, bool)>) -> Result<Dialled> {
    let unreachable = |error: io::Error| {
        let hint = match (error.kind(), &address.socket) {
            (io::ErrorKind::NotFound, _) => "Is the server running, and is this its socket directory?",
            (io::ErrorKind::PermissionDenied, SocketAddress::Unix(_)) => "This user may not use the server's socket.",
            _ => "Is the server running there, and does it listen on this port (listen_addresses)?",
        };
        Error::new(ErrorKind::Connect, format!("cannot connect to {}", address.host)).with_hint(hint).with_source(error)
    };
    let (addr, encrypted) = match (&address.socket, tcp) {
        (SocketAddress::Unix(path), _) => {
            let stream = Socket::unix(path).await.map_err(unreachable)?;
            if let Some(wanted) = &info.peer {
                check_peer(&stream, wanted, &address.host)?;
            }
            return Ok(Socket::Unix(stream).into());
        }
        (SocketAddress::Tcp(addr), None) => (*addr, false),
        (SocketAddress::Tcp(_), Some(way)) => way,
    };
    let config = if encrypted { Some(tls::config(&info.tls)?) } else { None };
    let mut stream = Socket::tcp(addr, info).await.map_err(unreachable)?;
    let Some((config, answer)) = config else { return Ok(Socket::Tcp(stream).into()) };
    if !info.tls.direct && !tls::request(&mut stream).await? {
        return if info.tls.mode == SslMode::Prefer {
            Ok(Socket::Tcp(stream).into())
        } else {
            Err(Error::new(ErrorKind::Tls, format!("{} does not offer TLS, and sslmode demands it", address.host))
                .with_hint("Set ssl = on with a certificate on the server, or use sslmode=prefer."))
        };
    }
    let stream = tls::handshake(stream, &address.host, &info.tls, config).await?;
    let end_point = tls::end_point(&stream);
    Ok(Dialled { socket: Socket::Tls(Box::new(stream)), end_point, shown: answer.shown() })
}

/// Whether the server runs as the operating system's user that is wanted.
fn check_peer(stream: &UnixStream, wanted: &str, host: &Host) -> Result<()> {
    let unknown = |error: io::Error| {
        Error::new(ErrorKind::Login, format!("requirepeer={wanted}, and the user that runs {host} is unknown"))
            .with_source(error)
    };
    let uid = stream.peer_cred().map_err(unknown)?.uid();
    let user = User::from_uid(Uid::from_raw(uid)).map_err(|errno| unknown(errno.into()))?;
    match user {
        Some(user) if user.name == wanted => Ok(()),
        user => {
            let is =
                user.map_or(format!("the user with id {uid}, who has no name"), |user| format!("user {}", user.name));
            Err(Error::new(ErrorKind::Login, format!("requirepeer={wanted}, and {host} is run by {is}"))
                .with_hint("Is it the right server? If so, name that user in requirepeer."))
        }
    }
}

/// Takes a server that lets us in, if it is one of those wanted.
fn accept(target: Target, address: &Address, result: Result<(Link, Greeting), Failure>) -> Result<(Link, Greeting)> {
    let (link, greeting) = result.map_err(|failure| failure.error)?;
    let on = |name| greeting.parameter(name).map(|value| value == "on");
    let standby = on("in_hot_standby").unwrap_or(false);
    let read_only = standby || on("default_transaction_read_only").unwrap_or(false);
    let (fits, wanted) = match target {
        Target::Any | Target::PreferStandby => (true, "any"),
        Target::ReadWrite => (!read_only, "read-write"),
        Target::ReadOnly => (read_only, "read-only"),
        Target::Primary => (!standby, "primary"),
        Target::Standby => (standby, "standby"),
    };
    if fits {
        return Ok((link, greeting));
    }
    let is = match (standby, read_only) {
        (true, _) => "a standby",
        (false, true) => "read-only",
        (false, false) => "a primary that takes writes",
    };
    // It may be promoted or demoted.
    Err(Error::new(ErrorKind::Server, format!("{} is {is}, and target_session_attrs is {wanted}", address.host)))
}

/// One error out of those of all hosts.
fn summary(mut failures: Vec<Error>) -> Error {
    let Some(last) = failures.pop() else {
        return Error::new(ErrorKind::Usage, "the connection string names no host");
    };
    if failures.is_empty() {
        return last;
    }
    let all = failures.iter().chain([&last]).map(Error::chain).collect::<Vec<_>>().join("; ");
    let hint = last.hint().map(str::to_owned);
    let error = Error::new(last.kind(), format!("no server can be used: {all}"));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}
