//! Client certificates.

use std::fs;
use std::process::Command;

use postbox::ErrorKind;
use postbox_tests::{Cluster, major};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

use super::pki::{Authority, Issued};
use super::{ask, home, libpq, path, postbox, refused, replication, write};

/// Who the server took us for, by the certificate.
const DN: &str = "SELECT coalesce(client_dn, 'none') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// A server that knows `clients` as the authority of its clients, with one role per rule.
fn cluster(clients: &Authority) -> (Cluster, String) {
    let server = Authority::new(&PKCS_ECDSA_P256_SHA256).server(&["localhost"], 1);
    let cluster = Cluster::builder()
        .setting("ssl", "on")
        .setting("ssl_ca_file", "clients.crt")
        .file("clients.crt", clients.pem())
        .file("server.crt", server.certificate)
        .file("server.key", server.key)
        .hba("hostssl all billing 127.0.0.1/32 cert")
        .hba("host all billing 127.0.0.1/32 reject")
        .hba("hostssl all twofold 127.0.0.1/32 scram-sha-256 clientcert=verify-full")
        .hba("hostssl all authority 127.0.0.1/32 trust clientcert=verify-ca")
        .with_postbox()
        .start();
    cluster.psql(
        "postgres",
        "CREATE ROLE billing SUPERUSER LOGIN REPLICATION; \
         CREATE ROLE twofold LOGIN REPLICATION PASSWORD 'right'; CREATE ROLE authority LOGIN REPLICATION",
    );
    write(&cluster, "root.crt", server.authority, 0o644);
    let string = format!(
        "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres sslmode=verify-full sslrootcert={}",
        cluster.port(),
        path(&cluster.socket_dir().join("root.crt"))
    );
    (cluster, string)
}

/// Writes a certificate and its key; the settings that name them.
fn identity(cluster: &Cluster, name: &str, issued: &Issued) -> String {
    let certificate = write(cluster, &format!("{name}.crt"), &issued.certificate, 0o644);
    let key = write(cluster, &format!("{name}.key"), &issued.key, 0o600);
    format!("sslcert={} sslkey={}", certificate.display(), key.display())
}

