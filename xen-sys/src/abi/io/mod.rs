//! io/*.h: pages that a daemon in dom0 shares with the guest, and the protocol over them.
//!
//! Contexts: any. The rings are untrusted input: read an index once, check it, use the copy.
#![forbid(unsafe_code)]

pub mod console;
pub mod xenbus;
pub mod xs_wire;
