//! arch-x86/xen.h and xen-x86_64.h: registers, selectors, the vcpu context, the x86 parts of the shared pages.
//!
//! Contexts: any; plain data, except [`ArchSharedInfo`] and [`ArchVcpuInfo`], which are shared and made of atomics.
#![forbid(unsafe_code)]

use super::xen::xen_pfn_t;
use crate::const_unless_loom;
use crate::primitive::{Opaque, sync::atomic::AtomicU64};

/// Vcpus that have a `vcpu_info` inside `shared_info`.
pub const XEN_LEGACY_MAX_VCPUS: u32 = 32;

/// First page of a GDT that belongs to Xen.
pub const FIRST_RESERVED_GDT_PAGE: u32 = 14;
/// First byte of a GDT that belongs to Xen.
pub const FIRST_RESERVED_GDT_BYTE: u32 = FIRST_RESERVED_GDT_PAGE * 4096;
/// First descriptor of a GDT that belongs to Xen.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = FIRST_RESERVED_GDT_BYTE / 8;

/// Flat 32-bit code.
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// Flat 64-bit code.
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Flat 32-bit data.
pub const FLAT_RING3_DS32: u16 = 0xe02b;
/// 64-bit data: the null selector.
pub const FLAT_RING3_DS64: u16 = 0;
/// Flat 32-bit stack.
pub const FLAT_RING3_SS32: u16 = 0xe02b;
/// Flat 64-bit stack.
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// Code selector of a 64-bit kernel.
pub const FLAT_KERNEL_CS: u16 = FLAT_RING3_CS64;
/// Data selector of a 64-bit kernel.
pub const FLAT_KERNEL_DS: u16 = FLAT_RING3_DS64;
/// Stack selector of a 64-bit kernel.
pub const FLAT_KERNEL_SS: u16 = FLAT_RING3_SS64;
/// Code selector of 64-bit user mode.
pub const FLAT_USER_CS: u16 = FLAT_RING3_CS64;
/// Data selector of 64-bit user mode.
pub const FLAT_USER_DS: u16 = FLAT_RING3_DS64;
/// Stack selector of 64-bit user mode.
pub const FLAT_USER_SS: u16 = FLAT_RING3_SS64;

/// First address that belongs to Xen.
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First address above it that is the guest's again.
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// The read-only m2p, 8 bytes for each mfn.
pub const MACH2PHYS_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// Its end.
pub const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;
/// Its length in entries.
pub const MACH2PHYS_NR_ENTRIES: u64 = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3;

/// `set_segment_base`: fs.
pub const SEGBASE_FS: u32 = 0;
/// `set_segment_base`: gs of user mode.
pub const SEGBASE_GS_USER: u32 = 1;
/// `set_segment_base`: gs of the kernel.
pub const SEGBASE_GS_KERNEL: u32 = 2;
/// `set_segment_base`: load the selector in bits 0 to 15 into user gs.
pub const SEGBASE_GS_USER_SEL: u32 = 3;

/// In `VcpuGuestContext::flags`: `fpu_ctxt` holds a state.
pub const VGCF_i387_valid: u64 = 1 << 0;
/// In `VcpuGuestContext::flags`: the vcpu starts in kernel mode.
pub const VGCF_in_kernel: u64 = 1 << 2;
/// In `VcpuGuestContext::flags`: the failsafe callback masks upcalls.
pub const VGCF_failsafe_disables_events: u64 = 1 << 3;
/// In `VcpuGuestContext::flags`: the syscall callback masks upcalls.
pub const VGCF_syscall_disables_events: u64 = 1 << 4;
/// In `VcpuGuestContext::flags`: the vcpu runs at once.
pub const VGCF_online: u64 = 1 << 5;
/// In `IretContext::flags`: leave by `sysret`.
pub const VGCF_in_syscall: u64 = 1 << 8;

/// One entry of the trap table. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TrapInfo {
    /// Exception number.
    pub vector: u8,
    /// Bits 0 and 1: who may raise it with `int` (0 nobody, 3 user). Bit 2: mask upcalls on entry.
    pub flags: u8,
    /// Code selector; ignored in 64-bit mode, [`FLAT_KERNEL_CS`] is loaded.
    pub cs: u16,
    /// Entry point; 0 ends a table.
    pub address: u64,
}

