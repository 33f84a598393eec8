//! Service files, read as libpq reads them.

use postbox::ErrorKind;
use postbox_tests::{Cluster, major};

use super::{ask, home, libpq, path, postbox, refused, replication, write};

/// A role that needs a password, and an extension for `postbox group list`.
fn cluster() -> Cluster {
    let cluster = Cluster::builder().hba("local all billing scram-sha-256").hba("host all billing all scram-sha-256");
    let cluster = cluster.start();
    cluster.psql(
        "postgres",
        "CREATE EXTENSION postbox; CREATE ROLE billing SUPERUSER LOGIN REPLICATION PASSWORD 's3cret = word'; \
         CREATE ROLE other LOGIN REPLICATION",
    );
    cluster
}

/// The section [shop].
fn shop(cluster: &Cluster) -> String {
    format!(
        "# services\n[other]\nhost=/nonexistent\n\n[shop]\n host=127.0.0.1\nport={}\nuser=billing\nuser=other\n\
         password=s3cret = word\t\ndbname=postgres\n[shop]\nhost=/nonexistent\n",
        cluster.port()
    )
}

#[tokio::test]
async fn a_service_says_everything() {
    let cluster = cluster();
    let file = write(&cluster, "services", shop(&cluster), 0o644);
    let query = "SELECT concat_ws(' ', current_user, current_database(), host(inet_client_addr()))";
    for (string, expected) in [
        (format!("service=shop servicefile={}", file.display()), "billing postgres 127.0.0.1"),
        (format!("postgresql:///?service=shop&servicefile={}", file.display()), "billing postgres 127.0.0.1"),
        // What the string says comes first.
        (
            format!("service=shop user=other dbname=template1 servicefile={}", file.display()),
            "other template1 127.0.0.1",
        ),
        (
            format!("postgresql://postgres@/template1?service=shop&servicefile={}", file.display()),
            "postgres template1 127.0.0.1",
        ),
    ] {
        assert_eq!(ask(&string, query).await.expect(&string), expected, "{string}");
        replication(&string).await.expect(&string).identify().await.expect("identified");
        // libpq has the keyword servicefile since version 19 only.
        let theirs = string.replace(&format!("servicefile={}", file.display()), "");
        let theirs = libpq(&cluster, &[("PGSERVICEFILE", path(&file))], &theirs, query);
        assert_eq!(theirs.as_deref(), Ok(expected), "{string}");
    }
    let error = refused(&format!("service=shop password=wr0ng servicefile={}", file.display())).await;
    assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Login, Some("28P01")));
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
}

