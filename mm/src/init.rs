//! [`init`]: from the builder's address space to ours.
//!
//! The direct map is built bottom-up out of pages that nothing maps yet. Each becomes writable in turn through the *window*, a page
//! of the image that is mapped to it for as long as it takes to fill it; L1, L2 and L3 tables are plain memory to Xen
//! until one `mmu_update` hooks the tree into the L4, and Xen validates all of it in one go. Cost: one hypercall a table
//! (4096 for 8 GiB), and Xen's look at each entry.
//!
//! Turned down: hooking upper tables first and adding leaf entries by `mmu_update`, 128 a call: four hypercalls a table
//! instead of one. Filling tables in the builder's padding, which is mapped already, and unmapping them afterwards: as
//! many hypercalls, and the padding is too small for anything but a small domain.
//!
//! Context: boot, once, on vcpu 0, before any other vcpu is up. No heap yet.

use crate::addr::{Pfn, PfnRange};
use crate::error::MmError;
use crate::layout::{AREA_BASE, DIRECT_BASE, ENTRIES, IMAGE_BASE, P2M_BASE, index};
use crate::map::AreaMap;
use crate::mmu::{Batch, Flush, Mmu, Via, read_entry};
use crate::p2m::P2m;
use crate::plan::{BootMemory, Plan};
use crate::pte::{Access, Entry};
use crate::root::Root;

/// The kernel's memory once the direct map stands. The parts are independent; the kernel puts each where it is used.
#[derive(Debug)]
pub struct Memory {
    /// Page numbers to machine page numbers and back.
    pub p2m: P2m,
    /// The kernel's root.
    pub root: Root,
    /// Stacks and other mappings made at run time.
    pub area: AreaMap,
    /// What went where; [`protect_image`](crate::protect_image) wants it.
    pub plan: Plan,
}

impl Memory {
    /// All free pages, as runs of pages that exist, upwards. For the heap.
    pub fn for_each_free(&self, mmu: &impl Mmu, mut give: impl FnMut(PfnRange)) {
        let mut run = PfnRange::new(0..0);
        for pfn in PfnRange::new(0..self.plan.boot.nr_pages).iter() {
            if self.plan.is_free(pfn) && self.p2m.mfn(mmu, pfn).is_some() {
                if run.end != pfn || run.is_empty() {
                    run.start = pfn;
                }
                run.end = pfn.plus(1);
            } else if !run.is_empty() {
                give(run);
                run = PfnRange::new(0..0);
            }
        }
        if !run.is_empty() {
            give(run);
        }
    }
}

/// Builds the direct map and the area's tables, hooks them in, and makes everything but the image non-executable.
///
/// Afterwards all memory of the domain is in the direct map, with the rights that [`layout`](crate::layout) tells. The builder's
/// mapping is as it was; [`protect_image`](crate::protect_image) cuts it down.
///
/// Cost: a hypercall for each table ([`Tables::total`](crate::Tables::total)), and five more.
///
/// # Safety
/// - `boot` is what the builder and the linker say, of the address space that is in use, and nothing of it has been changed.
/// - The page [`Image::window`](crate::Image::window) and all memory outside of `0..first_free` and the p2m are unused.
/// # Errors
/// [`MmError::TooSmall`], [`MmError::TooLarge`], [`MmError::Builder`]: nothing has been touched. Others: the window may
/// be mapped to something else.
pub unsafe fn init(mmu: &mut impl Mmu, boot: &BootMemory) -> Result<Memory, MmError> {
    // SAFETY: PM1 is what the builder says.
    let p2m = unsafe { P2m::new(mmu, boot.nr_pages)? };
    let mapped_end = mapped_end(mmu, &p2m, boot)?;
    let plan = Plan::new(boot, mapped_end, |pfn| p2m.mfn(mmu, pfn).is_some())?;
    let root = Root::new(plan.root());

    let mut window = Window { mmu, p2m: &p2m, plan: &plan };
    let (direct, area) = fill_tables(&mut window)?;
    window.close()?;
    hook(mmu, &p2m, root, direct, area)?;
    root.ensure_pinned(mmu, &p2m)?;
    Ok(Memory { p2m, root, area: AreaMap::new(root), plan })
}

/// First page behind the builder's mapping of the image.
fn mapped_end(mmu: &impl Mmu, p2m: &P2m, boot: &BootMemory) -> Result<Pfn, MmError> {
    let mut pfn = boot.first_free;
    while pfn.get() < boot.nr_pages {
        let Some(l1) = builder_l1(mmu, p2m, boot, pfn)? else { return Ok(pfn) };
        for i in index(1, pfn.image_va())..ENTRIES {
            if pfn.get() == boot.nr_pages || !read_entry(mmu, Via::Image, l1, i).is_present() {
                return Ok(pfn);
            }
            pfn = pfn.plus(1);
        }
    }
    Ok(pfn)
}

/// The builder's L1 table for `pfn` in the image's mapping; `None` if there is none.
fn builder_l1(mmu: &impl Mmu, p2m: &P2m, boot: &BootMemory, pfn: Pfn) -> Result<Option<Pfn>, MmError> {
    let va = pfn.image_va();
    let mut table = boot.tables.start;
    for level in (2..=4).rev() {
        let Some(mfn) = read_entry(mmu, Via::Image, table, index(level, va)).mfn() else { return Ok(None) };
        // Another table would not be in the image's mapping, and could not be read.
        let counted = p2m.pfn(mmu, mfn).filter(|next| boot.tables.contains(*next));
        table = counted.ok_or(MmError::Builder { va, what: "mapped by a table that start_info does not count" })?;
    }
    Ok(Some(table))
}

