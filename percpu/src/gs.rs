//! The image's backend: one gs-relative instruction each.
//!
//! Xen keeps the gs base of kernel and user mode apart and swaps them itself, so `gs` points to this CPU's
//! [`Area`] whenever kernel code runs. Reading the base MSR traps into Xen, and FSGSBASE starts out disabled: the
//! area's own address stands in it instead.
//!
//! - GS1: gs base is the address of a linked [`Area`] for the life of the vcpu: on the boot CPU from `set_segment_base`
//!   on, with which `kernel` begins and before which nothing here is called; on all others, by `VCPUOP_initialise`,
//!   from the first instruction on.

use core::arch::asm;

use xen_sys::abi::xen::VcpuInfo;
use xen_sys::hypercall::sched;
use xen_sys::hypercall::version::xen_version;

use crate::{Area, CpuId, MaskGuard};

/// This CPU.
#[inline]
pub fn current() -> CpuId {
    let raw: u32;
    // SAFETY: reads the field of this CPU's area (GS1) that is a `CpuId`. Pure: running code does not move to another CPU.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) raw, const Area::CPU, options(nostack, preserves_flags, readonly, pure));
    }
    CpuId::from_raw(raw)
}

/// This CPU's area.
#[inline]
pub fn area() -> &'static Area {
    let this: *const Area;
    // SAFETY: reads the word of this CPU's area (GS1) that holds its own address.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) this, const Area::THIS, options(nostack, preserves_flags, readonly, pure));
    }
    // SAFETY: areas are linked before use (GS1), initialised, and never freed (AR1).
    unsafe { &*this }
}

/// The registered `vcpu_info` of this CPU.
#[inline]
pub fn vcpu_info() -> &'static VcpuInfo {
    &area().vcpu_info
}

/// Masks upcalls on this CPU until the guard is dropped. Costs two instructions; the drop, three and, where an event
/// came meanwhile, one hypercall.
#[inline]
pub fn mask_upcalls() -> MaskGuard {
    let before: u8;
    // SAFETY: reads and writes this CPU's upcall mask (GS1). Not `nomem`: nothing moves out of the masked region.
    unsafe {
        asm!(
            "mov {before}, gs:[{mask}]",
            "mov byte ptr gs:[{mask}], 1",
            before = out(reg_byte) before,
            mask = const Area::UPCALL_MASK,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: masked just now. If upcalls were unmasked before, unmasking them again is right.
    unsafe { MaskGuard::new(before != 0) }
}

/// Unmasks upcalls for the first time in a vcpu's life: it starts with them masked, and no guard would know to unmask
/// them. Context: task level, no guard held.
pub fn start_upcalls() {
    unmask_upcalls();
}

/// Unmasks upcalls on this CPU and takes at once what came meanwhile.
#[inline]
pub(crate) fn unmask_upcalls() {
    let pending: u8;
    // SAFETY: writes this CPU's upcall mask, then reads its pending flag (GS1). In this order: an event that comes
    // before the first instruction is seen by the second, a later one enters the upcall by itself.
    unsafe {
        asm!(
            "mov byte ptr gs:[{mask}], 0",
            "mov {pending}, gs:[{flag}]",
            pending = out(reg_byte) pending,
            mask = const Area::UPCALL_MASK,
            flag = const Area::UPCALL_PENDING,
            options(nostack, preserves_flags),
        );
    }
    if pending != 0 {
        // Xen looks for events on its way out of any hypercall; this is the cheapest one.
        // Its answer is of no interest here.
        let _ = xen_version();
    }
}

/// Unmasks upcalls on this CPU and waits for an event, unless one is pending already.
///
/// # Safety
/// Nothing that this CPU holds relies on upcalls being masked.
#[inline]
pub(crate) unsafe fn block() {
    // SAFETY: the same clause.
    unsafe { sched::block() };
}
