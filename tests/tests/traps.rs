//! Traps in the schema `public`, which is in everybody's path: functions and operators that fit a call better than those of
//! `pg_catalog` do. What the program installs meets none.

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
