//! What the capture of a table adds to a statement, beside a trigger that somebody wrote for the purpose.

use postbox_tests::Cluster;
use serde_json::json;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::{DATABASE, SCHEMA, server};
use crate::measure::Samples;
use crate::publish::pgbench_script;
use crate::report::{Report, data, range};

/// The tables, by what happens to what is changed in them.
const TABLES: [(&str, &str); 8] = [
    ("bare", "no capture"),
    ("by_hand", "a trigger written by hand"),
    ("by_hand_safe", "the same, SECURITY DEFINER, search_path pinned"),
    ("captured", "postbox.enable_outbox"),
    ("claiming", "the same, with a claim check"),
    ("parted", "the same, of 4 partitions"),
    ("keyed", "key => '{customer}'"),
    ("single", "granularity => 'row'"),
];
const BARE: usize = 0;
const BY_HAND: usize = 1;
const BY_HAND_SAFE: usize = 2;
const CAPTURED: usize = 3;

/// A statement, how many rows it changes, and how often it runs in a round.
const STATEMENTS: [(&str, &str, u64); 5] = [
    ("INSERT of 1 row", "INSERT INTO TABLE (customer, cents) VALUES ('ada', 5);", 5_000),
    ("UPDATE of 1 row", "\\set id random(1, 20000)\nUPDATE TABLE SET cents = cents + 1 WHERE id = :id;", 5_000),
    ("INSERT of 100 rows", "INSERT INTO TABLE (customer, cents) SELECT 'ada', n FROM generate_series(1, 100) n;", 500),
    ("UPDATE of 1,000 rows", "UPDATE TABLE SET cents = cents + 1 WHERE id <= 1000;", 60),
    ("UPDATE of 10,000 rows", "UPDATE TABLE SET cents = cents + 1 WHERE id <= 10000;", 6),
];

const SETUP: &str = "
    CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, cents int,
        note text DEFAULT 'a row of some length', at timestamptz DEFAULT now()) WITH (fillfactor = 50);
    INSERT INTO bare (customer, cents) SELECT 'c' || n, n FROM generate_series(1, 20000) n;
    CREATE TABLE by_hand (LIKE bare INCLUDING ALL) WITH (fillfactor = 50);
    CREATE TABLE by_hand_safe (LIKE bare INCLUDING ALL) WITH (fillfactor = 50);
    CREATE TABLE captured (LIKE bare INCLUDING ALL) WITH (fillfactor = 50);
    INSERT INTO by_hand (customer, cents) SELECT customer, cents FROM bare;
    INSERT INTO by_hand_safe (customer, cents) SELECT customer, cents FROM bare;
    INSERT INTO captured (customer, cents) SELECT customer, cents FROM bare;
    SELECT postbox.create_outbox('by_hand_outbox');
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF tg_op = 'INSERT' THEN
            INSERT INTO public.by_hand_outbox (type, key, headers, payload)
                SELECT 'by_hand.inserted', 'public.by_hand', jsonb_build_object('op', 'insert', 'table', 'public.by_hand'),
                    jsonb_build_object('inserted', jsonb_agg(to_jsonb(n)), 'deleted', '[]'::jsonb)
                FROM new_rows n HAVING count(*) > 0;
        ELSE
            INSERT INTO public.by_hand_outbox (type, key, headers, payload)
                SELECT 'by_hand.updated', 'public.by_hand', jsonb_build_object('op', 'update', 'table', 'public.by_hand'),
                    jsonb_build_object('inserted', (SELECT jsonb_agg(to_jsonb(n)) FROM new_rows n),
                        'deleted', (SELECT jsonb_agg(to_jsonb(o)) FROM old_rows o))
                WHERE EXISTS (SELECT FROM new_rows);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER inserted AFTER INSERT ON by_hand REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tell();
    CREATE TRIGGER updated AFTER UPDATE ON by_hand REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION tell();
    DO $do$ BEGIN EXECUTE format('CREATE FUNCTION tell_safely() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS %L',
        (SELECT prosrc FROM pg_proc WHERE proname = 'tell')); END $do$;
    CREATE TRIGGER inserted AFTER INSERT ON by_hand_safe REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tell_safely();
    CREATE TRIGGER updated AFTER UPDATE ON by_hand_safe REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION tell_safely();
    CREATE TABLE claiming (LIKE bare INCLUDING ALL) WITH (fillfactor = 50);
    CREATE TABLE keyed (LIKE bare INCLUDING ALL) WITH (fillfactor = 50);
    CREATE TABLE single (LIKE bare INCLUDING ALL) WITH (fillfactor = 50);
    CREATE SEQUENCE parted_id;
    CREATE TABLE parted (id bigint DEFAULT nextval('parted_id') PRIMARY KEY, customer text, cents int,
        note text DEFAULT 'a row of some length', at timestamptz DEFAULT now()) PARTITION BY HASH (id);
    SELECT format('CREATE TABLE parted_%s PARTITION OF parted FOR VALUES WITH (MODULUS 4, REMAINDER %s) WITH (fillfactor = 50)', n, n) FROM generate_series(0, 3) n \\gexec
    INSERT INTO claiming (customer, cents) SELECT customer, cents FROM bare;
    INSERT INTO keyed (customer, cents) SELECT customer, cents FROM bare;
    INSERT INTO single (customer, cents) SELECT customer, cents FROM bare;
    INSERT INTO parted (customer, cents) SELECT customer, cents FROM bare;
    SELECT postbox.enable_outbox('captured'), postbox.enable_outbox('claiming'), postbox.enable_outbox('parted'),
        postbox.enable_outbox('keyed', key => '{customer}'), postbox.enable_outbox('single', granularity => 'row');
    SELECT postbox.enable_claim_check('claiming_outbox');
    VACUUM ANALYZE";

