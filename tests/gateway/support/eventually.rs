//! Waiting without sleeping blindly: a condition is looked at again and again until it holds or a deadline passes.

use std::time::{Duration, Instant};

/// Pause between two looks: short beside every deadline, long beside the cost of a look.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Looks until `look` finds something, and answers it.
///
/// # Panics
/// When `deadline` has passed; the message says what was awaited.
#[track_caller]
pub(crate) fn found<T>(deadline: Duration, awaited: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + deadline;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < until, "{awaited}: not within {deadline:?}");
        std::thread::sleep(POLL);
    }
}

/// Looks at a condition until it holds: `eventually!(SOON, log.contains("x"))`, with a message if the condition does not explain itself.
macro_rules! eventually {
    ($deadline:expr, $condition:expr) => {
        $crate::support::eventually::found($deadline, stringify!($condition), || if $condition { Some(()) } else { None })
    };
    ($deadline:expr, $condition:expr, $($message:tt)+) => {
        $crate::support::eventually::found($deadline, &format!($($message)+), || if $condition { Some(()) } else { None })
    };
}
pub(crate) use eventually;

#[test]
fn eventually_waits_for_what_comes_and_gives_up_on_what_does_not() {
    let mut looks = 0;
    eventually!(Duration::from_secs(5), {
        looks += 1;
        looks == 3
    });
    let gave_up = std::panic::catch_unwind(|| eventually!(Duration::from_millis(30), false, "never"));
    assert!(looks == 3 && gave_up.is_err());
}
