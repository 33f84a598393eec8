//! TLS by libpq's modes, and logins that are bound to it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use postbox::ErrorKind;
use postbox_tests::{Cluster, major};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
};

use super::pki::{Authority, Issued};
use super::{ask, libpq, path, postbox, refused, replication, write};

/// Whether the link of this session is encrypted.
const ENCRYPTED: &str = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// A certificate for `names`, of a new authority that signs by `algorithm`.
fn issue(algorithm: &'static SignatureAlgorithm, names: &[&str]) -> Issued {
    Authority::new(algorithm).server(names, 1)
}

/// A server with that certificate, and the file with its authority.
fn cluster(issued: &Issued, hba: &[&str]) -> (Cluster, PathBuf) {
    let mut builder = Cluster::builder()
        .setting("ssl", "on")
        .file("server.crt", issued.certificate.as_str())
        .file("server.key", issued.key.as_str());
    for line in hba {
        builder = builder.hba(line);
    }
    let cluster = builder.start();
    let file = cluster.socket_dir().join("authority.pem");
    fs::write(&file, &issued.authority).expect("written");
    (cluster, file)
}

#[tokio::test]
async fn every_mode_checks_what_it_promises() {
    let (cluster, authority) = cluster(&issue(&PKCS_ECDSA_P256_SHA256, &["localhost", "127.0.0.1"]), &[]);
    let unknown = cluster.socket_dir().join("unknown.pem");
    fs::write(&unknown, issue(&PKCS_ECDSA_P256_SHA256, &[]).authority).expect("written");
    let empty = cluster.socket_dir().join("empty.pem");
    fs::write(&empty, "no certificate").expect("written");

    let base = format!("port={} user=postgres dbname=postgres", cluster.port());
    let known = format!("sslrootcert={}", authority.display());
    let unknown = format!("sslrootcert={}", unknown.display());
    let localhost = "host=localhost hostaddr=127.0.0.1";
    let other = "host=other.example hostaddr=127.0.0.1";

    for (host, rest, encrypted) in [
        (localhost, "sslmode=disable", "false"),
        (localhost, "sslmode=allow", "false"),
        (localhost, "sslmode=prefer", "true"),
        (localhost, "", "true"),
        (localhost, "sslmode=require", "true"),
        (other, "sslmode=require", "true"),
        (other, "sslmode=require sslsni=0", "true"),
        (localhost, &format!("sslmode=require {known}"), "true"),
        (localhost, &format!("sslmode=verify-ca {known}"), "true"),
        (other, &format!("sslmode=verify-ca {known}"), "true"),
        (localhost, &format!("sslmode=verify-full {known}"), "true"),
        ("host=127.0.0.1", &format!("sslmode=verify-full {known}"), "true"),
        // As in libpq, TLS that fails is as good as none where none would do.
        (localhost, &format!("sslmode=prefer {unknown}"), "false"),
    ] {
        let string = format!("{host} {base} {rest}");
        assert_eq!(ask(&string, ENCRYPTED).await.expect(&string), encrypted, "{string}");
        replication(&string).await.expect(&string).identify().await.expect(&string);
    }

    for (host, rest, kind, words) in [
        (
            other,
            format!("sslmode=verify-full {known}"),
            ErrorKind::Tls,
            "is for localhost, 127.0.0.1, not for other.example",
        ),
        (localhost, format!("sslmode=verify-full {unknown}"), ErrorKind::Tls, "unknown.pem"),
        (localhost, format!("sslmode=verify-ca {unknown}"), ErrorKind::Tls, "unknown.pem"),
        // A file that is given is used, also where none would do.
        (localhost, format!("sslmode=require {unknown}"), ErrorKind::Tls, "unknown.pem"),
        (localhost, "sslmode=verify-full sslrootcert=/nonexistent".to_owned(), ErrorKind::Usage, "/nonexistent"),
        (localhost, format!("sslmode=verify-full sslrootcert={}", empty.display()), ErrorKind::Usage, "empty.pem"),
    ] {
        let string = format!("{host} {base} {rest}");
        let error = refused(&string).await;
        assert_eq!((error.kind(), error.is_transient()), (kind, false), "{string}: {error:?}");
        assert!(error.to_string().contains(words), "{string}: {error}");
        assert!(error.hint().is_some(), "{string}: {error}");
    }
}

