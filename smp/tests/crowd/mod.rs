//! What the scenes with many CPUs share: bells that are flags, and a look at everything that is posted.
//!
//! ORDERING: SeqCst throughout, in what watches: shuttle tries schedules and knows no other order.
#![allow(dead_code, reason = "each scene uses its part")]

use percpu::{CpuId, Masked, PerCpu, hosted};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use shuttle::thread;
use smp::{Delivery, Kind, Kinds, Mail, Relax};

const KINDS: [Kind; 3] = [Kind::Reschedule, Kind::Rendezvous, Kind::Alive];
const MOST_CPUS: usize = 16;

shuttle::lazy_static! {
    /// Whether this CPU's upcall has found anything.
    static ref DID: [AtomicBool; MOST_CPUS] = Default::default();
}

/// The CPU with number `n`.
pub(crate) fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("crowds are small")
}

/// To be called by all that an upcall runs.
pub(crate) fn did_something() {
    DID[percpu::current().index()].store(true, SeqCst);
}

#[derive(Default)]
struct One {
    rung: AtomicBool,
    rings: AtomicUsize,
    /// Times that its inbox held something when it was taken.
    full: AtomicUsize,
    /// For each kind, how often it was wished for, and how many of these wishes its handler has seen.
    wished: [AtomicUsize; KINDS.len()],
    seen: [AtomicUsize; KINDS.len()],
}

/// The delivery of a crowd.
pub(crate) struct Crowd(PerCpu<One>);

impl Crowd {
    pub(crate) fn new(nr: usize) -> Crowd {
        Crowd(PerCpu::new(nr, |_| One::default()))
    }

    /// Posts, and will know whether it was lost.
    pub(crate) fn wish(&self, mail: &Mail<impl Delivery>, cpu: CpuId, kind: Kind) {
        let place = KINDS.iter().position(|one| *one == kind).expect("all are there");
        self.0.on(cpu).wished[place].fetch_add(1, SeqCst);
        mail.post(cpu, kind);
    }

    /// Whether the bell of this CPU has been rung since the last time.
    pub(crate) fn was_rung(&self) -> bool {
        self.0.mine().rung.swap(false, SeqCst)
    }

    /// Takes this CPU's mail.
    pub(crate) fn serve(&self, mail: &Mail<impl Delivery>) {
        let did = &DID[percpu::current().index()];
        did.store(false, SeqCst);
        mail.serve(&hosted::masked());
        if did.load(SeqCst) {
            self.0.mine().full.fetch_add(1, SeqCst);
        }
    }

    /// Once nobody posts any more and all bells have been heeded.
    pub(crate) fn assert_settled(&self) {
        for (cpu, one) in self.0.iter() {
            for (place, kind) in KINDS.iter().enumerate() {
                let (wished, seen) = (one.wished[place].load(SeqCst), one.seen[place].load(SeqCst));
                assert_eq!(seen, wished, "{cpu:?}: {kind:?} was lost");
            }
            assert_eq!(
                one.rings.load(SeqCst),
                one.full.load(SeqCst),
                "{cpu:?}: rings, and times that it was not empty"
            );
        }
    }
}

impl Delivery for Crowd {
    fn ring(&self, cpu: CpuId) {
        let one = self.0.on(cpu);
        one.rings.fetch_add(1, SeqCst);
        one.rung.store(true, SeqCst);
    }

    fn handle(&self, _masked: &Masked, kinds: Kinds) {
        did_something();
        let mine = self.0.mine();
        for (place, _) in KINDS.iter().enumerate().filter(|(_, kind)| kinds.contains(**kind)) {
            mine.seen[place].fetch_max(mine.wished[place].load(SeqCst), SeqCst);
        }
    }
}

/// A task that waits with upcalls unmasked: it is interrupted where its bell is rung.
pub(crate) struct Upcalls<'m>(pub(crate) &'m Mail<Crowd>);

impl Upcalls<'_> {
    /// Takes the upcall if there is one.
    pub(crate) fn take(&self) {
        if self.0.delivery().was_rung() {
            self.0.delivery().serve(self.0);
        }
    }

    /// Takes the upcall if there is one, and lets others run.
    pub(crate) fn step(&self) {
        self.take();
        thread::yield_now();
    }
}

impl Relax for Upcalls<'_> {
    fn spin(&self) {
        self.step();
    }

    fn give_up_processor(&self) {
        self.step();
    }
}
