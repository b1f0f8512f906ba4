//! Where Xen enters the kernel: trap table, callbacks, segment bases. All of it is per vcpu, and a restored vcpu has it
//! as before.
//!
//! Contexts: boot, and each vcpu's own start. Source: xen/include/public/arch-x86/xen.h, callback.h;
//! xen/arch/x86/pv/callback.c.

use super::{address_of, address_of_slice, raw};
use crate::Errno;
use crate::abi::arch::TrapInfo;
use crate::abi::callback::{CALLBACKOP_register, CallbackRegister};
use crate::abi::xen::{__HYPERVISOR_callback_op, __HYPERVISOR_set_segment_base, __HYPERVISOR_set_trap_table};

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

/// Sets a segment base (`SEGBASE_*`) of this vcpu.
/// # Errors
/// `EINVAL`: not canonical, or no such segment.
/// # Safety
/// If it is the kernel's gs: the per-CPU area of this vcpu is there.
pub unsafe fn set_segment_base(which: u32, base: u64) -> Result<(), Errno> {
    // SAFETY: the base is the caller's.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_set_segment_base, which.into(), base) }).map(drop)
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
}
