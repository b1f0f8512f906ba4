//! What the unit tests of this crate share.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::Mutex;

use percpu::hosted::Entered;
use percpu::{CpuId, Masked, Quiesced, hosted};

use crate::{Clock, Delivery, Gate, Kinds, Lead, Limits, Mail, Outcome, Patience, Relax, Rendezvous};

/// A CPU of the host: waits by letting other threads run, and has no time.
pub(crate) struct Alone;

impl Relax for Alone {
    fn spin(&self) {
        std::thread::yield_now();
    }

    fn give_up_processor(&self) {
        std::thread::yield_now();
    }
}

impl Gate for Alone {}

impl Clock for Alone {
    fn now_ns(&self) -> u64 {
        0
    }
}

/// Every look takes one nanosecond.
#[derive(Default)]
pub(crate) struct Looks(pub(crate) Cell<u64>);

impl Clock for Looks {
    fn now_ns(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

/// Writes down what it was asked for.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) rings: Mutex<Vec<CpuId>>,
    pub(crate) kinds: Mutex<Vec<Kinds>>,
}

impl Delivery for Noted {
    fn ring(&self, cpu: CpuId) {
        self.rings.lock().expect("no test panics in here").push(cpu);
    }

    fn handle(&self, _masked: &Masked, kinds: Kinds) {
        self.kinds.lock().expect("no test panics in here").push(kinds);
    }
}

/// Inboxes of `nr` CPUs, and this thread as vCPU 0.
pub(crate) fn kernel(nr: usize) -> (Mail<Noted>, Entered) {
    (Mail::new(nr, Noted::default()), hosted::enter(CpuId::BOOT))
}

/// Calls `work` with the proof that everybody else is stopped: there is nobody else.
pub(crate) fn quiesced<T>(work: impl FnOnce(&Quiesced) -> T) -> T {
    let (mail, _on) = kernel(1);
    let lead = Lead { mail: &mail, gate: &Alone, clock: &Alone, limits: Limits::only(1), overdue: &|_| () };
    Rendezvous::new(1, Patience(0))
        .run(&hosted::masked(), &lead, |others, _| (Outcome::Continued, work(others)))
        .expect("nobody can be missing")
}
