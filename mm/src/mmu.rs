//! [`Mmu`]: all that this crate needs from Xen and from the processor, as a trait.
//!
//! The kernel's implementation is [`XenMmu`](crate::XenMmu). The host tests have a model of Xen that checks every update as
//! Xen does and every load and store as the processor does. Loads and stores are part of the trait for that reason: raw
//! pointers here would have kept all of this from running on the host.
//!
//! Context: as the callers'; each of the updates is one hypercall.

use xen_sys::Errno;
use xen_sys::abi::xen::MmuUpdate;
use xen_sys::hypercall::mmu::MmuError;

use crate::addr::{Mfn, Pfn};
use crate::error::MmError;
use crate::layout::ENTRIES;
use crate::pte::Entry;

/// What to flush from the TLBs with an update of one leaf entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Nothing: the entry was not present, and the processor does not remember that.
    Nothing,
    /// The page, on this processor only: no other CPU can have used the mapping.
    PageHere,
    /// The page, on all processors that run this domain.
    PageEverywhere,
}

/// Page-table updates through Xen, and access to mapped memory.
///
/// Changing page tables can pull memory from under living references: the `unsafe` methods ask that it does not.
pub trait Mmu {
    /// Writes the leaf entry that maps `va` in the current address space. The L1 table must be there.
    ///
    /// # Safety
    /// MM1: nobody relies on what `va` mapped so far, and what it maps from now on may be used with the rights of `entry`.
    /// # Errors
    /// Xen's; nothing has changed then.
    unsafe fn update_va_mapping(&mut self, va: u64, entry: Entry, flush: Flush) -> Result<(), Errno>;

    /// Writes entries of tables of any level. No TLB is flushed for leaf entries.
    ///
    /// # Safety
    /// MM1 for all addresses that the entries cover.
    /// # Errors
    /// Those before the failing one are in force.
    unsafe fn mmu_update(&mut self, updates: &[MmuUpdate]) -> Result<(), MmuError>;

    /// Pins an L4 table.
    ///
    /// # Errors
    /// EINVAL if it is pinned, or cannot be.
    fn pin_l4(&mut self, root: Mfn) -> Result<(), Errno>;

    /// Unpins a table.
    ///
    /// # Safety
    /// The table stays valid by another reference, such as being a loaded root, or is not used as a table afterwards.
    /// # Errors
    /// EINVAL if it is not pinned.
    unsafe fn unpin(&mut self, root: Mfn) -> Result<(), Errno>;

    /// Flushes the TLBs of all processors that run this domain.
    ///
    /// # Errors
    /// Xen's.
    fn flush_tlbs(&mut self) -> Result<(), Errno>;

    /// First mfn that the M2P of this host has no entry for. Changes at a restore.
    ///
    /// # Errors
    /// Xen's.
    fn machine_end(&mut self) -> Result<u64, Errno>;

    /// Reads eight bytes.
    ///
    /// # Safety
    /// `va` is a multiple of 8, mapped, and holds plain data that nobody writes without atomics.
    unsafe fn load(&self, va: u64) -> u64;

    /// Writes eight bytes.
    ///
    /// # Safety
    /// `va` is a multiple of 8, mapped writable, and no reference to it is alive.
    unsafe fn store(&mut self, va: u64, value: u64);
}

/// How a table is read: both mappings have it read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// Through the builder's mapping of the image, before there is a direct map. Only the builder's tables of
    /// that mapping are in it.
    Image,
    /// Through the direct map, which has every table.
    Direct,
}

/// Reads entry `index` of the table `table`.
pub(crate) fn read_entry(mmu: &impl Mmu, via: Via, table: Pfn, index: u64) -> Entry {
    debug_assert!(index < ENTRIES);
    let base = match via {
        Via::Image => table.image_va(),
        Via::Direct => table.direct_va(),
    };
    // SAFETY: eight aligned bytes of a page table, which both mappings have for reading (callers pass tables that they were
    // led to by the current root). Only Xen writes tables, one entry at a time.
    Entry::from_raw(unsafe { mmu.load(base + index * 8) })
}

/// Zeroes page `pfn` through the direct map.
///
/// # Safety
/// Nobody else uses the page, and the direct map has it writable.
pub(crate) unsafe fn zero_page(mmu: &mut impl Mmu, pfn: Pfn) {
    for i in 0..ENTRIES {
        // SAFETY: in the page that the caller gives us.
        unsafe { mmu.store(pfn.direct_va() + i * 8, 0) };
    }
}

/// Updates that are sent to Xen 128 at a time, so that one copy into Xen stays within a page.
pub(crate) struct Batch {
    updates: arrayvec::ArrayVec<MmuUpdate, 128>,
    /// An address that each update is about, for errors.
    about: arrayvec::ArrayVec<u64, 128>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch { updates: arrayvec::ArrayVec::new(), about: arrayvec::ArrayVec::new() }
    }

    /// Adds: entry `index` of the table in the machine page `table` becomes `entry`, which changes what `va` maps.
    ///
    /// # Safety
    /// MM1 at `va` for as much as the entry covers.
    /// # Errors
    /// Of updates that were sent to make room.
    pub(crate) unsafe fn push(
        &mut self,
        mmu: &mut impl Mmu,
        (table, index): (Mfn, u64),
        entry: Entry,
        va: u64,
    ) -> Result<(), MmError> {
        if self.updates.is_full() {
            self.send(mmu)?;
        }
        // The command in the low bits, MMU_NORMAL_PT_UPDATE, is 0.
        self.updates.push(MmuUpdate { ptr: table.maddr() + index * 8, val: entry.raw() });
        self.about.push(va);
        Ok(())
    }

    /// Sends what has not been sent.
    ///
    /// # Errors
    /// The first failure, with the address that it is about; later updates have not been made.
    pub(crate) fn send(&mut self, mmu: &mut impl Mmu) -> Result<(), MmError> {
        if self.updates.is_empty() {
            return Ok(());
        }
        // SAFETY: MM1 was promised for each of them when it was pushed.
        let result = unsafe { mmu.mmu_update(&self.updates) };
        let result = result.map_err(|MmuError { done, errno }| {
            let va = self.about.get(done as usize).copied().unwrap_or_default();
            MmError::Update { va, errno }
        });
        self.updates.clear();
        self.about.clear();
        result
    }
}
