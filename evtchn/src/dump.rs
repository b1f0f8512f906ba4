//! What stands in the tables, for people: `VIRQ_DEBUG`, sysrq, panics. Takes no lock, allocates nothing, and what it shows
//! may be changing meanwhile.
//!
//! | | shows | context |
//! |---|---|---|
//! | [`Events::ports_racy`] | one CPU's ports as our tables have them | any, on any CPU |
//! | [`Survey`] | every port that Xen or our tables know, as both have it | task: it asks Xen |
//!
//! A line has the columns of Xen's debug key `e` in its order (`domain_dump_evtchn_info` in xen/common/event_channel.c),
//! then what only we know:
//!
//! ```text
//! (XEN)        3 [0/0/  -   ]: s=5 n=0 x=0 v=0
//! port=3    pending=0 masked=0 linked=0 state=virq cpu=0 virq=0 kind=timer count=17
//! ```
//!
//! What Xen prints for `s` is not in its ABI, so we say it in words; `x`, whether Xen itself listens, it tells nobody.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::CpuId;
use xen_sys::Errno;
use xen_sys::abi::xen::DOMID_SELF;
use xen_sys::hypercall;
pub use xen_sys::hypercall::evtchn::{BoundTo, Status};

use crate::events::Events;
use crate::hypervisor::{Hypervisor, Xen};
use crate::intent::Intent;
use crate::passage::TaskInside;
use crate::port::PortNr;

/// Asks Xen what it knows of a port. Apart from [`Hypervisor`], since nothing but a survey asks. Context: task; Xen reads it
/// under the domain's event lock.
pub trait Asks {
    /// `EVTCHNOP_status`.
    ///
    /// # Errors
    /// Xen's; `EINVAL` if it has neither this port nor any above.
    fn status(&self, nr: PortNr) -> Result<Status, Errno>;
}

impl Asks for Xen {
    fn status(&self, nr: PortNr) -> Result<Status, Errno> {
        hypercall::evtchn::status(DOMID_SELF, nr.get())
    }
}

/// What a port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A virq or an ipi.
    Intent(Intent),
    /// A device, whose action has this context.
    Device(usize),
    /// Nothing that our tables have; it is polled, says who does so.
    Polled,
    /// Nothing: our tables do not have it.
    None,
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortKind::Intent(intent) => intent.fmt(f),
            PortKind::Device(context) => write!(f, "device{context}"),
            PortKind::Polled => f.write_str("polled"),
            PortKind::None => f.write_str("none"),
        }
    }
}

/// One port as it was a moment ago. Prints as the head of this file shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortState {
    /// Its number.
    pub nr: PortNr,
    /// Whether an event waits.
    pub pending: bool,
    /// Whether it is masked.
    pub masked: bool,
    /// Whether it stands in a vcpu's queue; never with the 2-level ABI.
    pub linked: bool,
    /// What Xen says of it, or why it does not; `None` if it was not asked.
    pub xen: Option<Result<Status, Errno>>,
    /// The CPU that has it in our tables.
    pub cpu: Option<CpuId>,
    /// What it is for.
    pub kind: PortKind,
    /// Events handled: by its CPU since boot for an intent, by the action for a device.
    pub count: u64,
}

impl PortState {
    /// The vcpu to which Xen sends its events, if that is not the one that waits for them.
    pub fn astray(&self) -> Option<u32> {
        let (Some(Ok(status)), Some(cpu)) = (self.xen, self.cpu) else { return None };
        (status.bound_to != BoundTo::Closed && status.vcpu != cpu.vcpu()).then_some(status.vcpu)
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [pending, masked, linked] = [self.pending, self.masked, self.linked].map(u8::from);
        // As wide as Xen prints it, so that what follows stands in columns.
        write!(f, "port={:<4} pending={pending} masked={masked} linked={linked}", self.nr)?;
        match self.xen {
            None => {}
            Some(Ok(status)) => write!(f, " state={}", word(status.bound_to))?,
            Some(Err(errno)) => write!(f, " state=refused errno={}", errno.code())?,
        }
        match (self.xen, self.cpu) {
            (Some(Ok(Status { vcpu, bound_to })), _) if bound_to != BoundTo::Closed => write!(f, " cpu={vcpu}")?,
            (_, Some(cpu)) => write!(f, " cpu={cpu}")?,
            (_, None) => {}
        }
        if let Some(Ok(status)) = self.xen {
            match status.bound_to {
                BoundTo::Unbound(dom) => write!(f, " dom={dom}")?,
                BoundTo::Interdomain { dom, port } => write!(f, " dom={dom} peer={port}")?,
                BoundTo::Pirq(pirq) => write!(f, " pirq={pirq}")?,
                BoundTo::Virq(virq) => write!(f, " virq={virq}")?,
                BoundTo::Closed | BoundTo::Ipi | BoundTo::Unknown(_) => {}
            }
        }
        write!(f, " kind={} count={}", self.kind, self.count)?;
        match (self.astray(), self.cpu) {
            (Some(_), Some(cpu)) => write!(f, " awaited_by={cpu}"),
            _ => Ok(()),
        }
    }
}

