//! A histogram of durations made of atomics. The one of prometheus-client takes a lock for each observation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds, from a manifest in the page cache to a large layer over a slow network. One more bucket has
/// no bound.
const BOUNDS: [u64; 15] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 60_000_000];

/// Counts of durations by bucket.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In nanoseconds, which wrap after 584 years.
    sum: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let micros = duration.as_micros();
        let index = BOUNDS.iter().position(|bound| micros <= u128::from(*bound)).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The upper bound in seconds and the count of each bucket, not cumulative, and the sum in seconds.
    #[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
    pub fn read(&self) -> (Vec<(f64, u64)>, f64) {
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        (bounds.zip(counts).collect(), self.sum.load(Ordering::Relaxed) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_bound_is_inclusive() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 60_000_000, 60_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let (buckets, sum) = histogram.read();
        let filled: Vec<_> = buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(filled, [(0.0001, 2), (0.00025, 1), (60.0, 1), (f64::INFINITY, 1)]);
        assert!((sum - 120.000_202).abs() < 1e-9, "{sum}");
    }
}
