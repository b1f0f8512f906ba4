//! [`Hotplug`]: which vcpus are up, and how one goes down and comes back while the others run.
//!
//! | standing | who writes it | meaning |
//! |---|---|---|
//! | `Down` | vCPU 0 | Xen does not run it; nobody waits for it |
//! | `Up` | vCPU 0, before `VCPUOP_up` | it runs, or is about to |
//! | `Leaving` | vCPU 0, in a rendezvous | it goes down as soon as it is released |
//! | `Gone` | the CPU | all that it did is over; `VCPUOP_down` is all that is left |
//!
//! Only vCPU 0 changes who is up, and it does so in one piece: from the rendezvous in which a CPU learns that it leaves until
//! Xen says that it is down, vCPU 0 does nothing else. It alone leads a suspend, too; so at every suspend a vcpu is either
//! waited for and parked, or down; for Xen all but vCPU 0 are, and no context but vCPU 0's is saved. Where one does not go, vCPU 0 does not
//! wait for ever: it is told who, and goes on. No suspend succeeds then, as one that leaves parks no more; taking it down once
//! more is to wait for it once more.
//!
//! A rendezvous, because nobody is half way through anything in it: no call is being posted, no device port being bound. And
//! because it brings a CPU to the one place where it may be left, between two tasks, without a look of its own in the way of
//! any event. Any number of CPUs go down in one.
//!
//! What was posted to a CPU is done before it goes ([`Mail::close`]); from then on calls are refused, and what was only
//! asked for waits until it is back.
//!
//! A vcpu that went down in this life of the domain comes back by `VCPUOP_up` alone, out of its own `VCPUOP_down`: its
//! `vcpu_info` is placed and its ports are bound still. In a later life it is not even initialised, and starts like one that
//! never ran. What of a start Xen has taken it refuses a second time, so the next try goes on from there ([`WayUp`]).
//!
//! Turned down: closing its ports when a CPU goes down. The domain's limit must allow for all of them anyhow, and binding
//! two again is most of what a start costs. `VCPUOP_down` of another vcpu: it stops anywhere, with locks held, but for one that is parked
//! in a suspend.
//!
//! Context: each function says. Suspend: *kept*. Weakening any ordering below fails in `tests/loom_hotplug.rs`.

use percpu::{CpuId, CpuSet, Masked, PerCpu, Quiesced, current};
use xen_sys::Errno;
use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU32};

use crate::bring_up::{Operation, StartError, Vcpus};
use crate::mail::{Delivery, Mail};
use crate::missing::{Awaited, Missing};
use crate::phase::Outcome;
use crate::relax::{Backoff, Clock, Gate, Patience};
use crate::rendezvous::{Lead, Rendezvous};
use crate::watch::{Look, Watch};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Standing {
    Down,
    Up,
    Leaving,
    Gone,
}

/// A word that holds a [`Standing`] and nothing else.
struct AtomicStanding(AtomicU8);

impl AtomicStanding {
    fn load(&self, order: xen_sys::primitive::sync::atomic::Ordering) -> Standing {
        match self.0.load(order) {
            1 => Standing::Up,
            2 => Standing::Leaving,
            3 => Standing::Gone,
            _ => Standing::Down,
        }
    }

    fn store(&self, standing: Standing, order: xen_sys::primitive::sync::atomic::Ordering) {
        self.0.store(standing as u8, order);
    }
}

struct Slot {
    standing: AtomicStanding,
    /// The last life of the domain in which it was down and initialised; 0 if it never was. Written by vCPU 0.
    initialised_in: AtomicU32,
    /// The last life of the domain in which it was down with its `vcpu_info` placed, and not initialised; 0 if it never was. Written by
    /// vCPU 0.
    placed_in: AtomicU32,
    /// How often it has come up or gone down. Written by vCPU 0.
    changes: AtomicU32,
}

/// What brings a CPU up that is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum WayUp {
    /// [`bring_up::start`](crate::bring_up::start).
    Start,
    /// [`bring_up::start_placed`](crate::bring_up::start_placed).
    StartPlaced,
    /// [`bring_up::restart`](crate::bring_up::restart).
    Restart,
}

/// See the head of this file.
pub struct Hotplug {
    slots: PerCpu<Slot>,
}

impl Hotplug {
    /// For the first `nr` CPUs, of which vCPU 0 is up.
    pub fn new(nr: usize) -> Hotplug {
        let standing = |cpu| if cpu == CpuId::BOOT { Standing::Up } else { Standing::Down };
        Hotplug {
            slots: PerCpu::new(nr, |cpu| Slot {
                standing: AtomicStanding(AtomicU8::new(standing(cpu) as u8)),
                initialised_in: AtomicU32::new(0),
                placed_in: AtomicU32::new(0),
                changes: AtomicU32::new(0),
            }),
        }
    }

