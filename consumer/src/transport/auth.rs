//! From the startup message to the first ReadyForQuery: who we are, and the proof.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use super::conninfo::{ChannelBinding, Password};
use super::link::{Link, Message};
use crate::error::{Error, ErrorKind, Result};

/// What a login needs.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<Password>,
    /// Whether nobody on the way can read the link.
    pub(super) private: bool,
    /// What the login can be bound to, over TLS.
    pub(super) end_point: Option<Vec<u8>>,
    pub(super) channel_binding: ChannelBinding,
}

/// What the server said at the end of a successful login.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// The messages that follow AuthenticationOk, up to and with ReadyForQuery, as they were sent.
    pub(super) messages: BytesMut,
    /// The server's settings, as it reports them.
    parameters: Vec<(String, String)>,
}

impl Greeting {
    /// A setting, if the server reports it.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A login that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Why.
    pub(super) error: Error,
    /// Whether it failed before the server had asked for anything. The server may then let the same login in over a
    /// link that is, or is not, encrypted; later it is the proof that was wrong.
    pub(super) unasked: bool,
}

/// Sends the startup message with `parameters`, and logs in.
pub(super) async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    parameters: &[(&str, &str)],
    credentials: Credentials<'_>,
) -> Result<Greeting, Failure> {
    let mut login = Login { link, credentials, asked: false, state: State::Unproved };
    match login.run(parameters).await {
        Ok(greeting) => Ok(greeting),
        Err(error) => Err(Failure { error, unasked: !login.asked }),
    }
}

struct Login<'a, S> {
    link: &'a mut Link<S>,
    credentials: Credentials<'a>,
    asked: bool,
    state: State,
}

/// How far the exchange has come.
enum State {
    /// No proof was asked for yet.
    Unproved,
    /// SCRAM runs.
    Scram { exchange: ScramSha256, bound: bool },
    /// The proof was sent; with SCRAM the server has proved itself as well.
    Proved { bound: bool },
}

