//! [`PortTable`]: from a device's port to its [`Action`]. One slot for each port, each slot one word, in pieces that come
//! as ports are bound.
//!
//! Written by whoever binds, moves or unbinds, in task context on any CPU; read in the upcall of the CPU that owns the
//! port. Wait-free for the reader, lock-free for writers. Suspend: *cleared* when a new life of the domain is attached.
//!
//! | word of a slot | meaning | who may change it |
//! |---|---|---|
//! | null | free | who binds: to TAKEN |
//! | TAKEN | being bound or unbound: nothing is found here, and nobody else may bind | who put it there |
//! | action | bound; the slot has a share of the action | the binding's owner |
//! | … and MOVING | it is about to be bound to another CPU: masks are its mover's | |
//! | any, and MOVED | the port has been another CPU's in this life, which may still be told of it | |
//! | … and LATE | its events end late | |
//!
//! With none of the three an event can be handled without more ado.
//!
//! Turned down: two words stored in a careful order. A reader can come between them, on the way in and on the way out.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::{self, NonNull};

use percpu::Quiesced;
use xen_sys::primitive::sync::atomic::{AtomicPtr, Ordering};

use crate::action::{Action, EndOfEvent};
use crate::chunks::{self, Chunks};
use crate::passage::Inside;
use crate::port::PortNr;

const TAKEN: usize = 1;
const MOVING: usize = 2;
const MOVED: usize = 4;
const LATE: usize = 8;
const TAGS: usize = TAKEN | MOVING | MOVED | LATE;
const _: () = assert!(align_of::<Action>() > TAGS, "tags stand in the low bits");

/// One port's entry in the [`PortTable`]. The encoding is at the head of the file.
///
/// - PT1: an action in it was fully initialised, with its port entered, before it was stored, and the slot has a share of
///   it, which came from `Arc::into_raw`.
/// - PT2: that share is given back only after a grace period that began when it had been taken out; or with all other
///   CPUs parked, outside of their sections, and this one in none.
struct PortSlot {
    word: AtomicPtr<Action>,
}

/// An action as it stands in its slot.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) action: &'a Action,
    tags: usize,
}

impl Found<'_> {
    /// Whether it is this CPU's, ends its events at once, and is not being moved.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.tags == 0
    }

    /// Whether its masks are its mover's.
    pub(crate) fn is_moving(&self) -> bool {
        self.tags & MOVING != 0
    }
}

/// See the head of this file.
pub(crate) struct PortTable {
    pieces: Chunks<[PortSlot; chunks::PORTS]>,
    /// Shares that came out of slots while nothing could be freed, linked by [`Action::next`].
    retired: AtomicPtr<Action>,
}

