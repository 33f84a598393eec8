//! Who needs what right, and what nobody can do with another's.

use postbox_tests::Cluster;

use super::{ORDERS, events, told};
use crate::sql::{error, refused, row, rows, run, start};

#[tokio::test]
async fn who_writes_to_the_table_needs_no_right_on_the_outbox() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE ROLE shop; CREATE ROLE app; GRANT CREATE ON SCHEMA public TO shop; SET ROLE shop").await;
    run(&client, ORDERS).await;
    run(&client, "RESET ROLE; SELECT postbox.enable_outbox('orders'); GRANT INSERT, SELECT, UPDATE ON orders TO app; SET ROLE app").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5); UPDATE orders SET cents = 6").await;
    for forged in [
        "INSERT INTO orders_outbox (type, payload) VALUES ('orders.inserted', '{}')",
        "SELECT postbox.disable_outbox('orders')",
        "SELECT postbox_columns_orders('key')",
        "CREATE TEMP TABLE mine (LIKE orders); CREATE TRIGGER t AFTER TRUNCATE ON mine EXECUTE FUNCTION postbox_capture_orders()",
        "CREATE TEMP TABLE mine (LIKE orders); CREATE TRIGGER t BEFORE INSERT ON mine EXECUTE FUNCTION postbox_begin_orders()",
        "ALTER TABLE orders DISABLE TRIGGER ALL",
    ] {
        let denied = error(&client, forged).await;
        assert_eq!(denied.code().code(), "42501", "{forged}: {denied:?}");
    }
    run(&client, "RESET ROLE").await;
    // All of it belongs to the owner of the table, and runs with his rights.
    let owners = "SELECT DISTINCT pg_get_userbyid(o.owner) FROM (
        SELECT proowner FROM pg_proc WHERE proname ~ '_orders$' UNION SELECT relowner FROM pg_class WHERE relname ~ '^orders_outbox') o(owner)";
    assert_eq!(rows(&client, owners).await, ["shop"]);
    assert_eq!(told(&events(&client, "orders_outbox").await).len(), 2);
}

#[tokio::test]
async fn an_operator_captures_his_own_tables_and_the_owner_must_be_a_publisher() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE op REPLICATION; SELECT postbox.grant_role('operator', 'op'); GRANT CREATE ON SCHEMA public TO op",
    )
    .await;
    run(&client, ORDERS).await;
    run(&client, "SELECT postbox.create_outbox('shared'); SET ROLE op").await;
    assert_eq!(error(&client, "SELECT postbox.enable_outbox('orders')").await.code().code(), "42501");
    run(&client, "CREATE TABLE mine (id int PRIMARY KEY)").await;
    let denied = "role \"op\", the owner of table \"public.mine\", may not publish";
    refused(
        &client,
        "SELECT postbox.enable_outbox('mine', 'shared')",
        "42501",
        denied,
        "grant_role('publisher', 'op', '{\"public.shared\"}')",
    )
    .await;
    run(&client, "RESET ROLE; SELECT postbox.grant_role('publisher', 'op', '{shared}'); SET ROLE op").await;
    run(&client, "SELECT postbox.enable_outbox('mine', 'shared'); INSERT INTO mine VALUES (1); SELECT postbox.disable_outbox('mine')").await;
    run(&client, "SELECT postbox.enable_outbox('mine'); DELETE FROM mine; SELECT postbox.disable_outbox('mine', with_outbox => true)").await;
    assert_eq!(row(&client, "SELECT to_regclass('mine_outbox') IS NULL").await, "t");
    run(&client, "RESET ROLE").await;
    assert_eq!(told(&events(&client, "shared").await).len(), 1);
}

#[tokio::test]
async fn what_the_owner_of_a_table_plants_in_it_runs_as_the_owner() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE mallory; GRANT CREATE ON SCHEMA public TO mallory; SET ROLE mallory;
         CREATE TABLE bait (id int PRIMARY KEY); RESET ROLE; SELECT postbox.enable_outbox('bait'); SET ROLE mallory;
         CREATE TYPE trap AS ENUM ('x');
         CREATE FUNCTION spring(trap) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN to_json(current_user::text); END $$;
         CREATE CAST (trap AS json) WITH FUNCTION spring(trap); ALTER TABLE bait ADD t trap; RESET ROLE",
    )
    .await;
    run(&client, "INSERT INTO bait VALUES (1, 'x')").await;
    assert_eq!(row(&client, "SELECT payload #>> '{inserted,0,t}' FROM bait_outbox").await, "mallory");
}

