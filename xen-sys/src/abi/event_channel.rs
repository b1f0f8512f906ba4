//! event_channel.h: ports, their operations, and the constants of both event ABIs.
//!
//! Contexts: any; plain data, except [`EvtchnFifoControlBlock`], which is shared and made of atomics.
#![forbid(unsafe_code)]

use super::xen::domid_t;
use crate::primitive::{Opaque, sync::atomic::AtomicU32};
use crate::{array_of, const_unless_loom};

/// A port's number; 0 is never valid.
pub type evtchn_port_t = u32;
/// FIFO ABI: one port's flags and link.
pub type event_word_t = u32;

/// [`EvtchnBindInterdomain`].
pub const EVTCHNOP_bind_interdomain: u32 = 0;
/// [`EvtchnBindVirq`].
pub const EVTCHNOP_bind_virq: u32 = 1;
/// [`EvtchnBindPirq`].
pub const EVTCHNOP_bind_pirq: u32 = 2;
/// [`EvtchnClose`].
pub const EVTCHNOP_close: u32 = 3;
/// [`EvtchnSend`].
pub const EVTCHNOP_send: u32 = 4;
/// [`EvtchnStatus`].
pub const EVTCHNOP_status: u32 = 5;
/// [`EvtchnAllocUnbound`].
pub const EVTCHNOP_alloc_unbound: u32 = 6;
/// [`EvtchnBindIpi`].
pub const EVTCHNOP_bind_ipi: u32 = 7;
/// [`EvtchnBindVcpu`].
pub const EVTCHNOP_bind_vcpu: u32 = 8;
/// [`EvtchnUnmask`].
pub const EVTCHNOP_unmask: u32 = 9;
/// [`EvtchnReset`].
pub const EVTCHNOP_reset: u32 = 10;
/// [`EvtchnInitControl`].
pub const EVTCHNOP_init_control: u32 = 11;
/// [`EvtchnExpandArray`].
pub const EVTCHNOP_expand_array: u32 = 12;
/// [`EvtchnSetPriority`].
pub const EVTCHNOP_set_priority: u32 = 13;

/// The port is free.
pub const EVTCHNSTAT_closed: u32 = 0;
/// The port waits for the other domain.
pub const EVTCHNSTAT_unbound: u32 = 1;
/// The port is connected to another domain.
pub const EVTCHNSTAT_interdomain: u32 = 2;
/// The port is bound to a physical interrupt.
pub const EVTCHNSTAT_pirq: u32 = 3;
/// The port is bound to a virq.
pub const EVTCHNSTAT_virq: u32 = 4;
/// The port is bound to an ipi.
pub const EVTCHNSTAT_ipi: u32 = 5;

/// In `EvtchnBindPirq::flags`: others may share the interrupt.
pub const BIND_PIRQ__WILL_SHARE: u32 = 1;

/// 2-level ABI: number of ports.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 64 * 64;

/// FIFO ABI: highest priority.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// FIFO ABI: what a new port has.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// FIFO ABI: lowest priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
/// FIFO ABI: queues per vcpu, one for each priority.
pub const EVTCHN_FIFO_MAX_QUEUES: u32 = EVTCHN_FIFO_PRIORITY_MIN + 1;
/// FIFO ABI: bit number of PENDING in an event word.
pub const EVTCHN_FIFO_PENDING: u32 = 31;
/// FIFO ABI: bit number of MASKED in an event word.
pub const EVTCHN_FIFO_MASKED: u32 = 30;
/// FIFO ABI: bit number of LINKED in an event word.
pub const EVTCHN_FIFO_LINKED: u32 = 29;
/// FIFO ABI: bit number of BUSY in an event word.
pub const EVTCHN_FIFO_BUSY: u32 = 28;
/// FIFO ABI: width of the link.
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
/// FIFO ABI: the link in an event word.
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << EVTCHN_FIFO_LINK_BITS) - 1;
/// FIFO ABI: number of ports.
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << EVTCHN_FIFO_LINK_BITS;

/// Allocates a port that `remote_dom` may bind to. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnAllocUnbound {
    /// In: whose port; `DOMID_SELF` unless privileged.
    pub dom: domid_t,
    /// In: who may bind.
    pub remote_dom: domid_t,
    /// Out: the new port.
    pub port: evtchn_port_t,
}

/// Binds to a port that another domain has allocated for us. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnBindInterdomain {
    /// In: the other domain.
    pub remote_dom: domid_t,
    /// In: its port.
    pub remote_port: evtchn_port_t,
    /// Out: our port; it is made pending once.
    pub local_port: evtchn_port_t,
}

