//! Posts and calls to many CPUs at once, against single posts, looks, each other, and a target that binds its port
//! anew: each CPU finds what it was asked for, runs each call once, and sees what the sender did before; the caller sees
//! what all of them did. The orderings are those of the inbox and the call node: weakening one that they use fails
//! here too.
//!
//! ORDERING: Relaxed throughout, in what watches: what is seen must be seen by the orderings of the code under test.
#![cfg(loom)]

mod model;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use model::{Bells, Step, check, cpu, join, on, step};
use percpu::{CpuId, CpuSet, Masked, PerCpu, current, hosted};
use smp::{CallNode, Delivery, Kind, Kinds, Mail, Relax};

/// A plain value, of which loom checks every access.
struct Plain(UnsafeCell<u32>);

// SAFETY: loom checks every access.
unsafe impl Sync for Plain {}
// SAFETY: as above.
unsafe impl Send for Plain {}

impl Plain {
    fn new() -> Plain {
        Plain(UnsafeCell::new(0))
    }

    fn get(&self) -> u32 {
        // SAFETY: loom checks it.
        self.0.with(|value| unsafe { *value })
    }

    fn add_one(&self) {
        // SAFETY: loom checks it.
        self.0.with_mut(|value| unsafe { *value += 1 });
    }
}

/// CPUs with a bell each, which rings only where the port is bound.
struct World {
    bells: Bells,
    bound: PerCpu<AtomicBool>,
    /// How often a CPU was asked for each of the two.
    alive: PerCpu<AtomicUsize>,
    reschedule: PerCpu<AtomicUsize>,
    /// Written by CPU 0 before it posts; read by whoever is asked whether it lives.
    gift: Plain,
}

impl Delivery for World {
    fn ring(&self, cpu: CpuId) {
        if self.bound.on(cpu).load(Relaxed) {
            self.bells.ring(cpu);
        }
    }

    fn handle(&self, _masked: &Masked, kinds: Kinds) {
        if kinds.contains(Kind::Alive) {
            assert_eq!(self.gift.get(), 1);
            self.alive.mine().fetch_add(1, Relaxed);
        }
        if kinds.contains(Kind::Reschedule) {
            self.reschedule.mine().fetch_add(1, Relaxed);
        }
    }
}

fn world(nr: usize) -> Arc<Mail<World>> {
    let counts = || PerCpu::new(nr, |_| AtomicUsize::new(0));
    Arc::new(Mail::new(
        nr,
        World {
            bells: Bells::new(nr),
            bound: PerCpu::new(nr, |_| AtomicBool::new(true)),
            alive: counts(),
            reschedule: counts(),
            gift: Plain::new(),
        },
    ))
}

fn others(nr: usize) -> CpuSet {
    CpuId::first(nr).skip(1).collect()
}

/// Looks only when it is rung, until it has seen so much: a ring that is missing sleeps for ever.
fn until_seen(mail: &Mail<World>, alive: usize, reschedule: usize) {
    let world = mail.delivery();
    while world.alive.mine().load(Relaxed) < alive || world.reschedule.mine().load(Relaxed) < reschedule {
        world.bells.sleep();
        mail.serve(&hosted::masked());
    }
}

#[test]
fn a_single_post_meets_a_post_to_all() {
    check(3, 8, || {
        let mail = world(3);
        let one = on(&mail, 1, |mail| until_seen(mail, 1, 1));
        let two = on(&mail, 2, |mail| {
            mail.post(cpu(1), Kind::Reschedule);
            until_seen(mail, 1, 0);
        });
        let _on = hosted::enter(CpuId::BOOT);
        mail.delivery().gift.add_one();
        mail.post_all(&others(3), Kind::Alive);
        join([one, two]);
        assert!(mail.delivery().alive.iter().skip(1).all(|(_, seen)| seen.load(Relaxed) == 1));
    });
}

/// Binds anew, looks once, and from then on only when rung.
fn rebind_and_see(mail: &Mail<World>, alive: usize, reschedule: usize) {
    mail.delivery().bound.mine().store(true, Relaxed);
    mail.serve(&hosted::masked());
    until_seen(mail, alive, reschedule);
}

