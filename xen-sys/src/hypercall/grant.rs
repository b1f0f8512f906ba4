//! The grant table's set-up. Entries are written in place, through [`GrantEntryV1`](crate::abi::grant_table::GrantEntryV1).
//!
//! Contexts: boot, task, and vcpu 0 while it resumes. Source: xen/include/public/grant_table.h; xen/common/grant_table.c.

use core::fmt;

use super::{address_of, raw};
use crate::Errno;
use crate::abi::GuestHandle;
use crate::abi::grant_table::{
    GNTST_okay, GNTTABOP_query_size, GNTTABOP_setup_table, GnttabQuerySize, GnttabSetupTable,
};
use crate::abi::xen::{__HYPERVISOR_grant_table_op, DOMID_SELF, xen_pfn_t};

/// Why a grant table operation failed: the call has one result, its operation another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantError {
    /// The hypercall was refused.
    Call(Errno),
    /// The operation was refused: `GNTST_*`.
    Status(i16),
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(errno) => write!(f, "grant table hypercall: {errno}"),
            Self::Status(status) => write!(f, "grant table operation: GNTST {status}"),
        }
    }
}

impl core::error::Error for GrantError {}

/// # Safety
/// The safety conditions of `cmd`, which takes a `T`.
unsafe fn grant_table_op<T>(cmd: u32, argument: &mut T) -> Result<(), GrantError> {
    let address = address_of(argument);
    // SAFETY: Xen reads and writes one live `T`; the rest is the caller's.
    let ret = unsafe { raw::hypercall3(__HYPERVISOR_grant_table_op, cmd.into(), address, 1) };
    Errno::check(ret).map(drop).map_err(GrantError::Call)
}

/// The operation's own outcome.
fn check_status(status: i16) -> Result<(), GrantError> {
    if status == GNTST_okay { Ok(()) } else { Err(GrantError::Status(status)) }
}

/// Grows the table to at least `frames.len()` pages and writes their mfns into `frames`. They are Xen's pages, not in
/// the p2m: unmap them before a suspend.
/// # Errors
/// `Status(GNTST_general_error)`: more frames than the domain may have.
pub fn setup_table(frames: &mut [xen_pfn_t]) -> Result<(), GrantError> {
    // More frames than fit are more than the domain may have; Xen says so.
    let nr_frames = u32::try_from(frames.len()).unwrap_or(u32::MAX);
    let mut op = GnttabSetupTable {
        dom: DOMID_SELF,
        nr_frames,
        frame_list: GuestHandle::new(frames.as_mut_ptr()),
        ..Default::default()
    };
    // SAFETY: Xen writes `nr_frames` frames, or none.
    unsafe { grant_table_op(GNTTABOP_setup_table, &mut op) }?;
    check_status(op.status)
}

/// The table's size in frames: now, and at most.
/// # Errors
/// None expected from a Xen.
pub fn query_size() -> Result<(u32, u32), GrantError> {
    let mut op = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
    // SAFETY: Xen writes `op`.
    unsafe { grant_table_op(GNTTABOP_query_size, &mut op) }?;
    check_status(op.status)?;
    Ok((op.nr_frames, op.max_nr_frames))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::grant_table::GNTST_general_error;

    #[test]
    fn the_call_and_its_operation_fail_separately() {
        assert_eq!(query_size(), Err(GrantError::Call(Errno::ENOSYS)));
        assert_eq!(check_status(GNTST_okay), Ok(()));
        assert_eq!(check_status(GNTST_general_error), Err(GrantError::Status(-1)));
    }
}
