//! One event of many rows as a claim: from its commit to a sink in the stream and by reference, the memory that this takes on both
//! sides, and what it costs the event behind it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postbox_tests::{Cluster, memory_kib, wait_until};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::backlog::DATABASE;
use crate::measure::Samples;
use crate::postbox;
use crate::report::{Report, data};

const PATIENCE: Duration = Duration::from_secs(600);

/// What one consumer saw of the claim and of the small event behind it.
struct Seen {
    claim: Instant,
    next: Instant,
    /// The line of the claim's event.
    line: String,
    /// Rows that came in chunks.
    rows: u64,
    peak_kib: u64,
}

/// What a round measured.
struct Round {
    publish: f64,
    stream: f64,
    fetch: f64,
    stream_peak: f64,
    fetch_peak: f64,
    /// From the commit of the small event to its line, where the claim's data is passed over, and where it comes first.
    next_reference: f64,
    next_stream: f64,
    /// The greatest private memory of a walsender.
    sender_peak: f64,
    bytes: u64,
}

/// Measures one event of a million rows.
pub(crate) async fn run(arguments: &Arguments) -> Outcome<Report> {
    let rows = arguments.scaled(1_000_000);
    let cluster = Cluster::builder().setting("max_wal_size", "8GB").setting("checkpoint_timeout", "1h").start();
    cluster.psql(
        DATABASE,
        "CREATE EXTENSION postbox; SELECT postbox.create_outbox('events'); SELECT postbox.enable_claim_check('events')",
    );
    for slot in ["stream", "reference"] {
        cluster.psql(DATABASE, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'postbox')"));
    }
    let client = cluster.client(DATABASE).await;
    let rounds = arguments.rounds.min(3);
    let mut measured = Vec::new();
    for number in 0..rounds {
        eprintln!("claims: round {} of {rounds}", number + 1);
        measured.push(round(&cluster, &client, rows).await?);
    }
    let samples = |of: fn(&Round) -> f64| Samples::new(measured.iter().map(of).collect());
    let bytes = measured.first().map_or(0, |round| round.bytes);
    let mut report = Report::new(
        format!("One event of {rows} rows, {:.0} MB of JSON; {rounds} rounds", bytes as f64 / 1e6),
        &["what", "median s", "rows/s", "MB/s", "peak MiB"],
    );
    let ways = [
        ("publish_batch", samples(|round| round.publish), None),
        ("commit to stdout, in the stream", samples(|round| round.stream), Some(samples(|round| round.stream_peak))),
        ("postbox claim fetch, by reference", samples(|round| round.fetch), Some(samples(|round| round.fetch_peak))),
    ];
    for (name, seconds, peak) in &ways {
        report.row(
            vec![
                (*name).to_owned(),
                format!("{:.2}", seconds.median()),
                format!("{:.0}", rows as f64 / seconds.median()),
                format!("{:.0}", bytes as f64 / 1e6 / seconds.median()),
                peak.as_ref().map_or("-".to_owned(), |peak| format!("{:.1}", peak.max())),
            ],
            json!({ "what": name, "rows": rows, "bytes": bytes, "seconds": data(seconds), "peak_mebibytes": peak.as_ref().map(data) }),
        );
    }
    let rate = rows as f64 / 1e5;
    report.target("in the stream: seconds from commit to sink, at 100,000 rows/s", ways[1].1.median(), rate);
    report.target("by reference: seconds, at 100,000 rows/s", ways[2].1.median(), rate);
    for (name, peak) in [
        ("postbox run", samples(|round| round.stream_peak)),
        ("postbox claim fetch", samples(|round| round.fetch_peak)),
    ] {
        report.target(format!("peak resident set of {name}, MiB"), peak.max(), 64.0);
    }
    // Half as much again as logical_decoding_work_mem, which is 64.
    let sender_peak = samples(|round| round.sender_peak).max();
    report.target("peak private memory of a walsender, MiB", sender_peak, 96.0);
    let delay = samples(|round| round.next_reference).median();
    // Passing over a claim is to be ten times as fast as delivering it has to be.
    report.target("by reference: seconds from the next small event's commit to its line", delay, rate / 10.0);
    report.note(format!(
        "where the claim's data comes first, the next small event came {:.0} ms after its commit",
        samples(|round| round.next_stream).median() * 1e3,
    ));
    Ok(report)
}

