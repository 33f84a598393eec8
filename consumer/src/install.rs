//! `postbox install`: the schema `postbox` without CREATE EXTENSION, for servers that cannot have the extension's files.

use tokio_postgres::Client;

use crate::error::{Error, ErrorKind, Result};

/// The files of sql/ in their order, with those of sql/plain/ in the place of what needs the library: see build.rs.
const SCRIPT: &str = include_str!(concat!(env!("OUT_DIR"), "/install.sql"));

/// The version that this program installs.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Begins the comment of a schema that was made here; the version follows.
const MADE_BY: &str = "Postbox, made by postbox install ";

/// What was there to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Installed,
    AlreadyThere,
}

/// All that is run, as one transaction, and like the extension's script with nothing but `pg_catalog` in the path: others may
/// make functions in `public` that would fit better, and what is made here would be bound to them.
pub(crate) fn script() -> String {
    format!(
        "BEGIN;\nSET LOCAL search_path = pg_catalog, pg_temp;\n{SCRIPT}comment on schema postbox is '{MADE_BY}{VERSION}';\nCOMMIT;\n"
    )
}

/// The version of this program.
pub(crate) fn version() -> &'static str {
    VERSION
}

/// Makes the schema, or finds that it is there. All or nothing.
///
/// # Errors
/// The extension is there, another version, a schema of another make; the role may not make a schema.
pub(crate) async fn install(client: &Client) -> Result<Outcome> {
    // Of two at once the second waits, and finds it done.
    client
        .execute("SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended('postbox.install', 0))", &[])
        .await?;
    let result = install_alone(client).await;
    let unlock = "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended('postbox.install', 0))";
    let unlocked = client.execute(unlock, &[]).await;
    let outcome = result?;
    unlocked?;
    Ok(outcome)
}

async fn install_alone(client: &Client) -> Result<Outcome> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_database()::text, \
               (SELECT e.extversion FROM pg_catalog.pg_extension e WHERE e.extname = 'postbox'), \
               n.oid IS NOT NULL, pg_catalog.obj_description(n.oid, 'pg_namespace') \
               FROM (SELECT) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'postbox'";
    let row = client.query_one(sql, &[]).await?;
    let (server, database): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
    let (extension, is_there): (Option<String>, bool) = (row.try_get(2)?, row.try_get(3)?);
    let comment: Option<String> = row.try_get(4)?;
    let refuse = |message: String, hint: &str| Err(Error::new(ErrorKind::Setup, message).with_hint(hint));
    if !(140_000..190_000).contains(&server) {
        return refuse(
            format!("the server is PostgreSQL {}, and Postbox needs 14 to 18", server / 10_000),
            "Use a server of one of these versions.",
        );
    }
    if let Some(version) = extension {
        return refuse(
            format!("database \"{database}\" has the extension postbox {version}"),
            "It does all that install does, and more. To do without it: DROP EXTENSION postbox; its groups are forgotten, outboxes stay.",
        );
    }
    if is_there {
        return match comment.as_deref().and_then(|comment| comment.strip_prefix(MADE_BY)) {
            Some(VERSION) => Ok(Outcome::AlreadyThere),
            Some(other) => refuse(
                format!(
                    "schema postbox of database \"{database}\" is of version {other}, and this program of {VERSION}"
                ),
                "There is no way between these versions. Use the program of that release.",
            ),
            None => refuse(
                format!("there is a schema postbox in database \"{database}\" that postbox install did not make"),
                "Rename it: ALTER SCHEMA postbox RENAME TO …; then install again.",
            ),
        };
    }
    let installed = client.batch_execute(&script()).await;
    if let Err(error) = installed {
        // What was begun is undone.
        let _ = client.batch_execute("ROLLBACK").await;
        let denied = error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE);
        let error = Error::from(error);
        return Err(if denied {
            error.with_kind(ErrorKind::Setup).with_hint(format!(
                "The role needs CREATE on the database: GRANT CREATE ON DATABASE \"{}\" TO …",
                database.replace('"', "\"\"")
            ))
        } else {
            error
        });
    }
    Ok(Outcome::Installed)
}
