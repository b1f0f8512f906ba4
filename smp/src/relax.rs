//! How to wait for another vcpu, and what time it is: what this crate asks of the kernel besides the mail.
//!
//! vCPUs outnumber processors as a rule, so the one we wait for is often not running, and our spinning is what
//! keeps it from it. On an idle host, though, a short spin is the fastest wait there is. So [`Backoff`] spins a
//! little and then gives the processor back to Xen at every step. It needs nobody who wakes the waiter, which is
//! right for short waits. In a rendezvous many wait for long, and those that yield are what Xen runs instead of
//! those that are waited for: they sleep at a [`Gate`].
#![forbid(unsafe_code)]

use percpu::Masked;

/// Ways to pass time without sleeping. Context: any, also quiesced: both touch only this vcpu's registers.
pub trait Relax {
    /// A few cycles of nothing: `PAUSE`.
    fn spin(&self);

    /// Lets Xen run another vcpu first: `SCHEDOP_yield`. Returns soon, never blocks, needs no waker.
    fn give_up_processor(&self);
}

/// Where those who wait in a rendezvous sleep. One for the domain; the leader opens and shuts it.
///
/// Everything here may return for no reason at any time; whoever waits looks again. A kernel that has no gate yields
/// in its place, which is what the defaults do.
pub trait Gate: Relax {
    /// From here on waits at the gate last until [`open`](Gate::open). Context: the leader, nobody at the gate.
    fn shut(&self) {}

    /// Ends all waits, and those that begin until the next [`shut`](Gate::shut) do not last. Context: the leader, in
    /// the same domain or in a new one, where nobody waits.
    fn open(&self) {}

    /// Waits at the gate; an event for this CPU, or one that is there already, ends the wait too, and so does
    /// `limit_ns`. No handler runs: what came waits for [`take_events`](Gate::take_events). Context: parked, or the
    /// leader in its task. One that is parked may be taken down at any instruction of it.
    fn doze(&self, _masked: &Masked, _limit_ns: Option<u64>) {
        self.give_up_processor();
    }

    /// Waits at the gate. Context: parked. This CPU may be taken down at any instruction of it.
    fn sleep(&self, _masked: &Masked) {
        self.give_up_processor();
    }

    /// Takes the events of this CPU that wait, as their upcall would. Context: one in which handlers may run.
    fn take_events(&self, _masked: &Masked) {}
}

/// The guest's monotonic time. Not to be read while quiesced by a follower, as after a restore its time page is that
/// of the old host.
pub trait Clock {
    /// Nanoseconds since a point that stays the same until the next restore.
    fn now_ns(&self) -> u64;
}

/// How long a waiter spins before it gives the processor up: the number of [`Relax::spin`] calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience(pub u32);

impl Patience {
    /// What a call of an idle vCPU takes, or a little less: a yield that is under way when the answer comes delays it.
    ///
    /// `cargo xtask bench --rounds 5 ipi-call,bare-ipi`, other=idle, beside a caller that only spins: 1.21 with 64 (the median of
    /// four runs), 1.04 with 128, 1.03 with 512. `--vcpus 16 --host-cpus 2 ipi-broadcast`, where spinning is in the way of
    /// those who are waited for: 1.33 M ticks with 64, 1.29 with 128, 1.42 with 512, 2.9 with 4096.
    pub const SHORT: Patience = Patience(128);
}

/// One wait: spins first, then yields.
pub struct Backoff<'a, R: ?Sized> {
    relax: &'a R,
    spins_left: u32,
}

impl<'a, R: Relax + ?Sized> Backoff<'a, R> {
    /// A wait that has not begun.
    pub fn new(relax: &'a R, patience: Patience) -> Self {
        Backoff { relax, spins_left: patience.0 }
    }

    /// One step of the wait. Look at what is waited for after each.
    pub fn step(&mut self) {
        match self.spins_left.checked_sub(1) {
            Some(left) => {
                self.spins_left = left;
                self.relax.spin();
            }
            None => self.relax.give_up_processor(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[derive(Default)]
    struct Counts {
        spins: Cell<u32>,
        yields: Cell<u32>,
    }

    impl Relax for Counts {
        fn spin(&self) {
            self.spins.set(self.spins.get() + 1);
        }

        fn give_up_processor(&self) {
            self.yields.set(self.yields.get() + 1);
        }
    }

    #[test]
    fn spins_first_then_yields_for_good() {
        let counts = Counts::default();
        let mut backoff = Backoff::new(&counts, Patience(3));
        for _ in 0..10 {
            backoff.step();
        }
        assert_eq!((counts.spins.get(), counts.yields.get()), (3, 7));
    }

    #[test]
    fn no_patience_means_yield_at_once() {
        let counts = Counts::default();
        Backoff::new(&counts, Patience(0)).step();
        assert_eq!((counts.spins.get(), counts.yields.get()), (0, 1));
    }
}
