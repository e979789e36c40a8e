//! What a firm's users are known to be and to hold now, as their tokens and the dashboard tell (K19).
//!
//! It decides nothing: a key does what was frozen in it, whatever becomes of its creator (K4 to K6). It is kept so that
//! the list can warn of a key whose creator has left, or could not create it any more.

use serde::{Deserialize, Serialize};

use crate::domain::{FrozenPermissions, Timestamp, UserId};

/// A user, as last described.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KnownUser {
    /// Who.
    pub user: UserId,
    /// What they are called, where that was told.
    pub name: Option<String>,
    /// Whether they are still there.
    pub standing: Standing,
    /// What they may do; nothing once they have left.
    pub permissions: FrozenPermissions,
    /// When this was true: the token's time of issue, or when the dashboard told.
    pub as_of: Timestamp,
}

/// Whether a user is still with the firm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// They are.
    Active,
    /// They have left, or were deactivated.
    Left,
}

impl KnownUser {
    /// As both stores keep it.
    pub(super) fn written(&self) -> String {
        serde_json::to_string(self).expect("texts are always written")
    }

    /// What was written.
    pub(super) fn read(text: &[u8]) -> Result<Self, super::StoreError> {
        serde_json::from_slice(text).map_err(|error| super::StoreError::Corrupt(format!("what is known of a user is unreadable: {error}")))
    }
}
