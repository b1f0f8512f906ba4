//! [`Heap`]: all free memory, as the kernel's global allocator and its source of page frames.
//!
//! `talc` under a [`MaskedLock`]. One lock for all CPUs: events allocate nothing, tasks little. Caches per CPU were turned
//! down until a measurement asks for them.
//!
//! Between quiesce and release nobody allocates: a parked CPU cannot hold the lock, but memory that the leader needs
//! there must have been reserved before, or one day there is none. The suspend path [seals](Heap::seal) the heap; an
//! allocation or a release under the seal is a bug and panics.
//!
//! Context: any but quiesced. The lock masks upcalls, so gs must point to this CPU's area: on vcpu 0 the kernel sets it
//! before its first allocation.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{Pfn, PfnRange};
use crate::frames::FrameSource;
use crate::layout::{PAGE_SIZE, native};
use crate::lock::MaskedLock;

/// The heap.
///
/// - HP1: memory that was [given](Heap::give) is reached only by `talc` and by those whom it was handed out to.
#[derive(Debug)]
pub struct Heap {
    talc: MaskedLock<Talc<Manual, DefaultBinning>>,
    /// Written by vcpu 0 while all others are parked.
    sealed: AtomicBool,
}

/// How full the heap is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapStats {
    /// All that was given to it.
    pub total: usize,
    /// Not handed out. Many small pieces may not serve for one large one.
    pub free: usize,
    /// Allocations that are out.
    pub allocations: usize,
}

#[cfg(not(loom))]
impl Default for Heap {
    fn default() -> Heap {
        Heap::new()
    }
}

impl Heap {
    /// Empty; every allocation fails until memory is [given](Heap::give).
    #[cfg(not(loom))]
    pub const fn new() -> Heap {
        Heap { talc: MaskedLock::new(Talc::new(Manual)), sealed: AtomicBool::new(false) }
    }

    /// Gives the memory at `base` to the heap, for life. Ranges too small to be of use (below about 2 KiB for the first, 32 bytes
    /// for others) are left alone; returns whether it was taken.
    ///
    /// Touches only the first and last bytes.
    ///
    /// # Safety
    /// `size` bytes from `base` on are mapped writable for as long as the heap lives, and nobody else's (HP1).
    pub unsafe fn give(&self, base: *mut u8, size: usize) -> bool {
        // SAFETY: unused, writable memory, says the caller.
        self.talc.with(|talc| unsafe { talc.claim(base, size) }).is_some()
    }

    /// Gives pages to the heap, by their addresses in the direct map.
    ///
    /// # Safety
    /// They exist, the direct map has them writable, and they are nobody else's.
    pub unsafe fn give_pages(&self, run: PfnRange) -> bool {
        // SAFETY: as the caller says.
        unsafe { self.give(run.start.direct(), native(run.nr() * PAGE_SIZE)) }
    }

    /// Forbids allocating and releasing until [`Heap::unseal`].
    pub fn seal(&self) {
        // ORDERING: Relaxed, here and below: the flag guards no data, it finds bugs. vcpu 0 sets it for itself; the
        // rendezvous keeps all others from running meanwhile.
        self.sealed.store(true, Ordering::Relaxed);
    }

    /// Allows allocating and releasing again.
    pub fn unseal(&self) {
        // ORDERING: Relaxed, see `seal`.
        self.sealed.store(false, Ordering::Relaxed);
    }

