//! Where the server is and how to log in: the settings of libpq, from the same places.

mod hosts;
mod keywords;
mod methods;
mod password;
mod service;
mod syntax;
mod tls;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::{env, fs};

pub(super) use self::hosts::{Host, Place, SOCKET_DIR};
use self::keywords::Settings;
pub(super) use self::methods::{Method, Methods};
pub(super) use self::password::Password;
use self::service::Reader;
pub(super) use self::tls::{CertMode, Identity, Revoked, Roots, SslMode, Tls, UserFile};
use crate::error::{Error, ErrorKind, Result};

/// How to reach a server and log in.
///
/// A setting comes from the string given, else from the environment variable that libpq reads for it
/// (`PGHOST`, `PGUSER`, …), else it has libpq's default. `DATABASE_URL` stands in for a string that is not given; the two
/// are not mixed, so that no password of one goes to the host of the other.
///
/// `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) dbname: String,
    password: Option<Password>,
    passfile: Option<PathBuf>,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
    /// Bounds the attempt at one address, from the first packet to the end of the login.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) tls: Tls,
    pub(super) channel_binding: ChannelBinding,
    /// The proofs that the server may ask for.
    pub(super) methods: Methods,
    /// The operating system's user that a server on a Unix socket must run as.
    pub(super) peer: Option<String>,
    pub(super) target: Target,
    /// Whether the hosts, and the addresses of each, are tried in an order of chance.
    pub(super) shuffle: bool,
    pub(super) keepalive: Option<Keepalive>,
    /// How long sent data may stay unacknowledged before the kernel gives the link up.
    pub(super) tcp_user_timeout: Option<Duration>,
}

/// Whether the login is bound to the TLS session it travels in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// The server must offer it.
    Require,
}

/// Which of several servers will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Any.
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not write.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// One that is in recovery if there is any, else any.
    PreferStandby,
}

/// When the kernel probes a silent link; a field that is not set is the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keepalive {
    /// Silence before the first probe.
    pub(super) idle: Duration,
    /// Time between probes.
    pub(super) interval: Duration,
    /// Probes without answer until the link is given up.
    pub(super) count: u32,
}

impl ConnInfo {
    /// Reads a URI, a list of `keyword=value`, or a database name; the environment and the defaults fill in the rest.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the keyword or variable.
    pub fn parse(string: &str) -> Result<Self> {
        Self::from_sources(Some(string), &environment, &|file| fs::read(file))
    }

    /// The database that is connected to.
    pub fn database(&self) -> &str {
        &self.dbname
    }

    /// As [`parse`](Self::parse) with the string of `DATABASE_URL`, if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the keyword or variable.
    pub fn from_env() -> Result<Self> {
        Self::from_sources(None, &environment, &|file| fs::read(file))
    }

    /// [`parse`](Self::parse) of a string that was given, else [`from_env`](Self::from_env).
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the keyword or variable.
    pub fn resolve(string: Option<&str>) -> Result<Self> {
        Self::from_sources(string, &environment, &|file| fs::read(file))
    }

    /// The role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database to connect to.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The password for `host`: the one given, else that of the password file.
    pub(super) fn password(&self, host: &Host) -> Option<Password> {
        match &self.password {
            Some(password) => Some(password.clone()),
            None => self.passfile.as_ref().and_then(|file| password::look_up(file, host, &self.dbname, &self.user)),
        }
    }