    /// Whether `cpu` is up. On vCPU 0 exact, elsewhere it may be over when it is read. Context: any.
    pub fn is_up(&self, cpu: CpuId) -> bool {
        // ORDERING: Relaxed, nothing is read because of it: who needs to know posts a call, which is taken or refused.
        self.slots.on(cpu).standing.load(Relaxed) == Standing::Up
    }

    /// How many CPUs are up. As [`Hotplug::is_up`].
    pub fn nr_up(&self) -> usize {
        self.slots.iter().filter(|(cpu, _)| self.is_up(*cpu)).count()
    }

    /// How often `cpu` has come up or gone down, so that whoever looks twice knows whether it was up all the time. On the CPU
    /// itself exact. Context: any.
    pub fn changes(&self, cpu: CpuId) -> u32 {
        // ORDERING: Relaxed: its own changes are passed on to the CPU by Xen, which starts it after them; a statistic elsewhere.
        self.slots.on(cpu).changes.load(Relaxed)
    }

    /// How `cpu`, which is down, is brought up in the `life` of the domain that this is. Context: vCPU 0.
    pub fn way_up(&self, cpu: CpuId, life: u32) -> WayUp {
        let slot = self.slots.on(cpu);
        // ORDERING: Relaxed both, our own.
        match [&slot.initialised_in, &slot.placed_in].map(|last| last.load(Relaxed) == life) {
            [true, _] => WayUp::Restart,
            [false, true] => WayUp::StartPlaced,
            [false, false] => WayUp::Start,
        }
    }

    /// `cpu` is about to be brought up; [`Hotplug::did_not_start`] takes it back. Context: vCPU 0, in one piece with that.
    pub fn comes_up(&self, cpu: CpuId) {
        let slot = self.slots.on(cpu);
        Self::count_change(slot);
        // ORDERING: Relaxed, passed on to the CPU by Xen, which starts it after this.
        slot.standing.store(Standing::Up, Relaxed);
    }

    /// Xen has not started it in the `life` of the domain that this is, having refused a call; those before it hold. Context: vCPU 0.
    pub fn did_not_start(&self, error: &StartError, life: u32) {
        let slot = self.slots.on(error.cpu);
        let holds = match error.operation {
            Operation::RegisterVcpuInfo => None,
            Operation::Initialise => Some(&slot.placed_in),
            Operation::Up => Some(&slot.initialised_in),
        };
        if let Some(holds) = holds {
            // ORDERING: Relaxed, our own.
            holds.store(life, Relaxed);
        }
        // ORDERING: Relaxed, as in `is_up`.
        slot.standing.store(Standing::Down, Relaxed);
    }

    /// Whether `cpu` is down. One that is neither that nor up has been told to go down, and has not. Context: vCPU 0.
    pub fn is_down(&self, cpu: CpuId) -> bool {
        // ORDERING: Relaxed, our own.
        self.slots.on(cpu).standing.load(Relaxed) == Standing::Down
    }

