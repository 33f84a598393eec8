//! Who may log in, and by what proof.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::{fs, iter};

use postbox::ErrorKind;
use postbox_tests::{Cluster, Proxy, Stop, major, postbox_binary, skip, wait_until};

use super::{ask, libpq, refused, replication};
use crate::shop::PATIENCE;

#[tokio::test]
async fn trust_over_a_unix_socket_and_over_tcp() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "ALTER ROLE postgres SET statement_timeout = '7s'");
    for string in [cluster.conninfo("postgres"), cluster.tcp_conninfo("postgres")] {
        let over = ask(&string, "SELECT coalesce(host(inet_client_addr()), 'socket')").await.expect("connected");
        assert_eq!(over, if string.contains("127.0.0.1") { "127.0.0.1" } else { "socket" });
        assert_eq!(ask(&string, "SELECT current_setting('application_name')").await.expect("asked"), "postbox");
        assert_eq!(ask(&string, "SELECT current_setting('statement_timeout')").await.expect("asked"), "7s");

        let mut replication = replication(&string).await.expect("connected");
        let id = replication.identify().await.expect("identified");
        assert_eq!(
            id.system_id.to_string(),
            cluster.psql("postgres", "SELECT system_identifier FROM pg_control_system()")
        );
        assert_eq!((id.timeline, id.dbname.as_deref()), (1, Some("postgres")));
        assert!(id.xlogpos.0 > 0);
        assert_eq!(replication.show("application_name").await.expect("shown"), "postbox-test");
        assert_eq!(replication.show("statement_timeout").await.expect("shown"), "0");
        assert_eq!(replication.show("client_encoding").await.expect("shown"), "UTF8");
        let error = replication.show("nonsense").await.expect_err("no such setting");
        assert_eq!(error.sqlstate(), Some("42704"));
        // The connection has survived the error.
        assert_eq!(replication.show("wal_level").await.expect("shown"), "logical");
    }
}

#[tokio::test]
async fn settings_of_the_connection_string_reach_the_server() {
    let cluster = Cluster::start();
    let string =
        format!("{} application_name=mine options='-c geqo_effort=7 -c work_mem=99kB'", cluster.conninfo("postgres"));
    assert_eq!(ask(&string, "SELECT current_setting('work_mem')").await.expect("asked"), "99kB");
    let mut replication = replication(&string).await.expect("connected");
    assert_eq!(replication.show("application_name").await.expect("shown"), "mine");
    assert_eq!(replication.show("geqo_effort").await.expect("shown"), "7");
    let uri = format!(
        "postgresql://postgres@{}:{}/postgres?application_name=a%20b",
        cluster.socket_dir().display().to_string().replace('/', "%2F"),
        cluster.port()
    );
    assert_eq!(ask(&uri, "SELECT current_setting('application_name')").await.expect("asked"), "a b");
}

/// One role per method, over TCP and over the socket, each with the password that its name says.
fn cluster_with_passwords() -> Cluster {
    let mut builder = Cluster::builder();
    for (role, method) in [("scram", "scram-sha-256"), ("md5", "md5"), ("clear", "password")] {
        builder = builder.hba(&format!("local all {role} {method}")).hba(&format!("host all {role} all {method}"));
    }
    let cluster = builder.start();
    cluster.psql(
        "postgres",
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'pä ß''word'; \
         CREATE ROLE clear LOGIN REPLICATION PASSWORD 'pä ß''word'; \
         SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'pä ß''word';",
    );
    cluster
}

