//! [`PortTable`]: from a device's port to its [`Action`]. One slot for each port, each slot one word, in pieces that come
//! as ports are bound.
//!
//! Written by whoever binds or unbinds, in task context on any CPU; read in the upcall of the CPU that owns the port.
//! Wait-free for the reader, lock-free for writers. Suspend: *cleared* when a new life of the domain is attached.
//!
//! Handler and context travel behind the one pointer. Two words stored in a careful order were turned down: a reader
//! can come between them, on the way in and on the way out.

use alloc::boxed::Box;
use core::ptr::{self, NonNull};

use percpu::{CpuId, Masked, Quiesced};
use xen_sys::primitive::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::chunks::{self, Chunks};
use crate::counters::Counter;
use crate::port::{AtomicPort, Port, PortNr};

/// What runs for a device port. It is for one port at a time, and keeps that port for whoever needs to send on it.
///
/// Actions live for ever today. Devices come and go rarely and there are few of them; freeing an action needs every
/// online vcpu to pass a quiescent point first, and comes with hot-plugged devices.
pub struct Action {
    handler: ActionHandler,
    context: usize,
    port: AtomicPort,
    cpu: AtomicU32,
    count: Counter,
}

/// Runs in the upcall, on the CPU that the port is bound to. It may not block.
pub type ActionHandler = fn(&Masked, &Action);

impl Action {
    /// An action that runs `handler`, which finds `context` in it. The context is a number and not a pointer: an
    /// index into a table of the owner's, or nothing.
    #[cfg(not(loom))]
    pub const fn new(handler: ActionHandler, context: usize) -> Action {
        Action { handler, context, port: AtomicPort::none(), cpu: AtomicU32::new(0), count: Counter::new() }
    }

    /// An action that runs `handler`, which finds `context` in it.
    #[cfg(loom)]
    pub fn new(handler: ActionHandler, context: usize) -> Action {
        Action { handler, context, port: AtomicPort::none(), cpu: AtomicU32::new(0), count: Counter::new() }
    }

    /// The number given to [`Action::new`].
    pub fn context(&self) -> usize {
        self.context
    }

    /// The port that it is bound to; `None` also after a restore, until it is bound again, and in a handler that was
    /// overtaken by an unbind on another CPU.
    ///
    /// Context: any, on any CPU. It is there to be handed to [`Events::send`](crate::Events::send). Who gets `None` has
    /// told the peer nothing; so whoever binds the action looks afterwards for what was left untold, in an order with
    /// the others that a lock or the like gives it: this word gives none.
    pub fn port(&self) -> Option<Port> {
        // ORDERING: Relaxed. In a handler the slot's Acquire has shown it; elsewhere it may be stale, and a send on a
        // port of an earlier life does nothing.
        self.port.load(Ordering::Relaxed)
    }

    /// Events handled since boot.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    pub(crate) fn run(&self, masked: &Masked) {
        // Another CPU may still be in the handler if the action was bound anew just now.
        self.count.bump();
        (self.handler)(masked, self);
    }

    /// The CPU that its port was bound to last.
    pub(crate) fn cpu(&self) -> Option<CpuId> {
        // ORDERING: Relaxed. Only who binds or unbinds the action asks, and its owner does that from one task.
        CpuId::from_vcpu(self.cpu.load(Ordering::Relaxed))
    }
}

/// One port's entry in the [`PortTable`].
///
/// - PT1: `action` is null, or points to an [`Action`] fully initialised, with its port entered, before it was stored.
/// - PT2: that `Action` is `'static`, so it is never freed.
struct PortSlot {
    action: AtomicPtr<Action>,
}

/// Why an action did not get into its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Occupied {
    /// The slot has another action.
    Slot,
    /// The action has this port.
    Action(Port),
}

/// See the head of this file.
pub(crate) struct PortTable {
    pieces: Chunks<[PortSlot; chunks::PORTS]>,
}

