//! xen.h: hypercall numbers, virqs, the page-table operations and their structs, domain ids.
//!
//! What is shared with Xen is in the file `shared.rs`, `start_info` in its own; both are re-exported here.
//! Contexts: any; plain data.

mod shared;
mod start_info;

pub use shared::*;
pub use start_info::*;

use super::GuestHandle;

/// A domain's number; [`DOMID_SELF`] for the caller.
pub type domid_t = u16;
/// A frame number: for a PV guest an mfn, whatever the field is called.
pub type xen_pfn_t = u64;

/// Install this vcpu's trap table.
pub const __HYPERVISOR_set_trap_table: u64 = 0;
/// Write page-table entries or the m2p.
pub const __HYPERVISOR_mmu_update: u64 = 1;
/// Install a GDT.
pub const __HYPERVISOR_set_gdt: u64 = 2;
/// Set the stack for entries from user mode.
pub const __HYPERVISOR_stack_switch: u64 = 3;
/// Set the event, failsafe and syscall callbacks.
pub const __HYPERVISOR_set_callbacks: u64 = 4;
/// Set or clear the virtual CR0.TS.
pub const __HYPERVISOR_fpu_taskswitch: u64 = 5;
/// Write a debug register.
pub const __HYPERVISOR_set_debugreg: u64 = 8;
/// Read a debug register.
pub const __HYPERVISOR_get_debugreg: u64 = 9;
/// Write one segment descriptor.
pub const __HYPERVISOR_update_descriptor: u64 = 10;
/// Memory reservation and maps.
pub const __HYPERVISOR_memory_op: u64 = 12;
/// Several hypercalls in one.
pub const __HYPERVISOR_multicall: u64 = 13;
/// Write the L1 entry of a virtual address.
pub const __HYPERVISOR_update_va_mapping: u64 = 14;
/// Arm this vcpu's one-shot timer.
pub const __HYPERVISOR_set_timer_op: u64 = 15;
/// Xen's version, features and build.
pub const __HYPERVISOR_xen_version: u64 = 17;
/// Xen's own console.
pub const __HYPERVISOR_console_io: u64 = 18;
/// Grant tables.
pub const __HYPERVISOR_grant_table_op: u64 = 20;
/// Domain-wide assists.
pub const __HYPERVISOR_vm_assist: u64 = 21;
/// Return from an upcall or exception.
pub const __HYPERVISOR_iret: u64 = 23;
/// Vcpu bring-up, areas and timers.
pub const __HYPERVISOR_vcpu_op: u64 = 24;
/// Set the fs or gs base.
pub const __HYPERVISOR_set_segment_base: u64 = 25;
/// Pinning, switching roots, TLB flushes.
pub const __HYPERVISOR_mmuext_op: u64 = 26;
/// NMI callback of dom0.
pub const __HYPERVISOR_nmi_op: u64 = 28;
/// Yield, block, poll, shut down.
pub const __HYPERVISOR_sched_op: u64 = 29;
/// Register a callback.
pub const __HYPERVISOR_callback_op: u64 = 30;
/// Event channels.
pub const __HYPERVISOR_event_channel_op: u64 = 32;

/// Per vcpu: time base update or requested timeout.
pub const VIRQ_TIMER: u32 = 0;
/// Per vcpu: dump debug information.
pub const VIRQ_DEBUG: u32 = 1;
/// Global, dom0: bytes received on the emergency console.
pub const VIRQ_CONSOLE: u32 = 2;
/// Global, dom0: something happened to some domain.
pub const VIRQ_DOM_EXC: u32 = 3;
/// Global, dom0: trace records are available.
pub const VIRQ_TBUF: u32 = 4;
/// Global, dom0: a domain has paused for debugging.
pub const VIRQ_DEBUGGER: u32 = 6;
/// Per vcpu: a profiling sample is available.
pub const VIRQ_XENOPROF: u32 = 7;
/// Global, dom0: bytes received on the console.
pub const VIRQ_CON_RING: u32 = 8;
/// Global, dom0: a physical CPU's state changed.
pub const VIRQ_PCPU_STATE: u32 = 9;
/// Global, dom0: a memory event.
pub const VIRQ_MEM_EVENT: u32 = 10;
/// Global: an Argo message.
pub const VIRQ_ARGO: u32 = 11;
/// Global, dom0: Xen's heap is low.
pub const VIRQ_ENOMEM: u32 = 12;
/// Per vcpu: performance counter.
pub const VIRQ_XENPMU: u32 = 13;
/// First of the eight virqs left to the architecture.
pub const VIRQ_ARCH_0: u32 = 16;
/// Number of virqs.
pub const NR_VIRQS: u32 = 24;

/// In `MmuUpdate::ptr[1:0]`: checked write of an entry.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// In `MmuUpdate::ptr[1:0]`: write an m2p entry.
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
/// In `MmuUpdate::ptr[1:0]`: checked write that keeps the accessed and dirty bits.
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
/// In `MmuUpdate::ptr[1:0]`: checked write, the value never translated.
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;

