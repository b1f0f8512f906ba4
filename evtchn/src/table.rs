//! [`CpuTable`]: one CPU's intents with the port that each has now, and the way back from a port to its intent.
//!
//! Written by its own CPU only, with upcalls masked. Its own upcall reads all of it; other CPUs read the port words
//! (to send an ipi) and [`CpuTable::ready`] (to bind a device port there), and whoever dumps reads what it likes.
//! Suspend: *rebuilt*. The intents themselves are [`Handlers`](crate::Handlers), which are *kept*.
//!
//! - TB1: `bound` has each port of `ports` once, with its intent, at the place of its number or the next that was free, and
//!   never fills up.
//!
//! From a port to its intent is one load as a rule: ports that were bound together have numbers that follow each other. Maps
//! by port number were turned down: one for each CPU costs a byte for each port that the domain could have, and in one for
//! all CPUs they write the same lines in a resume.
#![forbid(unsafe_code)]

use core::hint::black_box;

use crossbeam_utils::CachePadded;
use percpu::{Masked, Quiesced};
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::intent::Intent;
use crate::port::{AtomicPort, Incarnation, Port, PortNr};

/// A word that holds a port number and the intent that it carries.
///
/// | bits 63..32 | bits 31..0 | meaning |
/// |---|---|---|
/// | 0 | 0 | nothing is here, nor further on |
/// | index of the intent | number, not 0 | that port carries that intent |
struct Carries(AtomicU64);

impl Carries {
    // ORDERING: Relaxed in both. Written and acted upon by one CPU; others only print it.
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn store(&self, word: u64) {
        self.0.store(word, Ordering::Relaxed);
    }

    const fn pack(nr: PortNr, intent: Intent) -> u64 {
        (intent.index() as u64) << 32 | nr.get() as u64
    }

    /// The number and the index in `word`.
    fn unpack(word: u64) -> (u32, usize) {
        let [i0, i1, i2, i3, n0, n1, n2, n3] = word.to_be_bytes();
        (u32::from_be_bytes([n0, n1, n2, n3]), u32::from_be_bytes([i0, i1, i2, i3]) as usize)
    }
}

/// Places for a CPU's ports: a power of two, and more than there are intents.
const PLACES: usize = 32;
const _: () = assert!(PLACES.is_power_of_two() && PLACES > Intent::COUNT);

/// See the head of this file.
pub(crate) struct CpuTable {
    /// Read in this CPU's upcalls.
    bound: CachePadded<[Carries; PLACES]>,
    /// Read by other CPUs.
    ports: CachePadded<[AtomicPort; Intent::COUNT]>,
    ready: AtomicU32,
    down: AtomicBool,
}

impl CpuTable {
    /// Nothing bound.
    pub(crate) fn new() -> CpuTable {
        CpuTable {
            bound: CachePadded::new(core::array::from_fn(|_| Carries(AtomicU64::new(0)))),
            ports: CachePadded::new(core::array::from_fn(|_| AtomicPort::none())),
            ready: AtomicU32::new(Incarnation::NONE.get()),
            down: AtomicBool::new(false),
        }
    }

    /// What `nr` carries here.
    pub(crate) fn intent_of(&self, nr: PortNr) -> Option<Intent> {
        self.place_of_intent(nr).and_then(Intent::from_index)
    }

    /// The [index](Intent::index) of what `nr` carries here.
    #[inline]
    pub(crate) fn place_of_intent(&self, nr: PortNr) -> Option<usize> {
        let (here, intent) = self.look_at(nr.index());
        if here == nr.get() {
            return Some(intent);
        }
        if here == 0 {
            return None;
        }
        self.place_further_on(nr)
    }

    /// The same where another port has the place of this one's number.
    #[cold]
    fn place_further_on(&self, nr: PortNr) -> Option<usize> {
        let mut place = nr.index();
        loop {
            place += 1;
            match self.look_at(place) {
                (0, _) => return None,
                (here, intent) if here == nr.get() => return Some(intent),
                _ => {}
            }
        }
    }

    /// What stands at `place`: a port's number, or 0, and the index of its intent.
    #[inline]
    fn look_at(&self, place: usize) -> (u32, usize) {
        Carries::unpack(self.bound[place % PLACES].load())
    }

    /// The port that `intent` has, maybe one of an earlier life.
    pub(crate) fn port_of_racy(&self, intent: Intent) -> Option<Port> {
        // ORDERING: Relaxed. The port is handed to Xen, which knows everything else about it, and the owner's tables
        // are read by the owner. That work posted before this load is not stranded when the port is not there yet is
        // the inbox's doing: see `Events::send_ipi`.
        self.ports[intent.index()].load(Ordering::Relaxed)
    }

