//! Device ports: numbers that a peer or the toolstack gave, bound to an [`Action`] on a CPU of choice.
//!
//! After a restore all of them are gone; their owners bind the new numbers with the same actions. Context: task, on any
//! CPU. Lock-free, and a few hypercalls: binding is rare. Moving a port to another CPU has a file of its own (`moving.rs`).
#![forbid(unsafe_code)]

use alloc::sync::Arc;

use percpu::CpuId;

use crate::action::Action;
use crate::error::DeviceError;
use crate::events::Events;
use crate::hypervisor::Hypervisor;
use crate::passage::Grace;
use crate::port::{Port, PortNr};

/// An action on its port. One for each, so what is done to it is done by one task at a time.
///
/// Dropping it leaves the action bound, for as long as this life of the domain lasts.
#[derive(Debug)]
pub struct Binding {
    pub(crate) action: Arc<Action>,
    pub(crate) port: Port,
    pub(crate) cpu: CpuId,
    /// Other CPUs look at its port too.
    pub(crate) was_moved: bool,
}

impl Binding {
    /// What runs.
    pub fn action(&self) -> &Arc<Action> {
        &self.action
    }

    /// The port, to be sent on.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Where it runs.
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }
}

impl<H: Hypervisor> Events<H> {
    /// Binds port `nr` to `action` on `cpu` and unmasks it. An event that came before makes the action run at once.
    ///
    /// # Errors
    /// As [`DeviceError`] says, with nothing bound.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn bind_device(&self, nr: PortNr, cpu: CpuId, action: &Arc<Action>) -> Result<Binding, DeviceError> {
        self.devices.reap();
        // vCPU 0 too: it looks at ports of other CPUs (`moving.rs`), and forgets all when it binds its intents.
        if let Some(cpu) = [cpu, CpuId::BOOT].into_iter().find(|cpu| !self.is_ready(*cpu)) {
            return Err(DeviceError::CpuNotReady { nr, cpu });
        }
        // vCPU 0 has the global virqs, which Xen would move; what other CPUs have it refuses below. A table that is not
        // ready holds numbers of an earlier life.
        let has_intent = |of| self.is_ready(of) && self.cpus.on(of).table.intent_of(nr).is_some();
        if has_intent(cpu) || has_intent(CpuId::BOOT) {
            return Err(DeviceError::PortTaken { nr });
        }
        self.reach(nr).map_err(|errno| DeviceError::NoSuchPort { nr, errno })?;
        let port = Port { nr, incarnation: self.incarnation() };
        action.port.claim(port).map_err(|has| DeviceError::ActionTaken { nr, has })?;
        // Until now it was vCPU 0's, as far as Xen knows, or whoever had it before: see `moving.rs`.
        let was_moved = match self.take_port(nr, cpu) {
            Ok(was_moved) => was_moved || cpu != CpuId::BOOT,
            Err(error) => {
                action.port.release();
                return Err(error);
            }
        };
        action.set_cpu(cpu);
        action.forget_turn();
        action.set_muted(false);
        action.end_event();
        if was_moved {
            self.cpus.iter().for_each(|(_, cpu)| cpu.own.add(nr));
        } else {
            self.cpus.on(cpu).own.add(nr);
        }
        self.devices.publish(nr, action.clone(), was_moved);
        self.unmask_by_xen(nr);
        Ok(Binding { action: action.clone(), port, cpu, was_moved })
    }

    /// Takes the slot of `nr` and has Xen tell `cpu` of the port, which is masked then, and in no queue. Whether it has been
    /// another CPU's.
    fn take_port(&self, nr: PortNr, cpu: CpuId) -> Result<bool, DeviceError> {
        let was_moved = self.devices.take(nr).ok_or(DeviceError::PortTaken { nr })?;
        let routed = self.route(nr, cpu);
        if routed.is_err() {
            self.devices.free(nr);
        }
        routed.map(|()| was_moved)
    }

    fn route(&self, nr: PortNr, cpu: CpuId) -> Result<(), DeviceError> {
        // Xen refuses what cannot be moved: other CPUs' virqs and ipis, ports that do not exist. So nothing of theirs
        // has been touched before.
        self.xen.bind_vcpu(nr, cpu).map_err(|errno| DeviceError::Route { nr, cpu, errno })?;
        // Masked, whatever it was: only a port that was masked is raised anew by Xen's unmask, on the new CPU.
        self.abi.mask_port(nr);
        // Masked, it is put in no queue any more. If it still is in one, that CPU would run the action.
        if self.abi.is_linked_racy(nr) { Err(DeviceError::StillQueued { nr }) } else { Ok(()) }
    }

    /// Always by Xen, also for a port of this CPU: this is no path that counts, and needs no masked upcalls.
    pub(crate) fn unmask_by_xen(&self, nr: PortNr) {
        // Xen refuses numbers that lie beyond the ABI, which it has just taken in another call.
        let _ = self.xen.unmask(nr);
    }

    /// Takes an action off its port, which stays open, masked, and belongs to nobody once [`Unbinding::is_over`] says so.
    /// Until then the action may still be running.
    ///
    /// # Errors
    /// `NotBound` after a restore: the port is gone.
    pub fn unbind_device(&self, binding: Binding) -> Result<Unbinding<'_, H>, DeviceError> {
        let Binding { action, port, cpu, was_moved } = binding;
        if port.incarnation != self.incarnation() {
            return Err(DeviceError::NotBound);
        }
        self.abi.mask_port(port.nr);
        if was_moved {
            self.cpus.iter().for_each(|(_, cpu)| cpu.own.remove(port.nr));
        } else {
            self.cpus.on(cpu).own.remove(port.nr);
        }
        let share = self.devices.retire(port.nr);
        Ok(Unbinding { events: self, action, port, share, grace: Grace::begin() })
    }
}

