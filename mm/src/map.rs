//! [`AreaMap`]: mappings made at run time, in the area: kernel stacks, and single pages.
//!
//! Tables are made on demand and never taken away. A page becomes a table in three steps, because Xen has a page writable or as
//! a table but not both: zeroed through the direct map, made read-only there, hooked in.
//!
//! The upper levels are there from boot, so an L2 update, for which Xen interrupts every processor that runs this
//! domain, happens once for each 32 stacks.
//!
//! Context: task or boot, one caller at a time (`&mut`), not quiesced: it may allocate.

use crate::addr::{Mfn, Pfn, PfnRange};
use crate::error::MmError;
use crate::frames::FrameSource;
use crate::layout::{AREA_END, MAX_STACKS, PAGE_SIZE, STACK_SIZE, STACKS_BASE, index, stack_bottom, stack_top};
use crate::mmu::{Batch, Flush, Mmu, Via, read_entry, zero_page};
use crate::p2m::P2m;
use crate::pte::{Access, Entry};
use crate::root::Root;

/// The tables of the area, but for the fixmap's.
///
/// - AM1: only this map's own methods change them.
#[derive(Debug)]
pub struct AreaMap {
    root: Root,
}

impl AreaMap {
    pub(crate) const fn new(root: Root) -> AreaMap {
        AreaMap { root }
    }

    /// Maps the page `pfn` at `va`.
    ///
    /// Cost: one hypercall; three if the table has to be made.
    ///
    /// # Safety
    /// The page may be used by this second name, with the rights that `access` gives.
    /// # Errors
    /// [`MmError::OutsideArea`], [`MmError::Occupied`], [`MmError::NoFrames`], [`MmError::NoMachinePage`], Xen's. Nothing is
    /// mapped then.
    pub unsafe fn map_page(
        &mut self,
        mmu: &mut impl Mmu,
        p2m: &P2m,
        frames: &mut impl FrameSource,
        va: u64,
        (pfn, access): (Pfn, Access),
    ) -> Result<(), MmError> {
        check_page(va)?;
        let l1 = self.l1_over(mmu, p2m, frames, va)?;
        if read_entry(mmu, Via::Direct, l1, index(1, va)).is_present() {
            return Err(MmError::Occupied { va });
        }
        let mfn = p2m.mfn(mmu, pfn).ok_or(MmError::NoMachinePage { pfn })?;
        // SAFETY: MM1: nothing was mapped there, and the caller vouches for the page.
        let result = unsafe { mmu.update_va_mapping(va, Entry::page(mfn, access), Flush::Nothing) };
        result.map_err(|errno| MmError::Map { va, errno })
    }

    /// Unmaps `va`, on all processors, and returns the page that was there.
    ///
    /// Cost: one hypercall, and an interrupt to every processor that runs this domain.
    ///
    /// # Safety
    /// Nobody uses `va` any more.
    /// # Errors
    /// [`MmError::OutsideArea`], [`MmError::NotMapped`], Xen's. Nothing has changed then.
    pub unsafe fn unmap_page(&mut self, mmu: &mut impl Mmu, p2m: &P2m, va: u64) -> Result<Pfn, MmError> {
        check_page(va)?;
        let pfn = self.translate(mmu, p2m, va).ok_or(MmError::NotMapped { va })?;
        // SAFETY: MM1: nobody uses it, says the caller.
        let result = unsafe { mmu.update_va_mapping(va, Entry::EMPTY, Flush::PageEverywhere) };
        result.map_err(|errno| MmError::Map { va, errno })?;
        Ok(pfn)
    }

    /// The page that is mapped at `va`.
    pub fn translate(&self, mmu: &impl Mmu, p2m: &P2m, va: u64) -> Option<Pfn> {
        let mut table = self.root.pfn();
        for level in (1..=4).rev() {
            let mfn = read_entry(mmu, Via::Direct, table, index(level, va)).mfn()?;
            table = p2m.pfn(mmu, mfn)?;
        }
        Some(table)
    }

