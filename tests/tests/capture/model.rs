//! Whatever is done to a table: a copy to which its events are applied is as the table is.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use postbox_tests::major;

use crate::sql::{row, run, start};

/// Applies the events of the outbox to the copy; what is to be deleted must be there.
const APPLY: &str = "DO $do$
    DECLARE
        event record;
        gone jsonb;
    BEGIN
        FOR event IN SELECT seq, payload FROM t_outbox ORDER BY seq LOOP
            IF event.payload ? 'full_refresh' THEN
                DELETE FROM copy;
            END IF;
            FOR gone IN SELECT jsonb_array_elements(event.payload -> 'deleted') UNION ALL
                SELECT event.payload -> 'before' WHERE jsonb_typeof(event.payload -> 'before') = 'object' LOOP
                DELETE FROM copy WHERE ctid = (SELECT ctid FROM copy c WHERE c.row = gone LIMIT 1);
                IF NOT FOUND THEN
                    RAISE 'event % deletes % which is not there', event.seq, gone;
                END IF;
            END LOOP;
            INSERT INTO copy SELECT jsonb_array_elements(event.payload -> 'inserted') UNION ALL
                SELECT event.payload -> 'after' WHERE jsonb_typeof(event.payload -> 'after') = 'object';
        END LOOP;
        DELETE FROM t_outbox;
    END $do$";

/// A statement on the table, or on one of its partitions.
fn statement(random: &mut StdRng, partitioned: bool) -> String {
    let id = random.random_range(0..30);
    let kind = ["a", "b", "c"][random.random_range(0..3)];
    let table = if partitioned && random.random_bool(0.4) { format!("t_{kind}") } else { "t".to_owned() };
    let rows = format!("SELECT DISTINCT ON (i % 30) i % 30, '{kind}', {id} FROM generate_series({id}, {id} + 5) i");
    match random.random_range(0..12) {
        0..3 => format!("INSERT INTO {table} (id, kind, n) {rows} ON CONFLICT (id, kind) DO UPDATE SET n = excluded.n"),
        3 => format!("INSERT INTO {table} (id, kind, n) {rows} ON CONFLICT DO NOTHING"),
        4 | 5 => format!("UPDATE {table} SET n = n % 5 WHERE id > {id}"),
        // From one partition to another.
        6 => format!(
            "UPDATE t SET kind = '{kind}' WHERE id = {id} AND NOT EXISTS (SELECT FROM t u WHERE u.id = t.id AND u.kind <> t.kind)"
        ),
        7 => format!("DELETE FROM {table} WHERE id % 3 = {}", id % 3),
        8 => format!("SAVEPOINT s; DELETE FROM {table}; ROLLBACK TO s"),
        9 if major() >= 15 => format!(
            "MERGE INTO {table} USING ({rows}) AS s (id, kind, n) ON {table}.id = s.id AND {table}.kind = s.kind
             WHEN MATCHED AND s.id % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = s.n
             WHEN NOT MATCHED THEN INSERT (id, kind, n) VALUES (s.id, s.kind, s.n)"
        ),
        10 if random.random_bool(0.2) => "TRUNCATE t".to_owned(),
        _ => format!(
            "WITH moved AS (DELETE FROM {table} WHERE id = {id} RETURNING id, kind, n) INSERT INTO t (id, kind, n) SELECT id + 30, kind, n FROM moved ON CONFLICT DO NOTHING"
        ),
    }
}

#[tokio::test]
async fn a_copy_that_applies_the_events_is_as_the_table_is() {
    let (_cluster, client) = start().await;
    for (table, partitioned) in [
        ("CREATE TABLE t (id int, kind text, n int, PRIMARY KEY (id, kind))", false),
        (
            "CREATE TABLE t (n int, id int, kind text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
             CREATE TABLE t_a PARTITION OF t FOR VALUES IN ('a'); CREATE TABLE t_c PARTITION OF t DEFAULT;
             CREATE TABLE t_b (kind text NOT NULL, id int NOT NULL, n int); ALTER TABLE t ATTACH PARTITION t_b FOR VALUES IN ('b')",
            true,
        ),
    ] {
        for how in ["", ", key => '{kind}'", ", granularity => 'row'", ", granularity => 'row', key => '{n}'"] {
            let seed = std::env::var("POSTBOX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
            println!("POSTBOX_SEED={seed}: {table} {how}");
            let mut random = StdRng::seed_from_u64(seed);
            run(&client, &format!("{table}; CREATE TABLE copy (row jsonb)")).await;
            run(&client, &format!("SELECT postbox.enable_outbox('t'{how})")).await;
            for _ in 0..40 {
                let statements: Vec<_> = (0..random.random_range(1..5)).map(|_| statement(&mut random, partitioned)).collect();
                let end = if random.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" };
                run(&client, &format!("BEGIN; {}; {end}", statements.join("; "))).await;
                run(&client, APPLY).await;
                let same = "SELECT NOT EXISTS (SELECT to_jsonb(t) FROM t EXCEPT ALL SELECT row FROM copy)
                    AND NOT EXISTS (SELECT row FROM copy EXCEPT ALL SELECT to_jsonb(t) FROM t)";
                assert_eq!(row(&client, same).await, "t", "seed {seed}, after {statements:#?}");
            }
            run(&client, "SELECT postbox.disable_outbox('t', with_outbox => true); DROP TABLE t, copy").await;
        }
    }
}
