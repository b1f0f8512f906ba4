//! What many vcpus do together.
//!
//! - [`Mail`]: work for another CPU: a kind of wish, or a call ([`inbox`], [`call`]).
//! - [`Rendezvous`]: every other vcpu waits while vCPU 0 works ([`rendezvous`]).
//!
//! What this crate needs of the kernel it asks for in small traits: [`Delivery`], [`Relax`], [`Clock`]. It knows no ports, no
//! page tables and no tasks.
#![cfg_attr(not(test), no_std)]

pub mod call;
pub mod inbox;
mod mail;
mod phase;
mod relax;
pub mod rendezvous;

pub use call::{Busy, CallNode, Pending};
pub use inbox::{Inbox, Kind, Kinds};
pub use mail::{Delivery, Mail};
pub use phase::Outcome;
pub use relax::{Backoff, Clock, Patience, Relax};
pub use rendezvous::{Awaited, Lead, Missing, Parked, Rendezvous};
