//! The C function behind `postbox._frame`: rows that SQL passes, and what is kept from one of them to the next.

use core::marker::PhantomData;
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::pgrx_extern_c_guard;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};
use pgrx::varlena::varsize_4b;
use pgrx::{
    IntoDatum, PgMemoryContexts, heap_tuple_header_get_type_id, heap_tuple_header_get_typmod, pg_getarg_datum,
    rust_byte_slice_to_bytea,
};

use crate::frame::Framer;
use crate::pg::change::Tuple;
use crate::pg::memory::RowMemory;
use crate::pg::relation::Descriptor;

/// `postbox._frame`.
///
/// # Safety
/// Called by PostgreSQL for the function that `sql/frame.sql` declares.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn postbox_frame(call: FunctionCallInfo) -> Datum {
    // SAFETY: PostgreSQL called this function, so the guard's ERROR has nothing but this frame to jump over. The
    // declaration says which arguments there are and what types they have.
    unsafe { pgrx_extern_c_guard(AssertUnwindSafe(|| frame(call))) }
}

/// Says that the function takes its arguments as version 1.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn pg_finfo_postbox_frame() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// # Safety
/// The call has two arguments, regclass and record.
unsafe fn frame(call: FunctionCallInfo) -> Datum {
    // SAFETY: there are two, see above; a strict function gets no NULL.
    let (Some(outbox), Some(row)) = (unsafe { (pg_getarg_datum(call, 0), pg_getarg_datum(call, 1)) }) else {
        // SAFETY: the call is PostgreSQL's, for as long as it lasts.
        unsafe { (*call).isnull = true };
        return Datum::null();
    };
    // SAFETY: the row is a record; nobody else has what this place in the query keeps, as a call of it ends before the next.
    let (record, framer) = unsafe { (Record::new(row), kept(call)) };
    let mut result = None;
    framer.frame(Oid::from(outbox.value() as u32), &record, |bytes| {
        result = rust_byte_slice_to_bytea(bytes).into_datum();
    });
    result.unwrap_or(Datum::null())
}

/// What is kept as long as PostgreSQL keeps this place in the query.
///
/// # Safety
/// The result is used until the call returns.
unsafe fn kept<'call>(call: FunctionCallInfo) -> &'call mut Framer {
    // SAFETY: a function that SQL calls has its FmgrInfo. Nobody else writes to `fn_extra`, and the context that drops the
    // framer is the one that the FmgrInfo lives in.
    unsafe {
        let function = &mut *(*call).flinfo;
        if function.fn_extra.is_null() {
            let framer = Framer::new(RowMemory::below(function.fn_mcxt));
            function.fn_extra = PgMemoryContexts::For(function.fn_mcxt).leak_and_drop_on_delete(framer).cast();
        }
        &mut *function.fn_extra.cast()
    }
}

/// A row that SQL passes, for one call. It may hold compressed values, but none that lie elsewhere.
pub(crate) struct Record<'call> {
    tuple: pg_sys::HeapTupleData,
    call: PhantomData<&'call ()>,
}

/// The type that a record says it has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowType {
    type_oid: Oid,
    typmod: i32,
}

impl Record<'_> {
    /// # Safety
    /// The datum is a composite value that lives as long as the result.
    unsafe fn new(datum: Datum) -> Self {
        // SAFETY: a composite value is a varlena. One that is expanded, as PL/pgSQL holds it, is copied into the current
        // memory context, which outlives the call.
        unsafe {
            let header = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
            let tuple =
                pg_sys::HeapTupleData { t_len: varsize_4b(header) as u32, t_data: header.cast(), ..Default::default() };
            Self { tuple, call: PhantomData }
        }
    }

    pub(crate) fn row_type(&self) -> RowType {
        // SAFETY: points to the record, see `new`, and a record that is a value says its type.
        unsafe {
            RowType {
                type_oid: heap_tuple_header_get_type_id(self.tuple.t_data),
                typmod: heap_tuple_header_get_typmod(self.tuple.t_data),
            }
        }
    }

    pub(crate) fn tuple(&self) -> Tuple<'_> {
        // SAFETY: lives as long as `self`; taking a row apart does not write to it.
        unsafe { Tuple::new((&raw const self.tuple).cast_mut()) }
    }

    /// Looks at what the record says about its columns.
    pub(crate) fn with_descriptor<T>(&self, look: impl FnOnce(Descriptor<'_>) -> T) -> T {
        let RowType { type_oid, typmod } = self.row_type();
        // SAFETY: the descriptor is pinned until it is let go here; after an ERROR the resource owner lets it go. One that
        // is not counted lives as long as the process.
        unsafe {
            let descriptor = pg_sys::lookup_rowtype_tupdesc(type_oid, typmod);
            let result = look(Descriptor::new(descriptor));
            if (*descriptor).tdrefcount >= 0 {
                pg_sys::DecrTupleDescRefCount(descriptor);
            }
            result
        }
    }
}

impl RowType {
    /// The relation whose rows have this type; `None` for a type without a name, as rows of a subquery have.
    pub(crate) fn relation(self) -> Option<Oid> {
        // SAFETY: looks a type up in the catalog; one that is no relation's has the invalid OID there.
        let relation = unsafe { pg_sys::get_typ_typrelid(self.type_oid) };
        (relation != Oid::INVALID).then_some(relation)
    }
}
