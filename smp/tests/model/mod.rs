//! What the models share: CPUs that are threads, bells that are flags, and time that stands still.
#![allow(dead_code, reason = "each model uses its part")]

use std::cell::Cell;

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use percpu::{CpuId, Masked, PerCpu, hosted};
use smp::{Clock, Delivery, Gate, Kinds, Relax};

/// The CPU with number `n`.
pub(crate) fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("models are small")
}

/// A CPU of the model: `body` on CPU `n`, in a thread of its own.
pub(crate) fn on<T: Send + Sync + 'static>(
    shared: &Arc<T>,
    n: usize,
    body: impl FnOnce(&T) + 'static,
) -> thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let _on = hosted::enter(cpu(n));
        body(&shared);
    })
}

/// Waits for all of them.
pub(crate) fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("a CPU of the model has panicked"));
}

std::thread_local! {
    /// Steps of waiting that are left in this execution before it is only run to its end.
    static STEPS: Cell<usize> = const { Cell::new(0) };
    /// Those that it has taken since.
    static TO_THE_END: Cell<usize> = const { Cell::new(0) };
}

/// More steps than an execution takes to its end, where it has one; far from where loom would say that a model is too large.
const ENDLESS: usize = 400;

/// Lets another thread of the model run; every wait of a model goes through here.
///
/// Where two threads wait for a third, loom tries all ways in which the two take turns, and does not see that they lead
/// nowhere. So after some steps of waiting an execution is no longer a start of others; loom's scheduler is fair, and
/// brings it to its end. One that has none waits for something that was lost.
pub(crate) fn step() {
    STEPS.with(|steps| match steps.get().checked_sub(1) {
        Some(left) => steps.set(left),
        None => {
            loom::skip_branch();
            TO_THE_END.with(|nr| nr.set(nr.get() + 1));
            assert!(TO_THE_END.with(Cell::get) < ENDLESS, "a wait that nobody ends");
        }
    });
    thread::yield_now();
}

/// How the code under test waits.
pub(crate) struct Step;

impl Relax for Step {
    fn spin(&self) {
        step();
    }

    fn give_up_processor(&self) {
        step();
    }
}

/// Who waits yields: what a gate adds is in `loom_rendezvous.rs`.
impl Gate for Step {}

/// Time that stands still: no limit is ever reached.
pub(crate) struct NoTime;

impl Clock for NoTime {
    fn now_ns(&self) -> u64 {
        0
    }
}

/// One flag for each CPU in the place of its event. Relaxed, so that a model sees only the orderings of the code under
/// test.
pub(crate) struct Bells {
    rung: PerCpu<AtomicBool>,
}

impl Bells {
    pub(crate) fn new(nr: usize) -> Bells {
        Bells { rung: PerCpu::new(nr, |_| AtomicBool::new(false)) }
    }

    /// Sleeps until the bell of this CPU has been rung since the last time.
    pub(crate) fn sleep(&self) {
        while !self.was_rung() {
            step();
        }
    }

    /// Whether the bell has been rung since the last time.
    pub(crate) fn was_rung(&self) -> bool {
        self.rung.mine().swap(false, Relaxed)
    }
}

impl Delivery for Bells {
    fn ring(&self, cpu: CpuId) {
        // A locked operation, as Xen uses: it cannot fall behind the sleeper's swap.
        self.rung.on(cpu).swap(true, Relaxed);
    }

    fn handle(&self, _masked: &Masked, _kinds: Kinds) {}
}

/// Runs `model` in all orders that have at most `preemptions` switches away from a thread that could have gone on, and
/// that differ in the first `steps` steps of waiting.
pub(crate) fn check(preemptions: usize, steps: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 5_000;
    builder.check(move || {
        STEPS.with(|left| left.set(steps));
        TO_THE_END.with(|nr| nr.set(0));
        model();
    });
}
