//! [`CpuId`]: our number of a CPU. Xen's word for the thing is vcpu, and its number of one is a plain `u32`.
//!
//! The two numberings are the same today: vcpu n is CPU n. They are different types all the same, so that
//! the one place where they meet ([`CpuId::vcpu`], [`CpuId::from_vcpu`]) can be found.
#![forbid(unsafe_code)]

use core::fmt;

/// A CPU of this kernel, in `0..CpuId::MAX`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct CpuId(u32);

impl CpuId {
    /// How many CPUs this kernel can run. xl 4.17 refuses more than 1024 vcpus (`libxl_create.c`).
    pub const MAX: usize = 1024;

    /// The CPU that Xen starts at the kernel's entry point. It leads every rendezvous and issues the suspend.
    pub const BOOT: CpuId = CpuId(0);

    /// The CPU with number `n`, or `None` from [`CpuId::MAX`] on.
    pub fn new(n: usize) -> Option<CpuId> {
        if n < Self::MAX { u32::try_from(n).ok().map(CpuId) } else { None }
    }

    /// The CPU that runs on Xen's vcpu `vcpu`, or `None` where this kernel cannot have it.
    pub fn from_vcpu(vcpu: u32) -> Option<CpuId> {
        Self::new(usize::try_from(vcpu).ok()?)
    }

    /// The CPU whose number stands in an area, where a `CpuId` was put.
    #[cfg(target_os = "none")]
    pub(crate) const fn from_raw(raw: u32) -> CpuId {
        CpuId(raw)
    }

    /// Place of this CPU in tables with one entry for each.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Xen's number of the vcpu that this CPU is.
    pub const fn vcpu(self) -> u32 {
        self.0
    }

    /// The first `nr` CPUs, in order. Stops at [`CpuId::MAX`].
    pub fn first(nr: usize) -> impl Iterator<Item = CpuId> + Clone {
        (0..nr).map_while(CpuId::new)
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_ends_at_max() {
        assert_eq!(CpuId::new(0), Some(CpuId::BOOT));
        assert_eq!(CpuId::new(CpuId::MAX - 1).map(CpuId::index), Some(1023));
        assert_eq!(CpuId::new(CpuId::MAX), None);
        assert_eq!(CpuId::from_vcpu(u32::MAX), None);
        assert_eq!(CpuId::first(usize::MAX).count(), CpuId::MAX);
        assert_eq!(CpuId::first(3).map(CpuId::vcpu).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
