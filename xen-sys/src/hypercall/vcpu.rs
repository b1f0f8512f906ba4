//! Vcpu bring-up, and what Xen says of a vcpu. What a vcpu registers and stops for itself goes through a
//! [`Batch`](super::Batch).
//!
//! Contexts: any. A `vcpu` argument is Xen's number and may be another vcpu's.
//! Source: xen/include/public/vcpu.h; xen/common/domain.c, common_vcpu_op; xen/arch/x86/domain.c, do_vcpu_op.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::arch::VcpuGuestContext;
use crate::abi::vcpu::{
    VCPUOP_down, VCPUOP_get_runstate_info, VCPUOP_initialise, VCPUOP_is_up, VCPUOP_register_vcpu_info, VCPUOP_up,
    VcpuRegisterVcpuInfo, VcpuRunstate,
};
use crate::abi::xen::__HYPERVISOR_vcpu_op;

/// # Safety
/// The safety conditions of `cmd`; `address` is 0 or that of what it takes.
#[inline]
unsafe fn vcpu_op(cmd: u32, vcpu: u32, address: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's.
    Errno::check(unsafe { raw::hypercall3(__HYPERVISOR_vcpu_op, cmd.into(), vcpu.into(), address) })
}

/// Gives a vcpu that has never run its registers, tables and root. It stays down until [`up`].
/// # Errors
/// `EEXIST`: initialised before; `EINVAL`: a value in `context`, or an id from 32 on whose `vcpu_info` is not placed
/// yet; `ENOENT`: no such vcpu.
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

/// Makes a vcpu not runnable. For this vcpu the call returns when another one has brought it up again; for another one
/// it returns at once, perhaps before that one has stopped. The last vcpu's `down` powers the domain off.
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

/// Places a vcpu's `vcpu_info`, once in a domain's life: this vcpu's own, or that of one that is down. It comes with an
/// upcall pending and every selector bit set; for ids below 32 the mask is copied from the legacy slot, else it is 1.
/// # Errors
/// `ENXIO`: `offset` not a multiple of 8, or the 64 bytes leave the page; `EINVAL`: placed before, the other vcpu is
/// not down, or the page is not ours or cannot be written; `ENOENT`: no such vcpu; `ENOMEM`.
/// # Safety
/// The 64 bytes are reached only through shared references to a [`VcpuInfo`](crate::abi::xen::VcpuInfo) from now on,
/// and the page becomes no page table or descriptor table, until the domain ends.
pub unsafe fn register_vcpu_info(vcpu: u32, mfn: u64, offset: u32) -> Result<(), Errno> {
    let mut op = VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 };
    // SAFETY: the caller gives the bytes away.
    unsafe { vcpu_op(VCPUOP_register_vcpu_info, vcpu, address_of(&mut op)) }.map(drop)
}
