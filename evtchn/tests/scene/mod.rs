//! [`SCENE`]: what is raised in a scene and what handlers have seen of it, for each device, timer and inbox; and the
//! handlers, which look for what must not be.
//!
//! ORDERING: SeqCst throughout, in what watches: shuttle tries schedules and knows no other order.

use evtchn::{Action, EndOfEvent, Handlers, Ipi, Virq};
use percpu::Masked;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};

pub(crate) const MOST_CPUS: usize = 16;
pub(crate) const DEVICES: usize = 8;

/// One thing that is raised and handled.
#[derive(Default)]
pub(crate) struct Source {
    /// What was done before it was raised.
    pub(crate) work: AtomicUsize,
    /// How much of it a handler has seen.
    pub(crate) found: AtomicUsize,
    pub(crate) raised: AtomicUsize,
    pub(crate) runs: AtomicUsize,
}

impl Source {
    pub(crate) fn handle(&self) {
        self.look();
        self.runs.fetch_add(1, SeqCst);
    }

    pub(crate) fn look(&self) {
        self.found.fetch_max(self.work.load(SeqCst), SeqCst);
    }

    pub(crate) fn raise<T>(&self, raise: impl FnOnce() -> T) {
        self.work.fetch_add(1, SeqCst);
        self.raised.fetch_add(1, SeqCst);
        raise();
    }

    pub(crate) fn assert_settled(&self, name: &str, n: usize) {
        assert_eq!(self.found.load(SeqCst), self.work.load(SeqCst), "{name} {n}: an event was lost");
    }
}

/// What handlers reach: those of virqs and ipis are functions.
pub(crate) struct Scene {
    pub(crate) devices: [Source; DEVICES],
    /// CPUs on which the device's handler may run, as bits.
    pub(crate) allowed: [AtomicUsize; DEVICES],
    /// CPUs on which it is running.
    pub(crate) inside: [AtomicUsize; DEVICES],
    /// Which of its handlers are gone, as bits: each time that it is bound it gets another.
    pub(crate) dropped: [AtomicUsize; DEVICES],
    pub(crate) timers: [Source; MOST_CPUS],
    /// For each CPU, who has posted to it, as bits; beside it what they have done before.
    pub(crate) inboxes: [AtomicUsize; MOST_CPUS],
    pub(crate) posted: [Source; MOST_CPUS],
    /// For each CPU, the late devices whose events a task of it is to end, as bits.
    pub(crate) to_end: [AtomicUsize; MOST_CPUS],
    pub(crate) upcalls: AtomicUsize,
    /// What upcalls say that they have handled.
    pub(crate) handled: AtomicUsize,
    /// Threads that may still raise something.
    pub(crate) busy: AtomicUsize,
}

shuttle::lazy_static! {
    pub(crate) static ref SCENE: Scene = Scene {
        devices: Default::default(),
        allowed: Default::default(),
        inside: Default::default(),
        dropped: Default::default(),
        timers: Default::default(),
        inboxes: Default::default(),
        posted: Default::default(),
        to_end: Default::default(),
        upcalls: AtomicUsize::new(0),
        handled: AtomicUsize::new(0),
        busy: AtomicUsize::new(0),
    };
}

/// What a device's handler owns: the device's number, and which of its handlers this is.
pub(crate) struct Owned {
    pub(crate) device: usize,
    pub(crate) nr: usize,
}

impl Owned {
    fn assert_may_run(&self) {
        let (n, me) = (self.device, percpu::current().index());
        assert_eq!(SCENE.dropped[n].load(SeqCst) & 1 << self.nr, 0, "device {n}'s handler ran after it was freed");
        assert_ne!(SCENE.allowed[n].load(SeqCst) & 1 << me, 0, "device {n}'s handler ran on cpu {me}");
    }

    pub(crate) fn handle(&self, action: &Action, nr_cpus: usize) {
        let (n, me) = (self.device, percpu::current().index());
        let others = SCENE.inside[n].fetch_or(1 << me, SeqCst);
        assert_eq!(others, 0, "device {n}'s handler runs on cpu {me} and others");
        self.assert_may_run();
        SCENE.devices[n].handle();
        if action.end() == EndOfEvent::Late {
            let ender = if thread_rng().r#gen() { me } else { thread_rng().gen_range(0..nr_cpus) };
            SCENE.to_end[ender].fetch_or(1 << n, SeqCst);
        }
        self.assert_may_run();
        SCENE.inside[n].fetch_and(!(1 << me), SeqCst);
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        SCENE.dropped[self.device].fetch_or(1 << self.nr, SeqCst);
    }
}

fn on_timer(_: &Masked) {
    SCENE.timers[percpu::current().index()].handle();
}

fn on_call(_: &Masked) {
    serve();
    SCENE.posted[percpu::current().index()].runs.fetch_add(1, SeqCst);
}

/// Empties this CPU's inbox.
pub(crate) fn serve() {
    let me = percpu::current().index();
    if SCENE.inboxes[me].swap(0, SeqCst) != 0 {
        SCENE.posted[me].look();
    }
}

pub(crate) fn handlers() -> Handlers {
    Handlers::new().virq(Virq::TIMER, on_timer).ipi(Ipi::Call, on_call)
}
