//! What this replica knows about changes to keys, and whether it may believe it (protocol 1).
//!
//! A cached key may be used only while this replica has applied every change that the store could have answered
//! for. Three values per partition decide: `applied` (the epoch up to which every change is known here),
//! `valid_until` (how long the store's last answer may be trusted) and `floor` (what was cached before it is
//! forgotten). Revocations are kept as tombstones, which only grow.
//!
//! The order is the proof: a tombstone is added before `applied` moves, `applied` moves before `valid_until`;
//! a reader looks a key up between two readings of `applied`, and reads `valid_until` before the second.
//! Changes are taken from the store in epoch order, by `renew` alone, so that `applied` never jumps over one.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::domain::{BootInstant, KeyDigest, ReplicaId};
use crate::metrics::Metrics;
use crate::store::{Epoch, Invalidations, Partition, RenewalRequest, Store, StoreError, Trust};

/// How long to wait before asking again when the store did not answer.
const RETRY: Duration = Duration::from_millis(250);
/// A change whose answer was lost (a stalled disk, an error after the commit) was told to nobody; it is found within
/// this time. A renewal of a store in this process is one lock.
const UNTOLD_LOOK: Duration = Duration::from_millis(250);
/// How often a waiting revocation looks for the other replicas' confirmations.
const CONFIRMATION_POLL: Duration = Duration::from_millis(5);
/// Clocks of gateway hosts may run at rates that differ by 1 %; a lease is shortened by that and by this much.
const LEASE_MARGIN: Duration = Duration::from_millis(20);
/// Longest wait for a confirmation: the contract's longest lease (10 s) with its margin.
const CONFIRMATION_MAX: Duration = Duration::from_millis(10_200);

/// This replica's knowledge of the store's changes.
pub struct Coherence {
    store: Arc<dyn Store>,
    replica: ReplicaId,
    incarnation: Uuid,
    partitions: Box<[Knowledge]>,
    tombstones: RwLock<HashSet<KeyDigest>>,
    revocations: watch::Sender<u64>,
    metrics: Metrics,
}

#[derive(Default)]
struct Knowledge {
    applied: AtomicU64,
    valid_until: AtomicU64,
    floor: AtomicU64,
    renewing: tokio::sync::Mutex<()>,
}

/// A replica that has applied a change.
#[derive(Clone, Debug)]
pub struct Confirmation {
    /// Which replica.
    pub replica: ReplicaId,
    /// How long after the commit it was known to have applied it.
    pub confirmed_in: Duration,
}

/// The change is committed, but it could not be made sure that every replica knows of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the change is made, but not every replica has confirmed it")]
pub struct NotConfirmed;

impl Coherence {
    /// Knows nothing yet, and says so, until [`Coherence::join`] has succeeded.
    pub fn new(store: Arc<dyn Store>, replica: ReplicaId, incarnation: Uuid, metrics: &Metrics) -> Arc<Self> {
        let partitions = (0..store.partitions()).map(|_| Knowledge::default()).collect();
        Arc::new(Self {
            store,
            replica,
            incarnation,
            partitions,
            tombstones: RwLock::default(),
            revocations: watch::Sender::new(0),
            metrics: metrics.clone(),
        })
    }

