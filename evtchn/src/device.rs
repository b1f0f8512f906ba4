//! Device ports: numbers that a peer or the toolstack gave, bound to an [`Action`] on a CPU of choice.
//!
//! After a restore all of them are gone; their owners bind the new numbers with the same actions. Context: task, on any
//! CPU. Lock-free, and a few hypercalls: binding is rare.
#![forbid(unsafe_code)]

use percpu::CpuId;
use xen_sys::Errno;

use crate::error::DeviceError;
use crate::events::Events;
use crate::hypervisor::Hypervisor;
use crate::port::{Port, PortNr};
use crate::port_table::{Action, Occupied};

impl<H: Hypervisor> Events<H> {
    /// Binds port `nr` to `action` on `cpu` and unmasks it. An event that came before makes the action run at once;
    /// one that came while the port was being moved may be swallowed, so look at the device once afterwards.
    ///
    /// # Errors
    /// As [`DeviceError`] says, with nothing bound.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn bind_device(&self, nr: PortNr, cpu: CpuId, action: &'static Action) -> Result<Port, DeviceError> {
        if !self.is_ready(cpu) {
            return Err(DeviceError::CpuNotReady { nr, cpu });
        }
        let target = self.cpus.on(cpu);
        // vCPU 0 has the global virqs, which Xen would move; what other CPUs have it refuses below. A table that is not
        // ready holds numbers of an earlier life.
        let has_intent = |of| self.is_ready(of) && self.cpus.on(of).table.intent_of(nr).is_some();
        if has_intent(cpu) || has_intent(CpuId::BOOT) {
            return Err(DeviceError::PortTaken { nr });
        }
        let port = Port { nr, incarnation: self.incarnation() };
        self.reach(nr).map_err(|errno| DeviceError::NoSuchPort { nr, errno })?;
        match self.devices.bind(port, cpu, action) {
            None => return Err(DeviceError::NoSuchPort { nr, errno: Errno::ENOSPC }),
            Some(Err(Occupied::Slot)) => return Err(DeviceError::PortTaken { nr }),
            Some(Err(Occupied::Action(has))) => return Err(DeviceError::ActionTaken { nr, has }),
            Some(Ok(())) => {}
        }
        // Xen refuses what cannot be moved: other CPUs' virqs and ipis, ports that do not exist. So nothing of theirs
        // has been touched before.
        if let Err(errno) = self.xen.bind_vcpu(nr, cpu) {
            self.devices.unbind(nr);
            return Err(DeviceError::Route { nr, cpu, errno });
        }
        // Masked, whatever it was: only a port that was masked is raised anew by Xen's unmask, on the new CPU.
        self.abi.mask_port(nr);
        // Masked, it is put in no queue any more. If it still is in one, that CPU would run the action.
        if self.abi.is_linked_racy(nr) {
            self.devices.unbind(nr);
            return Err(DeviceError::StillQueued { nr });
        }
        target.own.add(nr);
        // Always by Xen, also for a port of this CPU: this is no path that counts, and needs no masked upcalls.
        if let Err(errno) = self.xen.unmask(nr) {
            target.own.remove(nr);
            self.devices.unbind(nr);
            return Err(DeviceError::Unmask { nr, errno });
        }
        Ok(port)
    }

    /// Takes `action` off its port, which stays open, masked. The action may still be running on the CPU that it was
    /// bound to, if that is not this one, and runs no more once that CPU has left its upcall.
    ///
    /// # Errors
    /// `NotBound`, also after a restore: the port is gone then.
    pub fn unbind_device(&self, action: &'static Action) -> Result<PortNr, DeviceError> {
        let (Some(port), Some(cpu)) = (action.port(), action.cpu()) else { return Err(DeviceError::NotBound) };
        // Masked first: EV1 holds at every moment.
        self.abi.mask_port(port.nr);
        self.cpus.on(cpu).own.remove(port.nr);
        self.devices.unbind(port.nr);
        Ok(port.nr)
    }
}
