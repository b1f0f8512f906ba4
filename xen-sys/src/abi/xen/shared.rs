//! xen.h: what Xen and the guest share for as long as the domain runs: `vcpu_info`, `shared_info`, the clock record.
//!
//! Shared structs: Xen writes them on any physical CPU at any time, so every field is an atomic and `&VcpuInfo` is
//! sound. Contexts: any; readers are wait-free. Which orderings a field needs is said where it is used, not here.
#![forbid(unsafe_code)]

use super::super::arch::{ArchSharedInfo, ArchVcpuInfo};
use crate::abi::arch::XEN_LEGACY_MAX_VCPUS;
use crate::primitive::{
    Opaque,
    sync::atomic::{AtomicI8, AtomicU8, AtomicU32, AtomicU64},
};
use crate::{array_of, const_unless_loom};

/// In `VcpuTimeInfo::flags`: TSC readings are comparable across vcpus.
pub const XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1;
/// In `VcpuTimeInfo::flags`: the guest was stopped by the host.
pub const XEN_PVCLOCK_GUEST_STOPPED: u8 = 2;

/// The clock record of one vcpu. Shared: Xen writes it, odd `version` while it does; the guest only reads.
#[repr(C)]
#[derive(Debug)]
pub struct VcpuTimeInfo {
    /// Goes up before and after each update; odd: update in progress.
    pub version: AtomicU32,
    /// Padding.
    pub pad0: Opaque<u32>,
    /// TSC at the last update.
    pub tsc_timestamp: AtomicU64,
    /// Nanoseconds since the *host* booted, at the last update.
    pub system_time: AtomicU64,
    /// ns = ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32.
    pub tsc_to_system_mul: AtomicU32,
    /// See `tsc_to_system_mul`; negative: shift right.
    pub tsc_shift: AtomicI8,
    /// `XEN_PVCLOCK_*`.
    pub flags: AtomicU8,
    /// Padding.
    pub pad1: Opaque<[u8; 2]>,
}

impl VcpuTimeInfo {
    const_unless_loom! {
        /// All zero.
        #[expect(clippy::new_without_default, reason = "an empty record is no sensible default: its scale is zero")]
        pub fn new() -> Self {
            Self {
                version: AtomicU32::new(0),
                pad0: Opaque::new(0),
                tsc_timestamp: AtomicU64::new(0),
                system_time: AtomicU64::new(0),
                tsc_to_system_mul: AtomicU32::new(0),
                tsc_shift: AtomicI8::new(0),
                flags: AtomicU8::new(0),
                pad1: Opaque::new([0; 2]),
            }
        }
    }
}

/// One vcpu's event state and clock. Shared; 64 bytes. In `shared_info` for ids below 32, or placed by
/// `VCPUOP_register_vcpu_info` (8-byte aligned, within one page).
#[repr(C)]
#[derive(Debug)]
pub struct VcpuInfo {
    /// Xen sets it, non-zero: an upcall is due. The guest clears it before it looks for work.
    pub evtchn_upcall_pending: AtomicU8,
    /// The guest sets and clears it; Xen clears it in `SCHEDOP_block` and restores it in `iret`. Non-zero: no upcall.
    pub evtchn_upcall_mask: AtomicU8,
    /// What the C compiler pads with, and Xen writes too when the structure is placed.
    gap: Opaque<[u8; 6]>,
    /// 2-level ABI: one bit for each word of `SharedInfo::evtchn_pending` worth a look.
    pub evtchn_pending_sel: AtomicU64,
    /// The architecture's part: cr2.
    pub arch: ArchVcpuInfo,
    /// The clock record.
    pub time: VcpuTimeInfo,
}

impl VcpuInfo {
    const_unless_loom! {
        /// All zero: no upcall pending, upcalls not masked.
        #[expect(clippy::new_without_default, reason = "unmasked upcalls are a decision, not a default")]
        pub fn new() -> Self {
            Self {
                evtchn_upcall_pending: AtomicU8::new(0),
                evtchn_upcall_mask: AtomicU8::new(0),
                gap: Opaque::new([0; 6]),
                evtchn_pending_sel: AtomicU64::new(0),
                arch: ArchVcpuInfo::new(),
                time: VcpuTimeInfo::new(),
            }
        }
    }
}

/// The page shared by Xen and the domain. Shared; the only data on its page.
///
/// Xen may append fields, so its size means nothing beyond this Xen.
#[repr(C)]
#[derive(Debug)]
pub struct SharedInfo {
    /// The legacy slots, used by vcpus below 32 until they place their own.
    pub vcpu_info: [VcpuInfo; XEN_LEGACY_MAX_VCPUS as usize],
    /// 2-level ABI: PENDING, one bit per port. Xen sets, the guest clears.
    pub evtchn_pending: [AtomicU64; 64],
    /// 2-level ABI: MASK, one bit per port. The guest writes; Xen too, in `EVTCHNOP_unmask`.
    pub evtchn_mask: [AtomicU64; 64],
    /// Version of the wall clock fields, as in [`VcpuTimeInfo::version`].
    pub wc_version: AtomicU32,
    /// Wall clock at system time 0: seconds since 1970, low half.
    pub wc_sec: AtomicU32,
    /// Wall clock at system time 0: nanoseconds.
    pub wc_nsec: AtomicU32,
    /// Wall clock at system time 0: seconds, high half.
    pub wc_sec_hi: AtomicU32,
    /// The architecture's part: where the toolstack finds the p2m.
    pub arch: ArchSharedInfo,
}

impl SharedInfo {
    const_unless_loom! {
        /// All zero, as at boot: every port *unmasked*. About 3.3 KiB: box it or make it static.
        #[expect(clippy::new_without_default, reason = "a page of Xen's has no default")]
        pub fn new() -> Self {
            Self {
                vcpu_info: array_of!(VcpuInfo::new()),
                evtchn_pending: array_of!(AtomicU64::new(0)),
                evtchn_mask: array_of!(AtomicU64::new(0)),
                wc_version: AtomicU32::new(0),
                wc_sec: AtomicU32::new(0),
                wc_nsec: AtomicU32::new(0),
                wc_sec_hi: AtomicU32::new(0),
                arch: ArchSharedInfo::new(),
            }
        }
    }
}

// The kernel's assembly and the demultiplexer rely on these; the full comparison with the headers is in tests/abi.rs.
#[cfg(not(any(loom, shuttle)))]
const _: () = {
    assert!(size_of::<VcpuInfo>() == 64);
    assert!(size_of::<VcpuTimeInfo>() == 32);
    assert!(core::mem::offset_of!(VcpuInfo, evtchn_upcall_mask) == 1);
    assert!(core::mem::offset_of!(VcpuInfo, evtchn_pending_sel) == 8);
    assert!(size_of::<SharedInfo>() <= 4096);
};
