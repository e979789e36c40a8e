//! What happened in a run, as clients, the upstream and the audit stream saw it: all that the oracles read.
//!
//! Moments are of the tests' own monotonic clock, counted from the beginning of the run; one process runs clients and
//! upstream, so they compare. A request carries a marker in its path, so that it is known again at the upstream and in
//! the stream also when its client got no answer.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Since the beginning of the run.
pub(super) type Moment = Duration;

/// A request with a key.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) marker: u64,
    pub(super) key: String,
    pub(super) replica: usize,
    /// Which process of that replica was asked: 0 is the first.
    pub(super) life: u32,
    /// Before the first byte left.
    pub(super) sent: Moment,
    pub(super) answer: Option<Answered>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    /// After the last byte had come.
    pub(super) at: Moment,
    pub(super) status: u16,
    pub(super) request_id: Option<String>,
}

/// A creation that was answered 201.
#[derive(Clone, Debug)]
pub(super) struct Creation {
    pub(super) key: String,
    pub(super) firm: String,
    pub(super) creator: String,
    pub(super) answered: Moment,
}

/// An attempt to revoke.
#[derive(Clone, Debug)]
pub(super) struct Revocation {
    pub(super) key: String,
    pub(super) sent: Moment,
    pub(super) answered: Option<(Moment, u16)>,
}

/// A request at the upstream.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    /// After its head had come.
    pub(super) at: Moment,
    pub(super) marker: u64,
    pub(super) request_id: String,
    /// The key that the assertion names.
    pub(super) key: String,
}

/// The end of a process that was not asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    pub(super) replica: usize,
    pub(super) life: u32,
}

/// An entry of the audit stream, as far as oracles look at it.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Record {
    pub(super) event_id: String,
    pub(super) action: String,
    pub(super) outcome: String,
    pub(super) key: String,
    pub(super) request_id: Option<String>,
    pub(super) path: String,
    pub(super) status: Option<u16>,
    pub(super) replica: String,
    pub(super) sequence: Option<u64>,
    pub(super) count: u64,
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    /// Permits in any 60 seconds, live keys of a firm, live keys of a creator.
    pub(super) limits: [usize; 3],
    pub(super) attempts: Vec<Attempt>,
    pub(super) creations: Vec<Creation>,
    pub(super) revocations: Vec<Revocation>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) kills: Vec<Kill>,
    pub(super) records: Vec<Record>,
}

/// The story while it happens.
#[derive(Debug)]
pub(super) struct Journal {
    began: Instant,
    story: Mutex<Story>,
}

impl Journal {
    pub(super) fn new(limits: [usize; 3]) -> Self {
        Self { began: Instant::now(), story: Mutex::new(Story { limits, ..Story::default() }) }
    }

    pub(super) fn now(&self) -> Moment {
        self.began.elapsed()
    }

    pub(super) fn story(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The path that carries a marker; every second kind is refused by its route after it was counted.
pub(super) fn path_of(marker: u64, is_denied: bool) -> String {
    if is_denied { format!("/v1/session/{marker}") } else { format!("/m/{marker}") }
}

/// The marker in a path.
pub(super) fn marker_in(path: &str) -> Option<u64> {
    path.rsplit_once('/')?.1.parse().ok()
}

/// The name in the configuration of a replica, which its records carry.
pub(super) fn replica_name(replica: usize) -> String {
    format!("replica-{replica}")
}
