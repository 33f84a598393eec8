//! The keywords of a connection string, the environment variables that stand in for them, and their values.

use std::str::FromStr;

use super::syntax;
use crate::error::{Error, ErrorKind, Result};

/// Keywords that have an effect, each with its environment variable.
const SUPPORTED: [(&str, Option<&str>); 22] = [
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
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
];

/// Keywords whose listed values ask for what this client does anyway; any other value is refused.
const FIXED: [(&str, Option<&str>, &[&str]); 7] = [
    // Text for the terminal is not this client's business, so that PGCLIENTENCODING is meant for others.
    ("client_encoding", None, &["utf8", "utf-8", "unicode", "auto"]),
    ("gssencmode", Some("PGGSSENCMODE"), &["disable", "prefer"]),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), &["disable"]),
    ("replication", None, &[]),
    ("sslcertmode", Some("PGSSLCERTMODE"), &["disable", "allow"]),
    ("sslcompression", None, &["0", "1"]),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), &["tlsv1", "tlsv1.1", "tlsv1.2"]),
];

/// Keywords that libpq knows and that have no support here: to ignore one could connect to another server or by weaker
/// means than was asked for.
const REFUSED: [(&str, Option<&str>); 20] = [
    ("gssdelegation", None),
    ("gsslib", None),
    ("krbsrvname", None),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("oauth_client_id", None),
    ("oauth_client_secret", None),
    ("oauth_issuer", None),
    ("oauth_scope", None),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("service", Some("PGSERVICE")),
    ("servicefile", None),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslkeylogfile", None),
    ("sslpassword", None),
];

/// The settings in force: those of a connection string, and of the environment where the string says nothing.
pub(super) struct Settings(Vec<Setting>);

struct Setting {
    keyword: &'static str,
    value: String,
    /// Where it was read, for errors.
    origin: &'static str,
}

impl Settings {
    /// Reads `string`, which came from `origin`, and then `env`.
    pub(super) fn new(
        string: &str,
        origin: &'static str,
        env: &dyn Fn(&str) -> Result<Option<String>>,
    ) -> Result<Self> {
        let mut settings = Self(Vec::new());
        for (keyword, value) in syntax::parse(string)? {
            if let Some(keyword) = effective(&keyword, &value, origin)? {
                settings.0.retain(|earlier| earlier.keyword != keyword);
                settings.0.push(Setting { keyword, value, origin });
            }
        }
        let fixed = FIXED.iter().map(|(keyword, variable, _)| (*keyword, *variable));
        for (keyword, variable) in SUPPORTED.into_iter().chain(fixed).chain(REFUSED) {
            let Some(variable) = variable else { continue };
            if settings.0.iter().any(|given| given.keyword == keyword) {
                continue;
            }
            let Some(value) = env(variable)? else { continue };
            if let Some(keyword) = effective(keyword, &value, variable)? {
                settings.0.push(Setting { keyword, value, origin: variable });
            }
        }
        Ok(settings)
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
    if REFUSED.iter().any(|(name, _)| *name == keyword) {
        if value.is_empty() {
            return Ok(None);
        }
        return Err(refuse(format!("{keyword} in {origin} is not supported")).with_hint("Leave it out."));
    }
    let names = SUPPORTED.map(|(name, _)| name);
    Err(refuse(format!("unknown keyword \"{}\" in {origin}", keyword.escape_debug()))
        .with_hint(format!("The keywords are {}.", names.join(", "))))
}
