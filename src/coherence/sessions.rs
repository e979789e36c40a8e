//! The other replicas' sessions, as this replica's own clock saw them: who is silent, and for how long.
//!
//! A replica's lease is over when it has not renewed for a term, and only what was seen here says so: the store's clock,
//! and what it noted of times, may be wrong after a failover.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::term_of;
use crate::domain::{BootInstant, ReplicaId};
use crate::mutants::{self, Mutant};
use crate::store::{Partition, SessionState};

/// Terms of silence after which a session is forgotten in the store too; one is enough to be safe.
const FORGOTTEN_AFTER_TERMS: u32 = 10;

/// When each session was first seen as it is.
#[derive(Default)]
pub(super) struct Watched(Mutex<HashMap<(Partition, ReplicaId, Uuid), Seen>>);

struct Seen {
    renewals: u64,
    since: BootInstant,
}

impl Watched {
    /// Notes what the store told of a partition.
    pub(super) fn note(&self, partition: Partition, sessions: &[SessionState], now: BootInstant) {
        let mut watched = self.0.lock();
        for session in sessions {
            let seen = watched.entry(name(partition, session)).or_insert(Seen { renewals: session.renewals, since: now });
            if seen.renewals != session.renewals {
                *seen = Seen { renewals: session.renewals, since: now };
            }
        }
        watched.retain(|(of, replica, incarnation), _| {
            *of != partition || sessions.iter().any(|session| session.replica == *replica && session.incarnation == *incarnation)
        });
    }

    /// Whether a session has not renewed for so long, by this replica's own clock, that its lease is over: it was
    /// counted from before the renewal that was seen here. Whoever comes back must renew first, and learns everything.
    pub(super) fn is_silent(&self, partition: Partition, session: &SessionState, now: BootInstant) -> bool {
        self.silence(partition, session, now) >= term_of(session.lease) || mutants::active(Mutant::NoWaitForSilent)
    }

    /// Whether it has been silent for so long that it need not be kept. `lease` is what is usual here.
    pub(super) fn is_gone(&self, partition: Partition, session: &SessionState, lease: Duration, now: BootInstant) -> bool {
        self.silence(partition, session, now) >= term_of(session.lease.max(lease)) * FORGOTTEN_AFTER_TERMS
    }

    fn silence(&self, partition: Partition, session: &SessionState, now: BootInstant) -> Duration {
        let watched = self.0.lock();
        let seen = watched.get(&name(partition, session)).filter(|seen| seen.renewals == session.renewals);
        seen.map_or(Duration::ZERO, |seen| now.since(seen.since))
    }
}

fn name(partition: Partition, session: &SessionState) -> (Partition, ReplicaId, Uuid) {
    (partition, session.replica.clone(), session.incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Epoch;

    #[test]
    fn only_silence_that_was_seen_here_counts_and_a_renewal_ends_it() {
        let lease = Duration::from_secs(1);
        let session =
            |renewals| SessionState { replica: ReplicaId::new("replica-2"), incarnation: Uuid::nil(), applied: Epoch(1), renewals, lease };
        let (watched, start, zero) = (Watched::default(), BootInstant::from_nanos(1_000_000_000), Partition(0));
        let after = |ms| start.plus(Duration::from_millis(ms));
        assert!(!watched.is_silent(zero, &session(1), after(60_000)), "never seen before");
        watched.note(zero, &[session(1)], start);
        watched.note(zero, &[session(1)], after(1_000));
        assert!(!watched.is_silent(zero, &session(1), after(1_109)), "a lease, 1 % of it and 100 ms");
        assert!(watched.is_silent(zero, &session(1), after(1_110)));
        assert!(!watched.is_silent(Partition(1), &session(1), after(1_110)), "another partition has seen nothing");
        assert!(!watched.is_silent(zero, &session(2), after(60_000)), "it has renewed");
        watched.note(zero, &[session(2)], after(2_000));
        assert!(!watched.is_gone(zero, &session(2), lease, after(13_000)) && watched.is_gone(zero, &session(2), lease, after(13_100)));
        watched.note(Partition(1), &[], after(13_100));
        assert!(watched.is_silent(zero, &session(2), after(13_100)));
        watched.note(zero, &[], after(13_100));
        assert!(!watched.is_silent(zero, &session(2), after(60_000)), "forgotten with the session");
    }
}
