//! What fits no family: the timer of this vcpu, assists, the FPU flag, Xen's console.
//!
//! Contexts: any. Source: xen/include/public/xen.h.

use super::{address_of_slice, count, raw};
use crate::Errno;
use crate::abi::xen::{
    __HYPERVISOR_console_io, __HYPERVISOR_fpu_taskswitch, __HYPERVISOR_set_timer_op, __HYPERVISOR_vm_assist,
    CONSOLEIO_write,
};

/// Arms the one-shot timer of this vcpu: `VIRQ_TIMER` at `deadline_ns`, absolute system time; 0 cancels. A past one fires
/// at once; one more than 2^50 ns ahead fires after 100 ms. The cheapest way to set a timer: no argument in memory.
/// # Errors
/// None from a Xen.
/// Source: xen/common/sched/core.c, do_set_timer_op.
#[inline]
pub fn set_timer_op(deadline_ns: u64) -> Result<(), Errno> {
    // SAFETY: changes a timer only.
    Errno::check(unsafe { raw::hypercall1(__HYPERVISOR_set_timer_op, deadline_ns) }).map(drop)
}

/// Turns an assist (`VMASST_TYPE_*`) on or off (`VMASST_CMD_*`) for the whole domain.
/// # Errors
/// `EINVAL`: no such assist for this kind of guest; `ENOSYS`: no such command.
/// Source: xen/common/domain.c, do_vm_assist.
pub fn vm_assist(cmd: u32, kind: u32) -> Result<(), Errno> {
    // SAFETY: no assist changes what a mapping or an address means; they add emulation, flags or bits in frames.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_vm_assist, cmd.into(), kind.into()) }).map(drop)
}

/// Sets or clears the virtual CR0.TS of this vcpu; with it set the next FPU instruction raises #NM.
/// # Errors
/// None from a Xen.
pub fn fpu_taskswitch(set: bool) -> Result<(), Errno> {
    // SAFETY: at worst an exception, whose entry was answered for.
    Errno::check(unsafe { raw::hypercall1(__HYPERVISOR_fpu_taskswitch, set.into()) }).map(drop)
}

/// Writes to Xen's own console: for the initial domain, and for others on a Xen built with debugging.
/// # Errors
/// `EPERM`: an ordinary domain on a release build.
pub fn console_io_write(bytes: &[u8]) -> Result<(), Errno> {
    let n = count(bytes)?;
    // SAFETY: Xen reads `n` bytes.
    let ret = unsafe { raw::hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write.into(), n, address_of_slice(bytes)) };
    Errno::check(ret).map(drop)
}
