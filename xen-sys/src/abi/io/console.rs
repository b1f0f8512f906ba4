//! io/console.h: the PV console's ring page.
//!
//! Shared: the console daemon writes it at any time, so all of it is atomics. Contexts: any.

use crate::primitive::sync::atomic::{AtomicU8, AtomicU32};
use crate::{array_of, const_unless_loom};

/// The console's page. Shared. Indices run freely; mask them with the ring's length minus one.
#[repr(C)]
#[derive(Debug)]
pub struct XenconsInterface {
    /// Bytes to the guest.
    pub r#in: [AtomicU8; 1024],
    /// Bytes from the guest.
    pub out: [AtomicU8; 2048],
    /// The guest has read up to here.
    pub in_cons: AtomicU32,
    /// The daemon has written up to here.
    pub in_prod: AtomicU32,
    /// The daemon has read up to here.
    pub out_cons: AtomicU32,
    /// The guest has written up to here.
    pub out_prod: AtomicU32,
}

impl XenconsInterface {
    const_unless_loom! {
        /// All zero: both rings empty. About 3 KiB. Under loom far more: call it on a thread that
        /// `loom::thread::Builder` gave a larger stack.
        #[expect(clippy::new_without_default, reason = "a page of the daemon's has no default")]
        pub fn new() -> Self {
            Self {
                r#in: array_of!(AtomicU8::new(0)),
                out: array_of!(AtomicU8::new(0)),
                in_cons: AtomicU32::new(0),
                in_prod: AtomicU32::new(0),
                out_cons: AtomicU32::new(0),
                out_prod: AtomicU32::new(0),
            }
        }
    }
}