#[tokio::test]
async fn a_server_without_tls_serves_those_who_can_do_without() {
    let cluster = Cluster::start();
    let string = cluster.tcp_conninfo("postgres");
    assert_eq!(ask(&string, ENCRYPTED).await.expect("connected"), "false");
    let authority = cluster.socket_dir().join("authority.pem");
    fs::write(&authority, issue(&PKCS_ECDSA_P256_SHA256, &[]).authority).expect("written");
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&format!("{string} sslmode={mode} sslrootcert={}", authority.display())).await;
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Tls, 3), "{error:?}");
        assert!(error.to_string().contains("does not offer TLS"), "{error}");
    }
    // A Unix socket needs none, as in libpq.
    let socket = format!("{} sslmode=verify-full sslrootcert=/nonexistent", cluster.conninfo("postgres"));
    assert_eq!(ask(&socket, "SELECT 'in'").await.expect("connected"), "in");
}

#[tokio::test]
async fn a_rule_of_the_server_for_one_way_makes_the_client_take_it() {
    let (cluster, _) = cluster(
        &issue(&PKCS_ECDSA_P256_SHA256, &["localhost"]),
        &[
            "hostssl all plain 127.0.0.1/32 reject",
            "hostnossl all plain 127.0.0.1/32 trust",
            "hostnossl all secret 127.0.0.1/32 reject",
            "hostssl all secret 127.0.0.1/32 trust",
        ],
    );
    cluster.psql("postgres", "CREATE ROLE plain LOGIN REPLICATION; CREATE ROLE secret LOGIN REPLICATION");
    let string = format!("host=127.0.0.1 port={} dbname=postgres", cluster.port());
    for (rest, encrypted) in [
        ("user=plain sslmode=prefer", "false"),
        ("user=plain sslmode=allow", "false"),
        ("user=secret sslmode=prefer", "true"),
        ("user=secret sslmode=allow", "true"),
    ] {
        let string = format!("{string} {rest}");
        assert_eq!(ask(&string, ENCRYPTED).await.expect(&string), encrypted, "{string}");
    }
    for rest in ["user=plain sslmode=require", "user=secret sslmode=disable"] {
        let error = refused(&format!("{string} {rest}")).await;
        assert_eq!(error.kind(), ErrorKind::Login, "{error:?}");
        assert!(error.hint().expect("a hint").contains("pg_hba.conf"), "{error:?}");
    }
}

#[tokio::test]
async fn logins_are_bound_to_the_certificate() {
    for (algorithm, bindable) in
        [(&PKCS_ECDSA_P256_SHA256, true), (&PKCS_ECDSA_P384_SHA384, true), (&PKCS_ED25519, false)]
    {
        let (cluster, authority) = cluster(
            &issue(algorithm, &["localhost"]),
            &["host all scram 127.0.0.1/32 scram-sha-256", "host all clear 127.0.0.1/32 password"],
        );
        cluster.psql(
            "postgres",
            "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'right'; CREATE ROLE clear LOGIN REPLICATION PASSWORD 'right'",
        );
        let base = format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres", cluster.port());
        let string = format!("{base} user=scram sslmode=verify-full sslrootcert={}", authority.display());

        let required = format!("{string} channel_binding=require");
        if bindable {
            assert_eq!(ask(&format!("{required} password=right"), ENCRYPTED).await.expect("bound"), "true");
            replication(&format!("{required} password=right")).await.expect("bound");
            assert_eq!(refused(&format!("{required} password=wrong")).await.sqlstate(), Some("28P01"));
        } else {
            let error = refused(&format!("{required} password=right")).await;
            assert!(error.to_string().contains("channel_binding=require"), "{error}");
        }
        for binding in ["prefer", "disable"] {
            let string = format!("{string} password=right channel_binding={binding}");
            assert_eq!(ask(&string, ENCRYPTED).await.expect(&string), "true");
        }
        assert_eq!(refused(&format!("{string} password=wrong")).await.sqlstate(), Some("28P01"));

        // What cannot be bound: no TLS, and a password in clear text, which TLS at least hides.
        let error = refused(&format!("{base} user=scram password=right sslmode=disable channel_binding=require")).await;
        assert!(error.to_string().contains("channel_binding=require"), "{error}");
        let clear = format!("{base} user=clear password=right sslmode=require");
        assert_eq!(ask(&clear, ENCRYPTED).await.expect("in"), "true");
        replication(&clear).await.expect("in").identify().await.expect("it answers");
        let error = refused(&format!("{clear} channel_binding=require")).await;
        assert!(error.to_string().contains("channel_binding=require"), "{error}");
    }
}

