//! Looks a presented key up: cache, then store, then coherence.
//!
//! One look-up fills the cache for all who wait (single flight). What the cache holds is believed only after `coherence`
//! was asked in the order that protocol 1 proves: tombstones up to `applied`, then `valid_until`, then `applied` again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::coherence::Coherence;
use crate::domain::{BootInstant, FirmTag, KeyDigest, KeyState, Rejection};
use crate::gateway::credential::PresentedKey;
use crate::metrics::Metrics;
use crate::mutants::{self, Mutant};
use crate::store::{Epoch, Partition, Store, StoreError};

use super::cache::{CachedKey, KeyCache};
use super::refused::{Refused, RefusedKeys};
use super::running::LOOKS_AT_ONCE;
use super::single_flight::SingleFlight;

/// A look-up that races with a change is repeated once; the second race is answered with 503.
const ATTEMPTS: usize = 2;

/// How often the cache is swept: twice in the time for which an assertion is fresh by default. A sweep of a full cache takes 20 ms.
const SWEEP_PAUSE: Duration = Duration::from_secs(7);
/// Keys looked at before others get their turn: some tens of microseconds.
const SWEPT_AT_ONCE: usize = 256;

/// Knows keys by their digests.
#[derive(Debug)]
pub struct Keyring {
    pub(super) cache: KeyCache,
    refused: RefusedKeys,
    fills: SingleFlight<Result<Arc<CachedKey>, Miss>>,
    store: StoreHandle,
    pub(super) coherence: Arc<Coherence>,
    pub(super) looks: Semaphore,
    metrics: Metrics,
}

struct StoreHandle(Arc<dyn Store>);

impl std::fmt::Debug for StoreHandle {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Store")
    }
}

/// A known key and what may be said of it now.
#[derive(Debug)]
pub struct Resolved {
    /// The key.
    pub key: Arc<CachedKey>,
    /// Whether it may be used.
    pub standing: Standing,
}

/// Whether a known key may be used now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Live, on a replica that can prove it, until the given moment.
    Live(BootInstant),
    /// Revoked.
    Revoked,
    /// This replica cannot tell.
    Unproven,
}

/// Why a fill brought no live key.
#[derive(Clone, Debug)]
pub(super) enum Miss {
    Refused(Refused),
    Store(StoreError),
}

/// What a caller is told when the store fails: it is never their fault.
pub fn store_failed(error: &StoreError) -> Rejection {
    // The store's health says it once; here it would be a line for each request.
    tracing::debug!(%error, "the store failed a request");
    Rejection::StoreUnavailable
}

impl Keyring {
    /// An empty keyring.
    pub fn new(store: Arc<dyn Store>, coherence: Arc<Coherence>, metrics: &Metrics) -> Self {
        let looks = Semaphore::new(LOOKS_AT_ONCE);
        let (cache, refused, fills) = (KeyCache::new(), RefusedKeys::new(), SingleFlight::new());
        Self { cache, refused, fills, store: StoreHandle(store), coherence, looks, metrics: metrics.clone() }
    }

    /// Says what is known about the key of a request that `arrived` then.
    ///
    /// # Errors
    /// [`Rejection::KeyUnknown`] or [`Rejection::StoreUnavailable`].
    pub async fn resolve(&self, presented: &PresentedKey, arrived: BootInstant) -> Result<Resolved, Rejection> {
        let mut attempt = 1;
        loop {
            let key = match self.look_up(presented.tag(), presented.digest()).await {
                Ok(key) => key,
                Err(Miss::Refused(Refused::Revoked(key))) => return Ok(Resolved { key, standing: Standing::Revoked }),
                Err(Miss::Refused(Refused::Unknown(partition, ..))) => return Err(self.unknown(partition)),
                Err(Miss::Store(error)) => return Err(store_failed(&error)),
            };
            let standing = self.judge(presented, &key, arrived).await;
            if standing != Standing::Unproven || attempt == ATTEMPTS {
                return Ok(Resolved { key, standing });
            }
            attempt += 1;
        }
    }

    /// A store that this replica does not trust may have lost the key: that is no fault of the caller.
    fn unknown(&self, partition: Partition) -> Rejection {
        if clock::boot_now() < self.coherence.valid_until(partition) {
            return Rejection::KeyUnknown;
        }
        store_failed(&StoreError::Unavailable("it does not know a key, and may have lost it".into()))
    }

