//! An adopted table whose names and types are not those of `create_inbox`, worked through all that an inbox does.

use postbox_tests::Cluster;
use tokio_postgres::Client;

use crate::sql::{row, rows, run, start};

const TABLE: &str = "\"Shop X\".\"Mixed Case\"";

/// Its name is that of the table.
async fn adopted() -> (Cluster, Client) {
    let (cluster, client) = start().await;
    run(
        &client,
        &format!(
            "CREATE SCHEMA \"Shop X\"; CREATE TABLE {TABLE} (body jsonb, \"No\" smallint, \"Id\" uuid NOT NULL UNIQUE, \"Customer\" integer, \"Kind\" varchar(20), \"Prio\" smallint);
             SELECT postbox.enable_inbox_tracking('{TABLE}', event_id => 'Id', event_type => 'Kind', payload => 'body', priority => 'Prio', max_retries => 0,
                 retention => '1 hour', dedup_window => '1 day', failure_policy => 'pause');
             SELECT postbox.enable_inbox_ordering('Mixed Case', 'Customer', 'No')"
        ),
    )
    .await;
    (cluster, client)
}

fn id(customer: i64, number: i64) -> String {
    format!("abcdef00-0000-4000-{customer:04}-{number:012}")
}

fn insert(customer: i64, number: i64, priority: i64) -> String {
    let id = id(customer, number);
    format!(
        "INSERT INTO {TABLE} (\"Id\", \"Customer\", \"No\", \"Prio\", body) VALUES ('{id}', {customer}, {number}, {priority}, '{number}') ON CONFLICT DO NOTHING"
    )
}

/// What is handed out with these arguments, as customer and number; it is completed, or failed with this error.
async fn work(client: &Client, arguments: &str, error: Option<&str>) -> Vec<String> {
    let done = match error {
        None => "postbox.inbox_complete('Mixed Case', ARRAY[c.event_id], ARRAY[c.token])::text".to_owned(),
        Some(error) => format!("postbox.inbox_fail('Mixed Case', c.event_id, c.token, '{error}')"),
    };
    let sql = format!(
        "WITH c AS MATERIALIZED (SELECT * FROM postbox.inbox_claim('Mixed Case', 'w', {arguments}) WITH ORDINALITY),
            done AS MATERIALIZED (SELECT c.*, {done} AS outcome FROM c)
         SELECT d.aggregate_id || '-' || d.sequence_num FROM done d WHERE d.outcome IS NOT NULL AND d.payload::text = d.sequence_num::text ORDER BY d.ordinality"
    );
    rows(client, &sql).await
}

