//! Entry points for fuzzers: what a hostile peer or a hostile user can hand to this crate. Not part of the interface.

use std::hint::black_box;

use tokio::io::{join, sink};

use super::conninfo::ConnInfo;
use super::copy::of_stream;
use super::link::Link;
use super::refusal::About;

/// Reads a connection string, with nothing in the environment. Those that name files are left out: files are not what is
/// tried here.
pub fn connection_string(text: &str) {
    if text.contains("service") || text.contains("file") {
        return;
    }
    let _ = black_box(ConnInfo::from_sources(Some(text), &|_| Ok(None)));
}

/// Reads what a server sends in a stream, up to the first error or the end.
pub async fn server_bytes(bytes: &[u8]) {
    let mut link = Link::new(join(bytes, sink()), About::default());
    link.trust_sizes();
    while let Ok(message) = link.recv().await {
        let _ = black_box(of_stream(message));
    }
}
