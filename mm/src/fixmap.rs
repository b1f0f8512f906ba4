//! The fixmap: pages at fixed addresses whose frames are not ours, or not the same after a restore.
//!
//! `shared_info` is the first; grant-table frames have their place behind it. None of them is in the p2m, and the toolstack
//! drops a whole page table, in silence, where it meets such an entry in a save. So each is [cleared](clear) before a
//! suspend and [set] again after it. The table has been there since boot: neither allocates, and each is one hypercall.
//! All roots share the tables of the area, so once is enough.
//!
//! Context: boot and quiesced, on vcpu 0.

use crate::addr::Mfn;
use crate::error::MmError;
use crate::layout::{FIXMAP_BASE, FIXMAP_PAGES, PAGE_SIZE, native};
use crate::mmu::{Flush, Mmu};
use crate::pte::{Access, Entry};

/// A place in the fixmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(u64);

impl Slot {
    /// `shared_info`.
    pub const SHARED_INFO: Slot = Slot(0);

    /// How many grant-table frames there is room for.
    pub const GRANT_FRAMES: u64 = 64;

    /// Grant-table frame `n`, below [`Slot::GRANT_FRAMES`].
    pub const fn grant_frame(n: u64) -> Option<Slot> {
        if n < Self::GRANT_FRAMES { Some(Slot(1 + n)) } else { None }
    }

    /// Its address, for life.
    pub const fn va(self) -> u64 {
        FIXMAP_BASE + self.0 * PAGE_SIZE
    }

    /// Its page. Good while the slot is set.
    pub fn as_ptr<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(native(self.va()))
    }
}

const _: () = assert!(Slot::GRANT_FRAMES < FIXMAP_PAGES);

/// Maps the machine page at `maddr` in `slot`, which must be clear: no TLB is flushed.
///
/// # Safety
/// The page may be used as `access` says, as long as the slot is set.
/// # Errors
/// [`MmError::Map`].
pub unsafe fn set(mmu: &mut impl Mmu, slot: Slot, maddr: u64, access: Access) -> Result<(), MmError> {
    let va = slot.va();
    let entry = Entry::page(Mfn::of_maddr(maddr), access);
    // SAFETY: MM1: the slot was clear, and the caller vouches for the page.
    let result = unsafe { mmu.update_va_mapping(va, entry, Flush::Nothing) };
    result.map_err(|errno| MmError::Map { va, errno })
}

/// Unmaps `slot`, everywhere. Clearing a clear slot does no harm.
///
/// # Safety
/// Nobody uses the slot's page until it is set again.
/// # Errors
/// [`MmError::Map`].
pub unsafe fn clear(mmu: &mut impl Mmu, slot: Slot) -> Result<(), MmError> {
    let va = slot.va();
    // SAFETY: MM1: nobody uses it, says the caller.
    let result = unsafe { mmu.update_va_mapping(va, Entry::EMPTY, Flush::PageEverywhere) };
    result.map_err(|errno| MmError::Map { va, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_pages_of_their_own() {
        assert_eq!(Slot::SHARED_INFO.va(), FIXMAP_BASE);
        assert_eq!(Slot::grant_frame(0).map(Slot::va), Some(FIXMAP_BASE + PAGE_SIZE));
        assert_eq!(Slot::grant_frame(Slot::GRANT_FRAMES), None);
    }
}
