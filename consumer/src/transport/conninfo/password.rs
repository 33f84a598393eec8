//! Passwords: kept out of every text, and looked up in libpq's password file.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Host, Place, SOCKET_DIR};

/// A password; nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::transport) struct Password(String);

impl Password {
    /// Takes the password over.
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The password itself, for the one place that sends its proof.
    pub(in crate::transport) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The first matching line of a password file, `host:port:database:user:password`, with `*` for any.
///
/// As in libpq a file that is missing says nothing, and one that others may read is not used.
pub(super) fn look_up(file: &Path, host: &Host, dbname: &str, user: &str) -> Option<Password> {
    let mut opened = File::open(file).ok()?;
    let metadata = opened.metadata().ok()?;
    if !metadata.is_file() {
        tracing::warn!("password file {} is not a plain file", file.display());
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!("password file {0} is not used: group or others may read it; chmod 0600 {0}", file.display());
        return None;
    }
    let mut text = String::new();
    opened.read_to_string(&mut text).ok()?;
    search(&text, host, dbname, user)
}

fn search(text: &str, host: &Host, dbname: &str, user: &str) -> Option<Password> {
    let socket_dir;
    let place = match &host.place {
        Place::Default => "localhost",
        Place::SocketDir(dir) if dir == Path::new(SOCKET_DIR) => "localhost",
        Place::SocketDir(dir) => {
            socket_dir = dir.to_string_lossy();
            &socket_dir
        }
        Place::Name(name) | Place::Address { name: Some(name), .. } => name,
        Place::Address { addr, name: None } => {
            socket_dir = addr.to_string().into();
            &socket_dir
        }
    };
    let port = host.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in [place, &port, dbname, user] {
            let (field, after) = field(rest)?;
            if field != "*" && unescape(field) != wanted {
                return None;
            }
            rest = after;
        }
        Some(unescape(rest)).filter(|password| !password.is_empty()).map(Password::new)
    })
}

/// Cuts a line at the first colon that no backslash precedes.
fn field(line: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            b':' if !escaped => return Some((&line[..at], &line[at + 1..])),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(place: Place) -> Host {
        Host { place, port: 5432 }
    }

    #[test]
    fn the_first_matching_line_wins() {
        let text = "# comment:5432:a:u:no\n\
                    db:5433:*:*:other-port\n\
                    db:5432:a\\:b:u:with\\:colon\\\\\n\
                    db:*:a:u:first\n\
                    db:*:a:u:second\n\
                    localhost:*:*:u:local\n\
                    /tmp/x:*:*:u:socket\n\
                    ::1:*:*:u:broken\n\
                    \\:\\:1:*:*:u:v6\n\
                    short:line\n";
        let find = |place, dbname| search(text, &host(place), dbname, "u").map(|password| password.0);
        let name = |name: &str| Place::Name(name.to_owned());
        assert_eq!(find(name("db"), "a").as_deref(), Some("first"));
        assert_eq!(find(name("db"), "a:b").as_deref(), Some("with:colon\\"));
        assert_eq!(find(name("db"), "c"), None);
        assert_eq!(find(Place::Default, "c").as_deref(), Some("local"));
        assert_eq!(find(Place::SocketDir(SOCKET_DIR.into()), "c").as_deref(), Some("local"));
        assert_eq!(find(Place::SocketDir("/tmp/x".into()), "c").as_deref(), Some("socket"));
        let addr = "::1".parse().expect("an address");
        assert_eq!(find(Place::Address { addr, name: None }, "c").as_deref(), Some("v6"));
        assert_eq!(find(Place::Address { addr, name: Some("db".to_owned()) }, "a").as_deref(), Some("first"));
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let file = std::env::temp_dir().join(format!("postbox-pgpass-{}", std::process::id()));
        std::fs::write(&file, "*:*:*:*:secret\n").expect("written");
        let look_up = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("permissions set");
            look_up(&file, &host(Place::Default), "d", "u")
        };
        let open = look_up(0o644);
        let closed = look_up(0o600);
        std::fs::remove_file(&file).expect("removed");
        assert_eq!(open, None);
        assert_eq!(closed, Some(Password::new("secret".to_owned())));
    }
}
