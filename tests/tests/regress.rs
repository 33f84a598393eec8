//! `tests/regress`: PostgreSQL's own regression and isolation testers over the SQL and the plugin.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postbox_tests::Cluster;

/// Every file of this kind, by its name without the ending, in order.
fn files(dir: &Path, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(ending)?.to_owned()))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no {ending} in {}", dir.display());
    names
}

/// Runs one of the testers, each test in the order of its name, in a database of its own.
fn run(cluster: &Cluster, tester: &str, inputs: &str, ending: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("regress");
    let lib = cluster.bin("postgres").parent().unwrap().with_file_name("lib");
    let output = tempfile::tempdir().unwrap();
    let tests = files(&source.join(inputs), ending);
    let mut command = Command::new(lib.join("pgxs/src/test").join(tester));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LD_LIBRARY_PATH", &lib)
        .env("LC_ALL", "C.UTF-8")
        .env("PG_TEST_TIMEOUT_DEFAULT", "60")
        .arg(format!("--inputdir={}", source.display()))
        .arg(format!("--outputdir={}", output.path().display()))
        .arg(format!("--bindir={}", lib.with_file_name("bin").display()))
        .arg(format!("--host={}", cluster.socket_dir().display()))
        .arg(format!("--port={}", cluster.port()))
        .args(["--user=postgres", "--dbname=regression", "--encoding=UTF8", "--load-extension=postbox"])
        .args(&tests)
        .current_dir(output.path());
    let accept = env::var_os("POSTBOX_ACCEPT").is_some();
    if accept {
        // The testers give up at a test whose expected output is missing.
        for test in &tests {
            let expected = source.join("expected").join(format!("{test}.out"));
            fs::OpenOptions::new().create(true).append(true).open(expected).unwrap();
        }
    }
    let ran = command.output().unwrap_or_else(|error| panic!("{tester}: {error}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let results = output.path().join("results");
    if accept {
        for test in &tests {
            let name = format!("{test}.out");
            // A tester that gave up has no output for the rest.
            if let Err(error) = fs::copy(results.join(&name), source.join("expected").join(&name)) {
                panic!("{name}: {error}\n{}{}", said(&ran.stdout), said(&ran.stderr));
            }
        }
        return;
    }
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    assert!(
        ran.status.success(),
        "{}{}\n{}",
        said(&ran.stdout),
        said(&ran.stderr),
        read(output.path().join("regression.diffs")),
    );
}

#[test]
fn what_psql_sees_is_what_is_expected() {
    run(&Cluster::start(), "regress/pg_regress", "sql", ".sql");
}

#[test]
fn what_races_ends_as_expected() {
    run(&Cluster::start(), "isolation/pg_isolation_regress", "specs", ".spec");
}
