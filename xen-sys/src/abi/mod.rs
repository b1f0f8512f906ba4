//! Types and constants of Xen's public headers, one module per header.
//!
//! Constants are spelled exactly as Xen spells them. A struct is the CamelCase of its C tag with Xen's field names:
//! `struct evtchn_bind_virq` is [`event_channel::EvtchnBindVirq`]. Everything is `#[repr(C)]` and is compared with the
//! real headers by `tests/abi.rs`; what is left out of here is not used by a 64-bit PV guest of ours.
//!
//! Two kinds of structs:
//! - *shared*: Xen, or a daemon in dom0, writes it at any time. Made of atomics, so that a plain `&` to it is sound;
//!   bytes that nobody reads are [`crate::primitive::Opaque`].
//! - *argument*: read or written by Xen only inside one hypercall. Plain data; the stub passes its address.
//!
//! Contexts: any; plain data. Turned down: Rust-style names with newtypes here. Newtypes belong to the crates that give
//! them meaning, and a reader who greps Xen for a name should land on it.
#![expect(non_upper_case_globals, reason = "spelled as Xen spells them")]
#![expect(non_camel_case_types, reason = "C's scalar typedefs are spelled as Xen spells them")]

pub mod arch;
pub mod callback;
pub mod elfnote;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod io;
pub mod memory;
pub mod sched;
pub mod vcpu;
pub mod version;
pub mod xen;

/// `XEN_GUEST_HANDLE(T)`: a pointer that Xen follows inside a hypercall. Null where Xen allows none.
///
/// Whoever passes one to Xen says why the memory may be read or written; the type only carries the address.
#[repr(transparent)]
#[derive(Debug)]
pub struct GuestHandle<T>(*mut T);

impl<T> GuestHandle<T> {
    /// The null handle.
    pub const NULL: Self = Self(core::ptr::null_mut());

    /// A handle to memory that Xen may write, or only reads where the operation says so.
    ///
    /// The provenance is exposed, because Xen finds the memory by its address alone.
    pub fn new(ptr: *mut T) -> Self {
        let _ = ptr.expose_provenance();
        Self(ptr)
    }

    /// The pointer inside.
    pub const fn as_ptr(self) -> *mut T {
        self.0
    }
}

impl<T> Clone for GuestHandle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for GuestHandle<T> {}

impl<T> Default for GuestHandle<T> {
    fn default() -> Self {
        Self::NULL
    }
}
