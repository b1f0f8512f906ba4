//! `workload=vectors`: every vcpu fills its vector registers and, at first and after every suspend, sees whether they hold what they held.
//! YMM registers where the machine has AVX, XMM where it has none; the verdict says which.
//!
//! A register's words follow from vcpu, register and round, so a state that is another vcpu's, an older one, or zero in its upper half
//! is found. Between two looks the tasks only wait, so it is Xen's, the toolstack's and `crate::vector`'s keeping that is looked at. Nobody keeps the
//! registers of a vcpu that goes down: one that has been down meanwhile is not judged, and fills them again.

use percpu::CpuId;
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use super::rounds::Rounds;
use crate::vector::{self, Registers, Width};
use crate::{check, cpus, executor};

/// What all have in common.
struct Looks {
    rounds: Rounds,
    /// vcpus judged, registers found wrong, vcpus that have no YMM registers; ever.
    judged: AtomicUsize,
    wrong: AtomicUsize,
    narrow: AtomicUsize,
}

static LOOKS: Once<Looks> = Once::new();

/// Starts the tasks. Once.
pub(super) fn start() {
    let looks = LOOKS.call_once(|| Looks {
        rounds: Rounds::new(),
        judged: AtomicUsize::new(0),
        wrong: AtomicUsize::new(0),
        narrow: AtomicUsize::new(0),
    });
    for cpu in CpuId::first(cpus::nr()) {
        executor::spawn_on(cpu, hold(looks, cpu));
    }
    executor::spawn_on(CpuId::BOOT, tell(looks));
}

/// Has every vcpu look at its registers. One that comes while another is under way follows it.
pub(super) fn verify() {
    if let Some(looks) = LOOKS.get() {
        looks.rounds.ask();
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
    let mut changes = cpus::changes(cpu);
    let mut width = vector::enable_here();
    // ORDERING: Relaxed, published by `Rounds::finish`.
    looks.narrow.fetch_add(usize::from(width == Width::Xmm), Ordering::Relaxed);
    for seed in 0_u64.. {
        let held = pattern(cpu, seed, width);
        vector::load(width, &held);
        looks.rounds.wanted(cpu).await;
        if cpus::changes(cpu) == changes {
            judge(looks, cpu, width, &held);
        } else {
            changes = cpus::changes(cpu);
            width = vector::enable_here();
        }
        looks.rounds.finish(cpu);
    }
}

fn judge(looks: &Looks, cpu: CpuId, width: Width, held: &Registers) {
    let found = vector::store(width);
    let differ = || (0..16).filter(|n| found.0[*n] != held.0[*n]);
    if let Some(number) = differ().next() {
        let (name, found, held) = (width.name(), &found.0[number], &held.0[number]);
        crate::note!(Error, "vcpu {cpu}: {name}{number} holds {found:x?}, not {held:x?}");
    }
    // ORDERING: Relaxed both, published by `Rounds::finish`.
    looks.wrong.fetch_add(differ().count(), Ordering::Relaxed);
    looks.judged.fetch_add(1, Ordering::Relaxed);
}

async fn tell(looks: &'static Looks) {
    loop {
        let round = looks.rounds.next().await;
        // ORDERING: Relaxed all, published by `Rounds::finish`.
        let vcpus = looks.judged.swap(0, Ordering::Relaxed);
        let [wrong, narrow] = [&looks.wrong, &looks.narrow].map(|count| count.load(Ordering::Relaxed));
        let registers = if narrow == 0 { Width::Ymm } else { Width::Xmm }.name();
        let detail = format_args!("round={round} registers={registers} vcpus={vcpus} wrong_registers={wrong}");
        check::report("vectors", wrong == 0, detail);
    }
}
