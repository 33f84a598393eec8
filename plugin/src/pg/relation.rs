//! Tables as the snapshot shows them, which is the historic one while the log is decoded.

use core::ffi::CStr;
use core::marker::PhantomData;

use pgrx::pg_sys;
use postbox_wire::marker;

/// The marker of a table: where an event's fields stand in its rows.
pub(crate) type Mapping = marker::Mapping<Column>;

/// Where the fields of a chunk stand in a row of claims.
pub(crate) type ChunkMapping = marker::ChunkMapping<Column>;

/// The name of the marker trigger.
pub(crate) const TRIGGER: &CStr = c"postbox_outbox";

/// The reserved name of the trigger that makes a table the claims of an outbox; the outbox is the table that it refers to.
pub(crate) const CLAIMS_TRIGGER: &CStr = c"postbox_claims";

/// A table, for one callback.
pub(crate) struct Rel<'cb> {
    relation: pg_sys::Relation,
    callback: PhantomData<&'cb ()>,
}

/// A column that is not dropped.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Index in a row's values.
    pub(crate) index: usize,
    /// Name, in the database's encoding.
    pub(crate) name: Vec<u8>,
    /// Its type.
    pub(crate) type_oid: pg_sys::Oid,
    /// Computed when it is read: a row holds NULL in its place.
    pub(crate) is_virtual: bool,
}

impl marker::Column for Column {
    fn name(&self) -> &[u8] {
        &self.name
    }

    fn type_oid(&self) -> u32 {
        self.type_oid.to_u32()
    }

    fn is_virtual(&self) -> bool {
        self.is_virtual
    }

    fn of_base_type(mut self) -> Self {
        self.type_oid = base_type(self.type_oid);
        self
    }
}

impl<'cb> Rel<'cb> {
    /// # Safety
    /// The pointer is a relation that is open until the callback returns.
    pub(crate) unsafe fn new(relation: pg_sys::Relation) -> Self {
        Self { relation, callback: PhantomData }
    }

    pub(crate) fn oid(&self) -> pg_sys::Oid {
        // SAFETY: open for the callback.
        unsafe { (*self.relation).rd_id }
    }

    /// Names of schema and table, in the database's encoding.
    pub(crate) fn name(&self) -> (Vec<u8>, Vec<u8>) {
        // SAFETY: open for the callback; get_namespace_name returns a palloc'ed C string, or null for a schema that is gone.
        unsafe {
            let class = &*(*self.relation).rd_rel;
            let schema = pg_sys::get_namespace_name(class.relnamespace);
            let schema = if schema.is_null() { Vec::new() } else { CStr::from_ptr(schema).to_bytes().to_vec() };
            (schema, CStr::from_ptr(class.relname.data.as_ptr()).to_bytes().to_vec())
        }
    }

    /// The arguments of the row's trigger of this name, in the database's encoding; `None` if there is no such trigger.
    pub(crate) fn trigger(&self, name: &CStr) -> Option<Vec<Vec<u8>>> {
        // SAFETY: the trigger descriptor belongs to the open relation, its counts say how long its arrays are.
        unsafe {
            let descriptor = (*self.relation).trigdesc;
            if descriptor.is_null() || (*descriptor).numtriggers <= 0 {
                return None;
            }
            let triggers = core::slice::from_raw_parts((*descriptor).triggers, (*descriptor).numtriggers as usize);
            let trigger = triggers.iter().find(|trigger| CStr::from_ptr(trigger.tgname) == name)?;
            let count = usize::try_from(trigger.tgnargs).unwrap_or(0);
            let arguments = (0..count).map(|index| CStr::from_ptr(*trigger.tgargs.add(index)).to_bytes().to_vec());
            Some(arguments.collect())
        }
    }

    /// The table that the row's trigger of this name refers to, as a foreign key's does; `None` if there is no such trigger, or it
    /// refers to none.
    pub(crate) fn trigger_from(&self, name: &CStr) -> Option<pg_sys::Oid> {
        // SAFETY: the trigger descriptor belongs to the open relation, its count says how long its array is.
        unsafe {
            let descriptor = (*self.relation).trigdesc;
            if descriptor.is_null() || (*descriptor).numtriggers <= 0 {
                return None;
            }
            let triggers = core::slice::from_raw_parts((*descriptor).triggers, (*descriptor).numtriggers as usize);
            let trigger = triggers.iter().find(|trigger| CStr::from_ptr(trigger.tgname) == name)?;
            (trigger.tgconstrrelid != pg_sys::InvalidOid).then_some(trigger.tgconstrrelid)
        }
    }

