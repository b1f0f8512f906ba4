//! The two devices that every domain has: console and xenstore, whose ports the toolstack gives us in `start_info`.
//!
//! Their other ends are another domain's, so their events end late (`evtchn`, `storm.rs`): a port is masked from its event on
//! until vcpu 0 has run the device's task, and for longer if the daemon rings again and again with nothing behind it.
//!
//! Suspend: the ports are *rebuilt*, by [`connect`]. In between a send finds no port, and does nothing; whoever was not told
//! meanwhile is told once the port is bound. Context of the handlers: upcall.

use alloc::sync::Arc;

use evtchn::{Action, EndOfEvent, Port, PortNr, end_delay_ns};
use percpu::CpuId;
use spin::Once;

use crate::start_info::{self, DevicePorts};
use crate::wait::Flag;
use crate::{console, control, events, executor, timer};

/// One of the two.
struct Device {
    action: Once<Arc<Action>>,
    /// An event has come and is to be ended.
    rang: Flag,
    /// Has the device's task look at its ring. Context: upcall.
    on_event: fn(),
    /// What the daemon has written of the ring's indices, as one number.
    daemon_indices: fn() -> u64,
}

static CONSOLE: Device = Device::new(console::on_event, console::daemon_indices);
static STORE: Device = Device::new(control::on_event, control::daemon_indices);

impl Device {
    const fn new(on_event: fn(), daemon_indices: fn() -> u64) -> Device {
        Device { action: Once::new(), rang: Flag::new(), on_event, daemon_indices }
    }

    /// What runs for its port; made at the first call, with the task that ends its events.
    fn action(&'static self, context: usize) -> &'static Arc<Action> {
        self.action.call_once(|| {
            executor::spawn_own(self.end_events());
            Action::new(EndOfEvent::Late, context, |_, _| {
                (self.on_event)();
                self.rang.set();
            })
        })
    }

    /// Ends each event once the device's task has had its turn: it was made ready first.
    async fn end_events(&'static self) {
        let mut seen = None;
        loop {
            self.rang.wait().await;
            let indices = Some((self.daemon_indices)());
            let fruitful = indices != seen;
            seen = indices;
            let Some(action) = self.action.get() else { continue };
            match end_delay_ns(action, fruitful) {
                0 => {}
                ns => timer::sleep(ns).await,
            }
            events::get().end_of_event(action, percpu::vcpu_info());
        }
    }
}

/// Binds the ports to vcpu 0. Context: vcpu 0, at boot, and again in every new life of the domain.
///
/// # Panics
/// If a port is none: the toolstack's numbers are all we have to live on.
pub(crate) fn connect() {
    let DevicePorts { store, console } = start_info::page().ports();
    for (device, context, port) in [(&CONSOLE, 0, console), (&STORE, 1, store)] {
        let nr = PortNr::new(port).unwrap_or_else(|| panic!("start_info: port {port} is out of range"));
        // The binding is dropped: the port stays bound until the domain is saved.
        if let Err(error) = events::get().bind_device(nr, CpuId::BOOT, device.action(context)) {
            panic!("start_info: port {port}: {error}");
        }
    }
    // An event that came while the port was being bound may have been swallowed, and the peers may not have heard of us.
    console::port_is_bound();
    control::port_is_bound();
}

/// The console's port, if it is bound.
pub(crate) fn console_port() -> Option<Port> {
    CONSOLE.action.get()?.port()
}

/// The store's port, if it is bound.
pub(crate) fn store_port() -> Option<Port> {
    STORE.action.get()?.port()
}
