//! Event channel operations.
//!
//! All of them take Xen's per-domain event lock, except `send` and `unmask`, so binding on many vcpus at once queues up
//! inside Xen. Safe throughout: a wrong port loses events, no memory. The exceptions hand Xen a frame to write to.
//!
//! Contexts: any. Source: xen/include/public/event_channel.h; xen/common/event_channel.c, do_event_channel_op.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::event_channel::{
    EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_bind_ipi, EVTCHNOP_bind_vcpu, EVTCHNOP_bind_virq,
    EVTCHNOP_close, EVTCHNOP_expand_array, EVTCHNOP_init_control, EVTCHNOP_reset, EVTCHNOP_send, EVTCHNOP_set_priority,
    EVTCHNOP_status, EVTCHNOP_unmask, EVTCHNSTAT_closed, EVTCHNSTAT_interdomain, EVTCHNSTAT_ipi, EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound, EVTCHNSTAT_virq, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindIpi, EvtchnBindVcpu,
    EvtchnBindVirq, EvtchnClose, EvtchnExpandArray, EvtchnInitControl, EvtchnReset, EvtchnSend, EvtchnSetPriority,
    EvtchnStatus, EvtchnStatusInterdomain, EvtchnStatusU, EvtchnUnmask,
};
use crate::abi::xen::{__HYPERVISOR_event_channel_op, DOMID_SELF, domid_t};

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

/// Binds a virq for a vcpu, which may be down. Global virqs: `vcpu` 0.
/// # Errors
/// `EEXIST`: bound already; `EINVAL`: no such virq, or a global one and `vcpu` is not 0; `ENOENT`: no such vcpu; `ENOSPC`.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<u32, Errno> {
    let mut op = EvtchnBindVirq { virq, vcpu, port: 0 };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_bind_virq, &mut op) }?;
    Ok(op.port)
}

/// Allocates a port that notifies `vcpu`, which may be down.
/// # Errors
/// `ENOENT`: no such vcpu; `ENOSPC`.
pub fn bind_ipi(vcpu: u32) -> Result<u32, Errno> {
    let mut op = EvtchnBindIpi { vcpu, port: 0 };
    // SAFETY: changes the port table only.
    unsafe { event_channel_op(EVTCHNOP_bind_ipi, &mut op) }?;
    Ok(op.port)
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

/// What a port is, as [`status`] tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The vcpu that the port notifies.
    pub vcpu: u32,
    /// What is at its other end.
    pub kind: ChannelKind,
}

/// What is at the other end of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// Nothing; the port is free.
    Closed,
    /// Nothing yet; `dom` may bind.
    Unbound {
        /// Who may bind.
        dom: domid_t,
    },
    /// Another domain's port, or our own.
    Interdomain {
        /// The domain.
        dom: domid_t,
        /// Its port.
        port: u32,
    },
    /// A physical interrupt.
    Pirq(u32),
    /// A virq.
    Virq(u32),
    /// An ipi.
    Ipi,
    /// A state that the header of 4.17 does not name.
    Other(u32),
}

/// Reads out what Xen has filled in; the variant that `status` names must be written.
#[expect(non_upper_case_globals, reason = "constants spelled as Xen spells them, in patterns")]
fn decode(op: &EvtchnStatus) -> Status {
    let kind = match op.status {
        EVTCHNSTAT_closed => ChannelKind::Closed,
        EVTCHNSTAT_unbound => {
            // SAFETY: `status` names this variant; it is an integer, and Xen has
            // written the whole structure back.
            let dom = unsafe { op.u.unbound.dom };
            ChannelKind::Unbound { dom }
        }
        EVTCHNSTAT_interdomain => {
            // SAFETY: as above.
            let end = unsafe { op.u.interdomain };
            ChannelKind::Interdomain { dom: end.dom, port: end.port }
        }
        // SAFETY: as above.
        EVTCHNSTAT_pirq => ChannelKind::Pirq(unsafe { op.u.pirq }),
        // SAFETY: as above.
        EVTCHNSTAT_virq => ChannelKind::Virq(unsafe { op.u.virq }),
        EVTCHNSTAT_ipi => ChannelKind::Ipi,
        other => ChannelKind::Other(other),
    };
    Status { vcpu: op.vcpu, kind }
}

