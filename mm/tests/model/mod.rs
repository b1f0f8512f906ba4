//! A model of Xen's memory management and of the processor, for the tests: it holds the machine's frames, takes the same
//! hypercalls, and refuses what Xen refuses.
//!
//! What it checks, and where Xen does (`xen/arch/x86/mm.c` unless said otherwise):
//! - a frame is writable or a table of one level, never two of these while references exist (`_get_page_type`);
//! - a table is validated entry by entry when it gets its first reference (`alloc_l1_table` … `alloc_l4_table`), and lets go
//!   of what it refers to with its last (`free_l1_table` …);
//! - no PSE, PAT, PCD, PWT (`l1_disallow_mask`), no L4 entry in Xen's slots (`mod_l4_entry`);
//! - US and bit 52 of what is stored (`pv/mm.h: adjust_guest_l1e`);
//! - stricter than Xen: an address in a non-present entry is refused, which makes Xen shadow the domain (L1TF); so is a
//!   command other than the plain checked write.
//!
//! The processor walks the tables for every load and store and stops the test where it would fault. It has a TLB that forgets
//! only when told to; what was used before and has changed without a flush is found by [`Xen::assert_no_stale_tlb`].

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::allow_attributes, reason = "what is dead differs from binary to binary")]

pub(crate) mod audit;
pub(crate) mod builder;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use mm::layout::{M2P_BASE, M2P_END, PAGE_SIZE, index};
use mm::{Entry, Flags, Flush, FrameSource, Memory, Mfn, Mmu, Pfn, PfnRange};
use xen_sys::Errno;
use xen_sys::abi::xen::MmuUpdate;
use xen_sys::hypercall::mmu::MmuError;

/// What is in memory that nobody has written. Neither a valid nor an empty entry.
const GARBAGE: u64 = 0x0dea_dbee_fdea_dbef;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What references to a frame allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Writable,
    Table(u32),
}

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Guest,
    /// Xen's, shared with the guest: `shared_info`, grant frames.
    Shared,
    Nobody,
}

pub(crate) struct Frame {
    pub(crate) owner: Owner,
    kind: Kind,
    /// Type references. `kind` means something only while there are some.
    types: u32,
    validated: bool,
    pinned: bool,
    content: Option<Box<[u64; 512]>>,
    m2p: u64,
}

impl Frame {
    fn new(owner: Owner) -> Frame {
        Frame { owner, kind: Kind::Writable, types: 0, validated: false, pinned: false, content: None, m2p: u64::MAX }
    }

    pub(crate) fn kind(&self) -> Option<Kind> {
        (self.types > 0).then_some(self.kind)
    }

    pub(crate) fn read(&self, index: u64) -> u64 {
        self.content.as_ref().map_or(GARBAGE, |content| content[native(index)])
    }

    fn zero(&mut self) {
        self.content = Some(Box::new([0; 512]));
    }

    fn write(&mut self, index: u64, value: u64) {
        self.content.get_or_insert_with(|| Box::new([GARBAGE; 512]))[native(index)] = value;
    }
}

/// How often each hypercall was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) update_va_mapping: u64,
    pub(crate) mmu_update: u64,
    pub(crate) mmuext_op: u64,
}

impl Calls {
    pub(crate) fn total(self) -> u64 {
        self.update_va_mapping + self.mmu_update + self.mmuext_op
    }
}

pub(crate) struct Xen {
    frames: Vec<Frame>,
    root: Mfn,
    tlb: RefCell<BTreeMap<u64, Entry>>,
    /// The last page that was accessed, while no table has changed since: saves the walk.
    last: Cell<Option<(u64, Entry)>>,
    pub(crate) calls: Calls,
    /// The hypercall with this number (counted by [`Calls::total`]) fails with ENOMEM.
    pub(crate) fail_call: Option<u64>,
}

pub(crate) fn native(value: u64) -> usize {
    usize::try_from(value).expect("64 bits")
}

impl Xen {
    pub(crate) fn frame(&self, mfn: Mfn) -> &Frame {
        &self.frames[native(mfn.get())]
    }

    fn frame_mut(&mut self, mfn: Mfn) -> &mut Frame {
        &mut self.frames[native(mfn.get())]
    }

    pub(crate) fn nr_frames(&self) -> u64 {
        self.frames.len() as u64
    }

    pub(crate) fn root(&self) -> Mfn {
        self.root
    }

    /// What leads to `va` at `level`, as the processor would find it.
    pub(crate) fn walk(&self, level: u32, va: u64) -> Option<Entry> {
        let mut table = self.root;
        for above in (level + 1..=4).rev() {
            table = Entry::from_raw(self.frame(table).read(index(above, va))).mfn()?;
        }
        let entry = Entry::from_raw(self.frame(table).read(index(level, va)));
        entry.is_present().then_some(entry)
    }

