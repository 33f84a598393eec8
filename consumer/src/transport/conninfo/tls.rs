//! The settings of TLS: whether to use it, what the server must prove, and what the client proves itself with.

use std::path::PathBuf;

use super::keywords::Settings;
use super::{Password, in_home};
use crate::error::{Error, ErrorKind, Result};

/// How the link is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) struct Tls {
    pub(in crate::transport) mode: SslMode,
    pub(in crate::transport) roots: Roots,
    pub(in crate::transport) revoked: Revoked,
    pub(in crate::transport) versions: Versions,
    /// What the client proves itself with, if the server asks.
    pub(in crate::transport) identity: Identity,
    /// TLS from the first byte (PostgreSQL 17), without asking the server whether it has it.
    pub(in crate::transport) direct: bool,
    /// Whether the host's name is sent in the handshake.
    pub(in crate::transport) sni: bool,
}

/// Whether TLS is used, and what the server's certificate must prove. Ordered by strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::transport) enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server refuses to go without.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS or nothing.
    Require,
    /// TLS, with a certificate that a known authority issued.
    VerifyCa,
    /// TLS, with a certificate that a known authority issued to this host.
    VerifyFull,
}

/// The authorities that may vouch for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Roots {
    /// `~/.postgresql/root.crt`, used in every mode if it exists and required by the verify modes.
    UserFile(Option<PathBuf>),
    /// A file that was named, held to the same rule.
    File(PathBuf),
    /// Those that the operating system trusts.
    System,
}

/// The lists of certificates that their authorities have revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Revoked {
    /// `~/.postgresql/root.crl`, used if it exists.
    UserFile(Option<PathBuf>),
    /// A file, a directory of files, or both.
    Named {
        /// The file.
        file: Option<PathBuf>,
        /// The directory.
        dir: Option<PathBuf>,
    },
}

/// The versions of TLS that will do. There are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) struct Versions {
    pub(in crate::transport) tls12: bool,
    pub(in crate::transport) tls13: bool,
}

/// The client's certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) struct Identity {
    pub(in crate::transport) mode: CertMode,
    pub(in crate::transport) certificate: UserFile,
    pub(in crate::transport) key: UserFile,
    /// Decrypts the key.
    pub(in crate::transport) password: Option<Password>,
}

/// Whether a client certificate is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) enum CertMode {
    /// Never.
    Disable,
    /// If there is one and the server asks for it.
    Allow,
    /// There must be one, and the server must ask for it.
    Require,
}

/// A file of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) enum UserFile {
    /// It was named, so that it has to be there.
    Named(PathBuf),
    /// Where it is looked for if none was named; nothing without a home.
    Default(Option<PathBuf>),
}

impl Tls {
    pub(super) fn read(settings: &Settings) -> Result<Self> {
        let roots = match settings.get("sslrootcert") {
            Some("system") => Roots::System,
            Some(file) => Roots::File(file.into()),
            None => Roots::UserFile(in_home(".postgresql/root.crt")),
        };
        let direct = settings.one_of("sslnegotiation", false, &[("postgres", false), ("direct", true)])?;
        // As in libpq: whoever names the system's authorities wants them checked.
        let default = if roots == Roots::System { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = settings.one_of(
            "sslmode",
            default,
            &[
                ("disable", SslMode::Disable),
                ("allow", SslMode::Allow),
                ("prefer", SslMode::Prefer),
                ("require", SslMode::Require),
                ("verify-ca", SslMode::VerifyCa),
                ("verify-full", SslMode::VerifyFull),
            ],
        )?;
        if roots == Roots::System && mode != SslMode::VerifyFull {
            return Err(Error::new(ErrorKind::Usage, "sslrootcert=system needs sslmode=verify-full").with_hint(
                "Anybody can have a certificate from a public authority; only the host's name tells servers apart.",
            ));
        }
        if direct && mode < SslMode::Require {
            return Err(Error::new(
                ErrorKind::Usage,
                "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full",
            ));
        }
        let path = |keyword| settings.get(keyword).map(PathBuf::from);
        let revoked = match (path("sslcrl"), path("sslcrldir")) {
            (None, None) => Revoked::UserFile(in_home(".postgresql/root.crl")),
            (file, dir) => Revoked::Named { file, dir },
        };
        let user_file =
            |keyword, default| path(keyword).map_or_else(|| UserFile::Default(in_home(default)), UserFile::Named);
        Ok(Self {
            mode,
            roots,
            revoked,
            versions: Versions::read(settings)?,
            identity: Identity {
                mode: settings.one_of(
                    "sslcertmode",
                    CertMode::Allow,
                    &[("disable", CertMode::Disable), ("allow", CertMode::Allow), ("require", CertMode::Require)],
                )?,
                certificate: user_file("sslcert", ".postgresql/postgresql.crt"),
                key: user_file("sslkey", ".postgresql/postgresql.key"),
                password: settings.get("sslpassword").map(Password::new),
            },
            direct,
            sni: settings.one_of("sslsni", true, &[("0", false), ("1", true)])?,
        })
    }
}

impl Versions {
    fn read(settings: &Settings) -> Result<Self> {
        const MIN: &str = "ssl_min_protocol_version";
        const MAX: &str = "ssl_max_protocol_version";
        let version = |keyword| settings.get(keyword).map(str::to_ascii_lowercase);
        let tls12 = match version(MIN).as_deref() {
            // Older versions are never spoken, so that a lower limit below 1.2 is kept as well.
            None | Some("tlsv1" | "tlsv1.1" | "tlsv1.2") => true,
            Some("tlsv1.3") => false,
            Some(_) => return Err(settings.wrong(MIN, "is not one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3")),
        };
        let tls13 = match version(MAX).as_deref() {
            None | Some("tlsv1.3") => true,
            Some("tlsv1.2") => false,
            Some("tlsv1" | "tlsv1.1") => {
                return Err(settings
                    .wrong(MAX, "is below TLSv1.2, the oldest version that is spoken")
                    .with_hint("Leave it out; let ssl_max_protocol_version of the server allow TLSv1.2."));
            }
            Some(_) => return Err(settings.wrong(MAX, "is not one of TLSv1.2, TLSv1.3")),
        };
        if !tls12 && !tls13 {
            return Err(settings.wrong(MIN, "is above ssl_max_protocol_version"));
        }
        Ok(Self { tls12, tls13 })
    }
}
