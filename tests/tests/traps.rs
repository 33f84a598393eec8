//! Traps in the schema `public`, which is in everybody's path: functions and operators that fit a call better than those of
//! `pg_catalog` do. Neither the program nor what it installs meets one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use postbox_tests::{Cluster, postbox_binary};

/// What a role lays with nothing but CREATE on `public`: the overloads that are known to have been met, and every operator on two
/// types of these for which `pg_catalog` has none of exactly that signature.
const TRAPS: &str = r#"
    DO $do$
    DECLARE
        types text[] := '{name,text,varchar,"\"char\"",oid,regclass,regproc,regprocedure,regnamespace,int2,int4,int8,numeric,float8,bool,timestamptz,interval,pg_lsn,xid8,uuid,json,jsonb,name[],text[],int8[]}';
        pair record;
        operator text;
        made int := 0;
        trap text := 'BEGIN RAISE EXCEPTION ''the trap was sprung: %'', %L; END';
    BEGIN
        FOR pair IN
            SELECT l, r, result, 'trap_' || row_number() OVER () AS trap
            FROM unnest(types) l, unnest(types) r, unnest('{boolean,text}'::text[]) result
        LOOP
            EXECUTE format('CREATE FUNCTION public.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', pair.trap, pair.l, pair.r, pair.result,
                format('BEGIN RAISE EXCEPTION %L; END', format('the trap was sprung: an operator of %s and %s', pair.l, pair.r)));
            FOREACH operator IN ARRAY CASE pair.result WHEN 'text' THEN '{||,+,-,->,->>}'::text[] ELSE '{=,<>,<,>,<=,>=}' END LOOP
                CONTINUE WHEN EXISTS (SELECT FROM pg_operator WHERE oprname = operator AND oprleft = pair.l::regtype AND oprright = pair.r::regtype);
                EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.%I, LEFTARG = %s, RIGHTARG = %s)', operator, pair.trap, pair.l, pair.r);
                made := made + 1;
            END LOOP;
        END LOOP;
        IF made < 5000 THEN
            RAISE EXCEPTION 'only % traps were laid', made;
        END IF;
        FOR pair IN
            SELECT 'format' AS called, arguments FROM unnest('{"text, text","text, name","text, text, text","text, name, name","text, text, text, text"}'::text[]) arguments
            UNION ALL
            SELECT called, c.oid::regclass::text
            FROM unnest('{to_json,row_to_json,to_jsonb}'::text[]) called,
                pg_class c WHERE c.oid IN (to_regclass('public.dlq_payments'), to_regclass('pg_stat_replication'), to_regclass('pg_replication_slots'))
        LOOP
            EXECUTE format('CREATE FUNCTION public.%s(%s) RETURNS text LANGUAGE plpgsql AS %L', pair.called, pair.arguments,
                format('BEGIN RAISE EXCEPTION %L; END', 'the trap was sprung: ' || pair.called));
        END LOOP;
    END
    $do$"#;

/// Lays them as a role that may do nothing else.
fn lay(cluster: &Cluster, database: &str) {
    cluster.psql(
        database,
        &format!("CREATE ROLE mallory; GRANT CREATE ON SCHEMA public TO mallory; SET ROLE mallory; {TRAPS}"),
    );
    // A superuser looks for an overload of `format`, and finds the trap.
    let sprung = cluster.psql_result(database, "SELECT format('%I', 'a'::name)").unwrap_err();
    assert!(sprung.contains("sprung"), "{sprung}");
}

/// Runs the binary as a superuser; HERE is the database as well.
fn postbox(cluster: &Cluster, line: &str) -> Output {
    let here = cluster.conninfo("postgres");
    let arguments = line.split(' ').map(|word| if word == "HERE" { &*here } else { word });
    Command::new(postbox_binary()).args(arguments).args(["-d", &here]).output().expect("postbox runs")
}

#[test]
fn nothing_that_install_makes_is_bound_to_what_others_made() {
    let cluster = Cluster::start();
    lay(&cluster, "postgres");
    let output = postbox(&cluster, "install");
    assert!(output.status.success(), "{output:?}");
    let bound = "
        SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0)
        FROM pg_catalog.pg_depend d
        WHERE d.refobjid IN (
            SELECT oid FROM pg_catalog.pg_proc WHERE pronamespace = 'public'::pg_catalog.regnamespace::oid
            UNION ALL SELECT oid FROM pg_catalog.pg_operator WHERE oprnamespace = 'public'::pg_catalog.regnamespace::oid)
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_operator o WHERE o.oid = d.objid AND o.oprnamespace = 'public'::pg_catalog.regnamespace::oid)";
    assert_eq!(cluster.psql("postgres", bound), "");
    // The script is also run by hand.
    let script = Command::new(postbox_binary()).args(["install", "--dry-run"]).output().unwrap();
    let script = String::from_utf8(script.stdout).unwrap();
    assert!(script.starts_with("BEGIN;\nSET LOCAL search_path = pg_catalog, pg_temp;\n"), "{}", &script[..100]);
}