#[tokio::test]
async fn logins_are_bound_to_certificates_that_openssl_made() {
    // The hash is that of the signature: RSA-PSS names it in its parameters.
    for ways in [
        &["-newkey", "rsa:2048", "-sha512"][..],
        &["-newkey", "rsa:2048", "-sha384", "-sigopt", "rsa_padding_mode:pss"],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha512"],
    ] {
        let dir = std::env::temp_dir().join(format!("postbox-openssl-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let (certificate, key) = (dir.join("crt"), dir.join("key"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
        openssl.args(["-addext", "subjectAltName=DNS:localhost", "-out", path(&certificate), "-keyout", path(&key)]);
        let output = openssl.args(ways).output().expect("the program openssl, which tests/fetch --tests installs");
        assert!(output.status.success(), "{output:?}");
        let read = |file| fs::read_to_string(file).expect("what openssl wrote");
        let issued = Issued { authority: read(&certificate), certificate: read(&certificate), key: read(&key) };
        fs::remove_dir_all(&dir).expect("removed");

        let (cluster, authority) = cluster(&issued, &["host all scram 127.0.0.1/32 scram-sha-256"]);
        cluster.psql("postgres", "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'right'");
        let string = format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=scram sslmode=verify-full sslrootcert={} \
             channel_binding=require",
            cluster.port(),
            authority.display()
        );
        let bound = ask(&format!("{string} password=right"), ENCRYPTED).await;
        assert_eq!(bound.unwrap_or_else(|error| panic!("{ways:?}: {error:?}")), "true");
        replication(&format!("{string} password=right")).await.expect("bound");
        assert_eq!(refused(&format!("{string} password=wrong")).await.sqlstate(), Some("28P01"));
    }
}

#[tokio::test]
async fn versions_are_kept_within_their_limits() {
    let (cluster, authority) = cluster(&issue(&PKCS_ECDSA_P256_SHA256, &["localhost"]), &[]);
    let string = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
        cluster.port(),
        authority.display()
    );
    let version = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (rest, expected) in [
        ("", "TLSv1.3"),
        ("ssl_min_protocol_version=TLSv1", "TLSv1.3"),
        ("ssl_min_protocol_version=TLSv1.3", "TLSv1.3"),
        ("ssl_max_protocol_version=TLSv1.3", "TLSv1.3"),
        ("ssl_max_protocol_version=tlsv1.2", "TLSv1.2"),
    ] {
        let string = format!("{string} {rest}");
        assert_eq!(ask(&string, version).await.expect(&string), expected, "{string}");
        assert_eq!(libpq(&cluster, &[], &string, version).as_deref(), Ok(expected), "{string}");
    }
    cluster.psql("postgres", "ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'");
    cluster.restart(postbox_tests::Stop::Fast);
    assert_eq!(ask(&string, version).await.expect("connected"), "TLSv1.2");
    let error = refused(&format!("{string} ssl_min_protocol_version=TLSv1.3")).await;
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert!(error.hint().expect("a hint").contains("ssl_min_protocol_version"), "{error:?}");
}