/// Integer registers, in the order in which Xen saves them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuUserRegs {
    /// r15.
    pub r15: u64,
    /// r14.
    pub r14: u64,
    /// r13.
    pub r13: u64,
    /// r12.
    pub r12: u64,
    /// rbp.
    pub rbp: u64,
    /// rbx.
    pub rbx: u64,
    /// r11.
    pub r11: u64,
    /// r10.
    pub r10: u64,
    /// r9.
    pub r9: u64,
    /// r8.
    pub r8: u64,
    /// rax.
    pub rax: u64,
    /// rcx.
    pub rcx: u64,
    /// rdx.
    pub rdx: u64,
    /// rsi.
    pub rsi: u64,
    /// rdi.
    pub rdi: u64,
    /// Xen's own.
    pub error_code: u32,
    /// Xen's own.
    pub entry_vector: u32,
    /// rip.
    pub rip: u64,
    /// cs.
    pub cs: u16,
    /// Padding.
    pub _pad0: [u16; 1],
    /// The upcall mask of the interrupted code.
    pub saved_upcall_mask: u8,
    /// Padding.
    pub _pad1: [u8; 3],
    /// rflags; IF is the inverse of `saved_upcall_mask`.
    pub rflags: u64,
    /// rsp.
    pub rsp: u64,
    /// ss.
    pub ss: u16,
    /// Padding.
    pub _pad2: [u16; 3],
    /// es.
    pub es: u16,
    /// Padding.
    pub _pad3: [u16; 3],
    /// ds.
    pub ds: u16,
    /// Padding.
    pub _pad4: [u16; 3],
    /// fs.
    pub fs: u16,
    /// Padding.
    pub _pad5: [u16; 3],
    /// gs.
    pub gs: u16,
    /// Padding.
    pub _pad6: [u16; 3],
}

/// All that `VCPUOP_initialise` sets. Argument; about 5 KiB, so not `Copy`: a careless copy would not fit a small
/// stack.
#[repr(C)]
#[derive(Debug, Clone)]
pub struct VcpuGuestContext {
    /// FXSAVE image, read only with [`VGCF_i387_valid`].
    pub fpu_ctxt: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// Integer registers.
    pub user_regs: CpuUserRegs,
    /// Trap table, by vector.
    pub trap_ctxt: [TrapInfo; 256],
    /// Address of the LDT.
    pub ldt_base: u64,
    /// Its entries.
    pub ldt_ents: u64,
    /// mfns of the GDT's pages.
    pub gdt_frames: [u64; 16],
    /// Entries of the GDT; 0: Xen's flat selectors only.
    pub gdt_ents: u64,
    /// Stack selector for entries from user mode.
    pub kernel_ss: u64,
    /// Stack for entries from user mode.
    pub kernel_sp: u64,
    /// CR0 to CR7. 3: kernel root, mfn << 12. 1: user root, likewise.
    pub ctrlreg: [u64; 8],
    /// DR0 to DR7.
    pub debugreg: [u64; 8],
    /// Upcall entry.
    pub event_callback_eip: u64,
    /// Failsafe entry.
    pub failsafe_callback_eip: u64,
    /// Syscall entry.
    pub syscall_callback_eip: u64,
    /// Bitmap of `VMASST_TYPE_*`, honoured for vcpu 0 only.
    pub vm_assist: u64,
    /// fs base.
    pub fs_base: u64,
    /// gs base of the kernel.
    pub gs_base_kernel: u64,
    /// gs base of user mode.
    pub gs_base_user: u64,
}

