//! What an outbox's rows mean: its marker as it is now, asked for by SQL.

use std::sync::Arc;

use bytes::Bytes;
use postbox_wire::marker::{self, Mapping};
use postbox_wire::{Lsn, Outbox, OutboxSelector, PayloadType};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::message::Relation;
use crate::error::Result;
use crate::group;

/// The column of events that are claims, and the marker's argument that says so.
const CLAIM_COLUMN: &[u8] = b"claim";
const CLAIM: &[u8] = b"claim=claim";

/// What [`Table::of_shape`] reads.
const SHAPE: &str = "SELECT schema, name, marker, column_names, column_types, postbox._base_types(column_types)";

/// A column of an outbox.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Index in a row.
    pub(super) index: usize,
    pub(super) name: Vec<u8>,
    pub(super) type_oid: u32,
    /// Of a domain what it is over, else the same.
    base_type: u32,
}

impl Column {
    /// The columns of a relation in the stream; types that are given are those that domains are over.
    pub(super) fn of_relation(relation: &Relation, base_types: &[u32]) -> Vec<Self> {
        let column = |(index, (name, type_oid)): (usize, &(Bytes, u32))| Self {
            index,
            name: name.to_vec(),
            type_oid: *type_oid,
            base_type: base_types.get(index).copied().unwrap_or(*type_oid),
        };
        relation.columns.iter().enumerate().map(column).collect()
    }
}

impl marker::Column for Column {
    fn name(&self) -> &[u8] {
        &self.name
    }

    fn type_oid(&self) -> u32 {
        self.type_oid
    }

    /// They are not in the stream.
    fn is_virtual(&self) -> bool {
        false
    }

    fn of_base_type(self) -> Self {
        Self { type_oid: self.base_type, ..self }
    }
}

/// An outbox.
#[derive(Debug)]
pub(crate) struct Table {
    pub(super) oid: u32,
    pub(super) outbox: Arc<Outbox>,
    /// Where the fields stand in its rows, or why that cannot be told.
    pub(super) mapping: Result<Mapping<Column>, String>,
    pub(super) columns: Vec<Column>,
    /// From where to where in the log it takes what `postbox.emit` writes, if that was asked for.
    takes_messages: Vec<(Lsn, Option<Lsn>)>,
    /// Its events are wanted.
    pub(super) selected: bool,
}

impl Table {
    /// That of a relation in the stream, which has the names and columns of its time; the marker is that of now.
    pub(super) async fn of_relation(
        client: &Client,
        relation: &Relation,
        selectors: Option<&[OutboxSelector]>,
    ) -> Result<Self> {
        let types = relation.columns.iter().map(|(_, type_oid)| *type_oid).collect::<Vec<_>>();
        let sql = "SELECT postbox._marker_of($1), postbox._base_types($2), \
                   NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1) OR EXISTS (SELECT FROM pg_catalog.pg_attribute \
                   WHERE attrelid = $1 AND attname = 'claim' AND NOT attisdropped)";
        let rows = group::query(client, sql, &[&relation.oid, &types]).await?;
        let (marker, base_types, has_claims) = match rows.first() {
            Some(row) => {
                (row.try_get::<_, Option<Vec<u8>>>(0)?, row.try_get::<_, Option<Vec<u32>>>(1)?, row.try_get(2)?)
            }
            None => (None, None, false),
        };
        let columns = Column::of_relation(relation, &base_types.unwrap_or_default());
        let name = (show(&relation.schema), show(&relation.table));
        let mut arguments = arguments(marker);
        // The claim check came later than these rows. Who has taken the column away since has them as errors.
        if has_claims && !columns.iter().any(|column| column.name == CLAIM_COLUMN) {
            arguments.retain(|argument| argument != CLAIM);
        }
        Ok(Self::new(relation.oid, name, &arguments, columns, selectors))
    }

    /// That of this OID as it is now; none if there is no such outbox.
    pub(crate) async fn of_oid(
        client: &Client,
        oid: u32,
        selectors: Option<&[OutboxSelector]>,
    ) -> Result<Option<Self>> {
        let sql = format!("{SHAPE} FROM postbox._outbox_shape($1)");
        let rows = group::query(client, &sql, &[&oid]).await?;
        rows.first().map(|row| Self::of_shape(oid, row, selectors)).transpose()
    }

    /// That of this OID, with what messages are its events; none if there are no such.
    pub(super) async fn of_emitter(
        client: &Client,
        oid: u32,
        selectors: Option<&[OutboxSelector]>,
    ) -> Result<Option<Self>> {
        let sql = format!("{SHAPE}, since, until FROM postbox._emitter($1)");
        let rows = group::query(client, &sql, &[&oid]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (since, until): (Vec<PgLsn>, Vec<Option<PgLsn>>) = (row.try_get(6)?, row.try_get(7)?);
        let lsn = |lsn: PgLsn| Lsn(lsn.into());
        let takes_messages = since.into_iter().map(lsn).zip(until.into_iter().map(|until| until.map(lsn))).collect();
        Ok(Some(Self { takes_messages, ..Self::of_shape(oid, row, selectors)? }))
    }

    /// Whether a message that stands there in the log is an event of it.
    pub(super) fn takes_message(&self, lsn: Lsn) -> bool {
        self.takes_messages.iter().any(|(since, until)| *since <= lsn && until.is_none_or(|until| lsn < until))
    }

    fn of_shape(oid: u32, row: &Row, selectors: Option<&[OutboxSelector]>) -> Result<Self> {
        let names: Vec<String> = row.try_get(3)?;
        let (types, base_types): (Vec<u32>, Vec<u32>) = (row.try_get(4)?, row.try_get(5)?);
        let columns = names.into_iter().zip(types.into_iter().zip(base_types)).enumerate();
        let columns = columns.map(|(index, (name, (type_oid, base_type)))| Column {
            index,
            name: name.into_bytes(),
            type_oid,
            base_type,
        });
        let marker = arguments(row.try_get(2)?);
        Ok(Self::new(oid, (row.try_get(0)?, row.try_get(1)?), &marker, columns.collect(), selectors))
    }

    pub(super) fn new(
        oid: u32,
        (schema, table): (String, String),
        arguments: &[Vec<u8>],
        columns: Vec<Column>,
        selectors: Option<&[OutboxSelector]>,
    ) -> Self {
        let mapping = Mapping::read(arguments, &columns, show);
        let payload_type = mapping.as_ref().map_or(PayloadType::Text, Mapping::payload_type);
        let selected = selectors.is_none_or(|selectors| {
            selectors.iter().any(|selector| match selector {
                OutboxSelector::Oid(wanted) => *wanted == oid,
                OutboxSelector::Name { schema: wanted, table: name } => *wanted == schema && *name == table,
            })
        });
        Self {
            oid,
            outbox: Arc::new(Outbox { schema, table, payload_type }),
            mapping,
            columns,
            takes_messages: Vec::new(),
            selected,
        }
    }
}

/// The arguments of a marker, each of which ends with a zero byte there.
pub(super) fn arguments(marker: Option<Vec<u8>>) -> Vec<Vec<u8>> {
    let marker = marker.unwrap_or_default();
    let mut arguments = marker.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect::<Vec<_>>();
    arguments.pop();
    arguments
}

/// A name for people.
pub(super) fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
