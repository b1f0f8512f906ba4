//! [`XenMmu`]: [`Mmu`] over the real hypercalls and the real memory.
//!
//! Context: any; each update is one hypercall. On the host there is no Xen, and every update fails with ENOSYS.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use xen_sys::Errno;
use xen_sys::abi::xen::{
    MMUEXT_PIN_L4_TABLE, MMUEXT_TLB_FLUSH_ALL, MMUEXT_UNPIN_TABLE, MmuUpdate, MmuextOp, UVMF_ALL, UVMF_INVLPG,
    UVMF_LOCAL, UVMF_NONE,
};
use xen_sys::hypercall::memory::maximum_ram_page;
use xen_sys::hypercall::mmu::{self, MmuError};

use crate::addr::Mfn;
use crate::layout::native;
use crate::mmu::{Flush, Mmu};
use crate::pte::Entry;

/// Xen and the processor. Has no state of its own: make one wherever one is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct XenMmu;

impl Mmu for XenMmu {
    unsafe fn update_va_mapping(&mut self, va: u64, entry: Entry, flush: Flush) -> Result<(), Errno> {
        let flags = match flush {
            Flush::Nothing => UVMF_NONE,
            Flush::PageHere => UVMF_INVLPG | UVMF_LOCAL,
            Flush::PageEverywhere => UVMF_INVLPG | UVMF_ALL,
        };
        // SAFETY: nobody relies on what `va` maps so far (MM1), so no reference loses its memory.
        unsafe { mmu::update_va_mapping(va, entry.raw(), flags) }
    }

    unsafe fn mmu_update(&mut self, updates: &[MmuUpdate]) -> Result<(), MmuError> {
        // SAFETY: nobody relies on what the entries map so far (MM1).
        unsafe { mmu::mmu_update(updates) }
    }

    fn pin_l4(&mut self, root: Mfn) -> Result<(), Errno> {
        // SAFETY: pinning adds a reference and changes no mapping; a page that is used as anything else is refused.
        let result = unsafe { mmu::mmuext_op(&[MmuextOp::on_mfn(MMUEXT_PIN_L4_TABLE, root.get())]) };
        result.map_err(|MmuError { errno, .. }| errno)
    }

    unsafe fn unpin(&mut self, root: Mfn) -> Result<(), Errno> {
        // SAFETY: the table keeps another reference, or isn't used any more, says the caller: no mapping changes.
        let result = unsafe { mmu::mmuext_op(&[MmuextOp::on_mfn(MMUEXT_UNPIN_TABLE, root.get())]) };
        result.map_err(|MmuError { errno, .. }| errno)
    }

    fn flush_tlbs(&mut self) -> Result<(), Errno> {
        // SAFETY: a flush changes no mapping.
        let result = unsafe { mmu::mmuext_op(&[MmuextOp::on_mfn(MMUEXT_TLB_FLUSH_ALL, 0)]) };
        result.map_err(|MmuError { errno, .. }| errno)
    }

    fn machine_end(&mut self) -> Result<u64, Errno> {
        // The name says maximum, but Xen returns `max_page`, which is one more (`common/memory.c: do_memory_op`).
        maximum_ram_page()
    }

    unsafe fn load(&self, va: u64) -> u64 {
        let from = with_exposed_provenance::<u64>(native(va));
        // SAFETY: aligned, mapped and plain data, says the caller. Volatile: Xen writes page tables, p2m and m2p.
        unsafe { from.read_volatile() }
    }

    unsafe fn store(&mut self, va: u64, value: u64) {
        let to = with_exposed_provenance_mut::<u64>(native(va));
        // SAFETY: aligned, mapped writable and unshared, says the caller. Volatile: what Xen reads must have been written
        // when the hypercall comes.
        unsafe { to.write_volatile(value) }
    }
}
