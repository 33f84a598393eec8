//! The C functions behind `postbox.publish`: their arguments, and the table that one of them names.

use core::cell::RefCell;
use core::ffi::{CStr, c_char};
use core::marker::PhantomData;
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::pgrx_extern_c_guard;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};
use pgrx::{PgSqlErrorCode, pg_getarg_datum};

use crate::emit;
use crate::pg::datum::Value;
use crate::pg::encoding::Encoding;
use crate::pg::relation::Rel;
use crate::pg::report;
use crate::publish;

/// Defines a C function for one type of payload, and the record by which PostgreSQL recognises its calling convention.
macro_rules! event_function {
    ($name:ident, $record:ident, $does:ident, $payload:path) => {
        /// `postbox.publish` or `postbox.emit` for one type of payload.
        ///
        /// # Safety
        /// Called by PostgreSQL for a function that `sql/publish.sql` or `sql/emit.sql` declares.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name(call: FunctionCallInfo) -> Datum {
            // SAFETY: the declaration says which arguments there are and what types they have. No caller on the stack
            // is Rust.
            unsafe { $does(call, $payload) }
        }

        /// Says that the function takes its arguments as version 1.
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $record() -> &'static pg_sys::Pg_finfo_record {
            const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }
    };
}

event_function!(postbox_publish_text, pg_finfo_postbox_publish_text, insert, pg_sys::TEXTOID);
event_function!(postbox_publish_jsonb, pg_finfo_postbox_publish_jsonb, insert, pg_sys::JSONBOID);
event_function!(postbox_publish_json, pg_finfo_postbox_publish_json, insert, pg_sys::JSONOID);
event_function!(postbox_publish_bytea, pg_finfo_postbox_publish_bytea, insert, pg_sys::BYTEAOID);
event_function!(postbox_emit_text, pg_finfo_postbox_emit_text, log, pg_sys::TEXTOID);
event_function!(postbox_emit_jsonb, pg_finfo_postbox_emit_jsonb, log, pg_sys::JSONBOID);
event_function!(postbox_emit_json, pg_finfo_postbox_emit_json, log, pg_sys::JSONOID);
event_function!(postbox_emit_bytea, pg_finfo_postbox_emit_bytea, log, pg_sys::BYTEAOID);

/// Everything that may fail in Rust happens behind the guard; the INSERT itself comes after it, when nothing is left to
/// be dropped.
///
/// # Safety
/// As for [`Arguments::new`] and [`Plan::insert`](crate::pg::spi::Plan::insert).
unsafe fn insert(call: FunctionCallInfo, payload_type: Oid) -> Datum {
    // SAFETY: the caller says so.
    let mut arguments = unsafe { Arguments::new(call, payload_type) };
    // SAFETY: PostgreSQL called this function, so the guard's ERROR has nothing but this frame to jump over.
    let plan = unsafe { pgrx_extern_c_guard(AssertUnwindSafe(|| publish::plan(&mut arguments))) };
    // SAFETY: no frame up to PostgreSQL's owns anything.
    let rows = unsafe { plan.insert(&mut arguments) };
    // A trigger or a rule of the table may have kept the row out: then there is no event.
    // SAFETY: the call is PostgreSQL's, for as long as it lasts.
    unsafe { (*call).isnull = rows == 0 };
    if rows == 0 { Datum::null() } else { arguments.values[Field::EventId as usize] }
}

/// Writes the event to the log as a message of the transaction.
///
/// # Safety
/// As for [`Arguments::new`].
unsafe fn log(call: FunctionCallInfo, payload_type: Oid) -> Datum {
    // SAFETY: the caller says so.
    let mut arguments = unsafe { Arguments::new(call, payload_type) };
    let write = || log_message(emit::PREFIX, &emit::message(&mut arguments));
    // SAFETY: PostgreSQL called this function, so the guard's ERROR has nothing but this frame to jump over.
    unsafe { pgrx_extern_c_guard(AssertUnwindSafe(write)) };
    arguments.values[Field::EventId as usize]
}

/// Writes a message of the transaction to the log. Exported by the server, not bound by pgrx.
fn log_message(prefix: &CStr, message: &[u8]) {
    unsafe extern "C-unwind" {
        fn LogLogicalMessage(
            prefix: *const c_char,
            message: *const c_char,
            size: usize,
            transactional: bool,
            #[cfg(any(feature = "pg17", feature = "pg18"))] flush: bool,
        ) -> pg_sys::XLogRecPtr;
    }
    let write = || {
        // SAFETY: declared as in replication/message.h; prefix and message are read during the call. The guard turns an ERROR
        // into a panic as for pgrx's own bindings.
        unsafe {
            LogLogicalMessage(
                prefix.as_ptr(),
                message.as_ptr().cast(),
                message.len(),
                true,
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                false,
            )
        }
    };
    // SAFETY: as above.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(write) };
}

/// The columns of an event as `publish` has them, in the order of the statement's parameters.
#[derive(Clone, Copy)]
pub(crate) enum Field {
    EventId = 0,
    Type = 1,
    Payload = 2,
    Key = 3,
    Headers = 4,
}

/// Number of [`Field`]s.
pub(super) const FIELDS: usize = 5;

/// What `publish` was called with.
pub(crate) struct Arguments<'call> {
    outbox: Option<Datum>,
    payload_type: Oid,
    pub(super) values: [Datum; FIELDS],
    /// As SPI wants it: a space, or `n` for NULL.
    pub(super) nulls: [c_char; FIELDS],
    call: PhantomData<&'call ()>,
}

