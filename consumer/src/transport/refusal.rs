//! What the server says when it refuses: its reports, the kinds of errors they mean, and the remedies.
//!
//! Servers may speak any language. So the SQLSTATE decides first, then the name of the C function that reported, then
//! words that no translation touches (names of settings), and only last the English text.

use bytes::{Buf, Bytes};
use postbox_wire::{PROTO_VERSION_MAX, PROTO_VERSION_MIN};
use tokio_postgres::error::DbError;

use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::{CLAIMS_PUBLICATION, UNPUBLISHED_CLAIMS};

/// The name of the output plugin and of its library.
pub(crate) const PLUGIN: &str = "postbox";

/// What a connection is about. Messages name it and remedies contain it.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    /// The role that logged in.
    pub(crate) role: Option<String>,
    /// The database it wanted.
    pub(crate) dbname: Option<String>,
    /// The slot it wanted.
    pub(crate) slot: Option<String>,
}

/// An error or a notice as the server reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    severity: String,
    sqlstate: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    /// The C function that reported.
    routine: String,
}

impl Report {
    /// Reads the body of an ErrorResponse or a NoticeResponse.
    pub(crate) fn parse(body: &Bytes) -> Result<Self> {
        let malformed = || Error::new(ErrorKind::Protocol, "the server sent a malformed error report");
        let mut report = Self::default();
        let mut rest = body.clone();
        loop {
            let field = rest.try_get_u8().map_err(|_| malformed())?;
            if field == 0 {
                return Ok(report);
            }
            let end = rest.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
            // Before the login the server does not know which encoding we want.
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest.advance(end + 1);
            match field {
                b'S' if report.severity.is_empty() => report.severity = text,
                // The severity once more, never translated.
                b'V' => report.severity = text,
                b'C' => report.sqlstate = text,
                b'M' => report.message = text,
                b'D' => report.detail = Some(text),
                b'H' => report.hint = Some(text),
                b'R' => report.routine = text,
                _ => {}
            }
        }
    }

    /// The report of an SQL statement.
    pub(crate) fn from_sql(error: &DbError) -> Self {
        Self {
            severity: error.severity().to_owned(),
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            routine: error.routine().unwrap_or_default().to_owned(),
        }
    }

    /// Logs a notice: a warning as such, everything else for those who look for it.
    pub(crate) fn log(&self) {
        let detail = self.detail.as_deref().unwrap_or_default();
        if self.severity == "WARNING" {
            tracing::warn!(sqlstate = self.sqlstate, detail, "server: {}", self.message);
        } else {
            tracing::debug!(sqlstate = self.sqlstate, detail, "server: {}: {}", self.severity, self.message);
        }
    }