/// Pin `arg1.mfn` as an L1 table.
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
/// Pin `arg1.mfn` as an L2 table.
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
/// Pin `arg1.mfn` as an L3 table.
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
/// Pin `arg1.mfn` as an L4 table.
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
/// Unpin `arg1.mfn`, a table of any level.
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
/// Load `arg1.mfn` as the kernel root.
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
/// Flush this vcpu's TLB.
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
/// Flush `arg1.linear_addr` from this vcpu's TLB.
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
/// Flush the TLBs of the vcpus in `arg2.vcpumask`.
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
/// Flush `arg1.linear_addr` from the TLBs of the vcpus in `arg2.vcpumask`.
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
/// Flush the TLBs of all vcpus.
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
/// Flush `arg1.linear_addr` from the TLBs of all vcpus.
pub const MMUEXT_INVLPG_ALL: u32 = 11;
/// Write back and flush the caches.
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
/// Set the LDT at `arg1.linear_addr` with `arg2.nr_ents` entries.
pub const MMUEXT_SET_LDT: u32 = 13;
/// Load `arg1.mfn` as the user root.
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
/// Zero the page `arg1.mfn`.
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
/// Copy the page `arg2.src_mfn` to `arg1.mfn`.
pub const MMUEXT_COPY_PAGE: u32 = 17;

/// No flush after `update_va_mapping`.
pub const UVMF_NONE: u64 = 0;
/// Flush the whole TLB.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// Flush the one entry.
pub const UVMF_INVLPG: u64 = 2;
/// The bits that say how much to flush.
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
/// Flush the vcpus in the bitmap whose address is or-ed in.
pub const UVMF_MULTI: u64 = 0;
/// Flush this vcpu.
pub const UVMF_LOCAL: u64 = 0;
/// Flush all vcpus.
pub const UVMF_ALL: u64 = 4;

/// Write to Xen's console; `EPERM` for an ordinary domU on a release build.
pub const CONSOLEIO_write: u32 = 0;
/// Read from Xen's console.
pub const CONSOLEIO_read: u32 = 1;

/// Turn an assist on.
pub const VMASST_CMD_enable: u32 = 0;
/// Turn an assist off.
pub const VMASST_CMD_disable: u32 = 1;
/// Emulate direct writes to L1 entries.
pub const VMASST_TYPE_writable_pagetables: u32 = 2;
/// Virtual IOPL as the hardware would have it.
pub const VMASST_TYPE_architectural_iopl: u32 = 4;
/// Set `XEN_RUNSTATE_UPDATE` while Xen rewrites a runstate area.
pub const VMASST_TYPE_runstate_update_flag: u32 = 5;
/// Hide the m2p from user mode.
pub const VMASST_TYPE_m2p_strict: u32 = 32;

/// Ids from here on are not ordinary domains.
pub const DOMID_FIRST_RESERVED: domid_t = 0x7ff0;
/// The caller.
pub const DOMID_SELF: domid_t = 0x7ff0;
/// I/O memory only.
pub const DOMID_IO: domid_t = 0x7ff1;
/// Xen's own memory.
pub const DOMID_XEN: domid_t = 0x7ff2;
/// Owner of sharable pages.
pub const DOMID_COW: domid_t = 0x7ff3;
/// No domain.
pub const DOMID_INVALID: domid_t = 0x7ff4;
/// The idle domain.
pub const DOMID_IDLE: domid_t = 0x7fff;

/// One page-table write of `mmu_update`. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MmuUpdate {
    /// Machine address of the entry, with an `MMU_*` command in bits 0 and 1.
    pub ptr: u64,
    /// The entry's new value; holds an mfn.
    pub val: u64,
}

/// One operation of `mmuext_op`. Argument. The constructors fill what the command reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MmuextOp {
    /// `MMUEXT_*`.
    pub cmd: u32,
    /// First operand.
    pub arg1: MmuextOpArg1,
    /// Second operand.
    pub arg2: MmuextOpArg2,
}

/// First operand of [`MmuextOp`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union MmuextOpArg1 {
    /// Pin, unpin, new roots, clear and copy.
    pub mfn: xen_pfn_t,
    /// Invalidation of an address, LDT.
    pub linear_addr: u64,
}

/// Second operand of [`MmuextOp`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union MmuextOpArg2 {
    /// LDT entries.
    pub nr_ents: u32,
    /// Bitmap with one bit per vcpu up to the domain's maximum, in whole 64-bit words; only read.
    pub vcpumask: GuestHandle<u64>,
    /// Source frame of a copy.
    pub src_mfn: xen_pfn_t,
}

impl MmuextOp {
    /// A command on a frame: pin, unpin, new root, clear.
    pub const fn on_mfn(cmd: u32, mfn: xen_pfn_t) -> Self {
        Self { cmd, arg1: MmuextOpArg1 { mfn }, arg2: MmuextOpArg2 { src_mfn: 0 } }
    }

    /// A command on an address: invalidation on this or all vcpus.
    pub const fn on_address(cmd: u32, linear_addr: u64) -> Self {
        Self { cmd, arg1: MmuextOpArg1 { linear_addr }, arg2: MmuextOpArg2 { src_mfn: 0 } }
    }

    /// A flush on the vcpus of a bitmap: of `linear_addr`, or of everything, where the address is not read.
    pub const fn on_vcpus(cmd: u32, linear_addr: u64, vcpumask: GuestHandle<u64>) -> Self {
        Self { cmd, arg1: MmuextOpArg1 { linear_addr }, arg2: MmuextOpArg2 { vcpumask } }
    }
}

impl core::fmt::Debug for MmuextOp {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // SAFETY: both fields are 64-bit integers at offset 0, one of which every constructor has written.
        let arg1 = unsafe { self.arg1.mfn };
        f.debug_struct("MmuextOp")
            .field("cmd", &self.cmd)
            .field("arg1", &format_args!("{arg1:#x}"))
            .finish_non_exhaustive()
    }
}

/// One call of a multicall. Argument; Xen writes `result`, and may rewrite the rest.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MulticallEntry {
    /// `__HYPERVISOR_*`.
    pub op: u64,
    /// The call's return, negative for an error.
    pub result: u64,
    /// The call's arguments.
    pub args: [u64; 6],
}
