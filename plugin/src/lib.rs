//! `postbox.so`: the logical-decoding output plugin of Postbox and the C functions of its SQL extension.
//!
//! ```text
//! reorder buffer ──► callbacks ──► session ──► route: which outbox? ──► row: tuple → event ──► wire::Encoder ──► slot
//!                                    ▲            (relation cache,
//!                              wire::Options       marker trigger)
//! ```
//!
//! A row that SQL passes (`postbox._frame`) goes the same way from `row` on, see [`frame`].
//!
//! Everything that touches PostgreSQL's memory lies in [`pg`]; the rest is safe Rust.

#[cfg(not(panic = "unwind"))]
compile_error!("a panic has to become an ERROR; with panic=abort it would restart the whole cluster");

mod callbacks;
mod decode;
mod emit;
mod frame;
#[allow(unsafe_code, reason = "the one fenced place: every wrapper states what it relies on")]
mod pg;
mod publish;
mod route;
mod row;
mod session;

pgrx::pg_module_magic!();
