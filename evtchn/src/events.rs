//! [`Events`]: the domain's event channels, and when they begin and end. One for the whole kernel, made at boot.
//!
//! Each of its operations has a file: `demux` (the upcall), `rebind` (a CPU's intents), `device` and `moving` (device
//! ports), `storm` (ports that fire too often), `send`, `dump`.
//!
//! | field | written by | when | suspend |
//! |---|---|---|---|
//! | handlers | vCPU 0 | boot | *kept* |
//! | incarnation, the page's address | vCPU 0 | boot, suspend, resume; all others parked | *rebuilt* |
//! | a CPU's table | that CPU | bring-up, resume; upcalls masked | *rebuilt* by that CPU |
//! | a CPU's own ports | that CPU; who binds a device port to it | the same; any time | *rebuilt* by that CPU |
//! | the port table | who binds, moves or unbinds a device port | any time | *cleared* by vCPU 0 |
//! | a CPU's passage and turns | that CPU | upcalls; turns of its executor | *kept* |
//! | a CPU's counters | that CPU | any time | *kept* |
//!
//! - EV1: a port that is neither an intent's nor a device's is masked: all are when a life begins, and unbinding masks
//!   first. So a stray event on one cannot storm.

use core::ptr::NonNull;

use crossbeam_utils::CachePadded;
use percpu::{CpuId, PerCpu, Quiesced};
use xen_sys::Errno;
use xen_sys::abi::xen::SharedInfo;
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};

use crate::abi::{Abi, AbiKind, Own};
use crate::counters::{Counters, CpuCounts};
use crate::error::AttachError;
use crate::handlers::Handlers;
use crate::hypervisor::Hypervisor;
use crate::passage::Passage;
use crate::port::{Incarnation, PortNr};
use crate::port_table::PortTable;
use crate::storm::Turns;
use crate::table::CpuTable;

/// What the page that is attached says of the ports bound before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    /// Nothing of them is left, a new life of the domain begins: at boot, and after a suspend that answered `Resumed`.
    Gone,
    /// They are as they were: after a suspend that was cancelled or checkpointed (`Continued`).
    Kept,
}

/// What belongs to one CPU, in lines of its own; what others read is kept apart from what it counts.
pub(crate) struct CpuEvents {
    pub(crate) id: CpuId,
    pub(crate) table: CachePadded<CpuTable>,
    pub(crate) own: CachePadded<Own>,
    pub(crate) counters: CachePadded<Counters>,
    pub(crate) passage: CachePadded<Passage>,
    pub(crate) turns: CachePadded<Turns>,
}

impl CpuEvents {
    /// In a frame of its own, which is gone before the tables of the domain are moved to where they stay: each is some KiB large.
    #[inline(never)]
    fn for_all(nr_cpus: usize, abi: &Abi) -> PerCpu<CpuEvents> {
        PerCpu::new(nr_cpus, |id| CpuEvents {
            id,
            table: CachePadded::new(CpuTable::new()),
            own: CachePadded::new(abi.own()),
            counters: CachePadded::new(Counters::new()),
            passage: CachePadded::new(Passage::new()),
            turns: CachePadded::new(Turns::new()),
        })
    }
}

/// See the head of this file.
pub struct Events<H> {
    pub(crate) xen: H,
    pub(crate) abi: Abi,
    pub(crate) handlers: Handlers,
    pub(crate) devices: PortTable,
    pub(crate) cpus: PerCpu<CpuEvents>,
    incarnation: CachePadded<AtomicU32>,
}

impl<H: Hypervisor> Events<H> {
    /// Event channels for the first `nr_cpus` CPUs, with nothing attached or bound. Allocates
    /// about 2 KiB for each CPU; the first port of each 1024 that is bound costs 8 KiB more, with the FIFO ABI 12.
    /// Context: boot.
    pub fn new(nr_cpus: usize, kind: AbiKind, handlers: Handlers, xen: H) -> Events<H> {
        let abi = Abi::new(kind);
        let devices = PortTable::new(abi.capacity());
        let cpus = CpuEvents::for_all(nr_cpus, &abi);
        Events {
            xen,
            abi,
            handlers,
            devices,
            cpus,
            incarnation: CachePadded::new(AtomicU32::new(Incarnation::NONE.get())),
        }
    }

    /// Uses the `shared_info` at `page` from now on. With [`Ports::Gone`] the next life of the domain begins: all ports
    /// are masked, device actions lose theirs, and every CPU has to [bind its intents](Events::plan) anew.
    /// Context: vCPU 0, at boot or quiesced. Takes no lock; allocates at boot only.
    ///
    /// With the FIFO ABI a new life costs a hypercall, and one more for each 1024 ports.
    ///
    /// # Errors
    /// Xen refused the FIFO ABI.
    /// # Safety
    /// A `shared_info` is mapped at `page` and stays so until [`Events::detach`]; a CPU that is parked under a
    /// [`Quiesced`] does not enter [`Events::demux`].
    pub unsafe fn attach(
        &self,
        quiesced: &Quiesced,
        page: NonNull<SharedInfo>,
        ports: Ports,
    ) -> Result<(), AttachError> {
        if let Some(shared) = self.abi.shared_page() {
            // SAFETY: the caller's first clause; `SharedPage` relies on the second for SP2.
            unsafe { shared.attach(quiesced, page) };
        }
        if ports == Ports::Gone {
            let life = self.incarnation().next();
            self.abi.begin(quiesced, &self.xen, &self.cpus.on(CpuId::BOOT).own, life)?;
            self.devices.clear(quiesced);
            // ORDERING: Relaxed. Every other CPU is parked, or not started, and its release or start shows it this.
            self.incarnation.store(life.get(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes sure that port `nr` can be used. Blocking: the port after the last page of 1024 costs memory and, with
    /// the FIFO ABI, a hypercall.
    pub(crate) fn reach(&self, nr: PortNr) -> Result<(), Errno> {
        self.devices.reach(nr).ok_or(Errno::ENOSPC)?;
        self.abi.reach(&self.xen, nr)
    }

    /// Uses no `shared_info` from now on, so that it can be unmapped. What is bound stays known, in case the suspend
    /// is cancelled. Context: vCPU 0, quiesced, not in an upcall.
    pub fn detach(&self, quiesced: &Quiesced) {
        if let Some(shared) = self.abi.shared_page() {
            shared.detach(quiesced);
        }
    }

    /// Which life of the domain this is.
    pub fn incarnation(&self) -> Incarnation {
        // ORDERING: Relaxed, as in `attach`.
        Incarnation::new(self.incarnation.load(Ordering::Relaxed))
    }

    /// The ABI in use.
    pub fn abi(&self) -> AbiKind {
        self.abi.kind()
    }

    /// Whether `cpu` has bound its intents in this life of the domain, and is not down.
    pub fn is_ready(&self, cpu: CpuId) -> bool {
        self.has_ports(cpu) && !self.cpus.on(cpu).table.is_down()
    }

    /// Whether `cpu` has bound its intents in this life of the domain. It may have gone down since.
    pub(crate) fn has_ports(&self, cpu: CpuId) -> bool {
        let ready = self.cpus.on(cpu).table.ready();
        ready != Incarnation::NONE && ready == self.incarnation()
    }

    /// What `cpu` has seen since boot. Context: any, on any CPU.
    pub fn counts_racy(&self, cpu: CpuId) -> CpuCounts {
        self.cpus.on(cpu).counters.read_racy()
    }
}
