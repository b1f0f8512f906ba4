//! Host benches: `cargo bench -p benches`. They are in `benches/`; what they share is here.
//!
//! They compare our own code with the obvious alternatives, and versions of it with each other, on one machine and in
//! one run: only ratios mean something. What an event costs under Xen, and against Linux, only a guest can tell.
#![forbid(unsafe_code)]

use std::sync::Barrier;
use std::time::Duration;

use criterion::Criterion;
use smp::Relax;

/// Threads that run at once. With more of them than processors they are also preempted, as vcpus are.
pub const THREADS: [usize; 3] = [1, 2, 4];

/// Short samples: all benches together take a few minutes.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
}

/// Has `nr` threads do `work` at the same time, each with its number; returns the mean of the times that they give.
///
/// # Panics
/// If one of them does.
pub fn on_threads(nr: usize, work: impl Fn(usize) -> Duration + Sync) -> Duration {
    let (start, work) = (&Barrier::new(nr), &work);
    let run = move |n| {
        start.wait();
        work(n)
    };
    let total: Duration = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..nr).map(|n| scope.spawn(move || run(n))).collect();
        let first = run(0);
        threads.into_iter().map(|thread| thread.join().expect("no bench panics")).sum::<Duration>() + first
    });
    total / u32::try_from(nr).expect("a few threads")
}

/// How the threads wait for each other: as vcpus do, who give the processor up.
pub struct Host;

impl Relax for Host {
    fn spin(&self) {
        std::hint::spin_loop();
    }

    fn give_up_processor(&self) {
        std::thread::yield_now();
    }
}
