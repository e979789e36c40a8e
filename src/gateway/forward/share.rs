//! No firm takes an upstream away from the others.
//!
//! A tool that uploads a byte at a time, or reads an answer as slowly, holds one of the upstream's connections for as
//! long as it is let. So one firm may hold at most half of them at once; what it asks for beyond that is refused with
//! 503, while every other firm's requests go on. A share lives as long as its request, answer and tunnel included.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::domain::FirmId;

/// How many requests of each firm an upstream is working on. Bounded by the upstream's connections: a firm without a
/// request has no entry.
#[derive(Debug)]
pub(super) struct Shares {
    each_max: usize,
    held: Mutex<HashMap<FirmId, usize>>,
}

/// One request's part of an upstream; given back when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    firm: FirmId,
}

impl Shares {
    /// Half of `slots` for each firm, at least one.
    pub(super) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { each_max: (slots / 2).max(1), held: Mutex::default() })
    }

    /// A place for one more request of `firm`, if it has any left.
    pub(super) fn take(self: &Arc<Self>, firm: &FirmId) -> Option<Share> {
        let mut held = self.held.lock();
        let count = held.entry(firm.clone()).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), firm: firm.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        if let Some(count) = held.get_mut(&self.firm) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.firm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firm_has_half_and_leaves_nothing_behind() {
        let shares = Shares::new(5);
        let [one, other] = ["firm-1", "firm-2"].map(|text| FirmId::parse(text).unwrap());
        let held = [shares.take(&one), shares.take(&one)];
        assert!(held.iter().all(Option::is_some) && shares.take(&one).is_none() && shares.take(&other).is_some());
        drop(held);
        assert!(shares.take(&one).is_some());
        assert!(shares.held.lock().is_empty());
    }
}
