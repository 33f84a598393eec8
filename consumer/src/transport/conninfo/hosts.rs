//! The servers that a connection string names, in the order in which they are tried.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::keywords::Settings;
use crate::error::{Error, ErrorKind, Result};

/// One server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) struct Host {
    pub(in crate::transport) place: Place,
    pub(in crate::transport) port: u16,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Place {
    /// The socket in [`SOCKET_DIR`] if there is one, else localhost.
    Default,
    /// The directory of a Unix socket.
    SocketDir(PathBuf),
    /// A name to resolve, or an address.
    Name(String),
    /// An address to connect to, with the name that its certificate must carry.
    Address {
        /// The address.
        addr: IpAddr,
        /// The name, if one was given.
        name: Option<String>,
    },
}

/// The directory of the server's socket where none is given: that of Debian, Red Hat and their kin.
pub(in crate::transport) const SOCKET_DIR: &str = "/var/run/postgresql";

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.place {
            Place::Default => write!(f, "localhost port {port}"),
            Place::SocketDir(dir) => write!(f, "socket {}/.s.PGSQL.{port}", dir.display()),
            Place::Name(name) => write!(f, "{name} port {port}"),
            Place::Address { addr, name: Some(name) } => write!(f, "{name} ({addr}) port {port}"),
            Place::Address { addr, name: None } => write!(f, "{addr} port {port}"),
        }
    }
}

/// Pairs up the lists of hosts, addresses and ports; a single port serves all.
pub(super) fn read(settings: &Settings) -> Result<Vec<Host>> {
    let list = |keyword| settings.get(keyword).map(|list| list.split(',').collect::<Vec<_>>());
    let names = list("host");
    let addrs = list("hostaddr");
    let ports = list("port").unwrap_or_else(|| vec![""]);

    let count = match (&names, &addrs) {
        (Some(names), Some(addrs)) if names.len() != addrs.len() => {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("host lists {} names and hostaddr {} addresses", names.len(), addrs.len()),
            ));
        }
        (Some(names), _) => names.len(),
        (None, Some(addrs)) => addrs.len(),
        (None, None) => 1,
    };
    if ports.len() != 1 && ports.len() != count {
        return Err(Error::new(ErrorKind::Usage, format!("port lists {} ports for {count} hosts", ports.len()))
            .with_hint("Give one port for all hosts, or one for each."));
    }

    (0..count)
        .map(|index| {
            let at = |list: &Option<Vec<&str>>| list.as_ref().map_or("", |list| list[index]).trim().to_owned();
            Ok(Host {
                place: place(at(&names), &at(&addrs))?,
                port: port(ports[if ports.len() == 1 { 0 } else { index }].trim())
                    .map_err(|error| error.with_hint(format!("It was read from {}.", settings.origin("port"))))?,
            })
        })
        .collect()
}

fn place(name: String, addr: &str) -> Result<Place> {
    if !addr.is_empty() {
        let addr = addr.parse().map_err(|_| {
            Error::new(ErrorKind::Usage, format!("hostaddr \"{addr}\" is not an IP address"))
                .with_hint("Give names in host.")
        })?;
        return Ok(Place::Address { addr, name: Some(name).filter(|name| !name.is_empty()) });
    }
    if name.starts_with('@') {
        return Err(Error::new(
            ErrorKind::Usage,
            "sockets in the abstract namespace (a host that begins with '@') are not supported",
        )
        .with_hint("Give a directory, or percent-encode an '@' in the password of a URI as %40."));
    }
    Ok(match name.as_str() {
        "" => Place::Default,
        path if path.starts_with('/') => Place::SocketDir(path.into()),
        _ => Place::Name(name),
    })
}

fn port(text: &str) -> Result<u16> {
    if text.is_empty() {
        return Ok(5432);
    }
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("port \"{text}\" is not a number from 1 to 65535")))
}
