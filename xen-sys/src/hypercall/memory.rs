//! Memory reservations and maps.
//!
//! Contexts: boot, or task: the ones that move memory take long and hold mfns, so not while suspending.
//! Source: xen/include/public/memory.h; xen/common/memory.c, do_memory_op; xen/arch/x86/mm.c, arch_memory_op.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::GuestHandle;
use crate::abi::memory::{
    E820Entry, XENMEM_add_to_physmap, XENMEM_current_reservation, XENMEM_decrease_reservation, XENMEM_machphys_mapping,
    XENMEM_maximum_ram_page, XENMEM_maximum_reservation, XENMEM_memory_map, XENMEM_populate_physmap, XenAddToPhysmap,
    XenMachphysMapping, XenMemoryDomain, XenMemoryMap, XenMemoryReservation,
};
use crate::abi::xen::{__HYPERVISOR_memory_op, DOMID_SELF, xen_pfn_t};

/// # Safety
/// The safety conditions of `cmd`, which takes a `T`.
unsafe fn memory_op<T>(cmd: u32, argument: &mut T) -> Result<u64, Errno> {
    let address = address_of(argument);
    // SAFETY: Xen reads and writes a live `T`; the rest is the caller's.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_memory_op, cmd.into(), address) })
}

/// The pseudo-physical memory map as the toolstack made it; returns how many entries were written.
/// # Errors
/// `ENOSYS`: none was set, as for the initial domain; `EFAULT`.
pub fn memory_map(entries: &mut [E820Entry]) -> Result<usize, Errno> {
    let room = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let mut op = XenMemoryMap { nr_entries: room, buffer: GuestHandle::new(entries.as_mut_ptr()) };
    // SAFETY: Xen writes at most `room` entries.
    unsafe { memory_op(XENMEM_memory_map, &mut op) }?;
    // What Xen wrote never exceeds the room that we gave.
    Ok(op.nr_entries.min(room) as usize)
}

/// The host's highest mfn. After a migration it may be another.
/// # Errors
/// None from a Xen.
pub fn maximum_ram_page() -> Result<u64, Errno> {
    // SAFETY: no argument, reads only.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_memory_op, XENMEM_maximum_ram_page.into(), 0) })
}

/// Where the m2p is mapped, and the highest mfn that can be looked up there.
/// # Errors
/// None from a Xen.
pub fn machphys_mapping() -> Result<XenMachphysMapping, Errno> {
    let mut op = XenMachphysMapping::default();
    // SAFETY: Xen writes `op`.
    unsafe { memory_op(XENMEM_machphys_mapping, &mut op) }?;
    Ok(op)
}

/// Pages that this domain has.
/// # Errors
/// None from a Xen.
pub fn current_reservation() -> Result<u64, Errno> {
    // SAFETY: reads only.
    unsafe { memory_op(XENMEM_current_reservation, &mut XenMemoryDomain { domid: DOMID_SELF }) }
}

/// Pages that this domain may have.
/// # Errors
/// None from a Xen.
pub fn maximum_reservation() -> Result<u64, Errno> {
    // SAFETY: reads only.
    unsafe { memory_op(XENMEM_maximum_reservation, &mut XenMemoryDomain { domid: DOMID_SELF }) }
}

/// Makes a page of `space` appear at pfn `gpfn`. Translated guests only: for a PV guest it tells that it is one.
/// # Errors
/// `EACCES` for a PV guest.
/// # Safety
/// What was at `gpfn` is not referenced.
pub unsafe fn add_to_physmap(space: u32, idx: u64, gpfn: xen_pfn_t) -> Result<(), Errno> {
    let mut op = XenAddToPhysmap { domid: DOMID_SELF, size: 0, space, idx, gpfn };
    // SAFETY: the caller's.
    unsafe { memory_op(XENMEM_add_to_physmap, &mut op) }.map(drop)
}

/// The argument that populate and decrease share.
fn reservation(extents: *mut xen_pfn_t, nr_extents: usize, order: u32, mem_flags: u32) -> XenMemoryReservation {
    XenMemoryReservation {
        extent_start: GuestHandle::new(extents),
        nr_extents: nr_extents as u64,
        extent_order: order,
        mem_flags,
        domid: DOMID_SELF,
    }
}

/// Gets memory for the pfns in `extents`, each 2^`order` pages; they are replaced by mfns, and the m2p is updated.
/// Returns how many extents were done, from the first on: fewer than asked for when Xen is out of memory or the domain
/// has its maximum, none if `order` is too large for it.
/// # Errors
/// None from a Xen for ourselves; the count is the outcome.
/// # Safety
/// The p2m says that these pfns have no frame.
pub unsafe fn populate_physmap(extents: &mut [xen_pfn_t], order: u32, mem_flags: u32) -> Result<u64, Errno> {
    let mut op = reservation(extents.as_mut_ptr(), extents.len(), order, mem_flags);
    // SAFETY: Xen reads and writes the extents; the frames are new, so nothing referenced changes.
    unsafe { memory_op(XENMEM_populate_physmap, &mut op) }
}

/// Gives the frames with the mfns in `extents` back to Xen. Returns how many extents were done, from the first on; it
/// stops at a frame that is not ours.
/// # Errors
/// None from a Xen for ourselves; the count is the outcome.
/// # Safety
/// Nothing references or maps these frames.
pub unsafe fn decrease_reservation(extents: &[xen_pfn_t], order: u32) -> Result<u64, Errno> {
    let mut op = reservation(extents.as_ptr().cast_mut(), extents.len(), order, 0);
    // SAFETY: Xen only reads the extents for this command; the frames are the caller's to give.
    unsafe { memory_op(XENMEM_decrease_reservation, &mut op) }
}