#[test]
fn a_post_to_all_meets_a_port_that_is_bound_anew() {
    check(3, 8, || {
        let mail = world(3);
        mail.delivery().bound.on(cpu(1)).store(false, Relaxed);
        let one = on(&mail, 1, |mail| rebind_and_see(mail, 1, 0));
        let two = on(&mail, 2, |mail| until_seen(mail, 1, 0));
        let _on = hosted::enter(CpuId::BOOT);
        mail.delivery().gift.add_one();
        mail.post_all(&others(3), Kind::Alive);
        join([one, two]);
    });
}

#[test]
fn posts_of_both_kinds_meet_a_port_that_is_bound_anew() {
    check(3, 8, || {
        let mail = world(3);
        mail.delivery().bound.on(cpu(1)).store(false, Relaxed);
        let one = on(&mail, 1, |mail| rebind_and_see(mail, 1, 1));
        let two = on(&mail, 2, |mail| mail.post(cpu(1), Kind::Reschedule));
        let _on = hosted::enter(CpuId::BOOT);
        mail.delivery().gift.add_one();
        mail.post_all(&others(3), Kind::Alive);
        join([one, two]);
    });
}

#[test]
fn a_call_on_all_runs_once_on_each_and_all_is_seen() {
    check(3, 8, || {
        let mail = world(3);
        let runs = Arc::new(PerCpu::new(3, |_| Plain::new()));
        let serving = |n: usize| {
            let runs = Arc::clone(&runs);
            on(&mail, n, move |mail| {
                if n == 2 {
                    mail.post(cpu(1), Kind::Reschedule);
                }
                while runs.mine().get() == 0 {
                    mail.delivery().bells.sleep();
                    mail.serve(&hosted::masked());
                }
            })
        };
        let serving = [1, 2].map(serving);
        let _on = hosted::enter(CpuId::BOOT);
        let mut nodes: [CallNode; 2] = Default::default();
        // Written here, read there, without more ado.
        mail.delivery().gift.add_one();
        let down = mail.run_on_many(&CpuSet::first(3), &mut nodes, &Step, &|_: &Masked| {
            assert_eq!(mail.delivery().gift.get(), 1);
            runs.mine().add_one();
        });
        assert_eq!(down, 0);
        assert!(runs.iter().all(|(_, runs)| runs.get() == 1));
        join(serving);
    });
}

/// Takes upcalls while it waits, as a CPU does.
struct Serving<'a>(&'a Mail<World>);

impl Relax for Serving<'_> {
    fn spin(&self) {
        if self.0.delivery().bells.was_rung() {
            self.0.serve(&hosted::masked());
        }
        step();
    }

    fn give_up_processor(&self) {
        self.spin();
    }
}

#[test]
fn two_that_call_each_other_and_use_their_nodes_again() {
    check(2, 12, || {
        let mail = world(2);
        let runs = Arc::new(PerCpu::new(2, |_| Plain::new()));
        let call_all = {
            let runs = Arc::clone(&runs);
            move |mail: &Mail<World>, rounds: usize| {
                let mut nodes: [CallNode; 1] = Default::default();
                for _ in 0..rounds {
                    let down = mail.run_on_many(&CpuSet::first(2), &mut nodes, &Serving(mail), &|_: &Masked| {
                        runs.mine().add_one();
                    });
                    assert_eq!(down, 0);
                }
                // What the other still wants of us.
                while runs.mine().get() < 3 {
                    mail.delivery().bells.sleep();
                    mail.serve(&hosted::masked());
                }
                assert_eq!(runs.on(current()).get(), 3);
            }
        };
        let one = on(&mail, 1, {
            let call_all = call_all.clone();
            move |mail| call_all(mail, 2)
        });
        let _on = hosted::enter(CpuId::BOOT);
        call_all(&mail, 1);
        join([one]);
        assert!(runs.iter().all(|(_, runs)| runs.get() == 3));
    });
}
