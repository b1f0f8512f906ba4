//! grant_table.h: version 1 of the grant table, its set-up, and the status values.
//!
//! Contexts: any; plain data, except [`GrantEntryV1`], which is shared and made of atomics. Only what the resume path
//! and a later device model need: mapping other domains' grants is a backend's business.
#![forbid(unsafe_code)]

use super::{
    GuestHandle,
    xen::{domid_t, xen_pfn_t},
};
use crate::const_unless_loom;
use crate::primitive::sync::atomic::{AtomicU16, AtomicU32};

/// Number of a grant in its table.
pub type grant_ref_t = u32;

/// [`GnttabSetupTable`].
pub const GNTTABOP_setup_table: u32 = 2;
/// [`GnttabQuerySize`].
pub const GNTTABOP_query_size: u32 = 6;

/// Entries that the toolstack fills.
pub const GNTTAB_NR_RESERVED_ENTRIES: grant_ref_t = 8;
/// The console's entry.
pub const GNTTAB_RESERVED_CONSOLE: grant_ref_t = 0;
/// Xenstore's entry.
pub const GNTTAB_RESERVED_XENSTORE: grant_ref_t = 1;

/// Type: no grant.
pub const GTF_invalid: u16 = 0;
/// Type: may be mapped or copied.
pub const GTF_permit_access: u16 = 1;
/// Type: a page may be transferred to us.
pub const GTF_accept_transfer: u16 = 2;
/// Type: passed on.
pub const GTF_transitive: u16 = 3;
/// The bits that hold the type.
pub const GTF_type_mask: u16 = 3;
/// Read only. Ours.
pub const GTF_readonly: u16 = 1 << 2;
/// Mapped for reading now. Xen's.
pub const GTF_reading: u16 = 1 << 3;
/// Mapped for writing now. Xen's.
pub const GTF_writing: u16 = 1 << 4;

/// Done.
pub const GNTST_okay: i16 = 0;
/// Undefined error.
pub const GNTST_general_error: i16 = -1;
/// No such domain.
pub const GNTST_bad_domain: i16 = -2;
/// No such grant.
pub const GNTST_bad_gntref: i16 = -3;
/// No such handle.
pub const GNTST_bad_handle: i16 = -4;
/// Bad virtual address.
pub const GNTST_bad_virt_addr: i16 = -5;
/// Bad device address.
pub const GNTST_bad_dev_addr: i16 = -6;
/// IOMMU full.
pub const GNTST_no_device_space: i16 = -7;
/// Not allowed.
pub const GNTST_permission_denied: i16 = -8;
/// Bad page.
pub const GNTST_bad_page: i16 = -9;
/// Copy crosses a page.
pub const GNTST_bad_copy_arg: i16 = -10;
/// Address too big.
pub const GNTST_address_too_big: i16 = -11;
/// Try again.
pub const GNTST_eagain: i16 = -12;
/// Out of handles.
pub const GNTST_no_space: i16 = -13;

/// One grant. Shared. Write `domid` and `frame` first, `flags` last.
#[repr(C)]
#[derive(Debug)]
pub struct GrantEntryV1 {
    /// `GTF_*`.
    pub flags: AtomicU16,
    /// Who is granted access.
    pub domid: AtomicU16,
    /// The mfn.
    pub frame: AtomicU32,
}

impl GrantEntryV1 {
    const_unless_loom! {
        /// No grant.
        #[expect(clippy::new_without_default, reason = "an entry of a page of Xen's has no default")]
        pub fn new() -> Self {
            Self { flags: AtomicU16::new(0), domid: AtomicU16::new(0), frame: AtomicU32::new(0) }
        }
    }
}

/// Grows the table and asks for its frames. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct GnttabSetupTable {
    /// In: `DOMID_SELF`.
    pub dom: domid_t,
    /// In: how many frames.
    pub nr_frames: u32,
    /// Out: `GNTST_*`.
    pub status: i16,
    /// Out: their mfns.
    pub frame_list: GuestHandle<xen_pfn_t>,
}

/// Asks for the table's size. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct GnttabQuerySize {
    /// In: `DOMID_SELF`.
    pub dom: domid_t,
    /// Out: frames now.
    pub nr_frames: u32,
    /// Out: frames at most.
    pub max_nr_frames: u32,
    /// Out: `GNTST_*`.
    pub status: i16,
}
