//! Xen's public ABI as a 64-bit PV guest uses it, the hypercalls, and the atomics that the whole kernel stands on.
//!
//! Owns three things and decides nothing:
//!
//! - [`abi`]: types and constants, one module per public header, spelled as Xen spells them. `tests/abi.rs` compares
//!   every size, offset and value with the real headers of Xen 4.17.
//! - [`hypercall`]: the `syscall` stubs, one typed function per operation that we use or that the FIFO ABI needs next,
//!   and the multicall [`hypercall::Batch`].
//! - [`primitive`]: atomics and cells that become loom's under `cfg(loom)`. They are here, at the very bottom, because
//!   the pages shared with Xen are made of them.
//!
//! Contexts: everything works on any vcpu in any context unless an item says otherwise; nothing here locks or
//! allocates.
//!
//! Turned down: generating the types with bindgen. Its output has plain integers where Xen writes behind our back, so
//! a `&SharedInfo` would be unsound, and it has no place for the units and rules that the headers state only in prose.
#![no_std]

pub mod abi;
pub mod errno;
pub mod hypercall;
pub mod primitive;

pub use errno::Errno;