/// Asks what one of our ports is. May be stale when it returns.
/// # Errors
/// `EINVAL`: the port number is too high; `EACCES`: Xen itself is at its end.
pub fn status(port: u32) -> Result<Status, Errno> {
    let u = EvtchnStatusU { interdomain: EvtchnStatusInterdomain::default() };
    let mut op = EvtchnStatus { dom: DOMID_SELF, port, status: 0, vcpu: 0, u };
    // SAFETY: reads only.
    unsafe { event_channel_op(EVTCHNOP_status, &mut op) }?;
    Ok(decode(&op))
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

/// Closes *all* ports of this domain, xenstore's and the console's too, and leaves the FIFO ABI.
/// # Errors
/// As Xen returns them; none is expected for ourselves.
pub fn reset() -> Result<(), Errno> {
    let mut op = EvtchnReset { dom: DOMID_SELF };
    // SAFETY: changes the port table only; frames given to the FIFO ABI come back to us.
    unsafe { event_channel_op(EVTCHNOP_reset, &mut op) }
}

/// FIFO ABI: gives Xen the control block of `vcpu`; the first call switches the domain over. Returns the link's width.
/// # Errors
/// `EINVAL`: the block crosses its page, `offset` is not a multiple of 8, or the page is not ours; `ENOENT`: no such vcpu;
/// `ENOMEM`; `ENOSYS`: a Xen without the FIFO ABI.
/// # Safety
/// The 72 bytes at `offset` in `mfn` are a zeroed [`EvtchnFifoControlBlock`](crate::abi::event_channel::EvtchnFifoControlBlock),
/// reached only through shared references, until the domain is reset or ends.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::event_channel::EvtchnStatusUnbound;

    fn decoded(status: u32, u: EvtchnStatusU) -> ChannelKind {
        decode(&EvtchnStatus { dom: DOMID_SELF, port: 9, status, vcpu: 3, u }).kind
    }

    #[test]
    fn each_state_reads_its_own_variant() {
        let peer = EvtchnStatusU { interdomain: EvtchnStatusInterdomain { dom: 7, port: 70_000 } };
        assert_eq!(decoded(EVTCHNSTAT_closed, peer), ChannelKind::Closed);
        assert_eq!(decoded(EVTCHNSTAT_interdomain, peer), ChannelKind::Interdomain { dom: 7, port: 70_000 });
        assert_eq!(decoded(EVTCHNSTAT_ipi, peer), ChannelKind::Ipi);
        assert_eq!(decoded(6, peer), ChannelKind::Other(6));
        let unbound = EvtchnStatusU { unbound: EvtchnStatusUnbound { dom: DOMID_SELF } };
        assert_eq!(decoded(EVTCHNSTAT_unbound, unbound), ChannelKind::Unbound { dom: DOMID_SELF });
        assert_eq!(decoded(EVTCHNSTAT_virq, EvtchnStatusU { virq: 1 }), ChannelKind::Virq(1));
        assert_eq!(decoded(EVTCHNSTAT_pirq, EvtchnStatusU { pirq: 16 }), ChannelKind::Pirq(16));
    }

    #[test]
    fn the_vcpu_is_passed_on() {
        let op = EvtchnStatus { dom: DOMID_SELF, port: 9, status: 5, vcpu: 127, u: EvtchnStatusU { virq: 0 } };
        assert_eq!(decode(&op), Status { vcpu: 127, kind: ChannelKind::Ipi });
    }

    #[test]
    fn without_xen_every_operation_says_so() {
        assert_eq!(bind_virq(0, 0), Err(Errno::ENOSYS));
        assert_eq!(send(1), Err(Errno::ENOSYS));
        assert_eq!(status(1), Err(Errno::ENOSYS));
    }
}
