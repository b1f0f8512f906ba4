//! [`Root`]: an L4 table.
//!
//! There is one of these, the builder's, which is the kernel's own and lives for ever: all of the kernel runs on it, on every vcpu.
//! Roots of user mode are [`AddressSpace`](crate::AddressSpace)s, have nothing of the kernel's, and are pinned whenever a suspend can come.
//!
//! Context: boot; plain values otherwise.

use xen_sys::Errno;

use crate::addr::Pfn;
use crate::error::MmError;
use crate::mmu::Mmu;
use crate::p2m::P2m;

/// The kernel's L4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    l4: Pfn,
}

impl Root {
    pub(crate) const fn new(l4: Pfn) -> Root {
        Root { l4 }
    }

    /// The L4 table. For `VCPUOP_initialise`, look its mfn up when it is needed.
    pub const fn pfn(self) -> Pfn {
        self.l4
    }

    /// Makes sure that the root is pinned, as the builder leaves it. Unpinned, a save would take it along as plain data.
    ///
    /// Xen answers EINVAL both to a pinned table and to one that can't be pinned; only unpinning tells them apart.
    /// Boot only: in between, the table is kept by being loaded on vcpu 0.
    ///
    /// # Errors
    /// [`MmError::Pin`] if it was not pinned and cannot be.
    pub fn ensure_pinned(self, mmu: &mut impl Mmu, p2m: &P2m) -> Result<(), MmError> {
        let failed = |errno| MmError::Pin { root: self.l4, errno };
        let mfn = p2m.mfn(mmu, self.l4).ok_or(MmError::NoMachinePage { pfn: self.l4 })?;
        match mmu.pin_l4(mfn) {
            Ok(()) => Ok(()),
            Err(Errno::EINVAL) => {
                // SAFETY: vcpu 0 runs on it, which keeps it a valid L4.
                unsafe { mmu.unpin(mfn) }.map_err(failed)?;
                mmu.pin_l4(mfn).map_err(failed)
            }
            Err(errno) => Err(failed(errno)),
        }
    }
}