    /// Gives the stack with `index` its pages and returns its top. Its guard stays unmapped.
    ///
    /// Cost: one hypercall; three if the table has to be made, which is every 32nd time.
    ///
    /// # Errors
    /// [`MmError::OutsideArea`] from [`MAX_STACKS`] on; [`MmError::Occupied`] if it has them; [`MmError::NoFrames`]; Xen's.
    pub fn map_stack(
        &mut self,
        mmu: &mut impl Mmu,
        p2m: &P2m,
        frames: &mut impl FrameSource,
        stack: u64,
    ) -> Result<u64, MmError> {
        let nr = STACK_SIZE / PAGE_SIZE;
        let bottom = stack_bottom(stack.min(MAX_STACKS));
        if stack >= MAX_STACKS {
            return Err(MmError::OutsideArea { va: bottom });
        }
        let l1 = self.l1_over(mmu, p2m, frames, bottom)?;
        if read_entry(mmu, Via::Direct, l1, index(1, bottom)).is_present() {
            return Err(MmError::Occupied { va: bottom });
        }
        let l1_mfn = p2m.mfn(mmu, l1).ok_or(MmError::NoMachinePage { pfn: l1 })?;
        let pages = frames.alloc_frames(nr).ok_or(MmError::NoFrames { va: bottom, nr })?;
        // If this fails, some of the pages may be mapped. All are lost then, which is better than having them used twice.
        map_run(mmu, p2m, l1_mfn, bottom, pages)?;
        Ok(stack_top(stack))
    }

    /// The L1 table over `va`, made if there is none.
    fn l1_over(
        &mut self,
        mmu: &mut impl Mmu,
        p2m: &P2m,
        frames: &mut impl FrameSource,
        va: u64,
    ) -> Result<Pfn, MmError> {
        let mut table = self.root.pfn();
        for level in (2..=4).rev() {
            let entry = read_entry(mmu, Via::Direct, table, index(level, va));
            table = match entry.mfn() {
                Some(mfn) => p2m.pfn(mmu, mfn).ok_or(MmError::Builder { va, what: "a table is not ours" })?,
                None => hook_new(mmu, p2m, frames, (table, index(level, va)), va)?,
            };
        }
        Ok(table)
    }
}

/// Whether `va` is a page that [`AreaMap::map_page`] may map: page aligned, in the area and not in the fixmap.
fn check_page(va: u64) -> Result<(), MmError> {
    let inside = (STACKS_BASE..AREA_END).contains(&va) && va.is_multiple_of(PAGE_SIZE);
    if inside { Ok(()) } else { Err(MmError::OutsideArea { va }) }
}

/// Maps `pages` from `va` on, writable. All of them are under the L1 table `l1`.
fn map_run(mmu: &mut impl Mmu, p2m: &P2m, l1: Mfn, va: u64, pages: PfnRange) -> Result<(), MmError> {
    let mut batch = Batch::new();
    for (i, pfn) in (0..).zip(pages.iter()) {
        let va = va + i * PAGE_SIZE;
        let mfn = p2m.mfn(mmu, pfn).ok_or(MmError::NoMachinePage { pfn })?;
        // SAFETY: MM1: nothing was mapped there, so there is nothing to flush either; the pages are fresh from the source.
        unsafe { batch.push(mmu, (l1, index(1, va)), Entry::page(mfn, Access::Rw), va)? };
    }
    batch.send(mmu)
}

/// Makes an empty table and hooks it into entry `at` of the table above. If Xen refuses, the page is lost: what became of it is
/// not known then, and a page that is used twice is worse.
fn hook_new(
    mmu: &mut impl Mmu,
    p2m: &P2m,
    frames: &mut impl FrameSource,
    (above, at): (Pfn, u64),
    va: u64,
) -> Result<Pfn, MmError> {
    let above_mfn = p2m.mfn(mmu, above).ok_or(MmError::NoMachinePage { pfn: above })?;
    let page = frames.alloc_frames(1).ok_or(MmError::NoFrames { va, nr: 1 })?;
    let table = page.start;
    let mfn = p2m.mfn(mmu, table).ok_or(MmError::NoMachinePage { pfn: table })?;
    // SAFETY: fresh from the source, so it is ours and writable.
    unsafe { zero_page(mmu, table) };
    let direct = table.direct_va();
    // SAFETY: MM1: it is nobody else's, and is only read from here on.
    let read_only = unsafe { mmu.update_va_mapping(direct, Entry::page(mfn, Access::R), Flush::PageEverywhere) };
    read_only.map_err(|errno| MmError::Map { va: direct, errno })?;

    let mut batch = Batch::new();
    // SAFETY: MM1: nothing was mapped there, nor does an empty table map anything.
    unsafe { batch.push(mmu, (above_mfn, at), Entry::table(mfn), va)? };
    batch.send(mmu)?;
    Ok(table)
}
