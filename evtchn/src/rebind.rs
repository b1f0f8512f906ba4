//! Binding a CPU's intents: at bring-up, and again in every new life of the domain. One path for both.
//!
//! Each CPU does it for itself, so in a resume all of them work at the same time and write nothing but their own
//! lines. It has two halves with a hypercall of the caller's between them: [`Events::plan`] puts the requests into a
//! batch, which may carry more that this vcpu needs, and [`Events::record`] takes the ports out of the answers.
//! Whether the batch asks Xen for a port, or has one that another CPU was given for this one, is the batch's affair.
//!
//! Context: task or entry code of the CPU in question, upcalls masked. No lock, no allocation.

use arrayvec::ArrayVec;
use percpu::{CpuId, Masked, current};
use xen_sys::abi::event_channel::EVTCHN_FIFO_PRIORITY_MAX;
use xen_sys::abi::xen::VcpuInfo;

use crate::abi::AbiKind;
use crate::error::BindError;
use crate::events::Events;
use crate::hypervisor::{Answers, Binds, Hypervisor};
use crate::intent::{Intent, Ipi};
use crate::port::{Incarnation, Port, PortNr};

/// What a CPU has asked for, and where the answers will be.
#[must_use = "the ports that the batch binds are lost unless they are recorded"]
pub struct Plan<B: Binds> {
    cpu: CpuId,
    incarnation: Incarnation,
    introduced: Option<B::Call>,
    wanted: ArrayVec<(Intent, B::Token), { Intent::COUNT }>,
}

impl<H: Hypervisor> Events<H> {
    /// What `cpu` wants bound in every life of the domain.
    pub fn intents(&self, cpu: CpuId) -> impl Iterator<Item = Intent> {
        self.handlers.intents(cpu)
    }

    /// Forgets this CPU's ports and asks `batch` to bind all of its intents.
    ///
    /// The CPU's `vcpu_info` must be registered by the time that the batch binds; the same batch may do it first.
    /// # Errors
    /// `BatchFull`; the batch is not to be issued then.
    pub fn plan<B: Binds>(&self, masked: &Masked, batch: &mut B) -> Result<Plan<B>, BindError> {
        let cpu = current();
        let mine = self.cpus.on(cpu);
        mine.table.clear(masked);
        mine.own.clear(masked);
        let incarnation = self.incarnation();
        // First of all: an event for a vcpu whose control block Xen does not know is dropped.
        let introduced = match mine.own.introduce(incarnation) {
            None => None,
            Some(block) => {
                // SAFETY: empty, and it lives as long as the kernel's `Events`.
                let call = unsafe { batch.init_control(cpu, self.xen.place_of(block)) };
                if call.is_none() {
                    mine.own.forget();
                    return Err(BindError::BatchFull { cpu });
                }
                call
            }
        };
        let mut wanted = ArrayVec::new();
        for intent in self.handlers.intents(cpu) {
            let token = match intent {
                Intent::Virq(virq) => batch.bind_virq(virq, cpu),
                Intent::Ipi(_) => batch.bind_ipi(cpu),
            };
            let Some(token) = token else { return Err(BindError::BatchFull { cpu }) };
            // There are never more intents than `Intent::COUNT`.
            wanted.push((intent, token));
        }
        Ok(Plan { cpu, incarnation, introduced, wanted })
    }

    /// Takes the ports that were bound for `plan` out of `answers`, makes them known and unmasks them. `flags` is this
    /// CPU's registered `vcpu_info`.
    ///
    /// From then on ipis reach this CPU. Work that was posted to it earlier was not announced, so it must now look at
    /// its inbox once: see [`Events::send_ipi`] for why nothing is left there.
    /// # Errors
    /// The first of any; what had been bound is closed again.
    pub fn record<B: Binds>(
        &self,
        masked: &Masked,
        flags: &VcpuInfo,
        plan: Plan<B>,
        answers: &impl Answers<B>,
    ) -> Result<(), BindError> {
        let (cpu, incarnation) = (plan.cpu, plan.incarnation);
        let mine = self.cpus.on(cpu);
        if cpu != current()
            || incarnation != self.incarnation()
            || incarnation == Incarnation::NONE
            || !self.abi.is_attached()
        {
            return Err(BindError::StalePlan { cpu });
        }

        let mut bound: ArrayVec<(Intent, PortNr), { Intent::COUNT }> = ArrayVec::new();
        let mut failed = None;
        if let Some(Err(errno)) = plan.introduced.map(|call| answers.done(call)) {
            mine.own.forget();
            failed = Some(BindError::Fifo { cpu, what: "init_control", errno });
        }
        for (intent, token) in plan.wanted {
            match answers.port(token) {
                Err(errno) => failed = failed.or(Some(BindError::Refused { cpu, intent, errno })),
                Ok(nr) => {
                    let good = PortNr::new(nr)
                        .filter(|nr| nr.index() < self.abi.capacity())
                        .filter(|nr| bound.iter().all(|(_, other)| other != nr));
                    match good {
                        Some(nr) => bound.push((intent, nr)),
                        None => failed = failed.or(Some(BindError::BadPort { cpu, intent, nr })),
                    }
                }
            }
        }
        for (_, nr) in &bound {
            if let (None, Err(errno)) = (failed, self.reach(*nr)) {
                failed = Some(BindError::Fifo { cpu, what: "expand_array", errno });
            }
        }
        if let Some(error) = failed {
            for (_, nr) in bound {
                // A port that cannot be closed is lost until the domain ends; the first error is the one to report.
                let _ = self.xen.close(nr);
            }
            return Err(error);
        }

        for (intent, nr) in &bound {
            mine.table.publish(masked, *intent, Port { nr: *nr, incarnation });
            mine.own.add(*nr);
        }
        mine.table.set_ready(masked, incarnation);
        for (_, nr) in &bound {
            self.unmask_own_nr(masked, flags, *nr);
        }
        Ok(())
    }

    /// With the FIFO ABI, asks `batch` to let this CPU's IPIs come before all else: what waits on them waits for other CPUs
    /// too, most of all a rendezvous. After [`Events::record`], and so not by the same batch: the port is one of its answers.
    /// `None`: there is nothing to ask for.
    ///
    /// # Errors
    /// `BatchFull`; without it all works, in another order.
    pub fn plan_priority<B: Binds>(&self, _masked: &Masked, batch: &mut B) -> Result<Option<B::Call>, BindError> {
        let cpu = current();
        match (self.abi.kind(), self.cpus.on(cpu).table.port_of_racy(Intent::Ipi(Ipi::Call))) {
            (AbiKind::Fifo, Some(port)) => {
                let call = batch.set_priority(port.nr, EVTCHN_FIFO_PRIORITY_MAX);
                call.map(Some).ok_or(BindError::BatchFull { cpu })
            }
            _ => Ok(None),
        }
    }
}