impl<S: AsyncRead + AsyncWrite + Unpin> Login<'_, S> {
    async fn run(&mut self, parameters: &[(&str, &str)]) -> Result<Greeting> {
        frontend::startup_message(parameters.iter().copied(), self.link.outbox()).map_err(unusable)?;
        self.link.flush().await?;
        loop {
            let mut message = self.link.recv().await?;
            match message.tag {
                b'R' => {
                    self.asked = true;
                    let code = message.body.try_get_i32().map_err(|_| unexpected(b'R'))?;
                    if code == 0 {
                        break;
                    }
                    self.answer(code, message.body).await?;
                }
                b'v' => {
                    return Err(Error::new(ErrorKind::Protocol, "the server does not speak version 3.0 of the protocol"));
                }
                tag => return Err(unexpected(tag)),
            }
        }
        self.check_proof()?;
        self.link.trust_sizes();
        self.greeting().await
    }

    /// Answers a demand for proof.
    async fn answer(&mut self, code: i32, mut body: Bytes) -> Result<()> {
        match code {
            // Clear text.
            3 => {
                if !self.credentials.private {
                    return Err(Error::new(
                        ErrorKind::Login,
                        "the server wants the password in clear text over a link that is not encrypted",
                    )
                    .with_hint(
                        "Use sslmode=require or better, or let the server ask for scram-sha-256 in pg_hba.conf.",
                    ));
                }
                let password = self.password()?;
                frontend::password_message(password.bytes(), self.link.outbox()).map_err(unusable)?;
                self.state = State::Proved { bound: false };
            }
            // MD5.
            5 => {
                let mut salt = [0; 4];
                body.try_copy_to_slice(&mut salt).map_err(|_| unexpected(b'R'))?;
                let password = self.password()?;
                let proof = md5_hash(self.credentials.user.as_bytes(), password.bytes(), salt);
                frontend::password_message(proof.as_bytes(), self.link.outbox()).map_err(unusable)?;
                self.state = State::Proved { bound: false };
            }
            10 => self.begin_scram(&body)?,
            11 => {
                let State::Scram { exchange, .. } = &mut self.state else { return Err(unexpected(b'R')) };
                exchange.update(&body).map_err(scram_broken)?;
                frontend::sasl_response(exchange.message(), self.link.outbox()).map_err(unusable)?;
            }
            12 => {
                let State::Scram { exchange, bound } = &mut self.state else { return Err(unexpected(b'R')) };
                exchange.finish(&body).map_err(scram_broken)?;
                self.state = State::Proved { bound: *bound };
            }
            other => {
                let method = match other {
                    2 => "Kerberos V5",
                    7 | 8 => "GSSAPI",
                    9 => "SSPI",
                    _ => "an unknown method",
                };
                return Err(Error::new(
                    ErrorKind::Login,
                    format!("the server wants authentication by {method} (code {other}), which is not supported"),
                )
                .with_hint("Let pg_hba.conf ask for scram-sha-256 from this client."));
            }
        }
        self.link.flush().await
    }

    fn begin_scram(&mut self, body: &[u8]) -> Result<()> {
        if !matches!(self.state, State::Unproved) {
            return Err(unexpected(b'R'));
        }
        let offered = body.split(|byte| *byte == 0).collect::<Vec<_>>();
        let offers = |mechanism: &str| offered.contains(&mechanism.as_bytes());
        let end_point = match self.credentials.channel_binding {
            ChannelBinding::Disable => None,
            ChannelBinding::Prefer | ChannelBinding::Require => self.credentials.end_point.take(),
        };
        let (mechanism, binding, bound) = match end_point {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash), true)
            }
            // Says that we could have: if somebody on the way took the offer out, the server notices.
            Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
            _ => {
                return Err(Error::new(ErrorKind::Login, "the server offers no mechanism of SASL that is supported")
                    .with_hint("Supported are SCRAM-SHA-256 and, over TLS, SCRAM-SHA-256-PLUS."));
            }
        };
        if !bound && self.credentials.channel_binding == ChannelBinding::Require {
            return Err(not_bound());
        }
        let exchange = ScramSha256::new(self.password()?.bytes(), binding);
        frontend::sasl_initial_response(mechanism, exchange.message(), self.link.outbox()).map_err(unusable)?;
        self.state = State::Scram { exchange, bound };
        Ok(())
    }

    /// A server that says "welcome" has not necessarily seen the proof, nor given its own.
    fn check_proof(&self) -> Result<()> {
        match self.state {
            State::Scram { .. } => {
                Err(Error::new(ErrorKind::Protocol, "the server ended SCRAM without proving that it knows the password"))
            }
            State::Unproved | State::Proved { bound: false }
                if self.credentials.channel_binding == ChannelBinding::Require =>
            {
                Err(not_bound())
            }
            State::Unproved | State::Proved { .. } => Ok(()),
        }
    }

    async fn greeting(&mut self) -> Result<Greeting> {
        let mut greeting = Greeting::default();
        loop {
            let message = self.link.recv().await?;
            let Message { tag, body } = &message;
            greeting.messages.put_u8(*tag);
            greeting.messages.put_u32(u32::try_from(body.len() + 4).map_err(|_| unexpected(*tag))?);
            greeting.messages.put_slice(body);
            match tag {
                b'S' => {
                    let mut strings = body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
                    if let (Some(name), Some(value)) = (strings.next(), strings.next()) {
                        greeting.parameters.push((name.into_owned(), value.into_owned()));
                    }
                }
                b'K' => {}
                b'Z' => return Ok(greeting),
                tag => return Err(unexpected(*tag)),
            }
        }
    }

    fn password(&self) -> Result<Password> {
        self.credentials.password.clone().ok_or_else(|| {
            Error::new(
                ErrorKind::Login,
                format!("the server wants a password for role \"{}\", and none is given", self.credentials.user),
            )
            .with_hint("Give one in PGPASSWORD, in the password file (~/.pgpass) or in the connection string.")
        })
    }
}

fn not_bound() -> Error {
    Error::new(ErrorKind::Login, "channel_binding=require, and the login cannot be bound to the TLS session")
        .with_hint("It needs TLS, and a server that asks for scram-sha-256.")
}

fn scram_broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Login, "the server's part of the SCRAM exchange is wrong; it may not know the password")
        .with_source(error)
}

fn unusable(error: io::Error) -> Error {
    Error::new(ErrorKind::Usage, "a connection setting contains a zero byte or is too long").with_source(error)
}

fn unexpected(tag: u8) -> Error {
    Error::new(ErrorKind::Protocol, format!("unexpected or malformed message of type 0x{tag:02x} during the login"))
        .with_hint("Is it a PostgreSQL server that listens there?")
}
