//! The windows of the keys in use (protocol 2), in memory.
//!
//! They need not be in the file: each use is in the activity log anyway, and after a restart a key's window is made
//! from there the first time it is asked for. The caller reads the log; this file decides when that is needed.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::pages::Start;
use crate::clock;
use crate::domain::window::{GRANT_LIFE, WINDOW, Window};
use crate::domain::{BootInstant, KeyId};
use crate::store::{PermitRequest, Permits};

/// Locks, so that keys do not wait for each other; a power of two well above the number of cores.
const SHARDS: usize = 16;
/// How often a shard drops windows in which nothing counts any more.
const SWEEP_PAUSE: Duration = Duration::from_secs(15);

/// All windows in which something counts, or did at the last sweep.
pub(super) struct Windows {
    shards: [Mutex<Shard>; SHARDS],
    /// Until then a window that is missing may have uses from before the start.
    complete_from: BootInstant,
}

#[derive(Default)]
struct Shard {
    windows: HashMap<KeyId, Window>,
    swept_at: BootInstant,
}

impl Windows {
    /// No windows yet; for the first minute a missing one has to be made from the log.
    pub(super) fn since(start: Start) -> Self {
        Self { shards: Default::default(), complete_from: start.boot.plus(WINDOW).plus(GRANT_LIFE) }
    }

    /// Decides, unless the key's window must be made from the log first.
    pub(super) fn decide(&self, request: &PermitRequest) -> Option<Permits> {
        let mut shard = self.shard(request.key).lock();
        // Read under the lock, so that decisions about a key are in the order of their times.
        let now = clock::boot_now();
        shard.sweep(now);
        if now < self.complete_from && !shard.windows.contains_key(&request.key) {
            return None;
        }
        let window = shard.windows.entry(request.key).or_default();
        Some(window.request(now, request.want, &request.reports, request.limit))
    }

    /// Decides with what the log remembers, unless somebody else made the window in the meantime.
    pub(super) fn decide_remembering(&self, request: &PermitRequest, uses: Vec<BootInstant>) -> Permits {
        let mut shard = self.shard(request.key).lock();
        let window = shard.windows.entry(request.key).or_insert_with(|| Window::with_uses(uses));
        window.request(clock::boot_now(), request.want, &request.reports, request.limit)
    }

    fn shard(&self, key: KeyId) -> &Mutex<Shard> {
        let [.., last] = *key.uuid().as_bytes();
        self.shards.get(usize::from(last) % SHARDS).expect("a remainder of the number of shards is a shard")
    }
}

impl Shard {
    fn sweep(&mut self, now: BootInstant) {
        if now.since(self.swept_at) >= SWEEP_PAUSE {
            self.windows.retain(|_, window| !window.is_idle(now));
            self.swept_at = now;
        }
    }
}

#[cfg(test)]
impl Windows {
    /// How many windows are in memory.
    pub(super) fn held(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().windows.len()).sum()
    }

    /// Sweeps as if it were `now`.
    pub(super) fn sweep_at(&self, now: BootInstant) {
        self.shards.iter().for_each(|shard| shard.lock().sweep(now));
    }
}
