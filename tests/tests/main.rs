//! The integration tests: one module per subject, each test on a private cluster.

mod alive;
mod decoding;
mod delivery;
mod docs;
mod harness;
mod jsonb;
mod live;
mod messages;
mod regress;
mod shop;
mod sql;
mod transport;
