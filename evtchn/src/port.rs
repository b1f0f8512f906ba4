//! [`Port`]: a port of one life of this domain. After a restore every old number means nothing, or something else.
//!
//! So a port travels with the [`Incarnation`] that it belongs to, and a send on an old one can be told from a good
//! one. Both are packed into one word, [`AtomicPort`], because they must be published together: a number read with
//! another life's incarnation would send to somebody else's port. Runs in any context; wait-free.
#![forbid(unsafe_code)]

use core::fmt;
use core::num::NonZeroU32;

use xen_sys::const_unless_loom;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

/// Xen's number of a port. Never 0, which Xen keeps as invalid. Whether the ABI in use reaches so far is not known
/// here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortNr(NonZeroU32);

impl PortNr {
    /// The port `nr`, or `None` for 0.
    pub const fn new(nr: u32) -> Option<PortNr> {
        match NonZeroU32::new(nr) {
            Some(nr) => Some(PortNr(nr)),
            None => None,
        }
    }

    /// The number as Xen has it.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Place of this port in tables with one entry for each.
    pub const fn index(self) -> usize {
        self.0.get() as usize
    }
}

impl fmt::Display for PortNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of the domain: 0 before event channels are attached, 1 from boot, one more after every restore.
/// A suspend that was cancelled begins no new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation(u32);

impl Incarnation {
    /// Before the first attach: no port belongs to it.
    pub const NONE: Incarnation = Incarnation(0);

    /// The life with number `n`.
    pub const fn new(n: u32) -> Incarnation {
        Incarnation(n)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The life after this one. The 2^32nd restore would begin at 1 again.
    pub const fn next(self) -> Incarnation {
        match self.0.checked_add(1) {
            Some(n) => Incarnation(n),
            None => Incarnation(1),
        }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A port number and the life of the domain in which it means something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Port {
    /// Xen's number.
    pub nr: PortNr,
    /// The life in which Xen gave it out.
    pub incarnation: Incarnation,
}

impl Port {
    /// | bits 63..32 | bits 31..0 | meaning |
    /// |---|---|---|
    /// | 0 | 0 | no port |
    /// | incarnation | number, not 0 | that port |
    const fn pack(port: Option<Port>) -> u64 {
        match port {
            Some(port) => (port.incarnation.0 as u64) << 32 | port.nr.get() as u64,
            None => 0,
        }
    }

    fn unpack(word: u64) -> Option<Port> {
        let [i0, i1, i2, i3, n0, n1, n2, n3] = word.to_be_bytes();
        let nr = PortNr::new(u32::from_be_bytes([n0, n1, n2, n3]))?;
        Some(Port { nr, incarnation: Incarnation(u32::from_be_bytes([i0, i1, i2, i3])) })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.nr, self.incarnation)
    }
}

/// A word that holds a [`Port`] or none.
pub(crate) struct AtomicPort(AtomicU64);

impl AtomicPort {
    const_unless_loom! {
        pub(crate) fn none() -> AtomicPort {
            AtomicPort(AtomicU64::new(0))
        }
    }

    pub(crate) fn load(&self, order: Ordering) -> Option<Port> {
        Port::unpack(self.0.load(order))
    }

    pub(crate) fn store(&self, port: Option<Port>, order: Ordering) {
        self.0.store(Port::pack(port), order);
    }

    /// No port any more. Whoever claims the word next publishes it by a slot.
    pub(crate) fn release(&self) {
        // ORDERING: Relaxed, this word orders nothing.
        self.0.store(0, Ordering::Relaxed);
    }

    /// Stores `port` where there was none; otherwise says which there is. Relaxed: whoever needs more publishes
    /// with another word.
    pub(crate) fn claim(&self, port: Port) -> Result<(), Port> {
        // ORDERING: Relaxed twice, this word orders nothing.
        match self.0.compare_exchange(0, Port::pack(Some(port)), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(other) => Err(Port::unpack(other).unwrap_or(port)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn port(nr: u32, incarnation: u32) -> Port {
        Port { nr: PortNr::new(nr).expect("tests use no port 0"), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn packing_keeps_both_halves() {
        for p in [port(1, 0), port(1, 1), port(u32::MAX, 7), port(4095, u32::MAX)] {
            assert_eq!(Port::unpack(Port::pack(Some(p))), Some(p));
        }
        assert_eq!(Port::unpack(Port::pack(None)), None);
        // A number of 0 is no port in any life.
        assert_eq!(Port::unpack(3 << 32), None);
    }

    #[test]
    fn claim_is_for_one() {
        let word = AtomicPort::none();
        assert_eq!(word.claim(port(5, 1)), Ok(()));
        assert_eq!(word.claim(port(6, 1)), Err(port(5, 1)));
        word.store(None, Ordering::Relaxed);
        assert_eq!(word.claim(port(6, 1)), Ok(()));
        assert_eq!(word.load(Ordering::Relaxed), Some(port(6, 1)));
    }

    #[test]
    fn lives_do_not_return_to_none() {
        assert_eq!(Incarnation::NONE.next(), Incarnation(1));
        assert_eq!(Incarnation(u32::MAX).next(), Incarnation(1));
    }
}
