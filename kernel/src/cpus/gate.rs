//! [`Gate`]: where vcpus sleep that wait in a rendezvous. A port that nobody is interrupted for, and `SCHEDOP_poll` on it: one
//! send wakes all who wait, and until PENDING is cleared nobody can begin to wait any more, so that no wake-up is lost.
//!
//! | vcpu 0's | PENDING of the port | [`DOOR`] |
//! |---|---|---|
//! | [`make_anew`]: in a new life of the domain, before anybody but vcpu 0 runs | clear, of a new one | 0: it was the old one's |
//! | `shut`: all are out, the next rendezvous begins | cleared | the port, made now if there is none |
//! | `open` | set by the send | 0 |
//!
//! Xen takes the port's number out of [`DOOR`] inside the hypercall. 0 is no port: the poll fails at once, and the vcpu yields. No poll
//! outlives its domain: whoever waits at a suspend is down ([`super::away`]).
//!
//! With the 2-level ABI and with FIFO alike Xen wakes the pollers of a masked port (`evtchn_check_pollers`): it goes through the
//! vcpus that poll, and only while some do.
//!
//! Without a port (the domain has no more, or it is beyond the event pages) all yield. Suspend: *rebuilt*.
//! Turned down: `SCHEDOP_block` and an event for each, n hypercalls in place of one.

use evtchn::{Incarnation, PortNr};
use percpu::{CpuId, Masked};
use smp::Relax;
use xen_sys::Errno;
use xen_sys::hypercall::poll::poll_for;
use xen_sys::hypercall::version::xen_version;
use xen_sys::hypercall::{Batch, evtchn as hypercall, sched};
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};

use super::bind::CALLS;
use crate::relax::Processor;
use crate::{events, time};

/// What waits are on, for Xen to read; 0: waits do not last. Written by vcpu 0.
static DOOR: AtomicU32 = AtomicU32::new(0);

/// The port, and the life of the domain that it is of. Read and written by vcpu 0 only.
static PORT: AtomicU32 = AtomicU32::new(0);
static LIFE: AtomicU32 = AtomicU32::new(Incarnation::NONE.get());

/// See the head of this file.
pub(crate) struct Gate;

/// The port of this life of the domain. Context: vcpu 0.
pub(super) fn port() -> Option<PortNr> {
    // ORDERING: Relaxed twice, written by this CPU.
    let of_this_life = LIFE.load(Ordering::Relaxed) == events::get().incarnation().get();
    PortNr::new(PORT.load(Ordering::Relaxed)).filter(|_| of_this_life)
}

/// Makes the port, once in a life of the domain, and before anybody has bound many, where that can be: the event page that it is in is
/// there then. It is masked, as every port is that our tables do not know. Two hypercalls where it
/// is beyond the event pages, else one. Context: vcpu 0.
pub(super) fn make_port() -> Option<PortNr> {
    let events = events::get();
    let life = events.incarnation();
    // ORDERING: Relaxed in all, as in `port`.
    if LIFE.load(Ordering::Relaxed) == life.get() {
        return None;
    }
    LIFE.store(life.get(), Ordering::Relaxed);
    let mut batch = Batch::<CALLS>::new();
    let token = batch.bind_ipi(CpuId::BOOT.vcpu()).expect("the batch has room for one");
    let bound = batch.issue().and_then(|results| results.port(token)).ok();
    let usable = bound.and_then(PortNr::new).filter(|nr| events.forget_pending(*nr));
    if let (Some(bound), None) = (bound, usable) {
        // One that cannot be closed is lost until the domain ends.
        let _ = hypercall::close(bound);
    }
    PORT.store(usable.map_or(0, PortNr::get), Ordering::Relaxed);
    usable
}

/// In a new life of the domain, of which the number that waits were on means nothing. Context: vcpu 0, all others down.
pub(super) fn make_anew() {
    // ORDERING: Relaxed: read by those that vcpu 0 starts, by Xen.
    DOOR.store(0, Ordering::Relaxed);
    make_port();
}

/// As [`smp::Gate::doze`]; `before_the_call` comes between unmasking and the hypercall, where an upcall may strike.
fn doze(_masked: &Masked, limit_ns: Option<u64>, before_the_call: impl FnOnce()) -> Result<(), Errno> {
    let until_ns = limit_ns.map_or(0, |ns| time::system_ns().saturating_add(ns));
    let area = percpu::area();
    area.doze.set(&DOOR, until_ns);
    // An upcall that strikes now is sent back with upcalls masked, and runs nothing: that is what the token promises. It ends the
    // wait before it begins.
    area.set_dozing(true);
    let mask = &area.vcpu_info.evtchn_upcall_mask;
    // ORDERING: Relaxed twice: read by Xen when this vcpu calls it, or is interrupted.
    mask.store(0, Ordering::Relaxed);
    before_the_call();
    let waited = poll_for(&area.doze);
    mask.store(1, Ordering::Relaxed);
    area.set_dozing(false);
    waited
}

/// Dozes at an open gate without a limit, and has an event strike between unmasking and the hypercall. Does not return if that event
/// is lost. Context: vcpu 0, no rendezvous on.
///
/// # Errors
/// The gate has no port, or did not doze.
pub(super) fn doze_struck_before_the_call(masked: &Masked) -> Result<(), &'static str> {
    let gate = Gate;
    smp::Gate::shut(&gate);
    if port().is_none() {
        return Err("the gate has no port");
    }
    super::reschedule(CpuId::BOOT);
    let waited = doze(masked, None, || {
        // Xen delivers on its way out of any hypercall.
        let _ = xen_version();
    });
    smp::Gate::open(&gate);
    waited.map_err(|_| "the poll was refused")
}

impl Relax for Gate {
    fn spin(&self) {
        Processor.spin();
    }

    fn give_up_processor(&self) {
        Processor.give_up_processor();
    }
}

impl smp::Gate for Gate {
    fn shut(&self) {
        let nr = port().filter(|nr| events::get().forget_pending(*nr)).or_else(make_port);
        // ORDERING: Relaxed: published by the phase that asks the others to come.
        DOOR.store(nr.map_or(0, PortNr::get), Ordering::Relaxed);
    }

    fn open(&self) {
        if let Some(nr) = port() {
            // Refused means that it is gone; then nobody sleeps on it.
            let _ = hypercall::send(nr.get());
        }
        // ORDERING: Relaxed: whoever reads the port all the same finds it pending.
        DOOR.store(0, Ordering::Relaxed);
    }

    fn doze(&self, masked: &Masked, limit_ns: Option<u64>) {
        if doze(masked, limit_ns, || ()).is_err() {
            self.give_up_processor();
        }
    }

    fn sleep(&self, _masked: &Masked) {
        if sched::poll(&DOOR, 0).is_err() {
            self.give_up_processor();
        }
    }

    fn take_events(&self, _masked: &Masked) {
        // ORDERING: Relaxed: one that comes later ends the next doze at once.
        let flags = percpu::vcpu_info();
        if flags.evtchn_upcall_pending.load(Ordering::Relaxed) != 0 {
            events::upcall(flags);
        }
    }
}
