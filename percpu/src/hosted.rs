//! The host's backend: a thread plays a CPU. For tests of everything above this crate, also under loom, shuttle and Miri.
//!
//! [`enter`] makes the calling thread a CPU; a thread is one CPU at a time. Nothing delivers upcalls here, so masking
//! is only remembered, and tests can ask for it with [`upcalls_masked`].

use core::cell::Cell;
use core::marker::PhantomData;

use crate::{CpuId, MaskGuard, Masked};

#[derive(Clone, Copy)]
struct Playing {
    cpu: CpuId,
    masked: bool,
}

#[cfg(not(any(loom, shuttle)))]
std::thread_local! {
    static PLAYING: Cell<Option<Playing>> = const { Cell::new(None) };
}
#[cfg(loom)]
loom::thread_local! {
    static PLAYING: Cell<Option<Playing>> = Cell::new(None);
}
#[cfg(shuttle)]
shuttle::thread_local! {
    static PLAYING: Cell<Option<Playing>> = Cell::new(None);
}

/// The thread plays a CPU until this is dropped.
#[must_use = "the thread stops playing the CPU when the guard is dropped"]
pub struct Entered {
    before: Option<Playing>,
    not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        PLAYING.with(|playing| playing.set(self.before));
    }
}

/// Makes the calling thread play `cpu`, with upcalls unmasked. Tests run side by side, so other threads may play the
/// same CPU, each in a kernel of its own; a [`Local`](crate::Local) that two of them reach panics.
pub fn enter(cpu: CpuId) -> Entered {
    let before = PLAYING.with(|playing| playing.replace(Some(Playing { cpu, masked: false })));
    Entered { before, not_send: PhantomData }
}

/// A token as the upcall has it, for tests that call handlers by hand.
pub fn masked() -> Masked {
    // SAFETY: no upcalls are delivered to a thread on the host.
    unsafe { Masked::assume() }
}

/// Whether the CPU that this thread plays has its upcalls masked.
pub fn upcalls_masked() -> bool {
    playing().masked
}

/// The CPU that this thread plays.
///
/// # Panics
/// If it plays none.
pub fn current() -> CpuId {
    playing().cpu
}

/// Masks upcalls on the CPU that this thread plays.
pub fn mask_upcalls() -> MaskGuard {
    let were_masked = set_masked(true);
    // SAFETY: no upcalls are delivered to a thread on the host; the former state is restored by the guard.
    unsafe { MaskGuard::new(were_masked) }
}

pub(crate) fn unmask_upcalls() {
    set_masked(false);
}

/// Unmasks upcalls; an event that ends the wait is as good as there.
///
/// # Safety
/// None on the host.
pub(crate) unsafe fn block() {
    set_masked(false);
}

fn set_masked(masked: bool) -> bool {
    let now = playing();
    PLAYING.with(|playing| playing.set(Some(Playing { masked, ..now })));
    now.masked
}

fn playing() -> Playing {
    PLAYING.with(Cell::get).expect("hosted::enter() makes a thread play a CPU")
}

#[cfg(not(any(loom, shuttle)))]
mod areas {
    use alloc::boxed::Box;
    use alloc::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use xen_sys::abi::xen::VcpuInfo;

    use crate::{Area, CpuId};

    /// Areas of the CPUs that threads have played, kept for the life of the process: borrows of them are `'static`.
    static AREAS: Mutex<BTreeMap<CpuId, &'static Area>> = Mutex::new(BTreeMap::new());

    /// The area of the CPU that this thread plays. One for each CPU in the whole process: tests that look into
    /// it should each use CPUs of their own.
    pub fn area() -> &'static Area {
        let cpu = super::current();
        let mut areas = AREAS.lock().unwrap_or_else(PoisonError::into_inner);
        areas.entry(cpu).or_insert_with(|| Box::leak(Box::new(Area::new(cpu))))
    }

    /// The `vcpu_info` in this CPU's area.
    pub fn vcpu_info() -> &'static VcpuInfo {
        &area().vcpu_info
    }
}
#[cfg(not(any(loom, shuttle)))]
pub use areas::{area, vcpu_info};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn masking_nests() {
        let _on = enter(CpuId::BOOT);
        let outer = mask_upcalls();
        {
            let _inner = mask_upcalls();
            assert!(upcalls_masked());
        }
        assert!(upcalls_masked());
        drop(outer);
        assert!(!upcalls_masked());
    }

    #[test]
    fn blocking_unmasks() {
        let _on = enter(CpuId::BOOT);
        mask_upcalls().block();
        assert!(!upcalls_masked());
    }

    #[test]
    #[should_panic(expected = "would unmask both")]
    fn nobody_blocks_under_another_guard() {
        let _on = enter(CpuId::BOOT);
        let _outer = mask_upcalls();
        mask_upcalls().block();
    }

    #[test]
    fn areas_belong_to_cpus() {
        let one = CpuId::new(1).expect("1 is below CpuId::MAX");
        let _on = enter(one);
        let mine = area();
        assert_eq!(mine.cpu(), one);
        let _other = enter(CpuId::BOOT);
        assert!(!core::ptr::eq(mine, area()));
    }
}
