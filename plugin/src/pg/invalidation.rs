//! Which relations have changed since the cache of routes looked last.
//!
//! A callback cannot be unregistered, so it outlives the session that registered it: it writes to a list of the process,
//! and the next session starts by emptying the list.

use core::cell::{Cell, RefCell};

use pgrx::{pg_guard, pg_sys};

/// What became invalid.
#[derive(Default)]
pub(crate) struct Invalid {
    /// Every relation.
    pub(crate) all: bool,
    /// These relations.
    pub(crate) relations: Vec<pg_sys::Oid>,
}

/// Beyond this many, everything counts as invalid.
const MOST: usize = 64;

thread_local! {
    static INVALID: RefCell<Invalid> = const { RefCell::new(Invalid { all: false, relations: Vec::new() }) };
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Starts to watch; what was invalid before is forgotten.
pub(crate) fn watch() {
    register();
    take();
}

/// Rises with every change of a relation or schema; for those who look at few tables and may look anew after any change.
/// Decoding may go on beside them, so they take nothing from the list.
pub(crate) fn changes() -> u64 {
    register();
    CHANGES.get()
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: the callbacks are functions of this library, which is never unloaded. A renamed schema is told by the
        // system cache of schemas only, not by the relations in it.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
            pg_sys::CacheRegisterSyscacheCallback(
                pg_sys::SysCacheIdentifier::NAMESPACEOID as i32,
                Some(schema_changed),
                pg_sys::Datum::null(),
            );
        }
    }
}

/// What has become invalid since the last call; `None` is the common case.
pub(crate) fn take() -> Option<Invalid> {
    INVALID.with_borrow_mut(|invalid| (invalid.all || !invalid.relations.is_empty()).then(|| core::mem::take(invalid)))
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    CHANGES.set(CHANGES.get() + 1);
    INVALID.with_borrow_mut(|invalid| {
        if relation == pg_sys::InvalidOid || invalid.relations.len() >= MOST {
            *invalid = Invalid { all: true, relations: Vec::new() };
        } else if !invalid.all {
            invalid.relations.push(relation);
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn schema_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    CHANGES.set(CHANGES.get() + 1);
    INVALID.with_borrow_mut(|invalid| *invalid = Invalid { all: true, relations: Vec::new() });
}
