//! A CPU that goes down, and one that is back: what its tables are to others meanwhile.
//!
//! A vcpu that is down keeps its ports; Xen raises events on them, which it finds when it is up again. So that no device
//! waits for it, no device port is on it when it goes ([`first_device_on`](Events::first_device_on); whoever owns one
//! [moves](Events::move_device) it first), and none can be bound or moved to it until it is back. A port that once was its own is
//! another matter: Xen may tell it of an event long after the move (`moving.rs`), and that event waits for it.
#![forbid(unsafe_code)]

use percpu::{CpuId, CpuSet, Masked, Quiesced};

use crate::events::Events;
use crate::hypervisor::Hypervisor;
use crate::passage::TaskInside;
use crate::port::{Incarnation, PortNr};

impl<H: Hypervisor> Events<H> {
    /// A device port that notifies one of `cpus`, if there is any. Looks at every slot of the port table. Context: vCPU 0,
    /// quiesced.
    pub fn first_device_on(&self, _others: &Quiesced, cpus: &CpuSet) -> Option<(PortNr, CpuId)> {
        let section = TaskInside::enter(|| &self.cpus.mine().passage);
        self.devices.reached().find_map(|nr| {
            let cpu = self.devices.lookup(nr, &section.inside)?.action.cpu_racy()?;
            cpus.contains(cpu).then_some((nr, cpu))
        })
    }

    /// `cpu` goes down: from now on no device port is bound or moved to it. Context: vCPU 0, quiesced.
    pub fn close_cpu(&self, others: &Quiesced, cpu: CpuId) {
        self.cpus.on(cpu).table.close(others);
    }

    /// This CPU, which has gone down in this life of the domain, is up again. Context: task, upcalls masked.
    pub fn reopen_cpu(&self, masked: &Masked) {
        let life = self.incarnation();
        if life != Incarnation::NONE {
            self.cpus.mine().table.set_ready(masked, life);
        }
    }
}