impl Arguments<'_> {
    /// # Safety
    /// The call has six arguments: outbox text, type text, payload of `payload_type`, key text, headers jsonb, event_id
    /// uuid. They live as long as the value.
    unsafe fn new(call: FunctionCallInfo, payload_type: Oid) -> Self {
        // SAFETY: there are six, see above.
        let argument = |index| unsafe { pg_getarg_datum(call, index) };
        let fields = [argument(5), argument(1), argument(2), argument(3), argument(4)];
        Self {
            outbox: argument(0),
            payload_type,
            values: fields.map(|value| value.unwrap_or(Datum::null())),
            nulls: fields.map(|value| if value.is_none() { b'n' as c_char } else { b' ' as c_char }),
            call: PhantomData,
        }
    }

    /// The type of the payload: text, jsonb, json or bytea.
    pub(crate) fn payload_type(&self) -> Oid {
        self.payload_type
    }

    pub(crate) fn is_null(&self, field: Field) -> bool {
        self.nulls[field as usize] == b'n' as c_char
    }

    /// The value of a field, in the database's encoding where it is text; `None` if it is NULL.
    pub(crate) fn value(&self, field: Field) -> Option<Value> {
        (!self.is_null(field)).then(|| Value::new(self.values[field as usize]))
    }

    /// Gives the event a random id (a UUID of version 4, as the column's default makes).
    pub(crate) fn make_event_id(&mut self) {
        let id = random_uuid();
        // SAFETY: the copy lies in the caller's memory context, where it outlives the call, and is as long as the id.
        unsafe {
            let copy: *mut u8 = pg_sys::palloc(id.len()).cast();
            copy.copy_from_nonoverlapping(id.as_ptr(), id.len());
            self.values[Field::EventId as usize] = Datum::from(copy);
        }
        self.nulls[Field::EventId as usize] = b' ' as c_char;
    }

    /// The outbox's name as it was given, in the database's encoding; `None` if it was NULL.
    pub(crate) fn outbox(&self) -> Option<Vec<u8>> {
        let outbox = self.outbox?;
        // SAFETY: the argument is text, see `new`; text_to_cstring copies it into the current memory context.
        unsafe {
            let name = pg_sys::text_to_cstring(outbox.cast_mut_ptr());
            Some(CStr::from_ptr(name).to_bytes().to_vec())
        }
    }

    /// The table of the outbox's name, looked up as for a regclass: along search_path, unless it is qualified. It is
    /// locked as INSERT locks it, before the caller's rights are checked, which is the order of INSERT too.
    pub(crate) fn find_table(&self) -> Option<Oid> {
        let outbox = self.outbox?;
        // SAFETY: the argument is text, see `new`; what the functions allocate lies in the current memory context.
        let table = unsafe {
            let name = pg_sys::makeRangeVarFromNameList(pg_sys::textToQualifiedNameList(outbox.cast_mut_ptr()));
            pg_sys::RangeVarGetRelidExtended(
                name,
                pg_sys::RowExclusiveLock as pg_sys::LOCKMODE,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                core::ptr::null_mut(),
            )
        };
        (table != Oid::INVALID).then_some(table)
    }
}

/// Random bytes drawn ahead: asking for 16 costs nearly as much as for all of these, and a tenth of a publish.
struct Pool {
    bytes: [u8; 32 * 16],
    left: usize,
}

thread_local! {
    // A backend never forks, so nobody else hands out the same bytes.
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; 32 * 16], left: 0 }) };
}

fn random_uuid() -> [u8; 16] {
    let id = POOL.with_borrow_mut(|pool| {
        if pool.left == 0 {
            // SAFETY: writes to the array and nowhere else. The source is that of gen_random_uuid().
            if !unsafe { pg_sys::pg_strong_random(pool.bytes.as_mut_ptr().cast(), pool.bytes.len()) } {
                return None;
            }
            pool.left = pool.bytes.len();
        }
        let (rest, id) = pool.bytes[..pool.left].split_last_chunk::<16>()?;
        pool.left = rest.len();
        Some(*id)
    });
    let mut id = id.unwrap_or_else(|| {
        let message = "could not generate random values for an event id".to_owned();
        report::raise(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message, "Pass event_id.".to_owned())
    });
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    id
}

/// Looks at a table that is locked.
pub(crate) fn with_table<T>(table: Oid, look: impl FnOnce(&Rel<'_>) -> T) -> T {
    // SAFETY: the relation is open until it is closed here; after an ERROR the transaction's resource owner closes it.
    unsafe {
        let relation = pg_sys::relation_open(table, pg_sys::NoLock as pg_sys::LOCKMODE);
        let result = look(&Rel::new(relation));
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        result
    }
}

/// Whether the current user may insert into a table.
pub(crate) fn may_insert(table: Oid) -> bool {
    // SAFETY: looks into the catalog.
    unsafe {
        let mode = pg_sys::AclMode::from(pg_sys::ACL_INSERT);
        pg_sys::pg_class_aclcheck(table, pg_sys::GetUserId(), mode) == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// The name of a type, as it is written in SQL.
pub(crate) fn type_name(type_oid: Oid) -> String {
    // SAFETY: returns a C string in the current memory context, also for a type that is gone.
    let name = unsafe { CStr::from_ptr(pg_sys::format_type_be(type_oid)) };
    Encoding::of_database().show(name.to_bytes())
}