#[tokio::test]
async fn passwords_are_proved_by_every_method() {
    let cluster = cluster_with_passwords();
    let socket = format!("host={} port={} dbname=postgres", cluster.socket_dir().display(), cluster.port());
    let tcp = format!("host=127.0.0.1 port={} dbname=postgres", cluster.port());
    for role in ["scram", "md5", "clear"] {
        for place in [&socket, &tcp] {
            let string = format!("{place} user={role}");
            let right = format!("{string} password='pä ß\\'word'");
            if role == "clear" && place == &tcp {
                let error = refused(&right).await;
                assert_eq!(error.kind(), ErrorKind::Login);
                assert!(error.to_string().contains("not encrypted"), "{error}");
                // Either half of the demand may have been meant for a link with TLS.
                for half in ["sslmode=disable", "require_auth=password"] {
                    let error = refused(&format!("{right} {half}")).await;
                    assert!(error.to_string().contains("not encrypted"), "{half}: {error}");
                }
                let insisted = format!("{right} sslmode=disable require_auth=password");
                assert_eq!(ask(&insisted, "SELECT current_user::text").await.expect("logged in"), role);
                replication(&insisted).await.expect("logged in").identify().await.expect("identified");
                continue;
            }
            assert_eq!(ask(&right, "SELECT current_user::text").await.expect("logged in"), role);
            replication(&right).await.expect("logged in").identify().await.expect("identified");

            let error = refused(&format!("{string} password=wr0ngword")).await;
            assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Login, Some("28P01")));
            assert!(error.to_string().contains(role), "{error}");
            assert!(!format!("{error:?}").contains("wr0ngword"), "{error:?}");

            let error = refused(&format!("{string} password='' passfile=/nonexistent")).await;
            assert_eq!(error.kind(), ErrorKind::Login);
            assert!(error.to_string().contains("wants a password"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_method_that_is_not_required_is_refused() {
    let cluster = cluster_with_passwords();
    let base = format!(
        "host={} port={} dbname=postgres password='pä ß\\'word'",
        cluster.socket_dir().display(),
        cluster.port()
    );
    // What each role's login amounts to; `postgres` is trusted.
    for (role, method) in [("scram", "scram-sha-256"), ("md5", "md5"), ("clear", "password"), ("postgres", "none")] {
        let others = ["scram-sha-256", "md5", "password", "none"].into_iter().filter(|other| *other != method);
        let others = others.collect::<Vec<_>>().join(",");
        for required in [method.to_owned(), format!("gss,{method}"), format!("!{}", others.replace(',', ",!"))] {
            let string = format!("{base} user={role} require_auth={required}");
            assert_eq!(ask(&string, "SELECT current_user::text").await.expect(&string), role);
            replication(&string).await.expect(&string);
        }
        for required in [others.clone(), format!("!{method}")] {
            let string = format!("{base} user={role} require_auth={required}");
            let error = refused(&string).await;
            assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Login, false), "{string}: {error:?}");
            assert!(error.to_string().contains(&format!("require_auth={required}")), "{error}");
            if major() >= 16 {
                libpq(&cluster, &[], &string, "SELECT 1").expect_err("libpq refuses it as well");
            }
        }
    }
}

#[tokio::test]
async fn the_user_that_runs_the_server_can_be_required() {
    let cluster = Cluster::start();
    // The server's files belong to the user that it runs as.
    let uid = fs::metadata(cluster.data_dir().join("postmaster.pid")).expect("the server's file").uid();
    let passwd = fs::read_to_string("/etc/passwd").expect("the users");
    let name = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|user| user[2] == uid.to_string());
    let Some(name) = name.map(|user| user[0].to_owned()) else {
        skip(&format!("the user {uid}, who runs the server, is not in /etc/passwd"));
        return;
    };
    let string = format!("{} requirepeer={name}", cluster.conninfo("postgres"));
    assert_eq!(ask(&string, "SELECT 'in'").await.expect("connected"), "in");
    replication(&string).await.expect("connected");

    let string = format!("{} requirepeer=somebody_else", cluster.conninfo("postgres"));
    let error = refused(&string).await;
    assert_eq!(error.kind(), ErrorKind::Login);
    for part in ["requirepeer=somebody_else", &name] {
        assert!(error.to_string().contains(part), "{part} in: {error}");
    }
    libpq(&cluster, &[], &string, "SELECT 1").expect_err("libpq refuses it as well");
    // As in libpq it says nothing about TCP.
    let string = format!("{} requirepeer=somebody_else", cluster.tcp_conninfo("postgres"));
    assert_eq!(ask(&string, "SELECT 'in'").await.expect("connected"), "in");
}