    /// Protocol 1, "request": the tombstones up to `applied`, then `valid_until`, then `applied` once more. In strict mode
    /// there is no lease to read; the store was asked since the request arrived, and nothing is applied that it did not know.
    async fn judge(&self, presented: &PresentedKey, key: &Arc<CachedKey>, arrived: BootInstant) -> Standing {
        let asked = if self.coherence.is_asking() { Some(self.coherence.asked_since(key.partition, arrived).await) } else { None };
        let applied = self.coherence.applied(key.partition);
        if key.generation != self.coherence.generation() && !mutants::active(Mutant::SkipGeneration) {
            self.cache.live.invalidate(&presented.digest()).await;
            return Standing::Unproven;
        }
        if !key.is_verified_at(applied) {
            if self.coherence.is_revoked(&presented.digest()) {
                self.cache.live.invalidate(&presented.digest()).await;
                self.refused.note(presented.digest(), Refused::Revoked(key.clone()));
                return Standing::Revoked;
            }
            key.verify_at(applied);
        }
        mutants::stall("judge").await;
        let valid_until = asked.unwrap_or_else(|| self.coherence.valid_until(key.partition));
        let is_same = self.coherence.applied(key.partition) == applied || mutants::active(Mutant::SkipApplied);
        if clock::boot_now() < valid_until && is_same { Standing::Live(valid_until) } else { Standing::Unproven }
    }

