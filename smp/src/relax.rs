//! How to wait for another vcpu, and what time it is: the two things that this crate asks of the kernel.
//!
//! vCPUs outnumber processors as a rule, so the one we wait for is often not running, and our spinning is what
//! keeps it from it. On an idle host, though, a short spin is the fastest wait there is. So [`Backoff`] spins a
//! little and then gives the processor back to Xen at every step. It holds no state outside of the waiter's
//! stack: a vcpu that waits in the rendezvous may not rely on anything else.
//!
//! `SCHEDOP_poll` in place of the yield frees the processor for longer, but it needs a port that wakes the waiter,
//! and one that starts just after a restore may then sleep for ever. A yield needs nobody.
#![forbid(unsafe_code)]

/// Ways to pass time without sleeping. Context: any, also quiesced: both touch only this vcpu's registers.
pub trait Relax {
    /// A few cycles of nothing: `PAUSE`.
    fn spin(&self);

    /// Lets Xen run another vcpu first: `SCHEDOP_yield`. Returns soon, never blocks, needs no waker.
    fn give_up_processor(&self);
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
    /// Meant to be about what an IPI takes between two running vcpus. The number is a guess that was never measured.
    pub const SHORT: Patience = Patience(64);
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
