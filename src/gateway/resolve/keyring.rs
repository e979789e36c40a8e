//! Looks a presented key up: cache, then store, then coherence.
//!
//! One look-up fills the cache for all who wait (single flight). What the cache holds is believed only after `coherence`
//! was asked in the order that protocol 1 proves: tombstones up to `applied`, then `valid_until`, then `applied` again.

use std::sync::Arc;

use crate::clock;
use crate::coherence::Coherence;
use crate::domain::{BootInstant, KeyState, Rejection};
use crate::gateway::credential::PresentedKey;
use crate::metrics::Metrics;
use crate::store::{Epoch, Partition, Store, StoreError};

use super::cache::{CachedKey, KeyCache, Refused};

/// A look-up that races with a change is repeated once; the second race is answered with 503.
const ATTEMPTS: usize = 2;

/// Knows keys by their digests.
#[derive(Debug)]
pub struct Keyring {
    cache: KeyCache,
    store: StoreHandle,
    coherence: Arc<Coherence>,
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
#[derive(Debug)]
enum Miss {
    Refused(Refused),
    Store(StoreError),
}

/// What a caller is told when the store fails: it is never their fault.
pub fn store_failed(error: &StoreError) -> Rejection {
    tracing::warn!(%error, "the store failed a request");
    Rejection::StoreUnavailable
}

impl Keyring {
    /// An empty keyring.
    pub fn new(store: Arc<dyn Store>, coherence: Arc<Coherence>, metrics: &Metrics) -> Self {
        Self { cache: KeyCache::new(), store: StoreHandle(store), coherence, metrics: metrics.clone() }
    }

    /// Says what is known about a presented key.
    ///
    /// # Errors
    /// [`Rejection::KeyUnknown`] or [`Rejection::StoreUnavailable`].
    pub async fn resolve(&self, presented: &PresentedKey) -> Result<Resolved, Rejection> {
        let mut attempt = 1;
        loop {
            let key = match self.look_up(presented).await {
                Ok(key) => key,
                Err(Miss::Refused(Refused::Revoked(key))) => return Ok(Resolved { key, standing: Standing::Revoked }),
                Err(Miss::Refused(Refused::Unknown(partition, ..))) => return Err(self.unknown(partition)),
                Err(Miss::Store(error)) => return Err(store_failed(&error)),
            };
            let standing = self.judge(presented, &key).await;
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

    /// Protocol 1, "request": the tombstones up to `applied`, then `valid_until`, then `applied` once more.
    async fn judge(&self, presented: &PresentedKey, key: &Arc<CachedKey>) -> Standing {
        let applied = self.coherence.applied(key.partition);
        if key.generation != self.coherence.generation() {
            self.cache.live.invalidate(&presented.digest()).await;
            return Standing::Unproven;
        }
        if !key.is_verified_at(applied) {
            if self.coherence.is_revoked(&presented.digest()) {
                self.cache.live.invalidate(&presented.digest()).await;
                self.cache.refused.insert(presented.digest(), Refused::Revoked(key.clone())).await;
                return Standing::Revoked;
            }
            key.verify_at(applied);
        }
        let valid_until = self.coherence.valid_until(key.partition);
        if clock::boot_now() < valid_until && self.coherence.applied(key.partition) == applied {
            Standing::Live(valid_until)
        } else {
            Standing::Unproven
        }
    }

    async fn look_up(&self, presented: &PresentedKey) -> Result<Arc<CachedKey>, Miss> {
        if let Some(key) = self.cache.live.get(&presented.digest()).await {
            self.metrics.key_cache_hits.inc();
            return Ok(key);
        }
        if let Some(refused) = self.still_refused(presented).await {
            self.metrics.key_cache_hits.inc();
            return Err(Miss::Refused(refused));
        }
        self.metrics.key_cache_misses.inc();
        let filled = self.cache.live.try_get_with(presented.digest(), self.read(presented)).await;
        self.metrics.key_cache_entries.set(i64::try_from(self.cache.live.entry_count()).unwrap_or(i64::MAX));
        match filled {
            Ok(key) => Ok(key),
            Err(miss) => {
                if let Miss::Refused(refused) = &*miss {
                    self.cache.refused.insert(presented.digest(), refused.clone()).await;
                }
                Err(match &*miss {
                    Miss::Refused(refused) => Miss::Refused(refused.clone()),
                    Miss::Store(error) => Miss::Store(error.clone()),
                })
            }
        }
    }

    /// A refusal that is still true: revocations always, "unknown" only at the very epoch it was read.
    async fn still_refused(&self, presented: &PresentedKey) -> Option<Refused> {
        match self.cache.refused.get(&presented.digest()).await? {
            Refused::Unknown(partition, epoch, generation) if !self.is_current(partition, epoch, generation) => None,
            refused => Some(refused),
        }
    }

    fn is_current(&self, partition: Partition, epoch: Epoch, generation: u64) -> bool {
        clock::boot_now() < self.coherence.valid_until(partition)
            && self.coherence.applied(partition) == epoch
            && self.coherence.generation() == generation
    }

    async fn read(&self, presented: &PresentedKey) -> Result<Arc<CachedKey>, Miss> {
        let generation = self.coherence.generation();
        let found = self.store.0.find(presented.tag(), presented.digest()).await.map_err(Miss::Store)?;
        let Some(record) = found.record else {
            return Err(Miss::Refused(Refused::Unknown(found.partition, found.epoch, generation)));
        };
        let is_live = record.state == KeyState::Live && !self.coherence.is_revoked(&presented.digest());
        let key = CachedKey::new(record, found.partition, found.epoch, generation);
        if is_live { Ok(key) } else { Err(Miss::Refused(Refused::Revoked(key))) }
    }
}
