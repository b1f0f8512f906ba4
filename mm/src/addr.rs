//! [`Pfn`], [`Mfn`] and [`PfnRange`]: numbers of page frames, ours and Xen's.
//!
//! A pfn is our own number of a page and never changes. An mfn is the machine's, and every restore deals them anew.
//! Plain numbers for both were turned down: mixing them up compiles, and works on a host whose mfns happen to be small.
//!
//! Context: any; plain values.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

use crate::layout::{DIRECT_BASE, IMAGE_BASE, MAX_PAGES, PAGE_SIZE, native};

/// Number of a page of ours, in `0..nr_pages`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// Page `n`.
    pub const fn new(n: u64) -> Pfn {
        Pfn(n)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The page `n` pages further up.
    #[must_use]
    pub const fn plus(self, n: u64) -> Pfn {
        Pfn(self.0 + n)
    }

    /// Where the direct map has it.
    pub const fn direct_va(self) -> u64 {
        DIRECT_BASE + self.0 * PAGE_SIZE
    }

    /// Its memory, in the direct map. The pointer is good once [`init`](crate::init) is through; whether it may be
    /// written through is told by the direct map's rules in [`layout`](crate::layout).
    pub fn direct(self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(native(self.direct_va()))
    }

    /// The page whose memory `va` lies in, if `va` is an address in the direct map.
    pub const fn of_direct(va: u64) -> Option<Pfn> {
        Self::of(DIRECT_BASE, va)
    }

    /// Where the builder's mapping, or what is left of it, has the page.
    pub const fn image_va(self) -> u64 {
        IMAGE_BASE + self.0 * PAGE_SIZE
    }

    /// The page whose memory `va` lies in, if `va` is an address in the image's mapping.
    pub const fn of_image(va: u64) -> Option<Pfn> {
        Self::of(IMAGE_BASE, va)
    }

    const fn of(base: u64, va: u64) -> Option<Pfn> {
        if va < base {
            return None;
        }
        let n = (va - base) / PAGE_SIZE;
        if n < MAX_PAGES { Some(Pfn(n)) } else { None }
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Number of a page of the machine's.
///
/// # Suspend
/// Every mfn is stale after a restore, so none is kept: look it up, use it, drop it. It is neither `Send` nor `Sync`, so
/// that a future that holds one across an await is not `Send` and no executor takes it, and no static holds one:
///
/// ```
/// fn send<T: Send>(_: T) {}
/// send(mm::Pfn::new(1));
/// ```
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// send(mm::Mfn::new(1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mfn {
    n: u64,
    not_send: PhantomData<*const ()>,
}

impl Mfn {
    /// Machine page `n`.
    pub const fn new(n: u64) -> Mfn {
        Mfn { n, not_send: PhantomData }
    }

    /// The machine page that the machine address `maddr` lies in.
    pub const fn of_maddr(maddr: u64) -> Mfn {
        Mfn::new(maddr / PAGE_SIZE)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.n
    }

    /// Machine address of its first byte.
    pub const fn maddr(self) -> u64 {
        self.n * PAGE_SIZE
    }
}

impl fmt::Debug for Mfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mfn {:#x}", self.n)
    }
}

/// Pages that follow each other, `end` exclusive. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PfnRange {
    /// First page.
    pub start: Pfn,
    /// First page behind it.
    pub end: Pfn,
}

impl PfnRange {
    /// Pages `n.start..n.end`.
    pub const fn new(n: Range<u64>) -> PfnRange {
        PfnRange { start: Pfn(n.start), end: Pfn(n.end) }
    }

    /// The pages of `start_va..end_va` in the image's mapping; `None` if that isn't a range of whole pages of it.
    pub const fn of_image(start_va: u64, end_va: u64) -> Option<PfnRange> {
        if start_va > end_va || !start_va.is_multiple_of(PAGE_SIZE) || !end_va.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        match (Pfn::of_image(start_va), Pfn::of_image(end_va)) {
            (Some(start), Some(end)) => Some(PfnRange { start, end }),
            _ => None,
        }
    }

    /// How many pages.
    pub const fn nr(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether it has no page.
    pub const fn is_empty(self) -> bool {
        self.nr() == 0
    }

    /// Whether `pfn` is one of them.
    pub const fn contains(self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end.0
    }

    /// All of them, upwards.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Pfn> + Clone {
        (self.start.0..self.end.0).map(Pfn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_mappings_go_both_ways() {
        for n in [0, 1, 511, 512, 0x20_0000] {
            let pfn = Pfn::new(n);
            assert_eq!(Pfn::of_direct(pfn.direct_va()), Some(pfn));
            assert_eq!(Pfn::of_direct(pfn.direct_va() + 4095), Some(pfn));
            // Miri warns of pointers that are made of addresses, and this one is not used.
            if !cfg!(miri) {
                assert_eq!(pfn.direct().addr() as u64, pfn.direct_va());
            }
        }
        assert_eq!(Pfn::of_image(IMAGE_BASE + 0x10_0000), Some(Pfn::new(256)));
        assert_eq!(Pfn::of_direct(DIRECT_BASE - 1), None);
        assert_eq!(Pfn::of_direct(DIRECT_BASE + MAX_PAGES * PAGE_SIZE), None);
        assert_eq!(Pfn::of_direct(IMAGE_BASE), None, "the image is not in the direct map");
        assert_eq!(Pfn::of_image(DIRECT_BASE), None);
    }

    #[test]
    fn ranges_of_the_image_are_whole_pages() {
        let range = PfnRange::of_image(IMAGE_BASE + 0x1000, IMAGE_BASE + 0x3000).expect("whole pages");
        assert_eq!(range, PfnRange::new(1..3));
        assert_eq!(range.iter().collect::<Vec<_>>(), [Pfn::new(1), Pfn::new(2)]);
        assert!(range.contains(Pfn::new(2)) && !range.contains(Pfn::new(3)));
        assert_eq!(PfnRange::of_image(IMAGE_BASE + 1, IMAGE_BASE + 0x3000), None);
        assert_eq!(PfnRange::of_image(IMAGE_BASE + 0x3000, IMAGE_BASE), None);
        assert_eq!(PfnRange::of_image(0, 0x1000), None);
    }

    #[test]
    fn machine_addresses_keep_their_page() {
        assert_eq!(Mfn::of_maddr(0x1234_5678).get(), 0x12345);
        assert_eq!(Mfn::new(0x12345).maddr(), 0x1234_5000);
    }
}