#[tokio::test]
async fn the_writers_search_path_is_not_followed() {
    let cluster = Cluster::start();
    let client = cluster.client("postgres").await;
    run(&client, "CREATE EXTENSION postbox").await;
    run(&client, ORDERS).await;
    run(
        &client,
        "CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT;
         SELECT postbox.enable_outbox('orders'); SELECT postbox.enable_outbox('parts');
         CREATE SCHEMA evil; CREATE TABLE evil.log (what text);
         CREATE FUNCTION evil.spring(what text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO evil.log VALUES (what); RETURN what; END $$;
         CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('set_config') $$;
         CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('current_setting') $$;
         CREATE FUNCTION evil.pg_trigger_depth() RETURNS int LANGUAGE sql AS $$ SELECT evil.spring('depth')::int $$;
         CREATE FUNCTION evil.replace(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('replace') $$;
         CREATE FUNCTION evil.glue(text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.spring('||') $$;
         CREATE OPERATOR evil.|| (FUNCTION = evil.glue, LEFTARG = text, RIGHTARG = text);
         CREATE FUNCTION evil.plus(int, int) RETURNS int LANGUAGE sql AS $$ SELECT evil.spring('+')::int $$;
         CREATE OPERATOR evil.+ (FUNCTION = evil.plus, LEFTARG = int, RIGHTARG = int);
         CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.spring('=') IS NULL $$;
         CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
         CREATE OPERATOR evil.- (FUNCTION = evil.plus, LEFTARG = int, RIGHTARG = int);
         CREATE TYPE evil.text AS (trap int); CREATE TYPE evil.int4 AS (trap int);
         SET search_path = evil, public, pg_catalog",
    )
    .await;
    run(
        &client,
        "INSERT INTO orders VALUES (1, 'ada', 5); UPDATE orders SET cents = 6; DELETE FROM orders; TRUNCATE orders",
    )
    .await;
    run(
        &client,
        "INSERT INTO parts VALUES (1); INSERT INTO part VALUES (2); UPDATE part SET id = 3; DELETE FROM parts",
    )
    .await;
    assert_eq!(rows(&client, "SELECT what FROM evil.log").await, [""; 0]);
    run(&client, "RESET search_path").await;
    assert_eq!(row(&client, "SELECT count(*) FROM orders_outbox").await, "4");
    assert_eq!(row(&client, "SELECT count(*) FROM parts_outbox").await, "5");
}

#[tokio::test]
async fn functions_that_somebody_else_has_made_are_not_taken_for_ours() {
    let (_cluster, client) = start().await;
    run(
        &client,
        "CREATE ROLE mallory; CREATE ROLE friend; CREATE ROLE shop; GRANT CREATE ON SCHEMA public TO mallory, shop",
    )
    .await;
    let superuser = row(&client, "SELECT current_user").await;
    for owner in ["shop", &superuser] {
        run(&client, &format!("SET ROLE {owner}; {ORDERS}; SET ROLE mallory")).await;
        for signature in [
            "begin_orders() RETURNS trigger",
            "capture_orders() RETURNS trigger",
            "columns_orders(what text) RETURNS text[]",
        ] {
            let made = format!("postbox_{signature} LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung'; END $$");
            run(&client, &format!("CREATE FUNCTION {made}")).await;
        }
        run(&client, "GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO friend; RESET ROLE; SELECT postbox.enable_outbox('orders')").await;
        let owners = "SELECT DISTINCT pg_get_userbyid(p.proowner), p.proacl::text ~ 'friend'
            FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = 'orders'::regclass AND p.proname ~ '^postbox'";
        assert_eq!(rows(&client, owners).await, [format!("{owner}|f")]);
        run(&client, &format!("SET ROLE {owner}; INSERT INTO orders VALUES (1, 'ada', 5); RESET ROLE")).await;
        assert_eq!(events(&client, "orders_outbox").await.len(), 1);
        run(
            &client,
            "SELECT postbox.disable_outbox('orders', with_outbox => true); DROP TABLE orders; DROP OWNED BY mallory",
        )
        .await;
        run(&client, "GRANT CREATE ON SCHEMA public TO mallory").await;
    }
}

#[tokio::test]
async fn an_outbox_of_somebody_else_is_taken_only_if_it_is_named() {
    let (_cluster, client) = start().await;
    run(&client, "CREATE ROLE mallory; GRANT CREATE ON SCHEMA public TO mallory").await;
    run(&client, ORDERS).await;
    run(&client, "CREATE MATERIALIZED VIEW sums AS SELECT sum(cents) AS cents FROM orders").await;
    run(&client, "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA postbox TO mallory; SET ROLE mallory").await;
    run(&client, "SELECT postbox.create_outbox('orders_outbox'), postbox.create_outbox('sums_outbox'); RESET ROLE")
        .await;
    let theirs = "outbox \"public.orders_outbox\" belongs to \"mallory\", table \"public.orders\" to \"";
    refused(&client, "SELECT postbox.enable_outbox('orders')", "42501", theirs, "outbox => 'public.orders_outbox'")
        .await;
    let theirs = "outbox \"public.sums_outbox\" belongs to \"mallory\", table \"public.sums\" to \"";
    refused(
        &client,
        "SELECT postbox.refresh_materialized_view('sums')",
        "42501",
        theirs,
        "outbox => 'public.sums_outbox'",
    )
    .await;
    run(&client, "SELECT postbox.enable_outbox('orders', 'orders_outbox'), postbox.refresh_materialized_view('sums', 'sums_outbox')").await;
    run(&client, "INSERT INTO orders VALUES (1, 'ada', 5)").await;
    assert_eq!(events(&client, "orders_outbox").await.len(), 1);
}