#[tokio::test]
async fn an_adopted_inbox_does_all_that_another_does() {
    let (_cluster, client) = adopted().await;
    let view =
        |name: &str, columns: &str| format!("SELECT {columns} FROM \"Shop X\".\"{name}_Mixed Case\" ORDER BY 1, 2");
    let gaps = view("gaps", "aggregate_id, missing");
    for (customer, number) in [(1, 2), (1, 1), (2, 1), (2, 3), (2, 4), (3, 1)] {
        run(&client, &insert(customer, number, 0)).await;
    }

    // Order, and what is missing.
    assert_eq!(rows(&client, &gaps).await, ["2|[2,3)"]);
    assert_eq!(
        rows(&client, &view("next", "aggregate_id, event_id")).await,
        [(1, 1), (2, 1), (3, 1)].map(|(c, n)| format!("{c}|{}", id(c, n)))
    );
    let mut first = work(&client, "50", None).await;
    first.sort();
    assert_eq!(first, ["1-1", "2-1", "3-1"], "one of each aggregate");
    assert_eq!(work(&client, "50", None).await, ["1-2"]);
    assert_eq!(work(&client, "50", None).await, [""; 0]);
    assert_eq!(row(&client, "SELECT postbox.inbox_gap_skip('Mixed Case', '2', '[2,3)', 'lost')").await, "1");
    assert_eq!(rows(&client, &gaps).await, [""; 0]);
    assert_eq!(work(&client, "1", None).await, ["2-3"]);
    assert_eq!(work(&client, "1", None).await, ["2-4"]);
    // The number that was given up comes all the same.
    run(&client, &insert(2, 2, 0)).await;
    assert_eq!(work(&client, "50", None).await, [""; 0]);
    assert_eq!(rows(&client, &view("dlq", "event_id, why")).await, [format!("{}|sequence", id(2, 2))]);

    // The ends of the types: nothing that is computed from them is too large for the column.
    run(&client, &insert(2_147_483_647, 1, 0).replace(&id(2_147_483_647, 1), &id(9, 1))).await;
    assert_eq!(work(&client, "50", None).await, ["2147483647-1"]);
    run(&client, &insert(5, 32767, 0)).await;
    assert_eq!(work(&client, "50", None).await, [""; 0]);
    assert_eq!(row(&client, "SELECT postbox.inbox_gap_skip('Mixed Case', '5', '[1,32767)', 'lost')").await, "32766");
    assert_eq!(work(&client, "50", None).await, ["5-32767"]);
    assert_eq!(work(&client, "50", None).await, [""; 0]);
    assert_eq!(rows(&client, &gaps).await, [""; 0]);

    // Tiers.
    let tiers = r#"[{"name": "Urgent", "lowest": 5}, {"name": "rest", "highest": 4}]"#;
    run(&client, &insert(6, 1, 0)).await;
    run(&client, &insert(7, 1, 9)).await;
    run(&client, &format!("SELECT postbox.enable_inbox_priority('Mixed Case', 'Prio', '{tiers}')")).await;
    run(&client, &insert(6, 2, 9)).await;
    run(&client, &insert(8, 1, 5)).await;
    let urgent = "SELECT aggregate_id FROM \"Shop X\".\"pending_Mixed Case_Urgent\" ORDER BY 1";
    assert_eq!(rows(&client, urgent).await, ["6", "7", "8"]);
    let mut first = work(&client, "2, tier => 'Urgent'", None).await;
    first.sort();
    assert_eq!(first, ["7-1", "8-1"]);
    assert_eq!(
        work(&client, "50, tier => 'Urgent'", None).await,
        [""; 0],
        "an aggregate is in the tier of its next message"
    );
    assert_eq!(work(&client, "1", None).await, ["6-1"]);
    assert_eq!(work(&client, "50, tier => 'Urgent'", None).await, ["6-2"]);

    // A dead letter, behind which its aggregate waits, and the way back.
    run(&client, &insert(1, 3, 0)).await;
    run(&client, &insert(1, 4, 0)).await;
    assert_eq!(work(&client, "50", Some("boom")).await, ["1-3"]);
    assert_eq!(work(&client, "50", None).await, [""; 0]);
    let letter = "SELECT event_id, aggregate_id, sequence_num, why, error FROM \"Shop X\".\"dlq_Mixed Case\" WHERE why = 'failed'";
    assert_eq!(rows(&client, letter).await, [format!("{}|1|3|failed|boom", id(1, 3))]);
    // An id is the same however it is written.
    let replay = format!("SELECT postbox.replay_inbox_dead_letters('Mixed Case', '{{{}}}')", id(1, 3).to_uppercase());
    assert_eq!(row(&client, &replay).await, "1");
    assert_eq!(work(&client, "50", None).await, ["1-3"]);
    assert_eq!(work(&client, "50", None).await, ["1-4"]);
    let replay = format!("SELECT postbox.replay_inbox_messages('Mixed Case', '{{{}}}')", id(1, 1));
    assert_eq!(row(&client, &replay).await, "1");
    assert_eq!(work(&client, "50", None).await, ["1-1"], "once more, whatever is done behind it");
    assert_eq!(row(&client, "SELECT postbox.discard_inbox_dead_letters('Mixed Case', every => true)").await, "1");
    let again = format!("SELECT postbox.inbox_receive('Mixed Case', '{}', '1')", id(1, 1).to_uppercase());
    assert_eq!(row(&client, &again).await, "duplicate");
    assert_eq!(row(&client, &again.replace("'1')", "'2')")).await, "conflict");
    run(&client, &insert(1, 1, 0)).await;

    // All is processed but what is too young. Ids outlive their rows.
    run(&client, "UPDATE postbox.inbox_log SET at = at - interval '2 hours'").await;
    run(&client, &insert(10, 1, 0)).await;
    assert_eq!(work(&client, "50", None).await, ["10-1"]);
    for _ in 0..4 {
        run(&client, "SELECT postbox.maintain(true)").await;
    }
    let left = format!("SELECT \"Id\" FROM {TABLE}");
    assert_eq!(rows(&client, &left).await, [id(10, 1)]);
    for (customer, number) in [(1, 1), (5, 32767), (2, 2)] {
        run(&client, &insert(customer, number, 0)).await;
    }
    let again = format!("SELECT postbox.inbox_receive('Mixed Case', '{}')", id(1, 1).to_uppercase());
    assert_eq!(row(&client, &again).await, "duplicate");
    assert_eq!(rows(&client, &left).await, [id(10, 1)]);
    assert_eq!(work(&client, "50", None).await, [""; 0]);
    run(&client, &insert(1, 5, 0)).await;
    assert_eq!(work(&client, "50", None).await, ["1-5"], "the lane stands where it stood");
    assert_eq!(
        row(&client, "SELECT pending, dead, processed, duplicates, conflicts FROM postbox.inbox_status('Mixed Case')")
            .await,
        "0|0|17|7|1"
    );

    // A table again, which may become an inbox once more.
    run(&client, "SELECT postbox.drop_inbox('Mixed Case')").await;
    let traces = "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text ~ 'Mixed'),
        (SELECT count(*) FROM pg_proc WHERE pronamespace = '\"Shop X\"'::regnamespace), (SELECT count(*) FROM pg_class WHERE relkind = 'v' AND relnamespace = '\"Shop X\"'::regnamespace),
        (SELECT count(*) FROM postbox.inbox_lane), (SELECT count(*) FROM postbox.inbox_batch), (SELECT count(*) FROM postbox.inbox_tier)";
    assert_eq!(row(&client, traces).await, "0|0|0|0|0|0");
    run(&client, &insert(1, 6, 0)).await;
    assert_eq!(row(&client, &format!("SELECT count(*) FROM {TABLE}")).await, "3");
    run(
        &client,
        &format!(
            "SELECT postbox.enable_inbox_tracking('{TABLE}', event_id => 'Id', payload => 'body', pending => 'all')"
        ),
    )
    .await;
    assert_eq!(row(&client, "SELECT count(*) FROM postbox.inbox_claim('Mixed Case', 'w', 50)").await, "3");
}

