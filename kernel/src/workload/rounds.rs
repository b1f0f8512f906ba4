//! [`Rounds`]: after every suspend each vcpu looks at something of its own, and vcpu 0 tells what all of them have found.
//!
//! A round is asked for; vcpu 0 starts it and waits for all vcpus that are up. What they find is the caller's: whatever a vcpu has
//! written before it [finishes](Rounds::finish) its part is seen by vcpu 0 after [`Rounds::next`].
//!
//! Context: tasks. Suspend: *kept*.

use percpu::{CpuId, PerCpu};
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use crate::{cpus, timer, wait};

/// How often it is looked whether a vcpu that is waited for has gone down.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// One vcpu's part in the rounds.
struct Share {
    wanted: wait::Flag,
    /// The last round that it has finished. Written by it alone.
    finished: AtomicUsize,
}

/// See the head of this file.
pub(super) struct Rounds {
    shares: PerCpu<Share>,
    /// A suspend asks for the next round.
    asked: wait::Flag,
    /// A vcpu has finished one.
    progress: wait::Flag,
    /// How many have been started. Written by vcpu 0.
    started: AtomicUsize,
}

impl Rounds {
    /// The first one is asked for already.
    pub(super) fn new() -> Rounds {
        let rounds = Rounds {
            shares: PerCpu::new(cpus::nr(), |_| Share { wanted: wait::Flag::new(), finished: AtomicUsize::new(0) }),
            asked: wait::Flag::new(),
            progress: wait::Flag::new(),
            started: AtomicUsize::new(0),
        };
        rounds.asked.set();
        rounds
    }

    /// Asks for one. One that comes while another is under way follows it.
    pub(super) fn ask(&self) {
        self.asked.set();
    }

    /// Waits until `cpu` is to have its part. Context: a task of `cpu`, one.
    pub(super) async fn wanted(&self, cpu: CpuId) {
        self.shares.on(cpu).wanted.wait().await;
    }

    /// `cpu` has had its part in the round that is under way.
    pub(super) fn finish(&self, cpu: CpuId) {
        // ORDERING: Relaxed, published by the flag `wanted`.
        let round = self.started.load(Ordering::Relaxed);
        // ORDERING: Release, pairs with the Acquire in `next`: who sees it sees what was found.
        self.shares.on(cpu).finished.store(round, Ordering::Release);
        self.progress.set();
    }

    /// Waits until a round is asked for, and until all have had their part in it; its number, from 1. Context: a task of vcpu 0, one.
    pub(super) async fn next(&self) -> usize {
        self.asked.wait().await;
        // ORDERING: Relaxed both, written by this task alone, and published by the flags.
        let round = self.started.load(Ordering::Relaxed) + 1;
        self.started.store(round, Ordering::Relaxed);
        for (_, share) in self.shares.iter() {
            share.wanted.set();
        }
        // ORDERING: Acquire, pairs with the Release in `finish`.
        let finished = |share: &Share| share.finished.load(Ordering::Acquire) >= round;
        while self.shares.iter().any(|(cpu, share)| cpus::is_up(cpu) && !finished(share)) {
            // Whether it is progress or time that has come, it is looked again.
            let _ = timer::within(LOOK_AGAIN_NS, self.progress.wait()).await;
        }
        round
    }
}
