//! [`Ring`]: the marks of one CPU, the newest over the oldest.
//!
//! | word, bits 0..=5 | 6..=63 | meaning |
//! |---|---|---|
//! | 0 | number | a record begins; what follows is of suspend `number`, or of none |
//! | 0 | number, and bit 63 | the record of `number` goes on, which something else was in the way of |
//! | [`Mark::code`] | the TSC, its lowest 58 bits | this mark, reached then |
//!
//! 58 bits of a TSC of 4 GHz last 2.2 years; a reader that knows the TSC of about that time makes up for the rest
//! ([`Stamp::near`]).
//!
//! Who writes: its CPU, upcalls masked. Who reads: anybody, at any time, without stopping the writer: what may have been
//! written over meanwhile is left out. Both wait-free. Suspend: *kept*; a suspend between the two stores of a mark leaves
//! a ring without it.
//!
//! Turned down: a lock (a parked CPU takes none); a word for the TSC and one for the mark, which a reader could see
//! halves of; a record of fixed length for each suspend, which is as long as vCPU 0's on every CPU.
//!
//! Weakening any ordering below fails in `tests/loom_trace.rs`.
#![forbid(unsafe_code)]

use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use xen_sys::primitive::sync::atomic::{AtomicU64, AtomicUsize, fence};

use super::mark::Mark;

/// In the place of a number's highest bit: its record goes on.
const GOES_ON: u64 = 1 << (u64::BITS - Mark::CODE_BITS - 1);

/// The lowest 58 bits of a TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp(u64);

impl Stamp {
    /// The TSC that it was made of, which was less than 2^57 ticks from `tsc`.
    pub fn near(self, tsc: u64) -> u64 {
        // The difference, its sign in the highest bit.
        let ahead = (self.0.wrapping_sub(tsc) << Mark::CODE_BITS).cast_signed() >> Mark::CODE_BITS;
        tsc.wrapping_add_signed(ahead)
    }
}

/// The last `N` words of one CPU. `N` is a power of two.
pub struct Ring<const N: usize> {
    /// Words written since boot: how often the owner has stored one. Written by the owner.
    written: AtomicUsize,
    /// Word `n` stands at `n % N`.
    words: [AtomicU64; N],
}

