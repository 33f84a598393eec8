//! Several hosts, and the addresses of each.

use std::collections::BTreeSet;
use std::net::TcpListener;

use postbox::ErrorKind;
use postbox_tests::{Cluster, Stop, skip};
use rcgen::PKCS_ECDSA_P256_SHA256;

use super::pki::Authority;
use super::{ask, libpq, refused, replication, write};

/// The port of the server, which tells servers apart.
const PORT: &str = "SELECT current_setting('port')";

#[tokio::test]
async fn hosts_are_tried_in_turn_until_one_will_do() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE DATABASE ro; ALTER DATABASE ro SET default_transaction_read_only = on");
    let hosts = format!("host=/nonexistent,{} port={} user=postgres", cluster.socket_dir().display(), cluster.port());
    assert_eq!(ask(&format!("{hosts} dbname=postgres"), "SELECT 'here'").await.expect("connected"), "here");

    let writable = format!("{hosts} dbname=ro target_session_attrs=read-write");
    let error = refused(&writable).await;
    assert!(error.is_transient() && error.to_string().contains("read-only"), "{error}");
    assert!(error.to_string().contains("/nonexistent"), "all hosts are named: {error}");
    let string = format!("{hosts} dbname=ro target_session_attrs=read-only");
    assert_eq!(ask(&string, "SELECT 'here'").await.expect("connected"), "here");
    let string = format!("{hosts} dbname=postgres target_session_attrs=primary");
    assert_eq!(ask(&string, "SELECT 'here'").await.expect("connected"), "here");
}

#[tokio::test]
async fn the_server_that_is_wanted_is_found_on_either_place() {
    let primary = Cluster::builder().hba("local replication postgres trust").start();
    let standby = primary.standby();
    let hosts = |first: &Cluster, second: &Cluster| {
        let (one, two) = (first.socket_dir().display(), second.socket_dir().display());
        format!("host={one},{two} port={},{} user=postgres dbname=postgres", first.port(), second.port())
    };
    for (first, second) in [(&primary, &standby), (&standby, &primary)] {
        let hosts = hosts(first, second);
        for (wanted, expected) in [
            ("any", first),
            ("read-write", &primary),
            ("primary", &primary),
            ("read-only", &standby),
            ("standby", &standby),
            ("prefer-standby", &standby),
        ] {
            let string = format!("{hosts} target_session_attrs={wanted}");
            let port = expected.port().to_string();
            assert_eq!(ask(&string, PORT).await.expect(&string), port, "{string}");
            assert_eq!(replication(&string).await.expect(&string).show("port").await.expect("shown"), port, "{string}");
            assert_eq!(libpq(&primary, &[], &string, PORT), Ok(port), "{string}");
        }
    }

    // A primary whose sessions are read-only is one for reading, and still a primary.
    primary.psql("postgres", "CREATE DATABASE ro; ALTER DATABASE ro SET default_transaction_read_only = on");
    let string = hosts(&primary, &primary).replace("dbname=postgres", "dbname=ro");
    for (wanted, fits) in [("read-only", true), ("primary", true), ("read-write", false), ("standby", false)] {
        let string = format!("{string} target_session_attrs={wanted}");
        assert_eq!(ask(&string, PORT).await.is_ok(), fits, "{string}");
        assert_eq!(libpq(&primary, &[], &string, PORT).is_ok(), fits, "{string}");
    }

    standby.stop(Stop::Fast);
    let string = hosts(&standby, &primary);
    let preferred = format!("{string} target_session_attrs=prefer-standby");
    assert_eq!(ask(&preferred, PORT).await.expect("the primary will do"), primary.port().to_string());
    let error = refused(&format!("{string} target_session_attrs=standby")).await;
    assert!(error.is_transient(), "{error:?}");
    for part in [standby.port().to_string(), primary.port().to_string(), "target_session_attrs is standby".to_owned()] {
        assert!(error.to_string().contains(&part), "{part} in: {error}");
    }

    // What was a standby is a primary once it is promoted.
    standby.start_again();
    primary.stop(Stop::Fast);
    let string = hosts(&primary, &standby);
    let error = refused(&format!("{string} target_session_attrs=read-write")).await;
    assert!(error.is_transient(), "{error:?}");
    standby.psql("postgres", "SELECT pg_promote()");
    let string = format!("{string} target_session_attrs=read-write");
    assert_eq!(ask(&string, PORT).await.expect("promoted"), standby.port().to_string());
}

