//! Posts and calls to all vcpus at once.

use alloc::boxed::Box;
use alloc::format;

use percpu::{CpuId, CpuSet, Masked, PerCpu};
use smp::CallNode;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use super::Verdict;
use crate::relax::Processor;
use crate::{cpus, executor, timer, wait};

/// Every vcpu calls all of them, itself too, again and again and all at the same time: each call is run once, where it should
/// be, before its caller goes on. A vcpu that ran another's call in its place would have run two, and that one none.
pub(super) async fn broadcast() -> Verdict {
    const ROUNDS: usize = 10;
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let nr = cpus::nr();
    for from in CpuId::first(nr) {
        let caller = async move {
            let runs = PerCpu::new(nr, |_| AtomicUsize::new(0));
            let mut nodes: Box<[CallNode]> = CpuId::first(nr - 1).map(|_| CallNode::new()).collect();
            for round in 1..=ROUNDS {
                let down = cpus::mail().run_on_many(&CpuSet::first(nr), &mut nodes, &Processor, &|_: &Masked| {
                    // ORDERING: Relaxed, passed on by the end of the call; in the load below too.
                    runs.mine().fetch_add(1, Ordering::Relaxed);
                });
                let wrong = runs.iter().filter(|(_, runs)| runs.load(Ordering::Relaxed) != round).count();
                // ORDERING: Relaxed, published by `DONE`.
                WRONG.fetch_add(wrong + down, Ordering::Relaxed);
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
        0 => Ok(format!("broadcasts={} calls={}", nr * ROUNDS, nr * nr * ROUNDS)),
        wrong => Err(format!("{wrong} times a vcpu had not run a call once")),
    }
}