fn word(bound_to: BoundTo) -> &'static str {
    match bound_to {
        BoundTo::Closed => "closed",
        BoundTo::Unbound(_) => "unbound",
        BoundTo::Interdomain { .. } => "interdomain",
        BoundTo::Pirq(_) => "pirq",
        BoundTo::Virq(_) => "virq",
        BoundTo::Ipi => "ipi",
        BoundTo::Unknown(_) => "unknown",
    }
}

impl<H: Hypervisor> Events<H> {
    /// The ports that `cpu` owns, in order. Looks at every slot of the port table.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn ports_racy(&self, cpu: CpuId) -> impl Iterator<Item = PortState> {
        self.devices.reached().filter_map(move |nr| {
            let (kind, count) = self.intent_on(cpu, nr).or_else(|| {
                let (of, kind, count) = self.device_of(nr)?;
                (of == cpu).then_some((kind, count))
            })?;
            Some(self.state_of(nr, None, Some(cpu), kind, count))
        })
    }

    /// `nr` as an intent of `cpu`'s, with its count.
    fn intent_on(&self, cpu: CpuId, nr: PortNr) -> Option<(PortKind, u64)> {
        let of = self.cpus.on(cpu);
        let intent = of.table.intent_of(nr)?;
        Some((PortKind::Intent(intent), of.counters.by_intent[intent.index()].get()))
    }

    /// `nr` as a device's port, with its CPU and its count.
    fn device_of(&self, nr: PortNr) -> Option<(CpuId, PortKind, u64)> {
        let section = TaskInside::enter(|| &self.cpus.mine().passage);
        let action = self.devices.lookup(nr, &section.inside)?.action;
        Some((action.cpu_racy()?, PortKind::Device(action.context()), action.count()))
    }

    fn state_of(
        &self,
        nr: PortNr,
        xen: Option<Result<Status, Errno>>,
        cpu: Option<CpuId>,
        kind: PortKind,
        count: u64,
    ) -> PortState {
        PortState {
            nr,
            pending: self.abi.is_pending_racy(nr),
            masked: self.abi.is_masked_racy(nr),
            linked: self.abi.is_linked_racy(nr),
            xen,
            cpu,
            kind,
            count,
        }
    }
}

impl<H: Hypervisor + Asks> Events<H> {
    /// Begins a walk through every port of the domain, in order.
    pub fn survey(&self) -> Survey<'_, H> {
        let reached = self.devices.reached().last();
        Survey { events: self, next: PortNr::new(1), reached, xen_ended: false }
    }
}

/// What a step of a [`Survey`] has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Step {
    /// A port.
    Port(PortState),
    /// A number that is no port of this domain, neither for Xen nor for us.
    Nothing,
    /// There are no more.
    End,
}

/// A walk through every port of the domain. Each step is short, so that whoever walks can let others run in between: an event
/// channel more or less may come or go meanwhile. Context: task.
pub struct Survey<'a, H> {
    events: &'a Events<H>,
    next: Option<PortNr>,
    /// The last port that our tables could have.
    reached: Option<PortNr>,
    /// Xen has no port from here on.
    xen_ended: bool,
}

impl<H: Hypervisor + Asks> Survey<'_, H> {
    /// Looks at the next number. Costs a hypercall, and a look into the tables of every CPU for a port that Xen sends elsewhere
    /// or does not know.
    pub fn step(&mut self) -> Step {
        let events = self.events;
        let Some(nr) = self.next.filter(|nr| nr.index() < events.abi.capacity()) else { return Step::End };
        let xen = if self.xen_ended { Err(Errno::EINVAL) } else { events.xen.status(nr) };
        self.xen_ended = xen == Err(Errno::EINVAL);
        if self.xen_ended && Some(nr) > self.reached {
            self.next = None;
            return Step::End;
        }
        self.next = PortNr::new(nr.get() + 1);
        let aimed = xen.ok().and_then(|status| CpuId::from_vcpu(status.vcpu)).filter(|cpu| self.is_cpu(*cpu));
        let known = self.intent_of(nr, aimed).or_else(|| events.device_of(nr));
        let (cpu, kind, count) = match known {
            Some((cpu, kind, count)) => (Some(cpu), kind, count),
            None if self.xen_ended || matches!(xen, Ok(Status { bound_to: BoundTo::Closed, .. })) => {
                return Step::Nothing;
            }
            None => (None, PortKind::None, 0),
        };
        // What Xen has no port for is closed.
        let closed = Status { vcpu: 0, bound_to: BoundTo::Closed };
        let xen = if self.xen_ended { Ok(closed) } else { xen };
        Step::Port(events.state_of(nr, Some(xen), cpu, kind, count))
    }

    /// The intent that `nr` carries, on the CPU that Xen sends it to if there is one, or else on any other.
    fn intent_of(&self, nr: PortNr, aimed: Option<CpuId>) -> Option<(CpuId, PortKind, u64)> {
        let events = self.events;
        let on = |cpu: CpuId| {
            // A table that is not ready has numbers of an earlier life.
            let (kind, count) = events.has_ports(cpu).then(|| events.intent_on(cpu, nr))??;
            Some((cpu, kind, count))
        };
        aimed.and_then(on).or_else(|| CpuId::first(events.cpus.nr()).find_map(on))
    }

    fn is_cpu(&self, cpu: CpuId) -> bool {
        cpu.index() < self.events.cpus.nr()
    }
}
