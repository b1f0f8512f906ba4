//! Random numbers that follow from a seed (SplitMix64), so that what a task did can be done again.
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

/// A stream of numbers.
pub(super) struct Random(u64);

impl Random {
    /// The stream `number` of those that belong to `seed`.
    pub(super) fn new(seed: u64, number: usize) -> Random {
        let mut of_seed = Random(seed);
        Random(of_seed.next() ^ (number as u64).wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `width`, which is 2^64 at most.
    fn draw(&mut self, width: u128) -> u64 {
        ((u128::from(self.next()) * width) >> 64) as u64
    }

    /// A number below `limit`; 0 where that is 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.draw(limit as u128)).expect("it is below a usize")
    }

    /// A number in `range`, which is not empty.
    pub(super) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.draw(u128::from(range.end() - range.start()) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_follows_from_seed_and_number_and_keeps_its_limits() {
        let drawn = |seed, number| {
            let mut random = Random::new(seed, number);
            core::array::from_fn::<u64, 8, _>(|_| random.within(5..=1_000_000))
        };
        assert_eq!(drawn(7, 3), drawn(7, 3));
        assert_ne!(drawn(7, 3), drawn(7, 4));
        assert_ne!(drawn(7, 3), drawn(8, 3));
        let mut random = Random::new(1, 1);
        let mut seen = [0; 6];
        for _ in 0..6000 {
            seen[random.below(6)] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
    }
}
