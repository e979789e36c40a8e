//! A key's record in JSON, as the embedded store's file and an export have it. The digest stands apart: in bytes there,
//! in hex here.

use serde::{Deserialize, Serialize};

use crate::domain::{FirmId, FrozenPermissions, KeyDigest, KeyId, KeyName, KeyRecord, KeyState, Timestamp, UserId};

/// A record without its digest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct WrittenKey {
    id: KeyId,
    name: KeyName,
    prefix: Box<str>,
    pub(crate) firm_id: FirmId,
    creator: UserId,
    creator_name: Option<Box<str>>,
    permissions: FrozenPermissions,
    created_at: Timestamp,
    revoked: Option<WrittenRevocation>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct WrittenRevocation {
    at: Timestamp,
    by: UserId,
    reason: Box<str>,
}

impl WrittenKey {
    /// What is written of a record.
    pub(crate) fn of(record: &KeyRecord) -> Self {
        let revoked = match &record.state {
            KeyState::Live => None,
            KeyState::Revoked { at, by, reason } => Some(WrittenRevocation { at: *at, by: by.clone(), reason: reason.clone() }),
        };
        Self {
            id: record.id,
            name: record.name.clone(),
            prefix: record.prefix.clone(),
            firm_id: record.firm_id.clone(),
            creator: record.creator.clone(),
            creator_name: record.creator_name.clone(),
            permissions: record.permissions.clone(),
            created_at: record.created_at,
            revoked,
        }
    }

    /// The record that was written.
    pub(crate) fn with(self, digest: KeyDigest) -> KeyRecord {
        let state =
            self.revoked.map_or(KeyState::Live, |revoked| KeyState::Revoked { at: revoked.at, by: revoked.by, reason: revoked.reason });
        KeyRecord {
            id: self.id,
            digest,
            name: self.name,
            prefix: self.prefix,
            firm_id: self.firm_id,
            creator: self.creator,
            creator_name: self.creator_name,
            permissions: self.permissions,
            created_at: self.created_at,
            state,
        }
    }
}
