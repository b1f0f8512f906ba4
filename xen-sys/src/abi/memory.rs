//! memory.h: the memory operations that a PV guest may use.
//!
//! Contexts: any; plain data. "gmfn" and "gpfn" in names are Xen's: for a PV guest they are mfn and pfn.
#![forbid(unsafe_code)]

use super::{
    GuestHandle,
    xen::{domid_t, xen_pfn_t},
};

/// [`XenMemoryReservation`]: more memory, without a pfn.
pub const XENMEM_increase_reservation: u32 = 0;
/// [`XenMemoryReservation`]: give frames back.
pub const XENMEM_decrease_reservation: u32 = 1;
/// The host's highest mfn.
pub const XENMEM_maximum_ram_page: u32 = 2;
/// [`XenMemoryDomain`]: pages owned.
pub const XENMEM_current_reservation: u32 = 3;
/// [`XenMemoryDomain`]: pages allowed.
pub const XENMEM_maximum_reservation: u32 = 4;
/// mfns of the m2p.
pub const XENMEM_machphys_mfn_list: u32 = 5;
/// [`XenMemoryReservation`]: more memory at given pfns.
pub const XENMEM_populate_physmap: u32 = 6;
/// [`XenAddToPhysmap`].
pub const XENMEM_add_to_physmap: u32 = 7;
/// [`XenMemoryMap`].
pub const XENMEM_memory_map: u32 = 9;
/// The host's memory map, dom0 only.
pub const XENMEM_machine_memory_map: u32 = 10;
/// [`XenMemoryExchange`].
pub const XENMEM_exchange: u32 = 11;
/// [`XenMachphysMapping`].
pub const XENMEM_machphys_mapping: u32 = 12;
/// [`XenMemoryDomain`]: the highest pfn.
pub const XENMEM_maximum_gpfn: u32 = 14;

/// `XenAddToPhysmap::space`: the shared_info page.
pub const XENMAPSPACE_shared_info: u32 = 0;
/// `XenAddToPhysmap::space`: a grant-table page.
pub const XENMAPSPACE_grant_table: u32 = 1;
/// `XenAddToPhysmap::space`: a frame.
pub const XENMAPSPACE_gmfn: u32 = 2;

/// Adds, removes or populates extents. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenMemoryReservation {
    /// Populate: pfns in, mfns out. Decrease: mfns in. Increase: mfns out.
    pub extent_start: GuestHandle<xen_pfn_t>,
    /// Number of extents.
    pub nr_extents: u64,
    /// Each is 2^order pages.
    pub extent_order: u32,
    /// Bits 0 to 7: address width that the frames must fit, 0 any.
    pub mem_flags: u32,
    /// `DOMID_SELF`.
    pub domid: domid_t,
}

/// Exchanges frames for others. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenMemoryExchange {
    /// The frames given.
    pub r#in: XenMemoryReservation,
    /// The frames taken.
    pub out: XenMemoryReservation,
    /// Out: extents done; zero before the call.
    pub nr_exchanged: u64,
}

/// Names a domain. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenMemoryDomain {
    /// The domain.
    pub domid: domid_t,
}

/// Where the m2p is mapped. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenMachphysMapping {
    /// Out: first address.
    pub v_start: u64,
    /// Out: first address behind it.
    pub v_end: u64,
    /// Out: highest mfn that can be looked up.
    pub max_mfn: u64,
}

/// Makes a page appear at a pfn; translated guests only. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenAddToPhysmap {
    /// `DOMID_SELF`.
    pub domid: domid_t,
    /// Pages, for a range.
    pub size: u16,
    /// `XENMAPSPACE_*`.
    pub space: u32,
    /// Index in that space.
    pub idx: u64,
    /// The pfn.
    pub gpfn: xen_pfn_t,
}

/// Asks for the pseudo-physical memory map. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenMemoryMap {
    /// In: room in the buffer; out: entries written.
    pub nr_entries: u32,
    /// Entries as the BIOS gives them.
    pub buffer: GuestHandle<E820Entry>,
}

/// One range of the memory map, 20 bytes without padding, as the BIOS call INT 15h, E820h gives it. No Xen header
/// declares it.
#[repr(C, packed(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct E820Entry {
    /// First byte, pseudo-physical.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// [`E820_RAM`] or another type.
    pub r#type: u32,
}

/// `E820Entry::type`: usable memory.
pub const E820_RAM: u32 = 1;

const _: () = assert!(size_of::<E820Entry>() == 20);
