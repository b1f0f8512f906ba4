//! elfnote.h: types of the notes, with owner "Xen", by which a kernel image tells the builder what it wants.
//!
//! Contexts: none at run time; the `boot` crate places the notes, `xtask` checks that they are there.
#![forbid(unsafe_code)]

/// Name and value, a string.
pub const XEN_ELFNOTE_INFO: u32 = 0;
/// Entry point, virtual.
pub const XEN_ELFNOTE_ENTRY: u32 = 1;
/// Where the builder puts the hypercall page; optional.
pub const XEN_ELFNOTE_HYPERCALL_PAGE: u32 = 2;
/// Virtual address of pfn 0.
pub const XEN_ELFNOTE_VIRT_BASE: u32 = 3;
/// What to subtract from `p_paddr`.
pub const XEN_ELFNOTE_PADDR_OFFSET: u32 = 4;
/// "xen-3.0".
pub const XEN_ELFNOTE_XEN_VERSION: u32 = 5;
/// The kernel's name.
pub const XEN_ELFNOTE_GUEST_OS: u32 = 6;
/// The kernel's version.
pub const XEN_ELFNOTE_GUEST_VERSION: u32 = 7;
/// "generic".
pub const XEN_ELFNOTE_LOADER: u32 = 8;
/// 32-bit only.
pub const XEN_ELFNOTE_PAE_MODE: u32 = 9;
/// Features, a string.
pub const XEN_ELFNOTE_FEATURES: u32 = 10;
/// Load the symbol table.
pub const XEN_ELFNOTE_BSD_SYMTAB: u32 = 11;
/// Lowest start of Xen's hole.
pub const XEN_ELFNOTE_HV_START_LOW: u32 = 12;
/// Non-present entries that hold mfns; ignored by the builder.
pub const XEN_ELFNOTE_L1_MFN_VALID: u32 = 13;
/// A cancelled suspend is understood.
pub const XEN_ELFNOTE_SUSPEND_CANCEL: u32 = 14;
/// Where the initial p2m shall be mapped.
pub const XEN_ELFNOTE_INIT_P2M: u32 = 15;
/// The ramdisk need not be mapped.
pub const XEN_ELFNOTE_MOD_START_PFN: u32 = 16;
/// Features, a bitmap.
pub const XEN_ELFNOTE_SUPPORTED_FEATURES: u32 = 17;
/// PVH only.
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// The highest of them.
pub const XEN_ELFNOTE_MAX: u32 = XEN_ELFNOTE_PHYS32_ENTRY;
