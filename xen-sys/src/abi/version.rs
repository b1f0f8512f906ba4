//! version.h: what Xen says about itself.
//!
//! Contexts: any; plain data.
#![forbid(unsafe_code)]

/// Major and minor version, 16 bits each, in the return value.
pub const XENVER_version: u32 = 0;
/// The rest of the version, such as ".5": 16 bytes.
pub const XENVER_extraversion: u32 = 1;
/// [`XenCompileInfo`].
pub const XENVER_compile_info: u32 = 2;
/// Which guests can run: 1024 bytes.
pub const XENVER_capabilities: u32 = 3;
/// The source's change set: 64 bytes.
pub const XENVER_changeset: u32 = 4;
/// [`XenPlatformParameters`].
pub const XENVER_platform_parameters: u32 = 5;
/// [`XenFeatureInfo`].
pub const XENVER_get_features: u32 = 6;
/// Page size in the return value.
pub const XENVER_pagesize: u32 = 7;
/// The domain's UUID: 16 bytes.
pub const XENVER_guest_handle: u32 = 8;
/// Xen's command line: 1024 bytes.
pub const XENVER_commandline: u32 = 9;
/// Bytes that [`XENVER_extraversion`] writes.
pub const XEN_EXTRAVERSION_LEN: usize = 16;

/// Who built Xen, each string zero-terminated. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XenCompileInfo {
    /// The compiler.
    pub compiler: [u8; 64],
    /// The user.
    pub compile_by: [u8; 16],
    /// The machine.
    pub compile_domain: [u8; 32],
    /// The date.
    pub compile_date: [u8; 32],
}

/// Where Xen begins. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenPlatformParameters {
    /// Out: first address of Xen's.
    pub virt_start: u64,
}

/// One word of the feature map. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct XenFeatureInfo {
    /// In: which word.
    pub submap_idx: u32,
    /// Out: bit n is `XENFEAT_*` number n.
    pub submap: u32,
}
