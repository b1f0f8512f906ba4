//! [`AddressSpace`]: what user mode sees, under an L4 of its own.
//!
//! ```text
//!   L4 [0] → L3 [0] → L2 [2] → L1    USER_BASE            code    rx
//!                                    behind the code      data    rw
//! ```
//!
//! The root has nothing of the kernel's: Xen runs the kernel on its own root and changes over at every entry, so what user mode must
//! not see is not there. (Roots that share the kernel's half, which other kernels have, are for kernels that run on the root
//! of whoever came in.) Leaves have US set, unlike the kernel's; Xen makes their TLB entries global, and neither its changes between
//! kernel and user mode nor `MMUEXT_NEW_USER_BASEPTR` flush those. So whoever loads another root flushes, and so does [`AddressSpace::destroy`].
//!
//! | state | is | left by |
//! |---|---|---|
//! | under construction | plain memory, then read-only plain memory; filled by stores, without Xen | the pin |
//! | pinned | an [`AddressSpace`] | [`AddressSpace::destroy`] |
//! | under destruction | unpinned, read-only, then writable again | its frames are given back |
//!
//! A suspend must find all roots pinned, or the toolstack saves them as plain data with the old machine's numbers in them. It does, without
//! a registry of roots: a vcpu parks between two polls of its tasks only, and both other states begin and end within one call here,
//! which awaits nothing.
//!
//! The tables and the code are the first pages of one run of frames, and read-only in the direct map for as long as it is pinned: Xen
//! wants it of tables, and code is executable here.
//!
//! - AS1: from the pin until `destroy` nobody but Xen writes the tables and nobody the code; no page of the run is used otherwise.
//!
//! Context: task or boot, not quiesced.

use crate::addr::{Mfn, Pfn, PfnRange};
use crate::error::MmError;
use crate::frames::FrameSource;
use crate::layout::{ENTRIES, PAGE_SIZE, USER_BASE, index, native};
use crate::mmu::{Flush, Mmu, Via, read_entry, zero_page};
use crate::p2m::P2m;
use crate::pte::{Access, Entry, Flags};

/// One of each level.
const TABLES: u64 = 4;

/// An address space of user mode. Dropped without [`AddressSpace::destroy`], its memory is lost, and does no harm.
#[derive(Debug)]
#[must_use = "its memory is given back by destroy() alone"]
pub struct AddressSpace {
    /// L4, L3, L2, L1, code, data.
    run: PfnRange,
    code_pages: u64,
}

impl AddressSpace {
    /// Makes one: `code` from [`USER_BASE`] on, executable and read-only, and `data_pages` of zeroes behind it.
    ///
    /// Cost: 4 pages and those of code and data, in a row; a hypercall for each table and each page of code, with an interrupt to
    /// every processor that runs this domain, and one for the pin.
    ///
    /// # Errors
    /// [`MmError::NoFrames`], [`MmError::NoMachinePage`], [`MmError::Map`], [`MmError::Pin`]. All memory has been given back then, unless
    /// Xen refuses that too: such pages are lost, which is better than having them used twice.
    /// # Panics
    /// If code and data do not fit under one L1 table, which has 512 pages.
    pub fn build(
        mmu: &mut impl Mmu,
        p2m: &P2m,
        frames: &mut impl FrameSource,
        code: &[u8],
        data_pages: u64,
    ) -> Result<AddressSpace, MmError> {
        let code_pages = (code.len() as u64).div_ceil(PAGE_SIZE);
        let nr = code_pages + data_pages;
        assert!(nr <= ENTRIES, "{nr} pages are more than one L1 table maps");
        let run = frames.alloc_frames(TABLES + nr).ok_or(MmError::NoFrames { va: USER_BASE, nr: TABLES + nr })?;
        let space = AddressSpace { run, code_pages };
        match space.construct(mmu, p2m, code) {
            Ok(()) => Ok(space),
            Err((protected, error)) => {
                // What failed first is what is told.
                let _ = space.give_back(mmu, p2m, frames, protected);
                Err(error)
            }
        }
    }