    /// True for a leaf, and for a partitioned table below another.
    fn is_partition(&self) -> bool {
        // SAFETY: open for the callback.
        unsafe { (*(*self.relation).rd_rel).relispartition }
    }

    /// What `wanted` returned for the topmost ancestor that satisfies it; none for a table that is no partition.
    ///
    /// One that is being detached concurrently is a partition until that is done: who began before may still write to it
    /// through its ancestors.
    pub(crate) fn topmost_ancestor<T>(&self, mut wanted: impl FnMut(&Rel<'_>) -> Option<T>) -> Option<T> {
        let mut found = None;
        let (mut child, mut is_partition) = (self.oid(), self.is_partition());
        while is_partition {
            child = partition_parent(child);
            let above = open(child, |ancestor| (wanted(ancestor), ancestor.is_partition()));
            let (wanted, is_child) = above.unwrap_or((None, false));
            found = wanted.or(found);
            is_partition = is_child;
        }
        found
    }

    /// What the table's rows look like.
    pub(crate) fn descriptor(&self) -> Descriptor<'_> {
        // SAFETY: belongs to the relation, which is open for the callback.
        unsafe { Descriptor::new((*self.relation).rd_att) }
    }
}

/// What the rows of a table, or of a type, look like.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor<'a> {
    descriptor: pg_sys::TupleDesc,
    owner: PhantomData<&'a ()>,
}

impl Descriptor<'_> {
    /// # Safety
    /// The descriptor lives as long as the result.
    pub(super) unsafe fn new(descriptor: pg_sys::TupleDesc) -> Self {
        Self { descriptor, owner: PhantomData }
    }

    pub(super) fn as_ptr(self) -> pg_sys::TupleDesc {
        self.descriptor
    }

    /// Number of values in a row, dropped columns included.
    pub(crate) fn width(self) -> usize {
        // SAFETY: alive, see `new`.
        usize::try_from(unsafe { (*self.descriptor).natts }).unwrap_or(0)
    }

    /// The columns that are not dropped.
    pub(crate) fn columns(self) -> Vec<Column> {
        let column = |index: usize| {
            // SAFETY: alive, see `new`; the index is below the number of attributes.
            let attribute = unsafe {
                #[cfg(feature = "pg18")]
                let attribute = &*pg_sys::TupleDescAttr(self.descriptor, index as i32);
                #[cfg(not(feature = "pg18"))]
                let attribute = &*(*self.descriptor).attrs.as_ptr().add(index);
                attribute
            };
            (!attribute.attisdropped).then(|| Column {
                index,
                // SAFETY: a name ends with a zero byte.
                name: unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) }.to_bytes().to_vec(),
                type_oid: attribute.atttypid,
                is_virtual: attribute.attgenerated as u8 == b'v',
            })
        };
        (0..self.width()).filter_map(column).collect()
    }
}

/// Looks at a relation; `None` if there is none of this OID. It is locked as a query locks it, while it is looked at.
pub(crate) fn look_at<T>(relation: pg_sys::Oid, look: impl FnOnce(&Rel<'_>) -> T) -> Option<T> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the relation is open until it is closed here; after an ERROR the transaction's resource owner closes it.
    unsafe {
        let relation = pg_sys::try_relation_open(relation, lock);
        if relation.is_null() {
            return None;
        }
        let result = look(&Rel::new(relation));
        pg_sys::relation_close(relation, lock);
        Some(result)
    }
}

/// Looks at a relation while the log is decoded, where nothing is locked; `None` if there is none of this OID.
pub(crate) fn open<T>(relation: pg_sys::Oid, look: impl FnOnce(&Rel<'_>) -> T) -> Option<T> {
    // SAFETY: the relation is open until it is closed here; after an ERROR the transaction's resource owner closes it.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(relation);
        if relation.is_null() {
            return None;
        }
        let result = look(&Rel::new(relation));
        pg_sys::RelationClose(relation);
        Some(result)
    }
}

/// The type that a domain is over, through all domains; any other type itself.
fn base_type(type_oid: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: looks a type up in the catalog, as the historic snapshot shows it.
    unsafe { pg_sys::getBaseType(type_oid) }
}

/// The parent of a partition, also of one that is being detached. Exported by the server, not bound by pgrx.
fn partition_parent(partition: pg_sys::Oid) -> pg_sys::Oid {
    unsafe extern "C-unwind" {
        fn get_partition_parent(relation: pg_sys::Oid, even_if_detached: bool) -> pg_sys::Oid;
    }
    // SAFETY: declared as in catalog/partition.h; the guard turns an ERROR into a panic as for pgrx's own bindings. There is
    // one for a table that is no partition: a detach is one change of both catalogs, so the snapshot shows all of it or nothing.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_parent(partition, true)) }
}
