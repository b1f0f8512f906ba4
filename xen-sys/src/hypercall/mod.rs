//! Hypercalls: one typed function per operation, one file per family.
//!
//! Every function is one `syscall` into Xen and comes back with [`Errno`] as Xen returned it. All of them may be called
//! on any vcpu in any context unless their docs say otherwise; none locks or allocates. A long one is restarted by Xen
//! in the middle, and upcalls run in between if they are unmasked.
//!
//! A function is `unsafe` where the call can change what memory our references point to, what code runs, or whether
//! upcalls are masked. Sending events, reading versions or shutting down can do none of that.
//!
//! Off the bare-metal target there is no Xen: there every call returns `ENOSYS`, so host builds of the crates above may
//! link these functions, and only lose if they call them.
//!
//! Turned down: a trait `Hypervisor` here, to fake Xen as a whole. Each crate above needs a handful of operations and
//! declares just those in its own words; a trait of sixty methods would be every fake's burden.

mod batch;
pub mod evtchn;
pub mod memory;
pub mod misc;
pub mod mmu;
#[cfg(not(any(loom, shuttle)))]
pub mod poll;
mod raw;
pub mod sched;
pub mod traps;
pub mod vcpu;
pub mod version;

pub use batch::{Batch, BatchFull, CallToken, PortToken, Results};

use crate::Errno;
use crate::abi::xen::{__HYPERVISOR_multicall, MulticallEntry};

/// The address of an argument that Xen reads and writes during a call.
///
/// Exposes the provenance: Xen comes back to the memory by the address alone.
#[inline(always)]
fn address_of<T>(argument: &mut T) -> u64 {
    core::ptr::from_mut(argument).expose_provenance() as u64
}

/// The address of a slice that Xen only reads.
#[inline(always)]
fn address_of_slice<T>(slice: &[T]) -> u64 {
    slice.as_ptr().expose_provenance() as u64
}

/// A slice's length as Xen wants it.
fn count<T>(slice: &[T]) -> Result<u64, Errno> {
    // Bit 31 of a count is Xen's own, to mark a call that it has restarted.
    match u32::try_from(slice.len()) {
        Ok(n) if n < 1 << 31 => Ok(u64::from(n)),
        _ => Err(Errno::E2BIG),
    }
}

/// Runs several hypercalls in one, in order. Each entry's own outcome is in its `result`; Xen may rewrite the rest.
///
/// Not atomic: upcalls may run between entries. [`Batch`] fills the list.
/// # Errors
/// `EFAULT` if the list could not be read or written; the entries before that have run.
/// # Safety
/// Each entry fulfils the safety conditions of the hypercall that it stands for.
/// Source: xen/include/public/xen.h; xen/common/multicall.c, do_multicall.
#[inline]
unsafe fn multicall(calls: &mut [MulticallEntry]) -> Result<(), Errno> {
    let nr_calls = count(calls)?;
    let list = calls.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: the list is ours to be written, `nr_calls` long, and the caller answers for its entries.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_multicall, list, nr_calls) };
    Errno::check(ret).map(drop)
}
