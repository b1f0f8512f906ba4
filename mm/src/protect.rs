//! [`protect_image`]: what is left of the builder's mapping.
//!
//! The builder maps the image, everything it put behind it and some padding writable and executable. Afterwards: code is
//! executable, constants are read-only, data is writable, the page below the boot stack is gone, and so is all that is
//! not of the image, since the direct map has it. Whole L2 entries are cleared where nothing of the image is below
//! them; what remains takes a leaf update a page, 128 a hypercall.
//!
//! Context: boot, once, on vcpu 0, before any other vcpu is up.

use crate::addr::Pfn;
use crate::error::MmError;
use crate::init::Memory;
use crate::layout::{ENTRIES, index};
use crate::mmu::{Batch, Mmu, Via, read_entry};
use crate::pte::Entry;

/// Cuts the builder's mapping down to the image.
///
/// # Safety
/// The caller runs on the image's boot stack and uses nothing below or behind the image by its address in the image's mapping
/// any more: `start_info`, the rings and the builder's stack are in the direct map only. Nothing writes to constants, and
/// nothing uses the guard page.
/// # Errors
/// [`MmError::Update`], [`MmError::Builder`], [`MmError::Flush`]; part of it may have been done.
pub unsafe fn protect_image(mmu: &mut impl Mmu, memory: &Memory) -> Result<(), MmError> {
    let plan = &memory.plan;
    let l2 = table_over(mmu, memory, 2, Pfn::new(0))?;
    let mut batch = Batch::new();
    let mut first = Pfn::new(0);
    while first < plan.mapped_end {
        let covered = first.get()..first.get() + ENTRIES;
        let end = Pfn::new(covered.end.min(plan.mapped_end.get()));
        if covered.clone().all(|n| plan.image_access(Pfn::new(n)).is_none()) {
            let va = first.image_va();
            let l2_mfn = memory.p2m.mfn(mmu, l2).ok_or(MmError::NoMachinePage { pfn: l2 })?;
            // SAFETY: MM1: the caller uses nothing outside of the image.
            unsafe { batch.push(mmu, (l2_mfn, index(2, va)), Entry::EMPTY, va)? };
        } else {
            let l1 = table_over(mmu, memory, 1, first)?;
            let l1_mfn = memory.p2m.mfn(mmu, l1).ok_or(MmError::NoMachinePage { pfn: l1 })?;
            for pfn in (first.get()..end.get()).map(Pfn::new) {
                let va = pfn.image_va();
                let wanted = match plan.image_access(pfn) {
                    None => Entry::EMPTY,
                    Some(access) => {
                        Entry::page(memory.p2m.mfn(mmu, pfn).ok_or(MmError::NoMachinePage { pfn })?, access)
                    }
                };
                if !read_entry(mmu, Via::Direct, l1, index(1, va)).does(wanted) {
                    // SAFETY: MM1: the caller uses the image as its sections say, and nothing outside of it.
                    unsafe { batch.push(mmu, (l1_mfn, index(1, va)), wanted, va)? };
                }
            }
        }
        first = Pfn::new(covered.end);
    }
    batch.send(mmu)?;
    // Xen flushes for the L2 entries, not for the leaves.
    mmu.flush_tlbs().map_err(|errno| MmError::Flush { errno })
}

/// The builder's table of `level` that maps `pfn` in the image's mapping.
fn table_over(mmu: &impl Mmu, memory: &Memory, level: u32, pfn: Pfn) -> Result<Pfn, MmError> {
    let va = pfn.image_va();
    let mut table = memory.root.pfn();
    for above in (level + 1..=4).rev() {
        let entry = read_entry(mmu, Via::Direct, table, index(above, va));
        let below = entry.mfn().and_then(|mfn| memory.p2m.pfn(mmu, mfn));
        table = below.ok_or(MmError::Builder { va, what: "no table of ours maps it" })?;
    }
    Ok(table)
}
