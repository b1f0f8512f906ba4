//! The rendezvous with a dozen CPUs that go on posting and calling, and with leaders that run out of patience, on random
//! schedules.
//!
//! What must hold: while the leader works nobody else runs; each follower comes out of every rendezvous that took place
//! once, with its outcome and in order, and of none that did not.
//!
//! ORDERING: SeqCst throughout, in what watches: shuttle tries schedules and knows no other order.
#![cfg(shuttle)]

mod crowd;
#[path = "../../evtchn/tests/schedules/mod.rs"]
mod schedules;

use std::cell::Cell;

use crowd::{Crowd, Upcalls, cpu};
use percpu::{CpuId, hosted, mask_upcalls};
use schedules::explore;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use shuttle::thread;
use smp::{Clock, Gate, Kind, Lead, Limits, Mail, Outcome, Patience, Relax, Rendezvous};

const ROUNDS: usize = 4;

/// A clock on which every look takes one nanosecond: a limit is a number of looks.
#[derive(Default)]
struct Looks(Cell<u64>);

impl Clock for Looks {
    fn now_ns(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

/// Waits with upcalls masked.
struct Parked;

impl Relax for Parked {
    fn spin(&self) {
        thread::yield_now();
    }

    fn give_up_processor(&self) {
        thread::yield_now();
    }
}

impl Gate for Parked {}

struct World {
    rendezvous: Rendezvous,
    mail: Mail<Crowd>,
    /// Followers that are not in `park`.
    running: AtomicUsize,
    /// What a restore leaves for each CPU to be set right by itself.
    struck: Vec<AtomicBool>,
    over: AtomicBool,
}

impl World {
    /// Leads all rounds; returns the outcomes of those that took place.
    fn lead(&self) -> Vec<Outcome> {
        let mut took_place = Vec::new();
        for _ in 0..ROUNDS {
            let clock = Looks::default();
            let outcome = [Outcome::Resumed, Outcome::Continued][thread_rng().gen_range(0..2)];
            // Some leaders have time without end.
            let limit_ns = [20, 200, u64::MAX][thread_rng().gen_range(0..3)];
            let lead = Lead {
                mail: &self.mail,
                gate: &Parked,
                clock: &clock,
                limits: Limits::only(limit_ns),
                overdue: &|_| (),
            };
            let masked = mask_upcalls();
            let result = self.rendezvous.run(&masked, &lead, |_, _| {
                assert_eq!(self.running.load(SeqCst), 0, "somebody runs while the leader works");
                // Looks again after others had their chance.
                thread::yield_now();
                if outcome == Outcome::Resumed {
                    self.struck.iter().skip(1).for_each(|struck| assert!(!struck.swap(true, SeqCst)));
                }
                assert_eq!(self.running.load(SeqCst), 0, "somebody runs while the leader works");
                (outcome, ())
            });
            drop(masked);
            match result {
                Ok(()) => took_place.push(outcome),
                Err(missing) => {
                    assert!(!missing.cpus.is_empty() && !missing.cpus.contains(CpuId::BOOT), "{missing}");
                    assert_ne!(limit_ns, u64::MAX, "{missing}");
                }
            }
            Upcalls(&self.mail).step();
        }
        took_place
    }

    /// Works, and parks when asked to, until the leader has led all; returns the outcomes that meant something.
    fn follow(&self, me: usize) -> Vec<Outcome> {
        let upcalls = Upcalls(&self.mail);
        let mut took_place = Vec::new();
        while !self.over.load(SeqCst) {
            assert!(!self.struck[me].load(SeqCst), "runs before it has been restored");
            let target = cpu(thread_rng().gen_range(0..self.struck.len()));
            match thread_rng().gen_range(0..6) {
                0 => self.mail.delivery().wish(&self.mail, target, Kind::Reschedule),
                1 => assert_eq!(self.mail.run_on(target, &upcalls, |_| crowd::did_something()), Ok(())),
                _ => upcalls.step(),
            }
            if self.rendezvous.is_requested() {
                let masked = mask_upcalls();
                self.running.fetch_sub(1, SeqCst);
                let parked = self.rendezvous.park(&masked, &Parked, &self.mail);
                self.running.fetch_add(1, SeqCst);
                let outcome = parked.outcome();
                if outcome != Outcome::Cancelled {
                    took_place.push(outcome);
                }
                assert_eq!(self.struck[me].swap(false, SeqCst), outcome == Outcome::Resumed);
            }
        }
        took_place
    }
}

#[test]
fn all_stop_and_all_go_on() {
    explore(600, || {
        let nr = thread_rng().gen_range(8..=14);
        let world = Arc::new(World {
            rendezvous: Rendezvous::new(nr, Patience(3)),
            mail: Mail::new(nr, Crowd::new(nr)),
            running: AtomicUsize::new(nr - 1),
            struck: (0..nr).map(|_| AtomicBool::new(false)).collect(),
            over: AtomicBool::new(false),
        });
        CpuId::first(nr).skip(1).for_each(|cpu| world.rendezvous.admit(cpu));
        let left = Arc::new(AtomicUsize::new(nr - 1));
        let followers: Vec<_> = (1..nr)
            .map(|me| {
                let (world, left) = (world.clone(), left.clone());
                thread::spawn(move || {
                    let _on = hosted::enter(cpu(me));
                    let took_place = world.follow(me);
                    // Others may still call this one.
                    left.fetch_sub(1, SeqCst);
                    while left.load(SeqCst) > 0 {
                        Upcalls(&world.mail).step();
                    }
                    took_place
                })
            })
            .collect();
        let _on = hosted::enter(CpuId::BOOT);
        let took_place = world.lead();
        world.over.store(true, SeqCst);
        while left.load(SeqCst) > 0 {
            Upcalls(&world.mail).step();
        }
        for follower in followers {
            assert_eq!(follower.join().expect("a follower has panicked"), took_place);
        }
    });
}