#[test]
fn files_are_looked_for_where_libpq_looks() {
    let cluster = cluster();
    let home = home(&cluster);
    let (shop, port) = (shop(&cluster), cluster.port().to_string());
    let nowhere = "[shop]\nhost=/nonexistent\n";
    let list = |environment: &[(&str, &str)], arguments: &[&str]| {
        let theirs = libpq(&cluster, environment, arguments.get(1).unwrap_or(&""), "SELECT 1");
        let ours = postbox(environment, &[arguments, &["group", "list"]].concat());
        // libpq before version 15 asks the user database where home is, and not HOME.
        let comparable = major() >= 15 || environment.iter().all(|(name, _)| *name != "HOME");
        assert!(
            !comparable || theirs.is_ok() == (ours.0 == Some(0)),
            "{environment:?} {arguments:?}: {theirs:?} {ours:?}"
        );
        ours
    };

    // The file of the user, the file that is named, the file of the administrator.
    let system = write(&cluster, "etc/pg_service.conf", &shop, 0o644);
    let etc = path(system.parent().expect("a directory"));
    let given = [("HOME", home.as_str()), ("PGSERVICE", "shop"), ("PGSYSCONFDIR", etc)];
    assert_eq!(list(&given, &[]), (Some(0), String::new()));
    write(&cluster, "home/.pg_service.conf", nowhere, 0o644);
    assert_eq!(list(&given, &[]).0, Some(3));
    write(&cluster, "home/.pg_service.conf", "[unrelated]\n", 0o644);
    assert_eq!(list(&given, &[]).0, Some(0));
    write(&cluster, "home/.pg_service.conf", &shop, 0o644);
    write(&cluster, "etc/pg_service.conf", nowhere, 0o644);
    assert_eq!(list(&given, &[]).0, Some(0));
    let named = write(&cluster, "named", nowhere, 0o644);
    assert_eq!(list(&[&given[..], &[("PGSERVICEFILE", path(&named))]].concat(), &[]).0, Some(3));
    assert_eq!(list(&[("HOME", &home)], &["-d", "service=shop"]).0, Some(0));

    // The service comes before the environment.
    let variables =
        [("PGHOST", "/nonexistent"), ("PGUSER", "nobody"), ("PGPASSWORD", "wr0ng"), ("PGDATABASE", "nowhere")];
    assert_eq!(list(&[&given[..], &variables].concat(), &[]), (Some(0), String::new()));
    // What it leaves open comes from there.
    write(&cluster, "named", "[half]\nhost=127.0.0.1\nuser=billing\n", 0o644);
    let half = [("HOME", "/nonexistent"), ("PGSERVICE", "half"), ("PGSERVICEFILE", path(&named))];
    let rest = [("PGPORT", port.as_str()), ("PGDATABASE", "postgres"), ("PGPASSWORD", "s3cret = word")];
    assert_eq!(list(&[&half[..], &rest].concat(), &[]), (Some(0), String::new()));

    // The whole of it also serves the stream.
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('events'); SELECT postbox.create_consumer_group('g', ARRAY['events'])",
    );
    let (code, said) = postbox(&given, &["run", "--group", "g", "--exit-when-idle", "1ms"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cluster = cluster();
    for (text, name, words) in [
        ("[shop]\nhost=h\nhunter2\n", "shop", &["FILE", "line 3", "keyword=value"][..]),
        ("[shop]\n\n# c\nhots=hunter2\n", "shop", &["\"hots\"", "FILE", "line 4"]),
        ("[shop]\nhost = h\n", "shop", &["\"host \"", "FILE", "line 2"]),
        ("[shop]\nservice=hunter2\n", "shop", &["service within a service", "FILE", "line 2"]),
        ("[shop]\nldap://h/hunter2\n", "shop", &["LDAP", "FILE", "line 2"]),
        ("[shop]\nsslmode=hunter\n", "shop", &["sslmode \"hunter\"", "FILE", "line 2"]),
        ("[shop]\nport=hunter\n", "shop", &["port \"hunter\"", "FILE", "line 2"]),
        ("[shop]\nhost=h\n", "Shop", &["\"Shop\" is not defined", "FILE"]),
    ] {
        let file = write(&cluster, "services", text, 0o644);
        let environment = [("HOME", "/nonexistent"), ("PGSYSCONFDIR", "/nonexistent"), ("PGSERVICEFILE", path(&file))];
        let (code, said) = postbox(&environment, &["-d", &format!("service={name}"), "group", "list"]);
        assert_eq!(code, Some(2), "{text}: {said}");
        for part in words {
            assert!(said.contains(&part.replace("FILE", path(&file))), "{part} in: {said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }
    let environment = [("HOME", "/nonexistent"), ("PGSERVICE", "shop"), ("PGSERVICEFILE", "/nonexistent/services")];
    let (code, said) = postbox(&environment, &["group", "list"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/nonexistent/services"), "{said}");
}

#[test]
fn secrets_are_in_no_log() {
    let cluster = cluster();
    let file = write(&cluster, "services", shop(&cluster), 0o644);
    let environment =
        [("HOME", "/nonexistent"), ("PGSERVICE", "shop"), ("PGSERVICEFILE", path(&file)), ("RUST_LOG", "trace")];
    cluster.psql(
        "postgres",
        "SELECT postbox.create_outbox('events'); SELECT postbox.create_consumer_group('g', ARRAY['events'])",
    );
    for (more, code) in
        [(("PGSSLMODE", "prefer"), 0), (("PGREQUIREAUTH", "md5"), 3), (("PGTARGETSESSIONATTRS", "standby"), 3)]
    {
        for arguments in [&["group", "list"][..], &["run", "--group", "g", "--exit-when-idle", "1ms"]] {
            // Who waits for a standby waits on, until told otherwise.
            if code != 0 && arguments[0] == "run" {
                continue;
            }
            let (ended, said) = postbox(&[&environment[..], &[more]].concat(), arguments);
            assert_eq!(ended, Some(code), "{more:?} {arguments:?}: {said}");
            assert!(!said.is_empty(), "there is a log to look at");
            assert!(!said.contains("s3cret"), "{more:?} {arguments:?}: {said}");
        }
    }
}
