//! The engine against an oracle: random keys, failures, policies and times; no real time passes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::dispatch::Token;
use crate::dispatch::settings::Policy;
use crate::error::ErrorKind;

/// Events as the source has them: a key (0: none) and how many attempts fail first.
#[derive(Clone, Debug)]
pub(in crate::dispatch) struct Planned {
    key: u8,
    failures: u32,
    unreadable: bool,
}

pub(in crate::dispatch) struct Given {
    tasks: VecDeque<Task>,
}

impl Source for Given {
    async fn next(&mut self) -> Option<Result<Task>> {
        // As a stream that has not come yet.
        tokio::task::yield_now().await;
        self.tasks.pop_front().map(Ok)
    }

    fn try_next(&mut self) -> Option<Result<Task>> {
        self.tasks.pop_front().map(Ok)
    }

    fn is_within_transaction(&self) -> bool {
        false
    }

    async fn is_drained(&mut self) -> Result<bool> {
        Ok(true)
    }
}

/// Fails as planned, takes a while, and watches that no lane is in it twice.
struct Fragile {
    plan: Vec<Planned>,
    keyless: Keyless,
    state: Arc<Mutex<Seen>>,
    slow: bool,
}

#[derive(Default)]
struct Seen {
    under_way: HashSet<u64>,
    most: usize,
    failed: HashMap<i64, u32>,
    delivered: Vec<i64>,
    wrong: Vec<String>,
}

fn seen(state: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lane(planned: &Planned, number: i64, keyless: Keyless) -> u64 {
    match (planned.key, keyless) {
        (0, Keyless::Any) => 1_000 + number.unsigned_abs(),
        (key, _) => key.into(),
    }
}

impl EventSink for Fragile {
    fn deliver(&self, event: Event, _attempt: u32) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let number = event.seq.expect("a number");
        let planned = self.plan[number as usize].clone();
        let lane = lane(&planned, number, self.keyless);
        let (state, slow) = (Arc::clone(&self.state), self.slow);
        async move {
            {
                let mut seen = seen(&state);
                if !seen.under_way.insert(lane) {
                    seen.wrong.push(format!("lane {lane} is in the sink twice"));
                }
                seen.most = seen.most.max(seen.under_way.len());
            }
            if slow {
                // Never no time at all: some wait to see it under way.
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..20))).await;
            } else {
                tokio::task::yield_now().await;
            }
            let mut seen = seen(&state);
            seen.under_way.remove(&lane);
            let failed = seen.failed.entry(number).or_default();
            if *failed < planned.failures {
                *failed += 1;
                return Err(format!("failure {failed}"));
            }
            seen.delivered.push(number);
            Ok(())
        }
    }
}

/// Dead letters as SQL keeps them.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<i64, Row>>>);

#[derive(Clone)]
struct Row {
    letter: NewLetter,
    due: Option<Instant>,
}

impl Memory {
    fn rows(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As somebody who redrives everything.
    fn redrive(&self) {
        self.rows().values_mut().for_each(|row| row.due = Some(Instant::now()));
    }
}

fn call_up(rows: &mut BTreeMap<i64, Row>, key: Option<&ByteString>) -> bool {
    let Some(head) = rows.values_mut().find(|row| row.letter.event.key.as_ref() == key) else { return false };
    if head.letter.why == Why::Follower && head.due.is_none() {
        head.due = Some(Instant::now());
    }
    true
}

impl DeadLetters for Memory {
    async fn store(&self, letters: Vec<NewLetter>, behind: bool) -> Result<bool> {
        tokio::task::yield_now().await;
        let mut rows = self.rows();
        if behind && !call_up(&mut rows, letters[0].event.key.as_ref()) {
            return Ok(false);
        }
        for letter in letters {
            let id = rows.last_key_value().map_or(1, |(id, _)| id + 1);
            let due = letter.due_in.map(|wait| Instant::now() + wait);
            rows.insert(id, Row { letter, due });
        }
        Ok(true)
    }

    async fn keys(&self) -> Result<Vec<Option<ByteString>>> {
        Ok(self.rows().values().map(|row| row.letter.event.key.clone()).collect())
    }

