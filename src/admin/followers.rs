//! How many callers follow the activity log at once: bounded in all, and for each firm, so that none crowds out
//! the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::domain::FirmId;

/// Most followers in all: each asks the store five times a second.
const FOLLOWERS_MAX: usize = 128;
/// Most followers of one firm: its admins' open pages.
const FOLLOWERS_PER_FIRM_MAX: usize = 16;

/// The followers there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Followers(Arc<Mutex<BTreeMap<FirmId, usize>>>);

/// One follower; dropping it makes room.
#[derive(Debug)]
pub(crate) struct Following {
    followers: Followers,
    firm: FirmId,
}

impl Followers {
    /// Takes a place for a firm's follower; `None` if there is none left.
    pub(crate) fn join(&self, firm: &FirmId) -> Option<Following> {
        let mut counts = self.0.lock();
        let own = counts.get(firm).copied().unwrap_or(0);
        if own >= FOLLOWERS_PER_FIRM_MAX || counts.values().sum::<usize>() >= FOLLOWERS_MAX {
            return None;
        }
        counts.insert(firm.clone(), own + 1);
        Some(Following { followers: self.clone(), firm: firm.clone() })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut counts = self.followers.0.lock();
        if let Some(count) = counts.get_mut(&self.firm) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.firm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_firm_and_in_all_and_come_back() {
        let followers = Followers::default();
        let firm = |number: usize| FirmId::parse(&format!("firm-{number}")).expect("a good id");
        let mut taken: Vec<_> = (0..FOLLOWERS_PER_FIRM_MAX).map(|_| followers.join(&firm(0)).expect("room")).collect();
        assert!(followers.join(&firm(0)).is_none());
        taken.extend((0..FOLLOWERS_MAX - FOLLOWERS_PER_FIRM_MAX).map(|number| followers.join(&firm(1 + number / 4)).expect("room")));
        assert!(followers.join(&firm(999)).is_none());
        taken.clear();
        assert!(followers.0.lock().is_empty());
    }
}
