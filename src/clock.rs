//! The only file that reads the time.
//!
//! Deadlines of input and output use tokio's timers; everything that decides about a key, a window, a lease or a
//! record asks here.

use crate::domain::{BootInstant, Timestamp};

/// The wall clock, for records and for what goes into tokens. May step in either direction.
pub fn wall_now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}

/// CLOCK_BOOTTIME: counts on while the machine sleeps, and nobody can set it.
pub fn boot_now() -> BootInstant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootInstant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// A UUIDv7 (RFC 9562): this moment's milliseconds and random bits, so that ids sort by time and never repeat.
pub fn fresh_uuid() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

/// One moment by both clocks. What happens soon after it is told from it, which spares reading the wall clock again: each reading is a
/// thousandth of what a request takes.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: Timestamp,
    boot: BootInstant,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { wall: wall_now(), boot: boot_now() }
    }

    /// By CLOCK_BOOTTIME.
    pub fn boot(&self) -> BootInstant {
        self.boot
    }

    /// By the wall clock.
    pub fn wall(&self) -> Timestamp {
        self.wall
    }

    /// What the wall clock shows at `later`, unless it was stepped since.
    pub fn wall_at(&self, later: BootInstant) -> Timestamp {
        self.wall.plus(later.since(self.boot))
    }

    /// As [`fresh_uuid`], but within a millisecond such ids have no order.
    pub fn fresh_uuid(&self) -> uuid::Uuid {
        let micros = u64::try_from(self.wall.micros()).unwrap_or(0);
        let nanos = u32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0);
        uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, micros / 1_000_000, nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_comes_later_is_told_from_a_moment_and_ids_are_of_it() {
        let moment = Moment::now();
        assert_eq!(moment.wall_at(moment.boot()), moment.wall());
        assert_eq!(moment.wall_at(moment.boot().plus(Duration::from_micros(17))), moment.wall().plus(Duration::from_micros(17)));
        let ids: HashSet<_> = (0..10_000).map(|_| moment.fresh_uuid()).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            assert_eq!(seconds * 1_000 + u64::from(nanos / 1_000_000), u64::try_from(moment.wall().micros() / 1_000).unwrap());
        }
    }
}
