//! [`Hypervisor`]: what this crate asks of Xen, and no more. [`Xen`] asks the real one, tests bring their own.
//!
//! Binding a CPU's intents goes through a batch instead ([`Binds`], [`Answers`]), so that everything that a vcpu needs
//! in a resume is one hypercall.
#![forbid(unsafe_code)]

use percpu::CpuId;
use xen_sys::Errno;
use xen_sys::hypercall::{self, Batch, PortToken, Results};

use crate::intent::Virq;
use crate::port::PortNr;

/// Hypercalls on single ports. Context: any; a bounded time in Xen each.
pub trait Hypervisor {
    /// `EVTCHNOP_send`: tells the port's other end.
    ///
    /// # Errors
    /// Xen's.
    fn send(&self, port: PortNr) -> Result<(), Errno>;
    /// `EVTCHNOP_unmask`: for a port that another CPU owns, or may own.
    ///
    /// # Errors
    /// Xen's.
    fn unmask(&self, port: PortNr) -> Result<(), Errno>;
    /// `EVTCHNOP_bind_vcpu`: later events of the port go to `cpu`.
    ///
    /// # Errors
    /// Xen's.
    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno>;
    /// `EVTCHNOP_close`: the port is free again, and so is not pending.
    ///
    /// # Errors
    /// Xen's.
    fn close(&self, port: PortNr) -> Result<(), Errno>;
}

/// A batch that collects requests to bind.
pub trait Binds {
    /// Finds a request's answer again.
    type Token: Copy;

    /// Asks for `EVTCHNOP_bind_virq`. `None` if the batch is full.
    fn bind_virq(&mut self, virq: Virq, cpu: CpuId) -> Option<Self::Token>;
    /// Asks for `EVTCHNOP_bind_ipi`. `None` if the batch is full.
    fn bind_ipi(&mut self, cpu: CpuId) -> Option<Self::Token>;
}

/// The answers of a batch that has been issued.
pub trait Answers<Token> {
    /// The port that Xen gave.
    ///
    /// # Errors
    /// Xen's.
    fn port(&self, token: Token) -> Result<u32, Errno>;
}

/// The real Xen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Xen;

impl Hypervisor for Xen {
    fn send(&self, port: PortNr) -> Result<(), Errno> {
        hypercall::evtchn::send(port.get())
    }

    fn unmask(&self, port: PortNr) -> Result<(), Errno> {
        hypercall::evtchn::unmask(port.get())
    }

    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno> {
        hypercall::evtchn::bind_vcpu(port.get(), cpu.vcpu())
    }

    fn close(&self, port: PortNr) -> Result<(), Errno> {
        hypercall::evtchn::close(port.get())
    }
}

impl<const N: usize> Binds for Batch<N> {
    type Token = PortToken;

    fn bind_virq(&mut self, virq: Virq, cpu: CpuId) -> Option<PortToken> {
        Batch::bind_virq(self, virq.nr(), cpu.vcpu()).ok()
    }

    fn bind_ipi(&mut self, cpu: CpuId) -> Option<PortToken> {
        Batch::bind_ipi(self, cpu.vcpu()).ok()
    }
}

impl<const N: usize> Answers<PortToken> for Results<'_, N> {
    fn port(&self, token: PortToken) -> Result<u32, Errno> {
        Results::port(self, token)
    }
}