impl PortTable {
    /// For ports below `capacity`, with no slot yet.
    pub(crate) fn new(capacity: usize) -> PortTable {
        PortTable { pieces: Chunks::new(capacity), retired: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Makes sure that there is a slot for `nr`. `None` beyond the capacity.
    pub(crate) fn reach(&self, nr: PortNr) -> Option<()> {
        let empty = || Box::new(core::array::from_fn(|_| PortSlot { word: AtomicPtr::new(ptr::null_mut()) }));
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

    /// Takes the free slot of `nr`, so that the port can be made ready. `None` if it was not free; otherwise whether the port has
    /// been another CPU's in this life of the domain, which may still be told of it.
    pub(crate) fn take(&self, nr: PortNr) -> Option<bool> {
        let slot = self.slot(nr)?;
        // ORDERING: Relaxed, the exchange decides.
        let free = slot.word.load(Ordering::Relaxed);
        if free.addr() & !MOVED != 0 {
            return None;
        }
        let taken = free.map_addr(|tags| tags | TAKEN);
        // ORDERING: Acquire, pairs with the Release in `free`: what was done to the port before comes before what is now.
        //   Relaxed on failure: nothing is done then.
        // UNTESTED: all that is done to a port is read-modify-writes, which loom keeps in the order in which they run.
        let won = slot.word.compare_exchange(free, taken, Ordering::Acquire, Ordering::Relaxed).is_ok();
        won.then_some(free.addr() & MOVED != 0)
    }

    /// Gives back a slot that was taken, or the action's share was taken out of.
    pub(crate) fn free(&self, nr: PortNr) {
        if let Some(slot) = self.slot(nr) {
            // ORDERING: Relaxed: nobody else changes a word that is taken.
            let free = slot.word.load(Ordering::Relaxed).map_addr(|tags| tags & MOVED);
            // ORDERING: Release, pairs with the Acquire in `take`.
            // UNTESTED: see there.
            slot.word.store(free, Ordering::Release);
        }
    }

    /// Puts `action`, with its port entered, into the slot of `nr`, which was taken.
    /// `moved`: another CPU may be told of it.
    pub(crate) fn publish(&self, nr: PortNr, action: Arc<Action>, moved: bool) {
        if let Some(slot) = self.slot(nr) {
            let late = if action.end() == EndOfEvent::Late { LATE } else { 0 };
            let tags = late | if moved { MOVED } else { 0 };
            let word = Arc::into_raw(action).cast_mut().map_addr(|address| address | tags);
            // ORDERING: Release, pairs with the Acquire in `lookup` (PT1).
            // Weakening fails in evtchn/tests/loom_port_table.rs.
            slot.word.store(word, Ordering::Release);
        }
    }

    /// Takes the action's share out of the slot of `nr`, which stays taken. To be given back as PT2 says.
    #[must_use = "dropped before a grace period it is freed under a handler"]
    pub(crate) fn retire(&self, nr: PortNr) -> Option<Arc<Action>> {
        // ORDERING: Relaxed. The grace period that begins next has a Release that shows this to every CPU; and who has the
        //   binding has published the share, or was handed the binding by who did.
        let slot = self.slot(nr)?;
        // ORDERING: Relaxed: nobody else changes a word that is bound but its owner.
        let moved = slot.word.load(Ordering::Relaxed).addr() & MOVED;
        let word = slot.word.swap(ptr::without_provenance_mut(TAKEN | moved), Ordering::Relaxed);
        // SAFETY: it came out of a slot just now, so the share is ours (PT1).
        unsafe { Self::share(word) }
    }

    /// Says whether the port of `nr`, which is bound, is being moved. Once it was, it has been another CPU's.
    pub(crate) fn set_moving(&self, nr: PortNr, moving: bool) {
        let Some(slot) = self.slot(nr) else { return };
        // ORDERING: Relaxed: nobody else changes a word that is bound but its owner.
        let word = slot.word.load(Ordering::Relaxed);
        let tag = if moving { MOVING } else { MOVED };
        // ORDERING: Release, pairs with the Acquire in `lookup`: who finds the action without MOVING finds its new CPU in it;
        //   also keeps PT1 for who reads this word instead of `publish`'s.
        // Weakening fails in evtchn/tests/loom_move.rs.
        slot.word.store(word.map_addr(|address| address & !MOVING | tag), Ordering::Release);
    }

    /// The action of `nr`, alive as long as this CPU is `inside`.
    pub(crate) fn lookup<'a>(&'a self, nr: PortNr, _inside: &'a Inside<'_>) -> Option<Found<'a>> {
        // ORDERING: Acquire, pairs with the Release in `publish` (PT1) and in `set_moving`.
        // Weakening fails in evtchn/tests/loom_port_table.rs.
        let word = self.slot(nr)?.word.load(Ordering::Acquire);
        let action = NonNull::new(word.map_addr(|address| address & !TAGS))?;
        // SAFETY: it comes out of a slot, so it points to an initialised action of which the slot has, or had, a share
        //   (PT1). That is not given back before this CPU has left the section that `_inside` is of (PT2), and the
        //   borrow ends before that. What changes in an action is atomic.
        let action = unsafe { action.as_ref() };
        Some(Found { action, tags: word.addr() & TAGS })
    }

    /// Empties every slot: the ports are those of an earlier life. Frees nothing: see [`PortTable::reap`].
    pub(crate) fn clear(&self, _quiesced: &Quiesced) {
        for slot in self.pieces.iter().flatten() {
            // ORDERING: Relaxed all. All other CPUs are parked; their release shows them this.
            // Most had no port ever: their pages are not written to, and so not saved anew.
            if slot.word.load(Ordering::Relaxed).is_null() {
                continue;
            }
            let word = slot.word.swap(ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: it came out of a slot just now, so the share is ours (PT1).
            let Some(action) = (unsafe { Self::share(word) }) else { continue };
            action.port.release();
            action.next.store(self.retired.load(Ordering::Relaxed), Ordering::Relaxed);
            self.retired.store(Arc::into_raw(action).cast_mut(), Ordering::Relaxed);
        }
    }

    /// Frees what [`PortTable::clear`] has taken out. Context: task, where memory may be freed.
    pub(crate) fn reap(&self) {
        // ORDERING: Relaxed: `clear` wrote the list while all others were parked, and their release showed them.
        let mut next = self.retired.swap(ptr::null_mut(), Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: the list holds shares, from `Arc::into_raw` in `clear`, and was taken whole by the swap. No CPU was in a
            //   section when they came out of their slots, so none has found them (PT2).
            let action = unsafe { Arc::from_raw(next) };
            // ORDERING: Relaxed, as above.
            next = action.next.load(Ordering::Relaxed);
        }
    }

    /// The share of a word, if it has one.
    ///
    /// # Safety
    /// The word was taken out of a slot, by an operation that put another in its place.
    unsafe fn share(word: *mut Action) -> Option<Arc<Action>> {
        let action = NonNull::new(word.map_addr(|address| address & !TAGS))?;
        // SAFETY: from `Arc::into_raw` (PT1), and no longer in the slot, says the caller.
        Some(unsafe { Arc::from_raw(action.as_ptr()) })
    }
}

impl Drop for PortTable {
    fn drop(&mut self) {
        for nr in self.reached() {
            // Nobody else has the table, so nobody is inside.
            drop(self.retire(nr));
        }
        self.reap();
    }
}