/// An action that was taken off its port and may still be running.
///
/// Dropped before it is over, the action is never freed and its port never bound again in this life of the domain.
#[must_use = "ask `is_over` until it is: the port cannot be bound before, nor the action freed"]
pub struct Unbinding<'a, H: Hypervisor> {
    events: &'a Events<H>,
    action: Arc<Action>,
    port: Port,
    /// The slot's.
    share: Option<Arc<Action>>,
    grace: Grace,
}

impl<H: Hypervisor> Unbinding<'_, H> {
    /// Whether the action runs no more, on no CPU, and port and action can be bound again. Asked anew, it looks anew.
    /// Context: task; never within a handler, which it would wait for.
    ///
    /// It lasts as long as a CPU that was in an upcall stays in it; with the FIFO ABI also until the port's CPU has taken an
    /// old event of it off its queue, which it does with its next upcall, which is due.
    pub fn is_over(&mut self) -> bool {
        let Self { events, port, .. } = *self;
        if self.share.is_none() {
            return true;
        }
        if port.incarnation != events.incarnation() {
            // Every CPU was parked meanwhile, outside of its sections; the slot was emptied.
            self.share = None;
            self.action.port.release();
            return true;
        }
        if !self.grace.is_over(&events.cpus, |cpu| &cpu.passage) {
            return false;
        }
        // Once more: somebody inside may have found it bound, and unmasked it after we had masked it.
        events.abi.mask_port(port.nr);
        if events.abi.is_linked_racy(port.nr) {
            return false;
        }
        self.share = None;
        self.action.port.release();
        events.devices.free(port.nr);
        true
    }

    /// The port that it was bound to.
    pub fn port(&self) -> Port {
        self.port
    }
}

impl<H: Hypervisor> Drop for Unbinding<'_, H> {
    fn drop(&mut self) {
        if self.port.incarnation != self.events.incarnation() {
            // As `is_over` would have found.
            self.is_over();
        }
        core::mem::forget(self.share.take());
    }
}