    async fn due(&self, in_order: bool, keyless: bool, busy: Vec<i64>) -> Result<Vec<DueLetter>> {
        tokio::task::yield_now().await;
        let rows = self.rows();
        let first = |id: i64, row: &Row| {
            let key = &row.letter.event.key;
            (key.is_none() && !keyless) || !rows.range(..id).any(|(_, other)| other.letter.event.key == *key)
        };
        Ok(rows
            .iter()
            .filter(|(id, row)| row.due.is_some_and(|due| due <= Instant::now()) && !busy.contains(id))
            .filter(|(id, row)| !in_order || first(**id, row))
            .map(|(id, row)| DueLetter { id: *id, attempts: row.letter.attempts, event: row.letter.event.clone() })
            .take(8)
            .collect())
    }

    async fn delivered(&self, id: i64) -> Result<bool> {
        tokio::task::yield_now().await;
        let mut rows = self.rows();
        let Some(row) = rows.remove(&id) else { return Ok(false) };
        Ok(call_up(&mut rows, row.letter.event.key.as_ref()))
    }

    async fn failed(&self, id: i64, error: String, again: Option<Duration>) -> Result<()> {
        tokio::task::yield_now().await;
        if let Some(row) = self.rows().get_mut(&id) {
            row.letter.attempts += 1;
            row.letter.error = Some(error);
            row.due = again.map(|wait| Instant::now() + wait);
            if row.letter.why == Why::Follower {
                row.letter.why = Why::Failed;
            }
        }
        Ok(())
    }
}

fn event(number: i64, planned: &Planned) -> Event {
    let error = crate::event::EventError {
        code: postbox_wire::ErrorCode::Null,
        detail: "type is NULL".into(),
        raw: Vec::new(),
    };
    Event {
        outbox: Arc::new(postbox_wire::Outbox {
            schema: "public".into(),
            table: "orders".into(),
            payload_type: postbox_wire::PayloadType::Jsonb,
        }),
        id: Some(crate::event::EventId::Int(number)),
        seq: Some(number),
        event_type: "kept".into(),
        key: (planned.key > 0).then(|| planned.key.to_string().into()),
        headers: None,
        payload: Some(bytes::Bytes::from_static(b"{}")),
        claim: None,
        chunk: None,
        commit_lsn: postbox_wire::Lsn(number.unsigned_abs() + 1),
        ordinal: 0,
        commit_time: postbox_wire::PgMicros(0),
        xid: 1,
        error: planned.unreadable.then(|| Arc::new(error)),
        end_lsn: postbox_wire::Lsn(number.unsigned_abs() + 2),
    }
}

pub(in crate::dispatch) fn tasks(plan: &[Planned]) -> (Given, mpsc::UnboundedReceiver<u64>) {
    let (done, receiver) = mpsc::unbounded_channel();
    let task = |(number, planned): (usize, &Planned)| Task {
        event: event(number as i64, planned),
        origin: Origin::Test(Token { number: number as u64, done: done.clone() }),
    };
    (Given { tasks: plan.iter().enumerate().map(task).collect() }, receiver)
}

fn acknowledged(receiver: &mut mpsc::UnboundedReceiver<u64>) -> Vec<u64> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

fn planned() -> impl Strategy<Value = Planned> {
    (0..6_u8, prop_oneof![6 => Just(0), 2 => 1..3_u32, 2 => 3..12_u32], prop::bool::weighted(0.05))
        .prop_map(|(key, failures, unreadable)| Planned { key, failures, unreadable })
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(test)
}

const ATTEMPTS: u32 = 3;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever fails: every event is delivered once or a dead letter, and acknowledged once; a lane is in the sink once at a time; of the
    /// events of a key none is overtaken, but what `skip` lets be.
    #[test]
    fn nothing_is_lost_or_overtaken(
        plan in prop::collection::vec(planned(), 1..120), policy in 0..3_u8, concurrency in 1..9_usize, one_lane: bool, slow: bool,
    ) {
        let policy = [Policy::Skip, Policy::Park, Policy::Pause][usize::from(policy)];
        let keyless = if one_lane { Keyless::OneLane } else { Keyless::Any };
        let settings = Settings {
            concurrency, keyless, max_attempts: ATTEMPTS, on_failure: policy, ..Settings::default()
        };
        let state = Arc::new(Mutex::new(Seen::default()));
        let letters = Memory::default();
        let limits = Limits { max_events: None, exit_when_idle: None };
        let (first_pass, acks) = run(async {
            let (mut source, mut receiver) = tasks(&plan);
            let sink = || Arc::new(Fragile { plan: plan.clone(), keyless, state: Arc::clone(&state), slow });
            let (_, outcome) = deliver(
                &mut source, sink(), Some(letters.clone()), settings.clone(), limits, &Lease::unlimited(), std::future::pending(),
            ).await;
            outcome.expect("delivered");
            let acks = acknowledged(&mut receiver);
            let first_pass = seen(&state).delivered.clone();
            // Then people redrive until nothing is left, unless it is unreadable, which the sink takes once it is asked to.
            for _ in 0..200 {
                if letters.rows().is_empty() {
                    break;
                }
                letters.redrive();
                let idle = Limits { max_events: None, exit_when_idle: Some(Duration::from_secs(1)) };
                let (mut nothing, _receiver) = (Waiting, ());
                let (_, outcome) = deliver(
                    &mut nothing, sink(), Some(letters.clone()), settings.clone(), idle, &Lease::unlimited(), std::future::pending(),
                ).await;
                outcome.expect("delivered");
            }
            (first_pass, acks)
        });
        let seen = seen(&state);
        prop_assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
        prop_assert!(seen.most <= concurrency);
        prop_assert!(letters.rows().is_empty(), "{} letters are left", letters.rows().len());

        let mut sorted = acks.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..plan.len() as u64).collect::<Vec<_>>(), "acknowledged once each");
        let mut sorted = seen.delivered.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..plan.len() as i64).collect::<Vec<_>>(), "delivered once each");

        // The oracle: what an event by event reading of the policy gives for each lane.
        let mut lanes = BTreeMap::<u64, Vec<i64>>::new();
        for (number, planned) in plan.iter().enumerate() {
            lanes.entry(lane(planned, number as i64, keyless)).or_default().push(number as i64);
        }
        for (id, numbers) in lanes {
            let of_lane = |all: &[i64]| {
                all.iter().copied().filter(|n| lane(&plan[*n as usize], *n, keyless) == id).collect::<Vec<_>>()
            };
            let fails = |n: &&i64| plan[**n as usize].unreadable || plan[**n as usize].failures >= ATTEMPTS;
            match policy {
                Policy::Skip => {
                    let expected: Vec<i64> = numbers.iter().filter(|n| !fails(n)).copied().collect();
                    let later: Vec<i64> = of_lane(&seen.delivered).into_iter().filter(|n| !fails(&n)).collect();
                    prop_assert_eq!(later, expected, "lane {}", id);
                }
                Policy::Park | Policy::Pause => {
                    prop_assert_eq!(of_lane(&seen.delivered), numbers.clone(), "lane {}", id);
                    let before = numbers.iter().take_while(|n| !fails(n)).copied().collect::<Vec<_>>();
                    prop_assert!(of_lane(&first_pass).starts_with(&before));
                    if policy == Policy::Park {
                        prop_assert_eq!(of_lane(&first_pass), before, "lane {}", id);
                    }
                }
            }
        }
    }
}

