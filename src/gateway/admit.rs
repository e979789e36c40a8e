//! Step 3: only a live key, on a replica that can prove it, becomes a principal (K7).

use std::sync::Arc;

use crate::domain::{BootInstant, FirmId, FirmTag, FrozenPermissions, KeyDigest, KeyId, KeyRecord, Rejection};

use crate::store::Partition;

use super::resolve::{CachedKey, Ended, Resolved, Standing};

/// Evidence: a live key, now, on a coherent replica.
#[derive(Clone, Debug)]
pub struct Principal {
    key: Arc<CachedKey>,
    proven_until: BootInstant,
}

impl Principal {
    /// The key's record.
    pub fn record(&self) -> &KeyRecord {
        &self.key.record
    }

    /// The key's id.
    pub fn key_id(&self) -> KeyId {
        self.key.record.id
    }

    /// The key's digest.
    pub fn digest(&self) -> KeyDigest {
        self.key.record.digest
    }

    /// Where the key's firm lives.
    pub fn place(&self) -> (FirmTag, Partition) {
        (self.key.tag, self.key.partition)
    }

    /// The firm that the request acts for (K10).
    pub fn firm(&self) -> &FirmId {
        &self.key.record.firm_id
    }

    /// What the key may do (K4).
    pub fn permissions(&self) -> &FrozenPermissions {
        &self.key.record.permissions
    }

    /// Until when this replica may go on believing that the key is live.
    pub fn proven_until(&self) -> BootInstant {
        self.proven_until
    }

    /// The cache entry, which also keeps the key's signed assertions.
    pub(super) fn cached(&self) -> &Arc<CachedKey> {
        &self.key
    }
}

/// Admits a resolved key.
///
/// # Errors
/// [`Rejection::KeyRevoked`] or [`Rejection::ReplicaIncoherent`].
pub fn admit(resolved: Resolved) -> Result<Principal, Rejection> {
    match resolved.standing {
        Standing::Live(proven_until) => Ok(Principal { key: resolved.key, proven_until }),
        Standing::Revoked => Err(revoked()),
        Standing::Unproven => Err(incoherent()),
    }
}

/// The refusal of a revoked key, also for a request that was under way when the key was revoked.
fn revoked() -> Rejection {
    Rejection::KeyRevoked
}

/// The refusal of a key that this replica cannot vouch for, also for a request that was under way.
fn incoherent() -> Rejection {
    Rejection::ReplicaIncoherent
}

/// The refusal of a request that was under way when its key's end came.
pub fn ended(end: Ended) -> Rejection {
    match end {
        Ended::Revoked => revoked(),
        Ended::Unproven => incoherent(),
    }
}
