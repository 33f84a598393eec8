//! The client's certificate: read by libpq's rules, and shown to a server that asks for one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::conninfo::{CertMode, Identity, Password, UserFile};
use crate::error::{Error, ErrorKind, Result};

/// What became of the client's certificate in a handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shown {
    /// The server did not ask for one.
    #[default]
    Unasked,
    /// The server asked, and there was none that it would take.
    Withheld,
    /// The server has got it.
    Given,
}

/// Answers the server's request, and remembers how.
#[derive(Debug)]
pub(super) struct Answer {
    certificate: Option<Arc<CertifiedKey>>,
    shown: OnceLock<Shown>,
}

impl Answer {
    pub(super) fn new(certificate: Option<CertifiedKey>) -> Self {
        Self { certificate: certificate.map(Arc::new), shown: OnceLock::new() }
    }

    /// How it was, once the handshake is done.
    pub(super) fn shown(&self) -> Shown {
        self.shown.get().copied().unwrap_or_default()
    }
}

impl ResolvesClientCert for Answer {
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // As in libpq the names of the authorities that the server knows are not looked at: it decides.
        let usable = self.certificate.as_ref().filter(|certified| certified.key.choose_scheme(schemes).is_some());
        let _ = self.shown.set(if usable.is_some() { Shown::Given } else { Shown::Withheld });
        usable.cloned()
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

/// Reads the certificate and its key, if there is one to show.
pub(super) fn load(identity: &Identity, provider: &CryptoProvider) -> Result<Option<CertifiedKey>> {
    if identity.mode == CertMode::Disable {
        return Ok(None);
    }
    let Some(file) = existing(&identity.certificate)? else {
        return match identity.mode {
            CertMode::Require => {
                Err(Error::new(ErrorKind::Usage, "sslcertmode=require, and there is no client certificate").with_hint(
                    "Name it in sslcert and its key in sslkey, or put them into ~/.postgresql/postgresql.crt and .key.",
                ))
            }
            CertMode::Allow | CertMode::Disable => Ok(None),
        };
    };
    let wrong = |what: &str| Error::new(ErrorKind::Usage, format!("client certificate file {} {what}", file.display()));
    let pem = fs::read(file).map_err(|error| wrong("cannot be read").with_source(error))?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| wrong("is not in PEM").with_source(error))?;
    if chain.is_empty() {
        return Err(wrong("holds no certificate").with_hint("It must be in PEM: -----BEGIN CERTIFICATE-----."));
    }

    let (UserFile::Named(key) | UserFile::Default(Some(key))) = &identity.key else {
        return Err(wrong("has no key: no file is named").with_hint("Name the key's file in sslkey."));
    };
    let certified = CertifiedKey::from_der(chain, read_key(key, identity.password.as_ref())?, provider);
    certified.map(Some).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong(&format!("does not go with the private key in {}", key.display()))
            .with_hint("Name the key that the certificate was issued for in sslkey."),
        error => Error::new(ErrorKind::Usage, format!("private key file {} cannot be used", key.display()))
            .with_hint("Supported are RSA from 2048 bits, ECDSA on P-256 and P-384, and Ed25519.")
            .with_source(error),
    })
}

/// The file, unless it is the default one and is not there. One that may be there and cannot be looked at is an error.
fn existing(file: &UserFile) -> Result<Option<&Path>> {
    let (UserFile::Named(path) | UserFile::Default(Some(path))) = file else { return Ok(None) };
    let wrong = |what: &str| Error::new(ErrorKind::Usage, format!("client certificate file {} {what}", path.display()));
    let exists = match path.try_exists() {
        // A home of /dev/null, as daemons have it.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => result,
    };
    const REMEDY: &str = "Name another one in sslcert, or use none: sslcertmode=disable.";
    match (exists, file) {
        (Ok(true), _) => Ok(Some(path)),
        (Ok(false), UserFile::Default(_)) => Ok(None),
        (Ok(false), UserFile::Named(_)) => Err(wrong("does not exist").with_hint(REMEDY)),
        (Err(error), _) => Err(wrong("cannot be looked at").with_hint(REMEDY).with_source(error)),
    }
}

fn read_key(file: &PathBuf, password: Option<&Password>) -> Result<PrivateKeyDer<'static>> {
    let wrong = |what: &str| Error::new(ErrorKind::Usage, format!("private key file {} {what}", file.display()));
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => wrong("does not exist, and there is a client certificate")
            .with_hint("Name the certificate's key in sslkey, or send no certificate: sslcertmode=disable."),
        _ => wrong("cannot be read").with_source(error),
    };
    let mut opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(wrong("is not a regular file"));
    }
    // As in libpq a key of root's may be read by a group, so that services can share it.
    let (forbidden, remedy) = if metadata.uid() == 0 { (0o037, "0640") } else { (0o077, "0600") };
    if metadata.mode() & forbidden != 0 {
        return Err(wrong("has group or world access").with_hint(format!("chmod {remedy} {}", file.display())));
    }
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes).map_err(unreadable)?;

    let Some(pem) = str::from_utf8(&bytes).ok().filter(|text| text.contains("-----BEGIN ")) else {
        return PrivateKeyDer::try_from(bytes).map_err(|_| {
            wrong("holds no private key").with_hint("It must be in PEM or DER: PKCS#8, PKCS#1 or SEC 1.")
        });
    };
    if pem.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(wrong("is encrypted in the old way of OpenSSL, which is not supported").with_hint(format!(
            "Convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in {} -out NEW",
            file.display()
        )));
    }
    let Some(encrypted) = pem.find("-----BEGIN ENCRYPTED PRIVATE KEY-----") else {
        return PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| wrong("holds no private key").with_source(error));
    };
    let Some(password) = password else {
        return Err(wrong("is encrypted, and no password for it is given").with_hint("Give it in sslpassword."));
    };
    let (_, document) = SecretDocument::from_pem(pem[encrypted..].trim_end())
        .map_err(|error| wrong("holds an encrypted key that cannot be read").with_source(error))?;
    let info = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|error| {
        wrong("is encrypted in a way that is not supported")
            .with_hint(format!(
                "Convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in {} -out NEW",
                file.display()
            ))
            .with_source(error)
    })?;
    let key = info.decrypt(password.bytes()).map_err(|error| {
        wrong("cannot be decrypted").with_hint("Is sslpassword the password of this key?").with_source(error)
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}