async fn round(cluster: &Cluster, client: &Client, rows: u64) -> Outcome<Round> {
    let stream = watch(postbox::run(cluster, "stream").args(["--max-events", "2"]))?;
    let reference = watch(postbox::run(cluster, "reference").args(["--max-events", "2", "--claims", "reference"]))?;
    let senders = "SELECT string_agg(active_pid::text, ' ') FROM pg_replication_slots HAVING count(active_pid) = 2";
    let pids = wait_until("both slots are read", PATIENCE, || {
        Some(cluster.psql(DATABASE, senders)).filter(|pids| !pids.is_empty())
    });
    let senders = pids.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let sampling = sample(senders);

    let begin = Instant::now();
    let query = "SELECT i AS id, 'name of ' || i AS name, i * 1.5 AS price, now() AS at, md5(i::text) AS m FROM generate_series(1, $1) i";
    let sql =
        format!("SELECT postbox.publish_batch('events', 'imported', $q${}$q$)", query.replace("$1", &rows.to_string()));
    client.batch_execute(&sql).await?;
    let committed = Instant::now();
    client.batch_execute("INSERT INTO events (type, payload) VALUES ('next', '{}')").await?;
    let next = Instant::now();

    let stream = stream.join().map_err(|_| "the reader of the stream failed")??;
    let reference = reference.join().map_err(|_| "the reader of references failed")??;
    let sender_peak = sampling.join().map_err(|_| "the sampling failed")?;
    if stream.rows != rows {
        return Err(format!("{} rows came in the stream instead of {rows}", stream.rows).into());
    }
    let claim: Value = serde_json::from_str(&reference.line)?;
    let bytes = claim["claim"]["bytes"].as_u64().ok_or("the event says no size")?;
    let (fetch, fetch_peak) = fetch(cluster, &reference.line, bytes)?;
    let since = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier).as_secs_f64();
    Ok(Round {
        publish: since(committed, begin),
        stream: since(stream.claim, committed),
        fetch,
        stream_peak: stream.peak_kib as f64 / 1024.0,
        fetch_peak,
        next_reference: since(reference.next, next),
        next_stream: since(stream.next, next),
        sender_peak: sender_peak as f64 / 1024.0,
        bytes,
    })
}

/// Starts a consumer and reads what it prints.
fn watch(command: &mut Command) -> Outcome<JoinHandle<Outcome<Seen>>> {
    let mut process = command.stdout(Stdio::piped()).spawn()?;
    let output = process.stdout.take().ok_or("the output is a pipe")?;
    Ok(thread::spawn(move || {
        let mut events = Vec::new();
        let (mut rows, mut peak_kib) = (0, 0);
        for line in BufReader::with_capacity(1 << 20, output).lines() {
            let line = line?;
            // The head tells a chunk; parsing all of it would measure the parser.
            if let Some((_, after)) =
                line.get(..200).unwrap_or(&line).split_once("\"rows\":").filter(|_| line.contains("\",\"chunk\":"))
            {
                rows += after.split(',').next().unwrap_or_default().parse::<u64>()?;
            } else {
                events.push((Instant::now(), line));
            }
            peak_kib = memory_kib(process.id(), "VmHWM").max(peak_kib);
        }
        ended_well(&mut process)?;
        let [(claim, line), (next, _)] =
            <[_; 2]>::try_from(events).map_err(|events| format!("{} events came", events.len()))?;
        Ok(Seen { claim, next, line, rows, peak_kib })
    }))
}

/// `postbox claim fetch`: seconds, and its greatest resident set in MiB.
fn fetch(cluster: &Cluster, line: &str, bytes: u64) -> Outcome<(f64, f64)> {
    let mut command = Command::new(postbox_tests::postbox_binary());
    command.args(["claim", "fetch", "-d", &cluster.conninfo(DATABASE)]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let begin = Instant::now();
    let mut process = command.spawn()?;
    process.stdin.take().ok_or("the input is a pipe")?.write_all(line.as_bytes())?;
    let mut output = BufReader::with_capacity(1 << 20, process.stdout.take().ok_or("the output is a pipe")?);
    let (mut read, mut peak) = (0, 0);
    loop {
        let length = output.fill_buf()?.len();
        if length == 0 {
            break;
        }
        read += length as u64;
        output.consume(length);
        peak = memory_kib(process.id(), "VmHWM").max(peak);
    }
    ended_well(&mut process)?;
    if read != bytes {
        return Err(format!("{read} bytes were fetched instead of {bytes}").into());
    }
    Ok((begin.elapsed().as_secs_f64(), peak as f64 / 1024.0))
}

fn ended_well(process: &mut Child) -> Outcome<()> {
    let status = process.wait()?;
    if status.success() { Ok(()) } else { Err(format!("postbox ended with {status}").into()) }
}

/// The greatest private memory of any of these processes, in KiB, until all are gone.
fn sample(pids: Vec<u32>) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut peak = 0;
        loop {
            let now = pids.iter().map(|pid| memory_kib(*pid, "RssAnon")).max().unwrap_or(0);
            if now == 0 {
                return peak;
            }
            peak = peak.max(now);
            thread::sleep(Duration::from_millis(20));
        }
    })
}
