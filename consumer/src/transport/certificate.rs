//! What a login is bound to: the hash of the server's certificate (`tls-server-end-point`, RFC 5929).

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// The hash of a certificate in DER, by the hash function of its own signature.
///
/// Nothing for signatures without one (Ed25519), to which nothing can be bound.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Contents of the object identifiers of signatures and hashes. MD5 and SHA-1 stand for SHA-256, as the RFC has it.
const ALGORITHMS: [(&[u8], Hash); 15] = [
    (&[42, 134, 72, 134, 247, 13, 1, 1, 4], Hash::Sha256), // md5WithRSAEncryption
    (&[42, 134, 72, 134, 247, 13, 1, 1, 5], Hash::Sha256), // sha1WithRSAEncryption
    (&[42, 134, 72, 134, 247, 13, 1, 1, 11], Hash::Sha256), // sha256WithRSAEncryption
    (&[42, 134, 72, 134, 247, 13, 1, 1, 12], Hash::Sha384), // sha384WithRSAEncryption
    (&[42, 134, 72, 134, 247, 13, 1, 1, 13], Hash::Sha512), // sha512WithRSAEncryption
    (&[42, 134, 72, 134, 247, 13, 1, 1, 14], Hash::Sha224), // sha224WithRSAEncryption
    (&[42, 134, 72, 206, 61, 4, 1], Hash::Sha256),         // ecdsa-with-SHA1
    (&[42, 134, 72, 206, 61, 4, 3, 1], Hash::Sha224),      // ecdsa-with-SHA224
    (&[42, 134, 72, 206, 61, 4, 3, 2], Hash::Sha256),      // ecdsa-with-SHA256
    (&[42, 134, 72, 206, 61, 4, 3, 3], Hash::Sha384),      // ecdsa-with-SHA384
    (&[42, 134, 72, 206, 61, 4, 3, 4], Hash::Sha512),      // ecdsa-with-SHA512
    (&[96, 134, 72, 1, 101, 3, 4, 2, 1], Hash::Sha256),    // sha256
    (&[96, 134, 72, 1, 101, 3, 4, 2, 2], Hash::Sha384),    // sha384
    (&[96, 134, 72, 1, 101, 3, 4, 2, 3], Hash::Sha512),    // sha512
    (&[96, 134, 72, 1, 101, 3, 4, 2, 4], Hash::Sha224),    // sha224
];

/// RSASSA-PSS, which names its hash in its parameters.
const PSS: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 1, 10];

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// The first, explicitly tagged field of the parameters of RSASSA-PSS: the hash, SHA-1 if it is left out.
const PSS_HASH: u8 = 0xa0;

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature }`
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_signed, rest) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (name, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    if name != PSS {
        return hash(name);
    }
    let (parameters, _) = element(parameters, SEQUENCE)?;
    match element(parameters, PSS_HASH) {
        None => Some(Hash::Sha256),
        Some((algorithm, _)) => {
            let (algorithm, _) = element(algorithm, SEQUENCE)?;
            hash(element(algorithm, OBJECT_IDENTIFIER)?.0)
        }
    }
}

fn hash(name: &[u8]) -> Option<Hash> {
    ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, hash)| *hash)
}

/// Cuts an element with `tag` off the front: its contents, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = der.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |value, digit| value << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn der(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
        let contents = contents.concat();
        let mut out = vec![tag];
        match contents.len() {
            length @ 0..0x80 => out.push(length as u8),
            length => out.extend([0x82, (length >> 8) as u8, length as u8]),
        }
        out.extend(contents);
        out
    }

    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let signed = der(SEQUENCE, &[&[0; 300]]);
        der(SEQUENCE, &[&signed, &der(SEQUENCE, &[algorithm]), &der(3, &[&[0; 64]])])
    }

    #[test]
    fn every_algorithm_has_its_hash() {
        for (name, expected) in ALGORITHMS {
            let plain = certificate(&der(OBJECT_IDENTIFIER, &[name]));
            assert_eq!(signature_hash(&plain), Some(expected));

            let hash = der(PSS_HASH, &[&der(SEQUENCE, &[&der(OBJECT_IDENTIFIER, &[name]), &[5, 0]])]);
            let pss = [der(OBJECT_IDENTIFIER, &[PSS]), der(SEQUENCE, &[&hash])].concat();
            assert_eq!(signature_hash(&certificate(&pss)), Some(expected));
        }
        let pss_default = [der(OBJECT_IDENTIFIER, &[PSS]), der(SEQUENCE, &[])].concat();
        assert_eq!(signature_hash(&certificate(&pss_default)), Some(Hash::Sha256));
    }

    #[test]
    fn ed25519_binds_nothing() {
        assert_eq!(end_point(&certificate(&der(OBJECT_IDENTIFIER, &[&[43, 101, 112]]))), None);
    }

    #[test]
    fn the_hash_is_that_of_the_whole_certificate() {
        let certificate = certificate(&der(OBJECT_IDENTIFIER, &[&[42, 134, 72, 206, 61, 4, 3, 3]]));
        assert_eq!(end_point(&certificate), Some(Sha384::digest(&certificate).to_vec()));
    }

    proptest! {
        #[test]
        fn hostile_certificates_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..80), cut in 0usize..400) {
            let _ = end_point(&bytes);
            let whole = certificate(&der(OBJECT_IDENTIFIER, &[PSS]));
            let _ = end_point(&whole[..cut.min(whole.len())]);
        }
    }
}