#[tokio::test]
async fn a_host_that_knows_us_and_refuses_ends_the_search() {
    let cluster = Cluster::builder().hba("local all refused reject").start();
    let other = Cluster::start();
    for cluster in [&cluster, &other] {
        cluster.psql("postgres", "CREATE ROLE refused LOGIN REPLICATION");
    }
    let string = format!(
        "host={},{} port={},{} user=refused dbname=postgres",
        cluster.socket_dir().display(),
        other.socket_dir().display(),
        cluster.port(),
        other.port()
    );
    // As in libpq: a password that one server refuses is not shown to the next.
    assert_eq!(refused(&string).await.kind(), ErrorKind::Login);
    libpq(&cluster, &[], &string, PORT).expect_err("libpq stops there as well");
}

#[tokio::test]
async fn load_is_spread_over_the_hosts_on_demand() {
    let clusters = [Cluster::start(), Cluster::start()];
    let [one, two] = &clusters;
    let string = format!(
        "host={},{} port={},{} user=postgres dbname=postgres",
        one.socket_dir().display(),
        two.socket_dir().display(),
        one.port(),
        two.port()
    );
    for _ in 0..10 {
        assert_eq!(ask(&string, PORT).await.expect("connected"), one.port().to_string());
    }
    let mut seen = BTreeSet::new();
    // That one of two is missed 60 times in a row does not happen.
    for _ in 0..60 {
        seen.insert(ask(&format!("{string} load_balance_hosts=random"), PORT).await.expect("connected"));
        if seen.len() == 2 {
            return;
        }
    }
    panic!("only {seen:?} of two hosts");
}

#[tokio::test]
async fn ipv6_is_spoken_however_the_address_is_written() {
    if let Err(error) = TcpListener::bind("[::1]:0") {
        skip(&format!("this machine has no IPv6 loopback: {error}"));
        return;
    }
    let issued = Authority::new(&PKCS_ECDSA_P256_SHA256).server(&["::1"], 1);
    let cluster = Cluster::builder()
        .setting("listen_addresses", "127.0.0.1, ::1")
        .setting("ssl", "on")
        .file("server.crt", issued.certificate)
        .file("server.key", issued.key)
        .hba("host all other ::1/128 reject")
        .hba("host all all ::1/128 trust")
        .start();
    cluster.psql("postgres", "CREATE ROLE other LOGIN REPLICATION");
    let port = cluster.port();
    for string in [
        format!("postgresql://postgres@[::1]:{port}/postgres"),
        format!("postgresql://postgres@127.0.0.2,[::1]:{port}/postgres"),
        format!("host=::1 port={port} user=postgres dbname=postgres"),
        format!("hostaddr=::1 port={port} user=postgres dbname=postgres"),
        format!("host=any.name hostaddr=::1 port={port} user=postgres dbname=postgres"),
        format!("host=/nonexistent,::1 port={port} user=postgres dbname=postgres"),
    ] {
        assert_eq!(ask(&string, "SELECT host(inet_client_addr())").await.expect(&string), "::1", "{string}");
        replication(&string).await.expect(&string);
    }
    // A certificate can be for an address.
    let root = write(&cluster, "root.crt", issued.authority, 0o644);
    let verified =
        format!("postgresql://postgres@[::1]:{port}/postgres?sslmode=verify-full&sslrootcert={}", root.display());
    assert_eq!(
        ask(&verified, "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.expect("in"),
        "true"
    );
    let error = refused(&format!("{verified}&host=127.0.0.1")).await;
    assert!(error.to_string().contains("not for 127.0.0.1"), "{error}");

    let error = refused(&format!("host=::1 port={port} user=other dbname=postgres")).await;
    assert!(error.to_string().contains("\"::1\""), "{error}");
    cluster.stop(Stop::Fast);
    let error = refused(&format!("postgresql://postgres@[::1]:{port}/postgres")).await;
    assert!(error.to_string().contains(&format!("::1 port {port}")), "{error}");
}