impl PortTable {
    /// For ports below `capacity`, with no slot yet.
    pub(crate) fn new(capacity: usize) -> PortTable {
        PortTable { pieces: Chunks::new(capacity) }
    }

    /// Makes sure that there is a slot for `nr`. `None` beyond the capacity.
    pub(crate) fn reach(&self, nr: PortNr) -> Option<()> {
        let empty = || Box::new(core::array::from_fn(|_| PortSlot { action: AtomicPtr::new(ptr::null_mut()) }));
        self.pieces.put(nr.index() / chunks::PORTS, empty).map(drop)
    }

    fn slot(&self, nr: PortNr) -> Option<&PortSlot> {
        let (piece, place) = self.pieces.of_port(nr.index())?;
        piece.get(place)
    }

    /// All ports that have a slot.
    pub(crate) fn reached(&self) -> impl Iterator<Item = PortNr> {
        let pieces = (0..self.pieces.nr_max()).filter(|piece| self.pieces.get(*piece).is_some());
        let ports = pieces.flat_map(|piece| piece * chunks::PORTS..(piece + 1) * chunks::PORTS);
        ports.filter_map(|port| PortNr::new(u32::try_from(port).ok()?))
    }

    /// Puts `action`, to run on `cpu`, into the slot of `port`. `None` if there is no such slot.
    pub(crate) fn bind(&self, port: Port, cpu: CpuId, action: &'static Action) -> Option<Result<(), Occupied>> {
        let slot = self.slot(port.nr)?;
        if let Err(has) = action.port.claim(port) {
            return Some(Err(Occupied::Action(has)));
        }
        // ORDERING: Relaxed, carried by the slot.
        action.cpu.store(cpu.vcpu(), Ordering::Relaxed);
        let pointer = ptr::from_ref(action).cast_mut();
        // ORDERING: Release, pairs with the Acquire in `lookup` (PT1). Relaxed on failure: nothing is read through it.
        // Weakening fails in evtchn/tests/loom_port_table.rs.
        let stored = slot.action.compare_exchange(ptr::null_mut(), pointer, Ordering::Release, Ordering::Relaxed);
        Some(stored.map(|_| ()).map_err(|_| {
            // ORDERING: Relaxed, it was nobody else's in between.
            action.port.store(None, Ordering::Relaxed);
            Occupied::Slot
        }))
    }

    /// Takes the action of `nr` out of its slot. An upcall that looked it up before may still be running it.
    pub(crate) fn unbind(&self, nr: PortNr) {
        let Some(slot) = self.slot(nr) else { return };
        // ORDERING: Relaxed, the action behind it is not freed (PT2) and orders nothing.
        let old = slot.action.swap(ptr::null_mut(), Ordering::Relaxed);
        if let Some(action) = Self::action(old) {
            // ORDERING: Relaxed. Whoever claims the word next publishes it by its slot.
            action.port.store(None, Ordering::Relaxed);
        }
    }

    /// The action of `nr`.
    pub(crate) fn lookup(&self, nr: PortNr) -> Option<&'static Action> {
        // ORDERING: Acquire, pairs with the Release in `bind` (PT1).
        // Weakening fails in evtchn/tests/loom_port_table.rs.
        Self::action(self.slot(nr)?.action.load(Ordering::Acquire))
    }

    /// Empties every slot: the ports are those of an earlier life.
    pub(crate) fn clear(&self, _quiesced: &Quiesced) {
        for nr in self.reached() {
            self.unbind(nr);
        }
    }

    fn action(pointer: *mut Action) -> Option<&'static Action> {
        let pointer = NonNull::new(pointer)?;
        // SAFETY: it comes out of a slot, so it points to an initialised action (PT1) that lives for ever (PT2).
        // Only shared borrows of it exist, and what changes in it is atomic.
        Some(unsafe { pointer.as_ref() })
    }
}
