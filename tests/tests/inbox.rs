//! The inbox: receiving, working, order, dead letters, and what it says of itself.

mod model;
mod receiving;

use crate::sql::{error, refused, row, rows, run, start};
