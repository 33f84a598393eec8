//! `docs/sql.md`: its examples run, and it has every name and every column. `sql/`: every refusal says what to do.

use std::fs;
use std::path::Path;

use postbox_tests::Cluster;

use crate::docs::blocks;

#[test]
fn the_reference_runs_and_is_complete() {
    let cluster = Cluster::start();
    cluster.psql("postgres", "CREATE EXTENSION postbox");
    let mut results = Vec::new();
    for (language, sql) in blocks("docs/sql.md") {
        assert_eq!(language, "sql", "a block that nobody runs");
        results.push(cluster.psql("postgres", &sql));
    }
    assert!(results.contains(&"order_events|jsonb|f|{}|t".to_owned()), "{results:#?}");
    assert!(results.iter().any(|result| result.contains("order.paid|{}")), "{results:#?}");

    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sql.md")).unwrap();
    let names = cluster.psql(
        "postgres",
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'postbox'::regnamespace AND proname !~ '^_'
         UNION SELECT unnest(proargnames) FROM pg_proc WHERE pronamespace = 'postbox'::regnamespace AND proname !~ '^_'
         UNION SELECT relname FROM pg_class WHERE relnamespace = 'postbox'::regnamespace AND relkind = 'v' AND relname !~ '^_'
         UNION SELECT attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
             WHERE relnamespace = 'postbox'::regnamespace AND relkind = 'v' AND relname !~ '^_' AND attnum > 0",
    );
    assert!(names.lines().count() > 40, "{names}");
    for name in names.lines() {
        assert!(text.contains(name), "docs/sql.md says nothing of {name}");
    }
}

#[test]
fn every_refusal_has_a_code_and_a_hint() {
    let mut refusals = 0;
    let folders = ["../sql", "../sql/plain"].map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    for entry in folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
        // A bare `raise;` passes on an error of another; whatever else is raised is ours.
        for raised in code.split("raise ").skip(1) {
            let mut quoted = false;
            let end = raised.find(|c| {
                quoted ^= c == '\'';
                c == ';' && !quoted
            });
            let statement = &raised[..end.expect("a semicolon")];
            let shown = format!("{}: raise {statement}", path.display());
            assert!(statement.contains("hint = "), "no hint: {shown}");
            // A warning has a code of its own.
            assert!(statement.contains("errcode = ") || statement.starts_with("warning "), "no SQLSTATE: {shown}");
            refusals += 1;
        }
    }
    assert!(refusals > 40, "only {refusals} were found");
}