    /// The life for which this CPU has bound its intents.
    pub(crate) fn ready(&self) -> Incarnation {
        // ORDERING: Acquire, pairs with the Release in `set_ready`: who sees this CPU ready finds the map of this life
        // in it, and adds a device port to its set after that was emptied.
        // Weakening fails in evtchn/tests/loom_bind.rs.
        Incarnation::new(self.ready.load(Ordering::Acquire))
    }

    /// Says that this CPU's tables are those of `incarnation`.
    pub(crate) fn set_ready(&self, _masked: &Masked, incarnation: Incarnation) {
        // ORDERING: Relaxed, see `is_down`.
        self.down.store(false, Ordering::Relaxed);
        // ORDERING: Release, pairs with the Acquire in `ready`.
        // Weakening fails in evtchn/tests/loom_bind.rs.
        self.ready.store(incarnation.get(), Ordering::Release);
    }

    /// This CPU goes down: no device port is to be bound here until it says again that it is ready.
    pub(crate) fn close(&self, _others: &Quiesced) {
        // ORDERING: Relaxed. All others are parked, and their release shows them this.
        self.down.store(true, Ordering::Relaxed);
    }

    /// Whether this CPU has gone down, and not said since that it is ready.
    pub(crate) fn is_down(&self) -> bool {
        // ORDERING: Relaxed. Who reads that it is not finds the tables as they were when it went; or, in a new life, has read
        //   first that it is ready, with Acquire.
        self.down.load(Ordering::Relaxed)
    }

    /// Enters that `intent` has `port`.
    pub(crate) fn publish(&self, _masked: &Masked, intent: Intent, port: Port) {
        // An intent has one port, so there are never more than there are intents, and a place is free.
        let places = (0..PLACES).map(|step| &self.bound[(port.nr.index() + step) % PLACES]);
        if let Some(free) = places.into_iter().find(|entry| entry.load() == 0) {
            free.store(Carries::pack(port.nr, intent));
        }
        // ORDERING: Relaxed, see `port_of_racy`.
        self.ports[intent.index()].store(Some(port), Ordering::Relaxed);
    }

    /// Forgets every port.
    pub(crate) fn clear(&self, _masked: &Masked) {
        // Opaque, so that these stay loops: after a restore all code is cold, and costs by its length.
        for entry in black_box(&self.bound[..]) {
            entry.store(0);
        }
        for word in black_box(&self.ports[..]) {
            // ORDERING: Relaxed. A sender that still reads the old port finds it stale by its incarnation.
            word.store(None, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::intent::{Ipi, Virq};

    #[test]
    fn intents_follow_the_ports() {
        let masked = percpu::hosted::masked();
        let table = CpuTable::new();
        let port =
            |nr, life| Port { nr: PortNr::new(nr).expect("tests use no port 0"), incarnation: Incarnation::new(life) };
        let (timer, call) = (Intent::Virq(Virq::TIMER), Intent::Ipi(Ipi::Call));
        table.publish(&masked, timer, port(3, 1));
        table.publish(&masked, call, port(63, 1));
        assert_eq!(table.intent_of(port(3, 1).nr), Some(timer));
        assert_eq!(table.intent_of(port(63, 1).nr), Some(call));
        assert_eq!(table.intent_of(port(4, 1).nr), None);
        // These two have places in common with the others.
        let (debug, far) = (Intent::Virq(Virq::DEBUG), port(35, 1).nr);
        assert_eq!(table.intent_of(far), None);
        table.publish(&masked, debug, port(35, 1));
        assert_eq!((table.intent_of(far), table.intent_of(port(3, 1).nr)), (Some(debug), Some(timer)));
        assert_eq!(table.intent_of(port(67, 1).nr), None);
        assert_eq!(table.port_of_racy(call), Some(port(63, 1)));

        table.clear(&masked);
        assert_eq!(table.intent_of(port(3, 1).nr), None);
        assert_eq!(table.port_of_racy(timer), None);
        table.publish(&masked, call, port(3, 2));
        assert_eq!(table.intent_of(port(3, 1).nr), Some(call));
    }

    #[test]
    fn ready_is_of_one_life() {
        let table = CpuTable::new();
        assert_eq!(table.ready(), Incarnation::NONE);
        table.set_ready(&percpu::hosted::masked(), Incarnation::new(2));
        assert_eq!(table.ready(), Incarnation::new(2));
        assert!(!table.is_down());
    }
}
