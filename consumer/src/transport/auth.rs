//! From the startup message to the first ReadyForQuery: who we are, and the proof.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use super::conninfo::{CertMode, ChannelBinding, Method, Methods, Password};
use super::identity::Shown;
use super::link::{Link, Message};
use crate::error::{Error, ErrorKind, Result};

/// What a login needs.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<Password>,
    /// Whether the password may go over the link as it is: nobody on the way can read it, or whoever gave it says so.
    pub(super) clear_text: bool,
    /// What the login can be bound to, over TLS.
    pub(super) end_point: Option<Vec<u8>>,
    pub(super) channel_binding: ChannelBinding,
    /// What the server may ask for.
    pub(super) methods: &'a Methods,
    /// Whether a client certificate has to have been shown, and whether it was.
    pub(super) certificate: (CertMode, Shown),
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
        if let Err(broken) = self.link.flush().await {
            // What the server said before it hung up tells more.
            return Err(self.link.recv().await.err().unwrap_or(broken));
        }
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
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        "the server does not speak version 3.0 of the protocol",
                    ));
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
        // One proof is enough: a second demand, for a weaker one, cannot come from an honest server.
        if matches!(code, 3 | 5 | 10) && !matches!(self.state, State::Unproved) {
            return Err(unexpected(b'R'));
        }
        let (method, wanted) = match code {
            3 => (Some(Method::Password), "the password in clear text"),
            5 => (Some(Method::Md5), "an MD5 hash of the password"),
            10 => (Some(Method::Scram), "SCRAM"),
            _ => (None, ""),
        };
        if method.is_some_and(|method| !self.credentials.methods.allow(method)) {
            return Err(self.forbidden(&format!("the server wants {wanted}")));
        }
        match code {
            // Clear text.
            3 => {
                if !self.credentials.clear_text {
                    return Err(Error::new(
                        ErrorKind::Login,
                        "the server wants the password in clear text over a link that is not encrypted",
                    )
                    .with_hint(
                        "Use sslmode=require or better, or let the server ask for scram-sha-256 in pg_hba.conf. \
                         sslmode=disable together with require_auth=password sends it all the same.",
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
                    6 => "SCM credentials",
                    _ => "an unknown method",
                };
                return Err(Error::new(
                    ErrorKind::Login,
                    format!("the server wants authentication by {method} (code {other}), which is not supported"),
                )
                .with_hint("Let pg_hba.conf ask this role for scram-sha-256 or cert."));
            }
        }
        self.link.flush().await
    }

    fn begin_scram(&mut self, body: &[u8]) -> Result<()> {
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
                let names = offered.iter().filter(|name| !name.is_empty()).map(|name| String::from_utf8_lossy(name));
                let names = names.map(|name| name.escape_debug().to_string()).collect::<Vec<_>>().join(", ");
                return Err(Error::new(
                    ErrorKind::Login,
                    format!("the server offers no mechanism of SASL that is supported, only: {names}"),
                )
                .with_hint(
                    "Supported are SCRAM-SHA-256 and, over TLS, SCRAM-SHA-256-PLUS; not OAuth. Let pg_hba.conf ask \
                     this role for scram-sha-256 or cert.",
                ));
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
        if let (CertMode::Require, shown @ (Shown::Unasked | Shown::Withheld)) = self.credentials.certificate {
            let what = match shown {
                Shown::Unasked => "the server has not asked for a client certificate",
                _ => "the server takes no certificate of this kind of key",
            };
            return Err(Error::new(ErrorKind::Login, format!("sslcertmode=require, and {what}")).with_hint(
                "Certificates need TLS, and ssl_ca_file on the server with the authority that issued them.",
            ));
        }
        match self.state {
            State::Scram { .. } => Err(Error::new(
                ErrorKind::Protocol,
                "the server ended SCRAM without proving that it knows the password",
            )),
            State::Unproved if !self.credentials.methods.allow(Method::None) => {
                Err(self.forbidden("the server has asked for no proof"))
            }
            State::Unproved | State::Proved { bound: false }
                if self.credentials.channel_binding == ChannelBinding::Require =>
            {
                Err(not_bound())
            }
            State::Unproved | State::Proved { .. } => Ok(()),
        }
    }

    fn forbidden(&self, what: &str) -> Error {
        Error::new(ErrorKind::Login, format!("{what}, and {} forbids it", self.credentials.methods))
            .with_hint("Is it the right server? If so, change what pg_hba.conf asks this role for, or require_auth.")
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

#[cfg(test)]
mod tests {
    use super::super::conninfo::ConnInfo;
    use super::super::refusal::About;
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    fn request(code: u32, rest: &[u8]) -> Vec<u8> {
        message(b'R', &[&code.to_be_bytes(), rest].concat())
    }

    fn ready() -> Vec<u8> {
        [request(0, b""), message(b'S', b"in_hot_standby\0off\0"), message(b'K', &[0; 8]), message(b'Z', b"I")].concat()
    }

    /// Logs in with the password `secret` to a server that says `says` whatever it is told; returns what it was told.
    async fn log_in_to(
        says: Vec<u8>,
        clear_text: bool,
        binding: ChannelBinding,
    ) -> (Result<Greeting, Failure>, Vec<u8>) {
        log_in_with("", says, clear_text, binding).await
    }

    /// As [`log_in_to`], with more settings.
    async fn log_in_with(
        settings: &str,
        says: Vec<u8>,
        clear_text: bool,
        binding: ChannelBinding,
    ) -> (Result<Greeting, Failure>, Vec<u8>) {
        let (ours, mut server) = duplex(1 << 16);
        let info = ConnInfo::parse(&format!("user=u password=secret host=h {settings}")).expect("read");
        let credentials = Credentials {
            user: "u",
            password: info.password(&info.hosts[0]),
            clear_text,
            end_point: None,
            channel_binding: binding,
            methods: &info.methods,
            certificate: (info.tls.identity.mode, Shown::Unasked),
        };
        server.write_all(&says).await.expect("sent");
        server.shutdown().await.expect("ended");
        let mut link = Link::new(ours, About::default());
        let result = log_in(&mut link, &[("user", "u")], credentials).await;
        drop(link);
        let mut told = Vec::new();
        server.read_to_end(&mut told).await.expect("read");
        (result, told)
    }

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[tokio::test]
    async fn a_password_goes_in_clear_text_over_private_links_only() {
        let says = [request(3, b""), ready()].concat();
        let (result, told) = log_in_to(says.clone(), true, ChannelBinding::Prefer).await;
        assert_eq!(result.expect("logged in").parameter("in_hot_standby"), Some("off"));
        assert!(contains(&told, b"secret\0"));

        let (result, told) = log_in_to(says, false, ChannelBinding::Prefer).await;
        let failure = result.expect_err("refused");
        assert_eq!((failure.error.kind(), failure.unasked), (ErrorKind::Login, false));
        assert!(!contains(&told, b"secret"));
    }

    #[tokio::test]
    async fn md5_sends_the_hash() {
        let (result, told) =
            log_in_to([request(5, &[1, 2, 3, 4]), ready()].concat(), false, ChannelBinding::Prefer).await;
        result.expect("logged in");
        assert!(contains(&told, md5_hash(b"u", b"secret", [1, 2, 3, 4]).as_bytes()));
        assert!(!contains(&told, b"secret"));
    }

    #[tokio::test]
    async fn a_server_that_skips_its_own_proof_is_refused() {
        let (result, _) =
            log_in_to([request(10, b"SCRAM-SHA-256\0\0"), ready()].concat(), false, ChannelBinding::Prefer).await;
        assert_eq!(result.expect_err("refused").error.kind(), ErrorKind::Protocol);
    }

    #[tokio::test]
    async fn a_second_demand_for_proof_is_refused() {
        for second in [request(3, b""), request(5, &[0; 4]), request(10, b"SCRAM-SHA-256\0\0")] {
            let says = [request(10, b"SCRAM-SHA-256\0\0"), second, ready()].concat();
            let (result, told) = log_in_to(says, true, ChannelBinding::Prefer).await;
            assert_eq!(result.expect_err("refused").error.kind(), ErrorKind::Protocol);
            assert!(!contains(&told, b"secret"));
        }
    }

    #[tokio::test]
    async fn channel_binding_that_is_required_is_not_given_up() {
        for says in [ready(), [request(3, b""), ready()].concat(), request(10, b"SCRAM-SHA-256\0\0")] {
            let (result, _) = log_in_to(says, true, ChannelBinding::Require).await;
            let error = result.expect_err("refused").error;
            assert!(error.to_string().contains("channel_binding=require"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_method_that_is_not_allowed_learns_nothing() {
        let (clear, md5, scram) = (request(3, b""), request(5, &[0; 4]), request(10, b"SCRAM-SHA-256\0\0"));
        for (required, says) in [
            ("scram-sha-256", clear.clone()),
            ("scram-sha-256", md5.clone()),
            ("scram-sha-256", Vec::new()),
            ("password", scram.clone()),
            ("!none", Vec::new()),
            ("!md5,!password", clear),
            ("none", md5),
        ] {
            let asked = !says.is_empty();
            let says = [says, ready()].concat();
            let (result, told) =
                log_in_with(&format!("require_auth={required}"), says, true, ChannelBinding::Prefer).await;
            let error = result.expect_err(required).error;
            assert_eq!(error.kind(), ErrorKind::Login, "{required}: {error}");
            assert!(error.to_string().contains(&format!("require_auth={required}")), "{error}");
            // The startup message, and nothing in answer.
            assert!(!asked || told.len() == 4 + 4 + b"user\0u\0\0".len(), "{required}: {told:?}");
        }
        let (result, _) = log_in_with("require_auth=none", ready(), false, ChannelBinding::Prefer).await;
        result.expect("logged in");
        let (result, _) = log_in_with("sslcertmode=require", ready(), false, ChannelBinding::Prefer).await;
        let error = result.expect_err("refused").error;
        assert!(error.to_string().contains("has not asked for a client certificate"), "{error}");
    }

    #[tokio::test]
    async fn other_methods_are_named() {
        for (code, name) in [(2, "Kerberos"), (6, "SCM"), (7, "GSSAPI"), (9, "SSPI"), (77, "77")] {
            let (result, _) = log_in_to(request(code, b""), true, ChannelBinding::Prefer).await;
            let error = result.expect_err("refused").error;
            assert_eq!(error.kind(), ErrorKind::Login);
            assert!(error.to_string().contains(name), "{error}");
        }
        let (result, _) = log_in_to(request(10, b"OAUTHBEARER\0\0"), true, ChannelBinding::Prefer).await;
        let error = result.expect_err("refused").error;
        assert_eq!(error.kind(), ErrorKind::Login);
        assert!(error.to_string().contains("OAUTHBEARER"), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_before_any_request_is_told_apart() {
        let refusal = message(b'E', b"C28000\0Mno pg_hba.conf entry\0\0");
        let (result, _) = log_in_to(refusal.clone(), true, ChannelBinding::Prefer).await;
        assert!(result.expect_err("refused").unasked);
        let (result, _) = log_in_to([request(3, b""), refusal].concat(), true, ChannelBinding::Prefer).await;
        assert!(!result.expect_err("refused").unasked);
    }

    proptest! {
        #[test]
        fn hostile_servers_do_no_harm(
            code in prop_oneof![Just(0), Just(3), Just(5), Just(10), Just(11), Just(12), any::<u32>()],
            rest in prop::collection::vec(any::<u8>(), 0..40),
            then in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'R')], 0..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let says = [request(10, b"SCRAM-SHA-256\0\0"), request(code, &rest), then.clone()].concat();
            assert!(runtime.block_on(log_in_to(says, true, ChannelBinding::Prefer)).0.is_err());
            let _ = runtime.block_on(log_in_to([request(code, &rest), then].concat(), true, ChannelBinding::Prefer));
        }
    }
}
