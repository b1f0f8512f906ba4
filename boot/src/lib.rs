//! From Xen's entry to values that the rest of the kernel can use.
//!
//! - `notes.rs`: the ELF notes by which the domain builder knows what to do with the image.
//! - `entry.rs`: the first instructions, on the boot CPU and on every other.
//! - `image.rs`: where the linker put what (`link.ld`).
//! - [`BootInfo`]: `start_info`, checked and copied.
//! - [`Cmdline`]: the command line, parsed; unknown keys named, malformed values refused.
//!
//! Context: everything here runs once, on the boot CPU, with upcalls masked, before there is a heap.
#![cfg_attr(not(test), no_std)]

mod cmdline;
mod info;

#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
pub mod image;
#[cfg(target_os = "none")]
mod notes;

pub use cmdline::{Abi, BadValue, Cmdline, LogLevel, Resume, SuspendVia, Trace, Workload};
pub use info::{BootInfo, CmdlineText, RingFrames, StartInfoError};

#[cfg(target_os = "none")]
pub use notes::{P2M_BASE, VIRT_BASE};

#[cfg(target_os = "none")]
pub use entry::{SecondaryMain, secondary_entry};