    /// Allocates; null if there is no room.
    ///
    /// # Panics
    /// Under the seal.
    pub fn allocate(&self, layout: Layout) -> *mut u8 {
        self.check_seal("allocation", layout);
        if layout.size() == 0 {
            return ptr::without_provenance_mut(layout.align());
        }
        let memory = self.talc.with(|talc| {
            if layout.size() > sane_size(talc) {
                return None;
            }
            // SAFETY: the size is not 0, and sane.
            unsafe { talc.allocate(layout) }
        });
        memory.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Releases.
    ///
    /// # Panics
    /// Under the seal.
    ///
    /// # Safety
    /// `memory` came from [`Heap::allocate`] with this `layout`, and nobody uses it any more.
    pub unsafe fn release(&self, memory: *mut u8, layout: Layout) {
        self.check_seal("release", layout);
        if layout.size() != 0 {
            // SAFETY: as the caller says; of size 0 nothing was allocated.
            self.talc.with(|talc| unsafe { talc.deallocate(memory, layout) });
        }
    }

    /// How full it is.
    pub fn stats(&self) -> HeapStats {
        self.talc.with(|talc| {
            let counters = talc.counters();
            HeapStats {
                total: counters.claimed_bytes,
                free: counters.available_bytes,
                allocations: counters.allocation_count,
            }
        })
    }

    fn check_seal(&self, what: &str, layout: Layout) {
        // ORDERING: Relaxed, see `seal`.
        if self.sealed.load(Ordering::Relaxed) {
            panic!("{what} of {} bytes while the heap is sealed", layout.size());
        }
    }
}

/// More than this is refused without asking `talc`: it adds sizes to addresses and compares, and in the upper half of the
/// address space a size that no memory has (but a `Layout` may) would wrap around and seem to fit.
fn sane_size(talc: &Talc<Manual, DefaultBinning>) -> usize {
    talc.counters().claimed_bytes
}

// SAFETY: memory handed out is unused and large enough (HP1, `talc`); nothing here unwinds in the kernel, where a panic
// ends the domain.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocate(layout)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { self.release(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.check_seal("reallocation", layout);
        let in_place = self.talc.with(|talc| {
            if new_size > sane_size(talc) {
                return false;
            }
            // SAFETY: `memory` was allocated with `layout`, and neither size is 0, says the caller.
            unsafe { talc.try_realloc_in_place(memory, layout, new_size) }
        });
        if in_place {
            return memory;
        }
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else { return ptr::null_mut() };
        let new = self.allocate(new_layout);
        if !new.is_null() {
            let bytes = layout.size().min(new_size);
            // SAFETY: both are allocated, at least `bytes` large, and distinct.
            unsafe { ptr::copy_nonoverlapping(memory, new, bytes) };
            // SAFETY: as the caller says; its content has moved.
            unsafe { self.release(memory, layout) };
        }
        new
    }
}

/// The layout of `nr` pages in a row.
fn pages(nr: u64) -> Option<Layout> {
    let bytes = usize::try_from(nr.checked_mul(PAGE_SIZE)?).ok()?;
    Layout::from_size_align(bytes, usize::try_from(PAGE_SIZE).ok()?).ok()
}

// SAFETY: what `talc` hands out is unused (HP1), and given by `give_pages` it exists and is writable in the direct map;
// memory that was given otherwise has no pfn and is refused.
unsafe impl FrameSource for &Heap {
    fn alloc_frames(&mut self, nr: u64) -> Option<PfnRange> {
        let layout = pages(nr)?;
        let memory = self.allocate(layout);
        if memory.is_null() {
            return None;
        }
        let Some(start) = Pfn::of_direct(memory.addr() as u64) else {
            // SAFETY: allocated just now with this layout.
            unsafe { self.release(memory, layout) };
            return None;
        };
        Some(PfnRange { start, end: start.plus(nr) })
    }

