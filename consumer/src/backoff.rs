//! How long to wait before the next attempt.

use std::time::Duration;

/// A random time up to `first · 2ⁿ`, at most `most`.
pub(crate) fn wait(first: Duration, most: Duration, n: u32) -> Duration {
    let ceiling = first.saturating_mul(1_u32.checked_shl(n).unwrap_or(u32::MAX)).min(most);
    ceiling.mul_f64(rand::random::<f64>())
}

/// Exponential backoff with full jitter: the n-th wait is a random time up to `first · 2ⁿ`, at most `most`. Many
/// consumers that lost the same server do not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, attempts: 0 }
    }

    /// The wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = wait(self.first, self.most, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        wait
    }

    /// An attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full jitter: anything from nothing to the ceiling, and as likely.
    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let most = Duration::from_secs(1);
        let waits: Vec<f64> = (0..2000).map(|_| wait(Duration::from_millis(100), most, 20).as_secs_f64()).collect();
        let (mean, within) =
            (waits.iter().sum::<f64>() / 2000.0, |from, to| waits.iter().any(|&n| from <= n && n < to));
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert!(within(0.0, 0.02) && within(0.98, 1.0), "none at an end");
        assert!((0..10).all(|tenth| within(f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0)));
    }

    #[test]
    fn waits_grow_to_the_ceiling_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        for attempt in 0..64 {
            let ceiling = Duration::from_millis(100).saturating_mul(1 << attempt.min(20)).min(Duration::from_secs(10));
            assert!(backoff.next() <= ceiling);
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
