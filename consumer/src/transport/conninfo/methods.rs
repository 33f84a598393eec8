//! The proofs that the server may ask for: `require_auth`.

use std::fmt;

use super::keywords::Settings;
use crate::error::Result;

/// How the server may let us in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Method {
    /// Without asking for anything: it trusts us, or what it needs to know is in the certificate.
    None,
    /// By the password in clear text.
    Password,
    /// By a hash of the password.
    Md5,
    /// By SCRAM, in which the server proves itself as well.
    Scram,
}

/// Names of libpq, with the methods that exist here.
const NAMES: [(&str, Option<Method>); 7] = [
    ("none", Some(Method::None)),
    ("password", Some(Method::Password)),
    ("md5", Some(Method::Md5)),
    ("scram-sha-256", Some(Method::Scram)),
    ("gss", None),
    ("sspi", None),
    ("oauth", None),
];

/// The methods that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) struct Methods {
    /// As it was given, for errors; empty if it was not.
    given: String,
    allowed: Vec<Method>,
}

impl Methods {
    /// Every method, where nothing is required.
    pub(in crate::transport) fn any() -> Self {
        Self { given: String::new(), allowed: NAMES.iter().filter_map(|(_, method)| *method).collect() }
    }

    /// Reads a list of names, or a list of names that are each negated with `!`.
    pub(super) fn read(settings: &Settings) -> Result<Self> {
        const KEYWORD: &str = "require_auth";
        let Some(given) = settings.get(KEYWORD) else { return Ok(Self::any()) };
        let wrong = |what: &str| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            settings
                .wrong(KEYWORD, what)
                .with_hint(format!("It lists some of {names}, or each with ! those to refuse."))
        };
        let negated = given.starts_with('!');
        let mut listed = Vec::new();
        for part in given.split(',') {
            let name = if negated { part.strip_prefix('!') } else { Some(part) };
            let name = name.filter(|name| negated || !name.starts_with('!'));
            let name = name.ok_or_else(|| wrong("mixes methods that are wanted with methods that are not"))?;
            let known = NAMES.iter().find(|(known, _)| *known == name);
            let known =
                known.ok_or_else(|| wrong(&format!("names \"{}\", which is no method", name.escape_debug())))?;
            if listed.contains(&known) {
                return Err(wrong(&format!("names {name} twice")));
            }
            listed.push(known);
        }
        let allowed = NAMES.iter().filter(|known| listed.contains(known) != negated).filter_map(|(_, method)| *method);
        let methods = Self { given: given.to_owned(), allowed: allowed.collect() };
        if methods.allowed.is_empty() {
            return Err(wrong("leaves no method that is supported: there is no GSSAPI, SSPI or OAuth here"));
        }
        Ok(methods)
    }

    /// Whether the server may let us in like this.
    pub(in crate::transport) fn allow(&self, method: Method) -> bool {
        self.allowed.contains(&method)
    }

    /// Whether the method was asked for by its name.
    pub(in crate::transport) fn name(&self, method: Method) -> bool {
        !self.given.is_empty() && !self.given.starts_with('!') && self.allow(method)
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "require_auth={}", self.given)
    }
}
