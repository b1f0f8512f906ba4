//! The two devices that every domain has: console and xenstore, whose ports the toolstack gives us in `start_info`.
//!
//! Suspend: the ports are *rebuilt*, by [`connect`]. In between a send finds no port, and does nothing; whoever was not told
//! meanwhile is told once the port is bound. Context of the handlers: upcall.

use evtchn::{Action, Port, PortNr};
use percpu::CpuId;

use crate::start_info::{self, DevicePorts};
use crate::{console, control, events};

static CONSOLE: Action = Action::new(|_, _| console::on_event(), 0);
static STORE: Action = Action::new(|_, _| control::on_event(), 1);

/// Binds the ports to vcpu 0. Context: vcpu 0, at boot, and again in every new life of the domain.
///
/// # Panics
/// If a port is none: the toolstack's numbers are all we have to live on.
pub(crate) fn connect() {
    let DevicePorts { store, console } = start_info::page().ports();
    for (action, port) in [(&CONSOLE, console), (&STORE, store)] {
        let nr = PortNr::new(port).unwrap_or_else(|| panic!("start_info: port {port} is out of range"));
        if let Err(error) = events::get().bind_device(nr, CpuId::BOOT, action) {
            panic!("start_info: port {port}: {error}");
        }
    }
    // An event that came while the port was being bound may have been swallowed, and the peers may not have heard of us.
    console::port_is_bound();
    control::port_is_bound();
}

/// The console's port, if it is bound.
pub(crate) fn console_port() -> Option<Port> {
    CONSOLE.port()
}

/// The store's port, if it is bound.
pub(crate) fn store_port() -> Option<Port> {
    STORE.port()
}
