//! Events, IPIs, the rendezvous and the console, on real vcpus.

use alloc::boxed::Box;
use alloc::format;

use evtchn::{Action, PortNr};
use percpu::{CpuId, Masked};
use smp::Outcome;
use xen_sys::abi::xen::DOMID_SELF;
use xen_sys::hypercall::evtchn as hypercall;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Verdict;
use crate::relax::Processor;
use crate::{cpus, events, executor, timer, wait};

/// Every vcpu calls every other; each call is run once, where it should be.
pub(super) async fn ipi() -> Verdict {
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let nr = cpus::nr();
    for from in CpuId::first(nr) {
        let caller = async move {
            for to in CpuId::first(nr) {
                let ran_on = cpus::mail().run_on(to, &Processor, |_| percpu::current());
                // ORDERING: Relaxed, published by `DONE`.
                WRONG.fetch_add(usize::from(ran_on != to), Ordering::Relaxed);
                wait::yield_now().await;
            }
            DONE.fetch_add(1, Ordering::Release); // ORDERING: Release, pairs with the Acquire below.
        };
        executor::spawn_on(from, caller).map_err(|error| format!("vcpu {from}: {error:?}"))?;
    }
    // ORDERING: Acquire, pairs with the callers' Release.
    while DONE.load(Ordering::Acquire) != nr {
        timer::sleep(10_000_000).await;
    }
    // ORDERING: Relaxed, published by `DONE`.
    match WRONG.load(Ordering::Relaxed) {
        0 => Ok(format!("calls={}", nr * nr)),
        wrong => Err(format!("{wrong} calls ran on another vcpu")),
    }
}

/// A device port, looped back to ourselves: every send is seen, on the vcpu that it is bound to; none after it is unbound.
pub(super) async fn port() -> Verdict {
    const SENDS: u64 = 500;
    static ELSEWHERE: AtomicUsize = AtomicUsize::new(0);
    fn handler(_masked: &Masked, action: &Action) {
        let here = percpu::current().index();
        // ORDERING: Relaxed, a count that is looked at when all is quiet.
        ELSEWHERE.fetch_add(usize::from(here != action.context()), Ordering::Relaxed);
    }
    let xen = |what: &'static str| move |error| format!("{what}: {error}");
    let here = hypercall::alloc_unbound(DOMID_SELF, DOMID_SELF).map_err(xen("alloc_unbound"))?;
    let there = hypercall::bind_interdomain(DOMID_SELF, here).map_err(xen("bind_interdomain"))?;
    let nr = PortNr::new(there).ok_or_else(|| format!("port {there} is out of range"))?;
    let cpu = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    let action: &'static Action = Box::leak(Box::new(Action::new(handler, cpu.index())));
    events::get().bind_device(nr, cpu, action).map_err(|error| format!("{error}"))?;
    // Binding an interdomain port makes it pending once.
    let settled = async || {
        let mut before = u64::MAX;
        while action.count() != before {
            before = action.count();
            timer::sleep(50_000_000).await;
        }
        before
    };
    let first = settled().await;
    for sent in 1..=SENDS {
        hypercall::send(here).map_err(xen("send"))?;
        while action.count() < first + sent {
            wait::yield_now().await;
        }
    }
    let seen = settled().await - first;
    events::get().unbind_device(action).map_err(|error| format!("{error}"))?;
    let sent_late = hypercall::send(here);
    let late = settled().await - first - seen;
    // ORDERING: Relaxed, all is quiet.
    let elsewhere = ELSEWHERE.load(Ordering::Relaxed);
    if (seen, late, elsewhere) == (SENDS, 0, 0) {
        Ok(format!("sends={SENDS}"))
    } else {
        Err(format!("{SENDS} sent, {seen} seen, {late} after the unbind ({sent_late:?}), {elsewhere} on other vcpus"))
    }
}

/// A hundred rendezvous in a row, each of which does nothing and is cancelled.
pub(super) async fn rendezvous() -> Verdict {
    const ROUNDS: usize = 100;
    for round in 0..ROUNDS {
        let stopped = cpus::rendezvous(|_, _| (Outcome::Cancelled, round));
        match stopped {
            Ok(result) if result == round => {}
            Ok(other) => return Err(format!("round {round} returned {other}")),
            Err(missing) => return Err(format!("round {round}: {missing}")),
        }
        wait::yield_now().await;
    }
    Ok(format!("rounds={ROUNDS}"))
}

/// A vcpu that does not come is named, the others go on, and the next rendezvous works once it has come back.
pub(super) async fn hung_vcpu() -> Verdict {
    static HANG: AtomicBool = AtomicBool::new(true);
    static HANGS: AtomicBool = AtomicBool::new(false);
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let last = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    let hanger = async {
        // ORDERING: Relaxed, flags; nothing is read because of them.
        HANGS.store(true, Ordering::Relaxed);
        while HANG.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
    };
    executor::spawn_on(last, hanger).map_err(|error| format!("{error:?}"))?;
    // ORDERING: Relaxed, as above.
    while !HANGS.load(Ordering::Relaxed) {
        timer::sleep(1_000_000).await;
    }
    let missing = match cpus::rendezvous(|_, _| (Outcome::Cancelled, ())) {
        Ok(()) => return Err(format!("the rendezvous went ahead without vcpu {last}")),
        Err(missing) => format!("{}", missing.cpus),
    };
    HANG.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as above.
    cpus::rendezvous(|_, _| (Outcome::Cancelled, ())).map_err(|missing| format!("afterwards: {missing}"))?;
    if missing == format!("{last}") { Ok(format!("missing={missing}")) } else { Err(format!("named {missing}")) }
}

/// Many more lines than the ring and the queue hold; the harness checks that none is missing.
pub(super) async fn console() -> Verdict {
    const LINES: usize = 3000;
    for line in 0..LINES {
        crate::say!("flood", line = line, padding = "abcdefghijklmnopqrstuvwxyz0123456789");
    }
    Ok(format!("lines={LINES}"))
}
