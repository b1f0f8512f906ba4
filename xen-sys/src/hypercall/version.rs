//! What Xen says about itself.
//!
//! Contexts: any; cheap enough for boot and resume, where it may have changed. Any call here also serves as the no-op
//! hypercall on whose return Xen delivers a pending upcall. Source: xen/include/public/version.h; xen/common/kernel.c.

use super::{address_of, raw};
use crate::Errno;
use crate::abi::version::{XEN_EXTRAVERSION_LEN, XENVER_extraversion, XENVER_version};
use crate::abi::xen::__HYPERVISOR_xen_version;

/// Xen's version, as its first hypercall answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The 4 of 4.17.
    pub major: u16,
    /// The 17 of 4.17.
    pub minor: u16,
}

impl Version {
    /// Takes the packed answer apart.
    #[expect(clippy::cast_possible_truncation, reason = "the halves are 16 bits each by definition")]
    const fn from_packed(packed: u64) -> Self {
        Self { major: (packed >> 16) as u16, minor: packed as u16 }
    }
}

/// Xen's version.
/// # Errors
/// None from a Xen.
#[inline]
pub fn xen_version() -> Result<Version, Errno> {
    // SAFETY: no argument, reads only.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_xen_version, XENVER_version.into(), 0) };
    Errno::check(ret).map(Version::from_packed)
}

/// The rest of the version, such as `.5`, zero-terminated unless it fills the array.
/// # Errors
/// None from a Xen; a policy module may have it answer `<denied>`.
pub fn extraversion() -> Result<[u8; XEN_EXTRAVERSION_LEN], Errno> {
    let mut text = [0; XEN_EXTRAVERSION_LEN];
    let address = address_of(&mut text);
    // SAFETY: Xen writes exactly this many bytes.
    let ret = unsafe { raw::hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion.into(), address) };
    Errno::check(ret).map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn the_packed_version_comes_apart() {
        assert_eq!(Version::from_packed(0x0004_0011), Version { major: 4, minor: 17 });
    }
}
