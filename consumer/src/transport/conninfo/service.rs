//! Service files: sections of settings, each under the name of a service.

use std::io;
use std::path::{Path, PathBuf};

use super::in_home;
use crate::error::{Error, ErrorKind, Result};

/// Where the administrator's file is, if `PGSYSCONFDIR` does not say: the directory of Debian and its kin.
const SYSTEM_DIR: &str = "/etc/postgresql-common";

/// The files to look in.
pub(super) struct Files {
    /// Named by `servicefile` or `PGSERVICEFILE`; `~/.pg_service.conf` stands in, if it exists.
    pub(super) named: Option<String>,
    /// The directory of the administrator's `pg_service.conf`, which is read when the first file lacks the service.
    pub(super) system: Option<String>,
}

/// A setting of a service, and where it stands.
pub(super) struct Line {
    pub(super) keyword: String,
    pub(super) value: String,
    pub(super) file: String,
    pub(super) number: usize,
}

/// What reads a file.
pub(super) type Reader<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// The settings of service `name`.
pub(super) fn read(name: &str, files: &Files, reader: Reader<'_>) -> Result<Vec<Line>> {
    let system = Path::new(files.system.as_deref().unwrap_or(SYSTEM_DIR)).join("pg_service.conf");
    let first = match &files.named {
        // As in libpq a file that is named has to be there.
        Some(file) => Some(PathBuf::from(file)),
        None => in_home(".pg_service.conf"),
    };
    let mut seen = Vec::new();
    for file in first.into_iter().chain([system]) {
        let is_named = seen.is_empty() && files.named.is_some();
        let text = match reader(&file) {
            Err(error)
                if !is_named && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                continue;
            }
            text => text.map_err(|error| unreadable(&file, error))?,
        };
        if let Some(lines) = search(&text, name, &file)? {
            return Ok(lines);
        }
        seen.push(file);
    }
    let looked = match seen.as_slice() {
        [] => "there is no service file".to_owned(),
        files => {
            let names = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
            format!("there is no section [{name}] in {}", names.join(" nor in "))
        }
    };
    Err(Error::new(ErrorKind::Usage, format!("service \"{name}\" is not defined: {looked}")).with_hint(
        "Services are read from servicefile, PGSERVICEFILE or ~/.pg_service.conf, then from pg_service.conf in PGSYSCONFDIR.",
    ))
}

fn unreadable(file: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Usage, format!("service file {} cannot be read", file.display())).with_source(error)
}

/// The lines of the first section of that name. Other sections are not looked at.
fn search(text: &[u8], name: &str, file: &Path) -> Result<Option<Vec<Line>>> {
    // What stands there may be a password, so that errors name places only.
    let invalid = |number: usize, what: &str| {
        Error::new(ErrorKind::Usage, format!("service file {}, line {number}: {what}", file.display()))
    };
    let mut found: Option<Vec<Line>> = None;
    for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some(section) = line.strip_prefix(b"[") {
            if found.is_some() {
                break;
            }
            // As in libpq nothing needs to follow the bracket, and nothing that does matters.
            if section.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"]")) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(found) = &mut found else { continue };
        let line = str::from_utf8(line).map_err(|_| invalid(number, "not UTF-8"))?;
        if line.starts_with("ldap") {
            return Err(invalid(number, "a look-up in LDAP is not supported").with_hint("Write the settings out."));
        }
        let (keyword, value) = line.split_once('=').ok_or_else(|| {
            invalid(number, "not of the form keyword=value")
                .with_hint("One setting per line, without spaces around the \"=\"; comments begin with \"#\".")
        })?;
        if line.contains('\0') {
            return Err(invalid(number, "contains a zero byte"));
        }
        let (keyword, value) = (keyword.to_owned(), value.to_owned());
        found.push(Line { keyword, value, file: file.display().to_string(), number });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(text: &str, name: &str) -> Option<String> {
        let lines = search(text.as_bytes(), name, Path::new("f")).expect("read")?;
        Some(
            lines
                .iter()
                .map(|line| format!("{}:{}={}", line.number, line.keyword, line.value))
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    #[test]
    fn a_section_ends_where_the_next_begins() {
        let text = "host=nowhere\n[other]\nhost=o\nnonsense\n  [mine] \r\n# a comment\n\n host=h \r\npassword=a=b c\n[mine]\nhost=second\n";
        assert_eq!(settings(text, "mine").as_deref(), Some("8:host=h 9:password=a=b c"));
        assert_eq!(settings(text, "min"), None);
        assert_eq!(settings("[empty]", "empty").as_deref(), Some(""));
    }

    #[test]
    fn errors_name_the_line_and_nothing_of_it() {
        for (text, number) in [("[a]\nhost=x\nhunter2\n", "line 3"), ("[a]\nldap://h/hunter2?x", "line 2")] {
            let error = search(text.as_bytes(), "a", Path::new("/f")).map(drop).expect_err(text);
            assert!(error.to_string().contains("/f") && error.to_string().contains(number), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"[a]\n=#".to_vec())], 0..60)) {
            let _ = search(&bytes, "a", Path::new("f"));
        }
    }
}
