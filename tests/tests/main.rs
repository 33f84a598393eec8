//! The integration tests: one module per subject, each test on a private cluster.

mod harness;
mod jsonb;
mod decoding;
mod live;
mod transport;
mod docs;
mod messages;
mod sql;
mod alive;
mod delivery;
mod shop;
