//! Muting one of a CPU's own intents: its events wait, and make one when it is unmuted. Context: that CPU, upcalls masked.
#![forbid(unsafe_code)]

use percpu::Masked;
use xen_sys::abi::xen::VcpuInfo;

use crate::events::Events;
use crate::fifo::word::Unmasked;
use crate::hypervisor::Hypervisor;
use crate::intent::Intent;
use crate::port::PortNr;

impl<H: Hypervisor> Events<H> {
    /// Masks this CPU's port of `intent`, if it has one.
    pub fn mask_own(&self, _masked: &Masked, intent: Intent) {
        if let Some(port) = self.cpus.mine().table.port_of_racy(intent) {
            self.abi.mask_port(port.nr);
        }
    }

    /// Unmasks it. What came meanwhile is pending then. `flags` is this CPU's registered `vcpu_info`.
    pub fn unmask_own(&self, masked: &Masked, flags: &VcpuInfo, intent: Intent) {
        if let Some(port) = self.cpus.mine().table.port_of_racy(intent) {
            self.unmask_own_nr(masked, flags, port.nr);
        }
    }

    pub(crate) fn unmask_own_nr(&self, masked: &Masked, flags: &VcpuInfo, nr: PortNr) {
        if self.abi.unmask_own(masked, flags, nr) == Unmasked::AskXen {
            // It cannot fail: the port is bound. Should it, the event comes with the next one.
            let _ = self.xen.unmask(nr);
        }
    }
}
