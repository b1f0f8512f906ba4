//! The rendezvous, with the suspend as an adversary.
//!
//! `Fragile` stands for what a suspend takes from a vcpu: its vcpu_info, mask, ports, clock page. The leader's work
//! writes it for every follower, as a restore does, while the followers run. loom's cell panics when two threads reach
//! it without one knowing of the other, whatever their order was in this run: so a follower that touches it at any
//! point while stopped is found, and so is an acknowledgement or a release that passes on too little.
//!
//! `Xen` stands for the gate's port, and for whom it runs. A hypercall is one step there. The leader's work takes the followers
//! down, wherever they spin, yield or sleep. In the same domain they go on from there; in a new one they are lost, started, taken
//! down once more, and brought up after the release: they park again. (One that is lost between two of its own words is a case of `rendezvous_tests.rs`.)
#![cfg(loom)]

mod model;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::{Arc, Mutex};
use model::{Bells, NoTime, Step, check, cpu, join, on, step};
use percpu::{CpuId, Masked, PerCpu, current, hosted, mask_upcalls};
use smp::trace::Mark;
use smp::{
    Awaited, Clock, Delivery, Gate, Kind, Kinds, Lead, Limits, Mail, Missing, Outcome, Patience, Relax, Rendezvous,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum VcpuInfo {
    Registered,
    Dummy,
}

struct Fragile(UnsafeCell<VcpuInfo>);

// SAFETY: loom checks every access.
unsafe impl Sync for Fragile {}
// SAFETY: as above.
unsafe impl Send for Fragile {}

impl Fragile {
    /// What a running CPU does all the time: masks, reads its clock, takes events.
    fn touch(&self) {
        // SAFETY: loom checks it.
        let now = self.0.with(|info| unsafe { *info });
        assert_eq!(now, VcpuInfo::Registered, "used before it was registered again");
    }

    fn replace(&self, with: VcpuInfo) -> VcpuInfo {
        // SAFETY: loom checks it.
        self.0.with_mut(|info| unsafe { std::mem::replace(&mut *info, with) })
    }
}

/// What a CPU does with its mail needs all that a suspend takes away.
struct Handling {
    bells: Bells,
    fragile: PerCpu<Fragile>,
}

impl Delivery for Handling {
    fn ring(&self, cpu: CpuId) {
        self.bells.ring(cpu);
    }

    fn handle(&self, _masked: &Masked, _kinds: Kinds) {
        self.fragile.mine().touch();
    }

    fn mark(&self, _masked: &Masked, _mark: Mark) {
        // Where it may not stand it would be found out.
        self.fragile.mine().touch();
    }
}

/// What Xen knows: which life of the domain this is, whether the gate's port is `pending`, on which CPUs sleep, and whom it runs.
struct Port {
    life: usize,
    pending: bool,
    /// The life in which those have been started that it runs; 0: all but vCPU 0 are down.
    runs: usize,
}

/// What is left of a CPU that was down when its domain was restored.
struct Lost;

/// The kernel's gate: the word that Xen reads, and Xen.
struct Sleepers {
    /// The life whose port is to be waited for; 0: none.
    door: AtomicUsize,
    xen: Mutex<Port>,
    /// The life in which each CPU was started. Written by its own.
    started: PerCpu<AtomicUsize>,
}

impl Sleepers {
    fn new(nr: usize) -> Sleepers {
        let xen = Mutex::new(Port { life: 1, pending: false, runs: 1 });
        Sleepers { door: AtomicUsize::new(0), xen, started: PerCpu::new(nr, |_| AtomicUsize::new(1)) }
    }

    fn xen(&self) -> loom::sync::MutexGuard<'_, Port> {
        self.xen.lock().expect("no model panics in there")
    }

    /// Xen runs this CPU. If it is down it waits here until it is up again, or is lost.
    fn running(&self) -> loom::sync::MutexGuard<'_, Port> {
        loop {
            let xen = self.xen();
            match xen.runs {
                _ if current() == CpuId::BOOT => return xen,
                0 => {}
                runs if runs == self.started.mine().load(Relaxed) => return xen,
                _ => {
                    drop(xen);
                    resume_unwind(Box::new(Lost))
                }
            }
            drop(xen);
            step();
        }
    }

    /// The hypercall begins: Xen reads the door. Whether it sleeps.
    fn poll(&self) -> bool {
        let xen = self.running();
        match self.door.load(Relaxed) {
            0 => false,
            door => {
                assert_eq!(door, xen.life, "sleeps on a number of an earlier life");
                !xen.pending
            }
        }
    }

    /// Whether a sleep goes on. None outlives its domain: who sleeps then is lost.
    fn lasts(&self) -> bool {
        !self.running().pending
    }

    fn take_down(&self) {
        self.xen().runs = 0;
    }

    /// The domain is suspended and restored, and has a new gate's port, on which nobody waits yet.
    fn restore(&self) {
        let mut xen = self.xen();
        xen.life += 1;
        xen.pending = false;
        self.door.store(0, Relaxed);
    }

    /// Brings up who is down: in the same life, or started in this one.
    fn bring_up(&self) {
        let mut xen = self.xen();
        xen.runs = xen.life;
    }
}

