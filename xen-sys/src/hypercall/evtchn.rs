//! Event channel operations. Virqs and ipis are bound through a [`Batch`](super::Batch).
//!
//! All of them take Xen's per-domain event lock, so binding on many vcpus at once queues up inside Xen; except `send`,
//! `unmask` and `set_priority`, which take the channel's own. Safe throughout: a wrong port loses events, no memory.
//! The exceptions hand Xen a frame to write to. Those of the FIFO ABI have no user yet.
//!
//! Contexts: any. Source: xen/include/public/event_channel.h; xen/common/event_channel.c, do_event_channel_op.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::event_channel::{
    EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_bind_vcpu, EVTCHNOP_close, EVTCHNOP_expand_array,
    EVTCHNOP_init_control, EVTCHNOP_send, EVTCHNOP_set_priority, EVTCHNOP_status, EVTCHNOP_unmask, EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain, EVTCHNSTAT_ipi, EVTCHNSTAT_pirq, EVTCHNSTAT_unbound, EVTCHNSTAT_virq, EvtchnAllocUnbound,
    EvtchnBindInterdomain, EvtchnBindVcpu, EvtchnClose, EvtchnExpandArray, EvtchnInitControl, EvtchnSend,
    EvtchnSetPriority, EvtchnStatus, EvtchnStatusInterdomain, EvtchnStatusU, EvtchnUnmask,
};
use crate::abi::xen::{__HYPERVISOR_event_channel_op, domid_t};

/// `cmd` must be the operation that takes a `T`.
///
/// # Safety
/// The safety conditions of `cmd`.
#[inline]
unsafe fn event_channel_op<T>(cmd: u32, argument: &mut T) -> Result<(), Errno> {
    let address = address_of(argument);
    // SAFETY: the address is of a live `T`, which is what Xen reads and writes for `cmd`; the rest is the caller's.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_event_channel_op, cmd.into(), address) };
    Errno::check(ret).map(drop)
}

/// Allocates a port in `dom` that `remote` may bind to. It starts unmasked or masked as its MASK bit says.
/// # Errors
/// `ENOSPC`: no port left; `EPERM`: `dom` is not ours; `ESRCH`: no such domain.
pub fn alloc_unbound(dom: domid_t, remote: domid_t) -> Result<u32, Errno> {
    let mut op = EvtchnAllocUnbound { dom, remote_dom: remote, port: 0 };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_alloc_unbound, &mut op) }?;
    Ok(op.port)
}

/// Binds to the port that `remote_dom` has allocated for us. The new port is pending once, at once.
/// # Errors
/// `EINVAL`: that port is not waiting for us; `ENOSPC`; `ESRCH`.
pub fn bind_interdomain(remote_dom: domid_t, remote_port: u32) -> Result<u32, Errno> {
    let mut op = EvtchnBindInterdomain { remote_dom, remote_port, local_port: 0 };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_bind_interdomain, &mut op) }?;
    Ok(op.local_port)
}

/// Frees a port and clears its pending bit.
/// # Errors
/// `EINVAL`: not bound.
pub fn close(port: u32) -> Result<(), Errno> {
    let mut op = EvtchnClose { port };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_close, &mut op) }
}

/// Sends to the other end of `port`. An event to a port that nobody has bound is dropped and is no error.
/// # Errors
/// `EINVAL`: not a port that can be sent.
#[inline]
pub fn send(port: u32) -> Result<(), Errno> {
    let mut op = EvtchnSend { port };
    // SAFETY: sets a pending bit, which is atomic for us.
    unsafe { event_channel_op(EVTCHNOP_send, &mut op) }
}

/// Chooses the vcpu that `port` notifies. An event that is pending already stays with the old one.
/// # Errors
/// `EINVAL`: the port's binding is fixed (ipi, per-vcpu virq), or not bound; `ENOENT`: no such vcpu.
pub fn bind_vcpu(port: u32, vcpu: u32) -> Result<(), Errno> {
    let mut op = EvtchnBindVcpu { port, vcpu };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_bind_vcpu, &mut op) }
}

/// Unmasks a port from any vcpu, and notifies its vcpu if it is pending.
/// # Errors
/// `EINVAL`: the port number is too high.
pub fn unmask(port: u32) -> Result<(), Errno> {
    let mut op = EvtchnUnmask { port };
    // SAFETY: changes mask and pending bits, which are atomic for us.
    unsafe { event_channel_op(EVTCHNOP_unmask, &mut op) }
}

/// FIFO ABI: gives Xen the control block of `vcpu`; the first call switches the domain over. Returns the link's width.
/// # Errors
/// `EINVAL`: the block crosses its page, `offset` is not a multiple of 8, or the page is not ours; `ENOENT`: no such
/// vcpu; `ENOMEM`; `ENOSYS`: a Xen without the FIFO ABI.
/// # Safety
/// The 72 bytes at `offset` in `mfn` are a zeroed
/// [`EvtchnFifoControlBlock`](crate::abi::event_channel::EvtchnFifoControlBlock), reached only through shared
/// references, until the domain is reset or ends.
pub unsafe fn init_control(vcpu: u32, mfn: u64, offset: u32) -> Result<u8, Errno> {
    let mut op = EvtchnInitControl { control_gfn: mfn, offset, vcpu, ..Default::default() };
    // SAFETY: the caller gives the block away.
    unsafe { event_channel_op(EVTCHNOP_init_control, &mut op) }?;
    Ok(op.link_bits)
}

