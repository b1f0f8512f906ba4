//! [`Ends`]: an interdomain channel from this domain to itself. What is sent on its near end is an event of its far one, which is bound as a
//! device's port is.
//!
//! Owns opening and closing; who handles the events, and for how long, is the caller's. Context: task. Suspend: the channel is gone in a new
//! domain, and its numbers are others' then.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use evtchn::{Action, Binding, PortNr};
use percpu::CpuId;
use xen_sys::abi::xen::DOMID_SELF;
use xen_sys::hypercall::evtchn as hypercall;

use crate::events;

/// Both ends, open.
pub(crate) struct Ends {
    /// What is sent on.
    pub(crate) near: u32,
    /// What has the handler. Binding it makes it pending once.
    pub(crate) far: PortNr,
}

impl Ends {
    /// Opens a channel. Two hypercalls.
    ///
    /// # Errors
    /// Which call Xen refused, most often as the domain has no more ports.
    pub(crate) fn open() -> Result<Ends, String> {
        let near =
            hypercall::alloc_unbound(DOMID_SELF, DOMID_SELF).map_err(|errno| format!("alloc_unbound: {errno}"))?;
        let far = hypercall::bind_interdomain(DOMID_SELF, near).inspect_err(|_| close(near));
        let far = far.map_err(|errno| format!("bind_interdomain: {errno}"))?;
        let Some(far) = PortNr::new(far) else {
            close(far);
            close(near);
            return Err(format!("port {far} is out of range"));
        };
        Ok(Ends { near, far })
    }

    /// Opens a channel and binds its far end to `action` on `cpu`.
    ///
    /// # Errors
    /// As for [`open`](Ends::open), or why it cannot be bound. Nothing is left open.
    pub(crate) fn open_bound(cpu: CpuId, action: &Arc<Action>) -> Result<(Ends, Binding), String> {
        let ends = Ends::open()?;
        match events::get().bind_device(ends.far, cpu, action) {
            Ok(binding) => Ok((ends, binding)),
            Err(error) => {
                ends.close();
                Err(format!("{error}"))
            }
        }
    }

    /// Closes it, in the life of the domain in which it was opened. The far end is bound to nothing any more.
    pub(crate) fn close(self) {
        close(self.far.get());
        close(self.near);
    }
}

fn close(port: u32) {
    hypercall::close(port).expect("Xen closes a port that it has opened for us");
}