    unsafe fn free_frames(&mut self, run: PfnRange) {
        if let Some(layout) = pages(run.nr()) {
            // SAFETY: it came from `alloc_frames`, whole, and nobody uses it, says the caller.
            unsafe { self.release(run.start.direct(), layout) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use percpu::{CpuId, hosted};

    use super::*;

    fn with_heap(size: usize, test: impl FnOnce(&Heap)) {
        let _on = hosted::enter(CpuId::BOOT);
        // Twice as large as it says: `talc` steps over the end of what it was given, by less than it was given, and
        // only compares. Miri wants even that to stay within one object.
        let mut memory = vec![0_u64; 2 * size / 8];
        let heap = Heap::new();
        // SAFETY: ours until the end of this function, which the heap doesn't survive.
        assert!(unsafe { heap.give(memory.as_mut_ptr().cast(), size) });
        test(&heap);
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("valid")
    }

    #[test]
    fn frames_are_aligned_and_apart() {
        with_heap(256 * 1024, |heap| {
            let frame = layout(4096, 4096);
            let frames: Vec<_> = (0..16).map(|_| heap.allocate(frame)).collect();
            for (i, memory) in frames.iter().enumerate() {
                assert!(!memory.is_null() && memory.addr().is_multiple_of(4096));
                // SAFETY: allocated just now.
                unsafe { memory.write_bytes(u8::try_from(i).expect("below 16"), 4096) };
            }
            for (i, memory) in frames.iter().enumerate() {
                let last = memory.wrapping_add(4095);
                // SAFETY: allocated, and written just now.
                assert_eq!(unsafe { last.read() }, u8::try_from(i).expect("below 16"));
                // SAFETY: from this heap with this layout.
                unsafe { heap.release(*memory, frame) };
            }
        });
    }

    #[test]
    fn stats_come_back_to_where_they_were() {
        with_heap(64 * 1024, |heap| {
            let before = heap.stats();
            assert!(before.free > 32 * 1024 && before.free <= before.total);
            let memory = heap.allocate(layout(32 * 1024, 1));
            assert!(!memory.is_null());
            let during = heap.stats();
            assert!(during.allocations == before.allocations + 1 && during.free <= before.free - 32 * 1024);
            // SAFETY: from this heap with this layout.
            unsafe { heap.release(memory, layout(32 * 1024, 1)) };
            assert_eq!(heap.stats(), before);
        });
    }

    #[test]
    fn too_much_is_null_and_harmless() {
        with_heap(64 * 1024, |heap| {
            assert!(heap.allocate(layout(128 * 1024, 8)).is_null());
            // Miri stops here if `talc` sees it; on Xen its sum would wrap around and fit.
            let huge = layout(isize::MAX.cast_unsigned() - 4095, 16);
            assert!(heap.allocate(huge).is_null());
            let small = heap.allocate(layout(16, 16));
            // SAFETY: from this heap with this layout.
            assert!(unsafe { heap.realloc(small, layout(16, 16), huge.size()) }.is_null());
            assert!(!heap.allocate(layout(1024, 8)).is_null());
        });
    }

    #[test]
    fn realloc_keeps_the_content() {
        with_heap(64 * 1024, |heap| {
            // SAFETY: the size is not 0.
            let memory = unsafe { heap.alloc(layout(100, 8)) };
            // SAFETY: allocated just now.
            unsafe { memory.write_bytes(7, 100) };
            // In the way of growing in place.
            let _wall = heap.allocate(layout(8, 8));
            // SAFETY: from this heap with this layout.
            let grown = unsafe { heap.realloc(memory, layout(100, 8), 5000) };
            assert_ne!(grown, memory);
            let last = grown.wrapping_add(99);
            // SAFETY: at least 100 bytes, copied.
            assert_eq!(unsafe { last.read() }, 7);
        });
    }

    #[test]
    #[should_panic(expected = "allocation of 24 bytes while the heap is sealed")]
    fn the_seal_holds() {
        with_heap(64 * 1024, |heap| {
            heap.seal();
            heap.allocate(layout(24, 8));
        });
    }

    #[test]
    fn the_seal_can_be_broken() {
        with_heap(64 * 1024, |heap| {
            heap.seal();
            heap.unseal();
            assert!(!heap.allocate(layout(24, 8)).is_null());
        });
    }

    #[test]
    fn memory_without_a_pfn_is_no_frame() {
        with_heap(64 * 1024, |heap| {
            let before = heap.stats();
            let mut source = heap;
            assert_eq!(source.alloc_frames(1), None);
            assert_eq!(heap.stats(), before, "and is not lost");
            assert_eq!(source.alloc_frames(u64::MAX), None);
        });
    }
}
