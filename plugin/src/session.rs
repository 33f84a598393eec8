//! One run of decoding: from START_REPLICATION (or a call of a slot function) to its end.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{InvalidRepOriginId, Oid, RepOriginId};
use postbox_wire::emitted::Emitted;
use postbox_wire::{Claims, Compression, Compressor, Encoder, Options, Origin, Transaction};

use crate::emit::PREFIX;
use crate::pg::change::{Change, Tuple, Txn, XidEpoch};
use crate::pg::context::Context;
use crate::pg::relation::Rel;
use crate::pg::report;
use crate::route::{self, Route, Routes};
use crate::row::RowReader;

/// The state of one run of decoding.
pub(crate) struct Session {
    routes: Routes,
    rows: RowReader,
    encoder: Encoder,
    /// Frames go through it if the client has asked for that.
    compressor: Option<Compressor>,
    /// False if transactions that came by replication are left out.
    foreign: bool,
    epoch: XidEpoch,
    /// The frame header of the current transaction, once it has an event.
    transaction: Option<Transaction>,
    /// Outbox rows of the current transaction so far. All are counted, selected or not: an event keeps its ordinal
    /// whatever the options are.
    ordinal: u64,
    skipped_changes: u32,
}

/// Servers before 16 do not report progress within a transaction by themselves. A call costs a look at the clock.
const PROGRESS_EVERY: u32 = 100;

impl Session {
    /// Reads the options; a wrong one is an ERROR.
    pub(crate) fn start(ctx: &Context) -> Self {
        let given = ctx.options();
        let options = Options::parse(given.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
        let options = options.unwrap_or_else(|error| {
            report::raise(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, error.message, error.hint)
        });
        Self {
            encoder: Encoder::new(options.names),
            compressor: (options.compression == Compression::Lz4).then(Compressor::default),
            foreign: options.origin == Origin::Any,
            rows: RowReader::new(ctx.row_memory(), options.max_event_bytes, options.claims != Claims::None),
            routes: Routes::new(options.outboxes, options.claims == Claims::Stream),
            epoch: XidEpoch::now(),
            transaction: None,
            ordinal: 0,
            skipped_changes: 0,
        }
    }

    pub(crate) fn begin(&mut self) {
        self.encoder.begin();
        self.rows.begin();
        self.transaction = None;
        self.ordinal = 0;
        self.skipped_changes = 0;
    }

    pub(crate) fn change(&mut self, ctx: &mut Context, txn: &Txn, relation: &Rel<'_>, change: &Change) {
        // UPDATE, DELETE and TRUNCATE of an outbox are housekeeping. An UPDATE that moves a row to another partition is a DELETE
        // and an INSERT, and nothing in the log tells that INSERT from any other: its event comes again.
        let tuple = change.inserted();
        let routed = tuple.and_then(|tuple| match self.routes.of(relation) {
            Route::Skip => None,
            Route::Outbox(table) => Some((tuple, Ok(table))),
            Route::Claims(claims) => Some((tuple, Err(claims))),
        });
        let (tuple, table) = match routed {
            Some((tuple, Ok(table))) => (tuple, table),
            Some((tuple, Err(claims))) => return self.chunk(ctx, txn, relation, tuple, &claims),
            None => return self.skip(ctx),
        };
        let ordinal = self.ordinal;
        self.ordinal += 1;
        if !table.target.selected {
            return self.skip(ctx);
        }

        let Self { encoder, compressor, rows, epoch, transaction, .. } = self;
        let transaction = transaction.get_or_insert_with(|| txn.header(epoch));
        if encoder.is_due() {
            write(encoder, compressor, ctx, false);
        }
        rows.read(tuple, relation.descriptor(), &table, ordinal, |event, _| {
            if encoder.would_overflow(event.size()) && !encoder.is_empty() {
                write(encoder, compressor, ctx, false);
            }
            encoder.event(transaction, event, &mut table.target.slot.borrow_mut());
        });
    }

    /// A row of claims: a part of the data of an event that follows, and none itself, so it takes no ordinal.
    fn chunk(&mut self, ctx: &mut Context, txn: &Txn, relation: &Rel<'_>, tuple: Tuple<'_>, claims: &route::Claims) {
        if !claims.target.selected {
            return self.skip(ctx);
        }
        let Self { encoder, compressor, rows, epoch, transaction, ordinal, .. } = self;
        let transaction = transaction.get_or_insert_with(|| txn.header(epoch));
        rows.read_chunk(tuple, relation.descriptor(), claims, *ordinal, |chunk| {
            // Only now: one that cannot be read does not come.
            if encoder.is_due() || (encoder.would_overflow(chunk.data.len()) && !encoder.is_empty()) {
                write(encoder, compressor, ctx, false);
            }
            encoder.chunk(transaction, chunk, &mut claims.target.slot.borrow_mut());
        });
    }

    /// A message of the transaction: an event, if it says so and its outbox takes such.
    pub(crate) fn message(&mut self, ctx: &mut Context, txn: &Txn, prefix: &[u8], message: &[u8]) {
        let emitted = (prefix == PREFIX.to_bytes()).then(|| Emitted::read(message)).flatten();
        let routed = emitted.and_then(|emitted| Some((self.routes.of_message(Oid::from(emitted.outbox))?, emitted)));
        let Some((table, emitted)) = routed else { return self.skip(ctx) };
        let ordinal = self.ordinal;
        self.ordinal += 1;
        if !table.target.selected {
            return self.skip(ctx);
        }
        let Self { encoder, compressor, rows, epoch, transaction, .. } = self;
        let transaction = transaction.get_or_insert_with(|| txn.header(epoch));
        if encoder.is_due() {
            write(encoder, compressor, ctx, false);
        }
        rows.read_message(&emitted, message, &table, ordinal, |event| {
            if encoder.would_overflow(event.size()) && !encoder.is_empty() {
                write(encoder, compressor, ctx, false);
            }
            encoder.event(transaction, event, &mut table.target.slot.borrow_mut());
        });
    }

    pub(crate) fn commit(&mut self, ctx: &mut Context) {
        let sent = self.encoder.has_events();
        ctx.update_progress(!sent);
        if sent {
            write(&mut self.encoder, &mut self.compressor, ctx, true);
        }
    }

    /// True if transactions of this origin are to be left out.
    pub(crate) fn leaves_out(&self, origin: RepOriginId) -> bool {
        !self.foreign && u32::from(origin) != InvalidRepOriginId
    }

    /// A long transaction without events must not look like a dead connection.
    fn skip(&mut self, ctx: &mut Context) {
        if cfg!(any(feature = "pg14", feature = "pg15")) {
            self.skipped_changes += 1;
            if self.skipped_changes >= PROGRESS_EVERY {
                self.skipped_changes = 0;
                ctx.update_progress(false);
            }
        }
    }
}

/// Hands the frame over that has been built; `last` if the transaction ends with it.
fn write(encoder: &mut Encoder, compressor: &mut Option<Compressor>, ctx: &mut Context, last: bool) {
    encoder.take(last, |frame| match compressor {
        Some(compressor) => ctx.write(compressor.compress(frame), last),
        None => ctx.write(frame, last),
    });
}