/// Fills all tables of the plan. Returns the L3 tables of the direct map and of the area.
fn fill_tables<M: Mmu>(window: &mut Window<'_, M>) -> Result<(Pfn, Pfn), MmError> {
    let tables = window.plan.tables;
    let nr_pages = window.plan.boot.nr_pages;

    // Tables are taken from the pool in this order; `lower` follows one level behind.
    let mut taken = window.plan.pool.start;
    let mut lower = taken;
    for table in 0..tables.l1 {
        let first = table * ENTRIES;
        window.fill(&mut taken, |window, i| {
            let pfn = Pfn::new(first + i);
            let mfn = if pfn.get() < nr_pages { window.p2m.mfn(window.mmu, pfn) } else { None };
            Ok(mfn.map_or(Entry::EMPTY, |mfn| Entry::page(mfn, window.plan.direct_access(pfn))))
        })?;
    }
    let mut direct = taken;
    for (below, nr) in [(tables.l1, tables.l2), (tables.l2, tables.l3)] {
        for table in 0..nr {
            direct = window.fill(&mut taken, |window, i| {
                if table * ENTRIES + i < below { window.next_table(&mut lower) } else { Ok(Entry::EMPTY) }
            })?;
        }
    }

    let fixmap = window.fill(&mut taken, |_, _| Ok(Entry::EMPTY))?;
    let l2 =
        window.fill(&mut taken, |window, i| if i == 0 { window.entry_of_table(fixmap) } else { Ok(Entry::EMPTY) })?;
    let area =
        window.fill(&mut taken, |window, i| if i == 0 { window.entry_of_table(l2) } else { Ok(Entry::EMPTY) })?;
    Ok((direct, area))
}

/// The window, while it is not the image's own page.
struct Window<'a, M> {
    mmu: &'a mut M,
    p2m: &'a P2m,
    plan: &'a Plan,
}

impl<M: Mmu> Window<'_, M> {
    /// Takes the next page of the pool, and fills it with what `entry` says for each index.
    fn fill(
        &mut self,
        taken: &mut Pfn,
        mut entry: impl FnMut(&Window<'_, M>, u64) -> Result<Entry, MmError>,
    ) -> Result<Pfn, MmError> {
        let table = self.next_page(taken)?;
        self.aim(table)?;
        for i in 0..ENTRIES {
            let value = entry(self, i)?;
            // SAFETY: the window is mapped writable to a page of the pool, which nobody else uses.
            unsafe { self.mmu.store(self.va() + i * 8, value.raw()) };
        }
        Ok(table)
    }

    /// The next page from `from` on that the plan makes a table; `from` moves behind it.
    fn next_page(&self, from: &mut Pfn) -> Result<Pfn, MmError> {
        while self.plan.pool.contains(*from) {
            let pfn = *from;
            *from = pfn.plus(1);
            if self.plan.may_be_table(pfn) && self.p2m.mfn(self.mmu, pfn).is_some() {
                return Ok(pfn);
            }
        }
        // The plan has counted them.
        Err(MmError::NoFrames { va: self.va(), nr: 1 })
    }

    fn next_table(&self, from: &mut Pfn) -> Result<Entry, MmError> {
        let table = self.next_page(from)?;
        self.entry_of_table(table)
    }

    fn entry_of_table(&self, table: Pfn) -> Result<Entry, MmError> {
        let mfn = self.p2m.mfn(self.mmu, table).ok_or(MmError::NoMachinePage { pfn: table })?;
        Ok(Entry::table(mfn))
    }

    fn va(&self) -> u64 {
        self.plan.boot.image.window.image_va()
    }

    fn aim(&mut self, pfn: Pfn) -> Result<(), MmError> {
        let va = self.va();
        let mfn = self.p2m.mfn(self.mmu, pfn).ok_or(MmError::NoMachinePage { pfn })?;
        // SAFETY: nothing uses the window's page (`init`), so nothing relies on what was there.
        let result = unsafe { self.mmu.update_va_mapping(va, Entry::page(mfn, Access::Rw), Flush::PageHere) };
        result.map_err(|errno| MmError::Map { va, errno })
    }

    /// Gives the window its own page back, so that no table is writable any more.
    fn close(mut self) -> Result<(), MmError> {
        self.aim(self.plan.boot.image.window)
    }
}

/// Writes the L4 entries: direct map and area, and no execution from the p2m.
fn hook(mmu: &mut impl Mmu, p2m: &P2m, root: Root, direct: Pfn, area: Pfn) -> Result<(), MmError> {
    let mfn_of = |mmu: &_, pfn| p2m.mfn(mmu, pfn).ok_or(MmError::NoMachinePage { pfn });
    let l4 = mfn_of(mmu, root.pfn())?;
    let p2m_entry = read_entry(mmu, Via::Image, root.pfn(), index(4, P2M_BASE));
    if !p2m_entry.is_present() {
        return Err(MmError::P2mHole { va: P2M_BASE, level: 4 });
    }
    let entries = [
        (DIRECT_BASE, Entry::table(mfn_of(mmu, direct)?).no_execute()),
        (AREA_BASE, Entry::table(mfn_of(mmu, area)?).no_execute()),
        (P2M_BASE, p2m_entry.no_execute()),
    ];
    let mut batch = Batch::new();
    for (va, entry) in entries {
        debug_assert!(index(4, va) != index(4, IMAGE_BASE));
        // SAFETY: MM1: direct map and area were empty, and map nothing now that isn't ours or may not be used as it says; nobody
        // executes in the p2m.
        unsafe { batch.push(mmu, (l4, index(4, va)), entry, va)? };
    }
    batch.send(mmu)
}
