//! File descriptors: as many as the process may have, and some kept for what must not starve.
//!
//! A stranger who opens connections until none is left must not keep an admin from revoking a key. So the soft limit is
//! raised to the hard one, and the edge takes no more connections than leave a reserve for everything else.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for the admin and ops listeners, upstream connections, the store and the spool, in descriptors.
const RESERVE: usize = 1_024;
/// Where the limit is small, at least this part of it is kept.
const RESERVE_PART: usize = 2;

/// How many connections the edge may have, of the `wanted` ones; says so where that is fewer.
pub(super) fn connections_max(wanted: usize) -> usize {
    let limit = raise();
    let reserve = RESERVE.min(limit / RESERVE_PART);
    let possible = limit.saturating_sub(reserve);
    if possible < wanted {
        tracing::warn!(limit, reserve, possible, wanted, "too few file descriptors for edge.connections_max; raise the limit (ulimit -n)");
    }
    wanted.min(possible)
}

/// The number of descriptors this process may have, after asking for as many as it may ask for.
fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        return maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    }
    current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