    /// Page and rights of `va`, all levels taken together, in the form of a leaf.
    pub(crate) fn effective(&self, va: u64) -> Option<Entry> {
        const WRITABLE: u64 = Flags::WRITABLE.bits();
        const NO_EXECUTE: u64 = Flags::NO_EXECUTE.bits();
        let (mut table, mut writable, mut no_execute) = (self.root, WRITABLE, 0);
        for level in (1..=4).rev() {
            let entry = Entry::from_raw(self.frame(table).read(index(level, va)));
            table = entry.mfn()?;
            writable &= entry.raw();
            no_execute |= entry.raw() & NO_EXECUTE;
        }
        Some(Entry::from_raw(table.maddr() | Flags::PRESENT.bits() | writable | no_execute))
    }

    fn access(&self, va: u64, write: bool) -> Mfn {
        assert!(va.is_multiple_of(8), "unaligned access to {va:#x}");
        let page = va & !(PAGE_SIZE - 1);
        let entry = match self.last.get() {
            Some((last, entry)) if last == page => entry,
            _ => {
                let Some(entry) = self.effective(va) else { panic!("page fault: {va:#x} is not mapped") };
                let known = *self.tlb.borrow_mut().entry(page).or_insert(entry);
                assert!(known == entry, "stale TLB entry at {va:#x}: {known:?}, should be {entry:?}");
                self.last.set(Some((page, entry)));
                entry
            }
        };
        assert!(!write || entry.flags().contains(Flags::WRITABLE), "page fault: {va:#x} is read-only");
        entry.mfn().expect("present")
    }

    /// Whether anything that the processor remembers has changed since.
    pub(crate) fn assert_no_stale_tlb(&self) {
        for (va, known) in &*self.tlb.borrow() {
            assert!(self.effective(*va) == Some(*known), "{va:#x} has changed without a flush, from {known:?}");
        }
    }

    fn get_type(&mut self, mfn: Mfn, kind: Kind) -> Result<(), Errno> {
        if mfn.get() >= self.nr_frames() || self.frame(mfn).owner == Owner::Nobody {
            return Err(Errno::EINVAL);
        }
        let is_table = kind != Kind::Writable;
        let frame = self.frame_mut(mfn);
        if is_table && frame.owner != Owner::Guest {
            return Err(Errno::EINVAL);
        }
        if frame.types > 0 {
            if frame.kind != kind || (is_table && !frame.validated) {
                return Err(Errno::EINVAL);
            }
            frame.types += 1;
            return Ok(());
        }
        (frame.kind, frame.types, frame.validated) = (kind, 1, false);
        if let Kind::Table(level) = kind
            && let Err(errno) = self.validate(mfn, level)
        {
            self.frame_mut(mfn).types = 0;
            return Err(errno);
        }
        self.frame_mut(mfn).validated = true;
        Ok(())
    }

