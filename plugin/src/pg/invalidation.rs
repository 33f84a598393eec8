//! Which relations have changed since the cache of routes looked last.
//!
//! A callback cannot be unregistered, so it outlives the session that registered it: it writes to a list of the process,
//! and the next session starts by emptying the list.

use core::cell::RefCell;

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
    static REGISTERED: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

/// Starts to watch; what was invalid before is forgotten.
pub(crate) fn watch() {
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
    take();
}

/// What has become invalid since the last call; `None` is the common case.
pub(crate) fn take() -> Option<Invalid> {
    INVALID.with_borrow_mut(|invalid| (invalid.all || !invalid.relations.is_empty()).then(|| core::mem::take(invalid)))
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
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
    INVALID.with_borrow_mut(|invalid| *invalid = Invalid { all: true, relations: Vec::new() });
}
