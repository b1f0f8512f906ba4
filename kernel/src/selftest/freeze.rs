//! Freezing: what is frozen stands still, whatever wakes it, the kernel's own tasks do not, and a thaw reaches everybody.

use alloc::format;
use alloc::string::String;

use percpu::{CpuId, PerCpu};
use smp::Outcome;
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::Verdict;
use crate::cpus::{self, State};
use crate::freezer::Freezer;
use crate::user::programs;
use crate::{executor, timer, wait};

/// How long anything may take that has to happen.
const LIMIT_NS: u64 = 20_000_000_000;

/// What the tasks of one CPU have counted.
struct Counts {
    /// One that is always ready.
    busy: AtomicU64,
    /// One that sleeps.
    sleeper: AtomicU64,
    /// One that waits for `wake`.
    woken: AtomicU64,
    wake: wait::Flag,
}

/// The vcpu that runs user mode and no task: nothing but the freezer gets it out of there, and back.
fn in_user_mode() -> CpuId {
    CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs")
}

/// Those that run tasks.
fn with_tasks() -> impl Iterator<Item = CpuId> {
    CpuId::first(cpus::nr() - 1)
}

/// Freezes and thaws again and again, by the end of a rendezvous and without one.
pub(super) async fn freeze() -> Verdict {
    const ROUNDS: u64 = 40;
    if cpus::nr() < 3 {
        return Err("needs three vcpus".into());
    }
    static COUNTS: Once<PerCpu<Counts>> = Once::new();
    let counts = COUNTS.call_once(|| {
        PerCpu::new(cpus::nr(), |_| Counts {
            busy: AtomicU64::new(0),
            sleeper: AtomicU64::new(0),
            woken: AtomicU64::new(0),
            wake: wait::Flag::new(),
        })
    });
    with_tasks().for_each(|cpu| start_counting(cpu, counts.on(cpu)));
    executor::spawn_on(in_user_mode(), async {
        let (mut process, _) = programs::counting(0).unwrap_or_else(|error| panic!("the process that counts: {error}"));
        panic!("the process that counts for ever: {}", process.run().await);
    });
    for round in 1..=ROUNDS {
        one(counts, round).await.map_err(|why| format!("round {round}: {why}"))?;
    }
    let counted: u64 = with_tasks().map(|cpu| load(&counts.on(cpu).busy)).sum();
    Ok(format!("rounds={ROUNDS} counted={counted}"))
}

fn start_counting(cpu: CpuId, counts: &'static Counts) {
    // ORDERING: Relaxed all, numbers that stand still or do not; rendezvous are what orders them.
    executor::spawn_on(cpu, async {
        loop {
            counts.busy.fetch_add(1, Ordering::Relaxed);
            wait::yield_now().await;
        }
    });
    executor::spawn_on(cpu, async {
        loop {
            counts.sleeper.fetch_add(1, Ordering::Relaxed);
            timer::sleep(1_000_000).await;
        }
    });
    executor::spawn_on(cpu, async {
        loop {
            counts.wake.wait().await;
            counts.woken.fetch_add(1, Ordering::Relaxed);
        }
    });
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed) // ORDERING: Relaxed, as in `start_counting`.
}

/// One freeze and one thaw. Context: one of the kernel's own tasks, on vcpu 0.
async fn one(counts: &PerCpu<Counts>, round: u64) -> Result<(), String> {
    all_go_on(counts, round).await?;
    let freezer = Freezer::new();
    freezer.freeze();
    until("the vcpu in user mode does not leave it", || cpus::state_racy(in_user_mode()) == State::Idle).await?;
    // Released from it, each has seen that it is frozen.
    let before = all_counts(counts, |_| ())?;
    with_tasks().for_each(|cpu| counts.on(cpu).wake.set());
    // Sleepers' times come, and each has to be told more than once that its task is ready.
    timer::sleep(3_000_000).await;
    if cpus::state_racy(in_user_mode()) == State::User {
        return Err("user mode is entered while all is frozen".into());
    }
    let by_rendezvous = round.is_multiple_of(2);
    let after = all_counts(counts, |others| {
        if by_rendezvous {
            freezer.thaw_parked(others);
        }
    })?;
    if before != after {
        return Err(format!("frozen tasks went from {before:?} to {after:?}"));
    }
    drop(freezer);
    until("user mode is not entered again", || cpus::state_racy(in_user_mode()) == State::User).await
}

/// What all have counted, read while all others are parked; `then` comes before they are released.
fn all_counts(counts: &PerCpu<Counts>, then: impl FnOnce(&percpu::Quiesced)) -> Result<[u64; 3], String> {
    cpus::rendezvous(|others, _| {
        let sum = |of: fn(&Counts) -> &AtomicU64| counts.iter().map(|(_, counts)| load(of(counts))).sum();
        let sums = [sum(|counts| &counts.busy), sum(|counts| &counts.sleeper), sum(|counts| &counts.woken)];
        then(others);
        (Outcome::Cancelled, sums)
    })
    .map_err(|missing| format!("{missing}"))
}

/// Waits until every task has counted on, and has been woken once in each round before this one.
async fn all_go_on(counts: &PerCpu<Counts>, round: u64) -> Result<(), String> {
    for cpu in with_tasks() {
        let counts = counts.on(cpu);
        let (busy, sleeper) = (load(&counts.busy), load(&counts.sleeper));
        until("a task that is always ready stands still", || load(&counts.busy) > busy).await?;
        until("a task that sleeps stands still", || load(&counts.sleeper) > sleeper).await?;
        until("a task that was woken while it was frozen does not run", || load(&counts.woken) >= round - 1).await?;
        if load(&counts.woken) != round - 1 {
            return Err(format!("vcpu {cpu}: woken {} times", load(&counts.woken)));
        }
    }
    until("the vcpu with a process is not in user mode", || cpus::state_racy(in_user_mode()) == State::User).await
}

/// Waits until `holds`, as long as anything may take; `else_say` what is wrong.
async fn until(else_say: &str, holds: impl Fn() -> bool) -> Result<(), String> {
    let comes = async {
        while !holds() {
            timer::sleep(1_000_000).await;
        }
    };
    timer::within(LIMIT_NS, comes).await.map_err(|timer::TimeIsUp| else_say.into())
}
