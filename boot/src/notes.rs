//! The ELF notes. Owner "Xen"; types from `xen/include/public/elfnote.h`; what the loader makes of them is in
//! `libelf-dominfo.c`.
//!
//! Left out on purpose: `HYPERCALL_PAGE` (hypercalls are inline `syscall`s), `SUPPORTED_FEATURES` (where it stands, the builder
//! of an initial domain insists on the dom0 bit), `MOD_START_PFN` (there is no ramdisk).

use core::arch::global_asm;

use xen_sys::abi::elfnote::{
    XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_GUEST_VERSION, XEN_ELFNOTE_INIT_P2M, XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_PADDR_OFFSET, XEN_ELFNOTE_SUSPEND_CANCEL, XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
};

/// Where PFN 0 is mapped at entry. The linker script asserts that it has the same number, `kernel` that `mm` has.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where the domain builder maps the p2m. 1 GiB aligned, or the toolstack cuts it short when saving a guest of more than
/// 1 GiB (`xg_sr_save_x86_pv.c: map_p2m_list`); below `VIRT_BASE`, or the builder ignores it in silence. `kernel` asserts that `mm` has the same number.
pub const P2M_BASE: u64 = 0xffff_9000_0000_0000;

global_asm!(
    ".macro xen_note_str type:req, text:req",
    "    .balign 4",
    "    .long 4, 8f - 7f, \\type",
    "    .asciz \"Xen\"",
    "7:  .asciz \"\\text\"",
    "8:  .balign 4",
    ".endm",
    ".macro xen_note_num type:req, value:req",
    "    .balign 4",
    "    .long 4, 8, \\type",
    "    .asciz \"Xen\"",
    "    .quad \\value",
    ".endm",
    ".pushsection .note.Xen, \"a\", @note",
    "xen_note_str {guest_os}, stasis",
    concat!("xen_note_str {guest_version}, ", env!("CARGO_PKG_VERSION")),
    "xen_note_str {xen_version}, xen-3.0",
    "xen_note_str {loader}, generic",
    "xen_note_num {virt_base}, {virt_base_value}",
    "xen_note_num {paddr_offset}, 0",
    "xen_note_num {entry}, stasis_entry",
    "xen_note_num {init_p2m}, {p2m_base}",
    "xen_note_num {suspend_cancel}, 1",
    ".popsection",
    ".globl stasis_virt_base",
    ".set stasis_virt_base, {virt_base_value}",
    ".purgem xen_note_str",
    ".purgem xen_note_num",
    guest_os = const XEN_ELFNOTE_GUEST_OS,
    guest_version = const XEN_ELFNOTE_GUEST_VERSION,
    xen_version = const XEN_ELFNOTE_XEN_VERSION,
    loader = const XEN_ELFNOTE_LOADER,
    virt_base = const XEN_ELFNOTE_VIRT_BASE,
    virt_base_value = const VIRT_BASE,
    paddr_offset = const XEN_ELFNOTE_PADDR_OFFSET,
    entry = const XEN_ELFNOTE_ENTRY,
    init_p2m = const XEN_ELFNOTE_INIT_P2M,
    p2m_base = const P2M_BASE,
    suspend_cancel = const XEN_ELFNOTE_SUSPEND_CANCEL,
);
