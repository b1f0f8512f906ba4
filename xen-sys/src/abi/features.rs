//! features.h: bit numbers in the map that `XENVER_get_features` returns, and in the ELF notes.
//!
//! Contexts: any; plain data.
#![forbid(unsafe_code)]

/// Page tables may be written directly.
pub const XENFEAT_writable_page_tables: u32 = 0;
/// Descriptor tables may be written directly.
pub const XENFEAT_writable_descriptor_tables: u32 = 1;
/// Xen translates frame numbers; never for a PV guest.
pub const XENFEAT_auto_translated_physmap: u32 = 2;
/// The kernel runs in ring 0.
pub const XENFEAT_supervisor_mode_kernel: u32 = 3;
/// 32-bit only.
pub const XENFEAT_pae_pgdir_above_4gb: u32 = 4;
/// `MMU_PT_UPDATE_PRESERVE_AD` is there.
pub const XENFEAT_mmu_pt_update_preserve_ad: u32 = 5;
/// `MMUEXT_CLEAR_PAGE` and `MMUEXT_COPY_PAGE` are there.
pub const XENFEAT_highmem_assist: u32 = 6;
/// Grant mappings may carry the guest's bits.
pub const XENFEAT_gnttab_map_avail_bits: u32 = 7;
/// HVM only.
pub const XENFEAT_hvm_callback_vector: u32 = 8;
/// HVM only.
pub const XENFEAT_hvm_safe_pvclock: u32 = 9;
/// HVM only.
pub const XENFEAT_hvm_pirqs: u32 = 10;
/// May be the initial domain.
pub const XENFEAT_dom0: u32 = 11;
/// Virtual NUMA nodes in memory operations.
pub const XENFEAT_memory_op_vnode_supported: u32 = 13;
/// ARM only.
pub const XENFEAT_ARM_SMCCC_supported: u32 = 14;
/// PVH only.
pub const XENFEAT_linux_rsdp_unrestricted: u32 = 15;
/// pfn and mfn differ.
pub const XENFEAT_not_direct_mapped: u32 = 16;
/// pfn and mfn are the same.
pub const XENFEAT_direct_mapped: u32 = 17;
/// Words in the map.
pub const XENFEAT_NR_SUBMAPS: u32 = 1;
