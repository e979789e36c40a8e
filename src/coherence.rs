//! What this replica knows about changes to keys, and whether it may believe it (protocol 1).
//!
//! A cached key may be used only while this replica has applied every change that the store could have answered
//! for: `applied` is the epoch up to which every change is known here, `valid_until` says how long the store's last
//! answer may be trusted, and what was cached under an earlier `generation` is forgotten. Tombstones only grow.
//!
//! The order is the proof: a tombstone is added before `applied` moves, `applied` moves before `valid_until`; a reader
//! looks a key up between two readings of `applied`, and reads `valid_until` before the second. Changes are taken from
//! the store in epoch order, by `renew` alone, so that `applied` never jumps over one.
//!
//! Another incarnation of the store may have forgotten sessions and revocations: whoever meets one says its tombstones
//! again, trusts nothing for a term (a lease and its margin), and lets revocations of that time wait for the whole term.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::domain::{BootInstant, KeyDigest, ReplicaId};
use crate::metrics::Metrics;
use crate::store::{Epoch, Invalidations, Partition, RenewalRequest, SessionState, Store, StoreError, StoreIncarnation, Trust};

/// A change whose answer was lost (a stalled disk, an error after the commit) was told to nobody; it is found within
/// this time. A renewal of a store in this process is one lock.
const UNTOLD_LOOK: Duration = Duration::from_millis(250);
/// How long a renewal may take before a lease is known.
const FIRST_RENEWAL_MAX: Duration = Duration::from_secs(1);
/// How often a waiting revocation looks for the other replicas' confirmations.
const CONFIRMATION_POLL: Duration = Duration::from_millis(5);
/// Clocks of gateway hosts may run at rates that differ by 1 %; a lease is shortened by that and by this much.
const LEASE_MARGIN: Duration = Duration::from_millis(20);
/// What a revoker waits beyond a lease, beside 1 % of it.
const TERM_MARGIN: Duration = Duration::from_millis(100);
/// Terms of silence after which a session is forgotten in the store too; one is enough to be safe.
const FORGOTTEN_AFTER_TERMS: u32 = 10;

/// This replica's knowledge of the store's changes.
pub struct Coherence {
    store: Arc<dyn Store>,
    replica: ReplicaId,
    incarnation: Uuid,
    partitions: Box<[Knowledge]>,
    tombstones: RwLock<HashSet<KeyDigest>>,
    revocations: watch::Sender<u64>,
    generation: AtomicU64,
    watched: Mutex<HashMap<(ReplicaId, Uuid), Watched>>,
    metrics: Metrics,
}

#[derive(Default)]
struct Knowledge {
    applied: AtomicU64,
    valid_until: AtomicU64,
    /// The longest lease that the store gave here, in nanoseconds; 0 where it tells by itself.
    lease: AtomicU64,
    /// Until when the store's incarnation is too new to be trusted.
    settling_until: AtomicU64,
    /// The incarnation that was met last; the lock lets one renewal run at a time.
    renewing: tokio::sync::Mutex<Option<StoreIncarnation>>,
}

/// Another replica's session, as this replica's own clock saw it.
struct Watched {
    renewals: u64,
    since: BootInstant,
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
            generation: AtomicU64::new(0),
            watched: Mutex::default(),
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

    /// Renews until asked to stop: four times within each lease, sooner when the store hints at a change, and once more
    /// after each change, since only the next renewal tells that it was applied. At short intervals where the store tells by itself.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut hints = self.store.hints();
        let mut is_well = true;
        loop {
            let (began, before) = (clock::boot_now(), self.all_applied());
            let renewed = self.join().await;
            self.show_lease();
            let pause = match renewed {
                Ok(Trust::UntilTold) => UNTOLD_LOOK,
                Ok(Trust::Lease(lease)) => {
                    if !is_well {
                        tracing::info!("the coherence lease is renewed again");
                    }
                    is_well = true;
                    if self.all_applied() == before {
                        self.watch_sessions().await;
                        (lease / 4).saturating_sub(clock::boot_now().since(began))
                    } else {
                        Duration::ZERO
                    }
                }
                Err(error) => {
                    if is_well {
                        tracing::warn!(%error, "cannot renew the coherence lease; requests are refused when it ends");
                    }
                    is_well = false;
                    self.renewal_max() / 2
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                Ok(()) = hints.changed() => {}
            }
        }
    }

