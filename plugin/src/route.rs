//! Which outbox a table's rows belong to, if any: decided once per table and kept until PostgreSQL says that the table changed.

use core::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use pgrx::pg_sys::Oid;
use postbox_wire::marker::ACCEPTS_MESSAGES;
use postbox_wire::{NameSlot, Outbox, OutboxSelector, PayloadType};
use rustc_hash::FxHashMap;

use crate::pg::encoding::Encoding;
use crate::pg::invalidation;
use crate::pg::relation::{CLAIMS_TRIGGER, ChunkMapping, Column, Descriptor, Mapping, Rel, TRIGGER, open};

/// What a row inserted into a table is to us.
#[derive(Clone)]
pub(crate) enum Route {
    /// Nothing.
    Skip,
    /// An event.
    Outbox(Rc<Table>),
    /// A part of the data of one.
    Claims(Rc<Claims>),
}

impl Route {
    /// True if it leads to the outbox with this root.
    fn leads_to(&self, root: Oid) -> bool {
        match self {
            Self::Skip => false,
            Self::Outbox(table) => table.target.root == root,
            Self::Claims(claims) => claims.target.root == root,
        }
    }
}

/// A table whose rows are chunks of claims, or a leaf of one.
pub(crate) struct Claims {
    /// The outbox whose claims they are.
    pub(crate) target: Rc<Target>,
    pub(crate) mapping: Result<ChunkMapping, String>,
}

/// A table whose rows are events: an outbox, or a leaf of one.
pub(crate) struct Table {
    pub(crate) target: Rc<Target>,
    /// Where the fields stand in this table's rows, or why that cannot be told.
    pub(crate) mapping: Result<Mapping, String>,
    pub(crate) columns: Vec<Column>,
}

impl Table {
    /// `marker` is the arguments of the trigger, `rows` describes the rows, and `target` gives the outbox with payloads of
    /// this type.
    pub(crate) fn new(
        marker: &[Vec<u8>],
        rows: Descriptor<'_>,
        encoding: Encoding,
        target: impl FnOnce(PayloadType) -> Rc<Target>,
    ) -> Self {
        let columns = rows.columns();
        let mapping = Mapping::read(marker, &columns, |name| encoding.show(name));
        let payload_type = mapping.as_ref().map_or(PayloadType::Text, Mapping::payload_type);
        Self { target: target(payload_type), mapping, columns }
    }
}

/// An outbox as the stream names it.
pub(crate) struct Target {
    root: Oid,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) slot: RefCell<NameSlot>,
    /// False if the client did not ask for it.
    pub(crate) selected: bool,
}

impl Target {
    /// The outbox with this root, named as the table is.
    pub(crate) fn new(root: Oid, outbox: Outbox, selected: bool) -> Rc<Self> {
        Rc::new(Self { root, outbox: Arc::new(outbox), slot: RefCell::default(), selected })
    }
}

/// The outbox of this name, which is in the database's encoding.
pub(crate) fn named((schema, table): &(Vec<u8>, Vec<u8>), payload_type: PayloadType, encoding: Encoding) -> Outbox {
    Outbox { schema: encoding.show(schema), table: encoding.show(table), payload_type }
}

/// The cache.
pub(crate) struct Routes {
    /// Looked at for every change of every table, hence the cheapest hash there is.
    routes: FxHashMap<Oid, Route>,
    /// Of messages: the outboxes that they name.
    messages: FxHashMap<Oid, Route>,
    /// Kept over invalidations, so that each name is sent once.
    targets: Vec<Rc<Target>>,
    selectors: Option<Vec<OutboxSelector>>,
    /// Rows of claims are wanted.
    chunks: bool,
    encoding: Encoding,
}

/// Outboxes that are dropped and made anew leave their names behind; beyond this many the list starts afresh.
const MOST_TARGETS: usize = 4096;

impl Routes {
    pub(crate) fn new(selectors: Option<Vec<OutboxSelector>>, chunks: bool) -> Self {
        invalidation::watch();
        Self {
            routes: FxHashMap::default(),
            messages: FxHashMap::default(),
            targets: Vec::new(),
            selectors,
            chunks,
            encoding: Encoding::of_database(),
        }
    }

