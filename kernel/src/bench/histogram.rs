//! [`Histogram`]: how often each size of a figure came, in fixed room.
//!
//! Log-linear: values below 64 have a bucket each; from there every power of two is cut into 32 equal buckets, so a bucket is at
//! most a thirty-second of its values wide. The bucket is found from the value's upper six bits, with no search; least and
//! greatest value are kept exactly. Adding neither allocates nor fails, so it may stand between two samples.
//!
//! Turned down: keeping every sample and sorting them, which says a little more and needs room for as many as anybody asks for.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec;

/// Values below have a bucket each.
const LINEAR: u64 = 64;
/// Buckets of each power of two above.
const PARTS: u64 = 32;
/// The power of two that is the first to be cut.
const FIRST_POWER: u32 = LINEAR.trailing_zeros();
#[expect(clippy::cast_possible_truncation, reason = "1920")]
const BUCKETS: usize = (LINEAR + PARTS * (u64::BITS - FIRST_POWER) as u64) as usize;

/// See the head of this file.
pub(super) struct Histogram {
    buckets: Box<[u32]>,
    n: u32,
    min: u64,
    max: u64,
}

/// The bucket of `value`.
#[expect(clippy::cast_possible_truncation, reason = "below BUCKETS")]
fn bucket_of(value: u64) -> usize {
    if value < LINEAR {
        return value as usize;
    }
    let power = value.ilog2();
    let part = (value >> (power - PARTS.ilog2())) % PARTS;
    (LINEAR + u64::from(power - FIRST_POWER) * PARTS + part) as usize
}

/// The least value of a bucket.
fn low_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < LINEAR {
        return bucket;
    }
    let (power, part) = ((bucket - LINEAR) / PARTS, (bucket - LINEAR) % PARTS);
    (PARTS + part) << (power + 1)
}

impl Histogram {
    /// One without values. Allocates 8 KiB.
    pub(super) fn new() -> Histogram {
        Histogram { buckets: vec![0; BUCKETS].into_boxed_slice(), n: 0, min: u64::MAX, max: 0 }
    }

    /// Forgets all values.
    pub(super) fn clear(&mut self) {
        self.buckets.fill(0);
        (self.n, self.min, self.max) = (0, u64::MAX, 0);
    }

    /// Adds `value`. After 2^32 - 1 values no more are counted.
    #[inline]
    pub(super) fn add(&mut self, value: u64) {
        let Some(n) = self.n.checked_add(1) else { return };
        self.n = n;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if let Some(bucket) = self.buckets.get_mut(bucket_of(value)) {
            *bucket += 1;
        }
    }

    /// How many values there are.
    pub(super) fn n(&self) -> u32 {
        self.n
    }

    /// The least value, exactly; 0 where there is none.
    pub(super) fn min(&self) -> u64 {
        if self.n == 0 { 0 } else { self.min }
    }

    /// The greatest value, exactly; 0 where there is none.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The value that `per_mille` of a thousand do not exceed: the lower bound of its bucket, but never below the least value.
    pub(super) fn per_mille(&self, per_mille: u32) -> u64 {
        let rank = (u64::from(self.n) * u64::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0;
        let reached = self.filled().find(|(_, count)| {
            seen += u64::from(*count);
            seen >= rank
        });
        reached.map_or(self.max(), |(low, _)| low.max(self.min()))
    }

    /// The lower bound of every bucket that has values, and how many; ascending.
    pub(super) fn filled(&self) -> impl Iterator<Item = (u64, u32)> + Clone {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count != 0)
            .map(|(bucket, count)| (low_of(bucket), *count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        for bucket in 0..BUCKETS {
            let low = low_of(bucket);
            assert_eq!(bucket_of(low), bucket);
            let next = if bucket + 1 < BUCKETS { low_of(bucket + 1) } else { 0 };
            let last = next.wrapping_sub(1);
            assert_eq!(bucket_of(last), bucket, "{last} is the last before {next}");
            assert!(last - low <= low / PARTS, "bucket {bucket} is too wide");
        }
    }

    #[test]
    fn edges() {
        assert_eq!([0, 63, 64, 65, 66, 127, 128].map(bucket_of), [0, 63, 64, 64, 65, 95, 96]);
        assert_eq!([63, 64, 65, 95, 96, 97].map(low_of), [63, 64, 66, 126, 128, 132]);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn without_values_it_is_zero() {
        let mut histogram = Histogram::new();
        let figures = |histogram: &Histogram| {
            (histogram.n(), histogram.min(), histogram.per_mille(999), histogram.max(), histogram.filled().count())
        };
        assert_eq!(figures(&histogram), (0, 0, 0, 0, 0));
        histogram.add(7);
        assert_eq!(figures(&histogram), (1, 7, 7, 7, 1));
        histogram.clear();
        assert_eq!(figures(&histogram), (0, 0, 0, 0, 0));
    }

    #[test]
    fn a_percentile_is_the_least_value_that_so_many_do_not_exceed() {
        let mut histogram = Histogram::new();
        (1..=10).for_each(|value| histogram.add(value));
        assert_eq!([1, 100, 101, 500, 900, 901, 1000].map(|p| histogram.per_mille(p)), [1, 1, 2, 5, 9, 10, 10]);
    }

    /// Sizes of all orders.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec((any::<u64>(), 0..64_u32).prop_map(|(value, shift)| value >> shift), 1..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// The naive one keeps all values, sorted.
        #[test]
        fn agrees_with_a_naive_one(values in values()) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|value| histogram.add(*value));
            let mut sorted = values;
            sorted.sort_unstable();
            prop_assert_eq!(histogram.n() as usize, sorted.len());
            prop_assert_eq!((Some(histogram.min()), Some(histogram.max())), (sorted.first().copied(), sorted.last().copied()));
            for per_mille in [1, 250, 500, 900, 990, 999, 1000] {
                let rank = (sorted.len() * per_mille as usize).div_ceil(1000);
                let exact = sorted[rank - 1];
                let told = histogram.per_mille(per_mille);
                prop_assert!(told <= exact && exact - told <= exact / PARTS, "{}: {} is told of {}", per_mille, told, exact);
                prop_assert!(told >= histogram.min());
            }
            for (low, count) in histogram.filled() {
                let width = if low < LINEAR { 1 } else { 1 << (low.ilog2() - PARTS.ilog2()) };
                let inside = sorted.iter().filter(|value| **value >= low && **value - low < width).count();
                prop_assert_eq!(count as usize, inside, "from {} for {}", low, width);
            }
            prop_assert_eq!(histogram.filled().map(|(_, count)| count as usize).sum::<usize>(), sorted.len());
        }
    }
}