    /// Learns the current epoch of every partition; answers how long that may be trusted.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn join(&self) -> Result<Trust, StoreError> {
        let mut shortest = Trust::UntilTold;
        for number in 0..self.store.partitions() {
            let trust = self.renew(Partition(number)).await?;
            shortest = match (shortest, trust) {
                (Trust::Lease(one), Trust::Lease(other)) => Trust::Lease(one.min(other)),
                (lease @ Trust::Lease(_), Trust::UntilTold) => lease,
                (Trust::UntilTold, other) => other,
            };
        }
        Ok(shortest)
    }

    /// Renews until asked to stop: four times within each lease, or at short intervals where the store tells by itself.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let pause = match self.join().await {
                Ok(Trust::UntilTold) => UNTOLD_LOOK,
                Ok(Trust::Lease(span)) => span / 4,
                Err(error) => {
                    tracing::warn!(%error, "cannot renew the coherence lease");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// The epoch up to which every change of a partition is known here.
    pub fn applied(&self, partition: Partition) -> Epoch {
        Epoch(self.knowledge(partition).applied.load(Ordering::SeqCst))
    }

    /// Until when what is known may be trusted.
    pub fn valid_until(&self, partition: Partition) -> BootInstant {
        BootInstant::from_nanos(self.knowledge(partition).valid_until.load(Ordering::SeqCst))
    }

    /// What was read from the store before this epoch must be read again.
    pub fn floor(&self, partition: Partition) -> Epoch {
        Epoch(self.knowledge(partition).floor.load(Ordering::SeqCst))
    }

    /// Whether every partition may be trusted now; for readiness.
    pub fn is_coherent(&self) -> bool {
        let now = clock::boot_now().nanos();
        self.partitions.iter().all(|knowledge| now < knowledge.valid_until.load(Ordering::SeqCst))
    }

    /// Whether a key is known here to have been revoked.
    pub fn is_revoked(&self, digest: &KeyDigest) -> bool {
        self.tombstones.read().contains(digest)
    }

    /// Ends when the key is known here to have been revoked; cuts running streams and uploads.
    pub async fn revoked(&self, digest: KeyDigest) {
        let mut news = self.revocations.subscribe();
        while !self.is_revoked(&digest) {
            if news.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Applies a committed creation here and waits until every replica has, so that the key works everywhere.
    ///
    /// # Errors
    /// [`NotConfirmed`] when the store did not let us make sure.
    pub async fn settle_creation(
        &self,
        partition: Partition,
        epoch: Epoch,
        committed: BootInstant,
    ) -> Result<Vec<Confirmation>, NotConfirmed> {
        self.settle(partition, epoch, committed).await
    }

    /// Applies a committed revocation here and waits until no replica can accept the key any more (K7).
    ///
    /// # Errors
    /// [`NotConfirmed`] on any doubt: the caller must not answer 200.
    pub async fn settle_revocation(
        &self,
        partition: Partition,
        epoch: Epoch,
        revoked: KeyDigest,
        committed: BootInstant,
    ) -> Result<Vec<Confirmation>, NotConfirmed> {
        self.bury([revoked]);
        let confirmations = self.settle(partition, epoch, committed).await?;
        self.metrics.revocation_propagation.observe(clock::boot_now().since(committed).as_secs_f64());
        Ok(confirmations)
    }

    async fn settle(&self, partition: Partition, epoch: Epoch, committed: BootInstant) -> Result<Vec<Confirmation>, NotConfirmed> {
        while self.applied(partition) < epoch {
            self.renew(partition).await.map_err(|_| NotConfirmed)?;
        }
        let mut confirmations = vec![Confirmation { replica: self.replica.clone(), confirmed_in: clock::boot_now().since(committed) }];
        loop {
            let sessions = self.store.sessions(partition).await.map_err(|_| NotConfirmed)?;
            for session in sessions.iter().filter(|session| session.applied >= epoch) {
                if confirmations.iter().all(|known| known.replica != session.replica) {
                    let confirmed_in = clock::boot_now().since(committed);
                    confirmations.push(Confirmation { replica: session.replica.clone(), confirmed_in });
                }
            }
            let everyone = sessions.iter().all(|session| session.applied >= epoch || session.replica == self.replica);
            if everyone || clock::boot_now().since(committed) > CONFIRMATION_MAX {
                return Ok(confirmations);
            }
            tokio::time::sleep(CONFIRMATION_POLL).await;
        }
    }

    /// Asks the store what changed and applies it. One at a time for each partition, so that changes keep their order.
    async fn renew(&self, partition: Partition) -> Result<Trust, StoreError> {
        let knowledge = self.knowledge(partition);
        let _one_at_a_time = knowledge.renewing.lock().await;
        let sent = clock::boot_now();
        let applied = self.applied(partition);
        let request = RenewalRequest { replica: self.replica.clone(), incarnation: self.incarnation, partition, applied };
        let renewal = self.store.renew(request).await?;
        match renewal.news {
            Invalidations::Revoked(digests) => self.bury(digests),
            Invalidations::Flush => knowledge.floor.store(renewal.epoch.0, Ordering::SeqCst),
        }
        knowledge.applied.store(renewal.epoch.0, Ordering::SeqCst);
        let valid_until = match renewal.trust {
            Trust::UntilTold => BootInstant::NEVER,
            Trust::Lease(span) => sent.plus(span.mul_f64(0.99).saturating_sub(LEASE_MARGIN)),
        };
        knowledge.valid_until.fetch_max(valid_until.nanos(), Ordering::SeqCst);
        self.show_lease();
        Ok(renewal.trust)
    }

    fn bury<I: IntoIterator<Item = KeyDigest>>(&self, digests: I) {
        let mut tombstones = self.tombstones.write();
        let before = tombstones.len();
        tombstones.extend(digests);
        let grown = tombstones.len() > before;
        drop(tombstones);
        if grown {
            self.revocations.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn show_lease(&self) {
        let soonest = self.partitions.iter().map(|knowledge| knowledge.valid_until.load(Ordering::SeqCst)).min().unwrap_or(0);
        let remaining = if soonest == BootInstant::NEVER.nanos() {
            f64::INFINITY
        } else {
            BootInstant::from_nanos(soonest).since(clock::boot_now()).as_secs_f64()
        };
        self.metrics.coherence_lease_remaining.set(remaining);
    }

    fn knowledge(&self, partition: Partition) -> &Knowledge {
        self.partitions.get(usize::from(partition.0)).expect("a store names only partitions that it has")
    }
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Coherence({})", self.replica.as_str())
    }
}