/// Measures each statement on each table.
pub(crate) fn run(arguments: &Arguments) -> Outcome<Report> {
    let cluster = server().start();
    cluster.psql_result(DATABASE, SCHEMA)?;
    cluster.psql_result(DATABASE, SETUP)?;
    let mut report = Report::new(
        format!("Table capture: a statement and its event; {} rounds", arguments.rounds),
        &["statement", "table", "median µs", "min–max", "adds µs", "× by hand", "server CPU µs", "× by hand"],
    );
    let mut targets = Vec::new();
    for (name, statement, often) in STATEMENTS {
        let costs = measure(&cluster, name, statement, arguments.scaled(often), arguments.rounds)?;
        let time = |table: usize| costs[table].0.median();
        let processor = |table: usize| costs[table].1.median();
        for (table, (_, what)) in TABLES.iter().enumerate() {
            report.row(
                vec![
                    name.to_owned(),
                    (*what).to_owned(),
                    format!("{:.0}", time(table)),
                    range(&costs[table].0),
                    format!("{:.0}", time(table) - time(BARE)),
                    format!("{:.2}", time(table) / time(BY_HAND)),
                    format!("{:.0}", processor(table)),
                    format!("{:.2}", processor(table) / processor(BY_HAND)),
                ],
                json!({
                    "statement": statement, "table": what, "microseconds": data(&costs[table].0),
                    "server_processor_microseconds": data(&costs[table].1),
                }),
            );
        }
        targets.push((format!("{name}: × trigger by hand"), time(CAPTURED) / time(BY_HAND)));
        targets.push((format!("{name}: × the same, safe"), time(CAPTURED) / time(BY_HAND_SAFE)));
    }
    for (what, ratio) in targets {
        report.target(what, ratio, 1.1);
    }
    Ok(report)
}

fn measure(
    cluster: &Cluster,
    name: &str,
    statement: &str,
    often: u64,
    rounds: usize,
) -> Outcome<[(Samples, Samples); TABLES.len()]> {
    let mut costs: [(Vec<f64>, Vec<f64>); TABLES.len()] = Default::default();
    for round in 0..=rounds {
        eprintln!("capture: {name}, round {round} of {rounds}");
        for turn in 0..TABLES.len() {
            let which = (round + turn) % TABLES.len();
            let script = statement.replace("TABLE", TABLES[which].0);
            let (time, processor) = pgbench_script(cluster, &script, &[], often)?;
            // The first round finds cold caches; it does not count.
            if round > 0 {
                costs[which].0.push(time);
                costs[which].1.push(processor);
            }
        }
        // What piles up must not make the later rounds slower than the first.
        cluster.psql_result(
            DATABASE,
            "TRUNCATE by_hand_outbox, captured_outbox, claiming_outbox, claiming_outbox_claims, parted_outbox, keyed_outbox, single_outbox;
             VACUUM bare, by_hand, by_hand_safe, captured, claiming, parted, keyed, single",
        )?;
    }
    Ok(costs.map(|(times, processor)| (Samples::new(times), Samples::new(processor))))
}
