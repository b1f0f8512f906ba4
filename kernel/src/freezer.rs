//! [`Freezer`]: keeps all but the kernel's own tasks, and user mode, from running while a suspend is made ready, or likely to be asked for.
//!
//! No suspend is right or wrong by it: it is the rendezvous that stops all vcpus. But vcpus often outnumber processors, and dom0 needs
//! some too. What comes before the rendezvous are exchanges with xenstored, each of which waits for a turn of dom0's and then for one of
//! vcpu 0's; and the rendezvous waits for a turn of every vcpu that has something to do. Frozen vcpus have not.
//!
//! Nobody is told: a CPU sees it when it looks for its next task. One in user mode looks when it is sent an event, so those are that are
//! seen there. One that is just about to enter it is missed, and left to its next event or to the rendezvous: to see each would cost every
//! way into user mode a fence.
//! Thawing has to reach CPUs that sleep: the end of a rendezvous does, and where there was none each is sent an event.
//!
//! Context: task on vcpu 0, but for [`is_frozen`]. Suspend: *kept*; it is thawed before any other vcpu runs again.

use core::cell::Cell;

use crossbeam_utils::CachePadded;
use percpu::Quiesced;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use crate::cpus;

/// Written by vcpu 0, in a task or while all others are parked. Read by every CPU before each task that can be frozen, so alone on
/// its line.
static FROZEN: CachePadded<AtomicBool> = CachePadded::new(AtomicBool::new(false));

/// Whether to leave tasks that can be frozen alone. Context: any.
pub(crate) fn is_frozen() -> bool {
    // ORDERING: Relaxed, nothing is read because of it. That a thaw is seen: a CPU that may sleep is posted to after the store, and
    //   looks again after it has taken that from its inbox (AcqRel, `Inbox::post` and `take`); one that is parked has read the
    //   phase in which it is released with Acquire (`Rendezvous::park`).
    FROZEN.load(Ordering::Relaxed)
}

/// Freezes when it is told to, and thaws when it is dropped at the latest.
pub(crate) struct Freezer {
    is_on: Cell<bool>,
    /// How many vcpus were in user mode when it froze.
    were_in_user_mode: Cell<usize>,
}

impl Freezer {
    /// Nothing is frozen yet. One at a time.
    pub(crate) fn new() -> Freezer {
        Freezer { is_on: Cell::new(false), were_in_user_mode: Cell::new(0) }
    }

    /// Freezes, unless that has been done. A multicall for each 32 that run user mode.
    ///
    /// # Panics
    /// If another one has.
    pub(crate) fn freeze(&self) {
        if !self.is_on.replace(true) {
            // ORDERING: Relaxed, as in `is_frozen`.
            assert!(!FROZEN.swap(true, Ordering::Relaxed), "two freezers at once");
            self.were_in_user_mode.set(cpus::reschedule_who_runs_user_mode());
        }
    }

    /// How many vcpus were seen in user mode, and rung, when it froze; but for vcpu 0, on which this is a task.
    pub(crate) fn were_in_user_mode(&self) -> usize {
        self.were_in_user_mode.get()
    }

    /// Thaws, unless nothing is frozen. A multicall for each 32 others.
    pub(crate) fn thaw(&self) {
        if self.is_on.replace(false) {
            FROZEN.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as in `is_frozen`.
            cpus::reschedule_all_others();
        }
    }

    /// The same while all others are parked: they see it when they are released.
    pub(crate) fn thaw_parked(&self, _others: &Quiesced) {
        self.is_on.set(false);
        FROZEN.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as in `is_frozen`.
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
    }
}
