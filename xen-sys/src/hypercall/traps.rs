//! Where Xen enters the kernel: trap table, callbacks, stack, segments. All of it is per vcpu.
//!
//! Contexts: boot, and each vcpu's own start. Except `vm_assist`, nothing here outlives the domain's save: a restored
//! vcpu has all of it as before. Source: xen/include/public/arch-x86/xen.h, callback.h; xen/arch/x86/pv/callback.c.

use super::{address_of, address_of_slice, count, raw};
use crate::Errno;
use crate::abi::arch::TrapInfo;
use crate::abi::callback::{CALLBACKOP_register, CallbackRegister};
use crate::abi::xen::{
    __HYPERVISOR_callback_op, __HYPERVISOR_set_callbacks, __HYPERVISOR_set_gdt, __HYPERVISOR_set_segment_base,
    __HYPERVISOR_set_trap_table, __HYPERVISOR_stack_switch, xen_pfn_t,
};

/// Installs this vcpu's exception entries; vectors not listed keep theirs.
/// # Errors
/// `EINVAL`: the last entry is not the end mark (`address` 0), and Xen was not called; or an address is not canonical,
/// and those before it are installed.
/// # Safety
/// Each address is an entry point for that exception's frame.
pub unsafe fn set_trap_table(traps: &[TrapInfo]) -> Result<(), Errno> {
    // Xen reads on until it finds an end mark.
    if traps.last().is_none_or(|last| last.address != 0) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: Xen reads up to the end mark, which is there; the entries are the caller's.
    let ret = unsafe { raw::hypercall1(__HYPERVISOR_set_trap_table, address_of_slice(traps)) };
    Errno::check(ret).map(drop)
}

/// Sets this vcpu's event, failsafe and syscall entries; neither of the latter two masks upcalls. An address that is not
/// canonical is ignored without a word; [`callback_register`] tells.
/// # Errors
/// None from a Xen.
/// # Safety
/// Each address is an entry point for its frame; 0 where the entry never happens.
pub unsafe fn set_callbacks(event: u64, failsafe: u64, syscall: u64) -> Result<(), Errno> {
    // SAFETY: the addresses are the caller's.
    Errno::check(unsafe { raw::hypercall3(__HYPERVISOR_set_callbacks, event, failsafe, syscall) }).map(drop)
}

/// Registers one callback (`CALLBACKTYPE_*`, `CALLBACKF_*`) of this vcpu.
/// # Errors
/// `EINVAL`: the address is not canonical; `ENOSYS`: no such type.
/// # Safety
/// The address is an entry point for that callback's frame.
pub unsafe fn callback_register(kind: u16, flags: u16, address: u64) -> Result<(), Errno> {
    let mut op = CallbackRegister { r#type: kind, flags, address };
    let argument = address_of(&mut op);
    // SAFETY: Xen reads `op`; the address is the caller's.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register.into(), argument) };
    Errno::check(ret).map(drop)
}

/// Sets the stack on which this vcpu enters the kernel from user mode.
/// # Errors
/// None from a Xen.
/// # Safety
/// `sp` is the top of a stack of this vcpu's own, which holds nothing while user mode runs.
pub unsafe fn stack_switch(ss: u64, sp: u64) -> Result<(), Errno> {
    // SAFETY: the stack is the caller's.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_stack_switch, ss, sp) }).map(drop)
}

/// Sets a segment base (`SEGBASE_*`) of this vcpu.
/// # Errors
/// `EINVAL`: not canonical, or no such segment.
/// # Safety
/// If it is the kernel's gs: the per-CPU area of this vcpu is there.
pub unsafe fn set_segment_base(which: u32, base: u64) -> Result<(), Errno> {
    // SAFETY: the base is the caller's.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_set_segment_base, which.into(), base) }).map(drop)
}

/// Installs a GDT of `entries` descriptors for this vcpu, from the pages `frames`; 0 entries: Xen's own only.
/// # Errors
/// `EINVAL`: more than 14 pages' worth, fewer frames than it takes, a frame that can be written, or a bad descriptor.
/// # Safety
/// The selectors in use mean the same in the new table.
pub unsafe fn set_gdt(frames: &[xen_pfn_t], entries: u32) -> Result<(), Errno> {
    if count(frames)? < u64::from(entries.div_ceil(512)) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: Xen reads one frame for each 512 descriptors, which are there; the content is the caller's.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_set_gdt, address_of_slice(frames), entries.into()) };
    Errno::check(ret).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trap(vector: u8, address: u64) -> TrapInfo {
        TrapInfo { vector, address, ..Default::default() }
    }

    #[test]
    fn a_trap_table_without_an_end_never_reaches_xen() {
        let install = |traps: &[TrapInfo]| {
            // SAFETY: off the bare-metal target nothing is installed.
            unsafe { set_trap_table(traps) }
        };
        assert_eq!(install(&[trap(14, 1)]), Err(Errno::EINVAL));
        assert_eq!(install(&[]), Err(Errno::EINVAL));
        // With its end it gets as far as the hypercall.
        assert_eq!(install(&[trap(14, 1), trap(0, 0)]), Err(Errno::ENOSYS));
    }

    #[test]
    fn a_gdt_needs_a_frame_for_each_512_descriptors() {
        let install = |frames: &[xen_pfn_t], entries| {
            // SAFETY: off the bare-metal target nothing is installed.
            unsafe { set_gdt(frames, entries) }
        };
        assert_eq!(install(&[1], 513), Err(Errno::EINVAL));
        assert_eq!(install(&[1], 512), Err(Errno::ENOSYS));
        assert_eq!(install(&[], 0), Err(Errno::ENOSYS));
    }
}
