//! Going down and coming back, with who posts a call, the next rendezvous and a suspend as adversaries.
//!
//! `Fragile` stands for what a suspend takes from a vcpu, as in `loom_rendezvous.rs`: each CPU uses its own in whatever it does,
//! and the suspend writes all of them, those of CPUs that are down too, as their `vcpu_info` is unplaced by it. So a CPU that is
//! taken for down while it still does something is found, whatever the order was in this run.
#![cfg(loom)]

mod model;

use std::cell::RefCell;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use model::{Bells, NoTime, Step, check, cpu, join, on, step};
use percpu::{CpuId, CpuSet, Masked, PerCpu, hosted, mask_upcalls};
use smp::bring_up::{self, VcpuInfoPlace, Vcpus};
use smp::{
    CallNode, Delivery, Hotplug, Kind, Kinds, Lead, Limits, Mail, NotPosted, Outcome, Patience, Rendezvous, WayUp,
};
use xen_sys::Errno;
use xen_sys::abi::arch::VcpuGuestContext;

std::thread_local! {
    /// Arguments of the calls that have run; loom's threads share one thread of the system.
    static RAN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

struct Fragile(UnsafeCell<u32>);

// SAFETY: loom checks every access.
unsafe impl Sync for Fragile {}
// SAFETY: as above.
unsafe impl Send for Fragile {}

impl Fragile {
    /// What a running CPU does all the time.
    fn touch(&self) {
        // SAFETY: loom checks it.
        self.0.with_mut(|uses| unsafe { *uses += 1 });
    }
}

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
}

/// Xen, for which a vcpu is up or not. Its locks order what it is told, for who is brought up; that a vcpu is down it says
/// without passing anything on.
struct Xen {
    up: PerCpu<AtomicBool>,
}

impl Vcpus for Xen {
    unsafe fn register_vcpu_info(&self, _cpu: CpuId, _place: VcpuInfoPlace) -> Result<(), Errno> {
        unreachable!("no vcpu starts anew")
    }

    unsafe fn initialise(&self, _cpu: CpuId, _context: &VcpuGuestContext) -> Result<(), Errno> {
        unreachable!("no vcpu starts anew")
    }

    fn up(&self, cpu: CpuId) -> Result<(), Errno> {
        self.up.on(cpu).swap(true, AcqRel);
        Ok(())
    }

    fn down(&self, cpu: CpuId) -> Result<(), Errno> {
        self.up.on(cpu).store(false, Relaxed);
        while !self.up.on(cpu).load(Acquire) {
            step();
        }
        Ok(())
    }

    fn is_up(&self, cpu: CpuId) -> Result<bool, Errno> {
        Ok(self.up.on(cpu).load(Relaxed))
    }
}

struct World {
    rendezvous: Rendezvous,
    hotplug: Hotplug,
    mail: Mail<Handling>,
    xen: Xen,
}

const LIFE: u32 = 1;

impl World {
    fn new(nr: usize) -> Arc<World> {
        RAN.with(|ran| ran.borrow_mut().clear());
        let (rendezvous, hotplug) = (Rendezvous::new(nr, Patience(0)), Hotplug::new(nr));
        CpuId::first(nr).skip(1).for_each(|cpu| {
            hotplug.comes_up(cpu);
            rendezvous.admit(cpu);
        });
        let fragile = PerCpu::new(nr, |_| Fragile(UnsafeCell::new(0)));
        Arc::new(World {
            rendezvous,
            hotplug,
            mail: Mail::new(nr, Handling { bells: Bells::new(nr), fragile }),
            xen: Xen { up: PerCpu::new(nr, |_| AtomicBool::new(true)) },
        })
    }

    fn fragile(&self) -> &PerCpu<Fragile> {
        &self.mail.delivery().fragile
    }