/// A COPY of shuffled messages, into an order and tiers.
#[tokio::test]
async fn a_copy_into_an_adopted_inbox_keeps_its_order_and_its_tiers() {
    let (cluster, client) = adopted().await;
    let tiers = r#"[{"name": "urgent", "lowest": 5}, {"name": "rest", "highest": 4}]"#;
    run(&client, &format!("SELECT postbox.enable_inbox_priority('Mixed Case', 'Prio', '{tiers}')")).await;
    // 40 aggregates of 5 messages, each number of which comes before the one that it waits for; those of the second half are urgent.
    let mut lines = String::new();
    for number in (1..=5).rev() {
        for customer in 1..=40 {
            lines += &format!(
                "{}\t{customer}\t{number}\t{}\t{number}\n",
                id(customer, number),
                if customer > 20 { 9 } else { 0 }
            );
        }
    }
    cluster.psql(
        "postgres",
        &format!("COPY {TABLE} (\"Id\", \"Customer\", \"No\", \"Prio\", body) FROM STDIN;\n{lines}\\.\n"),
    );
    let mut order: Vec<String> = Vec::new();
    loop {
        let some = work(&client, "7", None).await;
        if some.is_empty() {
            break;
        }
        order.extend(some);
    }
    assert_eq!(order.len(), 200);
    for customer in 1..=40 {
        let of_this: Vec<_> = order.iter().filter(|message| message.starts_with(&format!("{customer}-"))).collect();
        assert_eq!(
            of_this,
            (1..=5).map(|number| format!("{customer}-{number}")).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
    }
    let customer = |message: &String| {
        message.split_once('-').and_then(|(customer, _)| customer.parse::<u32>().ok()).expect("a customer")
    };
    assert!(order[..100].iter().all(|message| customer(message) > 20), "the urgent ones first: {order:?}");
    // What is copied once more is refused as a whole, as by any unique key.
    let again = format!(
        "COPY {TABLE} (\"Id\", \"Customer\", \"No\", \"Prio\", body) FROM STDIN;\n{}\t90\t1\t0\t1\n{}\t1\t1\t0\t1\n\\.\n",
        id(90, 1),
        id(1, 1)
    );
    assert!(cluster.psql_result("postgres", &again).expect_err("a duplicate").contains("Mixed Case_Id_key"));
    assert_eq!(work(&client, "50", None).await, [""; 0]);
}
