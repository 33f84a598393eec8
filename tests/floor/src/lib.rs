//! An output plugin for the benchmarks that does nothing, or nearly nothing: what is left is the cost of the server.
//!
//! Its option `emit` says what it sends: `nothing` (the default), which leaves reading the WAL and the reorder buffer;
//! or `byte`, one byte at the commit of each transaction that changed a row, which adds the cost of a message. No plugin
//! that sends one message a transaction can be faster than that.

#![allow(unsafe_code, reason = "an output plugin is a table of C callbacks that work on the server's structures")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use pgrx::{PgList, PgSqlErrorCode, ereport, pg_guard, pg_sys};

pgrx::pg_module_magic!();

/// What `output_plugin_private` of the context points to when one byte is sent.
static SENDS: u8 = 1;

/// What `output_plugin_private` of a transaction points to when the transaction changed a row.
static CHANGED: u8 = 1;

/// Hands the callbacks to the server.
///
/// # Safety
///
/// The server calls this with the table to fill.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn _PG_output_plugin_init(callbacks: *mut pg_sys::OutputPluginCallbacks) {
    // SAFETY: the server passes a table that lives longer than this call.
    let callbacks = unsafe { &mut *callbacks };
    callbacks.startup_cb = Some(startup);
    callbacks.begin_cb = Some(begin);
    callbacks.change_cb = Some(change);
    callbacks.commit_cb = Some(commit);
}

#[pg_guard]
unsafe extern "C-unwind" fn startup(
    ctx: *mut pg_sys::LogicalDecodingContext,
    options: *mut pg_sys::OutputPluginOptions,
    _is_init: bool,
) {
    // SAFETY: context and options are the server's own and valid during the call.
    let given = unsafe {
        (*options).output_type = pg_sys::OutputPluginOutputType::OUTPUT_PLUGIN_BINARY_OUTPUT;
        PgList::<pg_sys::DefElem>::from_pg((*ctx).output_plugin_options)
    };
    for option in given.iter_ptr() {
        // SAFETY: the list holds valid elements, whose names and values are strings that end in NUL.
        let (name, value) = unsafe { (text((*option).defname), text(pg_sys::defGetString(option))) };
        match (name.as_str(), value.as_str()) {
            ("emit", "nothing") => {}
            // SAFETY: as above; the pointer is only compared with NULL.
            ("emit", "byte") => unsafe { (*ctx).output_plugin_private = mark(&SENDS) },
            _ => {
                ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    format!("option \"{name}\" cannot be \"{value}\": there is only \"emit\", \"nothing\" or \"byte\"")
                );
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(_ctx: *mut pg_sys::LogicalDecodingContext, _txn: *mut pg_sys::ReorderBufferTXN) {}

#[pg_guard]
unsafe extern "C-unwind" fn change(
    _ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _relation: pg_sys::Relation,
    _change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: the transaction is valid during the call, and this field is the plugin's to use.
    unsafe { (*txn).output_plugin_private = mark(&CHANGED) }
}

#[pg_guard]
unsafe extern "C-unwind" fn commit(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _commit_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: context and transaction are valid during the call; writing is allowed in this callback.
    unsafe {
        let sends = !(*ctx).output_plugin_private.is_null() && !(*txn).output_plugin_private.is_null();
        update_progress(ctx, !sends);
        if sends {
            pg_sys::OutputPluginPrepareWrite(ctx, true);
            pg_sys::appendBinaryStringInfo((*ctx).out, ptr::from_ref(b"x").cast(), 1);
            pg_sys::OutputPluginWrite(ctx, true);
        }
    }
}

/// Tells the server how far the plugin is, as pgoutput does it at each commit.
unsafe fn update_progress(ctx: *mut pg_sys::LogicalDecodingContext, skipped: bool) {
    // SAFETY: the caller passes the context of the running callback.
    unsafe {
        #[cfg(feature = "pg14")]
        {
            let _ = skipped;
            pg_sys::OutputPluginUpdateProgress(ctx);
        }
        #[cfg(not(feature = "pg14"))]
        pg_sys::OutputPluginUpdateProgress(ctx, skipped);
    }
}

/// A pointer that is not NULL and never followed.
fn mark(flag: &'static u8) -> *mut c_void {
    ptr::from_ref(flag).cast_mut().cast()
}

/// A copy of a string that ends in NUL; empty for NULL.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: the caller passes a valid string.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
