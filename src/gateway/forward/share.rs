//! No firm takes an upstream away from the others.
//!
//! A tool that uploads a byte at a time, or reads an answer as slowly, holds one of the upstream's connections for as
//! long as it is let. So a firm that holds half of them gets more only while a quarter of all is free: alone it may have
//! three quarters, and whoever comes next finds room at once. What it asks for beyond that is refused with 503, while
//! every other firm's requests go on. A share lives as long as its request, answer and tunnel included.

use std::sync::Arc;

use foldhash::HashMap;
use parking_lot::Mutex;

use crate::domain::FirmId;

/// How many requests of each firm an upstream is working on. Bounded by the upstream's connections: a firm without a
/// request has no entry.
#[derive(Debug)]
pub(super) struct Shares {
    slots: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by_firm: HashMap<FirmId, usize>,
    in_all: usize,
}

/// One request's part of an upstream; given back when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    firm: FirmId,
}

impl Shares {
    /// Shares of so many connections.
    pub(super) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { slots, held: Mutex::default() })
    }

    /// A place for one more request of `firm`, if it has any left.
    pub(super) fn take(self: &Arc<Self>, firm: &FirmId) -> Option<Share> {
        let mut held = self.held.lock();
        let is_roomy = held.in_all + self.slots / 4 < self.slots;
        let count = held.by_firm.entry(firm.clone()).or_default();
        // At least one, or an upstream of one connection would serve nobody.
        if *count >= (self.slots / 2).max(1) && !is_roomy {
            return None;
        }
        *count += 1;
        held.in_all += 1;
        Some(Share { shares: self.clone(), firm: firm.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.in_all -= 1;
        if let Some(count) = held.by_firm.get_mut(&self.firm) {
            *count -= 1;
            if *count == 0 {
                held.by_firm.remove(&self.firm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firm_has_half_for_sure_and_more_while_there_is_room() {
        let shares = Shares::new(8);
        let [one, other] = ["firm-1", "firm-2"].map(|text| FirmId::parse(text).unwrap());
        let take = |firm| (0..).map_while(|_| shares.take(firm)).collect::<Vec<_>>();
        let held = take(&one);
        assert_eq!(held.len(), 6, "alone it has three quarters");
        let rest = take(&other);
        assert_eq!(rest.len(), 4, "whoever comes next has half, though the last of them wait for a connection");
        assert!(shares.take(&one).is_none());
        drop(rest);
        drop(held);
        assert_eq!(take(&other).len(), 6);
        assert!(shares.held.lock().by_firm.is_empty(), "nothing is left behind");
        let single = Shares::new(1);
        assert_eq!((0..).map_while(|_| single.take(&one)).collect::<Vec<_>>().len(), 1);
    }
}
