//! Values of a row.

use core::ffi::CStr;
use std::ffi::CString;

use pgrx::pg_sys;
use pgrx::varlena::{varatt_is_1b, varatt_is_1b_e, varatt_is_4b_u, vardata_any, varsize_any_exhdr};

use crate::pg::change::Tuple;
use crate::pg::relation::Descriptor;
use crate::pg::report;

/// Room for the values of a row, used again for every row.
#[derive(Default)]
pub(crate) struct Values {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

/// A value of a row that is not NULL; valid until the row's memory is reset.
#[derive(Clone, Copy)]
pub(crate) struct Value(pg_sys::Datum);

impl Values {
    /// Takes the row apart. `rows` describes it.
    pub(crate) fn take_apart(&mut self, tuple: Tuple<'_>, rows: Descriptor<'_>) {
        let count = rows.width();
        self.values.resize(count, pg_sys::Datum::null());
        self.nulls.resize(count, true);
        // SAFETY: the descriptor is that of the row, and the arrays are as long as it says.
        unsafe {
            pg_sys::heap_deform_tuple(tuple.tuple, rows.as_ptr(), self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }

    /// The value at this index; `None` if it is NULL.
    pub(crate) fn get(&self, index: usize) -> Option<Value> {
        let null = self.nulls.get(index).copied().unwrap_or(true);
        if null { None } else { self.values.get(index).copied().map(Value) }
    }
}

impl Value {
    /// An argument that is not NULL.
    pub(super) fn new(value: pg_sys::Datum) -> Self {
        Self(value)
    }

    /// The bytes of a variable-length value, decompressed, without its header. Lives in the row or in the
    /// row's memory. The error is the server's, where the stored bytes cannot be decompressed.
    pub(crate) fn bytes<'row>(self) -> Result<&'row [u8], String> {
        let pointer: *mut pg_sys::varlena = self.0.cast_mut_ptr();
        // SAFETY: the caller's mapping says that the type is of variable length, so the datum points to a varlena.
        unsafe {
            if varatt_is_4b_u(pointer) || (varatt_is_1b(pointer) && !varatt_is_1b_e(pointer)) {
                return Ok(data(pointer));
            }
        }
        let address = pointer as usize;
        let plain = report::about_value(move || {
            // SAFETY: as above; compressed and indirect values are copied into the current memory context, the row's.
            unsafe { pg_sys::pg_detoast_datum_packed(address as *mut pg_sys::varlena) as usize }
        })?;
        // SAFETY: the result is a plain varlena in the row's memory.
        Ok(unsafe { data(plain as *mut pg_sys::varlena) })
    }

    /// The bytes as they are stored, for an error event: decompressed if that is possible. Nothing for a type that is not
    /// of variable length, whose printed form tells all.
    pub(crate) fn stored(self, type_oid: pg_sys::Oid) -> Vec<u8> {
        // SAFETY: looks a type up in the catalog.
        if unsafe { pg_sys::get_typlen(type_oid) } != -1 {
            return self.print(type_oid).unwrap_or_default();
        }
        if let Ok(bytes) = self.bytes() {
            return bytes.to_vec();
        }
        let pointer: *mut pg_sys::varlena = self.0.cast_mut_ptr();
        // SAFETY: a varlena by its type; one that is stored outside of the row has only a pointer here, which tells nothing.
        unsafe { if varatt_is_1b_e(pointer) { Vec::new() } else { data(pointer).to_vec() } }
    }

    /// A UUID's bytes.
    pub(crate) fn uuid(self) -> [u8; 16] {
        // SAFETY: the caller's mapping says that the type is uuid, which is passed by reference and 16 bytes long.
        unsafe { self.0.cast_mut_ptr::<[u8; 16]>().read_unaligned() }
    }

    /// An integer of the given width.
    pub(crate) fn int(self, type_oid: pg_sys::Oid) -> i64 {
        let word = self.0.value() as u64;
        match type_oid {
            pg_sys::INT2OID => (word as i16).into(),
            pg_sys::INT4OID => (word as i32).into(),
            _ => word as i64,
        }
    }

    /// The value as its type's output function prints it, in the database's encoding.
    pub(crate) fn print(self, type_oid: pg_sys::Oid) -> Result<Vec<u8>, String> {
        let word = self.0.value();
        report::about_value(move || {
            let mut output = pg_sys::InvalidOid;
            let mut is_varlena = false;
            // SAFETY: the datum is of this type; the output function returns a C string in the row's memory.
            unsafe {
                pg_sys::getTypeOutputInfo(type_oid, &raw mut output, &raw mut is_varlena);
                let text = pg_sys::OidOutputFunctionCall(output, pg_sys::Datum::from(word));
                CStr::from_ptr(text).to_bytes().to_vec()
            }
        })
    }
}

/// Whether jsonb can hold the document, which is in the database's encoding.
pub(crate) fn is_jsonb(document: &[u8]) -> bool {
    let Ok(document) = CString::new(document) else { return false };
    let read = report::about_value(move || {
        let (mut input, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        // SAFETY: the input function of jsonb reads a C string and does not write to it; the result stays in the current memory context.
        unsafe {
            pg_sys::getTypeInputInfo(pg_sys::JSONBOID, &raw mut input, &raw mut parameter);
            pg_sys::OidInputFunctionCall(input, document.as_ptr().cast_mut(), parameter, -1);
        }
    });
    read.is_ok()
}

/// # Safety
/// The pointer is a plain varlena that lives at least as long as the row.
unsafe fn data<'row>(pointer: *mut pg_sys::varlena) -> &'row [u8] {
    // SAFETY: told by the caller.
    unsafe { core::slice::from_raw_parts(vardata_any(pointer).cast(), varsize_any_exhdr(pointer)) }
}