struct World {
    rendezvous: Rendezvous,
    mail: Mail<Handling>,
    sleepers: Sleepers,
}

impl Relax for World {
    fn spin(&self) {
        drop(self.sleepers.running());
        step();
    }

    fn give_up_processor(&self) {
        drop(self.sleepers.running());
        step();
    }
}

impl Gate for World {
    fn shut(&self) {
        let mut xen = self.sleepers.xen();
        xen.pending = false;
        self.sleepers.door.store(xen.life, Relaxed);
    }

    fn open(&self) {
        let mut xen = self.sleepers.xen();
        xen.pending = true;
        drop(xen);
        self.sleepers.door.store(0, Relaxed);
    }

    fn doze(&self, _masked: &Masked, limit_ns: Option<u64>) {
        if !self.sleepers.poll() {
            return step();
        }
        let bells = &self.mail.delivery().bells;
        // With a limit that a clock of this model reaches, whoever dozes may look at any time.
        while self.sleepers.lasts() && !bells.was_rung() {
            step();
            if limit_ns.is_some_and(|ns| ns < u64::MAX / 2) {
                return;
            }
        }
    }

    fn sleep(&self, _masked: &Masked) {
        if !self.sleepers.poll() {
            return step();
        }
        while self.sleepers.lasts() {
            step();
        }
    }

    fn take_events(&self, _masked: &Masked) {
        self.fragile().on(current()).touch();
    }
}

impl World {
    fn new(nr: usize) -> Arc<World> {
        let rendezvous = Rendezvous::new(nr, Patience(0));
        CpuId::first(nr).skip(1).for_each(|cpu| rendezvous.admit(cpu));
        let fragile = PerCpu::new(nr, |_| Fragile(UnsafeCell::new(VcpuInfo::Registered)));
        let mail = Mail::new(nr, Handling { bells: Bells::new(nr), fragile });
        Arc::new(World { rendezvous, mail, sleepers: Sleepers::new(nr) })
    }

    fn fragile(&self) -> &PerCpu<Fragile> {
        &self.mail.delivery().fragile
    }

    /// One rendezvous of vCPU 0, with a suspend in it that ends as `outcome`.
    #[expect(clippy::result_large_err, reason = "as `Rendezvous::run`")]
    fn lead(&self, clock: &impl Clock, limit_ns: u64, outcome: Outcome) -> Result<(), Missing> {
        let _on = hosted::enter(CpuId::BOOT);
        let masked = mask_upcalls();
        let lead = Lead { mail: &self.mail, gate: self, clock, limits: Limits::only(limit_ns), overdue: &|_| () };
        self.rendezvous.run(&masked, &lead, |_, _| {
            self.sleepers.take_down();
            match outcome {
                Outcome::Resumed => {
                    self.sleepers.restore();
                    self.sleepers.bring_up();
                    step();
                    self.sleepers.take_down();
                }
                Outcome::Continued | Outcome::Cancelled => self.sleepers.bring_up(),
            }
            for (_, fragile) in self.fragile().iter() {
                // All of them stand still: whoever touches its own now is not parked.
                let to = if outcome == Outcome::Resumed { VcpuInfo::Dummy } else { VcpuInfo::Registered };
                fragile.replace(to);
            }
            self.fragile().on(CpuId::BOOT).replace(VcpuInfo::Registered);
            (outcome, ())
        })?;
        if outcome == Outcome::Resumed {
            self.sleepers.bring_up();
        }
        Ok(())
    }

    /// Parks once and restores this CPU.
    fn park(&self) -> Outcome {
        let fragile = self.fragile().mine();
        fragile.touch();
        let masked = mask_upcalls();
        let parked = loop {
            let wait = || self.rendezvous.park(&masked, self, &self.mail);
            match catch_unwind(AssertUnwindSafe(wait)) {
                Ok(parked) => break parked,
                Err(lost) if lost.is::<Lost>() => {
                    self.sleepers.started.mine().store(self.sleepers.xen().life, Relaxed);
                }
                Err(other) => resume_unwind(other),
            }
        };
        // One that was never seen down has been started all the same.
        self.sleepers.started.mine().store(self.sleepers.xen().life, Relaxed);
        if parked.outcome() == Outcome::Resumed {
            assert_eq!(fragile.replace(VcpuInfo::Registered), VcpuInfo::Dummy, "released before the work was done");
            self.mail.serve(&masked);
        }
        let outcome = parked.outcome();
        drop(parked);
        fragile.touch();
        outcome
    }

