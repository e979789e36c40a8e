//! Which endpoint of an upstream gets the next request: of two picked at random, the one with less to do.
//!
//! Two random choices keep the load within a hair of even without any shared bookkeeping. Endpoints that do not
//! work are passed over while others do; when none does, all are tried, because a guess is better than a refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pool::Pool;

/// The endpoints of one upstream.
pub(super) struct Balance {
    pools: Vec<Arc<Pool>>,
    turn: AtomicU64,
}

impl Balance {
    pub(super) fn new(pools: Vec<Arc<Pool>>) -> Self {
        Self { pools, turn: AtomicU64::new(0) }
    }

    /// An endpoint that is not among the `tried`, if there is one.
    pub(super) fn pick(&self, tried: &[Arc<Pool>]) -> Option<Arc<Pool>> {
        let is_untried = |pool: &&Arc<Pool>| !tried.iter().any(|other| Arc::ptr_eq(other, pool));
        let untried = || self.pools.iter().filter(is_untried);
        if let Some(pool) = untried().find(|pool| pool.standing().claims_trial()) {
            return Some(pool.clone());
        }
        self.lighter_of_two(|| untried().filter(|pool| pool.standing().is_good())).or_else(|| self.lighter_of_two(untried)).cloned()
    }

    fn lighter_of_two<'a, I: Iterator<Item = &'a Arc<Pool>>>(&self, candidates: impl Fn() -> I) -> Option<&'a Arc<Pool>> {
        let count = u64::try_from(candidates().count()).unwrap_or(u64::MAX);
        if count < 2 {
            return candidates().next();
        }
        let dice = mix(self.turn.fetch_add(1, Ordering::Relaxed));
        let first = dice % count;
        let second = (first + 1 + (dice >> 32) % (count - 1)) % count;
        let at = |index: u64| candidates().nth(usize::try_from(index).unwrap_or(0));
        let (first, second) = (at(first)?, at(second)?);
        Some(if second.load() < first.load() { second } else { first })
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): turns a counter into numbers that look random. Nothing here is secret.
fn mix(counter: u64) -> u64 {
    let mut state = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::{Dialer, Endpoint};
    use crate::gateway::forward::pool::{Dialers, Limits};
    use crate::tasks::Tasks;
    use std::time::Duration;

    fn balance(endpoints: u16) -> Balance {
        let dialer = Dialer::new(None, &[]).unwrap();
        let limits = Limits {
            connections_max: 4,
            connect: Duration::from_secs(1),
            response_header: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        };
        let pools = (1..=endpoints).map(|port| {
            let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap();
            Pool::new(endpoint, Dialers { any: dialer.clone(), http1: dialer.clone() }, limits, Tasks::new())
        });
        Balance::new(pools.collect())
    }

    #[tokio::test]
    async fn the_load_spreads_over_all_that_work() {
        let balance = balance(4);
        balance.pools[2].standing().not_connected();
        let mut hits = [0; 4];
        for _ in 0..3_000 {
            let picked = balance.pick(&[]).unwrap();
            hits[usize::from(picked.endpoint().port) - 1] += 1;
        }
        assert_eq!(hits[2], 0);
        assert!([0, 1, 3].iter().all(|index| hits[*index] > 800), "{hits:?}");
    }

    #[tokio::test]
    async fn none_is_tried_twice_and_all_are_tried_when_none_works() {
        let balance = balance(3);
        balance.pools.iter().for_each(|pool| pool.standing().not_connected());
        let mut tried = Vec::new();
        while let Some(pool) = balance.pick(&tried) {
            tried.push(pool);
        }
        assert_eq!(tried.len(), 3);
    }
}
