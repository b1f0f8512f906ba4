//! [`Events::fifo_place`]: where the FIFO ABI has what one event touches, for who measures what an upcall costs that does
//! nothing else. With the 2-level ABI all of it is in `shared_info`.
#![forbid(unsafe_code)]

use percpu::CpuId;
use xen_sys::primitive::sync::atomic::AtomicU32;

use crate::abi::{Abi, Own};
use crate::events::Events;
use crate::port::PortNr;

/// What an upcall for one port has to touch, with the FIFO ABI.
pub struct FifoPlace<'a> {
    /// The port's event word.
    pub word: &'a AtomicU32,
    /// The ready bits of the CPU's queues.
    pub ready: &'a AtomicU32,
}

impl<H> Events<H> {
    /// Where the event word of `nr` is, and the ready bits of `cpu`. `None` with the 2-level ABI, and for a port in a page
    /// that Xen does not know yet. Who writes there must leave every other port's queue as it is.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn fifo_place(&self, nr: PortNr, cpu: CpuId) -> Option<FifoPlace<'_>> {
        match (&self.abi, &*self.cpus.on(cpu).own) {
            (Abi::Fifo(array), Own::Fifo(queues)) => {
                Some(FifoPlace { word: array.word(nr)?.bits(), ready: queues.ready() })
            }
            _ => None,
        }
    }
}
