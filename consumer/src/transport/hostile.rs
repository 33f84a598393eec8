//! Entry points for fuzzers: what a hostile peer or a hostile user can hand to this crate. Not part of the interface.

use std::hint::black_box;

use tokio::io::{join, sink};

use super::auth::{Credentials, log_in};
use super::conninfo::ConnInfo;
use super::copy::of_stream;
use super::identity::Shown;
use super::link::Link;
use super::refusal::About;
pub use crate::pgoutput::hostile::{as_dead_letter, events_of};

/// Reads a connection string, with nothing in the environment and no files: what is behind a zero byte is what every file holds.
pub fn connection_string(text: &str) {
    let (string, file) = text.split_once('\0').unwrap_or((text, ""));
    let _ = black_box(ConnInfo::from_sources(Some(string), &|_| Ok(None), &|_| Ok(file.into())));
}

/// Logs in to a server that says this, whatever it is told. What it says of SCRAM is read up to the nonce, which it cannot know.
pub async fn login_bytes(bytes: &[u8]) {
    let info = ConnInfo::from_sources(Some("host=h user=u password=p"), &|_| Ok(None), &|_| Ok(Vec::new()));
    let info = info.expect("a connection string");
    let credentials = Credentials {
        user: info.user(),
        password: info.password(&info.hosts[0]),
        clear_text: true,
        end_point: Some(b"certificate".to_vec()),
        channel_binding: info.channel_binding,
        methods: &info.methods,
        certificate: (info.tls.identity.mode, Shown::Unasked),
    };
    let mut link = Link::new(join(bytes, sink()), About::default());
    let _ = black_box(log_in(&mut link, &[("user", info.user())], credentials).await);
}

/// Reads what a server sends in a stream, up to the first error or the end.
pub async fn server_bytes(bytes: &[u8]) {
    let mut link = Link::new(join(bytes, sink()), About::default());
    link.trust_sizes();
    while let Ok(message) = link.recv().await {
        let _ = black_box(of_stream(message));
    }
}
