//! IPIs, the rendezvous and the console, on real vcpus.

use alloc::format;

use evtchn::{Intent, Ipi};
use percpu::{CpuId, PerCpu};
use smp::Outcome;
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Verdict;
use crate::relax::Processor;
use crate::{cpus, events, executor, time, timer, wait, workload};

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
                WRONG.fetch_add(usize::from(ran_on != Ok(to)), Ordering::Relaxed);
                wait::yield_now().await;
            }
            DONE.fetch_add(1, Ordering::Release); // ORDERING: Release, pairs with the Acquire below.
        };
        executor::spawn_on(from, caller);
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

/// Many rendezvous in a row, each of which is cancelled. Every other vcpu has a task that counts without end: within a
/// rendezvous all are parked and no count moves, between two of them all go on.
pub(super) async fn rendezvous() -> Verdict {
    const ROUNDS: usize = 40;
    const LOOKS: usize = 1000;
    static COUNTS: Once<PerCpu<AtomicUsize>> = Once::new();
    let counts = COUNTS.call_once(|| PerCpu::new(cpus::nr(), |_| AtomicUsize::new(0)));
    // ORDERING: Relaxed, numbers that stand still or do not.
    let sum = || counts.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum::<usize>();
    let others = || CpuId::first(cpus::nr()).skip(1);
    for cpu in others() {
        executor::spawn_on(cpu, async {
            loop {
                counts.mine().fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, as above.
                wait::yield_now().await;
            }
        });
    }
    for _ in 0..ROUNDS {
        cpus::doze_struck_before_the_call()?;
    }
    for round in 0..ROUNDS {
        let stopped = cpus::rendezvous(|_, _| {
            let awake = others().filter(|cpu| cpus::state_racy(*cpu) != cpus::State::Parked).count();
            let before = sum();
            let moved = (0..LOOKS).filter(|_| sum() != before).count();
            (Outcome::Cancelled, (awake, moved))
        });
        match stopped {
            Ok((0, 0)) => {}
            Ok((awake, moved)) => {
                return Err(format!("round {round}: {awake} not parked, counts moved in {moved} of {LOOKS} looks"));
            }
            Err(missing) => return Err(format!("round {round}: {missing}")),
        }
        // Until every other vcpu has counted on.
        for cpu in others() {
            let count = || counts.on(cpu).load(Ordering::Relaxed); // ORDERING: Relaxed, as above.
            let before = count();
            while count() == before {
                timer::sleep(1_000_000).await;
            }
        }
    }
    Ok(format!("rounds={ROUNDS} counted={}", sum()))
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
    executor::spawn_on(last, hanger);
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

/// A vcpu that beats and does not get its IPIs shows in the heartbeat, once; and nothing else does.
pub(super) async fn lost_event() -> Verdict {
    const LIMIT_NS: u64 = 30_000_000_000;
    static OVER: AtomicBool = AtomicBool::new(false);
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let last = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    workload::start_beating();
    timer::sleep(1_000_000_000).await;
    if workload::wrong_and_beats_racy().0 != 0 {
        return Err("something is wrong from the beginning".into());
    }
    executor::spawn_on(last, async {
        mute_ipis(true);
        let start_ns = time::now_ns();
        while workload::wrong_and_beats_racy().0 == 0 && time::now_ns() - start_ns < LIMIT_NS {
            timer::sleep(10_000_000).await;
        }
        mute_ipis(false);
        OVER.store(true, Ordering::Release); // ORDERING: Release, pairs with the Acquire below.
    });
    // ORDERING: Acquire, pairs with the Release above.
    while !OVER.load(Ordering::Acquire) {
        timer::sleep(10_000_000).await;
    }
    let (_, beats_before) = workload::wrong_and_beats_racy();
    timer::sleep(3_000_000_000).await;
    match workload::wrong_and_beats_racy() {
        (1, beats) if beats > beats_before => Ok("lost=1".into()),
        (1, beats) => Err(format!("a vcpu has stopped at {beats} beats")),
        (wrong, _) => Err(format!("{wrong} events are called wrong and not 1")),
    }
}

/// Masks this CPU's IPI port, or unmasks it.
fn mute_ipis(mute: bool) {
    let masked = percpu::mask_upcalls();
    let (events, ipi) = (events::get(), Intent::Ipi(Ipi::Call));
    if mute {
        events.mask_own(&masked, ipi);
    } else {
        events.unmask_own(&masked, percpu::vcpu_info(), ipi);
    }
}

/// Many more lines than the ring and the queue hold; the harness checks that none is missing.
pub(super) async fn console() -> Verdict {
    const LINES: usize = 3000;
    for line in 0..LINES {
        crate::say!("flood", line = line, padding = "abcdefghijklmnopqrstuvwxyz0123456789");
    }
    Ok(format!("lines={LINES}"))
}
