//! [`MaskedLock`]: a spin lock that keeps upcalls masked on its holder's CPU.
//!
//! Masked, so that an upcall may allocate: it never meets a lock that its own CPU holds. The holder is a vcpu that Xen may
//! have put aside, and vcpus outnumber processors as a rule, so a waiter looks a few times and then gives its processor
//! back. `SCHEDOP_yield` and not `SCHEDOP_poll`: it needs no waker, and a suspend in the middle of it does no harm.
//!
//! Fairness was turned down: a ticket lock hands itself to a vcpu that may not be running, and then everybody waits for Xen's
//! scheduler. Blocking, and keep what it guards short. That is no bound on a wait: Xen may take the processor away from a
//! holder, and under credit2 gives it back only after waiters that yield have burnt their credit. Of 7458 holders, with 128
//! vcpus on two emulated processors that all wanted the heap at once, 81 were gone for up to a second each.
//!
//! Context: any but quiesced, where the holder could be parked.

use xen_sys::primitive::cell::UnsafeCell;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

/// How often a waiter looks before it gives its processor back. The model has no use for looking again at once.
const LOOKS: u32 = if cfg!(loom) { 0 } else { 64 };

/// A `T` that one CPU at a time reaches, with its upcalls masked.
///
/// - ML1: `locked` is true exactly while one call of [`MaskedLock::with`] is between taking and releasing it.
/// - ML2: `value` is reached only there.
#[derive(Debug)]
pub struct MaskedLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one CPU at a time (ML1, ML2), as if it had been sent there.
unsafe impl<T: Send> Sync for MaskedLock<T> {}

impl<T> MaskedLock<T> {
    /// Unlocked.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> MaskedLock<T> {
        MaskedLock { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Unlocked.
    #[cfg(loom)]
    pub fn new(value: T) -> MaskedLock<T> {
        MaskedLock { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Calls `f` with the value, alone and with upcalls masked. `f` must not come back here: it would wait for ever. If `f`
    /// panics the lock stays taken.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let _masked = percpu::mask_upcalls();
        // ORDERING: Acquire, pairs with the Release below: what the last holder did to the value is seen. Relaxed where the
        // lock is taken: nothing was learned but that.
        while self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            if !self.comes_free() {
                give_up_processor();
            }
        }
        let result = self.value.with_mut(|value| {
            // SAFETY: ours alone until the store below (ML1, ML2).
            f(unsafe { &mut *value })
        });
        // ORDERING: Release, pairs with the Acquire above.
        self.locked.store(false, Ordering::Release);
        result
    }

    /// Releases it for a holder that never will, or does nothing.
    ///
    /// # Safety
    /// Nobody is in [`MaskedLock::with`] who will go on there, and the value is in order wherever they were stopped.
    #[cfg(not(loom))]
    pub unsafe fn break_open(&self) {
        // ORDERING: Relaxed, whoever stopped the holder has ordered us behind it.
        self.locked.store(false, Ordering::Relaxed);
    }

    /// Looks a few times whether the lock comes free.
    fn comes_free(&self) -> bool {
        (0..LOOKS).any(|_| {
            xen_sys::primitive::hint::spin_loop();
            // ORDERING: Relaxed, a hint to try again; the exchange in `with` decides.
            !self.locked.load(Ordering::Relaxed)
        })
    }
}

#[cfg(target_os = "none")]
fn give_up_processor() {
    xen_sys::hypercall::sched::yield_();
}

#[cfg(not(target_os = "none"))]
fn give_up_processor() {
    xen_sys::primitive::thread::yield_now();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use percpu::{CpuId, hosted};

    use super::*;

    #[test]
    fn upcalls_are_masked_inside_only() {
        let _on = hosted::enter(CpuId::BOOT);
        let lock = MaskedLock::new(1);
        assert!(lock.with(|value| hosted::upcalls_masked() && *value == 1));
        assert!(!hosted::upcalls_masked());
        let outer = percpu::mask_upcalls();
        lock.with(|value| *value = 2);
        assert!(hosted::upcalls_masked(), "as it was found");
        drop(outer);
    }

    #[test]
    fn a_lock_whose_holder_is_gone_can_be_had() {
        let _on = hosted::enter(CpuId::BOOT);
        let lock = MaskedLock::new(1);
        let holder = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| lock.with(|_| panic!("gone"))));
        assert!(holder.is_err());
        // SAFETY: the holder has unwound.
        unsafe { lock.break_open() };
        assert_eq!(lock.with(|value| *value), 1);
    }
}
