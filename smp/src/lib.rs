//! What many vcpus do together.
//!
//! - [`bring_up`]: starts a vcpu. [`Hotplug`]: which ones are up, and how one goes down.
//! - [`Mail`]: work for another CPU, or for many: a wish of some [`Kind`], or a call ([`inbox`], [`call`]).
//! - [`Rendezvous`]: every other vcpu waits while vCPU 0 works ([`rendezvous`]).
//! - [`order`], [`suspend`]: the order of suspend and resume, and its driver.
//! - [`RollCall`]: the proof that all of them are there.
//! - [`trace`]: when each of them reached what.
//!
//! What this crate needs of the kernel it asks for in small traits: [`Delivery`], [`Relax`], [`Gate`], [`Clock`], and in
//! [`suspend`] the steps. It knows no ports, no page tables and no tasks.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod arrivals;
pub mod bring_up;
mod broadcast;
pub mod call;
mod hotplug;
pub mod inbox;
mod mail;
mod missing;
pub mod order;
mod pending;
mod phase;
mod relax;
pub mod rendezvous;
mod roll_call;
pub mod suspend;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod trace;
mod watch;

pub use arrivals::Arrivals;
pub use call::{CallNode, NotPosted};
pub use hotplug::{Hotplug, WayUp};
pub use inbox::{Inbox, Kind, Kinds};
pub use mail::{Delivery, Down, Mail};
pub use missing::{Awaited, Missing};
pub use pending::Pending;
pub use phase::{Generation, Outcome};
pub use relax::{Backoff, Clock, Gate, Patience, Relax};
pub use rendezvous::{Lead, Parked, Rendezvous};
pub use roll_call::{Progress, RollCall};
pub use watch::Limits;
