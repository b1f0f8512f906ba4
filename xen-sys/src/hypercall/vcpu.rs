//! Vcpu bring-up, timers, and the areas that a vcpu registers.
//!
//! Contexts: any. A `vcpu` argument is Xen's number and may be another vcpu's, unless the function says "this vcpu".
//! Source: xen/include/public/vcpu.h; xen/common/domain.c, common_vcpu_op; xen/arch/x86/domain.c, do_vcpu_op.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::GuestHandle;
use crate::abi::arch::VcpuGuestContext;
use crate::abi::vcpu::{
    VCPUOP_down, VCPUOP_get_runstate_info, VCPUOP_initialise, VCPUOP_is_up, VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info, VCPUOP_register_vcpu_time_memory_area, VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer, VCPUOP_stop_periodic_timer, VCPUOP_stop_singleshot_timer, VCPUOP_up,
    VcpuRegisterRunstateMemoryArea, VcpuRegisterTimeMemoryArea, VcpuRegisterVcpuInfo, VcpuRunstate, VcpuRunstateInfo,
    VcpuSetPeriodicTimer, VcpuSetSingleshotTimer,
};
use crate::abi::xen::{__HYPERVISOR_vcpu_op, VcpuTimeInfo};

/// # Safety
/// The safety conditions of `cmd`; `address` is 0 or that of what it takes.
#[inline]
unsafe fn vcpu_op(cmd: u32, vcpu: u32, address: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's.
    Errno::check(unsafe { raw::hypercall3(__HYPERVISOR_vcpu_op, cmd.into(), vcpu.into(), address) })
}

/// Gives a vcpu that has never run its registers, tables and root. It stays down until [`up`].
/// # Errors
/// `EEXIST`: initialised before; `EINVAL`: a value in `context`, or an id from 32 on whose `vcpu_info` is not placed yet;
/// `ENOENT`: no such vcpu.
/// # Safety
/// From [`up`] on the vcpu runs at `context`'s rip with its stack, root, callbacks and gs base, all of which must be
/// valid for it and not be used by another vcpu.
pub unsafe fn initialise(vcpu: u32, context: &VcpuGuestContext) -> Result<(), Errno> {
    let address = core::ptr::from_ref(context).expose_provenance() as u64;
    // SAFETY: Xen only reads the context; the rest is the caller's.
    unsafe { vcpu_op(VCPUOP_initialise, vcpu, address) }.map(drop)
}

/// Makes a vcpu runnable; nothing happens if it is.
/// # Errors
/// `EINVAL`: not initialised; `ENOENT`: no such vcpu.
pub fn up(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: what it runs was answered for in `initialise`.
    unsafe { vcpu_op(VCPUOP_up, vcpu, 0) }.map(drop)
}

/// Makes a vcpu not runnable. For this vcpu the call returns when another one has brought it up again; for another one it
/// returns at once, perhaps before that one has stopped. The last vcpu's `down` powers the domain off.
/// # Errors
/// `ENOENT`: no such vcpu.
pub fn down(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: only when it runs changes.
    unsafe { vcpu_op(VCPUOP_down, vcpu, 0) }.map(drop)
}

/// Whether a vcpu is up. May be stale when it returns.
/// # Errors
/// `ENOENT`: no such vcpu. That is how the number of vcpus is found out.
pub fn is_up(vcpu: u32) -> Result<bool, Errno> {
    // SAFETY: reads only.
    unsafe { vcpu_op(VCPUOP_is_up, vcpu, 0) }.map(|up| up != 0)
}

/// Where a vcpu has spent its time. May be stale when it returns.
/// # Errors
/// `ENOENT`: no such vcpu.
pub fn get_runstate_info(vcpu: u32) -> Result<VcpuRunstate, Errno> {
    let mut info = VcpuRunstate::default();
    // SAFETY: Xen writes `info`.
    unsafe { vcpu_op(VCPUOP_get_runstate_info, vcpu, address_of(&mut info)) }?;
    Ok(info)
}