    pub(super) fn from_sources(string: Option<&str>, env: Env<'_>, reader: Reader<'_>) -> Result<Self> {
        let settings = match string {
            Some(string) => Settings::new(string, "the connection string", env, reader)?,
            None => Settings::new(&env("DATABASE_URL")?.unwrap_or_default(), "DATABASE_URL", env, reader)?,
        };
        let user = match settings.get("user") {
            Some(user) => user.to_owned(),
            None => operating_system_user()?,
        };
        let tls = Tls::read(&settings)?;
        Ok(Self {
            hosts: hosts::read(&settings)?,
            dbname: settings.get("dbname").unwrap_or(&user).to_owned(),
            user,
            password: settings.get("password").map(Password::new),
            passfile: settings.get("passfile").map(PathBuf::from).or_else(|| in_home(".pgpass")),
            application_name: settings
                .get("application_name")
                .or_else(|| settings.get("fallback_application_name"))
                .map(str::to_owned),
            options: settings.get("options").map(str::to_owned),
            connect_timeout: connect_timeout(&settings)?,
            tls,
            channel_binding: settings.one_of(
                "channel_binding",
                ChannelBinding::Prefer,
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
            )?,
            methods: Methods::read(&settings)?,
            peer: settings.get("requirepeer").map(str::to_owned),
            shuffle: settings.one_of("load_balance_hosts", false, &[("disable", false), ("random", true)])?,
            target: settings.one_of(
                "target_session_attrs",
                Target::Any,
                &[
                    ("any", Target::Any),
                    ("read-write", Target::ReadWrite),
                    ("read-only", Target::ReadOnly),
                    ("primary", Target::Primary),
                    ("standby", Target::Standby),
                    ("prefer-standby", Target::PreferStandby),
                ],
            )?,
            keepalive: keepalive(&settings)?,
            tcp_user_timeout: match settings.number::<u32>("tcp_user_timeout")? {
                None | Some(0) => None,
                Some(milliseconds) => Some(Duration::from_millis(milliseconds.into())),
            },
        })
    }
}

impl FromStr for ConnInfo {
    type Err = Error;

    fn from_str(string: &str) -> Result<Self> {
        Self::parse(string)
    }
}

/// What knows the environment's variables.
type Env<'a> = &'a dyn Fn(&str) -> Result<Option<String>>;

fn environment(name: &str) -> Result<Option<String>> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => {
            Err(Error::new(ErrorKind::Usage, format!("environment variable {name} is not UTF-8")))
        }
    }
}

fn operating_system_user() -> Result<String> {
    whoami::username().map_err(|error| {
        Error::new(ErrorKind::Usage, "no user given, and the operating system knows no name of this process's user")
            .with_hint("Give user=… in the connection string, or set PGUSER.")
            .with_source(error)
    })
}

fn in_home(path: &str) -> Option<PathBuf> {
    env::home_dir().filter(|home| !home.as_os_str().is_empty()).map(|home| home.join(path))
}

/// libpq waits for ever unless told otherwise. A consumer has nobody in front of it who would give up, so that it
/// waits for [`CONNECT_TIMEOUT`]; `connect_timeout=0` restores libpq's way.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

fn connect_timeout(settings: &Settings) -> Result<Option<Duration>> {
    Ok(match settings.number::<i32>("connect_timeout")? {
        None => Some(CONNECT_TIMEOUT),
        // As in libpq less than two seconds is two, and nothing is for ever.
        Some(seconds) => u64::try_from(seconds).ok().filter(|s| *s > 0).map(|s| Duration::from_secs(s.max(2))),
    })
}

/// The system's defaults notice a dead peer after more than two hours; ours after two minutes.
fn keepalive(settings: &Settings) -> Result<Option<Keepalive>> {
    let positive = |keyword, default| -> Result<u32> {
        Ok(settings.number::<u32>(keyword)?.filter(|value| *value > 0).unwrap_or(default))
    };
    let keepalive = Keepalive {
        idle: Duration::from_secs(positive("keepalives_idle", 60)?.into()),
        interval: Duration::from_secs(positive("keepalives_interval", 10)?.into()),
        count: positive("keepalives_count", 6)?,
    };
    Ok(settings.one_of("keepalives", true, &[("0", false), ("1", true)])?.then_some(keepalive))
}

#[cfg(test)]
mod tests {
    use super::tls::Versions;
    use super::*;
    use proptest::prelude::*;

