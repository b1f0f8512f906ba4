//! `SCHEDOP_poll` with an argument that stands still, so that an upcall of the same vcpu can end a wait that is about to begin.
//! Contexts: as [`sched::poll`](super::sched::poll).

use core::mem::{offset_of, size_of};

use super::raw;
use crate::Errno;
use crate::abi::sched::{SCHEDOP_poll, SchedPoll};
use crate::abi::xen::__HYPERVISOR_sched_op;
use crate::primitive::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// What [`poll_for`] waits for, where an upcall of the same vcpu can still change it. Laid out as a [`SchedPoll`] of one port.
#[repr(C)]
pub struct PollArgument {
    port: AtomicPtr<AtomicU32>,
    nr_ports: u32,
    until_ns: AtomicU64,
}

const _: () = assert!(size_of::<PollArgument>() == size_of::<SchedPoll>());
const _: () = assert!(offset_of!(PollArgument, nr_ports) == offset_of!(SchedPoll, nr_ports));
const _: () = assert!(offset_of!(PollArgument, until_ns) == offset_of!(SchedPoll, timeout));

impl PollArgument {
    /// Waits for nothing: a poll is refused.
    pub const fn new() -> PollArgument {
        PollArgument { port: AtomicPtr::new(core::ptr::null_mut()), nr_ports: 1, until_ns: AtomicU64::new(0) }
    }

    /// What the next call waits for, as for [`poll`](super::sched::poll).
    pub fn set(&self, port: &'static AtomicU32, until_ns: u64) {
        // ORDERING: Relaxed in both, as below: read by Xen in a call of this vcpu's.
        self.port.store(core::ptr::from_ref(port).cast_mut(), Ordering::Relaxed);
        self.until_ns.store(until_ns, Ordering::Relaxed);
    }

    /// A call that has not begun yet returns at once, whatever it was to wait for. Context: any upcall of this vcpu's.
    pub fn end_at_once(&self) {
        // 1 ns after the host was started. 0 would mean no limit.
        self.until_ns.store(1, Ordering::Relaxed);
    }
}

impl Default for PollArgument {
    fn default() -> PollArgument {
        PollArgument::new()
    }
}

/// [`poll`](super::sched::poll), for what `argument` says when Xen reads it, inside of the call.
/// # Errors
/// As for [`poll`](super::sched::poll); `EFAULT`: nothing was set.
#[inline]
pub fn poll_for(argument: &PollArgument) -> Result<(), Errno> {
    let address = core::ptr::from_ref(argument).addr() as u64;
    // SAFETY: Xen reads the argument and the word that it points to, which is `'static`.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_sched_op, SCHEDOP_poll.into(), address) };
    Errno::check(ret).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upcall_ends_a_wait_without_a_limit() {
        static PORT: AtomicU32 = AtomicU32::new(5);
        let argument = PollArgument::new();
        argument.set(&PORT, 0);
        assert_eq!(argument.until_ns.load(Ordering::Relaxed), 0, "no limit");
        argument.end_at_once();
        assert_eq!(argument.until_ns.load(Ordering::Relaxed), 1, "a time that is past, and not 0");
        assert_eq!(argument.port.load(Ordering::Relaxed).cast_const(), core::ptr::from_ref(&PORT));
    }
}