/// Has Xen keep a vcpu's runstate at `area`, written whenever the vcpu is scheduled. Null ends it.
/// # Errors
/// `EFAULT`: the address is not the guest's; `ENOENT`.
/// # Safety
/// The area is mapped at that address in every root that the vcpu runs on, and reached only through shared references,
/// until another area is registered, or a new domain is resumed.
pub unsafe fn register_runstate_memory_area(vcpu: u32, area: *mut VcpuRunstateInfo) -> Result<(), Errno> {
    let mut op = VcpuRegisterRunstateMemoryArea { addr: GuestHandle::new(area) };
    // SAFETY: the caller gives the area away.
    unsafe { vcpu_op(VCPUOP_register_runstate_memory_area, vcpu, address_of(&mut op)) }.map(drop)
}

/// Starts the periodic timer: `VIRQ_TIMER` every `period_ns` while the vcpu runs.
/// # Errors
/// `EINVAL`: below a millisecond; `ENOENT`.
pub fn set_periodic_timer(vcpu: u32, period_ns: u64) -> Result<(), Errno> {
    let mut op = VcpuSetPeriodicTimer { period_ns };
    // SAFETY: changes a timer only.
    unsafe { vcpu_op(VCPUOP_set_periodic_timer, vcpu, address_of(&mut op)) }.map(drop)
}

/// Stops the periodic timer, which runs at 100 Hz on every vcpu of a new domain.
/// # Errors
/// `ENOENT`: no such vcpu.
pub fn stop_periodic_timer(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: changes a timer only.
    unsafe { vcpu_op(VCPUOP_stop_periodic_timer, vcpu, 0) }.map(drop)
}

/// Arms the one-shot timer of this vcpu: `VIRQ_TIMER` at `deadline_ns`, absolute system time. A past one fires at once.
/// # Errors
/// `EINVAL`: `vcpu` is not this vcpu.
pub fn set_singleshot_timer(vcpu: u32, deadline_ns: u64, flags: u32) -> Result<(), Errno> {
    let mut op = VcpuSetSingleshotTimer { timeout_abs_ns: deadline_ns, flags };
    // SAFETY: changes a timer only.
    unsafe { vcpu_op(VCPUOP_set_singleshot_timer, vcpu, address_of(&mut op)) }.map(drop)
}

/// Stops the one-shot timer of this vcpu. An event that is pending stays pending.
/// # Errors
/// `EINVAL`: `vcpu` is not this vcpu.
pub fn stop_singleshot_timer(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: changes a timer only.
    unsafe { vcpu_op(VCPUOP_stop_singleshot_timer, vcpu, 0) }.map(drop)
}

/// Places a vcpu's `vcpu_info`, once in a domain's life: this vcpu's own, or that of one that is down. It comes with an
/// upcall pending and every selector bit set; for ids below 32 the mask is copied from the legacy slot, else it is 1.
/// # Errors
/// `ENXIO`: `offset` not a multiple of 8, or the 64 bytes leave the page; `EINVAL`: placed before, the other vcpu is not
/// down, or the page is not ours or cannot be written; `ENOENT`: no such vcpu; `ENOMEM`.
/// # Safety
/// The 64 bytes are reached only through shared references to a [`VcpuInfo`](crate::abi::xen::VcpuInfo) from now on, and
/// the page becomes no page table or descriptor table, until the domain ends.
pub unsafe fn register_vcpu_info(vcpu: u32, mfn: u64, offset: u32) -> Result<(), Errno> {
    let mut op = VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 };
    // SAFETY: the caller gives the bytes away.
    unsafe { vcpu_op(VCPUOP_register_vcpu_info, vcpu, address_of(&mut op)) }.map(drop)
}

/// Has Xen keep a second copy of a vcpu's clock record at `area`. Null ends it.
/// # Errors
/// `EFAULT`: the address is not the guest's; `ENOENT`.
/// # Safety
/// As for [`register_runstate_memory_area`].
pub unsafe fn register_vcpu_time_memory_area(vcpu: u32, area: *mut VcpuTimeInfo) -> Result<(), Errno> {
    let mut op = VcpuRegisterTimeMemoryArea { addr: GuestHandle::new(area) };
    // SAFETY: the caller gives the area away.
    unsafe { vcpu_op(VCPUOP_register_vcpu_time_memory_area, vcpu, address_of(&mut op)) }.map(drop)
}
