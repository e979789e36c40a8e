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