#[test]
fn the_program_calls_nothing_that_others_made() {
    let cluster = Cluster::start();
    cluster.psql(
        "postgres",
        "CREATE EXTENSION postbox; SELECT postbox.enable_pgoutput(); SELECT postbox.create_outbox('orders');
         SELECT postbox.create_inbox('payments', max_retries => 0); SELECT postbox.enable_inbox_ordering('payments');
         CREATE TABLE handled (event_id text);
         CREATE FUNCTION handle(message jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.handled SELECT message OPERATOR(pg_catalog.->>) 'event_id' $$;
         INSERT INTO payments (event_id, payload) VALUES ('dead', '{}'), ('again', '{}');
         SELECT postbox.inbox_fail('payments', c.event_id, c.token, 'Broken') FROM postbox.inbox_claim('payments', 'w') c;
         INSERT INTO payments (event_id, payload, aggregate_id, sequence_num) VALUES ('a', '{}', 'a', 1), ('c', '{}', 'a', 3)",
    );
    lay(&cluster, "postgres");
    let publish = || cluster.psql("postgres", "SELECT postbox.publish('orders', 't', '{}'::text, key => 'k')");
    let mut failed = Vec::new();
    let mut run = |line: &str| {
        let output = postbox(&cluster, line);
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || said.contains("sprung") {
            failed.push(format!("{line}: {said}"));
        }
        String::from_utf8(output.stdout).unwrap()
    };
    run("group create g --outbox orders --from earliest --wal-budget 10GB");
    publish();
    run("run --group g --max-events 1");
    publish();
    run("run --group g --exit-when-idle 300ms --sink exec --exec false --max-attempts 1");
    for line in [
        "dead-letter list g",
        "dead-letter list g --error x --older-than 1s",
        "dead-letter redrive g --all",
        "dead-letter discard g --all",
        "outbox list",
        "outbox peek orders",
        "group list",
        "group describe g",
        "group pause g",
        "group seek g --to earliest",
        "group set-source g pgoutput",
        "group resume g",
        "run --group g --exit-when-idle 300ms",
        "run --group g --exit-when-idle 300ms --until-lsn 0/1",
        "inbox status",
        "inbox status payments",
        "inbox health",
        "inbox health payments",
        "inbox gaps payments",
        "inbox dlq list payments --error BROKEN --older-than 1ms",
        "inbox dlq show payments dead",
        "inbox dlq replay payments again",
        "inbox dlq discard payments dead",
        "inbox work payments --call handle --exit-when-idle 100ms",
        "inbox skip-gap payments --aggregate a --range 2 --reason lost",
        "inbox work payments --exec true --exit-when-idle 100ms",
        "inbox pause payments",
        "inbox resume payments",
        "maintain --once",
        "run --group g --exit-when-idle 300ms --sink inbox --inbox payments --inbox-url HERE",
        "outbox purge orders --force",
    ] {
        run(line);
    }
    let drop_slot = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots";
    cluster.psql("postgres", drop_slot);
    run("group recover g");
    run("group drop g");
    assert_eq!(failed, [""; 0]);
    // Nor was there one that nobody heard of.
    assert_eq!(cluster.log().matches("ERROR:  the trap was sprung").count(), 1, "{}", cluster.log());
    assert_eq!(cluster.psql("postgres", "SELECT event_id FROM handled ORDER BY event_id"), "a\nagain");
}

/// What comes before a bracket and is no function.
const NO_CALLS: [&str; 14] = [
    "and", "any", "array", "as", "coalesce", "exists", "extract", "filter", "greatest", "in", "least", "nullif",
    "over", "values",
];

/// Texts that begin so are statements, or parts of such.
const STATEMENTS: [&str; 8] = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH ", "CASE ", "SET ", "coalesce("];

/// The program says which functions and catalogs it means.
#[test]
fn statements_of_the_program_name_the_schema_of_what_they_call() {
    let mut statements = 0;
    let mut bare = Vec::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../consumer/src")) {
        let source = fs::read_to_string(&path).unwrap().replace("'\"'", "");
        let source = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        // Every other piece is a text.
        let texts = source.replace("\\\"", "").split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        for text in texts.iter().filter(|text| STATEMENTS.iter().any(|begin| text.trim_start().starts_with(begin))) {
            statements += 1;
            let calls = text.match_indices('(').filter_map(|(at, _)| last_word(&text[..at]));
            let calls = calls.filter(|name| !name.contains(['.', '{']) && !NO_CALLS.contains(&&*name.to_lowercase()));
            let catalogs =
                text.split("FROM ").chain(text.split("JOIN ")).skip(1).filter(|rest| rest.starts_with("pg_"));
            let catalogs =
                catalogs.filter_map(|rest| rest.split_whitespace().next()).filter(|name| !name.contains('.'));
            bare.extend(calls.chain(catalogs).map(|name| format!("{}: {name}", path.display())));
        }
    }
    assert!(statements > 60, "only {statements} statements were found");
    assert_eq!(bare, [""; 0]);
}

/// The word at the end of a text, with all that dots join to it.
fn last_word(text: &str) -> Option<&str> {
    let word = text.rsplit(|c: char| !(c.is_alphanumeric() || "_.{}".contains(c))).next();
    word.filter(|word| !word.is_empty())
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
