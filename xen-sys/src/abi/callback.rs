//! callback.h: entry points that Xen calls.
//!
//! Contexts: any; plain data.
#![forbid(unsafe_code)]

/// Events: the upcall.
pub const CALLBACKTYPE_event: u16 = 0;
/// Xen could not restore the guest's segments.
pub const CALLBACKTYPE_failsafe: u16 = 1;
/// `syscall` from 64-bit user mode.
pub const CALLBACKTYPE_syscall: u16 = 2;
/// NMI.
pub const CALLBACKTYPE_nmi: u16 = 4;
/// `sysenter` from 32-bit user mode.
pub const CALLBACKTYPE_sysenter: u16 = 5;
/// `syscall` from 32-bit user mode.
pub const CALLBACKTYPE_syscall32: u16 = 7;

/// Mask upcalls on entry; events and NMIs always do.
pub const CALLBACKF_mask_events: u16 = 1;

/// [`CallbackRegister`].
pub const CALLBACKOP_register: u32 = 0;
/// [`CallbackUnregister`].
pub const CALLBACKOP_unregister: u32 = 1;

/// Registers one callback for this vcpu. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct CallbackRegister {
    /// `CALLBACKTYPE_*`.
    pub r#type: u16,
    /// `CALLBACKF_*`.
    pub flags: u16,
    /// Entry point.
    pub address: u64,
}

/// Unregisters one callback of this vcpu. Argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct CallbackUnregister {
    /// `CALLBACKTYPE_*`.
    pub r#type: u16,
    /// Padding.
    pub _unused: u16,
}