    /// Sleeps until it is asked to park. A lost wake-up sleeps for ever.
    fn asleep_until_asked(&self) {
        loop {
            self.fragile().mine().touch();
            self.mail.delivery().bells.sleep();
            self.mail.serve(&mask_upcalls());
            if self.rendezvous.is_requested() {
                return;
            }
        }
    }
}

#[test]
fn all_are_lost_in_their_wait() {
    check(2, 4, || {
        let world = World::new(3);
        let followers = [1, 2].map(|n| {
            on(&world, n, move |world| {
                world.asleep_until_asked();
                // Meets the other one parked, perhaps: it must leave this where it is once it has stopped.
                if n == 2 {
                    world.mail.post(cpu(1), Kind::Reschedule);
                }
                assert_eq!(world.park(), Outcome::Resumed);
            })
        });
        assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Resumed), Ok(()));
        join(followers);
    });
}

#[test]
fn two_in_a_row_are_not_mixed_up() {
    check(3, 16, || {
        let world = World::new(2);
        let follower = on(&world, 1, |world| {
            for outcome in [Outcome::Resumed, Outcome::Continued] {
                world.asleep_until_asked();
                assert_eq!(world.park(), outcome);
            }
        });
        assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Resumed), Ok(()));
        assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Continued), Ok(()));
        join([follower]);
    });
}

/// The leader's own bell gets the follower out of its doze: it serves once more, while the leader goes on to the work, to the
/// release, and to the next one.
#[test]
fn who_still_serves_misses_no_outcome() {
    check(2, 6, || {
        let world = World::new(2);
        let follower = on(&world, 1, |world| {
            for outcome in [Outcome::Resumed, Outcome::Continued] {
                while !world.rendezvous.is_requested() {
                    step();
                }
                assert_eq!(world.park(), outcome);
            }
        });
        assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Resumed), Ok(()));
        assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Continued), Ok(()));
        join([follower]);
    });
}

/// A clock on which every look takes one nanosecond: a limit is a number of looks.
#[derive(Default)]
struct Looks(Cell<u64>);

impl Clock for Looks {
    fn now_ns(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

#[test]
fn late_arrival_meets_the_time_out() {
    check(2, 10, || {
        let world = World::new(2);
        let follower = on(&world, 1, |world| {
            // Comes at any time, asked or not, until the one that counts has taken place.
            while world.park() == Outcome::Cancelled {
                step();
            }
            assert_eq!(world.park(), Outcome::Cancelled, "its outcome is for once");
        });
        let first = world.lead(&Looks::default(), 2, Outcome::Resumed);
        if let Err(missing) = first {
            assert_eq!(missing.cpus.iter().collect::<Vec<_>>(), [cpu(1)]);
            assert_ne!(missing.awaited, Awaited::Leaving);
            assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Continued), Ok(()));
        }
        join([follower]);
    });
}

#[test]
fn one_of_two_missing_frees_the_other() {
    check(4, 12, || {
        let world = World::new(3);
        let came = on(&world, 1, |world| {
            world.asleep_until_asked();
            assert_eq!(world.park(), Outcome::Cancelled);
        });
        // CPU 2 never comes.
        let Err(missing) = world.lead(&Looks::default(), 3, Outcome::Resumed) else { panic!("2 is missing") };
        assert!(missing.cpus.contains(cpu(2)));
        join([came]);
    });
}

#[test]
fn a_caller_is_served_before_it_parks() {
    check(1, 8, || {
        let world = World::new(3);
        let caller = on(&world, 1, |world| {
            // The other one may be parked already.
            assert_eq!(world.mail.run_on(cpu(2), &Step, |_| 7), Ok(7));
            world.asleep_until_asked();
            assert_eq!(world.park(), Outcome::Continued);
        });
        let callee = on(&world, 2, |world| {
            while !world.rendezvous.is_requested() {
                step();
            }
            assert_eq!(world.park(), Outcome::Continued);
        });
        assert_eq!(world.lead(&NoTime, u64::MAX, Outcome::Continued), Ok(()));
        join([caller, callee]);
    });
}