impl<const N: usize> Ring<N> {
    /// An empty ring.
    pub fn new() -> Ring<N> {
        const { assert!(N.is_power_of_two()) };
        Ring { written: AtomicUsize::new(0), words: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// A record begins. Context: the owner, upcalls masked.
    pub fn begin(&self, number: u64) {
        self.push(number << Mark::CODE_BITS);
    }

    /// The record of suspend `number` goes on, after others have begun. Context: as [`Ring::begin`].
    pub fn go_on(&self, number: u64) {
        self.push((number | GOES_ON) << Mark::CODE_BITS);
    }

    /// `mark` was reached when the TSC was `tsc`. Context: as [`Ring::begin`]. Cost: a load and two stores of its own.
    pub fn mark(&self, mark: Mark, tsc: u64) {
        self.push(tsc << Mark::CODE_BITS | u64::from(mark.code()));
    }

    fn push(&self, word: u64) {
        // ORDERING: Relaxed, ours alone.
        let n = self.written.load(Relaxed);
        let slot = &self.words[Self::place(n)];
        // ORDERING: Release, pairs with the fence in `read`: who sees this word sees that `written` was `n`, and that
        //   the word N before it is gone.
        slot.store(word, Release);
        // ORDERING: Release, pairs with the first load in `read`: who sees the count sees the word.
        self.written.store(n + 1, Release);
    }

    /// The record of suspend `number`, as far as it has been written; `None` where it never began, or its beginning has
    /// been written over. Context: any CPU. Cost: a copy of the ring.
    pub fn read(&self, number: u64) -> Option<Record<N>> {
        let mut words = [0; N];
        // ORDERING: Acquire, pairs with the second store in `push`.
        let end = self.written.load(Acquire);
        let first = end.saturating_sub(N);
        for n in first..end {
            // ORDERING: Relaxed, by the fence below.
            words[Self::place(n)] = self.words[Self::place(n)].load(Relaxed);
        }
        // ORDERING: Acquire, pairs with the first store in `push`: of whatever word we have seen, we see the count from
        //   before it was stored.
        fence(Acquire);
        // ORDERING: Relaxed, by the fence.
        let written = self.written.load(Relaxed);
        // The owner may be storing word `written`, where word `written - N` stood.
        let first = first.max((written + 1).saturating_sub(N));
        let head = number << Mark::CODE_BITS;
        let begin = (first..end).rev().find(|n| words[Self::place(*n)] == head)?;
        // Where it goes on is packed up to it.
        let goes_on = (number | GOES_ON) << Mark::CODE_BITS;
        let (mut is_ours, mut last) = (true, begin);
        for n in begin + 1..end {
            let word = words[Self::place(n)];
            if word.trailing_zeros() >= Mark::CODE_BITS {
                is_ours = word == goes_on;
            } else if is_ours {
                last += 1;
                words[Self::place(last)] = word;
            }
        }
        Some(Record { words, begin: begin + 1, end: last + 1 })
    }

    /// Also where the count has begun anew: N is a power of two.
    fn place(n: usize) -> usize {
        n % N
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Ring<N> {
        Ring::new()
    }
}

/// What one CPU marked in one suspend. A copy.
#[derive(Clone, Debug)]
pub struct Record<const N: usize> {
    words: [u64; N],
    begin: usize,
    end: usize,
}

impl<const N: usize> Record<N> {
    /// The marks, in the order in which they were made.
    pub fn marks(&self) -> impl Iterator<Item = (Mark, Stamp)> + Clone {
        (self.begin..self.end).filter_map(|n| {
            let word = self.words[Ring::<N>::place(n)];
            let code = u8::try_from(word & ((1 << Mark::CODE_BITS) - 1)).ok()?;
            Some((Mark::of_code(code)?, Stamp(word >> Mark::CODE_BITS)))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn read<const N: usize>(ring: &Ring<N>, number: u64) -> Option<Vec<(Mark, u64)>> {
        Some(ring.read(number)?.marks().map(|(mark, stamp)| (mark, stamp.near(0))).collect())
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let ring = Ring::<8>::new();
        assert_eq!(read(&ring, 1), None);
        ring.mark(Mark::Timer, 3);
        assert_eq!(read(&ring, 1), None, "of no record");
        ring.begin(1);
        assert_eq!(read(&ring, 1), Some(vec![]));
        ring.mark(Mark::Kicked, 10);
        ring.mark(Mark::Parked, 20);
        ring.begin(2);
        ring.mark(Mark::Parked, 30);
        assert_eq!(read(&ring, 1), Some(vec![(Mark::Kicked, 10), (Mark::Parked, 20)]));
        assert_eq!(read(&ring, 2), Some(vec![(Mark::Parked, 30)]));
        assert_eq!(read(&ring, 3), None);
    }

    #[test]
    fn a_record_goes_on_after_others() {
        let ring = Ring::<16>::new();
        ring.go_on(1);
        ring.mark(Mark::Begun, 5);
        assert_eq!(read(&ring, 1), None, "its beginning is not there");
        ring.begin(1);
        ring.mark(Mark::Asked, 10);
        ring.begin(0);
        ring.mark(Mark::Begun, 20);
        ring.go_on(1);
        ring.mark(Mark::Begun, 30);
        ring.mark(Mark::Rung, 40);
        ring.begin(2);
        ring.mark(Mark::Asked, 50);
        assert_eq!(read(&ring, 1), Some(vec![(Mark::Asked, 10), (Mark::Begun, 30), (Mark::Rung, 40)]));
        assert_eq!(read(&ring, 2), Some(vec![(Mark::Asked, 50)]));
    }

    #[test]
    fn the_newest_goes_over_the_oldest() {
        let ring = Ring::<8>::new();
        for number in 1..=20 {
            ring.begin(number);
            ring.mark(Mark::Arrived, number * 10);
            ring.mark(Mark::Released, number * 10 + 1);
            let whole = |n: u64| Some(vec![(Mark::Arrived, n * 10), (Mark::Released, n * 10 + 1)]);
            assert_eq!(read(&ring, number), whole(number));
            assert_eq!(read(&ring, number - 1), if number > 1 { whole(number - 1) } else { None });
            // Its beginning stands where the next word goes.
            assert_eq!(read(&ring, number.saturating_sub(2)), None);
        }
    }

    #[test]
    fn a_record_that_is_longer_than_the_ring_is_not_there() {
        let ring = Ring::<4>::new();
        ring.begin(1);
        for tsc in 0..3 {
            ring.mark(Mark::Timer, tsc);
        }
        assert_eq!(read(&ring, 1), None, "the next word goes over its beginning");
        ring.begin(2);
        assert_eq!(read(&ring, 2), Some(vec![]));
    }

    #[test]
    fn a_stamp_is_the_tsc_that_it_was_made_of() {
        for tsc in [0, 1, 1 << 57, (1 << 58) - 1, 1 << 58, (7 << 58) + 12345, u64::MAX] {
            let ring = Ring::<8>::new();
            ring.begin(1);
            ring.mark(Mark::Back, tsc);
            let record = ring.read(1).expect("just begun");
            let (mark, stamp) = record.marks().next().expect("one mark");
            assert_eq!(mark, Mark::Back);
            for off in [0, 1, 1 << 40, (1 << 57) - 1] {
                assert_eq!(stamp.near(tsc.wrapping_add(off)), tsc, "{off} behind");
                assert_eq!(stamp.near(tsc.wrapping_sub(off)), tsc, "{off} ahead");
            }
        }
    }
}
