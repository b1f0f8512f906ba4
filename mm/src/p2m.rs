//! [`P2m`]: from our page numbers to the machine's and back, and what the toolstack is told of it.
//!
//! The list is linear, at [`P2M_BASE`], where the builder put it; Xen, the builder and whoever restores us fill it, we only
//! read it. The three-level tree that the toolstack also takes was turned down: it ends at 512 GiB, needs pages of its own
//! that must follow every change, and the toolstack cannot tell when they have.
//!
//! Context: any. A lookup is one load. [`P2m::publish`]: boot, and quiesced after a restore.

use xen_sys::abi::arch::{ArchSharedInfo, xen_pfn_to_cr3};
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{Mfn, Pfn};
use crate::error::MmError;
use crate::layout::{M2P_BASE, M2P_END, P2M_BASE, PAGE_SIZE, index, span};
use crate::mmu::{Mmu, Via, read_entry};
use crate::pte::Flags;

/// Most entries that the M2P's room in the address space can have.
const M2P_ENTRIES: u64 = (M2P_END - M2P_BASE) / 8;

/// The p2m and the m2p.
///
/// - PM1: the p2m has a readable entry for every pfn below `nr_pages`.
/// - PM2: the M2P is readable for every mfn below `machine_end` that is RAM, on the host that we run on. Xen leaves out the parts
///   of it (2 MiB: 1 GiB of addresses) where the machine has none; what is looked up comes from page tables and from
///   `start_info`, so it is RAM, unless the toolstack has written nonsense. The lookup then ends in a page fault, at boot.
#[derive(Debug)]
pub struct P2m {
    nr_pages: u64,
    /// Written at boot and by [`P2m::publish`] after a restore, by vcpu 0 alone.
    machine_end: AtomicU64,
}

impl P2m {
    /// The p2m of a domain with `nr_pages` pages.
    ///
    /// # Safety
    /// PM1.
    /// # Errors
    /// [`MmError::MachineEnd`].
    pub unsafe fn new(mmu: &mut impl Mmu, nr_pages: u64) -> Result<P2m, MmError> {
        let machine_end = machine_end(mmu)?;
        Ok(P2m { nr_pages, machine_end: AtomicU64::new(machine_end) })
    }

    /// How many pages have an entry. The same for life.
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// The machine page that `pfn` is now, or `None` if it is none (ballooned out) or there is no such pfn.
    pub fn mfn(&self, mmu: &impl Mmu, pfn: Pfn) -> Option<Mfn> {
        if pfn.get() >= self.nr_pages {
            return None;
        }
        // SAFETY: readable by PM1; entries change only while we are suspended.
        let entry = unsafe { mmu.load(P2M_BASE + pfn.get() * 8) };
        // All ones means no page; anything beyond the machine's end is as little one.
        (entry < M2P_ENTRIES).then_some(Mfn::new(entry))
    }

    /// The page of ours that `mfn` is, or `None` if it isn't ours: the M2P's word counts only if the p2m agrees. A page of
    /// another domain has that domain's pfn there.
    ///
    /// # Suspend
    /// After a restore not before [`P2m::publish`], which learns how far this host's M2P goes.
    pub fn pfn(&self, mmu: &impl Mmu, mfn: Mfn) -> Option<Pfn> {
        // ORDERING: Relaxed, written by vcpu 0 while all others are parked or not yet started.
        if mfn.get() >= self.machine_end.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: readable by PM2.
        let pfn = Pfn::new(unsafe { mmu.load(M2P_BASE + mfn.get() * 8) });
        (self.mfn(mmu, pfn) == Some(mfn)).then_some(pfn)
    }

    /// Tells the toolstack where the p2m is. At boot, and again after every restore, which leaves a stale `p2m_cr3`; both
    /// before anybody can start a save.
    ///
    /// `p2m_generation` is left as it is, even: a change of it aborts a live save, and the list's own mapping never changes.
    ///
    /// # Errors
    /// [`MmError::P2mHole`] if the toolstack could not follow the list to its end; [`MmError::NoMachinePage`] of the root;
    /// [`MmError::MachineEnd`].
    pub fn publish(&self, mmu: &mut impl Mmu, root: Pfn, arch: &ArchSharedInfo) -> Result<(), MmError> {
        let machine_end = machine_end(mmu)?;
        // ORDERING: Relaxed, see `P2m::pfn`.
        self.machine_end.store(machine_end, Ordering::Relaxed);
        self.check(mmu, root)?;
        let root = self.mfn(mmu, root).ok_or(MmError::NoMachinePage { pfn: root })?;
        // ORDERING: Relaxed, all three; the store of p2m_cr3 below publishes them.
        let generation = arch.p2m_generation.load(Ordering::Relaxed);
        arch.p2m_generation.store(generation & !1, Ordering::Relaxed);
        arch.max_pfn.store(self.nr_pages, Ordering::Relaxed);
        arch.p2m_vaddr.store(P2M_BASE, Ordering::Relaxed);
        // ORDERING: Release, pairs with the toolstack's read of p2m_cr3 (`map_p2m`): not 0 means that the others are valid.
        // UNTESTED: the reader is the toolstack, in another domain.
        arch.p2m_cr3.store(xen_pfn_to_cr3(root.get()), Ordering::Release);
        Ok(())
    }

    /// Follows the tables to every page of the p2m, as the toolstack does at the start of a save.
    ///
    /// # Errors
    /// [`MmError::P2mHole`] at the first entry that is 0.
    pub fn check(&self, mmu: &impl Mmu, root: Pfn) -> Result<(), MmError> {
        let end = P2M_BASE + self.nr_pages * 8;
        let mut va = P2M_BASE;
        while va < end {
            va += self.covered(mmu, root, va)?;
        }
        Ok(())
    }

    /// Follows the tables to `va` and says how far what is found there reaches: a page, or in an initial domain more.
    fn covered(&self, mmu: &impl Mmu, root: Pfn, va: u64) -> Result<u64, MmError> {
        let mut table = root;
        for level in (1..=4).rev() {
            let entry = read_entry(mmu, Via::Direct, table, index(level, va));
            let hole = MmError::P2mHole { va, level };
            let mfn = entry.mfn().ok_or(hole)?;
            if level == 1 || entry.flags().contains(Flags::HUGE) {
                return Ok(span(level) - va % span(level));
            }
            table = self.pfn(mmu, mfn).ok_or(hole)?;
        }
        // Not reached: level 1 returned.
        Ok(PAGE_SIZE)
    }
}

fn machine_end(mmu: &mut impl Mmu) -> Result<u64, MmError> {
    let end = mmu.machine_end().map_err(|errno| MmError::MachineEnd { errno })?;
    Ok(end.min(M2P_ENTRIES))
}
