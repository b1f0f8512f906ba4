//! Sending: to a peer through a device port, and to another CPU of ours. Context: any, on any CPU: tasks, upcalls, a
//! CPU that dies. And forgetting what was sent to a port that is polled. No lock, and wait-free up to the one hypercall, or to one for each 32 CPUs that are told together.
//!
//! A send cannot straddle a suspend: it does not await, so its CPU parks either before it or after it. Only between the
//! suspend and the attach of the new life, when vCPU 0 alone runs, is a number of the old life not known as such: what
//! is sent then reaches nobody, or a peer that looks and finds nothing.
#![forbid(unsafe_code)]

use percpu::CpuId;
use xen_sys::Errno;

use crate::error::SendOutcome;
use crate::events::Events;
use crate::hypervisor::{Binds, Hypervisor};
use crate::intent::{Intent, Ipi};
use crate::port::{Port, PortNr};

impl<H: Hypervisor> Events<H> {
    /// Tells the peer of `port`, most often [`Action::port`](crate::Action::port). A port of an earlier life of the
    /// domain is left alone: its number may be another port's by now. Nothing is waited for, and the outcome may be
    /// ignored where the owner tells the peer again after a restore.
    pub fn send(&self, port: Port) -> SendOutcome {
        if port.incarnation != self.incarnation() {
            self.cpus.mine().counters.stale_sends.bump();
            return SendOutcome::Stale;
        }
        self.send_nr(port.nr)
    }

    /// Interrupts `target`, to have it look at its inbox.
    ///
    /// Post first, then call this. If the answer is `Unbound`, nothing more is to be done provided that
    /// - the post was a read-modify-write of the inbox with an acquire half, and
    /// - the target, after [`Events::record`], takes its inbox by a read-modify-write with a release half, whatever it
    ///   thinks is in it.
    ///
    /// For one of the two comes first: if the post, the target's take finds the work; if the take, then the post
    /// acquires what it released, and so this finds the port. No fence is needed here. A post without its acquire half
    /// strands work in `evtchn/tests/loom_ipi_port.rs`; a take without its release half does not there, because
    /// unmasking in `record` happens to end with a fence.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    #[inline]
    pub fn send_ipi(&self, target: CpuId, ipi: Ipi) -> SendOutcome {
        self.ipi_port(target, ipi).map_or(SendOutcome::Unbound, |nr| self.send_nr(nr))
    }

    /// [`Events::send_ipi`] to each of `targets`, with the same promise for each: post to all of them first. What
    /// became of each send is counted as it is there; one that is refused or finds no port keeps nobody from its own.
    ///
    /// # Panics
    /// If the domain has not all of these CPUs.
    pub fn send_ipis(&self, targets: &[CpuId], ipi: Ipi) {
        let ports = targets.iter().filter_map(|target| self.ipi_port(*target, ipi));
        self.xen.send_each(ports, |answer| {
            let _ = self.count(answer);
        });
    }

    /// [`Events::send_ipi`] by `batch`, with the same promise: post first, then this. What becomes of it is told to
    /// [`Events::sent`]. `None`: the CPU has no port, or the batch is full.
    pub fn plan_ipi<B: Binds>(&self, target: CpuId, ipi: Ipi, batch: &mut B) -> Option<B::Call> {
        batch.send(self.ipi_port(target, ipi)?)
    }

    /// Counts a send that a batch has carried.
    pub fn sent(&self, answer: Result<(), Errno>) -> SendOutcome {
        self.count(answer)
    }

    /// Forgets an event of `nr`, a port that no table knows: one that is polled (`SCHEDOP_poll`), and masked. Whether
    /// this kernel can see that port's events: with the FIFO ABI not beyond the pages that Xen has. One locked operation.
    /// Context: any, on any CPU, while nobody polls it.
    pub fn forget_pending(&self, nr: PortNr) -> bool {
        self.abi.forget_pending(nr)
    }

    /// The port of `target`, in this life of the domain.
    #[inline]
    fn ipi_port(&self, target: CpuId, ipi: Ipi) -> Option<PortNr> {
        let port = self.cpus.on(target).table.port_of_racy(Intent::Ipi(ipi));
        let nr = port.filter(|port| port.incarnation == self.incarnation()).map(|port| port.nr);
        if nr.is_none() {
            self.cpus.mine().counters.unbound_sends.bump();
        }
        nr
    }

    #[inline]
    fn send_nr(&self, nr: PortNr) -> SendOutcome {
        self.count(self.xen.send(nr))
    }

    #[inline]
    fn count(&self, answer: Result<(), Errno>) -> SendOutcome {
        if let Err(errno) = answer {
            return self.refused(errno);
        }
        self.cpus.mine().counters.sent.bump();
        SendOutcome::Sent
    }

    #[cold]
    fn refused(&self, errno: Errno) -> SendOutcome {
        self.cpus.mine().counters.refused_sends.bump();
        SendOutcome::Refused(errno)
    }
}
