//! What the reorder buffer hands out: transactions and their changes.

use core::marker::PhantomData;

use pgrx::pg_sys;
use postbox_wire::{Lsn, PgMicros, Transaction};

/// A committed transaction, for one callback.
pub(crate) struct Txn(*mut pg_sys::ReorderBufferTXN);

/// Gives 32-bit transaction ids their epoch: the one that brings them nearest to the last id seen. Ids that can still be
/// decoded lie less than half the range apart, since the slot's catalog_xmin holds back the rest.
pub(crate) struct XidEpoch(u64);

impl XidEpoch {
    /// Starts from the server's next transaction id.
    pub(crate) fn now() -> Self {
        // SAFETY: reads shared memory under a lock of its own.
        Self(unsafe { pg_sys::ReadNextFullTransactionId() }.value)
    }

    fn extend(&mut self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.0 as u32) as i32;
        self.0 = self.0.wrapping_add_signed(distance.into());
        self.0
    }
}

impl Txn {
    /// # Safety
    /// The pointer is valid until the callback returns.
    pub(crate) unsafe fn new(txn: *mut pg_sys::ReorderBufferTXN) -> Self {
        Self(txn)
    }

    /// The frame header for this transaction. Its commit record has been read: transactions are decoded at commit only.
    pub(crate) fn header(&self, epoch: &mut XidEpoch) -> Transaction {
        // SAFETY: valid for the callback; at this point the union holds the commit time.
        unsafe {
            let txn = &*self.0;
            #[cfg(feature = "pg14")]
            let commit_time = txn.commit_time;
            #[cfg(not(feature = "pg14"))]
            let commit_time = txn.xact_time.commit_time;
            Transaction {
                commit_lsn: Lsn(txn.final_lsn),
                end_lsn: Lsn(txn.end_lsn),
                commit_time: PgMicros(commit_time),
                xid: epoch.extend(txn.xid.into_inner()),
            }
        }
    }
}

/// One change of a transaction, for one callback.
pub(crate) struct Change(*mut pg_sys::ReorderBufferChange);

/// A row: one that a change inserted, or one that SQL passed.
#[derive(Clone, Copy)]
pub(crate) struct Tuple<'row> {
    pub(super) tuple: pg_sys::HeapTuple,
    row: PhantomData<&'row ()>,
}

impl Tuple<'_> {
    /// # Safety
    /// The tuple lives as long as the result.
    pub(super) unsafe fn new(tuple: pg_sys::HeapTuple) -> Self {
        Self { tuple, row: PhantomData }
    }
}

impl Change {
    /// # Safety
    /// The pointer is valid until the callback returns.
    pub(crate) unsafe fn new(change: *mut pg_sys::ReorderBufferChange) -> Self {
        Self(change)
    }

    /// The new row if the change is an INSERT.
    pub(crate) fn inserted(&self) -> Option<Tuple<'_>> {
        // SAFETY: valid for the callback; the action says which member of the union is set.
        unsafe {
            let change = &*self.0;
            if change.action != pg_sys::ReorderBufferChangeType::REORDER_BUFFER_CHANGE_INSERT {
                return None;
            }
            let tuple = change.data.tp.newtuple;
            if tuple.is_null() {
                return None;
            }
            #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16"))]
            return Some(Tuple::new(&raw mut (*tuple).tuple));
            #[cfg(not(any(feature = "pg14", feature = "pg15", feature = "pg16")))]
            return Some(Tuple::new(tuple));
        }
    }
}
