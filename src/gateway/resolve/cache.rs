//! Two bounded caches over key digests: live keys, and refused ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::future::Cache;

use crate::domain::{FirmTag, KeyDigest, KeyRecord, WrittenRecord};
use crate::gateway::sign::AssertionCache;
use crate::store::{Epoch, Partition};

/// Live keys kept; at about 1 KiB each with their assertions, 100 MiB at most.
const LIVE_KEYS_MAX: u64 = 100_000;
/// Refused digests kept; a stranger's flood turns over in here and nowhere else.
const REFUSED_MAX: u64 = 10_000;

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

/// Why a digest is refused without asking the store.
#[derive(Clone, Debug)]
pub(super) enum Refused {
    /// Nobody had such a key at that epoch of that generation; a later creation makes this worthless.
    Unknown(Partition, Epoch, u64),
    /// The key was revoked, which is final.
    Revoked(Arc<CachedKey>),
}

/// Both caches.
#[derive(Debug)]
pub(super) struct KeyCache {
    pub(super) live: Cache<KeyDigest, Arc<CachedKey>>,
    pub(super) refused: Cache<KeyDigest, Refused>,
}

impl KeyCache {
    pub(super) fn new() -> Self {
        Self { live: Cache::new(LIVE_KEYS_MAX), refused: Cache::new(REFUSED_MAX) }
    }
}
