//! The keywords of a connection string, the environment variables that stand in for them, and their values.

use std::str::FromStr;

use super::{Env, service, syntax};
use crate::error::{Error, ErrorKind, Result};

/// Keywords that have an effect, each with its environment variable.
const SUPPORTED: [(&str, Option<&str>); 35] = [
    ("application_name", Some("PGAPPNAME")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("fallback_application_name", None),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("requirepeer", Some("PGREQUIREPEER")),
    (SERVICE, Some("PGSERVICE")),
    (SERVICE_FILE, Some("PGSERVICEFILE")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslpassword", None),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
];

const SERVICE: &str = "service";
const SERVICE_FILE: &str = "servicefile";

/// Keywords whose listed values ask for what this client does anyway; any other value is refused.
const FIXED: [(&str, Option<&str>, &[&str]); 6] = [
    // Text for the terminal is not this client's business, so that PGCLIENTENCODING is meant for others.
    ("client_encoding", None, &["utf8", "utf-8", "unicode", "auto"]),
    ("gssencmode", Some("PGGSSENCMODE"), &["disable", "prefer"]),
    // Version 3.0 is spoken, which a limit above it allows.
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), &["3.0", "3.2", "latest"]),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION"), &["3.0"]),
    ("replication", None, &[]),
    ("sslcompression", None, &["0", "1"]),
];

/// Keywords that libpq knows and that have no support here, with the remedy: to ignore one could connect to another
/// server or by weaker means than was asked for.
const REFUSED: [(&str, Option<&str>, &str); 11] = [
    ("gssdelegation", Some("PGGSSDELEGATION"), NO_GSSAPI),
    ("gsslib", Some("PGGSSLIB"), NO_GSSAPI),
    ("krbsrvname", Some("PGKRBSRVNAME"), NO_GSSAPI),
    ("oauth_client_id", None, NO_OAUTH),
    ("oauth_client_secret", None, NO_OAUTH),
    ("oauth_issuer", None, NO_OAUTH),
    ("oauth_scope", None, NO_OAUTH),
    ("requiressl", None, "Use sslmode=require."),
    ("scram_client_key", None, NO_KEYS),
    ("scram_server_key", None, NO_KEYS),
    ("sslkeylogfile", None, "Leave it out: the keys of a link are written nowhere."),
];

const NO_GSSAPI: &str =
    "Leave it out: there is no GSSAPI here. Let pg_hba.conf ask this role for scram-sha-256 or cert.";
const NO_OAUTH: &str = "Leave it out: there is no OAuth here. Let pg_hba.conf ask this role for scram-sha-256 or cert.";
const NO_KEYS: &str = "Leave it out, and give the password: in PGPASSWORD, in the password file or in a service file.";

/// The settings in force: those of a connection string, then of its service, then of the environment.
pub(super) struct Settings(Vec<Setting>);

struct Setting {
    keyword: &'static str,
    value: String,
    /// Where it was read, for errors.
    origin: String,
}

impl Settings {
    /// Reads `string`, which came from `origin`, the service that it or `env` names, and then `env`.
    pub(super) fn new(string: &str, origin: &str, env: Env<'_>, reader: service::Reader<'_>) -> Result<Self> {
        let mut settings = Self(Vec::new());
        for (keyword, value) in syntax::parse(string)? {
            if let Some(keyword) = effective(&keyword, &value, origin)? {
                settings.0.retain(|earlier| earlier.keyword != keyword);
                settings.0.push(Setting { keyword, value, origin: origin.to_owned() });
            }
        }
        settings.add_service(env, reader)?;
        let fixed = FIXED.iter().map(|(keyword, variable, _)| (*keyword, *variable));
        let refused = REFUSED.iter().map(|(keyword, variable, _)| (*keyword, *variable));
        for (keyword, variable) in SUPPORTED.into_iter().chain(fixed).chain(refused) {
            let Some(variable) = variable else { continue };
            if settings.gives(keyword) {
                continue;
            }
            let Some(value) = env(variable)? else { continue };
            if let Some(keyword) = effective(keyword, &value, variable)? {
                settings.0.push(Setting { keyword, value, origin: variable.to_owned() });
            }
        }
        // An older spelling, which libpq still reads: to ignore it would go without TLS.
        if !settings.gives("sslmode") && env("PGREQUIRESSL")?.is_some_and(|value| value.starts_with('1')) {
            let (keyword, value) = ("sslmode", "require".to_owned());
            settings.0.push(Setting { keyword, value, origin: "PGREQUIRESSL".to_owned() });
        }
        Ok(settings)
    }