    fn validate(&mut self, mfn: Mfn, level: u32) -> Result<(), Errno> {
        for i in 0..512 {
            let raw = self.frame(mfn).read(i);
            if raw == 0 {
                continue;
            }
            match self.get_entry(level, i, raw) {
                Ok(stored) => self.frame_mut(mfn).write(i, stored),
                Err(errno) => {
                    for done in 0..i {
                        self.put_entry(level, self.frame(mfn).read(done));
                    }
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn put_type(&mut self, mfn: Mfn) {
        let frame = self.frame_mut(mfn);
        frame.types -= 1;
        if let (0, Kind::Table(level)) = (frame.types, frame.kind) {
            for i in 0..512 {
                self.put_entry(level, self.frame(mfn).read(i));
            }
        }
    }

    /// Takes the references of an entry and returns it as Xen stores it.
    fn get_entry(&mut self, level: u32, index: u64, raw: u64) -> Result<u64, Errno> {
        let entry = Entry::from_raw(raw);
        let flags = entry.flags();
        let Some(mfn) = entry.mfn() else {
            return if raw & ADDRESS == 0 { Ok(raw) } else { Err(Errno::EINVAL) };
        };
        let mut disallowed = Flags::WRITE_THROUGH | Flags::UNCACHED | Flags::HUGE;
        if level > 1 {
            disallowed |= Flags::GLOBAL;
        }
        if flags.intersects(disallowed) || (level == 4 && (256..272).contains(&index)) {
            return Err(Errno::EINVAL);
        }
        if level > 1 {
            self.get_type(mfn, Kind::Table(level - 1))?;
            return Ok(raw | Flags::USER.bits());
        }
        if flags.contains(Flags::WRITABLE) {
            self.get_type(mfn, Kind::Writable)?;
        } else if mfn.get() >= self.nr_frames() || self.frame(mfn).owner == Owner::Nobody {
            return Err(Errno::EINVAL);
        }
        Ok(if !flags.contains(Flags::USER) {
            raw | (Flags::USER | Flags::XEN_KERNEL).bits()
        } else if !flags.contains(Flags::XEN_KERNEL) {
            raw | Flags::GLOBAL.bits()
        } else {
            raw
        })
    }

    fn put_entry(&mut self, level: u32, raw: u64) {
        let entry = Entry::from_raw(raw);
        if let Some(mfn) = entry.mfn()
            && (level > 1 || entry.flags().contains(Flags::WRITABLE))
        {
            self.put_type(mfn);
        }
    }

    fn modify(&mut self, table: Mfn, index: u64, value: u64) -> Result<u32, Errno> {
        if table.get() >= self.nr_frames() {
            return Err(Errno::EINVAL);
        }
        let Some(Kind::Table(level)) = self.frame(table).kind() else { return Err(Errno::EINVAL) };
        self.last.set(None);
        let new = self.get_entry(level, index, value)?;
        let old = self.frame(table).read(index);
        self.frame_mut(table).write(index, new);
        self.put_entry(level, old);
        Ok(level)
    }

    fn count(&mut self, which: impl FnOnce(&mut Calls) -> &mut u64) -> Result<(), Errno> {
        let nr = self.calls.total();
        *which(&mut self.calls) += 1;
        if self.fail_call == Some(nr) { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

impl Mmu for Xen {
    unsafe fn update_va_mapping(&mut self, va: u64, entry: Entry, flush: Flush) -> Result<(), Errno> {
        self.count(|calls| &mut calls.update_va_mapping)?;
        let l1 = self.walk(2, va).and_then(Entry::mfn).ok_or(Errno::EINVAL)?;
        self.modify(l1, index(1, va), entry.raw())?;
        if flush != Flush::Nothing {
            self.tlb.borrow_mut().remove(&va);
        }
        Ok(())
    }

    unsafe fn mmu_update(&mut self, updates: &[MmuUpdate]) -> Result<(), MmuError> {
        self.count(|calls| &mut calls.mmu_update).map_err(|errno| MmuError { done: 0, errno })?;
        for (done, update) in (0..).zip(updates) {
            let command = update.ptr % 8;
            let table = Mfn::of_maddr(update.ptr);
            let result = match command {
                0 => self.modify(table, update.ptr % PAGE_SIZE / 8, update.val),
                _ => Err(Errno::ENOSYS),
            };
            if result.map_err(|errno| MmuError { done, errno })? > 1 {
                self.tlb.borrow_mut().clear();
            }
        }
        Ok(())
    }

    fn pin_l4(&mut self, root: Mfn) -> Result<(), Errno> {
        self.count(|calls| &mut calls.mmuext_op)?;
        self.get_type(root, Kind::Table(4))?;
        if self.frame(root).pinned {
            self.put_type(root);
            return Err(Errno::EINVAL);
        }
        self.frame_mut(root).pinned = true;
        Ok(())
    }

    unsafe fn unpin(&mut self, root: Mfn) -> Result<(), Errno> {
        self.count(|calls| &mut calls.mmuext_op)?;
        if !self.frame(root).pinned {
            return Err(Errno::EINVAL);
        }
        self.frame_mut(root).pinned = false;
        self.put_type(root);
        Ok(())
    }

    fn flush_tlbs(&mut self) -> Result<(), Errno> {
        self.count(|calls| &mut calls.mmuext_op)?;
        self.tlb.borrow_mut().clear();
        Ok(())
    }

    fn machine_end(&mut self) -> Result<u64, Errno> {
        Ok(self.nr_frames())
    }

    unsafe fn load(&self, va: u64) -> u64 {
        if (M2P_BASE..M2P_END).contains(&va) {
            return self.frames[native((va - M2P_BASE) / 8)].m2p;
        }
        self.frame(self.access(va, false)).read(va % PAGE_SIZE / 8)
    }

    unsafe fn store(&mut self, va: u64, value: u64) {
        let mfn = self.access(va, true);
        self.frame_mut(mfn).write(va % PAGE_SIZE / 8, value);
    }
}

/// Free pages as the heap would hand them out, lowest first.
pub(crate) struct Pages {
    runs: Vec<PfnRange>,
}

impl Pages {
    pub(crate) fn of(xen: &Xen, memory: &Memory) -> Pages {
        let mut runs = Vec::new();
        memory.for_each_free(xen, |run| runs.push(run));
        Pages { runs }
    }

    pub(crate) fn none() -> Pages {
        Pages { runs: Vec::new() }
    }

    pub(crate) fn nr(&self) -> u64 {
        self.runs.iter().map(|run| run.nr()).sum()
    }

    pub(crate) fn runs(&self) -> &[PfnRange] {
        &self.runs
    }

    /// One page, for the tests' own use.
    pub(crate) fn take(&mut self) -> Pfn {
        self.alloc_frames(1).expect("enough memory in the model").start
    }
}

// SAFETY: the runs are the domain's free pages, each handed out once.
unsafe impl FrameSource for Pages {
    fn alloc_frames(&mut self, nr: u64) -> Option<PfnRange> {
        let run = self.runs.iter_mut().find(|run| run.nr() >= nr)?;
        let start = run.start;
        run.start = start.plus(nr);
        Some(PfnRange { start, end: run.start })
    }

    unsafe fn free_frames(&mut self, run: PfnRange) {
        self.runs.push(run);
    }
}
