//! A memory context of our own, so that what the server allocates for a row goes when the row is done.

use core::ffi::CStr;

use pgrx::pg_sys;

/// A child of the decoding context; goes with it.
#[derive(Clone, Copy)]
pub(crate) struct RowMemory(pg_sys::MemoryContext);

const NAME: &CStr = c"postbox row";

impl RowMemory {
    /// Makes the context below `parent`.
    ///
    /// # Safety
    /// `parent` is a live memory context that outlives every use of the result.
    pub(crate) unsafe fn below(parent: pg_sys::MemoryContext) -> Self {
        // SAFETY: the parent is live; the name is static, as the server asks for.
        Self(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                parent,
                NAME.as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Runs `work` with this context as the current one, then goes back to the one before and frees what was
    /// allocated. After an ERROR the server does both.
    pub(crate) fn scoped<T>(self, work: impl FnOnce() -> T) -> T {
        // SAFETY: a process of PostgreSQL has one thread, and the context is live while the session is.
        let before = unsafe { core::ptr::replace(&raw mut pg_sys::CurrentMemoryContext, self.0) };
        let result = work();
        // SAFETY: as above; nothing allocated inside is referred to any more, `T` cannot borrow from it.
        unsafe {
            pg_sys::CurrentMemoryContext = before;
            // Most rows need nothing from the server; asking it to free nothing is a call that counts.
            if !(*self.0).isReset {
                pg_sys::MemoryContextReset(self.0);
            }
        }
        result
    }
}