/// A stream on which nothing comes.
struct Waiting;

impl Source for Waiting {
    async fn next(&mut self) -> Option<Result<Task>> {
        std::future::pending().await
    }

    fn try_next(&mut self) -> Option<Result<Task>> {
        None
    }

    fn is_within_transaction(&self) -> bool {
        false
    }

    async fn is_drained(&mut self) -> Result<bool> {
        Ok(true)
    }
}

pub(in crate::dispatch) fn plain(count: usize, key: u8) -> Vec<Planned> {
    vec![Planned { key, failures: 0, unreadable: false }; count]
}

#[test]
fn a_stuck_key_fills_the_window_and_no_more_and_only_for_the_retry_time() {
    run(async {
        let mut plan = plain(5_000, 1);
        plan[0].failures = u32::MAX;
        let (mut source, _receiver) = tasks(&plan);
        let state = Arc::new(Mutex::new(Seen::default()));
        let sink = Arc::new(Fragile { plan, keyless: Keyless::Any, state: Arc::clone(&state), slow: false });
        let settings = Settings { max_attempts: u32::MAX, ..Settings::default() };
        let begin = Instant::now();
        let letters = Memory::default();
        let lease = Lease::unlimited();
        let stop = tokio::time::sleep(Duration::from_secs(50));
        let limits = Limits::default();
        let stopped =
            deliver(&mut source, Arc::clone(&sink), Some(letters.clone()), settings.clone(), limits, &lease, stop)
                .await;
        stopped.1.expect("stopped");
        assert_eq!((source.tasks.len(), letters.rows().len()), (5_000 - WINDOW_EVENTS, 0));
        assert_eq!(seen(&state).delivered, [0; 0], "overtaken");
        let (mut source, _receiver) = tasks(&sink.plan);
        let again = Instant::now();
        let stop = std::future::pending();
        deliver(&mut source, sink, Some(letters.clone()), settings, limits, &lease, stop).await.1.expect("delivered");
        assert_eq!((seen(&state).delivered.len(), letters.rows().len()), (4_999, 1));
        assert!(again.elapsed() < Duration::from_secs(61), "{:?}", begin.elapsed());
    });
}

