//! The password file, read as libpq reads it.

use std::fs;

use postbox::ErrorKind;
use postbox_tests::Cluster;

use super::{ask, home, libpq, path, postbox, refused, replication, write};

/// Roles that need the password `pä:ß\word`, and an extension for `postbox group list`.
fn cluster(roles: &[&str]) -> Cluster {
    let mut builder = Cluster::builder();
    for role in roles {
        builder =
            builder.hba(&format!("local all {role} scram-sha-256")).hba(&format!("host all {role} all scram-sha-256"));
    }
    let cluster = builder.start();
    cluster.psql("postgres", "CREATE EXTENSION postbox");
    for role in roles {
        cluster
            .psql("postgres", &format!("CREATE ROLE \"{role}\" SUPERUSER LOGIN REPLICATION PASSWORD E'pä:ß\\\\word'"));
    }
    cluster
}

/// The password as the file spells it.
const SPELLED: &str = r"pä\:ß\\word";

#[tokio::test]
async fn lines_match_as_they_do_for_libpq() {
    let cluster = cluster(&["u"]);
    let port = cluster.port().to_string();
    let dir = path(cluster.socket_dir()).to_owned();
    for (lines, place, found) in [
        ("127.0.0.1:PORT:postgres:u:RIGHT", "tcp", true),
        ("*:*:*:*:RIGHT", "tcp", true),
        ("*:*:*:*:RIGHT", "socket", true),
        ("DIR:PORT:postgres:u:RIGHT", "socket", true),
        // The first line that matches counts, right or wrong.
        ("*:*:*:u:wrong\n*:*:*:*:RIGHT", "tcp", false),
        (
            "# *:*:*:*:wrong\n\n*:1:*:*:wrong\nother:*:*:*:wrong\n*:*:template1:*:wrong\n*:*:*:v:wrong\n*:*:*:u:RIGHT",
            "tcp",
            true,
        ),
        ("127.0.0.1:PORT:postgres:u", "tcp", false),
        ("127.0.0.1:PORT:post*:u:RIGHT", "tcp", false),
        ("localhost:*:*:*:RIGHT", "tcp", false),
        (r"127\.0.0.1:PORT:po\stgres:\u:RIGHT", "tcp", true),
        ("*:*:*:*:RIGHT:and more", "tcp", true),
        ("*:*:*:*:RIGHT\r", "tcp", true),
        ("*:*:*:*:pä:ß\\word", "tcp", false),
    ] {
        let text = lines.replace("PORT", &port).replace("DIR", &dir).replace("RIGHT", SPELLED) + "\n";
        let file = write(&cluster, "lines", &text, 0o600);
        let host = if place == "tcp" { "127.0.0.1" } else { &dir };
        let string = format!("host={host} port={port} user=u dbname=postgres passfile={}", file.display());
        let theirs = libpq(&cluster, &[], &string, "SELECT 1");
        assert_eq!(theirs.is_ok(), found, "libpq: {text}: {theirs:?}");
        if found {
            ask(&string, "SELECT current_user::text").await.expect(&text);
            replication(&string).await.expect(&text);
        } else {
            let error = refused(&string).await;
            assert_eq!(error.kind(), ErrorKind::Login, "{text}: {error:?}");
            assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn each_host_has_its_own_password() {
    let clusters = [cluster(&["u"]), cluster(&["u"])];
    let [first, second] = &clusters;
    // Both let us in, the first one does not fit.
    first.psql("postgres", "ALTER ROLE u PASSWORD 'first'; ALTER ROLE u SET default_transaction_read_only = on");
    second.psql("postgres", "ALTER ROLE u PASSWORD 'second'");
    let lines = format!("*:{}:*:*:first\n*:{}:*:*:second\n", first.port(), second.port());
    let file = write(first, "lines", lines, 0o600);
    let string = format!(
        "host=127.0.0.1,{} port={},{} user=u dbname=postgres target_session_attrs=read-write passfile={}",
        second.socket_dir().display(),
        first.port(),
        second.port(),
        file.display()
    );
    let port = "SELECT current_setting('port')";
    assert_eq!(ask(&string, port).await.expect("connected"), second.port().to_string());
    replication(&string).await.expect("connected");
    assert_eq!(libpq(first, &[], &string, port), Ok(second.port().to_string()));
    // The first host's password is not for the second.
    let file = write(first, "lines", "*:*:*:*:first\n", 0o600);
    assert_eq!(refused(&string).await.sqlstate(), Some("28P01"), "{}", file.display());
}

#[test]
fn the_file_is_looked_for_where_libpq_looks() {
    let cluster = cluster(&["u"]);
    let (port, home) = (cluster.port().to_string(), home(&cluster));
    let base = [("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("PGUSER", "u"), ("PGDATABASE", "postgres")];
    let right = format!("127.0.0.1:{port}:*:u:{SPELLED}\n");
    let elsewhere = write(&cluster, "elsewhere", &right, 0o600);
    let list = |more: &[(&str, &str)], arguments: &[&str]| {
        postbox(&[&base, more].concat(), &[arguments, &["group", "list"]].concat())
    };

    let (code, said) = list(&[("HOME", &home)], &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("PGPASSWORD") && said.contains(".pgpass"), "{said}");
    let named = [("HOME", home.as_str()), ("PGPASSFILE", path(&elsewhere))];
    assert_eq!(list(&named, &[]), (Some(0), String::new()));
    let string = format!("passfile={}", elsewhere.display());
    assert_eq!(list(&[("PGPASSFILE", "/nonexistent")], &["-d", &string]), (Some(0), String::new()));

    let default = write(&cluster, "home/.pgpass", &right, 0o600);
    assert_eq!(list(&[("HOME", &home)], &[]), (Some(0), String::new()));
    // A file that was named takes its place.
    assert_eq!(list(&[("HOME", &home), ("PGPASSFILE", "/nonexistent")], &[]).0, Some(3));
    // A password that is given comes first.
    assert_eq!(list(&[("HOME", &home), ("PGPASSWORD", "wr0ng")], &[]).0, Some(3));

    for mode in [0o640, 0o604, 0o666] {
        write(&cluster, "home/.pgpass", &right, mode);
        let (code, said) = list(&[("HOME", &home)], &[]);
        assert_eq!(code, Some(3), "{mode:o}: {said}");
        assert!(said.contains(&format!("chmod 0600 {}", default.display())), "{said}");
        assert!(!said.contains("pä"), "the password is not shown: {said}");
        libpq(&cluster, &[&base[..], &[("HOME", &home)]].concat(), "", "SELECT 1").expect_err("libpq refuses it");
    }
    fs::remove_file(&default).expect("removed");
    fs::create_dir(&default).expect("a directory in its place");
    let (code, said) = list(&[("HOME", &home)], &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("not a plain file"), "{said}");
}