    /// Gives up, every so often, what resting keys have of assertions.
    pub async fn keep(self: Arc<Self>, stopping: CancellationToken) {
        while stopping.run_until_cancelled(tokio::time::sleep(SWEEP_PAUSE)).await.is_some() {
            let now = clock::wall_now();
            for (place, (_, key)) in self.cache.live.iter().enumerate() {
                key.assertions.forget_stale(now);
                if place % SWEPT_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    pub(super) async fn look_up(&self, tag: FirmTag, digest: KeyDigest) -> Result<Arc<CachedKey>, Miss> {
        if let Some(key) = self.cache.live.get(&digest).await {
            self.metrics.key_cache_hits.inc();
            return Ok(key);
        }
        if let Some(refused) = self.still_refused(&digest) {
            self.metrics.key_cache_hits.inc();
            return Err(Miss::Refused(refused));
        }
        // Boxed, so that the requests that find their key are spared the room for looking it up.
        Box::pin(self.fill(tag, digest)).await
    }

    /// Asks the store, once for all who wait for the same key.
    async fn fill(&self, tag: FirmTag, digest: KeyDigest) -> Result<Arc<CachedKey>, Miss> {
        self.metrics.key_cache_misses.inc();
        let filled = self.fills.run(digest, self.read_and_keep(tag, digest)).await;
        self.metrics.key_cache_entries.set(i64::try_from(self.cache.live.entry_count()).unwrap_or(i64::MAX));
        filled
    }

    /// Kept before others are told, so that whoever comes too late to share the answer finds it.
    async fn read_and_keep(&self, tag: FirmTag, digest: KeyDigest) -> Result<Arc<CachedKey>, Miss> {
        let read = self.read(tag, digest).await;
        match &read {
            Ok(key) => self.cache.live.insert(digest, key.clone()).await,
            Err(Miss::Refused(refused)) => self.refused.note(digest, refused.clone()),
            Err(Miss::Store(_)) => {}
        }
        read
    }

    /// A refusal that is still true: revocations always, "unknown" only at the very epoch it was read.
    fn still_refused(&self, digest: &KeyDigest) -> Option<Refused> {
        match self.refused.get(digest)? {
            Refused::Unknown(partition, epoch, generation) if !self.is_current(partition, epoch, generation) => None,
            refused => Some(refused),
        }
    }

    /// In strict mode never: a key may have been created since.
    fn is_current(&self, partition: Partition, epoch: Epoch, generation: u64) -> bool {
        !self.coherence.is_asking()
            && clock::boot_now() < self.coherence.valid_until(partition)
            && self.coherence.applied(partition) == epoch
            && self.coherence.generation() == generation
    }

    async fn read(&self, tag: FirmTag, digest: KeyDigest) -> Result<Arc<CachedKey>, Miss> {
        let generation = self.coherence.generation();
        let found = self.store.0.find(tag, digest).await.map_err(Miss::Store)?;
        mutants::stall("fill").await;
        let Some(record) = found.record else {
            return Err(Miss::Refused(Refused::Unknown(found.partition, found.epoch, generation)));
        };
        let is_dead = self.coherence.is_revoked(&digest) && !mutants::active(Mutant::FillUntested);
        let is_live = record.state == KeyState::Live && !is_dead;
        let key = CachedKey::new(self.cache.lean(record), found.partition, found.epoch, generation);
        if mutants::active(Mutant::FillUntested) {
            key.verify_at(self.coherence.applied(found.partition));
        }
        if is_live { Ok(key) } else { Err(Miss::Refused(Refused::Revoked(key))) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use http::{HeaderMap, HeaderValue};
    use uuid::Uuid;

    use super::*;
    use crate::coherence::puppet::{LEASE, Puppet};
    use crate::domain::{FirmId, FrozenPermissions, KeyId, KeyName, KeyNamespace, KeyRecord, KeySecret, ReplicaId, Timestamp, UserId};
    use crate::gateway::credential;
    use crate::tasks::Tasks;

    struct Bench {
        store: Arc<Puppet>,
        coherence: Arc<Coherence>,
        keyring: Keyring,
        presented: PresentedKey,
        tasks: Tasks,
    }

    impl Bench {
        /// A replica that trusts its store, which knows one key.
        async fn new() -> Self {
            let (firm_id, namespace) = (FirmId::parse("firm-1").unwrap(), KeyNamespace::parse("assure").unwrap());
            let secret = KeySecret::generate(&namespace, &firm_id);
            let headers = HeaderMap::from_iter([(credential::X_API_KEY, HeaderValue::try_from(secret.reveal()).unwrap())]);
            let store = Arc::new(Puppet::default());
            store.state.lock().run = "first";
            store.state.lock().record = Some(KeyRecord {
                id: KeyId::new(Uuid::nil()),
                digest: secret.digest(),
                name: KeyName::parse("a key").unwrap(),
                prefix: secret.display_prefix().into(),
                firm_id,
                creator: UserId::parse("ann").unwrap(),
                creator_name: None,
                permissions: FrozenPermissions::default(),
                created_at: Timestamp::from_micros(0),
                state: KeyState::Live,
            });
            let (metrics, tasks) = (Metrics::new(), Tasks::new());
            let coherence = Coherence::new(store.clone(), ReplicaId::new("replica-1"), Uuid::nil(), &metrics);
            let keyring = Keyring::new(store.clone(), coherence.clone(), &metrics);
            let bench = Self { store, coherence, keyring, presented: credential::parse(&headers, &namespace).unwrap(), tasks };
            bench.coherence.join().await.unwrap();
            bench.tasks.spawn("coherence", bench.coherence.clone().keep(bench.tasks.stopping()));
            bench.becomes_coherent().await;
            bench
        }

        async fn becomes_coherent(&self) {
            let until = clock::boot_now().plus(LEASE * 20);
            while !self.coherence.is_coherent() {
                assert!(clock::boot_now() < until, "it becomes coherent");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        async fn standing(&self) -> Standing {
            self.keyring.resolve(&self.presented, clock::boot_now()).await.unwrap().standing
        }
    }

    #[tokio::test]
    async fn a_fill_that_lands_after_its_revocation_fills_nothing() {
        let bench = Bench::new().await;
        bench.store.holds.store(true, Ordering::SeqCst);
        let revoked_in_between = async {
            tokio::task::yield_now().await;
            bench.store.holds.store(false, Ordering::SeqCst);
            assert_eq!(bench.store.state.lock().finds, 1, "the record was read while the key was live");
            bench.store.state.lock().epoch = 1;
            bench.store.state.lock().revoked.push_back(bench.presented.digest());
            bench.coherence.join().await.unwrap();
            assert!(bench.coherence.is_revoked(&bench.presented.digest()));
            bench.store.release.notify_waiters();
        };
        let (standing, ()) = tokio::join!(bench.standing(), revoked_in_between);
        assert_eq!(standing, Standing::Revoked);
        assert_eq!(bench.standing().await, Standing::Revoked, "and it stays so");
        bench.tasks.stop(LEASE).await;
    }

    #[tokio::test]
    async fn what_an_earlier_incarnation_told_is_read_again_and_not_believed_in_between() {
        let bench = Bench::new().await;
        assert!(matches!(bench.standing().await, Standing::Live(_)));
        assert!(matches!(bench.standing().await, Standing::Live(_)));
        assert_eq!(bench.store.state.lock().finds, 1, "cached");
        let record = bench.store.state.lock().record.take();
        bench.store.state.lock().run = "second";
        bench.coherence.join().await.unwrap();
        let lost = bench.keyring.resolve(&bench.presented, clock::boot_now()).await;
        assert!(matches!(lost, Err(Rejection::StoreUnavailable)), "a key that it may have lost is not called unknown: {lost:?}");
        bench.store.state.lock().record = record;
        assert_eq!(bench.standing().await, Standing::Unproven);
        bench.becomes_coherent().await;
        assert!(matches!(bench.standing().await, Standing::Live(_)), "read under this incarnation");
        bench.tasks.stop(LEASE).await;
    }
}
