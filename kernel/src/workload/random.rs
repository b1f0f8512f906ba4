//! Random numbers that follow from a seed (SplitMix64), so that what a task did can be done again. One word a stream, and any
//! seed makes a good one; a vcpu has several.
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// A stream of numbers.
pub(super) struct Random(SplitMix64);

impl Random {
    /// The stream `number` of those that belong to `seed`.
    pub(super) fn new(seed: u64, number: usize) -> Random {
        let of_seed = SplitMix64::seed_from_u64(seed).next_u64();
        Random(SplitMix64::seed_from_u64(of_seed ^ (number as u64).wrapping_mul(0xd1b5_4a32_d192_ed03)))
    }

    /// A number below `width`, which is 2^64 at most.
    fn draw(&mut self, width: u128) -> u64 {
        ((u128::from(self.0.next_u64()) * width) >> 64) as u64
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
        assert!(
            drawn(7, 3).starts_with(&[404_906, 878_426, 686_898, 589_375]),
            "a seed means what it has always meant"
        );
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
