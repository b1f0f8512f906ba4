//! [`Loopback`]: channels from this domain to itself ([`Ends`]) whose far ends have a handler: a send on one end runs that of the other.
//!
//! Context: task on vcpu 0.

use alloc::string::String;
use alloc::vec::Vec;

use evtchn::{Action, Binding, EndOfEvent};
use percpu::{CpuId, Masked};
use xen_sys::hypercall::{evtchn as hypercall, sched};

use crate::loopback::Ends;
use crate::{events, timer};

/// How long nothing may come until it counts as quiet.
const QUIET_NS: u64 = 10_000_000;

/// One channel.
struct Channel {
    ends: Ends,
    binding: Binding,
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
        let (ends, binding) = Ends::open_bound(cpu, &Action::new(EndOfEvent::AtOnce, 0, handler))?;
        self.channels.push(Channel { ends, binding });
        Ok(())
    }

    /// Sends one event on each channel.
    #[inline]
    pub(super) fn send(&self) {
        for channel in &self.channels {
            hypercall::send(channel.ends.near).expect("Xen sends on a port that it has just bound");
        }
    }

    /// Events handled since they were made.
    pub(super) fn count(&self) -> u64 {
        self.channels.iter().map(|channel| channel.binding.action().count()).sum()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        for Channel { ends, binding } in self.channels.drain(..) {
            // Refused in a new life of the domain, where the numbers are others'.
            let Ok(mut unbinding) = events::get().unbind_device(binding) else { continue };
            while !unbinding.is_over() {
                sched::yield_();
            }
            ends.close();
        }
    }
}
