//! TLS by libpq's rules: asking the server for it, and what its certificate must prove.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::crypto::{ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::conninfo::{Host, Place, Revoked, Roots, SslMode, Tls};
use super::identity::{self, Answer};
use super::{certificate, revocation};
use crate::error::{Error, ErrorKind, Result};

/// The protocol's name in the handshake, by which a proxy can tell it from others on the same port.
const ALPN: &[u8] = b"postgresql";

/// Asks the server for TLS; false if it has none.
pub(super) async fn request(stream: &mut TcpStream) -> Result<bool> {
    let mut message = BytesMut::new();
    frontend::ssl_request(&mut message);
    let lost = |error: io::Error| {
        Error::new(ErrorKind::Connect, "the link broke while the server was asked for TLS").with_source(error)
    };
    stream.write_all(&message).await.map_err(lost)?;
    // Exactly one byte is read: whatever somebody on the way appends to it goes into the handshake and fails there.
    match stream.read_u8().await.map_err(lost)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // A server that cannot start a process for us answers with an error, whose text nobody vouches for.
        b'E' => Err(Error::new(ErrorKind::Server, "the server answered the request for TLS with an error")
            .with_hint("The server's log says why.")),
        other => Err(Error::new(
            ErrorKind::Protocol,
            format!("the server answered the request for TLS with byte 0x{other:02x}"),
        )
        .with_hint("Is it a PostgreSQL server that listens on this port?")),
    }
}

/// Does the handshake with the `config` for `tls`, and checks the certificate as far as that demands.
pub(super) async fn handshake(
    stream: TcpStream,
    host: &Host,
    tls: &Tls,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let name = server_name(&stream, host, tls)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| failure(error, host, tls))?;
    if tls.direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(Error::new(ErrorKind::Tls, format!("{host} does not speak PostgreSQL's protocol over direct TLS"))
            .with_hint("sslnegotiation=direct needs PostgreSQL 17; leave it out for older servers."));
    }
    Ok(stream)
}

/// What a login over this stream can be bound to.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let certificates = stream.get_ref().1.peer_certificates()?;
    certificate::end_point(certificates.first()?)
}

/// How to do the handshake, and what will tell whether a client certificate was shown. Files are read anew for every
/// connection, as they may have been replaced.
pub(super) fn config(tls: &Tls) -> Result<(Arc<ClientConfig>, Arc<Answer>)> {
    let provider = Arc::new(ring::default_provider());
    let answer = Arc::new(Answer::new(identity::load(&tls.identity, &provider)?));
    let verifier = Verifier {
        chain: chain(tls, &provider)?,
        check_name: tls.mode == SslMode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let versions = [(tls.versions.tls13, &TLS13), (tls.versions.tls12, &TLS12)];
    let versions = versions.iter().filter(|(wanted, _)| *wanted).map(|(_, version)| *version).collect::<Vec<_>>();
    // The provider is given here because a library must not choose one for the whole process.
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| Error::new(ErrorKind::Other, "TLS cannot be set up").with_source(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(answer.clone());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = tls.sni;
    Ok((Arc::new(config), answer))
}

/// The name that the certificate must carry and that is sent along.
fn server_name(stream: &TcpStream, host: &Host, tls: &Tls) -> Result<ServerName<'static>> {
    let name = match &host.place {
        Place::Name(name) | Place::Address { name: Some(name), .. } => ServerName::try_from(name.clone()).ok(),
        Place::Address { addr, name: None } => Some(ServerName::from(*addr)),
        Place::Default => ServerName::try_from("localhost").ok(),
        Place::SocketDir(_) => None,
    };
    match name {
        Some(name) => Ok(name),
        None if tls.mode == SslMode::VerifyFull => {
            Err(Error::new(ErrorKind::Usage, format!("{host} is not a name that a certificate can carry")))
        }
        // Resolvers take names that certificates cannot carry; the address then serves where no name is checked.
        None => {
            let peer = stream.peer_addr().map_err(|error| failure(error, host, tls))?;
            Ok(ServerName::from(peer.ip()))
        }
    }
}

/// The authorities that the operating system trusts, or those in `SSL_CERT_FILE`.
pub(crate) fn trusted_by_system() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "the operating system has no trusted authorities")
            .with_hint("Install them (Debian: ca-certificates), or name a file in SSL_CERT_FILE."));
    }
    Ok(found)
}

