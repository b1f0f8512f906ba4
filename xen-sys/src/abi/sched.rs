//! sched.h: giving the processor back, and shutting down.
//!
//! Contexts: any; plain data.
#![forbid(unsafe_code)]

use super::{GuestHandle, event_channel::evtchn_port_t};

/// Let others run.
pub const SCHEDOP_yield: u32 = 0;
/// Unmask upcalls and wait for an event.
pub const SCHEDOP_block: u32 = 1;
/// [`SchedShutdown`].
pub const SCHEDOP_shutdown: u32 = 2;
/// [`SchedPoll`].
pub const SCHEDOP_poll: u32 = 3;
/// Latch the reason of a later shutdown.
pub const SCHEDOP_shutdown_code: u32 = 5;
/// [`SchedWatchdog`].
pub const SCHEDOP_watchdog: u32 = 6;

/// The domain is done.
pub const SHUTDOWN_poweroff: u32 = 0;
/// The domain wants to start again.
pub const SHUTDOWN_reboot: u32 = 1;
/// The domain is ready to be saved.
pub const SHUTDOWN_suspend: u32 = 2;
/// The domain has crashed.
pub const SHUTDOWN_crash: u32 = 3;
/// The domain's watchdog has expired.
pub const SHUTDOWN_watchdog: u32 = 4;
/// The domain wants its Xen state reset.
pub const SHUTDOWN_soft_reset: u32 = 5;
/// The largest valid reason.
pub const SHUTDOWN_MAX: u32 = 5;

/// Ends or suspends the domain. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedShutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// Waits until one of the ports is pending. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedPoll {
    /// The ports; only read.
    pub ports: GuestHandle<evtchn_port_t>,
    /// How many, at most 128.
    pub nr_ports: u32,
    /// Absolute system time, ns; 0: none.
    pub timeout: u64,
}

/// Sets, feeds or stops a watchdog. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedWatchdog {
    /// 0: a new one.
    pub id: u32,
    /// Seconds; 0: stop.
    pub timeout: u32,
}
