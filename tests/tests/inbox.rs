//! The inbox: receiving, working, order, dead letters, and what it says of itself.

mod dead;
mod keeping;
mod seeing;

use crate::sql::{error, refused, row, rows, run, start};