    /// Adds what the service says and nothing earlier does.
    fn add_service(&mut self, env: Env<'_>, reader: service::Reader<'_>) -> Result<()> {
        // One that is given and empty hides the variable.
        let given = |keyword: &str, variable: &str| match self.gives(keyword) {
            true => Ok(self.get(keyword).map(str::to_owned)),
            false => env(variable).map(|value| value.filter(|value| !value.is_empty())),
        };
        let Some(name) = given(SERVICE, "PGSERVICE")? else { return Ok(()) };
        let files = service::Files {
            named: given(SERVICE_FILE, "PGSERVICEFILE")?,
            system: env("PGSYSCONFDIR")?.filter(|dir| !dir.is_empty()),
        };
        for line in service::read(&name, &files, reader)? {
            let origin = format!("service file {}, line {}", line.file, line.number);
            if [SERVICE, SERVICE_FILE].contains(&line.keyword.as_str()) {
                return Err(Error::new(ErrorKind::Usage, format!("{} within a service in {origin}", line.keyword))
                    .with_hint("A service cannot refer to another one: write its settings out."));
            }
            if let Some(keyword) = effective(&line.keyword, &line.value, &origin)?
                && !self.gives(keyword)
            {
                self.0.push(Setting { keyword, value: line.value, origin });
            }
        }
        Ok(())
    }

    fn gives(&self, keyword: &str) -> bool {
        self.0.iter().any(|given| given.keyword == keyword)
    }

    /// The value of a keyword; an empty one stands for the default, as in libpq.
    pub(super) fn get(&self, keyword: &str) -> Option<&str> {
        self.find(keyword).map(|setting| setting.value.as_str())
    }

    /// A value out of a fixed choice.
    pub(super) fn one_of<T: Copy>(&self, keyword: &str, default: T, choice: &[(&str, T)]) -> Result<T> {
        let Some(Setting { value, origin, .. }) = self.find(keyword) else { return Ok(default) };
        choice.iter().find(|(name, _)| name == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names = choice.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            Error::new(ErrorKind::Usage, format!("{keyword} \"{value}\" in {origin} is not supported"))
                .with_hint(format!("{keyword} is one of {}.", names.join(", ")))
        })
    }

    /// Where the value was read.
    pub(super) fn origin(&self, keyword: &str) -> &str {
        self.find(keyword).map_or("the defaults", |setting| &setting.origin)
    }

    /// The error about a value that no choice lists.
    pub(super) fn wrong(&self, keyword: &str, what: &str) -> Error {
        Error::new(ErrorKind::Usage, format!("{keyword} in {} {what}", self.origin(keyword)))
    }

    /// A number.
    pub(super) fn number<T: FromStr>(&self, keyword: &str) -> Result<Option<T>> {
        let Some(Setting { value, origin, .. }) = self.find(keyword) else { return Ok(None) };
        let wrong =
            |_| Error::new(ErrorKind::Usage, format!("{keyword} \"{value}\" in {origin} is not a number in its range"));
        value.trim().parse().map(Some).map_err(wrong)
    }

    fn find(&self, keyword: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.keyword == keyword && !setting.value.is_empty())
    }
}

/// The keyword if it has an effect, nothing if its value asks for what is done anyway.
fn effective(keyword: &str, value: &str, origin: &str) -> Result<Option<&'static str>> {
    if let Some((keyword, _)) = SUPPORTED.iter().find(|(name, _)| *name == keyword) {
        return Ok(Some(keyword));
    }
    let refuse = |message: String| Error::new(ErrorKind::Usage, message);
    if let Some((_, _, values)) = FIXED.iter().find(|(name, _, _)| *name == keyword) {
        if value.is_empty() || values.contains(&value.to_ascii_lowercase().as_str()) {
            return Ok(None);
        }
        let error = refuse(format!("{keyword} \"{value}\" in {origin} is not supported"));
        return Err(match values {
            [] => error.with_hint(format!("Leave {keyword} out.")),
            _ => error.with_hint(format!("Leave {keyword} out; supported are {}.", values.join(", "))),
        });
    }
    if let Some((_, _, remedy)) = REFUSED.iter().find(|(name, _, _)| *name == keyword) {
        if value.is_empty() {
            return Ok(None);
        }
        return Err(refuse(format!("{keyword} in {origin} is not supported")).with_hint(*remedy));
    }
    let names = SUPPORTED.map(|(name, _)| name);
    Err(refuse(format!("unknown keyword \"{}\" in {origin}", keyword.escape_debug()))
        .with_hint(format!("The keywords are {}.", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_operations_guide_has_every_keyword_and_variable() {
        let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let guide = std::fs::read_to_string(guide).expect("the guide");
        let fixed = FIXED.iter().map(|(keyword, variable, _)| (*keyword, *variable));
        let refused = REFUSED.iter().map(|(keyword, variable, _)| (*keyword, *variable));
        for (keyword, variable) in SUPPORTED.into_iter().chain(fixed).chain(refused) {
            let row = guide.lines().find(|line| {
                let cell = line.strip_prefix('|').and_then(|line| line.split('|').next());
                cell.is_some_and(|cell| cell.contains(&format!("`{keyword}`")))
            });
            let row = row.unwrap_or_else(|| panic!("{keyword} is in no row"));
            assert!(variable.is_none_or(|variable| row.contains(&format!("`{variable}`"))), "{keyword}: {row}");
        }
    }
}
