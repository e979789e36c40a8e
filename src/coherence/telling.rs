//! Telling a new incarnation of the store what it may have forgotten: revocations, and the uses of the last minute.
//!
//! In chunks, so that neither the store nor the renewals of this partition wait long for any of them. What the store does
//! know it only looks at. An error begins all anew, which harms nothing: to tell twice is to tell once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Coherence, in_time, term_of};
use crate::clock;
use crate::domain::{BootInstant, KeyDigest};
use crate::mutants::{self, Mutant};
use crate::store::{Partition, RecalledKey, StoreError, StoreIncarnation};

/// Digests told in one call: half a millisecond of the store's time where it knows them all.
const DIGESTS_MAX: usize = 500;
/// Keys told of in one call, and uses of which to begin no further key: about as much work.
const KEYS_MAX: usize = 200;
const USES_MAX: usize = 2_000;
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(2);

/// What is left to be told, and to whom.
pub(super) struct Telling {
    to: StoreIncarnation,
    uses: VecDeque<RecalledKey>,
    /// The same list for all partitions that are told at once, and how many of it were told.
    digests: Arc<[KeyDigest]>,
    told: usize,
}

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// The store knows all that is known here.
    All,
    /// It is time for a renewal.
    Some,
    /// The store did not answer.
    Failed,
}

impl Coherence {
    /// Goes on telling the incarnation that was met last until `pause_at`. Trust begins a term after it has been told
    /// all.
    pub(super) async fn tell(&self, partition: Partition, telling: &mut Option<Telling>, pause_at: BootInstant) -> Told {
        let knowledge = self.knowledge(partition);
        if knowledge.settling_until.load(Ordering::SeqCst) != BootInstant::NEVER.nanos() {
            return Told::All;
        }
        let Some(met) = knowledge.met.read().clone() else { return Told::All };
        let mut left = telling.take().filter(|telling| telling.to == met).unwrap_or_else(|| self.all_to_tell(partition, met));
        while !left.is_done() {
            if let Err(error) = self.tell_some(partition, &mut left).await {
                // Tried several times a second; one line says so.
                if !knowledge.is_told_of_failure.swap(true, Ordering::SeqCst) {
                    tracing::warn!(partition = partition.0, %error, "the store cannot be told what it may have forgotten; this is tried again");
                }
                return Told::Failed;
            }
            if clock::boot_now() >= pause_at {
                *telling = Some(left);
                return Told::Some;
            }
        }
        knowledge.is_told_of_failure.store(false, Ordering::SeqCst);
        self.settle_in(partition, &left.to);
        Told::All
    }

    fn all_to_tell(&self, partition: Partition, to: StoreIncarnation) -> Telling {
        let uses: VecDeque<RecalledKey> =
            self.uses.get().filter(|_| !mutants::active(Mutant::NoRecall)).map(|recall| recall(partition)).unwrap_or_default().into();
        let digests = if mutants::active(Mutant::NoReassert) { Arc::default() } else { self.memory.tombstones.all() };
        tracing::info!(
            partition = partition.0,
            tombstones = digests.len(),
            keys = uses.len(),
            "telling the store what it may have forgotten"
        );
        Telling { to, uses, digests, told: 0 }
    }

    async fn tell_some(&self, partition: Partition, left: &mut Telling) -> Result<(), StoreError> {
        let uses = left.next_uses();
        if !uses.is_empty() {
            return in_time(CALL_MAX, self.store.recall(partition, uses)).await;
        }
        in_time(CALL_MAX, self.store.reassert(partition, left.next_digests())).await
    }

    /// Begins the term, unless yet another incarnation was met.
    fn settle_in(&self, partition: Partition, told: &StoreIncarnation) {
        let knowledge = self.knowledge(partition);
        let met = knowledge.met.read();
        if met.as_ref() == Some(told) {
            let lease = Duration::from_nanos(knowledge.lease.load(Ordering::SeqCst));
            let is_over = knowledge.joins_settled.load(Ordering::SeqCst) || mutants::active(Mutant::TrustNewStore);
            let term = if is_over { Duration::ZERO } else { term_of(lease) };
            knowledge.settling_until.store(clock::boot_now().plus(term).nanos(), Ordering::SeqCst);
        }
    }
}

impl Telling {
    fn is_done(&self) -> bool {
        self.uses.is_empty() && self.told >= self.digests.len()
    }

    fn next_uses(&mut self) -> Vec<RecalledKey> {
        let (mut keys, mut uses) = (Vec::new(), 0);
        while keys.len() < KEYS_MAX && uses < USES_MAX {
            let Some(key) = self.uses.pop_front() else { break };
            uses += key.uses.len();
            keys.push(key);
        }
        keys
    }

    fn next_digests(&mut self) -> Vec<KeyDigest> {
        let digests: Vec<KeyDigest> = self.digests.iter().skip(self.told).take(DIGESTS_MAX).copied().collect();
        self.told += digests.len();
        digests
    }
}
