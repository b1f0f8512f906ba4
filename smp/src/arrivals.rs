//! [`Arrivals`]: how many are yet to come to a rendezvous. It tells the last one that it is the last, so that the leader can
//! sleep meanwhile and is woken once.
//!
//! It decides nothing: who has come is said by the acknowledgements, which can also tell who has not. One line that every
//! CPU writes once in a rendezvous. Turned down: a tree of counters, which spreads the writes over more lines and has the
//! last one of each group write twice. With up to 512 vcpus it makes no difference that can be measured:
//! `docs/decisions/0007-flat-or-tree.md`.
//!
//! The word carries the rendezvous' number: a CPU that comes late, when the leader has given up on it and begun another
//! one, does not count there.
#![forbid(unsafe_code)]

use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use crate::phase::Generation;

/// Bits of the count. A domain has 1024 vcpus at most.
const COUNT_BITS: u32 = 16;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Bits 0..=15: how many are yet to come; 16..=63: the lower bits of the generation.
///
/// Lock-free. Public for the bench that compares it with trees.
pub struct Arrivals(AtomicU64);

fn encode(generation: Generation, left: u64) -> u64 {
    generation.number() << COUNT_BITS | left
}

impl Default for Arrivals {
    fn default() -> Arrivals {
        Arrivals::new()
    }
}

impl Arrivals {
    /// Nobody is expected.
    pub fn new() -> Arrivals {
        Arrivals(AtomicU64::new(0))
    }

    /// So many are to come. Context: the leader, before it asks them.
    pub fn expect(&self, generation: Generation, nr: usize) {
        let nr = u64::try_from(nr).map_or(COUNT, |nr| nr.min(COUNT));
        // ORDERING: Relaxed: published by the Release of the phase that asks them.
        self.0.store(encode(generation, nr), Ordering::Relaxed);
    }

    /// One has come. Whether it was the last. Context: that CPU, once in a generation.
    #[must_use = "the last one wakes the leader"]
    pub fn one(&self, generation: Generation) -> bool {
        let of_this = |word: u64| word & !COUNT == encode(generation, 0) && word & COUNT != 0;
        // ORDERING: Relaxed twice: a count, nothing is read because of it. The leader looks at the acknowledgements.
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| of_this(word).then(|| word - 1));
        before.is_ok_and(|word| word & COUNT == 1)
    }

    /// How many are yet to come. Context: the leader.
    pub fn left(&self) -> usize {
        // ORDERING: Relaxed, as above. Whoever is in the inbox of the leader has been counted before, and the inbox passes it on.
        usize::try_from(self.0.load(Ordering::Relaxed) & COUNT).unwrap_or(usize::MAX)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::phase::Phase;

    #[test]
    fn only_the_last_is_the_last() {
        let generation = Phase::Run.next_generation();
        let arrivals = Arrivals::new();
        assert!(!arrivals.one(generation), "nobody is expected");
        arrivals.expect(generation, 3);
        assert_eq!(arrivals.left(), 3);
        assert_eq!([0; 4].map(|_| arrivals.one(generation)), [false, false, true, false]);
        assert_eq!(arrivals.left(), 0);
    }

    #[test]
    fn one_of_an_earlier_rendezvous_does_not_count() {
        let first = Phase::Run.next_generation();
        let second = Phase::Stopped(first).next_generation();
        let arrivals = Arrivals::new();
        arrivals.expect(first, 1);
        arrivals.expect(second, 1);
        assert!(!arrivals.one(first));
        assert!(arrivals.left() == 1 && arrivals.one(second));
    }
}