    fn read(string: Option<&str>, env: &[(&str, &str)]) -> Result<ConnInfo> {
        let env = |name: &str| Ok(env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()));
        ConnInfo::from_sources(string, &env, &|file| fs::read(file))
    }

    fn hosts(info: &ConnInfo) -> String {
        info.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn the_string_comes_before_the_environment_and_that_before_the_defaults() {
        let env = [("PGHOST", "env"), ("PGPORT", "6543"), ("PGUSER", "envuser"), ("PGPASSWORD", "envpw")];
        let info = read(Some("host=given user=me"), &env).expect("read");
        assert_eq!((hosts(&info).as_str(), info.user(), info.dbname()), ("given port 6543", "me", "me"));
        assert_eq!(info.password, Some(Password::new("envpw")));

        let info = read(None, &env).expect("read");
        assert_eq!((hosts(&info).as_str(), info.user(), info.dbname()), ("env port 6543", "envuser", "envuser"));

        let info = read(None, &[]).expect("read");
        assert_eq!(hosts(&info), "localhost port 5432");
        assert_eq!(info.user(), whoami::username().expect("a user"));
        assert_eq!(info.dbname(), info.user());
        assert_eq!(info.tls.mode, SslMode::Prefer);
        assert_eq!(info.connect_timeout, Some(CONNECT_TIMEOUT));
        assert_eq!(info.password, None);
    }

    #[test]
    fn database_url_stands_in_for_a_string_and_is_not_mixed_with_one() {
        let env = [("DATABASE_URL", "postgres://u:secret@url:7777/d"), ("PGPORT", "1"), ("PGUSER", "nobody")];
        let info = read(None, &env).expect("read");
        assert_eq!((hosts(&info).as_str(), info.user(), info.dbname()), ("url port 7777", "u", "d"));
        let info = read(Some("host=other"), &env).expect("read");
        assert_eq!((hosts(&info).as_str(), info.user()), ("other port 1", "nobody"));
        assert_eq!(info.password, None);
    }

    #[test]
    fn hosts_are_sockets_names_and_addresses() {
        for (string, expected) in [
            ("host=/tmp/x port=5433", "socket /tmp/x/.s.PGSQL.5433"),
            ("host=a,b,/c", "a port 5432 | b port 5432 | socket /c/.s.PGSQL.5432"),
            ("host=a,b port=1,2", "a port 1 | b port 2"),
            ("host=a,b port=,2", "a port 5432 | b port 2"),
            ("host=a, port=1,2", "a port 1 | localhost port 2"),
            ("hostaddr=10.0.0.1", "10.0.0.1 port 5432"),
            ("host=a hostaddr=::1 port=5", "a (::1) port 5"),
            ("host='' port=''", "localhost port 5432"),
            ("postgres://a:1,[::1]/", "a port 1 | ::1 port 5432"),
            ("postgres://%2Ftmp%2Fx:5/", "socket /tmp/x/.s.PGSQL.5"),
        ] {
            assert_eq!(hosts(&read(Some(string), &[]).expect(string)), expected, "{string}");
        }
    }

    #[test]
    fn settings_that_cannot_be_followed_are_refused_by_name() {
        for (string, env, words) in [
            ("hots=a", ("", ""), "unknown keyword \"hots\""),
            ("postgres://a/?hots=b", ("", ""), "unknown keyword \"hots\""),
            ("service=nowhere", ("PGSERVICEFILE", "/nonexistent"), "/nonexistent"),
            ("service=nowhere servicefile=/nonexistent", ("", ""), "/nonexistent"),
            ("servicefile=/dev/null", ("PGSERVICE", "nowhere"), "service \"nowhere\" is not defined"),
            ("oauth_issuer=x", ("", ""), "oauth_issuer"),
            ("", ("PGKRBSRVNAME", "k"), "PGKRBSRVNAME"),
            ("", ("PGMINPROTOCOLVERSION", "3.2"), "PGMINPROTOCOLVERSION"),
            ("ssl_min_protocol_version=SSLv3", ("", ""), "ssl_min_protocol_version"),
            ("ssl_max_protocol_version=TLSv1.1", ("", ""), "below TLSv1.2"),
            ("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", ("", ""), "above"),
            ("require_auth=scram", ("", ""), "\"scram\""),
            ("require_auth=md5,!none", ("", ""), "mixes"),
            ("require_auth=!md5,none", ("", ""), "mixes"),
            ("require_auth=md5,md5", ("", ""), "twice"),
            ("", ("PGREQUIREAUTH", "gss,oauth"), "PGREQUIREAUTH"),
            ("load_balance_hosts=1", ("", ""), "load_balance_hosts \"1\""),
            ("sslcertmode=always", ("", ""), "sslcertmode \"always\""),
            ("", ("PGGSSENCMODE", "require"), "PGGSSENCMODE"),
            ("gssencmode=require", ("", ""), "gssencmode \"require\""),
            ("replication=database", ("", ""), "replication"),
            ("client_encoding=latin1", ("", ""), "client_encoding \"latin1\""),
            ("sslmode=verify_full", ("", ""), "sslmode \"verify_full\""),
            ("", ("PGSSLMODE", "on"), "PGSSLMODE"),
            ("sslrootcert=system sslmode=require", ("", ""), "sslrootcert=system"),
            ("sslnegotiation=direct", ("", ""), "sslnegotiation=direct"),
            ("port=0", ("", ""), "port \"0\""),
            ("port=65536", ("", ""), "port \"65536\""),
            ("", ("PGPORT", "5432x"), "port \"5432x\""),
            ("host=a,b port=1,2,3", ("", ""), "3 ports for 2 hosts"),
            ("host=a,b hostaddr=::1", ("", ""), "2 names and hostaddr 1"),
            ("hostaddr=localhost", ("", ""), "hostaddr \"localhost\""),
            ("host=@abstract", ("", ""), "abstract"),
            ("connect_timeout=soon", ("", ""), "connect_timeout \"soon\""),
            ("keepalives_idle=-1", ("", ""), "keepalives_idle \"-1\""),
        ] {
            let error = read(Some(string), &[env]).expect_err(string);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(words), "{string} {env:?}: {error}");
        }
    }

    #[test]
    fn harmless_settings_of_others_are_accepted() {
        let string = "gssencmode=prefer client_encoding=UTF8 sslcompression=0 load_balance_hosts=disable sslcert=''";
        let env =
            [("PGCLIENTENCODING", "LATIN1"), ("PGSERVICE", ""), ("PGHOST", ""), ("PGMAXPROTOCOLVERSION", "latest")];
        read(Some(string), &env).expect("read");
    }

    #[test]
    fn values_mean_what_they_mean_to_libpq() {
        let info = |string: &str| read(Some(string), &[]).expect(string);
        assert_eq!(info("connect_timeout=0").connect_timeout, None);
        assert_eq!(info("connect_timeout=-1").connect_timeout, None);
        assert_eq!(info("connect_timeout=1").connect_timeout, Some(Duration::from_secs(2)));
        assert_eq!(info("connect_timeout=9").connect_timeout, Some(Duration::from_secs(9)));
        assert_eq!(info("keepalives=0").keepalive, None);
        assert_eq!(info("keepalives_idle=7").keepalive.map(|probes| probes.idle), Some(Duration::from_secs(7)));
        assert_eq!(info("tcp_user_timeout=1500").tcp_user_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(info("sslrootcert=system").tls.mode, SslMode::VerifyFull);
        assert_eq!(info("sslrootcert=/ca.pem").tls.roots, Roots::File("/ca.pem".into()));
        assert!(info("sslmode=require sslnegotiation=direct").tls.direct);
        assert!(!info("sslsni=0").tls.sni);
        assert_eq!(info("channel_binding=require").channel_binding, ChannelBinding::Require);
        assert_eq!(info("target_session_attrs=read-write").target, Target::ReadWrite);
        assert_eq!(info("target_session_attrs=prefer-standby").target, Target::PreferStandby);
        assert!(info("load_balance_hosts=random").shuffle);
        assert_eq!(info("ssl_min_protocol_version=tlsv1.3").tls.versions, Versions { tls12: false, tls13: true });
        assert_eq!(info("ssl_max_protocol_version=TLSv1.2").tls.versions, Versions { tls12: true, tls13: false });
        let allowed = |list: &str| {
            let methods = info(&format!("require_auth={list}")).methods;
            [Method::None, Method::Password, Method::Md5, Method::Scram].map(|method| methods.allow(method))
        };
        assert_eq!(allowed("''"), [true; 4]);
        assert_eq!(allowed("scram-sha-256,gss"), [false, false, false, true]);
        assert_eq!(allowed("!password,!md5,!oauth"), [true, false, false, true]);
        let older = |string| read(Some(string), &[("PGREQUIRESSL", "1")]).expect(string).tls.mode;
        assert_eq!((older(""), older("sslmode=disable")), (SslMode::Require, SslMode::Disable));
        assert_eq!(info("fallback_application_name=a").application_name.as_deref(), Some("a"));
        assert_eq!(info("fallback_application_name=a application_name=b").application_name.as_deref(), Some("b"));
        assert_eq!(info("options='-c geqo=off'").options.as_deref(), Some("-c geqo=off"));
        assert_eq!(info("user=a user=b").user(), "b");
        assert_eq!(info("orders").dbname(), "orders");
        // An empty value hides the environment, and then the default applies.
        let hidden = read(Some("password='' user=u dbname=''"), &[("PGPASSWORD", "x"), ("PGDATABASE", "y")]);
        let hidden = hidden.expect("read");
        assert_eq!((hidden.password.clone(), hidden.dbname()), (None, "u"));
    }

    #[test]
    fn a_service_comes_after_the_string_and_before_the_environment() {
        let dir = env::temp_dir().join(format!("postbox-service-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (named, system) = (dir.join("named"), dir.join("pg_service.conf"));
        std::fs::write(
            &named,
            "[a]\nhost=service\nuser=first\nuser=second\npassword=hunter2\n[bad]\nhots=x\n[nested]\nservice=a\n",
        )
        .expect("written");
        std::fs::write(&system, "[a]\nhost=system\n[b]\nhost=system\nport=x\n").expect("written");
        let named = named.to_str().expect("a path");
        let env = [
            ("PGSERVICEFILE", named),
            ("PGSYSCONFDIR", dir.to_str().expect("a path")),
            ("PGUSER", "env"),
            ("PGPORT", "7"),
            ("PGSERVICE", "a"),
        ];

        let info = read(Some("dbname=given"), &env).expect("read");
        assert_eq!((hosts(&info).as_str(), info.user(), info.dbname()), ("service port 7", "first", "given"));
        assert_eq!(info.password, Some(Password::new("hunter2")));
        let info = read(Some("postgres://me@given?service=a"), &env).expect("read");
        assert_eq!((hosts(&info).as_str(), info.user()), ("given port 7", "me"));
        // Given and empty, it hides the variable.
        assert_eq!(hosts(&read(Some("service=''"), &env).expect("read")), "localhost port 7");
        let string = format!("service=a servicefile='{}'", system.display());
        assert_eq!(hosts(&read(Some(&string), &env).expect("read")), "system port 7");

        for (string, words) in [
            ("service=bad", format!("unknown keyword \"hots\" in service file {named}, line 7")),
            ("service=nested", format!("service within a service in service file {named}, line 9")),
            // The administrator's file is read for what the first one lacks.
            ("service=b", "port \"x\"".to_owned()),
            (
                "service=c",
                format!("service \"c\" is not defined: there is no section [c] in {named} nor in {}", system.display()),
            ),
        ] {
            let error = read(Some(string), &env).expect_err(string);
            assert!(error.to_string().contains(&words), "{string}: {error}");
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn debug_output_and_errors_show_no_password() {
        let info =
            read(Some("postgres://u:hunter2@h/d?sslpassword=hunter2"), &[("PGPASSWORD", "hunter2")]).expect("read");
        assert!(!format!("{info:?} {info:#?}").contains("hunter2"), "{info:?}");
        assert!(format!("{info:?}").contains("***"));
        for string in ["password=hunter2 port=x", "password=hunter2 nonsense=1", "password=hunter2 sslmode=x"] {
            let error = read(Some(string), &[]).expect_err(string);
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_string_and_environment_is_read_or_refused(
            string in "(postgres://)?([a-z_]{1,14}=[^ ]{0,6} ){0,4}\\PC{0,30}",
            variable in prop::sample::select(vec!["PGHOST", "PGPORT", "PGSSLMODE", "PGCONNECT_TIMEOUT", "DATABASE_URL"]),
            value in "\\PC{0,20}",
        ) {
            let _ = read(Some(&string), &[(variable, &value)]);
            let _ = read(None, &[(variable, &value)]);
        }
    }
}
