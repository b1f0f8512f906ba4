//! [`Action`]: what runs for a device port, and what is known of that port.
//!
//! Shared by its owner, who needs the port to send on it, and by the slot of the port (`port_table.rs`), which gives its
//! share back after a grace period. Handler and what it owns travel behind the one pointer that is published there.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr;

use percpu::{CpuId, Masked};
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

use crate::counters::Counter;
use crate::port::{AtomicPort, Port};

/// Runs in the upcall, on the CPU that the port is bound to. It may not block.
type Handler = Box<dyn Fn(&Masked, &Action) + Send + Sync>;

/// A turn that no executor has in the first 2^32.
pub(crate) const NO_TURN: u32 = 0;

/// When the next event of a port may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndOfEvent {
    /// At once. For ports whose other end is ours.
    AtOnce,
    /// When the owner says so, by [`Events::end_of_event`](crate::Events::end_of_event): the port is masked before the handler runs.
    /// For ports whose other end is another domain's, which could otherwise have this CPU do nothing else (XSA-332).
    Late,
}

/// What runs for a device port. It is for one port at a time, and keeps that port for whoever needs to send on it.
///
/// | field | written by | suspend |
/// |---|---|---|
/// | port | who binds and unbinds it | *cleared* by vCPU 0 |
/// | cpu | who binds and moves it | *kept*, meaningless without a port |
/// | count, turn, last | the CPU that runs it | *kept* |
/// | muted | the CPU that runs it; who moves it | *kept*, meaningless without a port |
/// | unended | the CPU that runs it; who ends its events, and binds it | *kept*, meaningless without a port |
/// | fruitless | who ends its events | *kept* |
/// | next | who retires it | |
#[repr(align(64))]
pub struct Action {
    handler: Handler,
    context: usize,
    end: EndOfEvent,
    pub(crate) port: AtomicPort,
    cpu: AtomicU32,
    count: Counter,
    /// The turn of its CPU's executor in which it ran last, and the count before the last event of its share of that one.
    turn: AtomicU32,
    last: AtomicU64,
    muted: AtomicBool,
    unended: AtomicBool,
    fruitless: AtomicU32,
    /// In the list of what waits to be freed (`port_table.rs`).
    pub(crate) next: AtomicPtr<Action>,
}

impl Action {
    /// An action that runs `handler`. `context` is a number that the handler finds in it and that dumps show.
    pub fn new(
        end: EndOfEvent,
        context: usize,
        handler: impl Fn(&Masked, &Action) + Send + Sync + 'static,
    ) -> Arc<Action> {
        Arc::new(Action {
            handler: Box::new(handler),
            context,
            end,
            port: AtomicPort::none(),
            cpu: AtomicU32::new(0),
            count: Counter::new(),
            turn: AtomicU32::new(NO_TURN),
            last: AtomicU64::new(0),
            muted: AtomicBool::new(false),
            unended: AtomicBool::new(false),
            fruitless: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        })
    }

    /// The number given to [`Action::new`].
    pub fn context(&self) -> usize {
        self.context
    }

    /// When the next event may come.
    pub fn end(&self) -> EndOfEvent {
        self.end
    }

    /// The port that it is bound to; `None` also after a restore, until it is bound again.
    ///
    /// Context: any, on any CPU. It is there to be handed to [`Events::send`](crate::Events::send). Who gets `None` has
    /// told the peer nothing; so whoever binds the action looks afterwards for what was left untold, in an order with
    /// the others that a lock or the like gives it: this word gives none.
    pub fn port(&self) -> Option<Port> {
        // ORDERING: Relaxed. In a handler the slot's Acquire has shown it; elsewhere it may be stale, and a send on a
        // port of an earlier life does nothing.
        self.port.load(Ordering::Relaxed)
    }

    /// Events handled since it was made.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// One more event of its port is handled. How many there were before.
    #[inline]
    pub(crate) fn note_event(&self) -> u64 {
        // Not a plain store: the CPU that runs it changes, and owners read it to know what was handled.
        self.count.bump()
    }

    #[inline]
    pub(crate) fn run(&self, masked: &Masked) {
        (self.handler)(masked, self);
    }

