//! When a running exchange must end, or its key be looked at again (protocol 1: "running streams end within a second").
//!
//! A revocation is answered at the latest when the lease of a replica that did not hear of it is over. So whatever runs
//! there ends a moment after that, too, because the replica cannot know better. What counts is when the store was last
//! heard, not whether it is trusted: while a new incarnation settles nothing is admitted, but what runs goes on, since
//! revocations that the store forgot are told to it again and arrive with renewals. A store in this process tells by
//! itself. All wait for the tombstones' one channel; one task for each partition tells them that the store fell silent.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Coherence, LEASE_MARGIN};
use crate::clock;
use crate::domain::{BootInstant, KeyDigest};
use crate::store::{Partition, Trust};

/// How long what runs may go on beyond the lease. With a look at a forgotten key (0.7 s) no more than a second.
const GRACE: Duration = Duration::from_millis(300);
/// How long after the last answer what runs may go on where revocations wait for no lease: two renewals' time, not quite.
const ASKING_SILENCE_MAX: Duration = Duration::from_millis(900);
/// How often it is looked whether a store that fell silent was heard again; less than either of the above.
const SILENCE_LOOK: Duration = Duration::from_millis(200);

/// Why a running exchange cannot simply go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// Its key is known to be revoked.
    Revoked,
    /// The store was not heard for so long that a revocation may have been answered without this replica.
    Unheard,
    /// Revocations may have been missed: the key must be read again, and was not missed since this generation.
    Forgotten(u64),
}

impl Coherence {
    /// Ends when a running exchange cannot simply go on; its key was read under `generation`.
    pub async fn doubt(&self, partition: Partition, digest: KeyDigest, generation: u64) -> Doubt {
        // Subscribed before the first look, so that nothing falls in between.
        let mut news = self.memory.tombstones.news();
        loop {
            let present = self.generation();
            if self.is_revoked(&digest) {
                return Doubt::Revoked;
            }
            if self.is_unheard(partition) {
                return Doubt::Unheard;
            }
            if present != generation {
                return Doubt::Forgotten(present);
            }
            if news.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn is_unheard(&self, partition: Partition) -> bool {
        clock::boot_now() >= self.runs_until(partition)
    }

    fn runs_until(&self, partition: Partition) -> BootInstant {
        BootInstant::from_nanos(self.knowledge(partition).runs_until.load(Ordering::SeqCst))
    }

    /// Notes that the store answered a question that was sent then, and that all it said is applied here.
    pub(super) fn hear(&self, partition: Partition, sent: BootInstant, trust: Trust) {
        let runs_until = match trust {
            Trust::UntilTold => BootInstant::NEVER,
            Trust::Lease(lease) => lease_end(sent, lease).plus(GRACE),
            Trust::Asking(_) => sent.plus(ASKING_SILENCE_MAX),
        };
        self.knowledge(partition).runs_until.fetch_max(runs_until.nanos(), Ordering::SeqCst);
    }

    /// Wakes what runs whenever the store falls silent.
    pub(super) async fn watch_silence(&self, partition: Partition) {
        let mut told = BootInstant::default();
        loop {
            let (now, runs_until) = (clock::boot_now(), self.runs_until(partition));
            if now < runs_until {
                tokio::time::sleep(runs_until.since(now).min(ASKING_SILENCE_MAX)).await;
                continue;
            }
            if told != runs_until {
                told = runs_until;
                tracing::warn!(partition = partition.0, "the store was not heard for a lease; what runs with its keys ends");
                self.memory.tombstones.rouse();
            }
            tokio::time::sleep(SILENCE_LOOK).await;
        }
    }
}

/// When a lease that was asked for at `sent` is over here.
pub(super) fn lease_end(sent: BootInstant, lease: Duration) -> BootInstant {
    sent.plus(lease.mul_f64(0.99).saturating_sub(LEASE_MARGIN))
}
