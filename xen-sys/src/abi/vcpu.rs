//! vcpu.h: bring-up, timers, and the areas that a vcpu registers for itself.
//!
//! Contexts: any; plain data, except [`VcpuRunstateInfo`], which is shared and made of atomics.
#![forbid(unsafe_code)]

use super::{GuestHandle, xen::VcpuTimeInfo};
use crate::primitive::{
    Opaque,
    sync::atomic::{AtomicU32, AtomicU64},
};
use crate::{array_of, const_unless_loom};

/// Set a vcpu's context, once; argument [`super::arch::VcpuGuestContext`].
pub const VCPUOP_initialise: u32 = 0;
/// Make a vcpu runnable.
pub const VCPUOP_up: u32 = 1;
/// Make a vcpu not runnable.
pub const VCPUOP_down: u32 = 2;
/// 1 if the vcpu is up.
pub const VCPUOP_is_up: u32 = 3;
/// Read a vcpu's runstate into [`VcpuRunstate`].
pub const VCPUOP_get_runstate_info: u32 = 4;
/// [`VcpuRegisterRunstateMemoryArea`].
pub const VCPUOP_register_runstate_memory_area: u32 = 5;
/// [`VcpuSetPeriodicTimer`].
pub const VCPUOP_set_periodic_timer: u32 = 6;
/// Stop the periodic timer.
pub const VCPUOP_stop_periodic_timer: u32 = 7;
/// [`VcpuSetSingleshotTimer`].
pub const VCPUOP_set_singleshot_timer: u32 = 8;
/// Stop the one-shot timer.
pub const VCPUOP_stop_singleshot_timer: u32 = 9;
/// [`VcpuRegisterVcpuInfo`].
pub const VCPUOP_register_vcpu_info: u32 = 10;
/// Send an NMI.
pub const VCPUOP_send_nmi: u32 = 11;
/// [`VcpuRegisterTimeMemoryArea`].
pub const VCPUOP_register_vcpu_time_memory_area: u32 = 13;

/// The vcpu runs.
pub const RUNSTATE_running: u32 = 0;
/// The vcpu could run and waits for a processor.
pub const RUNSTATE_runnable: u32 = 1;
/// The vcpu is blocked.
pub const RUNSTATE_blocked: u32 = 2;
/// The vcpu is down or paused.
pub const RUNSTATE_offline: u32 = 3;

/// In `state_entry_time`: Xen is rewriting the area (with `VMASST_TYPE_runstate_update_flag`).
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

/// In `VcpuSetSingleshotTimer::flags`: refuse a deadline that has passed. Xen 4.17 ignores it.
pub const VCPU_SSHOTTMR_future: u32 = 1;

/// The registered runstate area. Shared: Xen writes it whenever the vcpu is scheduled.
#[repr(C)]
#[derive(Debug)]
pub struct VcpuRunstateInfo {
    /// `RUNSTATE_*`.
    pub state: AtomicU32,
    /// What the C compiler pads with.
    gap: Opaque<u32>,
    /// System time at which the state was entered, ns; with [`XEN_RUNSTATE_UPDATE`].
    pub state_entry_time: AtomicU64,
    /// Time spent in each state, ns.
    pub time: [AtomicU64; 4],
}

impl VcpuRunstateInfo {
    const_unless_loom! {
        /// All zero.
        #[expect(clippy::new_without_default, reason = "an area that Xen fills has no default")]
        pub fn new() -> Self {
            Self {
                state: AtomicU32::new(0),
                gap: Opaque::new(0),
                state_entry_time: AtomicU64::new(0),
                time: array_of!(AtomicU64::new(0)),
            }
        }
    }
}

/// The plain twin of [`VcpuRunstateInfo`], which [`VCPUOP_get_runstate_info`] fills inside the call. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuRunstate {
    /// `RUNSTATE_*`.
    pub state: u32,
    /// System time at which the state was entered, ns.
    pub state_entry_time: u64,
    /// Time spent in each state, ns.
    pub time: [u64; 4],
}

/// Where Xen shall keep a vcpu's runstate. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuRegisterRunstateMemoryArea {
    /// Virtual address of a [`VcpuRunstateInfo`]; null unregisters.
    pub addr: GuestHandle<VcpuRunstateInfo>,
}

/// Starts the periodic timer. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuSetPeriodicTimer {
    /// Period, ns; at least a millisecond.
    pub period_ns: u64,
}

/// Arms the one-shot timer. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuSetSingleshotTimer {
    /// Deadline, absolute system time, ns.
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`.
    pub flags: u32,
}

/// Where a vcpu's `vcpu_info` shall be. Once in a domain's life. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuRegisterVcpuInfo {
    /// The page.
    pub mfn: u64,
    /// Offset in it; a multiple of 8, and the 64 bytes do not leave the page.
    pub offset: u32,
    /// Zero.
    pub rsvd: u32,
}

/// Where Xen shall keep a second copy of a vcpu's clock record. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuRegisterTimeMemoryArea {
    /// Virtual address of a [`VcpuTimeInfo`]; null unregisters.
    pub addr: GuestHandle<VcpuTimeInfo>,
}
