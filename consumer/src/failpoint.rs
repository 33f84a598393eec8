//! Named steps at which a test makes the process end or stand still. Without the feature `failpoints` nothing of this is built.
//!
//! `POSTBOX_FAILPOINT=STEP@N=ACTION`: when the step is reached for the N-th time (`@1` may be left out). The actions:
//!
//! * `kill`: SIGKILL, so nothing is flushed, closed or told.
//! * `stop`: SIGSTOP, so every thread stands still right here, until somebody sends SIGCONT.
//!
//! The crate `fail` has neither; its `pause` would leave the other threads running, which no outside fault does.

#[cfg(feature = "failpoints")]
mod active {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    struct Failpoint {
        step: String,
        left: AtomicU64,
        action: String,
    }

    const STEPS: &[&str] = &[
        "activate.after",
        "backfill.after-position",
        "backfill.before-position",
        "checkpoint.after-write",
        "checkpoint.before-write",
        "confirm.after",
        "confirm.before",
        "dead-letter.after-store",
        "dead-letter.before-store",
        "deliver.after-sink",
        "deliver.before-sink",
        "inbox.after-open",
        "inbox.at-commit",
        "inbox.before-commit",
        "recover.after",
        "recover.before",
    ];

    fn configured() -> Option<Failpoint> {
        let text = std::env::var("POSTBOX_FAILPOINT").ok()?;
        let failpoint = parse(&text);
        assert!(
            failpoint.is_some(),
            "POSTBOX_FAILPOINT={text} is not STEP@N=kill or STEP@N=stop with a STEP of {STEPS:?}"
        );
        failpoint
    }

    fn parse(text: &str) -> Option<Failpoint> {
        let (place, action) = text.split_once('=')?;
        let (step, number) = place.split_once('@').unwrap_or((place, "1"));
        let known = STEPS.contains(&step) && matches!(action, "kill" | "stop");
        let left = number.parse().ok().filter(|number| *number > 0 && known)?;
        Some(Failpoint { step: step.to_owned(), left: AtomicU64::new(left), action: action.to_owned() })
    }

    pub(crate) fn reach(step: &str) {
        static CONFIGURED: OnceLock<Option<Failpoint>> = OnceLock::new();
        debug_assert!(STEPS.contains(&step), "{step}");
        let Some(failpoint) = CONFIGURED.get_or_init(configured).as_ref().filter(|point| point.step == step) else {
            return;
        };
        // Below zero it wraps, and does not come round.
        if failpoint.left.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        eprintln!("failpoint {step}: {}", failpoint.action);
        let signal = if failpoint.action == "kill" { Signal::SIGKILL } else { Signal::SIGSTOP };
        // Directed at this thread, so it does not get past here before.
        let raised = raise(signal);
        assert!(raised.is_ok(), "{raised:?}");
    }
}

#[cfg(feature = "failpoints")]
pub(crate) use active::reach;

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) const fn reach(_step: &str) {}