    /// The error that the report means, with the remedy if one is known.
    pub(crate) fn into_error(self, about: &About) -> Error {
        let (kind, remedy) = self.meaning(about);
        let mut message = match (&about.role, self.lacks_replication()) {
            (Some(role), true) => format!("role {} has no REPLICATION attribute: {}", quote(role), self.message),
            _ => self.message,
        };
        if let Some(detail) = self.detail {
            message = format!("{message} ({})", detail.trim_end_matches('.'));
        }
        let error = Error::new(kind, message).with_sqlstate(self.sqlstate);
        match remedy.or(self.hint) {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    fn meaning(&self, about: &About) -> (ErrorKind, Option<String>) {
        let role = about.role.as_deref().map_or("<role>".to_owned(), quote);
        let dbname = about.dbname.as_deref().map_or("<database>".to_owned(), quote);
        match self.sqlstate.as_str() {
            "28P01" => (
                ErrorKind::Login,
                Some("Check the password: in the connection string, in PGPASSWORD or in the password file.".to_owned()),
            ),
            "28000" if self.says("pg_hba.conf") => (
                ErrorKind::Login,
                Some(format!(
                    "Add a line for role {role} and database {dbname} to pg_hba.conf and reload; logical replication \
                     connections match by the database's own name, not by the word replication."
                )),
            ),
            "28000" if self.reported_by("InitializeSessionUserId") => {
                (ErrorKind::Login, Some("Name a role that exists and may log in: user=… or PGUSER.".to_owned()))
            }
            "28000" if self.says("certificate") => (
                ErrorKind::Login,
                Some(format!(
                    "The server wants a certificate issued to role {role} (its CN, unless pg_ident.conf maps it) by an \
                     authority in ssl_ca_file: sslcert=… sslkey=…, with sslmode=require or better."
                )),
            ),
            "28000" if self.says("channel binding") => (
                ErrorKind::Login,
                Some(
                    "Something between here and the server ends TLS: a proxy, or an attacker. If it is a proxy of yours \
                     that you trust: channel_binding=disable."
                        .to_owned(),
                ),
            ),
            // No password was wrong: the server has looked at something else, most often at the name of the local user.
            "28000" if self.reported_by("auth_failed") => (
                ErrorKind::Login,
                Some(format!(
                    "Methods peer and ident take the operating system's user name for the role's. Run as that user, or let \
                     pg_hba.conf ask role {role} for scram-sha-256, or try TCP: host=localhost."
                )),
            ),
            "28000" => (ErrorKind::Login, None),
            "3D000" => (ErrorKind::Login, Some("Name an existing database: dbname=… or PGDATABASE.".to_owned())),
            "42501" if self.refuses_plugin() => (ErrorKind::Setup, Some(allow_plugin(about.role.as_deref(), None))),
            "42501" if self.lacks_replication() => (
                ErrorKind::Setup,
                Some(format!(
                    "A superuser has to run: ALTER ROLE {role} REPLICATION; The attribute is not inherited through \
                     membership in another role: the role that logs in needs it itself."
                )),
            ),
            "42501" if self.reported_by("CheckMyDatabase") => {
                (ErrorKind::Login, Some(format!("The database's owner has to run: GRANT CONNECT ON DATABASE {dbname} TO {role};")))
            }
            "42704" if self.reported_by("ReplicationSlotAcquire") => (ErrorKind::SlotMissing, Some(create_slot(about))),
            "42704" if self.reported_by("get_publication_oid") && self.says(CLAIMS_PUBLICATION) => {
                (ErrorKind::Setup, Some(UNPUBLISHED_CLAIMS.to_owned()))
            }
            "55006" if self.reported_by("ReplicationSlotAcquire") => (
                ErrorKind::SlotInUse,
                Some("Stop the other consumer or wait until it ends; pg_stat_replication shows who it is.".to_owned()),
            ),
            "55000" => self.not_in_state(about),
            "58P01" if self.says("could not access file") || self.reported_by("internal_load_library") => {
                (ErrorKind::Setup, Some(install_plugin()))
            }
            "58P01" if self.says("WAL segment") => (ErrorKind::SlotInvalidated, Some(replace_slot(about.slot.as_deref()))),
            // A standby may be promoted.
            "25006" => (
                ErrorKind::Server,
                Some("This server takes no writes, as a standby. Connect to the primary: target_session_attrs=read-write finds it among several hosts.".to_owned()),
            ),
            "22023" if self.says("proto_version") => (
                ErrorKind::Setup,
                Some(format!(
                    "Plugin and consumer are of different versions: this consumer speaks proto_version \
                     {PROTO_VERSION_MIN} to {PROTO_VERSION_MAX}. Install the plugin and the consumer of one release."
                )),
            ),
            "53300" if self.says("max_wal_senders") && self.says("currently 0") => (
                ErrorKind::Setup,
                Some("A superuser has to run: ALTER SYSTEM SET max_wal_senders = 10; and the server has to be restarted.".to_owned()),
            ),
            "53300" if self.says("max_wal_senders") => {
                (ErrorKind::Server, Some("Raise max_wal_senders and restart the server, or stop a replication client.".to_owned()))
            }
            "53400" if self.reported_by("ReplicationSlotCreate") => (
                ErrorKind::Setup,
                Some("Drop a slot that nobody needs (pg_replication_slots), or raise max_replication_slots and restart the server.".to_owned()),
            ),
            "3F000" | "42883" | "42P01" if self.says(PLUGIN) => (
                ErrorKind::Setup,
                Some(format!(
                    "Create the extension in database {dbname}: CREATE EXTENSION postbox; or bring an older one up to \
                     date: ALTER EXTENSION postbox UPDATE;"
                )),
            ),
            // 57P04 is missing: a database that was dropped does not come back.
            "57P01" | "57P02" | "57P03" | "57P05" | "53000" | "53100" | "53200" | "53300" => (ErrorKind::Server, None),
            "57P04" => (ErrorKind::Login, None),
            "08P01" => (ErrorKind::Protocol, None),
            sqlstate if sqlstate.starts_with("08") => (ErrorKind::Server, None),
            _ => (ErrorKind::Other, None),
        }
    }

    /// 55000, `object_not_in_prerequisite_state`, which says many things about a slot.
    fn not_in_state(&self, about: &About) -> (ErrorKind, Option<String>) {
        if self.says("wal_level") {
            let line =
                "A superuser has to run: ALTER SYSTEM SET wal_level = logical; and the server has to be restarted.";
            (ErrorKind::Setup, Some(line.to_owned()))
        } else if self.says("recovery") {
            (
                ErrorKind::Setup,
                Some(
                    "Connect to the primary: target_session_attrs=read-write finds it among several hosts.".to_owned(),
                ),
            )
        } else if self.says("physical replication slot") {
            (ErrorKind::SlotPlugin, Some(other_slot(about.slot.as_deref())))
        } else if self.says("not created in this database") {
            (
                ErrorKind::SlotDatabase,
                Some("Connect to the slot's database: SELECT database FROM pg_replication_slots shows it.".to_owned()),
            )
        } else if self.says("can no longer") || self.says("cannot read from logical") || self.says("invalidated") {
            (ErrorKind::SlotInvalidated, Some(replace_slot(about.slot.as_deref())))
        } else {
            (ErrorKind::Other, None)
        }
    }

    fn refuses_plugin(&self) -> bool {
        self.sqlstate == "42501" && (self.reported_by("StartupDecodingContext") || self.says("output plugin"))
    }

    fn lacks_replication(&self) -> bool {
        self.sqlstate == "42501"
            && !self.says("must be superuser to connect")
            && (self.reported_by("CheckSlotPermissions")
                || self.reported_by("InitPostgres")
                || ["replication role", "WAL sender", "walsender", "REPLICATION attribute"]
                    .iter()
                    .any(|words| self.says(words)))
    }

    fn reported_by(&self, routine: &str) -> bool {
        self.routine == routine
    }

    fn says(&self, words: &str) -> bool {
        self.message.contains(words) || self.detail.as_ref().is_some_and(|detail| detail.contains(words))
    }
}

/// Whether the server refused the plugin for want of `output_plugin_libraries`; the list in force then makes the
/// remedy exact.
pub(crate) fn refuses_plugin(error: &Error) -> bool {
    error.kind() == ErrorKind::Setup
        && error.sqlstate() == Some("42501")
        && error.hint().is_some_and(|hint| hint.contains("output_plugin_libraries"))
}

/// The line that lets `role` use the plugin, given the list in force. Without the list, PostgreSQL's default stands in.
pub(crate) fn allow_plugin(role: Option<&str>, list: Option<&str>) -> String {
    let role = role.map_or("<role>".to_owned(), quote);
    let known = list.map(str::trim).filter(|list| !list.is_empty());
    let listed = known.unwrap_or("pgoutput, test_decoding");
    let caution = match known {
        Some(_) => "",
        None => {
            " Should the server's list differ from the default (SHOW output_plugin_libraries;), keep what it names."
        }
    };
    format!(
        "A superuser has to run: ALTER ROLE {role} SET output_plugin_libraries = {listed}, {PLUGIN}; Then connect again.{caution}"
    )
}

/// What was set for the role itself, which everybody may read, unlike the list in force.
pub(crate) const PLUGIN_LIST_OF_ROLE: &str = "SELECT pg_catalog.split_part(setting, '=', 2) \
     FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) setting \
     WHERE s.setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user) \
     AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) \
     AND setting LIKE 'output_plugin_libraries=%' ORDER BY s.setdatabase DESC LIMIT 1";

/// How to get a slot.
pub(crate) fn create_slot(about: &About) -> String {
    let slot = about.slot.as_deref().unwrap_or("<slot>").replace('\'', "''");
    format!(
        "Create one in database {}: SELECT pg_create_logical_replication_slot('{slot}', '{PLUGIN}'); or a group with \
         `postbox group create`.",
        about.dbname.as_deref().map_or("<database>".to_owned(), quote)
    )
}

/// What to do about a slot that serves another purpose.
pub(crate) fn other_slot(slot: Option<&str>) -> String {
    let slot = slot.unwrap_or("<slot>").replace('\'', "''");
    format!(
        "Name another slot, or, if nobody needs this one, replace it: SELECT pg_drop_replication_slot('{slot}'); SELECT \
         pg_create_logical_replication_slot('{slot}', '{PLUGIN}');"
    )
}

/// How to replace a slot that has lost its WAL.
pub(crate) fn replace_slot(slot: Option<&str>) -> String {
    let slot = slot.unwrap_or("<slot>").replace('\'', "''");
    format!(
        "The slot cannot be repaired. Drop it and create it anew: SELECT pg_drop_replication_slot('{slot}'); SELECT \
         pg_create_logical_replication_slot('{slot}', '{PLUGIN}'); Events committed before that are in the outbox \
         tables, not in the stream. max_slot_wal_keep_size and idle_replication_slot_timeout decide when slots are lost."
    )
}

fn install_plugin() -> String {
    format!(
        "The library {PLUGIN}.so is not installed in this server: run make install PG_CONFIG=<path of the server's \
         pg_config> on the server's machine."
    )
}

/// An identifier in double quotes, whatever it contains.
pub(crate) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

impl From<tokio_postgres::Error> for Error {
    /// Errors of SQL statements: what the server reports is classified, anything else is a broken link.
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(report) = error.as_db_error() {
            return Report::from_sql(report).into_error(&About::default());
        }
        let io = std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>());
        if error.is_closed() || io {
            Self::new(ErrorKind::Connect, "the connection for SQL broke").with_source(error)
        } else {
            Self::new(ErrorKind::Other, "an SQL statement failed in the client").with_source(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn about() -> About {
        About { role: Some("r\"1".to_owned()), dbname: Some("d".to_owned()), slot: Some("s'1".to_owned()) }
    }

    /// The body of an ErrorResponse.
    fn body(sqlstate: &str, routine: &str, message: &str, detail: &str) -> Bytes {
        let mut body = format!("SFEHLER\0VERROR\0C{sqlstate}\0M{message}\0");
        if !detail.is_empty() {
            body.push_str(&format!("D{detail}\0"));
        }
        body.push_str(&format!("Hhint of the server\0Fx.c\0L1\0R{routine}\0\0"));
        Bytes::from(body)
    }

    /// SQLSTATE, C function, message, detail (texts of PostgreSQL 15 to 18), the kind they mean, words of the remedy.
    const REFUSALS: &str = r#"28P01 | auth_failed | password authentication failed for user "r" |  | Login | PGPASSWORD
28000 | auth_failed | Peer authentication failed for user "r" |  | Login | operating system's user
28000 | ClientAuthentication | no pg_hba.conf entry for host "::1", user "r", database "d", no encryption |  | Login | pg_hba.conf
28000 | InitializeSessionUserId | role "r" does not exist |  | Login | PGUSER
28000 | InitializeSessionUserId | role "r" is not permitted to log in |  | Login | may log in
28000 | ClientAuthentication | connection requires a valid client certificate |  | Login | sslcert=
28000 | read_client_final_message | SCRAM channel binding check failed |  | Login | channel_binding=disable
28000 | auth_failed | certificate authentication failed for user "r" |  | Login | issued to role "r""1"
3D000 | InitPostgres | database "d" does not exist |  | Login | dbname=
42501 | CheckMyDatabase | permission denied for database "d" | User does not have CONNECT privilege. | Login | GRANT CONNECT ON DATABASE "d" TO "r""1";
42501 | InitPostgres | must be superuser or replication role to start walsender |  | Setup | ALTER ROLE "r""1" REPLICATION;
42501 | InitPostgres | permission denied to start WAL sender | Only roles with the REPLICATION attribute may start a WAL sender process. | Setup | ALTER ROLE
42501 | InitPostgres | nur Superuser und Replikationsrollen dürfen das |  | Setup | not inherited
42501 | CheckSlotPermissions | must be superuser or replication role to use replication slots |  | Setup | ALTER ROLE
42501 | StartupDecodingContext | library "postbox" may not be used as an output plugin |  | Setup | ALTER ROLE "r""1" SET output_plugin_libraries = pgoutput, test_decoding, postbox;
42501 | StartupDecodingContext | anders gesagt |  | Setup | output_plugin_libraries
42501 | aclcheck_error | permission denied for table t |  | Other | hint of the server
42704 | ReplicationSlotAcquire | replication slot "s" does not exist |  | SlotMissing | pg_create_logical_replication_slot('s''1', 'postbox')
42704 | get_publication_oid | publication "postbox_claims" does not exist |  | Setup | --claims reference
42704 | find_option | unrecognized configuration parameter "x" |  | Other | hint of the server
55006 | ReplicationSlotAcquire | replication slot "s" is active for PID 1 |  | SlotInUse | pg_stat_replication
55000 | CheckLogicalDecodingRequirements | logical decoding requires wal_level >= logical |  | Setup | ALTER SYSTEM SET wal_level = logical;
55000 | CheckLogicalDecodingRequirements | logical decoding requires "wal_level" >= "logical" |  | Setup | restarted
55000 | CreateDecodingContext | cannot use physical replication slot for logical decoding |  | SlotPlugin | pg_create_logical
55000 | CreateDecodingContext | replication slot "s" was not created in this database |  | SlotDatabase | pg_replication_slots
55000 | StartLogicalReplication | cannot read from logical replication slot "s" | This slot has been invalidated because it exceeded the maximum reserved size. | SlotInvalidated | pg_drop_replication_slot('s''1')
55000 | ReplicationSlotAcquire | can no longer access replication slot "s" | This replication slot has been invalidated due to "wal_removed". | SlotInvalidated | Drop it
55000 | pg_logical_slot_get_changes_guts | can no longer get changes from replication slot "s" |  | SlotInvalidated | Drop it
55000 | x | something else |  | Other | hint of the server
25006 | PreventCommandIfReadOnly | cannot execute UPDATE in a read-only transaction |  | Server | target_session_attrs=read-write
58P01 | internal_load_library | could not access file "postbox": No such file or directory |  | Setup | make install
58P01 | x | requested WAL segment 000000010000000000000001 has already been removed |  | SlotInvalidated | Drop it
22023 | x | unsupported proto_version "9" |  | Setup | proto_version 1 to 1
22023 | x | option "x" is unknown |  | Other | hint of the server
53300 | InitWalSenderSlot | number of requested standby connections exceeds "max_wal_senders" (currently 0) |  | Setup | max_wal_senders = 10
53300 | InitWalSenderSlot | number of requested standby connections exceeds max_wal_senders (currently 10) |  | Server | Raise max_wal_senders
53300 | InitProcess | sorry, too many clients already |  | Server | hint of the server
53400 | ReplicationSlotCreate | all replication slots are in use |  | Setup | max_replication_slots
3F000 | x | schema "postbox" does not exist |  | Setup | CREATE EXTENSION postbox
42883 | x | function postbox.create_consumer_group(unknown) does not exist |  | Setup | ALTER EXTENSION
57P01 | ProcessInterrupts | terminating connection due to administrator command |  | Server | hint of the server
57P02 | quickdie | terminating connection because of crash of another server process |  | Server | hint of the server
57P03 | ProcessStartupPacket | the database system is starting up |  | Server | hint of the server
57P04 | x | database dropped |  | Login | hint of the server
08006 | x | connection failure |  | Server | hint of the server
08P01 | x | protocol violation |  | Protocol | hint of the server
XX000 | x | internal |  | Other | hint of the server"#;

    #[test]
    fn every_refusal_has_its_kind_and_its_remedy() {
        for row in REFUSALS.lines() {
            let [sqlstate, routine, message, detail, kind, remedy] = row.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("a row of six: {row}");
            };
            let error = Report::parse(&body(sqlstate, routine, message, detail)).expect(message).into_error(&about());
            assert_eq!(format!("{:?}", error.kind()), kind, "{message}");
            assert_eq!(error.sqlstate(), Some(sqlstate));
            assert!(error.to_string().contains(message), "{error}");
            assert!(error.to_string().contains(detail.trim_end_matches('.')), "{error}");
            assert!(error.hint().expect(message).contains(remedy), "{message}: {:?}", error.hint());
        }
    }

    #[test]
    fn the_list_in_force_makes_the_remedy_exact() {
        assert_eq!(
            allow_plugin(Some("app"), Some("pgoutput, wal2json")),
            "A superuser has to run: ALTER ROLE \"app\" SET output_plugin_libraries = pgoutput, wal2json, postbox; Then \
             connect again."
        );
        assert!(allow_plugin(Some("app"), None).contains("pgoutput, test_decoding, postbox;"));
        assert!(allow_plugin(Some("app"), None).contains("SHOW output_plugin_libraries"));
    }

    proptest! {
        #[test]
        fn hostile_reports_do_no_harm(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'C'), Just(b'M')], 0..80)) {
            if let Ok(report) = Report::parse(&bytes.into()) {
                report.log();
                let _ = report.into_error(&about());
            }
        }
    }
}