    /// Fills, protects and pins. A failure says how many pages are read-only by then.
    fn construct(&self, mmu: &mut impl Mmu, p2m: &P2m, code: &[u8]) -> Result<(), (u64, MmError)> {
        let mfn = |mmu: &_, pfn| p2m.mfn(mmu, pfn).ok_or((0, MmError::NoMachinePage { pfn }));
        for pfn in self.run.iter() {
            // SAFETY: fresh from the source, so it is ours and writable.
            unsafe { zero_page(mmu, pfn) };
        }
        for level in (2..=4).rev() {
            let below = mfn(mmu, self.table(level - 1))?;
            self.fill(mmu, self.table(level), index(level, USER_BASE), Entry::table(below));
        }
        for (n, (pfn, access)) in (0..).zip(self.pages()) {
            let page = Entry::user_page(mfn(mmu, pfn)?, access);
            self.fill(mmu, self.table(1), index(1, USER_BASE) + n, page);
        }
        let first = self.run.start.plus(TABLES);
        for (n, bytes) in (0..).zip(code.chunks(8)) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            // SAFETY: within the pages of code, which are ours and writable.
            unsafe { mmu.store(first.direct_va() + n * 8, u64::from_le_bytes(word)) };
        }
        for (protected, pfn) in (0..).zip(self.protected().iter()) {
            let failed = |error| (protected, error);
            set_direct(mmu, p2m, pfn, Access::R).map_err(failed)?;
        }
        let all = self.protected().nr();
        let root = mfn(mmu, self.root())?;
        mmu.pin_l4(root).map_err(|errno| (all, MmError::Pin { root: self.root(), errno }))
    }

    /// Writes an entry of a table that is plain memory yet.
    fn fill(&self, mmu: &mut impl Mmu, table: Pfn, at: u64, entry: Entry) {
        // SAFETY: a page of the run, which is ours and writable until it is protected.
        unsafe { mmu.store(table.direct_va() + at * 8, entry.raw()) };
    }

    /// Gives all of it back. It is not loaded on any vcpu, or Xen refuses.
    ///
    /// Cost: a hypercall each for the unpin, every table and every page of code, and one that flushes the TLBs of all processors
    /// that run this domain.
    ///
    /// # Errors
    /// [`MmError::Unpin`]: nothing has changed. [`MmError::Map`], [`MmError::Flush`]. The memory is lost in any case.
    pub fn destroy(self, mmu: &mut impl Mmu, p2m: &P2m, frames: &mut impl FrameSource) -> Result<(), MmError> {
        let root = self.root_mfn(mmu, p2m)?;
        // SAFETY: nobody uses it as a table from here on: a vcpu that has it loaded keeps it one, and then the next step fails.
        unsafe { mmu.unpin(root) }.map_err(|errno| MmError::Unpin { root: self.root(), errno })?;
        let protected = self.protected().nr();
        self.give_back(mmu, p2m, frames, protected)
    }

    /// Makes the first `protected` pages writable, and gives the run back.
    fn give_back(
        &self,
        mmu: &mut impl Mmu,
        p2m: &P2m,
        frames: &mut impl FrameSource,
        protected: u64,
    ) -> Result<(), MmError> {
        for pfn in self.run.iter().take(native(protected)) {
            set_direct(mmu, p2m, pfn, Access::Rw)?;
        }
        // User mode's own entries are global.
        mmu.flush_tlbs().map_err(|errno| MmError::Flush { errno })?;
        // SAFETY: from this source, whole; by AS1 nobody else uses it, no TLB knows it, and all of it is writable again.
        unsafe { frames.free_frames(self.run) };
        Ok(())
    }

    /// The L4 table. Look its mfn up when it is needed.
    pub const fn root(&self) -> Pfn {
        self.run.start
    }

    /// The L4's machine page, now.
    ///
    /// # Errors
    /// [`MmError::NoMachinePage`], which no page in use is without.
    pub fn root_mfn(&self, mmu: &impl Mmu, p2m: &P2m) -> Result<Mfn, MmError> {
        p2m.mfn(mmu, self.root()).ok_or(MmError::NoMachinePage { pfn: self.root() })
    }

    /// Where user mode has the first page of data.
    pub const fn data_va(&self) -> u64 {
        USER_BASE + self.code_pages * PAGE_SIZE
    }

    /// The pages of data, which the direct map has writable. Theirs is the memory until `destroy`: user mode on any vcpu writes to it.
    pub const fn data(&self) -> PfnRange {
        PfnRange { start: self.run.start.plus(TABLES + self.code_pages), end: self.run.end }
    }

    /// Sees whether user mode has what [`AddressSpace::build`] gave it, with the machine pages of now, and whether the root is pinned, which
    /// is asked by unpinning and pinning it. A vcpu has it loaded meanwhile, or it is not used.
    ///
    /// Cost: two hypercalls, which validate all of it anew where no vcpu has it loaded.
    ///
    /// # Errors
    /// [`MmError::NotMapped`]: the first address that has anything else. [`MmError::Unpin`]: it was not pinned. [`MmError::Pin`].
    pub fn verify(&self, mmu: &mut impl Mmu, p2m: &P2m) -> Result<(), MmError> {
        for level in (2..=4).rev() {
            let below = read_entry(mmu, Via::Direct, self.table(level), index(level, USER_BASE)).mfn();
            if below.and_then(|mfn| p2m.pfn(mmu, mfn)) != Some(self.table(level - 1)) {
                return Err(MmError::NotMapped { va: USER_BASE });
            }
        }
        for (n, (pfn, access)) in (0..).zip(self.pages()) {
            let entry = read_entry(mmu, Via::Direct, self.table(1), index(1, USER_BASE) + n);
            let mfn = p2m.mfn(mmu, pfn).ok_or(MmError::NoMachinePage { pfn })?;
            if !entry.does(Entry::user_page(mfn, access)) || entry.flags().contains(Flags::XEN_KERNEL) {
                return Err(MmError::NotMapped { va: USER_BASE + n * PAGE_SIZE });
            }
        }
        let root = self.root_mfn(mmu, p2m)?;
        // SAFETY: pinned again at once; a vcpu that has it loaded keeps it a table in between, and without one nobody uses it.
        unsafe { mmu.unpin(root) }.map_err(|errno| MmError::Unpin { root: self.root(), errno })?;
        mmu.pin_l4(root).map_err(|errno| MmError::Pin { root: self.root(), errno })
    }

    /// The table of `level`.
    fn table(&self, level: u32) -> Pfn {
        self.run.start.plus(TABLES - u64::from(level))
    }

    /// What the direct map has read-only.
    fn protected(&self) -> PfnRange {
        PfnRange { start: self.run.start, end: self.run.start.plus(TABLES + self.code_pages) }
    }

    /// What user mode has, upwards from [`USER_BASE`].
    fn pages(&self) -> impl Iterator<Item = (Pfn, Access)> + use<> {
        let (first_code, first_data) = (self.run.start.plus(TABLES), self.data().start);
        let code = PfnRange { start: first_code, end: first_data };
        let data = self.data();
        code.iter().map(|pfn| (pfn, Access::Rx)).chain(data.iter().map(|pfn| (pfn, Access::Rw)))
    }
}

/// Gives our own page `pfn` this access in the direct map, on all processors.
fn set_direct(mmu: &mut impl Mmu, p2m: &P2m, pfn: Pfn, access: Access) -> Result<(), MmError> {
    let mfn = p2m.mfn(mmu, pfn).ok_or(MmError::NoMachinePage { pfn })?;
    let va = pfn.direct_va();
    // SAFETY: MM1: the page is of a run that nobody else uses, and is not written while it is read-only (AS1).
    let result = unsafe { mmu.update_va_mapping(va, Entry::page(mfn, access), Flush::PageEverywhere) };
    result.map_err(|errno| MmError::Map { va, errno })
}