/// The authorities to check the certificate against; nothing if it is not to be checked.
fn authorities(tls: &Tls) -> Result<Option<Vec<CertificateDer<'static>>>> {
    let file = match &tls.roots {
        Roots::System => {
            return trusted_by_system().map(Some).map_err(|error| {
                error.with_hint(
                    "Install them (Debian: ca-certificates), or name a file in sslrootcert or SSL_CERT_FILE.",
                )
            });
        }
        Roots::File(file) => file,
        Roots::UserFile(Some(file)) if file.exists() => file,
        Roots::UserFile(_) if tls.mode < SslMode::VerifyCa => return Ok(None),
        Roots::UserFile(file) => {
            let file = file.as_ref().map_or("~/.postgresql/root.crt".into(), |file| file.display().to_string());
            return Err(Error::new(ErrorKind::Usage, format!("root certificate file {file} does not exist"))
                .with_hint(
                    "Name the authority's certificate in sslrootcert, or use the system's: sslrootcert=system.",
                ));
        }
    };
    let unreadable = |error: pem::Error| {
        Error::new(ErrorKind::Usage, format!("root certificate file {} cannot be read", file.display()))
            .with_hint("sslrootcert names a file with the authority's certificate in PEM: -----BEGIN CERTIFICATE-----.")
            .with_source(error)
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(unreadable)?.collect::<Result<Vec<_>, _>>();
    certificates.map(Some).map_err(unreadable)
}

/// What the certificate's chain is checked against; nothing if it is not to be checked.
fn chain(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Option<Chain>> {
    let Some(exact) = authorities(tls)? else {
        return match &tls.revoked {
            Revoked::UserFile(_) => Ok(None),
            Revoked::Named { .. } => Err(Error::new(
                ErrorKind::Usage,
                "revocation lists are given, and no authority to check certificates by",
            )
            .with_hint("Name the authority's certificate in sslrootcert, or leave out sslcrl and sslcrldir.")),
        };
    };
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(exact.iter().cloned());
    if store.is_empty() {
        return Err(Error::new(ErrorKind::Usage, format!("{} holds no usable certificate", described(&tls.roots)))
            .with_hint("It must be in PEM: -----BEGIN CERTIFICATE-----."));
    }
    // As with OpenSSL a list that is out of date, or missing for one of the authorities, is not good enough.
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .with_crls(revocation::load(&tls.revoked)?)
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| Error::new(ErrorKind::Usage, "a revocation list cannot be used").with_source(error))?;
    Ok(Some(Chain { verifier, exact }))
}

/// Authorities and what they have revoked, and the certificates as they were given.
struct Chain {
    verifier: Arc<WebPkiServerVerifier>,
    exact: Vec<CertificateDer<'static>>,
}

/// Checks the server's certificate.
struct Verifier {
    chain: Option<Chain>,
    check_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(Chain { verifier, exact }) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked last, so that the chain is known to be right here.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.check_name => {}
            // A self-signed certificate that is its own authority, as `openssl req -x509` makes it, is refused only
            // because it may sign others. Being the very one that was given, it is trusted; were it out of date, the
            // error would be another.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if exact.contains(end_entity) => {
                if self.check_name {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
            }
            other => return other,
        }
        Ok(ServerCertVerified::assertion())
    }

    // The signature is checked even where the certificate is not: channel binding rests on the server holding the key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("check_name", &self.check_name).finish_non_exhaustive()
    }
}

