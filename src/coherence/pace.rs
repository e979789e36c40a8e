//! Whether the store's clock keeps pace with this machine's.
//!
//! Windows are counted by the store's clock. If it leaps forward, uses leave a window too early; nobody can mend that, but
//! every replica can see it, because its own clock counts on evenly and cannot be set.

use std::time::Duration;

use crate::domain::{BootInstant, Timestamp};

/// Progress beyond our own clock's, and 1 % of that, that is taken for a leap: more than the noise of a busy machine.
const MARGIN: Duration = Duration::from_millis(100);

/// The last reading that the next one is compared with.
#[derive(Default)]
pub(super) struct Pace {
    last: Option<(BootInstant, Timestamp)>,
}

impl Pace {
    /// Takes a reading of the store's clock, made somewhere between `sent` and `received`; answers how far it has leapt
    /// forward since the last one, if it has.
    pub(super) fn leap(&mut self, sent: BootInstant, received: BootInstant, time: Timestamp) -> Option<Duration> {
        let (began, before) = self.last.replace((sent, time))?;
        // The longest time that can have passed between the two readings.
        let own = received.since(began);
        let store = Duration::from_micros(u64::try_from(time.micros().saturating_sub(before.micros())).unwrap_or(0));
        let allowed = own + own / 100 + MARGIN;
        (store > allowed).then(|| store.saturating_sub(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_is_told_once_and_noise_never() {
        let mut pace = Pace::default();
        let mut reading = |sent_ms: u64, received_ms: u64, store_ms: i64| {
            let at = |ms: u64| BootInstant::from_nanos(ms * 1_000_000);
            pace.leap(at(sent_ms), at(received_ms), Timestamp::from_micros(1_795_458_600_000_000 + store_ms * 1_000))
        };
        assert_eq!(reading(1_000, 1_010, 0), None);
        assert_eq!(reading(2_000, 2_010, 1_100), None, "within the margin");
        assert_eq!(reading(3_000, 3_500, 2_600), None, "the answer took its time");
        assert_eq!(reading(4_000, 4_000, 13_600), Some(Duration::from_secs(10)));
        assert_eq!(reading(5_000, 5_000, 14_600), None, "told once");
        assert_eq!(reading(6_000, 6_000, 4_600), None, "back is harmless: the window's clock stands still");
        assert_eq!(reading(16_000, 16_000, 14_690), None, "1 % faster");
    }
}
