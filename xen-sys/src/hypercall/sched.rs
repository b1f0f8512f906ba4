//! Giving the processor back, and shutting down.
//!
//! Contexts: any, as each function says. Source: xen/include/public/sched.h; xen/common/sched/core.c, do_sched_op.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::GuestHandle;
use crate::abi::sched::{
    SCHEDOP_block, SCHEDOP_poll, SCHEDOP_shutdown, SCHEDOP_yield, SHUTDOWN_suspend, SchedPoll, SchedShutdown,
};
use crate::abi::xen::__HYPERVISOR_sched_op;
use crate::primitive::sync::atomic::AtomicU32;

/// Lets other vcpus run first; never blocks and needs no waker. The upcall mask is left alone.
#[inline]
pub fn yield_() {
    // SAFETY: only when we run changes. The result is always 0.
    unsafe { raw::hypercall2(__HYPERVISOR_sched_op, SCHEDOP_yield.into(), 0) };
}

/// Waits for an event on this vcpu. Xen unmasks upcalls and looks for pending events in one step, so no wakeup is lost.
/// # Safety
/// Upcalls are unmasked from inside the call on and after it: nothing that this vcpu holds relies on them being masked.
#[inline]
pub unsafe fn block() {
    // SAFETY: the caller has nothing that an upcall could break. The result is always 0.
    unsafe { raw::hypercall2(__HYPERVISOR_sched_op, SCHEDOP_block.into(), 0) };
}

/// Waits until the port that `port` holds is pending, `until_ns` is reached (system time; 0: no limit), or an event is there
/// for this vcpu and its upcalls are unmasked. Returns at once if one of these holds already. Xen reads `port` inside the call, so a
/// value that is stored before the call begins is the one that counts. The upcall mask is left alone; the port had better
/// be masked.
///
/// An event that comes for this vcpu while its upcalls are masked ends the wait too, if none was pending before.
/// # Errors
/// `EINVAL`: there is no such port, and nothing was waited for.
#[inline]
pub fn poll(port: &AtomicU32, until_ns: u64) -> Result<(), Errno> {
    let word = core::ptr::from_ref(port).cast_mut().cast();
    let mut op = SchedPoll { ports: GuestHandle::new(word), nr_ports: 1, timeout: until_ns };
    // SAFETY: Xen reads `op` and the word that it points to.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_sched_op, SCHEDOP_poll.into(), address_of(&mut op)) };
    Errno::check(ret).map(drop)
}

/// # Safety
/// For `SHUTDOWN_suspend` those of [`suspend`].
unsafe fn shutdown_op(reason: u32, start_info_mfn: u64) -> Result<u64, Errno> {
    let mut op = SchedShutdown { reason };
    let address = address_of(&mut op);
    // SAFETY: Xen reads `op`; what a suspend does to memory is the caller's.
    let ret = unsafe { raw::hypercall3(__HYPERVISOR_sched_op, SCHEDOP_shutdown.into(), address, start_info_mfn) };
    Errno::check(ret)
}

/// Ends the domain for `reason` (`SHUTDOWN_*`), all vcpus at once. Does not return, unless refused.
/// # Errors
/// `EINVAL`: no such reason, or `SHUTDOWN_suspend`, for which there is [`suspend`].
pub fn shutdown(reason: u32) -> Result<(), Errno> {
    if reason == SHUTDOWN_suspend {
        return Err(Errno::EINVAL);
    }
    // SAFETY: nothing of the domain runs after any other reason.
    unsafe { shutdown_op(reason, 0) }.map(drop)
}

/// Where [`suspend`] has come back.
#[must_use = "the two outcomes need opposite things to be done"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspendOutcome {
    /// In a new domain: ports, placed `vcpu_info`s, areas, timers and grants of the old one are gone, every mfn is
    /// another, and vcpus that were down are not initialised.
    Resumed,
    /// In the same domain, checkpointed or cancelled: all of it still holds.
    Continued,
}

impl SuspendOutcome {
    /// The outcome that the hypercall's result stands for: 0 a new domain, 1 the same one.
    const fn from_result(result: u64) -> Self {
        if result == 0 { Self::Resumed } else { Self::Continued }
    }
}

/// Suspends the domain. Context: vcpu 0, upcalls masked, all others parked.
/// # Errors
/// As Xen returns them; then nothing has happened.
/// # Safety
/// - Every other vcpu is down, or parked outside of hypercalls that carry mfns and uses neither `vcpu_info` nor the clock until it has
///   been told the outcome.
/// - `start_info_mfn` is the mfn of `start_info`, whose `store_mfn` and console mfn hold pfns now.
/// - No mfn obtained before the call is used after [`SuspendOutcome::Resumed`], and no mapping of a frame that is not
///   ours (shared_info, grants) is present during it.
pub unsafe fn suspend(start_info_mfn: u64) -> Result<SuspendOutcome, Errno> {
    // The toolstack looks for the mfn in vcpu 0's rdx, whatever Xen makes of a third argument.
    // SAFETY: the caller fulfils the same conditions.
    let result = unsafe { shutdown_op(SHUTDOWN_suspend, start_info_mfn) }?;
    Ok(SuspendOutcome::from_result(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_a_new_domain() {
        assert_eq!(SuspendOutcome::from_result(0), SuspendOutcome::Resumed);
        assert_eq!(SuspendOutcome::from_result(1), SuspendOutcome::Continued);
    }

    #[test]
    fn a_suspend_does_not_hide_in_a_shutdown() {
        assert_eq!(shutdown(SHUTDOWN_suspend), Err(Errno::EINVAL));
        assert_eq!(shutdown(crate::abi::sched::SHUTDOWN_crash), Err(Errno::ENOSYS));
    }

    #[test]
    fn without_xen_a_suspend_is_an_error_and_not_an_outcome() {
        // SAFETY: off the bare-metal target the call does nothing.
        assert_eq!(unsafe { suspend(0) }, Err(Errno::ENOSYS));
    }
}
