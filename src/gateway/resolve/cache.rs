//! The cache of live keys, by their digests.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::quality::RandomState;
use moka::future::Cache;
use parking_lot::Mutex;

use crate::domain::{FirmTag, FrozenPermissions, KeyDigest, KeyRecord, WrittenRecord};
use crate::gateway::sign::AssertionCache;
use crate::store::{Epoch, Partition};

/// Live keys kept; at about 600 bytes each and 700 more for an assertion while it is fresh, 120 MiB at most.
const LIVE_KEYS_MAX: u64 = 100_000;
/// Different sets of permissions that are shared at a time; firms have a handful of roles, and most firms the same.
const SHARED_SETS_MAX: usize = 1024;

/// A live key as it was read from the store.
#[derive(Debug)]
pub struct CachedKey {
    /// The record, revoked or not when it was read.
    pub record: KeyRecord,
    /// What each record of its uses says of it, written once.
    pub recorded: WrittenRecord,
    /// Its firm's tag: a hash, made once.
    pub tag: FirmTag,
    /// Where it lives.
    pub partition: Partition,
    /// The epoch it was read at.
    pub read_at: Epoch,
    /// Under which generation of this replica's knowledge the reading began.
    pub(super) generation: u64,
    /// Assertions signed for it, by upstream.
    pub assertions: AssertionCache,
    /// The newest epoch at which the key was found not to be revoked.
    verified: AtomicU64,
}

impl CachedKey {
    /// A key that was just read.
    pub(super) fn new(record: KeyRecord, partition: Partition, read_at: Epoch, generation: u64) -> Arc<Self> {
        Arc::new(Self {
            tag: FirmTag::of(&record.firm_id),
            recorded: WrittenRecord::of_key(&record),
            record,
            partition,
            read_at,
            generation,
            assertions: AssertionCache::default(),
            verified: AtomicU64::new(read_at.0),
        })
    }

    /// Whether the key was already found good at `epoch`.
    pub fn is_verified_at(&self, epoch: Epoch) -> bool {
        self.verified.load(Ordering::SeqCst) == epoch.0
    }

    /// Notes that the key was found good at `epoch`.
    pub fn verify_at(&self, epoch: Epoch) {
        self.verified.store(epoch.0, Ordering::SeqCst);
    }
}

/// The cache, and what several of its keys share.
#[derive(Debug)]
pub(super) struct KeyCache {
    /// moka takes the upper bits of a hash as well as the lower ones: all of them have to be good.
    pub(super) live: Cache<KeyDigest, Arc<CachedKey>, RandomState>,
    /// Sets of permissions that several keys have.
    shared_sets: Mutex<HashSet<FrozenPermissions>>,
}

impl KeyCache {
    pub(super) fn new() -> Self {
        let live = Cache::builder().max_capacity(LIVE_KEYS_MAX).build_with_hasher(RandomState::default());
        Self { live, shared_sets: Mutex::default() }
    }

    /// The record as it is kept: without what only lists show, and with equal sets of permissions in one place.
    pub(super) fn lean(&self, record: KeyRecord) -> KeyRecord {
        let mut sets = self.shared_sets.lock();
        if sets.len() >= SHARED_SETS_MAX {
            sets.clear();
        }
        let permissions = sets.get(&record.permissions).cloned().unwrap_or_else(|| {
            sets.insert(record.permissions.clone());
            record.permissions.clone()
        });
        KeyRecord { creator_name: None, permissions, ..record }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{FirmId, KeyId, KeyName, KeyNamespace, KeySecret, KeyState, Timestamp, UserId};

    fn record(permission: &str) -> KeyRecord {
        let firm_id = FirmId::parse("firm-1").unwrap();
        let secret = KeySecret::generate(&KeyNamespace::parse("assure").unwrap(), &firm_id);
        KeyRecord {
            id: KeyId::new(uuid::Uuid::nil()),
            digest: secret.digest(),
            name: KeyName::parse("a key").unwrap(),
            prefix: secret.display_prefix().into(),
            firm_id,
            creator: UserId::parse("ann").unwrap(),
            creator_name: Some("Ann".into()),
            permissions: FrozenPermissions::freeze([permission]),
            created_at: Timestamp::from_micros(0),
            state: KeyState::Live,
        }
    }

    #[test]
    fn keys_with_the_same_permissions_keep_them_once_and_others_their_own() {
        let cache = KeyCache::new();
        let place = |record: &KeyRecord| record.permissions.names().next().unwrap().as_ptr();
        let (one, other, third) = (cache.lean(record("a")), cache.lean(record("a")), cache.lean(record("b")));
        assert_eq!(place(&one), place(&other));
        assert_eq!((one.permissions, third.permissions), (FrozenPermissions::freeze(["a"]), FrozenPermissions::freeze(["b"])));
        for number in 0..SHARED_SETS_MAX * 2 {
            cache.lean(record(&number.to_string()));
        }
        assert!(cache.shared_sets.lock().len() <= SHARED_SETS_MAX);
    }
}