    /// The route of a table's rows.
    pub(crate) fn of(&mut self, relation: &Rel<'_>) -> Route {
        self.forget_invalid();
        if let Some(route) = self.routes.get(&relation.oid()) {
            return route.clone();
        }
        let route = self.decide(relation);
        self.routes.insert(relation.oid(), route.clone());
        route
    }

    /// The outbox of this OID, if it takes messages.
    pub(crate) fn of_message(&mut self, root: Oid) -> Option<Rc<Table>> {
        self.forget_invalid();
        let route = match self.messages.get(&root) {
            Some(route) => route.clone(),
            None => {
                let accepts = |relation: &Rel<'_>| {
                    let marker = relation.trigger(TRIGGER)?;
                    marker.iter().any(|argument| argument == ACCEPTS_MESSAGES).then(|| self.decide(relation))
                };
                let route = open(root, accepts).flatten().unwrap_or(Route::Skip);
                // A leaf's rows are those of its root, which is not what the message names.
                let is_root = |table: &Rc<Table>| table.target.root == root;
                let route = if matches!(&route, Route::Outbox(table) if is_root(table)) { route } else { Route::Skip };
                if self.messages.len() >= MOST_TARGETS {
                    self.messages.clear();
                }
                self.messages.insert(root, route.clone());
                route
            }
        };
        match route {
            Route::Skip | Route::Claims(_) => None,
            Route::Outbox(table) => Some(table),
        }
    }

    fn forget_invalid(&mut self) {
        let Some(invalid) = invalidation::take() else { return };
        if invalid.all {
            self.routes.clear();
            self.messages.clear();
            return;
        }
        for changed in invalid.relations {
            self.routes.remove(&changed);
            self.messages.remove(&changed);
            // The leaves of a renamed outbox are not told, nor are its claims.
            if self.targets.iter().any(|target| target.root == changed) {
                self.routes.retain(|_, route| !route.leads_to(changed));
            }
        }
    }

    fn decide(&mut self, relation: &Rel<'_>) -> Route {
        let Some(marker) = relation.trigger(TRIGGER) else { return self.decide_claims(relation) };
        // A leaf carries a clone of the marker; the outbox is the topmost table that is marked.
        let marked = |relation: &Rel<'_>| relation.trigger(TRIGGER).map(|_| (relation.oid(), relation.name()));
        let (root, name) = relation.topmost_ancestor(marked).unwrap_or_else(|| (relation.oid(), relation.name()));
        let encoding = self.encoding;
        let target = |payload_type| self.target(root, named(&name, payload_type, encoding));
        Route::Outbox(Rc::new(Table::new(&marker, relation.descriptor(), encoding, target)))
    }

    /// Rows of claims are passed over where nobody wants them: whoever has the event can read them.
    fn decide_claims(&mut self, relation: &Rel<'_>) -> Route {
        let root = self.chunks.then(|| relation.trigger_from(CLAIMS_TRIGGER)).flatten();
        let Some(root) = root else { return Route::Skip };
        let found = open(root, |outbox| match self.decide(outbox) {
            Route::Outbox(table) => Some(Rc::clone(&table.target)),
            _ => None,
        });
        match found.flatten() {
            Some(target) => {
                let mapping = ChunkMapping::read(&relation.descriptor().columns());
                Route::Claims(Rc::new(Claims { target, mapping }))
            }
            None => Route::Skip,
        }
    }

    fn target(&mut self, root: Oid, outbox: Outbox) -> Rc<Target> {
        if let Some(known) = self.targets.iter().find(|target| target.root == root && *target.outbox == outbox) {
            return Rc::clone(known);
        }
        if self.targets.len() >= MOST_TARGETS {
            self.targets.clear();
            self.routes.clear();
            self.messages.clear();
        }
        let selected = self.selectors.as_ref().is_none_or(|selectors| {
            selectors.iter().any(|selector| match selector {
                OutboxSelector::Oid(oid) => *oid == root.to_u32(),
                OutboxSelector::Name { schema, table } => *schema == outbox.schema && *table == outbox.table,
            })
        });
        let target = Target::new(root, outbox, selected);
        self.targets.push(Rc::clone(&target));
        target
    }
}