#[test]
fn nothing_is_handed_out_without_a_lease() {
    run(async {
        let plan = plain(3, 0);
        let (mut source, mut receiver) = tasks(&plan);
        let state = Arc::new(Mutex::new(Seen::default()));
        let sink = Arc::new(Fragile { plan, keyless: Keyless::Any, state: Arc::clone(&state), slow: true });
        let lease = Lease::new(Duration::from_secs(3600), Duration::from_secs(1));
        let stop = tokio::time::sleep(Duration::from_secs(600));
        let none = None::<Memory>;
        let stopped =
            deliver(&mut source, Arc::clone(&sink), none.clone(), Settings::default(), Limits::default(), &lease, stop);
        stopped.await.1.expect("stopped");
        assert_eq!(seen(&state).delivered, [0; 0]);

        let (mut source, _receiver) = tasks(&sink.plan);
        lease.renewed(crate::lease::Moment::now());
        let limits = Limits { max_events: Some(2), ..Limits::default() };
        let stop = std::future::pending();
        let (delivered, outcome) =
            deliver(&mut source, Arc::clone(&sink), none.clone(), Settings::default(), limits, &lease, stop).await;
        outcome.expect("delivered");
        assert_eq!(delivered, 2);

        lease.revoke();
        let stop = std::future::pending();
        let (delivered, outcome) =
            deliver(&mut source, sink, none, Settings::default(), Limits::default(), &lease, stop).await;
        assert_eq!((delivered, outcome.expect_err("revoked").kind()), (0, ErrorKind::PlaceLost));
        assert_eq!(acknowledged(&mut receiver), [0; 0]);
        assert_eq!(seen(&state).delivered.len(), 2);
    });
}

/// Takes everything at once.
struct Swallow;

impl EventSink for Swallow {
    fn deliver(&self, _event: Event, _attempt: u32) -> impl Future<Output = Result<(), String>> + Send + 'static {
        std::future::ready(Ok(()))
    }
}

/// Prints what the engine costs; `cargo test --release -p postbox -- --nocapture the_engine_costs`.
#[test]
fn the_engine_costs_about_a_microsecond_an_event() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let plan: Vec<Planned> =
            (0..200_000_u32).map(|n| Planned { key: (n % 200) as u8, failures: 0, unreadable: false }).collect();
        for concurrency in [1, 8] {
            let (mut source, mut receiver) = tasks(&plan);
            let settings = Settings { concurrency, ..Settings::default() };
            let begin = std::time::Instant::now();
            let (delivered, outcome) = deliver(
                &mut source,
                Arc::new(Swallow),
                None::<Memory>,
                settings,
                Limits::default(),
                &Lease::unlimited(),
                std::future::pending(),
            )
            .await;
            let each = begin.elapsed() / 200_000;
            outcome.expect("delivered");
            assert_eq!((delivered, acknowledged(&mut receiver).len()), (200_000, 200_000));
            println!("{each:?} an event with {concurrency} at once");
        }
    });
}

