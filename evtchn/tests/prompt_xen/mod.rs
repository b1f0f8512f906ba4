//! [`Xen`]: the host's Xen, in which no sender is so late that a port moves between the moment when Xen reads which vcpu to
//! tell and the moment when it tells it.
//!
//! Xen's own `evtchn_send` holds no lock against `EVTCHNOP_bind_vcpu`, and the fake is like it. But such a sender would have
//! to stand still for as long as two of our hypercalls take; and no guest could tell where its event went: with the
//! 2-level ABI it stays PENDING while nobody is told, with FIFO it comes on the vcpu that the port was bound to before.

use std::ptr::NonNull;

use evtchn::hosted::{Fake, NR_PORTS};
use evtchn::{Hypervisor, Place, PortNr};
use percpu::CpuId;
use shuttle::sync::{Arc, RwLock};
use xen_sys::Errno;

/// See the head of this file.
#[derive(Clone)]
pub(crate) struct Xen {
    fake: Fake,
    /// One for each port.
    moving: Arc<Vec<RwLock<()>>>,
}

impl Xen {
    /// Of a fresh domain.
    pub(crate) fn new(nr_cpus: usize) -> Xen {
        Xen { fake: Fake::new(nr_cpus), moving: Arc::new((0..NR_PORTS).map(|_| RwLock::new(())).collect()) }
    }

    /// The fake itself.
    pub(crate) fn fake(&self) -> &Fake {
        &self.fake
    }

    /// As the fake's own.
    pub(crate) fn raise(&self, port: u32) {
        let _stays = self.moving[port as usize].read().expect("no panic");
        self.fake.raise(port);
    }
}

impl Hypervisor for Xen {
    fn place_of<T>(&self, address: NonNull<T>) -> Place {
        self.fake.place_of(address)
    }

    unsafe fn init_control(&self, cpu: CpuId, block: Place) -> Result<(), Errno> {
        // SAFETY: the caller's.
        unsafe { self.fake.init_control(cpu, block) }
    }

    unsafe fn expand_array(&self, page: Place) -> Result<(), Errno> {
        // SAFETY: the caller's.
        unsafe { self.fake.expand_array(page) }
    }

    fn send(&self, port: PortNr) -> Result<(), Errno> {
        self.fake.send(port)
    }

    fn unmask(&self, port: PortNr) -> Result<(), Errno> {
        self.fake.unmask(port)
    }

    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno> {
        let _alone = self.moving[port.index()].write().expect("no panic");
        self.fake.bind_vcpu(port, cpu)
    }

    fn close(&self, port: PortNr) -> Result<(), Errno> {
        self.fake.close(port)
    }
}
