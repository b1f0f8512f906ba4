//! [`Loopback`]: ports of an interdomain channel from this domain to itself, bound as a device's is. A send on one end runs the
//! handler of the other.
//!
//! Context: task on vcpu 0.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use evtchn::{Action, Binding, EndOfEvent, PortNr};
use percpu::{CpuId, Masked};
use xen_sys::abi::xen::DOMID_SELF;
use xen_sys::hypercall::{evtchn as hypercall, sched};

use crate::{events, timer};

/// How long nothing may come until it counts as quiet.
const QUIET_NS: u64 = 10_000_000;

/// One channel.
struct Channel {
    /// The end that is sent on.
    near: u32,
    /// The end that has the handler.
    far: u32,
    /// `None` where binding it failed.
    binding: Option<Binding>,
}

/// Channels whose events go to one CPU. Their ports are given back when it is dropped.
pub(super) struct Loopback {
    channels: Vec<Channel>,
}

impl Loopback {
    /// So many channels, whose events run `handler` on `cpu`. Nothing is pending on them.
    ///
    /// # Errors
    /// Which call Xen refused, most often as the domain has no more ports.
    pub(super) async fn new<H>(nr: usize, cpu: CpuId, handler: H) -> Result<Loopback, String>
    where
        H: Fn(&Masked, &Action) + Copy + Send + Sync + 'static,
    {
        let mut made = Loopback { channels: Vec::with_capacity(nr) };
        for _ in 0..nr {
            made.add(cpu, handler)?;
        }
        // Binding an interdomain port makes it pending once.
        let mut before = u64::MAX;
        while made.count() != before {
            before = made.count();
            timer::sleep(QUIET_NS).await;
        }
        Ok(made)
    }

    fn add<H>(&mut self, cpu: CpuId, handler: H) -> Result<(), String>
    where
        H: Fn(&Masked, &Action) + Copy + Send + Sync + 'static,
    {
        let refused = |what: &'static str| move |errno| format!("{what}: {errno}");
        let near = hypercall::alloc_unbound(DOMID_SELF, DOMID_SELF).map_err(refused("alloc_unbound"))?;
        let far = hypercall::bind_interdomain(DOMID_SELF, near).inspect_err(|_| close(near));
        let far = far.map_err(refused("bind_interdomain"))?;
        let action = Action::new(EndOfEvent::AtOnce, 0, handler);
        let bound = PortNr::new(far).ok_or_else(|| format!("port {far} is out of range"));
        let bound =
            bound.and_then(|nr| events::get().bind_device(nr, cpu, &action).map_err(|error| format!("{error}")));
        let (binding, outcome) = match bound {
            Ok(binding) => (Some(binding), Ok(())),
            Err(why) => (None, Err(why)),
        };
        self.channels.push(Channel { near, far, binding });
        outcome
    }

    /// Sends one event on each channel.
    #[inline]
    pub(super) fn send(&self) {
        for channel in &self.channels {
            hypercall::send(channel.near).expect("Xen sends on a port that it has just bound");
        }
    }

    /// Events handled since they were made.
    pub(super) fn count(&self) -> u64 {
        self.channels
            .iter()
            .filter_map(|channel| channel.binding.as_ref())
            .map(|binding| binding.action().count())
            .sum()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        for channel in self.channels.drain(..) {
            if let Some(Ok(mut unbinding)) = channel.binding.map(|binding| events::get().unbind_device(binding)) {
                while !unbinding.is_over() {
                    sched::yield_();
                }
            }
            close(channel.far);
            close(channel.near);
        }
    }
}

fn close(port: u32) {
    hypercall::close(port).expect("Xen closes a port that it has opened for us");
}
