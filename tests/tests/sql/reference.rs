//! `docs/sql.md`: its examples run, and it has every name and every column.

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
