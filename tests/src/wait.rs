//! Waiting on facts: a test names what must become true, and how long that may take.

use std::thread::sleep;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(5);

/// Asks until `fact` gives a value, and returns it.
///
/// # Panics
/// After `timeout`, naming `what` was waited for.
pub fn wait_until<T>(what: &str, timeout: Duration, mut fact: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(begin.elapsed() < timeout, "waited {timeout:?} in vain: {what}");
        sleep(INTERVAL);
    }
}

/// [`wait_until`] for a fact that is asked asynchronously.
///
/// # Panics
/// After `timeout`, naming `what` was waited for; also when the question itself hangs.
pub async fn wait_until_async<T>(what: &str, timeout: Duration, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let ask = async {
        loop {
            if let Some(value) = fact().await {
                return value;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(value) => value,
        Err(_) => panic!("waited {timeout:?} in vain: {what}"),
    }
}
