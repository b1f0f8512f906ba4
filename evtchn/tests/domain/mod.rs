//! A domain on the hosted Xen, whose handlers note what they see.
#![allow(dead_code, reason = "each test program uses its part")]

use std::cell::RefCell;
use std::sync::Arc;

use evtchn::hosted::{self, Channel, Fake, GLOBAL, bring_up, cpu, masked, quiesced};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Ipi, Ports, Upcall, Virq};
use percpu::{CpuId, Masked};

// What handlers have seen on this thread: the CPU, and a name.
thread_local! {
    static SEEN: RefCell<Vec<(usize, &'static str)>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn see(what: &'static str) {
    SEEN.with_borrow_mut(|seen| seen.push((percpu::current().index(), what)));
}

pub(crate) fn seen() -> Vec<(usize, &'static str)> {
    SEEN.take()
}

pub(crate) fn on_timer(_: &Masked) {
    see("timer");
}

pub(crate) fn on_global(_: &Masked) {
    see("global");
}

pub(crate) fn on_call(_: &Masked) {
    see("call");
}

pub(crate) const HANDLERS: Handlers =
    Handlers::new().virq(Virq::TIMER, on_timer).virq(GLOBAL, on_global).ipi(Ipi::Call, on_call);

pub(crate) fn on_device(_: &Masked, action: &Action) {
    assert!(action.port().is_some(), "an action runs for its port");
    see(["device 0", "device 1"][action.context()]);
}

pub(crate) fn device(context: usize) -> Arc<Action> {
    Action::new(EndOfEvent::AtOnce, context, on_device)
}

/// A domain of `nr_cpus` with all of them up.
pub(crate) fn up(abi: AbiKind, nr_cpus: usize) -> (Fake, Events<Fake>) {
    let xen = Fake::new(nr_cpus);
    let events = hosted::boot(&xen, abi, HANDLERS);
    for cpu in CpuId::first(nr_cpus) {
        let _on = percpu::hosted::enter(cpu);
        xen.place(cpu);
        bring_up(&events, &xen).expect("the fake has ports enough");
    }
    (xen, events)
}

/// The domain is suspended and restored: all its ports are gone, and no CPU is up in the new one.
pub(crate) fn restore(xen: &Fake, events: &Events<Fake>) {
    events.detach(&quiesced());
    xen.restore();
    hosted::attach(events, xen, Ports::Gone);
}

/// The same, and then the first `nr_cpus` come up.
pub(crate) fn restore_with_all_up(xen: &Fake, events: &Events<Fake>, nr_cpus: usize) {
    restore(xen, events);
    for cpu in CpuId::first(nr_cpus) {
        let _on = percpu::hosted::enter(cpu);
        bring_up(events, xen).expect("the fake has ports enough");
    }
}

/// The upcall on CPU `n`, if Xen would enter one.
pub(crate) fn upcall(xen: &Fake, events: &Events<Fake>, n: usize) -> Option<Upcall> {
    let _on = percpu::hosted::enter(cpu(n));
    xen.upcall_due(cpu(n)).then(|| events.demux(&masked(), xen.flags(cpu(n))))
}

pub(crate) fn raise(xen: &Fake, channel: Channel) {
    xen.raise(xen.find(channel).expect("bound"));
}
