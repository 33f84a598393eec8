//! Passwords: kept out of every text, and looked up in libpq's password file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Host, Place, SOCKET_DIR};

/// A password; nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::transport) struct Password(Vec<u8>);

impl Password {
    /// Takes the password over.
    pub(super) fn new(password: impl Into<Vec<u8>>) -> Self {
        Self(password.into())
    }

    /// The password itself, for the one place that sends its proof.
    pub(in crate::transport) fn bytes(&self) -> &[u8] {
        &self.0
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
    let unused = |why: &str| tracing::warn!("password file {} is not used: {why}", file.display());
    let mut opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return None,
        Err(error) => {
            unused(&error.to_string());
            return None;
        }
    };
    let metadata = opened.metadata().inspect_err(|error| unused(&error.to_string())).ok()?;
    if !metadata.is_file() {
        unused("it is not a plain file");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        unused(&format!("group or others may read it; chmod 0600 {}", file.display()));
        return None;
    }
    // Bytes, as a password may be in any encoding.
    let mut text = Vec::new();
    opened.read_to_end(&mut text).inspect_err(|error| unused(&error.to_string())).ok()?;
    search(&text, host, dbname, user)
}

fn search(text: &[u8], host: &Host, dbname: &str, user: &str) -> Option<Password> {
    let place = match &host.place {
        Place::Default => "localhost".to_owned(),
        Place::SocketDir(dir) if dir == Path::new(SOCKET_DIR) => "localhost".to_owned(),
        Place::SocketDir(dir) => dir.to_string_lossy().into_owned(),
        Place::Name(name) | Place::Address { name: Some(name), .. } => name.clone(),
        Place::Address { addr, name: None } => addr.to_string(),
    };
    let wanted = [&place, &host.port.to_string(), dbname, user];
    text.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"#")).find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let rest = wanted.iter().try_fold(line, |rest, wanted| after(rest, wanted.as_bytes()))?;
        Some(unescape(rest)).filter(|password| !password.is_empty()).map(Password::new)
    })
}

/// What follows the first field of `line` and its colon, if that field is `wanted`.
///
/// As in libpq a colon ends the field only where `wanted` ends, so that an address needs no backslashes: `::1` is read
/// as well as `\:\:1`.
fn after<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let mut line = line;
    for byte in wanted {
        line = line.strip_prefix(b"\\").unwrap_or(line).strip_prefix(&[*byte])?;
    }
    line.strip_prefix(b":")
}

/// The last field: it ends at a colon, and a backslash takes the next byte as it is.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.iter().copied();
    while let Some(byte) = bytes.next().filter(|byte| *byte != b':') {
        text.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
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
                    \\:\\:1:*:*:u:v6\n\
                    ::1:*:*:u:second\n\
                    ::2:*:*:u:bare:rest\n\
                    crlf:*:*:u:end\\\r\n\
                    short:line\n";
        let find = |place, dbname| {
            let password = search(text.as_bytes(), &host(place), dbname, "u")?;
            Some(String::from_utf8(password.0).expect("text"))
        };
        let name = |name: &str| Place::Name(name.to_owned());
        assert_eq!(find(name("db"), "a").as_deref(), Some("first"));
        assert_eq!(find(name("db"), "a:b").as_deref(), Some("with:colon\\"));
        assert_eq!(find(name("db"), "c"), None);
        assert_eq!(find(Place::Default, "c").as_deref(), Some("local"));
        assert_eq!(find(Place::SocketDir(SOCKET_DIR.into()), "c").as_deref(), Some("local"));
        assert_eq!(find(Place::SocketDir("/tmp/x".into()), "c").as_deref(), Some("socket"));
        let addr = "::1".parse().expect("an address");
        assert_eq!(find(Place::Address { addr, name: None }, "c").as_deref(), Some("v6"));
        assert_eq!(find(name("::2"), "c").as_deref(), Some("bare"), "an unescaped colon ends the password");
        assert_eq!(find(name("crlf"), "c").as_deref(), Some("end\\"));
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
        assert_eq!(closed, Some(Password::new("secret")));
    }
}
