//! The callbacks that PostgreSQL calls: each borrows the session and calls one method of it.
//!
//! The stream and two-phase callbacks stay unset on purpose: a transaction is decoded at its commit (a prepared one at
//! COMMIT PREPARED), and the reorder buffer spills what is larger than `logical_decoding_work_mem`.
#![allow(unsafe_code, reason = "the signatures are PostgreSQL's")]

use core::ffi::{CStr, c_char, c_void};

use pgrx::pg_guard;
use pgrx::pg_sys::{
    LogicalDecodingContext, OutputPluginCallbacks, OutputPluginOptions, Relation, ReorderBufferChange,
    ReorderBufferTXN, RepOriginId, Size, XLogRecPtr,
};

use crate::pg::context::Context;
use crate::pg::{change, context};
use crate::session::Session;

/// Tells PostgreSQL the callbacks; the entry point of an output plugin.
///
/// # Safety
/// Called by PostgreSQL with a table to fill in.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn _PG_output_plugin_init(callbacks: *mut OutputPluginCallbacks) {
    // SAFETY: PostgreSQL passes a table that it owns and that lives for the call.
    let callbacks = unsafe { &mut *callbacks };
    callbacks.startup_cb = Some(startup);
    callbacks.begin_cb = Some(begin);
    callbacks.change_cb = Some(changed);
    callbacks.message_cb = Some(message);
    callbacks.commit_cb = Some(commit);
    callbacks.filter_by_origin_cb = Some(filter_by_origin);
}

#[pg_guard]
unsafe extern "C-unwind" fn startup(ctx: *mut LogicalDecodingContext, out: *mut OutputPluginOptions, is_init: bool) {
    // SAFETY: both pointers are valid for the call.
    let mut ctx = unsafe { Context::new(ctx) };
    // SAFETY: as above.
    unsafe { context::ask_for_binary(out) };
    // A slot is created without options, and nothing is decoded for the plugin then.
    if !is_init {
        let session = Session::start(&ctx);
        ctx.attach(session);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(ctx: *mut LogicalDecodingContext, _txn: *mut ReorderBufferTXN) {
    // SAFETY: the context is valid for the call, and its session is borrowed by this callback alone.
    if let Some(session) = unsafe { Context::new(ctx).session() } {
        session.begin();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn changed(
    ctx: *mut LogicalDecodingContext,
    txn: *mut ReorderBufferTXN,
    relation: Relation,
    change: *mut ReorderBufferChange,
) {
    // SAFETY: all four pointers are valid for the call, and the session is borrowed by this callback alone.
    let (mut ctx, txn, relation, change) = unsafe {
        (Context::new(ctx), change::Txn::new(txn), crate::pg::relation::Rel::new(relation), change::Change::new(change))
    };
    // SAFETY: as above.
    if let Some(session) = unsafe { ctx.session() } {
        session.change(&mut ctx, &txn, &relation, &change);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn message(
    ctx: *mut LogicalDecodingContext,
    txn: *mut ReorderBufferTXN,
    _lsn: XLogRecPtr,
    transactional: bool,
    prefix: *const c_char,
    size: Size,
    message: *const c_char,
) {
    // One outside a transaction belongs to nobody's commit; it comes without a transaction.
    if !transactional {
        return;
    }
    // SAFETY: the pointers are valid for the call, the message has `size` bytes, and the session is borrowed by this callback alone.
    let (mut ctx, txn, prefix, message) = unsafe {
        let message = core::slice::from_raw_parts(message.cast::<u8>(), size);
        (Context::new(ctx), change::Txn::new(txn), CStr::from_ptr(prefix), message)
    };
    // SAFETY: as above.
    if let Some(session) = unsafe { ctx.session() } {
        session.message(&mut ctx, &txn, prefix.to_bytes(), message);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn commit(ctx: *mut LogicalDecodingContext, _txn: *mut ReorderBufferTXN, _lsn: XLogRecPtr) {
    // SAFETY: the context is valid for the call, and its session is borrowed by this callback alone.
    let mut ctx = unsafe { Context::new(ctx) };
    // SAFETY: as above.
    if let Some(session) = unsafe { ctx.session() } {
        session.commit(&mut ctx);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn filter_by_origin(ctx: *mut LogicalDecodingContext, origin: RepOriginId) -> bool {
    // SAFETY: the context is valid for the call, and its session is borrowed by this callback alone.
    unsafe { Context::new(ctx).session() }.is_some_and(|session| session.leaves_out(origin))
}

/// Drops a session with the memory context that it hangs on: also when decoding ended in an ERROR, where
/// PostgreSQL calls no shutdown callback.
#[pg_guard]
pub(crate) unsafe extern "C-unwind" fn drop_session(session: *mut c_void) {
    // SAFETY: `Context::attach` made the pointer from a box, and a reset callback runs once.
    drop(unsafe { Box::from_raw(session.cast::<Session>()) });
}