/// FIFO ABI: adds a page of event words.
/// # Errors
/// `EINVAL`: the page is not ours; `ENOSPC`: the array is complete; `EOPNOTSUPP`: not in FIFO mode.
/// # Safety
/// The page is reached only as atomic words, until the domain is reset or ends.
pub unsafe fn expand_array(mfn: u64) -> Result<(), Errno> {
    let mut op = EvtchnExpandArray { array_gfn: mfn };
    // SAFETY: the caller gives the page away.
    unsafe { event_channel_op(EVTCHNOP_expand_array, &mut op) }
}

/// FIFO ABI: sets a port's priority, 0 highest, 15 lowest; takes effect with its next event.
/// # Errors
/// `EINVAL`: out of range, or the port is not bound; `EOPNOTSUPP`: not in FIFO mode.
pub fn set_priority(port: u32, priority: u32) -> Result<(), Errno> {
    let mut op = EvtchnSetPriority { port, priority };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_set_priority, &mut op) }
}

/// What a port is to Xen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The vcpu that it notifies; 0 for one that is closed.
    pub vcpu: u32,
    /// What it is bound to.
    pub bound_to: BoundTo,
}

/// What a port is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundTo {
    /// Nothing: it is free, or reserved.
    Closed,
    /// It waits for this domain to bind to it.
    Unbound(domid_t),
    /// A port of another domain's.
    Interdomain {
        /// That domain.
        dom: domid_t,
        /// Its port.
        port: u32,
    },
    /// A physical interrupt.
    Pirq(u32),
    /// A virq, by its number.
    Virq(u32),
    /// The other vcpus of the domain.
    Ipi,
    /// An `EVTCHNSTAT_*` that is none that we know.
    Unknown(u32),
}

impl Status {
    #[expect(non_upper_case_globals, reason = "Xen's names")]
    fn new(answer: &EvtchnStatus) -> Status {
        let u = &answer.u;
        let bound_to = match answer.status {
            EVTCHNSTAT_closed => BoundTo::Closed,
            // SAFETY: `u` is of plain numbers all through, so any bytes are a value of each variant; and they are all
            //   set, by `status` before Xen wrote to some of them. The same for those below.
            EVTCHNSTAT_unbound => BoundTo::Unbound(unsafe { u.unbound }.dom),
            EVTCHNSTAT_interdomain => {
                // SAFETY: as above.
                let EvtchnStatusInterdomain { dom, port } = unsafe { u.interdomain };
                BoundTo::Interdomain { dom, port }
            }
            // SAFETY: as above.
            EVTCHNSTAT_pirq => BoundTo::Pirq(unsafe { u.pirq }),
            // SAFETY: as above.
            EVTCHNSTAT_virq => BoundTo::Virq(unsafe { u.virq }),
            EVTCHNSTAT_ipi => BoundTo::Ipi,
            other => BoundTo::Unknown(other),
        };
        Status { vcpu: answer.vcpu, bound_to }
    }
}

/// Asks what `port` of `dom` is. A closed port is no error.
/// # Errors
/// `EINVAL`: Xen has no such port, nor any above it; `EACCES`: it is one that Xen itself listens to; `EPERM`: `dom` is not
/// ours; `ESRCH`: no such domain.
pub fn status(dom: domid_t, port: u32) -> Result<Status, Errno> {
    let u = EvtchnStatusU { interdomain: EvtchnStatusInterdomain { dom: 0, port: 0 } };
    let mut op = EvtchnStatus { dom, port, status: EVTCHNSTAT_closed, vcpu: 0, u };
    // SAFETY: changes nothing.
    unsafe { event_channel_op(EVTCHNOP_status, &mut op) }?;
    Ok(Status::new(&op))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::event_channel::EvtchnStatusUnbound;
    use crate::abi::xen::DOMID_SELF;

    #[test]
    fn every_answer_is_read_by_its_kind() {
        let read = |status, u| Status::new(&EvtchnStatus { dom: DOMID_SELF, port: 7, status, vcpu: 3, u });
        let interdomain = |dom, port| EvtchnStatusU { interdomain: EvtchnStatusInterdomain { dom, port } };
        let unbound = EvtchnStatusU { unbound: EvtchnStatusUnbound { dom: 5 } };
        for (status, u, wanted) in [
            (EVTCHNSTAT_closed, interdomain(1, 2), BoundTo::Closed),
            (EVTCHNSTAT_unbound, unbound, BoundTo::Unbound(5)),
            (EVTCHNSTAT_interdomain, interdomain(1, 2), BoundTo::Interdomain { dom: 1, port: 2 }),
            (EVTCHNSTAT_pirq, EvtchnStatusU { pirq: 9 }, BoundTo::Pirq(9)),
            (EVTCHNSTAT_virq, EvtchnStatusU { virq: 1 }, BoundTo::Virq(1)),
            (EVTCHNSTAT_ipi, interdomain(1, 2), BoundTo::Ipi),
            (EVTCHNSTAT_ipi + 1, interdomain(1, 2), BoundTo::Unknown(EVTCHNSTAT_ipi + 1)),
        ] {
            assert_eq!(read(status, u), Status { vcpu: 3, bound_to: wanted });
        }
    }

    #[test]
    fn without_xen_every_operation_says_so() {
        assert_eq!(alloc_unbound(DOMID_SELF, DOMID_SELF), Err(Errno::ENOSYS));
        assert_eq!(send(1), Err(Errno::ENOSYS));
        assert_eq!(close(1), Err(Errno::ENOSYS));
        assert_eq!(status(DOMID_SELF, 1), Err(Errno::ENOSYS));
    }
}
