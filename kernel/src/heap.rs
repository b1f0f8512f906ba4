//! The kernel's global allocator: all free memory, under `mm`'s heap.

/// Given its memory by [`memory::init`](crate::memory::init).
#[global_allocator]
static HEAP: mm::Heap = mm::Heap::new();

/// The heap, for statistics, page frames and the seal.
pub(crate) fn get() -> &'static mm::Heap {
    &HEAP
}