    fn lead(&self) -> Lead<'_, Handling, Step, NoTime> {
        Lead { mail: &self.mail, gate: &Step, clock: &NoTime, limits: Limits::only(1), overdue: &|_| () }
    }

    fn take_down(&self, n: usize) {
        let cpus: CpuSet = [cpu(n)].into_iter().collect();
        let taken =
            self.hotplug.take_down(&self.rendezvous, &self.lead(), &self.xen, (&cpus, LIFE), |_| Ok::<(), ()>(()));
        assert_eq!(taken, Ok(Ok(())));
        assert!(!self.hotplug.is_up(cpu(n)));
    }

    fn bring_up(&self, n: usize) {
        assert_eq!(self.hotplug.way_up(cpu(n), LIFE), WayUp::Restart);
        self.hotplug.comes_up(cpu(n));
        assert_eq!(bring_up::restart(&self.xen, &self.rendezvous, cpu(n)), Ok(()));
    }

    /// A suspend that is undone, with which every CPU but this one loses what it had.
    fn suspend(&self) {
        let done = self.rendezvous.run(&mask_upcalls(), &self.lead(), |_, _| {
            self.fragile().iter().for_each(|(_, fragile)| fragile.touch());
            (Outcome::Continued, ())
        });
        assert_eq!(done, Ok(()));
    }

    /// A CPU's executor: parks when it is asked to, goes down when it has to; `times` rendezvous.
    fn run(&self, times: usize) {
        for _ in 0..times {
            self.fragile().mine().touch();
            while !self.rendezvous.is_requested() {
                self.mail.delivery().bells.sleep();
                self.mail.serve(&mask_upcalls());
            }
            let masked = mask_upcalls();
            let parked = self.rendezvous.park(&masked, &Step, &self.mail);
            let _ = parked.outcome();
            drop(parked);
            if self.hotplug.is_leaving() {
                self.fragile().mine().touch();
                assert_eq!(self.hotplug.go_down(&self.mail, &masked, &self.xen), Ok(()));
                self.fragile().mine().touch();
                self.mail.serve(&masked);
            }
        }
    }
}

#[test]
fn a_suspend_follows_at_once() {
    check(2, 8, || {
        let world = World::new(2);
        let leaver = on(&world, 1, |world| world.run(1));
        let _on = hosted::enter(CpuId::BOOT);
        world.take_down(1);
        world.suspend();
        world.bring_up(1);
        join([leaver]);
    });
}

#[test]
fn a_rendezvous_follows_its_return_at_once() {
    check(2, 8, || {
        let world = World::new(2);
        let leaver = on(&world, 1, |world| world.run(2));
        let _on = hosted::enter(CpuId::BOOT);
        world.take_down(1);
        world.bring_up(1);
        world.suspend();
        join([leaver]);
        assert_eq!(world.hotplug.changes(cpu(1)), 3);
    });
}

fn note(_masked: &Masked, argument: usize) {
    RAN.with(|ran| ran.borrow_mut().push(argument));
}

/// A cell that the caller fills and the call reads.
struct Gift(UnsafeCell<usize>);

// SAFETY: loom checks every access.
unsafe impl Sync for Gift {}
// SAFETY: as above.
unsafe impl Send for Gift {}

#[test]
fn a_call_is_run_before_it_goes_or_refused() {
    check(2, 4, || {
        let world = World::new(3);
        let leaver = on(&world, 1, |world| world.run(1));
        // Not one of the kernel's vcpus that park: it may post at any moment.
        // SAFETY: it is never started by Xen's fake, and takes part in no rendezvous.
        unsafe { world.rendezvous.dismiss(cpu(2)) };
        let caller = on(&world, 2, |world| {
            let node: &'static CallNode = Box::leak(Box::default());
            let posted = match world.mail.call(cpu(1), node, note, 7) {
                Ok(pending) => {
                    // Run, or it would never end: nobody brings the CPU up before this is over.
                    pending.wait(&Step);
                    true
                }
                Err(refused) => {
                    assert_eq!(refused, NotPosted::Down);
                    let again = world.mail.call(cpu(1), node, note, 8);
                    assert_eq!(again.err(), Some(NotPosted::Down), "the node is idle, and the CPU still down");
                    false
                }
            };
            RAN.with(|ran| assert_eq!(*ran.borrow(), if posted { vec![7] } else { vec![] }));
            // In its own frame, and with something that only the post passes on.
            let gift = Gift(UnsafeCell::new(0));
            // SAFETY: loom checks it.
            gift.0.with_mut(|gift| unsafe { *gift = 5 });
            let gift = &gift;
            // SAFETY: loom checks it.
            let read = world.mail.run_on(cpu(1), &Step, move |_| gift.0.with(|gift| unsafe { *gift }));
            assert!(read.is_err() || read == Ok(5));
            world.mail.post(cpu(1), Kind::Reschedule);
        });
        let _on = hosted::enter(CpuId::BOOT);
        world.take_down(1);
        join([caller]);
        world.bring_up(1);
        join([leaver]);
    });
}
