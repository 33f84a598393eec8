//! Lists of revoked certificates, for the check of the server's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;

use super::conninfo::Revoked;
use crate::error::{Error, ErrorKind, Result};

/// The lists, if there are any. Files that are named must be there and hold lists.
pub(super) fn load(revoked: &Revoked) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let (file, dir) = match revoked {
        Revoked::UserFile(Some(file)) if file.exists() => (Some(file), None),
        Revoked::UserFile(_) => (None, None),
        Revoked::Named { file, dir } => (file.as_ref(), dir.as_ref()),
    };
    let mut lists = Vec::new();
    if let Some(file) = file {
        let found = read(file)?;
        if found.is_empty() {
            return Err(none_in(file));
        }
        lists.extend(found);
    }
    if let Some(dir) = dir {
        // OpenSSL looks lists up by names that are hashes; here all of them are read, whatever their names.
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(|error| unreadable(dir, error))? {
            let path: PathBuf = entry.map_err(|error| unreadable(dir, error))?.path();
            if path.is_file() {
                found.extend(read(&path)?);
            }
        }
        if found.is_empty() {
            return Err(none_in(dir));
        }
        lists.extend(found);
    }
    Ok(lists)
}

fn read(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let pem = fs::read(file).map_err(|error| unreadable(file, error))?;
    CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| {
        Error::new(ErrorKind::Usage, format!("revocation list {} is not in PEM", file.display())).with_source(error)
    })
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Usage, format!("revocation list {} cannot be read", path.display()))
        .with_hint("sslcrl names a file, sslcrldir a directory of files.")
        .with_source(error)
}

fn none_in(path: &Path) -> Error {
    Error::new(ErrorKind::Usage, format!("{} holds no revocation list", path.display()))
        .with_hint("It must be in PEM: -----BEGIN X509 CRL-----.")
}
