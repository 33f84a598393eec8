//! The integration tests: one module per subject, each test on a private cluster.

mod alive;
mod dead_letters;
mod decoding;
mod delivery;
mod docs;
mod encodings;
mod formats;
mod harness;
mod inbox;
mod jsonb;
mod kill;
mod live;
mod maintaining;
mod members;
mod messages;
mod offsets;
mod regress;
mod shop;
mod sizes;
mod sql;
mod transport;