#[test]
fn what_was_to_be_stored_behind_letters_that_are_discarded_is_delivered_in_order() {
    run(async {
        let mut plan = plain(400, 1);
        for failing in [0, 50, 120] {
            plan[failing].failures = u32::MAX;
        }
        let (mut source, mut receiver) = tasks(&plan);
        let state = Arc::new(Mutex::new(Seen::default()));
        let sink = Arc::new(Fragile { plan, keyless: Keyless::Any, state: Arc::clone(&state), slow: false });
        let settings = Settings { max_attempts: 1, on_failure: Policy::Park, ..Settings::default() };
        let letters = Memory::default();
        let discarded = Arc::new(Mutex::new(Vec::new()));
        let person = tokio::spawn({
            let (letters, discarded) = (letters.clone(), Arc::clone(&discarded));
            async move {
                loop {
                    let gone = std::mem::take(&mut *letters.rows());
                    let gone = gone.into_values().filter_map(|row| row.letter.event.seq);
                    discarded.lock().unwrap_or_else(PoisonError::into_inner).extend(gone);
                    tokio::task::yield_now().await;
                }
            }
        });
        let (lease, never) = (Lease::unlimited(), std::future::pending());
        let delivering = deliver(&mut source, sink, Some(letters.clone()), settings, Limits::default(), &lease, never);
        delivering.await.1.expect("delivered");
        person.abort();
        let delivered = seen(&state).delivered.clone();
        let mut all = discarded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(letters.rows().values().filter_map(|row| row.letter.event.seq));
        assert!(delivered.is_sorted() && delivered.len() > 300, "{delivered:?}");
        all.extend(delivered);
        all.sort_unstable();
        assert_eq!(all, (0..400).collect::<Vec<_>>());
        assert_eq!(acknowledged(&mut receiver).len(), 400);
    });
}

#[test]
fn a_signal_ends_the_retries_of_what_is_under_way() {
    run(async {
        let mut plan = plain(3, 1);
        plan[0].failures = u32::MAX;
        let (mut source, mut receiver) = tasks(&plan);
        let state = Arc::new(Mutex::new(Seen::default()));
        let sink = Arc::new(Fragile { plan, keyless: Keyless::Any, state: Arc::clone(&state), slow: true });
        let (lease, failures) = (Lease::unlimited(), Arc::clone(&state));
        // While the sink has it.
        let stop = async move {
            while seen(&failures).under_way.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let none = None::<Memory>;
        let (delivered, outcome) =
            deliver(&mut source, sink, none, Settings::default(), Limits::default(), &lease, stop).await;
        outcome.expect("stopped");
        assert_eq!((delivered, seen(&state).failed.clone()), (0, HashMap::from([(0, 1)])));
        assert_eq!(acknowledged(&mut receiver), [0; 0]);
    });
}

/// Thousands of letters may be redriven at once: no more are in hand than are soon delivered.
#[test]
fn letters_in_hand_are_bounded_while_the_sink_stands_still() {
    struct Endless(Mutex<(i64, usize)>);
    #[derive(Clone)]
    struct Redriven(Arc<Endless>);
    impl DeadLetters for Redriven {
        async fn store(&self, _letters: Vec<NewLetter>, _behind: bool) -> Result<bool> {
            Ok(true)
        }
        async fn keys(&self) -> Result<Vec<Option<ByteString>>> {
            Ok(Vec::new())
        }
        async fn due(&self, _in_order: bool, _keyless: bool, busy: Vec<i64>) -> Result<Vec<DueLetter>> {
            let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.1 = state.1.max(busy.len());
            let events = (0..64).map(|_| {
                state.0 += 1;
                DueLetter { id: state.0, attempts: 1, event: event(state.0, &plain(1, 0)[0]) }
            });
            Ok(events.collect())
        }
        async fn delivered(&self, _id: i64) -> Result<bool> {
            Ok(false)
        }
        async fn failed(&self, _id: i64, _error: String, _again: Option<Duration>) -> Result<()> {
            Ok(())
        }
    }
    struct Still;
    impl EventSink for Still {
        fn deliver(&self, _event: Event, _attempt: u32) -> impl Future<Output = Result<(), String>> + Send + 'static {
            std::future::pending()
        }
    }
    run(async {
        let (mut source, _receiver) = tasks(&plain(1, 0));
        let letters = Redriven(Arc::new(Endless(Mutex::new((0, 0)))));
        let lease = Lease::unlimited();
        let settings = Settings { max_processing: Duration::from_secs(3600), ..Settings::default() };
        let engine = deliver(
            &mut source,
            Arc::new(Still),
            Some(letters.clone()),
            settings,
            Limits::default(),
            &lease,
            std::future::pending(),
        );
        tokio::time::timeout(Duration::from_secs(600), engine).await.expect_err("it goes on");
        let (given, busy) = *letters.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(given <= 128 && busy <= 128, "{given} letters were given out, {busy} were in hand");
    });
}