/// Binds a virq. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnBindVirq {
    /// In: `VIRQ_*`.
    pub virq: u32,
    /// In: the vcpu; 0 for a global virq.
    pub vcpu: u32,
    /// Out: the port.
    pub port: evtchn_port_t,
}

/// Binds a physical interrupt. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnBindPirq {
    /// In: the interrupt.
    pub pirq: u32,
    /// In: `BIND_PIRQ__*`.
    pub flags: u32,
    /// Out: the port.
    pub port: evtchn_port_t,
}

/// Allocates a port that notifies `vcpu` when it is sent. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnBindIpi {
    /// In: the vcpu.
    pub vcpu: u32,
    /// Out: the port.
    pub port: evtchn_port_t,
}

/// Frees a port. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnClose {
    /// In: the port.
    pub port: evtchn_port_t,
}

/// Sends to the other end of a port. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnSend {
    /// In: our end.
    pub port: evtchn_port_t,
}

/// Asks for a port's state. Argument.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EvtchnStatus {
    /// In: whose port.
    pub dom: domid_t,
    /// In: the port.
    pub port: evtchn_port_t,
    /// Out: `EVTCHNSTAT_*`.
    pub status: u32,
    /// Out: the vcpu that it notifies.
    pub vcpu: u32,
    /// Out: the other end.
    pub u: EvtchnStatusU,
}

/// `EvtchnStatus::u`; `EvtchnStatus::status` says which variant holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub union EvtchnStatusU {
    /// [`EVTCHNSTAT_unbound`].
    pub unbound: EvtchnStatusUnbound,
    /// [`EVTCHNSTAT_interdomain`].
    pub interdomain: EvtchnStatusInterdomain,
    /// [`EVTCHNSTAT_pirq`].
    pub pirq: u32,
    /// [`EVTCHNSTAT_virq`].
    pub virq: u32,
}

/// Who may bind.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnStatusUnbound {
    /// The domain.
    pub dom: domid_t,
}

/// The other end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnStatusInterdomain {
    /// The domain.
    pub dom: domid_t,
    /// Its port.
    pub port: evtchn_port_t,
}

/// Chooses the vcpu that a port notifies; not for ipis and per-vcpu virqs. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnBindVcpu {
    /// In: the port.
    pub port: evtchn_port_t,
    /// In: the vcpu.
    pub vcpu: u32,
}

/// Unmasks a port and notifies its vcpu if it is pending. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnUnmask {
    /// In: the port.
    pub port: evtchn_port_t,
}

/// Closes all ports of a domain and leaves the FIFO ABI. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnReset {
    /// In: the domain; `DOMID_SELF` unless privileged.
    pub dom: domid_t,
}

/// FIFO ABI: places a vcpu's control block. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnInitControl {
    /// In: mfn of the page.
    pub control_gfn: u64,
    /// In: offset in the page, bytes.
    pub offset: u32,
    /// In: the vcpu.
    pub vcpu: u32,
    /// Out: width of links.
    pub link_bits: u8,
    /// Padding.
    pub _pad: [u8; 7],
}

/// FIFO ABI: adds a page to the event array. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnExpandArray {
    /// In: mfn of the page.
    pub array_gfn: u64,
}

/// FIFO ABI: sets a port's priority. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct EvtchnSetPriority {
    /// In: the port.
    pub port: evtchn_port_t,
    /// In: 0 highest, 15 lowest.
    pub priority: u32,
}

/// FIFO ABI: one vcpu's queues. Shared; 72 bytes within one page.
#[repr(C)]
#[derive(Debug)]
pub struct EvtchnFifoControlBlock {
    /// Bit n: queue n is not empty. Xen sets, the guest clears.
    pub ready: AtomicU32,
    /// Padding.
    pub _rsvd: Opaque<u32>,
    /// Per queue the first port, written by Xen.
    pub head: [AtomicU32; EVTCHN_FIFO_MAX_QUEUES as usize],
}

impl EvtchnFifoControlBlock {
    const_unless_loom! {
        /// All zero, as `EVTCHNOP_init_control` wants it.
        #[expect(clippy::new_without_default, reason = "one way to make it is enough")]
        pub fn new() -> Self {
            Self { ready: AtomicU32::new(0), _rsvd: Opaque::new(0), head: array_of!(AtomicU32::new(0)) }
        }
    }
}
