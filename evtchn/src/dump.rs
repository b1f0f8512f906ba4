//! What stands in the tables, for people: `VIRQ_DEBUG`, panics and watchdogs. Any context, any CPU; takes no lock,
//! allocates nothing, and what it shows may be changing meanwhile.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::CpuId;

use crate::events::Events;
use crate::hypervisor::Hypervisor;
use crate::intent::Intent;
use crate::port::PortNr;

/// What a port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A virq or an ipi.
    Intent(Intent),
    /// A device, whose action has this context.
    Device(usize),
    /// Nothing: it is being unbound.
    Unbound,
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortKind::Intent(intent) => intent.fmt(f),
            PortKind::Device(context) => write!(f, "device{context}"),
            PortKind::Unbound => f.write_str("unbound"),
        }
    }
}

/// One port as it was a moment ago. Prints as `port=3 kind=timer pending=0 masked=0 count=17`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortState {
    /// Its number.
    pub nr: PortNr,
    /// What it is for.
    pub kind: PortKind,
    /// Whether an event waits.
    pub pending: bool,
    /// Whether it is masked.
    pub masked: bool,
    /// Events handled: by this CPU since boot for an intent, by the action for a device.
    pub count: u64,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pending, masked) = (u8::from(self.pending), u8::from(self.masked));
        write!(f, "port={} kind={} pending={pending} masked={masked} count={}", self.nr, self.kind, self.count)
    }
}

impl<H: Hypervisor> Events<H> {
    /// The ports that `cpu` owns, in order.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn ports_racy(&self, cpu: CpuId) -> impl Iterator<Item = PortState> {
        let of = self.cpus.on(cpu);
        of.own.iter_racy().map(move |nr| {
            let (kind, count) = match (of.table.intent_of(nr), self.devices.lookup(nr)) {
                (Some(intent), _) => (PortKind::Intent(intent), of.counters.by_intent[intent.index()].get()),
                (None, Some(action)) => (PortKind::Device(action.context()), action.count()),
                (None, None) => (PortKind::Unbound, 0),
            };
            PortState { nr, kind, pending: self.abi.is_pending_racy(nr), masked: self.abi.is_masked_racy(nr), count }
        })
    }
}
