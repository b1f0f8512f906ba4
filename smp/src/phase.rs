//! The two words of a rendezvous: the phase, which the leader writes, and each CPU's acknowledgement, which that CPU
//! writes.
//!
//! Both carry the number of the rendezvous, so that two in a row cannot be mixed up: an acknowledgement of the last one
//! counts for nothing in this one.
//!
//! | phase word, bits 0..=2 | 3..=63 | meaning |
//! |---|---|---|
//! | 0 | 0 | `Run`: there has been none yet |
//! | 1 | generation | `Quiesce`: come, acknowledge, go on serving your inbox |
//! | 2 | generation | `Stopped`: touch nothing |
//! | 3, 4, 5 | generation | `Released`, as `Resumed`, `Continued`, `Cancelled` |
//!
//! | acknowledgement, bits 0..=1 | 2..=63 | meaning |
//! |---|---|---|
//! | 0 | 0 | `Offline`: the vcpu is down, nobody waits for it |
//! | 1 | 0 | `Out`: it runs |
//! | 2 | generation | `Arrived`: it waits and touches nothing |
//! | 3 | generation | `Serving`: it has arrived, and looks into its inbox again |
//!
//! A release is final for its generation: the word keeps it until the next `Quiesce`. 61 bits of generations last for
//! ever.
#![forbid(unsafe_code)]

use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

/// The number of a rendezvous. The first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Generation(u64);

impl Generation {
    /// That with number `n`.
    pub const fn new(n: u64) -> Generation {
        Generation(n)
    }

    fn next(self) -> Generation {
        Generation(self.0 + 1)
    }

    /// As a number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// How a rendezvous ended, and with it what each CPU has to do before it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// This is a new domain: nothing of the old one's ports, vcpu_info registrations, timers is left.
    Resumed,
    /// The suspend took place and was undone, or was for a checkpoint: all of it still holds.
    Continued,
    /// Nothing was done.
    Cancelled,
}

/// What the leader wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Run,
    Quiesce(Generation),
    Stopped(Generation),
    Released(Generation, Outcome),
}

impl Phase {
    /// The generation that follows.
    pub(crate) fn next_generation(self) -> Generation {
        match self {
            Phase::Run => Generation(0).next(),
            Phase::Quiesce(g) | Phase::Stopped(g) | Phase::Released(g, _) => g.next(),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Phase::Run => 0,
            Phase::Quiesce(g) => g.0 << 3 | 1,
            Phase::Stopped(g) => g.0 << 3 | 2,
            Phase::Released(g, Outcome::Resumed) => g.0 << 3 | 3,
            Phase::Released(g, Outcome::Continued) => g.0 << 3 | 4,
            Phase::Released(g, Outcome::Cancelled) => g.0 << 3 | 5,
        }
    }

    fn decode(word: u64) -> Phase {
        let generation = Generation(word >> 3);
        match word & 7 {
            1 => Phase::Quiesce(generation),
            2 => Phase::Stopped(generation),
            3 => Phase::Released(generation, Outcome::Resumed),
            4 => Phase::Released(generation, Outcome::Continued),
            5 => Phase::Released(generation, Outcome::Cancelled),
            _ => Phase::Run,
        }
    }
}

/// What a CPU has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ack {
    Offline,
    Out,
    Arrived(Generation),
    Serving(Generation),
}

impl Ack {
    fn encode(self) -> u64 {
        match self {
            Ack::Offline => 0,
            Ack::Out => 1,
            Ack::Arrived(g) => g.0 << 2 | 2,
            Ack::Serving(g) => g.0 << 2 | 3,
        }
    }

    fn decode(word: u64) -> Ack {
        let generation = Generation(word >> 2);
        match word & 3 {
            1 => Ack::Out,
            2 => Ack::Arrived(generation),
            3 => Ack::Serving(generation),
            _ => Ack::Offline,
        }
    }
}

/// A word that holds a [`Phase`] and nothing else.
pub(crate) struct AtomicPhase(AtomicU64);

impl AtomicPhase {
    pub(crate) fn new(phase: Phase) -> AtomicPhase {
        AtomicPhase(AtomicU64::new(phase.encode()))
    }

    pub(crate) fn load(&self, order: Ordering) -> Phase {
        Phase::decode(self.0.load(order))
    }

    pub(crate) fn store(&self, phase: Phase, order: Ordering) {
        self.0.store(phase.encode(), order);
    }
}

/// A word that holds an [`Ack`] and nothing else.
pub(crate) struct AtomicAck(AtomicU64);

impl AtomicAck {
    pub(crate) fn new(ack: Ack) -> AtomicAck {
        AtomicAck(AtomicU64::new(ack.encode()))
    }

    pub(crate) fn load(&self, order: Ordering) -> Ack {
        Ack::decode(self.0.load(order))
    }

    pub(crate) fn store(&self, ack: Ack, order: Ordering) {
        self.0.store(ack.encode(), order);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_hold_what_went_in() {
        let g = Phase::Run.next_generation();
        let far = Generation(u64::MAX >> 3);
        for g in [g, g.next(), far] {
            for phase in [
                Phase::Quiesce(g),
                Phase::Stopped(g),
                Phase::Released(g, Outcome::Resumed),
                Phase::Released(g, Outcome::Continued),
                Phase::Released(g, Outcome::Cancelled),
            ] {
                assert_eq!(Phase::decode(phase.encode()), phase);
            }
            for ack in [Ack::Offline, Ack::Out, Ack::Arrived(g), Ack::Serving(g)] {
                assert_eq!(Ack::decode(ack.encode()), ack);
            }
        }
        assert_eq!(Phase::decode(Phase::Run.encode()), Phase::Run);
    }

    #[test]
    fn generations_follow_each_other() {
        let first = Phase::Run.next_generation();
        assert_eq!(first, Generation(1));
        assert_eq!(Phase::Released(first, Outcome::Cancelled).next_generation(), Generation(2));
        assert_ne!(Ack::Arrived(first).encode(), Ack::Arrived(first.next()).encode());
    }
}
