//! The kernel's event channels: what runs for which event, and the one [`Events`] of the domain.
//!
//! Context of every handler here: upcall, upcalls masked. They note what happened, wake tasks, run the calls of the inbox, which
//! are short, and leave all else to the executor. VIRQ_DEBUG alone prints.

use evtchn::{AbiKind, Events, Handler, Handlers, Ipi, Place, Virq, Xen};
use percpu::Masked;
use spin::Once;
use xen_sys::abi::xen::VcpuInfo;

use crate::{cpus, dump, memory, timer};

static EVENTS: Once<Events<Xen>> = Once::new();

/// Makes the tables. Boot, once, before `shared_info` is attached. `on_timer`: [`on_timer`], or what calls it.
pub(crate) fn init(nr_cpus: usize, abi: AbiKind, on_timer: Handler) {
    let handlers =
        Handlers::new().virq(Virq::TIMER, on_timer).virq_of_boot(Virq::DEBUG, on_debug).ipi(Ipi::Call, on_ipi);
    EVENTS.call_once(|| Events::new(nr_cpus, abi, handlers, Xen { place_of }));
}

fn place_of(address: *const ()) -> Place {
    let (mfn, offset) = memory::frame_and_offset(address);
    Place { mfn: mfn.get(), offset }
}

/// The domain's event channels.
pub(crate) fn get() -> &'static Events<Xen> {
    EVENTS.get().expect("init() runs at boot, before upcalls are unmasked")
}

/// Called by the upcall's entry, and where a CPU looks for itself. `flags`: this CPU's registered `vcpu_info`.
#[inline]
pub(crate) fn upcall(flags: &VcpuInfo) {
    // SAFETY: Xen masks upcalls as it enters the callback, and they stay so until the way out.
    let masked = unsafe { Masked::assume() };
    // A spurious upcall is normal, and counted.
    let _ = get().demux(&masked, flags);
}

/// What handles VIRQ_TIMER.
pub(crate) fn on_timer(masked: &Masked) {
    timer::on_event(masked);
    cpus::took_timer(masked);
}

fn on_ipi(masked: &Masked) {
    cpus::mail().serve(masked);
}

fn on_debug(_masked: &Masked) {
    dump::on_debug();
}
