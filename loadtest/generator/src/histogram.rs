//! Latencies in buckets that are at most 1.6 % wide, so that a run of any length takes the same memory.
//!
//! A value in nanoseconds falls into the bucket of its power of two and its next six bits, as in HDR histograms.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB_COUNT: usize = 1 << SUB_BITS;
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) * SUB_COUNT;

/// A distribution of spans.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum_ns: u128,
    max_ns: u64,
}

impl Histogram {
    /// Without any value.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, sum_ns: 0, max_ns: 0 }
    }

    /// Adds one value.
    pub fn record(&mut self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// The value that a share of all (0 to 1) do not exceed, in microseconds; 0 without values.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(place).min(self.max_ns) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// The mean, in microseconds.
    pub fn mean_us(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum_ns as f64 / self.total as f64 / 1000.0 }
    }

    /// The largest value, in microseconds.
    pub fn max_us(&self) -> f64 {
        self.max_ns as f64 / 1000.0
    }
}

fn bucket(ns: u64) -> usize {
    let shift = (64 - ns.leading_zeros()).saturating_sub(SUB_BITS + 1);
    // Above the first 2 * SUB_COUNT values, each power of two has SUB_COUNT buckets.
    (shift as usize) * SUB_COUNT + (ns >> shift) as usize
}

/// The largest value of a bucket.
fn highest(place: usize) -> u64 {
    if place < 2 * SUB_COUNT {
        return place as u64;
    }
    let shift = place / SUB_COUNT - 1;
    let top = (place - shift * SUB_COUNT) as u64;
    ((top + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_values_and_is_narrow() {
        for ns in (0..200_000_u64).chain((0..50).map(|power| (1 << power) + 12_345)).chain([u64::MAX]) {
            let top = highest(bucket(ns));
            assert!(top >= ns, "{ns} is not above its bucket's top {top}");
            assert!((top - ns) as f64 <= ns as f64 / 60.0, "{ns} is near its bucket's top {top}");
        }
    }

    #[test]
    fn quantiles_of_known_values() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|us| histogram.record(Duration::from_micros(us)));
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.quantile_us(share);
            assert!((found - expected).abs() <= expected * 0.017, "{share}: {found} is about {expected}");
        }
        assert!((histogram.mean_us() - 500.5).abs() < 0.01);
    }
}
