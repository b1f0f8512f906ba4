//! What Xen says of the host's memory.
//!
//! Contexts: any. Source: xen/include/public/memory.h; xen/common/memory.c, do_memory_op.

use super::raw;
use crate::Errno;
use crate::abi::memory::XENMEM_maximum_ram_page;
use crate::abi::xen::__HYPERVISOR_memory_op;

/// One more than the host's highest mfn (Xen's `max_page`). After a migration it may be another.
/// # Errors
/// None from a Xen.
pub fn maximum_ram_page() -> Result<u64, Errno> {
    // SAFETY: no argument, reads only.
    Errno::check(unsafe { raw::hypercall2(__HYPERVISOR_memory_op, XENMEM_maximum_ram_page.into(), 0) })
}
