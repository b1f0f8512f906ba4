//! `workload=user`: on every vcpu a process counts, which never leaves user mode by itself. At first and after every suspend each is looked
//! at: whether it has gone on, and goes on; whether its registers and its memory hold what they held, which the process itself compares
//! in each turn of its loop (`user::programs`); and whether its address space is as it was made, and its root pinned.
//!
//! In the verdict, `in_user` is how many vcpus were in user mode when all was frozen for the suspend, vcpu 0, which is told of it by a task,
//! not counted; `moved` how many roots have another machine frame than at the last look. A process that has left is wrong for ever.

use percpu::CpuId;
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use super::rounds::Rounds;
use crate::user::Process;
use crate::user::programs;
use crate::wait::{First, first_of};
use crate::{check, cpus, executor, timer};

/// How long a process runs until it is looked whether it has counted, and how often that is done.
const TURN_NS: u64 = 10_000_000;
const TURNS: usize = 1000;

/// What all have in common.
struct Looks {
    rounds: Rounds,
    /// Vcpus in user mode at the last request. Written by vcpu 0.
    in_user: AtomicUsize,
    /// Of the round: processes looked at, found wrong, roots that have moved.
    judged: AtomicUsize,
    wrong: AtomicUsize,
    moved: AtomicUsize,
}

static LOOKS: Once<Looks> = Once::new();

/// Starts the tasks. Once.
pub(super) fn start() {
    let looks = LOOKS.call_once(|| Looks {
        rounds: Rounds::new(),
        in_user: AtomicUsize::new(0),
        judged: AtomicUsize::new(0),
        wrong: AtomicUsize::new(0),
        moved: AtomicUsize::new(0),
    });
    for cpu in CpuId::first(cpus::nr()) {
        executor::spawn_on(cpu, keep(looks, cpu));
    }
    executor::spawn_on(CpuId::BOOT, tell(looks));
}

/// Notes how many vcpus were in user mode.
pub(super) fn suspend_is_asked(in_user: usize) {
    if let Some(looks) = LOOKS.get() {
        // ORDERING: Relaxed, read on this CPU.
        looks.in_user.store(in_user, Ordering::Relaxed);
    }
}

/// Has every process looked at. One that comes while another is under way follows it.
pub(super) fn verify() {
    if let Some(looks) = LOOKS.get() {
        looks.rounds.ask();
    }
}

/// A process, and what is known of it.
struct Kept {
    process: Process,
    words: [u64; 15],
    /// At the last look.
    count: u64,
    root_mfn: u64,
}

impl Kept {
    fn new(cpu: CpuId) -> Kept {
        let (process, words) =
            programs::counting(cpu.index() as u64).unwrap_or_else(|error| panic!("a process for vcpu {cpu}: {error}"));
        let root_mfn = process.root_mfn();
        Kept { process, words, count: 0, root_mfn }
    }

    fn word(&self, n: usize) -> u64 {
        self.process.word(n).load(Ordering::Relaxed) // ORDERING: Relaxed, written by this CPU in user mode.
    }

    /// Lets it run, and looks at it.
    ///
    /// # Errors
    /// What is wrong with it.
    async fn judge(&mut self) -> Result<(), alloc::string::String> {
        let (last, start) = (self.count, self.word(0));
        for _ in 0..TURNS {
            if let First::One(why) = first_of(self.process.run(), timer::sleep(TURN_NS)).await {
                return Err(alloc::format!("left user mode by itself: {why}"));
            }
            self.count = self.word(0);
            if self.count != start {
                break;
            }
        }
        // At the first look there was no time before it.
        if start < last || (last != 0 && start == last) || self.count <= start {
            return Err(alloc::format!("counted {last}, then {start}, now {}", self.count));
        }
        for (n, word) in (1..).zip(self.words) {
            if self.word(n) != word {
                return Err(alloc::format!("word {n} of its memory is {:#x} and not {word:#x}", self.word(n)));
            }
        }
        if programs::held(&mut self.process.registers).map(|register| *register) != self.words {
            return Err(alloc::format!("its registers: {}", self.process.registers));
        }
        self.process.verify().map_err(|error| alloc::format!("its address space: {error}"))
    }
}

async fn keep(looks: &'static Looks, cpu: CpuId) {
    let mut kept = Kept::new(cpu);
    let mut is_well = true;
    loop {
        if is_well && let First::One(why) = first_of(kept.process.run(), looks.rounds.wanted(cpu)).await {
            crate::note!(Error, "the process of vcpu {cpu} left user mode by itself: {why}");
            is_well = false;
        }
        if !is_well {
            looks.rounds.wanted(cpu).await;
        } else if let Err(why) = kept.judge().await {
            crate::note!(Error, "the process of vcpu {cpu}: {why}");
            is_well = false;
        }
        let root_mfn = kept.process.root_mfn();
        // ORDERING: Relaxed all, published by `Rounds::finish`.
        looks.moved.fetch_add(usize::from(root_mfn != kept.root_mfn), Ordering::Relaxed);
        looks.wrong.fetch_add(usize::from(!is_well), Ordering::Relaxed);
        looks.judged.fetch_add(1, Ordering::Relaxed);
        kept.root_mfn = root_mfn;
        looks.rounds.finish(cpu);
    }
}

async fn tell(looks: &'static Looks) {
    loop {
        let round = looks.rounds.next().await;
        // ORDERING: Relaxed all, published by `Rounds::finish`, or written on this CPU.
        let counts = [&looks.judged, &looks.wrong, &looks.moved, &looks.in_user];
        let [vcpus, wrong, moved, in_user] = counts.map(|count| count.swap(0, Ordering::Relaxed));
        let detail = format_args!("round={round} vcpus={vcpus} wrong={wrong} moved={moved} in_user={in_user}");
        check::report("user", wrong == 0, detail);
    }
}
