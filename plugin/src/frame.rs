//! `postbox._frame`: a stored row as the frame that the slot would have brought, except for what only the log knows.
//!
//! It goes the way of a row of the log from [`RowReader`] on. What is decided once for each table there is decided here
//! once for each place in a query, and anew after any change of a table.

use core::ops::Range;

use pgrx::PgSqlErrorCode::{self, *};
use pgrx::pg_sys::{self, Oid};
use postbox_wire::marker::column_of;
use postbox_wire::{Encoder, Lsn, MAX_EVENT_BYTES, Names, PgMicros, Transaction};

use crate::pg::call::type_name;
use crate::pg::datum::Values;
use crate::pg::encoding::Encoding;
use crate::pg::invalidation;
use crate::pg::memory::RowMemory;
use crate::pg::record::{Record, RowType};
use crate::pg::relation::{Column, Rel, TRIGGER, look_at};
use crate::pg::report;
use crate::route::{Table, Target, named};
use crate::row::RowReader;

const DAY: i64 = 86_400_000_000;
/// The years 1 to 9999 in microseconds of PostgreSQL: what RFC 3339 can write. The infinities lie outside.
const MOMENTS: Range<i64> = -730_119 * DAY..2_921_940 * DAY;

/// Makes frames of rows.
pub(crate) struct Framer {
    rows: RowReader,
    encoder: Encoder,
    /// Of the latest row.
    source: Option<Source>,
}

/// Where rows come from: an outbox, and a type of rows.
struct Source {
    outbox: Oid,
    row_type: RowType,
    table: Table,
    xid: Option<Column>,
    created_at: Option<Column>,
    /// It holds until there are more changes than that.
    changes: u64,
}

impl Framer {
    pub(crate) fn new(memory: RowMemory) -> Self {
        Self { rows: RowReader::new(memory, MAX_EVENT_BYTES, true), encoder: Encoder::new(Names::Frame), source: None }
    }

    /// Hands the frame of one row to `write`. What is no row of the outbox is an ERROR.
    pub(crate) fn frame(&mut self, outbox: Oid, record: &Record<'_>, write: impl FnOnce(&[u8])) {
        let Self { rows, encoder, source } = self;
        let source = match source {
            Some(known) if known.is_of(outbox, record) => known,
            other => other.insert(Source::find(outbox, record).unwrap_or_else(|refusal| refusal.raise())),
        };
        encoder.begin();
        record.with_descriptor(|descriptor| {
            rows.read(record.tuple(), descriptor, &source.table, 0, |event, values| {
                encoder.event(&source.transaction(values), event, &mut source.table.target.slot.borrow_mut());
            });
        });
        encoder.take(true, write);
    }
}

impl Source {
    fn is_of(&self, outbox: Oid, record: &Record<'_>) -> bool {
        self.outbox == outbox && self.row_type == record.row_type() && self.changes == invalidation::changes()
    }

    fn find(outbox: Oid, record: &Record<'_>) -> Result<Self, Refusal> {
        // Before anything is looked at: what changes meanwhile counts as a change.
        let changes = invalidation::changes();
        let encoding = Encoding::of_database();
        let row_type = record.row_type();
        let root = look_at(outbox, |relation| {
            let name = relation.name();
            let Some(marker) = relation.trigger(TRIGGER) else { return Err(Refusal::not_an_outbox(&name)) };
            if let Some(root) = relation.topmost_ancestor(|parent| parent.trigger(TRIGGER).map(|_| parent.name())) {
                return Err(Refusal::leaf(&name, &root));
            }
            Ok((name, marker, relation.descriptor().columns()))
        });
        let (name, marker, wanted) = root.ok_or_else(|| Refusal::no_table(outbox))??;
        if let Some(relation) = row_type.relation() {
            check_relation(relation, outbox, &name)?;
        }
        record.with_descriptor(|descriptor| {
            let columns = descriptor.columns();
            // A type without a name is known by its columns only.
            let has = |wanted: &Column| {
                columns.iter().any(|column| column.name == wanted.name && column.type_oid == wanted.type_oid)
            };
            if let Some(missing) = wanted.iter().find(|column| !has(column)) {
                return Err(Refusal::no_column(missing, &name));
            }
            let target = |payload_type| Target::new(outbox, named(&name, payload_type, encoding), true);
            Ok(Self {
                outbox,
                row_type,
                table: Table::new(&marker, descriptor, encoding, target),
                xid: column_of("xid", pg_sys::XID8OID.to_u32(), &marker, &columns),
                created_at: column_of("created_at", pg_sys::TIMESTAMPTZOID.to_u32(), &[], &columns),
                changes,
            })
        })
    }

