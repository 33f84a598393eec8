//! Plans of INSERTs that outlive the statement which made them.

use core::ffi::{CStr, c_char, c_int, c_long};

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, Oid, SPIPlanPtr};

use crate::pg::call::{Arguments, FIELDS, Field};
use crate::pg::report;

/// The plan of an INSERT whose parameters are the [`Field`]s of an event. It lives until the end of the transaction at
/// least.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    plan: SPIPlanPtr,
    payload_type: Oid,
}

impl Plan {
    /// Prepares a statement with parameters `$1` to `$5` in the order of [`Field`]; what is wrong with it is an ERROR.
    pub(crate) fn prepare(statement: &CStr, payload_type: Oid) -> Self {
        let mut types = [pg_sys::InvalidOid; FIELDS];
        types[Field::EventId as usize] = pg_sys::UUIDOID;
        types[Field::Type as usize] = pg_sys::TEXTOID;
        types[Field::Payload as usize] = payload_type;
        types[Field::Key as usize] = pg_sys::TEXTOID;
        types[Field::Headers as usize] = pg_sys::JSONBOID;
        // SAFETY: statement and types are read during the call. After an ERROR PostgreSQL closes the connection itself;
        // a plan that is kept lives until it is freed.
        unsafe {
            check("SPI_connect", pg_sys::SPI_connect(), pg_sys::SPI_OK_CONNECT);
            // No value of a parameter could change this plan, so none is ever planned for.
            let options = pg_sys::CURSOR_OPT_GENERIC_PLAN as c_int;
            let plan = pg_sys::SPI_prepare_cursor(statement.as_ptr(), FIELDS as c_int, types.as_mut_ptr(), options);
            if plan.is_null() {
                failed("SPI_prepare_cursor", pg_sys::SPI_result);
            }
            check("SPI_keepplan", pg_sys::SPI_keepplan(plan), 0);
            check("SPI_finish", pg_sys::SPI_finish(), pg_sys::SPI_OK_FINISH);
            Self { plan, payload_type }
        }
    }

    /// False once a table it uses, or any schema, has changed: its text may then mean another table.
    fn is_valid(self) -> bool {
        // SAFETY: a plan in the cache has not been freed.
        unsafe { pg_sys::SPI_plan_is_valid(self.plan) }
    }

    /// Inserts, and returns how many rows went in.
    ///
    /// # Safety
    /// An ERROR jumps straight to PostgreSQL's handler: no function on the stack below may own anything. pgrx's guards
    /// would allow that, but make a new error of it, without the names of constraint and columns that applications look
    /// at.
    pub(super) unsafe fn insert(self, arguments: &mut Arguments<'_>) -> u64 {
        unsafe extern "C-unwind" {
            fn SPI_connect() -> c_int;
            fn SPI_execute_plan(
                plan: SPIPlanPtr,
                values: *mut Datum,
                nulls: *const c_char,
                read_only: bool,
                limit: c_long,
            ) -> c_int;
            fn SPI_finish() -> c_int;
        }
        // SAFETY: declared as in executor/spi.h. The plan is alive in this transaction, and the arguments have the
        // types it was prepared for. After an ERROR PostgreSQL closes the connection itself.
        unsafe {
            // Cannot fail in any way but an ERROR.
            SPI_connect();
            let result = SPI_execute_plan(self.plan, arguments.values.as_mut_ptr(), arguments.nulls.as_ptr(), false, 0);
            // A rule may have turned the INSERT into something else; its rows are not the event.
            let rows = if result == pg_sys::SPI_OK_INSERT as c_int { pg_sys::SPI_processed } else { 0 };
            SPI_finish();
            rows
        }
    }
}

/// Plans that a session keeps; beyond that the one that was idle longest goes.
const MOST_PLANS: usize = 64;

/// The plans of this session, by table and type of payload, each with what else is known of the table.
pub(crate) struct Plans<T> {
    kept: Vec<Kept<T>>,
    uses: u64,
    /// Plans that are used no more, but may be running further down the stack: a trigger of an outbox can publish as
    /// well, and change tables before.
    retired: Vec<Plan>,
    retired_in: pg_sys::TimestampTz,
}

struct Kept<T> {
    table: Oid,
    plan: Plan,
    known: T,
    last_use: u64,
}

impl<T: Copy> Plans<T> {
    pub(crate) const fn new() -> Self {
        Self { kept: Vec::new(), uses: 0, retired: Vec::new(), retired_in: 0 }
    }

    /// The plan for this table, if there is one that is still valid.
    pub(crate) fn get(&mut self, table: Oid, payload_type: Oid) -> Option<(Plan, T)> {
        let wanted = |kept: &Kept<T>| kept.table == table && kept.plan.payload_type == payload_type;
        let index = self.kept.iter().position(wanted)?;
        if !self.kept[index].plan.is_valid() {
            let kept = self.kept.swap_remove(index);
            self.retire(kept.plan);
            return None;
        }
        self.uses += 1;
        let kept = &mut self.kept[index];
        kept.last_use = self.uses;
        Some((kept.plan, kept.known))
    }

    /// Keeps a plan.
    pub(crate) fn keep(&mut self, table: Oid, plan: Plan, known: T) {
        // A table that is gone is never asked for again: its plan goes here at the latest.
        while let Some(index) = self.kept.iter().position(|kept| !kept.plan.is_valid()) {
            let kept = self.kept.swap_remove(index);
            self.retire(kept.plan);
        }
        if self.kept.len() >= MOST_PLANS {
            let idle = self.kept.iter().enumerate().min_by_key(|(_, kept)| kept.last_use).map(|(index, _)| index);
            let kept = idle.map(|index| self.kept.swap_remove(index));
            kept.into_iter().for_each(|kept| self.retire(kept.plan));
        }
        self.uses += 1;
        self.kept.push(Kept { table, plan, known, last_use: self.uses });
    }

    /// Frees a plan once nothing can be using it: what runs now ends with the transaction.
    fn retire(&mut self, plan: Plan) {
        // SAFETY: inside a transaction, whose start it tells.
        let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
        if transaction != self.retired_in {
            self.retired_in = transaction;
            for retired in self.retired.drain(..) {
                // SAFETY: retired in an earlier transaction, and no longer in the cache.
                unsafe { pg_sys::SPI_freeplan(retired.plan) };
            }
        }
        self.retired.push(plan);
    }
}

fn check(function: &str, result: c_int, expected: u32) {
    if result != expected as c_int {
        failed(function, result);
    }
}

fn failed(function: &str, code: c_int) -> ! {
    let message = format!("{function} failed with code {code}");
    report::raise(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message, "This is a defect of Postbox.".to_owned())
}
