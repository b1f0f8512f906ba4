//! [`Others`]: what the other vcpus do while vcpu 0 measures. They spin in a task, upcalls unmasked, or in user mode, or have nothing
//! to do and are blocked in Xen.
//!
//! A spinner executes PAUSE: where QEMU counts instructions, one emulated processor runs at a time, and goes on to the next there.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use percpu::CpuId;
use smp::{Backoff, Patience};
use xen_sys::abi::vcpu::RUNSTATE_blocked;
use xen_sys::hypercall::vcpu;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::relax::Processor;
use crate::user::Process;
use crate::user::programs::{self, Program};
use crate::wait::{First, Flag, first_of};
use crate::{cpus, events, executor, time, timer};

/// How long a vcpu has been blocked when a sample of an idle one begins.
const IDLE_NS: u64 = 1_000_000;

/// PAUSEs in a turn of a spinner. Within each at most one event comes, and a port may fire [`evtchn::BURST`] times in a turn.
const SPINS: u32 = evtchn::BURST / 2;

/// Why there is no figure of a vcpu alone.
pub(super) const NONE: &str = "needs two vcpus";

/// The state of the other vcpus.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Spin,
    User,
    Idle,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Spin => "spin",
            State::User => "user",
            State::Idle => "idle",
        })
    }
}

/// The vcpus that are up but this one, if there are any.
pub(super) fn all() -> Vec<CpuId> {
    let here = percpu::current();
    CpuId::first(cpus::nr()).filter(|cpu| *cpu != here && cpus::is_up(*cpu)).collect()
}

/// One vcpu that is not this one.
pub(super) fn one() -> Option<CpuId> {
    all().first().copied()
}

/// A value with cache lines of its own: that one CPU reads it without end slows nobody who writes something else.
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// Vcpus that are in one state, until they are [let go](Others::stop).
pub(super) struct Others {
    state: State,
    cpus: Vec<CpuId>,
    /// Ends what runs in user mode.
    stop: Vec<Arc<Flag>>,
}

static SPIN: Apart<AtomicBool> = Apart(AtomicBool::new(false));
static SPINNING: AtomicUsize = AtomicUsize::new(0);

impl Others {
    /// Has `cpus` spin, or not; returns once they do. One at a time.
    ///
    /// # Panics
    /// If there is no memory for a process.
    pub(super) async fn start(state: State, cpus: Vec<CpuId>) -> Others {
        let mut stop = Vec::new();
        if state == State::User {
            for cpu in &cpus {
                let flag = Arc::new(Flag::new());
                stop.push(flag.clone());
                executor::spawn_on(*cpu, spin_in_user_mode(flag));
            }
            wait_for(cpus.len()).await;
        }
        if state == State::Spin {
            SPIN.0.store(true, Ordering::Relaxed); // ORDERING: Relaxed, as below.
            for cpu in &cpus {
                executor::spawn_on(*cpu, async {
                    // ORDERING: Relaxed in all: a flag and a count, nothing is read because of them.
                    SPINNING.fetch_add(1, Ordering::Relaxed);
                    while SPIN.0.load(Ordering::Relaxed) {
                        for _ in 0..SPINS {
                            core::hint::spin_loop();
                        }
                        // As good as a turn of the executor: no port fires too often in one.
                        events::get().end_turn(percpu::vcpu_info());
                    }
                    SPINNING.fetch_sub(1, Ordering::Relaxed);
                });
            }
            wait_for(cpus.len()).await;
        }
        Others { state, cpus, stop }
    }

    /// To be called before each sample: waits on the spot until those that shall be idle have been blocked for a millisecond, and those
    /// that shall be in user mode are.
    pub(super) fn ready(&self) {
        let cpus = self.cpus.iter().copied();
        match self.state {
            State::Spin => {}
            State::User => cpus.for_each(|cpu| await_that(|| cpus::state_racy(cpu) == cpus::State::User)),
            State::Idle => cpus.for_each(await_blocked),
        }
    }

    /// Lets them go.
    pub(super) async fn stop(self) {
        SPIN.0.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as above.
        self.stop.iter().for_each(|flag| flag.set());
        wait_for(0).await;
    }
}

/// Runs a process that spins, which no event takes out of user mode but the one that comes with `stop`.
async fn spin_in_user_mode(stop: Arc<Flag>) {
    let process = Process::new(programs::code(), Program::Spin.entry());
    let mut process = process.unwrap_or_else(|error| panic!("a process for other=user: {error}"));
    SPINNING.fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, as above.
    if let First::One(why) = first_of(process.run(), stop.wait()).await {
        panic!("a process that spins: {why}");
    }
    drop(process);
    SPINNING.fetch_sub(1, Ordering::Relaxed); // ORDERING: Relaxed, as above.
}

async fn wait_for(spinning: usize) {
    // ORDERING: Relaxed, as above.
    while SPINNING.load(Ordering::Relaxed) != spinning {
        timer::sleep(1_000_000).await;
    }
}

/// Waits on the spot until `cpu` has been blocked for a millisecond. Xen is asked every now and then, by hypercall.
pub(super) fn await_blocked(cpu: CpuId) {
    loop {
        let seen = vcpu::get_runstate_info(cpu.vcpu()).expect("Xen knows its own vcpus");
        if seen.state == RUNSTATE_blocked && time::system_ns().saturating_sub(seen.state_entry_time) >= IDLE_NS {
            return;
        }
        // Where QEMU counts instructions a PAUSE costs it more than thousands of others.
        for _ in 0..20_000 {
            core::hint::black_box(());
        }
        core::hint::spin_loop();
    }
}

/// Waits on the spot until `done`, as the kernel's own waits do.
#[inline]
pub(super) fn await_that(mut done: impl FnMut() -> bool) {
    let mut backoff = Backoff::new(&Processor, Patience::SHORT);
    while !done() {
        backoff.step();
    }
}