    /// What the row itself says about its transaction; its place in the log is not known.
    fn transaction(&self, values: &Values) -> Transaction {
        let int = |column: &Option<Column>| {
            let column = column.as_ref()?;
            Some(values.get(column.index)?.int(pg_sys::INT8OID))
        };
        let created_at = int(&self.created_at).filter(|micros| MOMENTS.contains(micros)).map(PgMicros);
        Transaction {
            commit_lsn: Lsn::ZERO,
            end_lsn: Lsn::ZERO,
            commit_time: created_at.unwrap_or(PgMicros::UNKNOWN),
            xid: int(&self.xid).unwrap_or_default().cast_unsigned(),
        }
    }
}

/// Rows of the outbox have its type, or that of a partition if they were read from there.
fn check_relation(relation: Oid, outbox: Oid, name: &Name) -> Result<(), Refusal> {
    if relation == outbox {
        return Ok(());
    }
    let is_outbox = |parent: &Rel<'_>| (parent.oid() == outbox).then_some(());
    let found = look_at(relation, |relation| match relation.topmost_ancestor(is_outbox) {
        Some(()) => Ok(()),
        None => Err(Refusal::other_table(&relation.name(), name)),
    });
    found.unwrap_or_else(|| Err(Refusal::no_table(relation)))
}

/// Schema and table, in the database's encoding.
type Name = (Vec<u8>, Vec<u8>);

/// Why there is no frame.
struct Refusal {
    code: PgSqlErrorCode,
    message: String,
    hint: String,
}

impl Refusal {
    fn no_table(oid: Oid) -> Self {
        Self {
            code: ERRCODE_UNDEFINED_TABLE,
            message: format!("there is no table with OID {}", oid.to_u32()),
            hint: LIST.to_owned(),
        }
    }

    fn not_an_outbox(name: &Name) -> Self {
        Self {
            code: ERRCODE_WRONG_OBJECT_TYPE,
            message: format!("\"{}\" is not an outbox", shown(name)),
            hint: LIST.to_owned(),
        }
    }

    fn leaf(name: &Name, root: &Name) -> Self {
        Self {
            code: ERRCODE_WRONG_OBJECT_TYPE,
            message: format!("\"{}\" is a partition of an outbox", shown(name)),
            hint: format!("Name the outbox itself, {}; its rows may be read from the partition.", shown(root)),
        }
    }

    fn other_table(name: &Name, outbox: &Name) -> Self {
        Self {
            code: ERRCODE_DATATYPE_MISMATCH,
            message: format!("a row of \"{}\" is not a row of outbox \"{}\"", shown(name), shown(outbox)),
            hint: WHOLE_ROWS.to_owned(),
        }
    }

    fn no_column(column: &Column, outbox: &Name) -> Self {
        let name = Encoding::of_database().show(&column.name);
        let type_name = type_name(column.type_oid);
        let outbox = shown(outbox);
        Self {
            code: ERRCODE_DATATYPE_MISMATCH,
            message: format!(
                "the record has no column \"{name}\" of type {type_name}, which rows of outbox \"{outbox}\" have"
            ),
            hint: WHOLE_ROWS.to_owned(),
        }
    }

    fn raise(self) -> ! {
        report::raise(self.code, self.message, self.hint)
    }
}

const LIST: &str = "postbox.outbox_status() lists the outboxes.";
const WHOLE_ROWS: &str = "Pass whole rows of the outbox: SELECT postbox._frame('orders', o) FROM orders o.";

fn shown((schema, table): &Name) -> String {
    let encoding = Encoding::of_database();
    format!("{}.{}", encoding.show(schema), encoding.show(table))
}
