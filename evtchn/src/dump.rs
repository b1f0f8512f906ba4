//! What stands in the tables, for people: `VIRQ_DEBUG`, panics and watchdogs. Any context, any CPU; takes no lock,
//! allocates nothing, and what it shows may be changing meanwhile.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::CpuId;

use crate::events::Events;
use crate::hypervisor::Hypervisor;
use crate::intent::Intent;
use crate::passage::TaskInside;
use crate::port::PortNr;

/// What a port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A virq or an ipi.
    Intent(Intent),
    /// A device, whose action has this context.
    Device(usize),
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortKind::Intent(intent) => intent.fmt(f),
            PortKind::Device(context) => write!(f, "device{context}"),
        }
    }
}

/// One port as it was a moment ago. Prints as `port=3 kind=timer pending=0 masked=0 linked=0 count=17`.
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
    /// Whether it stands in a vcpu's queue; never with the 2-level ABI.
    pub linked: bool,
    /// Events handled: by this CPU since boot for an intent, by the action for a device.
    pub count: u64,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [pending, masked, linked] = [self.pending, self.masked, self.linked].map(u8::from);
        let PortState { nr, kind, count, .. } = self;
        write!(f, "port={nr} kind={kind} pending={pending} masked={masked} linked={linked} count={count}")
    }
}

impl<H: Hypervisor> Events<H> {
    /// The ports that `cpu` owns, in order. Looks at every slot of the port table.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn ports_racy(&self, cpu: CpuId) -> impl Iterator<Item = PortState> {
        let of = self.cpus.on(cpu);
        let section = TaskInside::enter(|| &self.cpus.mine().passage);
        self.devices.reached().filter_map(move |nr| {
            let found = self.devices.lookup(nr, &section.inside).map(|found| found.action);
            let device = || found.filter(|action| action.cpu_racy() == Some(cpu));
            let (kind, count) = match of.table.intent_of(nr) {
                Some(intent) => (PortKind::Intent(intent), of.counters.by_intent[intent.index()].get()),
                None => device().map(|action| (PortKind::Device(action.context()), action.count()))?,
            };
            Some(PortState {
                nr,
                kind,
                pending: self.abi.is_pending_racy(nr),
                masked: self.abi.is_masked_racy(nr),
                linked: self.abi.is_linked_racy(nr),
                count,
            })
        })
    }
}
