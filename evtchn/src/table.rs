//! [`CpuTable`]: one CPU's intents with the port that each has now, and the way back from a port to its intent.
//!
//! Written by its own CPU only, with upcalls masked. Its own upcall reads all of it; other CPUs read the port words
//! (to send an ipi) and [`CpuTable::ready`] (to bind a device port there), and whoever dumps reads what it likes.
//! Suspend: *rebuilt*. The intents themselves are [`Handlers`](crate::Handlers), which are *kept*.
//!
//! - TB1: `map[p]` names intent `i` only while `ports[i]` holds port `p`.
//!
//! The map is an array of bytes, 4 KiB for each CPU, so that port to intent is one load. Searching the few ports of
//! a CPU, or one map for all of them, were turned down: the first costs more for each event, and the second has all
//! CPUs write the same lines in a resume.
#![forbid(unsafe_code)]

use alloc::boxed::Box;

use percpu::Masked;
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::intent::Intent;
use crate::port::{AtomicPort, Incarnation, Port, PortNr};

/// The intent that a port carries. 0: none; n: the intent with index n - 1.
struct AtomicIntent(AtomicU8);

impl AtomicIntent {
    // ORDERING: Relaxed in both. Written and acted upon by one CPU; others only print it.
    fn load(&self) -> Option<Intent> {
        Intent::from_index(usize::from(self.0.load(Ordering::Relaxed)).checked_sub(1)?)
    }

    fn store(&self, intent: Option<Intent>) {
        let [byte, ..] = intent.map_or(0, |intent| intent.index() + 1).to_le_bytes();
        self.0.store(byte, Ordering::Relaxed);
    }
}

const _: () = assert!(Intent::COUNT < u8::MAX as usize, "index + 1 fits AtomicIntent");

/// See the head of this file.
pub(crate) struct CpuTable {
    ports: [AtomicPort; Intent::COUNT],
    map: Box<[AtomicIntent]>,
    ready: AtomicU32,
}

impl CpuTable {
    /// Nothing bound, for ports below `capacity`.
    pub(crate) fn new(capacity: usize) -> CpuTable {
        CpuTable {
            ports: core::array::from_fn(|_| AtomicPort::none()),
            map: (0..capacity).map(|_| AtomicIntent(AtomicU8::new(0))).collect(),
            ready: AtomicU32::new(Incarnation::NONE.get()),
        }
    }

    /// What `nr` carries here.
    pub(crate) fn intent_of(&self, nr: PortNr) -> Option<Intent> {
        self.map.get(nr.index())?.load()
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
        // ORDERING: Release, pairs with the Acquire in `ready`.
        // Weakening fails in evtchn/tests/loom_bind.rs.
        self.ready.store(incarnation.get(), Ordering::Release);
    }

    /// Enters that `intent` has `port`, whose number is below the capacity.
    pub(crate) fn publish(&self, _masked: &Masked, intent: Intent, port: Port) {
        if let Some(entry) = self.map.get(port.nr.index()) {
            // ORDERING: Relaxed, see `port_of_racy`.
            self.ports[intent.index()].store(Some(port), Ordering::Relaxed);
            entry.store(Some(intent));
        }
    }

    /// Forgets every port.
    pub(crate) fn clear(&self, _masked: &Masked) {
        for word in &self.ports {
            // ORDERING: Relaxed, this CPU wrote it.
            let Some(port) = word.load(Ordering::Relaxed) else { continue };
            if let Some(entry) = self.map.get(port.nr.index()) {
                entry.store(None);
            }
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
    fn map_follows_the_ports() {
        let masked = percpu::hosted::masked();
        let table = CpuTable::new(64);
        let port =
            |nr, life| Port { nr: PortNr::new(nr).expect("tests use no port 0"), incarnation: Incarnation::new(life) };
        let (timer, call) = (Intent::Virq(Virq::TIMER), Intent::Ipi(Ipi::Call));
        table.publish(&masked, timer, port(3, 1));
        table.publish(&masked, call, port(63, 1));
        assert_eq!(table.intent_of(port(3, 1).nr), Some(timer));
        assert_eq!(table.intent_of(port(63, 1).nr), Some(call));
        assert_eq!(table.intent_of(port(4, 1).nr), None);
        assert_eq!(table.intent_of(port(64, 1).nr), None, "beyond the capacity");
        assert_eq!(table.port_of_racy(call), Some(port(63, 1)));

        table.clear(&masked);
        assert_eq!(table.intent_of(port(3, 1).nr), None);
        assert_eq!(table.port_of_racy(timer), None);
        table.publish(&masked, call, port(3, 2));
        assert_eq!(table.intent_of(port(3, 1).nr), Some(call));
    }

    #[test]
    fn ready_is_of_one_life() {
        let table = CpuTable::new(8);
        assert_eq!(table.ready(), Incarnation::NONE);
        table.set_ready(&percpu::hosted::masked(), Incarnation::new(2));
        assert_eq!(table.ready(), Incarnation::new(2));
    }
}
