//! Two threads that keep the spool in order, so that requests do not wait for the disk.
//!
//! The keeper makes spares ahead of need, deletes what is shipped and writes what waits in memory. The syncer forces
//! what is written to disk at the configured interval. They are two, so that a slow disk does not keep room from being made.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::core::Core;

/// How often the keeper looks when nothing is the matter: the gauges' resolution.
const CALM: Duration = Duration::from_secs(1);
/// How often it looks while refusals are counted or something is to be tried again.
const RESTLESS: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Wanted {
    work: bool,
    end: bool,
}

/// Wakes a thread, or tells it to end.
#[derive(Debug, Default)]
pub(super) struct Wake {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

impl Wake {
    /// There is something to do.
    pub(super) fn wake(&self) {
        let mut wanted = self.wanted.lock();
        if !wanted.work {
            wanted.work = true;
            self.changed.notify_one();
        }
    }

    /// The thread is to end.
    pub(super) fn end(&self) {
        self.wanted.lock().end = true;
        self.changed.notify_one();
    }

    /// Sleeps until woken or until the pause is over; false when the thread is to end.
    fn sleep(&self, pause: Duration) -> bool {
        let mut wanted = self.wanted.lock();
        if !wanted.work && !wanted.end {
            self.changed.wait_for(&mut wanted, pause);
        }
        wanted.work = false;
        !wanted.end
    }
}

/// The keeper's life.
pub(super) fn keep(core: &Core) {
    while core.keeper.sleep(if core.is_restless() { RESTLESS } else { CALM }) {
        core.keep_room();
        core.write_waiting();
        core.retire_shipped();
        core.observe();
    }
}

/// The syncer's life. A failed sync is logged where it fails and tried again, in another file.
pub(super) fn sync(core: &Core, wake: &Arc<Wake>, interval: Duration) {
    while wake.sleep(interval) {
        let _ = core.sync();
    }
}
