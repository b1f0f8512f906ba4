//! Timers and the clock, on real vcpus.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use percpu::CpuId;
use xen_sys::primitive::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::Verdict;
use crate::{cpus, executor, time, timer, wait};

/// What the sleepers of one vcpu saw.
#[derive(Default)]
struct Sleepers {
    /// Guest time from which deadlines count; 0 until all sleepers run.
    start_ns: AtomicU64,
    running: AtomicUsize,
    /// Woke, having gone to sleep in time.
    woken: AtomicUsize,
    /// Came to their sleep after its end, because the host did not run us: they prove nothing.
    late: AtomicUsize,
    early: AtomicUsize,
    disorder: AtomicUsize,
    last_ns: AtomicU64,
}

const SLEEPS_MS: [u64; 6] = [300, 100, 200, 10, 0, 150];

/// On every vcpu, sleepers with different deadlines wake in their order, and none too early.
pub(super) async fn timer() -> Verdict {
    let all: Vec<Arc<Sleepers>> = CpuId::first(cpus::nr()).map(|_| Arc::default()).collect();
    for (cpu, mine) in CpuId::first(cpus::nr()).zip(&all) {
        for ms in SLEEPS_MS {
            executor::spawn_on(cpu, sleeper(Arc::clone(mine), ms));
        }
    }
    // ORDERING: Acquire all, pairs with the sleepers' Release: what they counted before is seen.
    let until_all = async |count: &dyn Fn(&Sleepers) -> usize| {
        while all.iter().map(|mine| count(mine)).sum::<usize>() != cpus::nr() * SLEEPS_MS.len() {
            timer::sleep(10_000_000).await;
        }
    };
    until_all(&|mine| mine.running.load(Ordering::Acquire)).await;
    let start_ns = time::now_ns() + 500_000_000;
    for mine in &all {
        mine.start_ns.store(start_ns, Ordering::Release); // ORDERING: Release, a number on its own.
    }
    until_all(&|mine| mine.woken.load(Ordering::Acquire) + mine.late.load(Ordering::Acquire)).await;
    // ORDERING: Relaxed, published by `woken` and `late`.
    let sum = |count: fn(&Sleepers) -> &AtomicUsize| {
        all.iter().map(|mine| count(mine).load(Ordering::Relaxed)).sum::<usize>()
    };
    let (woken, late) = (sum(|mine| &mine.woken), sum(|mine| &mine.late));
    match (sum(|mine| &mine.early), sum(|mine| &mine.disorder)) {
        (0, 0) if woken > 0 => Ok(format!("woken={woken} late={late}")),
        (early, disorder) => {
            Err(format!("{woken} woke, {late} were late, {early} woke too early, {disorder} out of order"))
        }
    }
}

async fn sleeper(mine: Arc<Sleepers>, ms: u64) {
    // ORDERING: Release, pairs with the Acquire in `timer`.
    mine.running.fetch_add(1, Ordering::Release);
    // ORDERING: Acquire, a number on its own.
    while mine.start_ns.load(Ordering::Acquire) == 0 {
        timer::sleep(1_000_000).await;
    }
    // ORDERING: Relaxed, all sleepers of `mine` are on one CPU; `woken` and `late` publish what they count.
    let deadline = mine.start_ns.load(Ordering::Relaxed) + ms * 1_000_000;
    let in_time = time::now_ns() < deadline;
    timer::until(deadline).await;
    if in_time {
        mine.early.fetch_add(usize::from(time::now_ns() < deadline), Ordering::Relaxed);
        let before = mine.last_ns.swap(deadline, Ordering::Relaxed);
        mine.disorder.fetch_add(usize::from(before > deadline), Ordering::Relaxed);
    }
    let count = if in_time { &mine.woken } else { &mine.late };
    count.fetch_add(1, Ordering::Release); // ORDERING: Release, pairs with the Acquire in `timer`.
}

/// A reading handed from vcpu to vcpu never goes back, round after round.
pub(super) async fn clock() -> Verdict {
    const ROUNDS: usize = 200;
    let last = Arc::new(AtomicU64::new(time::now_ns()));
    let mut backwards = 0_usize;
    for _ in 0..ROUNDS {
        for cpu in CpuId::first(cpus::nr()) {
            let now = cpus::mail().run_on(cpu, &crate::relax::Processor, |_| time::now_ns());
            let now = now.map_err(|down| format!("{down}"))?;
            // ORDERING: Relaxed, only this task uses it.
            backwards += usize::from(now < last.swap(now, Ordering::Relaxed));
        }
        wait::yield_now().await;
    }
    match backwards {
        0 => Ok(format!("readings={}", ROUNDS * cpus::nr())),
        backwards => Err(format!("the clock went back {backwards} times")),
    }
}
