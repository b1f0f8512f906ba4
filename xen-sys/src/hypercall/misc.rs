//! What fits no family: the timer of this vcpu, Xen's console.
//!
//! Contexts: any. Source: xen/include/public/xen.h.

use super::{address_of_slice, count, raw};
use crate::Errno;
use crate::abi::xen::{__HYPERVISOR_console_io, __HYPERVISOR_set_timer_op, CONSOLEIO_write};

/// Arms the one-shot timer of this vcpu: `VIRQ_TIMER` at `deadline_ns`, absolute system time; 0 cancels. A past one
/// fires at once; one more than 2^50 ns ahead fires after 100 ms. The cheapest way to set a timer: no argument in
/// memory.
/// # Errors
/// None from a Xen.
/// Source: xen/common/sched/core.c, do_set_timer_op.
#[inline]
pub fn set_timer_op(deadline_ns: u64) -> Result<(), Errno> {
    // SAFETY: changes a timer only.
    Errno::check(unsafe { raw::hypercall1(__HYPERVISOR_set_timer_op, deadline_ns) }).map(drop)
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
