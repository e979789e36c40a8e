//! Which keys were revoked lately, in memory: what a renewal hands out (protocol 1).
//!
//! Only this process can be a replica of an embedded store, and it applies a change before it answers it. So the
//! list serves whoever starts late or missed something; who missed more than it holds forgets its whole cache.

use std::collections::VecDeque;

use crate::domain::KeyDigest;
use crate::store::{Epoch, Invalidations};

/// Changes kept: creates and revokes are rare, so this is hours of them in 33 KiB.
const CHANGES_MAX: usize = 1024;

/// The last changes, by the key that was revoked if it was that; the newest belongs to `epoch`, each older one to
/// the epoch before.
#[derive(Debug)]
pub(super) struct News {
    epoch: u64,
    changes: VecDeque<Option<KeyDigest>>,
}

impl News {
    /// Nothing is known of the changes up to `epoch`.
    pub(super) fn since(epoch: u64) -> Self {
        Self { epoch, changes: VecDeque::new() }
    }

    /// Adds committed changes, each of which raised the epoch by one.
    pub(super) fn add(&mut self, changes: Vec<Option<KeyDigest>>) {
        for change in changes {
            self.epoch += 1;
            self.changes.push_back(change);
            if self.changes.len() > CHANGES_MAX {
                self.changes.pop_front();
            }
        }
    }

    /// Forgets everything unless `epoch`, as the file says it, is the one that is known here.
    pub(super) fn agree_on(&mut self, epoch: u64) {
        if self.epoch != epoch {
            *self = Self::since(epoch);
        }
    }

    /// That of the last change that was answered.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// The current epoch and what was revoked after `applied`.
    pub(super) fn after(&self, applied: Epoch) -> (Epoch, Invalidations) {
        let missed = self.epoch.checked_sub(applied.0).and_then(|missed| usize::try_from(missed).ok());
        let first = missed.and_then(|missed| self.changes.len().checked_sub(missed));
        let news = first
            .map_or(Invalidations::Flush, |first| Invalidations::Revoked(self.changes.iter().skip(first).flatten().copied().collect()));
        (Epoch(self.epoch), news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> KeyDigest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        KeyDigest::from_bytes(bytes)
    }

    fn revoked(news: &News, applied: u64) -> Option<Vec<KeyDigest>> {
        match news.after(Epoch(applied)).1 {
            Invalidations::Revoked(digests) => Some(digests),
            Invalidations::Flush => None,
        }
    }

    #[test]
    fn exactly_what_was_missed_is_told_and_a_flush_when_that_is_not_known() {
        let mut news = News::since(10);
        assert_eq!(revoked(&news, 10), Some(vec![]));
        assert_eq!(revoked(&news, 9), None);
        assert_eq!(revoked(&news, 11), None);
        news.add((0..=CHANGES_MAX as u64).map(|number| Some(digest(number))).collect());
        assert_eq!(news.after(Epoch(0)).0, Epoch(11 + CHANGES_MAX as u64));
        assert_eq!(revoked(&news, 10), None);
        assert_eq!(revoked(&news, 11).map(|all| (all.len(), all[0])), Some((CHANGES_MAX, digest(1))));
        assert_eq!(revoked(&news, 10 + CHANGES_MAX as u64), Some(vec![digest(CHANGES_MAX as u64)]));
        news.add(vec![None]);
        assert_eq!(revoked(&news, 11 + CHANGES_MAX as u64), Some(vec![]), "a creation only raises the epoch");
        news.agree_on(5_000);
        assert_eq!((revoked(&news, 4_999), revoked(&news, 5_000)), (None, Some(vec![])));
    }
}
