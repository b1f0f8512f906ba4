//! [`Passage`]: when a CPU is where it may hold what came out of the port table, and when it has passed.
//!
//! An action that was taken out of its slot may still be running on some CPU. It is freed, and its port given to another,
//! after a *grace period*: once every CPU has been seen outside of a section that began before. A CPU outside of its
//! sections is *quiescent*, whatever else it does: runs a task, is blocked, is parked, has no processor. So a grace period
//! asks nothing of CPUs that have no upcall to handle, and needs no IPI.
//!
//! | word | written by | read by | suspend |
//! |---|---|---|---|
//! | entered | its CPU, once for each section; a [`Grace`] writes the same value again | both | *kept* |
//! | left | its CPU, once for each section | [`Grace`] | *kept* |
//!
//! - PA1: a CPU is inside of a section exactly while `left` is below `entered`.
//!
//! Cost for the upcall: one locked operation and one store, on a line of this CPU's that others write only when an action
//! is retired. Progress: wait-free for a CPU; a grace period lasts as long as the longest section, which a lost processor
//! can draw out, so it is asked for again and again ([`Grace::is_over`]) and never waited for in here.
//!
//! Turned down: epochs that every CPU must announce (an idle CPU announces nothing), an IPI to each (a thousand of them
//! for one device), and a fence after a plain store (as dear as the locked operation, and not to be had in one word).
#![forbid(unsafe_code)]

use percpu::{CpuId, MaskGuard, Masked, PerCpu};
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

/// See the head of this file.
pub(crate) struct Passage {
    entered: AtomicU64,
    left: AtomicU64,
}

/// Proof that this CPU is inside of a section. What is looked up with it is alive until it is dropped.
pub(crate) struct Inside<'a> {
    passage: &'a Passage,
    /// Within another section, which ends it.
    within: bool,
    not_send: core::marker::PhantomData<*const ()>,
}

impl Passage {
    pub(crate) fn new() -> Passage {
        Passage { entered: AtomicU64::new(0), left: AtomicU64::new(0) }
    }

    /// Begins a section of this CPU's, which is in none. Context: the upcall, or upcalls masked as long as it lasts.
    pub(crate) fn enter(&self, _masked: &Masked) -> Inside<'_> {
        // ORDERING: Relaxed both, this CPU's own (PA1).
        debug_assert_eq!(
            self.entered.load(Ordering::Relaxed),
            self.left.load(Ordering::Relaxed),
            "a section in a section"
        );
        // ORDERING: Acquire, pairs with the Release in `look`, and so with the slot that was changed before it.
        //   We before it: the grace period sees this section, and waits for it.
        //   It before us: we see the slot as it was changed, and do not find the action.
        //   All writes to this word are read-modify-writes, so this holds for every section after it too.
        // Weakening fails in evtchn/tests/loom_grace.rs.
        self.entered.fetch_add(1, Ordering::Acquire);
        Inside { passage: self, within: false, not_send: core::marker::PhantomData }
    }

    /// As [`Passage::enter`], also where this CPU is in one already: in a handler.
    pub(crate) fn enter_or_stay(&self, masked: &Masked) -> Inside<'_> {
        // ORDERING: Relaxed both, this CPU's own (PA1).
        if self.entered.load(Ordering::Relaxed) == self.left.load(Ordering::Relaxed) {
            return self.enter(masked);
        }
        Inside { passage: self, within: true, not_send: core::marker::PhantomData }
    }

    /// The number of the last section that may have begun before now.
    fn look(&self) -> u64 {
        // ORDERING: Release, a read-modify-write that changes nothing: see `enter`.
        // Weakening fails in evtchn/tests/loom_grace.rs.
        self.entered.fetch_add(0, Ordering::Release)
    }

    /// Whether section `number` has ended.
    fn has_left(&self, number: u64) -> bool {
        // ORDERING: Acquire, pairs with the Release in the drop of `Inside`: what the section did to the action comes
        //   before what is done to it now.
        // Weakening fails in evtchn/tests/loom_grace.rs.
        self.left.load(Ordering::Acquire) >= number
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if !self.within {
            // ORDERING: Relaxed, this CPU's own: what a `Grace` writes is the same value.
            let number = self.passage.entered.load(Ordering::Relaxed);
            // ORDERING: Release, pairs with the Acquire in `has_left`.
            // Weakening fails in evtchn/tests/loom_grace.rs.
            self.passage.left.store(number, Ordering::Release);
        }
    }
}

/// A section of a task's, with upcalls masked for as long.
pub(crate) struct TaskInside<'a> {
    pub(crate) inside: Inside<'a>,
    /// Dropped after the section.
    pub(crate) masked: MaskGuard,
}

impl<'a> TaskInside<'a> {
    /// A section on this CPU, whose passage `of` tells.
    pub(crate) fn enter(of: impl FnOnce() -> &'a Passage) -> TaskInside<'a> {
        let masked = percpu::mask_upcalls();
        TaskInside { inside: of().enter_or_stay(&masked), masked }
    }
}

/// A grace period that has begun: it is over once every CPU has left the sections that began before.
///
/// Begin it after the slot was changed. The CPUs are looked at one after the other, so it has no memory for each.
pub(crate) struct Grace {
    /// The first that is not known to have passed.
    cpu: usize,
    /// The section of that one that has to end.
    section: Option<u64>,
}

impl Grace {
    pub(crate) fn begin() -> Grace {
        Grace { cpu: 0, section: None }
    }

    /// Looks again. Context: any but inside of a section of this CPU's own, which it would wait for.
    pub(crate) fn is_over<'a, T: Sync + 'a>(&mut self, cpus: &'a PerCpu<T>, of: impl Fn(&'a T) -> &'a Passage) -> bool {
        while let Some(cpu) = CpuId::new(self.cpu).filter(|cpu| cpu.index() < cpus.nr()) {
            let passage = of(cpus.on(cpu));
            let section = *self.section.get_or_insert_with(|| passage.look());
            if !passage.has_left(section) {
                return false;
            }
            self.section = None;
            self.cpu += 1;
        }
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn over(grace: &mut Grace, cpus: &PerCpu<Passage>) -> bool {
        grace.is_over(cpus, |passage| passage)
    }

    #[test]
    fn a_grace_period_waits_for_who_was_inside_and_for_nobody_else() {
        let cpus = PerCpu::new(3, |_| Passage::new());
        let masked = percpu::hosted::masked();
        assert!(over(&mut Grace::begin(), &cpus));
        let one = CpuId::new(1).expect("below CpuId::MAX");
        let inside = cpus.on(one).enter(&masked);
        let mut grace = Grace::begin();
        assert!(!over(&mut grace, &cpus) && !over(&mut grace, &cpus));
        drop(inside);
        // It goes in again: that section began after.
        let _again = cpus.on(one).enter(&masked);
        assert!(over(&mut grace, &cpus) && over(&mut grace, &cpus));
    }

    #[test]
    fn a_section_within_another_ends_with_it() {
        let passage = Passage::new();
        let masked = percpu::hosted::masked();
        let outer = passage.enter_or_stay(&masked);
        drop(passage.enter_or_stay(&masked));
        assert!(!passage.has_left(passage.look()));
        drop(outer);
        assert!(passage.has_left(passage.look()));
    }
}
