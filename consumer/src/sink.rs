//! Where events go.

mod stdout;

pub(crate) use stdout::Stdout;

use crate::consumer::Delivery;
use crate::error::Result;

/// Takes events.
///
/// Batches come one after the other and in commit order. When `deliver` returns, every event of the batch is where
/// the sink promises it to be, and the caller acknowledges them; after an error none of them counts as delivered, and
/// all may come again. An event may come more than once: its id tells.
pub(crate) trait Sink {
    /// Delivers a batch.
    ///
    /// # Errors
    /// The sink cannot take events any more.
    fn deliver(&mut self, batch: &[Delivery]) -> Result<()>;
}