#[tokio::test]
async fn a_certificate_is_the_proof_that_the_server_asks_for() {
    let clients = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let (cluster, base) = cluster(&clients);
    for (name, algorithm) in
        [("p256", &PKCS_ECDSA_P256_SHA256), ("p384", &PKCS_ECDSA_P384_SHA384), ("ed25519", &PKCS_ED25519)]
    {
        let billing = identity(&cluster, name, &clients.client("billing", algorithm));
        for rest in ["", "sslcertmode=require require_auth=none", "ssl_max_protocol_version=TLSv1.2"] {
            // In TLS 1.2 a server takes keys on the curve of its ssl_ecdh_curve only.
            if rest.contains("TLSv1.2") && name != "p256" {
                continue;
            }
            let string = format!("{base} user=billing {billing} {rest}");
            assert_eq!(ask(&string, DN).await.expect(&string), "/CN=billing", "{string}");
            replication(&string).await.expect(&string).identify().await.expect("identified");
        }
    }
    let billing = identity(&cluster, "billing", &clients.client("billing", &PKCS_ECDSA_P256_SHA256));
    let both = identity(&cluster, "twofold", &clients.client("twofold", &PKCS_ECDSA_P256_SHA256));

    // Certificate and password, each of them checked.
    let string =
        format!("{base} user=twofold {both} password=right channel_binding=require require_auth=scram-sha-256");
    assert_eq!(ask(&string, DN).await.expect("in"), "/CN=twofold");
    assert_eq!(refused(&format!("{string} password=wrong")).await.sqlstate(), Some("28P01"));
    let error = refused(&format!("{base} user=twofold {billing} password=right")).await;
    assert_eq!(error.kind(), ErrorKind::Login, "{error:?}");
    // Any certificate of the authority.
    assert_eq!(ask(&format!("{base} user=authority {billing}"), DN).await.expect("in"), "/CN=billing");
    // Where none is needed, it is shown all the same, unless that is switched off.
    assert_eq!(ask(&format!("{base} user=postgres {billing}"), DN).await.expect("in"), "/CN=billing");
    assert_eq!(ask(&format!("{base} user=postgres {billing} sslcertmode=disable"), DN).await.expect("in"), "none");

    // The server does not take it, or does not get it: the remedy says what it wants.
    for string in [
        format!("{base} user=billing {both}"),
        format!("{base} user=billing {billing} sslcertmode=disable"),
        format!("{base} user=billing sslcertmode=disable"),
        format!("{base} user=authority sslcertmode=disable"),
    ] {
        let error = refused(&string).await;
        assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Login, false), "{string}: {error:?}");
        assert!(error.hint().expect("a hint").contains("sslcert="), "{string}: {error:?}");
        if major() >= 16 {
            libpq(&cluster, &[], &string, "SELECT 1").expect_err("libpq is not let in either");
        }
    }

    // The certificate of another authority ends the handshake; under TLS 1.3 when the client thinks that it is over.
    let stranger = Authority::new(&PKCS_ECDSA_P256_SHA256).client("billing", &PKCS_ECDSA_P256_SHA256);
    let stranger = identity(&cluster, "stranger", &stranger);
    for version in ["ssl_max_protocol_version=TLSv1.2", "ssl_min_protocol_version=TLSv1.3"] {
        for _ in 0..20 {
            let error = refused(&format!("{base} user=billing {stranger} {version}")).await;
            assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Tls, false), "{version}: {error:?}");
            assert!(error.to_string().contains("does not take the client certificate"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_required_has_to_be_asked_for() {
    let clients = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let issued = clients.client("postgres", &PKCS_ECDSA_P256_SHA256);
    // No ssl_ca_file: this server asks nobody.
    let server = clients.server(&["localhost"], 1);
    let cluster = Cluster::builder().setting("ssl", "on").file("server.crt", server.certificate);
    let cluster = cluster.file("server.key", server.key).start();
    let postgres = identity(&cluster, "postgres", &issued);
    let tcp = format!("{} {postgres}", cluster.tcp_conninfo("postgres"));
    assert_eq!(ask(&format!("{tcp} sslmode=require"), DN).await.expect("in"), "none");
    for string in [
        format!("{tcp} sslmode=require sslcertmode=require"),
        format!("{tcp} sslmode=disable sslcertmode=require"),
        format!("{} {postgres} sslcertmode=require", cluster.conninfo("postgres")),
    ] {
        let error = refused(&string).await;
        assert_eq!(error.kind(), ErrorKind::Login);
        assert!(error.to_string().contains("has not asked for a client certificate"), "{string}: {error}");
        if major() >= 16 {
            libpq(&cluster, &[], &string, "SELECT 1").expect_err("libpq refuses it as well");
        }
    }
    let string = format!("{} sslmode=require sslcertmode=require", cluster.tcp_conninfo("postgres"));
    let (code, said) = postbox(&[("HOME", "/nonexistent")], &["-d", &string, "group", "list"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("there is no client certificate"), "{said}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let clients = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let (cluster, base) = cluster(&clients);
    let issued = clients.client("billing", &PKCS_ECDSA_P256_SHA256);
    let right = identity(&cluster, "right", &issued);
    let certificate = cluster.socket_dir().join("right.crt");
    let with_key = |key: &str| format!("sslcert={} sslkey={key}", certificate.display());

    let empty = write(&cluster, "empty", "nothing", 0o600);
    let other = write(&cluster, "other.key", KeyPair::generate().expect("a key").serialize_pem(), 0o600);
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let old = write(&cluster, "old.key", old, 0o600);
    for (rest, file, words) in [
        ("sslcert=/nonexistent".to_owned(), "/nonexistent", "does not exist"),
        (format!("sslcert={}", empty.display()), path(&empty), "holds no certificate"),
        (with_key("/nonexistent"), "/nonexistent", "does not exist"),
        (with_key("/dev/null"), "/dev/null", "not a regular file"),
        (with_key(path(&empty)), path(&empty), "holds no private key"),
        (with_key(path(&other)), path(&other), "does not go with the private key"),
        (with_key(path(&old)), path(&old), "old way of OpenSSL"),
    ] {
        // In no mode does a file that is broken lead to a link without TLS, or without the certificate.
        for mode in ["verify-full", "prefer"] {
            let error = refused(&format!("{base} user=postgres {rest} sslmode={mode}")).await;
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Usage, 2), "{rest}: {error:?}");
            assert!(error.to_string().contains(file) && error.to_string().contains(words), "{rest}: {error}");
        }
    }

    for mode in [0o644, 0o660, 0o604, 0o777] {
        write(&cluster, "right.key", &issued.key, mode);
        let string = format!("{base} user=billing {right}");
        let error = refused(&string).await;
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("group or world access"), "{mode:o}: {error}");
        assert!(error.hint().expect("a hint").contains("chmod"), "{error:?}");
        libpq(&cluster, &[], &string, "SELECT 1").expect_err("libpq refuses it as well");
    }
    // A group may read a key of root's.
    let key = write(&cluster, "right.key", &issued.key, 0o640);
    let string = format!("{base} user=billing {right}");
    let roots = std::os::unix::fs::MetadataExt::uid(&fs::metadata(key).expect("a key")) == 0;
    assert_eq!(ask(&string, DN).await.is_ok(), roots);
    assert_eq!(libpq(&cluster, &[], &string, DN).is_ok(), roots);

    // A key in DER will do.
    let der = KeyPair::from_pem(&issued.key).expect("a key").serialize_der();
    let der = write(&cluster, "right.der", der, 0o600);
    assert_eq!(ask(&format!("{base} user=billing {}", with_key(path(&der))), DN).await.expect("in"), "/CN=billing");
}

#[test]
fn a_certificate_is_looked_for_where_libpq_looks() {
    let clients = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let (cluster, _) = cluster(&clients);
    let issued = clients.client("billing", &PKCS_ECDSA_P256_SHA256);
    let (home, port) = (home(&cluster), cluster.port().to_string());
    let environment = [
        ("HOME", home.as_str()),
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGUSER", "billing"),
        ("PGDATABASE", "postgres"),
        ("PGSSLMODE", "require"),
    ];
    let list = |more: &[(&str, &str)]| {
        let environment = [&environment, more].concat();
        let ours = postbox(&environment, &["group", "list"]);
        let theirs = libpq(&cluster, &environment, "", "SELECT 1");
        // libpq before version 15 asks the user database where home is, and not HOME.
        assert!(major() < 15 || theirs.is_ok() == (ours.0 == Some(0)), "{more:?}: {theirs:?} {ours:?}");
        ours
    };
    assert_eq!(list(&[]).0, Some(3));
    let certificate = write(&cluster, "home/.postgresql/postgresql.crt", &issued.certificate, 0o644);
    let (code, said) = list(&[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/.postgresql/postgresql.key does not exist"), "{said}");
    let key = write(&cluster, "home/.postgresql/postgresql.key", &issued.key, 0o600);
    assert_eq!(list(&[]), (Some(0), String::new()));
    let named = [("HOME", "/nonexistent"), ("PGSSLCERT", path(&certificate)), ("PGSSLKEY", path(&key))];
    assert_eq!(list(&named), (Some(0), String::new()));

    // Daemons have such homes: there is nothing in them, which is no error.
    let cluster_open = format!("host=127.0.0.1 port={port} user=postgres sslmode=require");
    assert_eq!(postbox(&[("HOME", "/dev/null")], &["-d", &cluster_open, "group", "list"]), (Some(0), String::new()));

    // The stream has it as well.
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('events'); SELECT postbox.create_consumer_group('g', ARRAY['events'])",
    );
    let (code, said) = postbox(&environment, &["run", "--group", "g", "--exit-when-idle", "1ms"]);
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn a_key_that_is_encrypted_needs_its_password() {
    let clients = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let (cluster, base) = cluster(&clients);
    let issued = clients.client("billing", &PKCS_ECDSA_P256_SHA256);
    identity(&cluster, "plain", &issued);
    let plain = cluster.socket_dir().join("plain.key");
    // What OpenSSL does unasked, and what it does when asked for scrypt.
    for ways in [&[][..], &["-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA512"], &["-scrypt"]] {
        let mut openssl = Command::new("openssl");
        openssl.args(["pkcs8", "-topk8", "-passout", "pass:s3cret wörd", "-in", path(&plain)]).args(ways);
        let output = openssl.output().expect("the program openssl, which tests/fetch --tests installs");
        assert!(output.status.success(), "{output:?}");
        let key = write(&cluster, "encrypted.key", output.stdout, 0o600);
        let certificate = cluster.socket_dir().join("plain.crt");
        let string = format!("{base} user=billing sslcert={} sslkey={}", certificate.display(), key.display());

        let right = format!("{string} sslpassword='s3cret wörd'");
        assert_eq!(ask(&right, DN).await.unwrap_or_else(|error| panic!("{ways:?}: {error:?}")), "/CN=billing");
        replication(&right).await.expect("connected");
        let error = refused(&string).await;
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.hint().expect("a hint").contains("sslpassword"), "{error:?}");
        let error = refused(&format!("{string} sslpassword=wr0ng")).await;
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(path(&key)), "{error}");
        assert!(error.to_string().contains("cannot be decrypted"), "{error}");
        assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
    }
}
