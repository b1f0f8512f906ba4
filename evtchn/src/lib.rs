//! Event channels: what each CPU has bound, and the way of an event from Xen to its handler.
//!
//! ```text
//! upcall stub → Events::demux → Abi::take_pending → intent or action → handler
//! ```
//!
//! - A CPU's virqs and ipis are *intents* ([`Intent`], `handlers.rs`). Ports follow from them, at bring-up and in every
//!   new life of the domain (`rebind.rs`), and stand in the CPU's own table (`table.rs`).
//! - Device ports stand in one table for all CPUs (`port_table.rs`, `device.rs`), with what runs for them (`action.rs`). They
//!   move between CPUs while they fire (`moving.rs`), and no one of them can take a CPU for itself (`storm.rs`).
//! - What is unbound is freed, and its port bound anew, once no upcall can still be using it (`passage.rs`).
//! - The ABIs: which bits mean what, and in which order they are touched, is in `two_level.rs` and in `fifo/`; `abi.rs`
//!   knows which of them is in use.
//! - Tables with an entry for each port grow by pieces (`chunks.rs`).
//! - A [`Port`] knows its life of the domain, so a send on an old one does nothing (`send.rs`).
//!
//! All of it runs on the host too, against a fake [`Hypervisor`].
#![cfg_attr(not(test), no_std)]

extern crate alloc;
#[cfg(all(not(test), not(target_os = "none")))]
extern crate std;

mod abi;
mod action;
mod bare;
mod chunks;
mod counters;
mod demux;
mod device;
mod dump;
mod error;
mod events;
mod fifo;
mod handlers;
#[cfg(not(target_os = "none"))]
pub mod hosted;
mod hotplug;
mod hypervisor;
mod intent;
mod lasting;
mod moving;
mod mute;
mod passage;
mod port;
mod port_table;
mod rebind;
mod send;
mod shared_page;
mod storm;
mod table;
mod two_level;

pub use abi::AbiKind;
pub use action::{Action, EndOfEvent};
pub use bare::FifoPlace;
pub use counters::CpuCounts;
pub use demux::Upcall;
pub use device::{Binding, Unbinding};
pub use dump::{Asks, BoundTo, PortKind, PortState, Status, Step, Survey};
pub use error::{AttachError, BindError, DeviceError, SendOutcome};
pub use events::{Events, Ports};
pub use handlers::{Handler, Handlers};
pub use hypervisor::{Answers, Binds, Hypervisor, Place, Xen};
pub use intent::{Intent, Ipi, Virq};
pub use moving::Moving;
pub use port::{Incarnation, Port, PortNr};
pub use rebind::Plan;
pub use storm::{BURST, end_delay_ns};
