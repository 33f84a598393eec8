//! Errors, to PostgreSQL and from it.

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, PgTryBuilder};

use crate::pg::encoding::Encoding;

/// Raises an ERROR; does not return.
pub(crate) fn raise(code: PgSqlErrorCode, message: String, hint: String) -> ! {
    let encoding = Encoding::of_database();
    let (message, hint) = (encoding.message(message), encoding.message(hint));
    ErrorReport::new(code, message, "postbox").set_hint(hint).report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// Runs a function of the server over a stored value, and hands back as text the error it raises because of the value.
/// Errors that say nothing about the value (cancel, shutdown, out of memory) go on.
pub(crate) fn about_value<T>(call: impl FnOnce() -> T + std::panic::UnwindSafe) -> Result<T, String>
where
    T: std::panic::UnwindSafe + std::panic::RefUnwindSafe,
{
    PgTryBuilder::new(|| Ok(call()))
        .catch_others(|error| match &error {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report)
                if !environmental(report.sql_error_code()) =>
            {
                Err(report.message().to_owned())
            }
            _ => error.rethrow(),
        })
        .execute()
}

fn environmental(code: PgSqlErrorCode) -> bool {
    matches!(
        code,
        PgSqlErrorCode::ERRCODE_QUERY_CANCELED
            | PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN
            | PgSqlErrorCode::ERRCODE_CRASH_SHUTDOWN
            | PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY
            | PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES
            | PgSqlErrorCode::ERRCODE_IO_ERROR
            | PgSqlErrorCode::ERRCODE_DISK_FULL
    )
}
