//! One slot for each CPU: [`PerCpu`] for what any CPU may read or send to, [`Local`] for what is nobody else's.
//!
//! Slots are allocated once, for the number of CPUs that the domain has, and never move. A linker section copied
//! for each CPU was turned down: it would tie every crate to the image, and the host tests with it.

use alloc::boxed::Box;
use core::cell::UnsafeCell;

use crossbeam_utils::CachePadded;

use crate::{CpuId, Masked, current};

/// A slot for each CPU, every one in cache lines of its own. All CPUs may reach all slots.
pub struct PerCpu<T> {
    slots: Box<[CachePadded<T>]>,
}

impl<T: Sync> PerCpu<T> {
    /// Slots for the first `nr` CPUs, made by `init`.
    pub fn new(nr: usize, init: impl FnMut(CpuId) -> T) -> PerCpu<T> {
        PerCpu { slots: CpuId::first(nr).map(init).map(CachePadded::new).collect() }
    }

    /// The slot of `cpu`.
    ///
    /// # Panics
    /// If there are no slots for `cpu`: a [`CpuId`] beyond the domain's vcpus is a bug of ours.
    pub fn on(&self, cpu: CpuId) -> &T {
        &self.slots[cpu.index()]
    }

    /// The slot of this CPU.
    pub fn mine(&self) -> &T {
        self.on(current())
    }

    /// How many CPUs have slots.
    pub fn nr(&self) -> usize {
        self.slots.len()
    }

    /// All slots, in the order of the CPUs.
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &T)> {
        CpuId::first(self.nr()).map(|cpu| (cpu, self.on(cpu)))
    }
}

/// A slot for each CPU that only this CPU reaches, and only with upcalls masked.
///
/// - LO1: a `&T` is given out only by [`Local::mine`], for the slot of the CPU that asks.
/// - LO2: that borrow ends before the [`Masked`] token does, so neither an upcall on the same CPU nor a
///   later life of the token can meet it.
/// - LO3: a CPU is one thread of execution. On the host, where two threads may play the same CPU, a slot belongs to the
///   first that reaches it.
pub struct Local<T> {
    slots: Box<[CachePadded<LocalSlot<T>>]>,
}

struct LocalSlot<T> {
    value: UnsafeCell<T>,
    #[cfg(not(target_os = "none"))]
    thread: std::sync::OnceLock<std::thread::ThreadId>,
}

impl<T> LocalSlot<T> {
    fn new(value: T) -> LocalSlot<T> {
        LocalSlot {
            value: UnsafeCell::new(value),
            #[cfg(not(target_os = "none"))]
            thread: std::sync::OnceLock::new(),
        }
    }

    /// LO3. The threads of a model are all one to it, and take turns.
    #[cfg(not(target_os = "none"))]
    fn check_thread(&self) {
        let me = std::thread::current().id();
        assert_eq!(*self.thread.get_or_init(|| me), me, "two threads play the CPU of one slot");
    }

    #[cfg(target_os = "none")]
    fn check_thread(&self) {}
}

// SAFETY: by LO1, LO2 and LO3 each `T` is only ever touched by one CPU, as if it had been sent there.
unsafe impl<T: Send> Sync for Local<T> {}

impl<T: Send> Local<T> {
    /// Slots for the first `nr` CPUs, made by `init`.
    pub fn new(nr: usize, mut init: impl FnMut(CpuId) -> T) -> Local<T> {
        Local { slots: CpuId::first(nr).map(|cpu| CachePadded::new(LocalSlot::new(init(cpu)))).collect() }
    }

    /// This CPU's value.
    ///
    /// # Panics
    /// If there are no slots for this CPU; on the host also if another thread has played it here.
    pub fn mine<'a>(&'a self, _masked: &'a Masked) -> &'a T {
        let slot = &self.slots[current().index()];
        slot.check_thread();
        // SAFETY: valid for as long as `self` is. Only shared borrows are ever made of it, all of them on this CPU
        // (LO1, LO3) and while upcalls are masked (LO2).
        unsafe { &*slot.value.get() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;

    use super::*;
    use crate::hosted;

    #[test]
    fn mine_follows_the_cpu() {
        let shared = PerCpu::new(3, |cpu| cpu.index() * 10);
        let local = Local::new(3, |cpu| Cell::new(cpu.index()));
        for cpu in CpuId::first(3) {
            let _on = hosted::enter(cpu);
            assert_eq!(*shared.mine(), cpu.index() * 10);
            let masked = crate::mask_upcalls();
            let mine = local.mine(&masked);
            mine.set(mine.get() + 100);
            assert_eq!(local.mine(&masked).get(), 100 + cpu.index());
        }
        assert_eq!(shared.iter().map(|(_, v)| *v).collect::<Vec<_>>(), [0, 10, 20]);
    }

    #[test]
    fn two_threads_do_not_share_a_local_slot() {
        let local = Local::new(1, Cell::new);
        let reach = || {
            let _on = hosted::enter(CpuId::BOOT);
            local.mine(&crate::mask_upcalls()).set(CpuId::BOOT);
        };
        reach();
        let other = std::thread::scope(|scope| scope.spawn(reach).join().is_err());
        assert!(other, "a data race out of safe code");
        reach();
    }

    #[test]
    fn slots_share_no_cache_line() {
        let slots = PerCpu::new(2, |_| 0_u8);
        let a = core::ptr::from_ref(slots.on(CpuId::BOOT)).addr();
        let b = core::ptr::from_ref(slots.on(CpuId::new(1).expect("1 is below CpuId::MAX"))).addr();
        assert!(b - a >= 128);
    }
}