    fn all_applied(&self) -> Vec<u64> {
        self.partitions.iter().map(|knowledge| knowledge.applied.load(Ordering::SeqCst)).collect()
    }

    /// How long one renewal may take: less than a quarter of the lease, so that one that hangs does not cost the next.
    fn renewal_max(&self) -> Duration {
        let lease = self.longest_lease();
        if lease.is_zero() { FIRST_RENEWAL_MAX } else { lease / 5 }
    }

    fn longest_lease(&self) -> Duration {
        Duration::from_nanos(self.partitions.iter().map(|knowledge| knowledge.lease.load(Ordering::SeqCst)).max().unwrap_or(0))
    }

    /// The epoch up to which every change of a partition is known here.
    pub fn applied(&self, partition: Partition) -> Epoch {
        Epoch(self.knowledge(partition).applied.load(Ordering::SeqCst))
    }

    /// Until when what is known may be trusted.
    pub fn valid_until(&self, partition: Partition) -> BootInstant {
        BootInstant::from_nanos(self.knowledge(partition).valid_until.load(Ordering::SeqCst))
    }

    /// What was read from the store under an earlier generation must be read again.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
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
        let generation = self.generation();
        // At least once, also where the epoch is known: who answers may be another incarnation of the store, which has
        // forgotten the sessions that would have to be waited for.
        loop {
            self.renew(partition).await.map_err(|_| NotConfirmed)?;
            if self.applied(partition) >= epoch {
                break;
            }
        }
        let mut confirmations = vec![Confirmation { replica: self.replica.clone(), confirmed_in: clock::boot_now().since(committed) }];
        loop {
            let sessions = self.sessions(partition).await.map_err(|_| NotConfirmed)?;
            for session in sessions.iter().filter(|session| session.applied >= epoch) {
                if confirmations.iter().all(|known| known.replica != session.replica) {
                    let confirmed_in = clock::boot_now().since(committed);
                    confirmations.push(Confirmation { replica: session.replica.clone(), confirmed_in });
                }
            }
            if self.generation() != generation {
                // The store may have forgotten the change that is being settled.
                return Err(NotConfirmed);
            }
            let now = clock::boot_now();
            let everyone = sessions.iter().all(|session| session.applied >= epoch || self.is_own(session) || self.is_silent(session, now));
            if (everyone && !self.is_settling(partition, committed)) || now >= committed.plus(self.term(partition, &sessions)) {
                return Ok(confirmations);
            }
            self.show_lease();
            tokio::time::sleep(CONFIRMATION_POLL).await;
        }
    }

    /// The sessions of a partition; notes when each was first seen as it is.
    async fn sessions(&self, partition: Partition) -> Result<Vec<SessionState>, StoreError> {
        let sessions = in_time(FIRST_RENEWAL_MAX, self.store.sessions(partition)).await?;
        let now = clock::boot_now();
        let mut watched = self.watched.lock();
        for session in &sessions {
            let seen =
                watched.entry((session.replica.clone(), session.incarnation)).or_insert(Watched { renewals: session.renewals, since: now });
            if seen.renewals != session.renewals {
                *seen = Watched { renewals: session.renewals, since: now };
            }
        }
        watched.retain(|(replica, incarnation), _| {
            sessions.iter().any(|session| session.replica == *replica && session.incarnation == *incarnation)
        });
        Ok(sessions)
    }

    fn is_own(&self, session: &SessionState) -> bool {
        session.replica == self.replica && session.incarnation == self.incarnation
    }

    /// Whether a session has not renewed for so long, by this replica's own clock, that its lease is over: it was
    /// counted from before the renewal that was seen here. Whoever comes back must renew first, and learns everything.
    fn is_silent(&self, session: &SessionState, now: BootInstant) -> bool {
        self.silence(session, now) >= term_of(session.lease)
    }

    fn silence(&self, session: &SessionState, now: BootInstant) -> Duration {
        let watched = self.watched.lock();
        let seen = watched.get(&(session.replica.clone(), session.incarnation)).filter(|seen| seen.renewals == session.renewals);
        seen.map_or(Duration::ZERO, |seen| now.since(seen.since))
    }

    /// Whether the store's incarnation was still new when the change was committed: then sessions may be missing.
    fn is_settling(&self, partition: Partition, committed: BootInstant) -> bool {
        committed.nanos() < self.knowledge(partition).settling_until.load(Ordering::SeqCst)
    }

    /// How long a revoker waits for those who do not answer: the longest lease of all, and the margin.
    fn term(&self, partition: Partition, sessions: &[SessionState]) -> Duration {
        let own = Duration::from_nanos(self.knowledge(partition).lease.load(Ordering::SeqCst));
        sessions.iter().map(|session| term_of(session.lease)).fold(term_of(own), Duration::max)
    }

    /// Looks at the other sessions, so that their silence is known when a revocation needs it, and has those forgotten
    /// that have been silent for long.
    async fn watch_sessions(&self) {
        for number in 0..self.store.partitions() {
            let Ok(sessions) = self.sessions(Partition(number)).await else { continue };
            let now = clock::boot_now();
            let is_gone = |session: &SessionState| self.silence(session, now) >= term_of(session.lease) * FORGOTTEN_AFTER_TERMS;
            let gone: Vec<SessionState> = sessions.into_iter().filter(|session| !self.is_own(session) && is_gone(session)).collect();
            if !gone.is_empty() && in_time(FIRST_RENEWAL_MAX, self.store.forget(Partition(number), gone)).await.is_err() {
                tracing::debug!("silent sessions stay for now");
            }
        }
    }

    /// Asks the store what changed and applies it. One at a time for each partition, so that changes keep their order.
    async fn renew(&self, partition: Partition) -> Result<Trust, StoreError> {
        let knowledge = self.knowledge(partition);
        let mut incarnation = knowledge.renewing.lock().await;
        let sent = clock::boot_now();
        let applied = self.applied(partition);
        let request = RenewalRequest { replica: self.replica.clone(), incarnation: self.incarnation, partition, applied };
        let renewal = in_time(self.renewal_max(), self.store.renew(request)).await?;
        if let Trust::Lease(lease) = renewal.trust {
            knowledge.lease.fetch_max(u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
            if incarnation.as_ref() != Some(&renewal.store) {
                self.meet(partition, lease).await?;
                *incarnation = Some(renewal.store);
            }
        }
        match renewal.news {
            Invalidations::Revoked(digests) => self.bury(digests),
            Invalidations::Flush => self.forget_cache(),
        }
        knowledge.applied.store(renewal.epoch.0, Ordering::SeqCst);
        let valid_until = match renewal.trust {
            Trust::UntilTold => BootInstant::NEVER,
            Trust::Lease(_) if sent.nanos() < knowledge.settling_until.load(Ordering::SeqCst) => BootInstant::default(),
            Trust::Lease(span) => sent.plus(span.mul_f64(0.99).saturating_sub(LEASE_MARGIN)),
        };
        knowledge.valid_until.fetch_max(valid_until.nanos(), Ordering::SeqCst);
        self.show_lease();
        Ok(renewal.trust)
    }

    /// Another incarnation of the store: nothing cached is believed any more, what is known here to be revoked is said
    /// again, and trust begins a term from now, when every other replica that lives has done the same.
    async fn meet(&self, partition: Partition, lease: Duration) -> Result<(), StoreError> {
        let knowledge = self.knowledge(partition);
        knowledge.valid_until.store(0, Ordering::SeqCst);
        self.forget_cache();
        let tombstones: Vec<KeyDigest> = self.tombstones.read().iter().copied().collect();
        tracing::info!(tombstones = tombstones.len(), "met a new incarnation of the store; requests are refused for a term");
        self.store.reassert(partition, tombstones).await?;
        knowledge.settling_until.store(clock::boot_now().plus(term_of(lease)).nanos(), Ordering::SeqCst);
        Ok(())
    }

    fn forget_cache(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
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

/// How long after a change the lease of a replica that did not hear of it is over for sure.
fn term_of(lease: Duration) -> Duration {
    lease + TERM_MARGIN + lease / 100
}

async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = || StoreError::Unavailable(format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Coherence({})", self.replica.as_str())
    }
}