#[tokio::test]
async fn a_certificate_that_is_revoked_is_refused() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let (cluster, root) = cluster(&authority.server(&["localhost"], 7), &[]);
    let list = |name: &str, text: String| write(&cluster, name, text, 0o644);
    let good = list("good.crl", authority.revoked(&[6], 2100));
    let revoked = list("dir/revoked.crl", authority.revoked(&[6, 7], 2100));
    let old = list("old.crl", authority.revoked(&[], 2025));
    let foreign = list("foreign.crl", Authority::new(&PKCS_ECDSA_P256_SHA256).revoked(&[], 2100));
    let dir = revoked.parent().expect("a directory");

    let base = format!("host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port());
    let known = format!("{base} sslmode=verify-full sslrootcert={}", root.display());
    for mode in ["require", "verify-ca", "verify-full"] {
        let string = format!("{known} sslmode={mode} sslcrl={}", good.display());
        assert_eq!(ask(&string, ENCRYPTED).await.expect(&string), "true");
        replication(&string).await.expect(&string);
        for rest in [format!("sslcrl={}", revoked.display()), format!("sslcrldir={}", dir.display())] {
            let string = format!("{known} sslmode={mode} {rest}");
            let error = refused(&string).await;
            assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Tls, false), "{string}: {error:?}");
            assert!(error.to_string().contains("revoked"), "{string}: {error}");
        }
    }
    for (file, words) in [(&old, "out of date"), (&foreign, "no revocation list")] {
        let string = format!("{known} sslcrl={}", file.display());
        let error = refused(&string).await;
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(error.to_string().contains(words), "{error}");
        libpq(&cluster, &[], &string, "SELECT 1").expect_err("libpq refuses it as well");
    }
    for (string, words) in [
        (format!("{known} sslcrl=/nonexistent"), "/nonexistent"),
        (format!("{known} sslcrldir=/nonexistent"), "/nonexistent"),
        (format!("{known} sslcrl={}", root.display()), "holds no revocation list"),
    ] {
        let error = refused(&string).await;
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(words), "{error}");
    }
    // Where nobody vouches for the server, a list has nothing to say.
    let string = format!("{base} sslmode=require sslcrl={}", good.display());
    let (code, said) = postbox(&[("HOME", "/nonexistent")], &["-d", &string, "group", "list"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no authority"), "{said}");
}

#[test]
fn authorities_come_from_the_system_or_from_the_home_directory() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let (cluster, root) = cluster(&authority.server(&["localhost"], 7), &[]);
    cluster.psql("postgres", "CREATE EXTENSION postbox");
    let unknown = write(&cluster, "unknown.pem", Authority::new(&PKCS_ECDSA_P256_SHA256).pem(), 0o644);
    let string = format!("hostaddr=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port());
    let system = |file: &str, string: &str| {
        postbox(&[("HOME", "/nonexistent"), ("SSL_CERT_FILE", file)], &["-d", string, "group", "list"])
    };
    // The strictest mode goes without saying.
    let named = format!("{string} host=localhost sslrootcert=system");
    assert_eq!(system(path(&root), &named), (Some(0), String::new()));
    let (code, said) = system(path(&unknown), &named);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("the operating system's authorities"), "{said}");
    let (code, said) = system(path(&root), &format!("{string} host=other.example sslrootcert=system"));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("not for other.example"), "{said}");
    let (code, said) = system(path(&root), &format!("{named} sslmode=verify-ca"));
    assert_eq!(code, Some(2), "{said}");

    // The user's own files are used in every mode, if they are there.
    let home = super::home(&cluster);
    let required = format!("{string} host=localhost sslmode=require");
    let user = || postbox(&[("HOME", &home)], &["-d", &required, "group", "list"]);
    assert_eq!(user().0, Some(0));
    write(&cluster, "home/.postgresql/root.crt", fs::read(&unknown).expect("read"), 0o644);
    assert_eq!(user().0, Some(3));
    write(&cluster, "home/.postgresql/root.crt", fs::read(&root).expect("read"), 0o644);
    assert_eq!(user().0, Some(0));
    write(&cluster, "home/.postgresql/root.crl", authority.revoked(&[7], 2100), 0o644);
    let (code, said) = user();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("has been revoked"), "{said}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_authority() {
    let key = KeyPair::generate().expect("a key");
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).expect("signed").pem();
        let issued = Issued { authority: certificate.clone(), certificate, key: key.serialize_pem() };
        let (cluster, authority) = cluster(&issued, &[]);
        let string =
            format!("port={} user=postgres dbname=postgres sslrootcert={}", cluster.port(), authority.display());
        let right = format!("host=localhost hostaddr=127.0.0.1 {string} sslmode=verify-full");
        assert_eq!(ask(&right, ENCRYPTED).await.expect("connected"), "true");
        let error = refused(&format!("host=other hostaddr=127.0.0.1 {string} sslmode=verify-full")).await;
        assert_eq!(error.kind(), ErrorKind::Tls, "{error:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_out_of_date_is_refused() {
    for self_signed in [false, true] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let issued = if self_signed {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).expect("signed").pem();
            Issued { authority: certificate.clone(), certificate, key: key.serialize_pem() }
        } else {
            let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("made");
            let certificate = params.signed_by(&key, &authority).expect("signed").pem();
            Issued { authority: authority.pem(), certificate, key: key.serialize_pem() }
        };
        let (cluster, authority) = cluster(&issued, &[]);
        let string = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-ca sslrootcert={}",
            cluster.port(),
            authority.display()
        );
        let error = refused(&string).await;
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(error.to_string().contains("expired"), "{error}");
    }
}

#[tokio::test]
async fn direct_tls_needs_a_server_that_has_it() {
    let (cluster, authority) = cluster(&issue(&PKCS_ECDSA_P256_SHA256, &["localhost"]), &[]);
    let string = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={} \
         sslnegotiation=direct",
        cluster.port(),
        authority.display()
    );
    if major() >= 17 {
        assert_eq!(ask(&string, ENCRYPTED).await.expect("connected"), "true");
    } else {
        refused(&string).await;
    }
}
