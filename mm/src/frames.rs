//! [`FrameSource`]: where page frames come from.
//!
//! In the kernel, from the heap: frames are page-aligned allocations there. A frame allocator of its own beside the
//! heap was turned down: the kernel needs few frames after boot, and a fixed border between two allocators is wrong for some
//! domain. The price is the allocator's tag behind each allocation, which for a single frame can cost the page behind it (it
//! stays usable for small things); whoever wants many asks for runs.
//!
//! Context: task or boot; not quiesced.

use crate::addr::PfnRange;

/// Hands out whole pages of ours that the direct map has writable.
///
/// # Safety
/// The pages of a run exist, are in no other run that is out, and nobody else uses them.
pub unsafe trait FrameSource {
    /// `nr` pages in a row, with any content; `None` if there are none.
    fn alloc_frames(&mut self, nr: u64) -> Option<PfnRange>;

    /// Takes a run back, whole.
    ///
    /// # Safety
    /// It came from here, nobody uses it any more, and the direct map has it writable.
    unsafe fn free_frames(&mut self, run: PfnRange);
}
