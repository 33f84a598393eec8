//! Authorities and what they issue.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

/// Signs certificates.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(super) struct Issued {
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    /// One that signs by `algorithm`.
    pub(super) fn new(algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signer = KeyPair::generate_for(algorithm).expect("a key");
        params.distinguished_name.push(DnType::CommonName, format!("authority {:?}", signer.public_key_raw()));
        Self { issuer: CertifiedIssuer::self_signed(params, signer).expect("an authority") }
    }

    /// Its own certificate.
    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a server of these names.
    pub(super) fn server(&self, names: &[&str], serial: u64) -> Issued {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).expect("parameters");
        params.serial_number = Some(SerialNumber::from(serial));
        self.sign(params, &PKCS_ECDSA_P256_SHA256)
    }

    /// A certificate for a client of this common name.
    pub(super) fn client(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Issued {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        self.sign(params, algorithm)
    }

    /// Its list of revoked certificates, which is good until the first day of `year`.
    pub(super) fn revoked(&self, serials: &[u64], year: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }

    fn sign(&self, params: CertificateParams, algorithm: &'static SignatureAlgorithm) -> Issued {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Issued { authority: self.pem(), certificate, key: key.serialize_pem() }
    }
}