    /// Whether its port is bound to `cpu`.
    #[inline]
    pub(crate) fn is_on_racy(&self, cpu: CpuId) -> bool {
        // ORDERING: Relaxed, as below.
        self.cpu.load(Ordering::Relaxed) == cpu.vcpu()
    }

    /// The CPU that its port is bound to.
    pub(crate) fn cpu_racy(&self) -> Option<CpuId> {
        // ORDERING: Relaxed. Who has to be sure has seen the slot without MOVING, by an Acquire that pairs with the
        //   Release that put it so after this was written.
        CpuId::from_vcpu(self.cpu.load(Ordering::Relaxed))
    }

    /// Its port is bound to `cpu` from now on.
    pub(crate) fn set_cpu(&self, cpu: CpuId) {
        // ORDERING: Relaxed, carried by the slot, which is written afterwards.
        self.cpu.store(cpu.vcpu(), Ordering::Relaxed);
    }

    /// An event comes in `turn`, of which `burst` are let in, after `before` others. Whether it is the last of them, or there
    /// are more than that: somebody else may have unmasked the port.
    #[inline]
    pub(crate) fn is_last_in(&self, turn: u32, burst: u32, before: u64) -> bool {
        // ORDERING: Relaxed all, this CPU's own.
        if self.turn.load(Ordering::Relaxed) != turn {
            self.turn.store(turn, Ordering::Relaxed);
            self.last.store(before.wrapping_add(u64::from(burst) - 1), Ordering::Relaxed);
        }
        before >= self.last.load(Ordering::Relaxed)
    }

    /// Its port has come to another CPU, whose turns have other numbers.
    pub(crate) fn forget_turn(&self) {
        // ORDERING: Relaxed, carried by the slot, which is written afterwards.
        self.turn.store(NO_TURN, Ordering::Relaxed);
    }

    /// Whether its port was muted for too many events in one turn.
    pub(crate) fn is_muted(&self) -> bool {
        // ORDERING: Relaxed. Written by the CPU that asks, or by who moved the port here, before it wrote the slot.
        self.muted.load(Ordering::Relaxed)
    }

    pub(crate) fn set_muted(&self, muted: bool) {
        // ORDERING: Relaxed, as above.
        self.muted.store(muted, Ordering::Relaxed);
    }

    /// An event of a late port is handed to its owner.
    pub(crate) fn begin_event(&self) {
        // ORDERING: Relaxed. The port is masked after it, or is being moved, and whoever ends that has waited for this CPU's section, unless it
        //   gives up early.
        self.unended.store(true, Ordering::Relaxed);
    }

    /// Its owner has ended it, and unmasks the port after this, unless it is being moved.
    pub(crate) fn end_event(&self) {
        // ORDERING: Relaxed, ordered by the fence.
        self.unended.store(false, Ordering::Relaxed);
        // ORDERING: SeqCst, pairs with the fence in `is_unended`: "publish mine, then look at yours". Its owner finds the port as whoever
        //   moved or forwarded it has left it, or that one finds the event ended. Weakening fails in evtchn/tests/loom_move.rs.
        fence(Ordering::SeqCst);
    }

    /// Whether its owner has an event that it has not ended, and will unmask the port. Asked after MOVING was taken away, or the port
    /// masked, by whoever would unmask it. One more event may be let in: where it is ended at the same time and both unmask, where a move is given
    /// up, or where another CPU has just taken the event and has not said so.
    pub(crate) fn is_unended(&self) -> bool {
        if self.end != EndOfEvent::Late {
            return false;
        }
        // ORDERING: SeqCst, pairs with the fence in `end_event`: MOVING or the mask before it, `unended` after it.
        // Weakening fails in evtchn/tests/loom_move.rs.
        fence(Ordering::SeqCst);
        // ORDERING: Relaxed, ordered by the fence.
        self.unended.load(Ordering::Relaxed)
    }

    /// Counts whether an event was for something: how many in a row were for nothing.
    pub(crate) fn note_end(&self, fruitful: bool) -> u32 {
        // ORDERING: Relaxed both. Its owner ends its events, one at a time.
        let fruitless = if fruitful { 0 } else { self.fruitless.load(Ordering::Relaxed).saturating_add(1) };
        self.fruitless.store(fruitless, Ordering::Relaxed);
        fruitless
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Action {{ context: {}, port: {:?} }}", self.context, self.port())
    }
}
