//! The roll call: nobody is sent to before it has its port, everybody gets exactly one IPI, and from somebody else, and
//! the end is said once, with all times visible. Ports and bells are relaxed: what is needed comes from the roll call,
//! and from the inbox to whoever takes an IPI.
//!
//! ORDERING: Relaxed throughout, in what watches: what is seen must be seen by the orderings of the code under test.
#![cfg(loom)]

mod model;

use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;
use model::{Bells, NoTime, Step, check, cpu, step};
use percpu::{CpuId, PerCpu, current, hosted, mask_upcalls};
use smp::{Kind, Lead, Limits, Mail, Outcome, Patience, Progress, Rendezvous, RollCall};

struct World {
    roll_call: RollCall,
    mail: Mail<Bells>,
    bound: PerCpu<AtomicBool>,
    ipis: PerCpu<AtomicUsize>,
    completed: AtomicUsize,
}

impl World {
    fn new(nr: usize) -> Arc<World> {
        Arc::new(World {
            roll_call: RollCall::new(nr),
            mail: Mail::new(nr, Bells::new(nr)),
            bound: PerCpu::new(nr, |_| AtomicBool::new(false)),
            ipis: PerCpu::new(nr, |_| AtomicUsize::new(0)),
            completed: AtomicUsize::new(0),
        })
    }

    fn send(&self, to: CpuId) {
        assert_ne!(to, current(), "proves nothing");
        assert!(self.bound.on(to).load(Relaxed), "sent to a CPU that has no port yet");
        self.ipis.on(to).fetch_add(1, Relaxed);
        self.mail.post(to, Kind::Alive);
    }

    fn count(&self, progress: Progress) {
        if progress == Progress::Complete {
            self.completed.fetch_add(1, Relaxed);
        }
    }

    /// What a CPU does: binds, comes, takes a timer event, waits for its IPI.
    fn come_back(&self) {
        let me = current();
        self.bound.mine().store(true, Relaxed);
        self.roll_call.restored(me, |to| self.send(to));
        self.count(self.roll_call.took_timer(me, || 1));
        self.mail.delivery().sleep();
        self.mail.serve(&hosted::masked());
        self.count(self.roll_call.took_ipi(me, || 10 + me.index() as u64, |to| self.send(to)));
    }

    /// vCPU 0 comes too, and waits for all.
    fn lead_and_check(&self, nr: usize) {
        let _on = hosted::enter(CpuId::BOOT);
        self.come_back();
        while !self.roll_call.is_complete() {
            step();
        }
        let (slowest, ns) = self.roll_call.slowest();
        assert_eq!((slowest.index(), ns), (nr - 1, 10 + nr as u64 - 1), "a time is missing");
    }

    fn check_counts(&self, rounds: usize) {
        assert!(self.ipis.iter().all(|(_, ipis)| ipis.load(Relaxed) == rounds));
        assert_eq!(self.completed.load(Relaxed), rounds);
    }
}

fn others(world: &Arc<World>, nr: usize) -> Vec<thread::JoinHandle<()>> {
    let spawn = |n| {
        let world = Arc::clone(world);
        thread::spawn(move || {
            let _on = hosted::enter(cpu(n));
            world.come_back();
        })
    };
    (1..nr).map(spawn).collect()
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("a CPU of the model has panicked"));
}

#[test]
fn two_prove_each_other() {
    check(5, 10, || {
        let world = World::new(2);
        let threads = others(&world, 2);
        world.lead_and_check(2);
        join(threads);
        world.check_counts(1);
    });
}

#[test]
fn three_come_in_any_order() {
    check(2, 4, || {
        let world = World::new(3);
        let threads = others(&world, 3);
        world.lead_and_check(3);
        join(threads);
        world.check_counts(1);
    });
}

#[test]
fn a_second_round_starts_from_nothing() {
    check(3, 8, || {
        let world = World::new(2);
        let first = others(&world, 2);
        world.lead_and_check(2);
        join(first);
        {
            let _on = hosted::enter(CpuId::BOOT);
            let mail = Mail::new(1, Bells::new(1));
            let lead = Lead { mail: &mail, gate: &Step, clock: &NoTime, limits: Limits::only(1), overdue: &|_| () };
            let rendezvous = Rendezvous::new(1, Patience(0));
            let begun = rendezvous.run(&mask_upcalls(), &lead, |quiesced, _| {
                world.bound.iter().for_each(|(_, bound)| bound.store(false, Relaxed));
                world.roll_call.begin(quiesced, |_| true);
                (Outcome::Resumed, ())
            });
            assert_eq!(begun, Ok(()));
        }
        let second = others(&world, 2);
        world.lead_and_check(2);
        join(second);
        world.check_counts(2);
    });
}
