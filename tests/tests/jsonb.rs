//! The printer of stored jsonb against the server's own output function.

use std::fmt::Write;

use postbox_tests::Cluster;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// What random documents may miss.
const EDGES: &[&str] = &[
    "null",
    "true",
    "false",
    "\"\"",
    "\"scalar\"",
    "0",
    "-0",
    "-0.000",
    "0e-30",
    "1",
    "-1",
    "9999",
    "10000",
    "99999999",
    "100000000.00000000",
    "0.0001",
    "0.00001",
    "-0.00012345678900",
    "9223372036854775807",
    "1e131071",
    "-9.99e131071",
    "1e-16383",
    "-1.5e-16382",
    "[1e1000, 1e-1000, 1e63, 1e64, 1e255, 1e256, 1e257, 1e-63, 1e-64, 1e-256, 1e-260]",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "{\"\": \"\"}",
    "{\"\": {\"\": []}}",
    "{\"a\": 1, \"a\": 2, \"A\": 3}",
    "\"\\u0001\\u001f\\u007f\\u0080\\u2028\\ud83d\\ude00\\b\\f\\n\\r\\t\\\"\\\\\\/\"",
    "{\"\\u0009\\\"key\\\\\": \"\\u00e9\\u65e5\"}",
];

/// Documents in rows that no index or compression touches, and how to read them back, as stored and as printed.
const TABLE: &str = "
    CREATE EXTENSION pageinspect;
    CREATE TABLE document (body jsonb);
    ALTER TABLE document ALTER body SET STORAGE PLAIN;";
/// A row must fit on a page, so longer documents are left out.
const FILL: &str = "
    INSERT INTO document
    SELECT body FROM unnest($1::text[]) AS text, CAST(text AS jsonb) AS body WHERE pg_column_size(body) < 8000";
const READ: &str = "
    SELECT item.t_attrs[1], document.body::text
    FROM generate_series(0, pg_relation_size('document') / current_setting('block_size')::int - 1) AS page,
        heap_page_item_attrs(get_raw_page('document', page::int), 'document') AS item
        JOIN document ON document.ctid = item.t_ctid";

#[tokio::test]
async fn stored_documents_print_as_the_server_prints_them() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut documents: Vec<String> = EDGES.iter().copied().map(String::from).collect();
    documents.extend([100, 500, 950].map(|levels| "[".repeat(levels) + &"]".repeat(levels)));
    documents.extend([100, 450].map(|levels| "{\"k\":[".repeat(levels) + "1.50" + &"]}".repeat(levels)));
    documents.extend((0..3000).map(|_| document(&mut random)));

    let cluster = Cluster::start();
    let client = cluster.client("postgres").await;
    client.batch_execute(TABLE).await.unwrap();
    let stored = client.execute(FILL, &[&documents]).await.unwrap();
    let rows = client.query(READ, &[]).await.unwrap();
    assert_eq!(rows.len(), usize::try_from(stored).unwrap());
    assert!(rows.len() >= 2500, "only {} documents fit", rows.len());
    for row in rows {
        let (attribute, expected): (&[u8], &str) = (row.get(0), row.get(1));
        let mut text = Vec::new();
        let result = postbox_jsonb::print(data(attribute), &mut text, expected.len());
        assert_eq!(result, Ok(()), "{expected}");
        assert_eq!(String::from_utf8(text).as_deref(), Ok(expected));
    }
}

/// What follows the header of a varlena that is neither compressed nor out of line.
fn data(varlena: &[u8]) -> &[u8] {
    let first = varlena[0];
    let (short, compressed) =
        if cfg!(target_endian = "little") { (first & 1 == 1, first & 3 == 2) } else { (first >= 0x80, first >= 0x40) };
    assert!(!compressed || short, "{first:#x}");
    &varlena[if short { 1 } else { 4 }..]
}

/// A random document as text.
fn document(random: &mut StdRng) -> String {
    let mut text = String::new();
    // Few elements or many: every 32nd entry of a container is stored in another way.
    let mut budget = *[1, 3, 10, 40, 200].choose(random).unwrap();
    value(random, &mut budget, &mut text);
    text
}

fn value(random: &mut StdRng, budget: &mut u32, text: &mut String) {
    *budget = budget.saturating_sub(1);
    match random.random_range(0..if *budget == 0 { 6 } else { 10 }) {
        0 => text.push_str("null"),
        1 => text.push_str(if random.random() { "true" } else { "false" }),
        2 | 3 => string(random, text),
        4 | 5 => number(random, text),
        kind => {
            let object = kind < 8;
            text.push(if object { '{' } else { '[' });
            for index in 0..random.random_range(0..=*budget) {
                if index > 0 {
                    text.push(',');
                }
                if object {
                    string(random, text);
                    text.push(':');
                }
                value(random, budget, text);
                if *budget == 0 {
                    break;
                }
            }
            text.push(if object { '}' } else { ']' });
        }
    }
}

fn string(random: &mut StdRng, text: &mut String) {
    text.push('"');
    let longest = *[0, 5, 20, 60].choose(random).unwrap();
    for _ in 0..random.random_range(0..=longest) {
        match random.random_range(0..20) {
            0 => text.push_str(["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"].choose(random).unwrap()),
            // NUL is the one character that the server does not take.
            1 => write!(text, "\\u{:04x}", random.random_range(1..0x20)).unwrap(),
            2 => write!(text, "\\u{:04X}", random.random_range(0x20..0xd800)).unwrap(),
            3 => text.push(random.random_range('\u{80}'..='\u{10ffff}')),
            4 => text.push(*['\u{7f}', '\u{2028}', 'é', '日', '😀'].choose(random).unwrap()),
            _ => text.push(*b"abcdefghijklmnopqrstuvwxyz 0123456789-_/'{}[]:,<>".choose(random).unwrap() as char),
        }
    }
    text.push('"');
}

fn number(random: &mut StdRng, text: &mut String) {
    if random.random() {
        text.push('-');
    }
    match random.random_range(0..4) {
        0 => text.push('0'),
        1 => write!(text, "{}", random.random_range(1..100_000)).unwrap(),
        2 => write!(text, "{}", random.random_range(1..u64::MAX)).unwrap(),
        _ => {
            text.push('1');
            digits(random, text);
        }
    }
    if random.random_bool(0.4) {
        text.push('.');
        digits(random, text);
        text.push_str(["", "0", "000", "00000"].choose(random).unwrap());
    }
    if random.random_bool(0.2) {
        let largest = *[3, 30, 400].choose(random).unwrap();
        write!(text, "e{}", random.random_range(-largest..=largest)).unwrap();
    }
}

/// At least one digit.
fn digits(random: &mut StdRng, text: &mut String) {
    let longest = *[2, 9, 40, 200].choose(random).unwrap();
    for _ in 0..random.random_range(1..=longest) {
        // Zeros in a row matter: the stored form leaves them out at both ends.
        text.push(if random.random_bool(0.4) { '0' } else { random.random_range('0'..='9') });
    }
}
