//! The FIFO ABI: each vcpu has queues of pending ports by priority, so an upcall finds its events without searching,
//! and CPUs share no written line but event words that happen to be neighbours.
//!
//! - `word.rs`: a port's flags and link.
//! - `array.rs`: the words of all ports.
//! - `queues.rs`: a CPU's queues, and taking events off them.
//!
//! # How no event is lost
//! Xen sets PENDING and stops if the port is MASKED or LINKED; sets LINKED; links it behind its queue's last port if
//! that is still LINKED, or else writes it as the queue's head and sets the queue's ready bit, and if that was clear,
//! `upcall_pending`. We undo it in the opposite order: clear `upcall_pending`, take the ready bits, read the head, then
//! clear LINKED, the link and PENDING of a word in one step. So whatever Xen appends is either seen as the link, or
//! makes the queue ready anew.

pub(crate) mod array;
pub(crate) mod queues;
pub(crate) mod word;
