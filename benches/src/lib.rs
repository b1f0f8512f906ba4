//! Host benches: `cargo bench -p benches`. There is nothing in this library; the benches are in `benches/`.
//!
//! They compare versions of our own code on one machine. What an event costs under Xen, and against Linux, only a guest
//! can tell.
#![forbid(unsafe_code)]