/// Says what a failed handshake means.
fn failure(error: io::Error, host: &Host, tls: &Tls) -> Error {
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Error::new(ErrorKind::Connect, format!("the link to {host} broke in the TLS handshake"))
            .with_source(error);
    };
    let (message, hint) = match cause {
        rustls::Error::InvalidCertificate(problem) => certificate_failure(problem, host, tls),
        rustls::Error::AlertReceived(alert) => alerted(*alert, host),
        rustls::Error::PeerIncompatible(_) => (
            format!("{host} and this client have no version or cipher of TLS in common"),
            "Here there are TLSv1.2 and TLSv1.3, as far as ssl_min_protocol_version and ssl_max_protocol_version allow."
                .to_owned(),
        ),
        _ => (format!("the TLS handshake with {host} failed"), "The server's log may say why.".to_owned()),
    };
    Error::new(ErrorKind::Tls, message).with_hint(hint).with_source(error)
}

/// An error of the login, or what the server's TLS has said about it: in TLS 1.3 the handshake is over for the client
/// when the server looks at the client's certificate.
pub(super) fn late_failure(error: Error, host: &Host) -> Error {
    let cause = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    let cause = cause.and_then(|error| error.get_ref()).and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = cause else { return error };
    let (message, hint) = alerted(*alert, host);
    Error::new(ErrorKind::Tls, message).with_hint(hint)
}

fn alerted(alert: AlertDescription, host: &Host) -> (String, String) {
    use AlertDescription as Alert;
    match alert {
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::CertificateRequired
        | Alert::DecryptError => (
            format!("{host} does not take the client certificate: {alert:?}"),
            "The certificate in sslcert must be valid, and issued by an authority in ssl_ca_file of the server; its \
             log says more."
                .to_owned(),
        ),
        Alert::ProtocolVersion | Alert::HandshakeFailure => (
            format!("{host} ended the TLS handshake: {alert:?}"),
            "Client and server have no version or cipher of TLS in common; see ssl_min_protocol_version and \
             ssl_max_protocol_version on both sides."
                .to_owned(),
        ),
        _ => (format!("{host} ended the TLS handshake: {alert:?}"), "The server's log may say why.".to_owned()),
    }
}

/// The authorities, for messages.
fn described(roots: &Roots) -> String {
    match roots {
        Roots::System => "the operating system's authorities".to_owned(),
        Roots::File(file) | Roots::UserFile(Some(file)) => file.display().to_string(),
        Roots::UserFile(None) => "~/.postgresql/root.crt".to_owned(),
    }
}

fn certificate_failure(problem: &CertificateError, host: &Host, tls: &Tls) -> (String, String) {
    let roots = described(&tls.roots);
    match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            format!("no authority in {roots} has issued the certificate of {host}"),
            "Name the file with the issuing authority's certificate in sslrootcert.".to_owned(),
        ),
        CertificateError::NotValidForName => (
            format!("the certificate of {host} carries another name"),
            "Connect by a name in its subjectAltName, or use sslmode=verify-ca.".to_owned(),
        ),
        CertificateError::NotValidForNameContext { expected, presented } => (
            match presented.as_slice() {
                [] => format!("the certificate of {host} carries no name in subjectAltName"),
                names => format!("the certificate is for {}, not for {}", plain(names), expected.to_str()),
            },
            "Connect by a name in its subjectAltName, or use sslmode=verify-ca.".to_owned(),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            format!("the certificate of {host} has expired"),
            "Renew it on the server, or set this machine's clock.".to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (format!("the certificate of {host} is not valid yet"), "Set this machine's clock.".to_owned())
        }
        CertificateError::Revoked => {
            (format!("the certificate of {host} has been revoked"), "Install another one on the server.".to_owned())
        }
        CertificateError::UnknownRevocationStatus => (
            format!("no revocation list is of the authority that has issued the certificate of {host}"),
            "Add that authority's list to sslcrl or sslcrldir.".to_owned(),
        ),
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => (
            "a revocation list is out of date".to_owned(),
            "Get a new one from the authority for sslcrl or sslcrldir.".to_owned(),
        ),
        _ => (
            format!("the certificate of {host} cannot be used"),
            "It must be an X.509 version 3 certificate for server authentication, with the host in subjectAltName."
                .to_owned(),
        ),
    }
}

/// The names of a certificate without the types that are printed around them: `DnsName("a")` is `a`.
fn plain(names: &[String]) -> String {
    let bare = names.iter().map(|name| {
        let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"')
    });
    bare.collect::<Vec<_>>().join(", ")
}
