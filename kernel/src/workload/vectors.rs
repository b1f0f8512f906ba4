//! `workload=vectors`: every vcpu fills its vector registers and, at first and after every suspend, sees whether they hold what they held.
//! YMM registers where the machine has AVX, XMM where it has none; the verdict says which.
//!
//! A register's words follow from vcpu, register and round, so a state that is another vcpu's, an older one, or zero in its upper half
//! is found. Between two looks the tasks only wait, so it is Xen's and the toolstack's keeping that is looked at. Nobody keeps the
//! registers of a vcpu that goes down: one that has been down meanwhile is not judged, and fills them again.

use percpu::{CpuId, PerCpu};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use crate::vector::{self, Registers, Width};
use crate::{check, cpus, executor, timer, wait};

/// How often it is looked whether a vcpu that is waited for has gone down.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// One vcpu's part in the rounds.
struct Share {
    wanted: wait::Flag,
    /// Rounds that it has finished. Written by it alone.
    finished: AtomicUsize,
}

/// What all have in common.
struct Looks {
    shares: PerCpu<Share>,
    /// A suspend asks for the next round.
    asked: wait::Flag,
    /// A vcpu has finished one.
    progress: wait::Flag,
    /// How many have been asked for. Written by vcpu 0.
    rounds: AtomicUsize,
    /// vcpus judged, registers found wrong, vcpus that have no YMM registers; ever.
    judged: AtomicUsize,
    wrong: AtomicUsize,
    narrow: AtomicUsize,
}

static LOOKS: Once<Looks> = Once::new();

/// Starts the tasks. Once.
pub(super) fn start() {
    let looks = LOOKS.call_once(|| Looks {
        shares: PerCpu::new(cpus::nr(), |_| Share { wanted: wait::Flag::new(), finished: AtomicUsize::new(0) }),
        asked: wait::Flag::new(),
        progress: wait::Flag::new(),
        rounds: AtomicUsize::new(0),
        judged: AtomicUsize::new(0),
        wrong: AtomicUsize::new(0),
        narrow: AtomicUsize::new(0),
    });
    for cpu in CpuId::first(cpus::nr()) {
        executor::spawn_on(cpu, hold(looks, cpu));
    }
    looks.asked.set();
    executor::spawn_on(CpuId::BOOT, tell(looks));
}

/// Has every vcpu look at its registers. One that comes while another is under way follows it.
pub(super) fn verify() {
    if let Some(looks) = LOOKS.get() {
        looks.asked.set();
    }
}

fn pattern(cpu: CpuId, round: u64, width: Width) -> Registers {
    let mut registers = Registers([[0; 4]; 16]);
    for (number, register) in registers.0.iter_mut().enumerate() {
        for (place, word) in register.iter_mut().take(width.words()).enumerate() {
            let seed = (cpu.index() as u64) << 40 | (number as u64) << 32 | (place as u64) << 24;
            *word = (seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(round);
        }
    }
    registers
}

async fn hold(looks: &'static Looks, cpu: CpuId) {
    let share = looks.shares.on(cpu);
    let mut changes = cpus::changes(cpu);
    let mut width = vector::enable_here();
    // ORDERING: Relaxed, published by `finished`.
    looks.narrow.fetch_add(usize::from(width == Width::Xmm), Ordering::Relaxed);
    for seed in 0_u64.. {
        let held = pattern(cpu, seed, width);
        vector::load(width, &held);
        share.wanted.wait().await;
        if cpus::changes(cpu) == changes {
            judge(looks, cpu, width, &held);
        } else {
            changes = cpus::changes(cpu);
            width = vector::enable_here();
        }
        // ORDERING: Relaxed, published by the flag `wanted`.
        let round = looks.rounds.load(Ordering::Relaxed);
        // ORDERING: Release, pairs with the Acquire in `tell`: who sees it sees what was found.
        share.finished.store(round, Ordering::Release);
        looks.progress.set();
    }
}

fn judge(looks: &Looks, cpu: CpuId, width: Width, held: &Registers) {
    let found = vector::store(width);
    let differ = || (0..16).filter(|n| found.0[*n] != held.0[*n]);
    if let Some(number) = differ().next() {
        let (name, found, held) = (width.name(), &found.0[number], &held.0[number]);
        crate::note!(Error, "vcpu {cpu}: {name}{number} holds {found:x?}, not {held:x?}");
    }
    // ORDERING: Relaxed both, published by `finished`.
    looks.wrong.fetch_add(differ().count(), Ordering::Relaxed);
    looks.judged.fetch_add(1, Ordering::Relaxed);
}

async fn tell(looks: &'static Looks) {
    for round in 1_usize.. {
        looks.asked.wait().await;
        // ORDERING: Relaxed, published by the flags.
        looks.rounds.store(round, Ordering::Relaxed);
        for (_, share) in looks.shares.iter() {
            share.wanted.set();
        }
        // ORDERING: Acquire, pairs with the Release in `hold`.
        let finished = |share: &Share| share.finished.load(Ordering::Acquire) >= round;
        while looks.shares.iter().any(|(cpu, share)| cpus::is_up(cpu) && !finished(share)) {
            // Whether it is progress or time that has come, it is looked again.
            let _ = timer::within(LOOK_AGAIN_NS, looks.progress.wait()).await;
        }
        // ORDERING: Relaxed all, published by `finished`.
        let vcpus = looks.judged.swap(0, Ordering::Relaxed);
        let [wrong, narrow] = [&looks.wrong, &looks.narrow].map(|count| count.load(Ordering::Relaxed));
        let registers = if narrow == 0 { Width::Ymm } else { Width::Xmm }.name();
        let detail = format_args!("round={round} registers={registers} vcpus={vcpus} wrong_registers={wrong}");
        check::report("vectors", wrong == 0, detail);
    }
}
