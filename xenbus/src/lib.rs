//! The xenstore client of the kernel, and what is spoken over it.
//!
//! Owns: the one connection to xenstored that a domain has (a page of two 1 KiB rings, and a port), the requests
//! on their way, the watches, and the protocols of `control/shutdown`, `control/sysrq`, `cpu/N/availability` and
//! `device/suspend/event-channel`. The device state machine will stand beside it.
//!
//! ```text
//!   shutdown, sysrq,    what we hear                   tasks
//!   vcpus
//!   data,
//!   suspend_channel     what we say                    tasks
//!   scope, take, watch  operations as futures          tasks
//!   store, quiesce      Store, its pump, its gate      tasks; on_event() in the upcall
//!   engine, gate        who may send, who gets what    under the store's lock
//!   calls, watch_table  requests and watches           plain data, as are counters
//!   assemble, wire      bytes and messages             plain data
//!   ring                the shared page                under the store's lock
//! ```
//!
//! Contexts: everything is called from tasks, on any CPU; only [`Store::on_event`] may be called in an upcall, and
//! it takes no lock. One task per store runs [`Store::pump`], and only that task moves bytes. All that touches the ring
//! page does so under the store's lock: the pump, and whoever ends a quiesce ([`Quiet`]), which after a restore throws away
//! what is left in the reply ring. While the store is quiet, the page is the kernel's too (`quiesce` says for what).
//!
//! Turned down: letting each requesting task write the ring itself. It would spare a wake-up per request, and make
//! every task a possible owner of a half-written message at the moment of a suspend.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(all(not(loom), any(test, feature = "fake")))]
extern crate std;

mod assemble;
mod calls;
mod counters;
pub mod data;
mod engine;
mod error;
#[cfg(all(not(loom), any(test, feature = "fake")))]
pub mod fake;
mod quiesce;
pub mod ring;
mod scope;
pub mod shutdown;
mod store;
pub mod suspend_channel;
pub mod sysrq;
mod take;
pub mod vcpus;
mod watch;
mod watch_table;
pub mod wire;

pub use assemble::{Assembler, Incoming};
pub use calls::LATE_MAX;
pub use counters::{Counters, Diagnosis, Oddity};
pub use engine::{SENT_MAX, TRANSACTIONS_MAX};
pub use error::{Cause, Refusal, RingFault, StoreError, Text};
pub use quiesce::{AlreadyQuiescing, Quiet};
pub use ring::Ring;
pub use scope::{Scope, TRIES_MAX};
pub use store::{Doorbell, Store};
pub use watch::{Change, Watch};
pub use watch_table::QUEUE_MAX;
