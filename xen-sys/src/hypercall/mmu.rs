//! Page tables: writing entries, pinning, switching roots, flushing.
//!
//! Contexts: any, but an mfn in an argument is stale after a suspend, so nothing that can be suspended may be in the
//! middle of one. Source: xen/include/public/xen.h; xen/arch/x86/mm.c, do_mmu_update, do_mmuext_op.

use core::fmt;

use super::{address_of, address_of_slice, count, raw};
use crate::Errno;
use crate::abi::xen::{
    __HYPERVISOR_mmu_update, __HYPERVISOR_mmuext_op, __HYPERVISOR_update_va_mapping, DOMID_SELF, MmuUpdate, MmuextOp,
};

/// A list of page-table operations that stopped in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmuError {
    /// How many were done; the one with this index failed, the rest was not tried.
    pub done: u32,
    /// Why.
    pub errno: Errno,
}

impl fmt::Display for MmuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page-table operation {} of the list: {}", self.done, self.errno)
    }
}

impl core::error::Error for MmuError {}

/// Runs a list hypercall with the four arguments that both of them take.
///
/// # Safety
/// The safety conditions of `op`.
unsafe fn list_op<T>(op: u64, list: &[T]) -> Result<(), MmuError> {
    let nr = count(list).map_err(|errno| MmuError { done: 0, errno })?;
    let mut done = 0u32;
    let done_address = address_of(&mut done);
    // SAFETY: Xen reads `nr` elements and writes `done`; the rest is the caller's.
    let ret = unsafe { raw::hypercall4(op, address_of_slice(list), nr, done_address, DOMID_SELF.into()) };
    match Errno::check(ret) {
        Ok(_) => Ok(()),
        Err(errno) => Err(MmuError { done, errno }),
    }
}

/// Writes page-table entries, or m2p entries, by machine address, in order. No flush for L1 entries; a change of an
/// upper level interrupts every processor that runs the domain.
/// # Errors
/// The first that failed: `EINVAL` for an entry that Xen does not accept, or a table that is none; `EPERM`.
/// # Safety
/// Memory that references point to keeps its mapping, its content and its permissions, once the caller has flushed.
pub unsafe fn mmu_update(updates: &[MmuUpdate]) -> Result<(), MmuError> {
    // SAFETY: the caller's.
    unsafe { list_op(__HYPERVISOR_mmu_update, updates) }
}

/// Pins, switches roots, flushes, in order.
/// # Errors
/// The first that failed: `EINVAL` for a frame that is not what the command needs; `EFAULT` for a mask that is too
/// short.
/// # Safety
/// A new root maps all that is in use as the old one did. No `CLEAR_PAGE` or `COPY_PAGE` destination is referenced.
/// A `vcpumask` has one bit per vcpu up to the domain's maximum.
pub unsafe fn mmuext_op(ops: &[MmuextOp]) -> Result<(), MmuError> {
    // SAFETY: the caller's.
    unsafe { list_op(__HYPERVISOR_mmuext_op, ops) }
}

/// Writes the L1 entry that maps `va` in the current root, with the flush that `flags` (`UVMF_*`) asks for.
/// # Errors
/// `EINVAL`: no L1 table there, or an entry that Xen does not accept.
/// # Safety
/// As for [`mmu_update`].
pub unsafe fn update_va_mapping(va: u64, val: u64, flags: u64) -> Result<(), Errno> {
    // SAFETY: the caller's.
    let ret = unsafe { raw::hypercall3(__HYPERVISOR_update_va_mapping, va, val, flags) };
    Errno::check(ret).map(drop)
}