#[tokio::test]
async fn a_database_or_a_role_that_is_not_there_is_named() {
    let cluster = Cluster::builder().hba("local all peer peer").hba("host all unlisted all reject").start();
    let error = refused(&cluster.conninfo("nowhere")).await;
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Login, 3));
    assert!(error.to_string().contains("\"nowhere\""), "{error}");
    assert!(error.hint().expect("a hint").contains("dbname"), "{error:?}");

    let error = refused(&format!("{} user=nobody", cluster.conninfo("postgres"))).await;
    assert_eq!(error.kind(), ErrorKind::Login);
    assert!(error.to_string().contains("\"nobody\""), "{error}");
    assert!(error.hint().expect("a hint").contains("PGUSER"), "{error:?}");

    cluster.psql("postgres", "CREATE ROLE peer LOGIN REPLICATION");
    let error = refused(&format!("{} user=peer", cluster.conninfo("postgres"))).await;
    assert_eq!(error.kind(), ErrorKind::Login);
    assert!(error.hint().expect("a hint").contains("operating system's user"), "{error:?}");

    let error = refused(&format!("{} user=unlisted", cluster.tcp_conninfo("postgres"))).await;
    assert_eq!(error.kind(), ErrorKind::Login);
    assert!(error.hint().expect("a hint").contains("pg_hba.conf"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_down_or_full_is_worth_another_try() {
    let cluster =
        Cluster::builder().setting("max_connections", "5").setting("superuser_reserved_connections", "1").start();
    cluster.psql("postgres", "CREATE ROLE plain LOGIN");
    let string = format!("{} user=plain", cluster.conninfo("postgres"));
    let mut open = Vec::new();
    let error = loop {
        match postbox::transport::connect_sql(&super::info(&string)).await {
            Ok(client) => open.push(client),
            Err(error) => break error,
        }
        assert!(open.len() <= 5, "more connections than allowed");
    };
    assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Server, true), "{error:?}");
    drop(open);

    cluster.stop(Stop::Immediate);
    for string in [cluster.conninfo("postgres"), cluster.tcp_conninfo("postgres")] {
        let error = refused(&string).await;
        assert_eq!((error.kind(), error.is_transient(), error.exit_code()), (ErrorKind::Connect, true, 3));
        assert!(error.to_string().contains(&cluster.port().to_string()), "{error}");
    }
    let error = refused("host=postbox.invalid user=u dbname=d").await;
    assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Connect, true), "{error:?}");
    assert!(error.to_string().contains("postbox.invalid"), "{error}");
}

/// Else its log would have an error of each.
#[test]
fn commands_take_leave_of_their_server() {
    let cluster = Cluster::builder().setting("log_disconnections", "on").with_postbox().start();
    cluster.psql("postgres", "SELECT postbox.create_outbox('orders')");
    let before = cluster.log().matches("disconnection: ").count();
    let commands = ["group seek g --to latest", "group list", "maintain --once", "group describe g"];
    for command in iter::once("group create g --outbox orders").chain(commands.into_iter().cycle()).take(13) {
        let mut postbox = Command::new(postbox_binary());
        let output = postbox.args(command.split(' ')).args(["-d", &cluster.conninfo("postgres")]).output();
        assert!(output.expect("postbox runs").status.success(), "{command}");
    }
    wait_until("all are gone", PATIENCE, || {
        (cluster.log().matches("disconnection: ").count() >= before + 13).then_some(())
    });
    for lost in ["could not send data to client", "connection to client lost"] {
        assert!(!cluster.log().contains(lost), "{}", cluster.log());
    }
}

/// As when it shuts down, or a setting changes, at just that moment.
#[tokio::test]
async fn what_the_server_says_of_its_own_accord_may_come_with_the_end_of_the_login() {
    let cluster = Cluster::start();
    let proxy = Proxy::to(cluster.port());
    let fields = b"SNOTICE\0VNOTICE\0C00000\0Mby the way\0\0";
    let notice = [&b"N"[..], &u32::try_from(fields.len() + 4).expect("a length").to_be_bytes(), fields].concat();
    proxy.add_behind(b"Z\0\0\0\x05I", notice);
    let string = cluster.tcp_conninfo("postgres").replace(&cluster.port().to_string(), &proxy.port().to_string());
    assert_eq!(ask(&string, "SELECT 'answered'").await.expect("connected"), "answered");
}
