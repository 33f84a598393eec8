//! stub
pub mod error;
pub mod transport;
pub mod slot;