    fn count_change(slot: &Slot) {
        // ORDERING: Relaxed, written by vCPU 0 only.
        slot.changes.store(slot.changes.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Takes down those of `cpus` that are up, in the `life` of the domain that this is, unless `check` finds, while all stand
    /// still, that it must not be. Waits once more for those of them that have been told to go down before. vCPU 0 is never among
    /// them.
    ///
    /// Context: a task on vCPU 0, upcalls unmasked. Blocking: a rendezvous, unless none is up, and then until Xen has stopped them,
    /// which takes as long as Xen lets them wait for a processor; for each of the two as long as `lead` says at most. `check` must
    /// take no lock, allocate nothing and log nothing.
    ///
    /// # Errors
    /// Who did not come to the rendezvous, or what `check` found: all are up then as before. Who does not go down
    /// ([`Awaited::GoingDown`]): the others are down.
    #[expect(clippy::result_large_err, reason = "as in `Rendezvous::run`")]
    pub fn take_down<D, G, C, E>(
        &self,
        rendezvous: &Rendezvous,
        lead: &Lead<'_, D, G, C>,
        vcpus: &impl Vcpus,
        (cpus, life): (&CpuSet, u32),
        check: impl FnOnce(&Quiesced) -> Result<(), E>,
    ) -> Result<Result<(), E>, Missing>
    where
        D: Delivery,
        G: Gate + ?Sized,
        C: Clock + ?Sized,
    {
        let asked = || cpus.iter().filter(|cpu| *cpu != CpuId::BOOT && cpu.index() < self.slots.nr());
        // No rendezvous would find one that was late to go down, and has.
        for (cpu, _) in self.slots.iter() {
            self.leaves_still(cpu, rendezvous, vcpus, life);
        }
        if !asked().any(|cpu| self.is_up(cpu)) {
            self.await_gone(asked().collect(), rendezvous, lead, vcpus, life)?;
            return Ok(Ok(()));
        }
        let checked = rendezvous.run(&percpu::mask_upcalls(), lead, |others, _| {
            let checked = check(others);
            if checked.is_ok() {
                for cpu in asked().filter(|cpu| self.is_up(*cpu)) {
                    // ORDERING: Relaxed, passed on by the release.
                    self.slots.on(cpu).standing.store(Standing::Leaving, Relaxed);
                }
            }
            (Outcome::Cancelled, checked)
        })?;
        self.await_gone(asked().collect(), rendezvous, lead, vcpus, life)?;
        Ok(checked)
    }

    /// Waits until those of `cpus` that leave are down.
    #[expect(clippy::result_large_err, reason = "as in `Rendezvous::run`")]
    fn await_gone<D, G: Gate + ?Sized, C: Clock + ?Sized>(
        &self,
        mut cpus: CpuSet,
        rendezvous: &Rendezvous,
        lead: &Lead<'_, D, G, C>,
        vcpus: &impl Vcpus,
        life: u32,
    ) -> Result<(), Missing> {
        let mut watch = Watch::new(lead.clock, lead.limits, lead.overdue);
        let mut backoff = Backoff::new(lead.gate, Patience::SHORT);
        loop {
            cpus = cpus.iter().filter(|cpu| self.leaves_still(*cpu, rendezvous, vcpus, life)).collect();
            if cpus.is_empty() {
                return Ok(());
            }
            match watch.look(cpus.len()) {
                Look::Wait { .. } => backoff.step(),
                Look::Tell => watch.tell(&Missing { awaited: Awaited::GoingDown, cpus: cpus.clone() }),
                Look::Over => return Err(Missing { awaited: Awaited::GoingDown, cpus }),
            }
        }
    }

    /// Whether `cpu` has been told to go down and has not. If it has since, that is taken note of.
    fn leaves_still(&self, cpu: CpuId, rendezvous: &Rendezvous, vcpus: &impl Vcpus, life: u32) -> bool {
        let slot = self.slots.on(cpu);
        // ORDERING: Acquire, pairs with the Release in `go_down`: what we do next, as a suspend, comes after all that it did.
        match slot.standing.load(Acquire) {
            Standing::Up | Standing::Down => return false,
            Standing::Leaving => return true,
            Standing::Gone if vcpus.is_up(cpu) != Ok(false) => return true,
            Standing::Gone => {}
        }
        // SAFETY: it has said that it goes down, and Xen, that it is.
        unsafe { rendezvous.dismiss(cpu) };
        // ORDERING: Relaxed, our own.
        slot.initialised_in.store(life, Relaxed);
        Self::count_change(slot);
        // ORDERING: Relaxed, as in `is_up`.
        slot.standing.store(Standing::Down, Relaxed);
        false
    }

    /// Whether this CPU has to [go down](Hotplug::go_down). Asked when it has left a rendezvous; before that nothing changes.
    pub fn is_leaving(&self) -> bool {
        // ORDERING: Relaxed, passed on by the release out of the rendezvous.
        self.slots.mine().standing.load(Relaxed) == Standing::Leaving
    }

    /// Goes down, and returns when this CPU is up again in the same life of the domain: next it serves its inbox, which opens
    /// it. In a later one it never returns, but starts anew.
    ///
    /// Context: this CPU's executor, between two tasks, upcalls masked; after [`Hotplug::is_leaving`] said so.
    ///
    /// # Errors
    /// Xen's. The CPU runs, and vCPU 0 waits for it in vain: a bug of ours.
    pub fn go_down<D: Delivery>(&self, mail: &Mail<D>, masked: &Masked, vcpus: &impl Vcpus) -> Result<(), Errno> {
        mail.close(masked);
        // ORDERING: Release, pairs with the Acquire in `leaves_still`.
        self.slots.mine().standing.store(Standing::Gone, Release);
        vcpus.down(current())
    }
}

#[cfg(all(test, not(loom)))]
#[path = "hotplug_tests.rs"]
mod tests;
