//! The inbox.

mod worker;
