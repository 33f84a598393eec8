//! The decoding context: options in, frames out, and the place where a session lives.

use core::ffi::CStr;

use pgrx::pg_sys;

use crate::callbacks::drop_session;
use crate::pg::encoding::Encoding;
use crate::pg::memory::RowMemory;
use crate::session::Session;

/// PostgreSQL's `LogicalDecodingContext`, for one callback.
pub(crate) struct Context(*mut pg_sys::LogicalDecodingContext);

/// The output buffer gives its memory back beyond this size.
const KEEP_BYTES: i32 = 1 << 20;

impl Context {
    /// # Safety
    /// The pointer is valid until the callback returns.
    pub(crate) unsafe fn new(ctx: *mut pg_sys::LogicalDecodingContext) -> Self {
        Self(ctx)
    }

    /// The options that the client gave, in order. A value may be missing. The server has brought them into the database's
    /// encoding.
    pub(crate) fn options(&self) -> Vec<(String, Option<String>)> {
        let mut given = Vec::new();
        let shown = |text: &CStr| Encoding::of_database().show(text.to_bytes());
        // SAFETY: the list and its DefElems live as long as the context; defGetString returns a C string. An argument may
        // be absent (`pg_recvlogical -o name`).
        unsafe {
            let list = (*self.0).output_plugin_options;
            let length = if list.is_null() { 0 } else { (*list).length };
            for index in 0..length {
                let element: *mut pg_sys::DefElem = pg_sys::list_nth(list, index).cast();
                let name = shown(CStr::from_ptr((*element).defname));
                let value = (!(*element).arg.is_null()).then(|| shown(CStr::from_ptr(pg_sys::defGetString(element))));
                given.push((name, value));
            }
        }
        given
    }

    /// Gives the session to the context, which drops it when it goes itself.
    pub(crate) fn attach(&mut self, session: Session) {
        let session = Box::into_raw(Box::new(session));
        // SAFETY: the callback struct is allocated in the context that it watches, so it lives until it has run; the session
        // pointer is owned by it alone, and `session` hands it out only while the context lives.
        unsafe {
            let context = (*self.0).context;
            let callback: *mut pg_sys::MemoryContextCallback =
                pg_sys::MemoryContextAlloc(context, size_of::<pg_sys::MemoryContextCallback>()).cast();
            callback.write(pg_sys::MemoryContextCallback {
                func: Some(drop_session),
                arg: session.cast(),
                next: core::ptr::null_mut(),
            });
            pg_sys::MemoryContextRegisterResetCallback(context, callback);
            (*self.0).output_plugin_private = session.cast();
        }
    }

    /// The session that `attach` left here; none while a slot is being created.
    ///
    /// # Safety
    /// The result is used by one callback at a time and not kept.
    pub(crate) unsafe fn session<'cb>(&self) -> Option<&'cb mut Session> {
        // SAFETY: set by `attach` or null; callbacks do not nest.
        unsafe { (*self.0).output_plugin_private.cast::<Session>().as_mut() }
    }

    /// Memory for one row at a time.
    pub(crate) fn row_memory(&self) -> RowMemory {
        // SAFETY: the decoding context outlives the session, which alone holds the result.
        unsafe { RowMemory::below((*self.0).context) }
    }

    /// Writes one frame as one output message.
    pub(crate) fn write(&mut self, frame: &[u8], last: bool) {
        // SAFETY: the context is valid and between PrepareWrite and Write its buffer may be appended to. The caller keeps
        // frames below what a StringInfo can hold. After Write the server has copied the bytes, so the
        // buffer may be replaced.
        unsafe {
            pg_sys::OutputPluginPrepareWrite(self.0, last);
            let out = (*self.0).out;
            pg_sys::appendBinaryStringInfo(out, frame.as_ptr().cast(), frame.len() as i32);
            pg_sys::OutputPluginWrite(self.0, last);
            if (*out).maxlen > KEEP_BYTES {
                let before = core::ptr::replace(&raw mut pg_sys::CurrentMemoryContext, (*self.0).context);
                pg_sys::pfree((*out).data.cast());
                pg_sys::initStringInfo(out);
                pg_sys::CurrentMemoryContext = before;
            }
        }
    }

    /// Tells the server that decoding goes on; `skipped` if a whole transaction was skipped.
    pub(crate) fn update_progress(&mut self, skipped: bool) {
        // SAFETY: the context is valid for the callback.
        unsafe {
            #[cfg(feature = "pg14")]
            {
                let _ = skipped;
                pg_sys::OutputPluginUpdateProgress(self.0);
            }
            #[cfg(not(feature = "pg14"))]
            pg_sys::OutputPluginUpdateProgress(self.0, skipped);
        }
    }
}

/// Says in the startup callback that output is binary.
///
/// # Safety
/// `options` is the pointer that the startup callback received.
pub(crate) unsafe fn ask_for_binary(options: *mut pg_sys::OutputPluginOptions) {
    // SAFETY: valid for the callback.
    unsafe {
        (*options).output_type = pg_sys::OutputPluginOutputType::OUTPUT_PLUGIN_BINARY_OUTPUT;
        (*options).receive_rewrites = false;
    }
}