impl VcpuGuestContext {
    /// All zero; Xen refuses it until at least the root, entry and selectors are filled.
    pub const fn zeroed() -> Self {
        Self {
            fpu_ctxt: [0; 512],
            flags: 0,
            user_regs: CpuUserRegs {
                r15: 0,
                r14: 0,
                r13: 0,
                r12: 0,
                rbp: 0,
                rbx: 0,
                r11: 0,
                r10: 0,
                r9: 0,
                r8: 0,
                rax: 0,
                rcx: 0,
                rdx: 0,
                rsi: 0,
                rdi: 0,
                error_code: 0,
                entry_vector: 0,
                rip: 0,
                cs: 0,
                _pad0: [0; 1],
                saved_upcall_mask: 0,
                _pad1: [0; 3],
                rflags: 0,
                rsp: 0,
                ss: 0,
                _pad2: [0; 3],
                es: 0,
                _pad3: [0; 3],
                ds: 0,
                _pad4: [0; 3],
                fs: 0,
                _pad5: [0; 3],
                gs: 0,
                _pad6: [0; 3],
            },
            trap_ctxt: [TrapInfo { vector: 0, flags: 0, cs: 0, address: 0 }; 256],
            ldt_base: 0,
            ldt_ents: 0,
            gdt_frames: [0; 16],
            gdt_ents: 0,
            kernel_ss: 0,
            kernel_sp: 0,
            ctrlreg: [0; 8],
            debugreg: [0; 8],
            event_callback_eip: 0,
            failsafe_callback_eip: 0,
            syscall_callback_eip: 0,
            vm_assist: 0,
            fs_base: 0,
            gs_base_kernel: 0,
            gs_base_user: 0,
        }
    }
}

/// What `iret` pops, lowest address first.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct IretContext {
    /// rax.
    pub rax: u64,
    /// r11.
    pub r11: u64,
    /// rcx.
    pub rcx: u64,
    /// [`VGCF_in_syscall`] or 0.
    pub flags: u64,
    /// rip.
    pub rip: u64,
    /// cs; RPL 3: to user mode, else to the kernel.
    pub cs: u64,
    /// rflags; the upcall mask becomes the inverse of IF.
    pub rflags: u64,
    /// rsp.
    pub rsp: u64,
    /// ss.
    pub ss: u64,
}

/// The x86 part of `shared_info`. Shared: the guest writes, Xen and the toolstack read, a restorer rewrites.
#[repr(C)]
#[derive(Debug)]
pub struct ArchSharedInfo {
    /// Entries in the p2m.
    pub max_pfn: AtomicU64,
    /// Root of the old three-level p2m: 0 none, all ones: use `p2m_vaddr`.
    pub pfn_to_mfn_frame_list_list: AtomicU64,
    /// Why the last NMI came.
    pub nmi_reason: AtomicU64,
    /// The address space in which `p2m_vaddr` holds, mfn << 12; 0: no linear p2m.
    pub p2m_cr3: AtomicU64,
    /// Virtual address of the linear p2m.
    pub p2m_vaddr: AtomicU64,
    /// Odd while the guest changes the mapping of the p2m.
    pub p2m_generation: AtomicU64,
}

impl ArchSharedInfo {
    const_unless_loom! {
        /// All zero: no p2m published.
        #[expect(clippy::new_without_default, reason = "a part of a page of Xen's has no default")]
        pub fn new() -> Self {
            Self {
                max_pfn: AtomicU64::new(0),
                pfn_to_mfn_frame_list_list: AtomicU64::new(0),
                nmi_reason: AtomicU64::new(0),
                p2m_cr3: AtomicU64::new(0),
                p2m_vaddr: AtomicU64::new(0),
                p2m_generation: AtomicU64::new(0),
            }
        }
    }
}

/// The x86 part of `vcpu_info`. Shared.
#[repr(C)]
#[derive(Debug)]
pub struct ArchVcpuInfo {
    /// Address of the last page fault.
    pub cr2: AtomicU64,
    /// Padding.
    pub pad: Opaque<u64>,
}

impl ArchVcpuInfo {
    const_unless_loom! {
        /// All zero.
        #[expect(clippy::new_without_default, reason = "a part of a structure of Xen's has no default")]
        pub fn new() -> Self {
            Self { cr2: AtomicU64::new(0), pad: Opaque::new(0) }
        }
    }
}

/// An mfn as CR3 holds it.
pub const fn xen_pfn_to_cr3(mfn: xen_pfn_t) -> u64 {
    mfn << 12
}

/// The mfn in a CR3 value.
pub const fn xen_cr3_to_pfn(cr3: u64) -> xen_pfn_t {
    cr3 >> 12
}
